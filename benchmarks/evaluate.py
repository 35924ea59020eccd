"""What evaluation with a bootstrap costs, next to loops over scikit-learn and torchmetrics (docs/results.md, "Evaluation").

    python -m benchmarks.evaluate --rivals-venv /tmp/rivals --json
    python -m benchmarks.evaluate --rows 20000 --draws 50 --systems hap,sklearn,by-hand --rounds 1

One set of scored rows: requests of 30 to 300 rows, positives and 4 kinds of negatives, 10 overlapping slices of the
positives, scores as a model in single precision gives them, so that some tie, and 5% rounded so that they tie a lot. Asked is,
for the whole and each slice, against each kind (44 quantities), the value and its value in each of 1000 draws of requests,
the same draws for all (multinomial counts per request, a request's rows go together):

    pooled   AUC of all positives against all negatives of the kind, whatever request they are of
    gauc     mean AUC per request, weighed by its positives

What is fair: a rival is what a person would write round its function (benchmarks/evaluate_systems.py), with its checks of
input off and the rows of each quantity picked once, outside the draws. For `pooled`, `sklearn` calls roc_auc_score with the
counts as weights and `torchmetrics`, which takes none, calls binary_auroc on the rows gathered again. For `gauc` both call
their function once per request and quantity, never again, and take all draws as matrix products of NumPy. `by-hand` is pooled
AUC by NumPy alone: each kind sorted once, a cumulative sum per draw. hap's `gauc` has more to do than asked: the standard
error of every draw, which the gate's bounds need.

Whole loops would take hours. So hap is run whole, and a rival on `measured_draws` draws per round, of all quantities, and on
`measured_requests` requests; its CPU seconds there are scaled up in proportion. Rounds are interleaved, each in a fresh process
with one thread on other draws; medians are reported. Imports and reading the rows are not counted.

`max_abs_diff` compares what every rival computed with what hap did, and hap's GAUC of every draw with NumPy's weighted mean:
above 1e-12 the exit code is 1. `peak_over_input` is the largest resident size over that with imports and rows, in bytes of the
input: scores in double precision, kinds in a byte, offsets, and slices as a byte per row.
"""

import argparse
import json
import statistics
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.collect import environment
from benchmarks.evaluate_systems import KINDS, SEED, SYSTEMS, Data, Draws, load, measured_requests
from benchmarks.rivals import fresh_process, make_rivals
from hap.evaluation.interval import draw_counts

RIVALS = {"torchmetrics": "1.9.0"}
SHARED = ("torch", "numpy")
SHARES = (0.05, 0.15, 0.25, 0.35, 0.20)  # of positives and of each kind of negatives
HARDER = (0.0, -0.2, -0.6, -1.0, -1.6)  # what a kind's logits lie below those of positives
ROWS_OF_A_REQUEST = (30, 300)
CHEAP = {"by-hand": 20}  # times as many draws are measured of it
TOLERANCE = 1e-12
TARGETS = {"sklearn/hap": 20, "torchmetrics/hap": 5}  # at least
MEMORY_TARGET = 2.0  # at most, in inputs


