"""AfPacketPort: the host is kept out, tags come back, what is too large is counted, refusals."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dataplane.af_packet import AfPacketPort
from dataplane.ingress_drop import IngressDrop
from tests.dataplane.drive import Driver, frames
from tests.nets import End, VethPair, entered, in_ns, popen_in_ns
from tests.privileges import needs_bpf
from xdp_runtime.errors import ConfigError, PortError

pytestmark = [*needs_bpf(), pytest.mark.netns]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def pair() -> Iterator[VethPair]:
    with VethPair() as made:
        yield made


def open_port(end: End, **options: Any) -> AfPacketPort:
    with entered(end.ns):
        return AfPacketPort(end.ifname, **options)


def inject(end: End, *given: bytes) -> None:
    with entered(end.ns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((end.ifname, 0))
        for frame in given:
            sock.send(frame)


def ours(got: list[bytes], kinds: tuple[bytes, ...] = (b"\x88\xb5",)) -> list[bytes]:
    return [frame for frame in got if frame[12:14] in kinds]


def pings(pair: VethPair, wait_s: int = 10) -> bool:
    """Does the host behind `a` answer?  Give less time where it should not."""
    done = in_ns(pair.b.ns, "ping", "-c1", f"-W{wait_s}", pair.a.ip4, check=False)
    return done.returncode == 0


@pytest.mark.parametrize("tcx", [True, False], ids=["tcx", "cls_bpf"])
def test_packets_come_here_and_not_to_the_host(pair: VethPair, tcx: bool) -> None:
    assert pings(pair)
    port = open_port(pair.a, tcx=tcx)
    assert ("tcx" if tcx else "cls_bpf") in port.mode
    assert not pings(pair, 1)
    echo = [f for f in Driver(port).drain(50, timeout_s=0.2) if f[12:14] == b"\x08\x00"]
    assert len(echo) == 1 and echo[0][23] == 1  # the request, and no answer of ours
    port.close()
    assert pings(pair)
    assert in_ns(pair.a.ns, "tc", "qdisc", "show", "dev", pair.a.ifname).stdout.count("clsact") == 0


@pytest.mark.parametrize("before", [True, False], ids=["before", "meanwhile"])
def test_foreign_filters_survive(pair: VethPair, before: bool) -> None:
    port = None if before else open_port(pair.a, tcx=False)
    if before:
        in_ns(pair.a.ns, "tc", "qdisc", "add", "dev", pair.a.ifname, "clsact")
    in_ns(pair.a.ns, "tc", "filter", "add", "dev", pair.a.ifname, "egress", "prio", "1",
          "bpf", "bytecode", "1,6 0 0 0")
    port = port or open_port(pair.a, tcx=False)
    assert not pings(pair, 1)
    port.close()
    left = in_ns(pair.a.ns, "tc", "filter", "show", "dev", pair.a.ifname, "egress").stdout
    assert "bytecode" in left and pings(pair)


def test_a_killed_process_leaves_nothing(pair: VethPair) -> None:
    script = (f"from dataplane.af_packet import AfPacketPort; p = AfPacketPort({pair.a.ifname!r});"
              "print('open', flush=True); import time; time.sleep(60)")
    child = popen_in_ns(pair.a.ns, sys.executable, "-c", script, cwd=ROOT)
    assert child.stdout is not None and child.stdout.readline() == "open\n"
    assert not pings(pair, 1)
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    assert pings(pair)


@pytest.mark.parametrize("tags", [(0x8100,), (0x88A8, 0x8100), (0x8100, 0x8100)],
                         ids=["8021q", "8021ad", "two"])
def test_vlan_tags_are_in_the_packet(pair: VethPair, tags: tuple[int, ...]) -> None:
    """The kernel takes the outer one off before sockets see it."""
    plain = frames(1, 100)[0]
    tagged = plain[:12] + b"".join(struct.pack("!HH", tag, 0xA000 | 77 + i)
                                   for i, tag in enumerate(tags)) + plain[12:]
    port = open_port(pair.a)
    driver = Driver(port)
    inject(pair.b, tagged, plain)
    got: list[bytes] = []
    deadline = time.monotonic() + 2
    while len(got) < 2 and time.monotonic() < deadline:
        for slot in driver.receive():
            if slot.data[12:14] in (b"\x88\xb5", b"\x81\x00", b"\x88\xa8"):
                assert slot.start - slot.hard_start >= 192
                got.append(slot.data)
            driver.release(slot)
    assert got == [tagged, plain]
    port.close()


def test_frames_too_large_for_the_ring_are_counted() -> None:
    with VethPair(mtu=9000) as pair:
        port = open_port(pair.a, frame_size=2048)
        given = [frames(1, length)[0] for length in (100, 4000, 1514, 9014, 200)]
        inject(pair.b, *given)
        got = ours(Driver(port).drain(20, timeout_s=0.3))
        assert got == [given[0], given[2], given[4]]
        assert port.statistics()["rx_truncated"] == 2
        assert "frames of up to 9014 bytes do not fit the ring's 2048" in port.advice()
        assert "ethtool -K" in port.advice()
        port.close()
        assert port.statistics()["rx_truncated"] == 2 and not port.advice()
        whole = open_port(pair.a)  # sized for the MTU
        inject(pair.b, *given)
        assert ours(Driver(whole).drain(20, timeout_s=0.3)) == given
        whole.close()


def test_full_ring_is_counted(pair: VethPair) -> None:
    port = open_port(pair.a, frames=64)
    inject(pair.b, *frames(100))
    got = ours(Driver(port).drain(200, timeout_s=0.3))
    assert got == list(frames(100)[:len(got)]) and 32 <= len(got) <= 64
    assert port.statistics()["rx_dropped"] == port.statistics()["rx_dropped"] == 100 - len(got)
    inject(pair.b, *frames(20))
    assert ours(Driver(port).drain(200, timeout_s=0.3)) == list(frames(20))
    port.close()


def test_what_cannot_be_sent_is_counted_and_the_rest_leaves(pair: VethPair) -> None:
    port = open_port(pair.a)
    driver = Driver(port)
    with entered(pair.b.ns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW,
                                           socket.htons(0x88B5)) as sock:
        sock.bind((pair.b.ifname, 0x88B5))
        sock.settimeout(1)
        given = [*frames(2), frames(1, 3000)[0], *frames(2)]
        assert all(driver.send(frame) for frame in given)
        assert not driver.send(bytes(5000))
        driver.flush()
        assert [sock.recv(2000) for _ in range(4)] == [*frames(2), *frames(2)]
    assert port.statistics()["tx_failed"] == 1 and "Message too long" in port.advice()
    in_ns(pair.a.ns, "ip", "link", "set", pair.a.ifname, "down")
    assert driver.send(given[0])
    driver.flush()
    assert port.statistics()["tx_failed"] == 2
    port.close()


def test_more_than_a_batch_is_sent(pair: VethPair) -> None:
    port = open_port(pair.a)
    driver = Driver(port)
    with entered(pair.b.ns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW,
                                           socket.htons(0x88B5)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        sock.bind((pair.b.ifname, 0x88B5))
        sock.settimeout(1)
        assert all(driver.send(frame) for frame in frames(1200))
        driver.flush()
        assert [sock.recv(2000) for _ in range(1200)] == list(frames(1200))
    port.close()


def test_a_receiver_that_waits_sees_what_was_sent(pair: VethPair) -> None:
    """Buffers are reused while the receiver's queue still holds the packets."""
    port = open_port(pair.a)
    driver = Driver(port)
    with entered(pair.b.ns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((pair.b.ip4, 5000))
        sock.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
        sock.settimeout(1)
        for number in range(3000):
            assert driver.send(_udp(pair, 4000, struct.pack("!I", number) * 100))
            if number % 64 == 63:
                driver.flush()
        driver.flush()
        for number in range(3000):
            assert sock.recv(2000) == struct.pack("!I", number) * 100
    port.close()


def _udp(pair: VethPair, source_port: int, payload: bytes) -> bytes:
    """From `a` to `b`, without UDP checksum."""
    size = 28 + len(payload)
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, size, 1, 0, 64, 17, 0,
                     socket.inet_aton(pair.a.ip4), socket.inet_aton(pair.b.ip4))
    total = sum(struct.unpack("!10H", ip))
    total = (total & 0xFFFF) + (total >> 16)
    ip = ip[:10] + struct.pack("!H", 0xFFFF - total) + ip[12:]
    mac_b, mac_a = (bytes.fromhex(end.mac.replace(":", "")) for end in (pair.b, pair.a))
    return (mac_b + mac_a + b"\x08\x00" + ip
            + struct.pack("!HHHH", source_port, 5000, size - 20, 0) + payload)


