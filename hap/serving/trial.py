"""Runs a folder's graphs on its golden requests, saying which before each: `python -m hap.serving.trial FOLDER`.

A process of its own, because a graph that ONNX Runtime fuses badly ends the process instead of raising.
"""

import sys
from pathlib import Path

import orjson

from hap.params import Features, Route
from hap.serving.bundle import GOLDEN, SCHEMA, Bundle, read_golden
from hap.serving.session import BundleSession


def main(folder: Path) -> int:
    """Smallest requests first: N = 0 and 1 are where graphs die."""
    schema = orjson.loads((folder / SCHEMA).read_bytes())
    print("loading", flush=True)
    session = BundleSession(Bundle(folder, Features.model_validate(schema["features"]), Route.model_validate(schema["route"]), "", {}))
    for golden in sorted(read_golden(folder / GOLDEN), key=lambda entry: entry.tensors.candidates):
        for name, run in (("light", session.light), ("hap", session.score), ("expressive_all", session.score_all)):
            print(f"{name}, {golden.name} ({golden.tensors.candidates} candidates)", flush=True)
            run(golden.tensors)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
