"""Many different packets: the same ones, in the same order, for the kernel and for us.

The kernel's test run has one packet.  So there a program (programs/many.c) writes another address
into it and tail-calls the program under test; its floor is the same with a program that only
returns.  Ours is the worker loop of a real run (dataplane/loop.py) on a port that makes those
packets; its floor is that loop with a program that only returns.  After both have seen the same
number of packets, their maps must be equal.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import made
from bench.agree import Mismatch, spot_check
from bench.made import SEED, Loop, MadePort
from bench.micro.cases import Kind, Micro, build
from bench.sides import Sample
from xdp_runtime.bpf_syscall import map_update
from xdp_runtime.elf import read_object
from xdp_runtime.kernel import KernelProgram, load_into_kernel
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.map import Map
from xdp_runtime.object import Object
from xdp_runtime.template import Template

_STATE = struct.Struct("=QQQ")  # of programs/many.c
_ZERO_KEY = bytes(4)
_PROBES = 65_536

_PACKET_BYTES = 64


def _change(m: Any) -> Callable[..., Any]:
    """As programs/many.c does; the kind is the port's only setting."""
    def many_change(settings, data, number, x):  # type: ignore[no-untyped-def]
        kind = m.load_u64(settings, 0)
        if kind == 2:
            address = (m.mul(number, 2654435761) & 0xFFFFFF00) | (m.lshr(x, 24) & 255)
            m.store_u32(data, 30, m.swap32(address))
        elif kind == 3:
            address = (m.mul(number, -7046029254386353131) & -65536) | (m.lshr(x, 16) & 65535)
            m.store_u64(data, 38, m.swap64(address))
        else:
            m.store_u32(data, 26, m.mul(number, 2654435761))
        return number

    return many_change


MANY = made.kind("many", Template("many_change", _change, made.CHANGE_SIGNATURE))


def _loop(obj: Object, program: str, micro: Micro, stack: ExitStack) -> Loop:
    stream = micro.stream
    assert stream is not None
    return Loop(obj, program, MadePort(MANY, micro.packet[:_PACKET_BYTES], stream.flows,
                                       (stream.kind,), stream.kind == Kind.NEXT), stack)


class OurMany:
    def __init__(self, obj: Object, micro: Micro, where: Path, stack: ExitStack) -> None:
        self._real = _loop(obj, micro.program, micro, stack)
        idle = read_object(build("many", where, *_flags(micro)))
        self._idle = _loop(idle, "idle", micro, stack)
        self.maps: dict[str, Map] = self._real.engine.program.raw_maps

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
            maker.maps["state"].update(_ZERO_KEY, _STATE.pack(SEED, 0, 0))
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
    return spot_check(kernel.maps, ours.maps, micro.uncompared)


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
