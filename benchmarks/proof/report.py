"""All finished trials as results.json, figures and one page."""

import math
import platform
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from benchmarks.proof import figures, page
from benchmarks.proof.estimates import LEVEL
from benchmarks.proof.study import SHOWN_AT, Study
from benchmarks.proof.targets import answer_all
from benchmarks.proof.trials import Place, Say
from benchmarks.proof.variants import COMPARED, LOSSES, OURS, PUBLISHED, SIZES, VARIANTS, WIDE, Trial
from benchmarks.proof.worlds import load_world
from hap import durable
from hap.params import KINDS
from hap.tables import table

Found = dict[str, Any]
PLACE_OF = {name: place for place, name in enumerate(dict.fromkeys((*COMPARED, *VARIANTS, *KINDS, *figures.CURVES)))}
LIBRARIES = ("numpy", "torch", "pyarrow", "scipy")
KEPT_OF_WORLD = (
    "name", "asked", "settings", "training_days", "judging_days", "training_requests", "judged_requests", "judged_users",
    "judged_by_kind", "complete_requests", "complete_candidates", "complete_logs", "manifests",
)  # fmt: skip


def report(place: Place, trials: Sequence[Trial], epochs: int, say: Say, earlier: Found | None = None) -> Found:
    """Measure what is finished of the planned trials; write results.json, figures/*.png and index.html.

    Args:
        earlier: results of another run, whose worlds come first; a world that both have is this run's.
    """
    worlds = list(dict.fromkeys(trial.world for trial in trials))
    by_world = {name: _world(place, name, [trial for trial in trials if trial.world == name], say) for name in worlds}
    by_world = (_in_order(earlier["worlds"]) if earlier else {}) | by_world
    main = next(iter(by_world.values()))
    results = {
        "facts": {
            "epochs": epochs,
            "seeds": list(dict.fromkeys(trial.seed for trial in trials)),
            "level": LEVEL,
            "python": platform.python_version(),
            "machine": platform.machine(),
            **{name: version(name) for name in LIBRARIES},
        },
        "gauc": main["gauc"],
        "routing": _main_routing(main["routing"]),
        "worlds": by_world,
    }
    results = _finite(results)
    durable.write_json(place.root / "results.json", results)
    drawn = {name: figures.draw_all(place.root / "figures", name, one) for name, one in results["worlds"].items()}
    durable.write_text(place.root / "index.html", page.render(results, drawn))
    return results


def lines(results: Found) -> str:
    """The main figures as text."""
    shown = []
    for name, world in results["worlds"].items():
        for model, variants in world["gauc"].items():
            rows = [
                [variant, *[f"{_number(one['value'])} [{_number(one['lo'])}, {_number(one['hi'])}]" for one in by_kind.values()]]
                for variant, by_kind in variants.items()
            ]
            shown.append(f"{name}, {model}: GAUC\n{table(['variant', 'EN', 'RN', 'PRN', 'GN'], rows)}")
        rows = [[one["answer"], one["asked"], one["sentence"]] for one in world["targets"]]
        shown.append(f"{name}: what was asked\n{table(['answer', 'asked', 'measured'], rows)}")
    return "\n\n".join(shown)


def _world(place: Place, name: str, trials: Sequence[Trial], say: Say) -> Found:
    variants: dict[str, list[str]] = {}
    for trial in trials:
        if trial.variant not in variants.setdefault(trial.model, []):
            variants[trial.model].append(trial.variant)
    study = Study(place, load_world(place.world(name)), name, variants, sorted({trial.seed for trial in trials}))
    finished = [trial for one in study.scored.values() for trial in one.trials]
    say(f"{name}: {len(finished)} of {len(trials)} trials are finished; measuring")
    ours: Found = {
        name: {
            rival: found
            for rival in LOSSES
            if rival != OURS and (found := study.difference((model, OURS + ending), (model, rival + ending))) is not None
        }
        for name, (model, ending) in COMPARED.items()
        if model in variants
    }  # fmt: skip
    beyond: Found = {
        model: {
            variant: found
            for variant in variants[model]
            if variant not in {*LOSSES, *(loss + PUBLISHED for loss in LOSSES if loss != OURS)}
            and (found := study.difference((model, variant), (model, OURS))) is not None
        }
        for model in variants
    }  # fmt: skip
    world: Found = {
        "facts": _facts(study.world.facts),
        "trials": {"finished": len(finished), "planned": len(trials), "codes": sorted({one.facts["hap_digest"][:12] for one in finished})},
        "gauc": study.estimates("gauc"),
        "auc": study.estimates("auc"),
        "differences": ours,
        "beyond": beyond,
        "sizes": study.sizes(),
        "size_gap": study.difference(SIZES["heavy"], SIZES["light"]),
        "size_gap_differences": study.gap_differences(SIZES["heavy"], SIZES["light"]),
        "wide_gap": study.difference(WIDE, SIZES["light"]),
        "curves": study.training_curves(),
        "routing": study.routing(),
    }
    world["targets"] = answer_all(world)
    return world


def _facts(facts: Found) -> Found:
    """What a reader wants to know of the world; where it lay is not of it."""
    kept = {key: facts[key] for key in KEPT_OF_WORLD if key in facts}
    return kept | {"asked": {key: value for key, value in facts["asked"].items() if key != "root"}}


def _in_order(value: Any) -> Any:
    """results.json has its keys sorted; tables have the order of models, variants and kinds here."""
    if isinstance(value, dict):
        return {key: _in_order(value[key]) for key in sorted(value, key=lambda key: PLACE_OF.get(key, len(PLACE_OF)))}
    return value


def _main_routing(routing: Found | None) -> list[Found]:
    """The cascade as it is served, point by point."""
    if routing is None:
        return []
    return [
        {
            "share": one["share"],
            "k": SHOWN_AT,
            "recall_at_k": one[f"at_{SHOWN_AT}"]["recall"]["value"],
            "relative_recall": one[f"at_{SHOWN_AT}"]["relative"]["value"],
            "relative_lo": one[f"at_{SHOWN_AT}"]["relative"]["lo"],
            "relative_hi": one[f"at_{SHOWN_AT}"]["relative"]["hi"],
            "flops_ratio": one["flops_ratio"],
        }
        for one in routing["curves"]["light"]
    ]


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is undefined becomes null."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
