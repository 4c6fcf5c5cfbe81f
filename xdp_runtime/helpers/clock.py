"""Clocks, and where the worker runs.

Each clock is the C library's of the same name: CLOCK_BOOTTIME, CLOCK_MONOTONIC_COARSE, CLOCK_TAI.
jiffies64 counts ticks of CLOCK_MONOTONIC, as the kernel does, which has begun to some time after
that clock (61 ticks, in one case) and tells nobody when.  times(2) returns its jiffies in
hundredths of a second: the moment that this changes says what they are (jiffies_64_to_clock_t),
once for all.  Who looks may be late, never early: the earliest of several is believed.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from xdp_runtime import state
from xdp_runtime.helpers.proto import Helper, Ret
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine

Factory = Callable[..., Any]
CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME, CLOCK_TAI = 6, 7, 11
_SECOND_NS = 1_000_000_000
CLOCK_T_NS = 10_000_000  # a unit of times(2), USER_HZ
_LATE_NS, _CHANGES = 100_000, 12
JIFFIES64 = 118


def _clock(name: str, number: int) -> Template:
    def factory(m: Any) -> Factory:
        def clock():  # type: ignore
            now = m.gep(m.alloca(16), 0)
            m.c_clock_gettime(number, now)
            return m.load_u64(now, 0) * 1_000_000_000 + m.load_u64(now, 8)

        return clock

    return Template(name, factory, "i64()")


def _interpreter(number: int) -> Callable[[Machine], int]:
    def interpret(machine: Machine) -> int:
        return time.clock_gettime_ns(number)

    return interpret


COARSE = _clock("ktime_get_coarse_ns", CLOCK_MONOTONIC_COARSE)
MONOTONIC = _clock("clock_monotonic_ns", time.CLOCK_MONOTONIC)


def _jiffies64(m: Any) -> Factory:
    monotonic = m.extern(MONOTONIC)

    def jiffies64(run):  # type: ignore
        worker = m.load_ptr(run, state.WORKER)
        memory = m.gep(m.alloca(32), 0)
        m.c_clock_getres(CLOCK_MONOTONIC_COARSE, memory)
        tick_ns = m.load_u64(memory, 8)
        base = m.load_u64(worker, state.W_JIFFIES)
        if base == 0:
            now = m.c_times(memory)
            for _ in range(3):
                before = now
                while now == before:
                    now = m.c_times(memory)
                ticks = m.udiv(now * CLOCK_T_NS + tick_ns - 1, tick_ns)
                found = ticks * tick_ns - monotonic()
                if found > base:
                    base = found
            m.store_u64(worker, state.W_JIFFIES, base)
        return m.udiv(monotonic() + base, tick_ns)

    return jiffies64


JIFFIES = Template("jiffies64", _jiffies64, "i64(ptr)", (MONOTONIC,))


@cache
def jiffies_base_ns() -> int:
    """What to add to CLOCK_MONOTONIC so that it counts jiffies from their start.

    Looks at changes, 10 ms apart, until two agree that were hardly seen late."""
    libc = ctypes.CDLL(None)
    libc.times.restype = ctypes.c_long
    tms = (ctypes.c_long * 4)()  # struct tms
    now, tick_ns = int(libc.times(tms)), _tick_ns()
    found: list[int] = []
    while len(found) < 2 or (found[-1] - found[-2] > _LATE_NS and len(found) < _CHANGES):
        before = now
        while now == before:
            now = libc.times(tms)
        monotonic_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        found.append(-(-now * CLOCK_T_NS // tick_ns) * tick_ns - monotonic_ns)
        found.sort()
    return found[-1]


def _tick_ns() -> int:
    return round(time.clock_getres(CLOCK_MONOTONIC_COARSE) * _SECOND_NS)


def _interpret_jiffies64(machine: Machine) -> int:
    return (time.clock_gettime_ns(time.CLOCK_MONOTONIC) + jiffies_base_ns()) // _tick_ns()


def _get_numa_node_id(m: Any) -> Factory:
    def get_numa_node_id():  # type: ignore
        where = m.gep(m.alloca(8), 0)
        m.c_getcpu(where, m.gep(where, 4))
        return m.load_u32(where, 4)

    return get_numa_node_id


def _interpret_get_numa_node_id(machine: Machine) -> int:
    cpu, node = ctypes.c_uint(), ctypes.c_uint()
    ctypes.CDLL(None).getcpu(ctypes.byref(cpu), ctypes.byref(node))
    return node.value


HELPERS = (
    Helper(42, "get_numa_node_id", (), Ret.SCALAR, _interpret_get_numa_node_id,
           Template("get_numa_node_id", _get_numa_node_id, "i64()")),
    Helper(JIFFIES64, "jiffies64", (), Ret.SCALAR, _interpret_jiffies64, JIFFIES,
           needs_state=True),
    Helper(125, "ktime_get_boot_ns", (), Ret.SCALAR, _interpreter(CLOCK_BOOTTIME),
           _clock("ktime_get_boot_ns", CLOCK_BOOTTIME)),
    Helper(160, "ktime_get_coarse_ns", (), Ret.SCALAR, _interpreter(CLOCK_MONOTONIC_COARSE),
           COARSE),
    Helper(208, "ktime_get_tai_ns", (), Ret.SCALAR, _interpreter(CLOCK_TAI),
           _clock("ktime_get_tai_ns", CLOCK_TAI)),
)
