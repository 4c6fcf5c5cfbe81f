"""The AF_XDP port's templates: four rings and a stack of free frames, driven by compiled code.

    FILL  we -> kernel   addresses of empty frames        RX  kernel -> we   packets received
    TX    we -> kernel   packets to send                  COMPLETION  kernel -> we   sent frames

A ring is shared memory: an array and two 32-bit counters, `producer` and `consumer`, each written
by one side with a release store and read by the other with an acquire load.  We keep our own
counters as 64-bit numbers that never wrap, and look at the kernel's only when ours say that there
is nothing left, so a batch costs one or two shared cache lines.

A frame is a chunk of the umem, and always in exactly one place: free (the pool), fill, rx, the
batch in hand, tx, completion, or with the kernel in between.  A released frame goes straight back
into FILL; the pool, a stack of addresses, has what completions brought back and what `send` may
take.  Queues of one worker may share umem and pool: a frame received by one may then be sent by
another, and comes back to the pool.  From our counters alone, and whatever the kernel does:

    total = free + (fill producer - rx consumer) + in hand + (tx producer - completion consumer)

summed over the queues that share the pool.

    chunk          +40                +256                                -320            +size
    | xdp_frame's   | headroom         | packet received ...               | shared info's |
                    HARD_START         DATA                                FRAME_END

The bounds are those of a packet in the kernel: struct xdp_frame keeps 40 bytes of the headroom
(XDP_PACKET_HEADROOM, which AF_XDP leaves in front of the packet by itself), and the tail of a page
belongs to skb_shared_info, 320 bytes.  In a 2048-byte chunk a full frame needs that tail.

In copy mode the kernel sends only inside sendto(), by default 32 packets a call, and asks to be
woken always; a driver with zero-copy asks when it went to sleep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dataplane.port import (
    COOKIE,
    DATA,
    DATA_END,
    FLUSH_SIGNATURE,
    FRAME_END,
    HARD_START,
    RECEIVE_SIGNATURE,
    RELEASE_SIGNATURE,
    SEND_SIGNATURE,
    SLOT_SIZE_BYTES,
    TRANSMIT_SIGNATURE,
    PortKind,
)
from xdp_runtime.state import XDP_FRAME_BYTES
from xdp_runtime.template import Template

SKB_SHARED_INFO_BYTES = 320  # SKB_DATA_ALIGN(sizeof(struct skb_shared_info))
DESC_BYTES = 16  # struct xdp_desc: u64 address, u32 length, u32 options
NEED_WAKEUP = 1  # XDP_RING_NEED_WAKEUP
MIN_LENGTH_BYTES = 14  # ETH_HLEN: the kernel swallows a shorter packet, frame and all

# --- a queue's memory: byte offsets; every field is 8 bytes unless it says otherwise -------------
UMEM = 0  # pointer
FRAME_SIZE = 8
TAIL = 16  # FRAME_END, as an offset into the chunk
POLLFD = 24  # struct pollfd: i32 fd, i16 events, i16 revents
FLAGS = 32
POOL = 40  # pointer to the pool
CHUNK_MASK = 48  # what of a descriptor's address names the chunk
OFFSET_SHIFT = 56  # where it has the packet's offset in the chunk: 48 for unaligned chunks, else 0

# A ring's fields, from the offset where its line starts.  MINE is our counter, in memory the
# kernel reads as a u32; SEEN is its counter as we read it last (of RX and COMPLETION extended to
# 64 bits; of FILL and TX that plus the ring's size: how far we may produce).
RX, FILL, TX, COMPLETION = 64, 128, 192, 256
ARRAY, PRODUCER, CONSUMER, RING_FLAGS, MASK, MINE, SEEN, PUBLISHED = range(0, 64, 8)

# counters, for Python to read
TX_FULL = 320  # packets given up: no room in the TX ring
NO_FRAME = 328  # foreign packets given up: no free frame
WAKEUPS = 336  # system calls that woke the kernel
WAKE_ERRORS = 344  # of these, failed for another reason than "come again"
WAKE_ERRNO = 352  # the last such errno
MALFORMED = 360  # packets given up: no length the kernel would send
SCRATCH = 368  # 8 bytes for read(2) to leave alone
COPY_AT = 376  # where in a chunk a packet begins that is copied in: 0, or
BEHIND_METADATA = 64
# live_tx.py: the second way out, LIVE_LEAST packets at once; the rest is its bookkeeping
(LIVE_QUEUE, LIVE_LEAST, LIVE_MOST, LIVE_ALWAYS, LIVE_CHOSEN, LIVE_TURNS, LIVE_WAITED, LIVE_NS,
 LIVE_PROBED, XSK_NS, XSK_PROBED, LIVE_FRAMES) = range(384, 480, 8)
LIVE_NEVER = 1 << 32  # as LIVE_LEAST
METADATA_ASKS = 480  # tx_metadata.py: 1: checksums are asked of the kernel
TX_CHECKSUMS = 488  # packets that had no checksum yet
BLOCK_SIZE_BYTES = 512

# --- the pool of a umem; only one worker has it --------------------------------------------------
FREE = 0  # how many frames are free
STACK = 8  # pointer to their addresses, u64 each
FRAMES = 16  # how many frames there are in all
POOL_SIZE_BYTES = 64  # the stack follows

# FLAGS
WAKE_ALWAYS = 1  # bound without XDP_USE_NEED_WAKEUP
ZERO_COPY = 2
BUSY_POLL = 4  # the driver works when we ask it to

OFFSET_BITS_AT = 48  # XSK_UNALIGNED_BUF_OFFSET_SHIFT; a umem's addresses are below it
ADDRESS_MASK = (1 << OFFSET_BITS_AT) - 1
_U32 = 0xFFFFFFFF
_MSG_DONTWAIT = 0x40
_EAGAIN, _EBUSY, _ENOBUFS = 11, 16, 105  # more to send; the device dropped one; no memory now
_TX_CALLS_MAX = 16  # sendto() calls in one flush

Factory = Callable[..., Any]


def _fill_room(m: Any) -> Factory:
    def afxdp_fill_room(q):  # type: ignore
        """The FILL ring looked full: see how far the kernel is -> entries free."""
        mine, size = m.load_u64(q, FILL + MINE), m.load_u64(q, FILL + MASK) + 1
        consumed = m.acquire_u32(m.load_ptr(q, FILL + CONSUMER), 0)
        room = size - (m.sub(mine, consumed) & _U32)
        m.store_u64(q, FILL + SEEN, mine + room)
        return room

    return afxdp_fill_room


FILL_ROOM = Template("afxdp_fill_room", _fill_room, "i64(ptr)", inline=False)


def _release(m: Any) -> Factory:
    fill_room = m.extern(FILL_ROOM)

    def afxdp_release(q, slot):  # type: ignore
        """Straight into the fill ring, published by flush; refill leaves room for a batch."""
        mine, chunk = m.load_u64(q, FILL + MINE), m.load_u64(slot, COOKIE)
        if mine == m.load_u64(q, FILL + SEEN) and fill_room(q) == 0:
            pool = m.load_ptr(q, POOL)
            free = m.load_u64(pool, FREE)
            m.store_u64(m.load_ptr(pool, STACK), free * 8, chunk)
            m.store_u64(pool, FREE, free + 1)
            return 0
        m.store_u64(m.load_ptr(q, FILL + ARRAY), (mine & m.load_u64(q, FILL + MASK)) * 8, chunk)
        m.store_u64(q, FILL + MINE, mine + 1)
        return 0

    return afxdp_release


def _reclaim(m: Any) -> Factory:
    def afxdp_reclaim(q):  # type: ignore
        """Sent frames, back onto the stack -> how many.  Their addresses are those we sent."""
        mine = m.load_u64(q, COMPLETION + MINE)
        produced = m.acquire_u32(m.load_ptr(q, COMPLETION + PRODUCER), 0)
        n = m.sub(produced, mine) & _U32
        if n == 0:
            return 0
        ring, mask = m.load_ptr(q, COMPLETION + ARRAY), m.load_u64(q, COMPLETION + MASK)
        pool, chunks = m.load_ptr(q, POOL), m.load_u64(q, CHUNK_MASK)
        stack, free = m.load_ptr(pool, STACK), m.load_u64(pool, FREE)
        for i in range(n):
            address = m.load_u64(ring, ((mine + i) & mask) * 8)
            m.store_u64(stack, (free + i) * 8, address & chunks)
        m.store_u64(pool, FREE, free + n)
        m.store_u64(q, COMPLETION + MINE, mine + n)
        m.release_u32(m.load_ptr(q, COMPLETION + CONSUMER), 0, mine + n)
        return n

    return afxdp_reclaim


RECLAIM = Template("afxdp_reclaim", _reclaim, "i64(ptr)", inline=False)


def _push(m: Any) -> Factory:
    reclaim = m.extern(RECLAIM)

    def afxdp_push(q):  # type: ignore
        """Publish what was put into TX, have the kernel send it, take back what it has sent."""
        tx = m.load_u64(q, TX + MINE)
        if tx != m.load_u64(q, TX + PUBLISHED):
            m.release_u32(m.load_ptr(q, TX + PRODUCER), 0, tx)
            m.store_u64(q, TX + PUBLISHED, tx)
        reclaim(q)
        flags, ring_flags = m.load_u64(q, FLAGS), m.load_ptr(q, TX + RING_FLAGS)
        done, before = 0, -1
        for _ in range(_TX_CALLS_MAX):
            waiting = m.sub(tx, m.acquire_u32(m.load_ptr(q, TX + CONSUMER), 0)) & _U32
            if waiting == before and done == 0:
                return 0  # no progress: the rest waits for the next flush
            before = waiting
            if flags & ZERO_COPY:  # frames taken may still need the driver to complete them
                waiting = tx - m.load_u64(q, COMPLETION + MINE)
            if waiting == 0:
                return 0
            if flags & WAKE_ALWAYS == 0 and m.relaxed_u32(ring_flags, 0) & NEED_WAKEUP == 0:
                return 0
            m.store_u64(q, WAKEUPS, m.load_u64(q, WAKEUPS) + 1)
            said = m.c_sendto(m.load_u32(q, POLLFD), m.null(), 0, _MSG_DONTWAIT, m.null(), 0)
            why = m.errno()
            done = reclaim(q)
            if said >= 0:
                return 0
            if why != _EAGAIN and why != _EBUSY and why != _ENOBUFS:
                m.store_u64(q, WAKE_ERRORS, m.load_u64(q, WAKE_ERRORS) + 1)
                m.store_u64(q, WAKE_ERRNO, why)
                return 0
        return 0

    return afxdp_push


PUSH = Template("afxdp_push", _push, "i64(ptr)", (RECLAIM,), inline=False)


def _refill(m: Any) -> Factory:
    fill_room = m.extern(FILL_ROOM)

    def afxdp_refill(q):  # type: ignore
        """Publish FILL, after topping it up: a ring's worth of frames is on its way to RX."""
        pool = m.load_ptr(q, POOL)
        mine, free = m.load_u64(q, FILL + MINE), m.load_u64(pool, FREE)
        mask = m.load_u64(q, FILL + MASK)
        wanted = mask + 1 - (mine - m.load_u64(q, RX + MINE))
        n = free if wanted > free else wanted
        if n > 0:
            room = m.load_u64(q, FILL + SEEN) - mine
            if room < n:
                room = fill_room(q)
                n = room if n > room else n
            ring, stack = m.load_ptr(q, FILL + ARRAY), m.load_ptr(pool, STACK)
            for i in range(n):
                m.store_u64(ring, ((mine + i) & mask) * 8, m.load_u64(stack, (free - 1 - i) * 8))
            m.store_u64(pool, FREE, free - n)
            mine += n
            m.store_u64(q, FILL + MINE, mine)
        if mine != m.load_u64(q, FILL + PUBLISHED):
            m.release_u32(m.load_ptr(q, FILL + PRODUCER), 0, mine)
            m.store_u64(q, FILL + PUBLISHED, mine)
        if m.relaxed_u32(m.load_ptr(q, FILL + RING_FLAGS), 0) & NEED_WAKEUP:
            m.store_u64(q, WAKEUPS, m.load_u64(q, WAKEUPS) + 1)
            m.c_poll(m.inside(q, POLLFD), 1, 0)
        return 0

    return afxdp_refill


