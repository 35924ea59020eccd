"""features: the declared columns."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hap.params.base import Strict

# Columns of the logs, of samples and of served requests.
RESERVED = {"request_id", "item_id", "event_time", "ingest_time", "published", "day", "kind", "bucket", "position", "k"}
RESERVED |= {"served_at", "version", "score", "routed"}


class Feature(Strict):
    """One declared column. `age_hours` is computed (see hap.samples.ages), every other one is read from the logs."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    type: Literal["id", "category", "dense"]
    rows: int | None = Field(default=None, ge=2, description="rows of the hashed embedding table; ids and categories only")
    missing: float = Field(default=0.0, description="stands in for an absent dense value before scaling")
    scale: Literal["linear", "log"] = Field(default="linear", description="log: log(1 + max(x, 0)) before normalisation")
    known: int | None = Field(default=None, ge=1, description="categories only: the log contract admits 1..known; null admits any")

    @model_validator(mode="after")
    def _rows_go_with_ids(self) -> "Feature":
        if self.known is not None and self.type != "category":
            raise ValueError(f"feature {self.name!r}: `known` has a meaning for a category only, not for type {self.type}")
        if (self.type == "dense") != (self.rows is None):
            raise ValueError(f"feature {self.name!r}: `rows` is needed for an id or category and has no meaning for dense")
        return self


class Features(Strict):
    """The declared columns in tensor order; the same object is the feature part of a bundle's schema.json."""

    user: tuple[Feature, ...]
    context: tuple[Feature, ...] = ()
    item: tuple[Feature, ...]
    history: tuple[Feature, ...]
    history_length: int = Field(default=20, ge=1, description="L: the most recent events that are kept")

    @model_validator(mode="after")
    def _names(self) -> "Features":
        for group in (self.user + self.context, self.item, self.history):
            names = [feature.name for feature in group]
            if len(set(names)) < len(names):
                raise ValueError(f"a feature is declared twice among {names}")
        request_level = {feature.name for feature in self.user + self.context}
        if clash := request_level & (RESERVED | {"age_hours"}):
            raise ValueError(f"{sorted(clash)} cannot name user or context features: the logs use these names")
        tables: dict[str, int | None] = {}
        for feature in self.user + self.context + self.item + self.history:
            if feature.type != "dense" and tables.setdefault(feature.name, feature.rows) != feature.rows:
                raise ValueError(f"feature {feature.name!r} shares one table, so its `rows` must agree wherever it is declared")
        if not any(feature.name == "item_id" for feature in self.item):
            raise ValueError("features.item must declare item_id")
        if not self.ids("history") or self.ids("history")[0].name != "item_id":
            raise ValueError("features.history must declare item_id as its first id: 0 there tells padding from an event")
        if not self.ids("user"):
            raise ValueError("features.user or features.context must declare an id or a category")
        return self

    def ids(self, group: Literal["user", "item", "history"]) -> tuple[Feature, ...]:
        """Ids and categories of a group in tensor order; context counts with the user."""
        return tuple(feature for feature in self._group(group) if feature.type != "dense")

    def dense(self, group: Literal["user", "item", "history"]) -> tuple[Feature, ...]:
        """Dense features of a group in tensor order; context counts with the user."""
        return tuple(feature for feature in self._group(group) if feature.type == "dense")

    def _group(self, group: Literal["user", "item", "history"]) -> tuple[Feature, ...]:
        return self.user + self.context if group == "user" else getattr(self, group)
