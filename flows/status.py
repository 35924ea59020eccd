"""What `hapctl status` and `hapctl doctor` tell."""

import datetime as dt
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hap.errors import HapError
from hap.logs import contract
from hap.params import Params, Serving
from hap.registry import ledger as journal
from hap.registry.local import folder_bytes
from hap.samples import partitions
from hap.serving import install, remote, runtime
from hap.workspace import Workspace, describe_holder, find_workspace, holder_file

PLACES = ("logs", "samples", ".dvc", "remote", "registry", "triton", ".hap")  # whose size is told
NAMED = 3  # days due for a look that the text names; it counts the others


def status_of(ws: Workspace, url: str | None = None) -> dict[str, Any]:
    """Champion, server, running command, days, disk use; nothing is changed and MLflow is not asked.

    Args:
        url: stands in for serving.url.
    """
    from flows.alerts import undelivered
    from flows.due import unfinished_days
    from hap.registry.incidents import incidents
    from hap.registry.versions import read_verdict

    params, now = remote.with_url(ws.params(), url), dt.datetime.now(dt.UTC)
    rows = journal.open_ledger(ws, params).rows()
    verdicts = [
        read_verdict(ws, int(path.stem[1:])) or {} for path in sorted(ws.verdicts.glob("v*.json"), key=lambda path: int(path.stem[1:]))
    ]
    known = incidents(rows)
    champion, collected = journal.served(rows), partitions.collected_days(ws)
    holder, frozen = holder_file(ws), journal.freeze_in_force(rows)
    try:
        logged, unread = contract.logged_days(ws.logs(params)), None
    except HapError as error:
        logged, unread = [], str(error)
    return {
        "workspace": str(ws.root),
        "champion": f"v{champion}" if champion else None,
        "move": _move(rows),
        "server": _server(ws, params.serving),
        "alerts": {
            "open": [{"cause": one.cause, "severity": one.severity, "since": one.since} for one in known.open],
            "undelivered": undelivered(known, params, now),
        },
        "watched": _watched(ws, params, now, unread) if champion else None,
        "running": describe_holder(holder) if holder.exists() else None,
        "last_verdicts": [{"version": f"v{v['version']}", "day": v["day"], "verdict": v["verdict"]} for v in verdicts[-3:]],
        "days_logged": [str(logged[0]), str(logged[-1])] if logged else [],
        "days_collected": [str(collected[0]), str(collected[-1])] if collected else [],
        "due": [str(day) for day in unfinished_days(ws, params, now)] if logged else [],
        "frozen": f"by {frozen.actor}: {frozen.reason}" if frozen else None,
        "disk_bytes": {name: folder_bytes(ws.root / name) for name in PLACES},
        "disk_free_bytes": shutil.disk_usage(ws.root).free,
    }


def status_text(value: dict[str, Any]) -> str:
    """The status on one screen."""
    lines = [
        f"workspace   {value['workspace']}",
        f"champion    {value['champion'] or 'none yet' + ('' if value['move'] else '; promote one with `hapctl promote --model vN`')}",
        *([f"promotion   {value['move']}"] if value["move"] else []),
        *([f"frozen      {value['frozen']}; `hapctl unfreeze` allows promotions again"] if value["frozen"] else []),
        f"server      {_server_text(value['server'])}",
        f"alerts      {_alerts_text(value['alerts'])}",
        *([f"watched     {_watched_text(value['watched'])}"] if value["watched"] else []),
        f"running     {value['running'] or 'nothing'}",
        "verdicts    " + ("; ".join(f"{v['version']} ({v['day']}) {v['verdict']}" for v in value["last_verdicts"]) or "none yet"),
        f"logs        {' to '.join(value['days_logged']) or 'none'}",
        f"samples     {' to '.join(value['days_collected']) or 'none'}",
        f"due         {', '.join(value['due']) or 'nothing'}",
        "disk        "
        + ", ".join(f"{name} {size / 2**20:.1f} MiB" for name, size in value["disk_bytes"].items())
        + f"; {value['disk_free_bytes'] / 2**30:.1f} GiB free",
    ]
    return "\n".join(lines)


def _move(rows: Sequence[journal.Row]) -> str | None:
    """A promotion or rollback that has no outcome yet, or waits for a server."""
    if (left := journal.open_move(rows)) is not None:
        began = f"the {left.action} of v{left.to_version} by {left.actor} at {left.at:%Y-%m-%d %H:%M} UTC"
        return f"{began} runs, or was killed; `hapctl promote`, `hapctl rollback` and `hapctl serve` settle it"
    if (waiting := journal.pinned_for_next_start(rows)) is not None:
        return f"v{waiting.to_version}, pinned by {waiting.actor}, serves from the next `hapctl serve` on"
    return None


def _watched(ws: Workspace, params: Params, now: dt.datetime, unread: str | None) -> dict[str, Any]:
    """The latest day that was looked at, what that look said, and the days that a look is due for: a watch that stopped cannot say so.

    Args:
        unread: why the logs cannot be read, without which nobody knows what is due.
    """
    from flows.due import due_days
    from hap.monitoring.report import WORDS, read_report, reported_days

    day, state, said = next(reversed(reported_days(ws.pages)), None), None, None
    if day is not None:
        try:
            report = read_report(ws.pages, day)
            state = report.state if report else None
            said = WORDS[report.state] if report else None
        except HapError:
            said = "its report cannot be read"  # and it is due again
    due = [] if unread else [str(one) for one in due_days(ws, params, now, fetch=False)]
    return {"day": str(day) if day else None, "state": state, "said": said, "due": due, "problem": unread}


