"""Numbers: arithmetic, moves and comparisons, with RFC 9669's division and shifts."""

from __future__ import annotations

from xdp_runtime.compiler.kinds import POINTERS, Kind, Scalar, State, constant
from xdp_runtime.compiler.registers import Registers, components
from xdp_runtime.isa import AluOp, Imm, JmpOp, JumpIf, Operand, Reg

_PREDICATES = {
    JmpOp.EQ: "eq", JmpOp.NE: "ne", JmpOp.GT: "ugt", JmpOp.GE: "uge", JmpOp.LT: "ult",
    JmpOp.LE: "ule", JmpOp.SGT: "sgt", JmpOp.SGE: "sge", JmpOp.SLT: "slt", JmpOp.SLE: "sle",
}
_SIGNED = {JmpOp.GT: "sgt", JmpOp.GE: "sge", JmpOp.LT: "slt", JmpOp.LE: "sle"}
_SIMPLE = {
    AluOp.ADD: "add", AluOp.SUB: "sub", AluOp.MUL: "mul", AluOp.OR: "or", AluOp.AND: "and",
    AluOp.XOR: "xor", AluOp.LSH: "shl", AluOp.RSH: "lshr", AluOp.ARSH: "ashr",
}


class Arithmetic(Registers):
    loops: bool  # does the program jump backwards?

    def lower_alu(self, op: AluOp, is64: bool, dst: int, src: Operand, before: State,
                  after: State) -> None:
        result = after.regs[dst]
        if not isinstance(result, Scalar):
            self.lower_pointer_sum(op, dst, src, before, result)
            return
        if result.const is not None:
            self.set_number(dst, str(result.const))
            return
        bits = 64 if is64 else 32
        left = self.narrow(self.number_of(dst), bits)
        right = self.narrow(self.operand(src), bits)
        self.set_number(dst, self.widen(self.arithmetic(op, bits, left, right), bits))

    def lower_pointer_sum(self, op: AluOp, dst: int, src: Operand, before: State,
                          result: Kind) -> None:
        if not components(result):
            return
        left = self.provenance.settled(before, self.slot, dst)
        right = None if isinstance(src, Imm) else self.provenance.settled(before, self.slot, src.n)
        if isinstance(src, Reg) and (isinstance(left, Scalar) or (
                op is AluOp.ADD and isinstance(right, POINTERS))):
            pointer, by = self.pointer(src.n), self.number_of(dst)  # number + pointer
        else:
            pointer, by = self.pointer(dst), self.operand(src)
        both = components(result) == "ip"
        number = self.arithmetic(op, 64, self.number_of(dst), self.operand(src)) if both else ""
        if op is not AluOp.ADD:
            by = self.value(f"sub i64 0, {by}")
        self.put(self.reg(dst), "p", self.value(f"getelementptr i8, ptr {pointer}, i64 {by}"))
        if both:
            self.put(self.reg(dst), "i", number)

    def arithmetic(self, op: AluOp, bits: int, x: str, y: str) -> str:
        t = f"i{bits}"
        match op:
            case AluOp.LSH | AluOp.RSH | AluOp.ARSH:
                by = self.value(f"and {t} {y}, {bits - 1}")
                return self.value(f"{_SIMPLE[op]} {t} {x}, {by}")
            case AluOp.DIV | AluOp.MOD:
                zero = self.value(f"icmp eq {t} {y}, 0")
                safe = self.value(f"select i1 {zero}, {t} 1, {t} {y}")
                word = "udiv" if op is AluOp.DIV else "urem"
                result = self.value(f"{word} {t} {x}, {safe}")
                instead = "0" if op is AluOp.DIV else x
                return self.value(f"select i1 {zero}, {t} {instead}, {t} {result}")
            case AluOp.SDIV | AluOp.SMOD:
                zero = self.value(f"icmp eq {t} {y}, 0")
                minus = self.value(f"icmp eq {t} {y}, -1")
                odd = self.value(f"or i1 {zero}, {minus}")
                safe = self.value(f"select i1 {odd}, {t} 1, {t} {y}")
                word = "sdiv" if op is AluOp.SDIV else "srem"
                result = self.value(f"{word} {t} {x}, {safe}")
                negated = self.value(f"sub {t} 0, {x}") if op is AluOp.SDIV else "0"
                result = self.value(f"select i1 {minus}, {t} {negated}, {t} {result}")
                instead = "0" if op is AluOp.SDIV else x
                return self.value(f"select i1 {zero}, {t} {instead}, {t} {result}")
            case _:
                return self.value(f"{_SIMPLE[op]} {t} {x}, {y}")

    def lower_mov(self, is64: bool, dst: int, src: Operand, sign_bits: int, after: State) -> None:
        result = after.regs[dst]
        if isinstance(result, Scalar):
            if result.const is not None:
                self.set_number(dst, str(result.const))
                return
            value = self.operand(src)
            if sign_bits:
                value = self.widen(self.narrow(value, sign_bits), sign_bits, signed=True)
            if not is64:
                value = self.widen(self.narrow(value, 32), 32)
            self.set_number(dst, value)
            return
        assert not isinstance(src, Imm)
        self.copy(result, self.reg(src.n), self.reg(dst))

    def place(self, register: int, is_end: bool) -> str:
        """A pointer as a number.  That of the packet's end gets a clear top bit, as every address
        in user space has one: now LLVM sees that what steps towards it gets there before it wraps,
        so it can count the rounds of a loop in advance and make vector code of it."""
        number = self.number_of(register)
        return self.same(f"and i64 {number}, {(1 << 63) - 1}") if is_end else number

    def compare_room(self, op: JmpOp, dst: int, src: int, shown: int) -> str:
        """A comparison with the packet's end, of the bytes up to there: they are the packet's
        length where the pointer is its start, and then neither end nor sum is ever worked out."""
        pointer, end = (dst, src) if shown > 0 else (src, dst)
        start = self.value(f"getelementptr i8, ptr {self.pointer(pointer)}, i64 {-abs(shown)}")
        room = self.value(f"sub i64 {self.value(f'ptrtoint ptr {self.pointer(end)} to i64')}, "
                          f"{self.value(f'ptrtoint ptr {start} to i64')}")
        one, other = (str(shown), room) if shown > 0 else (room, str(-shown))
        return self.value(f"icmp {_SIGNED[op]} i64 {one}, {other}")

    def compare(self, insn: JumpIf, slot: int) -> str:
        op, dst, src = insn.op, insn.dst, insn.src
        left = self.state.regs[dst]
        right = constant(src.value) if isinstance(src, Imm) else self.state.regs[src.n]
        if insn.is64 and isinstance(left, POINTERS) and op is not JmpOp.SET:
            if right == constant(0) and op in (JmpOp.EQ, JmpOp.NE):
                return self.value(f"icmp {_PREDICATES[op]} ptr {self.pointer(dst)}, null")
            if isinstance(right, POINTERS) and not isinstance(src, Imm):
                shown = self.facts.edges.get(slot, 0)
                if shown and self.loops:
                    one, other = self.place(dst, shown < 0), self.place(src.n, shown > 0)
                    return self.value(f"icmp {_PREDICATES[op]} i64 {one}, {other}")
                if shown and op in _SIGNED:
                    return self.compare_room(op, dst, src.n, shown)
                return self.value(
                    f"icmp {_PREDICATES[op]} ptr {self.pointer(dst)}, {self.pointer(src.n)}")
        bits = 64 if insn.is64 else 32
        one = self.narrow(self.number_of(dst), bits)
        other = self.narrow(self.operand(src), bits)
        if op is JmpOp.SET:
            common = self.value(f"and i{bits} {one}, {other}")
            return self.value(f"icmp ne i{bits} {common}, 0")
        return self.value(f"icmp {_PREDICATES[op]} i{bits} {one}, {other}")
