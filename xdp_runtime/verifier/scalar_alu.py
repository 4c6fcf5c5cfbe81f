"""What arithmetic makes of what is known: one transfer function an operation.

Each works at one width, on bits and two ranges; a 32-bit operation is that on the sub-registers,
zero-extended.  Integers of Python do not overflow, so a range is computed exactly and then wrapped:
where both ends went round equally often it stays one.

`alu` remembers: a verifier meets the same instruction with the same operands again and again.
Operands are told by identity; a remembered entry keeps them alive, so an id means one object.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xdp_runtime.isa import AluOp, SwapOrder
from xdp_runtime.verifier.scalar import UNKNOWN, Scalar, const, signed, sync
from xdp_runtime.verifier.tnum import (
    BITS,
    HALF,
    SIGN,
    SIGN32,
    TOP,
    TOP32,
    Tnum,
    add,
    and_,
    arshift,
    mul,
    or_,
    sub,
    union,
    xor,
)
from xdp_runtime.verifier.tnum import sign_extend as extend_bits

Operand = tuple[int, int, int, int, int, int]   # value, mask, umin, umax, smin, smax
Transfer = Callable[[Operand, Operand, int], Operand]

_MEMO_SIZE: Final = 1 << 16
_memo: dict[tuple[int, bool, int, int], tuple[Scalar, Scalar, Scalar]] = {}


def alu(op: AluOp, is64: bool, a: Scalar, b: Scalar) -> Scalar:
    key = (op._value_, is64, id(a), id(b))
    found = _memo.get(key)
    if found is not None:
        return found[0]
    made = _alu(op._value_, is64, a, b)
    if len(_memo) >= _MEMO_SIZE:
        _memo.clear()
    _memo[key] = (made, a, b)
    return made


def _alu(code: int, is64: bool, a: Scalar, b: Scalar) -> Scalar:
    transfer = _TRANSFER[code]
    if not is64:
        return _zero_extended(transfer(_low(a), _low(b), HALF))
    if code == _LSH and b.umin >= HALF and b.umax < BITS:
        operand = _low(a)       # nothing else of it is left
    else:
        operand = (a.value, a.mask, a.umin, a.umax, a.smin, a.smax)
    value, mask, umin, umax, smin, smax = transfer(
        operand, (b.value, b.mask, b.umin, b.umax, b.smin, b.smax), BITS)
    if not mask:
        return const(value)
    if umin == umax or smin == smax:
        return const(umin if umin == umax else smin)
    if (a.umax >= SIGN32 or b.umax >= SIGN32) and code in _LOW_FROM_LOW and (
            code != _LSH or (not b.mask and b.value < BITS)):
        # The low half depends on low halves only, of which more may be known than of the whole.
        low = _lshift_by(_low(a), b.value, b.value, HALF) if code == _LSH else transfer(
            _low(a), _low(b), HALF)
        return _made(sync(value, mask, umin, umax, smin, smax, *low[2:]))
    return _made(sync(value, mask, umin, umax, smin, smax, 0, TOP32, -SIGN32, SIGN32 - 1))


def _low(a: Scalar) -> Operand:
    return a.value & TOP32, a.mask & TOP32, a.u32min, a.u32max, a.s32min, a.s32max


def _zero_extended(low: Operand) -> Scalar:
    value, mask, umin, umax, smin, smax = low
    if not mask:
        return const(value)
    if umin == umax or smin == smax:
        return const(umin if umin == umax else smin & TOP32)
    return _made(sync(value, mask, umin, umax, umin, umax, umin, umax, smin, smax))


def _made(result: Scalar | None) -> Scalar:
    """Operands that have values have a result."""
    assert result is not None
    return result


def _unsigned(low: int, high: int, bits: int) -> tuple[int, int]:
    """The range `low` to `high` of integers, wrapped to unsigned numbers."""
    top = (1 << bits) - 1
    if low >> bits == high >> bits:
        return low & top, high & top
    return 0, top


def _signed(low: int, high: int, bits: int) -> tuple[int, int]:
    sign = 1 << (bits - 1)
    round_low, round_high = (low + sign) >> bits, (high + sign) >> bits
    if round_low == round_high:
        return low - (round_low << bits), high - (round_low << bits)
    return -sign, sign - 1


def _from_unsigned(low: int, high: int, bits: int) -> Operand:
    """A result of which the unsigned range is all that is known."""
    sign = 1 << (bits - 1)
    return 0, (1 << bits) - 1, low, high, -sign, sign - 1


def _from_signed(low: int, high: int, bits: int) -> Operand:
    top = (1 << bits) - 1
    return 0, top, 0, top, low, high


def _add(a: Operand, b: Operand, bits: int) -> Operand:
    value, mask = add((a[0], a[1]), (b[0], b[1]), (1 << bits) - 1)
    return (value, mask, *_unsigned(a[2] + b[2], a[3] + b[3], bits),
            *_signed(a[4] + b[4], a[5] + b[5], bits))


def _sub(a: Operand, b: Operand, bits: int) -> Operand:
    value, mask = sub((a[0], a[1]), (b[0], b[1]), (1 << bits) - 1)
    return (value, mask, *_unsigned(a[2] - b[3], a[3] - b[2], bits),
            *_signed(a[4] - b[5], a[5] - b[4], bits))


def _mul(a: Operand, b: Operand, bits: int) -> Operand:
    value, mask = mul((a[0], a[1]), (b[0], b[1]), (1 << bits) - 1)
    corners = a[4] * b[4], a[4] * b[5], a[5] * b[4], a[5] * b[5]
    return (value, mask, *_unsigned(a[2] * b[2], a[3] * b[3], bits),
            *_signed(min(corners), max(corners), bits))


def _closed(a: Operand, b: Operand) -> tuple[int, int]:
    """Numbers that fit into so many signed bits stay so under AND, OR and XOR."""
    width = max((a[4] ^ a[4] >> BITS).bit_length(), (a[5] ^ a[5] >> BITS).bit_length(),
                (b[4] ^ b[4] >> BITS).bit_length(), (b[5] ^ b[5] >> BITS).bit_length())
    return -1 << width, (1 << width) - 1


def _and(a: Operand, b: Operand, bits: int) -> Operand:
    value, mask = and_((a[0], a[1]), (b[0], b[1]))
    smin, smax = _closed(a, b)
    if a[4] >= 0:           # with a number that is not negative the result is not larger than it
        smax = min(a[5], b[5]) if b[4] >= 0 else a[5]
    elif b[4] >= 0:
        smax = b[5]
    else:
        smax = min(a[5], b[5]) if a[5] < 0 and b[5] < 0 else max(a[5], b[5])
    return value, mask, value, min(a[3], b[3]), smin, smax


def _or(a: Operand, b: Operand, bits: int) -> Operand:
    value, mask = or_((a[0], a[1]), (b[0], b[1]))
    return (value, mask, max(a[2], b[2]), value | mask, *_closed(a, b))


def _xor(a: Operand, b: Operand, bits: int) -> Operand:
    value, mask = xor((a[0], a[1]), (b[0], b[1]))
    return (value, mask, value, value | mask, *_closed(a, b))


def _counts(b: Operand, bits: int) -> tuple[int, int]:
    """Shift counts are masked to the width."""
    if b[3] < bits:
        return b[2], b[3]
    value, mask = b[0] & (bits - 1), b[1] & (bits - 1)
    return value, value | mask


def _lshift(a: Operand, b: Operand, bits: int) -> Operand:
    fewest, most = _counts(b, bits)
    return _lshift_by(a, fewest, most, bits)


def _lshift_by(a: Operand, fewest: int, most: int, bits: int) -> Operand:
    top = (1 << bits) - 1
    tnum: Tnum = a[0] << fewest & top, a[1] << fewest & top
    for count in range(fewest + 1, most + 1):
        tnum = union(tnum, (a[0] << count & top, a[1] << count & top))
    return (*tnum, *_unsigned(a[2] << fewest, a[3] << most, bits),
            *_signed(a[4] << (most if a[4] < 0 else fewest),
                     a[5] << (fewest if a[5] < 0 else most), bits))


def _rshift(a: Operand, b: Operand, bits: int) -> Operand:
    fewest, most = _counts(b, bits)
    tnum: Tnum = a[0] >> fewest, a[1] >> fewest
    for count in range(fewest + 1, most + 1):
        tnum = union(tnum, (a[0] >> count, a[1] >> count))
    smin, smax = -1 << (bits - 1), (1 << (bits - 1)) - 1
    if most == 0:
        smin, smax = a[4], a[5]
    return (*tnum, a[2] >> most, a[3] >> fewest, smin, smax)


def _arshift(a: Operand, b: Operand, bits: int) -> Operand:
    fewest, most = _counts(b, bits)
    bits_known: Tnum = a[0], a[1]
    tnum = arshift(bits_known, fewest, bits)
    for count in range(fewest + 1, most + 1):
        tnum = union(tnum, arshift(bits_known, count, bits))
    return (*tnum, 0, (1 << bits) - 1, a[4] >> (fewest if a[4] < 0 else most),
            a[5] >> (most if a[5] < 0 else fewest))


def _div(a: Operand, b: Operand, bits: int) -> Operand:
    """Unsigned; by zero it is zero."""
    if not b[3]:
        return 0, 0, 0, 0, 0, 0
    if b[2] == b[3] and not b[3] & (b[3] - 1):
        count = b[3].bit_length() - 1
        if count:
            return (a[0] >> count, a[1] >> count, *_from_unsigned(a[2] >> count, a[3] >> count,
                                                                  bits)[2:])
        return a
    low = a[2] // b[3] if b[2] else 0
    return _from_unsigned(low, a[3] // (b[2] or 1), bits)


def _mod(a: Operand, b: Operand, bits: int) -> Operand:
    """Unsigned; by zero it is the dividend."""
    if a[3] < b[2] or not b[3]:
        return a
    low, high = 0, a[3]
    if b[2]:
        high = min(high, b[3] - 1)
        if b[2] == b[3] and a[2] // b[2] == a[3] // b[2]:
            low, high = a[2] % b[2], a[3] % b[2]
    # The low bits stay, as many as the divisor surely has zeros.
    divisor = b[0] | b[1]
    kept = (divisor & -divisor) - 1
    top = (1 << bits) - 1
    if b[2] == b[3] == kept + 1:
        return (a[0] & kept, a[1] & kept, *_from_unsigned(low, high, bits)[2:])
    return (a[0] & kept, a[1] | top & ~kept, *_from_unsigned(low, high, bits)[2:])


def _quotient(x: int, y: int) -> int:
    """Rounds towards zero."""
    quotient = abs(x) // abs(y)
    return quotient if (x < 0) == (y < 0) else -quotient


def _sdiv(a: Operand, b: Operand, bits: int) -> Operand:
    """By zero it is zero; the smallest number by -1 is itself."""
    if not b[3]:
        return 0, 0, 0, 0, 0, 0
    if b[4] <= 0 <= b[5]:
        most = max(-a[4], a[5])
        return _from_signed(*_signed(-most, most, bits), bits)
    corners = (_quotient(a[4], b[4]), _quotient(a[4], b[5]),
               _quotient(a[5], b[4]), _quotient(a[5], b[5]))
    return _from_signed(*_signed(min(corners), max(corners), bits), bits)


def _smod(a: Operand, b: Operand, bits: int) -> Operand:
    """The sign is the dividend's; by zero it is the dividend."""
    least = 0 if b[4] <= 0 <= b[5] else min(abs(b[4]), abs(b[5]))
    if max(-a[4], a[5]) < least or not b[3]:
        return a
    if b[4] == b[5] and _quotient(a[4], b[4]) == (quotient := _quotient(a[5], b[5])):
        return _from_signed(a[4] - quotient * b[4], a[5] - quotient * b[4], bits)
    low, high = min(a[4], 0), max(a[5], 0)
    if least:
        most = max(abs(b[4]), abs(b[5])) - 1
        low, high = max(low, -most), min(high, most)
    return _from_signed(low, high, bits)


