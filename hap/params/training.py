"""train, loss, light, expressive, route: the models, how they learn, and how a request is split between them."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from hap.params.base import NEGATIVES, Count, Negative, Share, Strict


class Train(Strict):
    days: Count = Field(default=7, description="of the window: one week holds every weekday once")
    heldout_share: float = Field(default=0.2, gt=0, lt=0.5, description="of the users, whose last day of the window stops training")
    epochs: Count = Field(default=8, description="at most; of six the second to the sixth have been the best (docs/results.md)")
    patience: int = Field(default=5, ge=1, description="epochs without a better held-out GAUC before stopping")
    batch_requests: int = Field(default=128, ge=1, description="whole requests of one step, over all processes")
    pool_row_groups: int = Field(
        default=16, ge=1, description="row groups of samples that a batch mixes; of several processes each reads its own of them"
    )
    learning_rate: float = Field(default=1e-3, gt=0, description="Adam's, of all but the tables: its authors' default, not tuned here")
    embedding_learning_rate: float = Field(
        default=0.02, gt=0, description="Adagrad's, of the tables; .05 looks better on held-out requests and is worse on the next day"
    )
    warmup_steps: int = Field(default=20, ge=0, description="of Adam, whose first steps are large: its mean of squares has seen little")
    clip_norm: float = Field(default=5.0, gt=0, description="of the dense gradient: a bound for broken batches")
    threads: int = Field(default=1, ge=1, description="of each process; two spinning ones on a busy machine are slower than one")
    processes: int = Field(default=1, ge=1, description="training together on this machine; torchrun starts them")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="auto: bf16 on a GPU that has it, else fp32")
    compile: bool = Field(default=False, description="torch.compile; pays on a GPU and on long trainings")
    checkpoint_steps: int = Field(default=500, ge=1, description="steps between two checkpoints; one is made after each epoch, too")
    keep_checkpoints: Count = Field(default=2, description="the latest ones: a second for when the last cannot be read")
    log_steps: int = Field(default=20, ge=1, description="steps between two points of the curves, and two checks that losses are finite")
    warm_start: bool = Field(default=False, description="begin from the weights of the version that served before the day judged")
    conflict_steps: int = Field(default=100, ge=0, description="steps between two looks at how the kinds pull; 0 never looks")
    surgery: Literal["none", "pcgrad", "gradvac"] = Field(default="none", description="what the kinds' gradients undergo before a step")
    sampling: Literal["all", "conflict"] = Field(
        default="all",
        description="which negatives a step learns from: all, or fewer of the kinds that the last looks saw in the others' way",
    )
    gradvac_beta: float = Field(default=0.01, gt=0, le=1, description="gradvac only: share of the latest cosine in the running mean")

    @model_validator(mode="after")
    def _looks_to_sample_by(self) -> "Train":
        if self.sampling == "conflict" and not self.conflict_steps:
            raise ValueError(
                "sampling conflict goes by looks at the conflict, and conflict_steps: 0 never looks; set conflict_steps to 5 or so"
            )
        return self

    @model_validator(mode="after")
    def _something_to_read_for_each(self) -> "Train":
        if self.processes > self.pool_row_groups:
            raise ValueError(
                f"processes {self.processes} share the row groups that a batch mixes, pool_row_groups: {self.pool_row_groups}, "
                f"and some would have nothing to read; set pool_row_groups to {self.processes} or more, or take fewer processes"
            )
        return self


class Loss(Strict):
    name: Literal["bce", "infonce", "infonce+bce", "ghcl", "ghcl+bce"] = "ghcl+bce"
    temperature: float = Field(default=1.0, gt=0, description="of the contrasts; .25 to 2 came to the same in a first experiment")
    bce_weight: float = Field(default=1.0, ge=0, description="of the click loss, which makes scores probabilities; 0 leaves it out")
    kind_weights: dict[Negative, Annotated[float, Field(ge=0)]] = Field(
        default={"EN": 1.0, "RN": 1.0, "PRN": 1.0, "GN": 1.0}, description="what each kind of negative counts in the loss"
    )
    weighting: Literal["fixed", "uncertainty", "curriculum"] = Field(
        default="fixed", description="of ghcl's groups, beyond kind_weights: learned by uncertainty, or easy kinds first"
    )
    curriculum_epochs: int = Field(default=3, ge=1, description="curriculum only: epochs before every kind has its full weight")

    @model_validator(mode="after")
    def _groups_to_weigh(self) -> "Loss":
        if self.weighting != "fixed" and not self.name.startswith("ghcl"):
            raise ValueError(
                f"weighting {self.weighting} weighs a term for each kind, and {self.name} has none; take ghcl+bce, or weighting: fixed"
            )
        return self


def _all_or_some(value: object) -> object:
    if value != "all" and not (isinstance(value, list | tuple) and value and all(kind in NEGATIVES for kind in value)):
        raise ValueError(f"takes `all`, or a list with at least one of {', '.join(NEGATIVES)}")
    return value


Kinds = Annotated[Literal["all"] | tuple[Negative, ...], BeforeValidator(_all_or_some)]


class Model(Strict):
    """`size` is the one dial: the width of the towers; every other width follows from it.

    The published sizes, 1.8 M and 6.2 M parameters outside the tables, are light.size 152 and expressive.size 488 with the
    default columns; `hapctl describe` counts them for yours.
    """

    size: Annotated[int, Field(ge=8, multiple_of=8)]
    embedding_dim: int = Field(default=16, ge=2, description="numbers of one id's vector: what its table costs; not tuned here")
    train_kinds: Kinds = "all"

    def kinds(self) -> tuple[str, ...]:
        """The kinds of negatives that this model is trained on, hardest first."""
        return tuple(kind for kind in NEGATIVES if self.train_kinds == "all" or kind in self.train_kinds)


class Light(Model):
    interests: int = Field(
        default=4, ge=0, description="weighted means of the history that candidates are multiplied with; 0 is the published light model"
    )
    distill: float = Field(default=0.0, ge=0, description="weight of the divergence from the expressive model's softmax over each request")


SHARE_SLACK = 1e-9  # 0.7 * 10 is 7.000000000000001 in float64: K must be 7


class Route(Strict):
    """How many candidates the expressive model rescores: K = ceil(share * N), or K = k. A request's own k wins."""

    share: Share | None = 0.3
    k: Annotated[int, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "Route":
        if (self.share is None) == (self.k is None):
            raise ValueError("route needs exactly one of `share` and `k`; set the other to null")
        return self
