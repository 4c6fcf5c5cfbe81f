"""Hypothesis strategies: every instruction there is, with every field in range."""

from __future__ import annotations

from hypothesis import strategies as st

from xdp_runtime import isa
from xdp_runtime.isa import AluOp, AtomicOp, Imm, Insn, Insns, JmpOp, Reg, SwapOrder

REGS = st.integers(0, 10)
S16 = st.integers(-(1 << 15), (1 << 15) - 1)
S32 = st.integers(-(1 << 31), (1 << 31) - 1)
OPERANDS = st.builds(Reg, REGS) | st.builds(Imm, S32)
SIZES = st.sampled_from((1, 2, 4, 8))
WIDE = st.sampled_from((4, 8))
INDEX = st.integers(0, 63)


def _moves() -> st.SearchStrategy[Insn]:
    wide = st.builds(isa.Mov, st.just(True), REGS, st.builds(Reg, REGS),
                     st.sampled_from((8, 16, 32)))
    narrow = st.builds(isa.Mov, st.just(False), REGS, st.builds(Reg, REGS),
                       st.sampled_from((8, 16)))
    return st.builds(isa.Mov, st.booleans(), REGS, OPERANDS) | wide | narrow


def _atomics() -> st.SearchStrategy[Insn]:
    plain = st.builds(isa.Atomic,
                      st.sampled_from((AtomicOp.ADD, AtomicOp.OR, AtomicOp.AND, AtomicOp.XOR)),
                      WIDE, REGS, S16, REGS, st.booleans())
    exchange = st.builds(isa.Atomic, st.sampled_from((AtomicOp.XCHG, AtomicOp.CMPXCHG)),
                         WIDE, REGS, S16, REGS, st.just(True))
    return plain | exchange


INSNS: st.SearchStrategy[Insn] = st.one_of(
    st.builds(isa.Alu, st.sampled_from(AluOp), st.booleans(), REGS, OPERANDS),
    st.builds(isa.Neg, st.booleans(), REGS),
    _moves(),
    st.builds(isa.Swap, REGS, st.sampled_from((16, 32, 64)), st.sampled_from(SwapOrder)),
    st.builds(isa.AddressCast, REGS, REGS, st.booleans()),
    st.builds(isa.LoadImm64, REGS, st.integers(0, (1 << 64) - 1)),
    st.builds(isa.LoadMap, REGS, INDEX),
    st.builds(isa.LoadMapValue, REGS, INDEX, S32),
    st.builds(isa.LoadFunc, REGS, S32),
    st.builds(isa.Load, REGS, REGS, S16, SIZES),
    st.builds(isa.Load, REGS, REGS, S16, st.sampled_from((1, 2, 4)), st.just(True)),
    st.builds(isa.Store, REGS, S16, SIZES, OPERANDS),
    _atomics(),
    st.builds(isa.LoadAcquire, REGS, REGS, S16, SIZES),
    st.builds(isa.StoreRelease, REGS, S16, SIZES, REGS),
    st.builds(isa.Jump, S16),
    st.builds(isa.Jump, S32, st.just(True)),
    st.builds(isa.JumpIf, st.sampled_from(JmpOp), st.booleans(), REGS, OPERANDS, S16),
    st.builds(isa.MayGoto, S16),
    st.builds(isa.Call, S32),
    st.builds(isa.CallKfunc, S32, S16),
    st.builds(isa.CallLocal, S32),
    st.builds(isa.CallReg, REGS),
    st.just(isa.Exit()),
)


def as_slots(insns: list[Insn]) -> Insns:
    """With the second slots of 64-bit loads put in."""
    out: list[Insn | None] = []
    for insn in insns:
        out.append(insn)
        if isinstance(insn, isa.LoadImm64 | isa.LoadMap | isa.LoadMapValue | isa.LoadFunc):
            out.append(None)
    return tuple(out)
