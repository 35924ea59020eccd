"""drift, funnel, estimate, skew, staleness, traffic, labels, alerts: when something that is served is wrong, and who hears of it."""

from typing import Annotated, Literal

from pydantic import Field

from hap.params.base import SEVERITIES, Count, Cron, Share, Strict


class Drift(Strict):
    """When a day is looked at, and thresholds by column type; the method is stated in the page."""

    cron: Cron = Field(
        default="30 2 * * *",
        description="when `hapctl schedule` looks at the newest whole day, in schedule.timezone: late enough for its logs and, where "
        "that is possible, its labels to be in, and before the retrain, whose promotion an incident can hold",
    )

    numeric_method: Literal["wasserstein", "psi"] = Field(
        default="wasserstein", description="distance of dense columns: it counts how far values went, and needs no bins"
    )
    numeric_threshold: float = Field(
        default=0.1,
        gt=0,
        description="wasserstein: standard deviations; psi: its value. A tenth of the spread is little to a model and more than quiet days "
        "move; psi is usually read as a shift from .1 on, too. What chance does is added",
    )
    categorical_method: Literal["jensenshannon", "psi"] = Field(
        default="jensenshannon", description="distance of categories: bounded, and defined where a category is new or gone"
    )
    categorical_threshold: float = Field(
        default=0.1,
        gt=0,
        description="of that distance: Evidently's own, about what a new category of 3% comes to; half the simulator's slow drift of "
        "interests stays below it. What chance does is added",
    )
    missing_threshold: float = Field(
        default=0.03,
        gt=0,
        lt=1,
        description="change of the share of rows without a value: the rate itself, which people know, and about what Jensen-Shannon 0.1 "
        "allows where no value was missing",
    )
    max_rows: Count = Field(
        default=20_000,
        description="requests, and candidates, that are compared on each side, drawn by the portable key of their ids: chance stays far "
        "below the thresholds, and a look costs seconds",
    )
    page_from: float = Field(
        default=3.0,
        gt=1,
        description="times its threshold from which a drifted column wakes someone, as a lost one does; below it is a ticket, since "
        "the threshold says that a column moved, and not that tonight's answers are wrong",
    )
    evidently_ui: bool = Field(
        default=False, description="keep each day's columns in pages/evidently, too, for `evidently ui --workspace pages/evidently`"
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
        default=1.0,
        gt=0,
        description="of the reference's spread, that the median and the spread of the edge may move: at 1 the usual request's edge lies "
        "where only every sixth lay. Less hurts nobody, since routing goes by order; an ageing model's edge creeps by half of that in days",
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


class Skew(Strict):
    """Served requests (serving.log_to) against the logs of the same requests, and their scores against the bundle's."""

    max_requests: int = Field(
        default=500, ge=1, description="served requests of a day that are compared, by hash of their ids; each is scored again"
    )
    min_requests: int = Field(default=20, ge=1, description="requests from which a day is judged; of fewer, one is a large share")
    max_share: float = Field(
        default=0.01,
        gt=0,
        lt=1,
        description="share of requests or candidates that may differ in a column: a profile that changed on its way to the logs is no "
        "defect, a column that is computed in two ways differs in far more",
    )
    page_share: Share = Field(default=0.1, description="share from which a difference wakes someone: a tenth of the answers is wrong")
    dense_tolerance: float = Field(
        default=1e-5, ge=0, description="of a dense value, times itself or 1: a hundred times what rounding to float32 may move it"
    )
    score_tolerance: float | None = Field(default=None, ge=0, description="of a score; null: gate.max_parity, which the bundle keeps to")
    clock_s: float = Field(
        default=30.0, gt=0, description="seconds between a request's event_time and its answer; by less no hour or age is wrong"
    )


class Staleness(Strict):
    """How old what serves may be, and how long a day may wait for its verdict."""

    max_age_days: int | None = Field(
        default=None, ge=1, description="from the newest training day to the day watched; null: gate.max_age_days"
    )
    overdue_hours: float | None = Field(
        default=36.0,
        gt=0,
        description="after a day is ripe by which it must have a verdict: a nightly schedule begins within 24, and takes its time; "
        "null: days are retrained by hand",
    )


class Traffic(Strict):
    """Requests of a day against the reference days; relative changes, each widened by what chance does to so many requests."""

    volume: float = Field(default=0.3, gt=0, description="change of the day's requests: weekdays and holidays move less, outages more")
    hour: float = Field(default=0.6, gt=0, lt=1, description="change of one hour's requests: an hour shifts by itself, and rarely halves")
    candidates: float = Field(default=0.1, gt=0, description="change of the mean number of candidates: retrieval has a fixed limit")
    late: float = Field(default=0.02, gt=0, lt=1, description="share of requests ingested too late to count, beyond the reference's")
    min_requests: int = Field(default=100, ge=1, description="of the reference's mean day, below which nothing is judged")
    page_from: float = Field(
        default=2.0, gt=1, description="times its limit from which a change wakes someone: half of the traffic and more"
    )


class Labels(Strict):
    """Feedback of a day against the reference days; relative changes, each widened by chance with users as its units."""

    click_rate: float = Field(default=0.15, gt=0, description="change of clicks per exposure: quiet days differ by less")
    local: float = Field(default=0.4, gt=0, description="the same of one position, or of one value of a category, which have fashions")
    spread: Share = Field(
        default=0.75, description="share of hours, and of each category, that clicks must have fallen in to be a fall of interest"
    )
    silent_below: float = Field(
        default=0.5, gt=0, lt=1, description="feedback of an hour, over what its exposures bring, below which it is lost and not unwanted"
    )
    rows_below: float = Field(
        default=0.8,
        gt=0,
        lt=1,
        description="the same where each exposure has a row of feedback, clicked or not: what is missing there was lost, wanted or not",
    )
    outage: float = Field(
        default=0.02, gt=0, lt=1, description="share of the day's feedback that silent hours may lose: half an hour of an even day's"
    )
    delay: float = Field(
        default=2.0,
        gt=1,
        description="times the reference's median or p95 of the time from exposure to ingested click: a queue that doubled is one "
        "that grows, and what comes after collect.label_delay_hours is lost",
    )
    min_clicks: int = Field(default=100, ge=1, description="in the reference, and expected of the day, below which nothing is judged")
    page_from: float = Field(
        default=3.0,
        gt=1,
        description="times its limit from which a change wakes someone: as in drift, since feedback trains tomorrow's model and leaves "
        "tonight's answers as they are",
    )


# A place is named by a variable, so that no secret lies in a file that git tracks.
Variable = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]


class Alerts(Strict):
    """Whom to tell, by severity: names of environment variables, each of which holds one Apprise URL."""

    page: tuple[Variable, ...] = ()
    ticket: tuple[Variable, ...] = ()
    info: tuple[Variable, ...] = ()
    grow: float = Field(
        default=1.5,
        gt=1,
        description="times the figure last told from which an open incident is told again: half as bad again is news, a wobble is not",
    )
    deadline_s: float = Field(
        default=10.0, ge=1, description="of one delivery, from starting its process, which takes one or two; what takes longer is ended"
    )
    attempts: int = Field(
        default=3,
        ge=1,
        description="at delivering before a message is kept for the next command: a hiccup passes, an outage holds up no look",
    )
    retry_wait_s: float = Field(
        default=1.0, ge=0, description="before the second attempt, and doubled before each further one: a service that is busy gets room"
    )

    def places(self, severity: str) -> tuple[str, ...]:
        """The variables that name the places of a severity."""
        return tuple(dict.fromkeys(getattr(self, severity)))

    def every_place(self) -> tuple[str, ...]:
        """The variables of all severities."""
        return tuple(dict.fromkeys(name for severity in SEVERITIES for name in self.places(severity)))
