"""Prove one instruction's obligations, and what is known after it.

`step` does both for every instruction that stays in its function; calls, exits and jumps are
explore.py's.  Obligations come from obligations.py; here they are proven in a state.
"""

from __future__ import annotations

from typing import assert_never

from xdp_runtime.arena import PAGE_BYTES
from xdp_runtime.isa import (
    AddressCast,
    Alu,
    AluOp,
    Atomic,
    AtomicOp,
    Imm,
    Insn,
    Load,
    LoadAcquire,
    LoadFunc,
    LoadImm64,
    LoadMap,
    LoadMapValue,
    Mov,
    Neg,
    Reg,
    Store,
    StoreRelease,
    Swap,
    SwapOrder,
)
from xdp_runtime.object import GlobalKind, MapType
from xdp_runtime.verifier import (
    access,
    arguments,
    arithmetic,
    references,
    scalar,
    scalar_alu,
    stack,
)
from xdp_runtime.verifier.domain import (
    Frame,
    Kind,
    Num,
    Ptr,
    Slot,
    State,
    mark_precise,
    name_of,
)
from xdp_runtime.verifier.env import Env, Refused
from xdp_runtime.verifier.obligations import (
    CallDepth,
    Comparable,
    HasArena,
    IsNumber,
    NonZeroDivisor,
    NotAllowed,
    Obligation,
    Readable,
    Returnable,
    ShiftInRange,
    Summable,
    ValidAccess,
    ValidCall,
    ValidKfunc,
    ValidMap,
    Writable,
)
from xdp_runtime.verifier.scalar import Scalar

_FROZEN = (GlobalKind.RODATA, GlobalKind.KCONFIG)
_CONTEXT = {0: Kind.PACKET, 4: Kind.PACKET_END, 8: Kind.PACKET_META}
_U32 = scalar.unsigned(4)
_NOT_IN_ARENAS = (AtomicOp.AND, AtomicOp.OR, AtomicOp.XOR)  # bpf_jit_supports_insn() of x86


def prove(env: Env, state: State, obligation: Obligation) -> None:
    """Raises Refused unless the obligation holds in `state`."""
    regs = state.top.regs
    match obligation:
        case Readable(reg):
            if regs[reg] is None:
                raise Refused("uninit", f"r{reg} is read but holds nothing on this path",
                              regs=(reg,))
        case Writable(reg):
            if reg == 10:
                raise Refused("stack", "the frame pointer r10 is read-only")
        case IsNumber(reg):
            if not isinstance(regs[reg], Num):
                raise Refused("type", f"r{reg} is used as a number but is {name_of(regs[reg])}",
                              regs=(reg,))
        case ShiftInRange(amount, bits):
            if not 0 <= amount < bits:
                raise Refused("arithmetic", f"a shift by {amount} of {bits} bits")
        case NonZeroDivisor(divisor):
            if divisor == 0:
                raise Refused("arithmetic", "division by the constant 0")
        case ValidAccess():
            _prove_access(env, state, obligation)
        case ValidMap(index, offset):
            _prove_map(env, index, offset)
        case HasArena():
            if env.arena < 0:
                raise Refused("map", "addr_space_cast in a program that uses no arena")
        case Summable() | Comparable():
            pass  # proven where the result is computed: arithmetic.py, branches.py
        case ValidCall() | ValidKfunc() | Returnable() | CallDepth():
            pass  # calls.py, kfuncs.py, explore.py
        case NotAllowed(why):
            raise Refused("control", why)
        case _:
            assert_never(obligation)


def split(obligations: tuple[Obligation, ...]) -> tuple[tuple[int, ...], tuple[Obligation, ...]]:
    """(registers that must hold something, what else must be proven in each state)"""
    reads = tuple(one.reg for one in obligations if isinstance(one, Readable))
    return reads, tuple(one for one in obligations if not (
        isinstance(one, Readable | Summable | Comparable | ValidCall | ValidKfunc | Returnable
                   | CallDepth)
        or (isinstance(one, Writable) and one.reg != 10)
        or (isinstance(one, ShiftInRange) and 0 <= one.amount < one.bits)
        or (isinstance(one, NonZeroDivisor) and one.divisor)))