_LSH: Final = AluOp.LSH.value
_TRANSFER: Final[dict[int, Transfer]] = {
    AluOp.ADD.value: _add, AluOp.SUB.value: _sub, AluOp.MUL.value: _mul,
    AluOp.DIV.value: _div, AluOp.MOD.value: _mod, AluOp.SDIV.value: _sdiv,
    AluOp.SMOD.value: _smod, AluOp.AND.value: _and, AluOp.OR.value: _or, AluOp.XOR.value: _xor,
    AluOp.LSH.value: _lshift, AluOp.RSH.value: _rshift, AluOp.ARSH.value: _arshift}
_LOW_FROM_LOW: Final = frozenset(op.value for op in (
    AluOp.ADD, AluOp.SUB, AluOp.MUL, AluOp.AND, AluOp.OR, AluOp.XOR, AluOp.LSH))


def neg(is64: bool, a: Scalar) -> Scalar:
    return alu(AluOp.SUB, is64, const(0), a)


def mov32(a: Scalar) -> Scalar:
    """The low half, zero-extended."""
    return a if a.umax <= TOP32 else _zero_extended(_low(a))


def truncate(a: Scalar, bits: int) -> Scalar:
    """The low `bits`, zero-extended."""
    if a.umax >> bits == 0:
        return a
    if bits == HALF:
        return _zero_extended(_low(a))
    top = (1 << bits) - 1
    umin, umax = 0, top
    for low, high in ((a.umin, a.umax), (a.smin, a.smax), *(
            ((a.u32min, a.u32max), (a.s32min, a.s32max)) if bits < HALF else ())):
        if high - low <= top and low & top <= high & top:
            umin, umax = max(umin, low & top), min(umax, high & top)
    return _made(sync(a.value & top, a.mask & top, umin, umax, umin, umax,
                      0, TOP32, -SIGN32, SIGN32 - 1))


