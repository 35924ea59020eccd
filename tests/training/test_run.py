"""What run.yaml says of a light model's teacher."""

import datetime as dt
from pathlib import Path
from typing import Any

import pytest
import yaml

from hap import durable
from hap.errors import NotFound
from hap.params import Params
from hap.training.run import teacher_folder, write_run
from hap.workspace import Workspace

DAY = dt.date(2026, 1, 3)
WINDOW = [dt.date(2026, 1, 2)]


def written(ws: Workspace, params: Params, distill: float, size: int) -> dict[str, Any]:
    changes = {
        "light": params.light.model_copy(update={"distill": distill}),
        "expressive": params.expressive.model_copy(update={"size": size}),
    }
    write_run(ws, params.model_copy(update=changes), DAY, WINDOW, [DAY])
    return dict(yaml.safe_load(ws.run_file.read_text())["teacher"])


def test_the_teachers_recipe_counts_only_where_there_is_a_teacher(tmp_path: Path, small_params: Params) -> None:
    ws = Workspace(tmp_path)
    alone, also_alone = written(ws, small_params, 0.0, 16), written(ws, small_params, 0.0, 24)
    assert alone == also_alone == {"light": None, "expressive": None}
    taught, otherwise = written(ws, small_params, 1.0, 16), written(ws, small_params, 1.0, 24)
    assert taught["light"] != otherwise["light"]
    assert taught["expressive"] is None


@pytest.mark.parametrize("facts", [None, {"window": ["2026-01-01"], "seed": 1}, {"window": ["2026-01-02"], "seed": 9}])
def test_a_teacher_of_another_run_is_refused_in_one_line(tmp_path: Path, small_params: Params, facts: dict[str, Any] | None) -> None:
    ws = Workspace(tmp_path)
    run = write_run(ws, small_params, DAY, WINDOW, [DAY])
    if facts:
        durable.write_json(ws.models / "expressive" / "model.json", facts)
    with pytest.raises(NotFound, match=r"hapctl train expressive --day 2026-01-03") as refusal:
        teacher_folder(ws, run)
    assert "\n" not in str(refusal.value)
    durable.write_json(ws.models / "expressive" / "model.json", {"window": ["2026-01-02"], "seed": small_params.seed})
    assert teacher_folder(ws, run) == ws.models / "expressive"
