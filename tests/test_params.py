"""params.yaml: defaults that hold, and one clear line for every mistake."""

import re
from pathlib import Path

import pytest
import yaml

from hap.errors import ConfigError
from hap.params import Params, load_params, resolve
from hap.project import project_file


def raw() -> dict:
    return yaml.safe_load(project_file("params.yaml").read_text())


def test_the_projects_own_file_is_sound_and_resolving_it_again_changes_nothing(default_params: Params) -> None:
    assert resolve(default_params.model_dump(mode="json"), "again") == default_params


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("train.epoch", 3, ["train.epoch", "'epochs'"]),
        ("gates", {}, ["gates", "'gate'"]),
        ("gate.floors.XX", 0.5, ["gate.floors.XX"]),
        ("train.epochs", 0, ["train.epochs", "'0'"]),
        ("route", {"share": 0.3, "k": 5}, ["exactly one"]),
        ("route", {"share": None, "k": None}, ["exactly one"]),
        ("light.size", 17, ["light.size", "multiple of 8"]),
        ("expressive.distill", 1.0, ["expressive.distill"]),
        ("light.train_kinds", [], ["light.train_kinds", "at least one of EN, RN, PRN, GN"]),
        ("expressive.train_kinds", ["EP"], ["expressive.train_kinds: takes `all`", "['EP']"]),
        ("expressive.train_kinds", "EN", ["expressive.train_kinds: takes `all`", "'EN'"]),
        ("loss", {"name": "bce", "bce_weight": 0}, ["loss bce", "light", "loss.bce_weight"]),
        ("loss", {"name": "ghcl", "kind_weights": {"EN": 0, "RN": 0, "PRN": 0, "GN": 0}}, ["loss ghcl", "every term weighs 0"]),
        ("train.surgery", "pcgrads", ["train.surgery", "pcgrad"]),
        ("train", {"sampling": "conflict", "conflict_steps": 0}, ["train", "sampling conflict", "conflict_steps: 0"]),
        ("loss.temperature", float("inf"), ["loss.temperature", "finite", "'inf'"]),
        ("loss.kind_weights", {"EN": float("inf")}, ["loss.kind_weights.EN", "finite", "'inf'"]),
        ("train.learning_rate", float("nan"), ["train.learning_rate", "'nan'"]),
        ("loss", {"name": "bce", "weighting": "uncertainty"}, ["loss", "uncertainty", "bce", "ghcl"]),
        ("loss", {"name": "infonce+bce", "weighting": "curriculum"}, ["loss", "curriculum", "infonce+bce"]),
        ("loss", {"weighting": "curriculum", "curriculum_epochs": 8}, ["loss.curriculum_epochs 8", "train.epochs 8"]),
        ("train.processes", 17, ["train", "processes 17", "pool_row_groups: 16"]),
        ("schedule.timezone", "Mars/Olympus", ["schedule.timezone", "Mars/Olympus"]),
        ("schedule.cron", "0 3", ["schedule.cron", "five fields"]),
        ("features.user", [{"name": "user_id", "type": "id"}], ["user_id", "rows"]),
        ("features.item", [{"name": "price", "type": "dense"}], ["item_id"]),
        ("features.history", [{"name": "author_id", "type": "id", "rows": 4000}], ["features.history", "item_id"]),
        ("features.user", [{"name": "request_id", "type": "id", "rows": 9}], ["request_id"]),
        ("features.history", [{"name": "item_id", "type": "id", "rows": 7}], ["item_id", "rows"]),
    ],
)
def test_a_mistake_is_one_line_that_names_key_and_rule(path: str, value: object, words: list[str]) -> None:
    values, place = raw(), None
    place = values
    *parents, last = path.split(".")
    for parent in parents:
        place = place.setdefault(parent, {})
    place[last] = value
    with pytest.raises(ConfigError) as refusal:
        resolve(values, "params.yaml")
    message = str(refusal.value)
    assert "\n" not in message
    assert all(word in message for word in ["params.yaml", *words]), message


def test_a_rule_between_keys_is_not_buried_under_the_whole_section() -> None:
    values = raw()
    values["train"]["processes"] = 17
    with pytest.raises(ConfigError) as refusal:
        resolve(values, "params.yaml")
    assert str(refusal.value).endswith("set pool_row_groups to 17 or more, or take fewer processes")


