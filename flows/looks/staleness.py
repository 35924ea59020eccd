"""How old the champion is, and which days wait for their verdict. MLflow is asked only where the bundle is not on this host."""

import datetime as dt

from flows.bundles import bundle_of
from flows.due import unfinished_days
from flows.looks.subject import Subject
from hap.days import default_as_of
from hap.errors import HapError
from hap.monitoring import staleness
from hap.monitoring.findings import Look
from hap.registry.ledger import moment_of, open_ledger
from hap.registry.local import local
from hap.serving.bundle import Bundle


def look(subject: Subject, at: dt.datetime | None = None) -> Look:
    """The champion's age on the day, and the days that were overdue by then.

    Args:
        at: when the schedule is looked at; None: when the day is ripe, the earliest that it can be looked at.
    """
    ws, params, settings = subject.ws, subject.params, subject.params.staleness
    ripe = default_as_of(subject.day, params.collect.label_delay_hours)
    at = at or ripe
    limit = settings.max_age_days if settings.max_age_days is not None else params.gate.max_age_days
    try:
        looks = [staleness.look_at_age(subject.day, _champion(subject, at), limit, at)]
    except HapError as error:
        looks = [staleness.unknown_age(subject.day, str(error))]
    try:
        waiting = unfinished_days(ws, params, at)
        looks.append(staleness.look_at_schedule(subject.day, waiting, params.collect.label_delay_hours, settings.overdue_hours, at))
    except HapError as error:
        note = f"whether a day waits for its verdict is not judged: {error}"
        missed = frozenset({staleness.MISSED})
        looks.append(Look(watcher=staleness.WATCHER, day=str(subject.day), findings=(), unjudged=missed, notes=(note,)))
    return staleness.together(looks)


def _champion(subject: Subject, at: dt.datetime) -> staleness.Champion:
    """What the champion's bundle and the ledger say."""
    newest = staleness.member_windows(_bundle(subject).info)
    by = moment_of(open_ledger(subject.ws, subject.params).rows(), at).by
    return staleness.Champion(subject.champion, newest, by.at if by and by.to_version == subject.champion else None)


def _bundle(subject: Subject) -> Bundle:
    """The champion's bundle: a promotion left a copy here."""
    try:
        return local(subject.ws, subject.champion)
    except HapError:
        return bundle_of(subject.ws, subject.params, subject.champion)
