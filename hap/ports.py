"""Ports of loopback that stay free until they are taken, whatever else runs on this machine meanwhile.

A server takes its port seconds after the port was chosen for it, that of a demo minutes after, and again after a restart. So
no port is chosen that the kernel may give away meanwhile to a connection or to somebody's listener, and none that was chosen
by another process of ours: what answers at the port is the server that it was chosen for, not one of a command beside this one.
"""

import random
import socket
from pathlib import Path

from hap.errors import Busy

_FIRST, _LAST = 20_000, 32_767  # above the defaults of params.yaml, below what Linux gives away unless it is told otherwise
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_held: list[socket.socket] = []  # names that no other process can take before this one ends


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on and that no other call is given, in this process or in another.

    Raises:
        Busy: there are not as many.
    """
    found: list[int] = []
    for port in _shuffled():
        if len(found) == count:
            break
        if _is_free(port) and _hold(port):
            found.append(port)
    if len(found) < count:
        raise Busy(f"no {count} ports are free between {_FIRST} and {_LAST} on 127.0.0.1; `ss -tlnp` names who listens there")
    return found


def _shuffled() -> list[int]:
    given_away = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else _LAST + 1  # some sandboxes do not tell
    last = min(_LAST, given_away - 1) if given_away > _FIRST + 1000 else _LAST
    return random.SystemRandom().sample(range(_FIRST, last + 1), last + 1 - _FIRST)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what lingers of an ended server is no obstacle
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def _hold(port: int) -> bool:
    """Take the port's name among the abstract Unix sockets: they leave no file, and end with the process."""
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0hap-port-{port}")
    except OSError:
        name.close()
        return False
    _held.append(name)
    return True
