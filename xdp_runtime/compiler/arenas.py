"""Instructions that work on an arena: its pointers are numbers, the lower halves of addresses.

Each access asks where its bytes are (maps/arena.py); if they are nowhere, a load gives zero, and
nothing else happens: registers that an atomic operation would have changed stay as they were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdp_runtime.arena import start_of
from xdp_runtime.compiler.kinds import Scalar, State, Uninit
from xdp_runtime.isa import (
    AddressCast,
    Alu,
    Atomic,
    AtomicOp,
    Insn,
    Load,
    LoadAcquire,
    LoadMapValue,
    Store,
    StoreRelease,
)
from xdp_runtime.maps import family_of
from xdp_runtime.maps.arena import AT
from xdp_runtime.object import MapFlag, MapType

if TYPE_CHECKING:
    from xdp_runtime.compiler.lower import Lowering


def lower_insn(low: Lowering, insn: Insn, after: State) -> bool:
    """Emit one instruction; False if it has nothing to do with an arena."""
    match insn:
        case AddressCast(dst, src, to_user):
            known = after.regs[dst]
            if isinstance(known, Scalar) and known.const is not None:
                low.set_number(dst, str(known.const))
            else:
                low.set_number(dst, _cast(low, low.number_of(src), to_user))
            return True
        case LoadMapValue(dst, index, offset) if low.maps[index].type == MapType.ARENA:
            low.set_number(dst, str(start_of(low.maps[index]) + offset))
            return True
    if not low.provenance.uses_arena(low.slot):
        return False
    match insn:
        case Alu(op, is64, dst, operand):
            bits = 64 if is64 else 32
            left, right = low.narrow(low.number_of(dst), bits), low.operand(operand)
            result = low.arithmetic(op, bits, left, low.narrow(right, bits))
            low.set_number(dst, low.widen(low.narrow(result, 32) if is64 else result, 32))
        case Load(dst, base, off, size, signed):
            number = low.number_of(base)
            low.set_number(dst, "0")
            where, done = _find(low, number, off, size)
            got = low.value(f"load i{size * 8}, ptr {where}, align 1")
            low.set_number(dst, low.widen(got, size * 8, signed))
            _end(low, done)
        case LoadAcquire(dst, base, off, size):
            number = low.number_of(base)
            _keep(low, dst)
            where, done = _find(low, number, off, size)
            got = low.value(f"load atomic i{size * 8}, ptr {where} acquire, align {size}")
            low.set_number(dst, low.widen(got, size * 8))
            _end(low, done)
        case Store(base, off, size, operand):
            where, done = _find(low, low.number_of(base), off, size)
            value = low.narrow(low.operand(operand), size * 8)
            low.emit(f"store i{size * 8} {value}, ptr {where}, align 1")
            _end(low, done)
        case StoreRelease(base, off, size, src):
            where, done = _find(low, low.number_of(base), off, size)
            value = low.narrow(low.number_of(src), size * 8)
            low.emit(f"store atomic i{size * 8} {value}, ptr {where} release, align {size}")
            _end(low, done)
        case Atomic(op, size, base, off, src, fetch):
            number = low.number_of(base)
            if op is AtomicOp.CMPXCHG:
                _keep(low, 0)
            elif fetch:
                _keep(low, src)
            where, done = _find(low, number, off, size)
            low.lower_atomic_at(insn, where)
            _end(low, done)
        case _:
            return False
    return True


def _keep(low: Lowering, register: int) -> None:
    """Whatever it holds, it is a number if the access comes to nothing."""
    kind = low.state.regs[register]
    low.set_number(register, "0" if isinstance(kind, Uninit) else low.number_of(register))


def _cast(low: Lowering, value: str, to_user: bool) -> str:
    spec = low.maps[low.provenance.arena]
    lower = low.widen(low.narrow(value, 32), 32)
    upper = start_of(spec) >> 32 << 32
    if not to_user or spec.flags & MapFlag.NO_USER_CONV:
        return lower
    null = low.value(f"icmp eq i64 {lower}, 0")
    whole = low.value(f"or i64 {lower}, {upper}")
    return low.value(f"select i1 {null}, i64 0, i64 {whole}")


def _find(low: Lowering, number: str, off: int, size: int) -> tuple[str, str]:
    """Go on where the bytes are there: (their address, the label where they are not)."""
    index = low.provenance.arena
    spec = low.maps[index]
    leading = [f"ptr {low.region(index, p)}" if isinstance(p, str) else f"i64 {p}"
               for p in family_of(spec).parameters(spec, low.workers)]
    address = low.value(f"add i64 {number}, {off}") if off else number
    where = low.call_template(AT, [*leading, "i64 0", f"i64 {address}", f"i64 {size}"])
    nowhere = low.value(f"icmp eq ptr {where}, null")
    there, done = low.label("there"), low.label("accessed")
    low.emit(f"br i1 {nowhere}, label %{done}, label %{there}")
    low.start(there)
    return where, done


def _end(low: Lowering, done: str) -> None:
    low.emit(f"br label %{done}")
    low.start(done)
