"""Models by name, and the folder that one is kept in."""

from pathlib import Path

import orjson
import torch
from torch import Tensor, nn

from hap import durable
from hap.errors import ConfigError, NotFound
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
        ConfigError: it was trained with features or a size that these parameters do not have.
    """
    if not (folder / "model.json").exists():
        raise NotFound(f"{folder} holds no trained model; run `hapctl train --day D` first")
    name = orjson.loads((folder / "model.json").read_bytes())["model"]
    model, weights = build_model(name, params), torch.load(folder / "model.pt", map_location="cpu", weights_only=True)
    if differs := _differing(model.state_dict(), weights):
        raise ConfigError(
            f"{folder} was trained with other features or another size than the parameters say ({differs}); "
            f"run `hapctl train {name} --day D` to train it anew"
        )
    model.load_state_dict(weights)
    return model.eval()


def _differing(wanted: dict[str, Tensor], found: dict[str, Tensor]) -> str:
    """The first parameter that only one of the two has, or has in another shape; empty where all agree."""
    for name in [*wanted, *found]:
        one, other = (list(weights[name].shape) if name in weights else "none" for weights in (wanted, found))
        if one != other:
            return f"{name}: {one} wanted, {other} found"
    return ""
