"""Promote: what passes, what is refused, and what it writes."""

import datetime as dt
import subprocess
import sys

import orjson
import pytest

from hap.errors import DataError, HapError, NotFound, Refused, ServingError, UsageError
from hap.registry import moves, promotion, versions
from hap.registry.ledger import Entry
from hap.serving import repository, staging
from tests.registry.conftest import NOW, judged_against_champion
from tests.registry.promotion.conftest import story
from tests.registry.promotion.faults import EVERYWHERE, answer_wrongly, with_scores


def test_a_promotion_serves_writes_two_rows_and_moves_the_alias(ws, params, server, ledger, promote) -> None:
    first = promote(1)
    second = promote(2, reason="better on RN")
    assert (first.outcome, second.outcome, second.previous) == ("served", "served", 1)
    assert server.serves() == repository.pinned(ws.triton) == ledger.served() == 2
    assert story(ledger) == [
        ("promote", "intended", None, 1),
        ("promote", "served", None, 1),
        ("promote", "intended", 1, 2),
        ("promote", "served", 1, 2),
    ]
    row = ledger.rows()[-1]
    assert (row.actor, row.reason, row.forced, row.evidence["verdict"]) == ("ann", "better on RN", False, "pass")
    assert row.evidence["replay"]["requests"] >= 4 and row.evidence["replay"]["max_abs_diff"] < 1e-5
    pairs = row.evidence["parity"]
    assert set(pairs) == {"ONNX Runtime / PyTorch", "Triton / PyTorch", "Triton / ONNX Runtime"}
    assert all(pair["max_abs_diff"] < 1e-5 and pair["misrouted"] == 0 for pair in pairs.values())
    assert any(note.startswith("parity on 6 golden requests") and "Triton / ONNX Runtime" in note for note in second.notes)
    assert versions.get_alias(ws, params, "champion") == 2
    assert repository.loaded(ws.triton) == [1, 2], "the previous version stays loaded"
    assert ledger.verify() == 4
    assert str(second) == "v2 serves in place of v1" and orjson.loads(orjson.dumps(second.as_json()))["version"] == "v2"


def test_a_new_version_is_rehearsed_before_any_caller_meets_it(ws, server, promote) -> None:
    promote(1)
    server.calls.clear()
    promote(2)
    for ensemble in ("hap", "hap_all"):
        assert server.calls.index(f"score {ensemble}_rehearsal") < server.calls.index("load hap")
    assert server.versions("hap_rehearsal") == [] and staging.staged(ws.triton) == {}


def test_the_first_version_is_rehearsed_too(server, promote) -> None:
    promote(1)
    assert server.calls.index("score hap_rehearsal") < server.calls.index("load hap")


def test_promoting_what_serves_says_so_and_writes_no_row(ledger, promote) -> None:
    promote(1)
    again = promote(1)
    assert again.outcome == "unchanged" and str(again) == "v1 is the champion already; nothing was changed"
    assert len(ledger.rows()) == 2


def test_an_unknown_version_lists_those_there_are(ledger, promote) -> None:
    with pytest.raises(NotFound, match="v7 is not registered; registered: v1, v2, v3; see `hapctl models`"):
        promote(7)
    assert ledger.rows() == []


@pytest.mark.parametrize("word", ["refuse", "undecided"])
def test_a_verdict_that_is_no_pass_refuses_with_its_reasons(ws, ledger, promote, word: str) -> None:
    versions.verdict_path(ws, 1).write_text(f'{{"version": "v1", "verdict": "{word}", "reasons": ["RN fell by .03", "too few requests"]}}')
    with pytest.raises(Refused, match=f"verdict of v1 is {word}, not pass: RN fell by .03; too few requests. .*--force --reason TEXT"):
        promote(1)
    assert ledger.rows() == []


def test_a_version_without_a_verdict_is_refused(ws, promote) -> None:
    versions.verdict_path(ws, 1).unlink()
    with pytest.raises(Refused, match="v1 has no verdict; judge it with `hapctl gate run`"):
        promote(1)


