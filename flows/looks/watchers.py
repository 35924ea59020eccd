"""Every watcher of a day, in the order in which they look."""

from flows.looks import inputs
from flows.looks.subject import Watch

WATCHERS: tuple[Watch, ...] = (Watch("inputs", "Inputs, against the training window", inputs.look),)
