"""Shared memory between a client and a Triton on the same host: regions that are reused, one by each request in flight.

A region's name leaves /dev/shm as soon as the server holds the region too. So whatever ends the client, no file stays
behind; what stays is the server's own hold, which the next client on the host releases (`orphans`).
"""

import os
import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from hap.errors import ServingError
from hap.serving.wire import ANSWER, Place

SMALLEST_BYTES = 2**16
_ALIGN = 64
_PREFIX = "hap_client"
_FOLDER = Path("/dev/shm")
_CLOCK_SLACK_S = 2  # psutil's start times follow a clock that may be set
_STALE = 16  # regions of unanswered requests that are kept before the oldest is given up


class Region:
    """Memory that the server can see once it is registered there. `name` is its name on both sides."""

    def __init__(self, name: str, nbytes: int) -> None:
        """Reserve the memory.

        Raises:
            ServingError: there is no room for it in /dev/shm.
        """
        self.name, self.nbytes = name, nbytes
        self._named = True
        try:
            self._memory = SharedMemory(name, create=True, size=nbytes)
        except OSError as error:
            raise _no_room(nbytes, error) from None
        try:
            # A page that is first touched when /dev/shm is full would end the process by a signal; so all are taken now.
            descriptor = os.open(_FOLDER / name, os.O_RDWR)
            try:
                os.posix_fallocate(descriptor, 0, nbytes)
            finally:
                os.close(descriptor)
        except OSError as error:
            self.close()
            raise _no_room(nbytes, error) from None

    @property
    def _bytes(self) -> memoryview:
        assert self._memory.buf is not None, "the region was closed"
        return self._memory.buf

    def unname(self) -> None:
        """Remove the name; whoever holds the memory keeps it."""
        if self._named:
            self._named = False
            self._memory.unlink()

    def close(self) -> None:
        """Let go of the memory."""
        self.unname()
        self._memory.close()

    def write(self, arrays: Mapping[str, NDArray[Any]], candidates: int) -> tuple[dict[str, Place], dict[str, Place]]:
        """Lay the arrays into the region; their places, and those kept free for the answer. Empty tensors get none."""
        inputs, outputs, offset = {}, {}, 0
        for name, array in arrays.items():
            if array.nbytes:
                inputs[name] = Place(self.name, offset, array.nbytes)
                np.frombuffer(self._bytes, array.dtype, array.size, offset)[:] = array.ravel()
                offset += _aligned(array.nbytes)
        for name, dtype in ANSWER.items():
            if candidates:
                outputs[name] = Place(self.name, offset, candidates * dtype.itemsize)
                offset += _aligned(candidates * dtype.itemsize)
        return inputs, outputs

    def read(self, places: Mapping[str, Place]) -> dict[str, NDArray[Any]]:
        """Copies of the answer's arrays."""
        return {
            name: np.frombuffer(self._bytes, ANSWER[name], place.nbytes // ANSWER[name].itemsize, place.offset).copy()
            for name, place in places.items()
        }


class Regions:
    """The regions of one client. Safe between threads; who talks to the server is the caller.

    A region whose request was never answered may still be written by the server, so it serves no other request; the server
    is told to let go of it when the client closes, or earlier, when `_STALE` newer ones wait.
    """

    def __init__(self) -> None:
        self.registered: set[str] = set()  # what the server holds for this client
        self._free: list[Region] = []
        self._stale: list[str] = []
        self._lock = threading.Lock()
        self._owner = f"{_PREFIX}_{_pid_namespace()}_{os.getpid()}_{_started(os.getpid())}_{secrets.token_hex(4)}"
        self._made = 0

    def take(self) -> Region | None:
        """A registered region that no request uses, or None."""
        with self._lock:
            return self._free.pop() if self._free else None

    def give(self, region: Region) -> None:
        """The request on the region was answered; the next may have it."""
        with self._lock:
            self._free.append(region)

    def create(self, needed: int) -> Region:
        """A new region of at least so many bytes, not registered yet."""
        with self._lock:
            self._made += 1
            name = f"{self._owner}_{self._made}"
        return Region(name, max(SMALLEST_BYTES, 1 << (needed - 1).bit_length()))

    def give_up(self, region: Region) -> None:
        """Let go of a region whose request was not answered; the server holds it for now."""
        region.close()
        with self._lock:
            self._stale.append(region.name)

    def overdue(self) -> list[str]:
        """The names of regions given up so long ago that the server can let go of them."""
        with self._lock:
            old, self._stale = self._stale[:-_STALE], self._stale[-_STALE:]
            return old

    def close(self) -> list[str]:
        """Let go of all free regions; the names that the server still holds."""
        with self._lock:
            for region in self._free:
                region.close()
            self._free.clear()
            return sorted(self.registered)


def needed_bytes(arrays: Mapping[str, NDArray[Any]], candidates: int) -> int:
    """What a request and its answer take in a region."""
    sizes = [array.nbytes for array in arrays.values()] + [candidates * dtype.itemsize for dtype in ANSWER.values()]
    return sum(_aligned(size) for size in sizes)


def orphans(names: Iterable[str]) -> list[str]:
    """Those regions of hap's clients whose process ended. One of another pid namespace cannot be judged and is left alone."""
    space, found = str(_pid_namespace()), []
    for name in names:
        parts = name.removeprefix(f"{_PREFIX}_").split("_")
        if not name.startswith(f"{_PREFIX}_") or len(parts) != 5 or parts[0] != space or not (parts[1] + parts[2]).isdigit():
            continue
        # A pid may be somebody else's by now; its start time tells.
        if abs(_started(int(parts[1])) - int(parts[2])) > _CLOCK_SLACK_S:
            found.append(name)
    return found


def release(url: str, names: set[str]) -> None:
    """Tell the server to let go of regions, over a connection of its own: for a client that ends without being closed."""
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    if not names:
        return
    with InferenceServerClient(url) as client:
        for name in sorted(names):
            for _ in range(3):
                try:
                    client.unregister_system_shared_memory(name, client_timeout=1.0)
                    break
                except InferenceServerException as error:
                    if "in use" not in str(error.message()):
                        return  # the server is gone, and its holds with it
                    time.sleep(0.1)


def _pid_namespace() -> int:
    return Path("/proc/self/ns/pid").stat().st_ino


def _started(pid: int) -> int:
    """Seconds since 1970 at which a process began; 0 where there is none."""
    try:
        return int(psutil.Process(pid).create_time())
    except psutil.Error:
        return 0


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _ALIGN) * _ALIGN


def _no_room(nbytes: int, error: OSError) -> ServingError:
    return ServingError(
        f"no shared memory of {nbytes} bytes in {_FOLDER}: {error.strerror or error}; "
        "give it more room (a container's --shm-size) or leave shared_memory off"
    )
