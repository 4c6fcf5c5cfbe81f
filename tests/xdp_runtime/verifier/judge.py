"""A judge that shares nothing with our verifier: is this program safe?  Paths and z3.

Our domain is exact where the kernel's is not, so now and then it proves what the kernel refuses
because it could not see it.  Whether such a proof is right must not be for the same domain to say.
So here every path is walked with 64-bit vectors in the place of numbers, and at each access z3 is
asked for values that make it go wrong.

    safe      on no path is there such a value
    unsafe    there is one: where, and what goes wrong
    unknown   the program has what is not modelled here (calls of functions, endless loops, ...)

What is read from packet, map, context or helper is any number, and so is what was written to the
stack in other pieces than it is read in.  So `unsafe` may be wrong, and `safe` is a proof: of
memory accesses and of registers that are read, not of read-only memory, locks and references.
Packets have any length to 65,535.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import z3  # type: ignore[import-untyped]

from xdp_runtime.helpers import HELPERS
from xdp_runtime.helpers.proto import Arg, Ret
from xdp_runtime.isa import (
    STACK_SIZE_BYTES,
    Alu,
    AluOp,
    Atomic,
    Call,
    CallLocal,
    Exit,
    Imm,
    JmpOp,
    Jump,
    JumpIf,
    Load,
    LoadAcquire,
    LoadImm64,
    LoadMap,
    LoadMapValue,
    Mov,
    Neg,
    Operand,
    Store,
    StoreRelease,
    Swap,
    SwapOrder,
)
from xdp_runtime.object import MapType, Object

MAX_VISITS, MAX_STEPS = 40, 20_000
_PACKET = {0: 0, 4: 1, 8: 0}  # fields of the context that are pointers: is it the end?


class Unsafe(Exception):
    """There are values that make it go wrong."""


class Unmodelled(Exception):
    """Nothing can be said."""


@dataclass(frozen=True, slots=True)
class Num:
    bits: Any  # a 64-bit vector


@dataclass(frozen=True, slots=True)
class Ptr:
    """`kind`: ctx, stack, packet, end, map (a constant), value, nullable (value or null)."""

    kind: str
    off: Any
    size: int = 0  # of a value
    maybe: bool = False  # of an array: it depends on the key, whose bytes are not followed
    number: int = 0  # of one lookup; of packet pointers the generation, of the stack the frame


Reg = Num | Ptr | None


@dataclass(frozen=True, slots=True)
class Path:
    slot: int
    regs: tuple[Reg, ...]
    stack: dict[int, Reg]  # aligned slots of 8 bytes whose contents are known
    given: tuple[Any, ...]  # what the branches taken say
    visits: dict[int, int]
    generation: int = 0
    frames: tuple[tuple[int, tuple[Reg, ...], dict[int, Reg]], ...] = ()  # of those who called


def judge(obj: Object) -> tuple[str, str]:
    """(safe, unsafe or unknown; why)"""
    walker = _Walker(obj)
    try:
        walker.walk()
    except Unsafe as error:
        return "unsafe", str(error)
    except Unmodelled as error:
        return "unknown", str(error)
    return "safe", f"{walker.steps} instructions on {walker.paths} paths"


class _Walker:
    def __init__(self, obj: Object) -> None:
        self.obj, self.insns = obj, obj.programs[0].insns
        self.length = z3.BitVec("length", 64)
        self.base = z3.BitVec("base", 64)  # where the packet lies, nowhere near a wrap
        self.always = (z3.ULE(self.length, 0xFFFF), z3.UGE(self.base, 1 << 32),
                       z3.ULE(self.base, 1 << 47))
        self.fresh_count = self.steps = self.paths = 0

    def fresh(self, bits: int = 64) -> Num:
        self.fresh_count += 1
        made = z3.BitVec(f"n{self.fresh_count}", bits)
        return Num(made if bits == 64 else z3.ZeroExt(64 - bits, made))

    def possible(self, path: Path, *more: Any) -> bool:
        solver = z3.Solver()
        solver.set("timeout", 5000)
        solver.add(*self.always, *path.given, *more)
        answer = solver.check()
        if answer == z3.unknown:
            raise Unmodelled("z3 does not know")
        return bool(answer == z3.sat)

    def must(self, path: Path, condition: Any, what: str) -> None:
        if self.possible(path, z3.Not(condition)):
            raise Unsafe(f"instruction {path.slot}: {what}")

    def walk(self) -> None:
        zero = z3.BitVecVal(0, 64)
        regs: list[Reg] = [None] * 11
        regs[1], regs[10] = Ptr("ctx", zero), Ptr("stack", zero)
        waiting = [Path(0, tuple(regs), {}, (), {})]
        while waiting:
            path: Path | None = waiting.pop()
            self.paths += 1
            while path is not None:
                self.steps += 1
                visits = path.visits.get(path.slot, 0) + 1
                if visits > MAX_VISITS or self.steps > MAX_STEPS:
                    raise Unmodelled("a loop that does not end soon")
                path = replace(path, visits={**path.visits, path.slot: visits})
                after = self.step(path)
                path = after[0] if after else None
                waiting += after[1:]

    # --- instructions ---------------------------------------------------------------------------

    def step(self, path: Path) -> list[Path]:
        if not 0 <= path.slot < len(self.insns):
            raise Unsafe("it leaves the program")
        insn = self.insns[path.slot]
        following = path.slot + 1
        match insn:
            case Alu(op, is64, dst, src):
                return [self.put(path, dst, self.alu(path, op, is64, dst, src))]
            case Mov(is64, dst, src, sign_bits):
                return [self.put(path, dst, self.mov(path, is64, src, sign_bits))]
            case Neg(is64, dst):
                return [self.put(path, dst, _cut(-self.number(path, dst), is64))]
            case Swap(dst, bits, order):
                return [self.put(path, dst, _swap(self.number(path, dst), bits, order))]
            case LoadImm64(dst, value):
                return [self.put(path, dst, Num(z3.BitVecVal(value, 64)), 2)]
            case LoadMap(dst, index):
                return [self.put(path, dst, Ptr("map", z3.BitVecVal(index, 64), index), 2)]
            case LoadMapValue(dst, index, offset):
                size = self.obj.maps[index].value_size
                return [self.put(path, dst, Ptr("value", z3.BitVecVal(offset, 64), size), 2)]
            case Load(dst, src_reg, off, size, signed):
                return [self.put(path, dst, self.load(path, src_reg, off, size, signed))]
            case LoadAcquire(dst, src_reg, off, size):
                return [self.put(path, dst, self.load(path, src_reg, off, size, False))]
            case Store(dst, off, size, src):
                stored = self.operand(path, src)
                return [self.moved(self.store(path, dst, off, size, stored))]
            case StoreRelease(dst, off, size, src_reg):
                stored = self.register(path, src_reg)
                return [self.moved(self.store(path, dst, off, size, stored))]
            case Atomic(_, size, dst, off, src_reg, fetch):
                self.number(path, src_reg)
                if insn.op.name == "CMPXCHG":
                    self.number(path, 0)
                self.load(path, dst, off, size, False)
                path = self.store(path, dst, off, size, self.fresh())
                target = 0 if insn.op.name == "CMPXCHG" else src_reg
                return [self.put(path, target, self.fresh(8 * size))] if fetch else [
                    self.moved(path)]
            case Jump(off):
                return [replace(path, slot=following + off)]
            case JumpIf():
                return self.branch(path, insn)
            case Call(number):
                return self.call(path, number)
            case CallLocal(off):
                return [self.enter(path, following + off)]
            case Exit():
                self.register(path, 0)
                return [self.leave(path)] if path.frames else []
            case _:
                raise Unmodelled(f"instruction {path.slot}: {type(insn).__name__}")

    def moved(self, path: Path, by: int = 1) -> Path:
        return replace(path, slot=path.slot + by)

    def put(self, path: Path, number: int, value: Reg, by: int = 1) -> Path:
        regs = list(path.regs)
        regs[number] = value
        return replace(path, regs=tuple(regs), slot=path.slot + by)

    def register(self, path: Path, number: int) -> Num | Ptr:
        value = path.regs[number]
        if value is None:
            raise Unsafe(f"instruction {path.slot}: r{number} was never written")
        if isinstance(value, Ptr) and value.kind in ("packet", "end") and (
                value.number != path.generation):
            return self.fresh()  # the packet moved: no pointer any more
        return value

    def operand(self, path: Path, src: Operand) -> Num | Ptr:
        if isinstance(src, Imm):
            return Num(z3.BitVecVal(src.value, 64))
        return self.register(path, src.n)

    def number(self, path: Path, number: int) -> Any:
        """As bits; those of a pointer are any."""
        value = self.register(path, number)
        return value.bits if isinstance(value, Num) else self.fresh().bits

    def bits(self, path: Path, src: Operand) -> Any:
        value = self.operand(path, src)
        return value.bits if isinstance(value, Num) else self.fresh().bits

    def alu(self, path: Path, op: AluOp, is64: bool, dst: int, src: Operand) -> Num | Ptr:
        left, right = self.register(path, dst), self.operand(path, src)
        if is64 and op in (AluOp.ADD, AluOp.SUB):
            if isinstance(left, Ptr) and isinstance(right, Num):
                by = right.bits if op is AluOp.ADD else -right.bits
                return replace(left, off=left.off + by)
            if isinstance(right, Ptr) and isinstance(left, Num) and op is AluOp.ADD:
                return replace(right, off=right.off + left.bits)
        return Num(_arithmetic(op, is64, self.number(path, dst), self.bits(path, src)))

    def mov(self, path: Path, is64: bool, src: Operand, sign_bits: int) -> Num | Ptr:
        value = self.operand(path, src)
        if isinstance(value, Ptr):
            return value if is64 and not sign_bits else self.fresh()
        bits = value.bits
        if sign_bits:
            bits = z3.SignExt(64 - sign_bits, z3.Extract(sign_bits - 1, 0, bits))
        return _cut(bits, is64)

    # --- memory ---------------------------------------------------------------------------------

    def check(self, path: Path, ptr: Num | Ptr, off: Any, size: Any, what: str) -> None:
        """`size` bytes at `ptr` + `off` exist, for all values."""
        if isinstance(ptr, Num):
            if not z3.is_bv_value(z3.simplify(ptr.bits)) or self.possible(path):
                self.must(path, z3.BoolVal(False), f"{what}: a number is dereferenced")
            return
        where = ptr.off + off
        match ptr.kind:
            case "stack":
                low, room = where + STACK_SIZE_BYTES, z3.BitVecVal(STACK_SIZE_BYTES, 64)
            case "packet":
                low, room = where, self.length
            case "value":
                low, room = where, z3.BitVecVal(ptr.size, 64)
            case "nullable" if ptr.maybe:
                raise Unmodelled(f"instruction {path.slot}: an array's value, "
                                 "not compared with null")
            case _:
                self.must(path, z3.BoolVal(False), f"{what}: through {ptr.kind}")
                return
        self.must(path, z3.And(z3.ULE(size, room), z3.ULE(low, room - size)),
                  f"{what}: outside of {ptr.kind}")

    def load(self, path: Path, src: int, off: int, size: int, signed: bool) -> Num | Ptr:
        ptr = self.register(path, src)
        if isinstance(ptr, Ptr) and ptr.kind == "ctx":
            return self.load_context(path, ptr, off, size)
        self.check(path, ptr, z3.BitVecVal(off, 64), z3.BitVecVal(size, 64), "load")
        if isinstance(ptr, Ptr) and ptr.kind == "stack" and size == 8 and (
                ptr.number == len(path.frames)):
            where = z3.simplify(ptr.off + off)
            if z3.is_bv_value(where):
                known = path.stack.get(where.as_signed_long())
                if known is not None:
                    return known
        value = self.fresh(8 * size)
        if signed:
            return Num(z3.SignExt(64 - 8 * size, z3.Extract(8 * size - 1, 0, value.bits)))
        return value

    def load_context(self, path: Path, ptr: Ptr, off: int, size: int) -> Num | Ptr:
        where = z3.simplify(ptr.off + off)
        if not z3.is_bv_value(where) or where.as_signed_long() not in range(24) or size > 4:
            raise Unsafe(f"instruction {path.slot}: outside of the context")
        field = where.as_signed_long()
        if field in _PACKET and size == 4:
            if field == 8:
                raise Unmodelled("metadata")
            kind = "end" if _PACKET[field] else "packet"
            offset = self.length if kind == "end" else z3.BitVecVal(0, 64)
            return Ptr(kind, offset, number=path.generation)
        return self.fresh(8 * size)

    def store(self, path: Path, dst: int, off: int, size: int, value: Num | Ptr) -> Path:
        ptr = self.register(path, dst)
        if isinstance(ptr, Ptr) and ptr.kind == "ctx":
            raise Unsafe(f"instruction {path.slot}: the context is written")
        self.check(path, ptr, z3.BitVecVal(off, 64), z3.BitVecVal(size, 64), "store")
        if not isinstance(ptr, Ptr) or ptr.kind != "stack":
            return path
        where = z3.simplify(ptr.off + off)
        if not z3.is_bv_value(where) or ptr.number != len(path.frames):
            return self.forget_stack(path, ptr)
        return self.write_stack(path, where.as_signed_long(), size, value)

    def write_stack(self, path: Path, at: int, size: int, value: Reg) -> Path:
        stack = {slot: held for slot, held in path.stack.items()
                 if slot + 8 <= at or slot >= at + size}
        if size == 8 and at % 8 == 0:
            stack[at] = value
        return replace(path, stack=stack)

    # --- functions: of a frame that is not the top one nothing is learned ------------------------

    def enter(self, path: Path, slot: int) -> Path:
        regs: list[Reg] = [None] * 11
        regs[1:6] = path.regs[1:6]
        regs[10] = Ptr("stack", z3.BitVecVal(0, 64), number=len(path.frames) + 1)
        saved = path.slot + 1, path.regs[6:], path.stack
        return replace(path, slot=slot, regs=tuple(regs), stack={}, frames=(*path.frames, saved))

    def leave(self, path: Path) -> Path:
        back, kept, stack = path.frames[-1]
        regs = (path.regs[0], *([None] * 5), *kept)
        return replace(path, slot=back, regs=regs, stack=stack, frames=path.frames[:-1])

    def forget_stack(self, path: Path, ptr: Ptr) -> Path:
        if ptr.number == len(path.frames):
            return replace(path, stack={})
        frames = list(path.frames)
        back, kept, _ = frames[ptr.number]
        frames[ptr.number] = back, kept, {}
        return replace(path, frames=tuple(frames))

    # --- control --------------------------------------------------------------------------------

    def branch(self, path: Path, insn: JumpIf) -> list[Path]:
        left, right = self.register(path, insn.dst), self.operand(path, insn.src)
        if isinstance(left, Ptr) and left.kind == "nullable" and insn.op in (
                JmpOp.EQ, JmpOp.NE) and isinstance(right, Num) and insn.is64:
            return self.null_check(path, insn, left)
        one, other = self.address(path, left), self.address(path, right)
        condition = _compare(insn.op, insn.is64, one, other)
        sides = [(path.slot + 1, z3.Not(condition)), (path.slot + 1 + insn.off, condition)]
        return [replace(path, slot=slot, given=(*path.given, said)) for slot, said in sides
                if self.possible(path, said)]

    def address(self, path: Path, value: Num | Ptr) -> Any:
        if isinstance(value, Num):
            return value.bits
        if value.kind in ("packet", "end"):
            return self.base + value.off
        return self.fresh().bits

    def null_check(self, path: Path, insn: JumpIf, left: Ptr) -> list[Path]:
        right = self.operand(path, insn.src)
        assert isinstance(right, Num)
        if not z3.is_true(z3.simplify(right.bits == 0)):
            raise Unmodelled("a pointer is compared with a number")

        def become(value: Reg, null: bool) -> Reg:
            if isinstance(value, Ptr) and value.kind == "nullable" and value.number == left.number:
                return Num(z3.BitVecVal(0, 64)) if null else replace(value, kind="value")
            return value

        out = []
        for null in (True, False):
            jumps = null == (insn.op is JmpOp.EQ)
            out.append(replace(
                path, slot=path.slot + 1 + (insn.off if jumps else 0),
                regs=tuple(become(value, null) for value in path.regs),
                stack={at: become(value, null) for at, value in path.stack.items()}))
        return out

    def call(self, path: Path, number: int) -> list[Path]:
        helper = HELPERS.get(number)
        if helper is None or any(arg in (Arg.CALLBACK, Arg.DYNPTR, Arg.RECORD, Arg.SPIN_LOCK,
                                         Arg.TIMER, Arg.SOCKET) for arg in helper.args):
            raise Unmodelled(f"helper {number}")
        spec = None
        for position, arg in enumerate(helper.args, 1):
            if arg is Arg.UNCHECKED:
                continue
            value = self.register(path, position)
            if arg is Arg.MAP:
                if not isinstance(value, Ptr) or value.kind != "map":
                    raise Unsafe(f"instruction {path.slot}: r{position} is no map")
                spec = self.obj.maps[value.size]
            elif arg is Arg.CTX:
                if not isinstance(value, Ptr) or value.kind != "ctx":
                    raise Unsafe(f"instruction {path.slot}: r{position} is not the context")
            elif arg in (Arg.MAP_KEY, Arg.MAP_VALUE, Arg.MAP_VALUE_UNINIT):
                assert spec is not None
                size = spec.key_size if arg is Arg.MAP_KEY else spec.value_size
                path = self.argument(path, value, z3.BitVecVal(size, 64), arg)
            elif arg in (Arg.MEM, Arg.MEM_OR_NULL, Arg.MEM_UNINIT, Arg.MEM_UNINIT_OR_NULL):
                path = self.argument(path, value, self.number(path, position + 1), arg)
            elif arg in (Arg.FIXED, Arg.FIXED_UNINIT):
                path = self.argument(path, value, z3.BitVecVal(helper.size_of(position), 64), arg)
        regs = list(path.regs)
        regs[1:6] = [None] * 5
        generation = path.generation + helper.changes_packet
        path = replace(path, slot=path.slot + 1, generation=generation)
        if helper.ret is Ret.SCALAR:
            regs[0] = self.fresh()
        elif helper.ret is Ret.VOID:
            regs[0] = None
        elif helper.ret is Ret.MAP_VALUE_OR_NULL and spec is not None and (
                spec.type not in (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS)):
            self.fresh_count += 1
            regs[0] = Ptr("nullable", z3.BitVecVal(0, 64), spec.value_size,
                          spec.type == MapType.ARRAY, self.fresh_count)
        else:
            raise Unmodelled(f"what helper {number} returns")
        return [replace(path, regs=tuple(regs))]

    def argument(self, path: Path, value: Num | Ptr, size: Any, arg: Arg) -> Path:
        may_be_null = arg in (Arg.MEM_OR_NULL, Arg.MEM_UNINIT_OR_NULL)
        if isinstance(value, Num) and may_be_null:
            self.must(path, z3.And(value.bits == 0, size == 0), "null with a length")
            return path
        if not self.possible(path, size != 0) and may_be_null:
            size = z3.BitVecVal(0, 64)
        if self.possible(path, size == 0) and isinstance(value, Ptr) and value.kind == "packet":
            self.must(path, z3.Implies(size != 0, z3.And(
                z3.ULE(size, self.length), z3.ULE(value.off, self.length - size))),
                "argument: outside of packet")  # of nothing there is nothing to touch
        else:
            self.check(path, value, z3.BitVecVal(0, 64), size, "argument")
        if arg in (Arg.MEM_UNINIT, Arg.FIXED_UNINIT, Arg.MAP_VALUE_UNINIT,
                   Arg.MEM_UNINIT_OR_NULL) and isinstance(value, Ptr) and value.kind == "stack":
            return self.forget_stack(path, value)
        return path


# --- numbers -------------------------------------------------------------------------------------

def _cut(bits: Any, is64: bool) -> Num:
    return Num(bits if is64 else z3.ZeroExt(32, z3.Extract(31, 0, bits)))


def _arithmetic(op: AluOp, is64: bool, left: Any, right: Any) -> Any:
    width = 64 if is64 else 32
    a, b = (left, right) if is64 else (z3.Extract(31, 0, left), z3.Extract(31, 0, right))
    by = b & (width - 1)
    match op:
        case AluOp.ADD:
            made = a + b
        case AluOp.SUB:
            made = a - b
        case AluOp.MUL:
            made = a * b
        case AluOp.DIV:
            made = z3.If(b == 0, z3.BitVecVal(0, width), z3.UDiv(a, b))
        case AluOp.MOD:
            made = z3.If(b == 0, a, z3.URem(a, b))
        case AluOp.SDIV:
            made = z3.If(b == 0, z3.BitVecVal(0, width), a / b)
        case AluOp.SMOD:
            made = z3.If(b == 0, a, z3.SRem(a, b))
        case AluOp.OR:
            made = a | b
        case AluOp.AND:
            made = a & b
        case AluOp.XOR:
            made = a ^ b
        case AluOp.LSH:
            made = a << by
        case AluOp.RSH:
            made = z3.LShR(a, by)
        case _:
            made = a >> by
    return made if is64 else z3.ZeroExt(32, made)


def _swap(bits: Any, width: int, order: SwapOrder) -> Num:
    parts = [z3.Extract(8 * n + 7, 8 * n, bits) for n in range(width // 8)]
    made = z3.Concat(*(reversed(parts) if order is SwapOrder.LE else parts))
    return Num(made if width == 64 else z3.ZeroExt(64 - width, made))


def _compare(op: JmpOp, is64: bool, left: Any, right: Any) -> Any:
    a, b = (left, right) if is64 else (z3.Extract(31, 0, left), z3.Extract(31, 0, right))
    return {
        JmpOp.EQ: lambda: a == b, JmpOp.NE: lambda: a != b, JmpOp.GT: lambda: z3.UGT(a, b),
        JmpOp.GE: lambda: z3.UGE(a, b), JmpOp.LT: lambda: z3.ULT(a, b),
        JmpOp.LE: lambda: z3.ULE(a, b), JmpOp.SGT: lambda: a > b, JmpOp.SGE: lambda: a >= b,
        JmpOp.SLT: lambda: a < b, JmpOp.SLE: lambda: a <= b,
        JmpOp.SET: lambda: (a & b) != 0,
    }[op]()
