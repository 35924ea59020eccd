"""The pages of a workspace over HTTP, read-only, on loopback: the latest day on top, every day with its state, every version.

Served are files of known names that lie in pages/ themselves, and nothing else: a name is matched whole before it touches the
file system, and a link is not followed. A page of ours may run nothing. Evidently's report is made of scripts; it gets an
origin of its own, which can neither read nor ask anything here.
"""

import functools
import re
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hap.errors import Busy, DataError
from hap.monitoring.report import WORDS, Report, page_file, read_report, report_file, reported_days
from hap.pages.template import POLICY, environment

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
COLOURS = {"page": "bad", "ticket": "warn", "quiet": "good", "unjudged": "soft"}
_DAY = "[0-9]{4}-[0-9]{2}-[0-9]{2}"
_VERSION = "v[1-9][0-9]{0,8}"
_OF_SCRIPTS = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:; worker-src blob:"
)
_NAMES = {  # what is served: the name, its type, and what it may do
    re.compile(rf"drift-{_DAY}\.html|{_VERSION}\.html"): ("text/html", POLICY),
    re.compile(rf"drift-{_DAY}-columns\.html"): ("text/html", _OF_SCRIPTS),
    re.compile(rf"drift-{_DAY}\.json"): ("application/json", "default-src 'none'"),
}
_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-cache",  # a day is looked at again
}


def application(pages: Path, root: Path) -> "Starlette":
    """The site of one folder of pages; the files are read anew for every request."""
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, PlainTextResponse, Response
    from starlette.routing import Route

    def index(request: "Request") -> "Response":
        return HTMLResponse(listing(pages, root), headers=_headers(POLICY))

    def page(request: "Request") -> "Response":
        name = request.path_params["name"]
        kind = next((kind for pattern, kind in _NAMES.items() if pattern.fullmatch(name)), None)
        content = _content(pages / name) if kind else None
        if kind is None or content is None:
            raise HTTPException(404)
        return Response(content, media_type=kind[0], headers=_headers(kind[1]))

    def refused(request: "Request", error: Exception) -> "Response":
        code = error.status_code if isinstance(error, HTTPException) else 500
        said = {404: "there is no such page", 405: "these pages can only be read"}.get(code, "this cannot be answered")
        kept = dict(getattr(error, "headers", None) or {})
        return PlainTextResponse(f"{said}\n", code, headers=_headers("default-src 'none'") | kept)

    site = Starlette(
        routes=[Route("/", index), Route("/{name}", page)],
        # Another site's script that has its own name point here is not answered.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False)],
        exception_handlers={HTTPException: refused, 500: refused},
    )
    site.router.redirect_slashes = False
    return site


def _headers(policy: str) -> dict[str, str]:
    fixed = "; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return {**_ALWAYS, "Content-Security-Policy": policy + fixed}


def _content(path: Path) -> bytes | None:
    """The bytes of a file; None where it is none, a link among them."""
    try:
        return path.read_bytes() if stat.S_ISREG(path.lstat().st_mode) else None
    except OSError:
        return None


def listing(pages: Path, root: Path) -> str:
    """The index: every day with its state and its number of findings, the newest first, and the pages of versions."""
    days = [_row(pages, str(day)) for day in reversed(reported_days(pages))]
    versions = sorted(int(path.stem[1:]) for path in pages.glob("v*.html") if re.fullmatch(_VERSION, path.stem))
    named = [(f"v{number}", f"v{number}.html") for number in reversed(versions)]
    template = environment().get_template("index.html")
    return template.render(days=days, latest=days[0] if days else None, versions=named, colours=COLOURS, root=str(root))


def _row(pages: Path, day: str) -> dict[str, Any]:
    page = page_file(pages, day)
    row: dict[str, Any] = {
        "day": day,
        "page": page.name if page.is_file() else None,
        "open": False,
        "count": "",
        "cause": "",
        "said": "",
    }
    try:
        stamp = report_file(pages, day).stat()
        report = _report(pages, day, stamp.st_mtime_ns, stamp.st_size)
    except (OSError, DataError):
        return {**row, "state": "unjudged", "word": "cannot be read", "cause": f"hapctl drift --day {day} writes it again"}
    wrong = report.wrong
    counts = {severity: sum(one.severity == severity for one in wrong) for severity in ("page", "ticket")}
    worst = {"cause": wrong[0].cause, "said": wrong[0].said} if wrong else {}
    found = {"state": report.state, "word": WORDS[report.state], "open": report.labels == "open", **worst}
    return {**row, **found, "count": ", ".join(f"{number} {severity}{'s' * (number > 1)}" for severity, number in counts.items() if number)}


@functools.lru_cache(maxsize=1024)
def _report(pages: Path, day: str, _changed: int, _size: int) -> Report:
    """A report, read again once its file is another."""
    report = read_report(pages, day)
    if report is None:
        raise DataError(f"the report of {day} went away")
    return report


def serve(pages: Path, root: Path, port: int, started: Callable[[str], None]) -> None:
    """Serve until a signal ends it.

    Args:
        port: 0 takes any free one.
        started: called with the URL once it can be asked.

    Raises:
        Busy: somebody else listens on the port.
        KeyboardInterrupt: a signal ended it.
    """
    import uvicorn

    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        raise Busy(f"port {port} of {HOST} cannot be taken: {error.strerror}; give another one with --port, 0 for any") from None
    config = uvicorn.Config(
        application(pages, root), log_level="warning", access_log=False, server_header=False, lifespan="off", ws="none",
        timeout_graceful_shutdown=2, limit_concurrency=64,
    )  # fmt: skip
    with listener:
        started(f"http://{HOST}:{listener.getsockname()[1]}/")  # it listens: who asks from now on is answered
        uvicorn.Server(config).run(sockets=[listener])
