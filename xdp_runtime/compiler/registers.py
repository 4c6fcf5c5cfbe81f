"""BPF registers in LLVM: as numbers, as pointers, and what turns one into the other.

A register is up to two variables, `.i` the number and `.p` the pointer; which of them live follows
from its kind (kinds.py).  Pointers are never integers, so alias analysis keeps working: where two
paths bring different kinds, the edge between the blocks converts, and a register that is a number
on one path and a pointer on the other is kept as both.  A pointer spilled to the stack lives in a
variable of its own (`%s<depth>_<offset>`), so spilling costs nothing once it is promoted.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

from xdp_runtime import state as st
from xdp_runtime.compiler.frames import Frame
from xdp_runtime.compiler.kinds import (
    NOTHING,
    Ctx,
    Either,
    InnerMap,
    Kind,
    MapOneOf,
    MapPtr,
    MapValue,
    Mem,
    Packet,
    Scalar,
    StackPtr,
    State,
    Uninit,
)
from xdp_runtime.compiler.provenance import Analysis, Provenance
from xdp_runtime.compiler.scopes import scope_of
from xdp_runtime.compiler.writer import Writer
from xdp_runtime.entry import XDP, Entry
from xdp_runtime.fuel import stretches
from xdp_runtime.isa import STACK_SIZE_BYTES, Imm, Operand
from xdp_runtime.object import MapSpec, ProgramSpec
from xdp_runtime.template import Template
from xdp_runtime.verifier.facts import Facts

MAY_GOTO_BUDGET = 8 * 1024 * 1024  # BPF_MAX_LOOPS


@dataclass(slots=True)
class Lowered:
    """The text of one or more programs and what they need."""

    text: str
    templates: dict[str, Template] = field(default_factory=dict)
    regions: set[tuple[int, str]] = field(default_factory=set)  # (map index, region)
    timers: set[tuple[int, int]] = field(default_factory=set)  # (slot of a callback, map index)


def components(kind: Kind) -> str:
    """Which variables a register of this kind lives in."""
    match kind:
        case Scalar():
            return "i"
        case StackPtr(_, off):
            return "p" if off is None else ""  # a known offset needs no variable
        case Packet() | MapValue() | InnerMap() | MapOneOf() | Mem():
            return "p"
        case Either():
            return "ip"
        case Uninit() | Ctx() | MapPtr():
            return ""
        case _:
            assert_never(kind)


class Registers(Writer):
    """The registers, stack and run state of one program while it is lowered."""

    def __init__(self, program: ProgramSpec, number: int, maps: tuple[MapSpec, ...], workers: int,
                 tail_targets: Iterable[int], facts: Facts, entry: Entry = XDP,
                 fuelled: bool = False, timer: tuple[int, int] | None = None) -> None:
        """`timer`: not the program, but its function at this slot, run by timers of this map."""
        super().__init__()
        self.program, self.number, self.maps, self.workers = program, number, maps, workers
        self.tail_targets = tuple(tail_targets)
        self.facts, self.entry = facts, entry
        self.charges = stretches(program.insns) if fuelled else {}
        self.timer = timer
        self.provenance = Provenance(program, maps, facts, entry, timer)
        self.analysis: Analysis = self.provenance.analyse()
        self.out = Lowered("")
        self.slot = 0
        self.frame: Frame = self.analysis.frames[0]
        self.state = State([NOTHING] * 11)

    def use(self, template: Template) -> None:
        self.out.templates[template.name] = template

    def region(self, index: int, name: str) -> str:
        self.out.regions.add((index, name))
        return f'@"map.{index}.{name}"'

    # --- the run state ------------------------------------------------------------------------

    def get_state(self, offset: int, kind: str) -> str:
        return self.value(f"load {kind}, ptr {self.state_field(offset)}{self.own_scope()}")

    def put_state(self, offset: int, kind: str, value: str) -> None:
        self.emit(f"store {kind} {value}, ptr {self.state_field(offset)}{self.own_scope()}")

    def own_scope(self) -> str:
        """Alias metadata of the run state: it is neither packet nor map."""
        return scope_of(1 + len(self.maps))

    def state_field(self, offset: int) -> str:
        return self.same(f"getelementptr inbounds i8, ptr %state, i64 {offset}")

    def worker_id(self) -> str:
        return self.widen(self.get_state(st.WORKER_ID, "i32"), 32)

    # --- registers ----------------------------------------------------------------------------

    def location(self, reg: int, depth: int) -> str:
        return f"r{reg}" if reg < 6 else f"r{reg}_{depth}"

    def reg(self, number: int) -> str:
        return self.location(number, self.frame.depth)

    def pointer(self, number: int) -> str:
        """The pointer in a register."""
        kind = self.state.regs[number]
        match kind:
            case StackPtr(depth, int() as off):
                return self.stack_address(depth, off)
            case Ctx():
                return "%state"
            case MapPtr(index):
                return self.same(f"inttoptr i64 {index + 1} to ptr")
            case Scalar():  # in programs that run unproven, to crash there and nowhere else
                return self.same(f"inttoptr i64 {self.number_of(number)} to ptr")
            case _:
                return self.get(self.reg(number), "p")

    def number_of(self, number: int) -> str:
        """The register as a 64-bit number, whatever it is."""
        kind = self.state.regs[number]
        if isinstance(kind, Scalar) and kind.const is not None:
            return str(kind.const)
        if isinstance(kind, Scalar | Either):
            return self.get(self.reg(number), "i")
        return self.same(f"ptrtoint ptr {self.pointer(number)} to i64")

    def operand(self, src: Operand) -> str:
        if isinstance(src, Imm):
            return str(src.value & ((1 << 64) - 1))
        return self.number_of(src.n)

    def set_number(self, number: int, value: str) -> None:
        self.put(self.reg(number), "i", value)

    def copy(self, kind: Kind, source: str, target: str) -> None:
        for component in components(kind):
            self.put(target, component, self.get(source, component))

    def needs_conversion(self, have: Kind, want: Kind) -> bool:
        return components(have) != components(want) and bool(components(want))

    def convert(self, location: str, have: Kind, want: Kind) -> None:
        """Make the variables of `have` those of `want`."""
        wanted = components(want)
        match have:
            case Scalar():
                if "p" in wanted:  # zero, which is null, or what nobody takes for a pointer
                    self.put(location, "p", "null")
                return
            case StackPtr(depth, int() as off):
                pointer = self.stack_address(depth, off)
                self.provenance.touch_stack(depth, None)
            case Ctx():
                pointer = "%state"
            case MapPtr(index):
                pointer = self.same(f"inttoptr i64 {index + 1} to ptr")
            case Uninit():
                return
            case _:
                pointer = self.get(location, "p")
        if "p" in wanted and components(have) != "p":
            self.put(location, "p", pointer)
        if "i" in wanted and "i" not in components(have):
            self.put(location, "i", self.value(f"ptrtoint ptr {pointer} to i64"))

    # --- memory -------------------------------------------------------------------------------

    def stack_address(self, depth: int, off: int) -> str:
        self.provenance.touch_stack(depth, off)
        return self.same(
            f"getelementptr inbounds i8, ptr %stack{depth}, i64 {STACK_SIZE_BYTES + off}")

    def begin_frame(self, depth: int) -> None:
        """What it may read before writing it is zero, never a stranger's data, and all rounds of
        may_goto are left."""
        self.emit(f"store i64 {MAY_GOTO_BUDGET}, ptr %may{depth}")
        used = self.provenance.stack_used.get(depth, 0)
        if used:
            start = self.value(
                f"getelementptr inbounds i8, ptr %stack{depth}, i64 {STACK_SIZE_BYTES - used}")
            self.emit(f"call void @llvm.memset.p0.i64(ptr {start}, i8 0, i64 {used}, i1 false)")

    def address(self, number: int, off: int) -> str:
        """The proven address register + off."""
        kind = self.state.regs[number]
        if isinstance(kind, StackPtr) and kind.off is not None:
            return self.stack_address(kind.depth, kind.off + off)
        pointer = self.pointer(number)
        if off == 0:
            return pointer
        return self.same(f"getelementptr inbounds i8, ptr {pointer}, i64 {off}")

    def scope(self, number: int) -> str:
        """Alias metadata of an access through a register: its object, and what that is not."""
        match self.state.regs[number]:
            case Packet():
                own = 0
            case MapValue(index) if index >= 0:
                own = 1 + index
            case _:
                return ""
        return scope_of(own)


def spill_location(depth: int, off: int) -> str:
    return f"s{depth}_{-off}"