REFILL = Template("afxdp_refill", _refill, "i64(ptr)", (FILL_ROOM,), inline=False)


def _idle(m: Any) -> Factory:
    push, refill = m.extern(PUSH), m.extern(REFILL)

    def afxdp_idle(q):  # type: ignore
        """Nothing came -> 0."""
        # What was sent may hold the very frames that FILL lacks, and it completes by itself.
        if m.load_u64(q, TX + PUBLISHED) != m.load_u64(q, COMPLETION + MINE):
            push(q)
            refill(q)
        if m.load_u64(q, FLAGS) & BUSY_POLL:
            m.c_read(m.load_u32(q, POLLFD), m.inside(q, SCRATCH), 1)
        return 0

    return afxdp_idle


IDLE = Template("afxdp_idle", _idle, "i64(ptr)", (PUSH, REFILL), inline=False)


def _receive(m: Any) -> Factory:
    idle = m.extern(IDLE)

    def afxdp_receive(q, batch, budget):  # type: ignore
        mine = m.load_u64(q, RX + MINE)
        seen = m.load_u64(q, RX + SEEN)
        if seen - mine < budget:
            produced = m.acquire_u32(m.load_ptr(q, RX + PRODUCER), 0)
            seen = mine + (m.sub(produced, mine) & _U32)
            m.store_u64(q, RX + SEEN, seen)
        n = budget if seen - mine > budget else seen - mine
        if n == 0:
            return idle(q)
        ring, mask = m.load_ptr(q, RX + ARRAY), m.load_u64(q, RX + MASK)
        umem, tail = m.load_ptr(q, UMEM), m.load_u64(q, TAIL)
        chunks = m.load_u64(q, CHUNK_MASK)
        consumer = m.load_ptr(q, RX + CONSUMER)
        for i in range(n):
            desc = m.inside(ring, ((mine + i) & mask) * DESC_BYTES)
            address = m.load_u64(desc, 0)
            chunk = address & chunks
            address = (address & ADDRESS_MASK) + m.lshr(address, OFFSET_BITS_AT)
            end = address + m.load_u32(desc, 8)
            slot = m.inside(batch, i * SLOT_SIZE_BYTES)
            m.store_ptr(slot, DATA, m.inside(umem, address))
            m.store_ptr(slot, DATA_END, m.inside(umem, end))
            m.store_ptr(slot, HARD_START, m.inside(umem, chunk + XDP_FRAME_BYTES))
            room = chunk + tail if chunk + tail > end else end
            m.store_ptr(slot, FRAME_END, m.inside(umem, room))
            m.store_u64(slot, COOKIE, chunk)
        m.store_u64(q, RX + MINE, mine + n)
        m.release_u32(consumer, 0, mine + n)
        return n

    return afxdp_receive


