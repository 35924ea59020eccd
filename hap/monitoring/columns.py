"""The columns of samples that drift judges, and what it says of one."""

from dataclasses import dataclass
from typing import Literal

from hap.params import KINDS, Features

Level = Literal["request", "event", "candidate"]
GN = KINDS.index("GN")


@dataclass(frozen=True)
class Column:
    """One judged column. Rows that share a value of `cluster` are not independent: a popular item's price is drawn once.

    Where `alike` is set they do not have one value, but values that resemble each other: a user's requests come at the user's
    hours, and a history grows. How much is measured (hap.monitoring.drift).

    Of a history one event stands for its request, drawn by the request's key: what breaks in a profile shows in any of them. A
    request without events has none, which is history_length's to tell.
    """

    name: str
    type: Literal["numeric", "categorical"]
    level: Level
    sql: str  # over the samples' columns, of `value_sql`
    source: str  # the column of the samples that it is made from
    cluster: str | None = None
    role: Literal["value", "present", "seen", "rank"] = "value"
    alike: bool = False

    @property
    def of(self) -> str:
        """What a person calls it: the column that values are missing in."""
        return self.source if self.role == "present" else self.name


@dataclass(frozen=True)
class ColumnDrift:
    """One column as judged; `threshold` is the configured one widened by the noise of samples this small.

    Of missing values `value` is the change of their share of the rows, and the means are the shares. Of categories `moved` is the one
    whose share changed most, with its share of the rows in the reference and on the day.
    """

    method: str | None
    value: float | None
    threshold: float | None
    drifted: bool
    reference_mean: float | None
    current_mean: float | None
    reference_rows: int
    current_rows: int
    note: str | None = None
    moved: tuple[str, float, float] | None = None


def user_column(features: Features) -> str | None:
    """The column that says whose a request is: the user's first id; None where none is declared."""
    return next((feature.name for feature in features.user if feature.type == "id"), None)


def judged_columns(features: Features) -> list[Column]:
    """Every column that is compared, in the order of params.yaml; named as in the samples: NAME, hist_NAME, cand_NAME."""
    columns: list[Column] = []
    user, item = user_column(features), "cand_item_id"

    def add(name: str, type_: str, level: Level, cluster: str | None, alike: bool = False) -> None:
        value, there = value_sql(name, level), f'len(r."{name}") > 0' if level == "event" else "true"
        if type_ == "dense":
            columns.append(Column(name, "numeric", level, f"CAST({value} AS DOUBLE)", name, cluster, alike=alike))
            present = f"CASE WHEN {there} THEN CASE WHEN {value} IS NULL OR isnan({value}) THEN 'missing' ELSE 'present' END END"
            columns.append(Column(f"{name}_present", "categorical", level, present, name, cluster, "present", alike))
        elif type_ == "category":
            said = f"CASE WHEN {there} THEN coalesce(CAST({value} AS VARCHAR), 'missing') END"
            columns.append(Column(name, "categorical", level, said, name, cluster, alike=alike))
        else:  # a user is alone in having the id of a user; an item's id is drawn anew for each row, but for the rows of one history
            owner = cluster if level == "event" else None
            columns.append(Column(f"{name}_seen", "categorical", level, f"{name}_ids.seen", name, owner, "seen", alike))
            columns.append(Column(f"{name}_rank", "categorical", level, f"{name}_ids.rank", name, owner, "rank", alike))

    for feature in features.user:
        add(feature.name, feature.type, "request", user)
    for feature in features.context:
        add(feature.name, feature.type, "request", user, alike=True)
    kinds = "list_count(list_filter(cand_kind, lambda k: k = {}))"
    exposed = f"({kinds.format(0)} + {kinds.format(1)})"
    logged = f"(len(cand_kind) - {kinds.format(GN)})"  # GN are drawn by us, as many as there are clicks: not the cascade's doing
    figures = {
        "history_length": ("len(hist_age_hours)", "hist_age_hours"),
        "candidates": (logged, "cand_kind"),
        "click_rate": (f"{kinds.format(0)} / nullif({exposed}, 0)", "cand_kind"),
        "GN_per_EP": (f"{kinds.format(GN)} / nullif({kinds.format(0)}, 0)", "cand_kind"),
    }
    # How many are exposed is the cascade's doing, how many of them are clicked is not: EP and EN are one share.
    shares = {"exposed": exposed, "RN": kinds.format(KINDS.index("RN")), "PRN": kinds.format(KINDS.index("PRN"))}
    for kind, count in shares.items():
        figures[f"share_{kind}"] = (f"{count} / nullif({logged}, 0)", "cand_kind")
    for name in set(figures) & {feature.name for feature in features.user + features.context}:
        del figures[name]  # a declared feature keeps its name
    for name, (sql, source) in figures.items():
        columns.append(Column(name, "numeric", "request", f"CAST({sql} AS DOUBLE)", source, user, alike=True))
    for feature in features.history:
        add(f"hist_{feature.name}", feature.type, "event", user, alike=True)
    for feature in features.item:
        add(f"cand_{feature.name}", feature.type, "candidate", item)
    return columns


def value_sql(name: str, level: Level) -> str:
    """A column's own value in SQL, beside `drift_key`; null for a request without events."""
    if level == "event":
        return f'r."{name}"[1 + CAST(drift_key % nullif(len(r."{name}"), 0) AS BIGINT)]'
    return f'{"c" if level == "candidate" else "r"}."{name}"'
