"""Frames to try a program with: the same for the same name, count and seed, on every machine.

Two thirds are what a network carries (built by scapy, a few dozen, then drawn from again and again
so that flows repeat), one third is damaged: cut at and around every header's end, lengths that lie,
header lengths below five, random bytes.  Every frame has 14 to 3000 bytes: the kernel runs nothing
shorter, and nothing longer without fragments.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from functools import cache
from typing import Any

MIN_BYTES, MAX_BYTES, BIG_BYTES = 14, 1514, 3000
TRAILER = bytes.fromhex("7a11e4ed")  # examples/meta.c
BLOCKED_PORTS = (23, 8081, 2323)  # the last one is for a test to put into the map
OUR_MAC, PEER_MAC = "02:00:00:00:00:02", "02:00:00:00:00:01"

_PORTS = (9, 23, 53, 80, 443, 2323, 8080, 8081)
# What a damaged frame ends just before, at, or just after: Ethernet, VLAN, IPv4, its ICMP/UDP, its
# TCP; IPv6, its UDP, its TCP; the outer header of IPIP.
_BOUNDARIES = (14, 18, 34, 36, 38, 42, 54, 58, 62, 74)

Builder = Callable[[random.Random, Any], Any]


def _ip4(rng: random.Random) -> str:
    return f"10.0.{rng.randrange(2)}.{rng.randrange(1, 9)}"


def _ip6(rng: random.Random) -> str:
    return f"2001:db8::{rng.randrange(1, 9):x}"


def _payload(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 7, 18, 22, 63, 64, 200, 513)))


def _eth(rng: random.Random, s: Any) -> Any:
    return s.Ether(dst=OUR_MAC, src=PEER_MAC)


def _v4(rng: random.Random, s: Any, **fields: Any) -> Any:
    return _eth(rng, s) / s.IP(src=_ip4(rng), dst=_ip4(rng), ttl=rng.choice((1, 64, 255)),
                               tos=rng.choice((0, 0x10, 0xB8)), id=rng.randrange(65536), **fields)


def _v6(rng: random.Random, s: Any) -> Any:
    return _eth(rng, s) / s.IPv6(src=_ip6(rng), dst=_ip6(rng), hlim=64, tc=rng.choice((0, 0xB8)))


def _udp(rng: random.Random, s: Any) -> Any:
    return s.UDP(sport=rng.randrange(1024, 1032), dport=rng.choice(_PORTS)) / _payload(rng)


def _tcp(rng: random.Random, s: Any) -> Any:
    return s.TCP(sport=rng.randrange(1024, 1032), dport=rng.choice(_PORTS),
                 flags=rng.choice(("S", "SA", "A", "PA", "F", "FA", "R")),
                 seq=rng.randrange(1 << 32)) / _payload(rng)


def _echo4(rng: random.Random, s: Any) -> Any:
    return s.ICMP(type=8, id=rng.randrange(65536), seq=rng.randrange(9)) / _payload(rng)


def _echo6(rng: random.Random, s: Any) -> Any:
    return s.ICMPv6EchoRequest(id=rng.randrange(65536), seq=rng.randrange(9), data=_payload(rng))


def _transport(rng: random.Random, s: Any) -> Any:
    return rng.choice((_udp, _tcp))(rng, s)


def _options(s: Any) -> list[Any]:
    return [s.IPOption_RR(length=7, routers=["0.0.0.0"]), s.IPOption_NOP()]


_KINDS: dict[str, Builder] = {
    "tcp4": lambda r, s: _v4(r, s) / _tcp(r, s),
    "udp4": lambda r, s: _v4(r, s) / _udp(r, s),
    "tcp6": lambda r, s: _v6(r, s) / _tcp(r, s),
    "udp6": lambda r, s: _v6(r, s) / _udp(r, s),
    "echo4": lambda r, s: _v4(r, s) / _echo4(r, s),
    "echo6": lambda r, s: _v6(r, s) / _echo6(r, s),
    "reply4": lambda r, s: _v4(r, s) / s.ICMP(type=0) / _payload(r),
    "unreachable4": lambda r, s: _v4(r, s) / s.ICMP(type=3, code=4) / _payload(r),
    "echo4_group": lambda r, s: s.Ether(dst="ff:ff:ff:ff:ff:ff", src=PEER_MAC) / s.IP(
        src=_ip4(r), dst="10.0.0.255") / _echo4(r, s),
    "echo4_options": lambda r, s: _v4(r, s, options=_options(s)) / _echo4(r, s),
    "echo4_first": lambda r, s: _v4(r, s, flags="MF") / _echo4(r, s),
    "solicit6": lambda r, s: _v6(r, s) / s.ICMPv6ND_NS(tgt=_ip6(r)),
    "arp": lambda r, s: _eth(r, s) / s.ARP(op=1, hwsrc=PEER_MAC, psrc=_ip4(r),
                                           hwdst="00:00:00:00:00:00", pdst=_ip4(r)),
    "vlan": lambda r, s: _eth(r, s) / s.Dot1Q(vlan=7) / s.IP(
        src=_ip4(r), dst=_ip4(r)) / _transport(r, s),
    "options4": lambda r, s: _v4(r, s, options=_options(s)) / _transport(r, s),
    "first_fragment4": lambda r, s: _v4(r, s, flags="MF") / _transport(r, s),
    "later_fragment4": lambda r, s: _v4(r, s, frag=185, proto=17) / _payload(r),
    "hopbyhop6": lambda r, s: _v6(r, s) / s.IPv6ExtHdrHopByHop() / _transport(r, s),
    "fragment6": lambda r, s: _v6(r, s) / s.IPv6ExtHdrFragment(id=r.randrange(65536), m=1) / _udp(
        r, s),
    "ipip": lambda r, s: _v4(r, s) / s.IP(src=_ip4(r), dst=_ip4(r)) / _udp(r, s),
    "gre": lambda r, s: _v4(r, s, proto=47) / _payload(r),
    "full4": lambda r, s: _v4(r, s) / s.UDP(sport=1025, dport=80) / r.randbytes(MAX_BYTES - 42),
    "big4": lambda r, s: _v4(r, s) / s.UDP(sport=1026, dport=80) / r.randbytes(BIG_BYTES - 42),
    "lldp": lambda r, s: _eth(r, s) / r.randbytes(46),
}
_EVERYTHING = tuple(_KINDS)
_FOCUS: dict[str, tuple[str, ...]] = {
    "flow_table": ("tcp4", "udp4", "options4", "first_fragment4", "later_fragment4"),
    "firewall": ("tcp4", "udp4", "tcp6", "udp6", "options4", "later_fragment4"),
    "icmp_echo": ("echo4", "echo6", "echo4_group", "echo4_options", "echo4_first", "reply4"),
    "ipip": ("tcp4", "udp4", "options4", "later_fragment4"),
    "dispatcher": ("udp4", "udp6", "arp", "lldp", "vlan"),
    "demo": ("echo4", "echo6", "tcp4", "udp4", "tcp6", "udp6"),
    "helpers": ("tcp4", "tcp4", "udp4", "options4"),
}


@cache
def _pool(example_name: str, seed: int) -> tuple[bytes, ...]:
    """Every kind twice, and what the example cares for eight times more, in no special order."""
    from scapy.layers import inet, inet6, l2

    class Layers:
        """scapy's names in one place; scapy.all takes a second to import."""

        def __getattr__(self, name: str) -> Any:
            for module in (l2, inet, inet6):
                if hasattr(module, name):
                    return getattr(module, name)
            raise AttributeError(name)

    rng, layers = random.Random(f"{example_name} pool {seed}"), Layers()
    kinds = list(_EVERYTHING * 2 + _FOCUS.get(example_name, ()) * 8)
    return tuple(bytes(_KINDS[kind](rng, layers)) for kind in kinds)


