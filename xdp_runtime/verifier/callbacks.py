"""Functions that a helper calls back, any number of times (push_callback_call).

The call is explored twice: as if it were over, and into the callback with one more frame.  When
the callback returns, the path goes on at the call itself, so that it may be called again; numbers
that nothing depended on and that differ from the last time are then unknown, so that the states
come to rest.  A timer's callback runs later, by itself: it is explored as a program of its own.
"""

from __future__ import annotations

from xdp_runtime.isa import MAX_CALL_FRAMES
from xdp_runtime.object import MapSpec
from xdp_runtime.verifier import references, scalar
from xdp_runtime.verifier.access import value_spec
from xdp_runtime.verifier.domain import (
    Frame,
    Kind,
    Num,
    Ptr,
    Reg,
    Slot,
    State,
    mark_precise,
    name_of,
)
from xdp_runtime.verifier.env import Env, Refused

FOR_EACH, TIMER_SET, FIND_VMA, LOOP, DRAIN = 164, 170, 180, 181, 209
_NUMBER = Num(scalar.UNKNOWN)


def push(env: Env, state: State, helper: int, spec: MapSpec | None) -> tuple[int, State] | None:
    """Where the callback begins and the state there; None if it is called no more.

    `state` is that before the call, and stays so."""
    regs = state.top.regs
    inner: list[Reg] = [None] * 11
    function = regs[2]
    assert isinstance(function, Ptr)
    path = (state.frames[0].entry, *(frame.return_slot for frame in state.frames[1:]), env.slot)
    env.callbacks.setdefault(path, set()).add(function.off)
    if helper == TIMER_SET:
        timer = regs[1]
        assert isinstance(timer, Ptr)
        if (function.off, timer.map) in env.timed:
            return None  # it begins as it did then, be it in itself
        env.timed.add((function.off, timer.map))
        env.later.add(function.off)
        inner[1] = Ptr(Kind.MAP, map_=timer.map)
        inner[2] = Ptr(Kind.MAP_KEY, map_=timer.map, size=value_spec(env, timer).key_size)
        inner[3] = Ptr(Kind.MAP_VALUE, map_=timer.map, id_=env.next_id(), keep_id=True)
        inner[10] = Ptr(Kind.STACK)
        return function.off, State([Frame(inner, {}, -1, function.off, helper)])
    if len(state.frames) >= MAX_CALL_FRAMES:
        raise Refused("call", f"calls nest deeper than {MAX_CALL_FRAMES} frames")
    if helper == LOOP:
        count = regs[1]
        if not isinstance(count, Num):
            raise Refused("type", f"bpf_loop: r1 must be a number, is {name_of(count)}", regs=(1,))
        mark_precise(count.tokens)
        if state.top.depth >= count.range.umax:
            return None
        inner[1], inner[2] = _NUMBER, regs[3]
    elif helper == FOR_EACH:
        iterated = regs[1]
        assert isinstance(iterated, Ptr) and spec is not None
        inner[1] = iterated
        inner[2] = Ptr(Kind.MAP_KEY, map_=iterated.map, size=spec.key_size)
        inner[3] = Ptr(Kind.MAP_VALUE, map_=iterated.map, id_=env.next_id(), keep_id=True)
        inner[4] = regs[3]
    else:
        assert helper == DRAIN
        inner[1] = Ptr(Kind.DYNPTR, size=references.LOCAL)
        inner[2] = regs[3]
    again = state.copy()
    again.rounds += 1
    again.top.depth += 1
    inner[10] = Ptr(Kind.STACK, frame=len(state.frames))
    again.frames.append(Frame(inner, {}, env.slot, function.off, helper))
    return function.off, again


def check_result(value: Reg, helper: int) -> None:
    """What a callback may return: whether to stop, or 0."""
    highest = 0 if helper == TIMER_SET else 1
    if value is None:
        raise Refused("uninit", "r0 holds nothing at the end of the callback", regs=(0,))
    if not isinstance(value, Num):
        raise Refused("return", f"r0 is {name_of(value)} at the end of the callback", regs=(0,))
    mark_precise(value.tokens)
    if value.range.smin < 0 or value.range.smax > highest:
        raise Refused("return", f"a callback returns 0{' or 1' if highest else ''}, this one "
                      f"{scalar.describe(value.range)}", regs=(0,))


def widen(before: State, state: State) -> None:
    """Numbers that nothing depended on and that differ from the last round become unknown."""
    for old, new in zip(before.frames, state.frames, strict=True):
        for number, value in enumerate(new.regs):
            before_it = old.regs[number]
            if isinstance(value, Num) and (_grows(before_it, value)
                                           or _is_another(before_it, value)):
                new.regs[number] = _NUMBER
        if old.stack is new.stack:
            continue
        for base, slot in list(new.stack.items()):
            last = old.stack.get(base)
            if last is not None and slot.size == last.size and (
                    isinstance(slot.value, Num) and _grows(last.value, slot.value)):
                new.writable()[base] = Slot(_NUMBER, slot.size, slot.init, slot.zero, slot.token)


def _grows(old: Reg, new: Num) -> bool:
    return isinstance(old, Num) and not old.tokens[0].precise and old.range != new.range


def _is_another(old: Reg, new: Num) -> bool:
    """In registers a number that became a copy of another, or was one, is a different one to
    the kernel (regs_exact): it widens even what is within the same range."""
    return (isinstance(old, Num) and not old.tokens[0].precise
            and bool(old.id) != bool(new.id))
