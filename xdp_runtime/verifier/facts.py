"""What exploration found out, by instruction, over all paths: what lowering builds on.

A fact holds whenever the instruction runs, on any path and for any call site.  Numbers are united
over all visits; an operand that was a pointer on one path and a number on another says so.
"""

from __future__ import annotations

from xdp_runtime.verifier.branches import in_reach
from xdp_runtime.verifier.domain import Kind, Num, Ptr, Reg
from xdp_runtime.verifier.env import Env
from xdp_runtime.verifier.scalar import Scalar, union

NUMBER, POINTER, NULLABLE = 1, 2, 4


class Facts:
    """Indexed by slot.  `visited`: some path runs it.  `falls`/`taken`: some path leaves a
    conditional jump that way.  `shape[slot, reg]`: NUMBER | POINTER | NULLABLE of an operand
    before the instruction.  `ranges[slot, reg]`: union of its values where it is a number; on
    paths that were pruned this holds only for numbers that decided something, such as those that
    moved a pointer.  `sums`: where ranges are noted, None: everywhere.
    `edges[slot]`: of a comparison of pointers, n if the left one is in the packet, n bytes behind
    where it or its variable offset begins, and the right one is the packet's end; -n if it is the
    other way around; else 0.
    `live[slot]`: bit n is set if r<n> may still be read from there on; empty: nobody knows.
    `longest`: instructions on the longest path, those of called functions included; -1: not known.
    """

    __slots__ = (
        "arena_at",
        "callbacks",
        "constants",
        "context_at",
        "edges",
        "falls",
        "fills",
        "live",
        "longest",
        "ranges",
        "rooms",
        "shape",
        "sums",
        "taken",
        "visited",
        "written",
    )

    def __init__(self, slots: int) -> None:
        self.visited = bytearray(slots)
        self.falls = bytearray(slots)
        self.taken = bytearray(slots)
        self.longest = -1
        self.live: list[int] = []
        self.edges: dict[int, int] = {}
        self.sums: frozenset[int] | None = None
        self.arena_at: dict[int, bool] = {}  # do they work on an arena?  (env.py)
        self.context_at: dict[int, bool] = {}  # memory instructions: do they use the context?
        # [low, high) of a frame, from its top, that an instruction writes some of; None: nobody
        # knows.  Loads that gave a spilled pointer.
        self.written: dict[int, tuple[int, int]] | None = {}
        self.fills: set[int] = set()
        self.callbacks: dict[tuple[int, ...], set[int]] = {}  # env.py
        # loads from frozen maps and the number they give, None: not one number
        self.constants: dict[int, int | None] = {}
        self.rooms: dict[tuple[int, int], int] = {}  # bytes behind an argument that is text
        self.shape: dict[tuple[int, int], int] = {}
        self.ranges: dict[tuple[int, int], Scalar] = {}

    @classmethod
    def assume_nothing(cls, slots: int) -> Facts:
        """As if every path were possible: for programs that run unproven, in tests."""
        facts = cls(slots)
        facts.visited = facts.falls = facts.taken = bytearray(b"\1" * slots)
        facts.written = None
        return facts

    def take(self, env: Env) -> None:
        """What the environment notes by itself, now and later."""
        self.context_at, self.arena_at = env.context_at, env.arena_at
        self.written, self.fills, self.callbacks = env.written, env.fills, env.callbacks

    def see_comparison(self, slot: int, left: Ptr, right: Reg) -> None:
        bytes_before = 0
        if isinstance(right, Ptr):
            if right.kind is Kind.PACKET_END:
                bytes_before = _bytes_before(left)
            elif left.kind is Kind.PACKET_END:
                bytes_before = -_bytes_before(right)
        known = self.edges.get(slot, bytes_before)
        if known * bytes_before <= 0:
            bytes_before = 0
        elif abs(known) < abs(bytes_before):
            bytes_before = known
        self.edges[slot] = bytes_before

    def see_load(self, slot: int, value: Reg) -> None:
        """What a load from a map's value gave: a constant, if the map is frozen."""
        number = value.range.const if isinstance(value, Num) else None
        self.constants[slot] = number if self.constants.get(slot, number) == number else None

    def see(self, slot: int, number: int, value: Reg) -> None:
        key = (slot, number)
        if isinstance(value, Num):
            self.shape[key] = self.shape.get(key, 0) | NUMBER
            if self.sums is not None and slot not in self.sums:
                return
            known = self.ranges.get(key)
            if known is None:
                self.ranges[key] = value.range
            elif known is not value.range:
                self.ranges[key] = union(known, value.range)
        elif isinstance(value, Ptr):
            self.shape[key] = self.shape.get(key, 0) | (
                POINTER | NULLABLE if value.nullable else POINTER)


def _bytes_before(pointer: Ptr) -> int:
    """In the packet, if it is not beyond its end."""
    if pointer.kind is not Kind.PACKET or not in_reach(pointer):
        return 0
    return pointer.off
