"""The reproducible stages that dvc.yaml names: `python -m hap.training train light|expressive` and `... evaluate`.

They run in the workspace's folder and take everything from run.yaml. A line that starts with
`hap:progress` is for the caller's progress bar.
"""

import os
import sys

import orjson

# A spinning thread on a busy core costs more than it brings; read by OpenMP when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from hap.errors import HapError, UsageError
from hap.params import MODELS
from hap.workspace import find_workspace


def main(words: list[str]) -> int:
    """Run one stage; a refusal is one line on stderr."""
    try:
        return _stage(words)
    except HapError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _stage(words: list[str]) -> int:
    from hap.models.build import save_model
    from hap.training.feed import window_files
    from hap.training.heldout import evaluate
    from hap.training.loop import Epoch, train
    from hap.training.run import read_run

    ws = find_workspace(None)
    run = read_run(ws)
    if words == ["evaluate"]:
        evaluate(ws, run)
        return 0
    if len(words) != 2 or words[0] != "train" or words[1] not in MODELS:
        raise UsageError(f"{' '.join(words)!r} is no stage; write `train light`, `train expressive` or `evaluate`")
    name = words[1]

    def report(epoch: Epoch) -> None:
        shown = {"model": name, "epoch": epoch.number, "of": epoch.of, "loss": epoch.loss, "samples_per_s": epoch.samples_per_s}
        print("hap:progress " + orjson.dumps(shown | {"gauc": epoch.gauc}).decode(), flush=True)

    trained = train(name, run.params, window_files(ws, run.window), report)
    save_model(trained.model, ws.models / name, trained.facts | {"window": list(run.window), "seed": run.params.seed})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
