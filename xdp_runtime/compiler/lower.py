"""Bytecode and facts -> LLVM IR, as text.

A program becomes one function `i32 @"prog.N"(ptr %state)`; its BPF-to-BPF calls are unfolded into
it (frames.py).  Every register is up to four stack variables that LLVM turns into SSA values:

    .i  the number          .p  the pointer
    .b  start of the object a pointer points into      .e  its end

Which of them are live follows from the register's kind (kinds.py): a number has .i, a packet or
stack pointer .p, a map value .p and .b, a pointer of several possible origins all three.  Pointers
are never integers, so alias analysis keeps working; where two paths bring different kinds, the
edge between the blocks converts.  A pointer spilled to the stack lives in variables of its own
(`%s<depth>_<offset>`), so spilling costs nothing once they are promoted.

The context is not memory: a load from `struct xdp_md` becomes a load from the run state
(state.py), an alloca of the loop that LLVM dissolves after inlining.

Accesses that the analysis could not bound are compared with the object's bounds at run time; when
one fails, the program stops with verdict ABORTED and its fault recorded in the run state.
Loops pay a budget on each backward jump, so no program can hold a worker.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

from xdp_runtime import state as st
from xdp_runtime.compiler.frames import Frame, Node, width
from xdp_runtime.compiler.kinds import (
    Ctx,
    Kind,
    MapPtr,
    MapValue,
    Mem,
    Packet,
    PacketEnd,
    Scalar,
    StackPtr,
    State,
    Uninit,
    constant,
)
from xdp_runtime.compiler.provenance import Analysis, Provenance, number_is_tail_call
from xdp_runtime.helpers.proto import Arg, Helper, Ret
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
from xdp_runtime.maps import family_of
from xdp_runtime.object import MapSpec, ProgramSpec
from xdp_runtime.state import Fault
from xdp_runtime.template import Template

LOOP_BUDGET = 1 << 20  # backward jumps of one run; a program the kernel accepts takes fewer
MAY_GOTO_BUDGET = 8 * 1024 * 1024  # BPF_MAX_LOOPS
_UNLIKELY = ", !prof !0"
_PREDICATES = {
    JmpOp.EQ: "eq", JmpOp.NE: "ne", JmpOp.GT: "ugt", JmpOp.GE: "uge", JmpOp.LT: "ult",
    JmpOp.LE: "ule", JmpOp.SGT: "sgt", JmpOp.SGE: "sge", JmpOp.SLT: "slt", JmpOp.SLE: "sle",
}
_SIMPLE = {
    AluOp.ADD: "add", AluOp.SUB: "sub", AluOp.MUL: "mul", AluOp.OR: "or", AluOp.AND: "and",
    AluOp.XOR: "xor", AluOp.LSH: "shl", AluOp.RSH: "lshr", AluOp.ARSH: "ashr",
}
_RMW = {AtomicOp.ADD: "add", AtomicOp.OR: "or", AtomicOp.AND: "and", AtomicOp.XOR: "xor",
        AtomicOp.XCHG: "xchg"}


@dataclass(slots=True)
class Lowered:
    """The text of one or more programs and what they need."""

    text: str
    templates: dict[str, Template] = field(default_factory=dict)
    regions: set[tuple[int, str]] = field(default_factory=set)  # (map index, region)


def components(kind: Kind) -> str:
    """Which variables a register of this kind lives in."""
    match kind:
        case Scalar():
            return "i"
        case StackPtr(_, off):
            return "p" if off is None else ""  # a known offset needs no variable
        case Packet() | PacketEnd():
            return "p"
        case MapValue():
            return "pb"
        case Mem():
            return "pbe"
        case Uninit() | Ctx() | MapPtr():
            return ""
        case _:
            assert_never(kind)


class Lowering:
    """Lowers one program.  `programs` maps the names that PROG_ARRAY slots may hold to numbers."""

    def __init__(self, program: ProgramSpec, number: int, maps: tuple[MapSpec, ...], workers: int,
                 tail_targets: Iterable[int]) -> None:
        self.program, self.number, self.maps, self.workers = program, number, maps, workers
        self.tail_targets = tuple(tail_targets)
        self.provenance = Provenance(program, maps)
        self.analysis: Analysis = self.provenance.analyse()
        self.out = Lowered("")
        self.lines: list[str] = []
        self.variables: dict[str, str] = {}  # alloca name -> LLVM type
        self.temporaries = 0
        self.labels = 0
        self.slot = 0
        self.frame: Frame = self.analysis.frames[0]
        self.state = State([Uninit()] * 11)

    # --- text ---------------------------------------------------------------------------------

    def emit(self, line: str) -> None:
        self.lines.append(f"  {line}")

    def value(self, expression: str) -> str:
        self.temporaries += 1
        name = f"%t{self.temporaries}"
        self.lines.append(f"  {name} = {expression}")
        return name

    def label(self, stem: str) -> str:
        self.labels += 1
        return f"{stem}.{self.labels}"

    def start(self, label: str) -> None:
        self.lines.append(f"{label}:")

    def guard(self, ok: str, fault: Fault) -> None:
        """Go on when `ok`, else stop the program with a fault."""
        good, bad = self.label("ok"), self.label("bad")
        self.emit(f"br i1 {ok}, label %{good}, label %{bad}{_UNLIKELY}")
        self.start(bad)
        self.put_state(st.FAULT, "i32", str(int(fault)))
        self.put_state(st.FAULT_INSN, "i32", str(self.slot))
        self.emit("br label %fault")
        self.start(good)

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
        kind = "i64" if component == "i" else "ptr"
        return self.value(f"load {kind}, ptr {self.variable(location, component)}")

    def put(self, location: str, component: str, value: str) -> None:
        kind = "i64" if component == "i" else "ptr"
        self.emit(f"store {kind} {value}, ptr {self.variable(location, component)}")

    def reg(self, number: int) -> str:
        return self.location(number, self.frame.depth)

    def get_state(self, offset: int, kind: str) -> str:
        return self.value(f"load {kind}, ptr {self.state_field(offset)}")

    def put_state(self, offset: int, kind: str, value: str) -> None:
        self.emit(f"store {kind} {value}, ptr {self.state_field(offset)}")

    def state_field(self, offset: int) -> str:
        return self.value(f"getelementptr inbounds i8, ptr %state, i64 {offset}")

    def stack_address(self, depth: int, off: int) -> str:
        self.provenance.touch_stack(depth, off)
        return self.value(
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
                return self.value(f"inttoptr i64 {index + 1} to ptr")
            case _:
                return self.get(self.reg(number), "p")

    def number_of(self, number: int) -> str:
        """The register as a 64-bit number, whatever it is."""
        kind = self.state.regs[number]
        if isinstance(kind, Scalar):
            if kind.const is not None:
                return str(kind.const)
            return self.get(self.reg(number), "i")
        return self.value(f"ptrtoint ptr {self.pointer(number)} to i64")

    def operand(self, src: Operand) -> str:
        if isinstance(src, Imm):
            return str(src.value & ((1 << 64) - 1))
        return self.number_of(src.n)

    def set_number(self, number: int, value: str) -> None:
        self.put(self.reg(number), "i", value)

    def widen(self, value: str, bits: int, signed: bool = False) -> str:
        if bits == 64:
            return value
        return self.value(f"{'sext' if signed else 'zext'} i{bits} {value} to i64")

    def narrow(self, value: str, bits: int) -> str:
        return value if bits == 64 else self.value(f"trunc i64 {value} to i{bits}")

    # --- memory -------------------------------------------------------------------------------

    def address(self, number: int, off: int, size: int | str) -> str:
        """A pointer to `size` bytes at register + off, proven or checked to be inside.

        `size` is a constant, or an i64 value of the program's own."""
        kind = self.state.regs[number]
        fixed = size if isinstance(size, int) else None
        match kind:
            case StackPtr(depth, int() as base) if fixed is not None:
                return self.stack_address(depth, base + off)
            case StackPtr(depth, _):
                self.provenance.touch_stack(depth, None)
                where = self.moved(self.pointer(number), off)
                self.check_inside(where, f"%stack{depth}", str(STACK_SIZE_BYTES), size)
                return where
            case MapValue(index, base, nullable):
                start = self.get(self.reg(number), "b")
                if nullable:
                    self.guard(self.value(f"icmp ne ptr {start}, null"), Fault.NULL)
                if base is not None:
                    where = self.value(f"getelementptr inbounds i8, ptr {start}, i64 {base + off}")
                    if fixed is not None:
                        return where
                else:
                    where = self.moved(self.pointer(number), off)
                self.check_inside(where, start, str(self.maps[index].value_size), size)
                return where
            case Packet(umax, _):
                where_from = self.pointer(number)
                end = self.get_state(st.DATA_END, "ptr")
                if umax is not None and off >= 0 and fixed is not None:
                    # at or behind the start and far from wrapping: one compare
                    last = self.value(
                        f"getelementptr nuw i8, ptr {where_from}, i64 {off + fixed}")
                    self.guard(self.value(f"icmp ule ptr {last}, {end}"), Fault.BOUNDS)
                    return self.value(f"getelementptr nuw i8, ptr {where_from}, i64 {off}")
                where = self.moved(where_from, off)
                start = self.get_state(st.DATA_META, "ptr")
                self.check_inside(where, start, self.distance(end, start), size)
                return where
            case Mem(nullable):
                start = self.get(self.reg(number), "b")
                if nullable:
                    self.guard(self.value(f"icmp ne ptr {start}, null"), Fault.NULL)
                where = self.moved(self.pointer(number), off)
                length = self.distance(self.get(self.reg(number), "e"), start)
                self.check_inside(where, start, length, size)
                return where
            case _:
                raise AssertionError(f"access through {kind} was refused before")

    def moved(self, pointer: str, off: int) -> str:
        if off == 0:
            return pointer
        return self.value(f"getelementptr i8, ptr {pointer}, i64 {off}")

    def distance(self, a: str, b: str) -> str:
        left = self.value(f"ptrtoint ptr {a} to i64")
        right = self.value(f"ptrtoint ptr {b} to i64")
        return self.value(f"sub i64 {left}, {right}")

    def check_inside(self, where: str, start: str, length: str, size: int | str) -> None:
        """0 <= where - start, where - start + size <= length; unsigned, nothing wraps."""
        at = self.distance(where, start)
        begins = self.value(f"icmp ule i64 {at}, {length}")
        left = self.value(f"sub i64 {length}, {at}")
        fits = self.value(f"icmp uge i64 {left}, {size}")
        self.guard(self.value(f"and i1 {begins}, {fits}"), Fault.BOUNDS)

    def aligned(self, number: int, where: str, off: int, size: int) -> None:
        """Atomic accesses are naturally aligned; what is not known to be is checked."""
        match self.state.regs[number]:
            case StackPtr(_, int() as base) | MapValue(_, int() as base, _) if (
                    (base + off) % size == 0):
                return
            case _:
                low = self.value(f"ptrtoint ptr {where} to i64")
                rest = self.value(f"and i64 {low}, {size - 1}")
                self.guard(self.value(f"icmp eq i64 {rest}, 0"), Fault.BOUNDS)

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
            have = state.spills[slot]
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
        if isinstance(have, Scalar):  # zero, which is also null
            for component in components(want):
                self.put(location, component, "null")
            return
        end: str | None = None
        match have:
            case StackPtr(depth, off):
                start = f"%stack{depth}"
                self.provenance.touch_stack(depth, None)
                if off is not None:
                    self.put(location, "p", self.stack_address(depth, off))
                if isinstance(want, StackPtr):
                    return
                length = STACK_SIZE_BYTES
            case MapValue(index, _, _):
                start, length = self.get(location, "b"), self.maps[index].value_size
            case Packet():
                start, end = self.get_state(st.DATA_META, "ptr"), self.get_state(st.DATA_END, "ptr")
                length = 0
            case _:
                raise AssertionError(f"{have} cannot become {want}")
        if end is None:
            end = self.value(f"getelementptr i8, ptr {start}, i64 {length}")
        self.put(location, "b", start)
        self.put(location, "e", end)

    def lower(self) -> Lowered:
        self.pending: list[tuple[str, Node, list[tuple[str, Kind, Kind]]]] = []
        for node in self.analysis.order:
            self.lower_block(node)
        body = self.lines
        # a program that nothing tail-calls is called from one place, the loop, and belongs there
        inline = " alwaysinline" if len(self.tail_targets) == 1 else ""
        head = [f'define internal i32 @"prog.{self.number}"(ptr noalias %state){inline} {{',
                "entry:"]
        for depth in sorted({frame.depth for frame in self.analysis.frames}):
            head.append(f"  %stack{depth} = alloca [{STACK_SIZE_BYTES} x i8], align 16")
        head += [f"  {name} = alloca {kind}" for name, kind in self.variables.items()]
        head += ["  %fuel = alloca i64", "  %may = alloca i64",
                 f"  store i64 {LOOP_BUDGET}, ptr %fuel",
                 f"  store i64 {MAY_GOTO_BUDGET}, ptr %may"]
        self.lines = []
        self.clear_stack(0)
        head += [*self.lines, "  br label %f0_0"]
        self.out.text = "\n".join([*head, *body, "fault:", "  ret i32 0", "}", ""])
        return self.out

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
        while True:
            self.slot = slot
            insn = self.provenance.insns[slot]
            assert insn is not None
            match insn:
                case CallLocal():
                    callee = self.analysis.entered[(self.frame.id, slot)]
                    self.clear_stack(callee.depth)
                    entered = self.provenance.enter(self.state, callee)
                    self.emit(f"br label %{self.jump_to((callee.id, callee.entry), entered)}")
                    break
                case Exit():
                    self.lower_exit()
                    break
                case Jump(off):
                    self.branch_always(slot, slot + 1 + off)
                    break
                case MayGoto(off):
                    left = self.value("load i64, ptr %may")
                    over = self.value(f"icmp eq i64 {left}, 0")
                    self.emit(f"store i64 {self.value(f'sub i64 {left}, 1')}, ptr %may")
                    self.branch_if(over, slot, slot + 1 + off)
                    break
                case JumpIf(op, is64, dst, src, off):
                    condition = self.compare(op, is64, dst, src)
                    self.provenance.step(self.state, slot, self.frame)
                    self.branch_if(condition, slot, slot + 1 + off, insn)
                    break
                case _:
                    self.lower_insn(insn)
            following = slot + width(insn)
            if following in self.frame.leaders:
                self.branch_always(slot, following)
                break
            slot = following
        for edge, target, changes in self.pending:
            self.start(edge)
            for location, have, want in changes:
                self.convert(location, have, want)
            self.emit(f"br label %{self.block(target)}")
        self.pending.clear()

    def spend_fuel(self) -> None:
        left = self.value("load i64, ptr %fuel")
        self.emit(f"store i64 {self.value(f'sub i64 {left}, 1')}, ptr %fuel")
        self.guard(self.value(f"icmp ne i64 {left}, 0"), Fault.BUDGET)

    def branch_always(self, slot: int, target: int) -> None:
        if target <= slot:
            self.spend_fuel()
        self.emit(f"br label %{self.jump_to((self.frame.id, target), self.state)}")

    def branch_if(self, condition: str, slot: int, target: int,
                  insn: JumpIf | None = None) -> None:
        if target <= slot:
            self.spend_fuel()
        yes = no = self.state
        if insn is not None:
            yes = self.provenance.refine(self.state, insn, True)
            no = self.provenance.refine(self.state, insn, False)
            if yes is not self.state:
                self.set_number(insn.dst, "0")  # what the register is where it was null
        taken = self.jump_to((self.frame.id, target), yes)
        falls = self.jump_to((self.frame.id, slot + 1), no)
        self.emit(f"br i1 {condition}, label %{taken}, label %{falls}")

    def lower_exit(self) -> None:
        if self.frame.parent is None:
            self.emit(f"ret i32 {self.narrow(self.number_of(0), 32)}")
            return
        left = self.provenance.leave(self.state, self.frame)
        target = (self.frame.parent.id, self.frame.call_slot + 1)
        self.emit(f"br label %{self.jump_to(target, left)}")

    def compare(self, op: JmpOp, is64: bool, dst: int, src: Operand) -> str:
        left_kind = self.state.regs[dst]
        right_kind = constant(src.value) if isinstance(src, Imm) else self.state.regs[src.n]
        both_pointers = not isinstance(left_kind, Scalar) and not isinstance(right_kind, Scalar)
        null_check = (op in (JmpOp.EQ, JmpOp.NE) and right_kind == constant(0)
                      and not isinstance(left_kind, Scalar))
        if is64 and null_check:
            return self.value(f"icmp {_PREDICATES[op]} ptr {self.pointer(dst)}, null")
        if is64 and both_pointers and op is not JmpOp.SET and not isinstance(src, Imm):
            return self.value(
                f"icmp {_PREDICATES[op]} ptr {self.pointer(dst)}, {self.pointer(src.n)}")
        bits = 64 if is64 else 32
        left = self.narrow(self.number_of(dst), bits)
        right = self.narrow(self.operand(src), bits)
        if op is JmpOp.SET:
            common = self.value(f"and i{bits} {left}, {right}")
            return self.value(f"icmp ne i{bits} {common}, 0")
        return self.value(f"icmp {_PREDICATES[op]} i{bits} {left}, {right}")

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
            case LoadMap():
                pass
            case LoadMapValue(dst, index, offset):
                base = self.region(index, "values")
                where = self.value(f"getelementptr inbounds i8, ptr {base}, i64 {offset}")
                self.put(self.reg(dst), "p", where)
                self.put(self.reg(dst), "b", base)
            case Load(dst, src_reg, off, size, signed):
                self.lower_load(dst, src_reg, off, size, signed, before, after)
            case Store(dst, off, size, src):
                self.lower_store(dst, off, size, src, after)
            case Atomic():
                self.lower_atomic(insn)
            case LoadAcquire(dst, src_reg, off, size):
                where = self.address(src_reg, off, size)
                self.aligned(src_reg, where, off, size)
                got = self.value(f"load atomic i{size * 8}, ptr {where} acquire, align {size}")
                self.set_number(dst, self.widen(got, size * 8))
            case StoreRelease(dst, off, size, src_reg):
                where = self.address(dst, off, size)
                self.aligned(dst, where, off, size)
                value = self.narrow(self.number_of(src_reg), size * 8)
                self.emit(f"store atomic i{size * 8} {value}, ptr {where} release, align {size}")
            case Call(number):
                self.lower_call(self.provenance.helper(number, self.slot), after)
            case (LoadFunc() | CallKfunc() | CallReg() | CallLocal() | Exit() | Jump() | JumpIf()
                  | MayGoto()):
                raise AssertionError(f"{insn} does not come here")
            case _:
                assert_never(insn)
        self.state = after

    def lower_alu(self, op: AluOp, is64: bool, dst: int, src: Operand, before: State,
                  after: State) -> None:
        result = after.regs[dst]
        left_kind = before.regs[dst]
        if not isinstance(result, Scalar):
            self.lower_pointer_sum(op, dst, src, left_kind, result)
            return
        if result.const is not None:
            self.set_number(dst, str(result.const))
            return
        bits = 64 if is64 else 32
        left = self.narrow(self.number_of(dst), bits)
        right = self.narrow(self.operand(src), bits)
        self.set_number(dst, self.widen(self.arithmetic(op, bits, left, right), bits))

    def lower_pointer_sum(self, op: AluOp, dst: int, src: Operand, left: Kind,
                          result: Kind) -> None:
        if isinstance(left, Scalar):  # number + pointer: the pointer is in the source register
            assert not isinstance(src, Imm)
            pointer_reg, by = src.n, self.number_of(dst)
        else:
            pointer_reg, by = dst, self.operand(src)
        if not components(result):
            return
        pointer = self.pointer(pointer_reg)
        others = {c: self.get(self.reg(pointer_reg), c) for c in components(result) if c != "p"}
        if op is AluOp.SUB:
            by = self.value(f"sub i64 0, {by}")
        bounded = isinstance(result, Packet) and result.umax is not None
        flags = "nuw " if bounded else ""
        self.put(self.reg(dst), "p",
                 self.value(f"getelementptr {flags}i8, ptr {pointer}, i64 {by}"))
        for component, value in others.items():
            self.put(self.reg(dst), component, value)

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

    def lower_load(self, dst: int, src: int, off: int, size: int, signed: bool, before: State,
                   after: State) -> None:
        kind, result = before.regs[src], after.regs[dst]
        if isinstance(kind, Ctx):
            field_offset, is_pointer = st.XDP_MD[off]
            if is_pointer:
                self.put(self.reg(dst), "p", self.get_state(field_offset, "ptr"))
            else:
                self.set_number(dst, self.widen(self.get_state(field_offset, "i32"), 32))
            return
        if not isinstance(result, Scalar):
            assert isinstance(kind, StackPtr) and kind.off is not None
            self.copy(result, spill_location(kind.depth, kind.off + off), self.reg(dst))
            return
        where = self.address(src, off, size)
        got = self.value(f"load i{size * 8}, ptr {where}, align {self.alignment(kind, off, size)}")
        self.set_number(dst, self.widen(got, size * 8, signed))

    def alignment(self, kind: Kind, off: int, size: int) -> int:
        match kind:
            case StackPtr(_, int() as base) | MapValue(_, int() as base, _):
                where = base + off
                return next(a for a in (8, 4, 2, 1) if a <= size and where % a == 0)
            case _:
                return 1

    def lower_store(self, dst: int, off: int, size: int, src: Operand, after: State) -> None:
        kind = self.state.regs[dst]
        value_kind = constant(src.value) if isinstance(src, Imm) else self.state.regs[src.n]
        where = self.address(dst, off, size)
        align = self.alignment(kind, off, size)
        if isinstance(value_kind, Scalar):
            value = self.narrow(self.operand(src), size * 8)
            self.emit(f"store i{size * 8} {value}, ptr {where}, align {align}")
            return
        assert not isinstance(src, Imm)
        pointer = self.pointer(src.n)
        self.emit(f"store ptr {pointer}, ptr {where}, align {align}")
        if isinstance(kind, StackPtr) and kind.off is not None:
            slot = (kind.depth, kind.off + off)
            if slot in after.spills:
                location = spill_location(*slot)
                for component in components(value_kind):
                    value = pointer if component == "p" else self.get(self.reg(src.n), component)
                    self.put(location, component, value)

    def lower_atomic(self, insn: Atomic) -> None:
        bits = insn.size * 8
        where = self.address(insn.dst, insn.off, insn.size)
        self.aligned(insn.dst, where, insn.off, insn.size)
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
        arguments: list[str] = []
        target = -1
        for position, arg in enumerate(helper.args, 1):
            match arg:
                case Arg.MAP:
                    kind = self.state.regs[position]
                    assert isinstance(kind, MapPtr)
                    target = kind.map
                case Arg.CTX:
                    arguments.append("ptr %state")
                case Arg.UNCHECKED if isinstance(self.state.regs[position], Uninit):
                    arguments.append("i64 0")
                case Arg.ANYTHING | Arg.UNCHECKED | Arg.SIZE | Arg.SIZE_OR_ZERO:
                    arguments.append(f"i64 {self.number_of(position)}")
                case Arg.MAP_KEY:
                    arguments.append(f"ptr {self.address(position, 0, self.maps[target].key_size)}")
                case Arg.MAP_VALUE:
                    size = self.maps[target].value_size
                    arguments.append(f"ptr {self.address(position, 0, size)}")
                case Arg.MEM | Arg.MEM_OR_NULL | Arg.MEM_UNINIT:
                    arguments.append(f"ptr {self.memory_argument(position)}")
                case _:
                    assert_never(arg)
        if helper.map_op is not None:
            spec = self.maps[target]
            family = family_of(spec)
            template = family.operations[helper.map_op]
            leading = [f"ptr {self.region(target, p)}" if isinstance(p, str) else f"i64 {p}"
                       for p in family.parameters(spec, self.workers)]
            arguments = [*leading, f"i64 {self.worker_id()}", *arguments]
        else:
            assert helper.template is not None, helper.name
            template = helper.template
            if helper.needs_state:
                arguments.insert(0, "ptr %state")
        self.use(template)
        result = self.value(f"call {template.result} @{template.name}({', '.join(arguments)})")
        match helper.ret:
            case Ret.SCALAR:
                self.set_number(0, result)
            case Ret.MAP_VALUE_OR_NULL:
                self.put("r0", "p", result)
                self.put("r0", "b", result)
            case Ret.VOID:
                pass
            case _:
                assert_never(helper.ret)

    def memory_argument(self, position: int) -> str:
        length = self.state.regs[position + 1]
        kind = self.state.regs[position]
        if isinstance(kind, Scalar):
            return "null"
        assert isinstance(length, Scalar)
        size: int | str = (length.const if length.const is not None
                           else self.number_of(position + 1))
        return self.address(position, 0, size)

    def lower_tail_call(self) -> None:
        if self.frame.parent is not None:
            raise self.provenance.refuse(
                self.slot, "bpf_tail_call inside a called function is not supported yet")
        kind = self.state.regs[2]
        assert isinstance(kind, MapPtr)
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
            result = self.value(f'musttail call i32 @"prog.{number}"(ptr %state)')
            self.emit(f"ret i32 {result}")
        self.start(miss)


def spill_location(depth: int, off: int) -> str:
    return f"s{depth}_{-off}"
