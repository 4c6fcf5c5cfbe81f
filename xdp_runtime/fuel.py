"""Fuel: an instruction budget that is counted while a program runs, where it cannot be proven.

A program is charged a stretch at a time, when it enters one: the instructions that run from there
one after the other.  A stretch that the rest of the budget does not pay for is not begun: the
program ends there with XDP_ABORTED, so it never runs more instructions than its budget has.
Programs that it calls by tail call go on with what is left; helpers cost as other instructions do.

Interpreter and compiled code charge the same stretches, so they end at the same instruction.
"""

from __future__ import annotations

from functools import lru_cache

from xdp_runtime.isa import (
    Call,
    CallLocal,
    Exit,
    Insns,
    Jump,
    JumpIf,
    LoadFunc,
    MayGoto,
)

ABORTED = 0  # XDP_ABORTED
_CALLING_BACK = (164, 181, 209)  # bpf_for_each_map_elem, bpf_loop, bpf_user_ringbuf_drain
# after these a program holds a socket, a lock, or a record of a ring buffer; or, draining, a ring
_HOLDING = frozenset((84, 85, 93, 99, 131, 198, 209))
_TIMER_SET_CALLBACK = 170


@lru_cache(maxsize=64)
def stretches(insns: Insns) -> dict[int, int]:
    """The slots where stretches begin, and how many instructions each has."""
    starts = {0}
    for slot, insn in enumerate(insns):
        match insn:
            case Jump(off) | JumpIf(off=off) | MayGoto(off):
                starts |= {slot + 1, slot + 1 + off}
            case CallLocal(off):
                starts |= {slot + 1, slot + 1 + off}
            case LoadFunc(_, off):
                starts.add(slot + 1 + off)
            case Call(helper) if helper in _CALLING_BACK:
                starts.add(slot + 1)
            case Exit():
                starts.add(slot + 1)
            case _:
                pass
    out: dict[int, int] = {}
    start = 0
    for slot, insn in enumerate(insns):
        if slot in starts:
            start = slot
        if insn is not None:
            out[start] = out.get(start, 0) + 1
    return out


def why_not(insns: Insns) -> str:
    """Why a program cannot be ended just anywhere, "" if it can."""
    for slot, insn in enumerate(insns):
        if isinstance(insn, Call) and insn.helper in _HOLDING:
            return f"instruction {slot} takes what has to be given back"
        if isinstance(insn, Call) and insn.helper == _TIMER_SET_CALLBACK:
            return f"instruction {slot} leaves a timer behind"
    return ""
