"""Delta debugging: few packets, operations, instructions and bytes that still disagree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from bench.fuzz.case import Case, program_of, write_case
from bench.fuzz.engines import Step
from bench.fuzz.frags import judge_frags, long_packets
from bench.fuzz.judge import TWIN, judge_object
from bench.fuzz.leaks import unsteady
from bench.fuzz.outcome import Disagreement
from bench.fuzz.packets import random_packets
from bench.fuzz.sources import Kind, object_of
from bench.fuzz.steps import random_steps
from xdp_runtime.compiler import target
from xdp_runtime.errors import XdpuError
from xdp_runtime.isa import (
    CallLocal,
    Exit,
    Insn,
    Insns,
    Jump,
    JumpIf,
    LoadFunc,
    LoadImm64,
    LoadMap,
    LoadMapValue,
    MayGoto,
)
from xdp_runtime.object import Object

T = TypeVar("T")
Lifted = list[tuple[Insn, int | None]]  # with the number of the instruction that it leads to
Judge = Callable[[Case], Disagreement | None]
_TWO_SLOTS = (LoadImm64, LoadMap, LoadMapValue, LoadFunc)


def on_all_engines(case: Case, opts: Sequence[int] = target.TESTED) -> Disagreement | None:
    """The first disagreement, of all engines that have one at that place.

    None, too, if something refuses what was left, or if two loads in the kernel differ: root's
    programs may give addresses away and read what they did not write, and no two engines agree."""
    try:
        found = judge_object(*case, opts, twin=True).found
    except (XdpuError, OSError, ValueError):
        return None
    engines = sorted({one.engine for one in found})
    if not found or TWIN in engines or unsteady(*case):
        return None
    return replace(found[0], engine=" and ".join(engines))


def reduce_seed(seed: int, kind: Kind, packets: int, directory: Path | None) -> int:
    obj = object_of(kind, seed)
    if kind == "frags":
        for one in judge_frags(obj, long_packets(seed, packets // 10)).found:
            print(f"seed {seed}: {one}")
        print("of packets in several buffers no smaller case is made: see --show")
        return 1
    case: Case = (obj, random_packets(seed, packets), random_steps(obj, seed, 40))
    first = on_all_engines(case)
    if first is None:
        print(f"seed {seed}: all engines agree")
        return 0
    print(f"seed {seed}: {first}")
    small = reduce_case(case, on_all_engines)
    text = f"; seed {seed}: {on_all_engines(small)}\n{write_case(*small)}"
    print(text)
    if directory is not None:
        path = directory / f"seed_{seed}.case"
        path.write_text(text)
        print(f"written: {path}")
    return 1


def reduce_case(case: Case, judge: Judge) -> Case:
    """A smaller case on which the same engine still differs."""
    first = judge(case)
    if first is None:
        raise ValueError("nothing disagrees")

    def holds(smaller: Case) -> bool:
        found = judge(smaller)
        return (found is not None and found.engine == first.engine
                and found.what.startswith("traps") == first.what.startswith("traps"))

    obj, packets, steps = case
    if first.packet >= 0:
        for some in (packets[first.packet : first.packet + 1], packets[: first.packet + 1]):
            if holds((obj, some, steps)):
                packets = some
                break
    packets = minimise(packets, lambda some: holds((obj, some, steps)))
    steps = minimise(steps, lambda some: holds((obj, packets, some)))
    for number in range(len(obj.programs)):
        obj = _smaller_program(obj, packets, steps, number, holds)
    packets = minimise(packets, lambda some: holds((obj, some, steps)))
    for number in range(len(packets)):
        packets = _smaller_packet(obj, packets, steps, number, holds)
    return obj, packets, steps


def minimise(items: list[T], holds: Callable[[list[T]], bool]) -> list[T]:
    """ddmin: a sublist for which `holds`, from which no single item can be taken."""
    size = len(items)
    while size >= 1:
        at, shorter = 0, False
        while at < len(items):
            fewer = items[:at] + items[at + size :]
            if holds(fewer):
                items, shorter = fewer, True
            else:
                at += size
        if size == 1 and not shorter:
            break
        size = max(1, min(size // 2, len(items)))
    return items


def _smaller_program(obj: Object, packets: list[bytes], steps: list[Step], number: int,
                     holds: Callable[[Case], bool]) -> Object:
    lifted = lift(obj.programs[number].insns)

    def with_insns(kept: Sequence[int]) -> Object:
        programs = list(obj.programs)
        programs[number] = program_of(programs[number].name, lower(lifted, kept))
        return replace(obj, programs=tuple(programs))

    def still(kept: list[int]) -> bool:
        return bool(kept) and holds((with_insns(kept), packets, steps))

    return with_insns(minimise(list(range(len(lifted))), still))


def _smaller_packet(obj: Object, packets: list[bytes], steps: list[Step], number: int,
                    holds: Callable[[Case], bool]) -> list[bytes]:
    def put(packet: bytes) -> list[bytes]:
        return [*packets[:number], packet, *packets[number + 1 :]]

    for size in (14, 64, 128, 256):
        if size < len(packets[number]) and holds((obj, put(packets[number][:size]), steps)):
            packets = put(packets[number][:size])
            break
    width = len(packets[number])
    while width >= 1:
        for at in range(0, len(packets[number]), width):
            old = packets[number]
            new = old[:at] + bytes(len(old[at : at + width])) + old[at + width :]
            if new != old and holds((obj, put(new), steps)):
                packets = put(new)
        width //= 2
    return packets


def lift(insns: Insns) -> Lifted:
    """Instructions without second slots, and where their jumps and calls lead."""
    slots = [slot for slot, insn in enumerate(insns) if insn is not None]
    number = {slot: n for n, slot in enumerate(slots)}
    out: Lifted = []
    for slot in slots:
        insn = insns[slot]
        assert insn is not None
        leads = isinstance(insn, Jump | JumpIf | MayGoto | CallLocal | LoadFunc)
        out.append((insn, number[slot + 1 + getattr(insn, "off", 0)] if leads else None))
    return out


def lower(lifted: Lifted, kept: Sequence[int]) -> Insns:
    """The kept instructions that can be reached; what led to one that went leads to the next."""
    if not kept:
        return ()
    after: dict[int, int] = {}
    position = len(kept) - 1
    for number in range(len(lifted) - 1, -1, -1):
        while position > 0 and kept[position - 1] >= number:
            position -= 1
        after[number] = kept[position] if kept[position] >= number else kept[-1]
    following = dict(zip(kept, [*kept[1:], -1], strict=True))
    reached: set[int] = set()
    todo = [kept[0]]
    while todo:
        number = todo.pop()
        if number < 0 or number in reached:
            continue
        reached.add(number)
        insn, target = lifted[number]
        if target is not None:
            todo.append(after[target])
        if not isinstance(insn, Jump | Exit):
            todo.append(following[number])
    order = [number for number in kept if number in reached]
    slot_of: dict[int, int] = {}
    slot = 0
    for number in order:
        slot_of[number] = slot
        slot += 2 if isinstance(lifted[number][0], _TWO_SLOTS) else 1
    out: list[Insn | None] = []
    for number in order:
        insn, target = lifted[number]
        if target is not None:
            assert isinstance(insn, Jump | JumpIf | MayGoto | CallLocal | LoadFunc)
            insn = replace(insn, off=slot_of[after[target]] - slot_of[number] - 1)
        out.append(insn)
        if isinstance(insn, _TWO_SLOTS):
            out.append(None)
    return tuple(out)
