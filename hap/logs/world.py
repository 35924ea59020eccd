"""The simulated world: a catalogue that turns over daily, and users of several drifting interests who come and go.

Every part moves in a steady state: what one day draws is distributed as any other day's. Everything comes from
streams keyed by (seed, purpose, day), so a day is the same however many days are simulated after it. Equations:
docs/simulator.md. Shapes: U users, I interests of each, H history, N items published so far, T content types,
A authors, B age bands, D latent width.
"""

import datetime as dt
from dataclasses import dataclass, field

import numpy as np

from hap.days import start_of

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
AGE_BANDS = 8
TURN_DAYS = 5  # from the first interests that turn to the last
_PURPOSES = ("types", "authors", "users", "items", "past", "drift", "mood", "day", "chunk", "fault")
_ORIGIN = 1024  # days before the first have negative numbers, seeds may not


@dataclass(frozen=True, kw_only=True)
class SimulatorSettings:
    """Sizes and strengths of the world and its cascade; docs/simulator.md gives the equations they stand in."""

    requests_per_user: float = 4.0  # a day; the number of users follows, so a larger day is more of the same world
    user_turnover: float = 0.02  # of the users are replaced by new ones every midnight, who begin without a history
    warmup_days: int = 6  # lived through before the first day; a usual history turns over in three
    new_items_per_day: int = 300  # with 10 days of life, 3,000 items alive: ten times what one request retrieves
    item_life_days: tuple[float, float] = (6.0, 14.0)  # a tenth of the catalogue turns over daily
    authors: int = 400  # 7 items alive of each, so an author says what a new item cannot yet
    content_types: int = 12
    latent_dim: int = 16
    interests: int = 6  # several per user: their mean points nowhere, so which history item matters depends on the candidate
    history: int = 20  # clicks kept per user
    interest_spread: float = 0.6  # distance of an interest from its content type's centre
    author_spread: float = 0.6  # distance of an author from the type's centre
    item_spread: float = 0.4  # distance of an item from its author
    drift_per_day: float = 0.15  # step of an interest round its type's centre; 1 would draw it anew
    switch_per_day: float = 0.03  # of all interests give way to one of another type

    bias: float = -12.8  # puts clicks per request near 1.7
    taste_weight: float = 6.0  # of the nearest of all interests: what retrieval and pre-ranking know
    mood_weight: float = 8.0  # of the interest that is on the user's mind now: what ranking knows, too
    mood_days: float = 1.5  # a mood lasts this long on average, so the latest clicks tell it and older ones do not
    quality_weight: float = 1.0
    popularity_weight: float = 0.3  # known to nobody but the item's own id
    price_weight: float = 0.6  # times the sensitivity of the user's age band
    age_weight: float = 0.08  # per day since publication
    hour_weight: float = 0.4  # content types have their hours
    position_weight: float = 0.35  # times log2(1 + position): what is shown lower is seen less

    retrieved: int = 300  # stage sizes: wide enough for the windows "below 200" and "below 50"
    ranked: int = 80
    reranked: int = 30
    exposed: int = 8
    retrieval_noise: float = 1.4  # standard deviations in logits; with what a stage does not know (docs), errors fall from stage to stage
    prerank_noise: float = 1.2
    rank_noise: float = 2.7
    rerank_noise: float = 2.2
    author_penalty: float = 0.5  # re-ranking holds back repeats of an author

    delayed_share: float = 0.1  # of clicks; these come hours later, some after midnight
    delay_hours: float = 5.0
    slots_per_day: int = 8  # histories and catalogue are refreshed at the start of each


@dataclass(frozen=True)
class Turn:
    """Interests that turn to the first content type: a `TURN_DAYS`th of `share` of them each midnight from day number `day` on.

    What has turned stays so: a new user in the same place begins with it, and an interest that gives way gives way to it.
    """

    day: int
    share: float  # of all interests, once it is whole

    def share_on(self, day: int) -> float:
        """The share that has turned on a day."""
        return self.share * min(max(day - self.day + 1, 0), TURN_DAYS) / TURN_DAYS


