"""What the AF_XDP tests share: a veth pair, a raw socket at its far end, the state to compare."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest

from afxdp.audit import Audit, audit
from afxdp.port import AfxdpPort
from tests.dataplane.drive import Driver
from tests.nets import End, VethPair, entered, in_ns
from tests.privileges import needs_bpf

ETHERTYPE = 0x88B5  # of tests.dataplane.drive.frames; nobody else uses it
_SO_RCVBUFFORCE = 33


def marks() -> list[pytest.MarkDecorator]:
    missing = find_spec("afxdp._native") is None
    return [*needs_bpf(), pytest.mark.netns,
            pytest.mark.skipif(missing, reason="afxdp._native is not built (needs libxdp-dev)")]


class Peer:
    """A raw socket at the far end of a wire; sees only frames of our type."""

    def __init__(self, end: End) -> None:
        with entered(end.ns):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW,
                                         socket.htons(ETHERTYPE))
            self._socket.bind((end.ifname, ETHERTYPE))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)

    def send(self, *frames: bytes) -> None:
        for frame in frames:
            self._socket.send(frame)

    def receive(self, count: int, timeout_s: float = 5) -> list[bytes]:
        """Up to `count` frames; fewer when no more come."""
        got: list[bytes] = []
        self._socket.settimeout(timeout_s)
        try:
            while len(got) < count:
                got.append(self._socket.recv(1 << 16))
        except TimeoutError:
            pass
        return got

    def close(self) -> None:
        self._socket.close()


@contextmanager
def opened(end: End, **options: Any) -> Iterator[AfxdpPort]:
    """A port on this end of a wire, closed at the end."""
    port = open_port(end, **options)
    try:
        yield port
    finally:
        port.close()


def open_port(end: End, **options: Any) -> AfxdpPort:
    with entered(end.ns):
        return AfxdpPort.open(end.ifname, **options)


def collect(driver: Driver, count: int, timeout_s: float = 5) -> list[Any]:
    """Slots of `count` frames of our type; other frames are released at once."""
    slots: list[Any] = []
    deadline = time.monotonic() + timeout_s
    while len(slots) < count and time.monotonic() < deadline:
        got = driver.receive()
        for slot in got:
            if slot.data[12:14] == struct.pack("!H", ETHERTYPE):
                slots.append(slot)
            else:
                driver.release(slot)
        if slots:
            break  # the next receive would overwrite them
        driver.flush()
        time.sleep(0.001)
    assert len(slots) == count
    return slots


def all_frames_found(port: AfxdpPort) -> list[Audit]:
    """The audit of every queue, once the kernel has given back what it sent.

    What a neighbour says meanwhile may be counted in the fill ring and, a moment later, received:
    such an audit is taken again.
    """
    deadline = time.monotonic() + 60  # a loaded machine sends late
    while True:
        for index in range(len(port.queues)):
            Driver(port, index).flush()
        found = [audit(queue) for queue in port.opened]
        moved = any(a.tx_kernel or a.tx or a.rx_kernel < 0 for a in found)
        if not moved or time.monotonic() > deadline:
            break
        time.sleep(0.005)
    for a in found:
        assert a.in_hand == 0 and a.twice == () and a.tx == a.tx_kernel == 0, a
        assert 0 <= a.rx_kernel <= 2, a  # copy mode keeps one aside for the next packet
        assert a.free + a.fill + a.rx_kernel + a.rx + a.completion == a.total, a
    return found


def link(end: End) -> dict[str, Any]:
    """What `ip link` says of an interface."""
    said = in_ns(end.ns, "ip", "-d", "-j", "link", "show", "dev", end.ifname).stdout
    found: dict[str, Any] = json.loads(said)[0]
    return found


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def wire() -> Iterator[VethPair]:
    """One queue: of several, the sender's hash would choose."""
    with VethPair() as pair:
        yield pair


@pytest.fixture
def peer(wire: VethPair) -> Iterator[Peer]:
    made = Peer(wire.b)
    yield made
    made.close()
