"""Does HAP hold here? Every loss, model and size of the paper, trained and judged on the simulator or on a workspace's logs.

    python benchmarks/ablation.py                               all of it: hours; goes on where it stopped
    python benchmarks/ablation.py --quick --json                a small, honest version in minutes, as JSON
    python benchmarks/ablation.py --root WORKSPACE --day D      the same on a workspace's logs, by its own params.yaml
    python benchmarks/ablation.py --report                      measure and draw again what is finished; train nothing
    python benchmarks/ablation.py --worlds double-noise --beside docs/ablation/results.json      another world, on one page with those
    python benchmarks/ablation.py --estimate                    train one epoch of each model and say how long all of it takes

A trial is one training: (world, model, variant, seed). Worlds are settings of the simulator at its frozen defaults: `default` and
the two unfavourable ones, six days of 10,000 requests to train on and a seventh that judges. Variants (benchmarks/proof/variants.py)
are the five losses, the published light model and the distilled one in every world; in the first one also the expressive model on
hard kinds only, the published light model with every loss, and sizes. Every trial trains through hap.training.loop.train for the
same number of epochs, none stopped early, and keeps the epoch that is best on held-out requests of the training days. Seeds are
paired: one seed gives every loss the same held-out requests, order of batches and first weights. The whole run is 220 trials;
`--estimate` says how long that is on the machine at hand, one epoch for six.

Results lie in --out: worlds/, trials/ (one folder each, whole or absent), checkpoints/ of trainings that are under way,
results.json, figures/*.png and index.html, which opens offline. Trials run in processes of one thread each, seed 1 of
everything first, those that learn from another trial last. With --json the whole of results.json goes to stdout: `gauc` by model,
variant and kind (value, lo, hi), `routing` as a list of {share, recall_at_k, relative_recall, flops_ratio, ...} of the first
world, and `worlds` with everything. With --beside the first world is that of the earlier run.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks beside it alone; so do the processes it starts

import orjson
from filelock import FileLock, Timeout

from benchmarks.proof.numbers import at_least_one
from benchmarks.proof.trials import Place, run_all, say
from benchmarks.proof.variants import OURS, VARIANTS, Trial, plan, variant_params
from benchmarks.proof.worlds import Logged, Simulated, load_world, make_world
from hap.days import parse_day
from hap.errors import Busy, HapError, UsageError
from hap.logs.simulator import SETTINGS
from hap.params import MODELS
from hap.workspace import find_workspace

WORLDS = ("default", "single-interest", "double-noise")
FULL = {"worlds": WORLDS, "requests": 10_000, "days": 6, "complete": 4_000, "epochs": 6, "seeds": (1, 2, 3, 4, 5), "out": "build/ablation"}
QUICK = {
    "worlds": WORLDS[:1],
    "requests": 1_200,
    "days": 3,
    "complete": 1_000,
    "epochs": 6,
    "seeds": (1, 2, 3),
    "out": "build/ablation-quick",
}


def parse(words: list[str] | None = None) -> argparse.Namespace:
    """The words of the command line; what is not said comes from FULL or QUICK."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=f"small: {QUICK}")
    parser.add_argument("--out", type=Path, help="folder of the results")
    parser.add_argument("--root", type=Path, help="a workspace whose logs are used in place of the simulator; it is only read")
    parser.add_argument("--day", help="with --root: the last day that judges")
    parser.add_argument("--judging-days", type=at_least_one, help="with --root: days that judge together (gate.days where not said)")
    parser.add_argument("--worlds", nargs="+", choices=SETTINGS, help="settings of the simulator, the main one first")
    parser.add_argument("--requests", type=at_least_one, help="requests of a simulated day")
    parser.add_argument(
        "--days", type=at_least_one, help="to train on; of the simulator one more judges, with --root train.days where not said"
    )
    parser.add_argument("--complete", type=at_least_one, help="requests kept with all their candidates for the routing curve")
    parser.add_argument("--epochs", type=at_least_one, help="of every training")
    parser.add_argument("--seeds", nargs="+", type=int, help="of the trainings")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="only these, in every world")
    parser.add_argument("--processes", type=at_least_one, default=2, help="trainings at a time, one thread each")
    parser.add_argument(
        "--beside", type=Path, help="results.json of an earlier run, whose worlds are shown, too: trials are not needed for it"
    )
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--estimate", action="store_true", help="train one epoch of each model and say how long the rest takes")
    parser.add_argument("--json", action="store_true", help="results.json on stdout in place of text")
    asked = parser.parse_args(words)
    asked.window = asked.days  # of a workspace, whose own is the default
    for key, value in (QUICK if asked.quick else FULL).items():
        if getattr(asked, key) is None:
            setattr(asked, key, Path(str(value)) if key == "out" else value)
    return asked


