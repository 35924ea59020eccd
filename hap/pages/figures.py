"""The figures of a page, as SVG: drawn from plain values, the same bytes for the same values.

Colours mean the same in every figure: one for each kind of negative, one for each member. matplotlib is imported where a
figure is drawn, so that reading a module costs nothing.
"""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hap.params import NEGATIVES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KIND_COLOURS = {"EN": "#d55e00", "RN": "#e69f00", "PRN": "#0072b2", "GN": "#009e73"}  # Okabe and Ito: told apart by every eye
OTHER_COLOURS = ("#cc79a7", "#56b4e9")  # pairs of kinds are six
MEMBER_COLOURS = {"light": "#56b4e9", "expressive": "#cc79a7", "cascade": "#1f2937"}
INK, FAINT, BAND = "#1f2937", "#9aa3af", "#fee2e2"
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "text.color": INK,
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "hap",  # and ids stay what they are
}

Row = Mapping[str, Any]


def picture(draw: Callable[[], "Figure"]) -> str:
    """What `draw` draws, in the pages' style, as a data URI: apart from the page, it can neither load nor run anything."""
    import matplotlib
    from cycler import cycler

    # Kinds in their order have their own colours wherever figures number them (hap.training.conflict.draw_conflict).
    kinds = cycler(color=[*KIND_COLOURS.values(), *OTHER_COLOURS])
    with matplotlib.rc_context({**STYLE, "axes.prop_cycle": kinds}):
        buffer = io.BytesIO()
        draw().savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def panels(columns: int, height: float, rows: int = 1, width: float = 10.4) -> "tuple[Figure, list[Axes]]":
    """A figure with panels side by side, and rows of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height * rows), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def changes(groups: Mapping[str, Sequence[Row]], limit: float) -> "Figure":
    """Changes against the champion with their bounds, a panel for each group, all on one scale; the shaded part is harm.

    Args:
        groups: title -> rows with name, value, lower, upper (None where unknown) and colour, from the top.
        limit: the change at which harm begins, below 0.
    """
    figure, axes = _forest(groups)
    known = [row[edge] for rows in groups.values() for row in rows for edge in ("value", "lower", "upper") if row[edge] is not None]
    low, high = min([*known, 1.5 * limit]), max([*known, -limit])
    room = 0.04 * (high - low)
    for one, rows in zip(axes, groups.values(), strict=True):
        _dots(one, rows)
        for place, row in enumerate(rows):
            if row["value"] is None:
                one.text(0, place, "not measured", va="center", ha="center", color=FAINT)
        one.axvline(0, color=INK, linewidth=0.9)
        one.axvspan(low - room, limit, color=BAND, zorder=0)
        one.axvline(limit, color="#b91c1c", linewidth=0.9, linestyle="--")
        one.set(xlim=(low - room, high + room))
    return figure


def levels(groups: Mapping[str, Sequence[Row]]) -> "Figure":
    """GAUC of the challenger (filled, with bounds) and of the champion (hollow), a panel for each member."""
    figure, axes = _forest(groups)
    for one, rows in zip(axes, groups.values(), strict=True):
        for place, row in enumerate(rows):
            if row["champion"] is not None:
                one.plot(row["champion"], place, "o", color=row["colour"], markerfacecolor="white", markersize=8, markeredgewidth=1.4)
        _dots(one, rows)
        one.axvline(0.5, color=FAINT, linewidth=0.9, linestyle=":")
        one.set(xlim=(0.4, 1.01))
    return figure


def _forest(groups: Mapping[str, Sequence[Row]]) -> "tuple[Figure, list[Axes]]":
    """A panel for each group with its rows' names from the top, rows equally high in all."""
    most = max(map(len, groups.values()))
    figure, axes = panels(len(groups), max(1.4, 0.42 * most + 0.9), width=10.4 if len(groups) > 1 else 7.4)
    for one, (title, rows) in zip(axes, groups.items(), strict=True):
        one.set(ylim=(most - 0.4, -0.6), yticks=range(len(rows)), title=title)
        one.set_yticklabels([row["name"] for row in rows])
        one.grid(axis="y", visible=False)
    return figure, axes


def _dots(axes: "Axes", rows: Sequence[Row]) -> None:
    """Values with their bounds, where they are known."""
    for place, row in enumerate(rows):
        if row["value"] is None:
            continue
        bounded = row["lower"] is not None and row["upper"] is not None
        spread = [[row["value"] - row["lower"]], [row["upper"] - row["value"]]] if bounded else None
        axes.errorbar(row["value"], place, xerr=spread, fmt="o", color=row["colour"], capsize=3, markersize=4.5, elinewidth=1.8)


