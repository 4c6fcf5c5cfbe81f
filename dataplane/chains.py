"""Packets in several buffers in the worker's loop; only loops around xdp.frags programs have this.

Such a packet takes consecutive slots (port.py).  The program gets the first one's edges and the
others as its fragments.  What it left of the packet then goes one of two ways:

* XDP_TX: its buffers leave as they are, by the port's `chain`.
* All else that goes somewhere: the packet becomes one piece, in memory of the worker's own, and is
  disposed of as any other.  The port's buffers go back at once.

Order is kept: slots before it are disposed of first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dataplane import port, stats
from dataplane.worker_block import C_CHAIN, COUNT_UP, F_CHAINS, F_KIND, F_QUEUE, F_STATS
from xdp_runtime import state as st
from xdp_runtime.template import Template

CHAIN_BYTES = 1 << 17  # the memory where a packet becomes one piece
LEAST_BATCH = 48  # slots: no packet takes more (73,152 bytes in AF_XDP's frames of 2048)
_MOST_BYTES = CHAIN_BYTES - st.HEADROOM_BYTES - st.SHARED_INFO_BYTES
_SLOT = port.SLOT_SIZE_BYTES

# in the slots behind a packet's first, from when the program has run: DATA_META is null, and in the
# first of them:
_RECEIVED = port.VERDICT  # u32, how many there are
LEFT = port.TARGET  # u32, how many the packet still has | of how many before them it has nothing
SKIP_AT = 16

_DROP, _PASS, _TX, _REDIRECT = (int(v) for v in tuple(st.Verdict)[1:])
Factory = Callable[..., Any]


def _begin(m: Any) -> Factory:
    def chain_begin(run, slot, flow):  # type: ignore
        """Tell the program of the packet's fragments -> how many slots they take."""
        count, total = 0, 0
        if m.load_u32(flow, F_CHAINS) != 0:
            count = m.load_u32(slot, port.FRAGMENTS)
        first = m.gep(slot, _SLOT)
        for i in range(count):
            one = m.gep(first, i * _SLOT)
            total += m.diff(m.load_ptr(one, port.DATA_END), m.load_ptr(one, port.DATA))
            m.store_ptr(one, port.DATA_META, m.null())
        m.store_ptr(run, st.FRAGMENTS, first)
        m.store_u32(run, st.FRAGMENT_COUNT, count)
        m.store_u32(run, st.FRAGMENT_BYTES, total)
        return count

    return chain_begin


def _end(m: Any) -> Factory:
    def chain_end(run, slot, count):  # type: ignore
        """Note what the program has left of the `count` fragments."""
        first = m.gep(slot, _SLOT)
        skipped = m.lshr(m.diff(m.load_ptr(run, st.FRAGMENTS), first), 6)
        m.store_u32(first, _RECEIVED, count)
        m.store_u32(first, LEFT, m.load_u32(run, st.FRAGMENT_COUNT) | skipped << SKIP_AT)
        return 0

    return chain_end


BEGIN = Template("chain_begin", _begin, "i64(ptr, ptr, ptr)")
END = Template("chain_end", _end, "i64(ptr, ptr, i64)")


def _join(m: Any) -> Factory:
    def chain_join(control, slot, first, count):  # type: ignore
        """Make the packet one piece, metadata and headroom included -> 1; 0: it is too long."""
        data, meta = m.load_ptr(slot, port.DATA), m.load_ptr(slot, port.DATA_META)
        front = m.diff(data, meta)
        length = m.diff(m.load_ptr(slot, port.DATA_END), data)
        frame = m.load_ptr(control, C_CHAIN)
        start = m.gep(frame, st.HEADROOM_BYTES)
        if length > _MOST_BYTES:
            return 0
        m.copy(m.gep(start, -front), meta, front + length)
        for i in range(count):
            one = m.gep(first, i * _SLOT)
            where = m.load_ptr(one, port.DATA)
            size = m.diff(m.load_ptr(one, port.DATA_END), where)
            if length + size > _MOST_BYTES:
                return 0
            m.copy(m.gep(start, length), where, size)
            length += size
        m.store_ptr(slot, port.DATA, start)
        m.store_ptr(slot, port.DATA_META, m.gep(start, -front))
        m.store_ptr(slot, port.DATA_END, m.gep(start, length))
        m.store_ptr(slot, port.HARD_START, m.gep(frame, st.XDP_FRAME_BYTES))
        m.store_ptr(slot, port.FRAME_END, m.gep(frame, CHAIN_BYTES - st.SHARED_INFO_BYTES))
        return 1

    return chain_join