def _prove_access(env: Env, state: State, what: ValidAccess) -> None:
    value = state.top.regs[what.reg]
    ptr = access.pointer(value, what.reg)
    if env.arena >= 0:
        _settle_arena(env, ptr.kind is Kind.ARENA, what.reg)
    is_context = ptr.kind is Kind.CTX
    if env.context_at.setdefault(env.slot, is_context) is not is_context:
        raise Refused("type", "the same instruction uses the context on one path and memory on "
                      "another", regs=(what.reg,))
    if is_context:
        if ptr.off or what.atomic:
            raise Refused("context", f"r{what.reg} is the context moved by {ptr.off} bytes"
                          if ptr.off else "atomic operation on the context", regs=(what.reg,))
        access.context_field(env, what.off, what.size, what.write, what.signed)
        if env.observer is not None:
            env.observer.context(env.slot, what.off)
        return
    access.check(env, state, what.reg, ptr, what.off, what.size, write=what.write,
                 atomic=what.atomic)


def _settle_arena(env: Env, is_arena: bool, reg: int) -> None:
    if env.arena_at.setdefault(env.slot, is_arena) is not is_arena:
        raise Refused("type", "the same instruction works on the arena on one path and on "
                      "something else on another", regs=(reg,))


def _prove_map(env: Env, index: int, offset: int) -> None:
    if not 0 <= index < len(env.maps):
        raise Refused("map", f"there is no map number {index}")
    spec = env.maps[index]
    if spec.type == MapType.ARENA:
        if offset > PAGE_BYTES * spec.max_entries:
            raise Refused("map", f"address of byte {offset} of map {spec.name}")
    elif offset >= 0 and (spec.type != MapType.ARRAY or spec.max_entries != 1
                        or offset >= spec.value_size):
        raise Refused("map", f"address of byte {offset} of map {spec.name}")


