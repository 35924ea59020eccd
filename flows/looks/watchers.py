"""Every watcher of a day, in the order in which they look."""

from flows.looks import estimate, funnel, inputs, labels, skew, staleness, traffic
from flows.looks.subject import Watch
from hap.monitoring import causes
from hap.monitoring import estimate as quality
from hap.monitoring import funnel as funnels
from hap.monitoring import labels as feedback
from hap.monitoring import skew as skews
from hap.monitoring import staleness as ages
from hap.monitoring import traffic as volumes

WATCHERS: tuple[Watch, ...] = (
    Watch(causes.WATCHER, "Inputs, against the training window", inputs.look),
    Watch(volumes.WATCHER, "Traffic, against the same weekday", traffic.look),
    Watch(feedback.WATCHER, "Clicks and feedback", labels.look, needs_labels=True),
    Watch(funnels.WATCHER, "The funnel", funnel.look),
    Watch(quality.WATCHER, "Quality, before and after labels", estimate.look),
    Watch(skews.WATCHER, "Served requests, against their logs", skew.look),
    Watch(ages.WATCHER, "Age of what serves", staleness.look),
)
