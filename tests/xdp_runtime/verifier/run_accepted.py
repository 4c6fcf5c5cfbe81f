"""Run what was accepted: the interpreter's own checks must never fire (interp.Trap).

What the interpreter cannot run (a helper or map type without code), and what takes too long, says
nothing of the verifier.  Nor does arithmetic on the bits of a pointer, which root may do and which
gives a number: only memory, calls and the end of the program count.
"""

from __future__ import annotations

import random

from xdp_runtime.errors import XdpuError
from xdp_runtime.interp import Machine, Trap, TrapKind
from xdp_runtime.isa import Alu, JumpIf, Mov, Neg, Reg, Store, Swap
from xdp_runtime.object import Object

RUNS = 6
MAX_STEPS = 20_000
_NOT_THE_VERIFIERS = (TrapKind.HELPER, TrapKind.UNSUPPORTED, TrapKind.BUDGET)
_OF_NUMBERS = (TrapKind.STALE, TrapKind.POINTER)


def find_trap(obj: Object, seed: int) -> str:
    """What went wrong in some runs on random packets; "" if nothing did."""
    rng = random.Random(seed)
    try:
        machine = Machine(obj, obj.programs[0], budget=MAX_STEPS,
                          random_u32=lambda: rng.getrandbits(32))
    except (XdpuError, NotImplementedError):
        return ""
    for size in (0, 14, *(rng.choice((20, 34, 60, 64, 65, 128, 1500)) for _ in range(RUNS - 2))):
        fill = rng.choice((0, 0xFF, None, None))
        packet = rng.randbytes(size) if fill is None else bytes([fill]) * size
        meta = rng.randbytes(rng.choice((0, 0, 4, 32)))
        try:
            machine.run(packet, rx_queue=rng.choice((0, 1, 255)), meta=meta,
                        ingress_ifindex=rng.getrandbits(32))
        except Trap as trap:
            insn = obj.programs[0].insns[trap.insn]
            harmless = isinstance(insn, Alu | Mov | Neg | Swap | JumpIf) or (
                isinstance(insn, Store) and isinstance(insn.src, Reg) and insn.src.n != insn.dst
                and trap.text.startswith(f"r{insn.src.n} "))
            if trap.kind in _NOT_THE_VERIFIERS or (trap.kind in _OF_NUMBERS and harmless):
                return ""
            return f"{trap} (packet of {size} bytes)"
        except XdpuError:
            return ""
    return ""
