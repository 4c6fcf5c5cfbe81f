"""Sending by the kernel's live frames instead of the TX ring, where a batch of them is faster.

In copy mode AF_XDP makes a skb of each packet it sends.  An Injector (dataplane/injector.py) has
the kernel redirect frames to the interface as XDP does: some 13 us a system call, but only a
quarter of the time a frame.  So which way is faster depends on how many go at once, and on the
driver; here it is found out by trying.

    flush: fewer than LEAST packets wait, or the kernel has not sent all before  -> TX ring
           otherwise                                                             -> a turn
    turn:  of PERIOD, the first PROBES go by both ways alternately, with the time taken; the others
           by the way that took less a packet when it did best, for a moment without the CPU tells
           nothing of a way, and is longer than all probes
    While live frames are the faster way and more packets come with each round, up to MOST are
    collected, as a call is the cheaper the more it takes; so they are when it is tried.

Packets wait in the TX ring, not yet published, so the way is chosen at the last moment; live frames
are copies, and their chunks go back to the pool.  No packet overtakes another: live frames go only
when the kernel has taken all that was published before.  What is sent is what the program left, to
the byte, by either way.

The interface must be a target of redirects (NETDEV_XDP_ACT_NDO_XMIT): a veth is one only while its
peer has XDP or GRO.  Where it ceases to be, the kernel would drop live frames without a word, so
`check` looks at it, every second in a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from afxdp import tx_metadata
from afxdp.rings import (
    ADDRESS_MASK,
    AFXDP,
    ARRAY,
    CHUNK_MASK,
    COMPLETION,
    CONSUMER,
    DESC_BYTES,
    FREE,
    LIVE_ALWAYS,
    LIVE_CHOSEN,
    LIVE_FRAMES,
    LIVE_LEAST,
    LIVE_MOST,
    LIVE_NEVER,
    LIVE_NS,
    LIVE_PROBED,
    LIVE_QUEUE,
    LIVE_TURNS,
    LIVE_WAITED,
    MASK,
    MINE,
    OFFSET_BITS_AT,
    POOL,
    PUBLISHED,
    PUSH,
    REFILL,
    STACK,
    TX,
    UMEM,
    XSK_NS,
    XSK_PROBED,
)
from dataplane import live_frames
from dataplane.injector import FRAME_MAX, out_by
from dataplane.live_frames import APPEND, LiveFrames, longest
from dataplane.loop import NOW
from dataplane.netdev import XDP_NDO_XMIT, xdp_features
from dataplane.port import FLUSH_SIGNATURE, PortKind
from xdp_runtime.errors import PortError
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from afxdp.interface import Interface
    from afxdp.queue import Queue

WAYS = ("auto", "xsk", "live")
LEAST, MOST = 32, 256  # packets
PERIOD, PROBES = 4096, 16  # turns
_U32 = 0xFFFFFFFF
_CLAIM = 1.05  # so much faster before it is told of


def _forward(m: Any) -> Callable[..., Any]:
    append, push = m.extern(APPEND), m.extern(live_frames.PUSH)
    complete_asked = m.extern(tx_metadata.COMPLETE_ASKED)

    def afxdp_forward(q):  # type: ignore[no-untyped-def]
        """What waits in the TX ring goes as live frames; the ring is as if it had not been."""
        live, umem, pool = m.load_ptr(q, LIVE_QUEUE), m.load_ptr(q, UMEM), m.load_ptr(q, POOL)
        ring, mask = m.load_ptr(q, TX + ARRAY), m.load_u64(q, TX + MASK)
        chunks, stack = m.load_u64(q, CHUNK_MASK), m.load_ptr(pool, STACK)
        first, free = m.load_u64(q, TX + PUBLISHED), m.load_u64(pool, FREE)
        count = m.load_u64(q, TX + MINE) - first
        for i in range(count):
            desc = m.inside(ring, ((first + i) & mask) * DESC_BYTES)
            address, length = m.load_u64(desc, 0), m.load_u32(desc, 8)
            packet = (address & ADDRESS_MASK) + m.lshr(address, OFFSET_BITS_AT)
            if m.load_u32(desc, tx_metadata.OPTIONS_AT) != 0:
                complete_asked(m.inside(umem, packet), length)
            append(live, m.inside(umem, packet), length)
            m.store_u64(stack, (free + i) * 8, address & chunks)
        push(live)
        m.store_u64(pool, FREE, free + count)
        m.store_u64(q, TX + MINE, first)
        m.store_u64(q, LIVE_FRAMES, m.load_u64(q, LIVE_FRAMES) + count)
        return 0

    return afxdp_forward


FORWARD = Template("afxdp_forward", _forward, "i64(ptr)",
                   (APPEND, live_frames.PUSH, tx_metadata.COMPLETE_ASKED), inline=False)


def _turn(m: Any) -> Callable[..., Any]:
    forward, push, now = m.extern(FORWARD), m.extern(PUSH), m.extern(NOW)

    def afxdp_turn(q, count):  # type: ignore[no-untyped-def]
        """Send what waits by the faster way; in the first turns of a period, find out which."""
        turns = m.load_u64(q, LIVE_TURNS)
        m.store_u64(q, LIVE_TURNS, turns + 1)
        phase = turns & (PERIOD - 1)
        if phase >= PROBES or m.load_u64(q, LIVE_ALWAYS) != 0:
            if m.load_u64(q, LIVE_CHOSEN) != 0:
                forward(q)
            else:
                push(q)
            return 0
        if phase == 0:
            m.store_u64(q, XSK_NS, 0)
            m.store_u64(q, XSK_PROBED, 0)
            m.store_u64(q, LIVE_NS, 0)
            m.store_u64(q, LIVE_PROBED, 0)
        began = now()
        if phase & 1 != 0:
            forward(q)
            took, best = now() - began, m.load_u64(q, LIVE_PROBED)
            if best == 0 or took * best < m.load_u64(q, LIVE_NS) * count:
                m.store_u64(q, LIVE_NS, took)
                m.store_u64(q, LIVE_PROBED, count)
        else:
            push(q)
            took, best = now() - began, m.load_u64(q, XSK_PROBED)
            if best == 0 or took * best < m.load_u64(q, XSK_NS) * count:
                m.store_u64(q, XSK_NS, took)
                m.store_u64(q, XSK_PROBED, count)
        if phase == PROBES - 1:
            live_ns = m.load_u64(q, LIVE_NS) * m.load_u64(q, XSK_PROBED)
            xsk_ns = m.load_u64(q, XSK_NS) * m.load_u64(q, LIVE_PROBED)
            m.store_u64(q, LIVE_CHOSEN, 1 if live_ns < xsk_ns else 0)
        return 0

    return afxdp_turn


TURN = Template("afxdp_turn", _turn, "i64(ptr, i64)", (FORWARD, PUSH, NOW), inline=False)


def _flush(m: Any) -> Callable[..., Any]:
    push, refill, turn = m.extern(PUSH), m.extern(REFILL), m.extern(TURN)

    def afxdp_live_flush(q):  # type: ignore[no-untyped-def]
        mine, published = m.load_u64(q, TX + MINE), m.load_u64(q, TX + PUBLISHED)
        count = mine - published
        if count >= m.load_u64(q, LIVE_LEAST):
            consumed = m.acquire_u32(m.load_ptr(q, TX + CONSUMER), 0)
            if m.sub(published, consumed) & _U32 == 0:
                waited = m.load_u64(q, LIVE_WAITED)
                m.store_u64(q, LIVE_WAITED, mine)
                collects = m.load_u64(q, LIVE_CHOSEN)
                phase = m.load_u64(q, LIVE_TURNS) & (PERIOD - 1)
                if phase < PROBES and m.load_u64(q, LIVE_ALWAYS) == 0:
                    collects = phase & 1  # it is tried as it would be used
                if collects != 0 and mine != waited and count < m.load_u64(q, LIVE_MOST):
                    return refill(q)  # more may come
                turn(q, count)
                return refill(q)
        if mine != m.load_u64(q, COMPLETION + MINE):
            push(q)
        return refill(q)

    return afxdp_live_flush


AFXDP_LIVE = PortKind(
    "afxdp_live", receive=AFXDP.receive, release=AFXDP.release, transmit=AFXDP.transmit,
    send=AFXDP.send,
    flush=Template("afxdp_live_flush", _flush, FLUSH_SIGNATURE, (PUSH, REFILL, TURN)),
    losses=AFXDP.losses)


class LiveTx:
    """The second way out of a port's queues, in the interface's network namespace.

    `always`: there is no choice.  Raises PortError; close() ends it, the workers having stopped."""

    def __init__(self, found: Interface, queues: Sequence[Queue], always: bool) -> None:
        self._ifindex, self._name = found.ifindex, found.name
        self._queues, self._always = queues, always
        self._can, self._said = True, ""
        self._frames = LiveFrames(found.name, found.ifindex, found.mtu, len(queues),
                                  out_by(found.ifindex))
        for queue, block in zip(queues, self._frames.blocks, strict=True):
            queue.store(LIVE_QUEUE, block.address)
            queue.store(LIVE_MOST, min(MOST, queue.shape.ring_size // 4))
            queue.store(LIVE_ALWAYS, int(always))
            queue.store(LIVE_CHOSEN, int(always))
        self._allow(True)

    def _allow(self, can: bool) -> None:
        self._can = can
        least = (1 if self._always else LEAST) if can else LIVE_NEVER
        for queue in self._queues:
            queue.store(LIVE_LEAST, least)

    def check(self) -> None:
        """Is the interface still a target of redirects?"""
        can = _is_target(self._ifindex)
        if can != self._can:
            self._allow(can)

    def said(self) -> str:
        """What was found out, when there is something new; "" else."""
        text = ""
        if not self._can:
            text = f"{self._name} takes no redirects any more: packets leave by AF_XDP's TX ring"
        elif not self._always:
            text = self._compared() or self._said
        fresh, self._said = text != self._said, text
        return text if fresh else ""

    def _compared(self) -> str:
        """"" until a queue has compared the two, and where it makes no difference."""
        for queue in self._queues:
            if queue.load(LIVE_TURNS) % PERIOD < PROBES:
                continue  # at it
            live, xsk = (queue.load(ns) / max(queue.load(count), 1)
                         for ns, count in ((LIVE_NS, LIVE_PROBED), (XSK_NS, XSK_PROBED)))
            if queue.load(LIVE_CHOSEN) and live * _CLAIM < xsk:
                return f"batches leave {self._name} by live frames, which is faster here than " \
                    "AF_XDP's TX ring"
            if not queue.load(LIVE_CHOSEN) and xsk * _CLAIM < live:
                return f"batches leave {self._name} by AF_XDP's TX ring, which is faster here " \
                    "than live frames"
        return ""

    def statistics(self) -> dict[str, int]:
        """`tx_live` packets left so, `tx_live_failed` of them the kernel did not take."""
        told = self._frames.statistics()
        return {"tx_live": sum(queue.load(LIVE_FRAMES) for queue in self._queues),
                "tx_live_failed": told["failed"] + told["too_long"] + told["refused"]}

    def close(self) -> None:
        self._frames.close()


def offer(found: Interface, queues: Sequence[Queue], wanted: str) -> tuple[LiveTx | None, str]:
    """The second way, where `wanted` (of WAYS) and the interface allow it; and words for it.
    Raises PortError when it is asked for and cannot be."""
    if wanted == "xsk":
        return None, ""
    why = ""
    if queues[0].shape.frags:
        why = "packets in several frames go by the TX ring only"
    elif wanted == "auto" and all(queue.is_zero_copy() for queue in queues):
        return None, ""
    elif not _is_target(found.ifindex):
        why = f"{found.driver} takes no redirects" \
            + (" while its peer has neither XDP nor GRO" if found.driver == "veth" else "")
    elif longest(found.mtu) > FRAME_MAX:
        why = f"live frames take {FRAME_MAX} bytes, the MTU is {found.mtu}"
    if not why:
        try:
            made = LiveTx(found, queues, wanted == "live")
        except PortError as error:
            if wanted == "live":
                raise
            why = error.why
        else:
            return made, "sent by live frames" if wanted == "live" else \
                "batches sent by live frames where that is faster"
    if wanted == "live":
        raise PortError(f"--tx live on {found.name}", why, "--tx xsk")
    return None, f"sent by the TX ring only ({why})"


def _is_target(ifindex: int) -> bool:
    return bool((xdp_features(ifindex) or 0) & XDP_NDO_XMIT)
