"""What a retrain leaves in MLflow: parameters, metrics by step and by epoch, what was seen of the conflict, run.yaml, the environment."""

import datetime as dt
from pathlib import Path
from typing import Any

import orjson
import pytest

from flows import record
from hap import durable
from hap.params import MODELS, NEGATIVES, Params
from hap.registry import mlflow_store, versions
from hap.serving.bundle import MEASURED, PROMISED, SCHEMA, seal_bundle, write_schema
from hap.training.run import write_run
from hap.workspace import Workspace

DAY = dt.date(2026, 1, 3)
WINDOW = [dt.date(2026, 1, 1), dt.date(2026, 1, 2)]
GAUCS = [{"EN": 0.5, "RN": 0.6, "PRN": None, "GN": 0.8}, {"EN": 0.55, "RN": 0.65, "PRN": 0.75, "GN": 0.85}]
FACTS = {"best_epoch": 2, "parameters": 99, "dense_parameters": 9, "warm_parameters": 4, "heldout_gauc_by_epoch": GAUCS}
CURVES = {
    "steps": [{"step": 20, "EN": 1.5, "bce": 0.4}, {"step": 40, "EN": 1.2, "bce": 0.3}],
    "conflict": [
        {"step": 0, "norm": {"EN": 2.0, "GN": 0.1}, "pull": {"EN": 0.9, "GN": 0.2}, "cosine": {"EN|GN": -0.5}},
        {"step": 30, "norm": {"EN": 1.0}, "pull": {"EN": 0.8}, "cosine": {}},
    ],
}


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory, default_params: Params) -> Workspace:
    """A workspace as it stands when a retrain has been exported, without models."""
    ws = Workspace(tmp_path_factory.mktemp("record") / "ws")
    ws.state.mkdir(parents=True)
    durable.write_json(ws.window_file, {"days": []})
    write_run(ws, default_params, DAY, WINDOW, [DAY])
    for name in MODELS:
        durable.write_json(ws.models / name / "model.json", FACTS)
        durable.write_json(ws.models / name / "curves.json", CURVES)
        durable.write_json(ws.spent / f"{name}.json", {"wall_s": 3.0, "cpu_s": 2.5, "peak_mb": 500.0})
    durable.write_json(ws.root / "metrics.json", {name: {"gauc": dict.fromkeys(NEGATIVES, 0.7), "auc": {}} for name in MODELS})
    for name in (*PROMISED, *MEASURED):
        durable.write_text(ws.bundle / name, "{}" if name.endswith(".json") else "bytes")
    (ws.bundle / SCHEMA).unlink()
    write_schema(ws.bundle, default_params.features, default_params.route)
    seal_bundle(ws.bundle, {"day": str(DAY)})
    return ws


@pytest.mark.long  # makes an MLflow database
def test_everything_of_a_training_is_in_mlflow(ws: Workspace, default_params: Params, tmp_path: Path) -> None:
    version = record.register(ws, default_params, DAY, "a" * 40)
    with mlflow_store.connect(ws, default_params) as client:
        run = client.get_run(versions.get(ws, default_params, version).run_id)

        def history(metric: str) -> list[tuple[int, float]]:
            return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, metric)]

        files = {entry.path for entry in client.list_artifacts(run.info.run_id)}
        training: dict[str, Any] = orjson.loads(
            Path(client.download_artifacts(run.info.run_id, record.TRAINING, str(tmp_path))).read_bytes()
        )
        for name in MODELS:
            assert history(f"{name}.loss.EN") == [(20, 1.5), (40, 1.2)]
            assert history(f"{name}.loss.bce") == [(20, 0.4), (40, 0.3)]
            assert history(f"{name}.heldout_gauc.EN") == [(1, 0.5), (2, 0.55)]
            assert history(f"{name}.heldout_gauc.PRN") == [(2, 0.75)], "an undefined GAUC is no point"
            assert history(f"{name}.gradient_norm.EN") == [(0, 2.0), (30, 1.0)]
            assert history(f"{name}.gradient_cosine.EN-GN") == [(0, -0.5)]
            assert history(f"{name}.logit_pull.GN") == [(0, 0.2)]
    assert run.data.params["train.learning_rate"] == "0.001" and run.data.params["window"] == '["2026-01-01","2026-01-02"]'
    assert {name: run.data.metrics[f"light.{name}"] for name in ("gauc.RN", "best_epoch", "warm_parameters", "train_cpu_s")} == {
        "gauc.RN": 0.7,
        "best_epoch": 2.0,
        "warm_parameters": 4.0,
        "train_cpu_s": 2.5,
    }
    assert {"bundle", "run.yaml", "metrics.json", record.TRAINING, "conflict-light.png", "conflict-expressive.png"} <= files
    assert training["environment"]["python"] and "torch" in training["environment"]["packages"]
    assert training["params"] == default_params.model_dump(mode="json")


def test_a_training_that_looked_at_no_conflict_has_no_picture_of_it(tmp_path: Path) -> None:
    assert record._pictures({"light": {"conflict": []}}, tmp_path, "bce") == {}
    curves = record.curves_of({"light": {"steps": [], "conflict": []}}, {"light": FACTS})
    assert set(curves) == {f"light.heldout_gauc.{kind}" for kind in NEGATIVES}
