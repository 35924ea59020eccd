"""export, promotion, ledger, mlflow, serving, keep, schedule, storage: a version on its way, and what runs and keeps it."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from hap.params.base import Cron, Share, Strict


class Export(Strict):
    weights: Literal["fp32", "fp16"] = Field(
        default="fp32", description="how the graphs store their weights: fp16 is half the bytes; they compute in fp32 either way"
    )


class Promotion(Strict):
    auto: bool = Field(default=False, description="whether the flow itself promotes what passed, where a server runs")


class Ledger(Strict):
    url: str | None = Field(default=None, description="SQLAlchemy URL, a file's path from the workspace on; null: registry/ledger.db")


class Mlflow(Strict):
    tracking_uri: str | None = Field(default=None, description="null: registry/mlflow.db of the workspace")
    experiment: str = "hap"


class TensorRT(Strict):
    """The GPU of a Triton that somebody else runs, through ONNX Runtime's TensorRT: the request sizes that engines are built for."""

    opt_candidates: int = Field(default=300, ge=1, description="N that engines are made fastest for: what a usual request has")
    max_candidates: int = Field(default=2000, ge=2000, description="largest N; a request beyond it fails. The golden requests have 2,000")
    engine_cache: str = Field(
        default="/var/cache/hap-tensorrt",
        pattern=r"^/[^\s:,]*$",
        description="folder where the server keeps built engines; of the server's own file system, and written by it",
    )
    workspace_mb: float = Field(default=1024.0, gt=0, description="MiB of GPU memory that a member may use while it runs")

    @model_validator(mode="after")
    def _opt_is_within(self) -> "TensorRT":
        if self.opt_candidates > self.max_candidates:
            raise ValueError(f"serving.tensorrt.opt_candidates {self.opt_candidates} is above max_candidates {self.max_candidates}")
        return self


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
    tensorrt: TensorRT | None = Field(
        default=None, description="what versions are rendered with for a GPU, by the onnxruntime backend; null: the CPU, {}: the defaults"
    )
    load_deadline_s: float = Field(
        default=60.0, gt=0, description="for the loading of one model; building TensorRT's engines takes minutes"
    )
    deadline_s: float = Field(default=5.0, gt=0, description="for one call of a client, its retries included")
    retries: int = Field(default=2, ge=0, description="of a call that was answered UNAVAILABLE, and of no other; within its deadline")
    shared_memory: bool = Field(default=False, description="whether tensors go by shared memory; only to a server on the same host")
    log_to: str | None = Field(
        default=None, description="folder below the workspace, or an absolute path, that a share of the served requests is written to"
    )
    log_share: Share = Field(default=0.01, description="share of the served requests that is written, by the hash of request_id")
    log_file_mb: float = Field(default=64.0, gt=0, description="MiB after which a file of served requests is closed and the next begun")
    log_file_s: float = Field(default=600.0, gt=0, description="seconds after which such a file is closed: what a killed client can lose")
    log_queue_mb: float = Field(default=64.0, gt=0, description="MiB that may wait to be written; what is beyond is dropped and counted")
    canary_s: float = Field(default=1.0, gt=0, description="seconds between two canary inferences of `serve`")

    @model_validator(mode="after")
    def _own_server_has_python_only(self) -> "Serving":
        if self.backend == "onnxruntime" and self.url is None:
            raise ValueError("serving.backend onnxruntime needs serving.url: the server of `hapctl serve` has the python backend alone")
        if self.tensorrt is not None and self.backend != "onnxruntime":
            raise ValueError("serving.tensorrt needs serving.backend: onnxruntime; the python backend has no GPU")
        return self


class Keep(Strict):
    """What `hapctl gc` leaves whole, beyond the champion, the version before it, and whatever is loaded or pinned."""

    versions: int = Field(default=3, ge=1, description="of what served last (so deep a rollback goes), and of what was registered last")
    days: int = Field(default=30, ge=0, description="versions registered in the last so many days")
    free_remote: bool = Field(default=False, description="free a DVC remote outside of the workspace, too: no other workspace pushes there")


class Schedule(Strict):
    cron: Cron = "0 3 * * *"
    timezone: str = Field(default="UTC", description="of every cron in params.yaml")

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
