"""Every example, in the kernel: it loads, and does what its first comment says."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether

from tests.packets import OUR_MAC, PEER_MAC, TRAILER, packets_for
from tests.privileges import needs_bpf
from xdp_runtime.bpf_syscall import possible_cpus
from xdp_runtime.elf import read_object
from xdp_runtime.kernel import KernelProgram, load_into_kernel

pytestmark = needs_bpf()

ABORTED, DROP, PASS, TX, REDIRECT = range(5)
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.c"))
ETH = Ether(dst=OUR_MAC, src=PEER_MAC)
V4 = ETH / IP(src="10.0.0.1", dst="10.0.0.2", id=7, tos=0x10)
V6 = ETH / IPv6(src="2001:db8::1", dst="2001:db8::2")
ZERO = bytes(4)

Load = Callable[[str], KernelProgram]


@pytest.fixture
def load() -> Iterator[Load]:
    """Load an example by its name; closed after the test."""
    loaded: list[KernelProgram] = []

    def load_example(name: str) -> KernelProgram:
        loaded.append(load_into_kernel(read_object(EXAMPLES / f"{name}.o"), name))
        return loaded[-1]

    yield load_example
    for program in loaded:
        program.close()


def _u64(value: bytes | None) -> int:
    assert value is not None
    return struct.unpack("=Q", value)[0]


def _sum(values: tuple[bytes, ...] | None, layout: str) -> tuple[int, ...]:
    """Per-CPU structs added up."""
    assert values is not None and len(values) == possible_cpus()
    return tuple(sum(column) for column in zip(*(struct.unpack(layout, v) for v in values),
                                               strict=True))


def _verdict(program: KernelProgram, packet: Any) -> int:
    return program.run(bytes(packet)).retval


def _has_good_checksums(frame: bytes) -> bool:
    """scapy fills in what is missing: taken out and put in again, nothing may change."""
    packet = Ether(frame)
    layer: Any
    for layer in (IP, TCP, UDP, ICMP):
        if layer in packet:
            del packet[layer].chksum
    for layer in (ICMPv6EchoRequest, ICMPv6EchoReply):
        if layer in packet:
            del packet[layer].cksum
    return bytes(packet) == frame


def test_each_is_compiled() -> None:
    assert len(NAMES) > 10
    assert sorted(path.stem for path in EXAMPLES.glob("*.o")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_survives_everything(load: Load, name: str) -> None:
    """No frame, however damaged, aborts; what a program does not change is as it was."""
    program = load(name)
    for frame in packets_for(name, 500):
        result = program.run(frame)
        assert result.retval in (DROP, PASS, TX, REDIRECT)
        if result.retval != TX and name != "meta":
            assert result.data_out == frame


@pytest.mark.parametrize(("name", "verdict"), [("pass", PASS), ("drop", DROP)])
def test_one_verdict(load: Load, name: str, verdict: int) -> None:
    program = load(name)
    assert {_verdict(program, frame) for frame in packets_for(name)} == {verdict}


def test_tx(load: Load) -> None:
    program, frame = load("tx"), bytes(V4 / UDP())
    result = program.run(frame)
    assert result.retval == TX
    assert result.data_out == frame[6:12] + frame[:6] + frame[12:]


def test_counter(load: Load) -> None:
    program = load("counter")
    frames = [bytes(V4 / UDP()), bytes(V4 / UDP() / "longer"), bytes(V6 / TCP()),
              bytes(ETH / ARP()), bytes(V4)[:20], bytes(ETH / Dot1Q() / IP() / UDP())]
    for frame in frames:
        assert _verdict(program, frame) == PASS

    def count(protocol: int) -> tuple[int, ...]:
        return _sum(program.maps["counters"].lookup_percpu(struct.pack("=I", protocol)), "=QQ")

    assert count(17) == (2, len(frames[0]) + len(frames[1]))
    assert count(6) == (1, len(frames[2]))
    assert count(0) == (3, sum(map(len, frames[3:])))


def test_flow_table(load: Load) -> None:
    program = load("flow_table")
    udp = bytes(V4 / UDP(sport=1, dport=2) / "x")
    tcp = bytes(V4 / TCP(sport=1, dport=2))
    later = bytes(ETH / IP(src="10.0.0.1", dst="10.0.0.2", frag=8, proto=17) / bytes(20))
    for frame in (udp, tcp, udp, udp + b"padding", later, bytes(V4 / ICMP()), bytes(V6 / UDP())):
        assert _verdict(program, frame) == PASS
    flows = dict(program.maps["flows"].items())

    def key(protocol: int) -> bytes:
        return socket.inet_aton("10.0.0.1") + socket.inet_aton("10.0.0.2") + struct.pack(
            "!HHB3x", 1, 2, protocol)

    assert set(flows) == {key(17), key(6)}
    assert struct.unpack("=QQII", flows[key(17)]) == (3, 3 * len(udp) + 7, len(udp), 0x10)
    assert struct.unpack("=QQII", flows[key(6)]) == (1, len(tcp), len(tcp), 0x10)


@pytest.mark.parametrize("name", ["firewall", "demo"])
@pytest.mark.parametrize("network", [V4, V6])
@pytest.mark.parametrize("transport", [TCP, UDP])
def test_blocked_ports(load: Load, name: str, network: Any, transport: Any) -> None:
    program = load(name)
    blocked, port = program.maps["blocked_ports"], struct.pack("=H", 443)
    for dport in (23, 8081):
        assert _verdict(program, network / transport(dport=dport)) == DROP
        assert _verdict(program, network / transport(sport=dport, dport=80)) == PASS
    assert _verdict(program, network / transport(dport=443)) == PASS
    blocked.update(port, bytes(8))
    assert _verdict(program, network / transport(dport=443)) == DROP
    assert _verdict(program, network / transport(dport=443)) == DROP
    assert _u64(blocked.lookup(port)) == 2
    blocked.delete(port)
    assert _verdict(program, network / transport(dport=443)) == PASS


def test_firewall_sees_no_port_in_later_fragments(load: Load) -> None:
    program = load("firewall")
    udp = bytes(UDP(dport=23, chksum=0) / bytes(20))
    first = ETH / IP(flags="MF", proto=17) / udp
    later = ETH / IP(frag=1, proto=17) / udp
    options = ETH / IP(options=[b"\1\1\1\0"], proto=17) / udp
    assert [_verdict(program, p) for p in (first, later, options)] == [DROP, PASS, DROP]


@pytest.mark.parametrize("name", ["icmp_echo", "demo"])
@pytest.mark.parametrize("length", [0, 1, 56, 1400])
def test_ping_v4(load: Load, name: str, length: int) -> None:
    request = V4 / ICMP(type=8, id=0x1234, seq=3) / (b"\xff" * length)
    result = load(name).run(bytes(request))
    reply = Ether(result.data_out)
    assert result.retval == TX
    assert (reply.dst, reply.src) == (PEER_MAC, OUR_MAC)
    assert (reply[IP].src, reply[IP].dst, reply[IP].ttl) == ("10.0.0.2", "10.0.0.1", 64)
    assert (reply[ICMP].type, reply[ICMP].id, reply[ICMP].seq) == (0, 0x1234, 3)
    assert bytes(reply[ICMP].payload) == b"\xff" * length
    assert _has_good_checksums(result.data_out)


@pytest.mark.parametrize("name", ["icmp_echo", "demo"])
@pytest.mark.parametrize("length", [0, 1, 56, 1400])
def test_ping_v6(load: Load, name: str, length: int) -> None:
    request = V6 / ICMPv6EchoRequest(id=0x1234, seq=3, data=b"\xff" * length)
    result = load(name).run(bytes(request))
    reply = Ether(result.data_out)
    assert result.retval == TX
    assert (reply.dst, reply.src) == (PEER_MAC, OUR_MAC)
    assert (reply[IPv6].src, reply[IPv6].dst) == ("2001:db8::2", "2001:db8::1")
    assert (reply[ICMPv6EchoReply].id, reply[ICMPv6EchoReply].seq) == (0x1234, 3)
    assert reply[ICMPv6EchoReply].data == b"\xff" * length
    assert _has_good_checksums(result.data_out)


def test_ping_checksum_wraps(load: Load) -> None:
    """Every checksum value near the ends of one's complement arithmetic."""
    program = load("icmp_echo")
    for sequence in range(0xF700, 0x10000, 3):
        for packet in (V4 / ICMP(type=8, id=0, seq=sequence),
                       V6 / ICMPv6EchoRequest(id=0, seq=sequence)):
            assert _has_good_checksums(program.run(bytes(packet)).data_out)


