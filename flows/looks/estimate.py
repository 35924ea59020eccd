"""The watcher of quality before labels: the served scores of a day by the click map of the reference (hap.monitoring.estimate)."""

from flows.bundles import bundle_of
from flows.looks.served import UNSCORABLE, labels_missing, reference_of, sides
from flows.looks.subject import Subject
from hap.monitoring.estimate import WATCHER, exposed_of, look_at, quality
from hap.monitoring.findings import Look
from hap.registry.versions import read_verdict
from hap.samples import partitions


def look(subject: Subject) -> Look:
    """Estimated AUC of a day's exposed candidates, and the real one once labels are complete.

    A day that the champion cannot score is not judged here: that is a finding of the funnel.
    """
    ws, params, day = subject.ws, subject.params, str(subject.day)
    if subject.day in subject.window or partitions.find(ws, subject.day) is None:
        return Look(watcher=WATCHER, day=day, findings=(), missing=True)
    bundle = bundle_of(ws, params, subject.champion)
    labelled = labels_missing(subject) is None
    found = None
    try:
        now, before = sides(subject, bundle, reference_of(subject, bundle, read_verdict(ws, subject.champion)))
        if before is not None:
            found = quality(exposed_of(before.sound()), exposed_of(now.sound()), labelled)
    except UNSCORABLE:
        pass
    return look_at(day, found, params.estimate.margin, params.drift.page_from)
