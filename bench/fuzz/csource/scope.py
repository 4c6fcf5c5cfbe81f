"""What statements of a random C function may use, and the lines written so far."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

INTS = ("u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64")
PACKET = 64  # bytes that are proven behind `p` where a scope has a packet
CONSTANTS = ("0", "1", "2", "3", "5", "7", "8", "15", "31", "32", "33", "63", "64", "100", "127",
             "128", "255", "256", "1500", "0x7fff", "0x8000", "0xffff", "0x10000", "0x7fffffff",
             "0x80000000u", "0xffffffffu", "-1", "-2", "-8", "-128", "-32768", "(-2147483647-1)",
             "0x100000000ull", "0x7fffffffffffffffll", "0x8000000000000000ull", "-1ll",
             "0xdeadbeefcafef00dull", "0x00ff00ff00ff00ffull", "0xfffffffffffffff0ull")


@dataclass
class Field:
    """A member of a struct: `path` behind a dot, `count` > 1 for arrays of a power of two."""

    path: str
    kind: str
    count: int = 1


@dataclass
class Scope:
    """Of one function.  `values` point to a struct val that is not null; `arrays` are
    (name, elements, a power of two); `frames` point to a struct state in a caller's frame."""

    kind: str
    numbers: list[str] = field(default_factory=list)
    fixed: list[str] = field(default_factory=list)  # numbers that are not assigned to
    packet: bool = False
    edges: bool = False  # `p` and `end` may be used, with a comparison
    context: bool = False
    values: list[str] = field(default_factory=list)
    arrays: list[tuple[str, int]] = field(default_factory=list)
    structs: list[str] = field(default_factory=list)
    frames: list[str] = field(default_factory=list)
    leave: str = "return acc;"
    depth: int = 0  # of loops
    nesting: int = 0  # of all blocks


class Lines:
    """A function in the making.  `version` is the instruction set's (1-4)."""

    def __init__(self, rng: random.Random, version: int) -> None:
        self.random, self.version = rng, version
        self.lines: list[str] = []
        self.names = 0
        self.scope = Scope("none")
        self.fields: list[Field] = []  # of struct val
        self.callees: list[tuple[str, str]] = []  # (name, kind)

    def line(self, *texts: str) -> None:
        self.lines += texts

    def name(self, stem: str) -> str:
        self.names += 1
        return f"{stem}{self.names}"

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def pick(self, *choices: str) -> str:
        return self.random.choice(choices)

    @contextmanager
    def block(self, head: str, loop: bool = False, tail: str = "}") -> Iterator[None]:
        """Variables made inside are forgotten behind it."""
        scope = self.scope
        kept = [list(names) for names in (scope.numbers, scope.fixed, scope.structs, scope.values)]
        arrays, packet = list(scope.arrays), scope.packet
        self.line(head + " {")
        scope.depth += loop
        scope.nesting += 1
        yield
        scope.depth -= loop
        scope.nesting -= 1
        scope.numbers, scope.fixed, scope.structs, scope.values = kept
        scope.arrays, scope.packet = arrays, packet and scope.packet
        self.line(tail)
