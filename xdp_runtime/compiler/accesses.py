"""Loads, stores and atomics.  No access is checked: the verifier has proven each.

The context is not memory: a load from `struct xdp_md` is a load from the run state (state.py), an
alloca of the loop that LLVM dissolves after inlining.  Loads from frozen maps are constants.
"""

from __future__ import annotations

from xdp_runtime import state as st
from xdp_runtime.compiler.kinds import Either, Kind, Scalar, StackPtr, State, constant
from xdp_runtime.compiler.registers import Registers, components, spill_location
from xdp_runtime.isa import Atomic, AtomicOp, Imm, Operand

_RMW = {AtomicOp.ADD: "add", AtomicOp.OR: "or", AtomicOp.AND: "and", AtomicOp.XOR: "xor",
        AtomicOp.XCHG: "xchg"}


class Accesses(Registers):
    def lower_load(self, dst: int, src: int, off: int, size: int, signed: bool,
                   after: State) -> None:
        kind, result = self.state.regs[src], after.regs[dst]
        if self.provenance.uses_context(self.slot):
            field_offset, is_pointer = st.XDP_MD[off]
            if is_pointer:
                self.put(self.reg(dst), "p", self.get_state(field_offset, "ptr"))
            else:
                self.set_number(dst, self.widen(self.get_state(field_offset, "i32"), 32, signed))
            return
        constant_value = self.facts.constants.get(self.slot)
        if constant_value is not None:
            self.set_number(dst, str(constant_value))
            return
        if isinstance(result, Either):  # the pointer, too, is in memory
            where = self.address(src, off)
            self.set_number(dst, self.value(f"load i64, ptr {where}, align 1"))
            self.put(self.reg(dst), "p", self.value(f"load ptr, ptr {where}, align 1"))
            return
        if not isinstance(result, Scalar):
            assert isinstance(kind, StackPtr) and kind.off is not None
            if "p" in components(result):
                location = spill_location(kind.depth, kind.off + off)
                self.put(self.reg(dst), "p", self.get(location, "p"))
            return
        where = self.address(src, off)
        got = self.value(f"load i{size * 8}, ptr {where}, align {self.alignment(kind, off, size)}"
                         f"{self.scope(src)}")
        self.set_number(dst, self.widen(got, size * 8, signed))

    def alignment(self, kind: Kind, off: int, size: int) -> int:
        if isinstance(kind, StackPtr) and kind.off is not None:
            return next(a for a in (8, 4, 2, 1) if a <= size and (kind.off + off) % a == 0)
        return 1

    def lower_store(self, dst: int, off: int, size: int, src: Operand, after: State) -> None:
        kind = self.state.regs[dst]
        value_kind = constant(src.value) if isinstance(src, Imm) else self.state.regs[src.n]
        where = self.address(dst, off)
        align = self.alignment(kind, off, size)
        scope = self.scope(dst)
        if isinstance(value_kind, Scalar | Either) or size < 8:
            value = self.narrow(self.operand(src), size * 8)
            self.emit(f"store i{size * 8} {value}, ptr {where}, align {align}{scope}")
        else:
            assert not isinstance(src, Imm)
            self.emit(f"store ptr {self.pointer(src.n)}, ptr {where}, align {align}{scope}")
        if isinstance(kind, StackPtr) and kind.off is not None and not isinstance(src, Imm):
            slot = (kind.depth, kind.off + off)
            if slot in after.spills and "p" in components(value_kind):
                self.put(spill_location(*slot), "p", self.pointer(src.n))

    def lower_atomic(self, insn: Atomic) -> None:
        self.lower_atomic_at(insn, self.address(insn.dst, insn.off))

    def lower_atomic_at(self, insn: Atomic, where: str) -> None:
        bits = insn.size * 8
        value = self.narrow(self.number_of(insn.src), bits)
        if insn.op is AtomicOp.CMPXCHG:
            expected = self.narrow(self.number_of(0), bits)
            pair = self.value(f"cmpxchg ptr {where}, i{bits} {expected}, i{bits} {value} "
                              f"seq_cst seq_cst, align {insn.size}")
            old = self.value(f"extractvalue {{i{bits}, i1}} {pair}, 0")
            self.set_number(0, self.widen(old, bits))
            return
        old = self.value(f"atomicrmw {_RMW[insn.op]} ptr {where}, i{bits} {value} seq_cst, "
                         f"align {insn.size}")
        if insn.fetch:
            self.set_number(insn.src, self.widen(old, bits))
