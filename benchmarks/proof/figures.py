"""The pictures: PNG files, drawn from results.json's values alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.proof.study import SHOWN_AT
from benchmarks.proof.targets import ROUTED
from benchmarks.proof.variants import DISTILLED, HARD, INTERESTS, OURS, PUBLISHED, SIZES, WIDE
from hap.params import NEGATIVES
from hap.training.conflict import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Found = dict[str, Any]
COLOURS = {
    "bce": "tab:gray",
    "infonce": "tab:olive",
    "infonce+bce": "tab:orange",
    "ghcl": "tab:cyan",
    "ghcl+bce": "tab:blue",
    HARD: "tab:red",
    DISTILLED: "tab:purple",
    OURS + PUBLISHED: "tab:brown",
}
CURVES = {
    "light": ("light routes, expressive of all kinds", "tab:blue"),
    "distilled": ("distilled light routes, expressive of all kinds", "tab:purple"),
    "published": ("published light routes, expressive of all kinds", "tab:brown"),
    "hard": ("light routes, expressive of hard kinds only", "tab:red"),
    "random": ("chance routes", "tab:gray"),
    "oracle": ("an oracle routes", "tab:green"),
}


def draw_all(folder: Path, name: str, world: Found) -> dict[str, Path]:
    """Draw what the world's results hold; figure -> file, in the order of the page."""
    drawn = {"differences": _differences(world), "sizes": _sizes(world)}
    drawn["routing"] = _routing(world) if world["routing"] else None
    drawn |= {f"training-{model}": _training(model, curves) for model, curves in world["curves"].items()}
    files = {}
    for what, figure in drawn.items():
        if figure is not None:
            files[what] = folder / f"{name}-{what}.png"
            save_figure(figure, files[what])
    return files


