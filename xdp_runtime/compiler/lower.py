"""Verified bytecode -> LLVM IR, as text.

A program becomes one function `i32 @"prog.N"(ptr %state)`; its BPF-to-BPF calls are unfolded into
it (frames.py).  Every register is up to two stack variables that LLVM turns into SSA values:

    .i  the number          .p  the pointer

Within a block both are kept as the values themselves, stored only where the block ends, and what
was widened is not narrowed again: LLVM has less to read and to clean up.  Which of them are live
follows from the register's kind (kinds.py).  Pointers are never integers, so alias analysis keeps
working; where two paths bring different kinds, the edge between the blocks converts, and a register
that is a number on one path and a pointer on the other is kept as both.
A pointer spilled to the stack lives in a variable of its own (`%s<depth>_<offset>`), so spilling
costs nothing once it is promoted.

The context is not memory: a load from `struct xdp_md` becomes a load from the run state
(state.py), an alloca of the loop that LLVM dissolves after inlining.

There are no run-time checks: the verifier has proven every access on every path, and that every
path ends.  Its facts say more: branches that are never taken are not emitted, loads from frozen
maps are constants, and accesses carry the alias scope of their object (packet, each map), so that
LLVM keeps values in registers across stores to others.  `python -m bench.facts` measures each: that
packet pointers do not wrap is proven as well, but saved not one instruction, so it is not said.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import assert_never

from xdp_runtime import state as st
from xdp_runtime.compiler.frames import HEADER, Frame, Node, callbacks_of, width
from xdp_runtime.compiler.kinds import (
    NOTHING,
    POINTERS,
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
    constant,
)
from xdp_runtime.compiler.provenance import (
    DRAIN,
    MAPS,
    Analysis,
    Provenance,
    number_is_tail_call,
)
from xdp_runtime.entry import XDP, Entry
from xdp_runtime.fuel import ABORTED, stretches
from xdp_runtime.helpers.proto import TIMERS, Arg, Helper, Ret
from xdp_runtime.helpers.timer import TIMER_INIT, TIMER_SET_CALLBACK
from xdp_runtime.isa import (
    MAX_TAIL_CALLS,
    STACK_SIZE_BYTES,
    Alu,
    AluOp,
    Atomic,
    AtomicOp,
    Call,
    CallKfunc,
    CallLocal,
    CallReg,
    Exit,
    Imm,
    Insn,
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
    Store,
    StoreRelease,
    Swap,
    SwapOrder,
)
from xdp_runtime.maps import family_of, timers
from xdp_runtime.maps.family import E2BIG, EINVAL
from xdp_runtime.maps.hash_table import value_offset
from xdp_runtime.maps.of_maps import parameters_of
from xdp_runtime.maps.pool import LIVE
from xdp_runtime.maps.user_ringbuf import DRAIN_BYTES, RESULT
from xdp_runtime.object import MapSpec, MapType, ProgramSpec
from xdp_runtime.template import Template
from xdp_runtime.verifier.facts import Facts

CALLBACK_SHIFT = 16  # of a callback's slot in its number
FOR_EACH = 164  # bpf_for_each_map_elem
MAX_LOOPS = 8 * 1024 * 1024  # BPF_MAX_LOOPS
MAY_GOTO_BUDGET = 8 * 1024 * 1024  # BPF_MAX_LOOPS
_PREDICATES = {
    JmpOp.EQ: "eq", JmpOp.NE: "ne", JmpOp.GT: "ugt", JmpOp.GE: "uge", JmpOp.LT: "ult",
    JmpOp.LE: "ule", JmpOp.SGT: "sgt", JmpOp.SGE: "sge", JmpOp.SLT: "slt", JmpOp.SLE: "sle",
}
_SIMPLE = {
    AluOp.ADD: "add", AluOp.SUB: "sub", AluOp.MUL: "mul", AluOp.OR: "or", AluOp.AND: "and",
    AluOp.XOR: "xor", AluOp.LSH: "shl", AluOp.RSH: "lshr", AluOp.ARSH: "ashr",
}
_ENDS = ("br ", "switch ", "unreachable")  # of blocks that others follow
_RMW = {AtomicOp.ADD: "add", AtomicOp.OR: "or", AtomicOp.AND: "and", AtomicOp.XOR: "xor",
        AtomicOp.XCHG: "xchg"}


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


class Lowering:
    """Lowers one program.  `programs` maps the names that PROG_ARRAY slots may hold to numbers."""

    def __init__(self, program: ProgramSpec, number: int, maps: tuple[MapSpec, ...], workers: int,
                 tail_targets: Iterable[int], facts: Facts, entry: Entry = XDP,
                 fuelled: bool = False, timer: tuple[int, int] | None = None) -> None:
        """`timer`: not the program, but its function at this slot, run by timers of this map."""
        self.program, self.number, self.maps, self.workers = program, number, maps, workers
        self.tail_targets = tuple(tail_targets)
        self.facts, self.entry = facts, entry
        self.charges = stretches(program.insns) if fuelled else {}
        self.timer = timer
        self.provenance = Provenance(program, maps, facts, entry, timer)
        self.analysis: Analysis = self.provenance.analyse()
        self.out = Lowered("")
        self.lines: list[str] = []
        self.variables: dict[str, str] = {}  # alloca name -> LLVM type
        self.temporaries = 0
        self.labels = 0
        # of the straight code since the last label: what variables hold, which of them are not
        # stored yet, and values by the expression that gives them
        self.held: dict[str, str] = {}
        self.unstored: dict[str, str] = {}
        self.widened: dict[str, tuple[str, int]] = {}  # a zero extended value: from what, its bits
        self.made: dict[str, str] = {}
        self.slot = 0
        self.frame: Frame = self.analysis.frames[0]
        self.state = State([NOTHING] * 11)

    # --- text ---------------------------------------------------------------------------------

    def emit(self, line: str) -> None:
        if line.startswith(_ENDS):
            self.store_variables()
        elif line.startswith("ret "):
            self.unstored.clear()
        self.lines.append(f"  {line}")

    def value(self, expression: str) -> str:
        self.temporaries += 1
        name = f"%t{self.temporaries}"
        self.lines.append(f"  {name} = {expression}")
        return name

    def same(self, expression: str) -> str:
        """As `value`, of an expression without effects: computed once in straight code."""
        name = self.made.get(expression)
        if name is None:
            name = self.made[expression] = self.value(expression)
        return name

    def label(self, stem: str) -> str:
        self.labels += 1
        return f"{stem}.{self.labels}"

    def start(self, label: str) -> None:
        assert not self.unstored
        self.held.clear()
        self.widened.clear()
        self.made.clear()
        self.lines.append(f"{label}:")

    def use(self, template: Template) -> None:
        self.out.templates[template.name] = template

    def region(self, index: int, name: str) -> str:
        self.out.regions.add((index, name))
        return f'@"map.{index}.{name}"'

    # --- variables ----------------------------------------------------------------------------

    def location(self, reg: int, depth: int) -> str:
        return f"r{reg}" if reg < 6 else f"r{reg}_{depth}"

    def variable(self, location: str, component: str) -> str:
        name = f"%{location}.{component}"
        self.variables[name] = "i64" if component == "i" else "ptr"
        return name

    def get(self, location: str, component: str) -> str:
        name = self.variable(location, component)
        if name not in self.held:
            self.held[name] = self.value(f"load {self.variables[name]}, ptr {name}")
        return self.held[name]

    def put(self, location: str, component: str, value: str) -> None:
        name = self.variable(location, component)
        self.held[name] = self.unstored[name] = value

    def store_variables(self) -> None:
        for name, value in self.unstored.items():
            self.lines.append(f"  store {self.variables[name]} {value}, ptr {name}")
        self.unstored.clear()

    def reg(self, number: int) -> str:
        return self.location(number, self.frame.depth)

    def get_state(self, offset: int, kind: str) -> str:
        return self.value(f"load {kind}, ptr {self.state_field(offset)}{self.own_scope()}")

    def put_state(self, offset: int, kind: str, value: str) -> None:
        self.emit(f"store {kind} {value}, ptr {self.state_field(offset)}{self.own_scope()}")

    def own_scope(self) -> str:
        """Alias metadata of the run state: it is neither packet nor map."""
        return scope_of(1 + len(self.maps))

    def state_field(self, offset: int) -> str:
        return self.same(f"getelementptr inbounds i8, ptr %state, i64 {offset}")

    def stack_address(self, depth: int, off: int) -> str:
        self.provenance.touch_stack(depth, off)
        return self.same(
            f"getelementptr inbounds i8, ptr %stack{depth}, i64 {STACK_SIZE_BYTES + off}")

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

    def widen(self, value: str, bits: int, signed: bool = False) -> str:
        if bits == 64:
            return value
        if signed:
            return self.same(f"sext i{bits} {value} to i64")
        wide = self.same(f"zext i{bits} {value} to i64")
        self.widened[wide] = value, bits
        return wide

    def narrow(self, value: str, bits: int) -> str:
        if bits == 64:
            return value
        if not value.startswith("%"):
            return str(int(value) & ((1 << bits) - 1))
        source, known_bits = self.widened.get(value, (value, 64))
        if known_bits == bits:
            return source
        if known_bits < bits:
            return self.same(f"zext i{known_bits} {source} to i{bits}")
        return self.same(f"trunc i{known_bits} {source} to i{bits}")

    # --- memory -------------------------------------------------------------------------------

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

    # --- control ------------------------------------------------------------------------------

    def block(self, node: Node) -> str:
        return f"f{node[0]}_{node[1]}"

    def jump_to(self, node: Node, state: State) -> str:
        """A label to branch to that first turns this path's kinds into the target's."""
        target = self.analysis.at[node]
        frame = self.analysis.frames[node[0]]
        changes: list[tuple[str, Kind, Kind]] = []
        for number, (have, want) in enumerate(zip(state.regs, target.regs, strict=True)):
            if have != want and number != 10:
                changes.append((self.location(number, frame.depth), have, want))
        for depth, (mine, theirs) in enumerate(zip(state.saved, target.saved, strict=True)):
            for number, (have, want) in enumerate(zip(mine, theirs, strict=True), 6):
                if have != want:
                    changes.append((self.location(number, depth), have, want))
        for slot, want in target.spills.items():
            have = state.spills.get(slot, Scalar())
            if have != want:
                changes.append((spill_location(*slot), have, want))
        changes = [c for c in changes if self.needs_conversion(c[1], c[2])]
        if not changes:
            return self.block(node)
        edge = self.label("edge")
        self.pending.append((edge, node, changes))
        return edge

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

    def lower(self) -> Lowered:
        self.pending: list[tuple[str, Node, list[tuple[str, Kind, Kind]]]] = []
        for node in self.analysis.order:
            self.lower_block(node)
        body = self.lines
        self.lines = []
        self.start("again")
        self.clear_stack(0)
        if self.timer is not None:
            self.put("r2", "p", "%key")
            self.put("r3", "p", "%value")
        elif self.entry.memory_bytes:
            self.put("r1", "p", "%memory")
        for depth in sorted({frame.depth for frame in self.analysis.frames}):
            self.emit(f"store i64 {MAY_GOTO_BUDGET}, ptr %may{depth}")
        self.emit(f"br label %{self.block((0, self.analysis.frames[0].entry))}")
        start, self.lines = self.lines, []
        # a program that no other tail-calls is called from one place, the loop, and belongs there
        inline = " alwaysinline" if len(self.tail_targets) == 1 else ""
        memory = "" if self.entry.memory_bytes is None else ", ptr %memory"
        name = f"prog.{self.number}"
        if self.timer is not None:
            name, inline, memory = timer_name(self.number, self.timer), "", ", ptr %key, ptr %value"
        head = [f'define internal i{self.entry.result_bits} @"{name}"'
                f"(ptr noalias %state{memory}){inline} {{", "entry:"]
        for depth in sorted({frame.depth for frame in self.analysis.frames}):
            head.append(f"  %stack{depth} = alloca [{STACK_SIZE_BYTES} x i8], align 16")
        head += [f"  {name} = alloca {kind}" for name, kind in self.variables.items()]
        for depth in sorted({frame.depth for frame in self.analysis.frames}):
            head.append(f"  %may{depth} = alloca i64")
        if self.charges:
            head.append("  %fuel = alloca i64")
            self.take_fuel()
            body += self.out_of_fuel()
        head += [*self.lines, "  br label %again"]
        self.out.text = "\n".join([*head, *start, *body, "}", ""])
        return self.out

    def take_fuel(self) -> None:
        """Into a variable of this function, as long as no other program goes on with it."""
        self.emit(f"store i64 {self.value(f'load i64, ptr {self.fuel_field()}')}, ptr %fuel")

    def fuel_field(self, offset: int = st.W_FUEL) -> str:
        worker = self.get_state(st.WORKER, "ptr")
        return self.value(f"getelementptr inbounds i8, ptr {worker}, i64 {offset}")

    def charge(self, instructions: int) -> None:
        """Pay for the stretch that begins here, or end the program (fuel.py)."""
        left = self.value("load i64, ptr %fuel")
        enough = self.value(f"icmp uge i64 {left}, {instructions}")
        label = self.label("paid")
        self.emit(f"br i1 {enough}, label %{label}, label %spent")
        self.start(label)
        self.emit(f"store i64 {self.value(f'sub i64 {left}, {instructions}')}, ptr %fuel")

    def out_of_fuel(self) -> list[str]:
        before, self.lines = self.lines, []
        self.start("spent")
        counter = self.fuel_field(st.W_SPENT)
        count = self.value(f"load i64, ptr {counter}")
        self.emit(f"store i64 {self.value(f'add i64 {count}, 1')}, ptr {counter}")
        if self.entry.memory_bytes is None:
            self.put_state(st.REDIRECT_HOW, "i32", str(st.HOW_SPENT))
        self.emit(f"ret i{self.entry.result_bits} {ABORTED}")
        made, self.lines = self.lines, before
        return made

    def clear_stack(self, depth: int) -> None:
        """What a frame may read before writing it is zero, never a stranger's data."""
        used = self.provenance.stack_used.get(depth, 0)
        if used:
            start = self.value(
                f"getelementptr inbounds i8, ptr %stack{depth}, i64 {STACK_SIZE_BYTES - used}")
            self.emit(f"call void @llvm.memset.p0.i64(ptr {start}, i8 0, i64 {used}, i1 false)")

    def lower_block(self, node: Node) -> None:
        self.frame = self.analysis.frames[node[0]]
        self.state = self.analysis.at[node].copy()
        self.start(self.block(node))
        slot = node[1]
        if slot >= HEADER:
            self.lower_loop_header(slot - HEADER)
            self.end_block()
            return
        while True:
            self.slot = slot
            if slot in self.charges:
                self.charge(self.charges[slot])
            insn = self.provenance.insns[slot]
            assert insn is not None
            match insn:
                case CallLocal():
                    callee = self.analysis.entered[(self.frame.id, slot)]
                    self.clear_stack(callee.depth)
                    self.emit(f"store i64 {MAY_GOTO_BUDGET}, ptr %may{callee.depth}")
                    entered = self.provenance.enter(self.state, callee)
                    self.emit(f"br label %{self.jump_to((callee.id, callee.entry), entered)}")
                    break
                case Exit():
                    self.lower_exit()
                    break
                case Call() if (self.frame.id, slot) in self.analysis.entered:
                    self.lower_loop(slot)
                    break
                case Jump(off):
                    self.branch_always(slot + 1 + off)
                    break
                case MayGoto(off):
                    left = self.value(f"load i64, ptr %may{self.frame.depth}")
                    over = self.value(f"icmp eq i64 {left}, 0")
                    fewer = self.value(f"sub i64 {left}, 1")
                    self.emit(f"store i64 {fewer}, ptr %may{self.frame.depth}")
                    self.branch_if(over, slot, slot + 1 + off)
                    break
                case JumpIf():
                    self.lower_branch(insn, slot)
                    break
                case _:
                    self.lower_insn(insn)
            following = slot + width(insn)
            if following in self.frame.leaders:
                self.branch_always(following)
                break
            slot = following
        self.end_block()

    def end_block(self) -> None:
        """Emit the edges that convert."""
        for edge, target, changes in self.pending:
            self.start(edge)
            for location, have, want in changes:
                self.convert(location, have, want)
            self.emit(f"br label %{self.block(target)}")
        self.pending.clear()

    def branch_always(self, target: int) -> None:
        self.emit(f"br label %{self.jump_to((self.frame.id, target), self.state)}")

    def branch_if(self, condition: str, slot: int, target: int) -> None:
        taken = self.jump_to((self.frame.id, target), self.state)
        falls = self.jump_to((self.frame.id, slot + 1), self.state)
        self.emit(f"br i1 {condition}, label %{taken}, label %{falls}")

    def lower_branch(self, insn: JumpIf, slot: int) -> None:
        """Only the sides that some path goes."""
        may_fall, may_take = self.provenance.sides(slot)
        target = slot + 1 + insn.off
        if not may_fall and not may_take:
            self.emit("unreachable")
            return
        condition = self.compare(insn, slot) if may_fall and may_take else ""
        no = self.provenance.refine(self.state, insn, False)
        yes = self.provenance.refine(self.state, insn, True)
        if no is not self.state or yes is not self.state:
            self.set_number(insn.dst, "0")  # what the register is where it was null
        labels = [self.jump_to((self.frame.id, where), state)
                  for where, state, may in ((target, yes, may_take), (slot + 1, no, may_fall))
                  if may]
        if len(labels) == 2:
            self.emit(f"br i1 {condition}, label %{labels[0]}, label %{labels[1]}")
        else:
            self.emit(f"br label %{labels[0]}")

    def lower_exit(self) -> None:
        if self.frame.parent is None:
            bits = self.entry.result_bits
            self.emit(f"ret i{bits} {self.narrow(self.number_of(0), bits)}")
            return
        left = self.provenance.leave(self.state, self.frame)
        if self.frame.callback:
            self.lower_loop_return(self.frame.parent, self.frame.call_slot, left)
            return
        target = (self.frame.parent.id, self.frame.call_slot + 1)
        self.emit(f"br label %{self.jump_to(target, left)}")

    def loop_location(self, frame: Frame, slot: int) -> str:
        return f"loop{frame.id}_{slot}"

    def lower_loop(self, slot: int) -> None:
        """A call that calls back: check, keep what the callback is handed and the map, and go to
        the header.  `count` is where the walk over a map is."""
        where = self.loop_location(self.frame, slot)
        if self.provenance.drains(slot):
            count = "0"
            error = self.lower_drain(slot, where, "drain_begin", self.number_of(4))
            self.copy(self.state.regs[1], self.reg(1), f"{where}_map")
        elif isinstance(self.state.regs[1], MAPS):
            count, error = "0", "0"
            self.copy(self.state.regs[1], self.reg(1), f"{where}_map")
        else:
            count = self.widen(self.narrow(self.number_of(1), 32), 32)
            many = self.value(f"icmp ugt i64 {count}, {MAX_LOOPS}")
            error = self.value(f"select i1 {many}, i64 -{E2BIG}, i64 0")
        if not self.provenance.drains(slot):
            flagged = self.value(f"icmp ne i64 {self.number_of(4)}, 0")
            error = self.value(f"select i1 {flagged}, i64 -{EINVAL}, i64 {error}")
        self.put(f"{where}_count", "i", count)
        self.put(f"{where}_round", "i", "0")
        self.copy(self.state.regs[3], self.reg(3), where)
        self.set_number(0, error)
        again = self.provenance.loop_again(self.state, self.state)
        over = self.provenance.loop_over(self.state)
        self.emit(f"br i1 {self.value(f'icmp eq i64 {error}, 0')}, "
                  f"label %{self.jump_to((self.frame.id, slot + HEADER), again)}, "
                  f"label %{self.jump_to((self.frame.id, slot + 1), over)}")

    def lower_loop_header(self, slot: int) -> None:
        """The next round, or the number of rounds as the result."""
        where = self.loop_location(self.frame, slot)
        callee = self.analysis.entered[(self.frame.id, slot)]
        done = self.get(f"{where}_round", "i")
        count = self.get(f"{where}_count", "i")
        if self.provenance.drains(slot):
            got = self.lower_drain(slot, where, "drain", done)
            more = self.value(f"icmp ne i64 {got}, 0")
            result = self.value(f"getelementptr inbounds i8, ptr %{where}_drain, i64 {RESULT}")
            done = self.value(f"load i64, ptr {result}, align 8")
            self.put(self.reg(1), "p", f"%{where}_drain")
            self.copy(self.state.regs[3], self.reg(3), self.reg(2))
        elif isinstance(self.state.regs[1], MAPS):
            more = self.lower_walk(slot, where, count)
        else:
            more = self.value(f"icmp ult i64 {done}, {count}")
            self.set_number(1, done)
            self.copy(self.state.regs[3], self.reg(3), self.reg(2))
        self.set_number(0, done)
        self.clear_stack(callee.depth)
        inner = self.provenance.call_back(self.state, callee)
        over = self.provenance.loop_over(self.state)
        self.emit(f"br i1 {more}, label %{self.jump_to((callee.id, callee.entry), inner)}, "
                  f"label %{self.jump_to((self.frame.id, slot + 1), over)}")

    def lower_drain(self, slot: int, where: str, operation: str, number: str) -> str:
        """Begin to drain a ring, or go on (maps/user_ringbuf.py)."""
        self.slot, helper = slot, replace(self.entry.helpers[DRAIN], map_op=operation)
        drain = f"%{where}_drain"
        self.variables[drain] = f"[{DRAIN_BYTES // 8} x i64]"
        return self.map_operation(helper, [f"ptr {drain}", f"i64 {number}"])

    def lower_walk(self, slot: int, where: str, cursor: str) -> str:
        """The next element's key and value into r2 and r3, what is handed into r4; is there one?"""
        self.slot, helper = slot, self.entry.helpers[FOR_EACH]
        found = f"%{where}_found"
        self.variables[found] = "[3 x i64]"
        following = self.map_operation(helper, [f"ptr {found}", f"i64 {cursor}"])
        self.put(f"{where}_count", "i", following)
        self.copy(self.state.regs[3], self.reg(3), self.reg(4))
        for number, offset in ((2, 0), (3, 8)):
            field = self.value(f"getelementptr inbounds i8, ptr {found}, i64 {offset}")
            self.put(self.reg(number), "p", self.value(f"load ptr, ptr {field}, align 8"))
        return self.value(f"icmp ne i64 {following}, -1")

    def lower_loop_return(self, frame: Frame, slot: int, left: State) -> None:
        """The callback returned: 0 for another round."""
        where = self.loop_location(frame, slot)
        draining = self.provenance.drains(slot)  # the header is told the answer
        goes_on = "true" if draining else self.value(f"icmp eq i64 {self.number_of(0)}, 0")
        done = (self.number_of(0) if draining else
                self.value(f"add i64 {self.get(f'{where}_round', 'i')}, 1"))
        self.put(f"{where}_round", "i", done)
        called = self.analysis.at[(frame.id, slot)]
        self.copy(called.regs[3], where, self.location(3, frame.depth))
        if isinstance(called.regs[1], MAPS):
            self.copy(called.regs[1], f"{where}_map", self.location(1, frame.depth))
        self.set_number(0, done)
        again = self.provenance.loop_again(left, called)
        over = self.provenance.loop_over(left)
        self.emit(f"br i1 {goes_on}, label %{self.jump_to((frame.id, slot + HEADER), again)}, "
                  f"label %{self.jump_to((frame.id, slot + 1), over)}")

    def compare(self, insn: JumpIf, slot: int) -> str:
        op, dst, src = insn.op, insn.dst, insn.src
        left = self.state.regs[dst]
        right = constant(src.value) if isinstance(src, Imm) else self.state.regs[src.n]
        if insn.is64 and isinstance(left, POINTERS) and op is not JmpOp.SET:
            if right == constant(0) and op in (JmpOp.EQ, JmpOp.NE):
                return self.value(f"icmp {_PREDICATES[op]} ptr {self.pointer(dst)}, null")
            if isinstance(right, POINTERS) and not isinstance(src, Imm):
                return self.value(
                    f"icmp {_PREDICATES[op]} ptr {self.pointer(dst)}, {self.pointer(src.n)}")
        bits = 64 if insn.is64 else 32
        one = self.narrow(self.number_of(dst), bits)
        other = self.narrow(self.operand(src), bits)
        if op is JmpOp.SET:
            common = self.value(f"and i{bits} {one}, {other}")
            return self.value(f"icmp ne i{bits} {common}, 0")
        return self.value(f"icmp {_PREDICATES[op]} i{bits} {one}, {other}")

    # --- instructions -------------------------------------------------------------------------

    def lower_insn(self, insn: Insn) -> None:
        """Emit one instruction that neither branches nor changes frames; advance the state."""
        before = self.state.copy()
        after = self.state.copy()
        self.provenance.step(after, self.slot, self.frame)
        match insn:
            case Alu(op, is64, dst, src):
                self.lower_alu(op, is64, dst, src, before, after)
            case Mov(is64, dst, src, sign_bits):
                self.lower_mov(is64, dst, src, sign_bits, after)
            case Neg(is64, dst):
                bits = 64 if is64 else 32
                value = self.narrow(self.number_of(dst), bits)
                self.set_number(dst, self.widen(self.value(f"sub i{bits} 0, {value}"), bits))
            case Swap(dst, bits, order):
                value = self.narrow(self.number_of(dst), bits)
                if order is not SwapOrder.LE:
                    value = self.value(f"call i{bits} @llvm.bswap.i{bits}(i{bits} {value})")
                self.set_number(dst, self.widen(value, bits))
            case LoadImm64(dst, number):
                self.set_number(dst, str(number))
            case LoadFunc(dst, off):
                self.set_number(dst, str(self.slot + 1 + off))
            case LoadMap():
                pass
            case LoadMapValue(dst, index, offset):
                base = self.region(index, "values")
                where = self.value(f"getelementptr inbounds i8, ptr {base}, i64 {offset}")
                self.put(self.reg(dst), "p", where)
            case Load(dst, src_reg, off, size, signed):
                self.lower_load(dst, src_reg, off, size, signed, after)
            case Store(dst, off, size, src):
                self.lower_store(dst, off, size, src, after)
            case Atomic():
                self.lower_atomic(insn)
            case LoadAcquire(dst, src_reg, off, size):
                where = self.address(src_reg, off)
                got = self.value(f"load atomic i{size * 8}, ptr {where} acquire, align {size}")
                self.set_number(dst, self.widen(got, size * 8))
            case StoreRelease(dst, off, size, src_reg):
                where = self.address(dst, off)
                value = self.narrow(self.number_of(src_reg), size * 8)
                self.emit(f"store atomic i{size * 8} {value}, ptr {where} release, align {size}")
            case Call(number):
                self.lower_call(self.provenance.helper(number, self.slot), after)
            case CallReg(register):
                helper = self.provenance.called(self.state, register, self.slot)
                self.lower_call(helper, after)
            case (CallKfunc() | CallLocal() | Exit() | Jump() | JumpIf()
                  | MayGoto()):
                raise AssertionError(f"{insn} does not come here")
            case _:
                assert_never(insn)
        self.state = after

    def lower_alu(self, op: AluOp, is64: bool, dst: int, src: Operand, before: State,
                  after: State) -> None:
        result = after.regs[dst]
        if not isinstance(result, Scalar):
            self.lower_pointer_sum(op, dst, src, before, result)
            return
        if result.const is not None:
            self.set_number(dst, str(result.const))
            return
        bits = 64 if is64 else 32
        left = self.narrow(self.number_of(dst), bits)
        right = self.narrow(self.operand(src), bits)
        self.set_number(dst, self.widen(self.arithmetic(op, bits, left, right), bits))

    def lower_pointer_sum(self, op: AluOp, dst: int, src: Operand, before: State,
                          result: Kind) -> None:
        if not components(result):
            return
        left = self.provenance.settled(before, self.slot, dst)
        if isinstance(left, Scalar):  # number + pointer: the pointer is in the source register
            assert not isinstance(src, Imm)
            pointer, by = self.pointer(src.n), self.number_of(dst)
        else:
            pointer, by = self.pointer(dst), self.operand(src)
        if op is not AluOp.ADD:
            by = self.value(f"sub i64 0, {by}")
        self.put(self.reg(dst), "p", self.value(f"getelementptr i8, ptr {pointer}, i64 {by}"))

    def arithmetic(self, op: AluOp, bits: int, x: str, y: str) -> str:
        t = f"i{bits}"
        match op:
            case AluOp.LSH | AluOp.RSH | AluOp.ARSH:
                by = self.value(f"and {t} {y}, {bits - 1}")
                return self.value(f"{_SIMPLE[op]} {t} {x}, {by}")
            case AluOp.DIV | AluOp.MOD:
                zero = self.value(f"icmp eq {t} {y}, 0")
                safe = self.value(f"select i1 {zero}, {t} 1, {t} {y}")
                word = "udiv" if op is AluOp.DIV else "urem"
                result = self.value(f"{word} {t} {x}, {safe}")
                instead = "0" if op is AluOp.DIV else x
                return self.value(f"select i1 {zero}, {t} {instead}, {t} {result}")
            case AluOp.SDIV | AluOp.SMOD:
                zero = self.value(f"icmp eq {t} {y}, 0")
                minus = self.value(f"icmp eq {t} {y}, -1")
                odd = self.value(f"or i1 {zero}, {minus}")
                safe = self.value(f"select i1 {odd}, {t} 1, {t} {y}")
                word = "sdiv" if op is AluOp.SDIV else "srem"
                result = self.value(f"{word} {t} {x}, {safe}")
                negated = self.value(f"sub {t} 0, {x}") if op is AluOp.SDIV else "0"
                result = self.value(f"select i1 {minus}, {t} {negated}, {t} {result}")
                instead = "0" if op is AluOp.SDIV else x
                return self.value(f"select i1 {zero}, {t} {instead}, {t} {result}")
            case _:
                return self.value(f"{_SIMPLE[op]} {t} {x}, {y}")

    def lower_mov(self, is64: bool, dst: int, src: Operand, sign_bits: int, after: State) -> None:
        result = after.regs[dst]
        if isinstance(result, Scalar):
            if result.const is not None:
                self.set_number(dst, str(result.const))
                return
            value = self.operand(src)
            if sign_bits:
                value = self.widen(self.narrow(value, sign_bits), sign_bits, signed=True)
            if not is64:
                value = self.widen(self.narrow(value, 32), 32)
            self.set_number(dst, value)
            return
        assert not isinstance(src, Imm)
        self.copy(result, self.reg(src.n), self.reg(dst))

    def copy(self, kind: Kind, source: str, target: str) -> None:
        for component in components(kind):
            self.put(target, component, self.get(source, component))

    def lower_load(self, dst: int, src: int, off: int, size: int, signed: bool,
                   after: State) -> None:
        kind, result = self.state.regs[src], after.regs[dst]
        if self.provenance.uses_context(self.slot):
            field_offset, is_pointer = st.XDP_MD[off]
            if is_pointer:
                self.put(self.reg(dst), "p", self.get_state(field_offset, "ptr"))
            else:
                self.set_number(dst, self.widen(self.get_state(field_offset, "i32"), 32, signed))
            return
        constant_value = self.facts.constants.get(self.slot)
        if constant_value is not None:
            self.set_number(dst, str(constant_value))
            return
        if not isinstance(result, Scalar):
            assert isinstance(kind, StackPtr) and kind.off is not None
            self.lower_fill(dst, kind.depth, kind.off + off, result, after)
            return
        where = self.address(src, off)
        got = self.value(f"load i{size * 8}, ptr {where}, align {self.alignment(kind, off, size)}"
                         f"{self.scope(src)}")
        self.set_number(dst, self.widen(got, size * 8, signed))

    def lower_fill(self, dst: int, depth: int, off: int, kind: Kind, after: State) -> None:
        """Load a spilled pointer; where it may be a number instead, that is in memory."""
        location = spill_location(depth, off)
        if isinstance(kind, Either):
            where = self.stack_address(depth, off)
            self.set_number(dst, self.value(f"load i64, ptr {where}, align 8"))
        if "p" in components(kind):
            self.put(self.reg(dst), "p", self.get(location, "p"))

    def alignment(self, kind: Kind, off: int, size: int) -> int:
        if isinstance(kind, StackPtr) and kind.off is not None:
            return next(a for a in (8, 4, 2, 1) if a <= size and (kind.off + off) % a == 0)
        return 1

    def lower_store(self, dst: int, off: int, size: int, src: Operand, after: State) -> None:
        kind = self.state.regs[dst]
        value_kind = constant(src.value) if isinstance(src, Imm) else self.state.regs[src.n]
        where = self.address(dst, off)
        align = self.alignment(kind, off, size)
        scope = self.scope(dst)
        if isinstance(value_kind, Scalar | Either) or size < 8:
            value = self.narrow(self.operand(src), size * 8)
            self.emit(f"store i{size * 8} {value}, ptr {where}, align {align}{scope}")
        else:
            assert not isinstance(src, Imm)
            self.emit(f"store ptr {self.pointer(src.n)}, ptr {where}, align {align}{scope}")
        if isinstance(kind, StackPtr) and kind.off is not None and not isinstance(src, Imm):
            slot = (kind.depth, kind.off + off)
            if slot in after.spills and "p" in components(value_kind):
                self.put(spill_location(*slot), "p", self.pointer(src.n))

    def lower_atomic(self, insn: Atomic) -> None:
        bits = insn.size * 8
        where = self.address(insn.dst, insn.off)
        value = self.narrow(self.number_of(insn.src), bits)
        if insn.op is AtomicOp.CMPXCHG:
            expected = self.narrow(self.number_of(0), bits)
            pair = self.value(f"cmpxchg ptr {where}, i{bits} {expected}, i{bits} {value} "
                              f"seq_cst seq_cst, align {insn.size}")
            old = self.value(f"extractvalue {{i{bits}, i1}} {pair}, 0")
            self.set_number(0, self.widen(old, bits))
            return
        old = self.value(f"atomicrmw {_RMW[insn.op]} ptr {where}, i{bits} {value} seq_cst, "
                         f"align {insn.size}")
        if insn.fetch:
            self.set_number(insn.src, self.widen(old, bits))

    # --- helpers ------------------------------------------------------------------------------

    def worker_id(self) -> str:
        return self.widen(self.get_state(st.WORKER_ID, "i32"), 32)

    def lower_call(self, helper: Helper, after: State) -> None:
        if number_is_tail_call(helper):
            self.lower_tail_call()
            return
        if helper.id in TIMERS:
            self.lower_timer(helper)
            return
        arguments: list[str] = []
        for position, arg in enumerate(helper.args, 1):
            match arg:
                case Arg.MAP:
                    pass
                case Arg.CTX:
                    arguments.append("ptr %state")
                case Arg.UNCHECKED if isinstance(self.state.regs[position], Uninit):
                    arguments.append("i64 0")
                case Arg.ANYTHING | Arg.UNCHECKED | Arg.SIZE | Arg.SIZE_OR_ZERO | Arg.CONST_SIZE:
                    arguments.append(f"i64 {self.number_of(position)}")
                case (Arg.MAP_KEY | Arg.MAP_VALUE | Arg.MEM | Arg.MEM_OR_NULL
                      | Arg.MEM_UNINIT | Arg.TEXT | Arg.MAP_VALUE_UNINIT | Arg.FIXED
                      | Arg.FIXED_UNINIT | Arg.MEM_UNINIT_OR_NULL | Arg.CONST_TEXT | Arg.RECORD
                      | Arg.DYNPTR | Arg.DYNPTR_UNINIT | Arg.DYNPTR_RELEASE | Arg.SPIN_LOCK):
                    null = isinstance(self.state.regs[position], Scalar)
                    arguments.append(f"ptr {'null' if null else self.address(position, 0)}")
                case (Arg.SOCKET | Arg.SOCKET_RELEASE | Arg.TIMER | Arg.CALLBACK
                      | Arg.STACK_OR_NULL | Arg.OBJECT):
                    raise self.provenance.unsupported(self.slot, f"bpf_{helper.name}")
                case _:
                    assert_never(arg)
        if helper.map_op is not None:
            result = self.map_operation(helper, arguments)
        else:
            assert helper.template is not None, helper.name
            if helper.needs_state:
                arguments.insert(0, "ptr %state")
            template = helper.template
            if self.program.has_frags and helper.frags_template is not None:
                template = helper.frags_template
            result = self.call_template(template, arguments)
        if helper.changes_packet:
            self.packet_pointers_to_numbers()
        match helper.ret:
            case Ret.SCALAR:
                self.set_number(0, result)
            case Ret.MAP_VALUE_OR_NULL | Ret.RECORD_OR_NULL | Ret.DATA_OR_NULL:
                self.put("r0", "p", result)
            case Ret.VOID:
                pass
            case Ret.SOCKET_OR_NULL | Ret.OBJECT:
                raise self.provenance.unsupported(self.slot, f"bpf_{helper.name}")
            case _:
                assert_never(helper.ret)

    def lower_timer(self, helper: Helper) -> None:
        """maps/timers.py, with what is known of the map, and the callback's number."""
        kind = self.state.regs[1]
        arguments = ["ptr %state", f"ptr {self.address(1, 0)}"]
        if helper.id == TIMER_SET_CALLBACK:
            callbacks = callbacks_of(self.provenance.insns, self.slot)
            timed = [n for n, spec in enumerate(self.maps) if spec.timer_at >= 0]
            if isinstance(kind, MapValue) and kind.map >= 0:
                timed = [kind.map]
            self.out.timers |= {(slot, index) for index in timed for slot in callbacks}
            number = self.value(f"shl i64 {self.number_of(2)}, {CALLBACK_SHIFT}")
            first = timer_number(self.number, (0, 0))
            arguments.append("i64 " + self.value(f"add i64 {number}, {first}"))
        elif helper.id == TIMER_INIT:
            index, to_live = self.timed_map(helper)
            arguments += [f"i64 {index}", f"i64 {to_live}", f"i64 {self.number_of(3)}"]
        else:
            arguments += [f"i64 {self.number_of(n)}" for n in range(2, 1 + len(helper.args))]
        template = (timers.INIT, timers.SET_CALLBACK, timers.START, timers.CANCEL)
        self.set_number(0, self.call_template(template[TIMERS.index(helper.id)], arguments))

    def timed_map(self, helper: Helper) -> tuple[str, str]:
        """The number of the map in r2, and how far before a timer the byte LIVE of its element is;
        0 in an array."""
        to_live: list[tuple[int, int]] = []
        for one in self.provenance.map_argument(self.state, helper, self.slot):
            if not isinstance(one, int):
                raise self.provenance.unsupported(self.slot, "a timer in a map of a map")
            spec = self.maps[one]
            far = spec.timer_at + value_offset(spec.key_size) - LIVE
            to_live.append((one, 0 if spec.type == MapType.ARRAY else far))
        if len(to_live) == 1:
            return str(to_live[0][0]), str(to_live[0][1])
        number = self.value(f"ptrtoint ptr {self.pointer(2)} to i64")
        index, chosen = self.value(f"sub i64 {number}, 1"), "0"
        for one, far in to_live:
            here = self.value(f"icmp eq i64 {index}, {one}")
            chosen = self.value(f"select i1 {here}, i64 {far}, i64 {chosen}")
        return index, chosen

    def call_template(self, template: Template, arguments: list[str]) -> str:
        self.use(template)
        return self.value(f"call {template.result} @{template.name}({', '.join(arguments)})")

    def map_operation(self, helper: Helper, arguments: list[str]) -> str:
        """The operation of the map's family; where the map differs by path, a switch over them."""
        assert helper.map_op is not None
        run = ["ptr %state"] if helper.needs_state else []
        own = [f"i64 {self.worker_id()}", *run, *arguments]
        position = 1 + helper.args.index(Arg.MAP)
        maps = self.provenance.map_argument(self.state, helper, self.slot)
        calls: list[tuple[str, str, Template]] = []
        done = self.label("called")
        if len(maps) > 1:
            number = self.value(f"ptrtoint ptr {self.pointer(position)} to i64")
            labels = [self.label("map") for _ in maps]
            cases = " ".join(f"i64 {int(one) + 1}, label %{label}"  # type: ignore[arg-type]
                             for one, label in zip(maps[1:], labels[1:], strict=True))
            self.emit(f"switch i64 {number}, label %{labels[0]} [ {cases} ]")
        else:
            labels = [""]
        for one, label in zip(maps, labels, strict=True):
            if label:
                self.start(label)
            if isinstance(one, int):
                spec = self.maps[one]
                leading = [f"ptr {self.region(one, p)}" if isinstance(p, str) else f"i64 {p}"
                           for p in family_of(spec).parameters(spec, self.workers)]
            else:
                spec, leading = one, self.described(one, position)
            operations = family_of(spec).operations
            template = operations[helper.map_op]
            extra = [f"i64 {one if isinstance(one, int) else -1}"] if (
                helper.map_op == "redirect") else []  # BPF_F_BROADCAST comes back to the map
            if self.program.has_frags:
                template = operations.get(f"{helper.map_op}_frags", template)
            calls.append((self.call_template(template, [*leading, *own, *extra]), label, template))
            if label:
                self.emit(f"br label %{done}")
        if len(calls) == 1:
            return calls[0][0]
        self.start(done)
        incoming = ", ".join(f"[ {result}, %{label} ]" for result, label, _ in calls)
        return self.value(f"phi {calls[0][2].result} {incoming}")

    def described(self, spec: MapSpec, position: int) -> list[str]:
        """The leading parameters of an inner map: what varies is read from its descriptor."""
        family = family_of(spec)
        address = self.pointer(position)
        leading = []
        kinds = next(iter(family.operations.values())).parameters
        for number, (known, kind) in enumerate(
                zip(parameters_of(family, spec, self.workers), kinds, strict=False)):
            if known is None:
                where = self.value(
                    f"getelementptr inbounds i8, ptr {address}, i64 {8 * number}")
                leading.append(f"{kind} " + self.value(f"load {kind}, ptr {where}, align 8"))
            else:
                leading.append(f"i64 {known}")
        return leading

    def packet_pointers_to_numbers(self) -> None:
        """Packet pointers in r6-r9 may be read as numbers once a helper moved the packet."""
        frames = (*self.state.saved, tuple(self.state.regs[6:10]))
        for depth, registers in enumerate(frames):
            for number, kind in enumerate(registers, 6):
                if isinstance(kind, Packet):
                    location = self.location(number, depth)
                    pointer = self.get(location, "p")
                    self.put(location, "i", self.value(f"ptrtoint ptr {pointer} to i64"))

    def lower_tail_call(self) -> None:
        if self.timer is not None:
            raise self.provenance.unsupported(self.slot, "bpf_tail_call in a timer's callback")
        if self.frame.parent is not None:
            raise self.provenance.unsupported(self.slot, "bpf_tail_call in a called function")
        kind = self.state.regs[2]
        if not isinstance(kind, MapPtr):
            raise self.provenance.unsupported(self.slot, "a PROG_ARRAY that differs by path")
        spec = self.maps[kind.map]
        made, miss = self.label("tail"), self.label("miss")
        index = self.narrow(self.number_of(3), 32)
        inside = self.value(f"icmp ult i32 {index}, {spec.max_entries}")
        count = self.get_state(st.TAIL_CALLS, "i32")
        allowed = self.value(f"icmp ult i32 {count}, {MAX_TAIL_CALLS}")
        self.emit(f"br i1 {self.value(f'and i1 {inside}, {allowed}')}, label %{made}, "
                  f"label %{miss}")
        self.start(made)
        wide = self.widen(index, 32)
        base = self.region(kind.map, "values")
        slot = self.value(f"getelementptr inbounds i32, ptr {base}, i64 {wide}")
        held = self.value(f"load atomic i32, ptr {slot} monotonic, align 4")
        cases, bodies = [], []
        for number in self.tail_targets:
            label = self.label("to")
            cases.append(f"i32 {number + 1}, label %{label}")
            bodies.append((label, number))
        self.emit(f"switch i32 {held}, label %{miss} [ {' '.join(cases)} ]")
        for label, number in bodies:
            self.start(label)
            self.put_state(st.TAIL_CALLS, "i32", self.value(f"add i32 {count}, 1"))
            if number == self.number:  # a call of this very program is a loop
                self.emit("br label %again")
                continue
            self.put_state(st.PROGRAM, "i32", str(number))
            if self.charges:
                left = self.value("load i64, ptr %fuel")
                self.emit(f"store i64 {left}, ptr {self.fuel_field()}")
            result = self.value(f'musttail call i32 @"prog.{number}"(ptr %state)')
            self.emit(f"ret i32 {result}")
        self.start(miss)


