"""Random programs near the line between accepted and refused, from a seed.

Half of them are made by breaking: a valid program (tests/xdp_runtime/compiler/generate.py, or a
case of the corpus) in which a few fields are changed: an offset, a size, an immediate, a register,
the direction or width of a comparison; an instruction is dropped, moved or doubled.  The others are
made fresh, statement by statement, over what a verifier finds hard: numbers that become offsets,
copies of which one is checked, spills, null checks, packet ends.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

from tests.xdp_runtime.compiler.generate import MAPS, random_object
from tests.xdp_runtime.verifier.cases import all_cases
from tests.xdp_runtime.verifier.kernel_load import last_line
from tests.xdp_runtime.verifier.kernel_words import Class, class_of
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
    SwapOrder,
)
from xdp_runtime.object import Function, MapSpec, MapType, Object, ProgramSpec

TWO_SLOTS = (LoadImm64, LoadMap, LoadMapValue, LoadFunc)
FRESH_MAPS = (MapSpec("cells", MapType.ARRAY, 4, 64, 4), MapSpec("table", MapType.HASH, 8, 16, 64),
              MapSpec("buffers", MapType.RINGBUF, 0, 0, 4096))


def classify(kernel_log: str) -> Class:
    """Why the kernel refused: memory safety, control flow, types of values, or something else."""
    return class_of(last_line(kernel_log))


def random_program(seed: int) -> Object:
    """The same Object for the same seed (and corpus)."""
    rng = random.Random(seed * 2654435761 + 1)
    kind = rng.random()
    if kind < 0.32:
        obj = mutated(rng, random_object(rng.randrange(1 << 30), rng.choice((4, 10, 30))),
                      rng.choice((1, 1, 1, 2, 3)))
    elif kind < 0.55:
        obj = mutated(rng, rng.choice(_bases()), rng.choice((1, 1, 2)))
    else:
        obj = Fresh(rng).program()
    return replace(obj, name=f"near-{seed}")


@cache
def _bases() -> tuple[Object, ...]:
    """Cases that need no types, and so load from their instructions alone; four in five good."""
    plain = [case for case in all_cases()
             if case.btf is None and not case.name.startswith("budget_")]
    good = [case for case in plain if case.verdict == "accept"]
    bad = [case for case in plain if case.verdict == "refuse"]
    return tuple(case.object for case in good + bad[:len(good) // 4])


# --- breaking ---------------------------------------------------------------------------------


def mutated(rng: random.Random, obj: Object, changes: int) -> Object:
    program = obj.programs[0]
    insns, targets = _lift(program.insns)
    for _ in range(changes):
        for _ in range(20):
            if _change(rng, insns, targets):
                break
    return _with_insns(obj, _lower(insns, targets))


def _with_insns(obj: Object, insns: Insns) -> Object:
    starts = {0} | {slot + 1 + insn.off for slot, insn in enumerate(insns)
                    if isinstance(insn, CallLocal | LoadFunc)}
    order = sorted(start for start in starts if 0 <= start < len(insns))
    functions = tuple(Function(f"f{start}" if start else "main", start, end)
                      for start, end in zip(order, [*order[1:], len(insns)], strict=True))
    program = ProgramSpec("main", obj.programs[0].section, obj.programs[0].kind, insns, functions)
    return Object(obj.name, (program,), obj.maps, obj.license)


_Lifted = tuple[list[Insn], list[int | None]]


def _lift(insns: Insns) -> _Lifted:
    """Instructions without second slots; for jumps and calls, the index they lead to."""
    slots = [slot for slot, insn in enumerate(insns) if insn is not None]
    index = {slot: number for number, slot in enumerate(slots)}
    lifted = [insn for insn in insns if insn is not None]
    targets: list[int | None] = []
    for slot, insn in zip(slots, lifted, strict=True):
        off = getattr(insn, "off", None) if _jumps(insn) else None
        targets.append(index.get(slot + 1 + off) if off is not None else None)
    return lifted, targets


def _jumps(insn: Insn) -> bool:
    return isinstance(insn, Jump | JumpIf | MayGoto | CallLocal | LoadFunc)


def _lower(insns: list[Insn], targets: list[int | None]) -> Insns:
    slots: list[int] = []
    at = 0
    for insn in insns:
        slots.append(at)
        at += 2 if isinstance(insn, TWO_SLOTS) else 1
    out: list[Insn | None] = []
    for number, insn in enumerate(insns):
        target = targets[number]
        if target is not None:
            to = slots[min(target, len(insns) - 1)]
            assert isinstance(insn, Jump | JumpIf | MayGoto | CallLocal | LoadFunc)
            insn = replace(insn, off=to - slots[number] - 1)
        out.append(insn)
        if isinstance(insn, TWO_SLOTS):
            out.append(None)
    return tuple(out)


def _change(rng: random.Random, insns: list[Insn], targets: list[int | None]) -> bool:
    """One small change.  False when the place chosen has nothing to change."""
    number = rng.randrange(len(insns))
    what = rng.random()
    if what < 0.06:
        return _drop(insns, targets, number)
    if what < 0.14 and number + 2 < len(insns):
        if _jumps(insns[number]) or _jumps(insns[number + 1]):
            return False
        insns[number], insns[number + 1] = insns[number + 1], insns[number]
        return True
    if what < 0.20:
        _insert(insns, targets, number, insns[rng.randrange(len(insns))], targets[number])
        return not _jumps(insns[number])
    if what < 0.30:
        _insert(insns, targets, number, _noise(rng, _written(insns)), None)
        return True
    changed = _vary(rng, insns[number], _written(insns))
    if changed == insns[number]:
        return False
    insns[number] = changed
    return True


def _written(insns: list[Insn]) -> list[int]:
    """The registers that something writes: a change to another one is mostly a dull refusal."""
    return sorted({1, 10} | {insn.dst for insn in insns
                             if isinstance(insn, Mov | Load | LoadMap | LoadMapValue | LoadImm64)})


def _drop(insns: list[Insn], targets: list[int | None], number: int) -> bool:
    if len(insns) < 4 or isinstance(insns[number], Exit | CallLocal | LoadFunc):
        return False
    del insns[number], targets[number]
    for i, target in enumerate(targets):
        if target is not None and target > number:
            targets[i] = target - 1
    return True


def _insert(insns: list[Insn], targets: list[int | None], number: int, insn: Insn,
            target: int | None) -> None:
    for i, old in enumerate(targets):
        if old is not None and old > number:
            targets[i] = old + 1
    insns.insert(number, insn)
    targets.insert(number, None if not _jumps(insn) else target)


def _noise(rng: random.Random, known: list[int]) -> Insn:
    dst, src = rng.choice([reg for reg in known if reg < 10]), rng.choice(known)
    return rng.choice((
        Mov(rng.random() < 0.7, dst, Reg(src)), Mov(True, dst, Imm(rng.choice((0, 1, 8, -8)))),
        Alu(AluOp.ADD, True, dst, Imm(rng.choice((-8, -1, 1, 4, 8)))),
        Alu(rng.choice((AluOp.ADD, AluOp.SUB, AluOp.AND)), rng.random() < 0.7, dst, Reg(src)),
        Store(10, -8 * rng.randrange(1, 9), 8, Reg(dst)),
        Load(dst, 10, -8 * rng.randrange(1, 9), 8), Call(5)))


def _near(rng: random.Random, value: int, bits: int = 16) -> int:
    step = rng.choice((-8, -4, -2, -1, -1, 1, 1, 2, 4, 8))
    if rng.random() < 0.1:
        return -value
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    return max(low, min(high, value + step))


_NEIGHBOURS: dict[JmpOp, tuple[JmpOp, ...]] = {
    JmpOp.GT: (JmpOp.GE, JmpOp.SGT, JmpOp.LE, JmpOp.LT), JmpOp.GE: (JmpOp.GT, JmpOp.SGE, JmpOp.LT),
    JmpOp.LT: (JmpOp.LE, JmpOp.SLT, JmpOp.GE, JmpOp.GT), JmpOp.LE: (JmpOp.LT, JmpOp.SLE, JmpOp.GT),
    JmpOp.SGT: (JmpOp.SGE, JmpOp.GT, JmpOp.SLE), JmpOp.SGE: (JmpOp.SGT, JmpOp.GE, JmpOp.SLT),
    JmpOp.SLT: (JmpOp.SLE, JmpOp.LT, JmpOp.SGE), JmpOp.SLE: (JmpOp.SLT, JmpOp.LE, JmpOp.SGT),
    JmpOp.EQ: (JmpOp.NE, JmpOp.GE, JmpOp.LE), JmpOp.NE: (JmpOp.EQ, JmpOp.GT, JmpOp.SET),
    JmpOp.SET: (JmpOp.EQ, JmpOp.NE)}


def _vary(rng: random.Random, insn: Insn, known: list[int]) -> Insn:
    """A neighbour of the instruction: one field differs a little."""
    def reg(old: int, top: int = 10) -> int:
        return rng.choice([n for n in known if n != old and n < top] or [old])

    def operand(old: Operand) -> Operand:
        if isinstance(old, Reg):
            return Reg(reg(old.n, 11))
        return Imm(_near(rng, old.value, 32))

    choices: list[Callable[[], Any]]
    match insn:
        case Load(dst, src, off, size, signed):
            choices = [lambda: replace(insn, off=_near(rng, off)),
                       lambda: replace(insn, off=_near(rng, off)),
                       lambda: replace(insn, size=rng.choice((1, 2, 4, 8)), signed=False),
                       lambda: replace(insn, src=reg(src, 11)), lambda: replace(insn, dst=reg(dst)),
                       lambda: replace(insn, signed=not signed and size < 8)]
        case Store(dst, off, size, source):
            choices = [lambda: replace(insn, off=_near(rng, off)),
                       lambda: replace(insn, size=rng.choice((1, 2, 4, 8))),
                       lambda: replace(insn, dst=reg(dst, 11)),
                       lambda: replace(insn, src=operand(source))]
        case Alu(op, is64, dst, source):
            choices = [lambda: replace(insn, src=operand(source)),
                       lambda: replace(insn, is64=not is64), lambda: replace(insn, dst=reg(dst)),
                       lambda: replace(insn, op=rng.choice([o for o in AluOp if o is not op]))]
        case Mov(is64, dst, source, bits):
            choices = [lambda: replace(insn, src=operand(source)),
                       lambda: replace(insn, is64=not is64, sign_bits=bits if bits < 32 else 0),
                       lambda: replace(insn, dst=reg(dst))]
        case JumpIf(jump, is64, dst, source, _):
            choices = [lambda: replace(insn, op=rng.choice(_NEIGHBOURS[jump])),
                       lambda: replace(insn, op=rng.choice(_NEIGHBOURS[jump])),
                       lambda: replace(insn, is64=not is64),
                       lambda: replace(insn, src=operand(source)),
                       lambda: replace(insn, dst=reg(dst))]
        case Atomic(op_, size, dst, off, src, fetch):
            choices = [lambda: replace(insn, off=_near(rng, off)),
                       lambda: replace(insn, size=12 - size), lambda: replace(insn, src=reg(src)),
                       lambda: replace(insn, fetch=not fetch or op_ in (
                           AtomicOp.XCHG, AtomicOp.CMPXCHG)),
                       lambda: replace(insn, dst=reg(dst, 11))]
        case LoadMap(dst, index):
            choices = [lambda: replace(insn, dst=reg(dst)),
                       lambda: replace(insn, map=max(0, index - 1))]
        case Call(helper):
            choices = [lambda: Call(rng.choice((1, 2, 3, 5, 7, 8, 28, 44, 65, helper)))]
        case LoadAcquire(dst, src, off, _):
            choices = [lambda: replace(insn, off=_near(rng, off)),
                       lambda: replace(insn, size=rng.choice((1, 2, 4, 8)))]
        case StoreRelease(dst, off, _, src):
            choices = [lambda: replace(insn, off=_near(rng, off)),
                       lambda: replace(insn, size=rng.choice((1, 2, 4, 8)))]
        case Neg(is64, _) | Swap(_, is64, _):
            choices = [lambda: replace(insn, dst=reg(10))]
        case _:
            return insn
    changed: Insn = rng.choice(choices)()
    return changed


# --- making afresh ----------------------------------------------------------------------------


class Fresh:
    """r6 context, r7 packet, r8 packet end, r9 map value of 64 bytes; the rest numbers."""

    NUMBERS = (0, 1, 2, 3, 4, 5)

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.out: list[Insn] = []
        self.targets: list[int | None] = []
        self.pending: list[int] = []  # jumps to the way out

    def program(self) -> Object:
        self.prologue()
        for _ in range(self.rng.randrange(2, 12)):
            self.statement()
        out = len(self.out)
        self.emit(Mov(True, 0, Imm(2)), Exit())
        for jump in self.pending:
            self.targets[jump] = out
        base = Object("", (ProgramSpec("main", "xdp", "xdp", ()),), FRESH_MAPS, "GPL")
        return _with_insns(base, _lower(self.out, self.targets))

    def emit(self, *insns: Insn) -> None:
        for insn in insns:
            self.out.append(insn)
            self.targets.append(None)

    def leave_if(self, op: JmpOp, dst: int, src: Operand, is64: bool = True) -> None:
        self.pending.append(len(self.out))
        self.emit(JumpIf(op, is64, dst, src, 0))

    def prologue(self) -> None:
        rng = self.rng
        self.emit(Mov(True, 6, Reg(1)), Load(7, 6, 0, 4), Load(8, 6, 4, 4))
        self.length = rng.choice((8, 14, 20, 34, 64))
        self.emit(Mov(True, 2, Reg(7)), Alu(AluOp.ADD, True, 2, Imm(self.length)))
        if rng.random() < 0.95:
            self.leave_if(rng.choice((JmpOp.GT, JmpOp.GT, JmpOp.GT, JmpOp.GE)), 2, Reg(8))
        self.emit(Load(0, 7, 0, rng.choice((1, 2, 4, 8))), Store(10, -4, 4, Imm(rng.randrange(6))))
        if rng.random() < 0.5:
            self.emit(Store(10, -8, 4, Reg(0)))
        self.emit(Mov(True, 2, Reg(10)), Alu(AluOp.ADD, True, 2, Imm(rng.choice((-4, -8)))),
                  LoadMap(1, 0), Call(1))
        if rng.random() < 0.96:
            self.leave_if(JmpOp.EQ, 0, Imm(0))
        self.emit(Mov(True, 9, Reg(0)))
        for reg in self.NUMBERS:
            kind = rng.random()
            if kind < 0.3:
                self.emit(Load(reg, 7, rng.randrange(max(1, self.length - 8)),
                               rng.choice((1, 2, 4, 8))))
            elif kind < 0.5:
                self.emit(Load(reg, 9, 8 * rng.randrange(8), rng.choice((1, 2, 4, 8))))
            elif kind < 0.6:
                self.emit(Load(reg, 6, 16, 4))
            elif kind < 0.8:
                self.emit(Mov(True, reg, Imm(rng.choice((0, 1, 7, 8, 63, -1, -8)))))
            else:
                self.emit(Load(reg, 10, -8 * rng.randrange(1, 5), 8))

    def statement(self) -> None:
        rng = self.rng
        rng.choices((self.narrow, self.narrow_by_branch, self.arithmetic, self.copy, self.spill,
                     self.into_value, self.into_stack, self.into_packet, self.call, self.branch,
                     self.atomic, self.wide),
                    (5, 6, 5, 3, 3, 5, 4, 3, 2, 2, 1, 1))[0]()

    def number(self) -> int:
        return self.rng.choice(self.NUMBERS)

    def narrow(self) -> None:
        rng, reg, is64 = self.rng, self.number(), self.rng.random() < 0.7
        bits = 64 if is64 else 32
        self.emit(rng.choice((
            Alu(AluOp.AND, is64, reg, Imm(rng.choice((1, 3, 7, 8, 15, 31, 56, 63, 64, 127)))),
            Alu(AluOp.RSH, is64, reg, Imm(bits - rng.choice((3, 4, 5, 6, 7)))),
            Alu(AluOp.ARSH, is64, reg, Imm(bits - rng.choice((3, 4, 5, 6, 7)))),
            Alu(AluOp.MOD, is64, reg, Imm(rng.choice((8, 16, 63)))))))

    def narrow_by_branch(self) -> None:
        rng, reg, is64 = self.rng, self.number(), self.rng.random() < 0.75
        limit = rng.choice((7, 8, 15, 16, 31, 55, 56, 57, 62, 63, 64))
        kind = rng.random()
        if kind < 0.5:
            self.leave_if(rng.choice((JmpOp.GT, JmpOp.GE)), reg, Imm(limit), is64)
        elif kind < 0.8:
            if rng.random() < 0.9:
                self.leave_if(rng.choice((JmpOp.SGT, JmpOp.SGE)), reg, Imm(limit), is64)
            if rng.random() < 0.9:
                self.leave_if(rng.choice((JmpOp.SLT, JmpOp.SLE)), reg,
                              Imm(rng.choice((0, 0, -1, 1))), is64)
        elif kind < 0.9:
            self.leave_if(JmpOp.SET, reg, Imm(rng.choice((-8, -16, -64, -32, 64))), is64)
        else:
            self.leave_if(rng.choice((JmpOp.NE, JmpOp.EQ)), reg, Imm(rng.randrange(66)), is64)

    def arithmetic(self) -> None:
        rng, reg, is64 = self.rng, self.number(), self.rng.random() < 0.7
        op = rng.choice(list(AluOp))
        source: Operand = Reg(self.number())
        if rng.random() < 0.6:
            source = Imm(rng.choice((1, 2, 3, 4, 7, 8, 16, -1, -8, 31)))
            if op in (AluOp.LSH, AluOp.RSH, AluOp.ARSH):
                source = Imm(rng.choice((1, 2, 3, 28, 31)))
        if rng.random() < 0.15:
            self.emit(rng.choice((Neg(is64, reg), Mov(is64, reg, Reg(reg), rng.choice((8, 16))),
                                  Swap(reg, rng.choice((16, 32, 64)),
                                       rng.choice(list(SwapOrder))))))
        else:
            self.emit(Alu(op, is64, reg, source))

    def copy(self) -> None:
        """A copy, and a check of one of the two."""
        rng, a = self.rng, self.number()
        b = rng.choice([reg for reg in self.NUMBERS if reg != a])
        self.emit(Mov(rng.random() < 0.8, b, Reg(a)))
        if rng.random() < 0.3:
            self.emit(Alu(AluOp.ADD, rng.random() < 0.8, b, Imm(rng.choice((1, 4, -1, -4)))))
        if rng.random() < 0.8:
            self.leave_if(rng.choice((JmpOp.GT, JmpOp.GE, JmpOp.SGT)), rng.choice((a, b)),
                          Imm(rng.choice((7, 15, 31, 55, 63))), rng.random() < 0.8)

    def spill(self) -> None:
        rng, reg, slot = self.rng, self.number(), -8 * self.rng.randrange(2, 6)
        size = rng.choice((8, 8, 8, 4, 4, 2, 1))
        self.emit(Store(10, slot, size, rng.choice((Reg(reg), Reg(reg), Imm(5), Imm(0)))))
        if rng.random() < 0.3:
            self.leave_if(JmpOp.GT, reg, Imm(rng.choice((7, 15, 63))))
        if rng.random() < 0.15:
            self.emit(Store(10, slot + rng.randrange(8), 1, Imm(0)))
        size = rng.choice((size, size, 8, 4))
        signed = size < 8 and rng.random() < 0.2
        self.emit(Load(self.number(), 10, slot + rng.choice((0, 0, 0, 0, 4 if size <= 4 else 0)),
                       size, signed))

    def access(self, base: int, off: int, size: int) -> None:
        rng = self.rng
        if rng.random() < 0.5:
            self.emit(Load(self.number(), base, off, size))
        else:
            self.emit(Store(base, off, size, rng.choice((Imm(1), Reg(9), Reg(7)))
                            if size == 8 else Imm(1)))

    def into_value(self) -> None:
        """At a number's place in the 64 bytes."""
        rng, reg, pointer = self.rng, self.number(), self.number()
        size = rng.choice((1, 1, 2, 4, 8))
        if reg == pointer or rng.random() < 0.2:
            self.access(9, rng.choice((0, 56, 63, 64 - size, 65 - size, rng.randrange(60))), size)
            return
        if rng.random() < 0.6:
            self.emit(Alu(AluOp.AND, rng.random() < 0.8, reg, Imm(rng.choice((7, 15, 56, 63)))))
        self.emit(Mov(True, pointer, Reg(9)))
        if rng.random() < 0.3:
            self.emit(Alu(AluOp.ADD, True, pointer, Imm(rng.choice((1, 4, 8, 32, -1)))))
        self.emit(Alu(rng.choice((AluOp.ADD,) * 6 + (AluOp.SUB,)), True, pointer, Reg(reg)))
        self.access(pointer, rng.choice((0, 0, 0, 1, 8, -1)), size)
        self.emit(Mov(True, pointer, Imm(0)))

    def into_stack(self) -> None:
        rng, reg, pointer = self.rng, self.number(), self.number()
        if reg == pointer or rng.random() < 0.4:
            size = rng.choice((1, 2, 4, 8))
            off = -size * rng.randrange(1, 40 // size)
            self.access(10, off + rng.choice((0,) * 12 + (1, 8)), size)
            return
        if rng.random() < 0.7:
            self.emit(Alu(AluOp.AND, rng.random() < 0.8, reg, Imm(rng.choice((7, 8, 15, 24, 31)))))
        self.emit(Mov(True, pointer, Reg(10)),
                  Alu(AluOp.ADD, True, pointer, Imm(-rng.choice((8, 16, 32, 40, 512)))),
                  Alu(AluOp.ADD, True, pointer, Reg(reg)))
        self.access(pointer, 0, rng.choice((1, 1, 1, 8)))
        self.emit(Mov(True, pointer, Imm(0)))

    def into_packet(self) -> None:
        rng, reg, pointer = self.rng, self.number(), self.number()
        size = rng.choice((1, 2, 4, 8))
        if reg == pointer or rng.random() < 0.4:
            self.access(7, rng.choice((0, self.length - size, self.length - size + 1,
                                       rng.randrange(self.length))), size)
            return
        limit = rng.choice([other for other in self.NUMBERS if other not in (reg, pointer)])
        if rng.random() < 0.7:
            self.emit(Alu(AluOp.AND, True, reg, Imm(rng.choice((15, 63, 255, 0x7FFF)))))
        more = rng.choice((4, 8, 20))
        self.emit(Mov(True, pointer, Reg(7)), Alu(AluOp.ADD, True, pointer, Reg(reg)),
                  Mov(True, limit, Reg(pointer)), Alu(AluOp.ADD, True, limit, Imm(more)))
        if rng.random() < 0.9:
            self.leave_if(rng.choice((JmpOp.GT,) * 6 + (JmpOp.GE, JmpOp.LT, JmpOp.LE, JmpOp.SGT)),
                          limit, Reg(8), rng.random() < 0.95)
        self.access(pointer, rng.choice((0, more - size, more - size, more - size + 1)), size)
        self.emit(Mov(True, pointer, Imm(0)), Mov(True, limit, Imm(0)))

    def wide(self) -> None:
        self.emit(LoadImm64(self.number(), self.rng.choice(
            (0x1_0000_0007, 0xFFFF_FFFF, 0x7FFF_FFFF_FFFF_FFFF, 1 << 63, 0xFFFF_FFFF_FFFF_FFF8))))

    def atomic(self) -> None:
        size = self.rng.choice((4, 8))
        op = self.rng.choice(list(AtomicOp))
        fetch = op in (AtomicOp.XCHG, AtomicOp.CMPXCHG) or self.rng.random() < 0.6
        base, off = self.rng.choice(((9, 8), (9, 56), (10, -16), (9, 60), (10, -20)))
        self.emit(Atomic(op, size, base, off, self.number(), fetch))

    def branch(self) -> None:
        """One side does something, the other not."""
        at = len(self.out)
        self.emit(JumpIf(self.rng.choice(list(JmpOp)), self.rng.random() < 0.7, self.number(),
                         self.rng.choice((Imm(0), Imm(8), Imm(63), Reg(self.number()))), 0))
        for _ in range(self.rng.randrange(1, 3)):
            self.rng.choice((self.narrow, self.arithmetic, self.spill))()
        self.targets[at] = len(self.out)

    def call(self) -> None:
        rng = self.rng
        kind = rng.randrange(6)
        if kind == 0:
            self.emit(Mov(True, 1, Imm(0)), Mov(True, 2, Imm(0)), Mov(True, 5, Imm(0)),
                      Alu(AluOp.AND, True, 4, Imm(rng.choice((4, 12, 60, 28)))),
                      Mov(True, 3, Reg(rng.choice((9, 7, 10)))))
            if rng.random() < 0.5:
                self.emit(Alu(AluOp.ADD, True, 3, Imm(rng.choice((-32, -64, 4, 8)))))
            self.emit(Call(28))
        elif kind == 1:
            key = rng.choice((-8, -16, -7))
            self.emit(Mov(True, 2, Reg(10)), Alu(AluOp.ADD, True, 2, Imm(key)), LoadMap(1, 1),
                      Call(1))
            if rng.random() < 0.85:
                self.leave_if(JmpOp.EQ, 0, Imm(0))
            self.access(0, rng.choice((0, 8, 8, 15, 12)), rng.choice((1, 4, 8)))
            self.emit(Mov(True, 0, Imm(1)))
        elif kind == 2:
            self.emit(Mov(True, 1, Reg(6)), Mov(True, 2, Imm(rng.choice((0, -4)))),
                      Call(rng.choice((44, 65))))
            if rng.random() < 0.7:
                self.emit(Load(7, 6, 0, 4), Load(8, 6, 4, 4), Mov(True, 2, Reg(7)),
                          Alu(AluOp.ADD, True, 2, Imm(self.length)))
                self.leave_if(JmpOp.GT, 2, Reg(8))
        elif kind == 3:
            self.emit(LoadMap(1, 2), Mov(True, 2, Imm(16)), Mov(True, 3, Imm(0)), Call(131))
            if rng.random() < 0.9:
                self.leave_if(JmpOp.EQ, 0, Imm(0))
            self.access(0, rng.choice((0, 8, 8, 9)), 8)
            if rng.random() < 0.9:
                self.emit(Mov(True, 1, Reg(0)), Mov(True, 2, Imm(0)),
                          Call(rng.choice((132, 132, 133))))
        else:
            self.emit(Call(rng.choice((5, 7, 8))))
        for reg in self.NUMBERS:
            if rng.random() < 0.99 and (reg or kind not in (0, 4, 5)):
                self.emit(Load(reg, 9, 8 * rng.randrange(8), rng.choice((1, 4, 8))))


__all__ = ["MAPS", "classify", "mutated", "random_program"]
