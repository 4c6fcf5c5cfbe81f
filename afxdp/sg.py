"""Packets in several frames: the templates of a socket bound with XDP_USE_SG.

A packet that a frame cannot hold comes as several descriptors, all but the last with PKT_CONTD in
their options, published together.  They become consecutive slots of the batch, and never of two:
what the batch has no room for stays in the ring.  Sending is the same the other way round; the
kernel takes at most DESCRIPTORS_MAX for a packet.  In copy mode it puts XDP_PACKET_HEADROOM in
front of each piece, though only a packet's first may grow there.

What rings.py says of frames holds for each of them.
"""

from __future__ import annotations

from typing import Any

from afxdp.rings import (
    ADDRESS_MASK,
    ARRAY,
    CHUNK_MASK,
    CONSUMER,
    COPY_AT,
    DESC_BYTES,
    FLUSH,
    FRAME_SIZE,
    FREE,
    IDLE,
    LOSSES,
    MALFORMED,
    MASK,
    MIN_LENGTH_BYTES,
    MINE,
    NO_FRAME,
    OFFSET_BITS_AT,
    OFFSET_SHIFT,
    POOL,
    PRODUCER,
    PUSH,
    RELEASE,
    RX,
    SEEN,
    STACK,
    TAIL,
    TX,
    TX_FULL,
    UMEM,
    Factory,
)
from dataplane.port import (
    CHAIN_SIGNATURE,
    COOKIE,
    DATA,
    DATA_END,
    FRAGMENTS,
    FRAME_END,
    HARD_START,
    RECEIVE_SIGNATURE,
    SEND_SIGNATURE,
    SLOT_SIZE_BYTES,
    TRANSMIT_SIGNATURE,
    PortKind,
)
from xdp_runtime.state import FRAGMENTS_MAX, XDP_FRAME_BYTES
from xdp_runtime.template import Template

PKT_CONTD = 1  # XDP_PKT_CONTD: the packet goes on in the next descriptor
DESCRIPTORS_MAX = FRAGMENTS_MAX + 1
_U32 = 0xFFFFFFFF


def _receive(m: Any) -> Factory:
    idle = m.extern(IDLE)

    def afxdp_sg_receive(q, batch, budget):  # type: ignore
        mine = m.load_u64(q, RX + MINE)
        seen = m.load_u64(q, RX + SEEN)
        if seen - mine < budget:
            produced = m.acquire_u32(m.load_ptr(q, RX + PRODUCER), 0)
            seen = mine + (m.sub(produced, mine) & _U32)
            m.store_u64(q, RX + SEEN, seen)
        n = budget if seen - mine > budget else seen - mine
        ring, mask = m.load_ptr(q, RX + ARRAY), m.load_u64(q, RX + MASK)
        umem, tail = m.load_ptr(q, UMEM), m.load_u64(q, TAIL)
        chunks = m.load_u64(q, CHUNK_MASK)
        head = 0  # the slot where the packet at hand begins
        for i in range(n):
            desc = m.inside(ring, ((mine + i) & mask) * DESC_BYTES)
            address, length = m.load_u64(desc, 0), m.load_u64(desc, 8)
            chunk = address & chunks
            address = (address & ADDRESS_MASK) + m.lshr(address, OFFSET_BITS_AT)
            end = address + (length & _U32)
            slot = m.inside(batch, i * SLOT_SIZE_BYTES)
            m.store_ptr(slot, DATA, m.inside(umem, address))
            m.store_ptr(slot, DATA_END, m.inside(umem, end))
            m.store_ptr(slot, HARD_START, m.inside(umem, chunk + XDP_FRAME_BYTES))
            room = chunk + tail if chunk + tail > end else end
            m.store_ptr(slot, FRAME_END, m.inside(umem, room))
            m.store_u64(slot, COOKIE, chunk)
            if m.lshr(length, 32) & PKT_CONTD == 0:
                m.store_u32(batch, head * SLOT_SIZE_BYTES + FRAGMENTS, i - head)
                head = i + 1
        if head == 0:
            return idle(q)
        m.store_u64(q, RX + MINE, mine + head)
        m.release_u32(m.load_ptr(q, RX + CONSUMER), 0, mine + head)
        return head

    return afxdp_sg_receive


def _room_for(m: Any) -> Factory:
    push = m.extern(PUSH)

    def afxdp_room_for(q, count):  # type: ignore
        """Has the TX ring room for so many?  It may have to be looked at, or the kernel woken."""
        tx, size = m.load_u64(q, TX + MINE), m.load_u64(q, TX + MASK) + 1
        if m.load_u64(q, TX + SEEN) - tx >= count:
            return 1
        for attempt in range(2):
            if attempt == 1:
                push(q)
            consumed = m.acquire_u32(m.load_ptr(q, TX + CONSUMER), 0)
            may_produce = tx - (m.sub(tx, consumed) & _U32) + size
            m.store_u64(q, TX + SEEN, may_produce)
            if may_produce - tx >= count:
                return 1
        m.store_u64(q, TX_FULL, m.load_u64(q, TX_FULL) + 1)
        return 0

    return afxdp_room_for


ROOM_FOR = Template("afxdp_room_for", _room_for, "i64(ptr, i64)", (PUSH,), inline=False)


