"""How fast hap trains on one CPU thread, next to flat loops and two libraries (docs/results.md, "Training").

    python benchmarks/train.py --rivals-venv /tmp/rivals --json
    python benchmarks/train.py --rows 20000 --models light --systems hap,naive --rounds 1
    python benchmarks/train.py --systems hap,naive,flat --device cuda

Simulated days are collected once; benchmarks/train_systems.py trains the same network on the same whole-request batches
in a fresh process per system, model and table size. Before anything is timed, the first step's loss must agree to 1e-5.
Every system has BCE, Adagrad on the tables, Adam on the rest and one thread. Rounds are interleaved, medians reported;
loading is part of a step, imports and building are not. The libraries live in an environment that `--rivals-venv` makes.
"""

import argparse
import datetime as dt
import json
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks beside it alone

from benchmarks.collect import environment
from benchmarks.proof.numbers import at_least_one
from benchmarks.rivals import fresh_process, make_rivals
from benchmarks.train_systems import COLUMNS, SYSTEMS, epochs, network, sample_files

FIRST_DAY = dt.date(2026, 1, 1)
RIVALS = {"torch-rechub": "0.9.0", "fuxictr": "2.3.10"}
SHARED = ("torch", "numpy", "pydantic", "pyyaml", "orjson")  # at hap's own versions, so that the network and its libraries are one
LIBRARIES = ("rechub", "fuxictr")
DEFAULT = "hap,naive,flat,rechub,fuxictr,hap-flat,hap-loader,hap-sparse,hap-dense"
TOLERANCE = 1e-5
PEAK_DAYS = (4, 32)  # fewer days do not fill the pool of row groups that is mixed


def prepare(scratch: Path, args: argparse.Namespace) -> dict[str, int]:
    """Simulate and collect the days, write the flat rows, the scales and a parameter file per table size; counts of one epoch."""
    import numpy as np
    import torch

    from hap.logs.simulator import simulate
    from hap.models.build import build_model
    from hap.params import load_params
    from hap.project import project_file
    from hap.samples.collect import collect_day
    from hap.training.feed import Feed
    from hap.training.loop import set_scales
    from hap.workspace import Workspace

    base = load_params(project_file("params.yaml"))
    # fp32 for all: on a GPU hap would take bf16 by itself, begin with another loss than its rivals and not be comparable.
    train = base.train.model_copy(update={"conflict_steps": 0, "device": args.device, "precision": "fp32", "epochs": 1})
    sizes = {
        name: getattr(base, name).model_copy(update={"size": getattr(args, f"{name}_size") or getattr(base, name).size})
        for name in ("light", "expressive")
    }
    base = base.model_copy(update={"train": train, "loss": base.loss.model_copy(update={"name": "bce"}), **sizes})
    if not sample_files(scratch):
        ws = Workspace(scratch)
        simulate(ws.logs(base), FIRST_DAY, args.days, args.requests, args.seed, base.features)
        for n in range(args.days):
            collect_day(ws, base, FIRST_DAY + dt.timedelta(days=n))
    for rows in args.rows:
        (scratch / f"params-{rows}.json").write_text(with_rows(base, rows).model_dump_json())
    feed = Feed(sample_files(scratch), base, heldout=False)
    columns = build_model("light", base).columns
    counts = set_scales(columns, feed)
    torch.save({group: (scaler.mean, scaler.deviation) for group, scaler in columns.scalers.items()}, scratch / "scales.pt")
    batches = list(feed.batches(base.seed, 1))
    whole = flat_rows(batches, np.random.default_rng(args.seed))
    np.savez(scratch / "flat.npz", **whole)
    return {"samples": sum(counts.values()), "training_requests": feed.requests(), "batches": len(batches)}


def with_rows(params: Any, rows: int) -> Any:
    """The parameters with so many rows in the table of every id; categories keep theirs."""
    features = params.features
    groups = {group: tuple(f.model_copy(update={"rows": rows}) if f.type == "id" else f for f in getattr(features, group))
              for group in ("user", "context", "item", "history")}  # fmt: skip
    return params.model_copy(update={"features": features.model_copy(update=groups)})


def flat_rows(batches: list[Any], rng: Any) -> dict[str, Any]:
    """Batches as one row per sample, requests in an order of their own.

    Returns:
        The columns; `places`, the rows of all batches one after another; `bounds`, where each batch but the first begins in it.
    """
    import numpy as np

    first = np.cumsum([0, *[batch.requests for batch in batches]])
    owner = np.concatenate([batch.request.numpy() + start for batch, start in zip(batches, first[:-1], strict=True)])
    by_request = {name: np.concatenate([getattr(batch, name).numpy() for batch in batches])[owner] for name in COLUMNS[:4]}
    by_sample = {name: np.concatenate([getattr(batch, name).numpy() for batch in batches]) for name in COLUMNS[4:]}
    stored = np.argsort(rng.permutation(first[-1])[owner], kind="stable")  # row of the file -> sample in the order of the batches
    places = np.argsort(stored, kind="stable")
    columns = {name: array[stored] for name, array in (by_request | by_sample).items()}
    return {**columns, "places": places, "bounds": np.cumsum([len(batch.kind) for batch in batches])[:-1]}


