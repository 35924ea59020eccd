"""The watcher of the funnel: what a day's samples and the champion's scores of them say (hap.monitoring.funnel)."""

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flows.bundles import bundle_of
from flows.looks.served import UNSCORABLE, Days, labels_missing, reference_of, scored, sides, users_of
from flows.looks.subject import Subject
from hap.monitoring.causes import LABELS
from hap.monitoring.columns import user_column
from hap.monitoring.findings import Finding, Look
from hap.monitoring.funnel import WATCHER, Counted, Funnelled, funnel_look
from hap.monitoring.scored import Scored
from hap.params import KINDS
from hap.registry.versions import label, read_verdict
from hap.samples import partitions


def look(subject: Subject) -> Look:
    """The funnel of a day beside the champion's training window, judging day and verdict."""
    ws, params, day = subject.ws, subject.params, str(subject.day)
    if subject.day in subject.window or partitions.find(ws, subject.day) is None:
        return Look(watcher=WATCHER, day=day, findings=(), missing=True)
    bundle, verdict = bundle_of(ws, params, subject.champion), read_verdict(ws, subject.champion)
    findings = []
    incomplete = labels_missing(subject)
    if incomplete is not None and incomplete.do:
        said = f"clicks of {day} are not complete, so GAUC, calibration and what else waits for them is not judged: {incomplete.why}"
        findings.append(Finding(cause=LABELS, severity="info", said=said, do=incomplete.do))
    now = before = sampled = None
    try:
        now, before = sides(subject, bundle, reference_of(subject, bundle, verdict))
        sampled = scored(subject, bundle, Days((subject.day,)), whole=False) if incomplete is None else None
    except UNSCORABLE as error:
        said = f"{label(subject.champion)}, which serves, cannot score {day}: {error}"
        findings.append(Finding(cause="funnel:scores", severity="page", said=said, do=f"hapctl show {day}"))
    else:
        findings += _broken(subject, now)
    past = [one for one in subject.window if partitions.find(ws, one) is not None]
    found = funnel_look(
        day,
        Funnelled(
            counted=counted(subject, [subject.day]),
            counted_before=counted(subject, past) if past else None,
            scored=now.sound() if now else None,
            scored_before=before.sound() if before else None,
            sampled=sampled.sound() if sampled else None,
            verdict=verdict,
            labelled=incomplete is None,
        ),
        params.funnel,
        params.drift.page_from,
        findings,
    )
    if incomplete is None or incomplete.do:
        return found
    return replace(found, unjudged=found.unjudged | {LABELS}, notes=(incomplete.why,))


def _broken(subject: Subject, now: Scored) -> list[Finding]:
    """Scores that are no numbers: such candidates are served last, whatever they are."""
    broken = now.broken
    if not broken.any():
        return []
    share = float(broken.mean())
    said = f"{int(broken.sum()):,} of {len(broken):,} scores of {label(subject.champion)} ({share:.2%}) are NaN or infinite"
    do = f"hapctl show {subject.day}   then   hapctl rollback --reason TEXT"
    return [Finding(cause="funnel:scores", severity="page", said=said, value=share, do=do)]


def counted(subject: Subject, days: Sequence[dt.date]) -> Counted:
    """Rows of every request of the days by kind and bucket, from these two columns alone."""
    user, names = user_column(subject.params.features), ("request_id", "cand_kind", "cand_bucket")
    who, kinds, buckets = [], [], []
    for path in partitions.parquet_files(subject.ws, list(days)):
        file = pq.ParquetFile(path)
        held = [*names, *([user] if user in file.schema_arrow.names else [])]
        for group in range(file.num_row_groups):
            rows = file.read_row_group(group, columns=held).combine_chunks()
            who.append(users_of(rows, subject.params))
            kinds.append(_by_request(rows, "cand_kind", list(range(len(KINDS)))))
            names_of = pc.unique(pc.list_flatten(rows["cand_bucket"])).to_pylist()
            buckets.append(dict(zip(names_of, _by_request(rows, "cand_bucket", names_of).T, strict=True)))
    known = sorted({name for part in buckets for name in part} - set(KINDS))
    whole = {
        name: np.concatenate([part.get(name, np.zeros(len(of), np.int64)) for part, of in zip(buckets, who, strict=True)]) for name in known
    }
    return Counted(user=np.concatenate(who), kinds=np.concatenate(kinds), buckets=whole)


def _by_request(rows: pa.Table, column: str, values: Sequence[int | str]) -> np.ndarray:
    """How often each request [R] has each of the values [V]."""
    flat, owner = pc.list_flatten(rows[column]), pc.list_parent_indices(rows[column]).to_numpy()
    kind = pa.string() if column == "cand_bucket" else pa.int64()
    place = pc.index_in(flat.cast(kind), value_set=pa.array(values, kind))
    code = pc.fill_null(place, len(values)).to_numpy(zero_copy_only=False).astype(np.int64)
    width = len(values) + 1
    return np.bincount(owner * width + code, minlength=rows.num_rows * width).reshape(rows.num_rows, width)[:, :-1]
