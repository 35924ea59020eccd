"""Where trials train and are judged: days of the simulator, or of any workspace's logs, collected once.

A world's folder holds the samples of its days (made as in any workspace), the judging days' requests with *all* their
candidates for the routing curve, and world.json, written last. Judged rows lie in one order for every trial (rows.npz).
Letters: R requests, N rows of all of them.
"""

import datetime as dt
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from hap import durable
from hap.days import day_range, judging_days, training_window
from hap.errors import DataError, UsageError
from hap.logs import contract
from hap.logs.simulator import SETTINGS, settings_digest, simulate
from hap.params import KINDS, Params, load_params, resolve
from hap.project import project_file
from hap.samples import partitions
from hap.samples.collect import collect_day
from hap.samples.complete import write_complete
from hap.training.feed import Feed, Pool
from hap.workspace import Workspace, find_workspace

FIRST = dt.date(2026, 1, 1)
WORLD_SEED = 1  # of the simulation, the sampling and the order of judged rows; trials differ by seeds of their own


@dataclass(frozen=True)
class Simulated:
    """A named setting of the simulator: `days` days to train on and one that judges, so many requests each."""

    setting: str
    requests: int
    days: int
    complete: int  # requests kept with all candidates, of those with a click

    @property
    def name(self) -> str:
        return self.setting


@dataclass(frozen=True)
class Logged:
    """A workspace's logs: `days` days to train on before the judging days, the last of which is `day`."""

    root: str  # absolute
    day: str
    days: int
    judging_days: int
    complete: int

    @property
    def name(self) -> str:
        return Path(self.root).name


@dataclass(frozen=True)
class Rows:
    """The judged rows that every trial's logits belong to."""

    kind: NDArray[np.int8]  # [N] place in KINDS
    offsets: NDArray[np.int64]  # [R + 1]
    cluster: NDArray[np.int64]  # [R] 0..C-1: requests of one user belong together


@dataclass(frozen=True)
class World:
    """A finished world."""

    folder: Path
    facts: dict[str, Any]
    params: Params

    @property
    def training(self) -> list[Path]:
        return [self.folder / path for path in self.facts["training_files"]]

    def pools(self, part: str) -> list[Pool]:
        """The judging days' requests, `sampled` or `complete` (all candidates), in the order of `rows`."""
        files = [self.folder / path for path in self.facts["judging_files"]] if part == "sampled" else [self.folder / "complete.parquet"]
        return [pool for heldout in (True, False) for pool in Feed(files, self.params, heldout=heldout).pools()]

    def rows(self, part: str) -> Rows:
        """What `pools` holds, without its features."""
        with np.load(self.folder / "rows.npz") as stored:
            return Rows(**{name: stored[f"{part}_{name}"] for name in ("kind", "offsets", "cluster")})


def load_world(folder: Path) -> World:
    """A world that was made."""
    facts = orjson.loads((folder / "world.json").read_bytes())
    return World(folder, facts, resolve(facts["params"], str(folder / "world.json")))


def make_world(folder: Path, asked: Simulated | Logged) -> World:
    """Make the world, or find it made.

    Raises:
        UsageError: another world lies there, or the logs do not hold the days asked for.
        DataError: logs that break their contract, or judging days without a click.
    """
    if (folder / "world.json").exists():
        world = load_world(folder)
        if world.facts["asked"] != asdict(asked):
            raise UsageError(f"{folder} holds another world ({world.facts['asked']}, asked: {asdict(asked)}); give another --out")
        return world
    folder.mkdir(parents=True, exist_ok=True)
    made = _simulate(folder, asked) if isinstance(asked, Simulated) else _read_logs(folder, asked)
    params, training, judging, facts = made
    paths = {"training_files": training, "judging_files": judging}  # kept as seen from the folder, which may be moved
    facts |= {name: [str(path.relative_to(folder.resolve())) for path in files] for name, files in paths.items()}
    world = World(folder, facts, params)
    rows = {f"{part}_{name}": array for part in ("sampled", "complete") for name, array in asdict(_rows(world, part)).items()}
    with open(folder / "rows.npz", "wb") as handle:
        np.savez(handle, **rows)
    counts = np.bincount(rows["sampled_kind"], minlength=len(KINDS)).tolist()
    world.facts.update(
        {
            "name": asked.name,
            "asked": asdict(asked),
            "params": params.model_dump(mode="json"),
            "judged_requests": len(rows["sampled_cluster"]),
            "judged_users": int(rows["sampled_cluster"].max()) + 1,
            "judged_by_kind": dict(zip(KINDS, counts, strict=True)),
            "complete_requests": len(rows["complete_cluster"]),
            "complete_candidates": len(rows["complete_kind"]) / len(rows["complete_cluster"]),
        }
    )
    durable.write_json(folder / "world.json", world.facts)
    return world


