"""Pools: what of a region of equal elements is unused, and when it may be used again.

A freed element may still be in use by a program that found it in the same batch.  So a map has an
epoch, and a line for each worker: at the start of a batch the worker writes the epoch there, at its
end 0 (`enter`, `leave`; the worker's memory has a list of the lines it must write).  The epoch may
advance when no line has an older one.  What was freed two epochs ago nobody can hold.  That is what
K. Fraser calls epoch-based reclamation; writers do it when they need an element, under the lock.

Unused elements wait in one queue, in the order in which they were freed: ripe ones, those of the
last epoch (limbo), those of this epoch (young).  Who takes an element takes a ripe one, else one
that was never used.  A map has `spare` elements more than entries.  When only a quarter of these
is left, writers whose own batch does not hold the epoch back wait for those whose batch does, up
to half a second.  When none is left, what only the writer's own batch may hold is reused, as the
kernel always does it, and counted (`EARLY`); what another's may hold never is: the update fails
(-ENOMEM, as the kernel's where it finds no memory).

Should the process of the workers have died in the midst of a batch, its lines count no more.

Who reads from outside a worker - another process, the Python view - holds no pointers: it copies,
and then looks whether what it copied was still in its place (`read`).

A table that many write has several pools, each under its shard's lock (shard.py).

    pool      u32 count of what is in use   u32 fresh   u32 oldest   u32 newest   u32 ripe
              u32 early   u32 limbo   u32 young   u64 the epoch to which these counts belong
              u64 the epoch in which waiting for it to advance was of no use
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xdp_runtime import state as st
from xdp_runtime.maps.lock import GONE
from xdp_runtime.template import Template

Factory = Callable[..., Any]

# in a map's head
WORKERS = 16  # u32, how many lines there are
SHARDS_AT, SHARDS = 20, 24  # u32, where the first of several pools is and how many; 0: one, here
PID = 28  # u32, of the workers' process, 0 if it cannot be said
EPOCH = 72  # u64, from 1
SHARES_AT = 80  # u32, where workers' shares of an LRU map are (share.py); 0: it has none
LINES = 256
LINE_BYTES = 64
_TURNS, _SLEEPS = 32, 500  # of others, and ms, before an element is reused early
_EARLY = 24  # that become ripe early at a time
# in a pool; a head's first pool has these offsets from the head
COUNT, FRESH, OLDEST, NEWEST, RIPE, EARLY, LIMBO, YOUNG, AT, IMPATIENT = (
    128, 132, 136, 140, 144, 148, 152, 156, 160, 168)
# in an element
LIVE, OWNER, QUEUE = 9, 10, 12
SHARE_BYTES, SHARE_COUNT = 384, 0  # from one worker's share to the next; u32, what it has

# a worker's list of lines: u64 count, then for each map the addresses of line and epoch
LIST_HEAD_BYTES, LIST_ENTRY_BYTES = 8, 16
SHARD_BYTES = 128


def spare(stride_bytes: int) -> int:
    """Elements beyond the entries: 16 MiB of them (which are memory only when they are used), so
    that a worker may be off its CPU for a time slice or two in the midst of a batch."""
    return max(64, min(1 << 18, (16 << 20) // stride_bytes))


def head_bytes(workers: int) -> int:
    """With a line behind the workers', which is 0, for those who are none."""
    return LINES + LINE_BYTES * (workers + 1)


def prepare(head: memoryview, workers: int, pid: int) -> None:
    """A fresh head, for workers of this process."""
    head[WORKERS:WORKERS + 4] = workers.to_bytes(4, "little")
    head[PID:PID + 4] = pid.to_bytes(4, "little")
    head[EPOCH:EPOCH + 8] = (1).to_bytes(8, "little")
    head[AT:AT + 8] = (1).to_bytes(8, "little")


def places(head: memoryview) -> list[int]:
    """Where the pools of a map's elements are in its head."""
    first, count = (int.from_bytes(head[at:at + 4], "little") for at in (SHARDS_AT, SHARDS))
    return [first + SHARD_BYTES * number for number in range(count)] or [0]


def total(head: memoryview, field: int) -> int:
    """The sum of a u32 of the pools: COUNT, EARLY."""
    return sum(int.from_bytes(head[at + field:at + field + 4], "little") for at in places(head))


