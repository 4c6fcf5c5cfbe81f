"""What a packet costs that finds nothing in the cache: before each run, twice the size of the L2
cache is read.

On both sides the packet is put back, then memory is walked, then the clock is read, the program
runs, and the clock is read again.  In the kernel a wrapper does all this, and the program is one of
its functions: were it tail-called, the clock could be read only in the next run, and what the
kernel's harness itself waits for in between would hide what the program waits for.  The same around
a function that only returns is the floor.  L3 is not emptied; branches stay predicted.  Runs of
more than OUTLIER_NS do not count, on either side: somebody else had the CPU.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from bench.agree import LOOPBACK, Mismatch, Unfit
from bench.sides import Sample
from bench.wrapper import Change, Function, Wrapper, moved
from dataplane.block import Block
from xdp_runtime import state as st
from xdp_runtime.asm import assemble
from xdp_runtime.compiler.link import ENTRY, Unit
from xdp_runtime.errors import XdpuError
from xdp_runtime.kernel import KernelProgram
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.pool import ENTER, LEAVE
from xdp_runtime.object import MapSpec, MapType
from xdp_runtime.program import Program
from xdp_runtime.template import Template

RUNS = 400  # a sample: some hundred microseconds each
_LINE_BYTES, _LINES_A_TURN = 64, 16
_LEAST_BYTES, _MOST_BYTES = 1 << 20, 4 << 20  # the verifier walks the loop, too
_STATE = struct.Struct("=QQ")  # ns of all runs, how many
OUTLIER_NS = 50_000
_ZERO_KEY = bytes(4)
_MONOTONIC = 1
_TOTAL, _COUNTED, _SEEN = 0, 8, 16  # in the memory of the loop: u64


def walk_bytes() -> int:
    """Twice the L2 cache of the first CPU, within what can be walked."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
        size = int(text.rstrip("K")) << 10
    except (OSError, ValueError):
        size = _LEAST_BYTES
    return max(_LEAST_BYTES, min(_MOST_BYTES, 2 * size))


# ---- the kernel ----------------------------------------------------------------------------------

def _timed(total: int) -> list[str]:
    """Memory is walked, then the function runs between two looks at the clock: its verdict in r7.
    """
    loads = [f"r3 = *(u64 *)(r1 + {n * _LINE_BYTES})" for n in range(_LINES_A_TURN)]
    step = _LINE_BYTES * _LINES_A_TURN
    return ["r1 = map_value[walked] ll", f"r2 = {total // step}", "walk:", *loads, f"r1 += {step}",
            "r2 += -1", "if r2 != 0 goto walk",
            "call 5", "r9 = r0", "r1 = r6", "call target", "r7 = r0", "call 5",
            "r0 -= r9", f"if r0 > {OUTLIER_NS} goto counted", "r2 = map_value[cold] ll",
            "r3 = *(u64 *)(r2 + 0)", "r3 += r0", "*(u64 *)(r2 + 0) = r3",
            "r3 = *(u64 *)(r2 + 8)", "r3 += 1", "*(u64 *)(r2 + 8) = r3", "counted:"]


class KernelCold:
    """A program in the kernel, as a function of its wrapper.

    The floor is a function that only returns; the packet's edges are then moved beyond the clock.
    """

    name = "kernel"

    def __init__(self, program: KernelProgram, change: Change, verdict: int, stack: ExitStack
                 ) -> None:
        total = walk_bytes()
        self._state = stack.enter_context(KernelMap(
            MapSpec("cold", MapType.ARRAY, 4, _STATE.size, 1)))
        walked = stack.enter_context(KernelMap(MapSpec("walked", MapType.ARRAY, 4, total, 1)))
        real = Function(program.spec.insns, [one.fd for one in program.maps.values()])
        nothing = Function(assemble(f"r0 = {verdict}\nexit"))
        timed, leave = _timed(total), ["r0 = r7", "exit"]
        try:
            self._wrappers = {name: stack.enter_context(Wrapper(
                change, verdict, target, maps=(self._state, walked), ending=ending,
                function=function)) for name, function, target, ending in (
                    ("raw", real, program.fd, [*timed, *leave]),
                    ("floor", nothing, None, [*timed, *moved(change), *leave]))}
        except XdpuError as error:
            raise Unfit(f"cold cache: not as a function in the kernel: {error}") from error

    def sample(self, count: int) -> Sample:
        sample: Sample = {}
        for name, wrapper in self._wrappers.items():
            self._state.update(_ZERO_KEY, bytes(_STATE.size))
            repeated = wrapper.run(count)
            if not repeated.is_sound:
                raise Mismatch(f"kernel, cold, {name}: {repeated.complaint()}")
            spent, counted = _STATE.unpack(self._state.lookup(_ZERO_KEY) or b"")
            sample[name] = _mean(spent, counted, count)
        sample["net"] = sample["raw"] - sample["floor"]
        return sample


def _mean(spent_ns: int, counted: int, count: int) -> float:
    if 2 * counted < count:
        raise Unfit(f"cold cache: most runs took more than {OUTLIER_NS // 1000} microseconds")
    return spent_ns / counted


# ---- ours ----------------------------------------------------------------------------------------