@dataclass
class Items:
    """Every item published so far, by index; item_id = index + 1. Arrays of length N."""

    latent_ND: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def append(self, latent_ND: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        """Add items behind those that exist."""
        self.latent_ND = np.concatenate([self.latent_ND, latent_ND]) if self.columns else latent_ND
        self.columns = {name: np.concatenate([self.columns[name], new]) if self.columns else new for name, new in columns.items()}

    def alive(self, at_us: int, until_us: int | None = None) -> np.ndarray:
        """Indices of items published before `until_us` (by default `at_us`) and not expired at `at_us`."""
        until_us = at_us if until_us is None else until_us
        return np.flatnonzero((self["published_us"] < until_us) & (self["expires_us"] > at_us))


class World:
    """Users, items and click histories between two moments; `open_day` moves it to the next day.

    It begins `warmup_days` before `first_day` with histories that are only roughly right; hap.logs.cascade.begin
    lives through those days.
    """

    def __init__(self, settings: SimulatorSettings, seed: int, first_day: dt.date, requests_per_day: int, turn: Turn | None = None) -> None:
        self.settings, self.seed, self.first_day, self.requests_per_day = settings, seed, first_day, requests_per_day
        self.turn = turn
        s = settings
        rng = self.stream("types")
        self.type_TD = _unit(rng.standard_normal((s.content_types, s.latent_dim)))
        self.type_price_T = rng.normal(3.0, 0.6, s.content_types)
        hours = 2 * np.pi * (np.arange(24)[:, None] - rng.uniform(0, 24, s.content_types)) / 24
        self.hour_appeal = np.cos(hours).astype(np.float32)  # [24, T]
        self.band_taste_BT = np.log(rng.dirichlet(np.full(s.content_types, 1.5), AGE_BANDS))

        rng = self.stream("authors")
        self.author_type_A = rng.integers(0, s.content_types, s.authors)
        self.author_AD = _unit(self.type_TD[self.author_type_A] + _step(s.author_spread, rng, s.authors, s.latent_dim))
        popularity = rng.lognormal(0, 0.8, s.authors)
        self.author_share_A = popularity / popularity.sum()

        users = max(10, round(requests_per_day / s.requests_per_user))
        rng = self.stream("users", -s.warmup_days - 1)
        self.user_id_U = np.arange(users) + 1
        self.age_band_U = rng.integers(0, AGE_BANDS, users)
        self.activity_U = rng.lognormal(0, 0.7, users)
        self.type_UI = self._interest_types(rng)
        self.offset_UID = _step(s.interest_spread, rng, users, s.interests, s.latent_dim)
        self.mood_U = rng.integers(0, s.interests, users)

        self.items = Items()
        for day in range(-s.warmup_days - int(np.ceil(s.item_life_days[1])), -s.warmup_days):
            self._publish(day)
        self.hist_item_UH = np.full((users, s.history), -1)  # item index, most recent last; -1 is padding
        self.hist_us_UH = np.zeros((users, s.history), np.int64)
        self.pending: list[np.ndarray] = []  # clicks on their way into the histories: int64[4, n] user, item, event, ingestion
        self._draw_a_past()

    @property
    def interest_UID(self) -> np.ndarray:
        """Where every user's interests lie today, unit vectors."""
        return _unit(self.type_TD[self.type_UI] + self.offset_UID)

    @property
    def price_sense_U(self) -> np.ndarray:
        """How much a price above its type's usual level repels, by age band: 1.5 down to 0.1."""
        return np.linspace(1.5, 0.1, AGE_BANDS, dtype=np.float32)[self.age_band_U]

    def stream(self, purpose: str, *place: int) -> np.random.Generator:
        """The generator of one purpose at one place (day, slot, chunk), independent of every other."""
        return np.random.default_rng(np.random.SeedSequence([self.seed, _PURPOSES.index(purpose), *(_ORIGIN + p for p in place)]))

    def day_start_us(self, day: int) -> int:
        """00:00 UTC of day number `day` (0 is the first) in microseconds since 1970."""
        return int(start_of(self.first_day).timestamp()) * 1_000_000 + day * DAY_US

    def open_day(self, day: int) -> None:
        """Publish the day's items, let every interest drift a step and some users give way to new ones."""
        self._publish(day)
        s, rng = self.settings, self.stream("drift", day)
        # The old offset shrinks by as much as the step adds: interests wander, their spread stays.
        fresh = _step(s.interest_spread, rng, *self.offset_UID.shape)
        self.offset_UID = np.sqrt(np.float32(1 - s.drift_per_day**2)) * self.offset_UID + s.drift_per_day * fresh
        switched = rng.random(self.type_UI.shape) < s.switch_per_day
        self.type_UI = np.where(switched, self._interest_types(rng), self.type_UI)

        rng = self.stream("users", day)
        gone = np.flatnonzero(rng.random(len(self.user_id_U)) < s.user_turnover)
        self.age_band_U[gone] = rng.integers(0, AGE_BANDS, len(self.user_id_U))[gone]
        self.activity_U[gone] = rng.lognormal(0, 0.7, len(self.user_id_U))[gone]
        self.type_UI[gone] = self._interest_types(rng)[gone]
        self.offset_UID[gone] = _step(s.interest_spread, rng, *self.offset_UID.shape)[gone]
        self.user_id_U[gone] = self.user_id_U.max() + 1 + np.arange(len(gone))
        self.hist_item_UH[gone], self.hist_us_UH[gone] = -1, 0
        self.pending = [clicks[:, ~np.isin(clicks[0], gone)] for clicks in self.pending]
        if self.turn:
            place = self.stream("fault").random(self.type_UI.shape)  # the same every day, so that what has turned stays turned
            self.type_UI = np.where(place < self.turn.share_on(day), 0, self.type_UI)

    def open_slot(self, day: int, slot: int) -> None:
        """Move some users' minds to another of their interests."""
        s, rng = self.settings, self.stream("mood", day, slot)
        changes = rng.random(len(self.mood_U)) < -np.expm1(-1 / (s.slots_per_day * s.mood_days))
        self.mood_U = np.where(changes, rng.integers(0, s.interests, len(self.mood_U)), self.mood_U)

    def remember(self, user: np.ndarray, item: np.ndarray, at_us: np.ndarray) -> None:
        """Push clicks (user index, item index, time) into the histories; each keeps the latest events."""
        touched, place = np.unique(user, return_inverse=True)
        old = self.hist_item_UH[touched] >= 0
        rows = np.concatenate([np.nonzero(old)[0], place])
        items = np.concatenate([self.hist_item_UH[touched][old], item])
        times = np.concatenate([self.hist_us_UH[touched][old], at_us])
        order = np.lexsort((items, times, rows))
        rows, items, times = rows[order], items[order], times[order]
        # The last event of a user goes to the last column, the one before it to the column before.
        from_end = np.searchsorted(rows, rows, side="right") - 1 - np.arange(len(rows))
        kept = from_end < self.settings.history
        where = touched[rows[kept]], self.settings.history - 1 - from_end[kept]
        self.hist_item_UH[touched], self.hist_us_UH[touched] = -1, 0
        self.hist_item_UH[where], self.hist_us_UH[where] = items[kept], times[kept]

    def _interest_types(self, rng: np.random.Generator) -> np.ndarray:
        """Content types [U, I] by the taste of each user's age band, none twice for one user."""
        drawn = self.band_taste_BT[self.age_band_U] + rng.gumbel(size=(len(self.age_band_U), self.settings.content_types))
        types: np.ndarray = np.argsort(-drawn, axis=1)[:, : self.settings.interests]
        return types

    def _publish(self, day: int) -> None:
        s = self.settings
        rng = self.stream("items", day)
        n = s.new_items_per_day
        author = np.searchsorted(self.author_share_A.cumsum(), rng.random(n)).clip(max=s.authors - 1)
        content_type = self.author_type_A[author]
        quality = rng.standard_normal(n)
        price_level = rng.normal(0, 1, n)
        published = self.day_start_us(day) + np.sort(rng.integers(0, DAY_US, n))
        life = rng.uniform(*s.item_life_days, n) * DAY_US
        columns = {
            "author": author,
            "content_type": content_type,
            "quality": quality.astype(np.float32),
            "quality_seen": np.round(quality + 0.5 * rng.standard_normal(n), 4),  # an estimate, as every quality feature is
            "price_level": price_level.astype(np.float32),
            "price": np.round(np.exp(self.type_price_T[content_type] + 0.8 * price_level), 2) + 0.01,
            "popularity": rng.standard_normal(n).astype(np.float32),
            "published_us": published,
            "expires_us": published + life.astype(np.int64),
        }
        self.items.append(_unit(self.author_AD[author] + _step(s.item_spread, rng, n, s.latent_dim)), columns)

    def _draw_a_past(self) -> None:
        """Histories at the beginning of the warm-up: clicks at each user's rate since joining, of items near the interests."""
        s, rng = self.settings, self.stream("past")
        now, users = self.day_start_us(-s.warmup_days), len(self.user_id_U)
        clicks_per_day = 1.7 * s.requests_per_user * self.activity_U / self.activity_U.mean()
        ages = np.cumsum(rng.exponential(1 / clicks_per_day[:, None], (users, s.history)), axis=1)[:, ::-1]  # days, oldest first
        joined = rng.exponential(1 / max(s.user_turnover, 1e-3), users)
        alive = self.items.alive(now)
        interest = self.interest_UID
        for begin in range(0, users, 512):
            block = slice(begin, begin + 512)
            liking = 10.0 * nearest_interest(interest[block], self.items.latent_ND[alive])
            liking += rng.gumbel(size=liking.shape).astype(np.float32)
            width = min(s.history, len(alive))
            drawn = np.argpartition(liking, -width, axis=1)[:, -width:]
            self.hist_item_UH[block, -width:] = alive[rng.permuted(drawn, axis=1)]
        at = np.maximum(now - (ages * DAY_US).astype(np.int64), self.items["published_us"][self.hist_item_UH] + 1)
        order = np.argsort(at, axis=1)  # none is clicked before its publication, so some moved
        self.hist_item_UH, self.hist_us_UH = (np.take_along_axis(array, order, 1) for array in (self.hist_item_UH, at))
        # Those from before the user joined do not exist; the latest n remain.
        events = np.minimum((ages < joined[:, None]).sum(1), (self.hist_item_UH >= 0).sum(1))
        padding = np.arange(s.history) < (s.history - events)[:, None]
        self.hist_item_UH[padding], self.hist_us_UH[padding] = -1, 0


def nearest_interest(interest_RID: np.ndarray, latent_ND: np.ndarray) -> np.ndarray:
    """Cosine of each item with the nearest interest of each user [R, N]."""
    best: np.ndarray = interest_RID[:, 0] @ latent_ND.T
    for k in range(1, interest_RID.shape[1]):
        np.maximum(best, interest_RID[:, k] @ latent_ND.T, out=best)
    return best


def _unit(x: np.ndarray) -> np.ndarray:
    unit: np.ndarray = (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
    return unit


def _step(length: float, rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Gaussian vectors of about `length` each, float32[shape]; the last axis is the vector."""
    step: np.ndarray = rng.standard_normal(shape, dtype=np.float32) * np.float32(length / np.sqrt(shape[-1]))
    return step
