"""Many different packets: the same ones, in the same order, for the kernel and for us.

The kernel's test run has one packet.  So there a program (programs/many.c) writes another address
into it and tail-calls the program under test; its floor is the same with a program that only
returns.  Ours is the worker loop of a real run (dataplane/loop.py) on a port that makes those
packets; its floor is that loop with a program that only returns.  After both have seen the same
number of packets, their maps must be equal.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.micro.cases import Kind, Micro, Stream, build
from bench.prog import Mismatch, Sample
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
from xdp_runtime.bpf_syscall import map_update
from xdp_runtime.elf import read_object
from xdp_runtime.kernel import KernelProgram, load_into_kernel
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.map import Map
from xdp_runtime.object import MapType, Object
from xdp_runtime.state import HEADROOM_BYTES, XDP_FRAME_BYTES
from xdp_runtime.template import Template

_STATE = struct.Struct("=QQQ")  # of programs/many.c
_ZERO_KEY = bytes(4)
_SPOT_KEYS = 2000  # of a large map, so many entries are compared
_SEED = 88172645463325252
_PROBES = 65_536

# the port's memory
_LEFT, _RANDOM, _COUNT, _IN_ORDER, _KIND, _FLOWS = 0, 8, 16, 24, 32, 40
_FRAMES, _STRIDE, _PACKET, _LENGTH = 48, 56, 64, 72
_PACKET_BYTES = 64
# as of a umem: chunks of 4096 bytes
STRIDE_BYTES = 4096


def _receive(m: Any) -> Callable[..., Any]:
    def many_receive(q, batch, budget):  # type: ignore[no-untyped-def]
        left = m.load_u64(q, _LEFT)
        x, count = m.load_u64(q, _RANDOM), m.load_u64(q, _COUNT)
        in_order, kind, flows = m.load_u64(q, _IN_ORDER), m.load_u64(q, _KIND), m.load_u64(
            q, _FLOWS)
        frames, stride = m.load_ptr(q, _FRAMES), m.load_u64(q, _STRIDE)
        packet = m.load_ptr(q, _PACKET)
        n = 0
        while n < budget and n < BATCH_MAX and n < left:
            frame = m.inside(frames, n * stride)
            data = m.inside(frame, HEADROOM_BYTES)
            m.copy(data, packet, _PACKET_BYTES)
            x = m.add(m.mul(x, 6364136223846793005), 1442695040888963407)
            number = m.lshr(m.lshr(x, 32) * flows, 32)
            if in_order != 0:
                number = count
                count += 1
            if kind == 2:
                address = (m.mul(number, 2654435761) & 0xFFFFFF00) | (m.lshr(x, 24) & 255)
                m.store_u32(data, 30, m.swap32(address))
            elif kind == 3:
                address = (m.mul(number, -7046029254386353131) & -65536) | (
                    m.lshr(x, 16) & 65535)
                m.store_u64(data, 38, m.swap64(address))
            else:
                m.store_u32(data, 26, m.mul(number, 2654435761))
            slot = m.inside(batch, n * SLOT_SIZE_BYTES)
            m.store_ptr(slot, DATA, data)
            m.store_ptr(slot, DATA_END, m.inside(data, _PACKET_BYTES))
            m.store_ptr(slot, HARD_START, m.inside(frame, XDP_FRAME_BYTES))
            m.store_ptr(slot, FRAME_END, m.inside(frame, 4096 - SKB_SHARED_INFO_BYTES))
            m.store_u64(slot, COOKIE, n)
            n += 1
        m.store_u64(q, _LEFT, left - n)
        m.store_u64(q, _RANDOM, x)
        m.store_u64(q, _COUNT, count)
        return n

    return many_receive


def _nothing(*names: str) -> Callable[[Any], Callable[..., Any]]:
    def factory(m: Any) -> Callable[..., Any]:
        match len(names):
            case 1:
                return lambda q: 0
            case 2:
                return lambda q, slot: 0
            case _:
                return lambda q, data, length: 0

    return factory


MANY = PortKind(
    "many",
    receive=Template("many_receive", _receive, RECEIVE_SIGNATURE),
    release=Template("many_release", _nothing("q", "slot"), RELEASE_SIGNATURE),
    transmit=Template("many_transmit", _nothing("q", "slot"), TRANSMIT_SIGNATURE),
    send=Template("many_send", _nothing("q", "data", "length"), SEND_SIGNATURE),
    flush=Template("many_flush", _nothing("q"), FLUSH_SIGNATURE),
)


class ManyPort:
    """A port on which the packets of a stream come in; what becomes of them is nobody's business.
    """

    kind = MANY

    def __init__(self, packet: bytes, stream: Stream, stride_bytes: int = STRIDE_BYTES) -> None:
        self.name, self.ifindex, self.mtu, self.mode = "many", 1, 1500, "made here"
        self._packet, self._frames = Block(4096), Block((BATCH_MAX + 1) * stride_bytes)
        self.memory = Block(4096)
        self._packet.write(0, packet[:_PACKET_BYTES])
        for offset, value in ((_RANDOM, _SEED), (_KIND, stream.kind), (_FLOWS, stream.flows),
                              (_FRAMES, self._frames.address), (_STRIDE, stride_bytes),
                              (_PACKET, self._packet.address),
                              (_IN_ORDER, int(stream.kind == Kind.NEXT))):
            self.memory.set(offset, value)
        self.queues: Sequence[PortQueue] = [PortQueue(0, self.memory.address, -1)]

    def offer(self, count: int) -> None:
        self.memory.set(_LEFT, count)

    def in_order(self, yes: bool) -> None:
        self.memory.set(_IN_ORDER, int(yes))

    def statistics(self) -> dict[str, int]:
        return {}

    def finished(self) -> bool:
        return self.memory.get(_LEFT) == 0

    def close(self) -> None:
        for block in (self._packet, self._frames, self.memory):
            block.close()


class _Loop:
    """A worker loop around one program, run for so many packets at a time."""

    def __init__(self, obj: Object, program: str, micro: Micro, stack: ExitStack) -> None:
        assert micro.stream is not None
        self.port = ManyPort(micro.packet, micro.stream)
        stack.callback(self.port.close)
        self.engine = Engine(obj, [self.port], program=program, exit_when_idle=True)
        stack.callback(self.engine.close)

    def run(self, count: int) -> float:
        """ns a packet"""
        self.port.offer(count)
        started = time.perf_counter_ns()
        self.engine.start()
        if not self.engine.wait(60):
            raise Mismatch("ours: the loop did not end within a minute")
        return (time.perf_counter_ns() - started) / count


class OurMany:
    def __init__(self, obj: Object, micro: Micro, where: Path, stack: ExitStack) -> None:
        self._real = _Loop(obj, micro.program, micro, stack)
        idle = read_object(build("many", where, *_flags(micro)))
        self._idle = _Loop(idle, "idle", micro, stack)
        self.maps: dict[str, Map] = self._real.engine.program.maps

    def fill(self, count: int) -> None:
        self._real.port.in_order(True)
        self._real.run(count)
        self._real.port.in_order(False)

    def run(self, count: int) -> float:
        return self._real.run(count)

    def sample(self, count: int) -> Sample:
        """As a real run does, which looks ahead if it pays; and without, and always."""
        floor, raw = self._idle.run(count), self._real.run(count)
        sample = {"floor": floor, "raw": raw, "net": raw - floor}
        for how in ("off", "on"):
            self._real.engine.look_ahead(how)
            sample[f"look_ahead_{how}"] = self._real.run(count) - floor
        self._real.engine.look_ahead("auto")
        return sample


class KernelMany:
    """The program under test behind the one that makes packets."""

    def __init__(self, program: KernelProgram, micro: Micro, where: Path,
                 stack: ExitStack) -> None:
        self._packet, self._verdict = micro.packet, micro.verdict
        obj = read_object(build("many", where, *_flags(micro)))
        idle = stack.enter_context(load_into_kernel(obj, "idle"))
        self._makers = {}
        for name, target in (("raw", program.fd), ("floor", idle.fd)):
            maker = stack.enter_context(load_into_kernel(obj, "many"))
            map_update(maker.maps["target"].fd, _ZERO_KEY, target.to_bytes(4, "little"))
            maker.maps["state"].update(_ZERO_KEY, _STATE.pack(_SEED, 0, 0))
            self._makers[name] = maker
        self.maps: dict[str, KernelMap] = program.maps

    def fill(self, count: int) -> None:
        state = self._makers["raw"].maps["state"]
        random, done, _ = _STATE.unpack(state.lookup(_ZERO_KEY) or b"")
        state.update(_ZERO_KEY, _STATE.pack(random, done, 1))
        self.run(count)
        random, done, _ = _STATE.unpack(state.lookup(_ZERO_KEY) or b"")
        state.update(_ZERO_KEY, _STATE.pack(random, done, 0))

    def run(self, count: int, name: str = "raw") -> float:
        done = self._makers[name].run(self._packet[:_PACKET_BYTES], count)
        if done.retval != self._verdict:
            raise Mismatch(f"kernel: {count} runs ended with verdict {done.retval}")
        return done.duration_ns

    def sample(self, count: int) -> Sample:
        floor, raw = self.run(count, "floor"), self.run(count)
        for _ in range(2):  # as ours does, so that both see the same packets
            self.run(count)
        return {"floor": floor, "raw": raw, "net": raw - floor}


def _flags(micro: Micro) -> tuple[str, ...]:
    assert micro.stream is not None
    return f"-DFLOWS={micro.stream.flows}", f"-DKIND={int(micro.stream.kind)}"


def compare_maps(micro: Micro, kernel: KernelMany, ours: OurMany) -> int:
    """How many entries were compared.  Raises Mismatch."""
    compared = 0
    for name, theirs in kernel.maps.items():
        if name in micro.uncompared or theirs.spec.type == MapType.PROG_ARRAY:
            continue
        for number, key in enumerate(ours.maps[name].keys()):
            if number == _SPOT_KEYS:
                break
            mine, wanted = ours.maps[name].lookup(key), theirs.lookup(key)
            if mine != wanted:
                raise Mismatch(f"map {name}: differs at key {key.hex()}")
            compared += 1
    return compared


def prepare(obj: Object, micro: Micro, where: Path, stack: ExitStack
            ) -> tuple[KernelMany, OurMany]:
    """Both sides, filled and compared.  Raises Mismatch."""
    assert micro.stream is not None
    program = stack.enter_context(load_into_kernel(obj, micro.program))
    kernel = KernelMany(program, micro, where, stack)
    ours = OurMany(obj, micro, where, stack)
    for name, entries in micro.entries().items():
        for key, value in entries.items():
            program.maps[name].update(key, value)
            ours.maps[name].update(key, value)
    for side in (kernel, ours):
        side.fill(micro.stream.flows)
        side.run(_PROBES)
    if compare_maps(micro, kernel, ours) == 0 and not micro.uncompared:
        raise Mismatch("no map entry to compare")
    return kernel, ours
