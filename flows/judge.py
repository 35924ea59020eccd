"""The gate's step: score champion and challenger from their bundles on the judging days, decide, and write the version's page."""

import datetime as dt
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.bundles import bundle_of
from flows.page import page_path, write_page
from flows.slices import slices_of
from flows.talk import current
from flows.whole import describe_whole, figures_of
from hap import durable
from hap.errors import DataError, HapError, NotFound
from hap.evaluation.auc import RequestAuc
from hap.evaluation.cascade import Cost, cost_ratio
from hap.evaluation.detail import describe_scores
from hap.evaluation.evidence import MEMBERS, Evidence, Finding, gather
from hap.evaluation.gate import decide
from hap.evaluation.verdict import Verdict
from hap.monitoring.staleness import member_windows
from hap.params import KINDS, MODELS, Features, Params
from hap.registry import versions
from hap.registry.ledger import open_ledger
from hap.samples import partitions
from hap.samples.complete import write_complete
from hap.samples.difficulty import empty_buckets
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
    """Judge a registered version on the days, and attach the verdict and its page to it.

    A verdict is written whatever happens on the way: what cannot be judged, or breaks while it is, leaves it undecided or refused.

    Args:
        against: the champion to compare with; None where there is none yet.

    Raises:
        NotFound: a version is not registered, or was freed.
        OSError: a disk or the network failed. The verdict that says so is written without a page, so the same words judge again.
    """
    versions.get_whole(ws, params, version)
    challenger: Bundle | None = None
    failed: Exception | None = None
    try:
        challenger = bundle_of(ws, params, version)
        verdict = decide(_evidence(ws, params, challenger, version, against, days), params.gate, params.seed)
    except HapError as error:  # a stored bundle that is damaged is the version's own fault
        outcome: Literal["refuse", "undecided"] = "refuse" if challenger is None and isinstance(error, DataError) else "undecided"
        verdict = _unjudged(ws, params, version, against, days, Finding(outcome, f"v{version} cannot be judged: {error}"))
    except Exception as error:
        failed = error
        told = f"v{version} could not be judged: {_told(error)}; its traceback is in {_keep_traceback(ws, version)}"
        verdict = _unjudged(ws, params, version, against, days, Finding("undecided", told))
    versions.set_verdict(ws, params, version, verdict.to_json())
    _point_challenger(ws, params, verdict)
    if challenger is None or isinstance(failed, OSError):
        page_path(ws, version).unlink(missing_ok=True)  # an earlier verdict's
    else:
        write_page(ws, params, verdict, challenger)
    if isinstance(failed, OSError):
        raise failed
    return verdict


def _evidence(ws: Workspace, params: Params, challenger: Bundle, version: int, against: int | None, days: Sequence[dt.date]) -> Evidence:
    manifests, findings = _manifests(ws, days)
    collected = [day for day in days if str(day) in manifests]
    files = partitions.parquet_files(ws, collected)
    complete, absent = _complete(ws, params, collected)
    findings += [absent] if absent and against is not None else []  # else nothing is compared
    try:
        ours, refused = _score(challenger, files, complete, version, "refuse")
        theirs, lost = (None, None) if against is None or ours is None else _score_champion(ws, params, against, files, complete)
    finally:
        if complete:
            complete.unlink()
    findings += [finding for finding in (refused, lost) if finding]
    buckets = _buckets(files)
    findings += _empty_buckets(params, buckets) if ours else []
    window = [dt.date.fromisoformat(day) for day in challenger.info["window"]]
    slices, missing = slices_of(ws, params, collected, window) if ours else ({}, [])
    if against is not None:  # else none judges
        findings += [Finding("undecided", text) for text in missing]
    return gather(
        version=version,
        against=against,
        days=[day.isoformat() for day in days],
        manifests=manifests,
        expressive_kinds=challenger.info["expressive_kinds"],
        kind=ours.rows.kind if ours else np.zeros(0, np.int8),
        offsets=ours.rows.offsets if ours else np.zeros(1, np.int64),
        challenger=ours.scores if ours else {},
        champion=theirs.scores if theirs else None,
        rows=_row_ids(ours) if ours else None,
        champion_rows=_row_ids(theirs) if theirs else None,
        slices=slices,
        figures=_figures(params, ours, theirs),
        whole=describe_whole(challenger, *ours.whole, params, days) if ours and ours.whole else {},
        detail=_detail(params, buckets, ours, theirs),
        parity_max_abs_diff=float(challenger.parity()["max_abs_diff"]),
        budgets=_budgets(challenger, collected),
        cost=challenger.cost(),
        trained_on=challenger.info["window"],
        champion_trained_on=theirs.bundle.info["window"] if theirs else (),
        findings=findings,
    )


def _unjudged(ws: Workspace, params: Params, version: int, against: int | None, days: Sequence[dt.date], finding: Finding) -> Verdict:
    """The verdict on a version of which nothing but the finding is known."""
    try:
        manifests = _manifests(ws, days)[0]
    except OSError:  # maybe what the finding is about
        manifests = {}
    evidence = gather(
        version=version, against=against, days=[day.isoformat() for day in days], manifests=manifests,
        expressive_kinds=params.expressive.kinds(), kind=np.zeros(0, np.int8), offsets=np.zeros(1, np.int64), challenger={},
        findings=[finding],
    )  # fmt: skip
    return decide(evidence, params.gate, params.seed)


