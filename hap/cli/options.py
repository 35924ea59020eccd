"""Options that many words share, and the way an answer is printed."""

import datetime as dt
import sys
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from hap.days import parse_day

Root = Annotated[
    Path | None,
    typer.Option("--root", help="The workspace; else $HAP_ROOT, else the nearest parent folder with hap.toml.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and change nothing.")]
Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="HOST:PORT",
        help="The gRPC of a Triton that somebody else runs over the workspace's triton/; else serving.url of params.yaml, else the server "
        "of `hapctl serve`.",
        show_default=False,
    ),
]
Day = Annotated[str, typer.Option("--day", help="The UTC day, YYYY-MM-DD.", show_default=False)]


def answer(value: Any, text: str, as_json: bool) -> None:
    """Print the answer on stdout: `value` as JSON, or `text`."""
    if as_json:
        sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_SERIALIZE_NUMPY, default=str).decode() + "\n")
    else:
        typer.echo(text)


def day_of(text: str) -> dt.date:
    """The day typed."""
    return parse_day(text)
