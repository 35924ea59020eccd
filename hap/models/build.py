"""Models by name, and the folder that one is kept in."""

from pathlib import Path

import orjson
import torch
from torch import nn

from hap import durable
from hap.errors import NotFound
from hap.models.expressive import ExpressiveModel
from hap.models.light import LightModel
from hap.params import Params

# Which class stands in which place: another architecture is a file beside these and its name here. What it must have is
# `columns`, `encode_user` (the user side, once per request), `forward` of a batch and `score_request`, the serving shape.
ARCHITECTURES: dict[str, type[nn.Module]] = {"light": LightModel, "expressive": ExpressiveModel}


def build_model(name: str, params: Params) -> nn.Module:
    """A model with fresh weights, drawn from torch's current generator."""
    return ARCHITECTURES[name](params.features, getattr(params, name))


def dense_parameters(model: nn.Module) -> int:
    """Parameters outside the embedding tables."""
    return sum(p.numel() for name, p in model.named_parameters() if ".tables." not in name)


def save_model(model: nn.Module, folder: Path, facts: dict[str, object]) -> None:
    """Write model.pt (weights) and, last, model.json (what was trained, how it went) into `folder`."""
    import io

    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    durable.write_bytes(folder / "model.pt", buffer.getvalue())
    durable.write_json(folder / "model.json", facts)


def load_model(folder: Path, params: Params) -> nn.Module:
    """The model kept in `folder`, in evaluation mode.

    Raises:
        NotFound: training has not written it.
    """
    if not (folder / "model.json").exists():
        raise NotFound(f"{folder} holds no trained model; run `hapctl train --day D` first")
    model = build_model(orjson.loads((folder / "model.json").read_bytes())["model"], params)
    model.load_state_dict(torch.load(folder / "model.pt", map_location="cpu", weights_only=True))
    return model.eval()
