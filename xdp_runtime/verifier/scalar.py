"""What is known of a number in a register: its bits, and its ranges in four readings.

A `Scalar` is a set of 64-bit values, described by a tnum and by inclusive ranges of the value read
as unsigned and as signed, and of its low half (the sub-register) read both ways.  A value is in
the set if all five agree.  `sync` lets the five sharpen each other until they have no more to say;
every Scalar comes from it, and where they contradict each other there is no value: None, bottom.

Scalars do not change once made.  The operations on them are in scalar_alu.py and scalar_branch.py,
and what they return for the same operands is the same object as before, as often as not: so `is` is
worth trying before `==`, and is what `==` tries.
"""

from __future__ import annotations

from typing import Final

from xdp_runtime.verifier.tnum import (
    BITS,
    HALF,
    SIGN,
    SIGN32,
    TOP,
    TOP32,
    last_at_most,
    next_at_least,
)

_WRAP: Final = 1 << BITS
_WRAP32: Final = 1 << HALF
_ROUNDS: Final = 4        # of `sync`: the second one nearly always finds nothing left to do
_CACHE_SIZE: Final = 1 << 16

Range = tuple[int, int, int, int]       # umin, umax, smin, smax


class Scalar:
    __slots__ = ("mask", "s32max", "s32min", "smax", "smin", "u32max", "u32min", "umax", "umin",
                 "value")

    def __init__(self, value: int, mask: int, umin: int, umax: int, smin: int, smax: int,
                 u32min: int, u32max: int, s32min: int, s32max: int) -> None:
        self.value = value
        self.mask = mask
        self.umin = umin
        self.umax = umax
        self.smin = smin
        self.smax = smax
        self.u32min = u32min
        self.u32max = u32max
        self.s32min = s32min
        self.s32max = s32max

    @property
    def is_const(self) -> bool:
        return not self.mask

    @property
    def const(self) -> int | None:
        """The one value it can have, unsigned."""
        return None if self.mask else self.value

    @property
    def is_const32(self) -> bool:
        return not self.mask & TOP32

    def fields(self) -> tuple[int, ...]:
        """In the order that `sync` takes."""
        return (self.value, self.mask, self.umin, self.umax, self.smin, self.smax,
                self.u32min, self.u32max, self.s32min, self.s32max)

    def has(self, value: int) -> bool:
        """Whether it can be this unsigned value."""
        low = value & TOP32
        return (value & ~self.mask == self.value and self.umin <= value <= self.umax
                and self.smin <= (value ^ SIGN) - SIGN <= self.smax
                and self.u32min <= low <= self.u32max
                and self.s32min <= (low ^ SIGN32) - SIGN32 <= self.s32max)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Scalar):
            return NotImplemented
        return (self.value == other.value and self.mask == other.mask
                and self.umin == other.umin and self.umax == other.umax
                and self.smin == other.smin and self.smax == other.smax
                and self.u32min == other.u32min and self.u32max == other.u32max
                and self.s32min == other.s32min and self.s32max == other.s32max)

    def __hash__(self) -> int:
        return hash((self.value, self.mask, self.umin, self.umax, self.smin, self.smax,
                     self.u32min, self.u32max))

    def __repr__(self) -> str:
        return describe(self)


UNKNOWN: Final = Scalar(0, TOP, 0, TOP, -SIGN, SIGN - 1, 0, TOP32, -SIGN32, SIGN32 - 1)
_consts: dict[int, Scalar] = {}


def const(value: int) -> Scalar:
    """Of a signed or unsigned number."""
    found = _consts.get(value)
    if found is not None:
        return found
    if len(_consts) >= _CACHE_SIZE:
        _consts.clear()
    unsigned_value = value & TOP
    signed_value = (unsigned_value ^ SIGN) - SIGN
    low = value & TOP32
    low_signed = (low ^ SIGN32) - SIGN32
    made = Scalar(unsigned_value, 0, unsigned_value, unsigned_value, signed_value, signed_value,
                  low, low, low_signed, low_signed)
    _consts[value] = made
    return made


