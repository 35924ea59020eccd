"""drift, alerts: when something that is served is wrong, and who hears of it."""

from typing import Annotated, Literal

from pydantic import Field

from hap.params.base import SEVERITIES, Count, Cron, Strict


class Drift(Strict):
    """When a day is looked at, and thresholds by column type; the method is stated in the page."""

    cron: Cron = Field(
        default="30 2 * * *",
        description="when `hapctl schedule` looks at the newest whole day, in schedule.timezone: late enough for its logs and, where "
        "that is possible, its labels to be in, and before the retrain, whose promotion an incident can hold",
    )

    numeric_method: Literal["wasserstein", "psi"] = "wasserstein"
    numeric_threshold: float = Field(default=0.1, gt=0, description="wasserstein: standard deviations; psi: its value")
    categorical_method: Literal["jensenshannon", "psi"] = "jensenshannon"
    categorical_threshold: Annotated[float, Field(gt=0)] = 0.1
    max_rows: Count = 20_000
    page_from: float = Field(
        default=3.0,
        gt=1,
        description="times its threshold from which a drifted column wakes someone, as a lost one does; below it is a ticket, since "
        "the threshold says that a column moved, and not that tonight's answers are wrong",
    )
    blocks_promotion: bool = Field(default=False, description="whether an open incident that pages holds promotions; --force overrides")


# A place is named by a variable, so that no secret lies in a file that git tracks.
Variable = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]


class Alerts(Strict):
    """Whom to tell, by severity: names of environment variables, each of which holds one Apprise URL."""

    page: tuple[Variable, ...] = ()
    ticket: tuple[Variable, ...] = ()
    info: tuple[Variable, ...] = ()
    grow: float = Field(default=1.5, gt=1, description="times the figure last told from which an open incident is told again")
    deadline_s: float = Field(default=10.0, ge=1, description="of one delivery, from starting its process; what takes longer is ended")
    attempts: int = Field(default=3, ge=1, description="at delivering before a message is kept for the next command")
    retry_wait_s: float = Field(default=1.0, ge=0, description="before the second attempt; doubled before each further one")

    def places(self, severity: str) -> tuple[str, ...]:
        """The variables that name the places of a severity."""
        return tuple(dict.fromkeys(getattr(self, severity)))

    def every_place(self) -> tuple[str, ...]:
        """The variables of all severities."""
        return tuple(dict.fromkeys(name for severity in SEVERITIES for name in self.places(severity)))
