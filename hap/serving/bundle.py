"""A bundle: the folder with everything that one version serves, sealed by the digests in bundle.json."""

import hashlib
import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import ValidationError

from hap import durable
from hap.errors import DataError, NotFound
from hap.params import Features, Route
from hap.serving.request import TENSORS, RequestTensors

GRAPHS = ("light", "hard_select", "expressive", "expressive_all")  # the names of the members in Triton, too
SCHEMA, GOLDEN, SEAL = "schema.json", "golden.npz", "bundle.json"
PROMISED = (*(f"{name}.onnx" for name in GRAPHS), SCHEMA, GOLDEN)  # what the digest covers: the behaviour, not its timings
MEASURED = ("parity.json", "cost.json")


@dataclass(frozen=True, eq=False)
class Golden:
    """One request with PyTorch's answer: score F32[N], routed BOOL[N], the light logit F32[N]; k None leaves K to the route."""

    name: str
    tensors: RequestTensors
    k: int | None
    score: NDArray[np.float32]
    routed: NDArray[np.bool_]
    light: NDArray[np.float32]


@dataclass(frozen=True)
class Bundle:
    """A sealed bundle whose files were verified when it was read."""

    path: Path
    features: Features
    route: Route
    digest: str
    info: dict[str, Any]

    def graph(self, name: str) -> Path:
        """The ONNX file of one of GRAPHS."""
        return self.path / f"{name}.onnx"

    def golden(self) -> list[Golden]:
        """The golden requests, real ones first, then the edges."""
        return read_golden(self.path / GOLDEN)

    def parity(self) -> dict[str, Any]:
        """parity.json: PyTorch against ONNX Runtime."""
        return dict(orjson.loads((self.path / "parity.json").read_bytes()))

    def cost(self) -> dict[str, Any]:
        """cost.json: in-process time, bytes and parameters."""
        return dict(orjson.loads((self.path / "cost.json").read_bytes()))


def read_bundle(path: Path) -> Bundle:
    """Read a bundle and verify every file against its digest.

    Raises:
        NotFound: there is no sealed bundle at `path`.
        DataError: a file is missing, differs from its digest or does not say what it must; it is named.
    """
    files, digest, info = _read_seal(path)
    for name in (*PROMISED, *MEASURED):
        if name not in files:
            raise DataError(f"{path / SEAL} does not name {name}; export the bundle again with `hapctl export`")
    for name, expected in sorted(files.items()):
        if Path(name).name != name:
            raise DataError(f"{path / SEAL} names {name!r}, which is not a plain file name")
        if not (path / name).is_file():
            raise DataError(f"{path / name} is missing; fetch or export the bundle again")
        if sha256_file(path / name) != expected:
            raise DataError(f"{path / name} differs from its digest in {SEAL}; fetch or export the bundle again")
    if digest != bundle_digest(files):
        raise DataError(f"{path / SEAL}: the digest does not cover the files it names; export the bundle again")
    try:
        schema = orjson.loads((path / SCHEMA).read_bytes())
        return Bundle(path, Features.model_validate(schema["features"]), Route.model_validate(schema["route"]), digest, info)
    except (KeyError, TypeError, orjson.JSONDecodeError, ValidationError) as error:
        raise DataError(f"{path / SCHEMA} is not a schema: {str(error).splitlines()[0]}") from None


def read_info(path: Path) -> dict[str, Any]:
    """What a bundle's seal says beside its digests, such as `window`; cheap, since no other file is read or verified.

    Raises:
        NotFound: there is no sealed bundle at `path`.
        DataError: its seal is damaged.
    """
    return _read_seal(path)[2]


def _read_seal(path: Path) -> tuple[dict[str, str], str, dict[str, Any]]:
    """The files with their digests, the digest of all, and what else the seal says."""
    try:
        seal = orjson.loads((path / SEAL).read_bytes())
        return dict(seal.pop("files")), str(seal.pop("digest")), seal
    except FileNotFoundError:
        raise NotFound(f"{path} holds no sealed bundle (no {SEAL}); `hapctl export` writes one") from None
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError):
        raise DataError(f"{path / SEAL} is not a bundle's seal; export it again with `hapctl export`") from None