def _give(m: Any) -> Factory:
    def afxdp_give(q, slot):  # type: ignore
        """The slot's frame to the pool."""
        pool = m.load_ptr(q, POOL)
        free = m.load_u64(pool, FREE)
        m.store_u64(m.load_ptr(pool, STACK), free * 8, m.load_u64(slot, COOKIE))
        m.store_u64(pool, FREE, free + 1)
        return 0

    return afxdp_give


GIVE = Template("afxdp_give", _give, "i64(ptr, ptr)")


def _chain(m: Any) -> Factory:
    room_for, give = m.extern(ROOM_FOR), m.extern(GIVE)

    def afxdp_chain(q, slot, more):  # type: ignore
        count, umem = more + 1, m.load_ptr(q, UMEM)
        size, shift = m.load_u64(q, FRAME_SIZE), m.load_u64(q, OFFSET_SHIFT)
        fits = count <= DESCRIPTORS_MAX
        for i in range(count):
            one = m.inside(slot, i * SLOT_SIZE_BYTES)
            data = m.load_ptr(one, DATA)
            length = m.diff(m.load_ptr(one, DATA_END), data)
            least = MIN_LENGTH_BYTES if i == 0 else 1
            offset = m.diff(data, umem) - m.load_u64(one, COOKIE)
            fits = fits and length >= least and length <= size - offset
        if not fits or room_for(q, count) == 0:
            if not fits:
                m.store_u64(q, MALFORMED, m.load_u64(q, MALFORMED) + 1)
            for i in range(count):
                give(q, m.inside(slot, i * SLOT_SIZE_BYTES))
            return 0
        tx, mask = m.load_u64(q, TX + MINE), m.load_u64(q, TX + MASK)
        for i in range(count):
            one = m.inside(slot, i * SLOT_SIZE_BYTES)
            data, chunk = m.load_ptr(one, DATA), m.load_u64(one, COOKIE)
            length = m.diff(m.load_ptr(one, DATA_END), data)
            desc = m.inside(m.load_ptr(q, TX + ARRAY), ((tx + i) & mask) * DESC_BYTES)
            m.store_u64(desc, 0, chunk + ((m.diff(data, umem) - chunk) << shift))
            m.store_u32(desc, 8, length)
            m.store_u32(desc, 12, PKT_CONTD if i < more else 0)
        m.store_u64(q, TX + MINE, tx + count)
        return 1

    return afxdp_chain


CHAIN = Template("afxdp_chain", _chain, CHAIN_SIGNATURE, (ROOM_FOR, GIVE), inline=False)


def _send(m: Any) -> Factory:
    room_for, push = m.extern(ROOM_FOR), m.extern(PUSH)

    def afxdp_sg_send(q, data, length):  # type: ignore
        at = m.load_u64(q, COPY_AT)  # of each piece: the kernel wants the room in front of all
        size = m.load_u64(q, FRAME_SIZE) - at
        count = m.udiv(length + size - 1, size)
        if not (m.ule(MIN_LENGTH_BYTES, length) and m.ule(count, DESCRIPTORS_MAX)):
            m.store_u64(q, MALFORMED, m.load_u64(q, MALFORMED) + 1)
            return 0
        if room_for(q, count) == 0:
            return 0
        pool, umem = m.load_ptr(q, POOL), m.load_ptr(q, UMEM)
        if m.load_u64(pool, FREE) < count:
            push(q)
        free = m.load_u64(pool, FREE)
        if free < count:
            m.store_u64(q, NO_FRAME, m.load_u64(q, NO_FRAME) + 1)
            return 0
        m.store_u64(pool, FREE, free - count)
        tx, mask = m.load_u64(q, TX + MINE), m.load_u64(q, TX + MASK)
        for i in range(count):
            chunk = m.load_u64(m.load_ptr(pool, STACK), (free - 1 - i) * 8)
            part = m.smaller(length, size)
            m.copy(m.inside(umem, chunk + at), data, part)
            desc = m.inside(m.load_ptr(q, TX + ARRAY), ((tx + i) & mask) * DESC_BYTES)
            m.store_u64(desc, 0, chunk + (at << m.load_u64(q, OFFSET_SHIFT)))
            m.store_u32(desc, 8, part)
            data = m.gep(data, part)
            length -= part
            m.store_u32(desc, 12, PKT_CONTD if length > 0 else 0)
        m.store_u64(q, TX + MINE, tx + count)
        return 1

    return afxdp_sg_send


SEND = Template("afxdp_sg_send", _send, SEND_SIGNATURE, (ROOM_FOR, PUSH), inline=False)


def _transmit(m: Any) -> Factory:
    chain, send, give = m.extern(CHAIN), m.extern(SEND), m.extern(GIVE)

    def afxdp_sg_transmit(q, slot):  # type: ignore
        data = m.load_ptr(slot, DATA)
        offset = m.diff(data, m.load_ptr(q, UMEM)) - m.load_u64(slot, COOKIE)
        if m.ult(offset, m.load_u64(q, FRAME_SIZE)):
            return chain(q, slot, 0)
        done = send(q, data, m.diff(m.load_ptr(slot, DATA_END), data))
        give(q, slot)
        return done

    return afxdp_sg_transmit


AFXDP_SG = PortKind(
    "afxdp_sg",
    receive=Template("afxdp_sg_receive", _receive, RECEIVE_SIGNATURE, (IDLE,)),
    release=RELEASE,
    transmit=Template("afxdp_sg_transmit", _transmit, TRANSMIT_SIGNATURE, (CHAIN, SEND, GIVE)),
    send=SEND,
    flush=FLUSH,
    chain=CHAIN,
    losses=LOSSES,
)