def sign_extend(a: Scalar, from_bits: int, is64: bool) -> Scalar:
    """The low `from_bits` as a signed number, at 64 bits, or at 32 and then zero-extended."""
    if from_bits == (BITS if is64 else HALF):
        return a if is64 else mov32(a)
    if not a.mask & (1 << from_bits) - 1:
        value = extend_bits((a.value, 0), from_bits)[0]
        return const(value if is64 else value & TOP32)
    sign, wrap = 1 << (from_bits - 1), 1 << from_bits
    smin, smax = -sign, sign - 1
    if from_bits == HALF:
        smin, smax = a.s32min, a.s32max
    for low, high in ((a.smin, a.smax), (a.umin, a.umax), (a.s32min, a.s32max),
                      (a.u32min, a.u32max)):
        if high - low < wrap and (low + sign) // wrap == (high + sign) // wrap:
            less = (low + sign) // wrap * wrap
            smin, smax = max(smin, low - less), min(smax, high - less)
    top = TOP if is64 else TOP32
    value, mask = extend_bits((a.value, a.mask), from_bits, top)
    if is64:
        return _made(sync(value, mask, 0, TOP, smin, smax, 0, TOP32, -SIGN32, SIGN32 - 1))
    return _made(sync(value, mask, 0, TOP32, 0, TOP32, 0, TOP32, smin, smax))


def load_extend(a: Scalar, size_bytes: int, is_signed: bool = False) -> Scalar:
    """What a load of `size_bytes` gives where the low bytes of `a` were stored."""
    if is_signed:
        if a is UNKNOWN:
            return signed(size_bytes)
        return sign_extend(a, 8 * size_bytes, True)
    return truncate(a, 8 * size_bytes)


def swap(a: Scalar, bits: int, order: SwapOrder) -> Scalar:
    """On a little-endian machine."""
    low = truncate(a, bits)
    if order is SwapOrder.LE:
        return low
    value, mask = _swapped(low.value, bits), _swapped(low.mask, bits)
    if not mask:
        return const(value)
    return _made(sync(value, mask, 0, TOP, -SIGN, SIGN - 1, 0, TOP32, -SIGN32, SIGN32 - 1))


def _swapped(number: int, bits: int) -> int:
    return int.from_bytes(number.to_bytes(bits // 8, "little"), "big")
