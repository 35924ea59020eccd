"""Finished trials of one world as figures with intervals: GAUC, AUC, the routing curve, the curves of training."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.proof.estimates import Measured, mean_gauc, mean_over_weights, pooled_auc
from benchmarks.proof.trials import Finished, Place, find
from benchmarks.proof.variants import DISTILLED, HARD, OURS, PUBLISHED, Trial
from benchmarks.proof.worlds import Rows, World
from hap.evaluation import cascade as routing
from hap.evaluation.auc import request_aucs
from hap.models.describe import Description
from hap.params import KINDS, MODELS, NEGATIVES

Found = dict[str, Any]
RECALL_AT = (10, 20)
SHOWN_AT = 20  # of these, the one that targets and the first figure speak of
CHANCE_SEED = 1
HARDER = ("EN", "RN")


@dataclass(frozen=True, eq=False)
class Scored:
    """One variant's figures by kind, each over the same seeds."""

    seeds: tuple[int, ...]
    gauc: dict[str, Measured]
    auc: dict[str, Measured]
    trials: tuple[Finished, ...] = field(repr=False)


@dataclass(eq=False)
class Study:
    """All trials of one world that are finished."""

    place: Place
    world: World
    name: str
    variants: dict[str, list[str]]  # model -> variants, in the order of the tables
    seeds: Sequence[int]

    @cached_property
    def scored(self) -> dict[tuple[str, str], Scored]:
        """Figures of every (model, variant) with a finished trial."""
        rows = self.world.rows("sampled")
        found = {}
        for model in self.variants:
            for variant in self.variants[model]:
                trials = {seed: find(self.place, Trial(self.name, model, variant, seed)) for seed in self.seeds}
                finished = {seed: one for seed, one in trials.items() if one is not None}
                if finished:
                    found[model, variant] = _score(finished, rows)
        return found

    def estimates(self, figure: str) -> Found:
        """`gauc` or `auc` by model, variant and kind."""
        table: Found = {}
        for (model, variant), one in self.scored.items():
            table.setdefault(model, {})[variant] = {kind: asdict(getattr(one, figure)[kind].estimate(0, 1)) for kind in NEGATIVES}
        return table

    def difference(self, of: tuple[str, str], against: tuple[str, str]) -> Found | None:
        """GAUC by kind of one (model, variant) minus another's, over the seeds that both have; None where they share none."""
        paired = self._paired(of, against)
        return paired and {kind: asdict(one.estimate()) for kind, one in paired.items()}

    def gap_differences(self, of: tuple[str, str], against: tuple[str, str]) -> Found | None:
        """How much more one gains over another on each hard kind than on each easy one: "EN|GN" and so on."""
        gaps = self._paired(of, against)
        return gaps and {
            f"{hard}|{easy}": asdict(gaps[hard].minus(gaps[easy]).estimate()) for hard in HARDER for easy in NEGATIVES if easy not in HARDER
        }

    def _paired(self, of: tuple[str, str], against: tuple[str, str]) -> dict[str, Measured] | None:
        """GAUC by kind of one minus the other's, over the seeds that both have."""
        if of not in self.scored or against not in self.scored:
            return None
        one, other = self.scored[of], self.scored[against]
        seeds = [seed for seed in one.seeds if seed in other.seeds]
        return {kind: _at(one, kind, seeds).minus(_at(other, kind, seeds)) for kind in NEGATIVES} if seeds else None

    def training_curves(self) -> Found:
        """Held-out GAUC by epoch: model -> variant -> kind -> mean, least and greatest of the seeds; and the best epochs."""
        table: Found = {}
        for (model, variant), one in self.scored.items():
            by_epoch = [trial.facts["heldout_gauc_by_epoch"] for trial in one.trials]
            curves = {}
            for kind in NEGATIVES:
                values = np.array([[epoch[kind] for epoch in trial] for trial in by_epoch])
                curves[kind] = {"mean": values.mean(0).tolist(), "least": values.min(0).tolist(), "greatest": values.max(0).tolist()}
            best = [trial.facts["best_epoch"] for trial in one.trials]
            table.setdefault(model, {})[variant] = {"heldout_gauc": curves, "best_epoch": best}
        return table

    def sizes(self) -> Found:
        """What each variant costs: parameters, operations of a request with a thousand candidates, training seconds."""
        table: Found = {}
        for (model, variant), one in self.scored.items():
            size = Description(**one.trials[0].facts["size"])
            table.setdefault(model, {})[variant] = {
                **asdict(size),
                "flops_of_1000": size.flops(1000),
                "train_cpu_s": [trial.facts["train_cpu_s"] for trial in one.trials if not trial.facts["resumed"]],
                "cpu_s": [trial.facts["cpu_s"] for trial in one.trials if not trial.facts["resumed"]],
            }
        return table

    def routing(self) -> Found | None:
        """The routing curves over the requests with all their candidates; None without both models' own trials."""
        pair = [self.scored.get((model, OURS)) for model in MODELS]
        if pair[0] is None or pair[1] is None:
            return None
        light, expressive = pair[0], pair[1]
        hard = self.scored.get(("expressive", HARD))
        others = {"distilled": self.scored.get(("light", DISTILLED)), "published": self.scored.get(("light", OURS + PUBLISHED))}
        seeds = [seed for seed in light.seeds if seed in expressive.seeds]
        if not seeds:
            return None
        rows = self.world.rows("complete")
        requests = routing.describe_requests(rows.kind == KINDS.index("EP"), rows.offsets, CHANCE_SEED)
        costs = [Description(**one.trials[0].facts["size"]) for one in (light, expressive)]
        parts: dict[str, dict[int, routing.Selected]] = {name: {} for name in ("light", "random", "oracle", "hard", *others)}
        on_all = {}  # by seed: places by expressive score
        for seed in seeds:
            low, high = _logits(light, seed), _logits(expressive, seed)
            on_all[seed] = routing.places(high, requests)
            parts["light"][seed] = routing.select(requests, low, low, high)
            chance = np.random.default_rng([CHANCE_SEED, seed]).random(len(low))
            parts["random"][seed] = routing.select(requests, chance, low, high)
            parts["oracle"][seed] = routing.select(requests, routing.oracle(requests), low, high)
            if hard is not None and seed in hard.seeds:
                parts["hard"][seed] = routing.select(requests, low, low, _logits(hard, seed))
            for name, other in others.items():
                if other is not None and seed in other.seeds:
                    own = _logits(other, seed)
                    parts[name][seed] = routing.select(requests, own, own, high)
        curves, best_below_all = {}, {}
        for name, selected in parts.items():
            if selected:
                rank = [on_all[seed] for seed in selected]
                curves[name], measured = _curve(list(selected.values()), rank, requests, rows, costs)
                best_below_all[name] = {str(k): _peak(points) for k, points in measured.items()}
        levels = {str(k): asdict(_recall(list(on_all.values()), requests, rows, k).estimate(0, 1)) for k in RECALL_AT}
        return {
            "requests": len(requests.counts),
            "candidates": float(requests.counts.mean()),
            "seeds": seeds,
            "expressive_on_all": levels,
            "curves": curves,
            "peak": best_below_all,
        }


