"""PyTorch, ONNX Runtime and the running Triton beside each other on the same requests."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from hap.errors import DataError
from hap.params import Features
from hap.serving.bundle import Golden
from hap.serving.parity import Parity, asked, compare, fault, summary
from hap.serving.request import RequestTensors
from hap.tables import table

PYTORCH, ONNXRUNTIME, TRITON = "PyTorch", "ONNX Runtime", "Triton"
PAIRS = ((ONNXRUNTIME, PYTORCH), (TRITON, PYTORCH), (TRITON, ONNXRUNTIME))  # who is compared, and with whom
_NUMBERED = re.compile(r"(.+) \d+")  # requests of one kind, as "real 7"


class Answer(Protocol):
    """What a system says of one request: score F32[N], routed BOOL[N]."""

    @property
    def score(self) -> NDArray[np.float32]: ...
    @property
    def routed(self) -> NDArray[np.bool_]: ...


Answers = Mapping[str, Sequence[Answer | None]]  # by system, in the order of the questions; None where that one was not asked


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One request as callers ask it, and how each pair of systems that was measured agrees on it."""

    name: str
    candidates: int
    k: int | None
    by_pair: Mapping[str, Parity]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Systems beside each other. `pairs` holds the worst of each pair (`hap.serving.parity.summary`), `requests` every request."""

    pairs: Mapping[str, Mapping[str, Any]]
    requests: tuple[Compared, ...]
    tolerance: float

    @property
    def fault(self) -> str | None:
        """The first pair that does not agree, in words; None where all do."""
        for system, reference in PAIRS:
            found = self.pairs.get(f"{system} / {reference}")
            if found is not None and (said := fault(found, system, reference, self.tolerance)):
                return said
        return None

    def as_json(self) -> dict[str, Any]:
        """Pairs, requests and the fault."""
        rows = [
            {"name": one.name, "candidates": one.candidates, "k": one.k}
            | {pair: {name: value for name, value in asdict(found).items() if name not in ("name", "candidates")}
               for pair, found in one.by_pair.items()}
            for one in self.requests
        ]  # fmt: skip
        return {"agrees": self.fault is None, "fault": self.fault, "tolerance": self.tolerance, "pairs": dict(self.pairs), "requests": rows}

    def __str__(self) -> str:
        """A line for each request, numbered ones of one kind together, and the worst of all below."""
        kinds: dict[str, list[Compared]] = {}
        for one in self.requests:
            kinds.setdefault(kind_of(one.name), []).append(one)
        rows = []
        for name, found in kinds.items():
            sizes = sorted({one.candidates for one in found})
            k = "route" if found[0].k is None else str(found[0].k)
            many = f"{len(found)} x {name}" if len(found) > 1 else found[0].name
            rows.append([many, f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else f"{sizes[0]}", k, *self._figures(found)])
        rows.append([f"worst of {len(self.requests)}", "", "", *self._figures(self.requests)])
        return table(["request", "N", "k", *self.pairs, "top 20 shared", "routed alike", "misrouted"], rows)

    def _figures(self, requests: Sequence[Compared]) -> list[str]:
        """The largest difference of each pair, and the worst of the other figures over all pairs."""
        found = [pair for one in requests for pair in one.by_pair.values()]
        differences = []
        for pair in self.pairs:
            known = [one.by_pair[pair].max_abs_diff for one in requests if pair in one.by_pair]
            differences.append(f"{max(known):.1e}" if known else "-")
        if not found:  # one system alone was asked
            return [*differences, "-", "-", "-"]
        shared, alike = min(one.top_overlap for one in found), min(one.routing_agreement for one in found)
        return [*differences, f"{shared:.4f}", f"{alike:.4f}", str(sum(one.misrouted for one in found))]


def beside(requests: Sequence[Golden], answers: Answers, tolerance: float) -> Agreement:
    """Compare systems pair by pair.

    Args:
        requests: what `asked` makes of them is what was asked, in that order; their own answers are not looked at.
        answers: what the systems said; one that is left out is in no pair.
        tolerance: the largest score difference that is agreement.
    """
    compared = []
    for place, (ensemble, golden) in enumerate(asked(requests)):
        name = golden.name if ensemble == "hap" else f"{golden.name}, one step"
        by_pair = {}
        for system, reference in PAIRS:
            mine, theirs = (answers[who][place] if who in answers else None for who in (system, reference))
            if mine is not None and theirs is not None:
                expected = replace(golden, name=name, score=theirs.score, routed=theirs.routed)
                by_pair[f"{system} / {reference}"] = compare(expected, mine.score, mine.routed)
        compared.append(Compared(name=name, candidates=golden.tensors.candidates, k=golden.k, by_pair=by_pair))
    pairs = {}
    for pair in (f"{system} / {reference}" for system, reference in PAIRS):
        if found := [one.by_pair[pair] for one in compared if pair in one.by_pair]:
            pairs[pair] = summary(found)
    return Agreement(pairs=pairs, requests=tuple(compared), tolerance=tolerance)


def kind_of(name: str) -> str:
    """What numbered requests have in common: "real" of "real 7"; any other name is a kind of its own."""
    numbered = _NUMBERED.fullmatch(name)
    return numbered[1] if numbered else name


def golden_answers(requests: Sequence[Golden]) -> list[Answer | None]:
    """PyTorch's side: what the requests carry, question by question."""
    return [entry for _, entry in asked(requests)]


def refused_by_name(features: Features, request: RequestTensors) -> dict[str, bool]:
    """Whether a NaN in each dense feature ("item price") is refused with that name before anything is sent; N must be above 0."""
    groups: tuple[tuple[str, Literal["user", "item", "history"]], ...] = (("user", "user"), ("hist", "history"), ("cand", "item"))
    found = {}
    for tensor, group in groups:
        for place, feature in enumerate(features.dense(group)):
            spoiled = request.copy()
            getattr(spoiled, f"{tensor}_dense")[..., place] = np.nan
            try:
                spoiled.check(features)
                said = ""
            except DataError as error:
                said = str(error)
            found[f"{group} {feature.name}"] = repr(feature.name) in said and "NaN" in said
    return found
