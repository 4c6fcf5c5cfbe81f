"""What every port does, run against every kind of port.

A rig gives each kind the same two ends: frames to inject, and what came out.  Files and memory get
their input when they are opened, interfaces while they run.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import pytest

from dataplane import pcapfile
from dataplane.memory import MemoryPort
from dataplane.pcap import PcapPort
from dataplane.pcapfile import CapturedPacket
from dataplane.port import Port
from tests.dataplane.drive import Driver, Slot, frames
from tests.nets import VethPair, entered, in_ns, namespace
from xdp_runtime.state import Verdict

ETHERTYPE = 0x88B5  # of drive.frames; nobody else uses it
_SO_RCVBUFFORCE, _SOL_PACKET, _PACKET_IGNORE_OUTGOING = 33, 263, 23
CHUNK = 100  # frames on the way to a live port at a time


class Rig(Protocol):
    longest: int  # bytes of the largest frame that goes through

    def start(self, given: Sequence[bytes]) -> Port:
        """Open the port; files and memory take their input here."""

    def inject(self, some: Sequence[bytes]) -> None:
        """Send to an interface, in the order given to `start`."""

    def came_out(self, count: int) -> list[bytes]:
        """What left through the port; it may be closed for this."""


class MemoryRig:
    longest = 1514

    def start(self, given: Sequence[bytes]) -> Port:
        self.port = MemoryPort(given)
        return self.port

    def inject(self, some: Sequence[bytes]) -> None: ...

    def came_out(self, count: int) -> list[bytes]:
        return self.port.sent


class PcapRig:
    longest = 1514

    def __init__(self, folder: Path, kind: str) -> None:
        self._in, self._out, self._kind = folder / "in", folder / "out", kind

    def start(self, given: Sequence[bytes]) -> Port:
        packets = [CapturedPacket(i, frame, len(frame)) for i, frame in enumerate(given)]
        if self._kind == "pcap":
            content = pcapfile.pcap_header() + b"".join(map(pcapfile.pcap_record, packets))
        else:
            content = pcapfile.pcapng_header("x") + b"".join(map(pcapfile.packet_block, packets))
        self._in.write_bytes(content)
        self.port = PcapPort(self._in, self._out)
        assert self.port.kind.name == self._kind
        return self.port

    def inject(self, some: Sequence[bytes]) -> None: ...

    def came_out(self, count: int) -> list[bytes]:
        self.port.close()
        return [p.data for p in pcapfile.read_packets(self._out)
                if p.comment in ("XDP_TX", "sent here")]


class LiveRig:
    """An interface, and a raw socket at its other side."""

    longest = 1514

    def __init__(self, ns: str, open_port: Callable[[], Port], peer_ns: str, peer: str) -> None:
        self._ns, self._open, self._peer_ns, self._peer = ns, open_port, peer_ns, peer
        self._socket: socket.socket | None = None

    def start(self, given: Sequence[bytes]) -> Port:
        with entered(self._ns):
            port = self._open()
        in_ns(self._ns, "ip", "link", "set", port.name, "up")
        with entered(self._peer_ns):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW,
                                         socket.htons(ETHERTYPE))
            self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
            self._socket.bind((self._peer, ETHERTYPE))
        self._socket.settimeout(2)
        return port

    def inject(self, some: Sequence[bytes]) -> None:
        assert self._socket is not None
        for frame in some:
            self._socket.send(frame)

    def came_out(self, count: int) -> list[bytes]:
        assert self._socket is not None
        got: list[bytes] = []
        try:
            while len(got) < count:
                got.append(self._socket.recv(1 << 16))
            self._socket.settimeout(0.05)
            got.append(self._socket.recv(1 << 16))  # one too many would be a mistake
        except TimeoutError:
            pass
        return got

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


def _tap(stack: ExitStack) -> LiveRig:
    from dataplane.tap import TapPort

    ns = stack.enter_context(namespace("tap"))
    return LiveRig(ns, lambda: TapPort.open("xtap0"), ns, "xtap0")


def _af_packet(stack: ExitStack) -> LiveRig:
    from dataplane.af_packet import AfPacketPort

    pair = stack.enter_context(VethPair())
    return LiveRig(pair.a.ns, lambda: AfPacketPort(pair.a.ifname), pair.b.ns, pair.b.ifname)


def _afxdp(stack: ExitStack, **options: Any) -> LiveRig:
    if find_spec("afxdp._native") is None:
        pytest.skip("afxdp._native is not built (needs libxdp-dev)")
    from afxdp.port import AfxdpPort

    pair = stack.enter_context(VethPair())
    if options.get("tx") == "live":  # its target must take redirects, the caller be in there
        in_ns(pair.b.ns, "ethtool", "-K", pair.b.ifname, "gro", "on")
        stack.enter_context(entered(pair.a.ns))
    return LiveRig(pair.a.ns, lambda: AfxdpPort.open(pair.a.ifname, **options), pair.b.ns,
                   pair.b.ifname)


class DpdkRig(PcapRig):
    """DPDK's net_pcap, from one file into another; the EAL stays until this process ends."""

    def start(self, given: Sequence[bytes]) -> Port:
        from dpdk.port import DpdkPort

        packets = [CapturedPacket(i, frame, len(frame)) for i, frame in enumerate(given)]
        self._in.write_bytes(pcapfile.pcap_header() + b"".join(map(pcapfile.pcap_record, packets)))
        self.device = DpdkPort.open(f"net_pcap0,rx_pcap={self._in},tx_pcap={self._out}")
        return self.device

    def came_out(self, count: int) -> list[bytes]:
        self.device.close()
        assert self.device.left == [0]
        return [packet.data for packet in pcapfile.read_packets(self._out)]