def _server(ws: Workspace, settings: Serving) -> dict[str, Any] | None:
    """The server of `hapctl serve`, as it says itself; or that of serving.url, asked now, which has no pid and no restarts here."""
    if settings.url is not None:
        seen = remote.look(settings.url, settings.deadline_s)
        problem = None if seen.version is not None else seen.problem or "no champion"
        return {"pid": None, "grpc": settings.url, "ready": seen.live, "restarts": None, "problem": problem}
    server = runtime.server_state(ws)
    if server is None:
        return None
    return {
        "pid": server.pid,
        "grpc": server.grpc_url,
        "ready": server.ready,
        "restarts": server.restarts,
        "problem": server.problem,
    }


def _watched_text(watched: dict[str, Any]) -> str:
    last = f"{watched['day']}: {watched['said']}" if watched["day"] else "no day yet"
    if watched["problem"]:
        return f"{last}; which days are due for a look is not known: {watched['problem']}"
    if not (due := watched["due"]):
        return f"{last}; no day is due for a look"
    listed = ", ".join(due[:NAMED]) + (f" and {len(due) - NAMED} more" if len(due) > NAMED else "")
    return f"{last}; due for a look: {listed}; `hapctl schedule` looks at them, or `hapctl drift --day {due[0]}`"


def _alerts_text(alerts: dict[str, Any]) -> str:
    shown = [f"{one['severity']} {one['cause']} since {one['since']}" for one in alerts["open"]]
    if left := [one for one in alerts["undelivered"] if not one["snoozed_until"]]:
        why = f" ({left[0]['place']}: {left[0]['why'] or 'not tried yet'})"
        shown.append(f"{len(left)} undelivered{why}, try `hapctl alerts --deliver`")
    if kept := len(alerts["undelivered"]) - len(left):
        shown.append(f"{kept} to be told after a snooze")
    return "; ".join(shown) or "none open"


def _server_text(server: dict[str, Any] | None) -> str:
    if server is None:
        return "not running; start it with `hapctl serve --detach`"
    if server["pid"] is None:
        return f"gRPC {server['grpc']}, run by somebody else, {server['problem'] or 'answers'}"
    state = "ready" if server["ready"] else "starting"
    problem = f", {server['problem']}" if server["problem"] else ""
    return f"pid {server['pid']}, gRPC {server['grpc']}, {state}, {server['restarts']} restarts{problem}"


@dataclass(frozen=True)
class Finding:
    """One check and, where it fails, what to do."""

    check: str
    well: bool
    said: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{'ok  ' if self.well else 'BAD '} {self.check:<12} {self.said}"


def examine(root: Path | None) -> list[Finding]:
    """Check the machine, then the workspace where there is one."""
    findings = [
        _check("platform", install.check_platform, "Linux, Python and glibc fit"),
        _check("triton", install.require_runtime, "installed"),
    ]
    git = shutil.which("git")
    findings.append(Finding("git", git is not None, git or "not installed; a workspace needs it (Debian: apt-get install git)"))
    try:
        ws = find_workspace(root)
    except HapError as error:
        return [*findings, Finding("workspace", root is None, str(error))]
    findings.append(_check("params", ws.params, f"{ws.params_file} is sound"))
    if not findings[-1].well:
        return findings
    params = ws.params()
    book = journal.open_ledger(ws, params)
    findings.append(_check("ledger", book.verify, "chain unbroken"))
    clean = subprocess.run(["git", "-C", str(ws.root), "status", "--porcelain"], capture_output=True, text=True)
    edited = [line[3:] for line in clean.stdout.splitlines()]
    findings.append(
        Finding("tracked", not clean.returncode, f"not committed: {', '.join(edited)}" if edited else "everything is committed")
    )
    if params.serving.url is not None:
        findings = [finding for finding in findings if finding.check != "triton"]  # not needed here
    champion, url = book.served(), remote.address(ws, params.serving)
    if url is not None:
        served = remote.look(url, params.serving.deadline_s).version
        said = f"serves {_named(served)}, the ledger says {_named(champion)}; `hapctl promote` or `hapctl rollback` repairs it first"
        findings.append(Finding("serving", served == champion, f"{_named(champion)} serves" if served == champion else said))
    elif champion is not None:
        findings.append(Finding("serving", False, f"v{champion} is champion and no server runs; start it with `hapctl serve --detach`"))
    free, used = shutil.disk_usage(ws.root).free, sum(folder_bytes(ws.root / name) for name in PLACES)
    said = f"{free / 2**30:.1f} GiB free, the workspace takes {used / 2**30:.1f} GiB"
    findings.append(Finding("disk", free > 2**30, said if free > 2**30 else f"{said}; `hapctl gc --dry-run` lists what can go"))
    return findings


def _check(name: str, call: Any, well: str) -> Finding:
    try:
        call()
    except HapError as error:
        return Finding(name, False, str(error))
    return Finding(name, True, well)


def _named(version: int | None) -> str:
    return "no champion" if version is None else f"v{version}"
