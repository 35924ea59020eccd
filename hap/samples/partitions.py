"""Daily partitions of samples: where they lie, and the manifest that closes one."""

import dataclasses
import datetime as dt
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from hap.errors import DataError, NotFound
from hap.workspace import Workspace

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """What a closed day holds.

    `samples_hash` is the sha256 of its rows as written. `watermark` is the last ingest_time up to `as_of` in the logs it
    was made from, `sources` are their files, and `labels` says of each day of feedback whether it was finished, unfinished
    or absent then (see `hap.samples.late`). `logged` counts the candidates in the logs by the last stage that they
    reached: with rows_by_kind, the rate at which RN and PRN were sampled. `quarantined` counts the rows set aside by table
    and rule, `late` those ingested after `as_of` by table, `requests_torn` the requests left out since some of their
    candidates are late, `items_unknown` the samples of items that the day's catalogue lacks, and `feedback_unmatched` the
    feedback whose request is in none of the logged days that could hold it.
    """

    id: str
    day: str
    as_of: str
    parameters: dict[str, Any]
    requests: int
    rows_by_kind: dict[str, int]
    rows_by_bucket: dict[str, int]
    gn_shortfall: int
    items_unknown: int
    samples_hash: str
    watermark: str
    labels: dict[str, dict[str, Any]]
    logged: dict[str, int]
    sources: list[dict[str, Any]]
    quarantined: dict[str, dict[str, int]]
    late: dict[str, int]
    requests_torn: int
    feedback_unmatched: int

    @classmethod
    def of(cls, day: dt.date, as_of: dt.datetime, parameters: dict[str, Any], counted: dict[str, Any], logs: dict[str, Any]) -> "Manifest":
        """The manifest of freshly written samples; its id covers day, as_of, parameters and content.

        Args:
            counted: what was counted while writing. logs: what is known of the logs they were made from.
        """
        content = orjson.dumps([day.isoformat(), as_of.isoformat(), parameters, counted["samples_hash"]], option=orjson.OPT_SORT_KEYS)
        return cls(
            id=hashlib.sha256(content).hexdigest()[:16],
            day=day.isoformat(),
            as_of=as_of.isoformat(),
            parameters=parameters,
            **counted,
            **logs,
        )

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def folder(ws: Workspace, day: dt.date) -> Path:
    return ws.samples / f"day={day.isoformat()}"


def find(ws: Workspace, day: dt.date) -> Manifest | None:
    """The day's manifest, or None where the day is not closed or its samples are gone.

    Raises:
        DataError: the manifest is damaged.
    """
    partition = folder(ws, day)
    return last(ws, day) if (partition / "_SUCCESS").exists() and any(partition.glob("*.parquet")) else None


def last(ws: Workspace, day: dt.date) -> Manifest | None:
    """The manifest that the day was closed with, also where its samples are gone; None where it never was.

    Raises:
        DataError: the manifest is damaged.
    """
    partition = folder(ws, day)
    path = partition / MANIFEST
    if not path.exists():
        return None
    try:
        return Manifest(**orjson.loads(path.read_bytes()))
    except (OSError, orjson.JSONDecodeError, TypeError) as error:
        raise DataError(
            f"{path} is damaged ({' '.join(str(error).split())}); remove {partition} and collect the day again for the same bytes"
        ) from None


def fingerprint(ws: Workspace, day: dt.date) -> str | None:
    """The hash of a closed day's manifest file, or None where the day is not closed."""
    path = folder(ws, day) / MANIFEST
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else None


def load(ws: Workspace, day: dt.date) -> Manifest:
    """The day's manifest.

    Raises:
        NotFound: the day was not collected.
    """
    manifest = find(ws, day)
    if manifest is None:
        raise NotFound(f"{day} has no samples in {ws.samples}; collect them with `hapctl collect --day {day}`")
    return manifest


def check(ws: Workspace, manifest: Manifest) -> None:
    """Compare a closed day's samples, all of their bytes, with what its manifest says of them.

    Raises:
        DataError: they are not what was collected.
    """
    partition = folder(ws, dt.date.fromisoformat(manifest.day))
    found = []
    for path in sorted(partition.glob("*.parquet")):
        with open(path, "rb") as file:
            found.append(hashlib.file_digest(file, "sha256").hexdigest())
    if found != [manifest.samples_hash]:
        raise DataError(
            f"{partition} does not hold the samples that its manifest names "
            f"(sha256 {' '.join(found)[:16]}, not {manifest.samples_hash[:16]}); remove it and type `hapctl collect --day {manifest.day}`"
        )


def collected_days(ws: Workspace) -> list[dt.date]:
    """Every closed day, oldest first."""
    return sorted(dt.date.fromisoformat(marker.parent.name.removeprefix("day=")) for marker in ws.samples.glob("day=*/_SUCCESS"))


def days_before(ws: Workspace, day: dt.date, count: int) -> list[dt.date]:
    """The `count` days right before a day, in which its ids are looked up; none where one of them is not collected.

    With days left out between, ids that came meanwhile would look new: as many more as the catalogue turns over in that time.
    """
    wanted = [day - dt.timedelta(days=n) for n in range(count, 0, -1)]
    return wanted if set(wanted) <= set(collected_days(ws)) else []


def parquet_files(ws: Workspace, days: list[dt.date]) -> list[Path]:
    """The sample files of closed days, in order.

    Raises:
        NotFound: a day was not collected.
    """
    for day in days:
        load(ws, day)
    return [path for day in days for path in sorted(folder(ws, day).glob("*.parquet"))]
