"""Checksums that a sender left to hardware: found, and completed.

A frame that a local process sent into a veth may carry no checksum: with checksum offload on the
sender leaves TCP's or UDP's field for the hardware, holding only the sum of the pseudo-header
(CHECKSUM_PARTIAL), and says so in the skb.  An XDP program's frame has no place for that note, so a
frame that went through a port looks corrupt, and the stack drops it.  PARTIAL therefore looks: is
the field the folded sum of the pseudo-header, just what the kernel leaves there?  A frame with a
good checksum that happens to look so (one in 65536) loses nothing: completed, it is the same.  A
corrupt one that looks so is accepted, which is what a 16-bit checksum risks.  Fragments, other
protocols and IPv6 extension headers are never offloaded, and not looked into.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xdp_runtime.template import Template

IPV4, IPV6, VLAN, QINQ = 0x0800, 0x86DD, 0x8100, 0x88A8
_TCP, _UDP = 6, 17
_UDP_FIELD = 6  # of the checksum, in a UDP header


def _pseudo(m: Any) -> Callable[..., Any]:
    def checksum_partial(data, length):  # type: ignore[no-untyped-def]
        """csum_start << 16 | csum_offset if the frame waits for its checksum, else 0."""
        at = 14
        if length < 34:
            return 0
        kind = m.swap16(m.load_u16(data, 12))
        while (kind == VLAN or kind == QINQ) and at < 22 and length >= at + 24:
            kind = m.swap16(m.load_u16(data, at + 2))
            at += 4
        ip = m.inside(data, at)
        if kind == IPV4 and length >= at + 20:
            first = m.load_u8(ip, 0)
            header = (first & 15) * 4
            fragment = m.swap16(m.load_u16(ip, 6)) & 0x3FFF
            if first >> 4 != 4 or header < 20 or fragment != 0:
                return 0
            protocol = m.load_u8(ip, 9)
            size = m.swap16(m.load_u16(ip, 2)) - header
            total = m.load_u32(ip, 12) + m.load_u32(ip, 16)
        elif kind == IPV6 and length >= at + 40:
            header = 40
            protocol = m.load_u8(ip, 6)
            size = m.swap16(m.load_u16(ip, 4))
            total = 0
            word = 8
            while word < 40:
                total += m.load_u32(ip, word)
                word += 4
        else:
            return 0
        offset = 0
        if protocol == _TCP:
            offset = 16
        elif protocol == _UDP:
            offset = 6
        start = at + header
        if offset == 0 or size < offset + 2 or start + size > length:
            return 0
        total += m.swap16(size) + m.swap16(protocol)
        total = (total & 0xFFFFFFFF) + (total >> 32)
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        if m.load_u16(data, start + offset) != total:
            return 0
        return start << 16 | offset

    return checksum_partial


PARTIAL = Template("checksum_partial", _pseudo, "i64(ptr, i64)", inline=False)


def _complete(m: Any) -> Callable[..., Any]:
    def checksum_complete(data, length, where):  # type: ignore[no-untyped-def]
        """Write the checksum of [start, end of the packet), whose field has the pseudo-header's."""
        start, field = where >> 16, (where >> 16) + (where & 0xFFFF)
        words = m.lshr(length - start, 2)
        total = 0
        for word in range(words):
            total += m.load_u32(data, start + 4 * word)
        at = start + 4 * words
        if at + 2 <= length:
            total += m.load_u16(data, at)
            at += 2
        if at < length:
            total += m.load_u8(data, at)
        total = (total & 0xFFFFFFFF) + (total >> 32)
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        total = total ^ 0xFFFF
        if total == 0 and where & 0xFFFF == _UDP_FIELD:
            total = 0xFFFF  # 0 says that there is none
        m.store_u16(data, field, total)
        return 0

    return checksum_complete


COMPLETE = Template("checksum_complete", _complete, "i64(ptr, i64, i64)", inline=False)
