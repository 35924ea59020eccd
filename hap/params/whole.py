"""The whole of params.yaml."""

from typing import Annotated

from pydantic import Field, model_validator

from hap.params.base import MODELS, Strict
from hap.params.features import Features
from hap.params.judging import Gate
from hap.params.release import Export, Keep, Ledger, Mlflow, Promotion, Schedule, Serving, Storage
from hap.params.samples import Collect, Logs
from hap.params.training import Light, Loss, Model, Route, Train
from hap.params.watching import Alerts, Drift, Estimate, Funnel, Labels, Skew, Staleness, Traffic


class Params(Strict):
    """The whole of params.yaml."""

    seed: Annotated[int, Field(ge=0)] = 1
    features: Features
    logs: Logs = Logs()
    collect: Collect = Collect()
    train: Train = Train()
    loss: Loss = Loss()
    light: Light = Light(size=64)
    expressive: Model = Model(size=96)
    route: Route = Route()
    export: Export = Export()
    gate: Gate = Gate()
    promotion: Promotion = Promotion()
    ledger: Ledger = Ledger()
    mlflow: Mlflow = Mlflow()
    serving: Serving = Serving()
    drift: Drift = Drift()
    funnel: Funnel = Funnel()
    estimate: Estimate = Estimate()
    skew: Skew = Skew()
    staleness: Staleness = Staleness()
    traffic: Traffic = Traffic()
    labels: Labels = Labels()
    alerts: Alerts = Alerts()
    keep: Keep = Keep()
    schedule: Schedule = Schedule()
    storage: Storage = Storage()

    @model_validator(mode="after")
    def _slices_are_declared(self) -> "Params":
        known = [f.name for group in ("user", "item") for f in self.features.ids(group)] + ["history_length"]  # type: ignore[arg-type]
        for one in self.gate.slices:
            if one.column not in known:
                raise ValueError(f"gate.slices: {one.column!r} is none of {', '.join(known)}")
            if one.new and one.column == "history_length":
                raise ValueError("gate.slices: history_length is a number of events, none of which is new; give `below` or `values`")
        return self

    @model_validator(mode="after")
    def _every_model_has_something_to_learn(self) -> "Params":
        loss = self.loss
        for name in MODELS:
            kinds = getattr(self, name).kinds()
            weighed = any(loss.kind_weights.get(kind, 1.0) > 0 for kind in kinds)
            pairs = loss.name.startswith("infonce") or (loss.name.startswith("ghcl") and weighed)
            if not pairs and not ("bce" in loss.name and loss.bce_weight > 0):
                raise ValueError(
                    f"loss {loss.name} gives {name} nothing to learn from: every term weighs 0; "
                    f"raise loss.bce_weight or the loss.kind_weights of {', '.join(kinds)}, or take another loss.name"
                )
        return self

    @model_validator(mode="after")
    def _training_goes_together(self) -> "Params":
        if self.train.surgery != "none" and self.loss.weighting == "uncertainty":
            raise ValueError(
                f"train.surgery {self.train.surgery} and loss.weighting uncertainty both set what a kind weighs in a step; set one of them"
            )
        if self.loss.weighting == "curriculum" and self.loss.curriculum_epochs >= self.train.epochs:
            raise ValueError(
                f"loss.curriculum_epochs {self.loss.curriculum_epochs} must be below train.epochs {self.train.epochs}: "
                "the hard kinds would never have their full weight"
            )
        return self