def from_range(umin: int, umax: int) -> Scalar:
    """Every unsigned number of `umin` to `umax`."""
    made = sync(0, TOP, umin, umax, -SIGN, SIGN - 1, 0, TOP32, -SIGN32, SIGN32 - 1)
    if made is None:
        raise ValueError(f"no number is in {umin} to {umax}")
    return made


def from_signed_range(smin: int, smax: int) -> Scalar:
    """Every signed number of `smin` to `smax`."""
    made = sync(0, TOP, 0, TOP, smin, smax, 0, TOP32, -SIGN32, SIGN32 - 1)
    if made is None:
        raise ValueError(f"no number is in {smin} to {smax}")
    return made


def sync(value: int, mask: int, umin: int, umax: int, smin: int, smax: int,
         u32min: int, u32max: int, s32min: int, s32max: int) -> Scalar | None:
    """The least Scalar we can tell that has every value on which the five agree."""
    if umax < SIGN32 or value | mask < SIGN32 or (smin >= 0 and smax < SIGN32):
        return _sync_small(value, mask, max(umin, smin, u32min, s32min),
                           min(umax, smax, u32max, s32max))
    for _ in range(_ROUNDS):
        before = (value, mask, umin, umax, smin, smax, u32min, u32max, s32min, s32max)
        # The bits bound the ranges, ...
        bounds = _bounds_by_bits(value, mask, umin, umax, smin, smax, SIGN, TOP)
        if bounds is None:
            return None
        umin, umax, smin, smax = bounds
        bounds = _bounds_by_bits(value & TOP32, mask & TOP32, u32min, u32max, s32min, s32max,
                                 SIGN32, TOP32)
        if bounds is None:
            return None
        u32min, u32max, s32min, s32max = bounds
        # ... a narrow range bounds its low half, ...
        if umax - umin <= TOP32:
            low, high = umin & TOP32, umax & TOP32
            if low <= high:
                u32min, u32max = max(u32min, low), min(u32max, high)
            low, high = (low ^ SIGN32) - SIGN32, (high ^ SIGN32) - SIGN32
            if low <= high:
                s32min, s32max = max(s32min, low), min(s32max, high)
        if smin < 0 <= smax and smax - smin <= TOP32:
            low, high = smin & TOP32, smax & TOP32
            if low <= high:
                u32min, u32max = max(u32min, low), min(u32max, high)
            low, high = (low ^ SIGN32) - SIGN32, (high ^ SIGN32) - SIGN32
            if low <= high:
                s32min, s32max = max(s32min, low), min(s32max, high)
        bounds = _cross(u32min, u32max, s32min, s32max, _WRAP32)
        if bounds is None:
            return None
        u32min, u32max, s32min, s32max = bounds
        # ... the low half moves the ends of the range to the next number with such a half, ...
        if u32max - u32min != TOP32:
            umin, umax = _up(umin, u32min, u32max), _down(umax, u32min, u32max)
            smin, smax = _up(smin, u32min, u32max), _down(smax, u32min, u32max)
        if smin >= -SIGN32 and smax < SIGN32:
            smin, smax = max(smin, s32min), min(smax, s32max)
        bounds = _cross(umin, umax, smin, smax, _WRAP)
        if bounds is None:
            return None
        umin, umax, smin, smax = bounds
        # ... and the leading bits that all of a range shares are known.
        known = -1 << (umin ^ umax).bit_length()
        known32 = -1 << (u32min ^ u32max).bit_length() & TOP32
        if (value ^ umin) & ~mask & known or (value ^ u32min) & ~mask & known32:
            return None
        mask_now = mask & ~(known | known32)
        if mask_now != mask:
            if (umin ^ u32min) & known & known32:
                return None
            value = (value | umin & known | u32min & known32) & ~mask_now
            mask = mask_now
        if before == (value, mask, umin, umax, smin, smax, u32min, u32max, s32min, s32max):
            break
    if not mask:
        found = const(value)
        return found if (umin <= value <= umax and found.smin >= smin and found.smax <= smax
                         and u32min <= found.u32min <= u32max
                         and s32min <= found.s32min <= s32max) else None
    return Scalar(value, mask, umin, umax, smin, smax, u32min, u32max, s32min, s32max)


