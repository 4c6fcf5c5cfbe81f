"""The frames that the benches run on: one of a kind, made by hand, the same everywhere."""

from __future__ import annotations

import socket
import struct

MAC, PEER_MAC = bytes.fromhex("020000000002"), bytes.fromhex("020000000001")
IP4, PEER_IP4 = "10.77.1.2", "10.77.1.1"
IP6, PEER_IP6 = "fd77:1::2", "fd77:1::1"
ETH_IPV4, ETH_ARP, ETH_IPV6, ETH_LLDP = 0x0800, 0x0806, 0x86DD, 0x88CC
_ICMP, _TCP, _UDP = 1, 6, 17


def checksum(content: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total = sum(struct.unpack(f"!{len(content) // 2}H", content))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ethernet(ethertype: int, payload: bytes) -> bytes:
    """At least 64 bytes long, as on a wire (the FCS left out)."""
    return (MAC + PEER_MAC + struct.pack("!H", ethertype) + payload).ljust(64, b"\0")


def ipv4(protocol: int, payload: bytes) -> bytes:
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 7, 0x4000, 64, protocol, 0,
                       socket.inet_aton(PEER_IP4), socket.inet_aton(IP4))
    head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
    return ethernet(ETH_IPV4, head + payload)


def udp4(port: int, length_bytes: int = 22) -> bytes:
    payload = bytes(i & 0xFF for i in range(length_bytes))
    return ipv4(_UDP, struct.pack("!HHHH", 1024, port, 8 + length_bytes, 0) + payload)


def tcp4(port: int) -> bytes:
    return ipv4(_TCP, struct.pack("!HHIIBBHHH", 1024, port, 1, 1, 0x50, 0x10, 1024, 0, 0))


def echo4(length_bytes: int = 56) -> bytes:
    """As ping sends it."""
    body = struct.pack("!HH", 0x1234, 1) + bytes(i & 0xFF for i in range(length_bytes))
    start = checksum(b"\x08\0\0\0" + body)
    return ipv4(_ICMP, struct.pack("!BBH", 8, 0, start) + body)


def udp6(port: int) -> bytes:
    payload = struct.pack("!HHHH", 1024, port, 8, 0)
    return ethernet(ETH_IPV6, struct.pack(
        "!IHBB16s16s", 6 << 28, len(payload), _UDP, 64, socket.inet_pton(socket.AF_INET6, PEER_IP6),
        socket.inet_pton(socket.AF_INET6, IP6)) + payload)


def arp() -> bytes:
    return ethernet(ETH_ARP, struct.pack(
        "!HHBBH6s4s6s4s", 1, ETH_IPV4, 6, 4, 1, PEER_MAC, socket.inet_aton(PEER_IP4), bytes(6),
        socket.inet_aton(IP4)))


def lldp() -> bytes:
    return ethernet(ETH_LLDP, bytes(46))
