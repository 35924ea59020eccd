"""How the kinds of negatives pull at the shared parameters: norms of their gradients and the cosines between them.

The gradient of kind k is its part of the whole one (hap.training.kinds): what separates the positives from that kind. Hard
negatives that drown easy ones show as norms of different size, kinds that undo each other as negative cosines: figure 1
of the paper made measurable [derived]. Pull is the L1 mass of dL/ds over the negatives of a kind, which needs no
parameters at all.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from hap.params import NEGATIVES
from hap.training.losses import EP
from hap.training.ranks import Ranks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def measure_conflict(gradients_KD: Tensor, pulls_KN: Tensor, kind: Tensor, kinds: Sequence[str], ranks: Ranks) -> dict[str, Any]:
    """One measurement on one batch of all processes; every process takes part and returns the same.

    Args:
        gradients_KD: `kind_gradients` of the batch, summed over the processes already.
        pulls_KN: `kind_pulls` of this process's share; kind: I8[N].

    Returns:
        norm and pull by kind, and cosine by pair of kinds ("EN|RN"); a kind without a pull in the batch has none.
    """
    mass = ranks.sum((pulls_KN.abs() * (kind != EP)).sum(1).double()).tolist()
    gram = gram_matrix(gradients_KD)
    norms = np.sqrt(np.diag(gram))
    there = [place for place, pull in enumerate(mass) if pull > 0]
    cosines = {
        f"{kinds[a]}|{kinds[b]}": float(np.clip(gram[a, b] / (norms[a] * norms[b]), -1, 1))
        for a in there
        for b in there
        if a < b and norms[a] > 0 and norms[b] > 0
    }
    return {"norm": {kinds[k]: float(norms[k]) for k in there}, "pull": {kinds[k]: mass[k] for k in there}, "cosine": cosines}


def gram_matrix(gradients_KD: Tensor) -> "np.ndarray":
    """f64[K, K]: products of the gradients; the one moment at which a step waits for the device."""
    exact = gradients_KD.double()
    return np.asarray((exact @ exact.T).tolist())


def draw_conflict(records: Sequence[dict[str, Any]], title: str) -> "Figure":
    """Norms and cosines over the steps, and the mean cosine of each pair of kinds as a heat map.

    Args:
        records: measurements with their `step`, in order; at least one.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 3.6), layout="constrained")
    norms, cosines, heat = figure.subplots(1, 3, width_ratios=(1.2, 1.2, 1))
    pairs = [f"{a}|{b}" for place, a in enumerate(NEGATIVES) for b in NEGATIVES[place + 1 :]]
    _draw_curves(norms, records, "norm", NEGATIVES)
    norms.set(xlabel="step", ylabel="norm of the gradient", yscale="log", title=title)
    _draw_curves(cosines, records, "cosine", pairs)
    cosines.axhline(0, color="black", linewidth=0.8)
    cosines.set(xlabel="step", ylabel="cosine", ylim=(-1.05, 1.05), title="cosine between kinds")
    for axes in (norms, cosines):
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize="small")
    mean = np.eye(len(NEGATIVES)) + np.where(np.eye(len(NEGATIVES)), 0, np.nan)
    for pair in pairs:
        if found := [record["cosine"][pair] for record in records if pair in record["cosine"]]:
            row, column = map(NEGATIVES.index, pair.split("|"))
            mean[row, column] = mean[column, row] = float(np.mean(found))
    heat.imshow(mean, vmin=-1, vmax=1, cmap="RdBu")
    heat.grid(visible=False)  # whatever the style in force
    heat.set(xticks=range(len(NEGATIVES)), yticks=range(len(NEGATIVES)), title="mean cosine between kinds")
    heat.set_xticklabels(NEGATIVES)
    heat.set_yticklabels(NEGATIVES)
    for row, column in np.argwhere(np.isfinite(mean)):
        dark = abs(mean[row, column]) > 0.6
        heat.text(column, row, f"{mean[row, column]:.2f}", ha="center", va="center", color="white" if dark else "black")
    return figure


def _draw_curves(axes: "Axes", records: Sequence[dict[str, Any]], figure: str, names: Sequence[str]) -> None:
    """One line for each name over the steps: faint as measured, strong as a running mean, since one batch is a noisy witness."""
    for place, name in enumerate(names):
        points = [(record["step"], record[figure][name]) for record in records if name in record[figure]]
        if not points:
            continue
        steps, values = np.array(points, dtype=np.float64).T
        width = max(1, len(values) // 10)
        sums = np.concatenate([[0.0], np.cumsum(values)])
        ends = np.arange(1, len(values) + 1)
        starts = np.maximum(ends - width, 0)
        axes.plot(steps, values, color=f"C{place}", alpha=0.25, linewidth=0.8)
        mean = (sums[ends] - sums[starts]) / (ends - starts)
        axes.plot(steps, mean, color=f"C{place}", label=name, marker="o" if len(points) == 1 else None)


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG, the same bytes for the same picture."""
    import io

    from hap import durable

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    durable.write_bytes(path, buffer.getvalue())
