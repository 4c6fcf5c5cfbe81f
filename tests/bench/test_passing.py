"""Behind the stack, over bare wires: a reader of datagrams, goodput and round trips of TCP."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator

import pytest

from bench.histogram import percentile_ns
from bench.passing import PORT, Reader, tcp_mbps, tcp_round_trips
from tests.control.run_xdpu import until
from tests.nets import VethPair, entered
from tests.privileges import needs_bpf

needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="the programs are C: needs gcc")
pytestmark = [*needs_bpf(), pytest.mark.netns, needs_gcc]
CPUS = (min(os.sched_getaffinity(0)),) * 2


@pytest.fixture(scope="module")
def pair() -> Iterator[VethPair]:
    with VethPair(subnet=13) as made:
        yield made


def test_datagrams_are_counted(pair: VethPair) -> None:
    with Reader(pair.b, CPUS[0]) as reader, entered(pair.a.ns), \
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        before = reader.packets()
        for _ in range(5):
            sock.sendto(bytes(16), (pair.b.ip4, PORT))
        until(lambda: reader.read().packets == 5, "five datagrams")
        assert reader.packets() - before == 5
        assert sum(reader.read().histogram) == 0, "none was stamped"


def test_round_trips(pair: VethPair) -> None:
    trips = tcp_round_trips(pair.a, pair.b, 0.05, CPUS)
    assert trips.packets == sum(trips.histogram) > 0
    middle, tail = (percentile_ns(trips.histogram, share) for share in (0.5, 0.99))
    assert middle is not None and tail is not None and 0 < middle <= tail


@pytest.mark.skipif(not shutil.which("iperf3"), reason="needs iperf3")
def test_goodput(pair: VethPair) -> None:
    assert tcp_mbps(pair.a, pair.b, 1, CPUS) > 0