def generate(rows: int, seed: int) -> Data:
    """Scored rows of requests, the last of which has what is left; ten slices."""
    rng = np.random.default_rng(seed)
    low, high = ROWS_OF_A_REQUEST
    lengths = rng.integers(low, high + 1, rows // low + 1)
    offsets = np.unique(np.minimum(np.concatenate(([0], np.cumsum(lengths))), rows))
    requests, lengths = len(offsets) - 1, np.diff(offsets)
    kind = rng.choice(np.arange(KINDS + 1, dtype=np.int8), rows, p=SHARES)
    logits = rng.normal(size=rows) + np.repeat(0.5 * rng.normal(size=requests), lengths) + np.array(HARDER)[kind]
    scores = (1 / (1 + np.exp(-logits.astype(np.float32)))).astype(np.float64)
    unknown = rng.random(rows) < 0.05
    scores[unknown] = scores[unknown].round(2)
    content_type = rng.choice(4, rows, p=(0.4, 0.3, 0.2, 0.1))
    of_items = [content_type == value for value in range(4)] + [rng.random(rows) < share for share in (0.05, 0.3, 0.5)]
    of_requests = [np.repeat(rng.random(requests) < share, lengths) for share in (0.1, 0.2, 0.7)]
    return Data(scores, kind, offsets, np.stack(of_items + of_requests))


def prepare(scratch: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Write rows and draws; facts of them."""
    data = generate(args.rows, args.seed)
    for name, part in data._asdict().items():
        np.save(scratch / f"{name}.npy", part)
    requests = len(data.offsets) - 1
    counts = np.concatenate(list(draw_counts(requests, args.draws, SEED, 10)))
    np.save(scratch / "counts.npy", counts.astype(np.min_scalar_type(counts.max())))
    ties = np.unique(data.scores, return_counts=True)[1]
    facts = {"rows": args.rows, "requests": requests, "positives": int((data.kind == 0).sum())}
    facts |= {"tied_rows_share": round(float(ties[ties > 1].sum() / args.rows), 3), "quantities": (len(data.slices) + 1) * KINDS}
    facts |= {name: getattr(args, name) for name in ("draws", "rounds", "measured_requests", "seed")}
    facts["measured_draws"] = {name: measured_draws(name, 0, args)[1] for name in args.names if name != "hap"}
    return facts | {"input_mb": round(data.input_bytes() / 1e6, 1)}


def measured_draws(system: str, number: int, args: argparse.Namespace) -> tuple[int, int]:
    """The first draw that a rival is measured on in a round, and how many; hap takes all."""
    measured = min(args.measured_draws * CHEAP.get(system, 1), args.draws // args.rounds)
    return number * measured, measured


def measure(system: str, scratch: Path, number: int, args: argparse.Namespace) -> dict[str, Any]:
    """CPU seconds by part, scaled up to all draws and requests, and memory."""
    python = str(args.rivals_venv / "bin" / "python") if system == "torchmetrics" else sys.executable
    first, measured = measured_draws(system, number, args)
    found = fresh_process(
        ["benchmarks.evaluate_systems", system, str(scratch), *map(str, (first, measured, args.measured_requests))], python
    )
    if "failed" in found:
        return found
    seconds = found["cpu_s"]
    if system == "hap":  # each part takes the sort
        pooled, gauc, total = seconds["sort"] + seconds["pooled"], seconds["sort"] + seconds["gauc"], sum(seconds.values())
        return {"pooled": pooled, "gauc": gauc, "both": total, "peak_over_input": found["peak_over_input"]}
    scaled = {"pooled": seconds["pooled"] + seconds["pooled_draws"] * args.draws / measured}
    if "gauc_requests" in seconds:
        data = load(scratch)
        share = len(measured_requests(data, Draws(np.empty(0), first, measured, args.measured_requests))) / (len(data.offsets) - 1)
        scaled["gauc"] = seconds["gauc_requests"] / share + seconds["gauc_means"]
        scaled["both"] = scaled["pooled"] + scaled["gauc"]
    return {**scaled, "peak_over_input": found["peak_over_input"]}


def differences(system: str, scratch: Path, number: int, args: argparse.Namespace) -> dict[str, float]:
    """The largest difference of each result to hap's; where one of both is undefined, infinity."""
    data, ours = load(scratch), results(scratch, "hap")
    draws = Draws(np.load(scratch / "counts.npy"), *measured_draws(system, number, args), args.measured_requests)
    if system == "hap":  # against means by another formula
        weight, value = ours["request_weight"], np.where(ours["request_weight"] > 0, ours["request_auc"], 0.0)
        times = np.concatenate((np.ones((1, len(weight))), draws.counts))
        with np.errstate(invalid="ignore"):  # a draw may have none of a slice
            means = (times @ (weight * value)) / (times @ weight)
        return {
            "gauc": largest_difference(ours["gauc"].ravel(), means[0]),
            "gauc_draws": largest_difference(ours["gauc_draws"].T, means[1:]),
        }
    expected = {
        "pooled": ours["pooled"],
        "pooled_draws": ours["pooled_draws"][:, :, draws.first : draws.first + draws.measured],
        "request_auc": ours["request_auc"][measured_requests(data, draws)],
    }
    return {part: largest_difference(expected[part], values) for part, values in results(scratch, system).items()}


def results(scratch: Path, system: str) -> dict[str, Any]:
    """What a system wrote down in its last round, by name."""
    return {path.stem: np.load(path) for path in (scratch / system).glob("*.npy")}


def largest_difference(one: Any, other: Any) -> float:
    """Of two arrays of one shape; infinite where just one of both is NaN."""
    if one.shape != other.shape or (np.isnan(one) != np.isnan(other)).any():
        return float("inf")
    return float(np.nanmax(np.abs(one - other), initial=0.0))


def compare(systems: list[str], scratch: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Medians over the rounds, and the largest differences of all of them."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in systems}
    apart: dict[str, dict[str, float]] = {name: {} for name in systems}
    failed: dict[str, str] = {}
    for number in range(args.rounds):
        for name in systems:
            one = measure(name, scratch, number, args)
            if "failed" in one:
                failed[name] = one["failed"]
                print(f"{name}, round {number + 1}: {one['failed']}", file=sys.stderr)
                continue
            found[name].append(one)
            if "hap" not in failed:
                for part, value in differences(name, scratch, number, args).items():
                    apart[name][part] = max(value, apart[name].get(part, 0.0))
            print(f"{name}, round {number + 1}: { {part: round(value, 2) for part, value in one.items()} }", file=sys.stderr, flush=True)
    medians = {
        name: {part: statistics.median(one[part] for one in rounds) for part in rounds[0]} for name, rounds in found.items() if rounds
    }
    peaks = {name: round(one.pop("peak_over_input"), 2) for name, one in medians.items()}
    return {
        "cpu_s": {name: {part: round(value, 2) for part, value in one.items()} for name, one in medians.items()},
        "ratios": ratios(medians),
        "max_abs_diff": apart,
        "peak_over_input": peaks,
        "failed": failed,
    }


def ratios(seconds: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Each rival's CPU over hap's, by part."""
    ours = seconds.get("hap", {})
    rivals = {name: parts for name, parts in seconds.items() if name != "hap" and ours}
    return {f"{name}/hap": {part: round(value / ours[part], 1) for part, value in parts.items()} for name, parts in rivals.items()}


def targets(found: dict[str, Any]) -> dict[str, bool]:
    """What was promised and whether it holds, for what was measured."""
    least = {name: min(parts.values()) for name, parts in found["ratios"].items()}
    kept = {f"{name} at least {bound}": least[name] >= bound for name, bound in TARGETS.items() if name in least}
    if "hap" in found["peak_over_input"]:
        kept[f"memory at most {MEMORY_TARGET} of the input"] = found["peak_over_input"]["hap"] <= MEMORY_TARGET
    worst = max((value for parts in found["max_abs_diff"].values() for value in parts.values()), default=float("inf"))
    return kept | {f"differences at most {TOLERANCE}": worst <= TOLERANCE}


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000, help="scored rows (default 2000000)")
    parser.add_argument("--draws", type=int, default=1000, help="of requests (default 1000)")
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="hap and its rivals, hap first (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="processes per system (default 3)")
    parser.add_argument("--measured-draws", type=int, default=1, help="of a rival in each round (default 1)")
    parser.add_argument("--measured-requests", type=int, default=100, help="of a rival's loop over requests (default 100)")
    parser.add_argument("--seed", type=int, default=1, help="of the rows (default 1)")
    parser.add_argument("--rivals-venv", type=Path, help="environment of torchmetrics; made where it is not")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of text")
    args = parser.parse_args(words)
    args.names = args.systems.split(",")
    if unknown := [name for name in args.names if name not in SYSTEMS]:
        parser.error(f"--systems {unknown[0]!r} is not one of {', '.join(SYSTEMS)}")
    if args.names[0] != "hap":
        parser.error("--systems begins with hap, which the others are compared with")
    for name in ("rows", "draws", "rounds", "measured_draws", "measured_requests"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} is {getattr(args, name)}; it must be at least 1")
    if args.rounds * args.measured_draws > args.draws:
        parser.error(f"--rounds times --measured-draws is {args.rounds * args.measured_draws}, more than the {args.draws} --draws")
    return args


def versions() -> dict[str, str]:
    found = {}
    for name in ("scipy", "scikit-learn", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    missing = "no --rivals-venv" if args.rivals_venv is None else make_rivals(args.rivals_venv, SHARED, RIVALS)
    if missing and "torchmetrics" in args.names:
        print(f"without torchmetrics: {missing}", file=sys.stderr)
        args.names.remove("torchmetrics")
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary)
        protocol = {**prepare(scratch, args), "rivals": missing or RIVALS}
        answer = {"environment": environment() | versions(), "protocol": protocol, **compare(args.names, scratch, args)}
    answer["targets"] = targets(answer)
    if args.json:
        print(json.dumps(answer, indent=2))
    else:
        for title, value in answer.items():
            print(f"{title}: {json.dumps(value)}")
    exact = answer["targets"][f"differences at most {TOLERANCE}"]
    return int(bool(answer["failed"]) or not exact)


if __name__ == "__main__":
    sys.exit(main())
