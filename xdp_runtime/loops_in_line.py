"""Does the kernel write a bpf_loop out, as inline_bpf_loop, or call its helper?

It does where the flags are zero and the callback is always the same function, which is told here
without verifying: what the two registers hold is found backwards, over all paths, through copies
between registers, spills to the stack and arguments of functions.  What comes from elsewhere may be
anything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache

from xdp_runtime.isa import (
    Atomic,
    AtomicOp,
    Call,
    CallKfunc,
    CallLocal,
    Exit,
    Imm,
    Insn,
    Insns,
    Jump,
    JumpIf,
    Load,
    LoadFunc,
    MayGoto,
    Mov,
    Reg,
    Store,
    StoreRelease,
)

_FRAME_POINTER, _SPILL_BYTES = 10, 8
_CODE, _FLAGS = 2, 4  # bpf_loop's arguments


class _Origins:
    """Of one program.  A place is a register, or an offset from the frame pointer (negative)."""

    def __init__(self, insns: Insns) -> None:
        self.insns = insns
        self._jumps: dict[int, list[int]] = defaultdict(list)
        self._calls: dict[int, list[int]] = defaultdict(list)
        self._taken: set[int] = {0}  # functions that nobody calls directly
        for slot, insn in enumerate(insns):
            if isinstance(insn, Jump | JumpIf | MayGoto):
                self._jumps[slot + 1 + insn.off].append(slot)
            elif isinstance(insn, CallLocal):
                self._calls[slot + 1 + insn.off].append(slot)
            elif isinstance(insn, LoadFunc):
                self._taken.add(slot + 1 + insn.off)

    def in_line(self, slot: int) -> bool:
        functions = {at + 1 + what.off if isinstance(what, LoadFunc) else None
                     for at, what in self._everywhere(slot, _CODE)}
        flags = {isinstance(what, Mov) and what.src == Imm(0)
                 for _, what in self._everywhere(slot, _FLAGS)}
        return len(functions) == 1 and None not in functions and flags == {True}

    def _everywhere(self, slot: int, register: int) -> Iterator[tuple[int, Insn | int]]:
        """Origins in the callers, too."""
        entries = frozenset(self._calls.keys() | self._taken)
        todo, seen = [(slot, register)], set()
        while todo:
            one = todo.pop()
            if one in seen:
                continue
            seen.add(one)
            for at, what in self._origins(*one, entries):
                if isinstance(what, int) and 1 <= what <= 5 and at not in self._taken:
                    todo += [(call, what) for call in self._calls[at]]
                else:
                    yield at, what

    def _origins(self, slot: int, register: int, entries: frozenset[int]
                 ) -> Iterator[tuple[int, Insn | int]]:
        """Where what the register holds comes from: the slots of instructions that made it, and of
        functions that it, or the place that it comes from, was handed to."""
        todo: list[tuple[int, int]] = [(slot, register)]
        seen: set[tuple[int, int]] = set()
        while todo:
            at, place = todo.pop()
            if at in entries:
                yield at, place
            for before in self._before(at):
                if (before, place) in seen:
                    continue
                seen.add((before, place))
                insn = self.insns[before]
                assert insn is not None
                source = _source(insn, place)
                if source is None:
                    yield before, insn
                else:
                    todo.append((before, source))

    def _before(self, slot: int) -> list[int]:
        """The instructions that may run right before this one."""
        before = list(self._jumps.get(slot, ()))
        if slot:
            last = slot - 1 if self.insns[slot - 1] is not None else slot - 2
            if not isinstance(self.insns[last], Exit | Jump):
                before.append(last)
        return before


@lru_cache(maxsize=16)
def loops_in_line(insns: Insns, slot: int) -> bool:
    """Of the call of bpf_loop at `slot`."""
    return _Origins(insns).in_line(slot)


def _source(insn: Insn, place: int) -> int | None:
    """Where the content of `place` behind the instruction was before; None: it made that."""
    match insn:
        case Mov(True, dst, Reg(src), 0) if dst == place:
            return src
        case Load(dst, src, off, size) if dst == place:
            return off if (src, size) == (_FRAME_POINTER, _SPILL_BYTES) else None
        case Store(dst, off, size, content) if place < 0:
            if dst != _FRAME_POINTER:
                return None
            if (off, size) == (place, _SPILL_BYTES) and isinstance(content, Reg):
                return content.n
            return place if off + size <= place or place + _SPILL_BYTES <= off else None
        case Store() | StoreRelease():
            return place if place >= 0 else None
        case Atomic(op, src=src, fetch=fetch):
            fetched = 0 if op is AtomicOp.CMPXCHG else src if fetch else -1
            return place if place >= 0 and fetched != place else None
        case Call() | CallKfunc():
            return place if place < 0 or place > 5 else None
        case CallLocal():
            return place if place > 5 else None
        case Jump() | JumpIf() | MayGoto():
            return place
        case _:
            return place if getattr(insn, "dst", place) != place else None
