"""Delivery by Apprise for real, to servers on loopback that take it, refuse it, or hang."""

import contextlib
import datetime as dt
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email import message_from_string, policy
from pathlib import Path

import apprise
import psutil
import pytest

from flows.alerts import Told, deliver_waiting, known_incidents, settle_looks, tell, undelivered
from flows.status import _alerts_text
from hap.monitoring import courier
from hap.monitoring.alerts import Letter, snooze
from hap.monitoring.delivery import send
from hap.monitoring.findings import Finding, Look
from hap.params import Alerts, Params
from hap.registry.ledger import open_ledger
from hap.workspace import Workspace, exclusive
from tests.monitoring.receivers import SECRET, Webhook, mailbox, webhook

pytestmark = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # imported by a plugin of Apprise
LETTER = Letter("[page] input:cand_price", "What:   cand_price: 0.9 over 0.1 & more", "failure", "hap host /srv 1")


@pytest.fixture
def hook() -> Iterator[Webhook]:
    with webhook() as one:
        yield one


@pytest.fixture
def ws(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "ws")


def params_of(default: Params, **alerts) -> Params:
    settings = {"page": ("HAP_ALERTS_PAGE",), "ticket": ("HAP_ALERTS_TICKET",), "retry_wait_s": 0.01, "deadline_s": 30, **alerts}
    return default.model_copy(update={"alerts": Alerts(**settings)})


def settled(ws: Workspace, params: Params, seen: Look) -> Told:
    """Settle a day and tell what waits, as a look at a day does."""
    return Told(settle_looks(ws, params, [seen]), tell(ws, params))


def look(day: int, severity: str | None = "page", *more: str) -> Look:
    found = [
        Finding(cause=cause, severity=severity, said="moved", value=0.9, limit=0.1) for cause in ("input:cand_price", *more) if severity
    ]
    return Look(watcher="drift", day=f"2026-01-{day:02}", findings=tuple(found))


def environment(**places: str) -> dict[str, str]:
    return {**os.environ, **places}


def couriers() -> list[psutil.Process]:
    found = []
    for one in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # another one that ended meanwhile
            if "hap.monitoring.courier" in " ".join(one.cmdline()):
                found.append(one)
    return found


def test_a_webhook_gets_title_text_and_severity(hook: Webhook) -> None:
    assert send("HAP_ALERTS_PAGE", LETTER, Alerts(deadline_s=30), environment(HAP_ALERTS_PAGE=hook.url)).arrived
    (got,) = hook.got
    assert (got["title"], got["message"], got["type"]) == (LETTER.title, LETTER.body, "failure")


def test_a_mail_server_gets_a_plain_mail() -> None:
    with mailbox() as (port, mails):
        url = f"mailto://127.0.0.1:{port}/?from=hap@example.org&to=night@example.org&mode=insecure&format=text"
        assert send("HAP_ALERTS_PAGE", LETTER, Alerts(deadline_s=30), environment(HAP_ALERTS_PAGE=url)).arrived
    mail = message_from_string(mails[0], policy=policy.default)
    assert LETTER.title in mail["subject"] and mail["to"] == "night@example.org"
    assert LETTER.body in mail.get_body(("plain",)).get_content()


def test_pagerduty_gets_one_event_key_for_an_incident_and_a_recovery_resolves_it(hook: Webhook) -> None:
    place = apprise.Apprise.instantiate(f"pagerduty://{'i' * 32}@{'a' * 20}")
    url = f"http://127.0.0.1:{hook.port}/v2/enqueue"
    for kind in ("failure", "success"):
        assert courier.pagerduty(place, {"title": "t", "body": "b", "kind": kind, "key": "hap 1"}, url, 30) == 200
    opened, closed = hook.got
    assert (opened["event_action"], closed["event_action"]) == ("trigger", "resolve")
    assert opened["dedup_key"] == closed["dedup_key"] == "hap 1" and opened["routing_key"] == "i" * 32
    assert (opened["payload"]["severity"], opened["payload"]["summary"]) == ("critical", "t")


