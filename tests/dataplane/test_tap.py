"""TapPort: frames to and from the stack, and checksums that the sender left unfinished."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from dataplane.af_packet import AfPacketPort
from dataplane.tap import TapPort
from tests.dataplane.drive import Driver, frames
from tests.nets import VethPair, entered, in_ns, namespace
from tests.privileges import needs_bpf
from xdp_runtime.errors import ConfigError

pytestmark = [*needs_bpf(), pytest.mark.netns]
MAC, IP4, IP6 = "02:00:00:00:00:07", "10.77.9.1", "fd77:9::1"
FAR_IP4, FAR_IP6 = "10.77.9.2", "fd77:9::2"


@pytest.fixture
def ns() -> Iterator[str]:
    with namespace("tap") as name:
        yield name


@contextmanager
def opened(ns: str, **options: Any) -> Iterator[TapPort]:
    """A TAP that is up, with addresses, and knows two neighbours behind it."""
    with entered(ns):
        port = TapPort.open("xtap0", mac=MAC, **options)
    in_ns(ns, "ip", "addr", "add", f"{IP4}/24", "dev", "xtap0")
    in_ns(ns, "ip", "addr", "add", f"{IP6}/64", "dev", "xtap0", "nodad")
    in_ns(ns, "ip", "link", "set", "xtap0", "up")
    for address in (FAR_IP4, FAR_IP6):
        in_ns(ns, "ip", "neigh", "replace", address, "lladdr", "02:00:00:00:00:08", "dev", "xtap0")
    try:
        yield port
    finally:
        port.close()


def _sum(data: bytes) -> int:
    data += bytes(len(data) & 1)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def datagram(checksum: str, payload: bytes, v6: bool = False, vlans: int = 0,
             port: int = 5000) -> bytes:
    """A UDP frame to the TAP's address whose checksum is "good", "bad" or "partial"."""
    kind = socket.AF_INET6 if v6 else socket.AF_INET
    source, target = (socket.inet_pton(kind, a)
                      for a in ((FAR_IP6, IP6) if v6 else (FAR_IP4, IP4)))
    size = 8 + len(payload)
    pseudo = _sum(source + target + struct.pack("!HH", 17, size))
    udp = struct.pack("!HHHH", 4000, port, size, 0)
    whole = 0xFFFF - _sum(struct.pack("!H", pseudo) + udp + payload) or 0xFFFF
    field = {"good": whole, "bad": whole ^ 0x0101, "partial": pseudo}[checksum]
    udp = struct.pack("!HHHH", 4000, port, size, field) + payload
    if v6:
        ip = struct.pack("!IHBB", 6 << 28, size, 17, 64) + source + target
    else:
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + size, 1, 0, 64, 17, 0) + source + target
        ip = ip[:10] + struct.pack("!H", 0xFFFF - _sum(ip)) + ip[12:]
    tags = b"".join(struct.pack("!HH", 0x8100, 5) for _ in range(vlans))
    kind_bytes = struct.pack("!H", 0x86DD if v6 else 0x0800)
    return bytes.fromhex(MAC.replace(":", "")) + bytes.fromhex("020000000008") + tags + \
        kind_bytes + ip + udp


def receiver(ns: str, v6: bool) -> socket.socket:
    with entered(ns):
        sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((IP6 if v6 else IP4, 5000))
    sock.settimeout(0.5)
    return sock


@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
@pytest.mark.parametrize(("checksum", "header", "arrives"), [
    ("good", True, True), ("bad", True, False), ("partial", True, True),
    ("good", False, True), ("bad", False, False), ("partial", False, False),
])
def test_the_stack_judges_checksums(ns: str, v6: bool, checksum: str, header: bool,
                                    arrives: bool) -> None:
    rng = random.Random(1)
    with opened(ns, vnet_hdr=header) as port, receiver(ns, v6) as sock:
        for length in (0, 1, 18, 19, 1000):
            payload = rng.randbytes(length)
            assert Driver(port).send(datagram(checksum, payload, v6))
            if arrives:
                assert sock.recv(2000) == payload
        if not arrives:
            with pytest.raises(TimeoutError):
                sock.recv(2000)
        assert port.statistics()["tx_partial"] == (5 if header and checksum == "partial" else 0)


def test_what_is_never_offloaded_is_left_alone(ns: str) -> None:
    """Fragments, other protocols, lengths that lie, and anything too short."""
    partial = datagram("partial", bytes(range(40)))
    fragment = partial[:20] + b"\x20\x00" + partial[22:]
    icmp = partial[:23] + b"\x01" + partial[24:]
    longer = partial[:16] + struct.pack("!H", 2000) + partial[18:]
    with opened(ns) as port:
        driver = Driver(port)
        for frame in (fragment, icmp, longer, partial[:40], partial[:30], partial[:14],
                      datagram("partial", b"", v6=True)[:60], frames(1)[0]):
            driver.send(frame)
        assert port.statistics()["tx_partial"] == 0
        driver.send(partial)
        driver.send(datagram("partial", b"x", vlans=1))
        driver.send(datagram("partial", b"x", v6=True, vlans=2))
        assert port.statistics()["tx_partial"] == 3


