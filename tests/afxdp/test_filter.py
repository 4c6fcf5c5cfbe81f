"""--filter: the words, what the kernel makes of them, and tcpdump's opinion of the same packets."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import wrpcap

from afxdp.filter import parse, to_assembly
from tests.afxdp.network import Peer, opened
from tests.dataplane.drive import Driver
from tests.nets import VethPair, entered
from tests.privileges import needs_bpf
from xdp_runtime import isa
from xdp_runtime.asm import assemble
from xdp_runtime.bpf_syscall import prog_load, prog_test_run
from xdp_runtime.errors import ConfigError

_LEFT, _TAKEN = 2, 1
_TAIL = "take:\nr0 = 1\nexit\nleave:\nr0 = 2\nexit\n"


def taken(text: str, packets: Sequence[bytes]) -> list[bool]:
    """What the kernel's own run of the filter says of each."""
    code = isa.encode(assemble(f"r6 = r1\n{to_assembly(parse(text))}{_TAIL}"))
    fd = prog_load(code, name="filter")
    try:
        verdicts = [prog_test_run(fd, packet).retval for packet in packets]
    finally:
        os.close(fd)
    assert set(verdicts) <= {_LEFT, _TAKEN}
    return [verdict == _TAKEN for verdict in verdicts]


E = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
A, B, SIX, SEVEN = "10.1.2.3", "192.168.7.9", "fd00::6", "2001:db8:1:2::7"
PACKETS: dict[str, Packet] = {
    "tcp80": E / IP(src=A, dst=B) / TCP(sport=4000, dport=80),
    "tcp back": E / IP(src=B, dst=A) / TCP(sport=80, dport=4000),
    "udp53": E / IP(src=A, dst=B) / UDP(sport=4000, dport=53) / Raw(b"x"),
    "options": E / IP(src=A, dst=B, options=[IPOption_NOP()] * 8) / UDP(sport=53, dport=4000),
    "fragment": E / IP(src=A, dst=B, frag=8, proto=6) / Raw(b"\0\x50\0\x50" * 4),
    "icmp": E / IP(src=B, dst=A) / ICMP(),
    "arp": E / ARP(psrc=A, pdst=B),
    "tcp80 six": E / IPv6(src=SIX, dst=SEVEN) / TCP(sport=4000, dport=80),
    "udp53 six": E / IPv6(src=SEVEN, dst=SIX) / UDP(sport=53, dport=4000),
    "icmp six": E / IPv6(src=SIX, dst=SEVEN) / ICMPv6EchoRequest(),
    "short": E / Raw(b"\x45" * 3),
    "other": Ether(type=0x88B5) / Raw(b"y" * 50),
    "cut ip": Ether(bytes(E / IP(src=A, dst=B) / TCP())[:30]),
    "cut tcp": Ether(bytes(E / IP(src=A, dst=B) / TCP(dport=80))[:36]),
}
TAGGED: dict[str, Packet] = {
    "vlan": E / Dot1Q(vlan=7) / IP(src=A, dst=B) / TCP(sport=1, dport=80),
    "two": E / Dot1AD(vlan=9) / Dot1Q(vlan=7) / IPv6(src=SIX, dst=SEVEN) / UDP(sport=1, dport=80),
    "three": E / Dot1Q(vlan=1) / Dot1Q(vlan=2) / Dot1Q(vlan=3) / IP() / TCP(dport=80),
    "cut": Ether(bytes(E / Dot1Q(vlan=7) / IP())[:16]),
}
PLAIN = [bytes(packet) for packet in PACKETS.values()]


@pytest.mark.parametrize("text, expected", [
    ("tcp port 80", "tcp80, tcp back, tcp80 six"),
    ("ip", "tcp80, tcp back, udp53, options, fragment, icmp, cut ip, cut tcp"),
    ("ip6", "tcp80 six, udp53 six, icmp six"),
    ("tcp", "tcp80, tcp back, fragment, tcp80 six, cut tcp"),
    ("icmp or icmp6 or arp", "icmp, arp, icmp six"),
    (f"host {A} and udp", "udp53, options"),
    (f"src {A}", "tcp80, udp53, options, fragment, cut tcp"),
    (f"src host {A} and not dst port 80", "udp53, options, fragment, cut tcp"),
    ("src 10.0.0.0/8 and udp", "udp53, options"),
    ("dst net 2001:db8::/32", "tcp80 six, icmp six"),
    ("net 2001:db8:1:2::/64 && ! icmp6", "tcp80 six, udp53 six"),
    (f"ip6 host {SIX}", "tcp80 six, udp53 six, icmp six"),
    ("udp dst port 53", "udp53"),
    ("not (ip or ip6)", "arp, short, other"),
    ("udp or tcp and src port 80", "tcp back"), ("udp or (tcp and src port 80)",
                                                "tcp back, udp53, options, udp53 six"),
    ("0.0.0.0/0", "tcp80, tcp back, udp53, options, fragment, icmp, cut ip, cut tcp"),
])
@pytest.mark.root
def test_what_it_takes(text: str, expected: str) -> None:
    found = taken(text, PLAIN)
    names = [name for name, match in zip(PACKETS, found, strict=True) if match]
    assert names == expected.split(", ")


