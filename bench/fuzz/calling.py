"""Statements of random programs that call back, format, or use dynptrs and ring buffers.

Registers are those of tests/xdp_runtime/compiler/generate.py.  The stack below what it uses:
r10-176 16 bytes of a dynptr, r10-208 32 bytes of text.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.xdp_runtime.compiler.generate import VALUE, Generator
from xdp_runtime.isa import (
    Alu,
    AluOp,
    Call,
    Exit,
    Imm,
    Insn,
    JmpOp,
    JumpIf,
    Load,
    LoadFunc,
    LoadMap,
    LoadMapValue,
    Mov,
    Reg,
    Store,
)
from xdp_runtime.object import GlobalKind, MapFlag, MapSpec, MapType

NUMBERS_AFTER = (0, 1, 2, 3, 4, 5)
_FORMATS = (b"%d %u\0", b"%llx-%lld\0", b"%08x %c\0", b"[%5d] %lu\0", b"%i%%%X\0", b"none\0")
_CELLS = 0  # the number of the array in every random program
EXTRA = {
    "ring": MapSpec("ring", MapType.RINGBUF, 0, 0, 4096),
    "words": MapSpec("words", MapType.ARRAY, 4, len(b"".join(_FORMATS)), 1, MapFlag.RDONLY_PROG,
                     initial=b"".join(_FORMATS), global_kind=GlobalKind.RODATA),
}
_FOR_EACH, _LOOP, _SNPRINTF = 164, 181, 165
_RING_OUTPUT, _RESERVE, _SUBMIT, _DISCARD, _QUERY = 130, 131, 132, 133, 134
_FROM_MEM, _DYNPTR_READ, _DYNPTR_WRITE, _DYNPTR_DATA = 197, 201, 202, 203
_DYNPTR, _TEXT, _TEXT_BYTES = -176, -208, 32
_PLACE = 2_000_000  # of a callback in a LoadFunc, until functions() knows where it is


class CallingGenerator(Generator):
    """`index` is the number of each map of the program."""

    index: dict[str, int]
    callbacks: list[list[Insn]]

    def emit(self, *insns: Insn) -> None:
        for insn in insns:
            super().emit(insn)
            if isinstance(insn, LoadFunc | LoadMapValue):
                self.out.append(None)

    def outcome(self) -> None:
        """What a helper said becomes part of the result."""
        self.emit(Alu(AluOp.MUL, True, 9, Imm(33)), Alu(AluOp.XOR, True, 9, Reg(0)))

    def calling(self) -> list[Callable[[], None]]:
        """The statements that the program's maps allow."""
        mine = [self.loop_call, self.each, self.dynptr]
        if "ring" in self.index:
            mine += [self.ring_output, self.ring_record]
        if "words" in self.index:
            mine.append(self.format)
        return mine

    def stack_at(self, register: int, off: int) -> tuple[Insn, Insn]:
        return Mov(True, register, Reg(10)), Alu(AluOp.ADD, True, register, Imm(off))

    # --- callbacks --------------------------------------------------------------------------------

    def callback(self, context: int, first: list[Insn]) -> LoadFunc:
        """A function that changes 64 bytes at the pointer in `context` and sometimes says stop."""
        body = [*first, Load(3, context, 8 * self.random.randrange(8), 8)]
        for _ in range(self.random.randrange(1, 4)):
            op = self.random.choice((AluOp.ADD, AluOp.XOR, AluOp.MUL, AluOp.SUB, AluOp.OR))
            body.append(Alu(op, self.random.random() < 0.7, 3,
                            self.random.choice((Reg(5), Imm(self.imm())))))
        body += [Store(context, 8 * self.random.randrange(8), 8, Reg(3)), Mov(True, 0, Imm(0))]
        if self.random.random() < 0.5:
            body += [JumpIf(JmpOp.SET, True, 3, Imm(1 << self.random.randrange(8)), 1),
                     Mov(True, 0, Imm(1))]
        self.callbacks.append([*body, Exit()])
        return LoadFunc(2, _PLACE + len(self.callbacks) - 1)

    def loop_call(self) -> None:
        """bpf_loop, of as many rounds as a packet's byte says."""
        visit = self.callback(2, [Mov(True, 5, Reg(1))])
        self.emit(Load(1, 7, self.random.randrange(60), 1),
                  Alu(AluOp.AND, True, 1, Imm(self.random.choice((1, 7, 31)))), visit,
                  *self.stack_at(3, -64), Mov(True, 4, Imm(self.random.choice((0, 0, 0, 1)))),
                  Call(_LOOP))
        self.outcome()
        self.fresh(NUMBERS_AFTER)

    def each(self) -> None:
        """bpf_for_each_map_elem over the array; what it visits is changed as well."""
        off = 8 * self.random.randrange(VALUE // 8)
        each = self.callback(4, [Load(5, 3, off, 8), Load(1, 2, 0, 4),
                                 Alu(AluOp.ADD, True, 5, Reg(1)), Store(3, off, 8, Reg(5))])
        self.emit(LoadMap(1, _CELLS), each, *self.stack_at(3, -64),
                  Mov(True, 4, Imm(self.random.choice((0, 0, 0, 2)))), Call(_FOR_EACH))
        self.outcome()
        self.fresh(NUMBERS_AFTER)

    def functions(self) -> None:
        super().functions()
        starts = []
        for body in self.callbacks:
            starts.append(len(self.out))
            self.emit(*body)
        self.starts = [*self.starts, *starts]
        for slot, insn in enumerate(self.out):
            if isinstance(insn, LoadFunc):
                self.out[slot] = LoadFunc(insn.dst, starts[insn.off - _PLACE] - slot - 1)

    # --- text -------------------------------------------------------------------------------------

    def format(self) -> None:
        """bpf_snprintf of two numbers into 0 to 32 bytes, which then are part of the result."""
        which = self.random.randrange(len(_FORMATS))
        at = sum(len(text) for text in _FORMATS[:which])
        numbers = 8 * (_FORMATS[which].count(b"%") - 2 * _FORMATS[which].count(b"%%"))
        for off in range(0, _TEXT_BYTES, 8):
            self.emit(Store(10, _TEXT + off, 8, Imm(0)))
        self.emit(*self.stack_at(1, _TEXT),
                  Mov(True, 2, Imm(self.random.choice((1, 3, 8, 9, _TEXT_BYTES)))),
                  LoadMapValue(3, self.index["words"], at), *self.stack_at(4, -64),
                  Mov(True, 5, Imm(numbers)), Call(_SNPRINTF))
        self.outcome()
        for off in range(0, _TEXT_BYTES, 8):
            self.emit(Load(0, 10, _TEXT + off, 8))
            self.outcome()
        self.fresh(NUMBERS_AFTER)

    # --- dynptrs and rings ------------------------------------------------------------------------

    def dynptr(self) -> None:
        """Over the map value in r8: read, written, or a part of it as a pointer."""
        size = self.random.choice((8, 16, 32))
        off = self.random.choice((0, 1, 8, 31, 48, 63, 64, 65))
        self.emit(Mov(True, 1, Reg(8)), Mov(True, 2, Imm(self.random.choice((VALUE, 40)))),
                  Mov(True, 3, Imm(0)), *self.stack_at(4, _DYNPTR), Call(_FROM_MEM))
        self.outcome()
        match self.random.randrange(3):
            case 0:
                self.emit(*self.stack_at(1, -64), Mov(True, 2, Imm(size)),
                          *self.stack_at(3, _DYNPTR), Mov(True, 4, Imm(off)), Mov(True, 5, Imm(0)),
                          Call(_DYNPTR_READ))
                self.outcome()
            case 1:
                self.emit(*self.stack_at(1, _DYNPTR), Mov(True, 2, Imm(off)),
                          *self.stack_at(3, -64), Mov(True, 4, Imm(size)), Mov(True, 5, Imm(0)),
                          Call(_DYNPTR_WRITE))
                self.outcome()
            case _:
                self.emit(*self.stack_at(1, _DYNPTR), Mov(True, 2, Imm(off)),
                          Mov(True, 3, Imm(size)), Call(_DYNPTR_DATA),
                          JumpIf(JmpOp.EQ, True, 0, Imm(0), 2), Load(9, 0, size - 8, 8),
                          Store(0, 0, 4, Imm(self.imm())))
        self.fresh(NUMBERS_AFTER)

    def ring_output(self) -> None:
        self.emit(LoadMap(1, self.index["ring"]), *self.stack_at(2, -64),
                  Mov(True, 3, Imm(self.random.choice((1, 8, 13, 64)))), Mov(True, 4, Imm(0)),
                  Call(_RING_OUTPUT))
        self.outcome()
        self.ring_query()

    def ring_record(self) -> None:
        """Reserved, written, and submitted or discarded."""
        size = self.random.choice((8, 16, 24, 40))
        self.emit(LoadMap(1, self.index["ring"]), Mov(True, 2, Imm(size)), Mov(True, 3, Imm(0)),
                  Call(_RESERVE), JumpIf(JmpOp.EQ, True, 0, Imm(0), 4 + size // 8),
                  Alu(AluOp.ADD, True, 9, Imm(1)),
                  *(Store(0, off, 8, Reg(9)) for off in range(0, size, 8)),
                  Mov(True, 1, Reg(0)), Mov(True, 2, Imm(self.random.choice((0, 1)))),
                  Call(self.random.choice((_SUBMIT, _DISCARD))))
        self.ring_query()

    def ring_query(self) -> None:
        """How much waits, its size, and the positions of both sides."""
        self.emit(LoadMap(1, self.index["ring"]), Mov(True, 2, Imm(self.random.randrange(5))),
                  Call(_QUERY))
        self.outcome()
        self.fresh(NUMBERS_AFTER)
