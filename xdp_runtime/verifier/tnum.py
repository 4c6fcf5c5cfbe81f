"""Tristate numbers: what is known of a value bit by bit.

A tnum is a pair `(value, mask)`.  A bit that is set in `mask` is unknown; the others are as in
`value`, which has zeros where `mask` has ones.  It stands for every x with `x & ~mask == value`.
The algorithms are those of Vishwanathan et al., "Sound, Precise, and Fast Abstract Interpretation
with Tristate Numbers" (CGO 2022), where kernel/bpf/tnum.c has them from as well.

Everything about widths is derived from BITS, so that a test may load this module, and those built
on it, at 8 bits and try every value there is.
"""

from __future__ import annotations

from typing import Final

Tnum = tuple[int, int]

BITS: Final = 64
HALF: Final = BITS // 2
TOP: Final = (1 << BITS) - 1           # the largest unsigned number; also "all bits"
TOP32: Final = (1 << HALF) - 1         # the same of the sub-register
SIGN: Final = 1 << (BITS - 1)
SIGN32: Final = 1 << (HALF - 1)

ZERO: Final[Tnum] = (0, 0)
UNKNOWN: Final[Tnum] = (0, TOP)


def const(value: int) -> Tnum:
    return value & TOP, 0


def from_range(low: int, high: int) -> Tnum:
    """The least tnum with every number of `low` to `high`: their common leading bits."""
    mask = (1 << (low ^ high).bit_length()) - 1
    return low & ~mask, mask


def is_const(a: Tnum) -> bool:
    return a[1] == 0


def add(a: Tnum, b: Tnum, top: int = TOP) -> Tnum:
    value = a[0] + b[0]
    mask = ((value + a[1] + b[1]) ^ value) | a[1] | b[1]
    return value & ~mask & top, mask & top


def sub(a: Tnum, b: Tnum, top: int = TOP) -> Tnum:
    value = a[0] - b[0]
    mask = ((value + a[1]) ^ (value - b[1])) | a[1] | b[1]
    return value & ~mask & top, mask & top


def neg(a: Tnum, top: int = TOP) -> Tnum:
    return sub(ZERO, a, top)


def and_(a: Tnum, b: Tnum) -> Tnum:
    value = a[0] & b[0]
    return value, (a[0] | a[1]) & (b[0] | b[1]) & ~value


def or_(a: Tnum, b: Tnum) -> Tnum:
    value = a[0] | b[0]
    return value, (a[1] | b[1]) & ~value


def xor(a: Tnum, b: Tnum) -> Tnum:
    mask = a[1] | b[1]
    return (a[0] ^ b[0]) & ~mask, mask


def mul(a: Tnum, b: Tnum, top: int = TOP) -> Tnum:
    """Long multiplication by either operand: what both say, as neither is always the better."""
    (av, am), (bv, bm) = a, b
    if not am:
        if not bm:
            return av * bv & top, 0
        if not av & (av - 1):
            return av * bv & top, av * bm & top
    elif not bm and not bv & (bv - 1):
        return av * bv & top, am * bv & top
    if (am == top and (bv | bm) & 1) or (bm == top and (av | am) & 1):
        return 0, top       # an odd factor of anything gives anything
    one, other = _long_mul(a, b, top), _long_mul(b, a, top)
    mask = one[1] & other[1]
    return (one[0] | other[0]) & ~mask, mask


def _long_mul(a: Tnum, b: Tnum, top: int) -> Tnum:
    """The sum of `b` shifted to each bit of `a` that is set, with and without those unknown."""
    (av, am), (bv, bm) = a, b
    total = ZERO
    shift, may = 0, av | am
    while may:
        skip = (may & -may).bit_length() - 1    # to the next bit that may be set
        shift += skip
        may >>= skip
        summed = add(total, (bv << shift & top, bm << shift & top), top)
        total = summed if av >> shift & 1 else union(total, summed)
        may >>= 1
        shift += 1
    return total


def lshift(a: Tnum, count: int, top: int = TOP) -> Tnum:
    return a[0] << count & top, a[1] << count & top


def rshift(a: Tnum, count: int) -> Tnum:
    return a[0] >> count, a[1] >> count


def arshift(a: Tnum, count: int, bits: int = BITS) -> Tnum:
    """At a width of `bits`; an unknown sign bit is shifted in as unknown."""
    sign, top = 1 << (bits - 1), (1 << bits) - 1
    value = (((a[0] & top) ^ sign) - sign) >> count
    mask = (((a[1] & top) ^ sign) - sign) >> count
    return value & top, mask & top


def intersect(a: Tnum, b: Tnum) -> Tnum | None:
    """What both say; None if no value is in both."""
    if (a[0] ^ b[0]) & ~(a[1] | b[1]):
        return None
    mask = a[1] & b[1]
    return (a[0] | b[0]) & ~mask, mask


def union(a: Tnum, b: Tnum) -> Tnum:
    """The least tnum that has every value of both."""
    mask = a[1] | b[1] | (a[0] ^ b[0])
    return a[0] & ~mask, mask


def in_(outer: Tnum, inner: Tnum) -> bool:
    """Whether every value of `inner` is one of `outer`."""
    return not inner[1] & ~outer[1] and inner[0] & ~outer[1] == outer[0]


def has(a: Tnum, value: int) -> bool:
    return value & ~a[1] == a[0]


def cast(a: Tnum, size_bytes: int) -> Tnum:
    """The low bytes, zero-extended."""
    keep = (1 << 8 * size_bytes) - 1
    return a[0] & keep, a[1] & keep


def subreg(a: Tnum) -> Tnum:
    return a[0] & TOP32, a[1] & TOP32


def clear_subreg(a: Tnum) -> Tnum:
    return a[0] & ~TOP32, a[1] & ~TOP32


def with_subreg(a: Tnum, low: Tnum) -> Tnum:
    """`a` with its low half replaced."""
    return a[0] & ~TOP32 | low[0] & TOP32, a[1] & ~TOP32 | low[1] & TOP32


def const_subreg(a: Tnum, value: int) -> Tnum:
    return with_subreg(a, (value, 0))


def sign_extend(a: Tnum, from_bits: int, top: int = TOP) -> Tnum:
    sign, keep = 1 << (from_bits - 1), (1 << from_bits) - 1
    value = ((a[0] & keep) ^ sign) - sign
    mask = ((a[1] & keep) ^ sign) - sign
    return value & top, mask & top


def next_at_least(a: Tnum, bound: int) -> int | None:
    """The smallest value of `a` that is not below `bound`; None if there is none."""
    value, mask = a
    differ = (bound ^ value) & ~mask
    if not differ:
        return bound
    bit = 1 << (differ.bit_length() - 1)          # the highest known bit that `bound` has wrong
    if value & bit:                               # too small there: below it, as small as can be
        return bound & -(bit << 1) | value & (bit << 1) - 1
    free = mask & ~bound & -(bit << 1)            # too large: step up an unknown bit above it
    if not free:
        return None
    step = free & -free
    return bound & -(step << 1) | step | value & step - 1


def last_at_most(a: Tnum, bound: int, top: int = TOP) -> int | None:
    """The largest value of `a` that is not above `bound`; None if there is none."""
    found = next_at_least((~(a[0] | a[1]) & top, a[1]), ~bound & top)
    return None if found is None else ~found & top


def describe(a: Tnum) -> str:
    return f"({a[0]:#x}; {a[1]:#x})"
