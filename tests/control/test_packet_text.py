"""A packet in a line: as tcpdump -n has it, and whatever the bytes are."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import ARP, GRE, Dot1Q, Ether
from scapy.packet import Packet

from control.packet_text import describe
from dataplane.pcapfile import CapturedPacket, pcap_header, pcap_record

ETHER = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
FOUR, SIX = IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="fe80::1", dst="fe80::2")
OWN = [  # other than tcpdump has it
    (Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02", type=0x88B5) / bytes(46),
     "02:00:00:00:00:01 > 02:00:00:00:00:02, ethertype 0x88b5"),
    (ETHER / FOUR / UDP(sport=4000, dport=4001) / bytes(22),
     "IP 10.0.0.1.4000 > 10.0.0.2.4001: UDP, length 22"),
    (Ether(type=0x8100) / Dot1Q(vlan=5) / FOUR / ICMP(id=7, seq=9) / b"x",
     "vlan 5, IP 10.0.0.1 > 10.0.0.2: ICMP echo request, id 7, seq 9, length 9"),
    (ETHER / IP(src="10.0.0.1", dst="10.0.0.2", frag=185, id=77, flags="MF", proto=17) / bytes(40),
     "IP 10.0.0.1 > 10.0.0.2: fragment 77:40@1480+"),
    (ETHER / SIX / IPv6ExtHdrFragment(offset=3, id=5, nh=17) / bytes(16),
     "IP6 fe80::1 > fe80::2: fragment 5:16@24"),
    (ETHER / SIX / IPv6ExtHdrDestOpt() / UDP(sport=1, dport=2) / b"abc",
     "IP6 fe80::1.1 > fe80::2.2: UDP, length 3"),
    (ETHER / SIX / ICMPv6EchoRequest(id=1, seq=2), "IP6 fe80::1 > fe80::2: ICMP6 echo request, "
     "id 1, seq 2, length 8"),
    (ETHER / SIX / ICMPv6ND_NS(tgt="fe80::3"), "IP6 fe80::1 > fe80::2: ICMP6 neighbor "
     "solicitation, length 24"),
    (ETHER / FOUR / ICMP(type=3, code=1) / bytes(28),
     "IP 10.0.0.1 > 10.0.0.2: ICMP unreachable code 1, length 36"),
    (ETHER / FOUR / GRE() / bytes(20), "IP 10.0.0.1 > 10.0.0.2: GRE, length 24"),
    (ETHER / IP(src="10.0.0.1", dst="10.0.0.2", proto=200) / bytes(20),
     "IP 10.0.0.1 > 10.0.0.2: ip-proto-200, length 20"),
]
SAME = [  # to the letter, but for TCP's options, which are left out
    ETHER / ARP(op=1, psrc="10.0.0.1", pdst="10.0.0.2"),
    ETHER / FOUR / TCP(sport=4000, dport=4001, flags="S", seq=100, window=5000),
    ETHER / FOUR / TCP(sport=4000, dport=4001, flags="PA", seq=100, ack=7, window=5000) / b"hello",
    ETHER / FOUR / TCP(sport=4000, dport=4001, flags="RA", seq=100, ack=7, window=0),
    ETHER / FOUR / TCP(sport=4000, dport=4001, flags="A", seq=100, ack=7, window=9),
    ETHER / SIX / TCP(sport=4000, dport=4001, flags="FA", seq=2**32 - 1, ack=1, window=9),
    ETHER / SIX / UDP(sport=4000, dport=4001) / bytes(9),
]


@pytest.mark.parametrize(("packet", "text"), OWN)
def test_a_line(packet: Packet, text: str) -> None:
    assert describe(bytes(packet)) == text


def test_as_tcpdump_says_it(tmp_path: Path) -> None:
    if not shutil.which("tcpdump"):
        pytest.skip("tcpdump is not installed")
    path = tmp_path / "in.pcap"
    path.write_bytes(pcap_header() + b"".join(
        pcap_record(CapturedPacket(n, bytes(one), len(bytes(one)))) for n, one in enumerate(SAME)))
    said = subprocess.run(["tcpdump", "-ntSr", str(path)], capture_output=True, text=True,
                          check=True).stdout.splitlines()
    ours = [describe(bytes(one)) for one in SAME]
    assert [line.removesuffix(", length 28") for line in said] == ours


def test_whatever_the_bytes_are() -> None:
    """Cut anywhere, or of nonsense: there is a line all the same."""
    rng = random.Random(3)
    for packet, _ in OWN:
        whole = bytes(packet)
        for length in range(len(whole)):
            assert "\n" not in describe(whole[:length])
        for _ in range(200):
            at = rng.randrange(12, len(whole))
            assert "\n" not in describe(whole[:at] + rng.randbytes(len(whole) - at))
    assert describe(b"") == "[|ether]"
    assert describe(bytes(ETHER / FOUR)[:20]) == "IP [|ip]"
    assert describe(bytes(SAME[1])[:40]) == "IP 10.0.0.1.4000 > 10.0.0.2.4001: [|tcp]"
