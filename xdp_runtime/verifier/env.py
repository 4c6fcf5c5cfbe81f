"""What all stages of the verifier share: the program, its maps, and how a proof fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from xdp_runtime.arena import arenas_of
from xdp_runtime.entry import XDP, Entry
from xdp_runtime.isa import Insns
from xdp_runtime.object import MapSpec, Object, ProgramSpec
from xdp_runtime.verifier.fields import Field, special_fields

if TYPE_CHECKING:
    from xdp_runtime.verifier.domain import Frame, Num, Ptr, State


@dataclass(frozen=True, slots=True)
class Finding:
    """Why a program is refused: data, so that tools can show it.

    `kind` is one of the words of KINDS; `state` says what was known of the registers concerned;
    `mend` what would help, where that is known.
    """

    insn: int
    kind: str
    text: str
    state: str = ""
    mend: str = ""


KINDS = ("bounds", "null", "uninit", "type", "readonly", "align", "stack", "context", "helper",
         "map", "loop", "call", "reference", "lock", "return", "control", "arithmetic", "budget",
         "policy")


class Refused(Exception):
    """Raised by a stage that cannot prove an obligation; becomes a Finding."""

    def __init__(self, kind: str, text: str, mend: str = "", regs: tuple[int, ...] = ()) -> None:
        super().__init__(text)
        self.kind, self.text, self.mend, self.regs = kind, text, mend, regs


class Observer(Protocol):
    """Sees what the program does, instruction by instruction, on every path that is walked.

    Pruning skips paths that differ only in numbers nothing depended on; an observer that depends
    on a number marks it precise.  `slot` is always the instruction at hand.
    """

    def access(self, slot: int, ptr: Ptr, off: int, size: int, write: bool) -> None:
        """Memory that is read or written at ptr + off, by the program or a helper for it."""

    def context(self, slot: int, off: int) -> None:
        """A field of the context is read."""

    def call(self, slot: int, helper: int, state: State) -> None:
        """Before a helper is called."""

    def called(self, slot: int, helper: int, state: State) -> None:
        """After it; r0 may be narrowed to what the helper is known to return."""

    def leave(self, slot: int, verdict: Num) -> None:
        """The program ends."""


class Env:
    """The program under proof and its counters."""

    __slots__ = ("_fields", "arena", "arena_at", "callbacks", "context_at", "entry", "fills",
                 "insns", "later", "maps", "obj", "observer", "program", "slot", "stack_used",
                 "timed", "used_ids", "written")

    def __init__(self, obj: Object, program: ProgramSpec,
                 observer: Observer | None = None, entry: Entry = XDP) -> None:
        self.observer, self.entry = observer, entry
        self.obj, self.program = obj, program
        self.insns: Insns = program.insns
        self.maps: tuple[MapSpec, ...] = obj.maps
        self.used_ids = 0
        self.stack_used: dict[int, int] = {}  # by the slot where a function begins, in bytes
        # functions by the path to where they are handed over: where it begins, slots to which the
        # calls on it return, the slot at hand
        self.callbacks: dict[tuple[int, ...], set[int]] = {}
        self.later: set[int] = set()  # functions that timers run, on a stack of their own
        self.timed: set[tuple[int, int]] = set()  # those and the maps that the timers are in
        self._fields: dict[MapSpec, tuple[Field, ...]] = {}
        self.slot = 0  # the instruction being proven
        self.context_at: dict[int, bool] = {}  # memory instructions: is it the context they use?
        self.arena = next(iter(arenas_of(self.insns, self.maps)), -1)  # which map, -1: none
        # memory instructions and arithmetic of programs with an arena: is it one they work on?
        self.arena_at: dict[int, bool] = {}
        # between where and where instructions write to a frame; loads of spilled pointers
        self.written: dict[int, tuple[int, int]] = {}
        self.fills: set[int] = set()

    def use_stack(self, frame: Frame, off: int) -> None:
        """The function of this frame uses its stack down to `off`."""
        if -off > self.stack_used.get(frame.entry, 0):
            self.stack_used[frame.entry] = -off

    def write_stack(self, low: int, high: int) -> None:
        """This instruction writes somewhere within [low, high) of a frame."""
        known = self.written.get(self.slot, (low, high))
        self.written[self.slot] = min(low, known[0]), max(high, known[1])

    def fields(self, spec: MapSpec) -> tuple[Field, ...]:
        """Fields of the map's value that only helpers may touch."""
        if not spec.value_type_id:
            return ()
        if spec not in self._fields:
            self._fields[spec] = special_fields(self.obj.btf, spec)
        return self._fields[spec]

    def next_id(self) -> int:
        self.used_ids += 1
        return self.used_ids
