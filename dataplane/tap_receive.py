"""What a TAP gives, as packets of the wire: large ones are cut, and unfinished checksums finished.

With its offloads on, the stack hands over TCP in packets of up to 64 KiB (TSO), and all checksums
unfinished; a virtio_net_hdr in front says so.  One read(2) then brings some 45 packets, which is
what a TAP's speed is about.  Such a packet is read into memory of the queue and cut into the slots
of the batch; what finds no slot is there for the next `receive`, before anything else is read, so
the order stays.  From here on there are only packets no longer than the MTU (the stack says how
much TCP payload each may have), and only these are counted.

The cut packets are what the kernel's own segmentation makes (net/ipv4/tcp_offload.c): the IPv4
identification counts up, FIN and PSH are in the last, CWR in the first.  The checksum's field has
the sum of the large packet's pseudo-header, of which only the length changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dataplane.block import SKB_SHARED_INFO_BYTES
from dataplane.checksum import COMPLETE, IPV4, IPV6, QINQ, VLAN
from dataplane.port import (
    BATCH_MAX,
    COOKIE,
    DATA,
    DATA_END,
    FRAME_END,
    HARD_START,
    RECEIVE_SIGNATURE,
    SLOT_SIZE_BYTES,
)
from xdp_runtime.state import HEADROOM_BYTES, XDP_FRAME_BYTES
from xdp_runtime.template import Template

# a queue's memory
FD, HEADER_BYTES, FRAMES, FRAME_SIZE, LONGEST = 0, 8, 16, 24, 32
TX_FAILED, TX_ERRNO, RX_TOO_LONG, TX_PARTIAL = 40, 48, 56, 64  # counters, the last errno
RX_INVALID, RX_LARGE = 72, 80  # counters
LARGE = 88  # memory of LARGE_BYTES, if the device has offloads, else 0
_NEXT, _END = 96, 104  # the part of the packet there that is not yet delivered; equal: nothing
_PAYLOAD, _STEP = 112, 120  # where TCP's payload begins, and how much of it each packet gets
_NETWORK, _TRANSPORT = 128, 136  # where the IP and the TCP header begin
QUEUE_BYTES = 192
LARGE_BYTES = 1 << 17  # a vnet header, Ethernet with two tags, IPv6 and 65535 bytes, and to spare

# struct virtio_net_hdr: u8 flags, u8 gso_type, u16 hdr_len, gso_size, csum_start, csum_offset
NEEDS_CSUM, CSUM_START, CSUM_OFFSET = 1, 6, 8
_GSO_TYPE, _GSO_SIZE = 1, 4
_TCPV4, _TCPV6, _ECN = 1, 4, 0x80
_TCP_FIELD, _FIN_PSH, _CWR = 16, 0x09, 0x80


def _place(m: Any) -> Callable[..., Any]:
    def tap_place(q, batch, n, length):  # type: ignore[no-untyped-def]
        """Slot n of the batch is a packet of this length in frame n, whose data is returned."""
        size = m.load_u64(q, FRAME_SIZE)
        frame = m.inside(m.load_ptr(q, FRAMES), n * size)
        data = m.inside(frame, HEADROOM_BYTES)
        slot = m.inside(batch, n * SLOT_SIZE_BYTES)
        m.store_ptr(slot, DATA, data)
        m.store_ptr(slot, DATA_END, m.inside(data, length))
        m.store_ptr(slot, HARD_START, m.inside(frame, XDP_FRAME_BYTES))
        m.store_ptr(slot, FRAME_END, m.inside(frame, size - SKB_SHARED_INFO_BYTES))
        m.store_u64(slot, COOKIE, n)
        return data

    return tap_place


PLACE = Template("tap_place", _place, "ptr(ptr, ptr, i64, i64)")


def _examine(m: Any) -> Callable[..., Any]:
    def tap_examine(q, header, data, length):  # type: ignore[no-untyped-def]
        """Say in the queue's memory how a large packet is to be cut -> how many it makes, or 0 if
        it is not what its header says: any process may write one (PACKET_VNET_HDR)."""
        kind = m.load_u8(header, _GSO_TYPE) & ~_ECN
        step = m.load_u16(header, _GSO_SIZE)
        transport = m.load_u16(header, CSUM_START)
        network = 14
        if m.load_u8(header, 0) & NEEDS_CSUM == 0 or step == 0 or \
                m.load_u16(header, CSUM_OFFSET) != _TCP_FIELD or \
                transport + 20 > length or length - transport > 0xFFFF:
            return 0
        protocol = m.swap16(m.load_u16(data, 12))
        while (protocol == VLAN or protocol == QINQ) and network < 22:
            protocol = m.swap16(m.load_u16(data, network + 2))
            network += 4
        ip_bytes = transport - network
        if kind == _TCPV4:
            first = m.load_u8(data, network)
            if protocol != IPV4 or ip_bytes < 20 or first != (0x40 | ip_bytes >> 2) or \
                    ip_bytes & 3 != 0:
                return 0
        elif kind != _TCPV6 or protocol != IPV6 or ip_bytes < 40:
            return 0
        tcp_bytes = m.load_u8(data, transport + 12) >> 4 << 2
        payload = transport + tcp_bytes
        if tcp_bytes < 20 or payload >= length:
            return 0
        m.store_u64(q, _NEXT, payload)
        m.store_u64(q, _END, length)
        m.store_u64(q, _PAYLOAD, payload)
        m.store_u64(q, _STEP, step)
        m.store_u64(q, _NETWORK, network)
        m.store_u64(q, _TRANSPORT, transport)
        return m.udiv(length - payload + step - 1, step)

    return tap_examine


EXAMINE = Template("tap_examine", _examine, "i64(ptr, ptr, ptr, i64)", inline=False)


def _cut(m: Any) -> Callable[..., Any]:
    place, complete = m.extern(PLACE), m.extern(COMPLETE)

    def tap_cut(q, whole, batch, n):  # type: ignore[no-untyped-def]
        """The next packet of the large one goes into slot n."""
        at, end = m.load_u64(q, _NEXT), m.load_u64(q, _END)
        payload, step = m.load_u64(q, _PAYLOAD), m.load_u64(q, _STEP)
        network, transport = m.load_u64(q, _NETWORK), m.load_u64(q, _TRANSPORT)
        part = m.smaller(step, end - at)
        length = payload + part
        data = place(q, batch, n, length)
        m.copy(data, whole, payload)
        m.copy(m.inside(data, payload), m.inside(whole, at), part)
        m.store_u64(q, _NEXT, at + part)

        ip = m.inside(data, network)
        if m.load_u8(ip, 0) >> 4 == 4:
            number = m.swap16(m.load_u16(ip, 4)) + m.udiv(at - payload, step)
            m.store_u16(ip, 2, m.swap16(length - network))
            m.store_u16(ip, 4, m.swap16(number & 0xFFFF))
            m.store_u16(ip, 10, 0)
            complete(ip, transport - network, 10)
        else:
            m.store_u16(ip, 4, m.swap16(length - network - 40))

        tcp = m.inside(data, transport)
        m.store_u32(tcp, 4, m.swap32((m.swap32(m.load_u32(tcp, 4)) + at - payload) & 0xFFFFFFFF))
        flags = m.load_u8(tcp, 13)
        if at + part < end:
            flags = flags & ~_FIN_PSH
        if at > payload:
            flags = flags & ~_CWR
        m.store_u8(tcp, 13, flags)
        total = m.load_u16(tcp, _TCP_FIELD) + m.swap16(length - transport)
        total += m.swap16(end - transport) ^ 0xFFFF
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        m.store_u16(tcp, _TCP_FIELD, total)
        return complete(data, length, transport << 16 | _TCP_FIELD)

    return tap_cut


CUT = Template("tap_cut", _cut, "i64(ptr, ptr, ptr, i64)", (PLACE, COMPLETE), inline=False)


def _receive_large(m: Any) -> Callable[..., Any]:
    place, complete, examine, cut = (m.extern(PLACE), m.extern(COMPLETE), m.extern(EXAMINE),
                                     m.extern(CUT))

    def tap_receive_large(q, batch, budget):  # type: ignore[no-untyped-def]
        fd = m.load_u64(q, FD)
        header = m.load_ptr(q, LARGE)
        header_bytes = m.load_u64(q, HEADER_BYTES)
        whole = m.inside(header, header_bytes)
        longest = m.load_u64(q, LONGEST)
        most = m.smaller(budget, BATCH_MAX)
        n = 0
        tries = 0
        while n < most:
            if m.load_u64(q, _NEXT) < m.load_u64(q, _END):
                cut(q, whole, batch, n)
                n += 1
                continue
            if tries == most:
                break
            tries += 1
            got = m.c_read(fd, header, LARGE_BYTES)
            if got < 0:
                break
            length = got - header_bytes
            if m.load_u8(header, _GSO_TYPE) != 0:
                packets = examine(q, header, whole, length)
                if packets == 0:
                    m.store_u64(q, RX_INVALID, m.load_u64(q, RX_INVALID) + 1)
                elif m.smaller(length, m.load_u64(q, _PAYLOAD) + m.load_u64(q, _STEP)) > longest:
                    m.store_u64(q, RX_TOO_LONG, m.load_u64(q, RX_TOO_LONG) + packets)
                    m.store_u64(q, _NEXT, length)
                else:
                    m.store_u64(q, RX_LARGE, m.load_u64(q, RX_LARGE) + 1)
                continue
            if length > longest:
                m.store_u64(q, RX_TOO_LONG, m.load_u64(q, RX_TOO_LONG) + 1)
                continue
            data = place(q, batch, n, length)
            m.copy(data, whole, length)
            if m.load_u8(header, 0) & NEEDS_CSUM != 0:
                start, offset = m.load_u16(header, CSUM_START), m.load_u16(header, CSUM_OFFSET)
                if start + offset + 2 > length:
                    m.store_u64(q, RX_INVALID, m.load_u64(q, RX_INVALID) + 1)
                    continue
                complete(data, length, start << 16 | offset)
            n += 1
        return n

    return tap_receive_large


RECEIVE_LARGE = Template("tap_receive_large", _receive_large, RECEIVE_SIGNATURE,
                         (PLACE, COMPLETE, EXAMINE, CUT), inline=False)


def _receive(m: Any) -> Callable[..., Any]:
    place, receive_large = m.extern(PLACE), m.extern(RECEIVE_LARGE)

    def tap_receive(q, batch, budget):  # type: ignore[no-untyped-def]
        if m.load_u64(q, LARGE) != 0:
            return receive_large(q, batch, budget)
        fd = m.load_u64(q, FD)
        header = m.load_u64(q, HEADER_BYTES)
        size = m.load_u64(q, FRAME_SIZE)
        longest = m.load_u64(q, LONGEST)
        n = 0
        tries = 0
        while n < budget and n < BATCH_MAX and tries < budget:
            tries += 1
            frame = m.inside(m.load_ptr(q, FRAMES), n * size)
            # one byte more than is allowed shows that a frame is longer, for read(2) just cuts it
            got = m.c_read(fd, m.inside(frame, HEADROOM_BYTES - header), header + longest + 1)
            if got < 0:
                break
            length = got - header
            if length > longest:
                m.store_u64(q, RX_TOO_LONG, m.load_u64(q, RX_TOO_LONG) + 1)
                continue
            place(q, batch, n, length)
            n += 1
        return n

    return tap_receive


RECEIVE = Template("tap_receive", _receive, RECEIVE_SIGNATURE, (PLACE, RECEIVE_LARGE))
