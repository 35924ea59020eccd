"""Read params.yaml, with one clear line for what is wrong in it."""

import difflib
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from hap.errors import ConfigError
from hap.params.base import SEVERITIES
from hap.params.whole import Params


def load_params(path: Path) -> Params:
    """Read and check params.yaml.

    Raises:
        ConfigError: no such file, not YAML, an unknown key (with the nearest known one) or a bad value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; `hapctl init` writes one with every default explained") from None
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        shown = " ".join("(a URL)" if "://" in word else word for word in str(error).split())  # the line at fault may hold a secret
        raise ConfigError(f"{path} is not YAML: {shown}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} must hold keys and values, not {type(raw).__name__}")
    return resolve(raw, str(path))


def resolve(raw: dict[str, Any], source: str) -> Params:
    """Check raw values and fill in defaults; `source` names them in errors.

    Raises:
        ConfigError: an unknown key or a bad value.
    """
    try:
        return Params.model_validate(raw)
    except ValidationError as error:
        # An unknown key is told first: a misspelt one also shows as a missing one.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        more = f" ({error.error_count() - 1} more)" if error.error_count() > 1 else ""
        key = ".".join(str(part) for part in first["loc"])
        if first["loc"][:1] == ("alerts",):
            raise ConfigError(f"{source}: {_alerts_error(first['loc'], first['type'], first['msg'])}{more}") from None
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(first["loc"][-1]), _known_keys(first["loc"][:-1]), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(_known_keys(first['loc'][:-1]))}"
            raise ConfigError(f"{source}: unknown key {key!r}{hint}{more}") from None
        message = first["msg"].removeprefix("Value error, ")
        where = f"{key}: " if key else ""
        # A rule between the keys of a section names the values itself; the whole section would only bury it.
        found = "" if isinstance(first["input"], dict) else f"; found {str(first['input'])[:60]!r}"
        raise ConfigError(f"{source}: {where}{message}{found}{more}") from None


def _alerts_error(location: tuple[Any, ...], kind: str, message: str) -> str:
    """What is wrong with the section `alerts`, without what stands there: that may be a URL, and so a secret."""
    key = ".".join(str(part) for part in location)
    known = _known_keys(("alerts",))
    if kind == "extra_forbidden":
        named = f"unknown key {key!r}" if key.replace(".", "").isidentifier() else "a key of alerts that is not a name"
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        return f"{named}; did you mean {near[0]!r}?" if near else f"{named}; known here: {', '.join(known)}"
    if len(location) > 1 and location[1] not in SEVERITIES:
        return f"{key}: {message}"
    return (
        f"{key} takes names of environment variables in capitals, such as [HAP_ALERTS_PAGE], and no URL, since a URL holds a secret; "
        "put the URL into the environment: `export HAP_ALERTS_PAGE=URL`"
    )


def _known_keys(location: tuple[Any, ...]) -> list[str]:
    """The field names of the model at `location` inside Params."""
    model: Any = Params
    for part in location:
        if isinstance(part, str) and isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = model.model_fields[part].annotation
            options = [a for a in get_args(model) if isinstance(a, type) and issubclass(a, BaseModel)]
            model = options[0] if options else model
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []
