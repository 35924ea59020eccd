"""How often the gate's one-sided bounds fail, next to those of a plain percentile bootstrap (docs/gate.md, "The bounds").

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/interval_coverage.py

A sample is R requests, each with challenger minus champion AUC and the number of positives it weighs as much as. The true
mean is known exactly, so a lower bound above it or an upper bound below it is a failure; 5% of either is what is promised.
The rates depend on seed, draws and repetitions, not on the hardware.
"""

import argparse
import json
import os
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np

from hap.evaluation.interval import F64, resample

ALPHA = 0.05
REQUESTS = (50, 200, 1000)
ONE_POSITIVE = 0.6  # positives per request are geometric: exactly one with this probability
LOSS_PER_POSITIVE = 0.004


def ordinary(rng: np.random.Generator, positives: F64) -> F64:
    """Two AUCs over ten negatives that share how hard the request is; the challenger loses a little per positive."""
    chance = 0.75 + np.clip(rng.normal(0, 0.08, positives.size), -0.2, 0.2)
    return (rng.binomial(10, chance - LOSS_PER_POSITIVE * positives) - rng.binomial(10, chance)) / 10


def six_percent_lose(rng: np.random.Generator, positives: F64) -> F64:
    """6% of requests lose 0 to 0.9, the others gain 0 to 0.02."""
    loses = rng.random(positives.size) < 0.06
    return np.where(loses, -0.9 * rng.random(positives.size), 0.02 * rng.random(positives.size))


def one_percent_lose(rng: np.random.Generator, positives: F64) -> F64:
    """1% of requests lose 0 to 1, the others are equal."""
    loses = rng.random(positives.size) < 0.01
    return np.where(loses, -rng.random(positives.size), 0.0)


# Name in docs/gate.md, generator, true mean E[w d] / E[w]; a geometric w has E[w^2] / E[w] = (2 - p) / p.
DIFFERENCES = [
    ("ordinary", ordinary, -LOSS_PER_POSITIVE * (2 - ONE_POSITIVE) / ONE_POSITIVE),
    ("6% of requests lose much", six_percent_lose, 0.06 * -0.45 + 0.94 * 0.01),
    ("1% of requests lose much", one_percent_lose, 0.01 * -0.5),
]


def percentile_bounds(difference: F64, weight: F64, draws: int, rng: np.random.Generator) -> tuple[float, float]:
    """Quantiles ALPHA and 1 - ALPHA of the weighted means of requests drawn again."""
    picked = rng.integers(0, weight.size, size=(draws, weight.size))
    means = (difference * weight)[picked].sum(axis=1) / weight[picked].sum(axis=1)
    lower, upper = np.quantile(means, [ALPHA, 1 - ALPHA])
    return lower, upper


def studentised_bounds(difference: F64, weight: F64, draws: int, rng: np.random.Generator) -> tuple[float, float]:
    """The bounds that the gate uses."""
    studied = resample(difference[:, None], weight[:, None], draws, seed=int(rng.integers(2**32)))[0]
    return studied.lower(ALPHA), studied.upper(ALPHA)


METHODS = {"percentile": percentile_bounds, "studentised": studentised_bounds}


def failure_rates(kind: int, requests: int, repetitions: int, draws: int, seed: int) -> dict:
    """One row of the table: per method, the share of samples whose bound lies on the wrong side of the true mean."""
    name, draw_difference, true_mean = DIFFERENCES[kind]
    rng = np.random.default_rng([seed, kind, requests])
    failures = {method: np.zeros(2) for method in METHODS}
    for _ in range(repetitions):
        positives = rng.geometric(ONE_POSITIVE, requests).astype(np.float64)
        difference = draw_difference(rng, positives)
        for method, bounds in METHODS.items():
            lower, upper = bounds(difference, positives, draws, rng)
            failures[method] += (lower > true_mean, upper < true_mean)
    rates = {method: dict(zip(("lower", "upper"), (failed / repetitions).tolist())) for method, failed in failures.items()}
    return {"difference": name, "requests": requests, **rates}


def environment() -> dict:
    """Hardware and versions."""
    listing = Path("/proc/cpuinfo")  # Linux only
    lines = listing.read_text().splitlines() if listing.exists() else []
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    found = {"cpu": cpu, "cpus": os.cpu_count(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "unset")}
    return found | {"python": platform.python_version(), "numpy": np.__version__, "hap": version("hap")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=2000, help="samples per row (default 2000: about 6 minutes)")
    parser.add_argument("--draws", type=int, default=999, help="bootstrap draws per sample (default 999)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds give equal rates (default 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of text and table")
    args = parser.parse_args()
    if args.repetitions < 1 or args.draws < 1 or args.seed < 0:
        parser.error("--repetitions and --draws must be at least 1, --seed at least 0")

    begin = time.perf_counter()
    rows = []
    for kind, (name, _, _) in enumerate(DIFFERENCES):
        for requests in REQUESTS:
            rows.append(failure_rates(kind, requests, args.repetitions, args.draws, args.seed))
            print(f"{name}, {requests} requests: done after {time.perf_counter() - begin:.0f} s", file=sys.stderr)
    protocol = {"alpha": ALPHA, "repetitions": args.repetitions, "draws": args.draws, "seed": args.seed}
    protocol["standard_error_at_alpha"] = round((ALPHA * (1 - ALPHA) / args.repetitions) ** 0.5, 4)
    if args.json:
        print(json.dumps({"environment": environment(), "protocol": protocol, "failure_rates": rows}, indent=2))
        return
    for title, facts in (("environment", environment()), ("protocol", protocol)):
        print(f"{title}: {', '.join(f'{key} {fact}' for key, fact in facts.items())}")
    print(f"failure rates, lower / upper\n\n| difference between the models | requests | {' | '.join(METHODS)} |\n|---|---|---|---|")
    for row in rows:
        cells = [" / ".join(f"{row[method][side]:.3f}".removeprefix("0") for side in ("lower", "upper")) for method in METHODS]
        print(f"| {row['difference']} | {row['requests']:,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
