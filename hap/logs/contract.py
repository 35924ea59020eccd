"""The log contract: four tables, partitioned by the UTC day of each row's own event time, checked on load.

`logs/TABLE/day=YYYY-MM-DD/*.parquet` with an empty `_SUCCESS` beside them, written last. Which feature
columns exist is declared in params.yaml (`features`); everything else is fixed. The parts:

- `schema`: the columns of each table.
- `storage`: where a day lies, and how it is written whole.
- `columns`: names and types of a file. `rules`: what one row can break. `check`: those and what concerns several rows, files and tables.
- `quarantine`: what to do with bad rows other than refusing their day. `side`: where they go.
"""

from hap.logs.check import ABSENT, EXAMPLES, UNFINISHED, BrokenRows, DayLogs, Tally, check_day, check_logs, day_logs
from hap.logs.schema import KEYS, OPTIONAL, STAGES, TABLES, TIME, check_declared, file_schema, logged, table_schema
from hap.logs.storage import (
    MARKER,
    ROW_GROUP_ROWS,
    day_folder,
    day_writer,
    describe_days,
    has_day,
    logged_days,
    open_file,
    read_paths,
    table_days,
    write_day,
)

__all__ = [
    "ABSENT", "EXAMPLES", "KEYS", "MARKER", "OPTIONAL", "ROW_GROUP_ROWS", "STAGES", "TABLES", "TIME", "UNFINISHED",
    "BrokenRows", "DayLogs", "Tally",
    "check_day", "check_declared", "check_logs", "day_folder", "day_logs", "day_writer", "describe_days", "file_schema",
    "has_day", "logged", "logged_days", "open_file", "read_paths", "table_days", "table_schema",
    "write_day",
]  # fmt: skip
