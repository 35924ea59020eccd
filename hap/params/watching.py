"""drift, funnel, estimate, alerts: when something that is served is wrong, and who hears of it."""

from typing import Annotated, Literal

from pydantic import Field

from hap.params.base import SEVERITIES, Count, Strict


class Drift(Strict):
    """Thresholds by column type; the method is stated in the page."""

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


class Funnel(Strict):
    """How far a figure of the funnel may move; what chance does is added (hap.monitoring.watched)."""

    requests: int = Field(
        default=2000,
        ge=1,
        description="that are scored on either side, with all candidates where logs hold them, drawn by the portable key: as many as the "
        "gate reads for Recall@K, and at about its cost",
    )
    share: float = Field(
        default=0.02,
        gt=0,
        description="of the rows, that a kind or bucket may gain or lose: windows and limits keep shares still",
    )
    routed_share: float = Field(
        default=0.02, gt=0, description="of the candidates: a share that is set stays, and under route.k the cost moves with it"
    )
    edge: float = Field(
        default=0.5,
        gt=0,
        description="of the reference's spread, that the median and the spread of the edge may move: as a model ages, its edge creeps by "
        "about that much in a week (docs/results.md), and a broken input moves it at once",
    )
    agreement: float = Field(
        default=0.1, gt=0, description="of a rank correlation: an ageing model loses about that much in a week, a broken one most of it"
    )
    unrouted_clicks: float = Field(
        default=0.03, gt=0, description="of the clicks: each is one that no better expressive model can bring to the top"
    )
    gauc: float = Field(default=0.02, gt=0, description="that may be lost; twice gate.margin, since other days are other requests")
    slope: float = Field(default=0.2, gt=0, description="of itself: a slope says how far logits may be trusted, not their order")
    rate: float = Field(default=0.15, gt=0, description="of itself: clicks over predicted ones, which follow the day's mood, too")


class Estimate(Strict):
    """Quality of the served scores, before labels by their calibration and after by the clicks."""

    margin: float = Field(default=0.02, gt=0, description="AUC of exposed candidates that may be lost; twice gate.margin, as funnel.gauc")


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
