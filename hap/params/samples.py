"""logs and collect: what is read, and what becomes a sample."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from hap.params.base import Count, Strict


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
    row_group_requests: int = Field(
        default=1024, ge=1, description="of a Parquet row group: what training reads and shuffles at a time; smaller ones cost it time"
    )
