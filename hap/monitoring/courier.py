"""The process that delivers one message: `python -m hap.monitoring.courier VARIABLE SECONDS`, the letter as JSON on stdin.

It alone reads the URL. It answers {arrived, why, final} on stdout in words of its own: what Apprise logs may hold secrets.
It ends itself after SECONDS, so that it does not outlive for long a hapctl that was killed.
"""

import logging
import os
import re
import signal
import sys
from typing import Any

import orjson

PAGERDUTY = {"failure": "critical", "warning": "warning", "info": "info", "success": "info"}
STATUS = re.compile(r"error=(\d{3})\b")  # as Apprise's plugins end a line on a refused request
NOT_WORTH_RETRYING = {400, 401, 403, 404, 405, 410, 413}  # the request itself is refused, and would be again


def main() -> None:
    """Deliver, and answer."""
    variable, seconds = sys.argv[1:3]
    signal.setitimer(signal.ITIMER_REAL, float(seconds))  # unhandled, SIGALRM ends the process
    answer = carry(os.environ[variable].strip(), orjson.loads(sys.stdin.buffer.read()), float(seconds))
    sys.stdout.buffer.write(orjson.dumps(answer))


def carry(url: str, letter: dict[str, str], seconds: float) -> dict[str, Any]:
    """Deliver a letter to an Apprise URL; returns the fields of hap.monitoring.delivery.Sent."""
    import apprise
    from apprise.plugins.pagerduty import PAGERDUTY_API_LOOKUP, NotifyPagerDuty

    logger = logging.getLogger("apprise")
    heard = _Heard()
    logger.addHandler(heard)
    logger.propagate = False
    asset = apprise.AppriseAsset(app_id="hap", app_desc="hap", app_url="", async_mode=False)
    place = apprise.Apprise.instantiate(url, asset=asset)
    if place is None:
        return {"arrived": False, "why": "its URL is not one that Apprise understands", "final": True}
    place.socket_connect_timeout = place.socket_read_timeout = seconds  # one deadline counts: that of whoever started this
    try:
        if isinstance(place, NotifyPagerDuty):
            status = pagerduty(place, letter, PAGERDUTY_API_LOOKUP[place.region_name], seconds)
            return _answer(status < 300, status)
        told = apprise.Apprise(asset=asset)
        told.add(place)
        kind = apprise.NotifyType(letter["kind"])
        arrived = told.notify(letter["body"], title=letter["title"], notify_type=kind, body_format=apprise.NotifyFormat.TEXT)
    except Exception as error:  # whatever a plugin raises: its text may hold the URL, its type does not
        return {"arrived": False, "why": f"no connection ({type(error).__name__})", "final": False}
    return _answer(bool(arrived), heard.status)


def pagerduty(place: Any, letter: dict[str, str], url: str, seconds: float) -> int:
    """Send a PagerDuty event (Events API v2) and return the HTTP status.

    Apprise's own plugin only triggers, without a key: a recovery would open an incident instead of resolving one, and a
    message told twice would be two. The integration key comes from Apprise's URL.
    """
    import requests

    event: dict[str, Any] = {"routing_key": place.integration_key, "dedup_key": letter["key"], "client": "hap"}
    if letter["kind"] == "success":
        event["event_action"] = "resolve"
    else:
        event["event_action"] = "trigger"
        event["payload"] = {
            "summary": letter["title"],
            "source": place.source,
            "component": place.component,
            "severity": PAGERDUTY[letter["kind"]],
            "custom_details": {"message": letter["body"]},
        }
    return requests.post(url, json=event, timeout=seconds).status_code


class _Heard(logging.Handler):
    """Keeps the last HTTP status that Apprise logged, and nothing else of its lines."""

    status: int | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if found := STATUS.search(record.getMessage()):
            self.status = int(found[1])


def _answer(arrived: bool, status: int | None) -> dict[str, Any]:
    if arrived:
        return {"arrived": True}
    why = f"the service answered {status}" if status else "no connection, or the service refused it"
    return {"arrived": False, "why": why, "final": status in NOT_WORTH_RETRYING}


if __name__ == "__main__":
    main()