def test_a_fanout_group_shares_packets_by_flow(pair: VethPair) -> None:
    port = open_port(pair.a, queues=3)
    given = [_udp(pair, 1000 + number % 40, struct.pack("!I", number)) for number in range(400)]
    inject(pair.b, *given)
    per_queue = [ours(Driver(port, index).drain(1000, timeout_s=0.3), (b"\x08\x00",))
                 for index in range(3)]
    assert sorted(frame for got in per_queue for frame in got) == sorted(given)
    assert all(per_queue), "a queue without a flow"
    for got in per_queue:
        numbers = [struct.unpack("!I", frame[42:46])[0] for frame in got]
        assert numbers == sorted(numbers)
        others = [f for other in per_queue if other is not got for f in other]
        assert {f[34:36] for f in got}.isdisjoint(f[34:36] for f in others)
    assert Driver(port, 2).send(frames(1)[0])
    port.close()


def _refused(open_it: Callable[[], object]) -> str:
    with pytest.raises(PortError) as caught:
        open_it()
    return str(caught.value)


def test_refusals_are_one_sentence(pair: VethPair) -> None:
    name = pair.a.ifname
    with entered(pair.a.ns):
        assert _refused(lambda: AfPacketPort("nowhere0")) == (
            "interface nowhere0: there is none in this network namespace (ip link shows them)")
        in_ns(pair.a.ns, "ip", "link", "set", name, "down")
        assert _refused(lambda: AfPacketPort(name)) == (
            f"interface {name}: it is down (ip link set {name} up)")
        in_ns(pair.a.ns, "ip", "link", "set", name, "up")
        with pytest.raises(ConfigError, match="0 queues, an AF_PACKET port has 1 to 256"):
            AfPacketPort(name, queues=0)
        assert "no memory for the ring" in _refused(lambda: AfPacketPort(name, frames=1 << 26))
        in_ns(pair.a.ns, "ip", "tuntap", "add", "tun7", "mode", "tun")
        in_ns(pair.a.ns, "ip", "link", "set", "tun7", "up")
        assert "not Ethernet" in _refused(lambda: AfPacketPort("tun7"))
    assert pings(pair)  # nothing was left behind