def _has_room(m: Any) -> Factory:
    push = m.extern(PUSH)

    def afxdp_has_room(q):  # type: ignore
        """The TX ring looked full: see how far the kernel is, else wake it -> 1, or 0 if full."""
        tx, size = m.load_u64(q, TX + MINE), m.load_u64(q, TX + MASK) + 1
        for attempt in range(2):
            if attempt == 1:
                push(q)
            consumed = m.acquire_u32(m.load_ptr(q, TX + CONSUMER), 0)
            may_produce = tx - (m.sub(tx, consumed) & _U32) + size
            m.store_u64(q, TX + SEEN, may_produce)
            if tx != may_produce:
                return 1
        m.store_u64(q, TX_FULL, m.load_u64(q, TX_FULL) + 1)
        return 0

    return afxdp_has_room


HAS_ROOM = Template("afxdp_has_room", _has_room, "i64(ptr)", (PUSH,), inline=False)


def _transmit(m: Any) -> Factory:
    has_room = m.extern(HAS_ROOM)

    def afxdp_transmit(q, slot):  # type: ignore
        data, chunk = m.load_ptr(slot, DATA), m.load_u64(slot, COOKIE)
        length = m.diff(m.load_ptr(slot, DATA_END), data)
        address = m.diff(data, m.load_ptr(q, UMEM))
        size = m.load_u64(q, FRAME_SIZE)
        fits = m.ule(MIN_LENGTH_BYTES, length) and m.ule(length, size - (address - chunk))
        tx = m.load_u64(q, TX + MINE)
        if not fits or (tx == m.load_u64(q, TX + SEEN) and has_room(q) == 0):
            if not fits:
                m.store_u64(q, MALFORMED, m.load_u64(q, MALFORMED) + 1)
            pool = m.load_ptr(q, POOL)
            free = m.load_u64(pool, FREE)
            m.store_u64(m.load_ptr(pool, STACK), free * 8, chunk)
            m.store_u64(pool, FREE, free + 1)
            return 0
        desc = m.inside(m.load_ptr(q, TX + ARRAY), (tx & m.load_u64(q, TX + MASK)) * DESC_BYTES)
        shift = m.load_u64(q, OFFSET_SHIFT)
        m.store_u64(desc, 0, chunk + ((address - chunk) << shift))
        m.store_u64(desc, 8, length)  # and no options
        m.store_u64(q, TX + MINE, tx + 1)
        return 1

    return afxdp_transmit


