"""Ports of loopback are chosen once, and where the kernel gives none away."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hap import ports
from hap.errors import Busy
from hap.ports import free_ports


def test_no_port_is_chosen_twice_though_nobody_listens_on_it_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = free_ports(3)
    code = f"from hap import ports; ports._shuffled = lambda: [*{mine}, {mine[0]}, *range(30_001, 30_400)]; print(*ports.free_ports(3))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert len(set(mine)) == 3 and not set(map(int, other)) & set(mine), "another process was given other ones"
    monkeypatch.setattr(ports, "_shuffled", lambda: mine)
    with pytest.raises(Busy, match="no 1 ports are free"):
        free_ports(1)


def test_a_port_that_somebody_listens_on_or_that_the_kernel_may_give_away_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    (taken,) = free_ports(1)
    with socket.create_server(("127.0.0.1", taken)):
        assert not ports._is_free(taken)
    assert ports._is_free(taken)
    given_away = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(ports._shuffled()) < given_away or given_away < 21_000
