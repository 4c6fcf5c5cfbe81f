"""Timers in map values: when they are due, who fires them, what they run.

The module's memory has a node for each initialised timer, under one lock; the value holds the
node's handle: its place + 1 in the lower half, above it a number that no other ever had.  A node
counts only as long as the value of its element holds that handle, and the element is in its map; so
who deletes or replaces elements need know nothing of timers, and may be another process.  Nodes
that count no more are collected when there is no unused one.

Each worker has a heap of the timers that it started, ordered by deadline (CLOCK_MONOTONIC, ns), and
fires them between batches (`FIRE`): as a CPU does in the kernel.  Who cancels a timer waits until
its callback is over, if that runs; in that callback itself it cannot be cancelled (helpers.c).

    node   u64 handle, 0: unused   ptr timer   ptr the element's LIVE byte, null in an array
           u64 callback + 1, 0: none   ptr heap   ptr heap of whom it runs on, null: none
           u32 place in the heap, 0: not queued   u8 clock, u24 map   u32 how many callbacks
           cancel it   u32 next unused
    heap   u64 next deadline   u64 count   u64 capacity   ptr entries   ptr running node
    entry  u64 deadline   ptr node; the first is entry 1
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xdp_runtime import state as st
from xdp_runtime.maps.family import EINVAL, ENOMEM
from xdp_runtime.maps.pool import ENTER, LEAVE
from xdp_runtime.template import Template

Factory = Callable[..., Any]
DISPATCH = "xdpu.timer.call"  # i64(ptr state, i64 callback, ptr timer), of the module (link.py)
TIMERS = "xdpu.timers"  # i64(ptr worker memory, i64 worker): ns until the next is due, -1: never
EBUSY, EDEADLK = 16, 35
ABSOLUTE, PINNED = 1, 2  # BPF_F_TIMER_ABS, BPF_F_TIMER_CPU_PIN
CLOCKS = (0, 1, 7)  # CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME
CLOCKS_MAX = 16
NEVER = (1 << 63) - 1
_REALTIME, _MONOTONIC, _BOOTTIME = CLOCKS
_LOW = 0xFFFFFFFF

# the module's memory
_LOCK, _NUMBER, _NODES, _UNUSED, _LIVING, _LIMIT, _CHUNKS = 0, 8, 16, 20, 24, 28, 64
_CHUNK_SHIFT, _CHUNK_COUNT = 10, 4096
_MEMORY_BYTES = _CHUNKS + 8 * _CHUNK_COUNT
_N_HANDLE, _N_TIMER, _N_LIVE, _N_CALLBACK, _N_HEAP, _N_RUNNER = 0, 8, 16, 24, 32, 40
_N_PLACE, _N_CLOCK, _N_CANCELLING, _N_NEXT, _NODE_BYTES = 48, 52, 56, 60, 64
_H_NEXT, _H_COUNT, _H_CAPACITY, _H_ENTRIES, _H_RUNNING, _HEAP_BYTES = 0, 8, 16, 24, 32, 64
_FIRST_CAPACITY = 64
_AT_ONCE = 64  # callbacks before packets are looked at again
_SPINS = 200


def _memory(m: Any) -> Factory:
    size = _MEMORY_BYTES

    def timers_memory():  # type: ignore
        return m.own_memory(size)

    return timers_memory


MEMORY = Template("timers_memory", _memory, "ptr()")


def _take(m: Any) -> Factory:
    def timers_lock(memory):  # type: ignore
        spins = 0
        while not m.cas_u32(memory, _LOCK, 0, 1):
            m.pause()
            spins += 1
            if spins == _SPINS:
                spins = 0
                m.c_sched_yield()
        return 0

    return timers_lock


TAKE = Template("timers_lock", _take, "i64(ptr)", inline=False)


def _give(m: Any) -> Factory:
    def timers_unlock(memory):  # type: ignore
        m.release_u32(memory, _LOCK, 0)
        return 0

    return timers_unlock


GIVE = Template("timers_unlock", _give, "i64(ptr)")


def _now(m: Any) -> Factory:
    def timers_clock(clock):  # type: ignore
        time = m.gep(m.alloca(16), 0)
        m.c_clock_gettime(clock, time)
        return m.load_u64(time, 0) * 1_000_000_000 + m.load_u64(time, 8)

    return timers_clock


NOW = Template("timers_clock", _now, "i64(i64)", inline=False)


def _node(m: Any) -> Factory:
    def timers_node(memory, index):  # type: ignore
        chunk = m.load_ptr(memory, _CHUNKS + 8 * (index >> _CHUNK_SHIFT))
        return m.gep(chunk, (index & ((1 << _CHUNK_SHIFT) - 1)) * _NODE_BYTES)

    return timers_node


NODE = Template("timers_node", _node, "ptr(ptr, i64)")


def _counts(m: Any) -> Factory:
    def timer_counts(node):  # type: ignore
        """Is it still the timer of an element of its map?"""
        if m.acquire_u64(m.load_ptr(node, _N_TIMER), 0) != m.load_u64(node, _N_HANDLE):
            return 0
        live = m.load_ptr(node, _N_LIVE)
        if not m.is_null(live) and m.load_u8(live, 0) == 0:
            return 0
        return 1

    return timer_counts


COUNTS = Template("timer_counts", _counts, "i64(ptr)")


def _find(m: Any) -> Factory:
    node_at, counts = m.extern(NODE), m.extern(COUNTS)

    def timer_find(memory, timer):  # type: ignore
        """The node of an initialised timer, or null."""
        handle = m.acquire_u64(timer, 0)
        index = (handle & _LOW) - 1
        if index < 0 or index >= m.load_u32(memory, _NODES):
            return m.null()
        node = node_at(memory, index)
        if m.load_u64(node, _N_HANDLE) != handle or counts(node) == 0 or (
                m.diff(m.load_ptr(node, _N_TIMER), timer) != 0):
            return m.null()
        return node

    return timer_find


FIND = Template("timer_find", _find, "ptr(ptr, ptr)", (NODE, COUNTS), inline=False)


# --- a worker's heap ------------------------------------------------------------------------------
def _place(m: Any) -> Factory:
    def timer_place(entries, place, deadline, node):  # type: ignore
        m.store_u64(entries, place * 16, deadline)
        m.store_ptr(entries, place * 16 + 8, node)
        m.store_u32(node, _N_PLACE, place)
        return 0

    return timer_place


PLACE = Template("timer_place", _place, "i64(ptr, i64, i64, ptr)")


def _sift(m: Any) -> Factory:
    put = m.extern(PLACE)

    def timer_sift(heap, place, deadline, node):  # type: ignore
        """Put an entry where it belongs, from the free place `place` on."""
        entries = m.load_ptr(heap, _H_ENTRIES)
        count = m.load_u64(heap, _H_COUNT)
        while place > 1 and m.load_u64(entries, (place >> 1) * 16) > deadline:
            above = place >> 1
            put(entries, place, m.load_u64(entries, above * 16),
                m.load_ptr(entries, above * 16 + 8))
            place = above
        while place * 2 <= count:
            below = place * 2
            if below < count and m.load_u64(entries, below * 16 + 16) < (
                    m.load_u64(entries, below * 16)):
                below += 1
            if m.load_u64(entries, below * 16) >= deadline:
                break
            put(entries, place, m.load_u64(entries, below * 16),
                m.load_ptr(entries, below * 16 + 8))
            place = below
        put(entries, place, deadline, node)
        m.release_u64(heap, _H_NEXT, m.load_u64(entries, 16))
        return 0

    return timer_sift


SIFT = Template("timer_sift", _sift, "i64(ptr, i64, i64, ptr)", (PLACE,), inline=False)


def _queue(m: Any) -> Factory:
    sift = m.extern(SIFT)

    def timer_queue(heap, node, deadline):  # type: ignore
        count = m.load_u64(heap, _H_COUNT) + 1
        capacity = m.load_u64(heap, _H_CAPACITY)
        if count >= capacity:
            capacity = capacity * 2 if capacity > 0 else _FIRST_CAPACITY
            entries = m.c_realloc(m.load_ptr(heap, _H_ENTRIES), capacity * 16)
            if m.is_null(entries):
                return -ENOMEM
            m.store_ptr(heap, _H_ENTRIES, entries)
            m.store_u64(heap, _H_CAPACITY, capacity)
        m.store_u64(heap, _H_COUNT, count)
        m.store_ptr(node, _N_HEAP, heap)
        sift(heap, count, deadline, node)
        return 0

    return timer_queue


QUEUE = Template("timer_queue", _queue, "i64(ptr, ptr, i64)", (SIFT,), inline=False)


def _dequeue(m: Any) -> Factory:
    sift = m.extern(SIFT)

    def timer_dequeue(node):  # type: ignore
        """1 if it was queued."""
        place = m.load_u32(node, _N_PLACE)
        if place == 0:
            return 0
        heap = m.load_ptr(node, _N_HEAP)
        entries = m.load_ptr(heap, _H_ENTRIES)
        count = m.load_u64(heap, _H_COUNT)
        m.store_u64(heap, _H_COUNT, count - 1)
        m.store_u32(node, _N_PLACE, 0)
        if count == 1:
            m.release_u64(heap, _H_NEXT, NEVER)
        elif place < count:
            sift(heap, place, m.load_u64(entries, count * 16),
                 m.load_ptr(entries, count * 16 + 8))
        return 1

    return timer_dequeue


DEQUEUE = Template("timer_dequeue", _dequeue, "i64(ptr)", (SIFT,), inline=False)


def _heap(m: Any) -> Factory:
    def timers_heap(run):  # type: ignore
        """This worker's, which is made when first asked for; null without memory."""
        worker = m.load_ptr(run, st.WORKER)
        if m.load_u64(worker, st.W_TIMERS) == 0:
            heap = m.c_calloc(1, _HEAP_BYTES)
            if not m.is_null(heap):
                m.store_u64(heap, _H_NEXT, NEVER)
                m.store_ptr(worker, st.W_TIMERS, heap)
        return m.load_ptr(worker, st.W_TIMERS)

    return timers_heap