def _new(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _differences(world: Found) -> "Figure | None":
    """GHCL with BCE minus each other loss, by kind."""
    models = {model: rivals for model, rivals in world["differences"].items() if rivals}
    if not models:
        return None
    figure = _new(11, 4.4)
    for axes, (model, rivals) in zip(figure.subplots(1, len(models), squeeze=False)[0], models.items(), strict=True):
        for place, (rival, by_kind) in enumerate(rivals.items()):
            rows = [row + 0.15 * (place - (len(rivals) - 1) / 2) for row in range(len(NEGATIVES))]
            _dots(axes, rows, [by_kind[kind] for kind in NEGATIVES], f"minus {rival}", COLOURS[rival])
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set(yticks=range(len(NEGATIVES)), xlabel="difference of GAUC, 95% interval", title=f"{model}: {OURS}")
        axes.set_yticklabels(NEGATIVES)
        axes.invert_yaxis()
        axes.xaxis.get_major_locator().set_params(nbins=5)
    longest = max(figure.axes, key=lambda axes: len(axes.get_legend_handles_labels()[1]))
    figure.legend(*longest.get_legend_handles_labels(), loc="outside lower center", ncols=len(COLOURS), frameon=False)
    return figure


def _dots(axes: Any, rows: list[float], estimates: list[Found], label: str, colour: str) -> None:
    known = [(row, one) for row, one in zip(rows, estimates, strict=True) if one["value"] is not None and one["lo"] is not None]
    if not known:
        return
    values = [one["value"] for _, one in known]
    spread = [[one["value"] - one["lo"] for _, one in known], [one["hi"] - one["value"] for _, one in known]]
    axes.errorbar(values, [row for row, _ in known], xerr=spread, fmt="o", markersize=4, capsize=2, label=label, color=colour)


def _sizes(world: Found) -> "Figure | None":
    """GAUC by kind against cost: figure 3 of the paper."""
    beside = {"wide light": (WIDE, "x"), "light with interests": (INTERESTS, "*")}
    shown = {**SIZES, **{name: key for name, (key, _) in beside.items()}}
    present = {name: key for name, key in shown.items() if key[1] in world["gauc"].get(key[0], {})}
    if len(present) < 2 or "light" not in present:
        return None
    figure = _new(11, 4.6)
    absolute, gained = figure.subplots(1, 2)
    mega = {name: world["sizes"][model][variant]["flops_of_1000"] / 1e6 for name, (model, variant) in present.items()}
    line = [name for name in SIZES if name in present]
    base = world["gauc"]["light"][SIZES["light"][1]]
    for kind in NEGATIVES:
        value = {name: world["gauc"][model][variant][kind] for name, (model, variant) in present.items()}
        (curve,) = absolute.plot([mega[name] for name in line], [value[name]["value"] for name in line], marker="o", label=kind)
        gains = [value[name]["value"] - base[kind]["value"] for name in line]
        gained.plot([mega[name] for name in line], gains, marker="o", label=kind, color=curve.get_color())
        for name in (name for name in beside if name in present):
            absolute.plot(mega[name], value[name]["value"], marker=beside[name][1], color=curve.get_color())
            gained.plot(mega[name], value[name]["value"] - base[kind]["value"], marker=beside[name][1], color=curve.get_color())
    for axes, label in ((absolute, "GAUC"), (gained, "GAUC above the published light model")):
        axes.set(xscale="log", xlabel="million operations for 1,000 candidates (log scale)", ylabel=label)
        axes.set_xticks([mega[name] for name in line], [f"{name}\n{mega[name]:.0f}" for name in line])
        axes.minorticks_off()
    for name in (name for name in beside if name in present):
        absolute.plot([], [], marker=beside[name][1], linestyle="", color="black", label=f"{name}, {mega[name]:.0f}")
    handles, labels = absolute.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _routing(world: Found) -> "Figure":
    """Recall against the routed share, and against cost."""
    routing = world["routing"]
    at = f"at_{SHOWN_AT}"
    figure = _new(11, 5)
    by_share, by_cost = figure.subplots(1, 2)
    for name, points in routing["curves"].items():
        label, colour = CURVES[name]
        x = [100 * one["share"] for one in points]
        y = [one[at]["recall"]["value"] for one in points]
        by_share.plot(x, y, marker=".", label=label, color=colour)
        if name in ("light", "distilled", "published", "hard"):
            band = [[one[at]["recall"][edge] for one in points] for edge in ("lo", "hi")]
            if None not in band[0]:
                by_share.fill_between(x, *band, color=colour, alpha=0.12)
        if name != "oracle":
            by_cost.plot([one["flops_ratio"] for one in points], [one[at]["relative"]["value"] for one in points], marker=".", color=colour)
    level = routing["expressive_on_all"][str(SHOWN_AT)]["value"]
    by_share.axhline(level, color="black", linestyle="--", linewidth=1, label="expressive on all")
    by_share.axhline(routing["curves"]["light"][0][at]["recall"]["value"], color="black", linestyle=":", linewidth=1, label="light alone")
    by_share.axvline(100 * ROUTED, color="lightgray", zorder=0)
    by_share.set(xlabel="routed share of the candidates, %", ylabel=f"Recall@{SHOWN_AT}")
    figure.legend(*by_share.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    by_cost.axhline(1, color="black", linestyle="--", linewidth=1)
    by_cost.axvline(1, color="black", linestyle="--", linewidth=1)
    by_cost.set(xlabel="operations, expressive on all = 1", ylabel=f"Recall@{SHOWN_AT}, expressive on all = 1")
    shown = {name: points for name, points in routing["curves"].items() if name not in ("random", "oracle")}
    near = [one[at]["relative"]["value"] for name, points in shown.items() for one in points]
    least, most = min(near), max(1.0, *near)
    margin = 0.08 * (most - least)
    by_cost.set_ylim(least - margin, most + margin)  # where models differ; chance runs out of the picture
    return figure


def _training(model: str, variants: Found) -> "Figure":
    """Held-out GAUC by epoch, mean of the seeds with the least and greatest of them."""
    figure = _new(12, 3.8)
    shown = {name: one["heldout_gauc"] for name, one in variants.items() if name in COLOURS}
    for axes, kind in zip(figure.subplots(1, len(NEGATIVES)), NEGATIVES, strict=True):
        for name, curves in shown.items():
            epochs = range(1, len(curves[kind]["mean"]) + 1)
            if None in curves[kind]["mean"]:
                continue
            axes.plot(epochs, curves[kind]["mean"], label=name, color=COLOURS[name], marker="." if len(epochs) == 1 else None)
            axes.fill_between(epochs, curves[kind]["least"], curves[kind]["greatest"], color=COLOURS[name], alpha=0.12)
        axes.set(title=f"{model}: {kind}", xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
    figure.axes[0].set_ylabel("held-out GAUC")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure
