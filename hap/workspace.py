"""A workspace: a git and DVC repo of its own that holds one recommender's logs, samples, models and versions."""

import contextlib
import datetime as dt
import io
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import orjson
from filelock import FileLock, Timeout

from hap import __version__, durable
from hap.errors import Busy, HapError, NotFound, UsageError
from hap.params import Params, load_params
from hap.project import project_file

MARKER = "hap.toml"
_IGNORED = "/logs/\n/quarantine/\n/late/\n/served/\n/registry/\n/triton/\n/pages/\n/remote/\n/.hap/\n.*.new/\n.*.old/\n*.tmp\n"


@dataclass(frozen=True)
class Workspace:
    """Where everything of one workspace lies. `root` is absolute."""

    root: Path

    @property
    def params_file(self) -> Path:
        return self.root / "params.yaml"

    @property
    def run_file(self) -> Path:
        return self.root / "run.yaml"

    @property
    def window_file(self) -> Path:
        return self.root / "window.json"

    @property
    def heldout_file(self) -> Path:
        return self.root / "heldout.json"

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    @property
    def quarantine(self) -> Path:
        """Log rows that broke the contract, by table and collected day."""
        return self.root / "quarantine"

    @property
    def late(self) -> Path:
        """Log rows that came too late for a closed day, by table and collected day."""
        return self.root / "late"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def spent(self) -> Path:
        """What each training took; apart from the models, whose bytes must not differ by it."""
        return self.root / "spent"

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"

    @property
    def triton(self) -> Path:
        """The model repository that Triton serves."""
        return self.root / "triton"

    @property
    def pages(self) -> Path:
        return self.root / "pages"

    @property
    def registry(self) -> Path:
        return self.root / "registry"

    @property
    def verdicts(self) -> Path:
        return self.root / "verdicts"

    @property
    def state(self) -> Path:
        """Locks, server state and scratch of running commands; never tracked."""
        return self.root / ".hap"

    def params(self) -> Params:
        """Read params.yaml anew."""
        return load_params(self.params_file)

    def logs(self, params: Params) -> str:
        """The logs as an absolute path; a URL, which no command reads yet, stays as it is and is refused by name."""
        return params.logs.path if "://" in params.logs.path else str(self.root / params.logs.path)


def find_workspace(root: Path | None, environment: Mapping[str, str] = os.environ) -> Workspace:
    """`root`, else $HAP_ROOT, else the nearest parent of the current folder that holds hap.toml.

    Raises:
        NotFound: there is no workspace there.
    """
    named = root or (Path(environment["HAP_ROOT"]) if environment.get("HAP_ROOT") else None)
    if named is not None:
        if not (named / MARKER).exists():
            raise NotFound(f"{named} is not a workspace (no {MARKER}); make one with `hapctl init {named}`")
        return Workspace(named.resolve())
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / MARKER).exists():
            return Workspace(folder)
    raise NotFound(f"no {MARKER} in {here} or above it; give --root DIR, or make a workspace with `hapctl init DIR`")


def init_workspace(root: Path, params_text: str | None = None) -> Workspace:
    """Make `root` a workspace, or finish making one; a finished one is left as it is.

    Args:
        params_text: params.yaml of the new workspace; the project's own where None.

    Raises:
        UsageError: the folder holds other things.
    """
    ws = Workspace(root.resolve())
    if (ws.root / MARKER).exists():
        return ws
    begun = ws.state / "init"  # a killed init is finished by the next one
    if ws.root.is_dir() and any(ws.root.iterdir()) and not begun.exists():
        raise UsageError(f"{root} is not empty and not a workspace; give another folder")
    durable.write_text(begun, f"{os.getpid()}\n")
    if not (ws.root / ".git").is_dir():
        git(ws, "init", "--quiet", "--initial-branch=main")
    durable.write_text(ws.root / ".gitignore", _IGNORED)
    if not ws.params_file.exists():
        durable.write_text(ws.params_file, params_text or project_file("params.yaml").read_text())
    durable.write_text(ws.root / "dvc.yaml", project_file("dvc.yaml").read_text())
    _init_dvc(ws)
    durable.write_text(
        ws.root / ".dvcignore", "# What a killed write left beside its place; the next write there removes it.\n.*.new\n.*.old\n.*.tmp\n"
    )
    for folder in (ws.registry, ws.pages, ws.verdicts):
        folder.mkdir(exist_ok=True)
    durable.write_text(ws.root / MARKER, f'# The folder that holds this file is a hap workspace.\nmade_by = "hap {__version__}"\n')
    commit(ws, "New workspace")
    begun.unlink()
    return ws


