"""Large TCP packets out of the stack become packets of the wire, byte for byte as scapy has them.

A pair of datagram sockets gives the compiled template what a TAP with offloads gives: one datagram
a read(2), a virtio_net_hdr in front."""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP, IPOption
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, PadN
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from dataplane.tap import TapPort
from dataplane.tap_device import TapDevice
from tests.dataplane.drive import Driver

NEEDS_CSUM, TCPV4, TCPV6, ECN = 1, 1, 4, 0x80
FIN, SYN, PSH, ACK, ECE, CWR = 1, 2, 8, 16, 64, 128


class Tap:
    """The stack's end is `give`; what comes of it is asked of `port` by `driver`."""

    def __init__(self, frame_size: int = 4096) -> None:
        self.stack, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.setblocking(False)
        self.port = TapPort(TapDevice("lo", 1, (ours.detach(),), 12, offloads=True), frame_size)
        self.driver = Driver(self.port)

    def give(self, frame: bytes, kind: int = 0, step: int = 0, start: int = 0, offset: int = 0,
             flags: int = NEEDS_CSUM, hint: int = 0) -> None:
        self.stack.send(struct.pack("=BBHHHHH", flags, kind, hint, step, start, offset, 0) + frame)

    def close(self) -> None:
        self.port.close()
        self.stack.close()


@pytest.fixture
def tap() -> Iterator[Tap]:
    one = Tap()
    yield one
    one.close()


def fold(data: bytes) -> int:
    data += bytes(len(data) & 1)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def unfinished(frame: bytes, start: int, offset: int, v6: bool, protocol: int = 6,
               behind: int = 0) -> bytes:
    """Its checksum as the kernel leaves it; `behind`: bytes of IPv6 extension headers."""
    at = start - behind - (32 if v6 else 8)
    if not v6:
        at = frame.index(socket.inet_aton("10.1.2.3"))
    addresses = frame[at:at + (32 if v6 else 8)]
    total = fold(addresses + struct.pack("!HH", protocol, len(frame) - start))
    field = start + offset
    return frame[:field] + struct.pack("!H", total) + frame[field + 2:]


def large(rng: random.Random) -> tuple[bytes, dict[str, int], list[bytes]]:
    """(as the stack hands it over, its vnet header, the packets of the wire)"""
    v6, tags = rng.random() < 0.5, rng.choice((0, 0, 1, 2))
    step = rng.choice((1, 7, 536, 1000, 1208, 1440, 1448))
    count = rng.randint(1, min(45, 64000 // step))
    payload = rng.randbytes((count - 1) * step + rng.choice((1, step, rng.randint(1, step))))
    seq, number = rng.choice((rng.getrandbits(32), 0xFFFFFF00)), rng.choice((0, 0xFFF8, 4711))
    flags = ACK | rng.choice((0, FIN, PSH, FIN | PSH)) | rng.choice((0, CWR, CWR | ECE))
    tcp_options: list[Any] = rng.choice(([], [("NOP", None), ("NOP", None), ("Timestamp", (5, 6))],
                                         [("NOP", None)] * 40))
    ip_options = [IPOption(b"\x01" * rng.choice((4, 40)))] if rng.random() < 0.3 else []
    extra = v6 and rng.random() < 0.3

    def packet(part: bytes, index: int, more: int, flags: int) -> Any:
        made: Any = Ether(dst="02:00:00:00:00:08", src="02:00:00:00:00:07")
        for tag in range(tags):
            made /= Dot1Q(vlan=5 + tag)
        if v6:
            made /= IPv6(src="fd77::1", dst="fd77::2", tc=2, hlim=64)
            if extra:
                made /= IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)])
        else:
            made /= IP(src="10.1.2.3", dst="10.1.2.4", id=(number + index) & 0xFFFF, flags="DF",
                       options=ip_options)
        return made / TCP(sport=80, dport=4000, seq=(seq + more) & 0xFFFFFFFF, ack=7, flags=flags,
                          options=tcp_options) / Raw(part)

    expected = []
    for index, at in enumerate(range(0, len(payload), step)):
        these = flags if at + step >= len(payload) else flags & ~(FIN | PSH)
        expected.append(bytes(packet(payload[at:at + step], index, at,
                                     these & ~CWR if index else these)))
    frame = bytes(packet(payload, 0, 0, flags))
    start = len(expected[0]) - len(payload[:step]) - 20 - \
        (12 if len(tcp_options) == 3 else len(tcp_options))
    assert expected[0][start:start + 4] == struct.pack("!HH", 80, 4000)
    header = {"kind": (TCPV6 if v6 else TCPV4) | (ECN if flags & CWR else 0), "step": step,
              "start": start, "offset": 16, "hint": rng.choice((0, start + 20, len(frame)))}
    return unfinished(frame, start, 16, v6, behind=8 if extra else 0), header, expected


def received(tap: Tap, rng: random.Random,
             budgets: tuple[int, ...] = (1, 3, 17, 64, 256)) -> list[bytes]:
    """By batches of any of these sizes, until there is nothing."""
    got: list[bytes] = []
    while slots := tap.driver.receive(rng.choice(budgets)):
        assert all(slot.hard_start <= slot.start <= slot.end <= slot.frame_end for slot in slots)
        got += [slot.data for slot in slots]
        for slot in slots:
            tap.driver.release(slot)
    return got