@pytest.mark.parametrize("packet", [
    V4 / ICMP(type=0), V4 / ICMP(type=8, code=1), ETH / IP(flags="MF") / ICMP(type=8),
    ETH / IP(frag=1, proto=1) / ICMP(type=8), ETH / IP(options=[b"\1\1\1\0"]) / ICMP(type=8),
    Ether(dst="ff:ff:ff:ff:ff:ff", src=PEER_MAC) / IP() / ICMP(type=8), V6 / ICMPv6EchoReply(),
    ETH / Dot1Q() / IP() / ICMP(type=8), V4 / UDP(), ETH / ARP(),
])
def test_not_a_ping(load: Load, packet: Any) -> None:
    assert _verdict(load("icmp_echo"), packet) == PASS


def _tunnel() -> bytes:
    return socket.inet_aton("192.0.2.1") + socket.inet_aton("192.0.2.2") + bytes.fromhex(
        "02aabbccddee") + bytes(2)


@pytest.mark.parametrize("transport", [TCP(dport=80), UDP(dport=53) / "query"])
def test_ipip(load: Load, transport: Any) -> None:
    program, packet = load("ipip"), V4 / transport
    assert _verdict(program, packet) == PASS
    program.maps["tunnel"].update(ZERO, _tunnel())
    result = program.run(bytes(packet))
    assert result.retval == TX
    assert len(result.data_out) == len(packet) + 20
    assert result.data_out[34:] == bytes(packet)[14:]
    outer = Ether(result.data_out)
    assert (outer.dst, outer.src, outer.type) == ("02:aa:bb:cc:dd:ee", OUR_MAC, 0x0800)
    assert (outer[IP].src, outer[IP].dst, outer[IP].proto) == ("192.0.2.1", "192.0.2.2", 4)
    assert (outer[IP].len, outer[IP].ttl, outer[IP].tos) == (len(packet) - 14 + 20, 64, 0x10)
    assert outer[IP].flags == "DF"
    assert _has_good_checksums(result.data_out)


