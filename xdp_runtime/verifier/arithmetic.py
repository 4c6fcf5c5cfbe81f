"""`dst op= src` on numbers and pointers (adjust_reg_min_max_vals, adjust_ptr_min_max_vals).

Root may subtract pointers and may see their 32-bit halves as numbers; it may not do anything else
to a pointer but move it by a number with limits.
"""

from __future__ import annotations

import operator

from xdp_runtime.isa import AluOp
from xdp_runtime.verifier import scalar, scalar_alu
from xdp_runtime.verifier.access import MAX_VAR_OFF
from xdp_runtime.verifier.domain import Kind, Num, Ptr, mark_precise, merged, name_of
from xdp_runtime.verifier.env import Env, Refused
from xdp_runtime.verifier.scalar import Scalar

_MOVABLE = (Kind.PACKET, Kind.PACKET_META, Kind.STACK, Kind.MAP_VALUE, Kind.MEM, Kind.MAP_KEY,
            Kind.CTX)
_ANY = Num(scalar.UNKNOWN)
_ANY32 = Num(scalar.unsigned(4))
_STEPS = (AluOp.ADD, AluOp.SUB)
_SHIFTS = (AluOp.LSH, AluOp.RSH, AluOp.ARSH)
# of these the kernel follows the unsigned range only
_SIGNLESS = (AluOp.AND, AluOp.OR, AluOp.XOR, AluOp.LSH)
_DIVISIONS = (AluOp.DIV, AluOp.MOD, AluOp.SDIV, AluOp.SMOD)
_PLAIN = {AluOp.ADD: operator.add, AluOp.SUB: operator.sub, AluOp.AND: operator.and_,
          AluOp.OR: operator.or_, AluOp.XOR: operator.xor}
_U64_MAX = 0xFFFFFFFFFFFFFFFF
_U32_MAX = 0xFFFFFFFF
_S64_MIN = -(1 << 63)


def combine(env: Env, op: AluOp, is64: bool, left: Num | Ptr, right: Num | Ptr,
            dst: int, src: int) -> Num | Ptr:
    """The new value of r<dst>.  `src` is the source register, -1 for an immediate."""
    if isinstance(left, Num):
        if isinstance(right, Num):
            if not _computed(op, is64, right.range):
                return _ANY
            step_of = _PLAIN.get(op)
            if step_of is not None and not left.range.mask and not right.range.mask:
                exact = step_of(left.range.value, right.range.value)
                result = scalar.const(exact & (_U64_MAX if is64 else _U32_MAX))
            else:
                result = scalar_alu.alu(op, is64, left.range, right.range)
                if op in _SIGNLESS and result.mask:
                    result = _signless(result)
            tokens = merged(left.tokens, right.tokens)
            if left.id and not left.delta and right.range.is_const and op in _STEPS:
                step = right.range.smin if is64 else right.range.s32min
                step = step if op is AluOp.ADD else -step
                if is64 or (left.range.umin + step >= 0 and left.range.umax + step <= _U32_MAX):
                    return Num(result, left.id, tokens, step, not is64)
            return Num(result, 0, tokens)
        if op is AluOp.SUB and not is64:
            return _ANY32
        if not is64 or op is not AluOp.ADD:
            raise _refuse(op, right, src)
        return move(env, right, left, False, src)
    if isinstance(right, Ptr):
        if op is AluOp.SUB:
            return _ANY if is64 else _ANY32
        raise _refuse(op, left, dst)
    if not is64:
        if op is AluOp.SUB:
            return _ANY32
        raise _refuse(op, left, dst)
    if op is AluOp.ADD:
        return move(env, left, right, False, dst)
    if op is AluOp.SUB:
        return move(env, left, right, True, dst)
    raise _refuse(op, left, dst)


def _computed(op: AluOp, is64: bool, right: Scalar) -> bool:
    """Does the kernel make anything of such an operation? (is_safe_to_compute_dst_reg_range)

    More can be known (scalar_alu.py does); a program that needs it would not load there."""
    if op in _DIVISIONS:
        return False
    return op not in _SHIFTS or (right.is_const and right.umax < (64 if is64 else 32))


def _signless(known: Scalar) -> Scalar:
    """Without what only its signed ranges say."""
    made = scalar.sync(known.value, known.mask, known.umin, known.umax, _S64_MIN, -_S64_MIN - 1,
                       known.u32min, known.u32max, -1 << 31, (1 << 31) - 1)
    assert made is not None
    return made


def _refuse(op: AluOp, pointer: Ptr, number: int) -> Refused:
    return Refused("arithmetic", f"{op.name.lower()} on r{number}, which is {name_of(pointer)}",
                   regs=(number,))


def move(env: Env, ptr: Ptr, by: Num, down: bool, number: int) -> Ptr:
    """`ptr` moved by a number: its constant offset, or a variable one with limits."""
    if ptr.nullable:
        raise Refused("null", f"arithmetic on r{number}, {name_of(ptr)}",
                      f"check `r{number} != 0` first", regs=(number,))
    if ptr.kind is Kind.MAP and not down and by.range.is_const and by.range.const == 0:
        mark_precise(by.tokens)
        return ptr
    if ptr.kind not in _MOVABLE:
        raise Refused("arithmetic", f"arithmetic on r{number}, which is {name_of(ptr)}",
                      regs=(number,))
    span = by.range
    mark_precise(by.tokens)
    packet = ptr.kind in (Kind.PACKET, Kind.PACKET_META)
    if down and ptr.kind is Kind.STACK:
        raise Refused("arithmetic", f"subtraction from the stack pointer in r{number}",
                      "add a negative number instead", regs=(number,))
    if span.is_const:
        step = span.smin
        if not -MAX_VAR_OFF < step < MAX_VAR_OFF:
            raise Refused("arithmetic", f"r{number} is moved by {step}, further than any object "
                          "reaches", regs=(number,))
        off = ptr.off - step if down else ptr.off + step
        if not -MAX_VAR_OFF < off < MAX_VAR_OFF:
            raise Refused("arithmetic", f"r{number} ends up {off} bytes from its object",
                          regs=(number,))
        return ptr.at(off, ptr.var, ptr.id, ptr.range, ptr.tokens)
    if ptr.kind is Kind.CTX:
        raise Refused("context", f"the context in r{number} is moved by a number that is not "
                      "constant", regs=(number,))
    if span.smin == _S64_MIN or span.smin <= -MAX_VAR_OFF or span.smin >= MAX_VAR_OFF:
        raise Refused("arithmetic", f"r{number} is moved by a number without a lower limit "
                      f"({scalar.describe(span)})", "make it unsigned or check that it is >= 0",
                      regs=(number,))
    var = span if ptr.var is None and not down else scalar_alu.alu(
        AluOp.SUB if down else AluOp.ADD, True, ptr.var or scalar.const(0), span)
    if var.smin <= -MAX_VAR_OFF and not packet:
        raise Refused("arithmetic", f"r{number} may end up far before its object "
                      f"({scalar.describe(var)})", regs=(number,))
    tokens = merged(ptr.tokens, by.tokens)
    if packet:  # another unknown offset: what was proven for the old one says nothing now
        keep = ptr.range if down and span.smin >= 0 else 0
        return ptr.at(ptr.off, var, env.next_id(), keep, tokens)
    return ptr.at(ptr.off, var, ptr.id, ptr.range, tokens)


def as_number(value: Num | Ptr, bits: int) -> Scalar:
    """What is known of a register's lower `bits` as a number."""
    if isinstance(value, Ptr):
        return scalar.unsigned(bits // 8) if bits < 64 else scalar.UNKNOWN
    return value.range
