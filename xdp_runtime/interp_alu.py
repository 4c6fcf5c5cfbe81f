"""The arithmetic of eBPF on Python ints: RFC 9669, and the kernel where that leaves a choice.

Values are unsigned 64-bit numbers, arguments and results alike.
"""

from __future__ import annotations

from typing import assert_never

from xdp_runtime.isa import AluOp, AtomicOp, JmpOp, SwapOrder

U32, U64 = (1 << 32) - 1, (1 << 64) - 1


def signed(value: int, bits: int) -> int:
    """The low `bits` as a two's complement number."""
    sign = 1 << (bits - 1)
    return ((value & ((1 << bits) - 1)) ^ sign) - sign


def sign_extend(value: int, bits: int) -> int:
    return signed(value, bits) & U64


def alu(op: AluOp, is64: bool, a: int, b: int) -> int:
    """Division by zero gives 0, modulo by zero the dividend; shift counts are masked."""
    bits = 64 if is64 else 32
    mask = U64 if is64 else U32
    a, b = a & mask, b & mask
    return _alu(op, bits, a, b) & mask


def _alu(op: AluOp, bits: int, a: int, b: int) -> int:
    shift = b & (bits - 1)
    match op:
        case AluOp.ADD:
            return a + b
        case AluOp.SUB:
            return a - b
        case AluOp.MUL:
            return a * b
        case AluOp.DIV:
            return a // b if b else 0
        case AluOp.MOD:
            return a % b if b else a
        case AluOp.SDIV:
            return _truncated_quotient(signed(a, bits), signed(b, bits)) if b else 0
        case AluOp.SMOD:
            if not b:
                return a
            x, y = signed(a, bits), signed(b, bits)
            return x - _truncated_quotient(x, y) * y
        case AluOp.OR:
            return a | b
        case AluOp.AND:
            return a & b
        case AluOp.XOR:
            return a ^ b
        case AluOp.LSH:
            return a << shift
        case AluOp.RSH:
            return a >> shift
        case AluOp.ARSH:
            return signed(a, bits) >> shift
        case _:
            assert_never(op)


def _truncated_quotient(x: int, y: int) -> int:
    """Rounds towards zero.  The smallest number by -1 is itself, once masked."""
    quotient = abs(x) // abs(y)
    return quotient if (x < 0) == (y < 0) else -quotient


def compare(op: JmpOp, is64: bool, a: int, b: int) -> bool:
    bits, mask = (64, U64) if is64 else (32, U32)
    a, b = a & mask, b & mask
    x, y = signed(a, bits), signed(b, bits)
    match op:
        case JmpOp.EQ:
            return a == b
        case JmpOp.NE:
            return a != b
        case JmpOp.GT:
            return a > b
        case JmpOp.GE:
            return a >= b
        case JmpOp.LT:
            return a < b
        case JmpOp.LE:
            return a <= b
        case JmpOp.SET:
            return a & b != 0
        case JmpOp.SGT:
            return x > y
        case JmpOp.SGE:
            return x >= y
        case JmpOp.SLT:
            return x < y
        case JmpOp.SLE:
            return x <= y
        case _:
            assert_never(op)


def swap(order: SwapOrder, bits: int, value: int) -> int:
    """On a little-endian machine, which is what programs are compiled for here."""
    value &= (1 << bits) - 1
    match order:
        case SwapOrder.LE:
            return value
        case SwapOrder.BE | SwapOrder.SWAP:
            return int.from_bytes(value.to_bytes(bits // 8, "little"), "big")
        case _:
            assert_never(order)


def atomic(op: AtomicOp, size: int, old: int, operand: int, r0: int) -> int:
    """What is in memory afterwards."""
    mask = (1 << 8 * size) - 1
    operand &= mask
    match op:
        case AtomicOp.ADD:
            return (old + operand) & mask
        case AtomicOp.OR:
            return old | operand
        case AtomicOp.AND:
            return old & operand
        case AtomicOp.XOR:
            return old ^ operand
        case AtomicOp.XCHG:
            return operand
        case AtomicOp.CMPXCHG:
            return operand if old == r0 & mask else old
        case _:
            assert_never(op)
