"""From a drifted day to somebody's webhook and back, by the words that a person types."""

import datetime as dt
from pathlib import Path
from types import SimpleNamespace

import orjson
import pytest
import yaml

import flows.drift
import flows.looks.logs
from flows import steps
from flows.alerts import parse_until
from flows.looks.watchers import WATCHERS
from hap.errors import UsageError
from hap.registry.incidents import promotions_held
from hap.registry.ledger import Entry, open_ledger
from hap.workspace import Workspace, init_workspace, workspace_lock
from tests.monitoring.receivers import webhook
from tests.monitoring.test_drift import DAYS, FEATURES, write_samples
from tests.words import Run, typing

NOW = dt.datetime(2026, 1, 5, 3, 0, tzinfo=dt.UTC)


@pytest.fixture
def ws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Three collected days that a champion was trained on, a fourth with trebled prices, and a fifth as before.

    They are samples alone, without logs and a registered champion, so the inputs are what is watched.
    """
    alerts = {"page": ["HAP_ALERTS_PAGE"], "ticket": ["HAP_ALERTS_PAGE"], "attempts": 1, "deadline_s": 60}
    text = yaml.safe_dump({"features": FEATURES, "alerts": alerts})
    ws = init_workspace(tmp_path / "ws", text)
    for day in DAYS[:3]:
        write_samples(ws, day)
    write_samples(ws, DAYS[3], price=3.0)
    write_samples(ws, DAYS[3] + dt.timedelta(days=1))
    monkeypatch.setattr(flows.drift, "WATCHERS", tuple(watch for watch in WATCHERS if watch.name == "inputs"))
    monkeypatch.setattr(flows.looks.logs, "bundle_of", lambda *_: SimpleNamespace(info={"window": [*map(str, DAYS[:3])]}))
    return ws


@pytest.fixture
def hapctl(ws: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    run = typing(monkeypatch, capsys)
    return lambda *words: run(*words, "--root", ws.root)


@pytest.mark.long
def test_a_drifted_day_is_told_once_and_its_recovery_too(ws: Workspace, hapctl: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    open_ledger(ws, ws.params()).append(Entry(at=NOW, actor="ann", action="promote", state="served", to_version=1))
    assert hapctl("alerts")[:2] == (0, "no incident is open\n")
    code, out, _ = hapctl("drift", "--day", "2026-01-04")
    assert code == 4 and "input:cand_price" in out.splitlines()[-2] and out.splitlines()[-2].startswith("opened")
    assert out.startswith("2026-01-04: ") and "v1, trained on 2026-01-01 to 2026-01-03; labels matured" in out.splitlines()[0]
    assert "untold  HAP_ALERTS_PAGE" in out and "HAP_ALERTS_PAGE is not set" in out

    code, out, _ = hapctl("status")
    assert "input:cand_price since 2026-01-04; 1 undelivered (HAP_ALERTS_PAGE: HAP_ALERTS_PAGE is not set)" in out
    (row,) = (row for row in orjson.loads(hapctl("ledger", "--json")[1]) if row["state"] == "untold")
    assert (row["reason"], row["evidence"]["place"]) == ("HAP_ALERTS_PAGE is not set", "HAP_ALERTS_PAGE")
    assert row["evidence"]["cause"] == "input:cand_price"
    assert "opened of input:cand_price not told to HAP_ALERTS_PAGE: HAP_ALERTS_PAGE is not set" in hapctl("ledger")[1]
    code, out, err = hapctl("alerts", "--deliver")
    assert code == 1 and err.splitlines()[-1].startswith("error: 1 of 1 deliveries failed, first HAP_ALERTS_PAGE")
    assert "cand_price: wasserstein" in out and "next: hapctl show 2026-01-04" in out and "drift-2026-01-04.html" in out

    with webhook() as hook:
        monkeypatch.setenv("HAP_ALERTS_PAGE", hook.url)
        assert hapctl("alerts", "--deliver")[0] == 0
        assert hapctl("ack", "input:cand_price", "--reason", "new price list")[:2][0] == 0
        assert hapctl("snooze", "input:cand_price", "--until", "8h")[0] == 0
        code, out, _ = hapctl("alerts", "--json")
        (one,) = orjson.loads(out)
        assert one["cause"] == "input:cand_price" and one["since"] == one["last"]["day"] == "2026-01-04"
        assert one["acked"]["reason"] == "new price list" and one["snoozed"]["until"] and one["undelivered"] == []
        assert "acked by" in hapctl("alerts")[1] and "snoozed by" in hapctl("alerts")[1]
        code, out, err = hapctl("ack", "input:price")
        assert (code, out, err) == (1, "", "error: no incident 'input:price' is open; open are: input:cand_price\n")

        told = len(hook.got)
        assert hapctl("drift", "--day", "2026-01-04")[0] == 4 and len(hook.got) == told == 1
        code, out, _ = hapctl("drift", "--day", "2026-01-05", "--json")
        assert code == 0 and orjson.loads(out)["alerts"]["closed"] == ["input:cand_price"]
        assert [one["type"] for one in hook.got] in (["failure", "success"], ["warning", "success"])
        assert hook.got[1]["message"] == "input:cand_price healed on 2026-01-05; it was open since 2026-01-04."
    assert hapctl("alerts")[1] == "no incident is open\n" and "closed 2026-01-05" in hapctl("alerts", "--all")[1]
    actions = [(row["action"], row["state"]) for row in orjson.loads(hapctl("ledger", "--json")[1])]
    assert actions == [
        ("promote", "served"),
        *[("alert", "settled"), ("alert", "opened"), ("alert", "settled"), ("alert", "settled"), ("alert", "untold"), ("alert", "told")],
        *[("ack", "noted"), ("snooze", "noted")],
        *[("alert", "settled"), ("alert", "closed"), ("alert", "settled"), ("alert", "settled"), ("alert", "told")],
    ]  # the day's logs, its inputs and its watchers are settled each


def test_the_flow_settles_the_judged_day_before_it_promotes(ws: Workspace) -> None:
    params = ws.params()
    assert steps.watch_drift(ws, DAYS[3], NOW)[0].startswith("no champion yet")
    open_ledger(ws, params).append(Entry(at=NOW, actor="ann", action="promote", state="served", to_version=1))
    assert steps.watch_drift(ws, DAYS[2], NOW)[0].startswith("v1 was trained on 2026-01-03")
    with workspace_lock(ws, "retrain", NOW):  # as the flow does
        said = steps.watch_drift(ws, DAYS[3], NOW)
    assert ["opened", "page", "input:cand_price"] in [line.split() for line in said]
    assert any("opened input:cand_price" in line and "HAP_ALERTS_PAGE is not set" in line for line in said)
    assert promotions_held(open_ledger(ws, params).rows())


def test_a_time_is_utc_unless_it_says_otherwise_or_a_span_from_now() -> None:
    assert parse_until("2026-01-05T09:00", NOW) == dt.datetime(2026, 1, 5, 9, tzinfo=dt.UTC)
    assert parse_until("2026-01-05T09:00+01:00", NOW) == dt.datetime(2026, 1, 5, 8, tzinfo=dt.UTC)
    assert [parse_until(text, NOW) - NOW for text in ("30m", "8h", "2d")] == [
        dt.timedelta(minutes=30), dt.timedelta(hours=8), dt.timedelta(days=2),
    ]  # fmt: skip
    for text in ("soon", "", "8", "99999d99", "2026-13-01"):
        with pytest.raises(UsageError, match="30m, 8h or 2d"):
            parse_until(text, NOW)