JOIN = Template("chain_join", _join, "i64(ptr, ptr, ptr, i64)", inline=False)


def _settle(m: Any, dispose: Template) -> Factory:
    count_up, join, dispose_one = m.extern(COUNT_UP), m.extern(JOIN), m.extern(dispose)
    release = m.symbol("xdpu.front.release", "i64(i64, ptr, ptr)")
    chain = m.symbol("xdpu.front.chain", "i64(i64, ptr, ptr, i64)")

    def chain_settle(control, flow, slot, hows):  # type: ignore
        """Dispose of one packet in several buffers -> how many slots it had behind its first."""
        kind, q = m.load_u32(flow, F_KIND), m.load_ptr(flow, F_QUEUE)
        first = m.gep(slot, _SLOT)
        received, left = m.load_u32(first, _RECEIVED), m.load_u32(first, LEFT)
        skipped, left = left >> SKIP_AT, left & 0xFFFF
        for i in range(received):
            if i < skipped or i >= skipped + left:  # the program cut it off
                release(kind, q, m.gep(first, i * _SLOT))
        first = m.gep(first, skipped * _SLOT)
        verdict = m.load_u32(slot, port.VERDICT)
        if left != 0 and verdict == _TX:
            length = m.diff(m.load_ptr(slot, port.DATA_END), m.load_ptr(slot, port.DATA))
            for i in range(left):
                one = m.gep(first, i * _SLOT)
                length += m.diff(m.load_ptr(one, port.DATA_END), m.load_ptr(one, port.DATA))
            head = m.gep(first, -_SLOT)
            m.move(head, slot, _SLOT)
            counters = m.load_ptr(flow, F_STATS)
            count_up(counters, stats.TX, 1)
            if chain(kind, q, head, left) == 0:
                count_up(counters, stats.TX_FULL, 1)
            else:
                count_up(counters, stats.TX_BYTES, length)
            return received
        if left != 0 and (verdict == _PASS or verdict == _REDIRECT):
            if join(control, slot, first, left) == 0:
                m.store_u32(slot, port.VERDICT, _DROP)
        for i in range(left):
            release(kind, q, m.gep(first, i * _SLOT))
        dispose_one(control, flow, slot, hows, 1)
        return received

    return chain_settle


def _dispose(m: Any, dispose: Template, settle: Template) -> Factory:
    dispose_run, settle_one = m.extern(dispose), m.extern(settle)

    def chains_dispose(control, flow, batch, hows, count):  # type: ignore
        start, i = 0, 0
        while i < count:
            slot = m.gep(batch, i * _SLOT)
            i += 1
            if i == count or not m.is_null(m.load_ptr(slot, _SLOT + port.DATA_META)):
                continue
            if i - 1 > start:
                dispose_run(control, flow, m.gep(batch, start * _SLOT), m.gep(hows, start * 8),
                            i - 1 - start)
            i += settle_one(control, flow, slot, m.gep(hows, (i - 1) * 8))
            start = i
        if i > start:
            dispose_run(control, flow, m.gep(batch, start * _SLOT), m.gep(hows, start * 8),
                        i - start)
        return 0

    return chains_dispose


def dispose(one_piece: Template) -> Template:
    """`one_piece(control, flow, batch, hows, count)` for batches with packets in several buffers.
    """
    def cold(m: Any) -> Factory:
        inlined = m.extern(one_piece)

        def dispose_run(control, flow, batch, hows, count):  # type: ignore
            return inlined(control, flow, batch, hows, count)

        return dispose_run

    signature = one_piece.signature
    run = Template("dispose_run", cold, signature, (one_piece,), inline=False)
    settle = Template("chain_settle", lambda m: _settle(m, run), "i64(ptr, ptr, ptr, ptr)",
                      (COUNT_UP, JOIN, run), inline=False)
    return Template("chains_dispose", lambda m: _dispose(m, run, settle), signature, (run, settle))