HEAP = Template("timers_heap", _heap, "ptr(ptr)", inline=False)


# --- the helpers ----------------------------------------------------------------------------------
def _collect(m: Any) -> Factory:
    node_at, counts, dequeue = m.extern(NODE), m.extern(COUNTS), m.extern(DEQUEUE)

    def timers_collect(memory):  # type: ignore
        """Nodes that count no more are unused from now on."""
        for index in range(m.load_u32(memory, _NODES)):
            node = node_at(memory, index)
            if m.load_u64(node, _N_HANDLE) != 0 and m.load_u64(node, _N_RUNNER) == 0 and (
                    m.load_u32(node, _N_CANCELLING) == 0 and counts(node) == 0):
                dequeue(node)
                m.store_u64(node, _N_HANDLE, 0)
                m.store_u32(node, _N_NEXT, m.load_u32(memory, _UNUSED))
                m.store_u32(memory, _UNUSED, index + 1)
                m.store_u32(memory, _LIVING, m.load_u32(memory, _LIVING) - 1)
        m.store_u32(memory, _LIMIT, m.load_u32(memory, _LIVING) * 2 + (1 << _CHUNK_SHIFT))
        return 0

    return timers_collect


COLLECT = Template("timers_collect", _collect, "i64(ptr)", (NODE, COUNTS, DEQUEUE), inline=False)


