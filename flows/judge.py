"""The gate's step: score champion and challenger from their bundles on the judging days, decide, and write the version's page."""

import datetime as dt
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.page import write_page
from flows.scratch import gate_copy
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
from hap.serving.bundle import Bundle, read_bundle
from hap.serving.merge import routed_count
from hap.serving.request import RequestTensors
from hap.serving.session import BundleSession
from hap.training.feed import Pool, read_pool, sample_columns
from hap.workspace import Workspace


def judge(ws: Workspace, params: Params, version: int, against: int | None, days: Sequence[dt.date]) -> Verdict:
    """Judge a registered version on the days and attach the verdict and its page to it.

    Args:
        against: the champion to compare with; None for the first version ever.

    Raises:
        NotFound: a day has no samples, or a version is not registered.
    """
    manifests = [partitions.load(ws, day) for day in days]
    files = partitions.parquet_files(ws, list(days))
    challenger = bundle_of(ws, params, version)
    ours, pool = score_days(challenger, files, f"scoring v{version}")
    findings: list[Finding] = []
    champion: Bundle | None = None
    theirs: dict[str, np.ndarray] | None = None
    complete, absent = _complete(ws, params, days)
    findings += [absent] if absent else []
    recall: tuple[RequestAuc, RequestAuc | None] | None = None
    whole: dict[str, Any] = {}
    if complete:
        found, every = score_days(challenger, [complete], f"scoring v{version} on whole requests")
        recall = recall_of(found, every, pool.request_id, params.gate.recall.at, params.seed), None
        whole = describe_whole(challenger, found, every, params, days)
    if against is not None:
        try:
            champion = bundle_of(ws, params, against)
            theirs, _ = score_days(champion, files, f"scoring v{against}")
            if complete and recall:
                found, every = score_days(champion, [complete], f"scoring v{against} on whole requests")
                recall = recall[0], recall_of(found, every, pool.request_id, params.gate.recall.at, params.seed)
        except (HapError, KeyError, pa.ArrowException) as error:
            findings.append(Finding("undecided", f"v{against} cannot be scored any more: {error}"))
    if complete:
        complete.unlink()
    evidence = gather(
        version=version,
        against=against,
        days=[day.isoformat() for day in days],
        manifests=[manifest.id for manifest in manifests],
        expressive_kinds=challenger.info["expressive_kinds"],
        kind=pool.kind,
        offsets=pool.offsets,
        challenger=ours,
        champion=theirs,
        slices=_slices(ws, params, challenger, pool),
        recall=recall,
        whole=whole,
        detail=describe_scores(pool.kind, _buckets(files), pool.offsets, ours, theirs, params.gate, params.seed),
        parity_max_abs_diff=float(challenger.parity()["max_abs_diff"]),
        budgets=_budgets(challenger, days),
        cost=challenger.cost(),
        trained_on=challenger.info["window"],
        champion_trained_on=champion.info["window"] if champion else (),
        findings=findings,
    )
    verdict = decide(evidence, params.gate, params.seed)
    versions.set_verdict(ws, params, version, verdict.to_json())
    write_page(ws, params, verdict, challenger)
    if verdict.verdict == "pass":
        versions.set_alias(ws, params, "challenger", version)
    return verdict


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
    if not params.logs.complete:
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
    return np.concatenate([column.to_numpy(zero_copy_only=False) for column in columns]).astype(str) if columns else np.zeros(0, str)


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


def bundle_of(ws: Workspace, params: Params, version: int) -> Bundle:
    """A version's bundle, fetched from the registry into the workspace's scratch once."""
    kept = gate_copy(ws, version)
    try:
        return read_bundle(kept)
    except HapError:  # absent, or damaged: the registry's copy is the true one
        return read_bundle(versions.fetch_bundle(ws, params, version, kept))


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
