"""bpf_spin_lock and bpf_spin_unlock: the lock in a map's value (maps/locked.py).

The verifier has seen to it that a program holds at most one, calls nothing meanwhile, and gives it
back.  The interpreter is alone, so there the lock is nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.maps.locked import SPIN_LOCK, SPIN_UNLOCK

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine, Pointer


def _interpret(machine: Machine, lock: Pointer) -> int:
    return 0


HELPERS = (
    Helper(93, "spin_lock", (Arg.SPIN_LOCK,), Ret.VOID, _interpret, SPIN_LOCK),
    Helper(94, "spin_unlock", (Arg.SPIN_LOCK,), Ret.VOID, _interpret, SPIN_UNLOCK),
)
