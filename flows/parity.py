"""`hapctl parity`: one version in PyTorch, ONNX Runtime and the running Triton beside each other, measured now."""

import contextlib
import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hap.errors import DataError, HapError
from hap.params import Params
from hap.registry import ledger as journal
from hap.registry.beside import drop_beside, load_beside, settled_rows
from hap.registry.local import fetched
from hap.registry.switch import Server, answers_as, ask, rehearse
from hap.registry.turns import promotion_lock
from hap.registry.versions import label
from hap.samples.replay import logged_requests
from hap.serving import repository, trial
from hap.serving.agreement import ONNXRUNTIME, PYTORCH, TRITON, Agreement, Answer, beside, golden_answers, refused_by_name
from hap.serving.bundle import Bundle, Golden, read_bundle
from hap.serving.parity import asked
from hap.serving.request import RequestTensors, requested_k
from hap.workspace import Workspace

_SAME = 1e-5  # of PyTorch's scores on two machines


@dataclass(frozen=True, kw_only=True)
class Measured:
    """`refused`: each dense feature, and whether a NaN in it is refused by that name. `notes` say what was not measured, and why."""

    version: int
    agreement: Agreement
    refused: dict[str, bool]
    notes: tuple[str, ...]

    @property
    def fault(self) -> str | None:
        """What does not agree, in words; None where all does."""
        unnamed = [feature for feature, well in self.refused.items() if not well]
        return self.agreement.fault or (f"a NaN in {unnamed[0]} is not refused by name" if unnamed else None)

    def as_json(self) -> dict[str, Any]:
        """All of it."""
        found = self.agreement.as_json() | {"agrees": self.fault is None, "fault": self.fault}
        return {"version": label(self.version), **found, "nan_refused_by_name": self.refused, "notes": list(self.notes)}

    def __str__(self) -> str:
        told = f"a NaN in a dense feature is refused by its name: {sum(self.refused.values())} of {len(self.refused)}"
        word = f"{label(self.version)} agrees" if self.fault is None else f"{label(self.version)} FAILS: {self.fault}"
        return "\n".join([str(self.agreement), told, *self.notes, word])


def measure(
    ws: Workspace, params: Params, version: int, *, server: Server | None, now: dt.datetime, day: dt.date | None = None, limit: int = 20
) -> Measured:
    """Ask all three for the golden requests, and for logged ones of a day where one is given.

    PyTorch's side of the golden requests is what the export wrote down; of the day's it is computed, where `models/` holds the
    version's weights. A version that does not serve is rehearsed in Triton under names that no caller asks for.

    Raises:
        NotFound: no such version, or no logs of the day.
        DataError: a graph fails in a process of its own: nothing was sent to Triton then.
        Busy: the version has to be rehearsed, and a promotion runs.
        ServingError: Triton refused a load or a request.
    """
    bundle, notes = fetched(ws, params, version), []
    golden = bundle.golden()
    logged = list(_logged(ws, params, bundle, day, limit)) if day else []
    computed, why = _with_pytorch(ws, bundle, golden, logged) if logged else ([], None)
    notes += [why] if why else []
    tried = trial.tried(bundle.path, [*golden, *(computed or logged)])
    if not computed:  # ties at the cut are told by ONNX Runtime's light logits then
        logged = [replace(entry, light=one.light) for entry, one in zip(logged, tried[len(asked(golden)) :], strict=True)]
    requests = [*golden, *(computed or logged)]
    nobody: list[Answer | None] = [None] * len(asked(logged))
    answers: dict[str, Sequence[Answer | None]] = {
        PYTORCH: [*golden_answers(golden), *(golden_answers(computed) if computed else nobody)],
        ONNXRUNTIME: tried,
    }
    if server is None or not server.live():
        notes += [f"Triton was not asked: no server runs; {_last(ws, params, version)}"]
    elif answers_as(server, version):
        answers[TRITON] = ask(server, requests, {ensemble: ensemble for ensemble in repository.ENSEMBLES}, version)
    else:
        with _loaded(ws, params, bundle, version, server, now):
            answers[TRITON] = rehearse(server, ws.triton, requests, version)
        notes += [f"{label(version)} does not serve: it was rehearsed in Triton beside what does"]
    found = beside(requests, answers, params.gate.max_parity)
    first = next(entry.tensors for entry in golden if entry.tensors.candidates)
    return Measured(version=version, agreement=found, refused=refused_by_name(bundle.features, first), notes=tuple(notes))


def _logged(ws: Workspace, params: Params, bundle: Bundle, day: dt.date, limit: int) -> Iterator[Golden]:
    """The day's requests with every candidate; their answers stay empty."""
    for request in logged_requests(ws, params, day, limit):
        tensors = RequestTensors.from_json(bundle.features, request)
        if tensors.candidates:
            nothing, unrouted = np.zeros(tensors.candidates, np.float32), np.zeros(tensors.candidates, bool)
            yield Golden(f"{day} request {request['request_id']}", tensors, requested_k(request), nothing, unrouted, nothing)


def _with_pytorch(ws: Workspace, bundle: Bundle, golden: Sequence[Golden], logged: Sequence[Golden]) -> tuple[list[Golden], str | None]:
    """The requests with PyTorch's answers, where `models/` holds the weights of the bundle; else none, and why."""
    try:
        from hap.models.build import load_model
        from hap.params import MODELS
        from hap.serving.golden import answered
        from hap.serving.half import rounded
        from hap.training.run import read_run

        if read_bundle(ws.bundle).digest != bundle.digest:
            raise DataError(f"{ws.bundle} is another version's")
        run = read_run(ws)
        models = {name: load_model(ws.models / name, run.params) for name in MODELS}
        if run.params.export.weights == "fp16":
            models = rounded(models)
        first = next(entry for entry in golden if entry.tensors.candidates)
        again = answered(models, bundle.route, first.name, first.tensors, first.k)
        if not np.abs(again.score - first.score).max() < _SAME:
            raise DataError(f"{ws.models} holds other weights")
        return [answered(models, bundle.route, entry.name, entry.tensors, entry.k) for entry in logged], None
    except (HapError, RuntimeError) as error:  # RuntimeError: torch, of weights that do not fit the columns
        return [], f"PyTorch was not asked for the day's requests: {str(error).splitlines()[0]}"


@contextlib.contextmanager
def _loaded(ws: Workspace, params: Params, bundle: Bundle, version: int, server: Server, now: dt.datetime) -> Iterator[None]:
    """Have a version's members loaded beside what serves, alone among those who change that; everything is as before afterwards."""
    ledger = journal.open_ledger(ws, params)
    with promotion_lock(ws, ledger, f"parity of {label(version)}", now):
        rows = settled_rows(ws, ledger)
        try:
            load_beside(ws, params, bundle, version, server, rows)
            yield
        finally:
            drop_beside(ws, server, rows)


def _last(ws: Workspace, params: Params, version: int) -> str:
    """What Triton's side was when the version was promoted last."""
    rows = [row for row in journal.open_ledger(ws, params).rows() if row.to_version == version and row.evidence.get("parity")]
    if not rows:
        return f"{label(version)} was never promoted"
    found = rows[-1].evidence["parity"].get(f"{TRITON} / {PYTORCH}")
    told = f"largest difference {found['max_abs_diff']:.1e} from PyTorch on {found['requests']} requests"
    return f"when it was promoted ({rows[-1].at:%Y-%m-%d %H:%M} UTC, row {rows[-1].id}): {told}"
