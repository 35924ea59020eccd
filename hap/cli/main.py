"""hapctl: the words, and the one funnel through which every error leaves.

Nothing heavy is imported here or at the top of the modules it names: `hapctl --help` stays quick.
"""

import os
import sys

import typer

from hap.cli import build, data, release, serving, watch
from hap.errors import HapError

app = typer.Typer(
    name="hapctl",
    help="From a recommender's request logs to a two-tier pre-ranking model in production.",
    epilog="Exit codes: 0 ok, 1 error, 2 usage, 3 refused by the gate, 4 drift found, 5 undecided.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for words in (data, build, release, serving, watch):
    words.register(app)


def main() -> None:
    """Run hapctl; a user's mistake is one line on stderr and an exit code, never a traceback."""
    # Nothing that hapctl starts tells anybody outside.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DVC_NO_ANALYTICS", "true")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except HapError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except OSError as error:  # a full disk, a folder without permission
        print(f"error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)