def step(env: Env, state: State, insn: Insn) -> None:
    """Change `state` from before to after `insn`, whose obligations hold.  Raises Refused."""
    regs = state.top.regs
    match insn:
        case Alu(op, is64, dst, src):
            _alu(env, state, op, is64, dst, src)
        case Mov(is64, dst, src, sign_bits):
            _mov(env, state, is64, dst, src, sign_bits)
        case Load(dst, src_reg, off, size, signed):
            regs[dst] = _load(env, state, src_reg, off, size, signed)
        case Store(dst, off, size, src):
            value = regs[src.n] if isinstance(src, Reg) else Num(scalar.const(src.value))
            assert value is not None
            _store(env, state, dst, off, size, value, src.n if isinstance(src, Reg) else -1)
        case LoadImm64(dst, value64):
            regs[dst] = Num(scalar.const(value64))
        case Neg(is64, dst):
            old = regs[dst]
            regs[dst] = (Num(scalar_alu.neg(is64, old.range), 0, old.tokens)
                         if isinstance(old, Num) else Num(scalar.UNKNOWN if is64 else _U32))
        case Swap(dst, 64, SwapOrder.LE) if isinstance(regs[dst], Num):
            pass
        case Swap(dst, bits, order):
            old = regs[dst]
            regs[dst] = (Num(scalar_alu.swap(old.range, bits, order), 0, old.tokens)
                         if isinstance(old, Num) else Num(scalar.unsigned(bits // 8)))
        case LoadMap(dst, index):
            regs[dst] = Ptr(Kind.MAP, map_=index)
        case LoadMapValue(dst, index, _) if env.maps[index].type == MapType.ARENA:
            regs[dst] = Num(scalar.UNKNOWN)
        case AddressCast(dst, _, to_user):
            regs[dst] = Num(scalar.UNKNOWN) if to_user else Ptr(Kind.ARENA, map_=env.arena)
        case LoadMapValue(dst, index, offset):
            regs[dst] = Ptr(Kind.MAP_VALUE, offset, map_=index)
        case LoadFunc(dst, off):
            regs[dst] = _function(env, env.slot + 1 + off)
        case Atomic():
            _atomic(env, state, insn)
        case LoadAcquire(dst, src_reg, off, size):
            regs[dst] = _load(env, state, src_reg, off, size, False)
        case StoreRelease(dst, off, size, src_reg):
            stored = regs[src_reg]
            assert stored is not None
            _store(env, state, dst, off, size, stored, src_reg)
        case _:
            raise AssertionError(f"{insn} leaves the function or branches")


def _function(env: Env, start: int) -> Ptr:
    """The address of a function that a helper may call back."""
    if env.obj.btf is None:
        raise Refused("call", "a callback needs types (BTF)", "compile with -g")
    if any(f.start == start and f.is_global for f in env.program.functions):
        raise Refused("call", "a callback must be a static function", "declare it static")
    return Ptr(Kind.FUNC, start)


def _alu(env: Env, state: State, op: AluOp, is64: bool, dst: int, src: Reg | Imm) -> None:
    regs = state.top.regs
    left = regs[dst]
    assert left is not None
    if isinstance(src, Imm):
        right: Num | Ptr = Num(scalar.const(src.value))
        source = -1
    else:
        value = regs[src.n]
        assert value is not None
        right, source = value, src.n
    if dst == 10:
        raise Refused("stack", "the frame pointer r10 is read-only")
    if env.arena >= 0:
        arena = next((one for one in (left, right) if isinstance(one, Ptr)
                      and one.kind is Kind.ARENA), None)
        _settle_arena(env, arena is not None, dst)
        if arena is not None:  # any arithmetic, of which the lower half is taken
            regs[dst] = arena
            return
    regs[dst] = arithmetic.combine(env, op, is64, left, right, dst, source)


def _mov(env: Env, state: State, is64: bool, dst: int, src: Reg | Imm, sign_bits: int) -> None:
    regs = state.top.regs
    if isinstance(src, Imm):
        regs[dst] = Num(scalar.const(src.value if is64 else src.value & 0xFFFFFFFF))
        return
    value = regs[src.n]
    if isinstance(value, Ptr):  # root may take pointers apart
        if is64 and not sign_bits:
            regs[dst] = value
        else:
            regs[dst] = Num(scalar.UNKNOWN if is64 else _U32)
        return
    assert value is not None
    if sign_bits:
        extended = _sign_extended(value.range, sign_bits, is64)
        keep = extended == value.range
        regs[dst] = _copy(env, state, src.n, value) if keep else Num(extended, 0, value.tokens)
        return
    if is64 or value.range.umax <= 0xFFFFFFFF:
        regs[dst] = _copy(env, state, src.n, value)
    else:
        regs[dst] = Num(scalar_alu.mov32(value.range), 0, value.tokens)


def _sign_extended(span: Scalar, bits: int, is64: bool) -> Scalar:
    """As the kernel: where the bits above may differ, only the type's range is known."""
    low, high = (span.smin, span.smax) if is64 else (span.s32min, span.s32max)
    if span.is_const or low >> bits == high >> bits:
        return scalar_alu.sign_extend(span, bits, is64)
    return scalar.signed(bits // 8) if is64 else scalar_alu.mov32(scalar.signed(bits // 8))


def _copy(env: Env, state: State, source: int, value: Num) -> Num:
    """A copy shares an id with its origin, so that a check on one serves both.

    The kernel gives up what links the origin to others by a difference, and so do we."""
    if (value.id == 0 or value.delta) and not value.range.is_const:
        value = Num(value.range, env.next_id(), value.tokens)
        state.top.regs[source] = value
    return value


def _load(env: Env, state: State, src: int, off: int, size: int, signed: bool) -> Num | Ptr:
    ptr = state.top.regs[src]
    assert isinstance(ptr, Ptr)
    kind = ptr.kind
    if kind is Kind.CTX:
        found = _CONTEXT.get(off)
        if found is not None:
            return Ptr(found)
        return Num(scalar_alu.sign_extend(_U32, 32, True) if signed else _U32)
    if kind is Kind.STACK:
        frame = state.frames[ptr.frame]
        if ptr.var is None:
            value = stack.read(frame, ptr.off + off, size)
            if isinstance(value, Num) and signed:
                return Num(scalar_alu.sign_extend(value.range, size * 8, True), 0, value.tokens)
            if isinstance(value, Ptr):
                if signed:
                    raise Refused("stack", "a spilled pointer is read with its sign")
                env.fills.add(env.slot)
            if isinstance(value, Num) and value.id == 0 and not value.range.is_const:
                return _linked(env, frame, ptr.off + off, value)
            return value
        low, high = access.stack_range(src, ptr, off)
        references.no_objects(frame, low, high + size)
        zero = stack.read_range(frame, low, high + size)
        if zero is not None:
            return zero
    elif kind is Kind.MAP_VALUE and ptr.var is None:
        constant = _frozen(env, ptr, off, size, signed)
        if constant is not None:
            return constant
    return Num(scalar.signed(size) if signed else scalar.unsigned(size))


def _linked(env: Env, frame: Frame, off: int, value: Num) -> Num:
    """What was filled whole shares an id with its slot."""
    slot = frame.stack.get(off)
    if slot is None or slot.value is not value:
        return value
    value = Num(value.range, env.next_id(), value.tokens)
    frame.writable()[off] = Slot(value, slot.size, slot.init, slot.zero, slot.token)
    return value


def _frozen(env: Env, ptr: Ptr, off: int, size: int, signed: bool) -> Num | None:
    """A load from .rodata or .kconfig: a known constant (bpf_map_direct_read)."""
    spec = env.maps[ptr.map]
    where = ptr.off + off
    if spec.global_kind not in _FROZEN or where + size > spec.value_size or not spec.initial:
        return None
    raw = spec.initial[where : where + size].ljust(size, b"\0")
    return Num(scalar.const(int.from_bytes(raw, "little", signed=signed)))


def _store(env: Env, state: State, dst: int, off: int, size: int, value: Num | Ptr,
           source: int) -> None:
    ptr = state.top.regs[dst]
    assert isinstance(ptr, Ptr)
    if ptr.kind is not Kind.STACK:
        arguments.forget_buffer(env, state, ptr)
        return
    frame = state.frames[ptr.frame]
    low, high = access.stack_range(dst, ptr, off)
    references.overwrite(state, frame, low, high + size)
    env.write_stack(low, high + size)
    if ptr.var is None:
        if isinstance(value, Num) and (ptr.off + off) % 8 == 0 and source >= 0:
            if value.range.umax < 1 << 8 * size:  # register and slot stay copies of each other
                value = _copy(env, state, source, value)
            else:
                value = Num(value.range, 0, value.tokens)
        stack.write(frame, ptr.off + off, size, value, ptr.frame != len(state.frames) - 1)
        return
    zero = isinstance(value, Num) and value.range.is_const and value.range.const == 0
    if zero:
        mark_precise(value.tokens)
    stack.scatter_somewhere(frame, low, high + size, zero)


def _atomic(env: Env, state: State, insn: Atomic) -> None:
    regs = state.top.regs
    ptr = regs[insn.dst]
    assert isinstance(ptr, Ptr)
    if insn.fetch and insn.dst == (0 if insn.op is AtomicOp.CMPXCHG else insn.src):
        # the kernel looks at the address once the register is a number already
        raise Refused("arithmetic", f"the old value would replace its own address in r{insn.dst}",
                      "copy the address to another register first", regs=(insn.dst,))
    if ptr.kind is Kind.ARENA and insn.fetch and insn.op in _NOT_IN_ARENAS:
        raise Refused("type", f"r{insn.dst} points into an arena, where no atomic "
                      f"{insn.op.name.lower()} gives the old value", regs=(insn.dst,))
    result = Num(scalar.unsigned(insn.size))
    arguments.forget_buffer(env, state, ptr)
    if ptr.kind is Kind.STACK:
        frame = state.frames[ptr.frame]
        low, high = access.stack_range(insn.dst, ptr, insn.off)
        references.no_objects(frame, low, high + insn.size)
        env.write_stack(low, high + insn.size)
        if low == high:
            old = stack.read(frame, low, insn.size)
            if isinstance(old, Ptr):
                raise Refused("stack", "atomic operation on a spilled pointer")
            result = Num(old.range, 0, old.tokens)
            stack.scatter(frame, low, insn.size, zero=False)
        else:
            stack.touch(frame, low, high + insn.size)
            stack.scatter_somewhere(frame, low, high + insn.size)
    if insn.op is AtomicOp.CMPXCHG:
        regs[0] = result
    elif insn.fetch:
        regs[insn.src] = result