def test_without_privilege(pair: VethPair) -> None:
    script = ("import os, sys; from dataplane.af_packet import AfPacketPort\n"
              "from xdp_runtime.errors import PortError\n"
              "os.setgroups([]); os.setresgid(65534, 65534, 65534)\n"
              "os.setresuid(65534, 65534, 65534)\n"
              f"try: AfPacketPort({pair.a.ifname!r})\n"
              "except PortError as error: print(error)")
    said = in_ns(pair.a.ns, sys.executable, "-c", script, cwd=ROOT).stdout.strip()
    assert said == (f"interface {pair.a.ifname}: AF_PACKET is not permitted "
                    "(run as root, or with CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF)")


def test_only_raw_sockets_allowed(pair: VethPair) -> None:
    """CAP_NET_RAW alone: the host cannot be kept out, so the port does not open."""
    script = (f"from dataplane.af_packet import AfPacketPort\n"
              "from xdp_runtime.errors import XdpuError\n"
              f"try: AfPacketPort({pair.a.ifname!r})\n"
              "except XdpuError as error: print(error)")
    said = subprocess.run(
        ["ip", "netns", "exec", pair.a.ns, "setpriv", "--bounding-set=-all,+net_raw",
         "--inh-caps=-all,+net_raw", sys.executable, "-c", script],
        cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
    assert said == (f"interface {pair.a.ifname}: the packets taken from it cannot be kept from the "
                    "host: not permitted (run as root, or with CAP_BPF and CAP_NET_ADMIN)")


def test_the_drop_alone(pair: VethPair) -> None:
    for tcx, mode in ((True, "tcx"), (False, "cls_bpf")):
        with entered(pair.a.ns):
            drop = IngressDrop(pair.a.ifname, pair.a.ifindex, tcx)
            assert drop.mode == mode and not pings(pair, 1)
            drop.close()
            drop.close()
        assert pings(pair)
    with entered(pair.a.ns):
        assert "cannot be kept from the host" in _refused(lambda: IngressDrop("x", 999_999))