def _advance(m: Any) -> Factory:
    def pool_advance(head, pool):  # type: ignore
        """Let the epoch advance if it may, and what has become ripe be so; how many are ripe."""
        for _ in range(2):
            epoch = m.acquire_u64(head, EPOCH)
            blocked = 0
            for worker in range(m.load_u32(head, WORKERS)):
                line = m.acquire_u64(head, LINES + worker * LINE_BYTES)
                if line != 0 and line != epoch:
                    blocked = 1
            if blocked == 0:  # unless another pool has just let it
                m.cas_u64(head, EPOCH, epoch, epoch + 1)
                m.fence()
        epoch = m.acquire_u64(head, EPOCH)
        ripe = m.load_u32(pool, RIPE)
        limbo, young = m.load_u32(pool, LIMBO), m.load_u32(pool, YOUNG)
        past = epoch - m.load_u64(pool, AT)
        if past > 0:
            ripe += limbo
            limbo = young
            young = 0
        if past > 1:
            ripe += limbo
            limbo = 0
        m.store_u32(pool, RIPE, ripe)
        m.store_u32(pool, LIMBO, limbo)
        m.store_u32(pool, YOUNG, young)
        m.store_u64(pool, AT, epoch)
        return ripe

    return pool_advance


ADVANCE = Template("pool_advance", _advance, "i64(ptr, ptr)", inline=False, rare=True)


def _scarce(m: Any) -> Factory:
    advance = m.extern(ADVANCE)

    def pool_scarce(head, pool, unused, count, worker):  # type: ignore
        """1 if `count` may be taken after all, under the lock."""
        ripe = advance(head, pool)
        if ripe + unused >= count:
            return 1
        # what was freed in the last epoch only those hold whose batch is older than this one
        epoch = m.acquire_u64(head, EPOCH)
        older = 0
        other = 0
        for each in range(m.load_u32(head, WORKERS)):
            line = m.acquire_u64(head, LINES + each * LINE_BYTES)
            if each != worker and line != 0:
                other = 1
                if line != epoch:
                    older = 1
        limbo, young = m.load_u32(pool, LIMBO), m.load_u32(pool, YOUNG)
        missing = count - ripe - unused
        if older != 0 or (other != 0 and missing > limbo) or missing > limbo + young:
            return 0
        if missing < _EARLY and limbo >= _EARLY:
            missing = _EARLY
        for _ in range(missing):
            if limbo != 0:
                limbo -= 1
            else:
                young -= 1
        m.store_u32(pool, LIMBO, limbo)
        m.store_u32(pool, YOUNG, young)
        m.store_u32(pool, RIPE, ripe + missing)
        m.store_u32(pool, EARLY, m.load_u32(pool, EARLY) + missing)
        return 1

    return pool_scarce


SCARCE_POOL = Template("pool_scarce", _scarce, "i64(ptr, ptr, i64, i64, i64)", (ADVANCE,),
                       inline=False, rare=True)


def _ready(m: Any) -> Factory:
    scarce = m.extern(SCARCE_POOL)

    def pool_ready(head, pool, stride, end, count, worker):  # type: ignore
        if m.load_u32(pool, RIPE) >= count:
            return 1
        unused = m.udiv(end - m.load_u32(pool, FRESH), stride >> 3)
        if unused >= count:
            return 1
        return scarce(head, pool, unused, count, worker)

    return pool_ready


# 1 if TAKE may be called `count` times, under the lock; `worker` as for PREPARE_ONE
READY = Template("pool_ready", _ready, "i64(ptr, ptr, i64, i64, i64, i64)", (SCARCE_POOL,))


def _take(m: Any) -> Factory:
    advance = m.extern(ADVANCE)

    def pool_take(head, pool, elements, stride, end):  # type: ignore
        ripe = m.load_u32(pool, RIPE)
        if ripe & 31 == 0:  # now and then
            fresh = m.load_u32(pool, FRESH)
            waiting = m.load_u32(pool, LIMBO) + m.load_u32(pool, YOUNG)
            if fresh >= end or (ripe == 0 and waiting & 31 == 31):
                ripe = advance(head, pool)
            if ripe == 0:
                m.store_u32(pool, FRESH, fresh + (stride >> 3))
                return fresh
        link = m.load_u32(pool, OLDEST)
        m.store_u32(pool, OLDEST, m.load_u32(m.inside(elements, link << 3), QUEUE))
        m.store_u32(pool, RIPE, ripe - 1)
        return link

    return pool_take


# an unused element, under the lock, after READY said that there is one
TAKE = Template("pool_take", _take, "i64(ptr, ptr, ptr, i64, i64)", uses=(ADVANCE,))


def _patience(m: Any) -> Factory:
    gone = m.extern(GONE)

    def pool_patience(head, worker):  # type: ignore
        """Let others end their batches, who may be waiting for this very CPU; once an epoch."""
        workers, pid = m.load_u32(head, WORKERS), m.load_u32(head, PID)
        for turn in range(_TURNS + _SLEEPS):
            blocked = 0
            epoch = m.acquire_u64(head, EPOCH)
            own = m.acquire_u64(head, LINES + worker * LINE_BYTES)
            if own != 0 and own != epoch:
                return 0
            if m.relaxed_u64(head, IMPATIENT) == epoch or turn == _TURNS:
                if pid != 0 and gone(pid) != 0:
                    for other in range(workers):
                        m.release_u64(head, LINES + other * LINE_BYTES, 0)
                if m.relaxed_u64(head, IMPATIENT) == epoch:
                    return 0
            for other in range(workers):
                line = m.acquire_u64(head, LINES + other * LINE_BYTES)
                if line != 0 and line != epoch:
                    blocked = 1
            if blocked == 0:
                return 0
            if turn < _TURNS:
                m.c_sched_yield()
            else:
                m.c_poll(m.null(), 0, 1)
        m.release_u64(head, IMPATIENT, epoch)
        return 0

    return pool_patience


