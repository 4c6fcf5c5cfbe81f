"""Clocks, and where the worker runs.

Each clock is the C library's of the same name: CLOCK_BOOTTIME, CLOCK_MONOTONIC_COARSE, CLOCK_TAI.
jiffies64 counts the ticks of CLOCK_MONOTONIC_COARSE, whose resolution is that of the kernel it runs
on, from the kernel's start value; the kernel's own may be some ticks behind.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xdp_runtime.helpers.proto import Helper, Ret
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine

Factory = Callable[..., Any]
CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME, CLOCK_TAI = 6, 7, 11
_SECOND_NS = 1_000_000_000
_WRAP_S = 300  # seconds after boot at which the low 32 bits of jiffies64 wrap


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


def _jiffies64(m: Any) -> Factory:
    coarse = m.extern(COARSE)

    def jiffies64():  # type: ignore
        resolution = m.gep(m.alloca(16), 0)
        m.c_clock_getres(CLOCK_MONOTONIC_COARSE, resolution)
        tick_ns = m.load_u64(resolution, 8)
        hz = m.udiv(_SECOND_NS + (tick_ns >> 1), tick_ns)
        return (1 << 32) - _WRAP_S * hz + m.udiv(coarse(), tick_ns)

    return jiffies64


JIFFIES = Template("jiffies64", _jiffies64, "i64()", (COARSE,))


def _interpret_jiffies64(machine: Machine) -> int:
    tick_ns = round(time.clock_getres(CLOCK_MONOTONIC_COARSE) * _SECOND_NS)
    hz = (_SECOND_NS + tick_ns // 2) // tick_ns
    return (1 << 32) - _WRAP_S * hz + time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE) // tick_ns


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
    Helper(118, "jiffies64", (), Ret.SCALAR, _interpret_jiffies64,
           JIFFIES),
    Helper(125, "ktime_get_boot_ns", (), Ret.SCALAR, _interpreter(CLOCK_BOOTTIME),
           _clock("ktime_get_boot_ns", CLOCK_BOOTTIME)),
    Helper(160, "ktime_get_coarse_ns", (), Ret.SCALAR, _interpreter(CLOCK_MONOTONIC_COARSE),
           COARSE),
    Helper(208, "ktime_get_tai_ns", (), Ret.SCALAR, _interpreter(CLOCK_TAI),
           _clock("ktime_get_tai_ns", CLOCK_TAI)),
)
