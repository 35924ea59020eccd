"""The simulated world: a catalogue that turns over daily, and users of several drifting interests.

Everything is drawn from streams keyed by (seed, purpose, day), so a day is the same however many days
are simulated after it. Equations: docs/simulator.md. Shapes: U users, I interests of each, N items
published so far, T content types, A authors, D latent width.
"""

import datetime as dt
from dataclasses import dataclass, field

import numpy as np

from hap.days import start_of

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
_PURPOSES = ("types", "authors", "users", "items", "past", "drift", "day", "chunk")


@dataclass(frozen=True, kw_only=True)
class SimulatorSettings:
    """Sizes and strengths of the world and its cascade; docs/simulator.md gives the equations they stand in."""

    users: int = 2_000  # about 4 requests of each a day at 8,000 requests: histories move within the days simulated
    new_items_per_day: int = 300  # with 10 days of life, 3,000 items alive: ten times what one request retrieves
    item_life_days: tuple[float, float] = (6.0, 14.0)  # a tenth of the catalogue turns over daily
    authors: int = 400  # 7 items alive of each, so an author says what a new item cannot yet
    content_types: int = 12
    latent_dim: int = 8  # small enough to be learnt from a few thousand requests a day
    interests: int = 4  # several per user: their mean points nowhere, so which history item matters depends on the candidate
    history: int = 20  # clicks kept per user
    no_history_share: float = 0.02  # users who begin with none
    interest_spread: float = 0.7  # distance of an interest from its content type's centre
    author_spread: float = 0.7  # distance of an author from the type's centre
    item_spread: float = 0.5  # distance of an item from its author
    drift_per_day: float = 0.15  # step of an interest's random walk; 1 would replace it within a day

    bias: float = -7.4  # puts clicks per request near 1.7
    history_weight: float = 8.0  # of the history items that resemble the candidate: the largest term
    history_focus: float = 12.0  # how sharply the resembling ones count; 0 is a plain mean, which no attention can beat
    history_days: float = 3.0  # an event's weight falls to 1/e in this time
    interest_weight: float = 0.8  # what the history does not yet show
    quality_weight: float = 0.5
    popularity_weight: float = 0.3  # known to nobody but the item's own id
    price_weight: float = 0.4  # times the sensitivity of the user's age band
    age_weight: float = 0.08  # per day since publication
    hour_weight: float = 0.4  # content types have their hours
    position_weight: float = 0.35  # times log2(1 + position): what is shown lower is seen less

    retrieved: int = 300  # stage sizes: wide enough for the windows "below 200" and "below 50"
    ranked: int = 80
    reranked: int = 30
    exposed: int = 8
    retrieval_gain: float = 2.0  # retrieval knows interests, quality and popularity alone, and trusts them twice as much
    retrieval_noise: float = 3.0  # standard deviations in logits, falling from stage to stage as models grow
    prerank_noise: float = 2.5
    rank_noise: float = 1.6
    rerank_noise: float = 1.3
    author_penalty: float = 0.5  # re-ranking holds back repeats of an author

    delayed_share: float = 0.1  # of clicks; these come hours later, some after midnight
    delay_hours: float = 5.0
    slots_per_day: int = 8  # histories and catalogue are refreshed at the start of each


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
    """Users, items and click histories between two moments; `open_day` moves it to the next day."""

    def __init__(self, settings: SimulatorSettings, seed: int, first_day: dt.date) -> None:
        self.settings, self.seed, self.first_day = settings, seed, first_day
        s = settings
        rng = self.stream("types")
        self.type_TD = _unit(rng.standard_normal((s.content_types, s.latent_dim)))
        self.type_price_T = rng.normal(3.0, 0.6, s.content_types)
        hours = 2 * np.pi * (np.arange(24)[:, None] - rng.uniform(0, 24, s.content_types)) / 24
        self.hour_appeal = np.cos(hours).astype(np.float32)  # [24, T]

        rng = self.stream("authors")
        self.author_type_A = rng.integers(0, s.content_types, s.authors)
        self.author_AD = _near(self.type_TD[self.author_type_A], s.author_spread, rng)
        popularity = rng.lognormal(0, 0.8, s.authors)
        self.author_share_A = popularity / popularity.sum()

        rng = self.stream("users")
        bands = 8
        self.age_band_U = rng.integers(0, bands, s.users)
        band_taste = rng.dirichlet(np.full(s.content_types, 0.5), bands)  # [bands, T]
        draws = rng.random((s.users, s.interests, 1))
        interest_type = np.minimum((draws > band_taste.cumsum(1)[self.age_band_U][:, None, :]).sum(2), s.content_types - 1)
        self.interest_UID = _near(self.type_TD[interest_type], s.interest_spread, rng)
        self.interest_weight_UI = rng.dirichlet(np.full(s.interests, 3.0), s.users).astype(np.float32)
        self.price_sense_U = np.linspace(1.5, 0.1, bands, dtype=np.float32)[self.age_band_U]
        self.activity_U = rng.lognormal(0, 0.7, s.users)

        self.items = Items()
        for day in range(-int(np.ceil(s.item_life_days[1])), 0):
            self._publish(day)
        self.hist_item_UH = np.full((s.users, s.history), -1)  # item index, most recent last; -1 is padding
        self.hist_us_UH = np.zeros((s.users, s.history), np.int64)
        self.pending: list[np.ndarray] = []  # clicks on their way into the histories: int64[4, n] user, item, event, ingestion
        self._live_through_the_past()

    def stream(self, purpose: str, *place: int) -> np.random.Generator:
        """The generator of one purpose at one place (day, slot, chunk), independent of every other."""
        return np.random.default_rng(np.random.SeedSequence([self.seed, _PURPOSES.index(purpose), *place]))

    def day_start_us(self, day: int) -> int:
        """00:00 UTC of day number `day` (0 is the first) in microseconds since 1970."""
        return int(start_of(self.first_day).timestamp()) * 1_000_000 + day * DAY_US

    def open_day(self, day: int) -> None:
        """Publish the day's items and let every interest drift a step."""
        self._publish(day)
        s, rng = self.settings, self.stream("drift", day)
        self.interest_UID = _near(self.interest_UID, s.drift_per_day, rng)
        fresh = rng.dirichlet(np.full(s.interests, 3.0), s.users).astype(np.float32)
        self.interest_weight_UI = (1 - s.drift_per_day) * self.interest_weight_UI + s.drift_per_day * fresh

    def remember(self, user: np.ndarray, item: np.ndarray, at_us: np.ndarray) -> None:
        """Push clicks (user index, item index, time) into the histories; each keeps the latest events."""
        old = self.hist_item_UH >= 0
        users = np.concatenate([np.nonzero(old)[0], user])
        items = np.concatenate([self.hist_item_UH[old], item])
        times = np.concatenate([self.hist_us_UH[old], at_us])
        order = np.lexsort((items, times, users))
        users, items, times = users[order], items[order], times[order]
        # The last event of a user goes to the last column, the one before it to the column before.
        from_end = np.searchsorted(users, users, side="right") - 1 - np.arange(len(users))
        kept = from_end < self.settings.history
        column = self.settings.history - 1 - from_end[kept]
        self.hist_item_UH[:], self.hist_us_UH[:] = -1, 0
        self.hist_item_UH[users[kept], column] = items[kept]
        self.hist_us_UH[users[kept], column] = times[kept]

    def _publish(self, day: int) -> None:
        s = self.settings
        rng = self.stream("items", day + int(np.ceil(s.item_life_days[1])))
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
        self.items.append(_near(self.author_AD[author], s.item_spread, rng), columns)

    def _live_through_the_past(self) -> None:
        """Clicks from before the first day, drawn by interest from what was alive then."""
        s, rng = self.settings, self.stream("past")
        now = self.day_start_us(0)
        alive = self.items.alive(now)
        events = rng.integers(5, s.history + 1, s.users) * (rng.random(s.users) >= s.no_history_share)
        ages = np.sort(rng.uniform(0, 3 * DAY_US, (s.users, s.history)).astype(np.int64), axis=1)[:, ::-1]
        for begin in range(0, s.users, 512):
            block = slice(begin, begin + 512)
            liking = interest_affinity(self.interest_UID[block], self.items.latent_ND[alive])
            liking = 6.0 * liking + s.quality_weight * self.items["quality"][alive] + rng.gumbel(size=liking.shape)
            drawn = np.argpartition(liking, -s.history, axis=1)[:, -s.history :]
            self.hist_item_UH[block] = alive[rng.permuted(drawn, axis=1)]
        at = np.maximum(now - ages, self.items["published_us"][self.hist_item_UH] + 1)  # never clicked before publication
        order = np.argsort(at, axis=1)
        self.hist_item_UH = np.take_along_axis(self.hist_item_UH, order, 1)
        self.hist_us_UH = np.take_along_axis(at, order, 1)
        padding = np.arange(s.history) < (s.history - events)[:, None]
        self.hist_item_UH[padding], self.hist_us_UH[padding] = -1, 0


def interest_affinity(interest_RID: np.ndarray, latent_ND: np.ndarray) -> np.ndarray:
    """Cosine of each item with the nearest interest of each user [R, N]."""
    best: np.ndarray = interest_RID[:, 0] @ latent_ND.T
    for k in range(1, interest_RID.shape[1]):
        np.maximum(best, interest_RID[:, k] @ latent_ND.T, out=best)
    return best


def _unit(x: np.ndarray) -> np.ndarray:
    unit: np.ndarray = (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
    return unit


def _near(centre: np.ndarray, spread: float, rng: np.random.Generator) -> np.ndarray:
    """Unit vectors at about `spread` from unit vectors."""
    step = rng.standard_normal(centre.shape) * (spread / np.sqrt(centre.shape[-1]))
    return _unit(centre + step)
