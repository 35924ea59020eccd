"""Telling: each message to each of its places, through a process of its own, until the ledger says that it arrived.

A message is told when its row `told` is written, after the delivery. A kill in between tells it once more, and none is
lost. The URL of a place stays in the environment: the process that delivers reads it there by its variable's name, and of
what goes wrong only words of our own come back, since the texts of libraries may hold what the URL holds.
"""

import contextlib
import datetime as dt
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass

import orjson
import tenacity

from hap.monitoring.alerts import Letter, letter
from hap.params import Alerts
from hap.registry.incidents import Incident, Incidents, Message

SLACK_S = 2.0  # how long a courier outlives its deadline where nobody ends it


@dataclass(frozen=True)
class Sent:
    """How one delivery went; `why` is empty where it arrived."""

    arrived: bool
    why: str = ""
    final: bool = False  # trying again would change nothing


@dataclass(frozen=True)
class Delivery:
    """One message at one place, and how that went."""

    incident: Incident
    message: Message
    place: str
    sent: Sent


def deliver(
    known: Incidents,
    alerts: Alerts,
    workspace: str,
    host: str,
    note: Callable[[Delivery], None],
    now: dt.datetime,
    environment: dict[str, str] | None = None,
) -> list[Delivery]:
    """Tell everything that waits and that no snooze keeps back, oldest first; `note` is called after each delivery and writes it down.

    A place that failed is not tried again for the messages after it: a webhook that hangs costs its attempts once. So
    each place gets its messages in their order.
    """
    waiting = [
        (one, message, place)
        for one in known.all
        for message, places in one.waiting(alerts)
        if not one.keeps_back(message, now)
        for place in places
    ]
    done: list[Delivery] = []
    failed: dict[str, Sent] = {}
    for one, message, place in sorted(waiting, key=lambda each: each[1].number):
        if place not in failed:
            sent = send(place, letter(one, message, workspace, host), alerts, environment)
            if not sent.arrived:
                failed[place] = sent
        done.append(Delivery(one, message, place, failed.get(place) or Sent(True)))
        note(done[-1])
    return done


def send(place: str, told: Letter, alerts: Alerts, environment: dict[str, str] | None = None) -> Sent:
    """One letter to one place, in at most `attempts` tries of `deadline_s` seconds each."""
    environment = dict(os.environ) if environment is None else environment
    if not environment.get(place, "").strip():
        return Sent(False, f"{place} is not set", final=True)
    retrying: tenacity.Retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(alerts.attempts),
        wait=tenacity.wait_exponential(multiplier=alerts.retry_wait_s),
        retry=tenacity.retry_if_result(lambda sent: not sent.arrived and not sent.final),
        retry_error_callback=lambda state: state.outcome.result() if state.outcome else Sent(False, "not tried"),
    )
    sent: Sent = retrying(_by_courier, place, told, alerts.deadline_s, environment)
    return sent


def _by_courier(place: str, told: Letter, deadline_s: float, environment: dict[str, str]) -> Sent:
    """One try, in a process group that is ended at the deadline, whatever it waits for."""
    command = [sys.executable, "-P", "-m", "hap.monitoring.courier", place, str(deadline_s + SLACK_S)]
    courier = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
    )
    try:
        answer, _ = courier.communicate(orjson.dumps(asdict(told)), timeout=deadline_s)
        return Sent(**orjson.loads(answer))
    except subprocess.TimeoutExpired:
        return Sent(False, f"no answer within {deadline_s:g} s")
    except (orjson.JSONDecodeError, TypeError):
        return Sent(False, f"the process that delivers ended with {courier.poll()}")
    finally:
        if courier.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(courier.pid, signal.SIGKILL)
            courier.communicate()