def _send(m: Any) -> Factory:
    has_room, push = m.extern(HAS_ROOM), m.extern(PUSH)

    def afxdp_send(q, data, length):  # type: ignore
        at = m.load_u64(q, COPY_AT)
        if not (m.ule(MIN_LENGTH_BYTES, length) and m.ule(length, m.load_u64(q, FRAME_SIZE) - at)):
            m.store_u64(q, MALFORMED, m.load_u64(q, MALFORMED) + 1)
            return 0
        tx = m.load_u64(q, TX + MINE)
        if tx == m.load_u64(q, TX + SEEN) and has_room(q) == 0:
            return 0
        pool = m.load_ptr(q, POOL)
        if m.load_u64(pool, FREE) == 0:
            push(q)
        free = m.load_u64(pool, FREE)
        if free == 0:
            m.store_u64(q, NO_FRAME, m.load_u64(q, NO_FRAME) + 1)
            return 0
        chunk = m.load_u64(m.load_ptr(pool, STACK), (free - 1) * 8)
        m.store_u64(pool, FREE, free - 1)
        m.copy(m.inside(m.load_ptr(q, UMEM), chunk + at), data, length)
        desc = m.inside(m.load_ptr(q, TX + ARRAY), (tx & m.load_u64(q, TX + MASK)) * DESC_BYTES)
        m.store_u64(desc, 0, chunk + (at << m.load_u64(q, OFFSET_SHIFT)))
        m.store_u64(desc, 8, length)
        m.store_u64(q, TX + MINE, tx + 1)
        return 1

    return afxdp_send


def _flush(m: Any) -> Factory:
    push, refill = m.extern(PUSH), m.extern(REFILL)

    def afxdp_flush(q):  # type: ignore
        if m.load_u64(q, TX + MINE) != m.load_u64(q, COMPLETION + MINE):
            push(q)
        return refill(q)

    return afxdp_flush


LOSSES = "rx_dropped", "rx_ring_full", "tx_invalid_descs", "tx_live_failed"
RELEASE = Template("afxdp_release", _release, RELEASE_SIGNATURE, (FILL_ROOM,))
FLUSH = Template("afxdp_flush", _flush, FLUSH_SIGNATURE, (PUSH, REFILL))
AFXDP = PortKind(
    "afxdp",
    receive=Template("afxdp_receive", _receive, RECEIVE_SIGNATURE, (IDLE,)),
    release=RELEASE,
    transmit=Template("afxdp_transmit", _transmit, TRANSMIT_SIGNATURE, (HAS_ROOM,)),
    send=Template("afxdp_send", _send, SEND_SIGNATURE, (HAS_ROOM, PUSH), inline=False),
    flush=FLUSH,
    losses=LOSSES,
)
