"""The packets a program is measured on: of a capture file, or made here, one of a kind."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench import frames
from xdp_runtime.errors import ConfigError, PortError

GENERATED = "generated"
SHORTEST_BYTES, LONGEST_BYTES = 14, 3480  # what the kernel's test run takes in one page
MOST = 4096  # of a capture file
_ETHERNET = 1
_MAGIC = {b"\xd4\xc3\xb2\xa1": "<", b"\x4d\x3c\xb2\xa1": "<",
          b"\xa1\xb2\xc3\xd4": ">", b"\xa1\xb2\x3c\x4d": ">"}
_SECTION, _INTERFACE, _SIMPLE, _ENHANCED = 0x0A0D0D0A, 1, 3, 6


class Packet(NamedTuple):
    """`name` is short and one word: what it is, or its number in the file."""

    name: str
    content: bytes


def generated() -> list[Packet]:
    """One of each kind that programs tell apart."""
    vlan = frames.udp4(80)
    return [Packet("udp4", frames.udp4(80)), Packet("udp4-1400", frames.udp4(80, 1358)),
            Packet("tcp4", frames.tcp4(80)), Packet("echo4", frames.echo4()),
            Packet("udp6", frames.udp6(80)), Packet("arp", frames.arp()),
            Packet("vlan-udp4", vlan[:12] + b"\x81\x00\x00\x05" + vlan[12:]),
            Packet("lldp", frames.lldp())]


def read(where: str) -> tuple[list[Packet], list[str]]:
    """The packets, and what was left out of them.  Raises ConfigError, PortError."""
    if where == GENERATED:
        return generated(), []
    try:
        content = Path(where).read_bytes()
    except OSError as error:
        raise ConfigError(f"--packets {where}", error.strerror or str(error)) from error
    try:
        found = list(_frames(content, where))
    except (struct.error, IndexError) as error:
        raise PortError(where, "is damaged: it ends within a packet") from error
    fitting = [Packet(f"#{number}", one) for number, one in enumerate(found, 1)
               if SHORTEST_BYTES <= len(one) <= LONGEST_BYTES]
    notes = []
    if len(fitting) < len(found):
        notes.append(f"{len(found) - len(fitting)} packets are shorter than {SHORTEST_BYTES} or "
                     f"longer than {LONGEST_BYTES} bytes: left out")
    if len(fitting) > MOST:
        notes.append(f"only the first {MOST} of {len(fitting)} packets are used")
    if not fitting:
        raise PortError(where, "has no packet to measure with")
    return fitting[:MOST], notes


def _frames(content: bytes, where: str) -> Iterator[bytes]:
    order = _MAGIC.get(content[:4])
    if order is not None:
        return _pcap(content, order, where)
    if int.from_bytes(content[:4], "little") == _SECTION:
        return _pcapng(content, where)
    raise PortError(where, "is neither pcap nor pcapng")


def _pcap(content: bytes, order: str, where: str) -> Iterator[bytes]:
    _ask_ethernet(struct.unpack_from(order + "I", content, 20)[0] & 0xFFFF, where)
    at = 24
    while at < len(content):
        captured = struct.unpack_from(order + "I", content, at + 8)[0]
        yield _cut(content, at + 16, captured)
        at += 16 + captured


def _pcapng(content: bytes, where: str) -> Iterator[bytes]:
    order, at, snap = "<", 0, 0
    while at < len(content):
        if int.from_bytes(content[at:at + 4], "little") == _SECTION:
            order = "<" if content[at + 8:at + 12] == b"\x4d\x3c\x2b\x1a" else ">"
        kind, length = struct.unpack_from(order + "II", content, at)
        if kind == _INTERFACE:
            link, _, snap = struct.unpack_from(order + "HHI", content, at + 8)
            _ask_ethernet(link, where)
        elif kind == _ENHANCED:
            yield _cut(content, at + 28, struct.unpack_from(order + "I", content, at + 20)[0])
        elif kind == _SIMPLE:
            size = struct.unpack_from(order + "I", content, at + 8)[0]
            yield _cut(content, at + 12, min(size, snap or size))
        if length < 12:
            raise PortError(where, f"is damaged: a block of {length} bytes at {at}")
        at += length


def _ask_ethernet(link: int, where: str) -> None:
    if link != _ETHERNET:
        raise PortError(where, f"its link type is {link}, not Ethernet")


def _cut(content: bytes, at: int, length: int) -> bytes:
    if at + length > len(content):
        raise IndexError(at)
    return content[at:at + length]
