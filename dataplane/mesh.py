"""Rings from each worker to each: where a CPUMAP's redirects go.  Number of an entry = worker.

    ring (from, to)  {u64 tail, by the producer} {u64 head, by the consumer} {what the producer
                     knows} and descriptors; 16384 of them, the longest queue a CPUMAP may ask for
    pool (from)      frames, and a stack of those that are free

One worker writes a ring and one reads it, so that there is nothing to lock, and no cache line is
written by two.  A packet is copied into a frame of the sender's own pool: frames of a port go back
to their port at once, whoever is slow.  There is no return ring: behind the consumer's head a
descriptor is done with, and the producer takes its frame back from there.  The frame given back
last is used next, so what is touched is as much as was ever queued.

The length of a queue is that of the entry, for each sender: what finds it full is lost and counted.
What was queued is published at the end of a batch; a receiver that sleeps is woken by its eventfd.
What becomes of packets on the other side says inbox.py.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from typing import Any

from dataplane import port, stats
from dataplane.block import Block
from dataplane.worker_block import (
    C_BUSY,
    C_DONE,
    C_EVENT,
    C_INBOX,
    C_OUTBOX,
    C_PEERS,
    C_POLLFDS,
    C_POOL,
    C_QUEUED,
    C_SLEEPING,
    C_WORKERS,
    COUNT_UP,
    F_IFINDEX,
    F_STATS,
)
from xdp_runtime import state as st
from xdp_runtime.maps.dev import QUEUE_MAX
from xdp_runtime.template import Template

FRAME_BYTES = 4096  # as in the kernel: a packet and its headroom are a page at most
TAILROOM = 320  # struct skb_shared_info

# a ring: byte offsets; each of these begins a cache line
TAIL, HEAD, _MINE = 0, 64, 128
_PUBLISHED, _SEEN, _RECLAIMED = _MINE + 8, _MINE + 16, _MINE + 24  # the producer's own
DESCS = 256
# a descriptor: u32 frame, u32 data, u32 length, u32 metadata's length, u32 interface, u32 program,
# u64 timestamp; data is an offset in the frame
FRAME, DATA, LENGTH, META, INGRESS, PROGRAM, TIME = 0, 4, 8, 12, 16, 20, 24
DESC_BYTES = 32
RING_BYTES = DESCS + DESC_BYTES * QUEUE_MAX
# a pool
_FREE, _FRESH = 0, 8  # frames on the stack; frames ever used
_STACK = 64
FRAMES = 1 << 17  # where they begin: behind a stack of
POOL_FRAMES = 16384
POOL_BYTES = FRAMES + FRAME_BYTES * POOL_FRAMES

Factory = Callable[..., Any]


def _reclaim(m: Any) -> Factory:
    def mesh_reclaim(ring, pool):  # type: ignore
        """Take back the frames of what the consumer is done with."""
        head = m.acquire_u64(ring, HEAD)
        at, free = m.load_u64(ring, _RECLAIMED), m.load_u64(pool, _FREE)
        while at < head:
            desc = m.inside(ring, DESCS + (at & (QUEUE_MAX - 1)) * DESC_BYTES)
            m.store_u32(pool, _STACK + free * 4, m.load_u32(desc, FRAME))
            free += 1
            at += 1
        m.store_u64(pool, _FREE, free)
        m.store_u64(ring, _RECLAIMED, at)
        m.store_u64(ring, _SEEN, head)
        return head

    return mesh_reclaim


RECLAIM = Template("mesh_reclaim", _reclaim, "i64(ptr, ptr)", inline=False)


def _take(m: Any) -> Factory:
    reclaim = m.extern(RECLAIM)

    def mesh_take(control):  # type: ignore
        """A free frame's number, or -1."""
        pool = m.load_ptr(control, C_POOL)
        free = m.load_u64(pool, _FREE)
        if free == 0:
            fresh = m.load_u64(pool, _FRESH)
            if fresh < POOL_FRAMES:
                m.store_u64(pool, _FRESH, fresh + 1)
                return fresh
            out = m.load_ptr(control, C_OUTBOX)
            for to in range(m.load_u32(control, C_WORKERS)):
                reclaim(m.load_ptr(out, to * 8), pool)
            free = m.load_u64(pool, _FREE)
            if free == 0:
                return -1
        m.store_u64(pool, _FREE, free - 1)
        return m.load_u32(pool, _STACK + (free - 1) * 4)

    return mesh_take


