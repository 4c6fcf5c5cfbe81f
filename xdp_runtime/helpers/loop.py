"""Helpers that call back, timers, and the lock of a map value."""

from __future__ import annotations

from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.object import MapType

_ITERATED = frozenset({
    MapType.HASH, MapType.ARRAY, MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_HASH,
    MapType.LRU_PERCPU_HASH})
_TIMED = frozenset({MapType.HASH, MapType.LRU_HASH, MapType.ARRAY})

HELPERS = (
    Helper(93, "spin_lock", (Arg.SPIN_LOCK,), Ret.VOID),
    Helper(94, "spin_unlock", (Arg.SPIN_LOCK,), Ret.VOID),
    Helper(164, "for_each_map_elem",
           (Arg.MAP, Arg.CALLBACK, Arg.STACK_OR_NULL, Arg.ANYTHING), Ret.SCALAR, maps=_ITERATED),
    Helper(169, "timer_init", (Arg.TIMER, Arg.MAP, Arg.ANYTHING), Ret.SCALAR, maps=_TIMED,
           gpl_only=True),
    Helper(170, "timer_set_callback", (Arg.TIMER, Arg.CALLBACK), Ret.SCALAR, gpl_only=True),
    Helper(171, "timer_start", (Arg.TIMER, Arg.ANYTHING, Arg.ANYTHING), Ret.SCALAR,
           gpl_only=True),
    Helper(172, "timer_cancel", (Arg.TIMER,), Ret.SCALAR, gpl_only=True),
    Helper(181, "loop", (Arg.ANYTHING, Arg.CALLBACK, Arg.STACK_OR_NULL, Arg.ANYTHING), Ret.SCALAR),
)
