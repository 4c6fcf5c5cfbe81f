"""The program's control flow as the explorer needs it: tables by slot, computed once.

`live[slot]`: bit n is set if r<n> may still be read from there on (in its own function; a local
call reads r1-r5, a helper as many arguments as its prototype has).  What is dead is forgotten
when a state is remembered, so states that differ only there are one (compute_live_registers).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from xdp_runtime.cfg import build_cfg
from xdp_runtime.helpers import HELPERS
from xdp_runtime.helpers.iterator import ITER_NEXT
from xdp_runtime.helpers.proto import Arg, Helper
from xdp_runtime.isa import (
    AddressCast,
    Alu,
    AluOp,
    Atomic,
    AtomicOp,
    Call,
    CallKfunc,
    CallLocal,
    CallReg,
    Exit,
    Imm,
    Insn,
    Insns,
    Jump,
    JumpIf,
    Load,
    LoadAcquire,
    LoadFunc,
    LoadImm64,
    LoadMap,
    LoadMapValue,
    MayGoto,
    Mov,
    Neg,
    Operand,
    Store,
    StoreRelease,
    Swap,
)
from xdp_runtime.verifier.env import Refused
from xdp_runtime.verifier.obligations import Obligation, obligations

_ARGUMENTS = 0b111110


class FlowError(Refused):
    """The shape of the program itself is wrong, before any path is taken."""

    def __init__(self, insn: int, kind: str, text: str) -> None:
        super().__init__(kind, text)
        self.insn = insn


@dataclass(slots=True)
class Flow:
    next: list[int]  # slot that follows
    target: list[int]  # slot jumped to, -1: none
    live: list[int]
    prune: list[bool]  # a place where paths meet: states are compared here
    loops: list[bool]  # an instruction at which a loop ends by itself: always remember the state
    functions: dict[int, int]  # instructions that take a function's address, and its slot
    starts: list[int]  # where functions begin
    obligations: list[tuple[Obligation, ...]]


def analyse(insns: Insns, helpers: Mapping[int, Helper] = HELPERS) -> Flow:
    count = len(insns)
    build_cfg(insns)
    following, target = [0] * count, [-1] * count
    prune, loops = [False] * count, [False] * count
    functions: dict[int, int] = {}
    proof: list[tuple[Obligation, ...]] = [()] * count
    for slot, insn in enumerate(insns):
        if insn is None:
            continue
        proof[slot] = obligations(insn)
        wide = isinstance(insn, LoadImm64 | LoadMap | LoadMapValue | LoadFunc)
        following[slot] = slot + (2 if wide else 1)
        if isinstance(insn, Jump | JumpIf | MayGoto):
            target[slot] = slot + 1 + insn.off
            prune[target[slot]] = True
        if isinstance(insn, CallLocal):
            target[slot] = slot + 1 + insn.off
            prune[target[slot]] = True
            prune[slot + 1] = True
        if isinstance(insn, LoadFunc):
            target[slot] = functions[slot] = slot + 1 + insn.off
            prune[target[slot]] = True
        if isinstance(insn, MayGoto | CallKfunc) or (
                isinstance(insn, Call) and (
                    insn.helper == ITER_NEXT or _calls_back(helpers.get(insn.helper)))):
            prune[slot] = loops[slot] = True
    _reach(insns, following, target)
    live = _liveness(insns, following, target, helpers)
    starts = sorted({0, *functions.values(), *(
        target[slot] for slot, insn in enumerate(insns) if isinstance(insn, CallLocal))})
    return Flow(following, target, live, prune, loops, functions, starts, proof)


def _calls_back(helper: Helper | None) -> bool:
    return helper is not None and Arg.CALLBACK in helper.args


def _reach(insns: Insns, following: list[int], target: list[int]) -> None:
    """Everything is reachable: the kernel refuses dead code that no path could ever enter."""
    seen = [False] * len(insns)
    todo = [0]
    while todo:
        slot = todo.pop()
        if seen[slot]:
            continue
        seen[slot] = True
        insn = insns[slot]
        if target[slot] >= 0:
            todo.append(target[slot])
        if not isinstance(insn, Exit | Jump):
            todo.append(following[slot])
    for slot, insn in enumerate(insns):
        if insn is not None and not seen[slot]:
            raise FlowError(slot, "control", "no path leads to this instruction")


def _liveness(insns: Insns, following: list[int], target: list[int],
              helpers: Mapping[int, Helper]) -> list[int]:
    live = [0] * len(insns)
    changed = True
    while changed:
        changed = False
        for slot in range(len(insns) - 1, -1, -1):
            insn = insns[slot]
            if insn is None:
                continue
            out = 0
            if not isinstance(insn, Exit | Jump):
                out = live[following[slot]]
            if isinstance(insn, Jump | JumpIf | MayGoto):
                out |= live[target[slot]]
            used, defined = uses(insn, helpers)
            fresh = out & ~defined | used
            if fresh != live[slot]:
                live[slot] = fresh
                changed = True
    return live


def _bits(src: Operand) -> int:
    return 0 if isinstance(src, Imm) else 1 << src.n


def uses(insn: Insn, helpers: Mapping[int, Helper] = HELPERS) -> tuple[int, int]:
    """(registers read, registers written) as bit sets."""
    match insn:
        case Alu(op, _, dst, src):
            if op in (AluOp.XOR, AluOp.SUB) and _bits(src) == 1 << dst:
                return 1 << dst, 1 << dst
            return 1 << dst | _bits(src), 1 << dst
        case Mov(_, dst, src, _):
            return _bits(src), 1 << dst
        case AddressCast(dst, src_reg, _):
            return 1 << src_reg, 1 << dst
        case Neg(_, dst) | Swap(dst, _, _):
            return 1 << dst, 1 << dst
        case LoadImm64(dst, _) | LoadMap(dst, _) | LoadMapValue(dst, _, _) | LoadFunc(dst, _):
            return 0, 1 << dst
        case Load(dst, src_reg, _, _, _) | LoadAcquire(dst, src_reg, _, _):
            return 1 << src_reg, 1 << dst
        case Store(dst, _, _, src):
            return 1 << dst | _bits(src), 0
        case StoreRelease(dst, _, _, src_reg):
            return 1 << dst | 1 << src_reg, 0
        case Atomic(atomic_op, _, dst, _, src_reg, fetch):
            read = 1 << dst | 1 << src_reg
            if atomic_op is AtomicOp.CMPXCHG:
                return read | 1, 1
            return read, 1 << src_reg if fetch else 0
        case JumpIf(_, _, dst, src, _):
            return 1 << dst | _bits(src), 0
        case Jump() | MayGoto():
            return 0, 0
        case Call(number):
            helper = helpers.get(number)
            count = 5 if helper is None else len(helper.args)
            return (1 << count + 1) - 2, _ARGUMENTS | 1
        case CallReg(src_reg):
            return _ARGUMENTS | 1 << src_reg, _ARGUMENTS | 1
        case CallLocal() | CallKfunc():
            return _ARGUMENTS, _ARGUMENTS | 1
        case Exit():
            return 1, 0