def write_schema(path: Path, features: Features, route: Route) -> None:
    """schema.json: the declared columns in tensor order, the route, and the tensors that callers exchange."""
    schema = {"features": features.model_dump(mode="json"), "route": route.model_dump(mode="json"), "tensors": _tensors(features)}
    durable.write_json(path / SCHEMA, schema)


def write_golden(path: Path, golden: Sequence[Golden]) -> None:
    """golden.npz; equal content gives equal bytes."""
    arrays: dict[str, NDArray[Any]] = {"names": np.array([entry.name for entry in golden], dtype=np.str_)}
    for place, entry in enumerate(golden):
        arrays |= {f"{place}/{name}": array for name, array in entry.tensors.arrays().items()}
        arrays[f"{place}/k"] = np.array([] if entry.k is None else [entry.k], np.int64)
        arrays |= {f"{place}/score": entry.score, f"{place}/routed": entry.routed, f"{place}/light": entry.light}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue(), zipfile.ZIP_DEFLATED)  # ZipInfo: a fixed time
    durable.write_bytes(path / GOLDEN, buffer.getvalue())


def read_golden(file: Path) -> list[Golden]:
    """What `write_golden` wrote; nothing in it is unpickled."""
    with np.load(file, allow_pickle=False) as stored:
        return [_golden(stored, place, str(name)) for place, name in enumerate(stored["names"])]


def seal_bundle(path: Path, info: Mapping[str, Any]) -> Bundle:
    """Write bundle.json, last, over the files that stand in `path`, and read the bundle back.

    Raises:
        DataError: a file is missing; it is named.
    """
    missing = [name for name in (*PROMISED, *MEASURED) if not (path / name).is_file()]
    if missing:
        raise DataError(f"{path / missing[0]} is missing, so the bundle cannot be sealed")
    files = {entry.name: sha256_file(entry) for entry in sorted(path.iterdir()) if entry.is_file() and entry.name != SEAL}
    durable.write_json(path / SEAL, {**info, "files": files, "digest": bundle_digest(files)})
    return read_bundle(path)


def bundle_digest(files: Mapping[str, str]) -> str:
    """sha256 over the names and digests of PROMISED: equal behaviour has an equal digest, whatever was measured."""
    return hashlib.sha256("".join(f"{name}\0{files[name]}\n" for name in PROMISED).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _golden(stored: Any, place: int, name: str) -> Golden:
    k = stored[f"{place}/k"]
    tensors = RequestTensors(**{tensor: stored[f"{place}/{tensor}"] for tensor in TENSORS})
    return Golden(name, tensors, int(k[0]) if len(k) else None, *(stored[f"{place}/{part}"] for part in ("score", "routed", "light")))


def _tensors(features: Features) -> dict[str, list[dict[str, Any]]]:
    groups: tuple[Literal["user", "item", "history"], ...] = ("user", "item", "history")
    names = [([f.name for f in features.ids(group)], [f.name for f in features.dense(group)]) for group in groups]
    user, item, history = names
    length = features.history_length
    return {
        "inputs": [
            {"name": "user_ids", "dtype": "int64", "shape": [len(user[0])], "columns": user[0]},
            {"name": "user_dense", "dtype": "float32", "shape": [len(user[1])], "columns": user[1]},
            {"name": "hist_ids", "dtype": "int64", "shape": [length, len(history[0])], "columns": history[0]},
            {"name": "hist_dense", "dtype": "float32", "shape": [length, len(history[1])], "columns": history[1]},
            {"name": "cand_ids", "dtype": "int64", "shape": ["N", len(item[0])], "columns": item[0]},
            {"name": "cand_dense", "dtype": "float32", "shape": ["N", len(item[1])], "columns": item[1]},
            {"name": "k", "dtype": "int64", "shape": [1], "optional": True},
        ],
        "outputs": [{"name": "score", "dtype": "float32", "shape": ["N"]}, {"name": "routed", "dtype": "bool", "shape": ["N"]}],
    }
