"""The bundle of a version, as steps need it that score with it or ask what it was trained on."""

from flows.scratch import gate_copy
from hap.errors import HapError
from hap.params import Params
from hap.registry import versions
from hap.serving.bundle import Bundle, read_bundle
from hap.workspace import Workspace


def bundle_of(ws: Workspace, params: Params, version: int) -> Bundle:
    """A version's bundle, fetched from the registry into the workspace's scratch once."""
    kept = gate_copy(ws, version)
    try:
        return read_bundle(kept)
    except HapError:  # absent, or damaged: the registry's copy is the true one
        return read_bundle(versions.fetch_bundle(ws, params, version, kept))
