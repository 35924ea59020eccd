"""What is compared in speed trains the same network on the same samples: every system begins with one loss."""

import argparse
import json
from pathlib import Path

import pytest

from benchmarks import train, train_systems
from benchmarks.train_systems import Clock
from hap.params import Params, resolve

HERE = ("hap", "naive", "flat", "hap-flat", "hap-loader", "hap-sparse", "hap-dense")  # the libraries have an environment of their own
ROWS = 500


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What benchmarks/train.py prepares, of two small days and models: several batches."""
    folder = tmp_path_factory.mktemp("scratch")
    sizes = {"light_size": 16, "expressive_size": 16}
    train.prepare(folder, argparse.Namespace(rows=[ROWS], device="cpu", days=2, requests=150, seed=1, **sizes))
    return folder


def params_of(scratch: Path) -> Params:
    path = scratch / f"params-{ROWS}.json"
    return resolve(json.loads(path.read_text()), str(path))


@pytest.mark.parametrize("model", ["light", "expressive"])
def test_every_system_begins_with_the_same_loss(model: str, scratch: Path) -> None:
    losses = {}
    for name in HERE:
        clock = Clock(0.0, "cpu")
        losses[name] = train_systems.SYSTEMS[name](model, params_of(scratch), scratch, clock)
        assert clock.samples > 0 < clock.seconds and clock.steps == train_systems.LEAST
    assert train.differing(losses) == [], losses


def test_all_compute_in_one_precision_whatever_the_device_has(scratch: Path) -> None:
    """What a GPU would make hap do by itself, done here: its loss is no longer that of the others."""
    params = params_of(scratch)
    assert params.train.precision == "fp32"
    half = params.model_copy(update={"train": params.train.model_copy(update={"precision": "bf16"})})
    losses = {
        "hap": train_systems.hap("light", half, scratch, Clock(0.0, "cpu")),
        "flat": train_systems.strong_flat("light", half, scratch, Clock(0.0, "cpu")),
    }
    assert train.differing(losses) == ["flat"]
