"""What must hold before an instruction may run: extracted here, proven elsewhere (check.py).

Obligations follow from the instruction alone.  They can be printed next to the disassembly
(`xdpu check --explain`), and the domain that proves them can be exchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

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
    JmpOp,
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
    Reg,
    Store,
    StoreRelease,
    Swap,
)


@dataclass(frozen=True, slots=True)
class Readable:
    """The register holds a value."""

    reg: int


@dataclass(frozen=True, slots=True)
class Writable:
    """The register may be written (all but the frame pointer)."""

    reg: int


@dataclass(frozen=True, slots=True)
class IsNumber:
    """The register holds a number, not a pointer."""

    reg: int


@dataclass(frozen=True, slots=True)
class Summable:
    """`dst op= src` is allowed: two numbers, a pointer moved by a bounded number, a distance."""

    op: AluOp
    is64: bool
    dst: int
    src: Operand


@dataclass(frozen=True, slots=True)
class ShiftInRange:
    """A constant shift is narrower than the register."""

    amount: int
    bits: int


@dataclass(frozen=True, slots=True)
class NonZeroDivisor:
    """A constant divisor is not zero.  (A register may be: the result is defined.)"""

    divisor: int


@dataclass(frozen=True, slots=True)
class Comparable:
    """The two operands may be compared with each other."""

    op: JmpOp
    is64: bool
    dst: int
    src: Operand


@dataclass(frozen=True, slots=True)
class ValidAccess:
    """`size` bytes at reg + off lie inside the object the register points into, are aligned where
    that matters, and may be read (or written).  `value` is the register stored, -1: none."""

    reg: int
    off: int
    size: int
    write: bool
    atomic: bool = False
    value: int = -1
    signed: bool = False


@dataclass(frozen=True, slots=True)
class ValidMap:
    """The map exists; `offset` >= 0: and is a global of which that byte's address is taken."""

    map: int
    offset: int = -1


@dataclass(frozen=True, slots=True)
class HasArena:
    """The program uses an arena."""


@dataclass(frozen=True, slots=True)
class ValidCall:
    """The helper exists, may be called here, and every argument is what it wants."""

    helper: int


@dataclass(frozen=True, slots=True)
class ValidKfunc:
    btf_id: int


@dataclass(frozen=True, slots=True)
class Returnable:
    """Leaving the function now is right: r0 is fit to be returned, nothing is still held."""


@dataclass(frozen=True, slots=True)
class CallDepth:
    """One more frame fits."""


@dataclass(frozen=True, slots=True)
class NotAllowed:
    """No program may do this."""

    why: str


Obligation = (
    Readable | Writable | IsNumber | Summable | ShiftInRange | NonZeroDivisor | Comparable
    | ValidAccess | ValidMap | HasArena | ValidCall | ValidKfunc | Returnable | CallDepth
    | NotAllowed
)

_SHIFTS = (AluOp.LSH, AluOp.RSH, AluOp.ARSH)
_DIVISIONS = (AluOp.DIV, AluOp.MOD, AluOp.SDIV, AluOp.SMOD)


def obligations(insn: Insn) -> tuple[Obligation, ...]:
    """In the order in which they are to be proven."""
    match insn:
        case Alu(op, is64, dst, src):
            out: list[Obligation] = [Writable(dst)]
            if isinstance(src, Imm):
                if op in _SHIFTS:
                    out.append(ShiftInRange(src.value, 64 if is64 else 32))
                elif op in _DIVISIONS:
                    out.append(NonZeroDivisor(src.value))
            else:
                out.append(Readable(src.n))
            return (*out, Readable(dst), Summable(op, is64, dst, src))
        case Mov(_, dst, src, _):
            if isinstance(src, Imm):
                return (Writable(dst),)
            return (Writable(dst), Readable(src.n))
        case AddressCast(dst, src_reg, _):
            return (Writable(dst), Readable(src_reg), HasArena())
        case Neg(_, dst) | Swap(dst, _, _):
            return (Writable(dst), Readable(dst))
        case LoadImm64(dst, _):
            return (Writable(dst),)
        case LoadMap(dst, index):
            return (Writable(dst), ValidMap(index))
        case LoadMapValue(dst, index, offset):
            return (Writable(dst), ValidMap(index, offset))
        case LoadFunc(dst, _):
            return (Writable(dst),)
        case Load(dst, src_reg, off, size, signed):
            return (Writable(dst), Readable(src_reg),
                    ValidAccess(src_reg, off, size, False, signed=signed))
        case Store(dst, off, size, src):
            if isinstance(src, Reg):
                return (Readable(src.n), Readable(dst),
                        ValidAccess(dst, off, size, True, value=src.n))
            return (Readable(dst), ValidAccess(dst, off, size, True))
        case Atomic(op=atomic_op, size=size, dst=dst, off=off, src=src_reg,
                    fetch=fetch):
            extra: tuple[Obligation, ...] = (Readable(0),) if atomic_op is AtomicOp.CMPXCHG else ()
            if fetch and atomic_op is not AtomicOp.CMPXCHG:
                extra = (Writable(src_reg),)
            return (Readable(src_reg), Readable(dst), *extra,
                    ValidAccess(dst, off, size, False, atomic=True),
                    ValidAccess(dst, off, size, True, atomic=True))
        case LoadAcquire(dst, src_reg, off, size):
            return (Writable(dst), Readable(src_reg),
                    ValidAccess(src_reg, off, size, False, atomic=True))
        case StoreRelease(dst, off, size, src_reg):
            return (Readable(src_reg), Readable(dst),
                    ValidAccess(dst, off, size, True, atomic=True, value=src_reg))
        case JumpIf(jump_op, is64, dst, src, _):
            both = (Readable(dst), Readable(src.n)) if isinstance(src, Reg) else (Readable(dst),)
            return (*both, Comparable(jump_op, is64, dst, src))
        case Jump() | MayGoto():
            return ()
        case Call(helper):
            return (ValidCall(helper),)
        case CallKfunc(btf_id, _):
            return (ValidKfunc(btf_id),)
        case CallLocal():
            return (CallDepth(),)
        case CallReg():
            return (NotAllowed("calls through a register are not allowed (clang -O0 makes them of "
                               "helpers: compile with -O2)"),)
        case Exit():
            return (Returnable(),)
        case _:
            assert_never(insn)
