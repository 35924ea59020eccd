"""What a workspace is made from travels with the wheel, and a code change is noticed."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from hap.project import package_digest, project_file


def test_the_stages_name_params_that_exist(default_params) -> None:
    stages = yaml.safe_load(project_file("dvc.yaml").read_text())["stages"]
    known = {"window", "hap_digest", "warm_start", "teacher.${item"} | {f"params.{name}" for name in type(default_params).model_fields}
    for name, stage in stages.items():
        for entry in stage["params"]:
            for key in entry["run.yaml"]:
                top = ".".join(key.split(".")[:2])
                assert top in known or top == "params.${item", f"{name}: {key}"
    assert not any("samples" in dep for stage in stages.values() for dep in stage["deps"]), "window.json stands for the samples"


def test_the_digest_covers_every_source() -> None:
    assert len(package_digest()) == 64


@pytest.mark.long
def test_the_wheel_carries_what_stands_at_the_top_of_the_project(tmp_path: Path) -> None:
    top = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(top)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("hap-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"hap/project/docs/runbook.md", "hap/pages/drift.html", "hap/pages/index.html", "hap/pages/style.css"} <= names
    assert {"hap/project/dvc.yaml", "hap/project/params.yaml", "hap/project/triton_repo/runner.py", "flows/daily.py"} <= names
    assert not [name for name in names if name.startswith("tests/")]
