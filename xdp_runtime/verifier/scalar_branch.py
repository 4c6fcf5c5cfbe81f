"""What a comparison says of its operands once its outcome is known.

There are eight facts an outcome can be, apart from which operand is first: equal and not equal,
less and less or equal (unsigned and signed), and that there are common bits or none.  Refinement by
a fact yields both operands, or None where no two values make it true: then that edge is not taken.
A 32-bit comparison speaks of the sub-registers; `sync` carries it to the whole where that follows.

As with `alu`, what was found for two operands is remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xdp_runtime.isa import JmpOp
from xdp_runtime.verifier.scalar import Scalar, meet, sync
from xdp_runtime.verifier.tnum import SIGN, SIGN32, TOP, TOP32

Operand = tuple[int, int, int, int, int, int]   # value, mask, umin, umax, smin, smax
Refined = tuple[Operand, Operand] | None
Refine = Callable[[Operand, Operand, int], Refined]
Edge = tuple[Scalar, Scalar] | None

_MEMO_SIZE: Final = 1 << 16
_memo: dict[tuple[int, bool, bool, int, int], tuple[Edge, Scalar, Scalar]] = {}


def branch(op: JmpOp, is64: bool, a: Scalar, b: Scalar, taken: bool) -> Edge:
    """Both operands where `a op b` is `taken`; None if it never is."""
    key = (op._value_, is64, taken, id(a), id(b))
    found = _memo.get(key)
    if found is not None:
        return found[0]
    edge = _branch(op._value_, is64, a, b, taken)
    if len(_memo) >= _MEMO_SIZE:
        _memo.clear()
    _memo[key] = (edge, a, b)
    return edge


def always(op: JmpOp, is64: bool, a: Scalar, b: Scalar) -> bool | None:
    """Whether `a op b` for all values of both; None if it depends."""
    if branch(op, is64, a, b, False) is None:
        return True
    return False if branch(op, is64, a, b, True) is None else None


def _branch(code: int, is64: bool, a: Scalar, b: Scalar, taken: bool) -> Edge:
    refine, swapped = _FACTS[code][taken]
    if swapped:
        edge = _by_fact(refine, is64, b, a)
        return None if edge is None else (edge[1], edge[0])
    return _by_fact(refine, is64, a, b)


def _by_fact(refine: Refine, is64: bool, a: Scalar, b: Scalar) -> Edge:
    if is64 and refine is _equal:
        both = meet(a, b)
        return None if both is None else (both, both)
    if is64:
        whole_a = a.value, a.mask, a.umin, a.umax, a.smin, a.smax
        whole_b = b.value, b.mask, b.umin, b.umax, b.smin, b.smax
        refined = refine(whole_a, whole_b, SIGN)
        if refined is None:
            return None
        now_a: Scalar | None = a
        if refined[0] != whole_a:
            now_a = sync(*refined[0], a.u32min, a.u32max, a.s32min, a.s32max)
        now_b: Scalar | None = b
        if refined[1] != whole_b:
            now_b = sync(*refined[1], b.u32min, b.u32max, b.s32min, b.s32max)
    else:
        low_a = a.value & TOP32, a.mask & TOP32, a.u32min, a.u32max, a.s32min, a.s32max
        low_b = b.value & TOP32, b.mask & TOP32, b.u32min, b.u32max, b.s32min, b.s32max
        refined = refine(low_a, low_b, SIGN32)
        if refined is None:
            return None
        forget = refine is _no_common_bits
        now_a = a if refined[0] == low_a else _with_low(a, refined[0], forget)
        now_b = b if refined[1] == low_b else _with_low(b, refined[1], forget)
    return None if now_a is None or now_b is None else (now_a, now_b)


def _with_low(a: Scalar, low: Operand, forget: bool = False) -> Scalar | None:
    """`forget`: where the whole may have either sign, the kernel gives up its ranges."""
    value, mask, umin, umax, smin, smax = low
    if forget and a.smin < 0 <= a.smax:
        return sync(a.value & ~TOP32 | value, a.mask & ~TOP32 | mask, 0, TOP, -SIGN, SIGN - 1,
                    umin, umax, smin, smax)
    return sync(a.value & ~TOP32 | value, a.mask & ~TOP32 | mask, a.umin, a.umax, a.smin, a.smax,
                umin, umax, smin, smax)


def _equal(a: Operand, b: Operand, sign: int) -> Refined:
    if (a[0] ^ b[0]) & ~(a[1] | b[1]):
        return None
    mask = a[1] & b[1]
    both = ((a[0] | b[0]) & ~mask, mask, max(a[2], b[2]), min(a[3], b[3]),
            max(a[4], b[4]), min(a[5], b[5]))
    return (both, both) if both[2] <= both[3] and both[4] <= both[5] else None


def _not_equal(a: Operand, b: Operand, sign: int) -> Refined:
    if not a[1]:
        if not b[1]:
            return None if a[0] == b[0] else (a, b)
        return a, _without(b, a[0], sign)
    return (a, b) if b[1] else (_without(a, b[0], sign), b)


def _without(a: Operand, gone: int, sign: int) -> Operand:
    """A number that is not `gone`, which shows where that was the end of a range."""
    value, mask, umin, umax, smin, smax = a
    if (gone ^ value) & ~mask:
        return a
    if not mask & (mask - 1):       # one bit is unknown: it is the other one
        value |= mask & ~gone
        mask = 0
    gone_signed = (gone ^ sign) - sign
    return (value, mask, umin + (umin == gone), umax - (umax == gone),
            smin + (smin == gone_signed), smax - (smax == gone_signed))


def _less(a: Operand, b: Operand, sign: int) -> Refined:
    umin, umax = a[2] + 1, b[3] - 1
    if a[2] > umax:
        return None
    return ((a[0], a[1], a[2], min(a[3], umax), a[4], a[5]),
            (b[0], b[1], max(b[2], umin), b[3], b[4], b[5]))


def _less_equal(a: Operand, b: Operand, sign: int) -> Refined:
    if a[2] > b[3]:
        return None
    return ((a[0], a[1], a[2], min(a[3], b[3]), a[4], a[5]),
            (b[0], b[1], max(b[2], a[2]), b[3], b[4], b[5]))


def _signed_less(a: Operand, b: Operand, sign: int) -> Refined:
    smin, smax = a[4] + 1, b[5] - 1
    if a[4] > smax:
        return None
    return ((a[0], a[1], a[2], a[3], a[4], min(a[5], smax)),
            (b[0], b[1], b[2], b[3], max(b[4], smin), b[5]))


def _signed_less_equal(a: Operand, b: Operand, sign: int) -> Refined:
    if a[4] > b[5]:
        return None
    return ((a[0], a[1], a[2], a[3], a[4], min(a[5], b[5])),
            (b[0], b[1], b[2], b[3], max(b[4], a[4]), b[5]))


def _common_bits(a: Operand, b: Operand, sign: int) -> Refined:
    common = (a[0] | a[1]) & (b[0] | b[1])
    if not common:
        return None
    if common & (common - 1) or common not in (a[0] if not a[1] else 0, b[0] if not b[1] else 0):
        return a, b  # the kernel learns from a test of one bit only
    a = (a[0] | common, a[1] & ~common, max(a[2], common), *a[3:])
    b = (b[0] | common, b[1] & ~common, max(b[2], common), *b[3:])
    return a, b


def _no_common_bits(a: Operand, b: Operand, sign: int) -> Refined:
    if a[0] & b[0]:
        return None
    return (a[0], a[1] & ~b[0], *a[2:]), (b[0], b[1] & ~a[0], *b[2:])


# For each comparison what it says if it is not, and if it is taken, and whether of `b` and `a`.
_FACTS: Final[dict[int, tuple[tuple[Refine, bool], tuple[Refine, bool]]]] = {
    JmpOp.EQ.value: ((_not_equal, False), (_equal, False)),
    JmpOp.NE.value: ((_equal, False), (_not_equal, False)),
    JmpOp.LT.value: ((_less_equal, True), (_less, False)),
    JmpOp.LE.value: ((_less, True), (_less_equal, False)),
    JmpOp.GT.value: ((_less_equal, False), (_less, True)),
    JmpOp.GE.value: ((_less, False), (_less_equal, True)),
    JmpOp.SLT.value: ((_signed_less_equal, True), (_signed_less, False)),
    JmpOp.SLE.value: ((_signed_less, True), (_signed_less_equal, False)),
    JmpOp.SGT.value: ((_signed_less_equal, False), (_signed_less, True)),
    JmpOp.SGE.value: ((_signed_less, False), (_signed_less_equal, True)),
    JmpOp.SET.value: ((_no_common_bits, False), (_common_bits, False)),
}
