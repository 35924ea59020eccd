"""The gate's step: score champion and challenger from their bundles on the judging days, decide, and write the version's page."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.bundles import bundle_of
from flows.page import write_page
from flows.talk import current
from flows.whole import describe_whole, recall_of
from hap.errors import HapError, NotFound
from hap.evaluation.auc import RequestAuc
from hap.evaluation.cascade import Cost, cost_ratio
from hap.evaluation.detail import describe_scores
from hap.evaluation.evidence import MEMBERS, Finding, gather
from hap.evaluation.gate import decide
from hap.evaluation.slices import slice_masks
from hap.evaluation.verdict import Verdict
from hap.params import Features, Params
from hap.registry import versions
from hap.registry.ledger import open_ledger
from hap.samples import partitions
from hap.samples.complete import write_complete
from hap.serving.bundle import Bundle
from hap.serving.merge import routed_count
from hap.serving.request import RequestTensors
from hap.serving.session import BundleSession
from hap.training.feed import Pool, read_pool, sample_columns
from hap.workspace import Workspace


@dataclass(frozen=True, eq=False)
class _Side:
    """One version's scores on the judged rows, and on the requests with all their candidates where there are any."""

    bundle: Bundle
    scores: dict[str, np.ndarray]
    rows: Pool
    whole: tuple[dict[str, np.ndarray], Pool] | None


def judge(ws: Workspace, params: Params, version: int, against: int | None, days: Sequence[dt.date]) -> Verdict:
    """Judge a registered version on the days, and attach the verdict and its page to it; what cannot be judged gets a verdict, too.

    Args:
        against: the champion to compare with; None for the first version ever.

    Raises:
        NotFound: a version is not registered.
    """
    challenger = bundle_of(ws, params, version)
    manifests = {day: manifest for day in days if (manifest := partitions.find(ws, day))}
    findings = [
        Finding("undecided", f"{day} has no samples; collect them with `hapctl collect --day {day}`")
        for day in days
        if day not in manifests
    ]
    files = partitions.parquet_files(ws, list(manifests))
    complete, absent = _complete(ws, params, list(manifests))
    findings += [absent] if absent else []
    try:
        ours, refused = _score(challenger, files, complete, version, "refuse")
        theirs, lost = (None, None) if against is None or ours is None else _score_champion(ws, params, against, files, complete)
    finally:
        if complete:
            complete.unlink()
    findings += [finding for finding in (refused, lost) if finding]
    evidence = gather(
        version=version,
        against=against,
        days=[day.isoformat() for day in days],
        manifests=[manifest.id for manifest in manifests.values()],
        expressive_kinds=challenger.info["expressive_kinds"],
        kind=ours.rows.kind if ours else np.zeros(0, np.int8),
        offsets=ours.rows.offsets if ours else np.zeros(1, np.int64),
        challenger=ours.scores if ours else {},
        champion=theirs.scores if theirs else None,
        slices=_slices(ws, params, challenger, ours.rows) if ours else {},
        recall=_recall(params, ours, theirs),
        whole=describe_whole(challenger, *ours.whole, params, days) if ours and ours.whole else {},
        detail=_detail(params, files, ours, theirs),
        parity_max_abs_diff=float(challenger.parity()["max_abs_diff"]),
        budgets=_budgets(challenger, days),
        cost=challenger.cost(),
        trained_on=challenger.info["window"],
        champion_trained_on=theirs.bundle.info["window"] if theirs else (),
        findings=findings,
    )
    verdict = decide(evidence, params.gate, params.seed)
    versions.set_verdict(ws, params, version, verdict.to_json())
    write_page(ws, params, verdict, challenger)
    if verdict.verdict == "pass":
        versions.set_alias(ws, params, "challenger", version)
    return verdict


def _score(
    bundle: Bundle, files: Sequence[Path], complete: Path | None, version: int, blame: Literal["refuse", "undecided"]
) -> tuple[_Side | None, Finding | None]:
    """A version's scores, or why it has none."""
    if not files:
        return None, None  # said already, by day
    try:
        scores, rows = score_days(bundle, files, f"scoring v{version}")
        whole = score_days(bundle, [complete], f"scoring v{version} on whole requests") if complete else None
    except (HapError, KeyError, pa.ArrowException) as error:
        return None, Finding(blame, f"v{version} cannot be scored on these days: {error}")
    return _Side(bundle, scores, rows, whole), None


def _score_champion(
    ws: Workspace, params: Params, version: int, files: Sequence[Path], complete: Path | None
) -> tuple[_Side | None, Finding | None]:
    try:
        bundle = bundle_of(ws, params, version)
    except HapError as error:
        return None, Finding("undecided", f"v{version} cannot be scored on these days: {error}")
    return _score(bundle, files, complete, version, "undecided")


def _recall(params: Params, ours: _Side | None, theirs: _Side | None) -> tuple[RequestAuc, RequestAuc | None] | None:
    """Recall@K of challenger and champion by judged request."""
    if ours is None or ours.whole is None:
        return None
    judged, k = ours.rows.request_id, params.gate.recall.at
    mine = recall_of(*ours.whole, judged, k, params.seed)
    return mine, recall_of(*theirs.whole, judged, k, params.seed) if theirs and theirs.whole else None


def _detail(params: Params, files: Sequence[Path], ours: _Side | None, theirs: _Side | None) -> dict[str, Any]:
    if ours is None:
        return {}
    champion = theirs.scores if theirs else None
    return describe_scores(ours.rows.kind, _buckets(files), ours.rows.offsets, ours.scores, champion, params.gate, params.seed)