def test_what_the_stack_sends_is_complete(ns: str) -> None:
    """No offload: the checksum is there, large sends come in packets of the MTU."""
    with opened(ns) as port, receiver(ns, v6=False) as sock:
        sock.sendto(b"p" * 100, (FAR_IP4, 4000))
        got = Driver(port).drain(1)
        while got[0][12:14] != b"\x08\x00":  # neighbour discovery
            got = Driver(port).drain(1)
        frame = got[0]
        assert _sum(frame[26:34] + struct.pack("!HH", 17, 108) + frame[34:]) == 0xFFFF


def test_a_device_that_is_down_refuses(ns: str) -> None:
    with opened(ns) as port:
        in_ns(ns, "ip", "link", "set", "xtap0", "down")
        assert not Driver(port).send(frames(1)[0])
        assert not Driver(port).send(b"short")
        assert port.statistics()["tx_failed"] == 2 and port.last_error()


def test_frames_longer_than_a_buffer_are_counted(ns: str) -> None:
    with opened(ns) as port:
        in_ns(ns, "ip", "link", "set", "xtap0", "mtu", "9000")
        with entered(ns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind(("xtap0", 0x88B5))
            for length in (3519, 3520, 3521, 9014):
                sock.send(frames(1, length)[0])
        got = [frame for frame in Driver(port).drain(9, timeout_s=0.3)
               if frame[12:14] == b"\x88\xb5"]
        assert [len(frame) for frame in got] == [3519, 3520]
        assert port.statistics()["rx_too_long"] == 2
    with pytest.raises(ConfigError, match="takes no packet of 1518 bytes"):
        TapPort.open("xtap1", frame_size=2048 - 512)


def test_queues_share_the_device(ns: str) -> None:
    with opened(ns, queues=3) as port, receiver(ns, v6=False) as sock:
        assert [queue.index for queue in port.queues] == [0, 1, 2]
        for index in range(3):
            assert Driver(port, index).send(datagram("good", bytes([index])))
            assert sock.recv(10) == bytes([index])
        for number in range(100):
            sock.sendto(b"x" * 30, (FAR_IP4, 1000 + number))
        got = [Driver(port, index).drain(200, timeout_s=0.2) for index in range(3)]
        assert sum(frame[12:14] == b"\x08\x00" for frames in got for frame in frames) == 100


@contextmanager
def bridge(port: AfPacketPort, tap: TapPort) -> Iterator[None]:
    """What a run with XDP_PASS for everything does: the port's packets to the stack, and back."""
    stop = threading.Event()

    def carry() -> None:
        front, back = Driver(port), Driver(tap)
        while not stop.is_set():
            for source, target in ((front, back), (back, front)):
                for slot in source.receive():
                    target.send(slot.data)
                    source.release(slot)
            front.flush()
            back.flush()
            time.sleep(0.0005)

    thread = threading.Thread(target=carry)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
@pytest.mark.parametrize("header", [True, False], ids=["marked", "unmarked"])
def test_tcp_from_a_sender_with_checksum_offload(header: bool, v6: bool) -> None:
    """A veth's peer leaves checksums unfinished; unmarked, its connection never comes about."""
    with VethPair(offload=True) as pair:
        near, far = pair.a, pair.b
        in_ns(far.ns, "ethtool", "-K", far.ifname, "tx", "on", "tso", "off", "gso", "off")
        in_ns(near.ns, "ip", "addr", "flush", "dev", near.ifname)
        with entered(near.ns):
            tap = TapPort.open("xtap0", mac=near.mac, vnet_hdr=header)
            port = AfPacketPort(near.ifname)
        in_ns(near.ns, "ip", "addr", "add", f"{near.ip4}/24", "dev", "xtap0")
        in_ns(near.ns, "ip", "addr", "add", f"{near.ip6}/64", "dev", "xtap0", "nodad")
        in_ns(near.ns, "ip", "link", "set", "xtap0", "up")
        for address in (far.ip4, far.ip6):
            in_ns(near.ns, "ip", "neigh", "replace", address, "lladdr", far.mac, "dev", "xtap0")
        kind, near_ip = (socket.AF_INET6, near.ip6) if v6 else (socket.AF_INET, near.ip4)
        with entered(near.ns):
            server = socket.create_server((near_ip, 8000), family=kind)
        with entered(far.ns):
            client = socket.socket(kind, socket.SOCK_STREAM)
        client.settimeout(5 if header else 1)
        with bridge(port, tap), server, client:
            if not header:
                with pytest.raises(TimeoutError):
                    client.connect((near_ip, 8000))
            else:
                client.connect((near_ip, 8000))
                _converse(client, server.accept()[0])
                assert tap.statistics()["tx_partial"] >= 3
        port.close()
        tap.close()


def _converse(client: socket.socket, served: socket.socket) -> None:
    """300 kB there and back again."""
    content = random.Random(2).randbytes(300_000)
    with served:
        sender = threading.Thread(target=lambda: served.sendall(_read(served, len(content))))
        sender.start()
        writer = threading.Thread(target=client.sendall, args=[content])
        writer.start()
        assert _read(client, len(content)) == content
        writer.join()
        sender.join()


def _read(sock: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count and (part := sock.recv(65536)):
        got += part
    return got
