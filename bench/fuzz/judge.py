"""One program, its packets and map operations, on all engines: where do they first differ?"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from bench.fuzz.batch import Batch
from bench.fuzz.case import program_of
from bench.fuzz.engines import LISTS, UNSEEN, Engine, Interpreted, Step, compiled, in_kernel
from bench.fuzz.frags import judge_frags, long_packets
from bench.fuzz.leaks import unsteady
from bench.fuzz.outcome import Disagreement, Outcome
from bench.fuzz.packets import random_packets
from bench.fuzz.sources import Kind, object_of
from bench.fuzz.steps import random_steps, rounds
from xdp_runtime.compiler import target
from xdp_runtime.errors import VerifyError
from xdp_runtime.interp_memory import Trap
from xdp_runtime.isa import Imm, Store
from xdp_runtime.object import Object
from xdp_runtime.verifier import verify

_STACK_SLOTS = 16  # that programs use; callees need some of the 512 bytes, too
TWIN = "kernel, again"
_LIMITS = re.compile("too (large|complex|many)|verifier bug")  # of the kernel, that are not ours
_NOWHERE = "r=0xfffffffffffffff[ef]"  # BEYOND_PKT_END, AT_PKT_END
_LAST = 8000  # bytes of a log
_LABORIOUS = 100_000  # instructions that the kernel walked: in Python it would take half a minute


def judge(seed: int, packets: int, kind: Kind = "insns") -> Outcome:
    """All of a seed.  The kernel's refusal is no disagreement; ours of what it accepts is."""
    obj = object_of(kind, seed)
    if kind == "frags":
        return judge_frags(obj, long_packets(seed, max(10, packets // 10)))
    case = (obj, random_packets(seed, packets), random_steps(obj, seed, 40))
    outcome = judge_object(*case)
    if (kind != "insns" and any(one.engine != "verifier" for one in outcome.found)
            and unsteady(*case)):
        outcome.found = []
        outcome.counts["unsteady"] += 1
    return outcome


def judge_object(obj: Object, packets: Sequence[bytes], steps: Sequence[Step],
                 opts: Sequence[int] = target.TESTED, twin: bool = False) -> Outcome:
    """`twin`: the kernel is judged by the kernel, too, loaded again with other stacks."""
    outcome = Outcome(Counter(programs=1))
    cpu = min(os.sched_getaffinity(0))
    with ExitStack() as stack:
        began = time.perf_counter()
        try:
            kernel = stack.enter_context(in_kernel(obj, cpu))
        except VerifyError as error:
            outcome.refused = str(error)
            if not _LIMITS.search(outcome.refused):
                outcome.ours_only = (not nowhere(outcome.refused, error.detail)
                                     and all(verify(obj, one).ok for one in obj.programs))
            outcome.counts["ours_only"] += outcome.ours_only
            return outcome
        if kernel.verified() > _LABORIOUS:
            outcome.counts["laborious"] += 1
            return outcome
        outcome.counts["accepted"] += 1
        engines: list[Engine] = []
        for word in (0, 0x5A5A5A5A) if twin else ():
            engines.append(stack.enter_context(in_kernel(_filled(obj, word), cpu)))
            engines[-1].name = TWIN
        engines.append(Interpreted(obj))
        between = time.perf_counter()
        for opt in opts:
            try:
                engines.append(stack.enter_context(compiled(obj, opt)))
            except VerifyError as error:
                outcome.found.append(Disagreement("verifier", f"refuses: {error}"))
                return outcome
        outcome.counts["compile_ms"] += int(1000 * (time.perf_counter() - between))
        outcome.counts["kernel_load_ms"] += int(1000 * (between - began))
        _compare(obj, kernel, engines, packets, steps, outcome)
    return outcome


def nowhere(words: str, log: str) -> bool:
    """Was it refused on a path that no packet takes?  The kernel follows comparisons with the end
    both ways, even if it has seen more bytes than are compared; the pointer then says so."""
    register = re.search(r"\b(R\d+) ", words)
    named = register and re.search(rf"{register[1]}=pkt\([^)]*{_NOWHERE}", log)
    return bool(named or re.search(_NOWHERE, log[-_LAST:]))


def _filled(obj: Object, word: int) -> Object:
    """The same, but what it reads of its stack without having written it is not what it was."""
    fill = tuple(Store(10, -8 * slot, 8, Imm(word)) for slot in range(1, _STACK_SLOTS + 1))
    return replace(obj, programs=tuple(program_of(program.name, (*fill, *program.insns))
                                       for program in obj.programs))


def _compare(obj: Object, kernel: Engine, engines: list[Engine], packets: Sequence[bytes],
             steps: Sequence[Step], outcome: Outcome) -> None:
    for first, part, operations in rounds(packets, steps):
        batch = Batch(part)
        began = time.perf_counter()
        expected = kernel.run(batch)
        outcome.counts["kernel_run_ms"] += int(1000 * (time.perf_counter() - began))
        for engine in engines:
            try:
                different = _first_difference(expected, engine.run(batch))
            except Trap as trap:
                outcome.found.append(Disagreement(engine.name, f"traps: {trap}", first))
                return
            if different:
                number, what = different
                outcome.found.append(Disagreement(engine.name, what, first + number))
        if outcome.found:
            return
        outcome.counts["pairs"] += len(batch.packets)
        if _maps_differ(obj, kernel, engines, operations, outcome, lists=False):
            return
        if first == 0:
            outcome.counts["interpreted"] += len(batch.packets)
            engines = [one for one in engines if not isinstance(one, Interpreted)]
    _maps_differ(obj, kernel, engines, (), outcome, lists=True)


def _maps_differ(obj: Object, kernel: Engine, engines: list[Engine], steps: Sequence[Step],
                 outcome: Outcome, lists: bool) -> bool:
    for step in steps:
        expected = kernel.operate(step)
        outcome.counts["operations"] += 1
        for engine in engines:
            got = engine.operate(step)
            if got != expected:
                outcome.found.append(Disagreement(
                    engine.name, f"map {step[0]}: {step[1]} of {step[2].hex()} flags {step[4]} "
                    f"gives {_shown(got)}, not {_shown(expected)}"))
    for spec in obj.maps:
        if spec.type in UNSEEN or (spec.type in LISTS and not lists):
            continue
        there = kernel.contents(spec)
        outcome.counts["maps"] += 1
        for engine in engines:
            if (here := engine.contents(spec)) != there:
                outcome.found.append(Disagreement(
                    engine.name, f"map {spec.name} holds {_shown(here)}, not {_shown(there)}"))
    return bool(outcome.found)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k.hex()}: {v.hex()}" for k, v in sorted(value.items())) + "}"
    return value.hex() if isinstance(value, bytes) else str(value)


def _first_difference(expected: Any, got: Any) -> tuple[int, str] | None:
    (headers, bodies), (our_headers, our_bodies) = expected, got
    if headers.tobytes() == our_headers.tobytes() and np.array_equal(bodies, our_bodies):
        return None
    wrong = (headers != our_headers) | (bodies != our_bodies).any(axis=1)
    number = int(np.argmax(wrong))
    if headers[number] != our_headers[number]:
        return number, (f"(verdict, metadata, size) {our_headers[number].tolist()}, "
                        f"not {headers[number].tolist()}")
    at = int(np.argmax(bodies[number] != our_bodies[number]))
    return number, (f"byte {at} of {headers[number]['size']} is {our_bodies[number][at]:#x}, "
                    f"not {bodies[number][at]:#x}")