def _budgets(challenger: Bundle, days: Sequence[dt.date]) -> dict[str, float | None]:
    """What the version takes, by the names of hap.evaluation.evidence.BUDGETS."""
    cost = challenger.cost()
    light, expressive = (Cost(**cost["operations"][name]) for name in ("light", "expressive"))
    candidates = np.array([cost["in_process"]["candidates"]])
    share = routed_count(challenger.route, int(candidates[0])) / int(candidates[0])
    newest = dt.date.fromisoformat(challenger.info["window"][-1])
    return {
        "p99_ms": cost["in_process"]["p99_ms"]["hap"],
        "operations": cost_ratio(light, expressive, candidates, share),
        "age_days": float((days[-1] - newest).days),
    }


def _complete(ws: Workspace, params: Params, days: Sequence[dt.date]) -> tuple[Path | None, Finding | None]:
    """The judging days' requests with all their candidates, where the logs hold them; and what stands against judging them."""
    if not params.logs.complete or not days:
        return None, None
    path = ws.state / "complete.parquet"
    try:
        count = write_complete(ws, params, days, params.gate.recall.requests, path, params.seed)
    except HapError as error:
        return None, Finding("undecided", f"Recall@K: the judging days' logs cannot be read again: {error}")
    return (path if count else None), None


def _slices(ws: Workspace, params: Params, challenger: Bundle, pool: Pool) -> dict[str, np.ndarray]:
    """The slices of gate.slices among the judged rows; those of new ids need the samples that the challenger was trained on."""
    features, counts = challenger.features, np.diff(pool.offsets)
    columns = {"history_length": np.repeat((pool.hist_ids[..., 0] > 0).sum(axis=1), counts)}
    columns |= {f.name: np.repeat(pool.user_ids[:, place], counts) for place, f in enumerate(features.ids("user"))}
    columns |= {f.name: pool.cand_ids[:, place] for place, f in enumerate(features.ids("item"))}
    window = [dt.date.fromisoformat(day) for day in challenger.info["window"]]
    seen: dict[str, Any] = {}
    if all(partitions.find(ws, day) for day in window):
        items = {f.name for f in features.ids("item")}
        for one in params.gate.slices:
            if one.new and one.column in columns:
                stored = f"cand_{one.column}" if one.column in items else one.column
                seen[one.column] = _distinct(partitions.parquet_files(ws, window), stored)
    return slice_masks(params.gate.slices, columns, seen, pool.kind == 0, params.gate.slice_min_positives)


def _buckets(files: Sequence[Path]) -> np.ndarray:
    """The difficulty bucket of every judged row, in the order of `score_days`."""
    columns = [pc.list_flatten(pq.ParquetFile(path).read(columns=["cand_bucket"])["cand_bucket"]) for path in files]
    return np.concatenate([column.to_numpy(zero_copy_only=False) for column in columns]).astype(str)


def _distinct(files: Sequence[Path], column: str) -> Any:
    """Every value of a column, of lists what stands in them."""
    found: list[np.ndarray] = []
    for path in files:
        values = pq.ParquetFile(path).read(columns=[column])[column]
        found.append(pc.unique(pc.list_flatten(values) if pa.types.is_list(values.type) else values).to_numpy(zero_copy_only=False))
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


def champion_of(ws: Workspace, params: Params) -> int | None:
    """The version that the ledger's last served row names."""
    return open_ledger(ws, params).served()


def opponent_of(ws: Workspace, params: Params, version: int) -> int | None:
    """Whom a version is judged against: the champion, or the one before it where the version is the champion itself."""
    ledger = open_ledger(ws, params)
    champion = ledger.served()
    return ledger.previous_served() if champion == version else champion


def score_days(bundle: Bundle, files: Sequence[Path], label: str) -> tuple[dict[str, np.ndarray], Pool]:
    """Scores of each member for every sampled candidate, f64[N], with the rows they belong to.

    Raises:
        NotFound: a column of the bundle's schema is gone from the samples.
    """
    session = BundleSession(bundle)
    scores: dict[str, list[np.ndarray]] = {member: [] for member in MEMBERS}
    pools: list[Pool] = []
    for place, path in enumerate(files):
        file = pq.ParquetFile(path)
        columns = sample_columns(bundle.features)
        if gone := [name for name in columns if name not in file.schema_arrow.names]:
            raise NotFound(f"its schema needs {gone[0]!r}, which the samples of {path.parent.name} lack")
        for group in range(file.num_row_groups):
            pool = read_pool(file.read_row_group(group, columns=columns), bundle.features)
            pools.append(pool)
            for request in range(len(pool)):
                tensors = RequestTensors(**pool.request(request))
                for member, values in zip(MEMBERS, session.members(tensors), strict=True):
                    scores[member].append(values)
            current().bar("gate", (place + (group + 1) / file.num_row_groups) / len(files), label)
    joined = {member: np.concatenate(parts).astype(np.float64) if parts else np.zeros(0) for member, parts in scores.items()}
    return joined, _joined(pools, bundle.features)


def _joined(pools: Sequence[Pool], features: Features) -> Any:
    offsets = [np.zeros(1, np.int64)]
    for pool in pools:
        offsets.append(pool.offsets[1:] + offsets[-1][-1])
    names = ("request_id", "user_ids", "user_dense", "hist_ids", "hist_dense", "cand_ids", "cand_dense", "kind")
    return Pool(offsets=np.concatenate(offsets), **{name: np.concatenate([getattr(pool, name) for pool in pools]) for name in names})
