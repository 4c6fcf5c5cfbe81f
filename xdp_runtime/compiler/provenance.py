"""The forward pass: which representation does each register need, at each instruction?

`Provenance.step` is the meaning of one instruction on kinds (kinds.py); `analyse` runs it to a
fixed point over all frames (frames.py), along the edges that the verifier found possible.
Lowering replays `step` inside each block, so what it emits and what was analysed cannot drift
apart.  Nothing is refused here for safety; what lowering cannot express yet is, clearly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import assert_never

from xdp_runtime.arena import arenas_of, cast, start_of
from xdp_runtime.compiler.frames import (
    HEADER,
    TAIL_CALL,
    Frame,
    Node,
    successors,
    unfold,
    width,
)
from xdp_runtime.compiler.kinds import (
    NOTHING,
    NUMBER,
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
    constant,
    definition_of,
    maps_of,
)
from xdp_runtime.entry import XDP, Entry
from xdp_runtime.errors import LoadError
from xdp_runtime.helpers import kernel_name
from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.helpers.refused import REFUSED
from xdp_runtime.isa import (
    STACK_SIZE_BYTES,
    AddressCast,
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
)
from xdp_runtime.object import MapSpec, MapType, ProgramSpec
from xdp_runtime.state import XDP_MD
from xdp_runtime.verifier.facts import NUMBER as SEEN_NUMBER
from xdp_runtime.verifier.facts import POINTER as SEEN_POINTER
from xdp_runtime.verifier.facts import Facts

DRAIN = 209
MAPS = (MapPtr, MapOneOf, InnerMap)
OF_MAPS = (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS)
WRITTEN = (Arg.MEM_UNINIT, Arg.MEM_UNINIT_OR_NULL, Arg.MAP_VALUE_UNINIT, Arg.FIXED_UNINIT,
           Arg.BUFFER_OR_NULL)
_SEVERAL = (-1, -1)


@dataclass(slots=True)
class Analysis:
    frames: list[Frame]
    entered: dict[Node, tuple[Frame, ...]]
    at: dict[Node, State]  # state on entry of each reachable block
    order: list[Node]  # reachable blocks, frame by frame in program order
    stack_used: dict[int, int]  # call depth -> bytes of the frame that are ever addressed
    source: dict[Node, Node]  # the block that leads to a block, _SEVERAL if they are more


class Provenance:
    """The analysis of one verified program."""

    def __init__(self, program: ProgramSpec, maps: tuple[MapSpec, ...], facts: Facts,
                 entry: Entry = XDP, timer: tuple[int, int] | None = None) -> None:
        """`timer`: not the program, but the function at this slot, for timers of this map."""
        self.program, self.maps, self.facts, self.entry = program, maps, facts, entry
        self.timer = timer
        self.insns = program.insns
        self.arena = next(iter(arenas_of(self.insns, maps)), -1)  # which map, -1: none
        # of an access to an arena that comes to nothing the register is read that it would write
        self.live = facts.live if self.arena < 0 else []
        self.stack_used: dict[int, int] = {}

    def unsupported(self, slot: int, why: str) -> LoadError:
        return LoadError(f"{self.program.name}: instruction {slot}", f"{why} is not supported yet")

    def operand(self, state: State, src: Operand) -> Kind:
        return constant(src.value) if isinstance(src, Imm) else state.regs[src.n]

    def settled(self, state: State, slot: int, reg: int) -> Kind:
        """The register's kind as this instruction uses it: `Either` only where it is a pointer
        on one path to here and a number on another."""
        kind = state.regs[reg]
        if isinstance(kind, Either):
            shape = self.facts.shape.get((slot, reg), SEEN_POINTER)
            if not shape & SEEN_POINTER:
                return NUMBER
            return kind if shape & SEEN_NUMBER else Mem()
        return kind

    def uses_context(self, slot: int) -> bool:
        return self.facts.context_at.get(slot, False)

    def uses_arena(self, slot: int) -> bool:
        return self.facts.arena_at.get(slot, False)

    # --- the stack ----------------------------------------------------------------------------

    def touch_stack(self, depth: int, off: int | None) -> None:
        used = STACK_SIZE_BYTES if off is None else min(max(-off, 0), STACK_SIZE_BYTES)
        self.stack_used[depth] = max(self.stack_used.get(depth, 0), used)

    def touch(self, kind: Kind, off: int) -> None:
        if isinstance(kind, StackPtr):
            self.touch_stack(kind.depth, None if kind.off is None else kind.off + off)

    def written(self, state: State, kind: Kind, off: int, size: int | None, slot: int) -> None:
        """Spilled pointers that a write through `kind` overwrites are forgotten.  Those that it may
        overwrite are doubted: memory has them, if it did not."""
        self.touch(kind, off)
        if isinstance(kind, StackPtr) and kind.off is not None and size is not None:
            state.forget_spills(kind.depth, kind.off + off, kind.off + off + size)
            return
        known = self.facts.written
        extent = known.get(slot) if known is not None else (
            (-STACK_SIZE_BYTES, 0) if isinstance(kind, StackPtr | Mem | Either) else None)
        if extent is not None:
            state.doubt_spills(kind.depth if isinstance(kind, StackPtr) else None, *extent)

    # --- one instruction ----------------------------------------------------------------------

    def step(self, state: State, slot: int, frame: Frame) -> None:
        """Change `state` from before to after the instruction at `slot`.

        Local calls and exits are left to `analyse`: they change the frame."""
        insn = self.insns[slot]
        assert insn is not None
        regs = state.regs
        match insn:
            case Alu(op, is64, dst, src):
                regs[dst] = self._alu(state, op, is64, dst, src, slot)
            case Mov(is64, dst, src, sign_bits):
                kind = self.operand(state, src)
                if is64 and not sign_bits:
                    regs[dst] = kind
                elif isinstance(kind, Scalar) and kind.const is not None and not sign_bits:
                    regs[dst] = constant(kind.const & 0xFFFFFFFF)
                else:
                    regs[dst] = NUMBER
            case Neg(_, dst) | Swap(dst, _, _):
                regs[dst] = NUMBER
            case LoadImm64(dst, value):
                regs[dst] = constant(value)
            case LoadMap(dst, index):
                regs[dst] = MapPtr(index)
            case AddressCast(dst, src_reg, to_user):
                kind, regs[dst] = regs[src_reg], NUMBER
                if isinstance(kind, Scalar) and kind.const is not None and self.arena >= 0:
                    regs[dst] = constant(cast(self.maps[self.arena], kind.const, to_user))
            case LoadMapValue(dst, index, offset) if self.maps[index].type == MapType.ARENA:
                regs[dst] = constant(start_of(self.maps[index]) + offset)
            case LoadMapValue(dst, index, _):
                regs[dst] = MapValue(index)
            case LoadFunc(dst, off):
                regs[dst] = constant(slot + 1 + off)
            case Load(dst, src_reg, off, size, _):
                regs[dst] = self._load(state, src_reg, off, size, slot)
            case LoadAcquire(dst, src_reg, off, size):
                regs[dst] = self._load(state, src_reg, off, size, slot)
            case Store(dst, off, size, src):
                self._store(state, dst, off, size, self.operand(state, src), slot)
            case StoreRelease(dst, off, size, src_reg):
                self._store(state, dst, off, size, regs[src_reg], slot)
            case Atomic(atomic_op, size, dst, off, src_reg, fetch):
                self.written(state, regs[dst], off, size, slot)
                if atomic_op is AtomicOp.CMPXCHG:
                    regs[0] = NUMBER
                elif fetch:
                    regs[src_reg] = NUMBER
            case Jump() | JumpIf() | MayGoto():
                pass
            case Call(number):
                self._call(state, self.helper(number, slot), slot)
            case CallKfunc():
                raise self.unsupported(slot, "a kernel function")
            case CallReg(register):
                self._call(state, self.called(state, register, slot), slot)
            case CallLocal() | Exit():
                raise AssertionError("changes the frame")
            case _:
                assert_never(insn)

    def _alu(self, state: State, op: AluOp, is64: bool, dst: int, src: Operand, slot: int) -> Kind:
        if self.uses_arena(slot):
            return NUMBER
        left = self.settled(state, slot, dst)
        right = constant(src.value) if isinstance(src, Imm) else self.settled(state, slot, src.n)
        if isinstance(left, Scalar) and isinstance(right, Scalar):
            if isinstance(src, Reg) and src.n == dst and op in (AluOp.XOR, AluOp.SUB):
                return constant(0)
            return _fold(op, left, right, is64)
        if isinstance(left, Either) or isinstance(right, Either):
            return self._sum_of_either(op, is64, left, right, slot)
        if not is64 or (isinstance(left, POINTERS) and isinstance(right, POINTERS)):
            return NUMBER  # a distance, or the lower half of one
        if isinstance(left, Scalar):
            left, right = right, left
        if isinstance(left, StackPtr):
            step = right.const if isinstance(right, Scalar) else None
            if step is None or left.off is None:
                self.touch_stack(left.depth, None)
                return StackPtr(left.depth, None)
            step = step - (1 << 64) if step >> 63 else step
            moved = left.off - step if op is AluOp.SUB else left.off + step
            self.touch_stack(left.depth, moved)
            return StackPtr(left.depth, moved)
        return left

    def _sum_of_either(self, op: AluOp, is64: bool, left: Kind, right: Kind, slot: int) -> Kind:
        """What pointers and numbers give where a path says which is which.  A pointer is on one
        side of a sum only, and never taken from a number."""
        if not is64 or op not in (AluOp.ADD, AluOp.SUB):
            return NUMBER
        if op is AluOp.SUB:
            return NUMBER if isinstance(right, POINTERS) or isinstance(left, Scalar) else Either()
        if isinstance(left, POINTERS) or isinstance(right, POINTERS):
            moved = left if isinstance(left, POINTERS) else right
            if not isinstance(moved, StackPtr):
                return moved
            self.touch_stack(moved.depth, None)
            return StackPtr(moved.depth, None)
        if isinstance(left, Either) and isinstance(right, Either):
            raise self.unsupported(slot, "a sum whose pointer is in either register, by path,")
        return Either()

    def _load(self, state: State, src: int, off: int, size: int, slot: int) -> Kind:
        kind = state.regs[src]
        if self.uses_context(slot):
            return Packet() if XDP_MD[off][1] else NUMBER
        self.touch(kind, off)
        if size == 8 and isinstance(kind, StackPtr) and kind.off is not None:
            return state.spills.get((kind.depth, kind.off + off), NUMBER)
        return Either() if size == 8 and slot in self.facts.fills else NUMBER

    def _store(self, state: State, dst: int, off: int, size: int, value: Kind, slot: int) -> None:
        kind = state.regs[dst]
        self.written(state, kind, off, size, slot)
        if size == 8 and not isinstance(value, Scalar) and isinstance(kind, StackPtr) and (
                kind.off is not None):
            state.spills[(kind.depth, kind.off + off)] = value

    # --- helpers ------------------------------------------------------------------------------

    def helper(self, number: int, slot: int) -> Helper:
        helper = self.entry.helpers.get(number)
        if helper is None or not helper.runs:
            why = "is not supported" if helper is None else "is verified but cannot run yet"
            if number in REFUSED:
                why = f"cannot run in user space: {REFUSED[number]}"
            raise LoadError(f"{self.program.name}: instruction {slot}",
                            f"helper {kernel_name(number)} (number {number}) {why}",
                            "see the helper table in the documentation")
        return helper

    def called(self, state: State, register: int, slot: int) -> Helper:
        """The helper whose number a register holds."""
        kind = state.regs[register]
        if not isinstance(kind, Scalar) or kind.const is None:
            raise self.unsupported(slot, "a call through a register that is not a constant")
        return self.helper(kind.const, slot)

    def map_argument(self, state: State, helper: Helper, slot: int) -> list[int | MapSpec]:
        """What the map argument may be: an inner one by its definition, then maps by number."""
        for position, arg in enumerate(helper.args, 1):
            if arg is Arg.MAP:
                kind = state.regs[position]
                definition, maps = definition_of(kind), sorted(maps_of(kind))
                if definition is None and not maps:
                    raise self.unsupported(slot, f"{helper.name} on a map that differs by path")
                return [*maps] if definition is None else [definition, *maps]
        return []

    def _result(self, helper: Helper, maps: list[int | MapSpec], slot: int) -> Kind:
        """What r0 is after a call on these maps."""
        if helper.ret not in (Ret.MAP_VALUE_OR_NULL, Ret.RECORD_OR_NULL, Ret.DATA_OR_NULL):
            return NUMBER
        definitions = set()
        for one in maps:
            if isinstance(one, int) and self.maps[one].type in OF_MAPS:
                inner = self.maps[one].inner
                assert inner is not None
                definitions.add(replace(inner, name="", key_type_id=0, value_type_id=0))
        if len(definitions) > 1:
            raise self.unsupported(slot, f"{helper.name} on maps of different maps")
        if definitions:
            return InnerMap(definitions.pop())
        return MapValue(maps[0] if len(maps) == 1 and isinstance(maps[0], int) else -1)

    def _call(self, state: State, helper: Helper, slot: int) -> None:
        result = self._result(helper, self.map_argument(state, helper, slot), slot)
        for position, arg in enumerate(helper.args, 1):
            self.touch(state.regs[position], 0)
            if arg in WRITTEN:
                self.written(state, state.regs[position], 0, None, slot)
            elif arg is Arg.DYNPTR_UNINIT:
                self.written(state, state.regs[position], 0, 16, slot)
            elif arg in (Arg.ITERATOR_UNINIT, Arg.IRQ_FLAGS_UNINIT):
                self.written(state, state.regs[position], 0, 8, slot)
        state.regs[1:6] = [NOTHING] * 5
        state.regs[0] = result
        if helper.changes_packet:
            _forget_packet(state)

    # --- the fixed point ----------------------------------------------------------------------

    def analyse(self) -> Analysis:
        first = self.timer[0] if self.timer is not None else 0
        frames, entered = unfold(self.insns, first, self.facts.callbacks)
        start = State([NOTHING] * 11)
        start.regs[10] = StackPtr(0, 0)
        given = self.entry.memory_bytes
        if self.timer is not None:
            start.regs[1:4] = MapPtr(self.timer[1]), Mem(), MapValue(self.timer[1])
        elif given is None:
            start.regs[1] = Ctx()
        else:
            start.regs[1:3] = Mem() if given else constant(0), constant(given)
        at: dict[Node, State] = {(0, first): start}
        source: dict[Node, Node] = {(0, first): _SEVERAL}  # a tail call may lead there
        todo: list[Node] = [(0, first)]  # a heap: what comes first first, so that few come twice
        while todo:
            node = heappop(todo)
            if todo and todo[0] == node:
                continue
            frame = frames[node[0]]
            for target, state in self.flow(frame, node[1], at[node].copy(), entered, at):
                if source.setdefault(target, node) != node:
                    source[target] = _SEVERAL
                known = at.get(target)
                merged = self.awaited(state, target) if known is None else known.meet(state)
                if merged is not None:
                    at[target] = merged
                    heappush(todo, target)
        order = [(frame.id, slot) for frame in frames
                 for slot in (*frame.leaders, *(slot + HEADER for slot in frame.leaders))
                 if (frame.id, slot) in at]
        return Analysis(frames, entered, at, order, dict(self.stack_used), source)

    def read_from(self, *slots: int) -> int:
        """Registers that may still be read from one of these on, as bits."""
        live = 0 if self.live else -1
        for slot in slots if self.live else ():
            live |= self.live[slot]
        return live

    def awaited(self, state: State, node: Node) -> State:
        """A copy of what leads to a block, without registers that nobody reads there: paths need
        not agree about these."""
        after = state.copy()
        if self.live and node[1] < HEADER:
            live = self.live[node[1]]
            after.regs[:10] = [kind if live >> n & 1 else NOTHING
                               for n, kind in enumerate(after.regs[:10])]
        return after

    def flow(self, frame: Frame, slot: int, state: State, entered: dict[Node, tuple[Frame, ...]],
             at: dict[Node, State]) -> list[tuple[Node, State]]:
        """Run one block from `slot`; the blocks it leads to with the states they are entered in."""
        if slot >= HEADER:
            slot -= HEADER
            return [*(((callee.id, callee.entry), self.call_back(state, callee))
                      for callee in entered[(frame.id, slot)]),
                    ((frame.id, slot + 1), self.loop_over(state))]
        while True:
            insn = self.insns[slot]
            if not self.facts.visited[slot]:
                return []
            if isinstance(insn, CallLocal):
                callee, = entered[(frame.id, slot)]
                return [((callee.id, callee.entry), self.enter(state, callee))]
            if isinstance(insn, Call) and (frame.id, slot) in entered:
                return [((frame.id, slot + HEADER), self.loop_again(state, state)),
                        ((frame.id, slot + 1), self.loop_over(state))]
            if isinstance(insn, Exit):
                return self.returns(frame, state, at)
            self.step(state, slot, frame)
            if isinstance(insn, Call) and insn.helper == TAIL_CALL:
                return [((frame.id, slot + 1), state),
                        *self.returns(frame, self.tail_called(state), at)]
            if not isinstance(insn, Jump | JumpIf | MayGoto):
                slot += width(insn) if insn is not None else 1
                if slot in frame.starts:
                    return [((frame.id, slot), state)]
                continue
            following = successors(self.insns, slot)
            if isinstance(insn, JumpIf):
                falls, taken = self.sides(slot)
                out: list[tuple[Node, State]] = []
                if falls:
                    out.append(((frame.id, following[0]), self.refine(state, insn, False)))
                if taken:
                    out.append(((frame.id, following[1]), self.refine(state, insn, True)))
                return out
            return [((frame.id, target), state) for target in dict.fromkeys(following)]

    def returns(self, frame: Frame, state: State,
                at: dict[Node, State]) -> list[tuple[Node, State]]:
        """Where the end of a function leads: to its caller, or to another round of a loop."""
        if frame.parent is None:
            return []
        left, called = self.leave(state, frame), (frame.parent.id, frame.call_slot)
        if frame.callback:
            return [((called[0], called[1] + HEADER), self.loop_again(left, at[called])),
                    ((called[0], called[1] + 1), self.loop_over(left))]
        return [((called[0], called[1] + 1), left)]

    def tail_called(self, state: State) -> State:
        """When a program that a function tail-called has ended; it may have moved the packet."""
        after = state.copy()
        after.regs[0] = NUMBER
        _forget_packet(after)
        return after

    def sides(self, slot: int) -> tuple[bool, bool]:
        """(may fall through, may be taken), as the verifier saw."""
        return bool(self.facts.falls[slot]), bool(self.facts.taken[slot])

    def refine(self, state: State, insn: JumpIf, taken: bool) -> State:
        """Behind a null check the pointer is the number zero on one side."""
        kind = state.regs[insn.dst]
        if not insn.is64 or insn.src != Imm(0) or insn.op.name not in ("EQ", "NE") or (
                not isinstance(kind, MapValue | InnerMap | Mem)):
            return state
        if taken != (insn.op.name == "EQ"):
            return state
        refined = state.copy()
        refined.regs[insn.dst] = constant(0)
        return refined

    def enter(self, state: State, callee: Frame) -> State:
        inner = state.copy()
        live = self.live[callee.call_slot + 1] if self.live else -1
        inner.saved = (*state.saved, tuple(
            kind if live >> n & 1 else NOTHING for n, kind in enumerate(state.regs[6:10], 6)))
        inner.regs[0] = NOTHING
        inner.regs[6:10] = [NOTHING] * 4
        inner.regs[10] = StackPtr(callee.depth, 0)
        inner.forget_spills(callee.depth)
        return inner

    # calls that call back (frames.py): the node of the call checks its arguments, the header asks
    # whether to go on; what is handed to the callback stays in r3 there, the map in r1

    def loop_again(self, state: State, called: State) -> State:
        again = state.copy()
        kept = called.regs[1] if isinstance(called.regs[1], MAPS) else NOTHING
        again.regs[:6] = [NOTHING, kept, NOTHING, called.regs[3], NOTHING, NOTHING]
        return again

    def drains(self, slot: int) -> bool:
        insn = self.insns[slot]
        return isinstance(insn, Call) and insn.helper == DRAIN

    def loop_over(self, state: State) -> State:
        over = state.copy()
        over.regs[:6] = [NUMBER] + [NOTHING] * 5
        return over

    def call_back(self, state: State, callee: Frame) -> State:
        inner, iterated, handed = self.enter(state, callee), state.regs[1], state.regs[3]
        if self.drains(callee.call_slot):  # a dynptr, what is handed
            inner.regs[1:6] = [Mem(), handed, NOTHING, NOTHING, NOTHING]
        elif isinstance(iterated, MAPS):  # map, key, value, what is handed
            maps = [*maps_of(iterated)]
            known = len(maps) == 1 and definition_of(iterated) is None
            value = MapValue(maps[0] if known else -1)
            inner.regs[1:6] = [iterated, Mem(), value, handed, NOTHING]
        else:
            inner.regs[1:6] = [NUMBER, handed, NOTHING, NOTHING, NOTHING]
        return inner

    def leave(self, state: State, frame: Frame) -> State:
        outer = state.copy()
        *saved, callers = state.saved
        outer.saved = tuple(saved)
        outer.regs[1:6] = [NOTHING] * 5
        outer.regs[6:10] = callers
        outer.regs[10] = StackPtr(frame.depth - 1, 0)
        outer.forget_spills(frame.depth)
        return outer


def _forget_packet(state: State) -> None:
    """What pointed into the packet is a mere number."""
    state.regs = [NUMBER if isinstance(k, Packet) else k for k in state.regs]
    state.saved = tuple(tuple(NUMBER if isinstance(k, Packet) else k for k in frame)
                        for frame in state.saved)
    state.spills = {s: k for s, k in state.spills.items() if not isinstance(k, Packet)}


def _fold(op: AluOp, left: Scalar, right: Scalar, is64: bool) -> Scalar:
    """Constants of address arithmetic; LLVM folds the rest."""
    if left.const is None or right.const is None:
        return NUMBER
    mask = (1 << (64 if is64 else 32)) - 1
    a, b = left.const & mask, right.const & mask
    match op:
        case AluOp.ADD:
            return constant((a + b) & mask)
        case AluOp.SUB:
            return constant((a - b) & mask)
        case _:
            return NUMBER


def number_is_tail_call(helper: Helper) -> bool:
    return helper.id == TAIL_CALL