def test_an_answer_of_500_is_retried_as_often_as_the_parameters_say(hook: Webhook) -> None:
    hook.answers = [500, 503]
    alerts, places = Alerts(deadline_s=30, retry_wait_s=0.01, attempts=3), environment(HAP_ALERTS_PAGE=hook.url)
    assert send("HAP_ALERTS_PAGE", LETTER, alerts, places).arrived and len(hook.got) == 3
    hook.answers = [500] * 3
    assert send("HAP_ALERTS_PAGE", LETTER, alerts, places).why == "the service answered 500" and len(hook.got) == 6


def test_what_would_be_refused_again_is_not_retried(hook: Webhook) -> None:
    hook.answers = [404]
    assert send("HAP_ALERTS_PAGE", LETTER, Alerts(deadline_s=30), environment(HAP_ALERTS_PAGE=hook.url)).why == "the service answered 404"
    assert len(hook.got) == 1
    assert send("HAP_ALERTS_PAGE", LETTER, Alerts(), {}).why == "HAP_ALERTS_PAGE is not set"
    nonsense = send("HAP_ALERTS_PAGE", LETTER, Alerts(deadline_s=30), environment(HAP_ALERTS_PAGE=f"nonsense://{SECRET}"))
    assert nonsense.why == "its URL is not one that Apprise understands"


# What a courier has for its imports and for the webhook; a busy machine may need the later ones to come as far as that.
PATIENCE_S = (4, 12, 40)


@pytest.mark.parametrize("how", ["silent", "drip"])
def test_a_webhook_that_hangs_is_left_at_the_deadline_and_leaves_no_process(hook: Webhook, how: str) -> None:
    hook.answers = [how] * 9
    for deadline_s in PATIENCE_S:
        started = time.monotonic()
        sent = send("HAP_ALERTS_PAGE", LETTER, Alerts(deadline_s=deadline_s, attempts=1), environment(HAP_ALERTS_PAGE=hook.url))
        assert sent.why == f"no answer within {deadline_s} s" and deadline_s <= time.monotonic() - started < deadline_s + 15
        assert couriers() == []
        if hook.got:
            break
    assert len(hook.got) == 1


def test_a_courier_ends_itself_where_nobody_ends_it(hook: Webhook) -> None:
    hook.answers = ["drip"] * 9
    letter = b'{"title": "t", "body": "b", "kind": "info", "key": "k"}'
    for seconds in PATIENCE_S:
        command = [sys.executable, "-P", "-m", "hap.monitoring.courier", "HAP_ALERTS_PAGE", str(seconds)]
        done = subprocess.run(command, input=letter, capture_output=True, env=environment(HAP_ALERTS_PAGE=hook.url), timeout=seconds + 60)
        assert done.returncode == -14  # SIGALRM
        if hook.got:
            break
    assert len(hook.got) == 1


