"""Served requests as they are written down: the files that a log (hap/serving/served_log.py) finishes from now on."""

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from hap.errors import DataError


class Follower:
    """Looks below a log's folder; what is finished when it is made is not taken."""

    def __init__(self, folder: Path, now: dt.datetime) -> None:
        self._folder, self._first_day = folder, now.date()
        self._seen = set(self._finished())

    def read(self) -> Iterator[tuple[Path, pa.Table]]:
        """Each file that was finished since the last look, oldest first.

        Raises:
            DataError: a file is damaged; it is named, and not taken again.
        """
        for path in sorted(set(self._finished()) - self._seen, key=lambda path: (path.stat().st_mtime_ns, path.name)):
            self._seen.add(path)
            try:
                yield path, pq.ParquetFile(path).read()
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{path} does not read: {str(error).splitlines()[0]}") from None

    def _finished(self) -> Iterator[Path]:
        """The finished files of the first day on, the day before it included: a file lies at the day at which it was begun."""
        oldest = f"day={self._first_day - dt.timedelta(days=1)}"
        for day in self._folder.glob("day=*"):
            if day.name >= oldest:
                yield from day.glob("served-*.parquet")