def _init_dvc(ws: Workspace) -> None:
    """A DVC repo with one default remote, which tells nobody anything; one that stands is configured anew."""
    import configobj  # DVC's own reader and writer of this file

    command = [sys.executable, "-P", "-m", "dvc", "init", "--quiet", "--force"]
    silent = {**os.environ, "DVC_NO_ANALYTICS": "true"}  # its own configuration, which says so too, does not lie there yet
    done = subprocess.run(command, cwd=ws.root, env=silent, capture_output=True, text=True)
    if done.returncode:
        raise HapError(f"dvc init failed in {ws.root}: {(done.stderr.strip() or 'no message').splitlines()[-1]}")
    remote = ws.params().storage.dvc_remote
    settings = configobj.ConfigObj(encoding="utf-8")
    settings["core"] = {"analytics": False, "check_update": False, "remote": "store"}
    settings['remote "store"'] = {"url": remote if "://" in remote else str(Path("..") / remote)}  # a path counts from .dvc/
    written = io.BytesIO()
    settings.write(written)
    durable.write_bytes(ws.root / ".dvc" / "config", written.getvalue())


def git(ws: Workspace, *words: str) -> str:
    """Run git in the workspace as author hap; no global configuration is needed or read for identity.

    Raises:
        HapError: git is missing or refused; the message repeats its last line.
    """
    identity = ["-c", "user.name=hap", "-c", "user.email=hap@localhost", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null"]
    try:
        done = subprocess.run(["git", *identity, *words], cwd=ws.root, capture_output=True, text=True)
    except FileNotFoundError:
        raise HapError("git is not installed; a workspace needs it (Debian: apt-get install git)") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise HapError(f"git {words[0]} failed in {ws.root}: {last}")
    return done.stdout.strip()


def commit(ws: Workspace, message: str) -> str:
    """Commit everything that is not ignored and return the revision; without a change, return HEAD."""
    git(ws, "add", "--all")
    if git(ws, "status", "--porcelain"):
        git(ws, "commit", "--quiet", "--message", message)
    return git(ws, "rev-parse", "HEAD")


def workspace_lock(ws: Workspace, purpose: str, now: dt.datetime) -> contextlib.AbstractContextManager[None]:
    """Hold the workspace's one lock. Raises Busy as `exclusive` does."""
    return exclusive(ws, "workspace", f"holds {ws.root}", purpose, now)


def exclusive(ws: Workspace, name: str, doing: str, purpose: str, now: dt.datetime) -> contextlib.AbstractContextManager[None]:
    """Hold one of the workspace's locks alone. Raises Busy as `exclusive_in` does."""
    return exclusive_in(ws.state, name, doing, purpose, now)


@contextlib.contextmanager
def exclusive_in(folder: Path, name: str, doing: str, purpose: str, now: dt.datetime) -> Iterator[None]:
    """Hold a lock that lies in a folder alone.

    The operating system frees it when the holder dies, so a killed command never blocks the next.

    Args:
        doing: what whoever holds it does, for the message that others get.

    Raises:
        Busy: somebody holds it; the message says who, since when and for what.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(folder / f"{name}.lock"), folder / f"{name}.holder.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Busy(f"{describe_holder(holder)} {doing}; wait for it to end, then run this again") from None
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock is held all the same, and `hapctl gc` has to hold it
            durable.write_json(holder, {"pid": os.getpid(), "host": socket.gethostname(), "purpose": purpose, "since": now.isoformat()})
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def is_held(ws: Workspace, name: str) -> bool:
    """Whether somebody holds one of the workspace's locks now."""
    lock = FileLock(ws.state / f"{name}.lock")
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


def holder_file(ws: Workspace, name: str = "workspace") -> Path:
    """Where the holder of a lock is written down."""
    return ws.state / f"{name}.holder.json"


def describe_holder(holder: Path) -> str:
    """Who the holder file names, in words."""
    try:
        who = orjson.loads(holder.read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return "another hapctl"
    return f"{who['purpose']} (pid {who['pid']} on {who['host']}, since {who['since']})"
