"""Random programs that the kernel accepts, from a seed.

Registers: r6 context, r7 the packet (64 bytes proven), r8 a map value of 64 bytes, r9 a number that
lives through calls, r0-r5 numbers.  The stack from r10-64 is initialised; r10-72 holds a spilled
packet pointer, r10-80 a spilled map value pointer.
"""

from __future__ import annotations

import random
from collections.abc import Callable

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
    Insns,
    JmpOp,
    Jump,
    JumpIf,
    Load,
    LoadAcquire,
    LoadImm64,
    LoadMap,
    Mov,
    Neg,
    Operand,
    Reg,
    Store,
    StoreRelease,
    Swap,
    SwapOrder,
)
from xdp_runtime.object import Function, MapSpec, MapType, Object, ProgramSpec

PACKET = VALUE = 64
NUMBERS = (0, 1, 2, 3, 4, 5, 9)
SPILLED_PACKET, SPILLED_VALUE = -72, -80
MAPS = (MapSpec("cells", MapType.ARRAY, 4, VALUE, 4), MapSpec("table", MapType.HASH, 8, 16, 64))
_CONSTANTS = (0, 1, -1, 2, 7, 31, 32, 63, 64, 255, 256, 0x7FFF, 0x8000, -0x8000, 0xFFFF,
              0x7FFFFFFF, -0x80000000, 0x12345678)


