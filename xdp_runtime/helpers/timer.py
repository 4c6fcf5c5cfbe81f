"""bpf_timer_init, _set_callback, _start and _cancel: timers in values of maps.

Compiled they are maps/timers.py, called by lowering, which knows the map and the callback.  Here is
the same for the interpreter: `run_due` fires what is due, as workers do between batches.  A map is
always held by user space, so nothing is -EPERM; an absolute time of CLOCK_REALTIME or
CLOCK_BOOTTIME becomes one of CLOCK_MONOTONIC when the timer is started.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from xdp_runtime.helpers.proto import TIMERS, Arg, Helper, Ret
from xdp_runtime.interp_memory import CodeRegion, Pointer
from xdp_runtime.maps.timers import ABSOLUTE, CLOCKS, EBUSY, EDEADLK, NEVER, PINNED
from xdp_runtime.object import MapType

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine
    from xdp_runtime.interp_memory import Value
    from xdp_runtime.maps.model import ModelMap
    from xdp_runtime.object import ProgramSpec

EINVAL = 22
TIMER_INIT, TIMER_SET_CALLBACK, TIMER_START, TIMER_CANCEL = TIMERS
_MONOTONIC = 1
_handles = count(1)


@dataclass(eq=False)
class _Timer:
    model: ModelMap
    key: bytes
    cell: bytearray
    clock: int
    callback: tuple[ProgramSpec, int] | None = None
    due: int | None = None


@dataclass
class _Timers:
    """Of a machine: by handle; who is being run."""

    known: dict[int, _Timer] = field(default_factory=dict)
    running: _Timer | None = None


_all: WeakKeyDictionary[Machine, _Timers] = WeakKeyDictionary()


def _of(machine: Machine) -> _Timers:
    return _all.setdefault(machine, _Timers())


def _counts(timer: _Timer, handle: int) -> bool:
    """Is it still the timer of an element of its map?"""
    at = timer.model.spec.timer_at
    return (timer.model.peek(timer.key) is timer.cell
            and int.from_bytes(timer.cell[at : at + 8], "little") == handle)


def _find(machine: Machine, place: Pointer) -> _Timer | None:
    handle = int.from_bytes(place.region.data[place.offset : place.offset + 8], "little")
    timer = _of(machine).known.get(handle)
    if timer is None or timer.cell is not place.region.data or not _counts(timer, handle):
        return None
    return timer


def _interpret_init(machine: Machine, place: Pointer, model: ModelMap, flags: int) -> int:
    if flags not in CLOCKS:
        return -EINVAL
    if _find(machine, place) is not None:
        return -EBUSY
    cell = place.region.data
    key = next((key for key, _ in model.items() if model.peek(key) is cell), None)
    if key is not None:  # else it was deleted: such a timer never fires
        handle = next(_handles)
        _of(machine).known[handle] = _Timer(model, key, cell, flags)
        cell[place.offset : place.offset + 8] = handle.to_bytes(8, "little")
    return 0


def _interpret_set_callback(machine: Machine, place: Pointer, code: Value) -> int:
    timer = _find(machine, place)
    if timer is None:
        return -EINVAL
    assert isinstance(code, Pointer) and isinstance(code.region, CodeRegion)
    timer.callback = machine.running_program, code.offset
    return 0


def _interpret_start(machine: Machine, place: Pointer, nsecs: int, flags: int) -> int:
    if flags & ~(ABSOLUTE | PINNED):
        return -EINVAL
    timer = _find(machine, place)
    if timer is None or timer.callback is None:
        return -EINVAL
    now = machine.clock_ns()
    if nsecs > NEVER:
        timer.due = NEVER
    elif not flags & ABSOLUTE:
        timer.due = min(now + nsecs, NEVER)
    else:
        passed = 0 if timer.clock == _MONOTONIC else time.clock_gettime_ns(timer.clock) - now
        timer.due = nsecs - passed
    return 0


def _interpret_cancel(machine: Machine, place: Pointer) -> int:
    timer = _find(machine, place)
    if timer is None:
        return -EINVAL
    if timer is _of(machine).running:
        return -EDEADLK
    queued = timer.due is not None
    timer.callback = timer.due = None
    return int(queued)


def run_due(machine: Machine) -> int | None:
    """Fire what is due; ns until the next is, None if there is none."""
    known, now = _of(machine), machine.clock_ns()
    while True:
        for handle in [handle for handle, timer in known.known.items()
                       if not _counts(timer, handle)]:
            del known.known[handle]
        due = min((t for t in known.known.values() if t.due is not None),
                  key=lambda timer: timer.due or 0, default=None)
        if due is None or due.due is None or due.due == NEVER:
            return None
        if due.due > now:
            return due.due - now
        due.due = None
        if due.callback is not None:
            known.running = due
            try:
                machine.run_timer(*due.callback, due.model, due.key, due.cell)
            finally:
                known.running = None


_TIMED = frozenset({MapType.HASH, MapType.LRU_HASH, MapType.ARRAY})

HELPERS = (
    Helper(TIMER_INIT, "timer_init", (Arg.TIMER, Arg.MAP, Arg.ANYTHING), Ret.SCALAR,
           _interpret_init, maps=_TIMED, gpl_only=True),
    Helper(TIMER_SET_CALLBACK, "timer_set_callback", (Arg.TIMER, Arg.CALLBACK), Ret.SCALAR,
           _interpret_set_callback, gpl_only=True),
    Helper(TIMER_START, "timer_start", (Arg.TIMER, Arg.ANYTHING, Arg.ANYTHING), Ret.SCALAR,
           _interpret_start, gpl_only=True),
    Helper(TIMER_CANCEL, "timer_cancel", (Arg.TIMER,), Ret.SCALAR, _interpret_cancel,
           gpl_only=True),
)
