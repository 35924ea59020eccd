"""params.yaml as frozen values: every key has a type, a unit and a range, and an unknown one is refused.

People edit params.yaml; `resolve` fills in the defaults; a retrain writes the result to run.yaml, which
the reproducible stages read. Defaults stand here, reasons beside them; params.yaml of a new workspace
shows the ones that people change first.
"""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hap.errors import ConfigError

KINDS = ("EP", "EN", "RN", "PRN", "GN")  # the code of a kind in samples is its place here
NEGATIVES = KINDS[1:]
Negative = Literal["EN", "RN", "PRN", "GN"]
# Columns of the logs, of samples and of served requests.
RESERVED = {"request_id", "item_id", "event_time", "ingest_time", "published", "day", "kind", "bucket", "position", "k"}
RESERVED |= {"served_at", "version", "score", "routed"}
MODELS = ("light", "expressive")
Severity = Literal["page", "ticket", "info"]
SEVERITIES: tuple[Severity, ...] = ("page", "ticket", "info")  # the worst first: wake someone, tell someone, write it down

Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """Frozen, keyword-only, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


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


class Logs(Strict):
    path: str = Field(default="logs", description="folder below the workspace, or an absolute path")
    complete: bool = Field(default=True, description="whether every candidate of a request is logged, with its position")
    positive: str = Field(default="click", description="the feedback column that makes an exposure positive")
    quarantine: bool = Field(default=False, description="whether rows that break the contract are set aside instead of refusing the day")
    max_bad_share: float = Field(default=0.01, ge=0, lt=1, description="quarantine: largest share of a table's rows that may be set aside")
    max_unknown_share: float = Field(default=0.01, ge=0, le=1, description="largest share of samples whose item the day's catalogue lacks")


class Window(Strict):
    """Which negatives of a stage are sampled."""

    below: float = Field(ge=0, description="only positions greater than this; under 1 it is a share of the stage's list")
    count: int | None = Field(ge=1, description="at most this many per request, drawn by the sampling key; null takes all")
    edges: tuple[float, ...] = Field(description="where difficulty buckets begin (Rank-50); under 1 a share of the list")

    @field_validator("edges")
    @classmethod
    def _one_unit(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len({0 < edge < 1 for edge in value if edge}) > 1:
            raise ValueError(
                "edges must be all positions or all shares of the list (under 1): which of 50 and 0.5 is larger depends on the list"
            )
        return value


class Collect(Strict):
    label_delay_hours: Annotated[float, Field(ge=0)] = 2.0
    rank: Window = Window(below=50, count=10, edges=(50,))  # [paper] ToutiaoRec's rule
    prerank: Window = Window(below=200, count=10, edges=(200,))  # [paper]
    global_per_positive: int = Field(default=2, ge=0, description="GN for each EP")
    max_positives: Count = 50
    requests_without_positive: Literal["keep", "drop"] = "keep"
    engine: Literal["duckdb", "spark"] = Field(default="duckdb", description="what evaluates the samples; the same bytes from both")
    spark_master: str = Field(default="local[2]", description="Spark's master URL; spark only")
    memory_limit: Annotated[str, Field(pattern=r"^[0-9]+(MB|GB)$")] = "2GB"
    threads: Count = 2
    row_group_requests: Count = 256


class Train(Strict):
    days: Count = 7
    heldout_share: float = Field(default=0.2, gt=0, lt=0.5, description="of the users, whose last day of the window stops training")
    epochs: Count = 8
    patience: int = Field(default=5, ge=1, description="epochs without a better held-out GAUC before stopping")
    batch_requests: int = Field(default=128, ge=1, description="whole requests of one step, over all processes")
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    embedding_learning_rate: Annotated[float, Field(gt=0)] = 0.02
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    clip_norm: Annotated[float, Field(gt=0)] = 5.0
    threads: int = Field(default=1, ge=1, description="of each process; two spinning ones on a busy machine are slower than one")
    processes: int = Field(default=1, ge=1, description="training together on this machine; torchrun starts them")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = Field(default="auto", description="auto: bf16 on a GPU that has it, else fp32")
    compile: bool = Field(default=False, description="torch.compile; pays on a GPU and on long trainings")
    checkpoint_steps: int = Field(default=500, ge=1, description="steps between two checkpoints; one is made after each epoch, too")
    keep_checkpoints: Count = 2
    log_steps: int = Field(default=20, ge=1, description="steps between two points of the curves, and two checks that losses are finite")
    warm_start: bool = Field(default=False, description="begin from the weights of the version that served before the day judged")
    conflict_steps: int = Field(default=100, ge=0, description="steps between two looks at how the kinds pull; 0 never looks")
    surgery: Literal["none", "pcgrad", "gradvac"] = Field(default="none", description="what the kinds' gradients undergo before a step")
    gradvac_beta: float = Field(default=0.01, gt=0, le=1, description="gradvac only: share of the latest cosine in the running mean")


class Loss(Strict):
    name: Literal["bce", "infonce", "infonce+bce", "ghcl", "ghcl+bce"] = "ghcl+bce"
    temperature: Annotated[float, Field(gt=0)] = 1.0
    bce_weight: Annotated[float, Field(ge=0)] = 1.0
    kind_weights: dict[Negative, Annotated[float, Field(ge=0)]] = {"EN": 1.0, "RN": 1.0, "PRN": 1.0, "GN": 1.0}
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


class Model(Strict):
    """`size` is the one dial: the width of the towers; every other width follows from it.

    The published sizes, 1.8 M and 6.2 M parameters outside the tables, are light.size 152 and expressive.size 488 with the
    default columns; `hapctl describe` counts them for yours.
    """

    size: Annotated[int, Field(ge=8, multiple_of=8)]
    embedding_dim: Annotated[int, Field(ge=2)] = 16
    train_kinds: Literal["all"] | tuple[Negative, ...] = "all"

    def kinds(self) -> tuple[str, ...]:
        """The kinds of negatives that this model is trained on, hardest first."""
        return tuple(kind for kind in NEGATIVES if self.train_kinds == "all" or kind in self.train_kinds)


class Light(Model):
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


class Slice(Strict):
    """A part of the judged clicks that is looked at on its own: one value of a column, new values, or small ones.

    Columns are the ids and categories of features.user, context and item, and `history_length`, the events that a request has.
    """

    column: str
    values: tuple[int, ...] | None = Field(default=None, description="one slice for each; null: for each value with clicks enough")
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
    floors: dict[Negative, Annotated[float, Field(ge=0, le=1)]] = {"EN": 0.45, "RN": 0.5, "PRN": 0.5, "GN": 0.5}
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
    max_age_days: int | None = Field(default=7, ge=1, description="from the newest day a version was trained on to the judging day")


class Export(Strict):
    weights: Literal["fp32", "fp16"] = Field(
        default="fp32", description="how the graphs store their weights: fp16 is half the bytes; they compute in fp32 either way"
    )


class Promotion(Strict):
    auto: bool = Field(default=False, description="whether the flow itself promotes what passed, where a server runs")


class Ledger(Strict):
    url: str | None = Field(default=None, description="SQLAlchemy URL; null: registry/ledger.db of the workspace")


class Mlflow(Strict):
    tracking_uri: str | None = Field(default=None, description="null: registry/mlflow.db of the workspace")
    experiment: str = "hap"


class Serving(Strict):
    host: str = "127.0.0.1"
    http_port: Annotated[int, Field(ge=1, le=65535)] = 18000
    grpc_port: Annotated[int, Field(ge=1, le=65535)] = 18001
    metrics_port: Annotated[int, Field(ge=1, le=65535)] = 18002
    url: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9._\-]+:[0-9]+$|^\[[0-9A-Fa-f:.]+\]:[0-9]+$",
        description="HOST:PORT of the gRPC of a Triton that somebody else runs over the workspace's triton/; null: `hapctl serve` runs one",
    )
    backend: Literal["python", "onnxruntime"] = Field(
        default="python",
        description="what versions are rendered for: python fits hap's own server, onnxruntime the official container",
    )
    deadline_s: float = Field(default=5.0, gt=0, description="for one call of a client, its retries included")
    retries: int = Field(default=2, ge=0, description="of a call that was answered UNAVAILABLE, and of no other; within its deadline")
    shared_memory: bool = Field(default=False, description="whether tensors go by shared memory; only to a server on the same host")
    log_to: str | None = Field(
        default=None, description="folder below the workspace, or an absolute path, that a share of the served requests is written to"
    )
    log_share: Share = Field(default=0.01, description="share of the served requests that is written, by the hash of request_id")
    log_file_mb: float = Field(default=64.0, gt=0, description="MiB after which a file of served requests is closed and the next begun")
    log_queue_mb: float = Field(default=64.0, gt=0, description="MiB that may wait to be written; what is beyond is dropped and counted")
    canary_s: float = Field(default=1.0, gt=0, description="seconds between two canary inferences of `serve`")

    @model_validator(mode="after")
    def _own_server_has_python_only(self) -> "Serving":
        if self.backend == "onnxruntime" and self.url is None:
            raise ValueError("serving.backend onnxruntime needs serving.url: the server of `hapctl serve` has the python backend alone")
        return self


class Drift(Strict):
    """Thresholds by column type; the method is stated in the page."""

    numeric_method: Literal["wasserstein", "psi"] = "wasserstein"
    numeric_threshold: float = Field(default=0.1, gt=0, description="wasserstein: standard deviations; psi: its value")
    categorical_method: Literal["jensenshannon", "psi"] = "jensenshannon"
    categorical_threshold: Annotated[float, Field(gt=0)] = 0.1
    max_rows: Count = 20_000
    page_from: float = Field(
        default=3.0,
        gt=1,
        description="times its threshold from which a drifted column wakes someone, as a lost one does; below it is a ticket, since "
        "the threshold says that a column moved, and not that tonight's answers are wrong",
    )
    blocks_promotion: bool = Field(default=False, description="whether an open incident that pages holds promotions; --force overrides")


# A place is named by a variable, so that no secret lies in a file that git tracks.
Variable = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9_]*$")]


class Alerts(Strict):
    """Whom to tell, by severity: names of environment variables, each of which holds one Apprise URL."""

    page: tuple[Variable, ...] = ()
    ticket: tuple[Variable, ...] = ()
    info: tuple[Variable, ...] = ()
    grow: float = Field(default=1.5, gt=1, description="times the figure last told from which an open incident is told again")
    deadline_s: float = Field(default=10.0, ge=1, description="of one delivery, from starting its process; what takes longer is ended")
    attempts: int = Field(default=3, ge=1, description="at delivering before a message is kept for the next command")
    retry_wait_s: float = Field(default=1.0, ge=0, description="before the second attempt; doubled before each further one")

    def places(self, severity: str) -> tuple[str, ...]:
        """The variables that name the places of a severity."""
        return tuple(dict.fromkeys(getattr(self, severity)))

    def every_place(self) -> tuple[str, ...]:
        """The variables of all severities."""
        return tuple(dict.fromkeys(name for severity in SEVERITIES for name in self.places(severity)))


class Keep(Strict):
    """What `hapctl gc` leaves whole, beyond the champion, the version before it, and whatever is loaded or pinned."""

    versions: int = Field(default=3, ge=1, description="of what served last (so deep a rollback goes), and of what was registered last")
    days: int = Field(default=30, ge=0, description="versions registered in the last so many days")
    free_remote: bool = Field(default=False, description="free a DVC remote outside of the workspace, too: no other workspace pushes there")


class Schedule(Strict):
    cron: str = "0 3 * * *"
    timezone: str = "UTC"

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, value: str) -> str:
        if len(value.split()) != 5:
            raise ValueError(f"schedule.cron {value!r} needs five fields, such as '0 3 * * *'")
        return value

    @field_validator("timezone")
    @classmethod
    def _known(cls, value: str) -> str:
        import zoneinfo

        if value not in zoneinfo.available_timezones():
            raise ValueError(f"schedule.timezone {value!r} is not in the tz database; write for example Europe/Berlin")
        return value


class Storage(Strict):
    dvc_remote: str = Field(default="remote", description="folder below the workspace, or any URL that DVC accepts")
    push: bool = True


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


def load_params(path: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        ConfigError: no such file, not YAML, an unknown key (with the nearest known one) or a bad value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; `hapctl init` writes one with every default explained") from None
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        shown = " ".join("(a URL)" if "://" in word else word for word in str(error).split())  # the line at fault may hold a secret
        raise ConfigError(f"{path} is not YAML: {shown}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold keys and values, not {type(raw).__name__}")
    return resolve(raw, str(path))


def resolve(raw: dict[str, Any], source: str) -> Params:
    """Check raw values and fill in defaults; `source` names them in errors.

    Raises:
        ConfigError: an unknown key or a bad value.
    """
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        # An unknown key is told first: a misspelt one also shows as a missing one.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        key = ".".join(str(part) for part in first["loc"])
        if first["loc"][:1] == ("alerts",):
            raise ConfigError(f"{source}: {_alerts_error(first['loc'], first['type'], first['msg'])}{more}") from None
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(first["loc"][-1]), _known_keys(first["loc"][:-1]), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(_known_keys(first['loc'][:-1]))}"
            raise ConfigError(f"{source}: unknown key {key!r}{hint}{more}") from None
        message = first["msg"].removeprefix("Value error, ")
        where = f"{key}: " if key else ""
        raise ConfigError(f"{source}: {where}{message}; found {str(first['input'])[:60]!r}{more}") from None


def _alerts_error(location: tuple[Any, ...], kind: str, message: str) -> str:
    """What is wrong with the section `alerts`, without what stands there: that may be a URL, and so a secret."""
    key = ".".join(str(part) for part in location)
    known = _known_keys(("alerts",))
    if kind == "extra_forbidden":
        named = f"unknown key {key!r}" if key.replace(".", "").isidentifier() else "a key of alerts that is not a name"
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        return f"{named}; did you mean {near[0]!r}?" if near else f"{named}; known here: {', '.join(known)}"
    if len(location) > 1 and location[1] not in SEVERITIES:
        return f"{key}: {message}"
    return (
        f"{key} takes names of environment variables in capitals, such as [HAP_ALERTS_PAGE], and no URL, since a URL holds a secret; "
        "put the URL into the environment: `export HAP_ALERTS_PAGE=URL`"
    )


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """The field names of the model at `location` inside Params."""
    model: Any = Params
    for part in location:
        if isinstance(part, str) and isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = model.model_fields[part].annotation
            options = [a for a in get_args(model) if isinstance(a, type) and issubclass(a, BaseModel)]
            model = options[0] if options else model
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
