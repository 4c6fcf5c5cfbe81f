"""Packets of 9014 bytes from every kind of port to every other, byte for byte."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import permutations
from pathlib import Path

import pytest

from afxdp.port import AfxdpPort
from dataplane.af_packet import AfPacketPort
from dataplane.engine import Engine
from dataplane.memory import MemoryPort
from dataplane.port import Port
from dataplane.tap import TapPort
from tests.afxdp.network import ETHERTYPE, Peer, marks
from tests.nets import End, VethPair, entered, in_ns, namespace
from xdp_runtime.elf import read_object
from xdp_runtime.state import Verdict

pytestmark = marks()
OBJECT = Path(__file__).parent / "objects" / "chains.o"
MTU = 9000
SIZES = (60, 1514, 3521, 9014, 9000, 9014)
OTHER = 77  # the interface number of a memory port


def packets(verdict: Verdict, ifindex: int = 0) -> list[bytes]:
    rng = random.Random(verdict)
    head = bytes.fromhex("020000000002020000000001") + struct.pack("!H", ETHERTYPE)
    order = struct.pack("<IIIii", verdict, ifindex, 0, 0, 0)
    return [head + order + rng.randbytes(size - 34) for size in SIZES for _ in range(4)]


class Side:
    """A port in the namespace `ns`, and what is at its other end."""

    def __init__(self, kind: str, ns: str, stack: ExitStack, subnet: int,
                 given: list[bytes]) -> None:
        self.peer: Peer | None = None
        if kind == "memory":
            self.port: Port = MemoryPort(given, frame_size=16384, ifindex=OTHER)
            return
        if kind == "tap":
            with entered(ns):
                self.port = TapPort.open("jumbo", frame_size=TapPort.frame_size_for(MTU))
            stack.callback(self.port.close)
            in_ns(ns, "ip", "link", "set", "jumbo", "mtu", str(MTU), "up")
            far = End(ns, "jumbo", 0, "", "", "")
        else:
            wire = stack.enter_context(VethPair(ns, mtu=MTU, subnet=subnet))
            with entered(ns):
                self.port = AfxdpPort.open(wire.a.ifname, promisc=True, frags=True) \
                    if kind == "afxdp" else AfPacketPort(wire.a.ifname, promiscuous=True)
            stack.callback(self.port.close)
            far = wire.b
        self.peer = Peer(far)
        stack.callback(self.peer.close)

    def inject(self, some: list[bytes]) -> None:
        if self.peer is not None:
            self.peer.send(*some)

    def came_out(self, count: int) -> list[bytes]:
        if isinstance(self.port, MemoryPort):
            deadline = time.monotonic() + 5
            while len(self.port.sent) < count and time.monotonic() < deadline:
                time.sleep(0.01)
            return self.port.sent
        assert self.peer is not None
        return self.peer.receive(count)


@pytest.fixture
def ns() -> Iterator[str]:
    with namespace("jumbo") as name:
        yield name


@pytest.fixture
def run(ns: str) -> Iterator[Callable[..., tuple[Side, ...]]]:
    """Starts an engine over sides of these kinds; packets of the first are to go to the last."""
    with ExitStack() as stack:
        def start(*kinds: str, verdict: Verdict) -> tuple[Side, ...]:
            sides: list[Side] = []
            ahead: list[bytes] = []
            for number, kind in reversed(list(enumerate(kinds, 1))):
                ahead = packets(verdict, sides[-1].port.ifindex if sides else OTHER)
                sides.append(Side(kind, ns, stack, number, ahead if number == 1 else []))
            sides.reverse()
            engine = Engine(read_object(OBJECT), [side.port for side in sides], program="frags")
            stack.callback(engine.close)
            engine.start()
            stack.callback(engine.stop)
            sides[0].inject(ahead)
            return tuple(sides)

        yield start


KINDS = ("afxdp", "afpacket", "tap", "memory")


@pytest.mark.parametrize(("first", "second"), list(permutations(KINDS, 2)))
def test_redirected(run: Callable[..., tuple[Side, Side]], first: str, second: str) -> None:
    _, to = run(first, second, verdict=Verdict.REDIRECT)
    expected = packets(Verdict.REDIRECT, to.port.ifindex)
    assert to.came_out(len(expected)) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_sent_back(run: Callable[..., tuple[Side]], kind: str) -> None:
    side, = run(kind, verdict=Verdict.TX)
    expected = packets(Verdict.TX, OTHER)
    assert side.came_out(len(expected)) == expected


@pytest.mark.parametrize(("mtu", "size"), [(1500, 4096), (3498, 4096), (3499, 8192), (9000, 16384)])
def test_frames_of_a_tap(mtu: int, size: int) -> None:
    assert TapPort.frame_size_for(mtu) == size
