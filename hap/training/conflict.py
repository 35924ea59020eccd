"""How the kinds of samples pull at the shared parameters: norms of their gradients and the cosines between them.

For any loss L of the logits s, the gradient of kind k is the part that flows through the logits of that kind,
    g_k = sum over i of kind k of (dL / ds_i) * (ds_i / dtheta),
so the g_k add up to the whole gradient. Hard negatives that drown easy ones show as norms of different size, kinds that
undo each other as negative cosines: figure 1 of the paper made measurable [derived]. Pull is the L1 mass of
dL / ds over a kind, which needs no parameters at all.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hap.params import KINDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def measure_conflict(loss: Tensor, logits: Tensor, kind: Tensor, shared: Sequence[nn.Parameter]) -> dict[str, Any]:
    """One measurement on one batch; the graph stays, so that the step can go on with it.

    Args:
        loss: a scalar made from `logits` F[N]; kind: I8[N].
        shared: the parameters that all kinds use.

    Returns:
        norm and pull by kind, and cosine by pair of kinds ("EN|RN"); a kind that is absent from the batch has none.
    """
    (pull_N,) = torch.autograd.grad(loss, logits, retain_graph=True)
    vectors: dict[str, Tensor] = {}
    pull: dict[str, float] = {}
    for code, name in enumerate(KINDS):
        of_kind = kind == code
        if not bool(of_kind.any()):
            continue
        parts = torch.autograd.grad(logits, list(shared), pull_N * of_kind, retain_graph=True, allow_unused=True)
        vectors[name] = torch.cat([part.reshape(-1) for part in parts if part is not None]).double()
        pull[name] = float(pull_N[of_kind].abs().sum())
    names = list(vectors)
    norms = {name: float(vectors[name].norm()) for name in names}
    cosines = {
        f"{a}|{b}": float(torch.dot(vectors[a], vectors[b])) / (norms[a] * norms[b])
        for place, a in enumerate(names)
        for b in names[place + 1 :]
        if norms[a] > 0 and norms[b] > 0
    }
    return {"norm": norms, "pull": pull, "cosine": cosines}


def draw_conflict(records: Sequence[dict[str, Any]], title: str) -> "Figure":
    """Norms over the steps, and the mean cosine of each pair of kinds as a heat map.

    Args:
        records: measurements with their `step`, in order; at least one.
    """
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    curves, heat = figure.subplots(1, 2, width_ratios=(1.5, 1))
    for name in KINDS:
        points = [(record["step"], record["norm"][name]) for record in records if name in record["norm"]]
        if points:
            curves.plot(*zip(*points, strict=True), label=name, marker="o" if len(points) == 1 else None)
    curves.set(xlabel="step", ylabel="norm of the gradient", yscale="log", title=title)
    curves.legend()
    mean = np.full((len(KINDS), len(KINDS)), np.nan)
    np.fill_diagonal(mean, 1.0)
    for row, a in enumerate(KINDS):
        for column, b in enumerate(KINDS):
            found = [record["cosine"][f"{a}|{b}"] for record in records if f"{a}|{b}" in record["cosine"]]
            if found:
                mean[row, column] = mean[column, row] = float(np.mean(found))
    heat.imshow(mean, vmin=-1, vmax=1, cmap="RdBu")
    heat.set(xticks=range(len(KINDS)), yticks=range(len(KINDS)), title="mean cosine between kinds")
    heat.set_xticklabels(KINDS)
    heat.set_yticklabels(KINDS)
    for row in range(len(KINDS)):
        for column in range(len(KINDS)):
            if np.isfinite(mean[row, column]):
                dark = abs(mean[row, column]) > 0.6
                heat.text(column, row, f"{mean[row, column]:.2f}", ha="center", va="center", color="white" if dark else "black")
    return figure


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG, the same bytes for the same picture."""
    import io

    from hap import durable

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    durable.write_bytes(path, buffer.getvalue())