@pytest.mark.parametrize("text, expected", [
    ("vlan", "vlan, two, three"), ("vlan 7", "vlan"), ("vlan 9 and udp", "two"),
    ("port 80", "vlan, two"), ("not vlan", "cut"), ("ip and vlan 7", "vlan"),
])
@pytest.mark.root
def test_tags(text: str, expected: str) -> None:
    found = taken(text, [bytes(packet) for packet in TAGGED.values()])
    names = [name for name, match in zip(TAGGED, found, strict=True) if match]
    assert ", ".join(names) == expected


@pytest.mark.parametrize("text, said", [
    ("", "its end comes too early"), ("tcp port", "its end is not a port, 0 to 65535"),
    ("tcp port 70000", "70000 is not a port"), ("tcp and", "its end comes too early"),
    ("(tcp", "its end stands where ) is missing"), ("tcp)", ") is not expected here"),
    ("10.0.0.1/33", "10.0.0.1/33 is no address"), ("10.0.0.1/8", "has host bits set"),
    ("tcp 80", "80 is not expected here"), ("quic", "quic is not a word of filters"),
    ("vlan 4096", "4096 is not a VLAN id"), ("tcp & udp", "& is not expected here"),
    ("(" * 99 + "tcp" + ")" * 99, "is too deep"),
])
def test_refusals(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert said in str(caught.value)


def _datagram(wire: VethPair, port: int, content: bytes) -> bytes:
    return bytes(Ether(src=wire.b.mac, dst=wire.a.mac) / IP(src=wire.b.ip4, dst=wire.a.ip4)
                 / UDP(sport=9, dport=port) / Raw(content))


@pytest.mark.netns
@pytest.mark.parametrize("mode", ["native", "generic"])
def test_the_rest_goes_to_the_stack(mode: str) -> None:
    """Of two ports we take one; a socket of the host gets the other's, and is not asked twice."""
    with VethPair() as wire, opened(wire.a, mode=mode, wanted="udp dst port 700") as port:
        assert "; only udp dst port 700, the rest stays with the stack" in port.mode
        with entered(wire.a.ns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours, \
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs:
            ours.bind(("", 700))
            theirs.bind(("", 701))
            theirs.settimeout(5)
            ours.setblocking(False)
            before = port.statistics()["filtered"]
            wanted = [_datagram(wire, 700, b"to us %d" % i) for i in range(20)]
            others = [_datagram(wire, 701, b"to the host %d" % i) for i in range(20)]
            peer = Peer(wire.b)
            for one, other in zip(wanted, others, strict=True):
                peer.send(one, other)
            assert Driver(port).drain(20) == wanted
            assert [theirs.recv(100) for _ in others] == [b"to the host %d" % i for i in range(20)]
            with pytest.raises(BlockingIOError):
                ours.recv(100)
            peer.close()
        assert port.statistics()["filtered"] - before >= 20


def _random_filter(dice: random.Random, depth: int = 0) -> str:
    if depth < 3 and dice.random() < 0.6:
        joined = f"{_random_filter(dice, depth + 1)} {dice.choice(['and', 'or'])} " \
                 f"{_random_filter(dice, depth + 1)}"
        return f"not ({joined})" if dice.random() < 0.3 else f"({joined})"
    way = dice.choice(["", "src ", "dst "])
    return dice.choice([
        "ip", "ip6", "tcp", "udp", "icmp", "icmp6", "arp", f"{way}port {dice.choice([80, 53, 1])}",
        f"tcp {way}port 80", f"udp {way}port 53", f"ip and {way}net 10.0.0.0/8",
        f"ip and {way}host {dice.choice([A, B])}", f"{way}host {dice.choice([SIX, SEVEN])}",
        f"{way}net 2001:db8::/{dice.choice([31, 32, 33, 64])}"])


@pytest.mark.root
@pytest.mark.skipif(shutil.which("tcpdump") is None, reason="no tcpdump (apt install tcpdump)")
def test_tcpdump_agrees(tmp_path: Path) -> None:
    """The same words over the same packets.  tcpdump also looks into ARP for hosts, hence `ip`."""
    whole = {name: packet for name, packet in PACKETS.items() if not name.startswith("cut")}
    wrpcap(str(tmp_path / "in.pcap"), list(whole.values()))
    dice = random.Random(5)
    numbers = {bytes(packet): number for number, packet in enumerate(whole.values())}
    seen = set()
    for _ in range(150):
        text = _random_filter(dice)
        done = subprocess.run(
            ["tcpdump", "-r", tmp_path / "in.pcap", "-w", tmp_path / "out.pcap", text],
            capture_output=True, text=True, check=False)
        if done.returncode:  # "expression rejects all packets"
            assert "reject" in done.stderr
            theirs = []
        else:
            from scapy.utils import rdpcap
            theirs = sorted(numbers[bytes(p)] for p in rdpcap(str(tmp_path / "out.pcap")))
        ours = [number for number, match in enumerate(taken(text, list(numbers))) if match]
        assert ours == theirs, text
        seen.add(tuple(ours))
    assert len(seen) > 30


pytestmark = needs_bpf()