def test_a_failed_message_is_kept_shown_and_told_by_the_next_run_in_order(
    ws: Workspace, default_params: Params, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = params_of(default_params, attempts=2)
    monkeypatch.setenv("HAP_ALERTS_PAGE", hook.url)
    hook.answers = [500] * 2
    told = settled(ws, params, look(4, "page", "input:activity"))
    assert len(hook.got) == 2  # the second message was not tried at a place that had just failed
    assert [one.sent.why for one in told.deliveries] == ["the service answered 500"] * 2
    waiting = undelivered(known_incidents(ws, params), params, dt.datetime.now(dt.UTC))
    assert [(one["cause"], one["place"], one["why"]) for one in waiting] == [
        ("input:activity", "HAP_ALERTS_PAGE", "the service answered 500"),
        ("input:cand_price", "HAP_ALERTS_PAGE", "the service answered 500"),
    ]
    hook.got.clear()
    settled(ws, params, look(5, None))
    assert hook.titles == [
        *("[page] input:activity", "[page] input:cand_price"),
        *("[healed] input:activity", "[healed] input:cand_price"),
    ]
    assert undelivered(known_incidents(ws, params), params, dt.datetime.now(dt.UTC)) == [] and deliver_waiting(ws, params) == []


@pytest.mark.parametrize("ahead", [0, 10, -10])
def test_what_could_not_be_told_before_a_snooze_waits_for_its_end_and_what_got_worse_does_not_whatever_the_clocks(
    ws: Workspace, default_params: Params, hook: Webhook, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    params = params_of(default_params, ticket=("HAP_ALERTS_PAGE",), attempts=1)
    monkeypatch.setenv("HAP_ALERTS_PAGE", hook.url)
    hook.answers = [500]
    settled(ws, params, look(4, "ticket"))
    ledger, now = open_ledger(ws, params), dt.datetime.now(dt.UTC) + dt.timedelta(minutes=ahead)
    snooze(ledger, "input:cand_price", until=now + dt.timedelta(hours=8), actor="ann", now=now)
    hook.got.clear()
    assert deliver_waiting(ws, params) == [] and hook.got == []
    (kept,) = undelivered(known_incidents(ws, params), params, now)
    assert kept["event"] == "opened" and kept["snoozed_until"] == (now + dt.timedelta(hours=8)).isoformat(), "it is still shown"
    assert _alerts_text({"open": [], "undelivered": [kept]}) == "1 to be told after a snooze"
    later = undelivered(known_incidents(ws, params), params, now + dt.timedelta(hours=8))
    assert [one["snoozed_until"] for one in later] == [None]
    settled(ws, params, look(5, "page"))
    assert hook.titles == ["[page, grew] input:cand_price"]
    (one,) = known_incidents(ws, params).open
    assert not one.keeps_back(one.messages[0], now + dt.timedelta(hours=8)), "told after the snooze"
    settled(ws, params, look(6, None))
    assert hook.titles[1:] == ["[ticket] input:cand_price", "[healed] input:cand_price"], "or with the end of the incident"


def test_one_bad_place_does_not_keep_the_others_from_being_told_nor_tells_them_twice(
    ws: Workspace, default_params: Params, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = params_of(default_params, page=("HAP_ALERTS_PAGE", "HAP_ALERTS_SECOND"))
    monkeypatch.setenv("HAP_ALERTS_SECOND", hook.url)
    settled(ws, params, look(4))
    rows = open_ledger(ws, params).rows()
    assert [(row.state, row.reason) for row in rows if row.state in ("told", "untold")] == [
        ("untold", "HAP_ALERTS_PAGE is not set"),
        ("told", "opened of input:cand_price told to HAP_ALERTS_SECOND"),
    ]
    assert [one.place for one in deliver_waiting(ws, params)] == ["HAP_ALERTS_PAGE"] and len(hook.got) == 1
    assert len(open_ledger(ws, params).rows()) == len(rows)  # the same failure again is not written again


def test_a_kill_between_delivering_and_noting_tells_twice_and_never_not_at_all(
    ws: Workspace, default_params: Params, hook: Webhook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    params = params_of(default_params)
    settled(ws, params, look(4))  # the place is not set yet
    monkeypatch.setenv("HAP_ALERTS_PAGE", hook.url)
    (tmp_path / "params.json").write_text(params.model_dump_json())
    script = (
        "import os, sys; from pathlib import Path\n"
        "from flows.alerts import deliver_waiting; from hap.params import Params; from hap.registry.ledger import Ledger\n"
        "from hap.workspace import Workspace\n"
        "append = Ledger.append\n"
        "Ledger.append = lambda book, entry: os._exit(9) if entry.state == 'told' else append(book, entry)\n"
        "deliver_waiting(Workspace(Path(sys.argv[1])), Params.model_validate_json(Path(sys.argv[2]).read_text()))\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(ws.root), str(tmp_path / "params.json")]).returncode == 9
    assert hook.titles == ["[page] input:cand_price"]
    assert [one.sent.arrived for one in deliver_waiting(ws, params)] == [True] and len(hook.got) == 2
    assert deliver_waiting(ws, params) == []


def test_a_page_waits_for_another_delivery_instead_of_being_left_to_it(
    ws: Workspace, default_params: Params, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAP_ALERTS_PAGE", hook.url)
    holding, leave = threading.Event(), threading.Event()

    def other() -> None:
        with exclusive(ws, "delivery", "delivers alerts", "delivering alerts", dt.datetime.now(dt.UTC)):
            holding.set()
            leave.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    assert holding.wait(60)
    threading.Timer(1.0, leave.set).start()
    told = settled(ws, params_of(default_params), look(4))
    thread.join()
    assert [one.sent.arrived for one in told.deliveries] == [True] and len(hook.got) == 1


def test_no_secret_leaves_the_environment(
    ws: Workspace,
    default_params: Params,
    hook: Webhook,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    params = params_of(default_params, page=("HAP_ALERTS_PAGE", "HAP_ALERTS_BAD", "HAP_ALERTS_GONE"), attempts=1)
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HAP_ALERTS_PAGE", hook.url)
    monkeypatch.setenv("HAP_ALERTS_BAD", f"nonsense://{SECRET}@127.0.0.1/")
    monkeypatch.setenv("HAP_ALERTS_GONE", f"json://user:{SECRET}@127.0.0.1:9/{SECRET}")  # nobody listens there
    hook.answers = [500]
    told = settled(ws, params, look(4))
    settled(ws, params, look(5, None))
    said = capfd.readouterr()
    stored = b"".join(path.read_bytes() for path in ws.root.rglob("*") if path.is_file())
    everything = f"{said.out}{said.err}{caplog.text}{told.to_json()}{told.lines()}{open_ledger(ws, params).rows()}"
    assert len(hook.got) == 3 and len(stored) > 1000
    assert SECRET not in everything and SECRET.encode() not in stored
    assert "json://" not in everything and b"json://" not in stored


def test_what_a_plugin_raises_is_named_by_its_type_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> bool:
        raise ValueError(f"cannot reach https://{SECRET}")

    monkeypatch.setattr(apprise.Apprise, "notify", broken)
    letter = {"title": "t", "body": "b", "kind": "info", "key": "k"}
    answer = courier.carry(f"json://127.0.0.1/{SECRET}", letter, 5)
    assert answer == {"arrived": False, "why": "no connection (ValueError)", "final": False}


def test_two_runs_at_once_open_an_incident_once(ws: Workspace, default_params: Params) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from flows.alerts import settle_looks, tell; from hap.monitoring.findings import Finding, Look\n"
        "from hap.params import load_params\n"
        "from hap.project import project_file; from hap.workspace import Workspace\n"
        "one = Finding(cause='input:cand_price', severity='page', said='moved', value=.9, limit=.1)\n"
        "look = Look(watcher='drift', day='2026-01-04', findings=(one,))\n"
        "ws, params = Workspace(Path(sys.argv[1])), load_params(project_file('params.yaml'))\n"
        "settle_looks(ws, params, [look]); tell(ws, params)\n"
    )
    running = [subprocess.Popen([sys.executable, "-c", script, str(ws.root)]) for _ in range(3)]
    assert [one.wait(300) for one in running] == [0, 0, 0]
    assert [row.state for row in open_ledger(ws, default_params).rows()] == ["opened", "settled"]
    assert dt.datetime.now(dt.UTC) - known_incidents(ws, default_params).all[0].messages[0].at < dt.timedelta(minutes=5)


def test_apprise_understands_every_url_that_the_documentation_shows() -> None:
    shown = re.findall(r"^    export HAP_ALERTS_\w+='(.+)'$", (Path(__file__).parents[2] / "docs" / "alerts.md").read_text(), re.MULTILINE)
    real = [url.replace("INTEGRATIONKEY", "i" * 32).replace("APIKEY", "a" * 20) for url in shown]
    services = [type(apprise.Apprise.instantiate(url)).__name__ for url in real]
    assert services == ["NotifyPagerDuty", "NotifySlack", "NotifyEmail", "NotifyJSON"]