def _sync_small(value: int, mask: int, low: int, high: int) -> Scalar | None:
    """`sync` where all four readings are the same range: most numbers in a program are so."""
    while True:
        if value > low:
            low = value
        if value | mask < high:
            high = value | mask
        if low > high:
            return None
        if (low ^ value) & ~mask or (high ^ value) & ~mask:
            only = _only_common(value, mask, low, high)
            if only >= 0:
                return const(only)
        shared = -1 << (low ^ high).bit_length()
        if (low ^ value) & ~mask & shared:
            return None
        known = mask & shared
        if not known:
            break
        mask &= ~known
        value |= low & known
    if not mask:
        return const(value) if low <= value <= high else None
    return Scalar(value, mask, low, high, low, high, low, high, low, high)


def _only_common(value: int, mask: int, low: int, high: int, top: int = TOP) -> int:
    """The one number that range and bits have in common, -1 if there are more or none.

    That far the kernel looks (tnum_step); that a range could be narrowed to numbers with such bits
    it does not see, and a program that needs it would not load there."""
    up, down = next_at_least((value, mask), low), last_at_most((value, mask), high, top)
    return up if up is not None and up == down else -1


def _bounds_by_bits(value: int, mask: int, umin: int, umax: int, smin: int, smax: int,
                    sign: int, top: int) -> Range | None:
    most = value | mask
    if value > umin:
        umin = value
    if most < umax:
        umax = most
    if umin > umax:
        return None
    if (umin ^ value) & ~mask or (umax ^ value) & ~mask:
        only = _only_common(value, mask, umin, umax, top)
        if only >= 0:
            umin = umax = only
    if mask & sign:       # else the sign is in the unsigned range as well
        least = value - sign
        if least > smin:
            smin = least
        most &= ~sign
        if most < smax:
            smax = most
    return umin, umax, smin, smax


def _cross(umin: int, umax: int, smin: int, smax: int, wrap: int) -> Range | None:
    """Both ranges narrowed to the numbers that are in both; exact."""
    if smin >= 0:
        if smin > umin:
            umin = smin
        if smax < umax:
            umax = smax
        return (umin, umax, umin, umax) if umin <= umax else None
    if smax < 0:
        smin += wrap
        smax += wrap
        if smin > umin:
            umin = smin
        if smax < umax:
            umax = smax
        return (umin, umax, umin - wrap, umax - wrap) if umin <= umax else None
    # The signed range is two unsigned ones: 0 to smax, and from `low` to the top.
    low = smin + wrap
    high = smax
    if umax < high:
        high = umax
    if umin > low:
        low = umin
    if umin <= high:
        return (umin, umax, low - wrap, high) if low <= umax else (umin, high, umin, high)
    return (low, umax, low - wrap, umax - wrap) if low <= umax else None


def _up(number: int, low: int, high: int) -> int:
    """The smallest number not below `number` whose low half is in `low` to `high`."""
    half = number & TOP32
    if half < low:
        return number - half + low
    return number - half + _WRAP32 + low if half > high else number


def _down(number: int, low: int, high: int) -> int:
    half = number & TOP32
    if half > high:
        return number - half + high
    return number - half - _WRAP32 + high if half < low else number


_UNSIGNED: Final = {size: from_range(0, (1 << 8 * size) - 1)
                    for size in (1, 2, 4, 8) if 8 * size <= BITS}
_SIGNED: Final = {size: from_signed_range(-1 << (8 * size - 1), (1 << (8 * size - 1)) - 1)
                  for size in (1, 2, 4, 8) if 8 * size <= BITS}


def unsigned(size_bytes: int) -> Scalar:
    """What a load of so many bytes may give, zero-extended."""
    return _UNSIGNED[size_bytes]


def signed(size_bytes: int) -> Scalar:
    """What a load of so many bytes may give, sign-extended."""
    return _SIGNED[size_bytes]


def meet(a: Scalar, b: Scalar) -> Scalar | None:
    """The values that are in both."""
    if a is b:
        return a
    if (a.value ^ b.value) & ~(a.mask | b.mask):
        return None
    mask = a.mask & b.mask
    return sync((a.value | b.value) & ~mask, mask,
                max(a.umin, b.umin), min(a.umax, b.umax),
                max(a.smin, b.smin), min(a.smax, b.smax),
                max(a.u32min, b.u32min), min(a.u32max, b.u32max),
                max(a.s32min, b.s32min), min(a.s32max, b.s32max))


