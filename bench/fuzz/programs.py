"""Random programs, wider than those of the unit tests: all map families, more helpers (calling.py
has those that call back), memory in all forms (memory.py), tail calls.

One seed in four has statements with kernel functions, too: loops by iterators, slices of dynptrs,
text, sections.

Registers are those of tests/xdp_runtime/compiler/generate.py.  What changes the packet's edges
reads them again afterwards, and leaves with XDP_DROP where fewer than 64 bytes remain.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.fuzz.calling import EXTRA, NUMBERS_AFTER
from bench.fuzz.case import with_types
from bench.fuzz.memory import MemoryGenerator
from tests.xdp_runtime.compiler.generate import (
    MAPS,
    PACKET,
    SPILLED_PACKET,
)
from xdp_runtime.helper_names import KERNEL_FUNCTIONS
from xdp_runtime.isa import (
    Alu,
    AluOp,
    Call,
    Exit,
    Imm,
    Insn,
    Insns,
    JmpOp,
    Jump,
    JumpIf,
    Load,
    LoadMap,
    MayGoto,
    Mov,
    Reg,
    Store,
)
from xdp_runtime.object import Function, MapSpec, MapType, Object, ProgramSpec

_NO_PREALLOC = 1
_FAMILIES = {
    "percpu": MapSpec("percpu", MapType.PERCPU_ARRAY, 4, 64, 4),
    "lru": MapSpec("lru", MapType.LRU_HASH, 8, 16, 256),
    "lpm": MapSpec("lpm", MapType.LPM_TRIE, 8, 16, 32, _NO_PREALLOC),
    "queue": MapSpec("queue", MapType.QUEUE, 0, 16, 5),
    "stack": MapSpec("stack", MapType.STACK, 0, 16, 5),
    "percpu_hash": MapSpec("percpu_hash", MapType.PERCPU_HASH, 8, 16, 16),
}
_LOOKUP, _UPDATE, _DELETE, _PUSH, _POP, _PEEK = 1, 2, 3, 87, 88, 89
_TAIL_CALL, _REDIRECT, _ADJUST_HEAD, _ADJUST_META, _ADJUST_TAIL = 12, 23, 44, 54, 65
_STRTOL, _STRTOUL, _BUFF_LEN, _LOAD_BYTES, _STORE_BYTES = 105, 106, 188, 189, 190
_FUNCTION = {name.removeprefix("bpf_"): number for name, number in KERNEL_FUNCTIONS.items()}
_WITH_FUNCTIONS = 4  # every so many seeds
_TEXT, _DYNPTR, _ITERATOR, _BUFFER = -104, -128, -136, -160  # places on the stack


class FuzzGenerator(MemoryGenerator):
    """As its parent, with statements for `maps` (past the first two) and the packet's edges."""

    def __init__(self, seed: int, maps: tuple[MapSpec, ...], jumps_on: bool) -> None:
        super().__init__(seed)
        self.index = {spec.name: number for number, spec in enumerate(maps)}
        self.jumps_on = jumps_on
        self.functions_on = seed % _WITH_FUNCTIONS == 3
        self.callbacks, self.chained = [], False

    def statement(self) -> None:
        mine: list[Callable[[], None]] = [self.edges, self.buffer, self.text, self.may_goto,
                                          self.walk, self.diff, self.redirect, *self.calling()]
        for name in self.index:
            if name in ("queue", "stack"):
                mine.append(lambda name=name: self.take(name))  # type: ignore[misc]
            elif name in _FAMILIES:
                mine.append(lambda name=name: self.keyed(name))  # type: ignore[misc]
        if self.jumps_on:
            mine.append(self.tail_call)
        if self.functions_on:
            mine += [self.iterate, self.slice, self.search, self.section]
        roll = self.random.random()
        if roll < 0.2:
            self.random.choice(mine)()
        elif roll < 0.38:
            self.random.choice(self.remembering())()
        else:
            super().statement()

    def packet_again(self) -> None:
        self.emit(Load(7, 6, 0, 4), Load(2, 6, 4, 4), Mov(True, 3, Reg(7)),
                  Alu(AluOp.ADD, True, 3, Imm(PACKET)), JumpIf(JmpOp.LE, True, 3, Reg(2), 2),
                  Mov(True, 0, Imm(1)), Exit(), Store(10, SPILLED_PACKET, 8, Reg(7)))
        self.fresh(NUMBERS_AFTER)

    def edges(self) -> None:
        helper = self.random.choice((_ADJUST_HEAD, _ADJUST_TAIL, _ADJUST_META))
        delta = self.random.choice((-256, -40, -32, -20, -14, -8, -4, -1, 0, 1, 4, 8, 14, 20, 40,
                                    300))
        self.emit(Mov(True, 1, Reg(6)), Mov(True, 2, Imm(delta)), Call(helper))
        self.outcome()
        self.packet_again()

    def buffer(self) -> None:
        """xdp_load_bytes and xdp_store_bytes, at an offset that may lie behind the packet."""
        off = self.random.choice((0, 1, 13, 14, 60, 63, 64, 65, 127, 1499, 0xFFFF, 0x10000))
        size = self.random.choice((1, 2, 7, 8, 16, 32, 64))
        self.emit(Mov(True, 1, Reg(6)), Mov(True, 2, Imm(off)), Mov(True, 3, Reg(10)),
                  Alu(AluOp.ADD, True, 3, Imm(-64)), Mov(True, 4, Imm(size)),
                  Call(self.random.choice((_LOAD_BYTES, _STORE_BYTES))))
        self.outcome()
        if self.random.random() < 0.5:
            self.emit(Mov(True, 1, Reg(6)), Call(_BUFF_LEN))
            self.outcome()
        self.packet_again()

    def text(self) -> None:
        """strtol and strtoul of eight bytes, often digits."""
        digits = self.random.choice((b"-12345 x", b"0x7fffff", b"99999999", b"0777abc\0",
                                     b"  +1\0\0\0\0", b"\0" * 8, b"zz-0x123"))
        self.emit(Store(10, -104, 4, Imm(int.from_bytes(digits[:4], "little", signed=True))),
                  Store(10, -100, 4, Imm(int.from_bytes(digits[4:], "little", signed=True))),
                  Store(10, -112, 8, Imm(0)))
        if self.random.random() < 0.3:
            self.emit(Store(10, -104 + self.random.randrange(8), 1, Reg(self.number())))
        self.emit(Mov(True, 1, Reg(10)), Alu(AluOp.ADD, True, 1, Imm(-104)), Mov(True, 2, Imm(8)),
                  Mov(True, 3, Imm(self.random.choice((0, 8, 10, 16, 2)))), Mov(True, 4, Reg(10)),
                  Alu(AluOp.ADD, True, 4, Imm(-112)),
                  Call(self.random.choice((_STRTOL, _STRTOUL))))
        self.outcome()
        self.emit(Load(0, 10, -112, 8), Alu(AluOp.XOR, True, 9, Reg(0)))
        self.fresh(NUMBERS_AFTER)

    def diff(self) -> None:
        """csum_diff from one part of the stack to another, either of them possibly empty."""
        old, new = (4 * self.random.randrange(9) for _ in range(2))
        self.emit(Mov(True, 1, Reg(10)), Alu(AluOp.ADD, True, 1, Imm(-64)), Mov(True, 2, Imm(old)),
                  Mov(True, 3, Reg(10)), Alu(AluOp.ADD, True, 3, Imm(-32)), Mov(True, 4, Imm(new)),
                  Mov(False, 5, Reg(9)), Call(28))
        self.outcome()
        self.fresh(NUMBERS_AFTER)

    def redirect(self) -> None:
        """Only what it returns counts: nothing is sent in a test run."""
        self.emit(Mov(True, 1, Imm(self.random.choice((0, 1, 2, 0x7FFFFFFF)))),
                  Mov(True, 2, Imm(self.random.choice((0, 0, 1, 8, -1)))), Call(_REDIRECT))
        self.outcome()
        self.fresh(NUMBERS_AFTER)

    def may_goto(self) -> None:
        """A loop whose own condition ends it long before the kernel's rounds are used up."""
        body = [insn for insn in self.simple()
                if getattr(insn, "dst", None) not in (5, 10)]
        mask = self.random.choice((1, 3, 7))
        self.emit(Mov(True, 5, Imm(0)), MayGoto(len(body) + 4), *body,
                  Alu(AluOp.ADD, True, 5, Imm(1)), JumpIf(JmpOp.GT, True, 5, Imm(mask), 1),
                  Jump(-(len(body) + 4)), Mov(True, 0, Imm(0)))
        self.fresh((5,))

    def walk(self) -> None:
        """Over the packet to its end, which is compared with before each round, or behind it."""
        size, rounds = self.random.choice((1, 2, 4, 8)), self.random.choice((3, 20, 100))
        first, indexed = self.random.choice((0, 1, 14, 34)), self.random.random() < 0.4
        turned = not indexed and self.random.random() < 0.5
        leave = self.random.choice(((JmpOp.GT, 1, 2), (JmpOp.GE, 1, 2), (JmpOp.LT, 2, 1),
                                    (JmpOp.LE, 2, 1)))
        stay = self.random.choice(((JmpOp.LE, 1, 2), (JmpOp.LT, 1, 2), (JmpOp.GE, 2, 1),
                                   (JmpOp.GT, 2, 1)))
        body: list[Insn] = [Load(0, 1, -size, size), Alu(self.random.choice((
            AluOp.ADD, AluOp.XOR)), self.random.random() < 0.5, 9, Reg(0))]
        if self.random.random() < 0.4:
            body += [Alu(AluOp.XOR, True, 0, Imm(self.imm())), Store(1, -size, size, Reg(0))]
        place: list[Insn] = [Mov(True, 1, Reg(7)),
                             Alu(AluOp.ADD, True, 1, Imm(first + size))]
        head: list[Insn] = [*place, Alu(AluOp.ADD, True, 1, Reg(4))] if indexed else []
        count = Alu(AluOp.ADD, self.random.random() < 0.5, 4, Imm(size if indexed else 1))
        last, forwards = rounds * (size if indexed else 1), Alu(AluOp.ADD, True, 1, Imm(size))
        begin: list[Insn] = [Load(2, 6, 4, 4), Mov(True, 4, Imm(0)), *([] if indexed else place)]
        if turned:
            ends: list[Insn] = [count, JumpIf(JmpOp.GE, True, 4, Imm(last), 2), forwards]
            around = JumpIf(stay[0], True, stay[1], Reg(stay[2]), -(len(body) + len(ends) + 1))
        else:
            ends = [count] if indexed else [forwards, count]
            around = JumpIf(JmpOp.NE, True, 4, Imm(last), -(len(head) + len(body) + len(ends) + 2))
        out = len(body) + len(ends) + 1
        self.emit(*begin, *head, JumpIf(leave[0], True, leave[1], Reg(leave[2]), out), *body,
                  *ends, around)
        self.packet_again()

    def keyed(self, name: str) -> None:
        self.emit(Load(0, 7, self.random.randrange(60), 4))
        if name == "lpm":
            self.emit(Store(10, -92, 4, Reg(0)), Alu(AluOp.AND, True, 0, Imm(63)),
                      Store(10, -96, 4, Reg(0)))
        else:
            self.emit(Alu(AluOp.AND, True, 0, Imm(7)), Store(10, -96, 8, Reg(0)))
        self.emit(Mov(True, 2, Reg(10)), Alu(AluOp.ADD, True, 2, Imm(-96)),
                  LoadMap(1, self.index[name]))
        which = self.random.choice((_UPDATE, _DELETE, _LOOKUP, _LOOKUP))
        if which == _UPDATE:
            self.emit(Mov(True, 3, Reg(10)), Alu(AluOp.ADD, True, 3, Imm(-64)),
                      Mov(True, 4, Imm(self.random.randrange(4))), Call(_UPDATE))
            self.outcome()
        elif which == _DELETE:
            self.emit(Call(_DELETE))
            self.outcome()
        else:
            body: list[Insn] = [Load(9, 0, self.random.choice((0, 8)), 8),
                    Store(0, self.random.randrange(12), 4, Imm(self.imm())),
                    Store(0, 8, 8, Reg(9))]
            self.emit(Call(_LOOKUP), JumpIf(JmpOp.EQ, True, 0, Imm(0), len(body)), *body)
        self.fresh(NUMBERS_AFTER)

    def take(self, name: str) -> None:
        which = self.random.choice((_PUSH, _PUSH, _POP, _PEEK))
        self.emit(LoadMap(1, self.index[name]), Mov(True, 2, Reg(10)),
                  Alu(AluOp.ADD, True, 2, Imm(-64)))
        if which == _PUSH:
            self.emit(Mov(True, 3, Imm(self.random.choice((0, 0, 2)))))
        self.emit(Call(which))
        self.outcome()
        self.fresh(NUMBERS_AFTER)

    def tail_call(self) -> None:
        self.emit(Mov(True, 1, Reg(6)), LoadMap(2, self.index["jumps"]),
                  Load(3, 7, self.random.randrange(60), 1), Alu(AluOp.AND, True, 3, Imm(3)),
                  Call(_TAIL_CALL))
        self.fresh(NUMBERS_AFTER)


    # --- kernel functions -------------------------------------------------------------------------
    def at(self, register: int, off: int) -> list[Insn]:
        return [Mov(True, register, Reg(10)), Alu(AluOp.ADD, True, register, Imm(off))]

    def iterate(self) -> None:
        start = self.random.choice((0, -3, 7, -(1 << 31), (1 << 31) - 4))
        end = min(start + self.random.choice((0, 1, 5, 12, -2)), (1 << 31) - 1)
        there = [*self.at(1, _ITERATOR), Call(_FUNCTION["iter_num_next"])]
        body: list[Insn] = [Load(0, 0, 0, 4), Alu(AluOp.MUL, True, 9, Imm(31)),
                            Alu(AluOp.XOR, True, 9, Reg(0))]
        self.emit(*self.at(1, _ITERATOR), Mov(True, 2, Imm(start)),
                  Mov(True, 3, Imm(max(end, -(1 << 31)))), Call(_FUNCTION["iter_num_new"]))
        self.outcome()
        self.emit(*there, JumpIf(JmpOp.EQ, True, 0, Imm(0), len(body) + 1), *body,
                  Jump(-(len(there) + len(body) + 2)),
                  *self.at(1, _ITERATOR), Call(_FUNCTION["iter_num_destroy"]))
        self.fresh(NUMBERS_AFTER)

    def slice(self) -> None:
        """Of the packet, with a buffer or without; one that is written now and then."""
        write = self.random.random() < 0.4
        body: list[Insn] = [Load(0, 0, self.random.choice((0, 8)), 8),
                            Alu(AluOp.XOR, True, 9, Reg(0))]
        if write:
            body.insert(0, Store(0, self.random.randrange(16), 1, Imm(self.imm())))
        self.emit(Mov(True, 1, Reg(6)), Mov(True, 2, Imm(int(self.random.random() < 0.1))),
                  *self.at(3, _DYNPTR), Call(_FUNCTION["dynptr_from_xdp"]))
        self.outcome()
        if self.random.random() < 0.4:
            self.emit(*self.at(1, _DYNPTR), Mov(True, 2, Imm(self.random.choice((0, 1, 14, 64)))),
                      Mov(True, 3, Imm(self.random.choice((14, 60, 64, 100, 1500)))),
                      Call(_FUNCTION["dynptr_adjust"]))
            self.outcome()
        self.emit(*self.at(1, _DYNPTR),
                  Mov(True, 2, Imm(self.random.choice((0, 1, 14, 48, 49, 84, 1484, 1485, -1)))),
                  *(self.at(3, _BUFFER) if self.random.random() < 0.5 else [Mov(True, 3, Imm(0))]),
                  Mov(True, 4, Imm(16)),
                  Call(_FUNCTION["dynptr_slice_rdwr" if write else "dynptr_slice"]),
                  JumpIf(JmpOp.EQ, True, 0, Imm(0), len(body)), *body)
        self.fresh(NUMBERS_AFTER)

    def search(self) -> None:
        """In seven bytes, of which some are of the packet, and a zero."""
        name = self.random.choice(("strlen", "strnlen", "strchr", "strchrnul", "strrchr"))
        self.emit(Load(0, 7, self.random.randrange(56), 8), Store(10, _TEXT, 8, Reg(0)),
                  Store(10, _TEXT + self.random.randrange(7), 1, Imm(self.random.choice((0, 65)))),
                  Store(10, _TEXT + 7, 1, Imm(0)), *self.at(1, _TEXT))
        if name != "strlen":
            self.emit(Mov(True, 2, Imm(self.random.choice((0, 1, 5, 65, 100)))))
        self.emit(Call(_FUNCTION[name]))
        self.outcome()
        self.fresh(NUMBERS_AFTER)

    def section(self) -> None:
        begin, end = self.random.choice((("rcu_read_lock", "rcu_read_unlock"),
                                         ("preempt_disable", "preempt_enable")))
        self.emit(Call(_FUNCTION[begin]), Alu(AluOp.XOR, True, 9, Imm(self.imm())),
                  Call(_FUNCTION[end]))
        self.fresh(NUMBERS_AFTER)


