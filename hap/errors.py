"""One error for everything a user can cause or mend, and its few children, by cause.

The command line prints the message alone, so a message names the bad value, the rule it
broke and the next command to type. Anything else that is raised is a defect of ours.
"""


class HapError(Exception):
    """A refusal in one clear line; ends the command with `exit_code`."""

    exit_code = 1


class UsageError(HapError):
    """The words typed make no sense together (a day that is not a date, two exclusive options)."""

    exit_code = 2


class ConfigError(HapError):
    """params.yaml, run.yaml or hap.toml holds a value that no rule admits."""


class DataError(HapError):
    """Logs or samples break their contract; nothing was changed."""


class NotFound(HapError):
    """A workspace, day, version or file that was named does not exist."""


class Busy(HapError):
    """Somebody else holds the lock or the port; the message says who."""


class ServingError(HapError):
    """The server is absent, unready, or answered with an error."""


class Refused(HapError):
    """The gate or the ledger's rules refuse; `--force --reason` may exist."""

    exit_code = 3
