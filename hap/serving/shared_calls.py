"""A request through shared memory: a region is found or made, registered, written, read and given back; and what goes wrong on the way.

What a region is stands in hap/serving/regions.py. As in the client, coroutines wait only in the `call` that is passed to them.
"""

import contextlib
import weakref
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from hap.errors import ServingError
from hap.serving import regions, wire
from hap.serving.regions import Region, Regions
from hap.serving.wire import BadRequest, Deadline, NoChampion, RegionLost, Scored

Call = Callable[..., Awaitable[Any]]  # the client's `_call`: deadline, model, method, retries, the method's arguments
_MEMORY = "shared memory"  # stands for the model's name in errors


class SharedCalls:
    """The regions of one client, and the talk with the server about them."""

    def __init__(self, url: str) -> None:
        self._regions, self._swept = Regions(), False
        self._at_exit = weakref.finalize(self, regions.release, url, self._regions.registered)

    async def infer(
        self,
        call: Call,
        deadline: Deadline,
        model: str,
        arrays: Mapping[str, NDArray[Any]],
        candidates: int,
        where: str,
        named: Mapping[str, Any],
    ) -> Scored:
        """One inference. `named` are the method's further arguments, `where` names model and server in errors.

        Raises:
            ServingError: as the client's `score`.
        """
        while True:
            region, is_new = await self._region(call, deadline, regions.needed_bytes(arrays, candidates))
            repeats = deadline.repeats
            try:
                laid, free = region.write(arrays, candidates)
                inputs, outputs = wire.inputs_of(arrays, laid), wire.outputs_of(free)
                answer = await call(deadline, model, "infer", inputs=inputs, outputs=outputs, **named)
                scored = wire.read_answer(answer, where, candidates, region.read(free))
            except RegionLost:  # a server that was restarted knows none of them
                self._regions.registered.discard(region.name)
                region.close()
                if is_new:
                    raise
                continue
            except (BadRequest, NoChampion):
                self._put_back(region, every_attempt_answered=deadline.repeats == repeats)
                raise
            except BaseException:
                self._put_back(region, every_attempt_answered=False)
                raise
            self._put_back(region, every_attempt_answered=deadline.repeats == repeats)
            return scored

    async def close(self, call: Call, deadline: Deadline) -> None:
        """Let go of every region, here and at the server. One that the server would not let go of is asked for again at the end."""
        for name in self._regions.close():
            await self._unregister(call, name, deadline)
        if not self._regions.registered:
            self._at_exit.detach()

    def _put_back(self, region: Region, every_attempt_answered: bool) -> None:
        """Free a region for the next request; not where the server may write a late answer into it."""
        if every_attempt_answered:
            self._regions.give(region)
        else:
            self._regions.give_up(region)

    async def _region(self, call: Call, deadline: Deadline, needed: int) -> tuple[Region, bool]:
        """A registered region of at least so many bytes, and whether it is a new one."""
        for name in self._regions.overdue():
            await self._unregister(call, name, deadline)
        if (region := self._regions.take()) is not None:
            if region.nbytes >= needed:
                return region, False
            region.close()
            await self._unregister(call, region.name, deadline)
        if not self._swept:
            status = await call(deadline, _MEMORY, "get_system_shared_memory_status")
            for name in regions.orphans(status.regions):
                await self._unregister(call, name, deadline)
            self._swept = True
        region = self._regions.create(needed)
        self._regions.registered.add(region.name)  # before the server has it: an answer that is lost leaves it there
        try:
            arguments: dict[str, Any] = {"name": region.name, "key": f"/{region.name}", "byte_size": region.nbytes}
            await call(deadline, _MEMORY, "register_system_shared_memory", retries=0, **arguments)
        except BaseException as error:
            if isinstance(error, BadRequest):
                self._regions.registered.discard(region.name)
            region.close()
            raise
        region.unname()
        return region, True

    async def _unregister(self, call: Call, name: str, deadline: Deadline) -> None:
        """Tell the server to let go of a region. One that does not answer may hold it still: closing asks again."""
        with contextlib.suppress(ServingError):
            await call(deadline, _MEMORY, "unregister_system_shared_memory", retries=3, name=name)
            self._regions.registered.discard(name)