class Generator:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.out: list[Insn | None] = []

    def emit(self, *insns: Insn) -> None:
        for insn in insns:
            self.out.append(insn)
            if isinstance(insn, LoadImm64 | LoadMap):
                self.out.append(None)

    def number(self) -> int:
        return self.random.choice(NUMBERS)

    def imm(self) -> int:
        if self.random.random() < 0.6:
            return self.random.choice(_CONSTANTS)
        return self.random.randrange(-(1 << 31), 1 << 31)

    def program(self, length: int) -> Insns:
        self.prologue()
        for _ in range(length):
            self.statement()
        self.emit(Mov(True, 0, Reg(self.number())))
        for reg in (1, 2, 3, 4, 5, 9):
            self.emit(Alu(AluOp.MUL, True, 0, Imm(31)), Alu(AluOp.XOR, True, 0, Reg(reg)))
        self.emit(Alu(AluOp.XOR, True, 9, Reg(0)), Store(8, 0, 8, Reg(9)))
        for which in range(2):  # the kernel refuses code that nothing reaches
            self.emit(CallLocal(1_000_000 + which))
            if which == 0:
                self.fresh((1, 4))
        self.emit(Alu(AluOp.AND, True, 0, Imm(0x7FFFFFFF)), Exit())
        self.functions()
        return tuple(self.out)

    def prologue(self) -> None:
        self.emit(Mov(True, 6, Reg(1)), Load(7, 6, 0, 4), Load(2, 6, 4, 4), Mov(True, 3, Reg(7)),
                  Alu(AluOp.ADD, True, 3, Imm(PACKET)), JumpIf(JmpOp.LE, True, 3, Reg(2), 2),
                  Mov(True, 0, Imm(2)), Exit())
        self.emit(Store(10, -4, 4, Imm(self.random.randrange(4))), Mov(True, 2, Reg(10)),
                  Alu(AluOp.ADD, True, 2, Imm(-4)), LoadMap(1, 0), Call(1),
                  JumpIf(JmpOp.NE, True, 0, Imm(0), 2), Mov(True, 0, Imm(1)), Exit(),
                  Mov(True, 8, Reg(0)), Store(10, SPILLED_VALUE, 8, Reg(8)),
                  Store(10, SPILLED_PACKET, 8, Reg(7)))
        for slot in range(-64, 0, 8):
            self.emit(Load(0, 7, slot + 64, 8), Store(10, slot, 8, Reg(0)))
        self.fresh(NUMBERS)

    def fresh(self, registers: tuple[int, ...]) -> None:
        """Give registers values that nobody can predict."""
        for reg in registers:
            self.emit(Load(reg, 7, self.random.randrange(PACKET - 7), 8))

    def statement(self) -> None:
        choices: list[tuple[int, Callable[[], None]]] = [
            (30, self.alu), (4, self.unary), (8, self.packet), (8, self.stack), (6, self.value),
            (4, self.atomic), (6, self.branch), (3, self.loop), (3, self.call), (3, self.map_call),
            (2, self.reload), (3, self.variable), (2, self.ordered), (2, self.csum)]
        weights, actions = zip(*choices, strict=True)
        self.random.choices(actions, weights)[0]()

    def alu(self) -> None:
        op, is64 = self.random.choice(list(AluOp)), self.random.random() < 0.5
        dst = self.number()
        src: Operand = Reg(self.number())
        if self.random.random() < 0.5:
            src = Imm(self.imm())
            if op in (AluOp.LSH, AluOp.RSH, AluOp.ARSH):
                src = Imm(self.random.randrange(64 if is64 else 32))
            elif op in (AluOp.DIV, AluOp.MOD, AluOp.SDIV, AluOp.SMOD) and src.value == 0:
                src = Imm(3)
        self.emit(Alu(op, is64, dst, src))

    def unary(self) -> None:
        dst, is64 = self.number(), self.random.random() < 0.5
        sign_bits = self.random.choice((8, 16, 32) if is64 else (8, 16))
        forms: list[Insn] = [
            Neg(is64, dst), Mov(is64, dst, Reg(self.number()), sign_bits),
            Swap(dst, self.random.choice((16, 32, 64)), self.random.choice(list(SwapOrder))),
            Mov(is64, dst, Imm(self.imm())), Mov(False, dst, Reg(self.number())),
            LoadImm64(dst, self.random.getrandbits(64))]
        self.emit(self.random.choice(forms))

    def access(self, base: int, low: int, high: int) -> None:
        size = self.random.choice((1, 2, 4, 8))
        others = [number for number in NUMBERS if number != base]
        off = self.random.randrange(low, high - size + 1)
        kind = self.random.random()
        if kind < 0.4:
            self.emit(Load(self.number(), base, off, size))
        elif kind < 0.6 and size < 8:
            self.emit(Load(self.number(), base, off, size, signed=True))
        elif kind < 0.8:
            self.emit(Store(base, off, size, Imm(self.imm())))
        else:
            self.emit(Store(base, off, size, Reg(self.random.choice(others))))

    def packet(self) -> None:
        self.access(7, 0, PACKET)

    def stack(self) -> None:
        size = self.random.choice((1, 2, 4, 8))
        off = -64 + size * self.random.randrange(64 // size)
        if self.random.random() < 0.5:
            self.emit(Load(self.number(), 10, off, size))
        else:
            self.emit(Store(10, off, size, Reg(self.number())))

    def value(self) -> None:
        self.access(8, 0, VALUE)

    def atomic(self) -> None:
        size = self.random.choice((4, 8))
        op = self.random.choice(list(AtomicOp))
        fetch = op in (AtomicOp.XCHG, AtomicOp.CMPXCHG) or self.random.random() < 0.5
        off = size * self.random.randrange(VALUE // size)
        self.emit(Atomic(op, size, 8, off, self.random.choice((1, 2, 3, 4, 5, 9)), fetch))

    def ordered(self) -> None:
        size = self.random.choice((1, 2, 4, 8))
        off = size * self.random.randrange(VALUE // size)
        self.emit(LoadAcquire(self.number(), 8, off, size) if self.random.random() < 0.5
                  else StoreRelease(8, off, size, self.number()))

    def simple(self) -> list[Insn]:
        before = len(self.out)
        for _ in range(self.random.randrange(1, 4)):
            self.random.choice((self.alu, self.packet, self.stack, self.value))()
        block = [insn for insn in self.out[before:] if insn is not None]
        del self.out[before:]
        return block

    def branch(self) -> None:
        op, is64 = self.random.choice(list(JmpOp)), self.random.random() < 0.5
        src: Operand = Imm(self.imm()) if self.random.random() < 0.5 else Reg(self.number())
        then, otherwise = self.simple(), self.simple()
        self.emit(JumpIf(op, is64, self.number(), src, len(then) + 1), *then,
                  Jump(len(otherwise), long=self.random.random() < 0.3), *otherwise)

    def loop(self) -> None:
        """A counted loop; the count is kept on the stack, out of reach of the body."""
        body = [insn for insn in self.simple()
                if not (isinstance(insn, Store) and insn.dst == 10)]
        count = self.random.randrange(1, 9)
        self.emit(Mov(True, 5, Imm(0)))
        body = [insn for insn in body if getattr(insn, "dst", None) != 5]
        self.emit(*body, Alu(AluOp.ADD, True, 5, Imm(1)),
                  JumpIf(JmpOp.LT, True, 5, Imm(count), -(len(body) + 2)))

    def call(self) -> None:
        self.emit(CallLocal(1_000_000 + self.random.randrange(2)))  # patched by functions()
        self.fresh((1, 2, 3, 4, 5))

    def functions(self) -> None:
        """Two functions: one of numbers, one that writes into its caller's stack frame."""
        starts = [len(self.out)]
        self.emit(Mov(True, 0, Reg(1)), Store(10, -8, 8, Reg(2)), Load(3, 10, -8, 4),
                  Alu(AluOp.ADD, True, 0, Reg(3)), Alu(AluOp.XOR, True, 0, Reg(5)), Exit())
        starts.append(len(self.out))
        self.emit(Mov(True, 6, Reg(4)), Alu(AluOp.MUL, True, 6, Reg(1)), Mov(True, 0, Reg(6)),
                  JumpIf(JmpOp.SET, True, 0, Imm(1), 1), Neg(True, 0), Exit())
        self.starts = starts
        for slot, insn in enumerate(self.out):
            if isinstance(insn, CallLocal) and insn.off in (1_000_000, 1_000_001):
                self.out[slot] = CallLocal(starts[insn.off - 1_000_000] - slot - 1)

    def map_call(self) -> None:
        """Update, delete or look up an entry of the hash; the outcome goes into r9."""
        self.emit(Load(0, 7, self.random.randrange(8), 1), Alu(AluOp.AND, True, 0, Imm(7)),
                  Store(10, -96, 8, Reg(0)), Mov(True, 2, Reg(10)),
                  Alu(AluOp.ADD, True, 2, Imm(-96)), LoadMap(1, 1))
        which = self.random.randrange(3)
        if which == 0:
            self.emit(Mov(True, 3, Reg(10)), Alu(AluOp.ADD, True, 3, Imm(-64)),
                      Mov(True, 4, Imm(self.random.randrange(4))), Call(2),
                      Alu(AluOp.XOR, True, 9, Reg(0)))
        elif which == 1:
            self.emit(Call(3), Alu(AluOp.XOR, True, 9, Reg(0)))
        else:
            self.emit(Call(1), JumpIf(JmpOp.EQ, True, 0, Imm(0), 3), Load(9, 0, 8, 8),
                      Store(0, 0, 4, Imm(self.imm())), Atomic(AtomicOp.ADD, 8, 0, 8, 9, False))
        self.fresh((0, 1, 2, 3, 4, 5))

    def reload(self) -> None:
        """Through a pointer that was spilled."""
        slot = self.random.choice((SPILLED_PACKET, SPILLED_VALUE))
        self.emit(Load(4, 10, slot, 8))
        self.access(4, 0, 64)
        self.fresh((4,))

    def variable(self) -> None:
        """At an offset only known within bounds."""
        base = self.random.choice((7, 8))
        self.emit(Mov(True, 3, Reg(self.number())), Alu(AluOp.AND, True, 3, Imm(31)),
                  Alu(AluOp.ADD, True, 3, Reg(base)))
        if base == 8:
            self.access(3, 0, 32)
            self.fresh((3,))
            return
        self.emit(Mov(True, 1, Reg(3)), Alu(AluOp.ADD, True, 1, Imm(32)), Load(2, 6, 4, 4),
                  JumpIf(JmpOp.GT, True, 1, Reg(2), 3))
        self.fresh((1, 2))
        self.access(3, 0, 32)
        self.fresh((1, 2, 3))

    def csum(self) -> None:
        size = 4 * self.random.randrange(1, 9)
        self.emit(Mov(True, 1, Imm(0)), Mov(True, 2, Imm(0)), Mov(True, 3, Reg(10)),
                  Alu(AluOp.ADD, True, 3, Imm(-64)), Mov(True, 4, Imm(size)),
                  Mov(False, 5, Reg(9)), Call(28), Mov(True, 9, Reg(0)))
        self.fresh((0, 1, 2, 3, 4, 5))


def random_object(seed: int, length: int = 40) -> Object:
    generator = Generator(seed)
    insns = generator.program(length)
    ends = [*generator.starts[1:], len(insns)]
    functions = (Function("test", 0, generator.starts[0]),
                 *(Function(f"f{i}", start, end)
                   for i, (start, end) in enumerate(zip(generator.starts, ends, strict=True))))
    return Object(f"random-{seed}", (ProgramSpec("test", "xdp", "xdp", insns, functions),), MAPS,
                  "GPL")
