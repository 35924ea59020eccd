"""hapctl: the words, and the one funnel through which every error leaves.

Nothing heavy is imported here or at the top of the modules it names: `hapctl --help` stays quick.
"""

import os
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import NoReturn

import typer

from hap.cli import alerts, build, data, release, serving, watch
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
for words in (data, build, release, serving, watch, alerts):
    words.register(app)


def main() -> None:
    """Run hapctl; a user's mistake is one line on stderr and an exit code, never a traceback."""
    # Nothing that hapctl starts tells anybody outside.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DVC_NO_ANALYTICS", "true")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = app(standalone_mode=False)  # a code where a word ended with one
        sys.exit(code if isinstance(code, int) else 0)
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped; what was finished stays, and the same words go on from there", 130)
    except HapError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:  # a full disk, a folder without permission
        _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1)
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # Typer's own usage errors, of the click that it carries along
            error.show()
            sys.exit(error.exit_code)
        _fail(f"a defect of hap: {type(error).__name__}: {' '.join(str(error).split())[:300]}; its traceback is in {_keep_traceback()}", 1)


def _terminated(number: int, frame: FrameType | None) -> None:
    """SIGTERM ends like an exception, so that what was started is stopped."""
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _keep_traceback() -> Path:
    """Write the current traceback where a report can quote it."""
    import platformdirs

    folder = platformdirs.user_state_path("hap", ensure_exists=True)
    path = folder / f"defect-{os.getpid()}.txt"
    path.write_text(traceback.format_exc())
    return path
