"""Ways in which a version or a server goes wrong, and a process that ends between any two steps."""

from collections.abc import Callable

import numpy as np
import pytest

from hap.errors import ServingError
from hap.registry import moves, versions
from hap.registry.ledger import Ledger
from hap.registry.local import bundle_folder
from hap.serving import repository, staging
from hap.workspace import Workspace
from tests.registry.file_triton import FileTriton


class Killed(BaseException):
    """Stands for the end of the process: nothing after it runs."""


def spoil_graph(ws: Workspace) -> None:
    (bundle_folder(ws, 2) / "light.onnx").write_bytes(b"not a graph")


def refuse_load(server: FileTriton, version: int, model: str) -> None:
    load = server.load

    def refusing(name: str) -> None:
        if name == model and version in repository.parse_config(server.repo / name / repository.CONFIG).version_policy.specific.versions:
            raise ServingError(f"{name}: out of memory")
        load(name)

    server.load = refusing  # type: ignore[method-assign]


def answer_wrongly(server: FileTriton, change: Callable, models: tuple[str, ...]) -> None:
    score = server.score

    def wrong(tensors, k=None, model=None):
        answer = score(tensors, k, model)
        return change(answer) if model in models and answer.served_by == 2 else answer

    server.score = wrong  # type: ignore[method-assign]


def with_scores(factor: float) -> Callable:
    return lambda answer: type(answer)(answer.score * np.float32(factor), answer.routed, answer.served_by)


EVERYWHERE = (*staging.names(staging.REHEARSAL).values(), "hap", "hap_all")
FAULTS = {
    "a member does not load": lambda server: refuse_load(server, 2, "expressive"),
    "an ensemble does not load": lambda server: refuse_load(server, 2, "hap"),
    "the second ensemble does not load": lambda server: refuse_load(server, 2, "hap_all"),
    "scores are wrong": lambda server: answer_wrongly(server, with_scores(1.01), EVERYWHERE),
    "scores are NaN": lambda server: answer_wrongly(server, with_scores(float("nan")), EVERYWHERE),
    "scores are wrong after the switch only": lambda server: answer_wrongly(server, with_scores(1.01), ("hap",)),
    "hap_all is wrong": lambda server: answer_wrongly(server, with_scores(1.01), ("hap_all",)),
    "the route is wrong": lambda server: answer_wrongly(server, lambda a: type(a)(a.score, ~a.routed, a.served_by), EVERYWHERE),
    "another version answers": lambda server: answer_wrongly(server, lambda a: type(a)(a.score, a.routed, 1), EVERYWHERE),
    "candidates are missing": lambda server: answer_wrongly(server, lambda a: type(a)(a.score[1:], a.routed[1:], a.served_by), EVERYWHERE),
}


def count_steps(monkeypatch: pytest.MonkeyPatch, server: FileTriton, die_at: int | None) -> list[str]:
    """Have every change of files, server, ledger and MLflow counted, and the process end before the one of that number."""
    done: list[str] = []

    def counted(owner, name: str) -> None:
        real = getattr(owner, name)

        def call(*positional, **named):
            if len(done) == die_at:
                raise Killed
            done.append(name)
            return real(*positional, **named)

        monkeypatch.setattr(owner, name, call)

    for owner, name in (
        (repository, "render"),
        (repository, "pin"),
        (repository, "remove"),
        (repository.durable, "write_text"),
        (server, "load"),
        (server, "unload"),
        (Ledger, "append"),
        (versions, "fetch_bundle"),
        (versions, "set_alias"),
    ):
        counted(owner, name)
    if die_at is not None:
        undo = moves._undo

        def dead(desk, entry, why, known):
            if why == "Killed":
                raise Killed
            return undo(desk, entry, why, known)

        monkeypatch.setattr(moves, "_undo", dead)
    return done