def _score(finished: dict[int, Finished], rows: Rows) -> Scored:
    scores = [one.logits("sampled") for one in finished.values()]
    grouped = [request_aucs(score, rows.kind, rows.offsets) for score in scores]
    positive = rows.kind == KINDS.index("EP")
    return Scored(
        seeds=tuple(finished),
        gauc={kind: mean_gauc([one[kind] for one in grouped], rows.cluster) for kind in NEGATIVES},
        auc={kind: pooled_auc(scores, positive, rows.kind == KINDS.index(kind), rows.offsets, rows.cluster) for kind in NEGATIVES},
        trials=tuple(finished.values()),
    )


def _at(one: Scored, kind: str, seeds: Sequence[int]) -> Measured:
    rows = [one.seeds.index(seed) for seed in seeds]
    return Measured(one.gauc[kind].value_S[rows], one.gauc[kind].influence_SC[rows])


def _logits(one: Scored, seed: int) -> np.ndarray:
    return one.trials[one.seeds.index(seed)].logits("complete")


def _recall(finals: Sequence[routing.I64], requests: routing.Requests, rows: Rows, k: int) -> Measured:
    findable = routing.findable(requests, k)
    found = np.stack([routing.hits(final, requests, k) for final in finals])
    return mean_over_weights(found / findable.clip(min=1), findable, rows.cluster)


def _curve(
    selected: list[routing.Selected], on_all: list[routing.I64], requests: routing.Requests, rows: Rows, costs: list[Description]
) -> tuple[list[Found], dict[int, dict[float, Measured]]]:
    """The points of one curve, and Recall@K as measured at each share."""
    light, expressive = costs
    whole = {k: _recall(on_all, requests, rows, k) for k in RECALL_AT}
    ones = np.ones(len(requests.counts))
    points, measured = [], {k: dict[float, Measured]() for k in RECALL_AT}
    for share in routing.SHARES:
        finals = [one.final_places(share) for one in selected]
        point: Found = {"share": share, "flops_ratio": routing.cost_ratio(light.cost, expressive.cost, requests.counts, share)}
        for k in RECALL_AT:
            measured[k][share] = recall = _recall(finals, requests, rows, k)
            same = np.stack([routing.agreement(final, place, requests, k) for final, place in zip(finals, on_all, strict=True)])
            point[f"at_{k}"] = {
                "recall": asdict(recall.estimate(0, 1)),
                "relative": asdict(recall.over(whole[k]).estimate(0)),
                "agreement": asdict(mean_over_weights(same, ones, rows.cluster).estimate(0, 1)),
            }
        points.append(point)
    return points, measured


def _peak(by_share: dict[float, Measured]) -> Found:
    """The share with the highest Recall@K, and how far that lies above routing all."""
    best = max(by_share, key=lambda share: float(by_share[share].value_S.mean()))
    return {"share": best, "above_all": asdict(by_share[best].minus(by_share[1.0]).estimate())}
