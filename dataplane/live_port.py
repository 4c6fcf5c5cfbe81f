"""LivePort: the stack behind an interface, reached by BPF_PROG_TEST_RUN, with skbs of the kernel's
(skb_injector.py) or its live frames (injector.py).

What is sent here comes in by the interface; nothing is ever received, for what the stack answers
leaves by the interface itself.  Frames go with one system call as soon as there are BATCH of them,
or when a flush finds that no more came since the last: under load a call serves many batches of
the loop, and a single frame waits for one round of it.

Checksums.  A frame whose TCP or UDP checksum was left to hardware (checksum.py says how that looks)
is completed here, as there is no place to say that it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dataplane import injector
from dataplane.checksum import COMPLETE, PARTIAL
from dataplane.injector import BATCH, INTO_STACK, Aim, Injector
from dataplane.live_frames import APPEND, AREA, OWN, PUSH, TAIL, LiveFrames, longest
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
from xdp_runtime.template import Template

_SEEN, _COMPLETED = OWN, OWN + 8  # of the queue's memory: TAIL at the last flush; a counter


def _send(m: Any) -> Callable[..., Any]:
    append, push = m.extern(APPEND), m.extern(PUSH)
    partial, complete = m.extern(PARTIAL), m.extern(COMPLETE)

    def live_send(q, data, length):  # type: ignore[no-untyped-def]
        at = append(q, data, length)
        if at == 0:
            return 0
        area = m.load_ptr(q, AREA)
        where = partial(data, length)
        if where != 0:
            complete(m.inside(area, at), length, where)
            m.store_u64(q, _COMPLETED, m.load_u64(q, _COMPLETED) + 1)
        if m.load_u64(q, TAIL) - m.load_u64(area, injector.CURSOR) >= BATCH:
            push(q)
        return 1

    return live_send


SEND = Template("live_send", _send, SEND_SIGNATURE, (APPEND, PUSH, PARTIAL, COMPLETE),
                inline=False)


def _transmit(m: Any) -> Callable[..., Any]:
    send = m.extern(SEND)

    def live_transmit(q, slot):  # type: ignore[no-untyped-def]
        data = m.load_ptr(slot, DATA)
        return send(q, data, m.diff(m.load_ptr(slot, DATA_END), data))

    return live_transmit


def _flush(m: Any) -> Callable[..., Any]:
    push = m.extern(PUSH)

    def live_flush(q):  # type: ignore[no-untyped-def]
        tail = m.load_u64(q, TAIL)
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
    losses=("failed", "refused"),
)


class LivePort:
    """One queue for each worker; in the interface's network namespace.  Raises PortError."""

    kind: PortKind = LIVE

    def __init__(self, ifname: str, ifindex: int, mtu: int, queues: int,
                 aim: Aim = INTO_STACK, by: type[Injector] = Injector) -> None:
        self.name, self.ifindex, self.mtu = f"{ifname} (stack)", 0, mtu
        self.mode = f"{by.what}, up to {BATCH} a system call"
        self._frames = LiveFrames(ifname, ifindex, mtu, queues, aim, by)
        self._completed = 0
        self.queues: Sequence[PortQueue] = [
            PortQueue(index, q.address, -1) for index, q in enumerate(self._frames.blocks)]

    def statistics(self) -> dict[str, int]:
        """Those of LiveFrames, and how many frames lacked a checksum."""
        if not self._frames.closed:
            self._completed = sum(q.get(_COMPLETED) for q in self._frames.blocks)
        return self._frames.statistics() | {"completed": self._completed}

    def unfit(self, mtu: int) -> str:
        """What a larger MTU than that it was opened with does to frames."""
        if longest(mtu) <= longest(self.mtu):
            return ""
        return f"XDP_PASS of packets longer than {longest(self.mtu)} bytes is refused " \
               "(pass_full, too_long), as the run made room for its MTU at the start: take the " \
               "interface anew (xdpu port remove, port add)"

    def last_error(self) -> str:
        return self._frames.last_error()

    def finished(self) -> bool:
        return self._frames.closed

    def close(self) -> None:
        """What was collected and not yet taken is lost; the loop flushes before it ends."""
        self.statistics()
        self._frames.close()