def timed(system: str, model: str, rows: int, scratch: Path, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """One system in a process of its own."""
    python = str(args.rivals_venv / "bin" / "python") if system in LIBRARIES else sys.executable
    words = [system, model, str(scratch), str(scratch / f"params-{rows}.json"), "--seconds", str(seconds), "--device", args.device]
    return fresh_process(["benchmarks.train_systems", *words], python)


def differing(losses: dict[str, float]) -> list[str]:
    """Systems whose first loss is not that of the first one."""
    own = next(iter(losses.values()), 0.0)
    return [name for name, loss in losses.items() if not abs(loss - own) <= TOLERANCE]


def compare(systems: list[str], model: str, rows: int, scratch: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Medians of samples per second by system, after proof that all begin with one loss."""
    begun = {name: timed(name, model, rows, scratch, args, 0.0) for name in systems}
    failed = {name: one["failed"] for name, one in begun.items() if "failed" in one}
    losses = {name: one["first_loss"] for name, one in begun.items() if "failed" not in one}
    if different := differing(losses):
        return {"failed": {**failed, **dict.fromkeys(different, "another first loss")}, "first_loss": losses}
    found: dict[str, list[float]] = {name: [] for name in losses}
    for number in range(args.rounds):
        for name in found:
            one = timed(name, model, rows, scratch, args, args.seconds)
            if "failed" in one:
                failed[name] = one["failed"]
                continue
            found[name].append(one["samples_per_s"])
        print(
            f"{model} {rows} rows, round {number + 1}: { {name: round(rates[-1]) for name, rates in found.items() if rates} }",
            file=sys.stderr,
        )
    rates = {name: round(statistics.median(values)) for name, values in found.items() if values}
    return {"samples_per_cpu_s": rates, "ratios": ratios(rates), "rounds": {name: list(map(round, v)) for name, v in found.items()},
            "first_loss": losses, "failed": failed}  # fmt: skip


def ratios(rates: dict[str, float]) -> dict[str, float]:
    """hap's rate over each other one's."""
    return {f"hap/{name}": round(rates["hap"] / rate, 2) for name, rate in rates.items() if name != "hap" and "hap" in rates}


def feed_rate(params: Any, scratch: Path, seconds: float) -> dict[str, float]:
    """Samples per CPU second of the feed alone, shuffled, files in the page cache."""
    from hap.training.feed import Feed

    feed = Feed(sample_files(scratch), params, heldout=False)
    sum(len(batch.kind) for batch in feed.batches(params.seed, 1))
    begin, samples = time.process_time(), 0
    for batch in epochs(feed, params):
        samples += len(batch.kind)
        if time.process_time() - begin >= seconds:
            break
    return {"samples_per_cpu_s": samples / (time.process_time() - begin)}


def loss_ratio(model: str, params: Any, scratch: Path, seconds: float) -> dict[str, float]:
    """CPU of a step with ghcl+bce over that of one with bce: both take every batch, in turns."""
    import torch

    from hap.training import loop
    from hap.training.device import be_deterministic
    from hap.training.feed import Feed
    from hap.training.ranks import ALONE

    torch.set_num_threads(1)
    be_deterministic()
    feed = Feed(sample_files(scratch), params, heldout=False)
    runs, spent = {}, {"bce": 0.0, "ghcl+bce": 0.0}
    for name in spent:
        own = params.model_copy(update={"loss": params.loss.model_copy(update={"name": name})})
        net = network(model, own, scratch, sparse=True)
        runs[name] = (loop._Run(model, own, net, feed, ALONE, torch.device("cpu")), loop.Trained(net))
    for place, batch in enumerate(epochs(feed, params)):
        for name in sorted(runs, reverse=bool(place % 2)):
            run, trained = runs[name]
            begin = time.process_time()
            run._take(batch, trained)
            spent[name] += time.process_time() - begin if place >= 2 else 0.0
        if sum(spent.values()) >= seconds:
            break
    return {"ghcl_over_bce": spent["ghcl+bce"] / spent["bce"]}


def peak(params: Any, scratch: Path, days: int) -> dict[str, float]:
    """Largest resident MB of a training of one epoch on so many days of equal size: the days at hand, over and over."""
    from hap.memory import resident_mb
    from hap.training.loop import train

    files = sample_files(scratch)
    train("light", params, [files[n % len(files)] for n in range(days)], lambda _: None)
    return {"peak_mb": resident_mb()}


def single(words: list[str], seconds: float) -> dict[str, Any]:
    """`feed`, `loss MODEL` or `peak DAYS` in this process: PARAMS SCRATCH before them."""
    from hap.params import resolve

    params = resolve(json.loads(Path(words[0]).read_text()), words[0])
    scratch = Path(words[1])
    if words[2] == "feed":
        return feed_rate(params, scratch, seconds)
    if words[2] == "loss":
        return loss_ratio(words[3], params, scratch, seconds)
    return peak(params, scratch, int(words[3]))


def alone(scratch: Path, args: argparse.Namespace) -> dict[str, Any]:
    """What is measured of hap by itself: feed, loss and memory; medians over the rounds."""
    params = str(scratch / f"params-{args.rows[0]}.json")

    def median(key: str, *words: str) -> float:
        found = [
            fresh_process(["benchmarks.train", "--seconds", str(args.seconds), "--run", params, str(scratch), *words])
            for _ in range(args.rounds)
        ]
        if failed := [one["failed"] for one in found if "failed" in one]:
            raise SystemExit(f"{' '.join(words)}: {failed[0]}")
        return statistics.median(one[key] for one in found)

    return {
        "feed_samples_per_cpu_s": round(median("samples_per_cpu_s", "feed")),
        "ghcl_over_bce": {model: round(median("ghcl_over_bce", "loss", model), 3) for model in args.models},
        "peak_mb": {str(days): round(median("peak_mb", "peak", str(days))) for days in PEAK_DAYS},
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=at_least_one, nargs="+", default=[20_000, 1_000_000], help="rows of every id's table (default 20000 1000000)"
    )
    parser.add_argument("--models", nargs="+", default=["light", "expressive"], choices=("light", "expressive"))
    parser.add_argument("--systems", default=DEFAULT, help=f"some of {','.join(SYSTEMS)}, hap first (default all but hap-compiled)")
    parser.add_argument("--light-size", type=at_least_one, help="light.size (default that of params.yaml)")
    parser.add_argument("--expressive-size", type=at_least_one, help="expressive.size (default that of params.yaml)")
    parser.add_argument("--days", type=at_least_one, default=2, help="simulated days (default 2)")
    parser.add_argument("--requests", type=at_least_one, default=3000, help="of each day (default 3000)")
    parser.add_argument("--seed", type=int, default=1, help="of the simulation (default 1)")
    parser.add_argument("--rounds", type=at_least_one, default=3, help="processes per system (default 3)")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timed steps in each (default 3)")
    parser.add_argument("--compile", action="store_true", help="also hap with torch.compile")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: samples per second by the clock")
    parser.add_argument("--rivals-venv", type=Path, help="environment of torch-rechub and FuxiCTR; made where it is not")
    parser.add_argument("--scratch", type=Path, help="folder of samples; kept and used again (default: a temporary one, removed)")
    parser.add_argument("--skip-alone", action="store_true", help="leave out feed, loss and memory")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of text")
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.names = [*args.systems.split(","), *(["hap-compiled"] if args.compile else [])]
    if args.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            parser.error("--device cuda: no CUDA device is visible")
    if unknown := [name for name in args.names if name not in SYSTEMS]:
        parser.error(f"--systems {unknown[0]!r} is not one of {', '.join(SYSTEMS)}")
    return args


def main() -> int:
    args = parse()
    if args.run:
        print(json.dumps(single(args.run, args.seconds)))
        return 0
    missing = "no --rivals-venv" if args.rivals_venv is None else make_rivals(args.rivals_venv, SHARED, RIVALS)
    if missing:
        print(f"without torch-rechub and FuxiCTR: {missing}", file=sys.stderr)
        args.names = [name for name in args.names if name not in LIBRARIES]
    with tempfile.TemporaryDirectory() as temporary:
        scratch = args.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        data = prepare(scratch, args)
        shown = ("rounds", "seconds", "device", "days", "requests", "light_size", "expressive_size")
        answer: dict[str, Any] = {
            "environment": environment() | {"torch": version("torch"), "machine": platform.machine()},
            "protocol": {**{key: getattr(args, key) for key in shown}, **data, "rivals": missing or RIVALS},
            "training": {f"{model} {rows}": compare(args.names, model, rows, scratch, args) for rows in args.rows for model in args.models},
        }
        if not args.skip_alone:
            answer["alone"] = alone(scratch, args)
    if args.json:
        print(json.dumps(answer, indent=2))
    else:
        for title, value in answer.items():
            print(f"{title}: {json.dumps(value)}")
    return int(any(one["failed"] for one in answer["training"].values()))


if __name__ == "__main__":
    sys.exit(main())