def test_force_needs_a_reason_and_the_ledger_keeps_both(ws, ledger, promote) -> None:
    versions.verdict_path(ws, 1).write_text('{"version": 1, "verdict": "undecided", "reasons": []}')
    with pytest.raises(UsageError, match="--force needs --reason TEXT"):
        promote(1, force=True)
    assert promote(1, force=True, reason="small data").forced
    row = ledger.rows()[-1]
    assert (row.forced, row.reason, row.evidence["verdict"]) == (True, "small data", "undecided")


def test_force_on_a_passed_version_is_not_recorded_as_forced(ledger, promote) -> None:
    promote(1, force=True, reason="in a hurry")
    assert not ledger.rows()[-1].forced


def test_a_freeze_stops_promotions_even_forced_ones_but_not_a_rollback(ledger, promote, rollback) -> None:
    promote(1)
    promote(2)
    ledger.freeze(actor="bo", now=NOW, reason="holiday")
    for words in ({}, {"force": True, "reason": "now"}):
        with pytest.raises(Refused, match=r"frozen since .* by bo: holiday"):
            promote(3, **words)
    assert rollback().version == 1
    ledger.unfreeze(actor="bo", now=NOW)
    assert promote(3).outcome == "served"


@pytest.mark.parametrize("how", ["down", "none"])
def test_without_a_server_promote_names_serve_and_changes_nothing(ws, params, server, ledger, promote, how: str) -> None:
    server.down = how == "down"
    with pytest.raises(ServingError, match=r"no server is ready at 127\.0\.0\.1:18001; start it with `hapctl serve"):
        promote(1, server=None if how == "none" else server)
    assert ledger.rows() == [] and not ws.triton.exists()


def test_a_dry_run_says_what_would_happen_and_changes_nothing(ws, server, ledger, promote, rollback) -> None:
    promote(1)
    assert str(promote(2, dry_run=True)) == "v2 would serve in place of v1"
    with pytest.raises(NotFound):
        rollback(dry_run=True)
    promote(2)
    assert rollback(dry_run=True).version == 1
    assert len(ledger.rows()) == 4 and server.serves() == 2


def test_offline_pins_for_the_next_start_and_serves_once_it_answers_there(ws, params, server, ledger, promote) -> None:
    promote(1)
    assert promote(2, offline=True).outcome == "pinned"
    assert (repository.pinned(ws.triton), ledger.served(), server.serves()) == (2, 1, 1)
    assert promotion.repair(ws, params, now=NOW, server=server) == [], "a server that was not restarted is as it should be"
    assert promote(2, offline=True).outcome == "unchanged"
    for model in (*repository.GRAPHS, "hap", "hap_all"):  # a new start
        server.load(model)
    assert (
        "v2, pinned by ann, was started and answers its golden requests: v2 serves"
        in promotion.repair(ws, params, now=NOW, server=server)[0]
    )
    assert ledger.served() == 2 and versions.get_alias(ws, params, "champion") == 2
    assert [state for _, state, _, _ in story(ledger)[-3:]] == ["intended", "pinned", "served"]


def test_offline_with_no_server_at_all(ws, params, ledger, promote) -> None:
    assert promote(1, server=None, offline=True).outcome == "pinned"
    assert repository.pinned(ws.triton) == 1 and ledger.served() is None


def test_a_waiting_pin_can_be_taken_back_or_made_to_serve(ws, server, ledger, promote, rollback) -> None:
    promote(1)
    promote(2, offline=True)
    assert (rollback().version, repository.pinned(ws.triton), server.serves()) == (1, 1, 1)
    promote(3, offline=True)
    assert promote(3).outcome == "served" and server.serves() == 3


def start_anew(server) -> None:
    """What a server that starts with the pins as they are loads."""
    for model in (*repository.GRAPHS, *repository.ENSEMBLES):
        server.load(model)


