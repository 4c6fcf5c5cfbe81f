"""Statements of random programs on memory as compilers and verifiers see it: spilled numbers of
which a part is written again, offsets that are known within bounds, one instruction for two kinds
of pointers, chains of calls with pointers into callers' frames, atomics on the stack, the edges of
arithmetic.

The stack below what calling.py uses: r10-240 32 bytes that are numbers, r10-248 a pointer.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.fuzz.calling import NUMBERS_AFTER, CallingGenerator
from tests.xdp_runtime.compiler.generate import VALUE
from xdp_runtime.isa import (
    Alu,
    AluOp,
    Atomic,
    AtomicOp,
    Call,
    CallLocal,
    Exit,
    Imm,
    Insn,
    JmpOp,
    Jump,
    JumpIf,
    Load,
    LoadImm64,
    LoadMap,
    Mov,
    Reg,
    Store,
)

_AREA, _AREA_BYTES, _POINTER = -240, 32, -248
_CHAIN = 3_000_000  # a call of the first of the chain, until functions() knows where it is
_DEPTH = 6
_EDGES = (0, 1, 2, (1 << 64) - 1, 1 << 63, (1 << 63) - 1, 1 << 31, (1 << 31) - 1, (1 << 32) - 1,
          0xFFFFFFFF80000000, 1 << 32, 7)
_DIVISIONS = (AluOp.DIV, AluOp.MOD, AluOp.SDIV, AluOp.SMOD)
_SHIFTS = (AluOp.LSH, AluOp.RSH, AluOp.ARSH)
_STORE_BYTES = 190


class MemoryGenerator(CallingGenerator):
    chained: bool

    def remembering(self) -> list[Callable[[], None]]:
        return [self.part, self.part, self.within, self.narrowed, self.two_kinds, self.stack_atomic,
                self.edge, self.edge, self.chain, self.copied, self.unchecked, self.places]

    def fold(self, register: int) -> None:
        """A number becomes part of the result."""
        self.emit(Alu(AluOp.MUL, True, 9, Imm(31)), Alu(AluOp.XOR, True, 9, Reg(register)))

    def area(self) -> None:
        for off in range(_AREA, _AREA + _AREA_BYTES, 8):
            self.emit(Store(10, off, 8, self.random.choice((Reg(9), Imm(self.imm())))))

    def part(self) -> None:
        """Eight bytes are put aside, some written again, some read."""
        self.area()
        for _ in range(self.random.randrange(1, 4)):
            size = self.random.choice((1, 2, 4, 8))
            off = _AREA + size * self.random.randrange(_AREA_BYTES // size)
            self.emit(Store(10, off, size, self.random.choice((
                Reg(self.number()), Imm(self.imm())))))
            size = self.random.choice((1, 2, 4, 4, 8))
            off = _AREA + size * self.random.randrange(_AREA_BYTES // size)
            self.emit(Load(0, 10, off, size, size < 8 and self.random.random() < 0.4))
            self.fold(0)

    def within(self) -> None:
        """Writing and reading the stack at an offset that is known within bounds."""
        self.area()
        for write in self.random.choice(((True, False), (False, True, False))):
            size = self.random.choice((1, 2, 4, 8))
            self.emit(Mov(True, 1, Reg(self.number())),
                      Alu(AluOp.AND, self.random.random() < 0.5, 1,
                          Imm(_AREA_BYTES - 1 & ~(size - 1))),
                      *self.stack_at(2, _AREA), Alu(AluOp.ADD, True, 2, Reg(1)))
            if write:
                self.emit(Store(2, 0, size, self.random.choice((Reg(9), Imm(self.imm())))))
            else:
                self.emit(Load(0, 2, 0, size))
                self.fold(0)
            self.emit(Mov(True, 1, Imm(0)), Mov(True, 2, Imm(0)))
        self.fresh((1, 2))

    def narrowed(self) -> None:
        """An offset into a map's value that comparisons bound, of 32 bits or signed ones."""
        size = self.random.choice((1, 2, 4, 8))
        most = self.random.randrange(VALUE - size + 1)
        wide = self.random.random() < 0.5
        least = self.random.choice((0, 0, -3))
        form = self.random.randrange(4)
        self.emit(Load(0, 7, self.random.randrange(50), self.random.choice((1, 1, 2, 4, 8)),
                       False))
        if self.random.random() < 0.3:
            self.emit(Mov(True, 0, Reg(0), self.random.choice((8, 16, 32))))
        body: list[Insn] = [Mov(True, 3, Reg(8)), Alu(AluOp.ADD, True, 3, Reg(0)),
                            Load(1, 3, 0, size), Alu(AluOp.XOR, True, 9, Reg(1)),
                            Store(3, 0, size, Reg(9))]
        if form == 0:
            checks: list[Insn] = [JumpIf(JmpOp.GT, True, 0, Imm(most), len(body))]
        elif form == 1:
            checks = [JumpIf(JmpOp.SLT, wide, 0, Imm(0), len(body) + 2 + (not wide)),
                      JumpIf(JmpOp.SGT, wide, 0, Imm(most), len(body) + 1 + (not wide)),
                      *([] if wide else [Mov(False, 0, Reg(0))]), Mov(True, 1, Imm(0))]
        elif form == 2:
            checks = [JumpIf(JmpOp.LT, False, 0, Imm(most + 1), 1), Jump(len(body) + 1),
                      Mov(False, 0, Reg(0))]
        else:
            checks = [JumpIf(JmpOp.SLT, True, 0, Imm(least), len(body) + 2),
                      JumpIf(JmpOp.SGE, True, 0, Imm(most + 1 + least), len(body) + 1),
                      Alu(AluOp.ADD, True, 0, Imm(-least))]
        self.emit(*checks, *body)
        self.fresh((0, 1, 3))

    def two_kinds(self) -> None:
        """One instruction reads or writes stack, value or packet, whichever it is."""
        def place(kind: int) -> list[Insn]:
            return [Mov(True, 3, Reg((7, 8, 10)[kind])),
                    Alu(AluOp.ADD, True, 3, Imm((4, 8, -64)[kind]))]

        first, second = self.random.sample(range(3), 2)
        size = self.random.choice((1, 2, 4, 8))
        off = size * self.random.randrange(48 // size)
        self.emit(*place(first), JumpIf(self.random.choice((JmpOp.SET, JmpOp.GT, JmpOp.SLT)),
                                        self.random.random() < 0.5, self.random.choice((0, 9)),
                                        Imm(self.imm()), 2), *place(second))
        if self.random.random() < 0.3:
            self.emit(Store(10, _POINTER, 8, Reg(3)), Mov(True, 3, Imm(0)),
                      Load(3, 10, _POINTER, 8))
        self.emit(Store(3, off, size, Reg(9)), Load(0, 7, self.random.randrange(56), 8))
        self.fold(0)
        self.emit(Load(0, 3, off & ~7, 8), Mov(True, 3, Imm(0)))
        self.fold(0)
        self.emit(Load(0, 8, 8 * self.random.randrange(8), 8))
        self.fold(0)

    def stack_atomic(self) -> None:
        self.area()
        for _ in range(self.random.randrange(1, 4)):
            size = self.random.choice((4, 8))
            op = self.random.choice(list(AtomicOp))
            fetch = op in (AtomicOp.XCHG, AtomicOp.CMPXCHG) or self.random.random() < 0.5
            off = _AREA + size * self.random.randrange(_AREA_BYTES // size)
            if op is AtomicOp.CMPXCHG and self.random.random() < 0.5:
                self.emit(Load(0, 10, off, size))  # so that it is what is expected
            self.emit(Atomic(op, size, 10, off, 1, fetch), Load(0, 10, off & ~7, 8))
            self.fold(0)
            self.fold(1)

    def edge(self) -> None:
        """Division, shifts and signs of the numbers at which they are special."""
        a, b = self.random.choice(_EDGES), self.random.choice(_EDGES)
        op = self.random.choice((*_DIVISIONS, *_SHIFTS, AluOp.MUL, AluOp.SUB))
        is64 = self.random.random() < 0.5
        self.emit(LoadImm64(0, a), LoadImm64(1, b))
        if self.random.random() < 0.7:  # not for a compiler to compute
            self.emit(Load(2, 7, 0, 8), Load(3, 7, 0, 8), Alu(AluOp.XOR, True, 2, Reg(3)),
                      Alu(AluOp.ADD, True, 0, Reg(2)), Store(10, _AREA, 8, Reg(1)),
                      Load(1, 10, _AREA, 8), Alu(AluOp.OR, True, 1, Reg(2)))
        small = b - (1 << 64) if b >> 63 else b
        if op not in _SHIFTS and -(1 << 31) <= small < 1 << 31 and (
                small or op not in _DIVISIONS) and self.random.random() < 0.4:
            self.emit(Alu(op, is64, 0, Imm(small)))
        else:
            self.emit(Alu(op, is64, 0, Reg(1)))
        self.fold(0)
        self.emit(Mov(self.random.random() < 0.5, 1, Reg(0), self.random.choice((8, 16))))
        self.fold(1)

    def copied(self) -> None:
        """A copy of a pointer that may be null is tested; the other one, put aside, is used."""
        self.emit(Store(10, -4, 4, Imm(self.random.randrange(5))), *self.stack_at(2, -4),
                  LoadMap(1, 0), Call(1), Store(10, _POINTER, 8, Reg(0)))
        body: list[Insn] = [Load(2, 10, _POINTER, 8), Load(0, 2, 8, 8),
                            Alu(AluOp.ADD, True, 9, Reg(0)), Store(2, 16, 4, Reg(9)),
                            Load(0, 8, 16, 8), Alu(AluOp.XOR, True, 9, Reg(0))]
        self.emit(JumpIf(JmpOp.EQ, True, 0, Imm(0), len(body)), *body)
        self.fresh(NUMBERS_AFTER)

    def unchecked(self) -> None:
        """Bytes are stored into the packet behind the back of the pointers to it."""
        off = self.random.randrange(60)
        self.emit(Load(0, 7, off, 4))
        self.fold(0)
        self.emit(Mov(True, 1, Reg(6)), Mov(True, 2, Imm(off)), *self.stack_at(3, -64),
                  Mov(True, 4, Imm(self.random.choice((1, 2, 4)))), Call(_STORE_BYTES))
        self.fold(0)
        self.emit(Load(0, 7, off, 4))
        self.fold(0)
        self.fresh(NUMBERS_AFTER)

    def places(self) -> None:
        """Pointers into the packet are compared with each other, and subtracted."""
        self.emit(Mov(True, 1, Reg(7)), Mov(True, 2, Reg(9)), Alu(AluOp.AND, True, 2, Imm(63)),
                  Alu(AluOp.ADD, True, 1, Reg(2)), Mov(True, 3, Reg(7)),
                  Alu(AluOp.ADD, True, 3, Imm(self.random.randrange(64))),
                  JumpIf(self.random.choice((JmpOp.GT, JmpOp.LE, JmpOp.EQ, JmpOp.NE, JmpOp.LT)),
                         True, 1, Reg(3), 1), Alu(AluOp.ADD, True, 9, Imm(77)),
                  Alu(AluOp.SUB, True, 1, Reg(3)))
        self.fold(1)
        self.fresh((1, 2, 3))

    # --- calls of calls ---------------------------------------------------------------------------

    def chain(self) -> None:
        """Functions that call each other, with a pointer to the caller's frame and one to the
        packet; the last one writes to the first one's frame."""
        self.chained = True
        self.area()
        self.emit(*self.stack_at(1, _AREA), Mov(True, 2, Reg(7)), Mov(True, 3, Reg(9)),
                  Mov(True, 4, Reg(8)), CallLocal(_CHAIN))
        self.fold(0)
        self.emit(Load(0, 10, _AREA, 8))
        self.fold(0)
        self.fresh(NUMBERS_AFTER)

    def functions(self) -> None:
        super().functions()
        if not self.chained:
            return
        starts = []
        for depth in range(_DEPTH):
            starts.append(len(self.out))
            self.link(depth)
        self.starts = [*self.starts, *starts]
        for slot, insn in enumerate(self.out):
            if isinstance(insn, CallLocal) and insn.off >= _CHAIN:
                self.out[slot] = CallLocal(starts[insn.off - _CHAIN] - slot - 1)

    def link(self, depth: int) -> None:
        """r1 a caller's eight bytes, r2 the packet, r3 a number, r4 a map's value -> a number."""
        off = self.random.randrange(56)
        saved = self.random.choice((6, 7, 8))
        self.emit(Store(10, -8, 8, Reg(1)), Mov(True, saved, Reg(3)), Load(0, 2, off, 8),
                  Alu(AluOp.XOR, True, 0, Reg(3)), Store(10, -16, 8, Reg(0)))
        if depth + 1 < _DEPTH:
            keep = self.random.random() < 0.3  # the frame of the first, or one's own
            self.emit(*([] if keep else self.stack_at(1, -16)), Mov(True, 3, Reg(0)),
                      CallLocal(_CHAIN + depth + 1))
        self.emit(Load(1, 10, -8, 8), Load(2, 1, 0, 8), Load(3, 10, -16, 8),
                  Alu(AluOp.MUL, True, 2, Imm(31)), Alu(AluOp.ADD, True, 2, Reg(3)),
                  Alu(AluOp.ADD, True, 2, Reg(saved)), Store(1, 0, 8, Reg(2)),
                  Alu(AluOp.XOR, True, 0, Reg(2)), Exit())
