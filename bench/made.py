"""A port on which packets are made, each another one, for the worker loop of a real run.

A packet is copied into a frame, a number is drawn for it, and a template of who wants the packets
(`change`) writes that number into it.  Numbers come from a 64-bit LCG, scaled to `numbers`, or one
after the other (`in_order`); generated programs in the kernel draw the same ones in the same order.
What becomes of the packets is nobody's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Any

from bench.agree import LOOPBACK, Mismatch
from dataplane.block import SKB_SHARED_INFO_BYTES, Block
from dataplane.engine import Engine
from dataplane.port import (
    BATCH_MAX,
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
    PortQueue,
)
from xdp_runtime.object import Object
from xdp_runtime.state import HEADROOM_BYTES, XDP_FRAME_BYTES
from xdp_runtime.template import Template

A, C = 6364136223846793005, 1442695040888963407  # D. Knuth, MMIX
SEED = 88172645463325252
CHANGE_SIGNATURE = "i64(ptr, ptr, i64, i64)"  # the port's settings, data, number, the LCG's state

# the port's memory
(_LEFT, _RANDOM, _NUMBERS, _COUNT, _IN_ORDER, _FRAMES, _PACKET, _LENGTH,
 _LAST) = range(0, 72, 8)
SETTINGS = 128  # what is `change`'s own: u64 each
_FRAME_BYTES = 4096  # as of a umem
# Frames that lie so far apart begin in the same set of an L1 cache, of 8 lines, and a batch of
# them has none of its packets there; the one packet of the kernel's test run always is
_STRIDE_BYTES = _FRAME_BYTES + 64
_WAIT_S = 120


def kind(name: str, change: Template) -> PortKind:
    """Packets that `change(settings, data, number, x)` makes different."""
    def factory(m: Any) -> Callable[..., Any]:
        change_one = m.extern(change)

        def receive(q, batch, budget):  # type: ignore[no-untyped-def]
            left, x, numbers = (
                m.load_u64(q, _LEFT), m.load_u64(q, _RANDOM), m.load_u64(q, _NUMBERS))
            count, in_order = m.load_u64(q, _COUNT), m.load_u64(q, _IN_ORDER)
            frames, packet, length = (
                m.load_ptr(q, _FRAMES), m.load_ptr(q, _PACKET), m.load_u64(q, _LENGTH))
            settings = m.gep(q, SETTINGS)
            n = 0
            while n < budget and n < BATCH_MAX and n < left:
                frame = m.inside(frames, n * _STRIDE_BYTES)
                data = m.inside(frame, HEADROOM_BYTES)
                m.copy(data, packet, length)
                x = m.add(m.mul(x, A), C)
                number = m.lshr(m.lshr(x, 32) * numbers, 32)
                if in_order != 0:
                    number = count
                    count += 1
                change_one(settings, data, number, x)
                slot = m.inside(batch, n * SLOT_SIZE_BYTES)
                m.store_ptr(slot, DATA, data)
                m.store_ptr(slot, DATA_END, m.inside(data, length))
                m.store_ptr(slot, HARD_START, m.inside(frame, XDP_FRAME_BYTES))
                m.store_ptr(slot, FRAME_END, m.inside(
                    frame, _FRAME_BYTES - SKB_SHARED_INFO_BYTES))
                m.store_u64(slot, COOKIE, n)
                n += 1
            if n > 0:
                m.store_u64(q, _LAST, n - 1)
            m.store_u64(q, _LEFT, left - n)
            m.store_u64(q, _RANDOM, x)
            m.store_u64(q, _COUNT, count)
            return n

        return receive

    return PortKind(
        name,
        receive=Template(f"{name}_receive", factory, RECEIVE_SIGNATURE, (change,)),
        release=Template(f"{name}_release", lambda m: lambda q, slot: 0, RELEASE_SIGNATURE),
        transmit=Template(f"{name}_transmit", lambda m: lambda q, slot: 1, TRANSMIT_SIGNATURE),
        send=Template(f"{name}_send", lambda m: lambda q, data, length: 1, SEND_SIGNATURE),
        flush=Template(f"{name}_flush", lambda m: lambda q: 0, FLUSH_SIGNATURE))


class MadePort:
    """`settings` are what the kind's `change` reads, one u64 after the other."""

    def __init__(self, kind: PortKind, packet: bytes, numbers: int, settings: Sequence[int],
                 in_order: bool = False) -> None:
        self.kind, self.name, self.ifindex, self.mtu = kind, kind.name, LOOPBACK, 1500
        self.mode = "made here"
        self._packet, self._frames = Block(4096), Block((BATCH_MAX + 1) * _STRIDE_BYTES)
        self.memory = Block(4096)
        self._packet.write(0, packet)
        for offset, value in ((_RANDOM, SEED), (_NUMBERS, numbers), (_IN_ORDER, int(in_order)),
                              (_FRAMES, self._frames.address), (_PACKET, self._packet.address),
                              (_LENGTH, len(packet))):
            self.memory.set(offset, value)
        for at, value in enumerate(settings):
            self.memory.set(SETTINGS + 8 * at, value)
        self.queues: Sequence[PortQueue] = [PortQueue(0, self.memory.address, -1)]

    def offer(self, count: int) -> None:
        self.memory.set(_LEFT, count)

    def in_order(self, yes: bool) -> None:
        self.memory.set(_IN_ORDER, int(yes))

    @property
    def random(self) -> int:
        return self.memory.get(_RANDOM)

    def last(self, head: int, length: int) -> bytes:
        """The last packet, if its head has moved by so much."""
        at = self.memory.get(_LAST) * _STRIDE_BYTES + HEADROOM_BYTES - head
        return self._frames.read(at, length)

    def statistics(self) -> dict[str, int]:
        return {}

    def finished(self) -> bool:
        return self.memory.get(_LEFT) == 0

    def close(self) -> None:
        for block in (self._packet, self._frames, self.memory):
            block.close()


class Loop:
    """The worker loop of a run around one program, run for so many packets at a time."""

    def __init__(self, obj: Object, program: str | None, port: MadePort, stack: ExitStack) -> None:
        self.port = stack.enter_context(closing(port))
        self.engine = stack.enter_context(closing(
            Engine(obj, [port], program=program, exit_when_idle=True)))

    def run(self, count: int) -> float:
        """ns a packet while this process had a CPU: the kernel's test run, too, stops its clock
        when others have it.  Raises Mismatch."""
        self.port.offer(count)
        started = time.process_time_ns()
        self.engine.start()
        if not self.engine.wait(_WAIT_S):
            raise Mismatch(f"ours: the loop did not end within {_WAIT_S} s")
        return (time.process_time_ns() - started) / count