_AFXDP: dict[str, dict[str, Any]] = {  # each has other templates, or another way in the kernel
    "afxdp": {}, "afxdp generic": {"mode": "generic"}, "afxdp live": {"tx": "live"},
    "afxdp frags": {"frags": True}, "afxdp unaligned": {"unaligned": True, "frame_size": 3000},
    "afxdp checksums": {"checksums": True}, "afxdp busy": {"busy_poll": 64, "need_wakeup": False}}
LIVE: dict[str, Callable[[ExitStack], LiveRig]] = {
    "tap": _tap, "af_packet": _af_packet,
    **{name: partial(_afxdp, **options) for name, options in _AFXDP.items()}}
KINDS: list[Any] = ["memory", "pcap", "pcapng", pytest.param("dpdk", marks=pytest.mark.dpdk),
                    *(pytest.param(kind, marks=[pytest.mark.netns, pytest.mark.root])
                      for kind in LIVE)]


@pytest.fixture(params=KINDS)
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    if request.param == "memory":
        yield MemoryRig()
    elif request.param in ("pcap", "pcapng"):
        yield PcapRig(tmp_path, request.param)
    elif request.param == "dpdk":
        if find_spec("dpdk._native") is None:
            pytest.skip("dpdk._native is not built (needs libdpdk-dev)")
        yield DpdkRig(tmp_path, request.param)
    else:
        with ExitStack() as stack:
            made = LIVE[request.param](stack)
            stack.callback(made.close)
            yield made


@pytest.fixture
def start(rig: Rig) -> Iterator[Callable[[Sequence[bytes]], Driver]]:
    ports: list[Port] = []

    def starter(given: Sequence[bytes]) -> Driver:
        ports.append(rig.start(given))
        return Driver(ports[0])

    yield starter
    for port in ports:
        port.close()
        port.close()


Start = Callable[[Sequence[bytes]], Driver]


def came_out(rig: Rig, driver: Driver, count: int) -> list[bytes]:
    """Two flushes that find nothing new send all that a port has collected, as in the loop."""
    driver.flush()
    driver.flush()
    return rig.came_out(count)


def batches(rig: Rig, driver: Driver, given: Sequence[bytes],
            budget: int = 64) -> Iterator[list[Slot]]:
    """Inject `given` and yield the batches that arrive; each must be given back."""
    for first in range(0, len(given), CHUNK):
        some = given[first:first + CHUNK]
        rig.inject(some)
        missing, idle = len(some), 0
        while missing and idle < 20_000:
            slots = driver.receive(min(budget, missing))
            idle = 0 if slots else idle + 1
            ours = []
            for slot in slots:
                if slot.data[12:14] == ETHERTYPE.to_bytes(2, "big"):
                    ours.append(slot)
                else:  # what the stack says of its own accord
                    driver.release(slot)
            missing -= len(ours)
            if ours:
                yield ours
            driver.flush()
        assert missing == 0, f"{missing} frames did not arrive"


