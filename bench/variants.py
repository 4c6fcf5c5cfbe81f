"""A case once more, with a cold cache or as many flows: fresh programs, the sides in turns."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Protocol

from bench.agree import Unfit, chance, fill
from bench.cold import RUNS, UNIT, KernelCold, OurCold
from bench.flows import KernelFlows, OurFlows, Stream, compare, fields_of
from bench.rig import Rig, idle
from bench.sides import Sample
from bench.wrapper import Change, observe
from xdp_runtime.kernel import KernelProgram, load_into_kernel
from xdp_runtime.object import MapType
from xdp_runtime.program import load
from xdp_runtime.state import Verdict

ROUNDS = 7  # at most: a round takes long
_FILL = 2  # runs a flow before anything is timed: six of seven flows have then come by
_MOST_FILLING = 4_000_000
Samples = dict[str, list[Sample]]


class Varied(Protocol):
    name: str

    def sample(self, count: int) -> Sample: ...


def cold(rig: Rig, rounds: int) -> Samples:
    """Raises Mismatch, Unfit."""
    change, verdict = _behaviour(rig)
    if rig.object.program(rig.case.program).has_frags:
        raise Unfit("cold cache: not for xdp.frags programs")
    with ExitStack() as stack:
        sides: list[Varied] = []
        if rig.engines.kernel is not None:
            sides.append(KernelCold(rig.engines.kernel, change, verdict, stack))
        program = stack.enter_context(load(rig.object, rig.case.program, units=(UNIT,)))
        fill(rig.case.entries, None, program)
        floor = stack.enter_context(load(idle(), units=(UNIT,)))
        sides.append(OurCold(program, floor, rig.case.packet, verdict, change.after, stack))
        return _turns(sides, RUNS, rounds)


def flows(rig: Rig, count: int, repeat: int, rounds: int) -> Samples:
    """Raises Mismatch, Unfit."""
    change, verdict = _behaviour(rig)
    found = fields_of(rig.case.packet)
    if found is None:
        raise Unfit("many flows: the packet is neither TCP nor UDP")
    if any(m.type == MapType.RINGBUF for m in rig.object.maps):
        raise Unfit("many flows: the program writes into a ring buffer that nobody reads")
    stream = Stream(rig.case.packet, found, count)
    with ExitStack() as stack:
        ours = OurFlows(rig.object, rig.case.program, idle(_disposed(verdict)), stream, change,
                        Verdict(verdict).name.lower(), stack)
        fill(rig.case.entries, None, ours.program)
        sides: list[Varied] = [ours]
        kernel = None
        if rig.engines.kernel is not None:
            kernel = KernelFlows(_fresh(rig, stack), _fresh(rig, stack), stream, change, verdict,
                                 stack)
            sides.insert(0, kernel)
        for side in (kernel, ours):
            if side is not None:
                side.run(min(max(_FILL * count, repeat // 10), _MOST_FILLING))
        samples = _turns(sides, repeat, rounds)
        if kernel is not None:
            compare(kernel, ours, _ignored(rig))
        return samples


def _behaviour(rig: Rig) -> tuple[Change, int]:
    """What the program does to the packet; without a kernel only what it came to."""
    case, engines = rig.case, rig.engines
    if engines.kernel is not None:
        return observe(engines.kernel, case.packet)
    single = engines.ours.run(case.packet)
    return Change(case.packet, single.data_out, single.meta), single.retval


def _fresh(rig: Rig, stack: ExitStack) -> KernelProgram:
    program = stack.enter_context(load_into_kernel(rig.object, rig.case.program))
    fill(rig.case.entries, program, None)
    return program


def _disposed(verdict: int) -> int:
    """The verdict that the floor may have: a redirect needs a helper call."""
    return verdict if verdict in (Verdict.DROP, Verdict.PASS, Verdict.TX) else Verdict.PASS


def _ignored(rig: Rig) -> tuple[str, ...]:
    names = tuple(m.name for m in rig.object.maps) if chance(rig.object) else ()
    return (*names, *rig.case.ignored)


def _turns(sides: Sequence[Varied], count: int, rounds: int) -> Samples:
    samples: Samples = {side.name: [] for side in sides}
    for turn in range(rounds + 1):
        for side in sides if turn % 2 == 0 else reversed(sides):
            taken = side.sample(count)
            if turn:  # the first round warms
                samples[side.name].append(taken)
    return samples