def _cut(rng: random.Random, frame: bytes) -> bytes:
    return frame[:max(MIN_BYTES, rng.choice(_BOUNDARIES) + rng.choice((-1, 0, 1)))]


def _cut_anywhere(rng: random.Random, frame: bytes) -> bytes:
    return frame[:rng.randrange(MIN_BYTES, len(frame) + 1)]


def _short_header(rng: random.Random, frame: bytes) -> bytes:
    """Any version and header length instead of the right ones."""
    first = rng.choice((0x40, 0x44, 0x46, 0x4F, 0x45, 0x55, 0x65, 0x00, 0x60))
    return _put(frame, 14, bytes([first]))


def _wrong_length(rng: random.Random, frame: bytes) -> bytes:
    length = rng.choice((0, 1, 19, 20, 27, 65515, 65516, 65535, rng.randrange(65536)))
    return _put(frame, rng.choice((16, 18, 38)), struct.pack("!H", length))


def _flip(rng: random.Random, frame: bytes) -> bytes:
    """A bad checksum, most of the time."""
    at = rng.randrange(min(len(frame), 60))
    return _put(frame, at, bytes([frame[at] ^ 1 << rng.randrange(8)]))


def _scramble(rng: random.Random, frame: bytes) -> bytes:
    return frame[:14] + rng.randbytes(rng.randrange(0, 100))


def _noise(rng: random.Random, _frame: bytes) -> bytes:
    return rng.randbytes(rng.choice((MIN_BYTES, 15, 33, 60, 1000)))


def _put(frame: bytes, at: int, content: bytes) -> bytes:
    return frame if at + len(content) > len(frame) else (
        frame[:at] + content + frame[at + len(content):])


_DAMAGE = (_cut, _cut, _cut_anywhere, _short_header, _short_header, _wrong_length, _flip,
           _scramble, _noise)


def packets_for(example_name: str, count: int = 200, seed: int = 1) -> list[bytes]:
    """`count` frames for the example of that name (any other name gets the general mix)."""
    rng = random.Random(f"{example_name} draw {seed}")
    pool = list(_pool(example_name, seed))
    rng.shuffle(pool)
    frames = []
    for number in range(count):
        frame = pool[number] if number < min(len(pool), count // 2) else rng.choice(pool)
        if rng.random() < 1 / 3:
            frame = rng.choice(_DAMAGE)(rng, frame)
        if example_name == "meta" and rng.random() < 0.5:
            frame += TRAILER
        frames.append(frame)
    return frames
