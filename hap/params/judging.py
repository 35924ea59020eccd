"""gate: what a version must keep."""

from typing import Annotated

from pydantic import Field, model_validator

from hap.params.base import Count, Negative, Strict


class Slice(Strict):
    """A part of the judged clicks that is looked at on its own: one value of a column, new values, or small ones.

    Columns are the ids and categories of features.user, context and item, and `history_length`, the events that a request has.
    """

    column: str
    values: tuple[int, ...] | None = Field(
        default=None, description="one slice for each; null: for each value with clicks enough, and a few of the others"
    )
    below: int | None = Field(default=None, description="values under this one")
    new: bool = Field(default=False, description="values that the training window did not have")

    @model_validator(mode="after")
    def _one_way(self) -> "Slice":
        if (self.values is not None) + (self.below is not None) + self.new > 1:
            raise ValueError(f"slice of {self.column!r}: give one of `values`, `below` and `new`, or none of them for every value")
        return self


class Recall(Strict):
    """Of the judging days' requests with all their candidates: what the cascade finds, against the champion's."""

    at: int = Field(default=20, ge=1, description="K: the length of the list that users see, or that ranking takes")
    margin: float = Field(default=0.03, gt=0, description="Recall@K that a challenger may lose")
    requests: int = Field(default=2000, ge=1, description="with a click, drawn by hash; every candidate of each is scored")
    min_positives: int = Field(default=1000, ge=1, description="clicks from which recall judges; below it is only reported")


class Gate(Strict):
    days: int = Field(default=1, ge=1, description="judging days pooled, up to and with the day judged")
    margin: float = Field(default=0.01, gt=0, description="GAUC that a challenger may lose on any guarded rule")
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    floors: dict[Negative, Annotated[float, Field(ge=0, le=1)]] = Field(
        default={"EN": 0.45, "RN": 0.5, "PRN": 0.5, "GN": 0.5}, description="least GAUC against a kind, of each member guarded there"
    )
    min_requests: Count = 200
    min_positives: Count = 100
    slices: tuple[Slice, ...] = Field(default=(), description="parts of the clicks that the cascade may not be worse on, either")
    slice_margin: float = Field(default=0.02, gt=0, description="GAUC that it may lose on a slice: wider, since slices are small")
    slice_min_positives: int = Field(default=1000, ge=1, description="clicks from which a slice guards; below it is only reported")
    recall: Recall = Recall()
    bootstrap_draws: Annotated[int, Field(ge=100)] = 1000
    max_parity: float = Field(default=1e-4, gt=0, description="largest score difference, exported graph against PyTorch")
    max_p99_ms: float | None = Field(default=None, gt=0, description="of the ensemble, 1,000 candidates, in process; null: no budget")
    max_operations: float | None = Field(default=1.0, gt=0, description="of the ensemble, 1,000 candidates, over expressive on all")
    max_age_days: int | None = Field(default=7, ge=1, description="from the newest day that each member was trained on to the judging day")
