"""What every section of params.yaml is made of."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

KINDS = ("EP", "EN", "RN", "PRN", "GN")  # the code of a kind in samples is its place here
NEGATIVES = KINDS[1:]
Negative = Literal["EN", "RN", "PRN", "GN"]
MODELS = ("light", "expressive")
Severity = Literal["page", "ticket", "info"]
SEVERITIES: tuple[Severity, ...] = ("page", "ticket", "info")  # the worst first: wake someone, tell someone, write it down

Share = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


def _five_fields(value: str) -> str:
    if len(value.split()) != 5:
        raise ValueError(f"{value!r} needs five fields, such as '0 3 * * *'")
    return value


Cron = Annotated[str, AfterValidator(_five_fields)]


class Strict(BaseModel):
    """Frozen, keyword-only, no unknown keys, no number without end: YAML's .inf would train a model on nothing, or stop no night."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)