def routing(curve: Sequence[Row], k: int, served: float, best: float | None) -> "Figure":
    """Recall@K of the whole cascade by routed share, and by what it costs."""
    figure, (by_share, by_cost) = panels(2, 3.3)
    share, recall = [100 * point["share"] for point in curve], [point["recall"] for point in curve]
    by_share.plot(share, recall, marker="o", markersize=4, color=MEMBER_COLOURS["cascade"], label="cascade")
    by_share.plot(share, [point["agreement"] for point in curve], color=FAINT, label="first K shared with expressive on all")
    for axes, x, label in ((by_share, 0, "light alone"), (by_share, -1, "expressive on all")):
        axes.axhline(recall[x], color=MEMBER_COLOURS["light" if x == 0 else "expressive"], linestyle="--", linewidth=1.2, label=label)
    by_share.axvline(100 * served, color="#b45309", linewidth=1.2, label="as served")
    by_share.set(xlabel="routed to the expressive model, % of the candidates", title=f"Recall@{k} by routed share", ylim=(0, None))
    by_share.legend(fontsize=8.5, loc="lower right")
    priced = [(point["cost"], point["recall"]) for point in curve if point["cost"] is not None]
    if priced:
        by_cost.plot(*zip(*priced, strict=True), marker="o", markersize=4, color=MEMBER_COLOURS["cascade"])
        nearest = min(curve, key=lambda point: abs(point["share"] - served))
        by_cost.plot(nearest["cost"], nearest["recall"], "o", markersize=10, color="#b45309", fillstyle="none", label="as served")
        if best is not None:
            chosen = min(curve, key=lambda point: abs(point["share"] - best))
            by_cost.plot(
                chosen["cost"], chosen["recall"], "D", markersize=8, color="#047857", fillstyle="none", label="most within the budget"
            )
        by_cost.axvline(1, color=FAINT, linestyle="--", linewidth=1)
        by_cost.legend(fontsize=8.5, loc="lower right")
    by_cost.set(xlabel="operations, expressive on all = 1", title=f"Recall@{k} by cost", ylim=(0, None))
    return figure


def reliability(diagrams: Mapping[str, Row]) -> "Figure":
    """Observed against predicted click rate of exposed candidates, a panel for each model; the diagonal is perfect."""
    figure, axes = panels(len(diagrams), 3.0, width=7.4)
    for one, (model, bins) in zip(axes, diagrams.items(), strict=True):
        top = 1.05 * max([*bins["predicted"], *bins["observed"], 0.01])
        one.plot([0, top], [0, top], color=FAINT, linewidth=1)
        one.plot(bins["predicted"], bins["observed"], marker="o", markersize=5, color=MEMBER_COLOURS[model])
        one.set(xlabel="predicted click rate", ylabel="observed", title=model, xlim=(0, top), ylim=(0, top), aspect="equal")
    return figure


def training(models: Mapping[str, Row]) -> "Figure":
    """Held-out GAUC by epoch with the epoch that was kept, and the terms of the loss by step; a row for each model."""
    figure, axes = panels(2, 2.7, rows=len(models))
    for place, (model, seen) in enumerate(models.items()):
        by_epoch, by_step = axes[2 * place : 2 * place + 2]
        gaucs = seen["model"]["heldout_gauc_by_epoch"]
        epochs = range(1, len(gaucs) + 1)
        for kind in NEGATIVES:
            values = [gauc.get(kind) for gauc in gaucs]
            by_epoch.plot(epochs, [float("nan") if value is None else value for value in values], marker="o", markersize=4,
                          color=KIND_COLOURS[kind], label=kind)  # fmt: skip
        by_epoch.axvline(seen["model"]["best_epoch"], color="#b45309", linewidth=1.2)
        by_epoch.set(title=f"{model}: held-out GAUC by epoch, kept {seen['model']['best_epoch']}", xticks=list(epochs))
        by_epoch.legend(fontsize=8.5, ncols=4)
        steps = seen["curves"]["steps"]
        for term in sorted({term for point in steps for term in point} - {"step"}, key=_term_place):
            points = [(point["step"], point[term]) for point in steps if term in point]
            by_step.plot(
                *zip(*points, strict=True), color=KIND_COLOURS.get(term, INK), label=term, marker="." if len(points) < 30 else None
            )
        by_step.set(title=f"{model}: terms of the loss by step")
        by_step.legend(fontsize=8.5, ncols=5)
    return figure


def _term_place(term: str) -> tuple[int, str]:
    """Kinds in their order, other terms after them."""
    return (NEGATIVES.index(term), "") if term in NEGATIVES else (len(NEGATIVES), term)