def _manifests(ws: Workspace, days: Sequence[dt.date]) -> tuple[dict[str, str], list[Finding]]:
    """The id of each day's samples, which are what it names, and what is wrong with days that have none."""
    ids, findings = {}, []
    for day in days:
        try:
            if manifest := partitions.find(ws, day):
                partitions.check(ws, manifest)
                ids[str(day)] = manifest.id
            else:
                findings.append(Finding("undecided", f"{day} has no samples; collect them with `hapctl collect --day {day}`"))
        except DataError as error:
            findings.append(Finding("undecided", str(error)))
    return ids, findings


def _told(error: Exception) -> str:
    """An unexpected error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _keep_traceback(ws: Workspace, version: int) -> Path:
    """Write the current traceback where a report can quote it."""
    path = ws.state / f"gate-{versions.label(version)}.txt"
    durable.write_text(path, traceback.format_exc())
    return path


def _point_challenger(ws: Workspace, params: Params, verdict: Verdict) -> None:
    """The alias challenger is at what passed and does not serve; what no longer passes loses it."""
    if verdict.verdict != "pass":
        versions.drop_alias(ws, params, "challenger", verdict.version)
    elif champion_of(ws, params) != verdict.version:
        versions.set_alias(ws, params, "challenger", verdict.version)


def _score(
    bundle: Bundle, files: Sequence[Path], complete: Path | None, version: int, blame: Literal["refuse", "undecided"]
) -> tuple[_Side | None, Finding | None]:
    """A version's scores, and why it has none or not those of whole requests."""
    if not files:
        return None, None  # said already, by day
    try:
        scores, rows = score_days(bundle, files, f"scoring v{version}")
        whole = score_days(bundle, [complete], f"scoring v{version} on whole requests") if complete else None
    except (OSError, MemoryError):  # not the version's fault
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no public base
        said = str(error) if isinstance(error, HapError) else _told(error)
        return None, Finding(blame, f"v{version} cannot be scored on these days: {said}")
    if whole and (broken := _not_finite(whole[0])):
        return _Side(bundle, scores, rows, None), Finding(blame, f"v{version} on requests with all their candidates: {broken}")
    return _Side(bundle, scores, rows, whole), None


def _not_finite(scores: dict[str, np.ndarray]) -> str | None:
    """The first member with scores that have no place in an order, in words; samples hold few of the candidates that are scored here."""
    counted = {member: int((~np.isfinite(values)).sum()) for member, values in scores.items()}
    said = (f"{bad:,} of {scores[member].size:,} scores of {member} are NaN or infinite" for member, bad in counted.items() if bad)
    return next(said, None)


def _score_champion(
    ws: Workspace, params: Params, version: int, files: Sequence[Path], complete: Path | None
) -> tuple[_Side | None, Finding | None]:
    try:
        bundle = bundle_of(ws, params, version)
    except HapError as error:
        return None, Finding("undecided", f"v{version} cannot be scored on these days: {error}")
    return _score(bundle, files, complete, version, "undecided")


def _row_ids(side: _Side) -> np.ndarray:
    """Request and item of each scored row, I64[N, 2]."""
    place = [feature.name for feature in side.bundle.features.ids("item")].index("item_id")
    return np.stack([np.repeat(side.rows.request_id, np.diff(side.rows.offsets)), side.rows.cand_ids[:, place]], axis=1)


def _figures(params: Params, ours: _Side | None, theirs: _Side | None) -> dict[str, tuple[RequestAuc, RequestAuc | None]]:
    """Recall@K and what else whole requests tell, of challenger and champion by judged request."""
    if ours is None or ours.whole is None:
        return {}
    judged, k = ours.rows.request_id, params.gate.recall.at
    mine = figures_of(*ours.whole, judged, k, params.seed)
    its = figures_of(*theirs.whole, judged, k, params.seed) if theirs and theirs.whole else {}
    return {name: (value, its.get(name)) for name, value in mine.items()}


def _detail(params: Params, buckets: np.ndarray, ours: _Side | None, theirs: _Side | None) -> dict[str, Any]:
    if ours is None:
        return {}
    champion = theirs.scores if theirs else None
    return describe_scores(ours.rows.kind, buckets, ours.rows.offsets, ours.scores, champion, params.gate, params.seed)


def _budgets(challenger: Bundle, days: Sequence[dt.date]) -> dict[str, float | None]:
    """What the version takes, by the names of hap.evaluation.evidence.BUDGETS; without a day that has samples it has no age."""
    cost = challenger.cost()
    light, expressive = (Cost(**cost["operations"][name]) for name in MODELS)
    candidates = np.array([cost["in_process"]["candidates"]])
    share = routed_count(challenger.route, int(candidates[0])) / int(candidates[0])
    newest = member_windows(challenger.info)
    return {
        "p99_ms": cost["in_process"]["p99_ms"]["hap"],
        "operations": cost_ratio(light, expressive, candidates, share),
        **{f"{name}.age_days": float((days[-1] - last).days) if last and days else None for name, last in newest.items()},
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


def _buckets(files: Sequence[Path]) -> np.ndarray:
    """The difficulty bucket of every judged row, in the order of `score_days`."""
    columns = [pc.list_flatten(pq.ParquetFile(path).read(columns=["cand_bucket"])["cand_bucket"]) for path in files]
    return np.concatenate([np.zeros(0, str), *[column.to_numpy(zero_copy_only=False).astype(str) for column in columns]])


def _empty_buckets(params: Params, buckets: np.ndarray) -> list[Finding]:
    """A declared bucket without a row, of a kind that has rows with positions: a version could lose there and nobody would see it."""
    return [
        Finding("undecided", f"bucket {name}: no {KINDS[kind]} of these days lies in it; see collect's edges in params.yaml")
        for name, kind in empty_buckets(params.collect, set(np.unique(buckets).tolist())).items()
    ]


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
