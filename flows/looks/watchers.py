"""Every watcher of a day, in the order in which they look."""

from flows.looks import estimate, funnel, inputs, labels, skew, staleness, traffic
from flows.looks.subject import Watch

WATCHERS: tuple[Watch, ...] = (
    Watch("inputs", "Inputs, against the training window", inputs.look),
    Watch("traffic", "Traffic, against the same weekday", traffic.look),
    Watch("labels", "Clicks and feedback", labels.look, needs_labels=True),
    Watch("funnel", "The funnel", funnel.look),
    Watch("estimate", "Quality, before and after labels", estimate.look),
    Watch("skew", "Served requests, against their logs", skew.look),
    Watch("staleness", "Age of what serves", staleness.look),
)
