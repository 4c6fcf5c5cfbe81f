"""Verified bytecode -> LLVM IR, as text.

A program becomes one function `i32 @"prog.N"(ptr %state)`; its BPF-to-BPF calls are unfolded into
it (frames.py).  Here is the walk over its blocks and instructions; what they become is, from the
ground up:

    writer.py       text, temporaries, variables     edges.py       branches between blocks
    registers.py    numbers and pointers             calls.py       helpers, operations of maps
    arithmetic.py   numbers and comparisons          tail_calls.py  from program to program
    accesses.py     loads, stores, atomics           loops.py       helpers that call back
    scopes.py       what cannot alias                charges.py     counted instructions
    arenas.py       what works on an arena           guards.py      heads of loops

There are no run-time checks: the verifier has proven every access on every path, and that every
path ends.  Its facts say more: branches that are never taken are not emitted, loads from frozen
maps are constants, and accesses carry the alias scope of their object (packet, each map), so that
LLVM keeps values in registers across stores to others.  `python -m bench.facts` measures each.
That packet pointers do not wrap is proven as well; all that LLVM needs of it is where addresses end
(Arithmetic.place).
"""

from __future__ import annotations

from typing import assert_never

from xdp_runtime.compiler.arenas import Arenas
from xdp_runtime.compiler.calls import timer_name
from xdp_runtime.compiler.frames import HEADER, Node, width
from xdp_runtime.compiler.guards import guards_of
from xdp_runtime.compiler.registers import Lowered
from xdp_runtime.compiler.tail_calls import TailCalls
from xdp_runtime.compiler.writer import MERGED
from xdp_runtime.isa import (
    STACK_SIZE_BYTES,
    AddressCast,
    Alu,
    Atomic,
    Call,
    CallKfunc,
    CallLocal,
    CallReg,
    Exit,
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
    Reg,
    Store,
    StoreRelease,
    Swap,
    SwapOrder,
)

# comparisons with the packet's end: is a pointer on the left inside where the jump is taken?
_INSIDE = {JmpOp.GT: False, JmpOp.GE: False, JmpOp.LT: True, JmpOp.LE: True}


