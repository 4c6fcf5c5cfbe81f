"""Capture files: pcap and pcapng, read and written without any library.

pcap (draft-ietf-opsawg-pcap): a 24-byte header, then records {seconds, fraction, captured length,
original length, bytes}; the magic number tells byte order and whether fractions are micro- or
nanoseconds.  pcapng (draft-ietf-opsawg-pcapng): blocks {type, length, body, length again}; a
section header sets the byte order, an interface block the link type and the unit of time stamps.

Only Ethernet is read: XDP knows nothing else.  What is damaged gives a `Damage`, and `complaint`
makes the sentence of it; the compiled reader (pcap.py) reports in the same terms.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Literal

from xdp_runtime.errors import PortError

LINKTYPE_ETHERNET = 1
PCAP_HEADER_BYTES, PCAP_RECORD_BYTES = 24, 16
LONGEST_PACKET_BYTES = 262144  # MAXIMUM_SNAPLEN of libpcap: a longer record is nonsense
SECTION, INTERFACE, OLD_PACKET, SIMPLE_PACKET, ENHANCED_PACKET = 0x0A0D0D0A, 1, 2, 3, 6
BYTE_ORDER_MAGIC = 0x1A2B3C4D
STATISTICS = 5
OPT_END, OPT_COMMENT, SHB_USERAPPL, IF_NAME, IF_TSRESOL, IF_TSOFFSET = 0, 1, 4, 2, 9, 14
IF_DESCRIPTION, IF_FILTER = 3, 11
ISB_STARTTIME, ISB_ENDTIME, ISB_IFRECV = 2, 3, 4
ISB_FILTERACCEPT, ISB_OSDROP, ISB_USRDELIV = 6, 7, 8
EPB_FLAGS, EPB_DROPCOUNT, EPB_PACKETID, EPB_QUEUE = 2, 4, 5, 6
EPB_VERDICT, VERDICT_XDP = 7, 2  # the option and its kind: "a verdict of Linux eBPF XDP"
MAX_INTERFACES = 64

# (first four bytes) -> byte order, nanoseconds a unit of the fraction
_PCAP_MAGIC: dict[bytes, tuple[Literal["<", ">"], int]] = {
    bytes.fromhex("d4c3b2a1"): ("<", 1000), bytes.fromhex("a1b2c3d4"): (">", 1000),
    bytes.fromhex("4d3cb2a1"): ("<", 1), bytes.fromhex("a1b23c4d"): (">", 1),
}


class Damage(IntEnum):
    """Why reading ends before the end of the file; `value` and `limit` say more."""

    NONE = 0
    TRUNCATED = 1  # value bytes are there of limit
    BAD_LENGTH = 2  # a length of value on the wrong side of limit
    NO_INTERFACE = 3  # interface value, limit are described
    LINK_TYPE = 4  # the packet is of link type value
    INTERFACES = 5  # more than limit interfaces
    BYTE_ORDER = 6  # a section header without the byte-order magic


def complaint(path: str, damage: int, packet: int, value: int, limit: int) -> PortError:
    """`packet` counts from 1: the one that could not be read."""
    match Damage(damage):
        case Damage.TRUNCATED:
            why = f"truncated in packet {packet}: {value} of {limit} bytes are there"
        case Damage.BAD_LENGTH:
            why = f"damaged in packet {packet}: a length of {value} bytes, the limit is {limit}"
        case Damage.NO_INTERFACE:
            why = (f"damaged in packet {packet}: it was captured on interface {value}, "
                   f"the file describes {limit}")
        case Damage.LINK_TYPE:
            why = f"packet {packet} is of link type {value}, not Ethernet ({LINKTYPE_ETHERNET})"
        case Damage.INTERFACES:
            why = f"before packet {packet}: more than {limit} interfaces"
        case _:
            why = f"damaged before packet {packet}: a section without byte order"
    mend = f"packets 1 to {packet - 1} were processed" if packet > 1 else ""
    return PortError(path, why, mend)


@dataclass(frozen=True, slots=True)
class Capture:
    """A capture file's header.  For pcapng only the format counts: units come with interfaces."""

    format: Literal["pcap", "pcapng"]
    order: Literal["<", ">"]
    fraction_ns: int
    first_record: int