def worlds_of(asked: argparse.Namespace) -> list[Simulated | Logged]:
    """What is trained on.

    Raises:
        UsageError: --root and --day come together or not at all.
        NotFound: --root is no workspace.
    """
    if (asked.root is None) != (asked.day is None):
        raise UsageError("--root and --day belong together: the workspace, and the day of it that judges")
    if asked.root is None:
        return [Simulated(name, asked.requests, asked.days, asked.complete) for name in asked.worlds]
    ws = find_workspace(asked.root)
    params, day = ws.params(), parse_day(asked.day).isoformat()
    return [Logged(str(ws.root), day, asked.window or params.train.days, asked.judging_days or params.gate.days, asked.complete)]


def main(words: list[str] | None = None) -> int:
    """Run what is asked for; a refusal is one line on stderr."""
    asked = parse(words)
    try:
        return run(asked)
    except HapError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on where this one was", file=sys.stderr)
        return 130


def run(asked: argparse.Namespace) -> int:
    """Make the worlds, run what is missing, report.

    Raises:
        Busy: another run uses the folder.
    """
    place = Place(asked.out.resolve())
    place.root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(place.root / ".lock", timeout=0):
            return _run(asked, place)
    except Timeout:
        raise Busy(f"another run writes to {place.root}; wait for it to end, or give another --out") from None


def _run(asked: argparse.Namespace, place: Place) -> int:
    worlds = worlds_of(asked)
    trials = plan([world.name for world in worlds], asked.seeds, asked.models, asked.variants, more=not asked.quick)
    if not trials:
        raise UsageError(f"no variant of {', '.join(asked.variants)} is one of {', '.join(asked.models)}; add a model to --models")
    earlier = read_earlier(asked.beside, asked.epochs, asked.seeds) if asked.beside else None
    for world in worlds:
        begun = time.perf_counter()
        make_world(place.world(world.name), world)
        if time.perf_counter() - begun > 1:
            say(f"{world.name}: simulated and collected in {time.perf_counter() - begun:.0f} s")
    if asked.estimate:
        print(estimate(place, trials, asked.epochs, asked.processes))
        return 0
    failed = [] if asked.report else run_all(place, trials, asked.epochs, asked.processes, say)
    from benchmarks.proof.report import lines, report

    results = report(place, trials, asked.epochs, say, earlier)
    say(f"wrote {asked.out / 'results.json'}, figures/ and index.html")
    print(orjson.dumps(results, option=orjson.OPT_SORT_KEYS).decode() if asked.json else lines(results))
    return 1 if failed else 0


def read_earlier(path: Path, epochs: int, seeds: list[int]) -> dict[str, Any]:
    """results.json of another run.

    Raises:
        UsageError: it is none, or its trainings were of other lengths or seeds: they would stand in one table.
    """
    try:
        earlier: dict[str, Any] = orjson.loads(path.read_bytes())
        of = earlier["facts"]["epochs"], earlier["facts"]["seeds"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--beside {path}: no results.json of an ablation ({error!r})") from None
    if of != (epochs, list(seeds)):
        raise UsageError(f"--beside {path}: {of[0]} epochs and seeds {of[1]}, here {epochs} and {list(seeds)}; give the same ones")
    return earlier


def estimate(place: Place, trials: list[Trial], epochs: int, processes: int) -> str:
    """Hours of all trials, from one epoch of each model at its default size in the first world; starting up is counted to the epoch."""
    from hap.training.loop import train

    world = load_world(place.world(trials[0].world))
    told, total_s = [], 0.0
    for model in dict.fromkeys(trial.model for trial in trials):
        begun = time.process_time()
        train(model, variant_params(world.params, OURS, 1, 1), world.training, lambda progress: None)
        epoch_s = time.process_time() - begun
        count = sum(trial.model == model for trial in trials)
        total_s += count * epochs * epoch_s
        told.append(f"{model}: {epoch_s:.0f} CPU s an epoch, {count} trials of {epochs}")
    hours = total_s / 3600
    return "\n".join([*told, f"{hours:.1f} CPU hours in all, about {hours / processes:.1f} h by the clock with {processes} idle cores"])


if __name__ == "__main__":
    sys.exit(main())