PATIENCE = Template("pool_patience", _patience, "i64(ptr, i64)", (GONE,), inline=False,
                    rare=True)


def _prepare_one(m: Any) -> Factory:
    patience = m.extern(PATIENCE)

    def pool_prepare_one(head, pool, step, reserve, end, worker):  # type: ignore
        unused = end - m.relaxed_u32(pool, FRESH)
        if unused < reserve and unused + m.relaxed_u32(pool, RIPE) * step < reserve:
            patience(head, worker)
        return 0

    return pool_prepare_one


# before the lock is taken in order to take an element, when less than `reserve` is left;
# `worker` is the number of workers for others
PREPARE_ONE = Template("pool_prepare_one", _prepare_one, "i64(ptr, ptr, i64, i64, i64, i64)",
                       uses=(PATIENCE,))


def _prepare(m: Any) -> Factory:
    prepare = m.extern(PREPARE_ONE)

    def pool_prepare(head, stride, max_entries, end, worker):  # type: ignore
        step = stride >> 3
        return prepare(head, head, step, (end - (max_entries + 1) * step) >> 2, end, worker)

    return pool_prepare


# the same, of a map's only pool
PREPARE = Template("pool_prepare", _prepare, "i64(ptr, i64, i64, i64, i64)", uses=(PREPARE_ONE,))


def _give(m: Any) -> Factory:
    def pool_give(pool, elements, link):  # type: ignore
        m.store_u8(m.inside(elements, link << 3), LIVE, 0)
        young = m.load_u32(pool, YOUNG)
        if (young | m.load_u32(pool, LIMBO) | m.load_u32(pool, RIPE)) == 0:
            m.store_u32(pool, OLDEST, link)
        else:
            m.store_u32(m.inside(elements, m.load_u32(pool, NEWEST) << 3), QUEUE, link)
        m.store_u32(pool, NEWEST, link)
        m.store_u32(pool, YOUNG, young + 1)
        return 0

    return pool_give


# an unlinked element back into the queue of a map's only pool, under the lock
GIVE = Template("pool_give", _give, "i64(ptr, ptr, i64)")


def _give_one(m: Any) -> Factory:
    advance, give = m.extern(ADVANCE), m.extern(GIVE)

    def pool_give_one(head, pool, elements, link):  # type: ignore
        if m.load_u64(pool, AT) != m.load_u64(head, EPOCH):  # another pool let it advance
            advance(head, pool)
        shares = m.load_u32(head, SHARES_AT)
        if shares != 0:
            owner = m.load_u16(m.inside(elements, link << 3), OWNER)
            m.atomic_add_u32(m.inside(head, shares + owner * SHARE_BYTES), SHARE_COUNT, -1)
        give(pool, elements, link)
        return 0

    return pool_give_one


# the same, in a map that may have several pools, or shares
GIVE_ONE = Template("pool_give_one", _give_one, "i64(ptr, ptr, ptr, i64)", uses=(ADVANCE, GIVE))


def _enter(m: Any) -> Factory:
    def batch_enter(memory):  # type: ignore
        m.release_u64(memory, st.W_EPOCH, m.load_u64(memory, st.W_EPOCH) + 1)
        if m.acquire_u64(memory, st.W_LINES) != 0:
            lines = m.load_ptr(memory, st.W_LINES)
            for i in range(m.load_u64(lines, 0)):
                entry = m.gep(lines, LIST_HEAD_BYTES + i * LIST_ENTRY_BYTES)
                m.release_u64(m.load_ptr(entry, 0), 0, m.acquire_u64(m.load_ptr(entry, 8), 0))
            m.fence()
        return 0

    return batch_enter


def _leave(m: Any) -> Factory:
    def batch_leave(memory):  # type: ignore
        if m.acquire_u64(memory, st.W_LINES) != 0:
            lines = m.load_ptr(memory, st.W_LINES)
            for i in range(m.load_u64(lines, 0)):
                entry = m.gep(lines, LIST_HEAD_BYTES + i * LIST_ENTRY_BYTES)
                m.release_u64(m.load_ptr(entry, 0), 0, 0)
        m.release_u64(memory, st.W_EPOCH, m.load_u64(memory, st.W_EPOCH) + 1)
        return 0

    return batch_leave


# around each batch: the worker's memory
ENTER = Template("batch_enter", _enter, "i64(ptr)", inline=False, rare=True)
LEAVE = Template("batch_leave", _leave, "i64(ptr)", inline=False, rare=True)