def test_a_model_of_kinds_that_all_weigh_nothing_is_refused_by_name() -> None:
    values = raw()
    values["loss"] = {"name": "ghcl", "kind_weights": {"EN": 0, "RN": 0}}
    assert resolve(values, "params.yaml").loss.kind_weights == {"EN": 0, "RN": 0}, "the others weigh 1"
    values["expressive"]["train_kinds"] = ["EN", "RN"]
    with pytest.raises(ConfigError, match=r"loss ghcl gives expressive nothing to learn from.* of EN, RN"):
        resolve(values, "params.yaml")


@pytest.mark.parametrize("section", ["drift", "funnel", "estimate", "skew", "staleness", "traffic", "labels", "alerts"])
def test_every_number_of_the_watch_says_what_it_counts_and_why(section: str, default_params: Params) -> None:
    fields = type(getattr(default_params, section)).model_fields
    numbers = [name for name, value in getattr(default_params, section) if isinstance(value, int | float) and not isinstance(value, bool)]
    bare = [name for name in numbers if not re.search(r"\w[:;,.] \w.{12}", fields[name].description or "")]
    assert bare == [], "hap/params/watching.py: a unit and a reason, one after the other"


def test_absent_and_broken_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hapctl init"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not YAML"):
        load_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="must hold keys"):
        load_params(tmp_path / "params.yaml")


def test_surgery_and_learned_weights_refuse_each_other() -> None:
    values = raw()
    values["loss"]["weighting"] = "uncertainty"
    values["train"]["surgery"] = "pcgrad"
    with pytest.raises(ConfigError, match=r"train\.surgery pcgrad and loss\.weighting uncertainty") as refusal:
        resolve(values, "params.yaml")
    assert "\n" not in str(refusal.value)


def test_sampling_by_conflict_needs_looks_at_it() -> None:
    values = raw()
    values["train"] |= {"sampling": "conflict", "conflict_steps": 0}
    with pytest.raises(ConfigError, match=r"conflict_steps: 0 never looks") as refusal:
        resolve(values, "params.yaml")
    assert "\n" not in str(refusal.value)


SECRET = "xoxb-s3cr3t"


@pytest.mark.parametrize(
    "alerts",
    [
        {"page": [f"slack://{SECRET}/#night"]},
        {"page": f"slack://{SECRET}/#night"},
        {"page": [{"url": f"slack://{SECRET}"}]},
        {"page": [SECRET]},
        {f"slack://{SECRET}": ["HAP_ALERTS_PAGE"]},
        {"grow": f"slack://{SECRET}"},
        f"slack://{SECRET}/#night",
        [f"slack://{SECRET}/#night"],
    ],
)
def test_a_url_among_the_alerts_is_refused_in_one_line_that_does_not_repeat_it(alerts: object) -> None:
    with pytest.raises(ConfigError, match="alerts") as refusal:
        resolve({**raw(), "alerts": alerts}, "params.yaml")
    message = str(refusal.value)
    assert SECRET not in message and "\n" not in message
    assert refusal.value.__cause__ is None and refusal.value.__suppress_context__


def test_a_url_says_where_it_belongs_and_a_misspelt_key_its_neighbour() -> None:
    with pytest.raises(ConfigError, match=r"alerts\.page.* no URL, since a URL holds a secret.*export HAP_ALERTS_PAGE=URL"):
        resolve({**raw(), "alerts": {"page": ["json://127.0.0.1"]}}, "params.yaml")
    with pytest.raises(ConfigError, match=r"unknown key 'alerts\.pages'; did you mean 'page'"):
        resolve({**raw(), "alerts": {"pages": ["HAP_ALERTS_PAGE"]}}, "params.yaml")
    with pytest.raises(ConfigError, match=r"alerts\.attempts: .*greater than or equal to 1"):
        resolve({**raw(), "alerts": {"attempts": 0}}, "params.yaml")


def test_a_file_that_is_not_yaml_is_told_without_the_url_in_it(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(f"alerts: {{page: [slack://{SECRET}/x]\nseed: 1\n")
    with pytest.raises(ConfigError, match="not YAML") as refusal:
        load_params(tmp_path / "params.yaml")
    assert SECRET not in str(refusal.value)