def _allocate(m: Any) -> Factory:
    node_at, collect = m.extern(NODE), m.extern(COLLECT)

    def timers_allocate(memory):  # type: ignore
        """The index of an unused node, -1 without memory."""
        nodes = m.load_u32(memory, _NODES)
        if m.load_u32(memory, _UNUSED) == 0 and nodes >= m.load_u32(memory, _LIMIT):
            collect(memory)
        index = m.load_u32(memory, _UNUSED) - 1
        if index >= 0:
            m.store_u32(memory, _UNUSED, m.load_u32(node_at(memory, index), _N_NEXT))
        else:
            index = nodes
            at = index >> _CHUNK_SHIFT
            if at >= _CHUNK_COUNT:
                return -1
            if index & ((1 << _CHUNK_SHIFT) - 1) == 0:
                chunk = m.c_calloc(1 << _CHUNK_SHIFT, _NODE_BYTES)
                if m.is_null(chunk):
                    return -1
                m.store_ptr(memory, _CHUNKS + 8 * at, chunk)
            m.store_u32(memory, _NODES, index + 1)
        m.store_u32(memory, _LIVING, m.load_u32(memory, _LIVING) + 1)
        return index

    return timers_allocate


ALLOCATE = Template("timers_allocate", _allocate, "i64(ptr)", (NODE, COLLECT), inline=False)