def _cold(m: Any) -> Callable[..., Any]:
    enter, leave = m.extern(ENTER), m.extern(LEAVE)
    program = m.symbol(ENTRY, "i32(ptr)")
    state_bytes = st.STATE_SIZE_BYTES
    rx_bytes = st.RX_END - st.RX_KNOWN

    def cold_program(first, pristine, length, count, walked, lines, out):  # type: ignore
        data = m.load_ptr(first, st.DATA)
        worker = m.load_ptr(first, st.WORKER)
        run, clock = m.alloca(state_bytes), m.gep(m.alloca(16), 0)
        verdict, spent, counted, seen = 0, 0, 0, 0
        for _i in range(count):
            enter(worker)
            m.copy(data, pristine, length)
            m.store_ptr(run, st.DATA, data)
            m.store_ptr(run, st.DATA_END, m.gep(data, length))
            m.store_ptr(run, st.DATA_META, data)
            m.store_ptr(run, st.HARD_START, m.load_ptr(first, st.HARD_START))
            m.store_ptr(run, st.FRAME_END, m.load_ptr(first, st.FRAME_END))
            m.store_u32(run, st.INGRESS_IFINDEX, m.load_u32(first, st.INGRESS_IFINDEX))
            m.store_u32(run, st.RX_QUEUE_INDEX, 0)
            m.store_u32(run, st.EGRESS_IFINDEX, 0)
            m.store_u32(run, st.WORKER_ID, 0)
            m.store_u32(run, st.REDIRECT_IFINDEX, 0)
            m.store_u32(run, st.REDIRECT_HOW, 0)
            m.store_u32(run, st.TAIL_CALLS, 0)
            m.store_ptr(run, st.WORKER, worker)
            m.copy(m.gep(run, st.RX_KNOWN), m.gep(first, st.RX_KNOWN), rx_bytes)
            for line in range(lines):
                seen += m.load_u64(m.gep(walked, line * _LINE_BYTES), 0)
            m.c_clock_gettime(_MONOTONIC, clock)
            began = m.load_u64(clock, 0) * 1_000_000_000 + m.load_u64(clock, 8)
            verdict = program(run)
            m.c_clock_gettime(_MONOTONIC, clock)
            took = m.load_u64(clock, 0) * 1_000_000_000 + m.load_u64(clock, 8) - began
            if took <= OUTLIER_NS:
                spent += took
                counted += 1
            leave(worker)
        m.store_u64(out, _TOTAL, spent)
        m.store_u64(out, _COUNTED, counted)
        m.store_u64(out, _SEEN, seen)  # or nothing would be walked
        m.store_ptr(first, st.DATA, m.load_ptr(run, st.DATA))
        m.store_ptr(first, st.DATA_END, m.load_ptr(run, st.DATA_END))
        return verdict

    return cold_program


_NAME = "bench.cold"
_PARAMETERS = "ptr %state, ptr %packet, i64 %n, i64 %count, ptr %walked, i64 %lines, ptr %out"
_TEMPLATE = Template("cold", _cold, "i64(ptr, ptr, i64, i64, ptr, i64, ptr)", (ENTER, LEAVE))
UNIT = Unit("cold", f'define i64 @"{_NAME}"({_PARAMETERS}) {{\n'
            f"  %r = call i64 @{_TEMPLATE.name}({_PARAMETERS})\n  ret i64 %r\n}}\n",
            (_TEMPLATE,), (_NAME,))


class _Loop:
    """A program loaded with UNIT, and the memory it runs on."""

    def __init__(self, program: Program, packet: bytes, stack: ExitStack) -> None:
        self._packet, self._total = packet, walk_bytes()
        self._frame, self._walked, self._out, self._state = (
            stack.enter_context(closing(Block(size))) for size in (
                st.PAGE_BYTES, self._total, 4096, 4096))
        self._walked.write(0, b"\1" * self._total)  # or it is the one page of zeros
        self._worker = program.worker_memory(0)
        self._call = program.code.function(
            _NAME, ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64,
            ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)

    def run(self, count: int) -> tuple[float, int, bytes]:
        """(ns a run, verdict, packet)"""
        base, state = self._frame.address, self._state
        state.write(0, bytes(st.STATE_SIZE_BYTES))
        for offset, value in ((st.DATA, base + st.HEADROOM_BYTES),
                              (st.HARD_START, base + st.XDP_FRAME_BYTES),
                              (st.FRAME_END, base + st.PAGE_BYTES - st.SHARED_INFO_BYTES),
                              (st.WORKER, self._worker), (st.INGRESS_IFINDEX, LOOPBACK)):
            state.set(offset, value)
        verdict = self._call(state.address, self._packet, len(self._packet), count,
                             self._walked.address, self._total // _LINE_BYTES, self._out.address)
        start, end = state.get(st.DATA), state.get(st.DATA_END)
        ns = _mean(self._out.get(_TOTAL), self._out.get(_COUNTED), count)
        return ns, verdict, ctypes.string_at(start, end - start)


class OurCold:
    name = "ours"

    def __init__(self, program: Program, floor: Program, packet: bytes, verdict: int,
                 after: bytes, stack: ExitStack) -> None:
        self._raw, self._floor = _Loop(program, packet, stack), _Loop(floor, packet, stack)
        self._wanted = verdict, after

    def sample(self, count: int) -> Sample:
        floor, _, _ = self._floor.run(count)
        raw, verdict, packet = self._raw.run(count)
        if (verdict & 0xFFFFFFFF, packet) != self._wanted:
            raise Mismatch(f"ours, cold: {count} runs did not end as one does")
        return {"floor": floor, "raw": raw, "net": raw - floor}
