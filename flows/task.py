"""A plain function as a Prefect task."""

from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import State


def step(function: Any, name: str) -> Any:
    """A task that is tried again where a disk or a network failed, and keeps nothing: every step is idempotent by itself."""
    return task(
        function,
        name=name,
        retries=2,
        retry_delay_seconds=2,
        retry_condition_fn=_worth_retrying,
        cache_policy=NO_CACHE,
        persist_result=False,
    )


def _worth_retrying(_task: Any, _run: Any, state: State) -> bool:
    """A refused input stays refused, however often it is read; only failures of disks and networks are tried again."""
    try:
        state.result()
    except OSError:
        return True
    except Exception:
        return False
    return False