def test_cut_as_the_kernel_does(tap: Tap) -> None:
    rng = random.Random(20261121)
    for _ in range(60):
        expected, cut = [], 0
        for _ in range(rng.randint(1, 3)):
            frame, header, packets = large(rng)
            tap.give(frame, **header)
            expected += packets
            cut += 1
            whole = bytes(Ether(dst="02:00:00:00:00:08") / Raw(rng.randbytes(rng.randint(46, 900))))
            tap.give(whole, flags=0)
            expected.append(whole)
        before = tap.port.statistics()["rx_large"]
        assert received(tap, rng) == expected
        assert tap.port.statistics()["rx_large"] == before + cut
    assert {tap.port.statistics()[name] for name in ("rx_invalid", "rx_too_long")} == {0}


@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
@pytest.mark.parametrize("kind", [TCP, UDP])
def test_checksums_of_what_is_not_cut(tap: Tap, kind: Any, v6: bool) -> None:
    rng = random.Random(3)
    ip = IPv6(src="fd77::1", dst="fd77::2") if v6 else IP(src="10.1.2.3", dst="10.1.2.4")
    start, offset = (54 if v6 else 34), (16 if kind is TCP else 6)
    for length in (0, 1, 2, 3, 1459, 1460):
        frame = bytes(Ether(dst="02:00:00:00:00:08") / ip / kind() / Raw(rng.randbytes(length)))
        tap.give(unfinished(frame, start, offset, v6, 6 if kind is TCP else 17), start=start,
                 offset=offset)
        assert received(tap, rng) == [frame]


def test_a_checksum_of_zero(tap: Tap) -> None:
    """0 says of UDP that there is none, so it is written as 0xFFFF; of TCP it is a checksum."""
    for kind, offset, expected in ((UDP, 6, 0xFFFF), (TCP, 16, 0)):
        ip = IP(src="10.1.2.3", dst="10.1.2.4")
        frame = bytes(Ether(dst="02:00:00:00:00:08") / ip / kind(chksum=0) / Raw(bytes(2)))
        open_ = unfinished(frame, 34, offset, False, 6 if kind is TCP else 17)
        rest = 0xFFFF - fold(open_[34:])
        tap.give(open_[:-2] + struct.pack("!H", rest), start=34, offset=offset)
        got, = received(tap, random.Random(4))
        assert struct.unpack_from("!H", got, 34 + offset) == (expected,)


def test_what_lies_is_dropped_and_counted(tap: Tap) -> None:
    """Any process may write a vnet header: nothing of it is believed."""
    rng = random.Random(5)
    frame, header, expected = large(rng)
    while header["kind"] & TCPV6 or header["start"] != 34 or len(expected) < 2:
        frame, header, expected = large(rng)
    lies: list[tuple[bytes, dict[str, int]]] = [
        (frame, header | change) for change in (
            {"step": 0}, {"kind": TCPV6}, {"kind": 3}, {"kind": 5}, {"flags": 0}, {"offset": 6},
            {"start": 0}, {"start": 33}, {"start": 38}, {"start": 0xFFFF})]
    lies += [(frame[:length], header) for length in (0, 13, 34, 53, 54)]
    lies += [(frame[:46] + bytes([doff]) + frame[47:], header) for doff in (0, 0x40)]
    lies.append((frame[:14] + b"\x46" + frame[15:], header))
    lies.append((frame[:12] + b"\x88\xb5" + frame[14:], header))
    lies.append((frame[:60], {"start": 50, "offset": 9}))
    for number, (lie, told) in enumerate(lies, 1):
        tap.give(lie, **told)
        tap.give(frame, **header)
        assert received(tap, rng, (3, 64)) == expected  # what is dropped takes of a batch, too
        assert tap.port.statistics()["rx_invalid"] == number


def test_nothing_of_random_headers_leaves_its_frame(tap: Tap) -> None:
    rng = random.Random(6)
    for _ in range(3000):
        tap.stack.send(rng.choice((b"\1\1", b"\1\4", b"\1\0", b"\0\0")) + rng.randbytes(2)
                       + struct.pack("=HHHH", rng.choice((0, 1, 900, 65535)), rng.randint(0, 90),
                                     rng.choice((6, 16, 65535)), 0)
                       + rng.randbytes(12) + rng.choice((b"\x08\0E", b"\x86\xdd`", b"\x81\0\0"))
                       + rng.randbytes(rng.choice((0, 20, 60, 100, 3000, 9000))))
        assert all(len(packet) <= 4096 - 256 - 320 for packet in received(tap, rng, (3, 64)))


def test_too_long_for_a_frame(tap: Tap) -> None:
    """Where the MTU grew after the run had started: each packet that is not delivered counts."""
    rng = random.Random(7)
    made = Ether() / IP(src="10.1.2.3", dst="10.1.2.4") / TCP() / Raw(rng.randbytes(9001))
    frame = unfinished(bytes(made), 34, 16, False)
    tap.give(frame, TCPV4, 4500, 34, 16)
    tap.give(bytes(9000), flags=0)
    tap.give(frame, TCPV4, 3000, 34, 16)
    assert [len(packet) for packet in received(tap, rng, (3, 64))] == [3054, 3054, 3054, 55]
    assert tap.port.statistics()["rx_too_long"] == 4
