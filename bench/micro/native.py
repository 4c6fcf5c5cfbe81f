"""The same C by clang for this CPU and, through BPF, by us: both called by one and the same loop.

clang -O2 -march=native makes of each program a function of the run state's first two fields, the
packet's edges; ours is the compiled program behind that signature.  One loop (programs/calls.c)
calls either through a pointer, on as many frames as a batch has, so that what differs is the
program and nothing else.  The floor is a program that only returns.  The programs leave a packet as
they found it, or undo their own change in a second run, so nothing is copied.

Each program has a copy of the loop for itself: an indirect call that has ever seen a second target
is predicted in another way, and takes 0.8 ns more.  What natively takes under 1 ns more
than the floor is below what can be divided by, and counts with the loop around it.
"""

from __future__ import annotations

import ctypes
import subprocess
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from bench.micro.cases import PROGRAMS, Micro, build
from bench.micro.records import Record, make
from bench.prog import Mismatch
from xdp_runtime import state as st
from xdp_runtime.compiler.link import ENTRY, Unit
from xdp_runtime.compiler.target import Code
from xdp_runtime.elf import read_object
from xdp_runtime.program import load

CALL = "xdpu.call"
UNIT = Unit("call", f'define i32 @"{CALL}"(ptr noalias %state) {{\n'
            f'  %v = call i32 @"{ENTRY}"(ptr %state)\n  ret i32 %v\n}}\n', exports=(CALL,))
FRAMES, LONG_FRAMES = 64, 16  # fewer of more than a cache line, to fit into the first-level cache
_LONG_BYTES = 128
_STRIDE = 4096 + 64 * 17  # no two at one offset of their pages: loads would wait for stores
_ROOM_BYTES = 256
_STATE_BYTES = 128
_TRIES = 4  # a round, the best of which counts: others run on this machine, too
_SIDES = ("xdpu", "native")


def build_native(source: Path, where: Path) -> bytes:
    """An object file for this CPU."""
    out = where / f"{source.stem}.native.o"
    subprocess.run(["clang", "-O2", "-Wall", "-Wno-unused-function", "-Wno-pass-failed",
                    "-march=native", "-fPIC", "-c", source, "-o", out], check=True)
    return out.read_bytes()


def one_program(source: str, program: str, where: Path) -> bytes:
    """Only that program of the source, as `native`."""
    alone = where / f"{source}_{program}.c"
    alone.write_text(f'#include "{PROGRAMS / source}.c"\nNATIVE({program})\n')
    return build_native(alone, where)


class Frames:
    """Packets in a ring, and a run state for each."""

    def __init__(self, packet: bytes, worker: int) -> None:
        self._packet = packet
        self.count = FRAMES if len(packet) <= _LONG_BYTES else LONG_FRAMES
        self._memory = ctypes.create_string_buffer(_STRIDE * self.count + 64)
        self._states = ctypes.create_string_buffer(_STATE_BYTES * self.count + 64)
        base = (ctypes.addressof(self._memory) + 63) & ~63
        self.states = (ctypes.addressof(self._states) + 63) & ~63
        self._data = [base + i * _STRIDE + _ROOM_BYTES for i in range(self.count)]
        for i, data in enumerate(self._data):
            end = data + len(packet)
            for offset, value in ((st.DATA, data), (st.DATA_END, end), (st.DATA_META, data),
                                  (st.HARD_START, data - _ROOM_BYTES), (st.FRAME_END, end),
                                  (st.WORKER, worker)):
                ctypes.c_uint64.from_address(self.states + i * _STATE_BYTES + offset).value = value
            ctypes.memmove(data, packet, len(packet))

    def packets(self) -> list[bytes]:
        return [ctypes.string_at(data, len(self._packet)) for data in self._data]


class _Loop:
    """The loop for one program."""

    def __init__(self, image: bytes, address: int, frames: Frames) -> None:
        self._code = Code(image, {}, ["calls"])
        self._calls = self._code.function("calls", ctypes.c_uint32, *[ctypes.c_void_p] * 2,
                                          *[ctypes.c_uint64] * 3)
        self._address, self.frames = address, frames

    def run(self, count: int) -> tuple[int, float]:
        """verdict, ns a call"""
        started = time.perf_counter_ns()
        verdict = self._calls(self._address, self.frames.states, _STATE_BYTES, self.frames.count,
                              count)
        return verdict, (time.perf_counter_ns() - started) / count


def compare(micro: Micro, where: Path, count: int, rounds: int) -> list[Record]:
    """Both compilers' program and the floor, in turns.  Raises Mismatch if they do not agree."""
    count = max(count // _TRIES // (2 * FRAMES), 1) * 2 * FRAMES
    with ExitStack() as stack:
        obj = read_object(build(micro.source, where, *micro.flags))
        program = stack.enter_context(load(obj, micro.program, units=[UNIT]))
        codes = {name: Code(one_program(source, body, where), {}, ["native"])
                 for name, source, body in (("native", micro.source, micro.program),
                                            ("floor", "plain", "empty"))}
        addresses = {"xdpu": program.code.address(CALL),
                     **{name: code.address("native") for name, code in codes.items()}}
        image = build_native(PROGRAMS / "calls.c", where)
        loops = {name: _Loop(image, address, Frames(micro.packet, program.worker_memory(0)))
                 for name, address in addresses.items()}
        _agree(micro, loops)
        samples: dict[str, list[float]] = {name: [] for name in loops}
        for turn in range(rounds + 1):
            for name in sorted(loops, reverse=turn % 2 == 0):
                took = min(loops[name].run(count)[1] for _ in range(_TRIES))
                if turn:  # the first one warms
                    samples[name].append(round(took, 3))
        for name, loop in loops.items():
            if set(loop.frames.packets()) != {micro.packet}:
                raise Mismatch(f"{name}: an even number of runs changed the packet")
    return [make(micro.name, side, "call", samples[side], [
        a - b for a, b in zip(samples[side], samples["floor"], strict=True)]) for side in _SIDES]


def _agree(micro: Micro, loops: Mapping[str, _Loop]) -> None:
    """Each frame once: verdict and packets; and once more, so that they are as before."""
    outcomes = {}
    for side in _SIDES:
        verdict, _ = loops[side].run(loops[side].frames.count)
        outcomes[side] = verdict, loops[side].frames.packets()
        loops[side].run(loops[side].frames.count)
    if outcomes["xdpu"] != outcomes["native"]:
        raise Mismatch("native: verdict or packet are not ours")
    if outcomes["xdpu"][0] != micro.verdict:
        raise Mismatch(f"native: verdict {outcomes['xdpu'][0]}, expected {micro.verdict.name}")
