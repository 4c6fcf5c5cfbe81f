"""LivePort: the stack behind an interface, reached by the kernel's own live frames (injector.py).

What is sent here comes in by the interface; nothing is ever received, for what the stack answers
leaves by the interface itself.  Frames are collected in the queue's area and go with one system
call as soon as there are BATCH of them, or when a flush finds that no more came since the last:
under load a call serves many batches of the loop, and a single frame waits for one round of it.

Checksums.  A frame whose TCP or UDP checksum was left to hardware (tap.py says how that looks) is
completed here, as live frames have no place to say that it is not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from dataplane import injector
from dataplane.block import Block
from dataplane.injector import ATTR_BYTES, ATTR_REPEAT, BATCH, FIRST_SLOT, SLOTS, Injector
from dataplane.port import (
    DATA,
    DATA_END,
    FLUSH_SIGNATURE,
    RECEIVE_SIGNATURE,
    RELEASE_SIGNATURE,
    SEND_SIGNATURE,
    TRANSMIT_SIGNATURE,
    PortKind,
    PortQueue,
)
from dataplane.tap import PARTIAL
from xdp_runtime.bpf_syscall import BPF_NUMBER, Cmd
from xdp_runtime.template import Template

# a queue's memory
_AREA, _ATTR, _TAIL, _SEEN, _SLOT_BYTES, _LONGEST, _NUMBER = 0, 8, 16, 24, 32, 40, 48
_TOO_LONG, _FAILED, _ERRNO, _COMPLETED, _CALLS = 56, 64, 72, 80, 88
_QUEUE_BYTES = 128
_TRIES = 4  # a signal ends a call early


def _push(m: Any) -> Callable[..., Any]:
    def live_push(q):  # type: ignore[no-untyped-def]
        """Have all that was collected taken; what the kernel refuses is given up and counted."""
        area = m.load_ptr(q, _AREA)
        tail = m.load_u64(q, _TAIL)
        taken = m.acquire_u64(area, injector.CURSOR)
        tries = 0
        while taken != tail and tries < _TRIES:
            attr = m.load_ptr(q, _ATTR)
            m.store_u32(attr, ATTR_REPEAT, tail - taken)
            m.store_u64(q, _CALLS, m.load_u64(q, _CALLS) + 1)
            if m.c_syscall4(m.load_u64(q, _NUMBER), _TEST_RUN, m.address(attr), ATTR_BYTES) < 0:
                m.store_u64(q, _ERRNO, m.errno())
            taken = m.acquire_u64(area, injector.CURSOR)
            tries += 1
        if taken != tail:
            m.store_u64(q, _FAILED, m.load_u64(q, _FAILED) + tail - taken)
            m.store_u64(area, injector.CURSOR, tail)
        return 0

    return live_push


_TEST_RUN = int(Cmd.PROG_TEST_RUN)
PUSH = Template("live_push", _push, "i64(ptr)", inline=False)


def _complete(m: Any) -> Callable[..., Any]:
    def live_complete(data, length, where):  # type: ignore[no-untyped-def]
        """Write the checksum of [start, end of the packet), whose field has the pseudo-header's."""
        start, field = where >> 16, (where >> 16) + (where & 0xFFFF)
        total = 0
        at = start
        while at + 2 <= length:
            total += m.load_u16(data, at)
            at += 2
        if at < length:
            total += m.load_u8(data, at)
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        total = total ^ 0xFFFF
        if total == 0:
            total = 0xFFFF  # as UDP must write it, and TCP may
        m.store_u16(data, field, total)
        return 0

    return live_complete


COMPLETE = Template("live_complete", _complete, "i64(ptr, i64, i64)", inline=False)


def _send(m: Any) -> Callable[..., Any]:
    push, partial, complete = m.extern(PUSH), m.extern(PARTIAL), m.extern(COMPLETE)

    def live_send(q, data, length):  # type: ignore[no-untyped-def]
        if length > m.load_u64(q, _LONGEST) or length < injector.FRAME_MIN:
            m.store_u64(q, _TOO_LONG, m.load_u64(q, _TOO_LONG) + 1)
            return 0
        tail = m.load_u64(q, _TAIL)
        slot = m.inside(m.load_ptr(q, _AREA),
                        FIRST_SLOT + (tail & (SLOTS - 1)) * m.load_u64(q, _SLOT_BYTES))
        m.store_u32(slot, injector.LENGTH, length)
        copy = m.inside(slot, injector.BYTES)
        m.copy(copy, data, length)
        where = partial(data, length)
        if where != 0:
            complete(copy, length, where)
            m.store_u64(q, _COMPLETED, m.load_u64(q, _COMPLETED) + 1)
        m.store_u64(q, _TAIL, tail + 1)
        if tail + 1 - m.load_u64(m.load_ptr(q, _AREA), injector.CURSOR) >= BATCH:
            push(q)
        return 1

    return live_send