def _init(m: Any) -> Factory:
    own, take, give = m.extern(MEMORY), m.extern(TAKE), m.extern(GIVE)
    find, node_at, allocate = m.extern(FIND), m.extern(NODE), m.extern(ALLOCATE)

    def timer_init(run, timer, index_of_map, to_live, flags):  # type: ignore
        """`to_live`: how far before the timer its element's LIVE byte is, 0 in an array."""
        if flags != _REALTIME and flags != _MONOTONIC and flags != _BOOTTIME:
            return -EINVAL
        memory = own()
        take(memory)
        if not m.is_null(find(memory, timer)):
            give(memory)
            return -EBUSY
        index = allocate(memory)
        if index < 0:
            give(memory)
            return -ENOMEM
        number = m.load_u64(memory, _NUMBER)
        if number == 0:  # that of another process, or of who had the map before, is another one
            m.c_getrandom(m.gep(memory, _NUMBER), 4, 0)
            number = m.load_u64(memory, _NUMBER)
        number += 1
        m.store_u64(memory, _NUMBER, number)
        handle = (number & 0x7FFFFFFF) << 32 | (index + 1)
        node = node_at(memory, index)
        m.zero(node, _NODE_BYTES)
        m.store_u64(node, _N_HANDLE, handle)
        m.store_ptr(node, _N_TIMER, timer)
        if to_live != 0:
            m.store_ptr(node, _N_LIVE, m.gep(timer, -to_live))
        m.store_u32(node, _N_CLOCK, index_of_map << 8 | flags)
        m.release_u64(timer, 0, handle)
        give(memory)
        return 0

    return timer_init


INIT = Template("timer_init", _init, "i64(ptr, ptr, i64, i64, i64)",
                (MEMORY, TAKE, GIVE, FIND, NODE, ALLOCATE), inline=False)


def _set_callback(m: Any) -> Factory:
    own, take, give, find = m.extern(MEMORY), m.extern(TAKE), m.extern(GIVE), m.extern(FIND)

    def timer_set_callback(run, timer, callback):  # type: ignore
        memory = own()
        take(memory)
        node = find(memory, timer)
        result = -EINVAL
        if not m.is_null(node):
            m.store_u64(node, _N_CALLBACK, callback + 1)
            result = 0
        give(memory)
        return result

    return timer_set_callback


SET_CALLBACK = Template("timer_set_callback", _set_callback, "i64(ptr, ptr, i64)",
                        (MEMORY, TAKE, GIVE, FIND), inline=False)


def _start(m: Any) -> Factory:
    own, take, give, find = m.extern(MEMORY), m.extern(TAKE), m.extern(GIVE), m.extern(FIND)
    clock, heap_of = m.extern(NOW), m.extern(HEAP)
    queue, dequeue = m.extern(QUEUE), m.extern(DEQUEUE)

    def timer_start(run, timer, nsecs, flags):  # type: ignore
        if flags & ~(ABSOLUTE | PINNED) != 0:
            return -EINVAL
        heap = heap_of(run)
        if m.is_null(heap):
            return -ENOMEM
        memory = own()
        take(memory)
        node = find(memory, timer)
        if m.is_null(node):
            give(memory)
            return -EINVAL
        if m.load_u64(node, _N_CALLBACK) == 0:
            give(memory)
            return -EINVAL
        deadline = nsecs
        now = clock(_MONOTONIC)
        if flags & ABSOLUTE == 0:
            deadline = m.add(now, nsecs)
        if nsecs < 0 or (flags & ABSOLUTE == 0 and deadline < 0):  # ktime_add_safe
            deadline = NEVER
        elif flags & ABSOLUTE != 0 and m.load_u8(node, _N_CLOCK) != _MONOTONIC:
            deadline = m.add(nsecs - clock(m.load_u8(node, _N_CLOCK)), now)
        dequeue(node)
        if m.load_u64(node, _N_RUNNER) != 0:
            heap = m.load_ptr(node, _N_RUNNER)
        result = queue(heap, node, deadline)
        give(memory)
        return result

    return timer_start


START = Template("timer_start", _start, "i64(ptr, ptr, i64, i64)",
                 (MEMORY, TAKE, GIVE, FIND, NOW, HEAP, QUEUE, DEQUEUE), inline=False)