def union(a: Scalar, b: Scalar) -> Scalar:
    """The least Scalar that has the values of both."""
    if a is b or contains(a, b):
        return a
    if contains(b, a):
        return b
    mask = a.mask | b.mask | (a.value ^ b.value)
    made = sync(a.value & ~mask, mask,
                min(a.umin, b.umin), max(a.umax, b.umax),
                min(a.smin, b.smin), max(a.smax, b.smax),
                min(a.u32min, b.u32min), max(a.u32max, b.u32max),
                min(a.s32min, b.s32min), max(a.s32max, b.s32max))
    assert made is not None
    return made


_STEPS_UP: Final = sorted({0, TOP, TOP32, SIGN - 1, SIGN32 - 1, 0xFF & TOP, 0xFFFF & TOP})
_STEPS_DOWN: Final = sorted((-step - 1 for step in _STEPS_UP if step < SIGN), reverse=True)


def widen(a: Scalar, b: Scalar) -> Scalar:
    """`union`, but a bound of `a` that `b` exceeds goes to that of a common type at once.

    Repeated, it comes to rest after a few steps whatever `b` is, which `union` does not.
    """
    both = union(a, b)
    if both is a:
        return a
    umin = a.umin if both.umin >= a.umin else 0
    umax = a.umax if both.umax <= a.umax else _step_up(both.umax)
    smin = a.smin if both.smin >= a.smin else _step_down(both.smin)
    smax = a.smax if both.smax <= a.smax else _step_up(both.smax)
    mask = both.mask
    grown = mask & ~a.mask
    if grown:       # what changes may carry up to the top of the range; what is below it is kept
        upto = max(grown.bit_length(), (umin ^ umax).bit_length())
        mask |= (1 << upto) - 1 & -(grown & -grown)
    made = sync(both.value & ~mask, mask, umin, umax, smin, min(smax, SIGN - 1),
                0, TOP32, -SIGN32, SIGN32 - 1)
    assert made is not None
    return made


def _step_up(bound: int) -> int:
    return next(step for step in _STEPS_UP if step >= bound)


def _step_down(bound: int) -> int:
    return next(step for step in (0, *_STEPS_DOWN) if step <= bound)


def contains(a: Scalar, b: Scalar) -> bool:
    """Whether every value of `b` is one of `a`, as far as bits and ranges tell."""
    if a is b:
        return True
    outside = ~a.mask
    return (not b.mask & outside and b.value & outside == a.value
            and a.umin <= b.umin and b.umax <= a.umax
            and a.smin <= b.smin and b.smax <= a.smax
            and a.u32min <= b.u32min and b.u32max <= a.u32max
            and a.s32min <= b.s32min and b.s32max <= a.s32max)


def describe(s: Scalar) -> str:
    """As the log of the kernel's verifier has it."""
    if not s.mask:
        return _number("s", s.smin)
    said: dict[tuple[bool, int], list[str]] = {}     # a minimum is joined with minima only
    for name, number, omit in (
            ("smin", s.smin, -SIGN), ("smax", s.smax, SIGN - 1),
            ("umin", s.umin, 0), ("umax", s.umax, TOP),
            ("smin32", s.s32min, -SIGN32), ("smax32", s.s32max, SIGN32 - 1),
            ("umin32", s.u32min, 0), ("umax32", s.u32max, TOP32)):
        if number != omit:
            if name.endswith("32") and number < -0x8000:
                number &= TOP32
            said.setdefault(("min" in name, number), []).append(name)
    words = ["=".join(names) + "=" + _number(names[0], number)
             for (_, number), names in said.items()]
    if s.mask != TOP:
        words.append(f"var_off=({s.value:#x}; {s.mask:#x})")
    return f"scalar({','.join(words)})"


def _number(name: str, number: int) -> str:
    """In decimal if it fits into 16 bits."""
    if -0x8000 <= number <= (0x7FFF if name[0] == "s" else 0xFFFF):
        return str(number)
    return f"{number & TOP:#x}"
