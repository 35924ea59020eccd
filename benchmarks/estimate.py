"""The estimated AUC of unlabelled days: how far off it is, how often its interval holds the truth, and NannyML's beside it.

    OMP_NUM_THREADS=1 python benchmarks/estimate.py [--days 200] [--requests 500]
    OMP_NUM_THREADS=1 python benchmarks/estimate.py --nannyml VENV/bin/python

Simulated exposures: users whose clicks share a taste that no score knows and follow the score more or less, two routes with a click
curve each, and a day whose scores lie closer together than the reference's; the curves stay, so the truth is known (2 million rows).
`by user` is the interval that is served, `by row` the same with every row a user of its own. NannyML runs in the interpreter that is
named (`pip install -c constraints.txt nannyml` in a venv of its own), on the same rows, with its usage logging off; its interval is
three standard errors wide to either side. What it costs is told too: CPU seconds and memory of its import, and the size of its venv's
packages (leave out of that venv what hap has anyway, by a .pth file that names hap's, and it is what NannyML adds).
"""

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, Python looks beside it alone

import numpy as np

from hap.monitoring.estimate import Exposed, quality, soft_auc
from hap.tables import table

EACH, PER_USER = 6, 3.3  # exposures of a request, requests of a user
WIDTH = 0.6  # of the day's logits; the reference's is 1
TASTE, STEEP = 1.0, (-0.5, 2.5)  # what users' clicks differ by: spread of their level, range of how they follow the score

NANNYML = """
import json, os, sys, sysconfig, time, warnings
os.environ.update(NML_DISABLE_USAGE_LOGGING="1", DO_NOT_TRACK="1")
begun = time.process_time()
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import nannyml
spent, memory = time.process_time() - begun, int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
import numpy as np, pandas as pd
from pathlib import Path
found = []
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for path in sorted(Path(sys.argv[1]).glob("*.npz")):
        rows = np.load(path)
        sides = []
        for side in ("reference", "day"):
            p = 1 / (1 + np.exp(-rows[side]))
            sides.append(pd.DataFrame({"p": p, "guess": (p > 0.5).astype(int), "clicked": rows[side + "_clicked"].astype(int)}))
        estimator = nannyml.CBPE(
            metrics=["roc_auc"], y_pred_proba="p", y_pred="guess", y_true="clicked",
            problem_type="classification_binary", chunk_number=1,
        )
        told = estimator.fit(sides[0]).estimate(sides[1].drop(columns="clicked")).filter(period="analysis").to_df()["roc_auc"].iloc[0]
        found.append([float(told[name]) for name in ("value", "lower_confidence_boundary", "upper_confidence_boundary")])
folder = Path(sysconfig.get_paths()["purelib"])
held = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
cost = {"version": nannyml.__version__, "import_cpu_s": spent, "import_rss_mib": memory / 1024, "venv_mib": held / 2**20}
print(json.dumps(cost | {"found": found}))
"""


def exposures(rng: np.random.Generator, requests: int, users: int, width: float) -> Exposed:
    """Exposed candidates with their clicks."""
    user = np.repeat(rng.integers(0, users, requests), EACH)
    logit, taste = rng.normal(size=len(user)) * width, (rng.normal(size=users) * TASTE)[user]
    steep = rng.uniform(*STEEP, size=users)[user]
    routed = rng.random(len(user)) < 0.6
    click = np.where(routed, steep * logit - 0.5, 0.5 * steep * logit - 1.5) + taste
    clicked = (rng.random(len(user)) < 1 / (1 + np.exp(-click))).astype(np.float64)
    return Exposed(np.where(routed, np.logaddexp(0, logit), -np.logaddexp(0, -logit)), user, clicked, requests)


def estimates(days: int, requests: int, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Value and bounds of every day by each way, [days, 3], and the truth by figure; the rows are left in the folder."""
    whole = exposures(np.random.default_rng(0), 2_000_000 // EACH, 2_000_000 // EACH, WIDTH)
    users = int(requests / PER_USER)
    truth = {"auc": soft_auc(whole.score, whole.clicked).value, "click rate": float(whole.clicked.mean())}
    found: dict[str, list[list[float]]] = {}
    for number in range(days):
        rng = np.random.default_rng([1, number])
        reference, day = exposures(rng, requests, users, 1.0), exposures(rng, requests, users, WIDTH)
        day = dataclasses.replace(day, user=day.user + users)
        np.savez(
            folder / f"{number:04}.npz",
            reference=reference.score, reference_clicked=reference.clicked, day=day.score, day_clicked=day.clicked,
        )  # fmt: skip
        alone = [dataclasses.replace(side, user=np.arange(len(side.user)) + start) for side, start in ((reference, 0), (day, 10**6))]
        for way, sides in (("by user", (reference, day)), ("by row", alone)):
            told = quality(*sides, labelled=False)
            assert told is not None  # fifteen hundred clicks a side
            for figure, one in (("auc", told.estimate), ("click rate", told.rate[1])):
                half = one.half_width()
                found.setdefault(f"{figure}, {way}", []).append([one.value, one.value - half, one.value + half])
    return {name: np.array(rows) for name, rows in found.items()}, truth


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--days", type=int, default=200, help="simulated pairs of a reference and a day (default 200)")
    parser.add_argument("--requests", type=int, default=500, help="of each side (default 500)")
    parser.add_argument("--nannyml", type=Path, help="the Python of a venv that holds nannyml")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of text")
    args = parser.parse_args()
    about: dict[str, Any] = {name: version(name) for name in ("numpy", "scipy")}
    about |= {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    about |= {"days": args.days, "requests": args.requests, "exposures of each": EACH}
    with tempfile.TemporaryDirectory(prefix="hap-estimate-") as folder:
        begun = time.process_time()
        found, truth = estimates(args.days, args.requests, Path(folder))
        about["cpu_ms_of_ours"] = round((time.process_time() - begun) / args.days / 2 * 1000, 1)
        if args.nannyml:
            done = subprocess.run([args.nannyml, "-c", NANNYML, folder], check=True, stdout=subprocess.PIPE, cwd=folder)
            theirs = json.loads(done.stdout.splitlines()[-1])
            found["auc, nannyml"] = np.array(theirs.pop("found"))
            about |= {f"nannyml_{name}": value if isinstance(value, str) else round(value, 1) for name, value in theirs.items()}
    rows = []
    for name, told in found.items():
        right = truth[name.partition(",")[0]]
        error, inside = told[:, 0] - right, (told[:, 1] <= right) & (right <= told[:, 2])
        half = (told[:, 2] - told[:, 1]).mean() / 2
        rows.append([name, f"{right:.4f}", f"{error.mean():+.4f}", f"{error.std():.4f}", f"{half:.4f}", f"{inside.mean():.3f}"])
    heads = ["figure", "truth", "bias", "spread", "half-width", "coverage"]
    if args.json:
        print(json.dumps({"environment": about, "rows": [dict(zip(heads, row, strict=True)) for row in rows]}, indent=2))
        return 0
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(table(heads, rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