def timer_number(program: int, callback: tuple[int, int]) -> int:
    """What a callback, (slot, map index), of a program is called in its module."""
    slot, index = callback
    return program << 40 | slot << CALLBACK_SHIFT | index


def timer_name(program: int, callback: tuple[int, int]) -> str:
    return f"timer.{timer_number(program, callback)}"


SCOPES = 100  # first number of the alias scope metadata


def alias_scopes(maps: int) -> str:
    """Metadata: a scope for the packet, one for each map, one for the run state; each excludes
    all others.

    Object n has the list !(SCOPES + 2n) of itself and !(SCOPES + 2n + 1) of the others."""
    count = maps + 2
    domain, first = SCOPES - 1, SCOPES + 2 * count
    out = [f'!{domain} = distinct !{{!{domain}, !"xdpu"}}']
    for n in range(count):
        out.append(f"!{first + n} = distinct !{{!{first + n}, !{domain}}}")
        others = ", ".join(f"!{first + m}" for m in range(count) if m != n)
        out.append(f"!{SCOPES + 2 * n} = !{{!{first + n}}}")
        out.append(f"!{SCOPES + 2 * n + 1} = !{{{others}}}")
    return "\n".join(out)


def scope_of(number: int) -> str:
    return f", !alias.scope !{SCOPES + 2 * number}, !noalias !{SCOPES + 2 * number + 1}"


def spill_location(depth: int, off: int) -> str:
    return f"s{depth}_{-off}"
