"""Calls between BPF functions, unfolded: one frame for each call site on each path to it.

A BPF program cannot recurse, so cloning a function for each of its call sites ends.  It lets the
analysis see a callee with the kinds its caller passes, pointers into the caller's stack included,
as the kernel's verifier does for static functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from xdp_runtime.errors import VerifyError
from xdp_runtime.isa import (
    MAX_CALL_FRAMES,
    Call,
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

MAX_UNFOLDED_SLOTS = 1_000_000
CALLING_BACK = (164, 181, 209)  # bpf_for_each_map_elem, bpf_loop, bpf_user_ringbuf_drain
TAIL_CALL = 12
_CALLBACK = -1  # a callee that r2 holds
HEADER = 1 << 32  # added to the slot of such a call: the node where it asks whether to go on


@dataclass(frozen=True, slots=True)
class Frame:
    """One activation: a function entered at `entry` from `parent` at slot `call_slot`."""

    id: int
    depth: int
    entry: int
    parent: Frame | None
    call_slot: int
    leaders: tuple[int, ...]  # first slots of basic blocks, in order
    returns: bool
    callback: bool = False  # entered again and again by the helper at `call_slot`
    starts: frozenset[int] = field(default=frozenset(), compare=False)  # the leaders as a set


Node = tuple[int, int]  # (frame id, slot)


def width(insn: Insn) -> int:
    return 2 if isinstance(insn, LoadImm64 | LoadMap | LoadMapValue | LoadFunc) else 1


def successors(insns: Insns, slot: int) -> tuple[int, ...]:
    """Slots that may run next within the same function; a local call is stepped over."""
    insn = insns[slot]
    assert insn is not None
    following = slot + width(insn)
    match insn:
        case Jump(off):
            targets: tuple[int, ...] = (following + off,)
        case JumpIf(off=off) | MayGoto(off=off):
            targets = (following, following + off)
        case Exit():
            targets = ()
        case _:
            targets = (following,)
    for target in targets:
        if not 0 <= target < len(insns):
            what = "jump" if target != following else "execution"
            raise VerifyError(f"instruction {slot}", f"{what} leaves the program at slot {target}",
                              insn=slot)
        if insns[target] is None:
            raise VerifyError(f"instruction {slot}", "jump into the middle of a 64-bit load",
                              insn=slot)
    return targets


def _function(insns: Insns, entry: int) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...],
                                                  bool, int]:
    """(leaders, (call slot, callee entry or _CALLBACK) pairs, has an exit, slots) of the function
    at `entry`."""
    leaders, calls, seen, todo, returns = {entry}, [], set(), [entry], False
    while todo:
        slot = todo.pop()
        if slot in seen:
            continue
        seen.add(slot)
        insn = insns[slot]
        if isinstance(insn, CallLocal):
            target = slot + 1 + insn.off
            if not 0 <= target < len(insns) or insns[target] is None:
                raise VerifyError(f"instruction {slot}", "call of no function", insn=slot)
            calls.append((slot, target))
            leaders.add(slot + 1)
        if isinstance(insn, Call) and insn.helper in CALLING_BACK:
            calls.append((slot, _CALLBACK))
            leaders.update((slot, slot + 1))
        if isinstance(insn, Call) and insn.helper == TAIL_CALL:
            leaders.add(slot + 1)
        returns |= isinstance(insn, Exit)
        following = successors(insns, slot)
        if isinstance(insn, Jump | JumpIf | MayGoto):
            leaders.update(following)
        todo.extend(following)
    return tuple(sorted(leaders)), tuple(sorted(calls)), returns, len(seen)


def tail_calls_in_functions(insns: Insns) -> bool:
    """May a function that the program calls do a tail call?  Then what is called returns to the
    caller of that function."""
    tail_calls = {slot for slot, insn in enumerate(insns)
                  if isinstance(insn, Call) and insn.helper == TAIL_CALL}
    todo, seen = [0] if tail_calls else [], set()
    while todo:
        slot = todo.pop()
        if slot not in seen:
            seen.add(slot)
            todo += successors(insns, slot)
    return bool(tail_calls - seen)


def callbacks_of(frame: Frame, slot: int, callbacks: Mapping[tuple[int, ...], Iterable[int]],
                 ) -> list[int]:
    """The functions that the call at `slot` of this frame may be handed.

    `callbacks` is the verifier's (env.py).  It begins anew with global functions, so a path there
    may be an end of ours."""
    found: set[int] = set()
    path: tuple[int, ...] = (slot,)
    here: Frame | None = frame
    while here is not None:
        found.update(callbacks.get((here.entry, *path), ()))
        path = (here.call_slot if here.callback else here.call_slot + 1, *path)
        here = here.parent
    return sorted(found)


def unfold(insns: Insns, start: int, callbacks: Mapping[tuple[int, ...], Iterable[int]],
           ) -> tuple[list[Frame], dict[Node, tuple[Frame, ...]]]:
    """All frames (that of the function at `start` first) and the frame each call node enters: one,
    or as many as there are callbacks that it may be handed."""
    functions: dict[int, tuple[tuple[int, ...], tuple[tuple[int, int], ...], bool, int]] = {}
    starts: dict[int, frozenset[int]] = {}
    frames: list[Frame] = []
    entered: dict[Node, tuple[Frame, ...]] = {}
    slots = 0

    def enter(entry: int, parent: Frame | None, call_slot: int) -> Frame:
        nonlocal slots
        depth = parent.depth + 1 if parent else 0
        if depth >= MAX_CALL_FRAMES:
            raise VerifyError(f"instruction {call_slot}",
                              f"calls nest deeper than {MAX_CALL_FRAMES} frames, or recurse",
                              insn=call_slot)
        if entry not in functions:
            functions[entry] = _function(insns, entry)
        leaders, calls, returns, count = functions[entry]
        slots += count
        if slots > MAX_UNFOLDED_SLOTS:
            raise VerifyError("program", f"more than {MAX_UNFOLDED_SLOTS} instructions once its "
                              "calls are unfolded", "make fewer functions __noinline")
        callback = parent is not None and isinstance(insns[call_slot], Call)
        frame = Frame(len(frames), depth, entry, parent, call_slot, leaders, returns, callback,
                      starts.setdefault(entry, frozenset(leaders)))
        frames.append(frame)
        for slot, target in calls:
            callees = ([target] if target != _CALLBACK
                       else callbacks_of(frame, slot, callbacks))
            entered[(frame.id, slot)] = tuple(enter(callee, frame, slot) for callee in callees)
        return frame

    enter(start, None, -1)
    return frames, entered
