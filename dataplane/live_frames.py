"""LiveFrames: frames handed to the kernel by an Injector, many with one system call.

What is appended lies in the queue's area until it is pushed.  A push is one system call of some
13 us and 0.4 us a frame (injector.py says what happens in it; skb_injector.py of another, that
costs 5 us and 0.6 a frame), so who appends decides how long to collect.  After it all frames are
gone, in their order: taken by the kernel, or counted in FAILED.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from dataplane import injector
from dataplane.block import Block
from dataplane.injector import (
    ATTR_BYTES,
    ATTR_REPEAT,
    ATTR_SIZE,
    FIRST_SLOT,
    INTO_STACK,
    SLOTS,
    Aim,
    Injector,
)
from xdp_runtime.bpf_syscall import BPF_NUMBER, Cmd
from xdp_runtime.template import Template

# a queue's memory
AREA, ATTR, TAIL, SLOT_BYTES, LONGEST, NUMBER = 0, 8, 16, 24, 32, 40
TOO_LONG, FAILED, ERRNO, CALLS = 48, 56, 64, 72
A_RUN, SIZED, LARGEST = 80, 88, 96  # `SIZED`: a call begins with a packet as long as the largest
OWN = 104  # the rest is for who makes it
BYTES = 128
_TRIES = 4  # a signal ends a call early
_TEST_RUN = int(Cmd.PROG_TEST_RUN)
_COUNTERS = {"too_long": TOO_LONG, "failed": FAILED, "calls": CALLS}


def _push(m: Any) -> Callable[..., Any]:
    def live_push(q):  # type: ignore[no-untyped-def]
        """Have all that was collected taken; what the kernel refuses is given up and counted."""
        area = m.load_ptr(q, AREA)
        tail = m.load_u64(q, TAIL)
        m.store_u64(area, injector.UNTIL, tail)
        taken = m.acquire_u64(area, injector.CURSOR)
        tries = 0
        while taken != tail and tries < _TRIES:
            attr = m.load_ptr(q, ATTR)
            a_run = m.load_u64(q, A_RUN)
            if m.load_u64(q, SIZED) != 0:
                m.store_u32(attr, ATTR_SIZE, m.load_u64(q, LARGEST))
            m.store_u32(attr, ATTR_REPEAT, (tail - taken + a_run - 1) // a_run)
            m.store_u64(q, CALLS, m.load_u64(q, CALLS) + 1)
            if m.c_syscall4(m.load_u64(q, NUMBER), _TEST_RUN, m.address(attr), ATTR_BYTES) < 0:
                m.store_u64(q, ERRNO, m.errno())
            taken = m.acquire_u64(area, injector.CURSOR)
            tries += 1
        if taken != tail:
            m.store_u64(q, FAILED, m.load_u64(q, FAILED) + tail - taken)
            m.store_u64(area, injector.CURSOR, tail)
        m.store_u64(q, LARGEST, injector.FRAME_MIN)
        return 0

    return live_push


PUSH = Template("live_push", _push, "i64(ptr)", inline=False)


def _append(m: Any) -> Callable[..., Any]:
    push = m.extern(PUSH)

    def live_append(q, data, length):  # type: ignore[no-untyped-def]
        """Copy a frame into the area -> where in it, past the queue's memory; 0 if too long."""
        if length > m.load_u64(q, LONGEST) or length < injector.FRAME_MIN:
            m.store_u64(q, TOO_LONG, m.load_u64(q, TOO_LONG) + 1)
            return 0
        tail, area = m.load_u64(q, TAIL), m.load_ptr(q, AREA)
        if tail - m.load_u64(area, injector.CURSOR) == SLOTS:
            push(q)
        at = FIRST_SLOT + (tail & (SLOTS - 1)) * m.load_u64(q, SLOT_BYTES)
        slot = m.inside(area, at)
        m.store_u32(slot, injector.LENGTH, length)
        m.copy(m.inside(slot, injector.BYTES), data, length)
        m.store_u64(q, TAIL, tail + 1)
        if length > m.load_u64(q, LARGEST):
            m.store_u64(q, LARGEST, length)
        return at + injector.BYTES

    return live_append


APPEND = Template("live_append", _append, "i64(ptr, ptr, i64)", (PUSH,), inline=False)


class LiveFrames:
    """The queues of one interface, for what `aim` says; in its network namespace, as the threads
    have to be that push.

    `blocks` are the queues' memory.  Raises PortError; close() ends it."""

    def __init__(self, ifname: str, ifindex: int, mtu: int, queues: int,
                 aim: Aim = INTO_STACK, by: type[Injector] = Injector) -> None:
        self._injector = by(ifname, ifindex, queues, longest(mtu), aim)
        self._final: dict[str, int] | None = None
        self.blocks: list[Block] = []
        for way in self._injector.ways:
            q = Block(BYTES)
            for offset, value in ((AREA, way.area), (ATTR, way.attr), (NUMBER, BPF_NUMBER),
                                  (SLOT_BYTES, self._injector.slot_bytes),
                                  (LONGEST, self._injector.longest), (A_RUN, by.a_run),
                                  (SIZED, int(not by.live)), (LARGEST, injector.FRAME_MIN)):
                q.set(offset, value)
            self.blocks.append(q)

    def statistics(self) -> dict[str, int]:
        """`failed` the kernel refused; `calls` of bpf(2); `refused` by the program: of a
        socket that was not there, else none, unless it is wrong."""
        if self._final is not None:
            return self._final
        return {"refused": self._injector.refused()} | {
            name: sum(q.get(offset) for q in self.blocks) for name, offset in _COUNTERS.items()}

    def last_error(self) -> str:
        """What the kernel said of the last frames it refused, or ""."""
        codes = [q.get(ERRNO) for q in self.blocks if self._final is None]
        return next((os.strerror(code) for code in codes if code), "")

    @property
    def closed(self) -> bool:
        return self._final is not None

    def close(self) -> None:
        """What was appended and not pushed is lost.  The workers must have stopped."""
        if self._final is None:
            self._final = self.statistics()
            self._injector.close()
            for q in self.blocks:
                q.close()


def longest(mtu: int) -> int:
    """The longest frame of an interface: Ethernet's header and two VLAN tags more than its MTU."""
    return mtu + 14 + 8
