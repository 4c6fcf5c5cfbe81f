"""A packet in a line, in the manner of tcpdump -n: who to whom, and what.

Ethernet with VLAN tags, ARP, IPv4, IPv6 with its extension headers, TCP, UDP, SCTP, ICMP; of what
else there is, the number of its type.  What a packet lacks, because it is cut short or lies about
its lengths, is said as tcpdump does it: [|ip].  For people who look at a sample; libraries that
do more are GPL (scapy) or start too slowly, and `xdpu capture -w - | tcpdump -r -` is always there.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable

_IP4, _ARP, _IP6 = 0x0800, 0x0806, 0x86DD
_TAGS = (0x8100, 0x88A8, 0x9100)
_ICMP, _TCP, _UDP, _ICMP6, _SCTP = 1, 6, 17, 58, 132
_FRAGMENT = 44
_EXTENSIONS = (0, 43, _FRAGMENT, 60, 135)  # hop-by-hop, routing, fragment, destination, mobility
_PROTOCOLS = {2: "IGMP", 4: "IP in IP", 41: "IP6 in IP", 47: "GRE", 50: "ESP", 51: "AH", 59: "none",
              89: "OSPF", 103: "PIM", 112: "VRRP"}
_TCP_FLAGS = "FSRP.UEW"  # from bit 0 on
_ICMP_TYPES = {0: "echo reply", 3: "unreachable", 5: "redirect", 8: "echo request",
               11: "time exceeded"}
_ICMP6_TYPES = {1: "unreachable", 2: "packet too big", 3: "time exceeded", 128: "echo request",
                129: "echo reply", 133: "router solicitation", 134: "router advertisement",
                135: "neighbor solicitation", 136: "neighbor advertisement",
                143: "multicast listener report v2"}


def describe(packet: bytes) -> str:
    """An Ethernet frame, or as much of it as was taken."""
    return _told("ether", _ethernet, packet)


def _told(layer: str, tell: Callable[[bytes], str], data: bytes) -> str:
    try:
        return tell(data)
    except (struct.error, IndexError):
        return f"[|{layer}]"


def _ethernet(frame: bytes) -> str:
    (kind,), at, tags = struct.unpack_from(">H", frame, 12), 14, ""
    while kind in _TAGS:
        tag, kind = struct.unpack_from(">HH", frame, at)
        at += 4
        tags += f"vlan {tag & 0xFFF}, "
    rest = frame[at:]
    if kind == _IP4:
        return tags + "IP " + _told("ip", _ip4, rest)
    if kind == _IP6:
        return tags + "IP6 " + _told("ip6", _ip6, rest)
    if kind == _ARP:
        return tags + "ARP, " + _told("arp", _arp, rest)
    what = f"ethertype 0x{kind:04x}" if kind >= 0x600 else f"802.3 length {kind}"
    return f"{_mac(frame[6:12])} > {_mac(frame[:6])}, {tags}{what}"


def _mac(raw: bytes) -> str:
    return raw.hex(":")


def _arp(data: bytes) -> str:
    kind, protocol, hardware_bytes, address_bytes, operation = struct.unpack_from(">HHBBH", data)
    if (kind, protocol, hardware_bytes, address_bytes) != (1, _IP4, 6, 4):
        return f"hardware {kind}, protocol 0x{protocol:04x}"
    sender, theirs, _, target = struct.unpack_from(">6s4s6s4s", data, 8)
    who, whom = ipaddress.IPv4Address(theirs), ipaddress.IPv4Address(target)
    match operation:
        case 1:
            return f"Request who-has {whom} tell {who}"
        case 2:
            return f"Reply {who} is-at {_mac(sender)}"
    return f"operation {operation}"


def _ip4(data: bytes) -> str:
    first, _, total, ident, fragment, _, protocol, _, source, target = struct.unpack_from(
        ">BBHHHBBH4s4s", data)
    header_bytes = (first & 15) * 4
    if first >> 4 != 4 or header_bytes < 20:
        return f"version {first >> 4}, header of {header_bytes} bytes"
    ends = str(ipaddress.IPv4Address(source)), str(ipaddress.IPv4Address(target))
    payload, length = data[header_bytes:total], total - header_bytes
    if offset := (fragment & 0x1FFF) * 8:
        more = "+" if fragment & 0x2000 else ""
        return f"{ends[0]} > {ends[1]}: fragment {ident}:{length}@{offset}{more}"
    return _transport(ends, protocol, payload, length)


def _ip6(data: bytes) -> str:
    first, length, protocol, _, source, target = struct.unpack_from(">IHBB16s16s", data)
    if first >> 28 != 6:
        return f"version {first >> 28}"
    ends = str(ipaddress.IPv6Address(source)), str(ipaddress.IPv6Address(target))
    at = 40
    while protocol in _EXTENSIONS:
        following, size = struct.unpack_from(">BB", data, at)
        if protocol == _FRAGMENT:
            fragment, ident = struct.unpack_from(">HI", data, at + 2)
            if fragment & 0xFFF8:
                more = "+" if fragment & 1 else ""
                return (f"{ends[0]} > {ends[1]}: fragment {ident}:{length + 32 - at}"
                        f"@{fragment & 0xFFF8}{more}")
        at += 8 if protocol == _FRAGMENT else (size + 1) * 8
        protocol = following
    return _transport(ends, protocol, data[at:40 + length], length + 40 - at)


def _transport(ends: tuple[str, str], protocol: int, data: bytes, length: int) -> str:
    source, target = ends
    if protocol in (_TCP, _UDP, _SCTP):
        if len(data) < 4:
            name = {_TCP: "tcp", _UDP: "udp", _SCTP: "sctp"}[protocol]
            return f"{source} > {target}: [|{name}]"
        ports = struct.unpack_from(">HH", data)
        source, target = f"{source}.{ports[0]}", f"{target}.{ports[1]}"
    if protocol == _TCP:
        what = _told("tcp", lambda raw: _tcp(raw, length), data)
    elif protocol == _UDP:
        what = f"UDP, length {length - 8}"
    elif protocol == _SCTP:
        what = f"SCTP, length {length - 12}"
    elif protocol in (_ICMP, _ICMP6):
        what = _told("icmp", lambda raw: _icmp(raw, length, protocol == _ICMP6), data)
    else:
        what = f"{_PROTOCOLS.get(protocol, f'ip-proto-{protocol}')}, length {length}"
    return f"{source} > {target}: {what}"


def _tcp(data: bytes, length: int) -> str:
    _, _, seq, ack, offset, bits, window = struct.unpack_from(">HHIIBBH", data)
    size = length - (offset >> 4) * 4
    flags = "".join(one for bit, one in enumerate(_TCP_FLAGS) if bits >> bit & 1) or "none"
    numbers = f", seq {seq}:{seq + size & 0xFFFFFFFF}" if size > 0 else \
        f", seq {seq}" if bits & 0x07 else ""
    numbers += f", ack {ack}" if bits & 0x10 else ""
    return f"Flags [{flags}]{numbers}, win {window}, length {size}"


def _icmp(data: bytes, length: int, six: bool) -> str:
    kind, code = data[0], data[1]
    name = (_ICMP6_TYPES if six else _ICMP_TYPES).get(kind, f"type {kind}")
    if name.startswith("echo"):
        name += ", id {}, seq {}".format(*struct.unpack_from(">HH", data, 4))
    elif code:
        name += f" code {code}"
    return f"ICMP{'6' if six else ''} {name}, length {length}"