class Lowering(Arenas, TailCalls):
    """Lowers one program.  `programs` maps the names that PROG_ARRAY slots may hold to numbers."""

    def lower(self) -> Lowered:
        self.pending = []
        self.loops = any(isinstance(insn, Jump | JumpIf) and insn.off < 0
                         for insn in self.provenance.insns)
        self.guards = guards_of(self.analysis.frames, self.provenance.insns, self.facts)
        self.joined: set[Node] = set()  # blocks that became part of the one before
        for node in self.analysis.order:
            if node in self.joined:
                continue
            self.lower_block(node)
            if node in self.guards:
                self.entering = True
                self.lower_block(node)
                self.entering = False
        body = self.lines
        self.lines = []
        self.start("again")
        self.begin_frame(0)
        if self.timer is not None:
            self.put("r2", "p", "%key")
            self.put("r3", "p", "%value")
        elif self.entry.memory_bytes:
            self.put("r1", "p", "%memory")
        self.emit(f"br label %{self.block((0, self.analysis.frames[0].entry))}")
        start, self.lines = self.lines, []
        # a program that no other tail-calls is called from one place, the loop, and belongs there
        inline = f" {MERGED}" if len(self.tail_targets) == 1 and not self.recursive else ""
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

    def lower_block(self, node: Node) -> None:
        self.frame = self.analysis.frames[node[0]]
        self.state = self.analysis.at[node].copy()
        self.node = node
        self.start(f"{self.block(node)}.first" if self.entering else self.block(node))
        slot = node[1]
        if slot >= HEADER:
            self.lower_loop_header(slot - HEADER)
            self.end_block()
            return
        while True:
            self.slot = slot
            if not self.facts.visited[slot]:  # a callback of no rounds
                self.emit("unreachable")
                break
            if slot in self.charges:
                self.charge(self.charges[slot])
            insn = self.provenance.insns[slot]
            assert insn is not None
            match insn:
                case CallLocal():
                    callee, = self.analysis.entered[(self.frame.id, slot)]
                    self.begin_frame(callee.depth)
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
                    following = slot + 1 + off
                case MayGoto(off):
                    left = self.value(f"load i64, ptr %may{self.frame.depth}")
                    over = self.value(f"icmp eq i64 {left}, 0")
                    fewer = self.value(f"sub i64 {left}, 1")
                    self.emit(f"store i64 {fewer}, ptr %may{self.frame.depth}")
                    self.branch_if(over, slot, slot + 1 + off)
                    break
                case JumpIf():
                    only = self.lower_branch(insn, slot)
                    if only is None:
                        break
                    following = only
                case _:
                    self.lower_insn(insn)
                    following = slot + width(insn)
            if following in self.frame.starts:
                self.forget_unread(self.provenance.read_from(following))
                if not self.goes_on(following):
                    self.branch_always(following)
                    break
            slot = following
        self.end_block()

    def goes_on(self, slot: int) -> bool:
        """Make the block that begins there part of this one, if only this one leads there, and
        neither is lowered twice."""
        node = (self.frame.id, slot)
        if (slot < self.slot or self.analysis.source[node] != self.node
                or self.guards & {node, self.node}):
            return False
        self.node = node
        self.joined.add(node)
        return True

    def lower_branch(self, insn: JumpIf, slot: int) -> int | None:
        """Only the sides that some path goes; if that is one, where it goes."""
        may_fall, may_take = self.provenance.sides(slot)
        target = slot + 1 + insn.off
        if not may_fall and not may_take:
            self.emit("unreachable")
            return None
        condition = self.compare(insn, slot) if may_fall and may_take else ""
        no = self.provenance.refine(self.state, insn, False)
        yes = self.provenance.refine(self.state, insn, True)
        if no is not self.state or yes is not self.state:
            self.set_number(insn.dst, "0")  # what the register is where it was null
        if not condition:
            self.state = yes if may_take else no
            return target if may_take else slot + 1
        self.forget_unread(self.provenance.read_from(target, slot + 1))
        self.lower_sides(insn, slot, condition, self.jump_to((self.frame.id, target), yes),
                         self.jump_to((self.frame.id, slot + 1), no))
        return None

    def lower_sides(self, insn: JumpIf, slot: int, condition: str, taken: str, falls: str) -> None:
        """In a program with loops LLVM is told which bytes a comparison with the packet's end shows
        to exist: it may then load what the program does not load on every path, and loops with a
        second exit become vector code.  Not where a loop goes round: to say something there would
        part the comparison from the branch back."""
        shown, op = self.provenance.facts.edges.get(slot, 0), insn.op
        on = slot + 1 + (insn.off if op in _INSIDE and _INSIDE[op] == (shown > 0) else 0)
        target = self.provenance.insns[on]
        around = on <= slot or (isinstance(target, Jump) and target.off < 0) or (
            self.node in self.guards and not self.entering)
        if shown == 0 or op not in _INSIDE or not self.loops or around:
            self.emit(f"br i1 {condition}, label %{taken}, label %{falls}")
            return
        assert isinstance(insn.src, Reg)
        end = self.pointer(insn.dst if shown > 0 else insn.src.n)
        start = self.value(f"getelementptr i8, ptr {end}, i64 {-abs(shown)}")
        known = self.label("known")
        if _INSIDE[op] == (shown > 0):
            inside, taken = taken, known
        else:
            inside, falls = falls, known
        self.emit(f"br i1 {condition}, label %{taken}, label %{falls}")
        self.start(known)
        self.emit(f'call void @llvm.assume(i1 true) [ "dereferenceable"(ptr {start}, '
                  f"i64 {abs(shown)}) ]")
        self.emit(f"br label %{inside}")

    def lower_exit(self) -> None:
        if self.frame.parent is None:
            bits = self.entry.result_bits
            self.emit(f"ret i{bits} {self.narrow(self.number_of(0), bits)}")
            return
        self.lower_return()

    def lower_insn(self, insn: Insn) -> None:
        """Emit one instruction that neither branches nor changes frames; advance the state."""
        before, after = self.state, self.state.copy()
        self.provenance.step(after, self.slot, self.frame)
        if self.provenance.arena >= 0 and self.lower_in_arena(insn, after):
            self.state = after
            return
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
            case (AddressCast() | CallKfunc() | CallLocal() | Exit() | Jump() | JumpIf()
                  | MayGoto()):
                raise AssertionError(f"{insn} does not come here")
            case _:
                assert_never(insn)
        self.state = after