def test_a_pin_goes_on_waiting_behind_another_version_that_fails_and_serves_after_the_start(
    ws, params, server, ledger, promote, monkeypatch
) -> None:
    promote(1)
    promote(2, offline=True)
    with monkeypatch.context() as patch, pytest.raises(DataError, match="v1 serves as before, v2 waits for the next start"):
        patch.setattr(moves, "switch", lambda *_: (_ for _ in ()).throw(DataError("v3 fails parity")))
        promote(3)
    assert (repository.pinned(ws.triton), server.serves(), ledger.served()) == (2, 1, 1)
    assert promotion.repair(ws, params, now=NOW, server=server, alias=False) == []
    start_anew(server)
    assert promotion.repair(ws, params, now=NOW, server=server, alias=False) == [
        "v2, pinned by ann, was started and answers its golden requests: v2 serves"
    ]
    assert server.serves() == ledger.served() == 2 and promote(3).outcome == "served"


def test_a_pin_that_answers_wrongly_once_it_is_started_is_undone_for_good(ws, params, server, ledger, promote) -> None:
    promote(1)
    promote(2, offline=True)
    start_anew(server)
    answer_wrongly(server, with_scores(2.0), EVERYWHERE)
    (note,) = promotion.repair(ws, params, now=NOW, server=server, alias=False)
    assert "v2, pinned by ann, was started, but v2 fails parity" in note and note.endswith("undone, v1 serves as before")
    for _ in range(2):
        assert promotion.repair(ws, params, now=NOW, server=server, alias=False) == []
    start_anew(server)
    assert server.serves() == ledger.served() == repository.pinned(ws.triton) == 1 and promote(3).outcome == "served"


def test_rows_of_one_command_carry_the_times_at_which_they_were_written(ledger, promote) -> None:
    promote(1)
    intended, served = ledger.rows()
    assert NOW <= intended.at < served.at < NOW + dt.timedelta(minutes=5)


def test_rows_written_by_hand_do_not_confuse_the_next_promotion(ledger, promote, server) -> None:
    ledger.append(Entry(at=NOW, actor="x", action="unfreeze", state="noted"))
    promote(1)
    assert server.serves() == 1


def test_the_promotion_path_imports_neither_torch_nor_prefect_nor_mlflow() -> None:
    program = (
        "import sys, hap.registry.promotion, hap.registry.restore, hap.serving.client; "
        "print(*sorted({'torch', 'prefect', 'mlflow', 'evidently', 'dvc', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_pass_against_another_version_than_the_champion_is_refused_until_judged_again(ws, ledger, server, params, promote) -> None:
    promote(1)
    judged_against_champion(ws, params, 3)  # while v1 serves
    promote(2)
    words = {"server": server, "actor": "ann", "now": NOW}
    with pytest.raises(Refused, match=r"compares with v1, and v2 serves now: judge it again with `hapctl gate run --model v3`"):
        promotion.promote(ws, params, 3, **words)
    assert ledger.served() == 2
    assert promotion.promote(ws, params, 3, **words, force=True, reason="in a hurry").forced
    versions.verdict_path(ws, 1).write_bytes(orjson.dumps({"version": 1, "verdict": "pass", "against": None, "reasons": []}))
    with pytest.raises(Refused, match="judges floors alone"):
        promotion.promote(ws, params, 1, **words)


def test_mlflow_that_fails_after_the_switch_leaves_a_note_and_is_repaired(ws, params, server, promote, monkeypatch) -> None:
    promote(1)

    def away(*_: object) -> None:
        raise HapError("MLflow refused")

    with monkeypatch.context() as patch:
        patch.setattr(versions, "set_alias", away)
        done = promote(2)
    assert done.outcome == "served" and "was not moved, `hapctl promote --model v2` does it later: MLflow refused" in done.notes[-1]
    assert promotion.repair(ws, params, now=NOW, server=server) == ["MLflow's alias champion points at v2 now"]
