"""AF_XDP and packets of several frames, on veth pairs with an MTU of 9000, byte for byte."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from afxdp.port import AfxdpPort
from dataplane.engine import Engine
from dataplane.port import Port
from dataplane.tap import TapPort
from tests.afxdp.network import ETHERTYPE, Peer, all_frames_found, marks, open_port
from tests.nets import VethPair, entered, in_ns
from xdp_runtime.elf import read_object
from xdp_runtime.errors import PortError
from xdp_runtime.state import Verdict

pytestmark = marks()
OBJECT = Path(__file__).parent.parent / "dataplane" / "objects" / "chains.o"
MTU = 9000
SIZES = (60, 1514, 3506, 3520, 3521, 3840, 3841, 4096, 7680, 7681, 9014)
SHAPES: list[dict[str, Any]] = [{}, {"frame_size": 2048}, {"mode": "generic"},
                                {"unaligned": True, "frame_size": 3008}]


def packet(rng: random.Random, size: int, verdict: Verdict, ifindex: int = 0, pull: int = 0,
           head: int = 0, tail: int = 0) -> bytes:
    made = bytes(5) + b"\1" + bytes(5) + b"\2" + struct.pack("!H", ETHERTYPE)
    made += struct.pack("<IIIii", verdict, ifindex, pull, head, tail)
    return made + rng.randbytes(size - len(made))


class Rig:
    """Two wires whose near ends are ports of one run, raw sockets at their far ends."""

    def __init__(self, stack: ExitStack, **shape: Any) -> None:
        first = stack.enter_context(VethPair(mtu=MTU))
        self.wires = [first, stack.enter_context(VethPair(first.a.ns, mtu=MTU, subnet=2))]
        self.peers = [Peer(wire.b) for wire in self.wires]
        self.ports: list[AfxdpPort] = []
        for peer, wire in zip(self.peers, self.wires, strict=True):
            stack.callback(peer.close)
            in_ns(wire.a.ns, "ip", "link", "set", wire.a.ifname, "promisc", "on")
            self.ports.append(open_port(wire.a, queues=[0], frags=True, **shape))
            stack.callback(self.ports[-1].close)
        with entered(self.wires[0].a.ns):
            self.tap = TapPort.open("jumbo0", frame_size=16384)
        stack.callback(self.tap.close)
        in_ns(self.wires[0].a.ns, "ip", "link", "set", "jumbo0", "mtu", str(MTU), "up")

    def __enter__(self) -> Rig:
        taps: dict[int, Port] = {0: self.tap}
        self.engine = Engine(read_object(OBJECT), self.ports, program="frags", stack=taps)
        self.engine.start()
        return self

    def __exit__(self, *why: object) -> None:
        self.engine.stop()
        self.total = self.engine.stats.total()
        self.engine.close()


@pytest.fixture(params=SHAPES, ids=str)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with ExitStack() as stack:
        yield Rig(stack, **request.param)


def given(verdict: Verdict, ifindex: int = 0, **changes: int) -> list[bytes]:
    rng = random.Random(verdict)
    return [packet(rng, size, verdict, ifindex, **changes) for size in SIZES for _ in range(3)]


def test_sent_back(rig: Rig) -> None:
    sent = given(Verdict.TX)
    with rig:
        rig.peers[0].send(*sent)
        assert rig.peers[0].receive(len(sent)) == sent
    assert rig.total["tx"] >= len(sent) and rig.total["tx_full"] == 0
    all_frames_found(rig.ports[0])


def test_changed_and_sent_back(rig: Rig) -> None:
    rng = random.Random(5)
    sent = [packet(rng, 9014, Verdict.TX, tail=-5), packet(rng, 9014, Verdict.TX, tail=-8000),
            packet(rng, 9014, Verdict.TX, head=100), packet(rng, 5000, Verdict.TX, tail=7),
            packet(rng, 5000, Verdict.TX, head=40, tail=-1000)]
    for number, head in ((2, 100), (4, 40)):  # a header behind what is cut off
        sent[number] = sent[number][:head] + sent[number][:14] + sent[number][head + 14:]
    with rig:
        rig.peers[0].send(*sent)
        assert rig.peers[0].receive(len(sent)) == [
            sent[0][:-5], sent[1][:-8000], sent[2][100:], sent[3] + bytes(7), sent[4][40:-1000]]
    all_frames_found(rig.ports[0])


def test_redirected(rig: Rig) -> None:
    sent = given(Verdict.REDIRECT, rig.ports[1].ifindex)
    with rig:
        rig.peers[0].send(*sent)
        assert rig.peers[1].receive(len(sent)) == sent
    assert rig.total["redirect"] >= len(sent) and rig.total["redirect_full"] == 0
    for port in rig.ports:
        all_frames_found(port)


def test_passed_and_back(rig: Rig) -> None:
    """Through the TAP both ways: what a raw socket on it sees, and what it sends."""
    sent = given(Verdict.PASS)
    end = rig.wires[0].a
    with rig, ExitStack() as undo:
        inside = Peer(type(end)(end.ns, "jumbo0", 0, "", "", ""))
        undo.callback(inside.close)
        rig.peers[0].send(*sent)
        assert inside.receive(len(sent)) == sent
        inside.send(*sent)
        assert rig.peers[0].receive(len(sent)) == sent
    all_frames_found(rig.ports[0])


def test_dropped(rig: Rig) -> None:
    sent = given(Verdict.DROP)
    with rig:
        rig.peers[0].send(*sent)
        deadline = time.monotonic() + 5
        while rig.engine.stats.total()["drop"] < len(sent) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert rig.total["drop"] >= len(sent)
    all_frames_found(rig.ports[0])


def test_many(rig: Rig) -> None:
    """No packet and no frame is lost on the way, in whatever order the sizes come."""
    rng = random.Random(9)
    sent = [packet(rng, rng.choice((60, 1514, 4000, 9014)), Verdict.TX) for _ in range(2000)]
    with rig:
        for at in range(0, len(sent), 50):
            rig.peers[0].send(*sent[at:at + 50])
            assert rig.peers[0].receive(len(sent[at:at + 50])) == sent[at:at + 50]
    all_frames_found(rig.ports[0])


@pytest.mark.parametrize("mode", ["native", "generic"])
def test_refused_without_frags(mode: str) -> None:
    with VethPair(mtu=MTU) as wire, pytest.raises(PortError, match=r'MTU.*SEC\("xdp.frags"\)'):
        open_port(wire.a, mode=mode)
    with VethPair(mtu=3000) as wire:
        open_port(wire.a, mode=mode).close()