def test_ipip_leaves_and_drops(load: Load) -> None:
    program = load("ipip")
    program.maps["tunnel"].update(ZERO, _tunnel())
    assert _verdict(program, V4 / ICMP()) == PASS
    assert _verdict(program, V6 / UDP()) == PASS
    assert _verdict(program, ETH / IP(len=65515) / UDP()) == TX
    assert _verdict(program, ETH / IP(len=65516) / UDP()) == DROP


@pytest.mark.parametrize("name", ["redirect", "demo"])
def test_redirect(load: Load, name: str) -> None:
    program, packet = load(name), V4 / UDP(dport=80)
    assert _verdict(program, packet) == PASS
    program.maps["peer"].update(struct.pack("=I", 1), struct.pack("=I", 1))
    result = program.run(bytes(packet))
    assert (result.retval, result.data_out) == (REDIRECT, bytes(packet))


def test_dispatcher(load: Load) -> None:
    program = load("dispatcher")
    packets = [V4 / UDP(dport=9), V4 / UDP(dport=10), V4 / TCP(dport=9), V6 / UDP(dport=9),
               V6 / TCP(), ETH / ARP(), Ether(type=0x88CC) / bytes(46), ETH / Dot1Q() / IP()]
    verdicts = [_verdict(program, packet) for packet in packets]
    assert verdicts == [DROP] + [PASS] * 7
    assert _u64(program.maps["tail_misses"].lookup(ZERO)) == 2
    assert _u64(program.maps["ipv6_packets"].lookup(ZERO)) == 2


def test_dispatcher_slots_change(load: Load) -> None:
    program = load("dispatcher")
    program.maps["handlers"].delete(struct.pack("=I", 0))
    assert _verdict(program, V4 / UDP(dport=9)) == PASS
    assert _u64(program.maps["tail_misses"].lookup(ZERO)) == 1


def test_demo_counts_verdicts(load: Load) -> None:
    program = load("demo")
    for packet in (V4 / UDP(dport=23), V4 / ICMP(), V6 / ICMPv6EchoRequest(), V4 / UDP(dport=1)):
        program.run(bytes(packet))
    verdicts = [_sum(program.maps["verdicts"].lookup_percpu(struct.pack("=I", verdict)), "=Q")[0]
                for verdict in range(5)]
    assert verdicts == [0, 1, 1, 2, 0]


def test_meta(load: Load) -> None:
    program, frame = load("meta"), bytes(V4 / UDP() / "payload")
    longer = program.run(frame)
    assert (longer.retval, longer.meta) == (PASS, struct.pack("=I", 0x58445055))
    assert longer.data_out == frame + TRAILER
    assert program.run(longer.data_out).data_out == frame
    assert program.run(frame[:14]).data_out == frame[:14] + TRAILER


def test_helpers(load: Load) -> None:
    program = load("helpers")
    maps = program.maps

    def connections() -> list[int]:
        return sorted(int.from_bytes(v, "little") for _, v in maps["open_connections"].items())

    def tcp(flags: str, sport: int) -> bytes:
        return bytes(V4 / TCP(sport=sport, dport=80, flags=flags))

    for frame in (tcp("S", 1), tcp("S", 2), tcp("S", 1), tcp("A", 3), bytes(V4 / UDP())):
        assert _verdict(program, frame) == PASS
    assert connections() == [1000, 1001]
    program.run(tcp("FA", 1))
    assert connections() == [1001]
    program.run(tcp("R", 2))
    assert connections() == []
    bad = bytearray(tcp("S", 9))
    bad[24] ^= 1
    assert _verdict(program, bytes(bad)) == DROP
    assert connections() == []
    source = socket.inet_aton("10.0.0.1")
    assert _u64(maps["recent_sources"].lookup(source)) == 7
    assert _u64(maps[".bss"].lookup(ZERO)) == 8
    assert _u64(maps[".data"].lookup(ZERO)) == 1003
    ktime_ns, _, cpu = struct.unpack("=QII", maps["surroundings"].lookup(ZERO) or b"")
    assert ktime_ns > 0 and cpu < possible_cpus()