@dataclass(frozen=True, slots=True)
class CapturedPacket:
    timestamp_ns: int
    data: bytes
    original_bytes: int
    comment: str = ""


@dataclass(slots=True)
class Interface:
    link_type: int = LINKTYPE_ETHERNET
    snap_bytes: int = 0
    resolution: int = 6  # if_tsresol: 10**-n seconds, or 2**-(n & 127) with bit 7
    offset_s: int = 0
    name: str = field(default="", compare=False)

    def timestamp_ns(self, ticks: int) -> int:
        if self.resolution & 0x80:
            return int(ticks * 10**9 >> (self.resolution & 0x7F)) + self.offset_s * 10**9
        return int(ticks * 10**9 // 10**self.resolution) + self.offset_s * 10**9


def map_file(path: str | Path) -> mmap.mmap:
    """The whole file, copy on write.  PortError if it cannot be read or is empty."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise PortError(str(path), "the file is empty", "is the capture complete?")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except OSError as error:
        raise PortError(str(path), error.strerror or str(error)) from error
    except ValueError as error:
        raise PortError(str(path), "not a file that can be mapped", "copy it to a file") from error


def read_header(path: str | Path, content: mmap.mmap | bytes) -> Capture:
    """What kind of capture this is; PortError if it is none, or not of Ethernet."""
    magic = bytes(content[:4])
    if struct.unpack("<I", magic.ljust(4, b"\0"))[0] == SECTION:
        capture = Capture("pcapng", _order(path, bytes(content[:12])), 1000, 0)
        link_types = [i.link_type for i in _first_interfaces(content, capture.order)]
        if link_types and LINKTYPE_ETHERNET not in link_types:
            raise _not_ethernet(path, link_types[0])
        return capture
    if magic not in _PCAP_MAGIC:
        raise PortError(str(path), "neither pcap nor pcapng", "tcpdump -w writes such files")
    order, fraction_ns = _PCAP_MAGIC[magic]
    if len(content) < PCAP_HEADER_BYTES:
        raise PortError(str(path), f"truncated in its header: {len(content)} of "
                        f"{PCAP_HEADER_BYTES} bytes are there")
    link_type = struct.unpack(order + "I", content[20:24])[0] & 0xFFFF  # above: FCS length
    if link_type != LINKTYPE_ETHERNET:
        raise _not_ethernet(path, link_type)
    return Capture("pcap", order, fraction_ns, PCAP_HEADER_BYTES)


def _order(path: str | Path, start: bytes) -> Literal["<", ">"]:
    if len(start) < 12:
        raise PortError(str(path), f"truncated in its header: {len(start)} of 28 bytes are there")
    for order in ("<", ">"):
        if struct.unpack(order + "I", start[8:12])[0] == BYTE_ORDER_MAGIC:
            return "<" if order == "<" else ">"
    raise PortError(str(path), "damaged: a pcapng section without byte order")


def _not_ethernet(path: str | Path, link_type: int) -> PortError:
    return PortError(str(path), f"its link type is {link_type}, not Ethernet "
                     f"({LINKTYPE_ETHERNET})", "capture on an Ethernet interface, not on `any`")


def read_packets(path: str | Path) -> Iterator[CapturedPacket]:
    """All packets, in Python; PortError where the file is damaged."""
    with map_file(path) as content:
        capture = read_header(path, content)
        read = _read_pcap if capture.format == "pcap" else _read_pcapng
        yield from read(str(path), content, capture)


def _read_pcap(path: str, content: mmap.mmap, capture: Capture) -> Iterator[CapturedPacket]:
    at, number, end = capture.first_record, 0, len(content)
    while at < end:
        number += 1
        if end - at < PCAP_RECORD_BYTES:
            raise complaint(path, Damage.TRUNCATED, number, end - at, PCAP_RECORD_BYTES)
        seconds, fraction, length, original = struct.unpack_from(capture.order + "4I", content, at)
        if length > LONGEST_PACKET_BYTES:
            raise complaint(path, Damage.BAD_LENGTH, number, length, LONGEST_PACKET_BYTES)
        at += PCAP_RECORD_BYTES
        if end - at < length:
            raise complaint(path, Damage.TRUNCATED, number, end - at, length)
        yield CapturedPacket(seconds * 10**9 + fraction * capture.fraction_ns,
                             bytes(content[at:at + length]), original)
        at += length


def _read_pcapng(path: str, content: mmap.mmap, capture: Capture) -> Iterator[CapturedPacket]:
    at, number, end, last_ns = 0, 0, len(content), 0
    order, interfaces = capture.order, list[Interface]()
    while at < end:
        if end - at < 12:
            raise complaint(path, Damage.TRUNCATED, number + 1, end - at, 12)
        kind = struct.unpack_from(order + "I", content, at)[0]
        if kind == SECTION:
            order, interfaces = _order(path, bytes(content[at:at + 12])), []
        size = struct.unpack_from(order + "I", content, at + 4)[0]
        if size < 12 or size & 3:
            raise complaint(path, Damage.BAD_LENGTH, number + 1, size, end - at)
        if size > end - at:
            raise complaint(path, Damage.TRUNCATED, number + 1, end - at, size)
        body = bytes(content[at + 8:at + size - 4])
        at += size
        if kind == INTERFACE:
            if len(interfaces) == MAX_INTERFACES:
                raise complaint(path, Damage.INTERFACES, number + 1, 0, MAX_INTERFACES)
            if len(body) < 8:
                raise complaint(path, Damage.BAD_LENGTH, number + 1, len(body), 8)
            interfaces.append(_interface(body, order))
        if kind not in (ENHANCED_PACKET, OLD_PACKET, SIMPLE_PACKET):
            continue
        number += 1
        index, said = 0, b""
        head = 4 if kind == SIMPLE_PACKET else 20
        if len(body) < head:
            raise complaint(path, Damage.BAD_LENGTH, number, len(body), head)
        if kind == SIMPLE_PACKET:
            (original,) = struct.unpack_from(order + "I", body)
            snap = interfaces[0].snap_bytes if interfaces else 0
            data = body[4:4 + min(original, snap or original)]
        else:
            index, high, low, length, original = struct.unpack_from(order + "5I", body)
            if kind == OLD_PACKET:
                (index,) = struct.unpack_from(order + "H", body)
            if length > len(body) - 20:
                raise complaint(path, Damage.BAD_LENGTH, number, length, len(body) - 20)
            data = body[20:20 + length]
            said = body[20 + length + (-length % 4):]
        if index >= len(interfaces):
            raise complaint(path, Damage.NO_INTERFACE, number, index, len(interfaces))
        if interfaces[index].link_type != LINKTYPE_ETHERNET:
            raise complaint(path, Damage.LINK_TYPE, number, interfaces[index].link_type, 0)
        if kind != SIMPLE_PACKET:
            last_ns = interfaces[index].timestamp_ns(high << 32 | low)
        comment = dict(options(said, order)).get(OPT_COMMENT, b"").decode(errors="replace")
        yield CapturedPacket(last_ns, data, original, comment)


def _first_interfaces(content: mmap.mmap | bytes, order: str) -> Iterator[Interface]:
    """Those described before the first packet."""
    at = 0
    while len(content) - at >= 12:
        kind, size = struct.unpack(order + "II", content[at:at + 8])
        if kind == INTERFACE and size >= 20:
            yield _interface(bytes(content[at + 8:at + size - 4]), order)
        elif kind in (ENHANCED_PACKET, OLD_PACKET, SIMPLE_PACKET) or size < 12:
            return
        at += size


def _interface(body: bytes, order: str) -> Interface:
    link_type, _, snap_bytes = struct.unpack_from(order + "HHI", body)
    made = Interface(link_type, snap_bytes)
    for code, value in options(body[8:], order):
        if code == IF_TSRESOL and value:
            made.resolution = value[0]
        elif code == IF_TSOFFSET and len(value) == 8:
            made.offset_s = struct.unpack(order + "q", value)[0]
        elif code == IF_NAME:
            made.name = value.decode(errors="replace")
    return made


def options(raw: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Codes and values, of a block of pcapng; `order` as of struct."""
    at = 0
    while len(raw) - at >= 4:
        code, length = struct.unpack_from(order + "HH", raw, at)
        if code == OPT_END:
            return
        yield code, raw[at + 4:at + 4 + length]
        at += 4 + length + (-length % 4)


# writing: pcapng in this machine's byte order, pcap for tests and for tools that know only that


def option(code: int, value: bytes) -> bytes:
    return struct.pack("=HH", code, len(value)) + value + bytes(-len(value) % 4)


def block(kind: int, body: bytes) -> bytes:
    size = struct.pack("=I", 12 + len(body))
    return struct.pack("=I", kind) + size + body + size


def pcapng_header(interface: str, snap_bytes: int = 0) -> bytes:
    """A section of unknown length with one Ethernet interface, time stamps in nanoseconds."""
    return section_block() + interface_block(interface, snap_bytes)


def section_block() -> bytes:
    """A section of unknown length."""
    section = struct.pack("=IHHq", BYTE_ORDER_MAGIC, 1, 0, -1)
    return block(SECTION, section + option(SHB_USERAPPL, b"xdpu") + option(OPT_END, b""))


def interface_block(name: str, snap_bytes: int = 0, description: str = "",
                    filter_text: str = "") -> bytes:
    """An Ethernet interface, time stamps in nanoseconds; the filter is text, in whatever words."""
    body = struct.pack("=HHI", LINKTYPE_ETHERNET, 0, snap_bytes) + option(IF_NAME, name.encode())
    if description:
        body += option(IF_DESCRIPTION, description.encode())
    body += option(IF_TSRESOL, b"\x09")
    if filter_text:
        body += option(IF_FILTER, b"\0" + filter_text.encode())
    return block(INTERFACE, body + option(OPT_END, b""))


def statistics_block(interface: int, times_ns: tuple[int, int], received: int, accepted: int,
                     dropped: int) -> bytes:
    """What was captured on an interface between two times, and what was not."""
    first, last = (struct.pack("=II", ns >> 32, ns & 0xFFFFFFFF) for ns in times_ns)
    numbers = {ISB_IFRECV: received, ISB_FILTERACCEPT: accepted, ISB_OSDROP: dropped,
               ISB_USRDELIV: accepted - dropped}
    return block(STATISTICS, struct.pack("=I", interface) + last + option(ISB_STARTTIME, first)
                 + option(ISB_ENDTIME, last)
                 + b"".join(option(code, struct.pack("=Q", n)) for code, n in numbers.items())
                 + option(OPT_END, b""))


def packet_block(packet: CapturedPacket) -> bytes:
    """An enhanced packet block on interface 0, its time stamp in nanoseconds."""
    body = struct.pack("=5I", 0, packet.timestamp_ns >> 32, packet.timestamp_ns & 0xFFFFFFFF,
                       len(packet.data), packet.original_bytes)
    body += packet.data + bytes(-len(packet.data) % 4)
    if packet.comment:
        body += option(OPT_COMMENT, packet.comment.encode()) + option(OPT_END, b"")
    return block(ENHANCED_PACKET, body)


def pcap_header(nanoseconds: bool = True, snap_bytes: int = LONGEST_PACKET_BYTES) -> bytes:
    magic = 0xA1B23C4D if nanoseconds else 0xA1B2C3D4
    return struct.pack("=IHHiIII", magic, 2, 4, 0, 0, snap_bytes, LINKTYPE_ETHERNET)


def pcap_record(packet: CapturedPacket, nanoseconds: bool = True) -> bytes:
    seconds, fraction = divmod(packet.timestamp_ns, 10**9)
    return struct.pack("=4I", seconds, fraction if nanoseconds else fraction // 1000,
                       len(packet.data), packet.original_bytes) + packet.data