TAKE = Template("mesh_take", _take, "i64(ptr)", (RECLAIM,), inline=False)


def _hand_over(m: Any) -> Factory:
    count_up, reclaim, take = m.extern(COUNT_UP), m.extern(RECLAIM), m.extern(TAKE)

    def hand_over(control, flow, slot, how):  # type: ignore
        """A copy of the packet into the ring to worker TARGET, or lost and counted."""
        counters = m.load_ptr(flow, F_STATS)
        to = m.load_u32(slot, port.TARGET)
        if m.is_null(m.load_ptr(control, C_OUTBOX)) or to >= m.load_u32(control, C_WORKERS):
            count_up(counters, stats.CPU_NO_WORKER, 1)
            return 0
        ring = m.load_ptr(m.load_ptr(control, C_OUTBOX), to * 8)
        mine, most = m.load_u64(ring, _MINE), how >> st.HOW_QUEUE
        low, meta = m.load_ptr(slot, port.HARD_START), m.load_ptr(slot, port.DATA_META)
        data, end = m.load_ptr(slot, port.DATA), m.load_ptr(slot, port.DATA_END)
        room = FRAME_BYTES - st.XDP_FRAME_BYTES - TAILROOM
        lost = m.diff(end, low) > room
        if not lost and mine - m.load_u64(ring, _SEEN) >= most:
            lost = mine - reclaim(ring, m.load_ptr(control, C_POOL)) >= most
        number = -1
        if not lost:
            number = take(control)
        if number < 0:
            count_up(counters, stats.CPU_FULL, 1)
            return 0
        frame = m.gep(m.load_ptr(control, C_POOL), FRAMES + number * FRAME_BYTES
                      + st.XDP_FRAME_BYTES)
        m.copy(m.gep(frame, m.diff(meta, low)), meta, m.diff(end, meta))
        desc = m.inside(ring, DESCS + (mine & (QUEUE_MAX - 1)) * DESC_BYTES)
        m.store_u32(desc, FRAME, number)
        m.store_u32(desc, DATA, m.diff(data, low))
        m.store_u32(desc, LENGTH, m.diff(end, data))
        m.store_u32(desc, META, m.diff(data, meta))
        m.store_u32(desc, INGRESS, m.load_u32(flow, F_IFINDEX))
        m.store_u32(desc, PROGRAM, (how >> st.HOW_PROGRAM) & st.HOW_PROGRAM_MASK)
        m.store_u64(ring, _MINE, mine + 1)
        m.store_u32(control, C_QUEUED, 1)
        count_up(counters, stats.CPU_SENT, 1)
        return 1

    return hand_over


HAND_OVER = Template("hand_over", _hand_over, "i64(ptr, ptr, ptr, i64)",
                     (COUNT_UP, RECLAIM, TAKE), inline=False)


def _publish(m: Any) -> Factory:
    reclaim = m.extern(RECLAIM)

    def mesh_publish(control):  # type: ignore
        """Let the others see what was queued for them, and wake who sleeps."""
        m.store_u32(control, C_QUEUED, 0)
        out, peers = m.load_ptr(control, C_OUTBOX), m.load_ptr(control, C_PEERS)
        for to in range(m.load_u32(control, C_WORKERS)):
            ring = m.load_ptr(out, to * 8)
            mine = m.load_u64(ring, _MINE)
            if mine != m.load_u64(ring, _PUBLISHED):
                m.release_u64(ring, TAIL, mine)
                m.store_u64(ring, _PUBLISHED, mine)
                reclaim(ring, m.load_ptr(control, C_POOL))
                peer = m.load_ptr(peers, to * 8)
                m.fence()
                if m.relaxed_u32(peer, C_SLEEPING) != 0:
                    one = m.gep(m.alloca(8), 0)
                    m.store_u64(one, 0, 1)
                    m.c_write(m.load_u32(peer, C_EVENT), one, 8)
        return 0

    return mesh_publish


PUBLISH = Template("mesh_publish", _publish, "i64(ptr)", (RECLAIM,), inline=False)