def fuzz_object(seed: int) -> Object:
    """The same Object for the same seed."""
    rng = FuzzGenerator(seed ^ 0x5EED, (), False).random
    names = rng.sample(sorted(_FAMILIES), rng.randrange(3))
    names += [name for name in sorted(EXTRA) if rng.random() < 0.3]
    maps = (*MAPS, *((_FAMILIES | EXTRA)[name] for name in names))
    jumps = rng.random() < 0.15
    if jumps:
        maps = (*maps, MapSpec("jumps", MapType.PROG_ARRAY, 4, 4, 4, slots=((1, "second"),)))
    length = rng.choice((10, 25, 40, 60)) if rng.random() < 0.98 else 200
    programs = [_program("first", seed, maps, jumps, length)]
    if jumps:
        programs.append(_program("second", ~seed, maps, False, 8))
    return with_types(Object(f"fuzz-{seed}", tuple(programs), maps, "GPL"))


def _program(name: str, seed: int, maps: tuple[MapSpec, ...], jumps: bool,
             length: int) -> ProgramSpec:
    generator = FuzzGenerator(seed, maps, jumps)
    insns: Insns = generator.program(length)
    ends = [*generator.starts[1:], len(insns)]
    functions = (Function(name, 0, generator.starts[0]),
                 *(Function(f"{name}{number}", start, end) for number, (start, end)
                   in enumerate(zip(generator.starts, ends, strict=True))))
    return ProgramSpec(name, "xdp", "xdp", insns, functions)
