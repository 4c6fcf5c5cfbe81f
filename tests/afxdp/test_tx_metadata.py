"""Checksums that a local sender left to hardware: a veth's receiver takes what leaves again."""

from __future__ import annotations

import ctypes
import random
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from afxdp import rings, tx_metadata
from afxdp.port import AfxdpPort, kind_of
from dataplane.netdev import xsk_features
from tests.afxdp.network import all_frames_found, marks, opened
from tests.dataplane.drive import Driver
from tests.nets import VethPair, entered, in_ns

pytestmark = marks()
SIZES = (0, 1, 18, 19, 200, 1001, 1400)
_SOL_PACKET, _PACKET_AUXDATA, _CSUM_NOT_READY = 263, 8, 8


@pytest.fixture(scope="module")
def wire() -> Iterator[VethPair]:
    with VethPair(subnet=72, offload=True) as made:
        in_ns(made.a.ns, "ethtool", "-K", made.a.ifname, "gro", "on")  # for live frames
        for end, other in ((made.a, made.b), (made.b, made.a)):
            for address in (other.ip4, other.ip6):
                in_ns(end.ns, "ip", "neigh", "replace", address, "lladdr", other.mac, "dev",
                      end.ifname)
        yield made


@contextmanager
def asker(wire: VethPair, v6: bool) -> Iterator[socket.socket]:
    """Its datagrams leave the kernel without a checksum, as the veth's offload is on."""
    kind = socket.AF_INET6 if v6 else socket.AF_INET
    with entered(wire.a.ns), socket.socket(kind, socket.SOCK_DGRAM) as sock:
        sock.connect((wire.b.ip6 if v6 else wire.b.ip4, 5000))
        sock.settimeout(3)
        yield sock


def echoed(frame: bytes) -> bytes:
    """Back to its sender; swapping leaves the sum of the pseudo-header as it is."""
    at, size = (22, 16) if frame[12:14] == b"\x86\xdd" else (26, 4)
    ports = at + 2 * size
    return frame[6:12] + frame[:6] + frame[12:at] + frame[at + size:ports] + frame[at:at + size] \
        + frame[ports + 2:ports + 4] + frame[ports:ports + 2] + frame[ports + 4:]


def answer(port: AfxdpPort, copied: bool) -> bytes:
    """Echo the next datagram, from its own frame or `copied` into another -> it."""
    driver, deadline_s, frame = Driver(port), time.monotonic() + 20, b""
    while not frame and time.monotonic() < deadline_s:
        for slot in driver.receive():
            if struct.pack("!H", 5000) not in (slot.data[36:38], slot.data[56:58]):
                driver.release(slot)
                continue
            frame = echoed(slot.data)
            if copied:
                assert driver.send(frame)
                driver.release(slot)
            else:
                ctypes.memmove(slot.start, frame, len(frame))
                assert driver.transmit(slot)
        driver.flush()
    driver.flush()
    assert frame, "a datagram"
    return frame


@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
@pytest.mark.parametrize(("way", "options"), [
    ("metadata", {}), ("metadata", {"unaligned": True, "frame_size": 3000}),
    ("metadata", {"frame_size": 2048}), ("metadata", {"mode": "generic"}), ("here", {}),
    ("live", {"tx": "live"}),
], ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict)
    else value)
def test_an_answer_is_taken(wire: VethPair, way: str, options: dict[str, Any], v6: bool) -> None:
    rng = random.Random(5)
    with opened(wire.b, checksums=True, **options) as port, asker(wire, v6) as sock:
        assert ("(TX metadata)" in port.mode) == tx_metadata.kernel_takes_it()
        if way == "here":
            for queue in port.opened:
                queue.store(rings.METADATA_ASKS, 0)
        for size in SIZES:
            payload = rng.randbytes(size)
            for copied in (False, True):
                sock.send(payload)
                with entered(wire.b.ns):
                    answer(port, copied)
                assert sock.recv(2000) == payload
        told = port.statistics()
        assert told["tx_checksums"] == 2 * len(SIZES)
        assert told["tx_invalid_descs"] == told["malformed"] == 0
        assert told.get("tx_live", 0) == (2 * len(SIZES) if way == "live" else 0)
        all_frames_found(port)


def test_nobody_computes_what_a_veth_hands_over(wire: VethPair) -> None:
    """The very bytes arrive, and the kernel says that their checksum is not there yet."""
    with opened(wire.b, checksums=True) as port, asker(wire, False) as sock, \
            entered(wire.a.ns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW,
                                              socket.htons(0x0800)) as seen:
        seen.bind((wire.a.ifname, 0x0800))
        seen.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        seen.settimeout(5)
        sock.send(b"nobody adds this up")
        sent = answer(port, False)
        frame, controls, _, _ = seen.recvmsg(2000, 200)
        assert frame == sent
        (status,) = {struct.unpack_from("=I", data)[0] for _, _, data in controls}
        assert status & _CSUM_NOT_READY


def test_left_alone_it_is_refused(wire: VethPair) -> None:
    """As with XDP in the kernel."""
    with opened(wire.b) as port, asker(wire, False) as sock:
        sock.settimeout(0.3)
        sock.send(b"in vain")
        answer(port, False)
        with pytest.raises(TimeoutError):
            sock.recv(2000)
        assert "checksums" not in port.mode and not port.statistics()["tx_checksums"]


def test_a_driver_is_asked_what_it_knows(wire: VethPair) -> None:
    with entered(wire.b.ns):
        assert xsk_features(wire.b.ifindex) in (None, 0), "veth knows no TX metadata itself"
        assert xsk_features(1 << 20) is None
        registered = tx_metadata.kernel_takes_it()
        assert tx_metadata.can_ask(wire.b.ifindex, registered, False)[0] == registered
        assert tx_metadata.can_ask(wire.b.ifindex, registered, True)[0] is False
        assert tx_metadata.can_ask(wire.b.ifindex, False, False)[0] is False


def test_the_kind_of_port() -> None:
    assert kind_of(False, "xsk", False, True).transmit is tx_metadata.TRANSMIT
    assert kind_of(False, "auto", True, True).send is tx_metadata.SEND
    assert kind_of(True, "xsk", False, True).chain is tx_metadata.SG_CHAIN
    assert kind_of(True, "xsk", True).chain is kind_of(True).chain
    assert kind_of(False).transmit is not tx_metadata.TRANSMIT
