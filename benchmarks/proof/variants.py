"""What is trained: a variant is a name for some parameters, a trial is one training of one variant."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hap.params import MODELS, Params, resolve

LOSSES = ("bce", "infonce", "infonce+bce", "ghcl", "ghcl+bce")
OURS = "ghcl+bce"
HARD = "ghcl+bce-hard"
DISTILLED = "ghcl+bce-distill"
PUBLISHED = "-published"  # of the light model: without interests
Override = dict[str, Any]  # dotted key of params.yaml -> value

# To try another recipe, add a line here; what the default plan trains of it is said in PLAN.
VARIANTS: dict[str, Override] = {
    **{loss: {"loss.name": loss} for loss in LOSSES},
    HARD: {"loss.name": OURS, "expressive.train_kinds": ["EN", "RN"]},  # the paper's: hard groups only
    DISTILLED: {"loss.name": OURS, "light.distill": 1.0},
    "infonce+bce-hard": {"loss.name": "infonce+bce", "expressive.train_kinds": ["EN", "RN"]},
    **{loss + PUBLISHED: {"loss.name": loss, "light.interests": 0} for loss in LOSSES},
    "ghcl+bce-wide": {"loss.name": OURS, "light.interests": 0, "light.size": 256},  # its shape with an expressive model's cost
    "ghcl+bce-medium": {"loss.name": OURS, "expressive.size": 32},
    "ghcl+bce-interests1": {"loss.name": OURS, "light.interests": 1},
    "ghcl+bce-interests8": {"loss.name": OURS, "light.interests": 8},
    "ghcl+bce-t0.5": {"loss.name": OURS, "loss.temperature": 0.5},
    "ghcl+bce-t2": {"loss.name": OURS, "loss.temperature": 2.0},
    "ghcl+bce-en2": {"loss.name": OURS, "loss.kind_weights": {"EN": 2.0, "RN": 1.0, "PRN": 1.0, "GN": 1.0}},
    "ghcl+bce-easy.5": {"loss.name": OURS, "loss.kind_weights": {"EN": 1.0, "RN": 1.0, "PRN": 0.5, "GN": 0.5}},
}

# What a plain run trains of each model that it concerns.
EVERYWHERE = (*LOSSES, OURS + PUBLISHED, DISTILLED)
MAIN_WORLD = (HARD,)
MAIN_WORLD_MORE = (
    *[loss + PUBLISHED for loss in LOSSES if loss != OURS],
    "ghcl+bce-wide",
    "ghcl+bce-medium",
    "infonce+bce-hard",
)  # not with --quick

# The expressive model's variant, of the same world and seed, that a variant of the light one learns from.
TEACHERS = {DISTILLED: OURS}

# Figure 3 of the paper: name on the axis -> (model, variant), from the cheapest to the dearest.
SIZES = {
    "light": ("light", OURS + PUBLISHED),
    "medium": ("expressive", "ghcl+bce-medium"),
    "heavy": ("expressive", OURS),
}
WIDE = ("light", "ghcl+bce-wide")
INTERESTS = ("light", OURS)

# Who is compared with itself under other losses: name -> (model, what its variants end with).
COMPARED = {"light": ("light", ""), "expressive": ("expressive", ""), "published light": ("light", PUBLISHED)}


@dataclass(frozen=True, order=True)
class Trial:
    """One training: `seed` draws weights, the order of batches and the held-out requests, alike for every variant."""

    world: str
    model: str
    variant: str
    seed: int

    def __str__(self) -> str:
        return f"{self.world} {self.model} {self.variant} seed {self.seed}"


def variant_params(base: Params, variant: str, seed: int, epochs: int) -> Params:
    """The world's parameters with the variant's own, for a fixed number of epochs that nothing cuts short.

    Raises:
        ConfigError: a variant names a key that params.yaml has not.
    """
    raw = base.model_dump(mode="json")
    fixed: Override = {"seed": seed, "train.epochs": epochs, "train.patience": epochs, "train.conflict_steps": 0, "train.threads": 1}
    for key, value in {**VARIANTS[variant], **fixed}.items():
        *path, last = key.split(".")
        place = raw
        for part in path:
            place = place[part]
        place[last] = value
    return resolve(raw, f"variant {variant}")


def plan(
    worlds: Sequence[str],
    seeds: Sequence[int],
    models: Sequence[str] = MODELS,
    variants: Sequence[str] | None = None,
    *,
    more: bool = True,
) -> list[Trial]:
    """Every trial, seed 1 of everything first, so that a run cut short has something to show of all.

    Args:
        worlds: the first is the main one.
        variants: only these, in every world; None for those of a plain run.
        more: whether a plain run has MAIN_WORLD_MORE, too.
    """
    trials = []
    main_world = MAIN_WORLD + (MAIN_WORLD_MORE if more else ())
    for seed in seeds:
        for place, world in enumerate(worlds):
            for model in models:
                usual = EVERYWHERE + (main_world if place == 0 else ())
                trials += [Trial(world, model, variant, seed) for variant in (variants or usual) if concerns(variant, model)]
    return trials


def teacher(trial: Trial) -> Trial | None:
    """The trial whose model this one learns from."""
    variant = TEACHERS.get(trial.variant)
    return Trial(trial.world, "expressive", variant, trial.seed) if variant else None


def concerns(variant: str, model: str) -> bool:
    """Whether the variant is one of this model's: not, where it sets something of the other model."""
    return not any(key.startswith(f"{other}.") for key in VARIANTS[variant] for other in MODELS if other != model)