SEND = Template("live_send", _send, SEND_SIGNATURE, (PUSH, PARTIAL, COMPLETE), inline=False)


def _transmit(m: Any) -> Callable[..., Any]:
    send = m.extern(SEND)

    def live_transmit(q, slot):  # type: ignore[no-untyped-def]
        data = m.load_ptr(slot, DATA)
        return send(q, data, m.diff(m.load_ptr(slot, DATA_END), data))

    return live_transmit


def _flush(m: Any) -> Callable[..., Any]:
    push = m.extern(PUSH)

    def live_flush(q):  # type: ignore[no-untyped-def]
        tail = m.load_u64(q, _TAIL)
        if tail == m.load_u64(q, _SEEN):
            push(q)
        m.store_u64(q, _SEEN, tail)
        return 0

    return live_flush


def _nothing(m: Any) -> Callable[..., Any]:
    def live_receive(q, batch, budget):  # type: ignore[no-untyped-def]
        return 0

    return live_receive


def _release(m: Any) -> Callable[..., Any]:
    def live_release(q, slot):  # type: ignore[no-untyped-def]
        return 0

    return live_release


LIVE = PortKind(
    "live",
    receive=Template("live_receive", _nothing, RECEIVE_SIGNATURE),
    release=Template("live_release", _release, RELEASE_SIGNATURE),
    transmit=Template("live_transmit", _transmit, TRANSMIT_SIGNATURE, (SEND,)),
    send=SEND,
    flush=Template("live_flush", _flush, FLUSH_SIGNATURE, (PUSH,)),
)


class LivePort:
    """One queue for each worker; in the interface's network namespace.  Raises PortError."""

    kind: PortKind = LIVE

    def __init__(self, ifname: str, ifindex: int, mtu: int, queues: int) -> None:
        self.name, self.ifindex, self.mtu = f"{ifname} (stack)", 0, mtu
        self.mode = f"live frames, up to {BATCH} a system call"
        self._injector = Injector(ifname, ifindex, queues, longest(mtu))
        self._final: dict[str, int] | None = None
        self._blocks: list[Block] = []
        for way in self._injector.ways:
            q = Block(_QUEUE_BYTES)
            for offset, value in ((_AREA, way.area), (_ATTR, way.attr), (_NUMBER, BPF_NUMBER),
                                  (_SLOT_BYTES, self._injector.slot_bytes),
                                  (_LONGEST, self._injector.longest)):
                q.set(offset, value)
            self._blocks.append(q)
        self.queues: Sequence[PortQueue] = [
            PortQueue(index, q.address, -1) for index, q in enumerate(self._blocks)]

    def statistics(self) -> dict[str, int]:
        """`completed` lacked a checksum; `failed` the kernel refused; `calls` of bpf(2)."""
        if self._final is not None:
            return self._final
        names = {"too_long": _TOO_LONG, "failed": _FAILED, "completed": _COMPLETED,
                 "calls": _CALLS}
        return {"refused": self._injector.refused()} | {
            name: sum(q.get(offset) for q in self._blocks) for name, offset in names.items()}

    def last_error(self) -> str:
        """What the kernel said of the last frames it refused, or ""."""
        codes = [q.get(_ERRNO) for q in self._blocks if self._final is None]
        return next((os.strerror(code) for code in codes if code), "")

    def finished(self) -> bool:
        return self._final is not None

    def close(self) -> None:
        """What was collected and not yet taken is lost; the loop flushes before it ends."""
        if self._final is None:
            self._final = self.statistics()
            self._injector.close()
            for q in self._blocks:
                q.close()


def longest(mtu: int) -> int:
    """The longest frame of an interface: Ethernet's header and two VLAN tags more than its MTU."""
    return mtu + 14 + 8
