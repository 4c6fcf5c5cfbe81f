"""A download from the host by `--stack tap`: its stack leaves cutting and checksums to the run.

The client captures what comes out of the wire, with its own offloads off."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.control.run_xdpu import EXAMPLES, Run
from tests.nets import VethPair, entered, in_ns

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]
CONTENT = random.Random(20261121).randbytes(4 << 20)
MTU, PORT = 1500, 7100
_SO_RCVBUFFORCE = 33


@pytest.fixture(scope="module")
def net() -> Iterator[VethPair]:
    """`a` is the client without offloads, `b` the node."""
    with VethPair(subnet=37) as pair:
        yield pair


def fold(data: bytes) -> int:
    data += bytes(len(data) & 1)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksums_right(frame: bytes) -> bool:
    """Of an IPv4 or IPv6 header and of the TCP behind it."""
    if frame[12:14] == b"\x08\x00":
        start = 14 + (frame[14] & 15) * 4
        length, addresses = struct.unpack_from("!H", frame, 16)[0] - (start - 14), frame[26:34]
        if fold(frame[14:start]) != 0xFFFF:
            return False
    else:
        start, addresses = 54, frame[22:54]
        length = struct.unpack_from("!H", frame, 18)[0]
    assert start + length == len(frame)
    return fold(addresses + struct.pack("!HH", 6, length) + frame[start:]) == 0xFFFF


def from_the_server(frame: bytes) -> bool:
    at = 34 if frame[12:14] == b"\x08\x00" else 54
    protocol = frame[23] if at == 34 else frame[20] if frame[12:14] == b"\x86\xdd" else 0
    return protocol == 6 and frame[at:at + 2] == struct.pack("!H", PORT)


def checksum_errors(ns: str) -> int:
    line = in_ns(ns, "nstat", "-asz", "TcpInCsumErrors").stdout.splitlines()[-1]
    assert line.startswith("TcpInCsumErrors")
    return int(line.split()[1])


def serve(listener: socket.socket, content: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.sendall(content)


def test_more_packets_of_one_than_a_batch_has(net: VethPair) -> None:
    """What finds no slot in a batch is not lost, nor late, though the TAP has no more to read."""
    content = CONTENT[:1_000_000]
    with ExitStack() as stack:
        run = stack.enter_context(Run(net.b.ns, str(EXAMPLES / "pass.o"), "--iface", net.b.ifname,
                                      "--stack", "tap", "-b", "4", "-i", "0.1"))
        start = run.wait_for("start")
        with entered(net.b.ns):
            listener = stack.enter_context(socket.create_server((net.b.ip4, PORT)))
        with entered(net.a.ns):
            client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 200)
        server = threading.Thread(target=serve, args=[listener, content])
        server.start()
        client.settimeout(60)
        client.connect((net.b.ip4, PORT))
        got = bytearray()
        while part := client.recv(1 << 20):
            got += part
        server.join()
        assert got == content
        assert run.end() == 0
        summary = run.wait_for("summary")
    large = summary["ports"][start["taps"][net.b.ifname]]["rx_large"]
    assert summary["total"]["stack_packets"] >= len(content) / 200 > 4 * large > 0


@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
@pytest.mark.parametrize("port", ["afxdp", "afpacket"])
def test_a_download_is_cut_and_checked_by_the_run(net: VethPair, port: str, v6: bool) -> None:
    kind, address = (socket.AF_INET6, net.b.ip6) if v6 else (socket.AF_INET, net.b.ip4)
    before = checksum_errors(net.a.ns)
    with ExitStack() as stack:
        run = stack.enter_context(Run(net.b.ns, str(EXAMPLES / "pass.o"), "--iface", net.b.ifname,
                                      "--stack", "tap", "--port", port, "-i", "0.1"))
        start = run.wait_for("start")
        assert "(checksums and TSO)" in start["stack"][net.b.ifname]
        assert "(checksums and TSO)" in run.errors
        with entered(net.b.ns):
            listener = stack.enter_context(socket.create_server((address, PORT), family=kind))
        with entered(net.a.ns):
            capture = stack.enter_context(
                socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
            capture.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
            capture.bind((net.a.ifname, 3))
            client = stack.enter_context(socket.socket(kind, socket.SOCK_STREAM))
        server = threading.Thread(target=serve, args=[listener, CONTENT])
        server.start()
        client.settimeout(60)
        client.connect((address, PORT))
        got = bytearray()
        while part := client.recv(1 << 20):
            got += part
        server.join()
        assert got == CONTENT
        capture.setblocking(False)
        frames = []
        while True:
            try:
                frames.append(capture.recv(1 << 17))
            except BlockingIOError:
                break
        assert run.end() == 0
        summary = run.wait_for("summary")
    sent = [frame for frame in frames if from_the_server(frame)]
    assert sum(len(frame) for frame in sent) > len(CONTENT)
    assert max(len(frame) for frame in sent) == 14 + MTU
    assert all(map(checksums_right, sent))
    assert checksum_errors(net.a.ns) == before
    counters = summary["ports"][start["taps"][net.b.ifname]]
    assert counters["rx_large"] > 10 and summary["total"]["stack_packets"] >= len(sent)
    assert counters["rx_large"] < len(sent) / 3
    assert counters["rx_invalid"] == counters["rx_too_long"] == 0