def release_all(driver: Driver, slots: Sequence[Slot]) -> list[bytes]:
    seen = [slot.data for slot in slots]
    for slot in slots:
        driver.release(slot, Verdict.DROP)
    return seen


def test_frames_arrive_in_order_byte_for_byte(rig: Rig, start: Start) -> None:
    given = [frame for length in (60, 61, 64, 127, 1000, rig.longest)
             for frame in frames(50, length)]
    driver = start(given)
    got = []
    for slots in batches(rig, driver, given):
        got += release_all(driver, slots)
    assert got == given


def test_shortest_and_longest_frames(rig: Rig, start: Start) -> None:
    given = [frames(1, 14)[0], frames(1, rig.longest)[0]]
    driver = start(given)
    got = []
    for slots in batches(rig, driver, given):
        got += [slot.data for slot in slots]
        assert all(driver.transmit(slot) for slot in slots)
    assert got == given
    assert came_out(rig, driver, 2) == given


def test_there_is_room_around_a_packet(rig: Rig, start: Start) -> None:
    """192 bytes for adjust_head beyond what the kernel keeps, and the memory is really there."""
    given = frames(CHUNK, rig.longest)
    driver = start(given)
    for slots in batches(rig, driver, given):
        before = [slot.data for slot in slots]
        for slot in slots:
            assert slot.start - slot.hard_start >= 192
            assert slot.frame_end - slot.end >= 64
            slot.poke(slot.hard_start - slot.start, b"\xaa" * (slot.start - slot.hard_start))
            slot.poke(slot.end - slot.start, b"\xbb" * (slot.frame_end - slot.end))
        assert [slot.data for slot in slots] == before  # nobody's room is another's packet
        release_all(driver, slots)


def test_what_the_program_made_of_a_packet_goes_out(rig: Rig, start: Start) -> None:
    given = frames(40, 100)
    wanted: list[bytes] = []
    driver = start(given)
    for slots in batches(rig, driver, given):
        for slot in slots:
            head, tail = [(0, 0), (-20, 0), (40, 0), (0, 30), (-128, -10)][len(wanted) % 5]
            header = slot.data[:14]
            slot.adjust(head, tail)
            slot.poke(0, header)
            if tail > 0:
                slot.poke(len(slot.data) - tail, b"\xcc" * tail)
            wanted.append(slot.data)
            assert driver.transmit(slot)
    assert came_out(rig, driver, len(wanted)) == wanted


def test_foreign_packets_are_sent(rig: Rig, start: Start) -> None:
    """They are copied: the memory they came from is someone else's."""
    driver = start([])
    wanted = [frame for length in (14, 64, rig.longest) for frame in frames(30, length)]
    for frame in wanted:
        assert driver.send(frame)
    driver.flush()
    assert came_out(rig, driver, len(wanted)) == wanted


def test_release_and_transmit_give_frames_back(rig: Rig, start: Start) -> None:
    given = frames(20_000)
    driver = start(given)
    seen = 0
    for slots in batches(rig, driver, given):
        for slot in slots:
            assert slot.data == given[seen]
            seen += 1
            if seen % 10 == 0:
                assert driver.transmit(slot)
            else:
                driver.release(slot, Verdict.PASS)
    assert seen == len(given)
    assert came_out(rig, driver, 2000) == list(given[9::10])


@pytest.mark.parametrize("budget", [1, 7, 256])
def test_budget_is_kept(rig: Rig, start: Start, budget: int) -> None:
    given = frames(300)
    driver = start(given)
    got = []
    for slots in batches(rig, driver, given, budget):
        assert len(slots) <= budget
        got += release_all(driver, slots)
    assert got == list(given)


def test_closing_twice_and_what_can_be_asked_then(rig: Rig, start: Start) -> None:
    driver = start([])
    release_all(driver, driver.receive())
    driver.flush()
    port = driver.port
    assert port.mode and port.name and port.mtu >= 1500
    before = port.statistics()
    port.close()
    port.close()
    assert set(port.statistics()) == set(before)
