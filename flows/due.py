"""Which days wait for a retrain."""

import datetime as dt

import orjson

from hap.days import is_ripe, training_window
from hap.logs import contract
from hap.params import Params
from hap.samples import partitions
from hap.workspace import Workspace


def unfinished_days(ws: Workspace, params: Params, now: dt.datetime) -> list[dt.date]:
    """Every ripe logged day that has a whole training window and no verdict yet, oldest first."""
    logged = set(contract.logged_days(ws.logs(params)))
    judged = {orjson.loads(path.read_bytes())["day"] for path in ws.verdicts.glob("v*.json")}
    ripe = [day for day in sorted(logged) if is_ripe(day, params.collect.label_delay_hours, now) and day.isoformat() not in judged]
    known = logged | set(partitions.collected_days(ws))
    return [day for day in ripe if set(training_window(day, params.train.days, params.gate.days)) <= known]