def _waits(m: Any) -> Factory:
    def mesh_waits(control):  # type: ignore
        """1: something is in this worker's rings."""
        inbox = m.load_ptr(control, C_INBOX)
        for source in range(m.load_u32(control, C_WORKERS)):
            ring = m.load_ptr(inbox, source * 8)
            if m.acquire_u64(ring, TAIL) != m.acquire_u64(ring, HEAD):
                return 1
        return 0

    return mesh_waits


WAITS = Template("mesh_waits", _waits, "i64(ptr)")


def _lie_down(m: Any) -> Factory:
    waits = m.extern(WAITS)

    def mesh_lie_down(control):  # type: ignore
        """Before this worker sleeps -> 1; 0: it must not, something has come."""
        if m.is_null(m.load_ptr(control, C_INBOX)):
            return 1
        m.release_u32(control, C_SLEEPING, 1)
        m.fence()
        return 1 - waits(control)

    return mesh_lie_down


def _get_up(m: Any) -> Factory:
    def mesh_get_up(control):  # type: ignore
        if m.is_null(m.load_ptr(control, C_INBOX)):
            return 0
        m.release_u32(control, C_SLEEPING, 0)
        if m.load_u16(m.load_ptr(control, C_POLLFDS), 6) != 0:  # revents of the eventfd
            m.c_read(m.load_u32(control, C_EVENT), m.gep(m.alloca(8), 0), 8)
        return 0

    return mesh_get_up


LIE_DOWN = Template("mesh_lie_down", _lie_down, "i64(ptr)", (WAITS,), inline=False)
GET_UP = Template("mesh_get_up", _get_up, "i64(ptr)", inline=False)


def _all_done(m: Any) -> Factory:
    waits = m.extern(WAITS)

    def mesh_all_done(control):  # type: ignore
        """1: no worker has anything to do, nor can any of them give another something."""
        if m.is_null(m.load_ptr(control, C_INBOX)):
            return 1
        m.release_u32(control, C_DONE, 1)
        peers, count = m.load_ptr(control, C_PEERS), m.load_u32(control, C_WORKERS)
        before = after = 0
        for one in range(count):
            before += m.acquire_u64(m.load_ptr(peers, one * 8), C_BUSY)
        m.fence()
        for one in range(count):
            peer = m.load_ptr(peers, one * 8)
            if m.acquire_u32(peer, C_DONE) == 0 or waits(peer) != 0:
                return 0
        m.fence()
        for one in range(count):
            after += m.acquire_u64(m.load_ptr(peers, one * 8), C_BUSY)
        return 1 if before == after else 0

    return mesh_all_done


ALL_DONE = Template("mesh_all_done", _all_done, "i64(ptr)", (WAITS,), inline=False)


class Mesh:
    """The memory of all rings and pools; `tables(worker)` says what its control block points to."""

    def __init__(self, controls: Sequence[int]) -> None:
        count = len(controls)
        self._rings = [[_sparse(RING_BYTES) for _ in range(count)] for _ in range(count)]
        self._pools = [_sparse(POOL_BYTES) for _ in range(count)]
        self._tables = Block(8 * count * (1 + 2 * count))
        for number, control in enumerate(controls):
            self._tables.set(8 * number, control)
        for one in range(count):
            for other in range(count):
                self._tables.set(8 * (count * (1 + 2 * one) + other),
                                 self._rings[one][other].address)
                self._tables.set(8 * (count * (2 + 2 * one) + other),
                                 self._rings[other][one].address)

    def pointers(self, worker: int) -> dict[int, int]:
        """Of a worker's control block: offset -> address.  C_INBOX and C_OUTBOX are to be last."""
        count, base = len(self._pools), self._tables.address
        return {C_PEERS: base, C_POOL: self._pools[worker].address,
                C_OUTBOX: base + 8 * count * (1 + 2 * worker),
                C_INBOX: base + 8 * count * (2 + 2 * worker)}

    def waiting(self, to: int) -> int:
        """Packets that a worker has not taken out of its rings yet."""
        return sum(row[to].get(TAIL) - row[to].get(HEAD) for row in self._rings)

    def close(self) -> None:
        """The workers must have stopped."""
        for block in (*self._pools, *(ring for row in self._rings for ring in row), self._tables):
            block.close()


_MAP_NORESERVE = 0x4000  # memory that is never touched is never asked for


def _sparse(size_bytes: int) -> Block:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    return Block(size_bytes, mmap.mmap(-1, size_bytes, flags=flags))
