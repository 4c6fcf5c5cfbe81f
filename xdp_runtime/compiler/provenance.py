"""The forward pass: which object does each register point into, at each instruction?

`Provenance.step` is the meaning of one instruction on kinds (kinds.py); `analyse` runs it to a
fixed point over all frames (frames.py).  Lowering replays `step` inside each block, so what it
emits and what was analysed cannot drift apart.  What no run-time check could make safe (reading a
register that holds nothing, dereferencing a number, writing read-only memory) is refused here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import assert_never

from xdp_runtime.compiler.frames import Frame, Node, successors, unfold, width
from xdp_runtime.compiler.kinds import (
    CLOBBERED,
    MEMORY,
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
    scalar_alu,
)
from xdp_runtime.errors import LoadError, VerifyError
from xdp_runtime.helpers import HELPERS, kernel_name
from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.isa import (
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
    Reg,
    Store,
    StoreRelease,
    Swap,
)
from xdp_runtime.maps import family_of
from xdp_runtime.object import MapFlag, MapSpec, MapType, ProgramSpec
from xdp_runtime.state import XDP_MD, XDP_MD_SIZE_BYTES

TAIL_CALL = 12


@dataclass(slots=True)
class Analysis:
    frames: list[Frame]
    entered: dict[Node, Frame]
    at: dict[Node, State]  # state on entry of each reachable block
    order: list[Node]  # reachable blocks, frame by frame in program order
    stack_used: dict[int, int]  # call depth -> bytes of the frame that are ever addressed


class Provenance:
    """The analysis of one program against its object's map definitions."""

    def __init__(self, program: ProgramSpec, maps: tuple[MapSpec, ...]) -> None:
        self.program, self.maps, self.insns = program, maps, program.insns
        self.readonly_maps = frozenset(
            i for i, spec in enumerate(maps) if spec.flags & MapFlag.RDONLY_PROG)
        self.stack_used: dict[int, int] = {}

    # --- refusals -----------------------------------------------------------------------------

    def refuse(self, slot: int, why: str, mend: str = "") -> VerifyError:
        line = next((ln for ln in reversed(self.program.lines) if ln.slot <= slot), None)
        where = f"{self.program.name}: instruction {slot}"
        if line is not None:
            where += f" ({line.file}:{line.line}: {line.text.strip()})"
        return VerifyError(where, why, mend, insn=slot)

    def read(self, state: State, reg: int, slot: int) -> Kind:
        kind = state.regs[reg]
        if isinstance(kind, Uninit):
            raise self.refuse(slot, f"r{reg} is read but {kind.why}")
        return kind

    def operand(self, state: State, src: Operand, slot: int) -> Kind:
        return constant(src.value) if isinstance(src, Imm) else self.read(state, src.n, slot)

    # --- memory -------------------------------------------------------------------------------

    def touch_stack(self, depth: int, off: int | None) -> None:
        used = STACK_SIZE_BYTES if off is None else min(max(-off, 0), STACK_SIZE_BYTES)
        self.stack_used[depth] = max(self.stack_used.get(depth, 0), used)

    def access(self, kind: Kind, reg: int, off: int, size: int | None, slot: int, *,
               write: bool) -> None:
        """Refuse what is certainly wrong with `size` bytes at `reg + off` (None: not known)."""
        match kind:
            case Packet() | MapValue() | StackPtr() | Mem():
                pass
            case Scalar():
                raise self.refuse(slot, f"r{reg} is a number and cannot be dereferenced")
            case Ctx() | PacketEnd() | MapPtr() | Uninit():
                raise self.refuse(slot, f"r{reg} ({_name(kind)}) cannot be accessed here")
            case _:
                assert_never(kind)
        extent = 0 if size is None else size
        if isinstance(kind, StackPtr):
            where = None if kind.off is None else kind.off + off
            self.touch_stack(kind.depth, where)
            if where is not None and not -STACK_SIZE_BYTES <= where <= -extent:
                raise self.refuse(slot, f"{extent} bytes at r10{where:+d} are outside the "
                                  f"{STACK_SIZE_BYTES} bytes of stack")
        if isinstance(kind, MapValue):
            spec = self.maps[kind.map]
            where = None if kind.off is None else kind.off + off
            if where is not None and not 0 <= where <= spec.value_size - extent:
                raise self.refuse(
                    slot, f"{extent} bytes at offset {where} are outside the value of map "
                    f"{spec.name} ({spec.value_size} bytes)")
            if write and kind.map in self.readonly_maps:
                raise self.refuse(slot, f"map {spec.name} is read-only for programs")
            if not write and spec.flags & MapFlag.WRONLY_PROG:
                raise self.refuse(slot, f"map {spec.name} is write-only for programs")
        if isinstance(kind, Mem) and write and kind.readonly:
            raise self.refuse(slot, f"r{reg} may point into a read-only map")

    def written(self, state: State, kind: Kind, off: int, size: int | None) -> None:
        """Spilled pointers that a write through `kind` may have overwritten are forgotten."""
        if isinstance(kind, StackPtr):
            if kind.off is None or size is None:
                state.forget_spills(kind.depth)
            else:
                state.forget_spills(kind.depth, kind.off + off, kind.off + off + size)
        elif isinstance(kind, Mem):
            state.forget_spills()

    # --- one instruction ----------------------------------------------------------------------

    def step(self, state: State, slot: int, frame: Frame) -> None:
        """Change `state` from before to after the instruction at `slot`.

        Local calls and exits are left to `analyse`: they change the frame."""
        insn: Insn | None = self.insns[slot]
        assert insn is not None
        regs = state.regs
        match insn:
            case Alu(op, is64, dst, src):
                self._writable(dst, slot)
                regs[dst] = self._alu(state, op, is64, dst, src, slot)
            case Mov(is64, dst, src, sign_bits):
                self._writable(dst, slot)
                kind = self.operand(state, src, slot)
                if isinstance(kind, Scalar):
                    if sign_bits:
                        kind = Scalar()
                    elif not is64:
                        kind = scalar_alu("AND", kind, constant(0xFFFFFFFF), True)
                elif not is64 or sign_bits:
                    kind = Scalar(None, 0xFFFFFFFF if not sign_bits else (1 << 64) - 1)
                regs[dst] = kind
            case Neg(is64, dst):
                self._writable(dst, slot)
                self._number(state, dst, slot)
                regs[dst] = Scalar(None, (1 << 64) - 1 if is64 else 0xFFFFFFFF)
            case Swap(dst, bits, _):
                self._writable(dst, slot)
                self._number(state, dst, slot)
                regs[dst] = Scalar(None, (1 << bits) - 1)
            case LoadImm64(dst, value):
                self._writable(dst, slot)
                regs[dst] = constant(value)
            case LoadMap(dst, index):
                self._writable(dst, slot)
                self._map(index, slot)
                regs[dst] = MapPtr(index)
            case LoadMapValue(dst, index, offset):
                self._writable(dst, slot)
                spec = self._map(index, slot)
                if spec.type != MapType.ARRAY or not 0 <= offset < spec.value_size:
                    raise self.refuse(slot, f"address of byte {offset} of map {spec.name}")
                regs[dst] = MapValue(index, offset, nullable=False)
            case LoadFunc():
                raise self.refuse(slot, "callback functions are not supported yet")
            case Load(dst, src_reg, off, size, signed):
                self._writable(dst, slot)
                regs[dst] = self._load(state, src_reg, off, size, signed, slot)
            case Store(dst, off, size, src):
                self._store(state, dst, off, size, self.operand(state, src, slot), slot)
            case Atomic(atomic_op, size, dst, off, src_reg, fetch):
                kind = self.read(state, dst, slot)
                self.access(kind, dst, off, size, slot, write=True)
                if isinstance(kind, Packet):
                    raise self.refuse(slot, "atomic operations on packet data are not allowed")
                self._number(state, src_reg, slot)
                self.written(state, kind, off, size)
                bound = (1 << (8 * size)) - 1
                if atomic_op is AtomicOp.CMPXCHG:
                    self._number(state, 0, slot)
                    regs[0] = Scalar(None, bound)
                elif fetch:
                    regs[src_reg] = Scalar(None, bound)
            case LoadAcquire(dst, src_reg, off, size):
                self._writable(dst, slot)
                kind = self.read(state, src_reg, slot)
                self.access(kind, src_reg, off, size, slot, write=False)
                regs[dst] = Scalar(None, (1 << (8 * size)) - 1)
            case StoreRelease(dst, off, size, src_reg):
                kind = self.read(state, dst, slot)
                self.access(kind, dst, off, size, slot, write=True)
                self._number(state, src_reg, slot)
                self.written(state, kind, off, size)
            case JumpIf(_, _, dst, src, _):
                self.read(state, dst, slot)
                self.operand(state, src, slot)
            case Jump() | MayGoto():
                pass
            case Call(number):
                self._call(state, number, slot)
            case CallKfunc(btf_id, _):
                raise self.refuse(slot, f"kernel function (BTF id {btf_id}) is not supported")
            case CallReg():
                raise self.refuse(slot, "calls through a register are not allowed")
            case CallLocal() | Exit():
                raise AssertionError("frames change in analyse")
            case _:
                assert_never(insn)

    def _writable(self, reg: int, slot: int) -> None:
        if reg == 10:
            raise self.refuse(slot, "the frame pointer r10 is read-only")

    def _map(self, index: int, slot: int) -> MapSpec:
        if not 0 <= index < len(self.maps):
            raise self.refuse(slot, f"there is no map number {index}")
        return self.maps[index]

    def _number(self, state: State, reg: int, slot: int) -> Kind:
        kind = self.read(state, reg, slot)
        if not isinstance(kind, Scalar):
            raise self.refuse(slot, f"r{reg} ({_name(kind)}) is used as a number")
        return kind

    def _alu(self, state: State, op: AluOp, is64: bool, dst: int, src: Operand, slot: int) -> Kind:
        if isinstance(src, Reg) and src.n == dst and op in (AluOp.XOR, AluOp.SUB):
            self.read(state, dst, slot)  # r1 ^= r1: the usual way to write zero
            return constant(0)
        left, right = self.read(state, dst, slot), self.operand(state, src, slot)
        if isinstance(left, Scalar) and isinstance(right, Scalar):
            return scalar_alu(op.name, left, right, is64)
        if is64 and op is AluOp.SUB and not isinstance(right, Scalar):
            if isinstance(left, Scalar):
                raise self.refuse(slot, f"a pointer ({_name(right)}) is subtracted from a number")
            return Scalar()
        if not is64 and op is AluOp.SUB:
            return Scalar(None, 0xFFFFFFFF)  # a length in 32 bits, as the kernel allows root
        if not is64 or op not in (AluOp.ADD, AluOp.SUB):
            pointer = right if isinstance(left, Scalar) else left
            raise self.refuse(slot, f"{op.name.lower()} on a pointer ({_name(pointer)})")
        if isinstance(left, Scalar):
            left, right = right, left
        if not isinstance(right, Scalar):
            raise self.refuse(slot, f"sum of two pointers ({_name(left)}, {_name(right)})")
        return self._moved(left, right, op is AluOp.SUB, slot)

    def _moved(self, pointer: Kind, by: Scalar, down: bool, slot: int) -> Kind:
        step = by.const
        if step is not None:
            step = step - (1 << 64) if step >> 63 else step
            step = -step if down else step
        match pointer:
            case Packet(umax, meta):
                if umax is None or down or (step is None and by.umax >= 1 << 32):
                    return Packet(None, meta)
                if step is not None and step < 0:
                    return Packet(None, meta)
                bound = umax + (step if step is not None else by.umax)
                return Packet(bound if bound < 1 << 32 else None, meta)
            case StackPtr(depth, off):
                moved = None if off is None or step is None else off + step
                self.touch_stack(depth, moved)
                return StackPtr(depth, moved)
            case MapValue(_, off, _):
                return replace(pointer, off=None if off is None or step is None else off + step)
            case Mem():
                return pointer
            case _:
                raise self.refuse(slot, f"arithmetic on a pointer ({_name(pointer)})")

    def _load(self, state: State, src: int, off: int, size: int, signed: bool, slot: int) -> Kind:
        kind = self.read(state, src, slot)
        if isinstance(kind, Ctx):
            return self._load_context(off, size, signed, slot)
        self.access(kind, src, off, size, slot, write=False)
        if isinstance(kind, StackPtr) and kind.off is not None and size == 8:
            spilled = state.spills.get((kind.depth, kind.off + off))
            if spilled is not None:
                return spilled
        return Scalar() if signed else Scalar(None, (1 << (8 * size)) - 1)

    def _load_context(self, off: int, size: int, signed: bool, slot: int) -> Kind:
        if size != 4 or signed or off not in XDP_MD:
            raise self.refuse(slot, f"{size} bytes at offset {off} of struct xdp_md "
                              f"({XDP_MD_SIZE_BYTES} bytes, six 32-bit fields)")
        if off == 20 and not self.program.kind.endswith("/devmap"):
            raise self.refuse(slot, "egress_ifindex is only there for xdp/devmap programs")
        if off == 0:
            return Packet()
        if off == 4:
            return PacketEnd()
        if off == 8:
            return Packet(meta=True)
        return Scalar(None, 0xFFFFFFFF)

    def _store(self, state: State, dst: int, off: int, size: int, value: Kind, slot: int) -> None:
        kind = self.read(state, dst, slot)
        if isinstance(kind, Ctx):
            raise self.refuse(slot, "struct xdp_md is read-only")
        self.access(kind, dst, off, size, slot, write=True)
        self.written(state, kind, off, size)
        if not isinstance(value, Scalar):
            if size != 8:
                raise self.refuse(slot, f"a pointer ({_name(value)}) is stored in {size} bytes")
            if isinstance(kind, StackPtr) and kind.off is not None and (kind.off + off) % 8 == 0:
                state.spills[(kind.depth, kind.off + off)] = value
            elif not isinstance(value, MEMORY):
                raise self.refuse(slot, f"{_name(value)} can only be kept on the stack")

    # --- helpers ------------------------------------------------------------------------------

    def helper(self, number: int, slot: int) -> Helper:
        helper = HELPERS.get(number)
        if helper is None:
            name = kernel_name(number)
            raise LoadError(f"{self.program.name}: instruction {slot}",
                            f"helper {name} (number {number}) is not supported",
                            "see the helper table in the documentation")
        return helper

    def _call(self, state: State, number: int, slot: int) -> None:
        helper = self.helper(number, slot)
        target: MapSpec | None = None
        result: Kind = Scalar()
        for position, arg in enumerate(helper.args, 1):
            if arg is Arg.UNCHECKED:
                continue
            kind = self.read(state, position, slot)
            if arg is Arg.MAP:
                if not isinstance(kind, MapPtr):
                    raise self.refuse(slot, f"{helper.name}: r{position} must be a map, "
                                      f"is {_name(kind)}")
                target = self.maps[kind.map]
                if helper.ret is Ret.MAP_VALUE_OR_NULL:
                    result = MapValue(kind.map)
                self._check_map_use(helper, target, slot)
            else:
                self._argument(state, helper, target, arg, position, kind, slot)
        for position, arg in enumerate(helper.args, 1):
            if arg is Arg.MEM_UNINIT:
                self.written(state, state.regs[position], 0, None)
        if helper.changes_packet:
            state.forget_packet()
        state.regs[1:6] = [CLOBBERED] * 5
        state.regs[0] = CLOBBERED if helper.ret is Ret.VOID else result

    def _check_map_use(self, helper: Helper, spec: MapSpec, slot: int) -> None:
        if number_is_tail_call(helper):
            if spec.type != MapType.PROG_ARRAY:
                raise self.refuse(slot, f"bpf_tail_call through map {spec.name}, which is no "
                                  "PROG_ARRAY")
            return
        if spec.type == MapType.PROG_ARRAY:
            raise self.refuse(slot, f"{helper.name} on PROG_ARRAY {spec.name}")
        if helper.map_op in ("update", "delete") and spec.flags & MapFlag.RDONLY_PROG:
            raise self.refuse(slot, f"map {spec.name} is read-only for programs")
        if helper.map_op and helper.map_op not in family_of(spec).operations:
            raise self.refuse(slot, f"{helper.name} is not defined for map {spec.name}")

    def _argument(self, state: State, helper: Helper, target: MapSpec | None, arg: Arg,
                  position: int, kind: Kind, slot: int) -> None:
        match arg:
            case Arg.ANYTHING:
                pass
            case Arg.CTX:
                if not isinstance(kind, Ctx):
                    raise self.refuse(slot, f"{helper.name}: r{position} must be the context")
            case Arg.MAP_KEY | Arg.MAP_VALUE:
                assert target is not None
                size = target.key_size if arg is Arg.MAP_KEY else target.value_size
                self.access(kind, position, 0, size, slot, write=False)
            case Arg.MEM | Arg.MEM_OR_NULL | Arg.MEM_UNINIT:
                length = self.read(state, position + 1, slot)
                if not isinstance(length, Scalar):
                    raise self.refuse(slot, f"{helper.name}: r{position + 1} must be a length")
                if arg is Arg.MEM_OR_NULL and kind == constant(0):
                    return
                self.access(kind, position, 0, length.const, slot, write=arg is Arg.MEM_UNINIT)
            case Arg.SIZE | Arg.SIZE_OR_ZERO:
                if arg is Arg.SIZE and kind == constant(0):
                    raise self.refuse(slot, f"{helper.name}: length 0 in r{position}")
            case Arg.MAP | Arg.UNCHECKED:
                raise AssertionError("handled by the caller")
            case _:
                assert_never(arg)

    # --- the fixed point ----------------------------------------------------------------------

    def analyse(self) -> Analysis:
        frames, entered = unfold(self.insns)
        start = State([Uninit()] * 11)
        start.regs[1], start.regs[10] = Ctx(), StackPtr(0, 0)
        at: dict[Node, State] = {(0, 0): start}
        todo: list[Node] = [(0, 0)]
        while todo:
            node = todo.pop()
            frame = frames[node[0]]
            for target, state in self.flow(frame, node[1], at[node].copy(), entered, frames):
                known = at.get(target)
                merged = state.copy() if known is None else known.meet(state, self.readonly_maps)
                if merged is not None:
                    at[target] = merged
                    if target not in todo:
                        todo.append(target)
        order = [(frame.id, slot) for frame in frames for slot in frame.leaders
                 if (frame.id, slot) in at]
        return Analysis(frames, entered, at, order, dict(self.stack_used))

    def flow(self, frame: Frame, slot: int, state: State, entered: dict[Node, Frame],
             frames: list[Frame]) -> list[tuple[Node, State]]:
        """Run one block from `slot`; the blocks it leads to with the states they are entered in."""
        while True:
            insn = self.insns[slot]
            if isinstance(insn, CallLocal):
                callee = entered[(frame.id, slot)]
                return [((callee.id, callee.entry), self.enter(state, callee))]
            if isinstance(insn, Exit):
                if frame.parent is None:
                    verdict = self.read(state, 0, slot)
                    if not isinstance(verdict, Scalar):
                        raise self.refuse(slot, f"r0 ({_name(verdict)}) is no verdict")
                    return []
                return [((frame.parent.id, frame.call_slot + 1), self.leave(state, frame))]
            self.step(state, slot, frame)
            following = successors(self.insns, slot)
            if isinstance(insn, JumpIf):
                falls, taken = following
                return [((frame.id, falls), self.refine(state, insn, False)),
                        ((frame.id, taken), self.refine(state, insn, True))]
            if isinstance(insn, Jump | MayGoto) or following[0] in frame.leaders:
                return [((frame.id, target), state) for target in dict.fromkeys(following)]
            slot += width(insn) if insn is not None else 1

    def refine(self, state: State, insn: JumpIf, taken: bool) -> State:
        """What a null check says on each side: the pointer is a pointer, or the number zero."""
        kind = state.regs[insn.dst]
        against_zero = insn.is64 and insn.src == Imm(0) and insn.op in (JmpOp.EQ, JmpOp.NE)
        if not against_zero or not isinstance(kind, MapValue | Mem) or not kind.nullable:
            return state
        refined = state.copy()
        is_null = taken == (insn.op is JmpOp.EQ)
        refined.regs[insn.dst] = constant(0) if is_null else replace(kind, nullable=False)
        return refined

    def enter(self, state: State, callee: Frame) -> State:
        inner = state.copy()
        inner.saved = (*state.saved, tuple(state.regs[6:10]))
        inner.regs[0] = Uninit()
        inner.regs[6:10] = [Uninit()] * 4
        inner.regs[10] = StackPtr(callee.depth, 0)
        inner.forget_spills(callee.depth)
        return inner

    def leave(self, state: State, frame: Frame) -> State:
        outer = state.copy()
        *saved, callers = state.saved
        outer.saved = tuple(saved)
        outer.regs[1:6] = [CLOBBERED] * 5
        outer.regs[6:10] = callers
        outer.regs[10] = StackPtr(frame.depth - 1, 0)
        if isinstance(outer.regs[0], StackPtr) and outer.regs[0].depth == frame.depth:
            outer.regs[0] = Uninit("points into the stack of a function that has returned")
        outer.forget_spills(frame.depth)
        return outer


def number_is_tail_call(helper: Helper) -> bool:
    return helper.id == TAIL_CALL


_NAMES = {
    Uninit: "nothing", Scalar: "number", Ctx: "context", Packet: "packet pointer",
    PacketEnd: "packet end", StackPtr: "stack pointer", MapValue: "map value pointer",
    MapPtr: "map", Mem: "pointer",
}


def _name(kind: Kind) -> str:
    return _NAMES[type(kind)]
