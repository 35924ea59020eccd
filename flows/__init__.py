"""Flows: what runs when. Thin Prefect tasks round plain functions.

Prefect reads its settings from the environment when it is first imported, so the defaults are set
here, before any module of this package can import it. Whatever the caller has set stays.
"""

import os
from pathlib import Path

import platformdirs

_DEFAULTS = {
    # A home of our own: another Prefect on this machine may keep its database in another version's form.
    "PREFECT_HOME": str(platformdirs.user_state_path("hap") / "prefect"),
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",  # flows.prefect_server starts one that ends with its command
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "CRITICAL",  # hapctl tells a failure itself, in one line; `hapctl schedule` logs more
    "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "false",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "DO_NOT_TRACK": "1",
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)
Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)  # Prefect's server does not make a folder that is named to it
