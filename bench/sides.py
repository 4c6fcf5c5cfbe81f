"""The sides of a comparison: each runs one packet many times, and takes what its harness costs.

The kernel's harness does not put the packet back between two runs:

    plain    the program changes nothing, or undoes its own change (f(f(packet)) = packet)
    wrapper  it does; see wrapper.py

Ours (Program.repeat) starts each run from a fresh copy, and so does the interpreter.  After each
timed run the last verdict and packet are checked.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Protocol

from bench import wrapper
from bench.agree import LOOPBACK, Mismatch, Outcome, outcome
from bench.cases import Case
from bench.wrapper import Change, Wrapper
from xdp_runtime.errors import XdpuError
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import KernelProgram
from xdp_runtime.program import Program
from xdp_runtime.state import Verdict

Sample = dict[str, float]
_PASS = int(Verdict.PASS)
_INTERPRETED_S = 0.02  # a sample of the interpreter takes about so long


class Side(Protocol):
    name: str
    method: str

    def sample(self, count: int) -> Sample: ...

    def timed(self) -> dict[str, Callable[[int], object]]:
        """The runs whose difference is the program, for counters: `raw` and `floor`."""
        ...


class KernelSide:
    """The kernel's program, its floor and whatever else its way of measuring needs."""

    name = "kernel"

    def __init__(self, program: KernelProgram, case: Case, floor: KernelProgram) -> None:
        self._program, self._case, self._floor = program, case, floor
        self._undo = ExitStack()
        self.change, self.verdict = _observe(program, case.packet)
        self._wrappers: tuple[Wrapper, Wrapper, KernelProgram] | None = None
        self.method = "plain"
        if not self.change.is_none and not _is_involution(program, self.change, self.verdict):
            self.method = "wrapper"
            self._wrappers = (
                self._undo.enter_context(Wrapper(self.change, self.verdict, program.fd)),
                self._undo.enter_context(Wrapper(self.change, self.verdict)),
                KernelProgram(floor.spec, wrapper.load_moves(self.change), {}))
            self._undo.callback(self._wrappers[2].close)

    def sample(self, count: int) -> Sample:
        count += count & 1  # an involution ends where it began
        packet = self._case.packet
        sample: Sample = {"floor": _timed(self._floor, packet, count, _PASS)}
        if self._wrappers is None:
            sample["raw"] = _timed(self._program, packet, count, self.verdict)
            sample["net"] = sample["raw"] - sample["floor"]
            return sample
        real, stand_in, moves = self._wrappers
        for name, one in (("raw", real), ("baseline", stand_in)):
            repeated = one.run(count)
            if not repeated.is_sound:
                raise Mismatch(f"kernel, {name}: {repeated.complaint()}")
            sample[name] = repeated.ns
        sample["moves"] = 0.0
        if self.change.moves:
            there_and_back = _timed(moves, packet, count, _PASS, is_cut=self.change.tail < 0)
            sample["moves"] = (there_and_back - sample["floor"]) / 2
        sample["net"] = sample["raw"] - sample["baseline"] + sample["moves"]
        return sample

    def timed(self) -> dict[str, Callable[[int], object]]:
        if self._wrappers is not None:
            real, stand_in, _ = self._wrappers
            return {"raw": real.run, "floor": stand_in.run}
        packet = self._case.packet
        return {"raw": lambda count: self._program.run(packet, count),
                "floor": lambda count: self._floor.run(packet, count)}

    def close(self) -> None:
        self._undo.close()


def _observe(program: KernelProgram, packet: bytes) -> tuple[Change, int]:
    try:
        return wrapper.observe(program, packet)
    except XdpuError as error:
        raise Mismatch(str(error)) from error


def _is_involution(program: KernelProgram, change: Change, verdict: int) -> bool:
    if change.moves:
        return False
    again = program.run(change.after)
    return (again.retval, again.data_out, again.meta) == (verdict, change.before, b"")


def _timed(program: KernelProgram, packet: bytes, count: int, verdict: int, *,
           is_cut: bool = False) -> float:
    """ns a run.  What was cut off at the tail comes back as zeros.  Raises Mismatch."""
    done = program.run(packet, count)
    if done.retval != verdict:
        raise Mismatch(f"kernel: {count} runs ended with verdict {done.retval}, not {verdict}")
    if (not is_cut and done.data_out != packet) or len(done.data_out) != len(packet) or done.meta:
        raise Mismatch(f"kernel: {count} runs changed the packet")
    return done.duration_ns


class OurSide:
    """The compiled program; the floor is one that only returns."""

    name, method = "ours", "fresh copy"

    def __init__(self, program: Program, case: Case, floor: Program) -> None:
        self._program, self._case, self._floor = program, case, floor
        self._single = program.run(case.packet, ingress_ifindex=LOOPBACK)

    def sample(self, count: int) -> Sample:
        floor = self._floor.repeat(self._case.packet, count, ingress_ifindex=LOOPBACK)
        done = self._program.repeat(self._case.packet, count, ingress_ifindex=LOOPBACK)
        if outcome(done) != outcome(self._single) or done.changes:
            raise Mismatch(f"ours: {count} runs did not end as one does")
        return {"floor": floor.duration_ns, "raw": done.duration_ns,
                "net": done.duration_ns - floor.duration_ns}

    def timed(self) -> dict[str, Callable[[int], object]]:
        def runs(one: Program) -> Callable[[int], object]:
            return lambda count: one.repeat(self._case.packet, count, ingress_ifindex=LOOPBACK)

        return {"raw": runs(self._program), "floor": runs(self._floor)}


class InterpSide:
    """The interpreter, some thousand times slower: as many runs as fit into a moment."""

    name, method = "interp", "fresh copy"

    def __init__(self, machine: Machine, case: Case, floor: Machine) -> None:
        self._machine, self._packet, self._floor = machine, case.packet, floor
        started = time.perf_counter_ns()
        self._last = self._run()
        self._most = max(1, int(_INTERPRETED_S * 1e9 / (time.perf_counter_ns() - started)))

    def sample(self, count: int) -> Sample:
        count = min(count, self._most)
        floor, raw = self._runs(self._floor, count), self._runs(self._machine, count)
        if self._run() != self._last:
            raise Mismatch(f"interpreter: {count} runs did not end as one does")
        return {"floor": floor, "raw": raw, "net": raw - floor}

    def _run(self) -> Outcome:
        done = self._machine.run(self._packet, ingress_ifindex=LOOPBACK)
        return Outcome(done.verdict, done.data_out, done.meta)

    def _runs(self, machine: Machine, count: int) -> float:
        started = time.perf_counter_ns()
        for _ in range(count):
            machine.run(self._packet, ingress_ifindex=LOOPBACK)
        return (time.perf_counter_ns() - started) / count

    def timed(self) -> dict[str, Callable[[int], object]]:
        return {}
