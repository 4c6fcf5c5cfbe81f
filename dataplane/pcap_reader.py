"""Templates that read capture files: one for the records of pcap, one for the blocks of pcapng.

Both walk the mapped file at CURSOR and copy packets into buffers 0..n-1 of the batch.  A damaged
record sets DAMAGE and STOPPED: what was read before it is delivered, nothing behind it is.  What
changes how a pcapng file is read (sections, interfaces) is cold and kept out of line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dataplane.block import SKB_SHARED_INFO_BYTES
from dataplane.pcap_queue import (
    CONTENT,
    CONTENT_BYTES,
    CURSOR,
    DAMAGE,
    DAMAGE_LIMIT,
    DAMAGE_VALUE,
    FACTOR,
    FRACTION_NS,
    FRAME_SIZE,
    FRAMES,
    HOW,
    INTERFACE_BYTES,
    INTERFACE_COUNT,
    INTERFACES,
    LAST_NS,
    LINK_TYPE,
    LONGEST,
    OFFSET_NS,
    OUT_ERRNO,
    PACKETS,
    RECEIVED,
    ROW_BYTES,
    ROW_MISSING,
    ROW_NS,
    ROWS,
    SNAP,
    STOPPED,
    SWAPPED,
    TOO_LONG,
    TOO_SHORT,
)
from dataplane.pcapfile import (
    BYTE_ORDER_MAGIC,
    ENHANCED_PACKET,
    IF_TSOFFSET,
    IF_TSRESOL,
    INTERFACE,
    LINKTYPE_ETHERNET,
    LONGEST_PACKET_BYTES,
    MAX_INTERFACES,
    OLD_PACKET,
    OPT_END,
    PCAP_RECORD_BYTES,
    SECTION,
    SIMPLE_PACKET,
    Damage,
)
from dataplane.port import (
    BATCH_MAX,
    COOKIE,
    DATA,
    DATA_END,
    FRAME_END,
    HARD_START,
    RECEIVE_SIGNATURE,
    RX_TIMESTAMP,
    SLOT_SIZE_BYTES,
)
from xdp_runtime.state import HEADROOM_BYTES, XDP_FRAME_BYTES
from xdp_runtime.template import Template

_SHORTEST = 14  # an Ethernet header
_TRUNCATED, _BAD_LENGTH = int(Damage.TRUNCATED), int(Damage.BAD_LENGTH)
_NO_INTERFACE, _LINK_TYPE = int(Damage.NO_INTERFACE), int(Damage.LINK_TYPE)
_TOO_MANY, _BYTE_ORDER = int(Damage.INTERFACES), int(Damage.BYTE_ORDER)
_ETHERNET = LINKTYPE_ETHERNET
_SECOND_NS = 10**9
_MULTIPLY, _DIVIDE, _SHIFT = 0, 1, 2


def _u16(m: Any) -> Callable[..., Any]:
    def pcap_u16(content, at, swapped):  # type: ignore[no-untyped-def]
        value = m.load_u16(content, at)
        return m.swap16(value) if swapped != 0 else value

    return pcap_u16


def _u32(m: Any) -> Callable[..., Any]:
    def pcap_u32(content, at, swapped):  # type: ignore[no-untyped-def]
        value = m.load_u32(content, at)
        return m.swap32(value) if swapped != 0 else value

    return pcap_u32


def _damage(m: Any) -> Callable[..., Any]:
    def pcap_damage(q, damage, value, limit):  # type: ignore[no-untyped-def]
        m.store_u64(q, DAMAGE, damage)
        m.store_u64(q, DAMAGE_VALUE, value)
        m.store_u64(q, DAMAGE_LIMIT, limit)
        m.store_u64(q, STOPPED, 1)
        return 0

    return pcap_damage


U16 = Template("pcap_u16", _u16, "i64(ptr, i64, i64)")
U32 = Template("pcap_u32", _u32, "i64(ptr, i64, i64)")
DAMAGED = Template("pcap_damage", _damage, "i64(ptr, i64, i64, i64)", inline=False)


def _deliver(m: Any) -> Callable[..., Any]:
    def pcap_deliver(q, batch, n, source, length, original, timestamp_ns):  # type: ignore
        """Copy a packet into buffer n -> 1, or count it as not deliverable -> 0."""
        m.store_u64(q, PACKETS, m.load_u64(q, PACKETS) + 1)
        m.store_u64(q, LAST_NS, timestamp_ns)
        if length > m.load_u64(q, LONGEST):
            m.store_u64(q, TOO_LONG, m.load_u64(q, TOO_LONG) + 1)
            return 0
        if length < _SHORTEST:
            m.store_u64(q, TOO_SHORT, m.load_u64(q, TOO_SHORT) + 1)
            return 0
        size = m.load_u64(q, FRAME_SIZE)
        frame = m.inside(m.load_ptr(q, FRAMES), n * size)
        data = m.inside(frame, HEADROOM_BYTES)
        m.copy(data, source, length)
        slot = m.inside(batch, n * SLOT_SIZE_BYTES)
        m.store_ptr(slot, DATA, data)
        m.store_ptr(slot, DATA_END, m.inside(data, length))
        m.store_ptr(slot, HARD_START, m.inside(frame, XDP_FRAME_BYTES))
        m.store_ptr(slot, FRAME_END, m.inside(frame, size - SKB_SHARED_INFO_BYTES))
        m.store_u64(slot, COOKIE, n)
        m.store_u64(slot, RX_TIMESTAMP, timestamp_ns)
        row = m.inside(q, ROWS + n * ROW_BYTES)
        m.store_u64(row, ROW_NS, timestamp_ns)
        m.store_u64(row, ROW_MISSING, original - length if original > length else 0)
        return 1

    return pcap_deliver


DELIVER = Template("pcap_deliver", _deliver, "i64(ptr, ptr, i64, ptr, i64, i64, i64)")


def _receive_pcap(m: Any) -> Callable[..., Any]:
    u32, damaged, deliver = m.extern(U32), m.extern(DAMAGED), m.extern(DELIVER)

    def pcap_receive(q, batch, budget):  # type: ignore[no-untyped-def]
        content = m.load_ptr(q, CONTENT)
        swapped = m.load_u64(q, SWAPPED)
        end = m.load_u64(q, CONTENT_BYTES)
        at = m.load_u64(q, CURSOR)
        if m.load_u64(q, OUT_ERRNO) != 0:
            m.store_u64(q, STOPPED, 1)
        n = 0
        while n < budget and n < BATCH_MAX and m.load_u64(q, STOPPED) == 0:
            if at == end:
                m.store_u64(q, STOPPED, 1)
                break
            if end - at < PCAP_RECORD_BYTES:
                damaged(q, _TRUNCATED, end - at, PCAP_RECORD_BYTES)
                break
            length = u32(content, at + 8, swapped)
            if length > LONGEST_PACKET_BYTES:
                damaged(q, _BAD_LENGTH, length, LONGEST_PACKET_BYTES)
                break
            if end - at - PCAP_RECORD_BYTES < length:
                damaged(q, _TRUNCATED, end - at - PCAP_RECORD_BYTES, length)
                break
            seconds = u32(content, at, swapped)
            fraction = u32(content, at + 4, swapped)
            timestamp_ns = seconds * _SECOND_NS + fraction * m.load_u64(q, FRACTION_NS)
            n += deliver(q, batch, n, m.inside(content, at + PCAP_RECORD_BYTES), length,
                         u32(content, at + 12, swapped), timestamp_ns)
            at += PCAP_RECORD_BYTES + length
        m.store_u64(q, CURSOR, at)
        m.store_u64(q, RECEIVED, n)
        if at == end:
            m.store_u64(q, STOPPED, 1)
        return n

    return pcap_receive


def _interface(m: Any) -> Callable[..., Any]:
    u16, u32, damaged = m.extern(U16), m.extern(U32), m.extern(DAMAGED)

    def pcapng_interface(q, body, length):  # type: ignore[no-untyped-def]
        """An interface description block: enter it into the table."""
        swapped = m.load_u64(q, SWAPPED)
        count = m.load_u64(q, INTERFACE_COUNT)
        if count == MAX_INTERFACES:
            return damaged(q, _TOO_MANY, count, MAX_INTERFACES)
        if length < 8:
            return damaged(q, _BAD_LENGTH, length, 8)
        entry = m.inside(q, INTERFACES + count * INTERFACE_BYTES)
        resolution = 6
        offset_s = 0
        at = 8
        while length - at >= 4:
            code = u16(body, at, swapped)
            size = u16(body, at + 2, swapped)
            if code == OPT_END or size > length - at - 4:
                break
            if code == IF_TSRESOL and size >= 1:
                resolution = m.load_u8(body, at + 4)
            if code == IF_TSOFFSET and size == 8:
                low = u32(body, at + 4, swapped)
                high = u32(body, at + 8, swapped)
                if swapped != 0:
                    low, high = high, low
                offset_s = m.add(low, m.mul(high, 1 << 32))
            at += 4 + ((size + 3) & -4)
        factor = 1
        if resolution >= 128:
            how = _SHIFT
            factor = resolution & 127
        else:
            how = _MULTIPLY if resolution <= 9 else _DIVIDE
            power = 9 - resolution if resolution <= 9 else resolution - 9
            power = m.smaller(power, 18)  # finer than the age of the universe in 64 bits can be
            while power > 0:
                factor *= 10
                power -= 1
        m.store_u64(entry, HOW, how)
        m.store_u64(entry, FACTOR, factor)
        m.store_u64(entry, OFFSET_NS, m.mul(offset_s, _SECOND_NS))
        m.store_u32(entry, LINK_TYPE, u16(body, 0, swapped))
        m.store_u32(entry, SNAP, u32(body, 4, swapped))
        m.store_u64(q, INTERFACE_COUNT, count + 1)
        return 0

    return pcapng_interface


def _nanoseconds(m: Any) -> Callable[..., Any]:
    def pcapng_ns(entry, ticks):  # type: ignore[no-untyped-def]
        how = m.load_u64(entry, HOW)
        factor = m.load_u64(entry, FACTOR)
        offset_ns = m.load_u64(entry, OFFSET_NS)
        if how == _MULTIPLY:
            return m.add(m.mul(ticks, factor), offset_ns)
        if how == _DIVIDE:
            return m.add(m.udiv(ticks, factor), offset_ns)
        if factor > 63:
            return offset_ns
        whole = m.lshr(ticks, factor)
        part = m.sub(ticks, whole << factor)
        if factor > 33:  # 10**9 times the rest must fit 64 bits
            part = m.lshr(part, factor - 33)
            factor = 33
        part_ns = m.lshr(m.mul(part, _SECOND_NS), factor)
        return m.add(m.add(m.mul(whole, _SECOND_NS), part_ns), offset_ns)

    return pcapng_ns


ADD_INTERFACE = Template("pcapng_interface", _interface, "i64(ptr, ptr, i64)",
                         (U16, U32, DAMAGED), inline=False)
NANOSECONDS = Template("pcapng_ns", _nanoseconds, "i64(ptr, i64)")


def _packet(m: Any) -> Callable[..., Any]:
    u16, u32, damaged = m.extern(U16), m.extern(U32), m.extern(DAMAGED)
    deliver, nanoseconds = m.extern(DELIVER), m.extern(NANOSECONDS)

    def pcapng_packet(q, batch, n, kind, body, room):  # type: ignore[no-untyped-def]
        """A packet block whose body has `room` bytes -> 1 if it was delivered."""
        swapped = m.load_u64(q, SWAPPED)
        head = 4 if kind == SIMPLE_PACKET else 20
        if room < head:
            return damaged(q, _BAD_LENGTH, room, head)
        index = 0
        if kind == ENHANCED_PACKET:
            index = u32(body, 0, swapped)
        if kind == OLD_PACKET:
            index = u16(body, 0, swapped)
        count = m.load_u64(q, INTERFACE_COUNT)
        if index >= count:
            return damaged(q, _NO_INTERFACE, index, count)
        entry = m.inside(q, INTERFACES + index * INTERFACE_BYTES)
        if m.load_u32(entry, LINK_TYPE) != _ETHERNET:
            return damaged(q, _LINK_TYPE, m.load_u32(entry, LINK_TYPE), 0)
        original = u32(body, head - 4, swapped)
        length = original
        timestamp_ns = m.load_u64(q, LAST_NS)  # a simple packet has none
        if kind == SIMPLE_PACKET:
            snap = m.load_u32(entry, SNAP)
            if snap != 0 and snap < length:
                length = snap
            length = m.smaller(length, room - head)
        else:
            length = u32(body, 12, swapped)
            ticks = m.add(u32(body, 8, swapped), m.mul(u32(body, 4, swapped), 1 << 32))
            timestamp_ns = nanoseconds(entry, ticks)
        if length > room - head:
            return damaged(q, _BAD_LENGTH, length, room - head)
        return deliver(q, batch, n, m.inside(body, head), length, original, timestamp_ns)

    return pcapng_packet


PACKET = Template("pcapng_packet", _packet, "i64(ptr, ptr, i64, i64, ptr, i64)",
                  (U16, U32, DAMAGED, DELIVER, NANOSECONDS))


def _receive_pcapng(m: Any) -> Callable[..., Any]:
    u32, damaged = m.extern(U32), m.extern(DAMAGED)
    packet, add_interface = m.extern(PACKET), m.extern(ADD_INTERFACE)

    def pcapng_receive(q, batch, budget):  # type: ignore[no-untyped-def]
        content = m.load_ptr(q, CONTENT)
        end = m.load_u64(q, CONTENT_BYTES)
        at = m.load_u64(q, CURSOR)
        if m.load_u64(q, OUT_ERRNO) != 0:
            m.store_u64(q, STOPPED, 1)
        n = 0
        while n < budget and n < BATCH_MAX and m.load_u64(q, STOPPED) == 0:
            left = end - at
            if left == 0:
                m.store_u64(q, STOPPED, 1)
                break
            if left < 12:
                damaged(q, _TRUNCATED, left, 12)
                break
            kind = u32(content, at, m.load_u64(q, SWAPPED))
            if kind == SECTION:
                m.store_u64(q, INTERFACE_COUNT, 0)
                m.store_u64(q, SWAPPED, 0)
                if m.load_u32(content, at + 8) != BYTE_ORDER_MAGIC:
                    m.store_u64(q, SWAPPED, 1)
                    if u32(content, at + 8, 1) != BYTE_ORDER_MAGIC:
                        damaged(q, _BYTE_ORDER, 0, 0)
                        break
            size = u32(content, at + 4, m.load_u64(q, SWAPPED))
            if size < 12 or (size & 3) != 0:
                damaged(q, _BAD_LENGTH, size, left)
                break
            if size > left:
                damaged(q, _TRUNCATED, left, size)
                break
            body = m.inside(content, at + 8)
            if kind == ENHANCED_PACKET or kind == SIMPLE_PACKET or kind == OLD_PACKET:
                n += packet(q, batch, n, kind, body, size - 12)
            if kind == INTERFACE:
                add_interface(q, body, size - 12)
            if m.load_u64(q, DAMAGE) == 0:
                at += size
        m.store_u64(q, CURSOR, at)
        m.store_u64(q, RECEIVED, n)
        if at == end:
            m.store_u64(q, STOPPED, 1)
        return n

    return pcapng_receive


RECEIVE_PCAP = Template("pcap_receive", _receive_pcap, RECEIVE_SIGNATURE, (U32, DAMAGED, DELIVER))
RECEIVE_PCAPNG = Template("pcapng_receive", _receive_pcapng, RECEIVE_SIGNATURE,
                          (U32, DAMAGED, PACKET, ADD_INTERFACE))