def _cancel(m: Any) -> Factory:
    own, take, give, find = m.extern(MEMORY), m.extern(TAKE), m.extern(GIVE), m.extern(FIND)
    dequeue, heap_of = m.extern(DEQUEUE), m.extern(HEAP)

    def timer_cancel(run, timer):  # type: ignore
        memory = own()
        heap = heap_of(run)
        if m.is_null(heap):
            return -ENOMEM
        take(memory)
        node = find(memory, timer)
        if m.is_null(node):
            give(memory)
            return -EINVAL
        within = m.load_u64(heap, _H_RUNNING)
        if within != 0:
            running = m.load_ptr(heap, _H_RUNNING)
            if m.diff(running, node) == 0 or m.load_u32(running, _N_CANCELLING) != 0:
                give(memory)  # it would wait for itself
                return -EDEADLK
        m.store_u32(node, _N_CANCELLING, m.load_u32(node, _N_CANCELLING) + (within != 0))
        m.store_u64(node, _N_CALLBACK, 0)
        handle = m.load_u64(node, _N_HANDLE)
        queued = dequeue(node)
        while m.load_u64(node, _N_RUNNER) != 0 and m.load_u64(node, _N_HANDLE) == handle:
            give(memory)
            m.c_sched_yield()
            take(memory)
            queued |= dequeue(node)
        m.store_u32(node, _N_CANCELLING, m.load_u32(node, _N_CANCELLING) - (within != 0))
        give(memory)
        return queued

    return timer_cancel


CANCEL = Template("timer_cancel", _cancel, "i64(ptr, ptr)",
                  (MEMORY, TAKE, GIVE, FIND, DEQUEUE, HEAP), inline=False)


# --- firing ---------------------------------------------------------------------------------------
def _fire(m: Any) -> Factory:
    own, take, give, counts = m.extern(MEMORY), m.extern(TAKE), m.extern(GIVE), m.extern(COUNTS)
    clock, dequeue = m.extern(NOW), m.extern(DEQUEUE)
    enter, leave = m.extern(ENTER), m.extern(LEAVE)
    call = m.symbol(DISPATCH, "i64(ptr, i64, ptr)")
    state_bytes = st.STATE_SIZE_BYTES  # a literal, as alloca needs it

    def timers_fire(worker, number):  # type: ignore
        """Between batches: ns until the next is due (0: there are more), -1 if there is none."""
        if m.load_u64(worker, st.W_TIMERS) == 0:
            return -1
        heap = m.load_ptr(worker, st.W_TIMERS)
        following = m.acquire_u64(heap, _H_NEXT)
        if following == NEVER:
            return -1
        now = clock(_MONOTONIC)
        if following > now:
            return following - now
        memory = own()
        run = m.gep(m.alloca(state_bytes), 0)
        left = _AT_ONCE
        enter(worker)
        take(memory)
        while left > 0:
            following = m.load_u64(heap, _H_NEXT)
            if following > now:
                break
            node = m.load_ptr(m.load_ptr(heap, _H_ENTRIES), 16 + 8)
            dequeue(node)
            if counts(node) == 0 or m.load_u64(node, _N_CALLBACK) == 0:
                continue
            left -= 1
            callback = m.load_u64(node, _N_CALLBACK) - 1 + (m.load_u32(node, _N_CLOCK) >> 8)
            timer = m.load_ptr(node, _N_TIMER)
            m.store_ptr(node, _N_RUNNER, heap)
            m.store_ptr(heap, _H_RUNNING, node)
            give(memory)
            m.zero(run, state_bytes)
            m.store_ptr(run, st.WORKER, worker)
            m.store_u32(run, st.WORKER_ID, number)
            call(run, callback, timer)
            take(memory)
            m.store_u64(node, _N_RUNNER, 0)
            m.store_u64(heap, _H_RUNNING, 0)
        following = m.load_u64(heap, _H_NEXT)
        give(memory)
        leave(worker)
        if following == NEVER:
            return -1
        return following - now if following > now else 0

    return timers_fire


FIRE = Template("timers_fire", _fire, "i64(ptr, i64)",
                (MEMORY, TAKE, GIVE, COUNTS, NOW, DEQUEUE, ENTER, LEAVE), inline=False)
