"""The watchers of a day: each reads what it needs from the workspace and says what it saw."""