def _simulate(folder: Path, asked: Simulated) -> tuple[Params, list[Path], list[Path], dict[str, Any]]:
    params = load_params(project_file("params.yaml")).model_copy(update={"seed": WORLD_SEED})
    ws = Workspace(folder.resolve())
    calendar = day_range(FIRST, FIRST + dt.timedelta(days=asked.days))
    settings = SETTINGS[asked.setting]
    shutil.rmtree(folder / "logs", ignore_errors=True)
    simulate(ws.logs(params), FIRST, asked.days + 1, asked.requests, WORLD_SEED, params.features, settings=settings)
    manifests = [collect_day(ws, params, day) for day in calendar]
    _complete(folder, ws, params, calendar[-1:], asked.complete)
    shutil.rmtree(folder / "logs")  # gigabytes, and the same seed makes the same again
    facts = {"settings": settings_digest(settings), **_window(manifests[:-1], manifests[-1:])}
    return params, partitions.parquet_files(ws, calendar[:-1]), partitions.parquet_files(ws, calendar[-1:]), facts


def _read_logs(folder: Path, asked: Logged) -> tuple[Params, list[Path], list[Path], dict[str, Any]]:
    """The workspace's logs, collected by its own params.yaml into the world's folder; the workspace is only read."""
    source = find_workspace(Path(asked.root))
    own = source.params()
    params = own.model_copy(update={"logs": own.logs.model_copy(update={"path": source.logs(own)})})
    last = dt.date.fromisoformat(asked.day)
    logged = set(contract.logged_days(params.logs.path))
    judging = [day for day in judging_days(last, asked.judging_days) if day in logged]
    window = [day for day in training_window(last, asked.days, asked.judging_days) if day in logged]
    if last not in logged or not window:
        days = contract.describe_days(sorted(logged))
        raise UsageError(
            f"{asked.day} or the {asked.days} days before it are not in {params.logs.path} (it holds {days}); give another --day"
        )
    ws = Workspace(folder.resolve())
    manifests = [collect_day(ws, params, day) for day in [*window, *judging]]
    _complete(folder, ws, params, judging, asked.complete)
    facts = _window(manifests[: len(window)], manifests[len(window) :]) | {"complete_logs": params.logs.complete}
    return params, partitions.parquet_files(ws, window), partitions.parquet_files(ws, judging), facts


def _window(training: Sequence[partitions.Manifest], judging: Sequence[partitions.Manifest]) -> dict[str, Any]:
    return {
        "training_days": [one.day for one in training],
        "judging_days": [one.day for one in judging],
        "training_requests": sum(one.requests for one in training),
        "manifests": [one.id for one in [*training, *judging]],
    }


def _complete(folder: Path, ws: Workspace, params: Params, days: list[dt.date], most: int) -> None:
    """complete.parquet, for the routing curve."""
    if not write_complete(ws, params, days, most, folder / "complete.parquet", WORLD_SEED):
        raise DataError(f"no request of {', '.join(map(str, days))} has a positive; judge on other days")


def _rows(world: World, part: str) -> Rows:
    pools = world.pools(part)
    names = [feature.name for feature in world.params.features.ids("user") if feature.type == "id"]
    if names:  # the first id that a request carries: whose requests these are
        place = [feature.name for feature in world.params.features.ids("user")].index(names[0])
        owner = np.concatenate([pool.user_ids[:, place] for pool in pools])
    else:
        owner = np.concatenate([pool.request_id for pool in pools])
    counts = np.concatenate([np.diff(pool.offsets) for pool in pools])
    return Rows(
        kind=np.concatenate([pool.kind for pool in pools]),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        cluster=np.unique(owner, return_inverse=True)[1].astype(np.int64),
    )
