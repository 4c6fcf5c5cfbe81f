"""Pruning never accepts what walking every path refuses.

Random programs full of places where paths meet: numbers of different ranges, copies and spills of
which one is checked, bytes of slots overwritten in part, pointers that differ by path, functions
that write their caller's stack, short loops.  Whatever the explorer accepts with pruning it must
accept without, too.
"""

from __future__ import annotations

import random
from unittest import mock

import pytest

from xdp_runtime.asm import assemble
from xdp_runtime.object import MapSpec, MapType, Object, ProgramSpec
from xdp_runtime.verifier import verify
from xdp_runtime.verifier.explore import Explorer

MAPS = (MapSpec("cells", MapType.ARRAY, 4, 16, 4), MapSpec("table", MapType.HASH, 4, 16, 4))
NUMBERS = ("r0", "r2", "r3", "r4", "r5", "r8")
SLOTS = (-16, -24, -32)
PROGRAMS = 400


class Writer:
    """r6 the context, r9 a map value of 16 bytes; the rest numbers."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.lines: list[str] = []
        self.labels = 0
        self.functions: list[str] = []

    def label(self) -> str:
        self.labels += 1
        return f"l{self.labels}"

    def put(self, *lines: str) -> None:
        self.lines += lines

    def number(self) -> str:
        return self.rng.choice(NUMBERS)

    def slot(self) -> int:
        return self.rng.choice(SLOTS)

    def program(self) -> str:
        rng = self.rng
        self.put("r6 = r1", "*(u32 *)(r10 - 4) = 0", "r2 = r10", "r2 += -4", "r1 = map[cells] ll",
                 "call bpf_map_lookup_elem", "r9 = r0")
        for register in NUMBERS:
            self.put(f"{register} = *(u32 *)(r6 + 16)")
            if rng.random() < 0.6:
                self.put(f"{register} &= {rng.choice((1, 3, 7, 15, 31))}")
        for off in SLOTS:
            if rng.random() < 0.7:
                self.put(f"*(u64 *)(r10 - {-off}) = {rng.choice(('0', *NUMBERS))}")
        for _ in range(rng.randrange(3, 9)):
            self.statement(2)
        self.use()
        self.put("out:", "r0 = 2", "exit")
        for number, body in enumerate(self.functions):
            self.put(f"f{number}:", body, "exit")
        return "\n".join(self.lines)

    def statement(self, depth: int) -> None:
        rng = self.rng
        choices = [self.change, self.change, self.copy, self.spill, self.fill, self.part,
                   self.check, self.use, self.pad, self.pad]
        if depth:
            choices += [lambda: self.diamond(depth - 1)] * 5 + [lambda: self.loop(depth - 1)]
        if len(self.functions) < 2:
            choices.append(self.call)
        rng.choice(choices)()

    def pad(self) -> None:
        """States are remembered only so many instructions apart."""
        self.put(*["r7 = 1"] * self.rng.choice((3, 8)))

    def change(self) -> None:
        number, rng = self.number(), self.rng
        self.put(rng.choice((
            f"{number} = {rng.choice((0, 1, 5, 8, 15, 16, 40))}",
            f"{number} += {rng.choice((1, 4, -1))}",
            f"{number} &= {rng.choice((7, 15))}", f"{number} = *(u32 *)(r6 + 16)",
            f"{number} <<= 1", f"{number} += {self.number()}")))

    def copy(self) -> None:
        one, two = self.rng.sample(NUMBERS, 2)
        self.put(f"{one} = {two}")
        if self.rng.random() < 0.4:
            self.put(f"{one} += {self.rng.choice((1, 2, -1, 4))}")

    def spill(self) -> None:
        size = self.rng.choice(("u64", "u64", "u64", "u32"))
        what = self.rng.choice((self.number(), self.number(), "0"))
        self.put(f"*({size} *)(r10 - {-self.slot()}) = {what}")

    def fill(self) -> None:
        size, off = self.rng.choice((("u64", 0), ("u64", 0), ("u32", 0), ("u32", 4), ("u8", 5)))
        self.put(f"{self.number()} = *({size} *)(r10 - {-self.slot() - off})")

    def part(self) -> None:
        """Part of a slot is overwritten."""
        size, off = self.rng.choice((("u32", 0), ("u32", 4), ("u8", 0), ("u8", 7), ("u16", 2)))
        self.put(f"*({size} *)(r10 - {-self.slot() - off}) = "
                 f"{self.rng.choice((self.number(), '0'))}")

    def check(self) -> None:
        rng = self.rng
        op, limit = rng.choice((">", ">", ">=", "s>")), rng.choice((3, 7, 8, 15))
        wide = rng.random() < 0.8
        number = self.number()
        self.put(f"if {number if wide else 'w' + number[1:]} {op} {limit} goto out")

    def use(self) -> None:
        """A number decides where memory is touched, or whether a pointer is."""
        rng = self.rng
        kind = rng.random()
        if kind < 0.6:
            number = self.number()
            self.put(f"if {number} s> {rng.choice((3, 7, 14, 15, 300))} goto out" if (
                rng.random() < 0.5) else "r7 = 1")
            self.put("r1 = r9", f"r1 += {number}", "*(u8 *)(r1 + 0) = 1")
        elif kind < 0.8:
            self.put("r1 = r10", "r1 += -32", f"r1 += {self.number()}", "*(u8 *)(r1 + 0) = 1")
        else:
            where, number = self.label(), self.number()
            self.put("r1 = r9", f"if {number} == {rng.choice((0, 1, 8))} goto {where}",
                     "r1 = r10", "r1 += -8", f"{where}:", "r7 = *(u64 *)(r1 + 0)")

    def diamond(self, depth: int) -> None:
        other, end = self.label(), self.label()
        self.put("r1 = *(u32 *)(r6 + 16)" if self.rng.random() < 0.7 else f"r1 = {self.number()}",
                 f"if r1 == {self.rng.randrange(4)} goto {other}")
        for _ in range(self.rng.randrange(0, 3)):
            self.statement(depth)
        self.put(f"goto {end}", f"{other}:")
        for _ in range(self.rng.randrange(0, 3)):
            self.statement(depth)
        self.put(f"{end}:")

    def loop(self, depth: int) -> None:
        again, counter = self.label(), self.number()
        self.put(f"{counter} = 0", f"{again}:")
        for _ in range(self.rng.randrange(0, 2)):
            self.statement(0)
        self.put(f"{counter} += 1", f"if {counter} < {self.rng.choice((2, 3, 5))} goto {again}")

    def call(self) -> None:
        """A function that may write its caller's stack and returns a number."""
        rng = self.rng
        body = Writer(rng)
        body.functions = [""] * 2
        body.put("r6 = r1", "r0 = r2")
        for _ in range(rng.randrange(0, 3)):
            body.put(rng.choice(("r0 &= 7", "r0 = 3", "*(u64 *)(r1 + 0) = r0", "r0 += 1",
                                 "r0 = *(u64 *)(r1 + 0)", "*(u32 *)(r1 + 4) = 0")))
        if rng.random() < 0.5:
            body.put(f"if r2 == {rng.randrange(4)} goto g{len(self.functions)}", "r0 = 5",
                     f"g{len(self.functions)}:")
        argument = rng.choice(NUMBERS)
        self.put("r1 = r10", f"r1 += {self.slot()}", f"r2 = {argument}",
                 f"call f{len(self.functions)}", "r2 = 1", "r3 = 2", "r4 = *(u64 *)(r10 - 16)",
                 "r5 = r0")
        self.functions.append("\n".join(body.lines))


def random_object(seed: int) -> Object:
    text = Writer(random.Random(seed)).program()
    insns = assemble(text, [spec.name for spec in MAPS])
    return Object(f"meeting-{seed}", (ProgramSpec("main", "xdp", "xdp", insns),), MAPS, "GPL")


def accepts(obj: Object) -> bool:
    return verify(obj, obj.programs[0]).ok


@pytest.mark.parametrize("first", range(0, PROGRAMS, 100))
def test_what_pruning_accepts_is_accepted_without(first: int) -> None:
    accepted = 0
    for seed in range(first, first + 100):
        obj = random_object(seed)
        if accepts(obj):
            accepted += 1
            with mock.patch.object(Explorer, "_covered", lambda *_: None):
                report = verify(obj, obj.programs[0])
            assert report.ok or report.errors[0].kind == "budget", (seed, report.errors[0])
    assert 20 < accepted < 95
