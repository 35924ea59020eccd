"""hapctl's words: quick to load, explained, and one line for a user's mistake."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
import typer.main

from hap.cli.main import app
from hap.errors import DataError
from hap.workspace import Workspace, init_workspace
from tests.cli.conftest import Run

HEAVY = ("torch", "mlflow", "prefect", "evidently", "dvc", "pandas")
WORDS = {
    *("init", "simulate", "import", "collect", "show"),
    *("demo", "describe", "train", "evaluate", "export", "gate", "retrain", "backfill", "schedule"),
    *("models", "parity", "promote", "rollback", "freeze", "unfreeze", "ledger", "restore", "gc"),
    *("serve", "stop", "score", "shadow"),
    *("drift", "watch", "status", "doctor", "alerts", "ack", "snooze"),
}


@pytest.fixture(scope="module")
def ws(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return init_workspace(tmp_path_factory.mktemp("cli") / "ws")


def commands() -> Iterator[tuple[str, object]]:
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        for inner, nested in getattr(command, "commands", {"": command}).items():
            yield f"{name} {inner}".strip(), nested


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, runpy; sys.argv = ['hapctl', '--help']\n"
    code += "try: runpy.run_module('hap.cli', run_name='__main__')\nexcept SystemExit: pass\n"
    code += f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert all(word in done.stdout for word in WORDS)


def test_every_word_of_the_manual_exists_with_help_and_an_example() -> None:
    found = dict(commands())
    assert {name.split()[0] for name in found} == WORDS
    for name, command in found.items():
        assert "Example: hapctl" in (command.help or ""), name  # type: ignore[attr-defined]
        for option in command.params:  # type: ignore[attr-defined]
            assert getattr(option, "help", None), f"{name} {option.name}"


def test_reading_words_have_json_and_changing_ones_a_dry_run() -> None:
    options = {name: {flag for option in command.params for flag in option.opts} for name, command in commands()}  # type: ignore[attr-defined]
    for name in (
        "models",
        "parity",
        "show",
        "ledger",
        "status",
        "doctor",
        "drift",
        "score",
        "shadow",
        "evaluate",
        "gate run",
        "describe",
        "gc",
        "alerts",
        "watch",
    ):
        assert "--json" in options[name], name
    for name in ("init", "demo", "simulate", "import recflow", "collect", "train", "export", "gate run", "retrain", "backfill", "promote",
                 "rollback", "freeze", "unfreeze", "gc", "restore", "serve", "stop", "schedule", "ack", "snooze", "drift", "shadow",
                 "watch"):  # fmt: skip
        assert "--dry-run" in options[name], name
    for name in set(options) - {"init", "demo"}:
        assert "--root" in options[name], name


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["retrain", "--day", "yesterday"], 2, "YYYY-MM-DD"),
        (["retrain", "--day", "2026-01-03"], 1, "no logs"),
        (["collect", "--day", "2026-01-03"], 1, "no logs"),
        (["backfill", "--from", "2026-01-04", "--to", "2026-01-03"], 2, "backwards"),
        (["promote", "--model", "v7"], 1, "v7 is not registered"),
        (["parity", "--model", "v7"], 1, "v7 is not registered"),
        (["promote", "--model", "latest"], 2, "write it as v42"),
        (["promote", "--model", "v1", "--force"], 2, "--reason"),
        (["rollback"], 1, "nothing to roll back to"),
        (["freeze", "--reason", " "], 2, "freeze needs a reason"),
        (["ledger", "--at", "noon"], 2, "2026-01-31T14:30"),
        (["show", "v3"], 1, "v3 is not registered"),
        (["show", "2026-01-03"], 1, "hapctl collect --day 2026-01-03"),
        (["gate", "run", "--model", "v1"], 1, "v1 is not registered"),
        (["restore", "v1", "--into", "/nonexistent/x"], 1, "v1 is not registered"),
        (["drift", "--day", "2026-01-03"], 1, "no champion yet"),
        (["drift", "--from", "2026-01-03", "--to", "2026-01-04"], 1, "no champion yet"),
        (["drift", "--from", "2026-01-04", "--to", "2026-01-03"], 2, "backwards"),
        (["drift"], 2, "write --day D, or --from D1 --to D2"),
        (["drift", "--from", "2026-01-03"], 2, "write --day D, or --from D1 --to D2"),
        (["drift", "--day", "2026-01-03", "--to", "2026-01-04"], 2, "write --day D, or --from D1 --to D2"),
        (["score", "--from-day", "2026-01-03"], 1, "hapctl serve"),
        (["shadow", "--model", "v2"], 2, "serving.log_to"),
        (["shadow", "--model", "v2", "--log", "/nonexistent"], 1, "hapctl serve"),
        (["ack", "input:cand_price"], 1, "no incident 'input:cand_price' is open; none is"),
        (["snooze", "input:cand_price", "--until", "8h"], 1, "no incident 'input:cand_price' is open"),
        (["snooze", "input:cand_price", "--until", "tomorrow"], 2, "30m, 8h or 2d"),
        (["score"], 2, "FILE"),
        (["retrain", "--day", "0001-01-01"], 2, "1970"),
        (["simulate", "--from", "9999-12-30"], 2, "1970"),
        (["train"], 2, "--day"),
        (["import", "recflow", "/nonexistent"], 1, "/nonexistent"),
        (["simulate", "--from", "soon"], 2, "YYYY-MM-DD"),
    ],
)
def test_a_mistake_is_one_line_with_its_exit_code(hapctl: Run, ws: Workspace, words: list[str], code: int, said: str) -> None:
    found, out, err = hapctl(*words, "--root", ws.root)
    assert (found, out) == (code, "")
    assert said in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1, err


def test_an_unknown_key_is_one_line_with_the_nearest_one(hapctl: Run, tmp_path: Path) -> None:
    ws = init_workspace(tmp_path / "ws")
    ws.params_file.write_text(ws.params_file.read_text().replace("epochs: 8", "epoch: 8"))
    code, _, err = hapctl("retrain", "--day", "2026-01-03", "--root", ws.root)
    assert code == 1
    assert "'train.epoch'; did you mean 'epochs'?" in err
    assert err.count("\n") == 1


def test_a_params_file_that_is_not_utf8_is_one_line(hapctl: Run, tmp_path: Path) -> None:
    ws = init_workspace(tmp_path / "ws")
    ws.params_file.write_bytes(b"seed: 1 # \xff\n")
    code, _, err = hapctl("status", "--root", ws.root)
    assert (code, err.count("\n")) == (1, 1)
    assert "not UTF-8" in err


def test_a_defect_is_one_line_that_names_its_traceback(hapctl: Run, ws: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))

    def broken(_: Workspace) -> None:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr(Workspace, "params", broken)
    code, _, err = hapctl("models", "--root", ws.root)
    assert (code, err.count("\n")) == (1, 1)
    assert "ZeroDivisionError: a b" in err
    assert "in broken" in Path(err.split("its traceback is in ")[1].strip()).read_text()


def test_no_workspace_is_told_with_the_word_that_makes_one(hapctl: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HAP_ROOT", raising=False)
    code, _, err = hapctl("status")
    assert code == 1
    assert "hapctl init" in err


def test_typos_in_words_and_options_are_usage_errors(hapctl: Run) -> None:
    assert hapctl("promot")[0] == 2
    assert hapctl("promote", "--modle", "v1")[0] == 2


def test_a_demo_with_an_unknown_fault_makes_nothing(hapctl: Run, tmp_path: Path) -> None:
    code, _, err = hapctl("demo", "--root", tmp_path / "demo", "--fault", "nope")
    assert (code, err.count("\n")) == (2, 1) and "there is no such fault; known: " in err
    assert not (tmp_path / "demo").exists()


def test_dry_runs_say_and_change_nothing(hapctl: Run, ws: Workspace, tmp_path: Path) -> None:
    for words in (["init", tmp_path / "new"], ["simulate", "--root", tmp_path / "new"], ["demo", "--root", tmp_path / "new"]):
        code, out, _ = hapctl(*words, "--dry-run")
        assert code == 0
        assert out.startswith("would ")
    assert not (tmp_path / "new").exists()
    assert "would serve" in hapctl("serve", "--dry-run", "--root", ws.root)[1]


def test_a_dry_training_names_the_teacher_that_it_would_train_first(hapctl: Run, tmp_path: Path) -> None:
    words = ("train", "light", "--day", "2026-01-03", "--dry-run", "--root", tmp_path / "ws")
    hapctl("init", tmp_path / "ws")
    assert hapctl(*words)[1] == "would train light on the window before 2026-01-03\n"
    path = tmp_path / "ws" / "params.yaml"
    path.write_text(path.read_text().replace("light: {", "light: {distill: 1.0, "))
    assert hapctl(*words)[1] == "would train expressive and light on the window before 2026-01-03\n"


def test_answers_are_json_where_asked(hapctl: Run, ws: Workspace) -> None:
    assert orjson.loads(hapctl("status", "--json", "--root", ws.root)[1])["champion"] is None
    assert orjson.loads(hapctl("models", "--json", "--root", ws.root)[1]) == []
    assert orjson.loads(hapctl("ledger", "--json", "--root", ws.root)[1]) == []
    assert orjson.loads(hapctl("alerts", "--json", "--root", ws.root)[1]) == []
    assert {finding["check"] for finding in orjson.loads(hapctl("doctor", "--json", "--root", ws.root)[1])} >= {
        "platform",
        "triton",
        "ledger",
    }


def test_score_names_what_is_wrong_with_a_line(hapctl: Run, ws: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hap.cli import serving

    for content in (b'{"a": ', b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}"):
        (tmp_path / "lines").write_bytes(b"{}\n" + content + b"\n")
        lines = serving._lines(tmp_path / "lines")
        assert next(lines) == (f"{tmp_path / 'lines'}, line 1", {})
        with pytest.raises(DataError, match="line 2: not JSON"):
            next(lines)


def test_a_demo_never_replaces_what_is_not_a_demo(hapctl: Run, ws: Workspace) -> None:
    code, _, err = hapctl("demo", "--root", ws.root)
    assert code == 2
    assert "not an earlier demo" in err
    assert (ws.root / "params.yaml").exists()


def test_simulate_collect_show(hapctl: Run, tmp_path: Path) -> None:
    root = tmp_path / "ws"
    assert hapctl("simulate", "--root", root, "--days", 1, "--requests-per-day", 30)[0] == 0
    code, out, _ = hapctl("collect", "--root", root, "--day", "2026-01-01", "--json")
    assert code == 0
    manifest = orjson.loads(out)
    shown = orjson.loads(hapctl("show", "2026-01-01", "--root", root, "--json")[1])
    assert shown["samples_hash"] == manifest["samples_hash"]
    assert shown["trained"] == []
    assert "Rank-50" in hapctl("show", "2026-01-01", "--root", root)[1]
    code, _, err = hapctl("simulate", "--root", root, "--days", 1)
    assert code == 2
    assert "holds candidates of 2026-01-01 already" in err
