"""What the balancers are configured to do, and 600 packets that make them do it.

The addresses: VIPs are 10.0.1.x and fd00:1::x, servers 10.0.2.x and fd00:2::x, ends of tunnels
10.0.9.x and fd00:9::x, clients 192.0.2.x, 198.51.100.x and 2001:db8:x::x.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from functools import cache
from ipaddress import ip_address
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether

from tests.packets import OUR_MAC, PEER_MAC

TCP_PROTOCOL, UDP_PROTOCOL = 6, 17
RING_SLOTS, GUE_PORT, SHARED_SPORT = 1021, 6080, 5000
NO_SRC_PORT, NO_TABLE, QUIC, HASH_DST_PORT, SOURCE_ROUTES, SERVER_ID, CLAMP_MSS, KEEP_PORT = (
    1 << n for n in range(8))
TIMESTAMP_ID, DATAGRAM_ID, SHARED_TABLE = 256, 512, 1024
V6, LOCAL, GUE, GRE = 1, 2, 4, 8
KEEP_TTL, NO_GUE = 1, 2

# Last part of the address, port, protocol, flags; numbered in this order, and again for IPv6.
SERVICES = (
    (1, 80, TCP_PROTOCOL, 0),
    (1, 443, UDP_PROTOCOL, QUIC),
    (2, 0, TCP_PROTOCOL, 0),
    (2, 0, UDP_PROTOCOL, KEEP_PORT | NO_TABLE),
    (3, 80, TCP_PROTOCOL, NO_SRC_PORT | SERVER_ID | CLAMP_MSS),
    (4, 80, TCP_PROTOCOL, SOURCE_ROUTES | HASH_DST_PORT),
    (5, 80, TCP_PROTOCOL, TIMESTAMP_ID | SHARED_TABLE | CLAMP_MSS),
    (6, 53, UDP_PROTOCOL, DATAGRAM_ID | SHARED_TABLE | SOURCE_ROUTES),
    (7, 443, UDP_PROTOCOL, QUIC | NO_TABLE),
    (8, 80, TCP_PROTOCOL, 0),
)
EMPTY = 9  # the last one has no server
REAL_KINDS = (0, V6, GUE, V6 | GUE, GRE, V6 | GRE, V6, 0, LOCAL, V6 | LOCAL)
REALS = 20
ETH = Ether(src=PEER_MAC, dst=OUR_MAC)

Entry = tuple[str, bytes, bytes]


def _address(text: str) -> bytes:
    return ip_address(text).packed.ljust(16, b"\0")


def _u32(number: int) -> bytes:
    return struct.pack("=I", number)


def entries() -> Iterator[Entry]:
    """(map, key, value); a balancer lacks the maps of parts that it does not have."""
    for number, (last, port, protocol, flags) in enumerate(SERVICES * 2):
        address = f"10.0.1.{last}" if number < len(SERVICES) else f"fd00:1::{last}"
        key = _address(address) + struct.pack("!HBx", port, protocol)
        yield "vips", key, struct.pack("=II", flags, number)
        if number % len(SERVICES) == EMPTY:
            continue
        for slot in range(RING_SLOTS):
            real = 1 + (slot * 7 + number) % REALS
            if number >= len(SERVICES) and slot % 8:
                real |= 1  # mostly a server that speaks IPv6
            yield "rings", _u32(number * RING_SLOTS + slot), _u32(real)
    for index in range(1, REALS + 2):
        flags = REAL_KINDS[(index + 9) % len(REAL_KINDS)] | (V6 if index & 1 else 0)
        address = f"fd00:2::{index:x}" if flags & V6 else f"10.0.2.{index}"
        yield "reals", _u32(index), _address(address) + _u32(flags)
    yield "own_addresses", _u32(0), _address("10.0.0.1") + _u32(0)
    yield "own_addresses", _u32(1), _address("fd00::1") + _u32(V6)
    yield "next_hop", _u32(0), bytes.fromhex("02feedfacade0000")
    for number in range(1, 40):
        yield "server_ids", _u32(number), _u32(1 + number % REALS)
    for address, flags in (("10.0.9.1", 0), ("10.0.9.2", KEEP_TTL | NO_GUE), ("fd00:9::1", 0),
                           ("fd00:9::2", KEEP_TTL)):
        yield "tunnel_ends", _address(address), _u32(flags)
    for number in range(1, 10):  # connections that another balancer knows
        flow = _address(f"192.0.2.{number}") + _address("10.0.1.5") + struct.pack(
            "!HHB3x", SHARED_SPORT, 80, TCP_PROTOCOL)
        yield "shared_connections", flow, _u32(1 + number)
    yield "source_routes_v4", ip_address("192.0.2.0").packed, _u32(3)
    yield "source_routes_v4", ip_address("198.51.0.0").packed, _u32(4)
    yield "source_routes_v6", _address("2001:db8:1::7"), _u32(5)
    yield "source_routes_v6", _address("2001:db8:2::"), _u32(7)


class _Flow:
    """A client and a service, in IPv4 or IPv6."""

    def __init__(self, rng: random.Random, service: int | None = None) -> None:
        last, port, self.protocol, self.flags = (
            rng.choice(SERVICES) if service is None else SERVICES[service])
        self.v6 = rng.random() < 0.5
        number = rng.randrange(1, 10)
        self.client = (f"2001:db8:{rng.randrange(1, 4)}::{number:x}" if self.v6 else
                       f"{rng.choice(('192.0.2', '198.51.100', '203.0.113'))}.{number}")
        self.vip = f"fd00:1::{last}" if self.v6 else f"10.0.1.{last}"
        self.sport = rng.choice((SHARED_SPORT, rng.randrange(1024, 65536)))
        self.dport = port or rng.randrange(1, 2000)
        self.tos = rng.choice((0, 0x10, 0xb8))

    def network(self, **fields: Any) -> Any:
        if self.v6:
            return IPv6(src=self.client, dst=self.vip, tc=self.tos, **fields)
        return IP(src=self.client, dst=self.vip, tos=self.tos, id=7, **fields)

    def transport(self, rng: random.Random) -> Any:
        if self.protocol == UDP_PROTOCOL:
            return UDP(sport=self.sport, dport=self.dport) / _datagram(rng)
        return TCP(sport=self.sport, dport=self.dport, flags=rng.choice(("S", "A", "PA", "R")),
                   options=_options(rng)) / rng.randbytes(rng.randrange(40))

    def packet(self, rng: random.Random) -> Any:
        return self.network() / self.transport(rng)

    def answer(self, rng: random.Random) -> Any:
        """From the server to the client: what an ICMP error quotes."""
        ports: dict[str, Any] = {"sport": self.dport, "dport": self.sport}
        upper = (TCP(flags="A", **ports) if self.protocol == TCP_PROTOCOL else
                 UDP(**ports)) / rng.randbytes(rng.randrange(30))
        if self.v6:
            return IPv6(src=self.vip, dst=self.client) / upper
        return IP(src=self.vip, dst=self.client) / upper


def _datagram(rng: random.Random) -> bytes:
    """QUIC with the number of a server in its connection id, or what only looks like it."""
    server = rng.randrange(0, 60)
    number = rng.choice((
        bytes(5),
        (1 << 22 | server << 6).to_bytes(3, "big") + b"\7\7",  # 16 bits behind the version's two
        b"\x80" + server.to_bytes(3, "big") + b"\1",
        b"\xc0" + server.to_bytes(4, "big")))
    connection_id = number + rng.randbytes(3)
    return rng.choice((
        lambda: b"\x40" + connection_id + rng.randbytes(20),
        lambda: b"\xe0\0\0\0\1\x08" + connection_id + rng.randbytes(20),
        lambda: b"\xc0\0\0\0\1\x08" + connection_id + rng.randbytes(20),
        lambda: b"\xf0\0\0\0\1\x04" + connection_id + rng.randbytes(9),
        lambda: b"\x52" + server.to_bytes(3, "big") + rng.randbytes(5),
        lambda: rng.randbytes(rng.randrange(0, 30)),
    ))()


def _options(rng: random.Random) -> list[Any]:
    nop, server = ("NOP", None), rng.randrange(0, 60)
    options = [("MSS", rng.choice((536, 1380, 1440, 1460, 9000))), ("WScale", 7),
               ("Timestamp", (rng.getrandbits(32), server << 16 | rng.getrandbits(16))),
               ("SAckOK", b""), (0xB7, struct.pack("<I", server))]
    chosen: list[Any] = []
    for option in rng.sample(options, rng.randrange(0, 4)):
        chosen += [nop] * rng.randrange(0, 4) + [option]
    return chosen + ([nop] * 12 if rng.random() < 0.1 else [])


def _flow_packets(rng: random.Random) -> list[Any]:
    flow = _Flow(rng)
    return [flow.packet(rng) for _ in range(rng.randrange(1, 5))]


def _error(rng: random.Random) -> list[Any]:
    flow = _Flow(rng)
    quoted, router = flow.answer(rng), _Flow(rng)
    if flow.v6:
        kind = rng.choice((ICMPv6PacketTooBig, ICMPv6DestUnreach, ICMPv6TimeExceeded))
        return [flow.packet(rng), IPv6(src="2001:db8:9::1", dst=flow.vip) / kind() / quoted]
    outer = IP(src="203.0.113.254", dst=flow.vip)
    kinds = (ICMP(type=3, code=4, nexthopmtu=1400), ICMP(type=3, code=1), ICMP(type=11))
    return [flow.packet(rng), outer / rng.choice(kinds) / quoted, router.packet(rng)]


def _echo(rng: random.Random) -> list[Any]:
    flow = _Flow(rng)
    data = rng.randbytes(rng.randrange(60))
    return [flow.network() / (ICMPv6EchoRequest() if flow.v6 else ICMP(type=8)) / data]


def _fragment(rng: random.Random) -> list[Any]:
    flow = _Flow(rng)
    if flow.v6:
        return [flow.network() / IPv6ExtHdrFragment(offset=rng.randrange(3), m=1)
                / flow.transport(rng)]
    return [flow.network(frag=rng.randrange(3), flags=rng.choice(("MF", "DF")))
            / flow.transport(rng)]


def _headers(rng: random.Random) -> list[Any]:
    """IP options, and extension headers: some that are skipped, and one too many."""
    flow = _Flow(rng)
    packet = flow.network(**({} if flow.v6 else {"options": [b"\1\1\1\0"]}))
    for _ in range(rng.randrange(1, 5) if flow.v6 else 0):
        packet /= rng.choice((IPv6ExtHdrHopByHop, IPv6ExtHdrDestOpt))()
    return [packet / flow.transport(rng)]


def _tunnel(rng: random.Random) -> list[Any]:
    inner = _Flow(rng).packet(rng)
    for _ in range(rng.choice((1, 1, 1, 2))):
        inner[0].setfieldval("hlim" if isinstance(inner, IPv6) else "ttl",
                             rng.choice((1, 2, 64, 255)))
        end = str(rng.randrange(1, 4))
        outer = (IPv6(src="2001:db8::9", dst=f"fd00:9::{end}") if rng.random() < 0.5 else
                 IP(src="203.0.113.9", dst=f"10.0.9.{end}"))
        if rng.random() < 0.5:
            outer /= UDP(sport=4000, dport=GUE_PORT)
            inner = bytes(inner) if rng.random() < 0.9 else rng.randbytes(30)
        inner = outer / inner
    return [inner]


def _big(rng: random.Random) -> list[Any]:
    flow = _Flow(rng)
    return [flow.packet(rng) / rng.randbytes(rng.randrange(1400, 2000)) for _ in range(2)]


def _stranger(rng: random.Random) -> list[Any]:
    flow = _Flow(rng)
    flow.vip = "fd00:1::99" if flow.v6 else "10.0.1.99"
    other = flow.network(**({"nh": 132} if flow.v6 else {"proto": 132})) / rng.randbytes(20)
    return [rng.choice((flow.packet(rng), other))]


_KINDS: tuple[Callable[[random.Random], list[Any]], ...] = (
    *[_flow_packets] * 4, *[_tunnel] * 2, _error, _error, _echo, _fragment, _headers, _big,
    _stranger)


def _damage(rng: random.Random, frame: bytes) -> bytes:
    match rng.randrange(4):
        case 0:
            return frame[:rng.randrange(14, len(frame) + 1)]
        case 1:
            return frame[:rng.choice((14, 33, 34, 41, 42, 53, 54, 61, 62, 73, 74, 93, 101, 102))]
        case 2:
            at = rng.randrange(12, min(len(frame), 110))
            return frame[:at] + rng.randbytes(1) + frame[at + 1:]
        case _:
            at = rng.randrange(34, max(35, min(len(frame), 80)))
            return frame[:at] + bytes(2) + frame[at + 2:]


@cache
def frames(count: int = 600, seed: int = 1) -> tuple[bytes, ...]:
    rng, packets = random.Random(seed), [ETH / ARP(), ETH / Dot1Q(vlan=3) / IP() / UDP()]
    while len(packets) < count:
        packets += [ETH / packet for packet in rng.choice(_KINDS)(rng)]
    plain = [bytes(packet) for packet in packets[:count]]
    return tuple(_damage(rng, frame) if rng.random() < 0.15 else frame for frame in plain)
