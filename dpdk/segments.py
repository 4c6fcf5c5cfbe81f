"""Packets in several mbufs: the DPDK port's templates for xdp.frags programs.

A chain of mbufs is taken apart when it is received, a slot for each segment, and every segment is
then a whole mbuf of its own: what the program cuts off is freed like any other.  To send, what is
left is linked again.  A chain of which a segment is somebody else's is copied first.

A burst may have more segments than the batch has room for: packets that are left over wait in the
queue's memory and come first next time.  Packets from other ports that one mbuf cannot hold are
spread over several.  A device that cannot send several segments (no MULTI_SEGS) gets none: such
packets are given up, and counted as malformed.
"""

from __future__ import annotations

from typing import Any

from dataplane.port import (
    BATCH_MAX,
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
from dpdk import queue as layout
from dpdk.queue import Factory, Made
from xdp_runtime.template import Template

SEGMENTS_MAX = 40  # of a received packet; a batch has room for it


def make(plain: Made) -> PortKind:
    """The kind for the same headers as `plain`."""
    at, mark, push_template, release_template = (
        plain.at, plain.mark, plain.push, plain.kind.release)
    buf_addr, rearm, flags_at, pkt_len = at["BUF_ADDR"], at["REARM"], at["OL_FLAGS"], at["PKT_LEN"]
    data_len, buf_len, pool_at, headroom, next_at = (
        at["DATA_LEN"], at["BUF_LEN"], at["POOL"], at["HEADROOM"], at["NEXT"])
    rx_burst, rx_data = at["RX_BURST"], at["RX_DATA"]
    nb_segs = rearm + 4

    def make_receive(m: Any) -> Factory:
        def dpdk_segments_receive(q, batch, budget):  # type: ignore
            if m.call_burst(m.load_ptr(q, layout.ATTACH), q, q, 0) == 0:
                return 0
            mbufs, pool = m.inside(q, layout.RX_ARRAY), m.load_ptr(q, layout.MBUF_POOL)
            first, got = m.load_u64(q, layout.RX_FIRST), m.load_u64(q, layout.RX_END)
            if first == got:
                ops = m.load_ptr(q, layout.FP_OPS)
                queue = m.load_ptr(m.load_ptr(ops, rx_data), m.load_u64(q, layout.QUEUE_OFFSET))
                first = 0
                got = m.call_burst(m.load_ptr(ops, rx_burst), queue, mbufs, budget)
                m.store_u64(q, layout.RX_END, got)
            n = 0
            while first < got:
                where = m.inside(mbufs, first * 8)
                mbuf = m.load_ptr(where, 0)
                count = m.load_u16(mbuf, nb_segs)
                if n + count > budget and count <= SEGMENTS_MAX:
                    break
                first += 1
                count = m.call_burst(m.load_ptr(q, layout.UNSHARE), pool, where, SEGMENTS_MAX)
                if count == 0:
                    m.store_u64(q, layout.RX_UNFIT, m.load_u64(q, layout.RX_UNFIT) + 1)
                    continue
                mbuf = m.load_ptr(where, 0)
                if n + count > budget:  # its copy has more segments than it had
                    first -= 1
                    break
                m.store_u32(batch, n * SLOT_SIZE_BYTES + FRAGMENTS, count - 1)
                for _ in range(count):
                    m.store_u16(mbuf, nb_segs, 1)
                    buffer = m.load_ptr(mbuf, buf_addr)
                    data = m.inside(buffer, m.load_u16(mbuf, rearm))
                    own = m.diff(m.load_ptr(mbuf, pool_at), pool) == 0
                    slot = m.inside(batch, n * SLOT_SIZE_BYTES)
                    m.store_ptr(slot, DATA, data)
                    m.store_ptr(slot, DATA_END, m.inside(data, m.load_u16(mbuf, data_len)))
                    m.store_ptr(slot, HARD_START, m.gep(buffer, -layout.ROOM_BYTES if own else 0))
                    m.store_ptr(slot, FRAME_END, m.inside(buffer, m.load_u16(mbuf, buf_len)))
                    m.store_ptr(slot, COOKIE, mbuf)
                    following = m.load_ptr(mbuf, next_at)
                    m.store_ptr(mbuf, next_at, m.null())
                    mbuf = following
                    n += 1
            m.store_u64(q, layout.RX_FIRST, first)
            return n

        return dpdk_segments_receive

    def make_queue(m: Any) -> Factory:
        push = m.extern(push_template)

        def dpdk_queue(q, mbuf):  # type: ignore
            if m.load_u64(q, layout.TX_COUNT) == BATCH_MAX:
                push(q)
            count = m.load_u64(q, layout.TX_COUNT)
            m.store_ptr(q, layout.TX_ARRAY + count * 8, mbuf)
            m.store_u64(q, layout.TX_COUNT, count + 1)
            return 1

        return dpdk_queue

    queue_template = Template(f"dpdk_queue_{mark}", make_queue, "i64(ptr, ptr)", (push_template,))

    def make_chain(m: Any) -> Factory:
        release, queue = m.extern(release_template), m.extern(queue_template)

        def dpdk_chain(q, slot, more):  # type: ignore
            head, data = m.load_ptr(slot, COOKIE), m.load_ptr(slot, DATA)
            length = m.diff(m.load_ptr(slot, DATA_END), data)
            buffer = m.load_ptr(head, buf_addr)
            if m.diff(data, buffer) < 0 and length <= m.load_u16(head, buf_len):
                m.move(buffer, data, length)
                data = buffer
                m.store_ptr(slot, DATA, data)
                m.store_ptr(slot, DATA_END, m.gep(data, length))
                m.store_u64(q, layout.TX_MOVED, m.load_u64(q, layout.TX_MOVED) + 1)
            able = more == 0 or m.load_u64(q, layout.MULTI_SEGS) != 0
            if not able or length < layout.MIN_LENGTH_BYTES or m.diff(data, buffer) < 0:
                m.store_u64(q, layout.MALFORMED, m.load_u64(q, layout.MALFORMED) + 1)
                for i in range(more + 1):
                    release(q, m.inside(slot, i * SLOT_SIZE_BYTES))
                return 0
            total, last = 0, m.null()
            for i in range(more + 1):
                one = m.inside(slot, i * SLOT_SIZE_BYTES)
                mbuf, start = m.load_ptr(one, COOKIE), m.load_ptr(one, DATA)
                size = m.diff(m.load_ptr(one, DATA_END), start)
                m.store_u16(mbuf, rearm, m.diff(start, m.load_ptr(mbuf, buf_addr)))
                m.store_u64(mbuf, flags_at, 0)
                m.store_u16(mbuf, data_len, size)
                total += size
                if i > 0:
                    m.store_ptr(last, next_at, mbuf)
                last = mbuf
            m.store_u16(head, nb_segs, more + 1)
            m.store_u32(head, pkt_len, total)
            return queue(q, head)

        return dpdk_chain

    chain_template = Template(f"dpdk_chain_{mark}", make_chain, CHAIN_SIGNATURE,
                              (release_template, queue_template), inline=False)

    def make_send(m: Any) -> Factory:
        queue = m.extern(queue_template)
        spares = layout.SPARES

        def dpdk_segments_send(q, data, length):  # type: ignore
            spare, pool = m.load_u64(q, layout.SPARE_COUNT), m.load_ptr(q, layout.MBUF_POOL)
            room = m.load_u64(q, layout.ROOM)
            count = m.udiv(length + room - 1, room)
            most = spares if m.load_u64(q, layout.MULTI_SEGS) != 0 else 1
            if length < layout.MIN_LENGTH_BYTES or count > most:
                m.store_u64(q, layout.MALFORMED, m.load_u64(q, layout.MALFORMED) + 1)
                return 0
            if spare < count:
                if m.call_burst(m.load_ptr(q, layout.ATTACH), q, q, 0) != 0:
                    spare += m.call_burst(m.load_ptr(q, layout.TAKE), pool,
                                          m.inside(q, layout.SPARE_ARRAY + spare * 8),
                                          spares - spare)
                m.store_u64(q, layout.SPARE_COUNT, spare)
            if spare < count:
                m.store_u64(q, layout.NO_MBUF, m.load_u64(q, layout.NO_MBUF) + 1)
                return 0
            spare -= count
            m.store_u64(q, layout.SPARE_COUNT, spare)
            array = m.inside(q, layout.SPARE_ARRAY + spare * 8)
            head = m.load_ptr(array, 0)
            m.store_u32(head, pkt_len, length)
            m.store_u16(head, nb_segs, count)
            for i in range(count):
                mbuf, part = m.load_ptr(array, i * 8), m.smaller(length, room)
                m.copy(m.inside(m.load_ptr(mbuf, buf_addr), headroom), data, part)
                m.store_u16(mbuf, data_len, part)
                if i + 1 < count:
                    m.store_ptr(mbuf, next_at, m.load_ptr(array, (i + 1) * 8))
                data = m.gep(data, part)
                length -= part
            return queue(q, head)

        return dpdk_segments_send

    send_template = Template(f"dpdk_segments_send_{mark}", make_send, SEND_SIGNATURE,
                             (queue_template,), inline=False)

    def make_transmit(m: Any) -> Factory:
        chain, send, release = (m.extern(chain_template), m.extern(send_template),
                                m.extern(release_template))

        def dpdk_segments_transmit(q, slot):  # type: ignore
            data, mbuf = m.load_ptr(slot, DATA), m.load_ptr(slot, COOKIE)
            offset = m.diff(data, m.load_ptr(mbuf, buf_addr))
            if offset >= -layout.PRIVATE_BYTES and offset < m.load_u16(mbuf, buf_len):
                return chain(q, slot, 0)
            done = send(q, data, m.diff(m.load_ptr(slot, DATA_END), data))
            release(q, slot)
            return done

        return dpdk_segments_transmit

    return PortKind(
        "dpdk_segments",
        receive=Template(f"dpdk_segments_receive_{mark}", make_receive, RECEIVE_SIGNATURE),
        release=release_template,
        transmit=Template(f"dpdk_segments_transmit_{mark}", make_transmit, TRANSMIT_SIGNATURE,
                          (chain_template, send_template, release_template)),
        send=send_template,
        flush=plain.kind.flush,
        chain=chain_template,
        losses=layout.LOSSES,
    )
