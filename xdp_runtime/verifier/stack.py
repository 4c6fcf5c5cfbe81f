"""The stack, byte by byte: spills and fills, zeroes, what was overwritten.

Offsets count from the frame's top (r10), so a frame is [-512, 0); a slot is named by the lowest
offset of its eight bytes.  Follows check_stack_write_* and check_stack_read_* of the kernel
(kernel/bpf/verifier.c) with the rights of root: uninitialised bytes may be read and are then an
unknown number.
"""

from __future__ import annotations

from xdp_runtime.verifier import scalar, scalar_alu
from xdp_runtime.verifier.domain import (
    Frame,
    Kind,
    Num,
    Ptr,
    Slot,
    Token,
    mark_precise,
    mark_read,
    name_of,
)
from xdp_runtime.verifier.env import Refused

_ZERO = Num(scalar.const(0))


def _mask(low: int, high: int) -> int:
    return ((1 << high) - 1) & ~((1 << low) - 1)


def write(frame: Frame, off: int, size: int, value: Num | Ptr, to_caller: bool) -> None:
    """Store `size` bytes of a register at a constant offset."""
    stack = frame.writable()
    base = off & ~7
    at = off - base
    if isinstance(value, Ptr):
        if size != 8:
            raise Refused("stack", f"a pointer is spilled in {size} bytes, must be 8")
        if to_caller and value.kind is Kind.STACK:
            raise Refused("stack", "a pointer to this frame is stored in the caller's frame")
        stack[base] = Slot(value, 8, 0xFF, 0)
        return
    if at == 0:
        init, zero, token = _rest(stack.get(base), 0, size)
        stack[base] = Slot(value, size, init | _mask(0, size), zero, token)
        return
    if value.range.is_const and value.range.const == 0:
        mark_precise(value.tokens)
        scatter(frame, off, size, zero=True)
    else:
        scatter(frame, off, size, zero=False)


def _rest(slot: Slot | None, low: int, high: int) -> tuple[int, int, Token | None]:
    """(init, zero) masks of a slot's bytes outside [low, high), its spill taken apart, and the
    token that stands for them."""
    outside = 0xFF & ~_mask(low, high)
    if slot is None or not outside:
        return 0, 0, None
    return slot.init & outside, slot.zero & outside, slot.token


def scatter(frame: Frame, off: int, size: int, zero: bool) -> None:
    """Bytes [off, off + size) become plain data: anything, or zero."""
    stack = frame.writable()
    end = off + size
    while off < end:
        base = off & ~7
        low, high = off - base, min(end - base, 8)
        init, zeroes, token = _rest(stack.get(base), low, high)
        fresh = _mask(low, high)
        stack[base] = Slot(None, 0, init | fresh, zeroes | (fresh if zero else 0), token)
        off = base + 8


def scatter_somewhere(frame: Frame, low: int, high: int, zero: bool = False) -> None:
    """Some bytes within [low, high) were overwritten: nothing there is known any more, but that
    zeroes over zeroes are zeroes.

    What was uninitialised stays so: it may not have been the one written."""
    stack = frame.writable()
    for base in range(low & ~7, high, 8):
        slot = stack.get(base)
        if slot is not None:
            value = slot.value
            if zero and isinstance(value, Num) and value.range.is_const and (
                    value.range.const == 0):
                mark_precise(value.tokens)
                continue
            hit = _mask(max(low - base, 0), min(high - base, 8))
            init, zeroes, token = _rest(slot, 0, 0)
            stack[base] = Slot(None, 0, init, zeroes if zero else zeroes & ~hit, token)


def read(frame: Frame, off: int, size: int) -> Num | Ptr:
    """Load `size` bytes from a constant offset, zero-extended."""
    base = off & ~7
    at = off - base
    slot = frame.stack.get(base)
    if slot is None:
        return Num(scalar.unsigned(size))
    mark_read(slot.token)
    value = slot.value
    if isinstance(value, Ptr):
        if value.kind in (Kind.DYNPTR, Kind.ITER):
            raise Refused("stack", f"bytes of {name_of(value)} are read")
        if size != 8:
            raise Refused("stack", f"{size} bytes of a spilled pointer are read, must be 8")
        return value
    if value is not None and at == 0 and size <= slot.size:
        if size == slot.size:
            if size == 8:
                return value
            narrow = scalar_alu.load_extend(value.range, size)
            same = narrow == value.range
            return Num(narrow, value.id if same else 0, value.tokens, value.delta if same else 0,
                       same and value.narrow)
        return Num(scalar_alu.load_extend(value.range, size), 0, value.tokens)
    wanted = _mask(at, at + size)
    zero = slot.zero
    tokens: tuple[Token, ...] = () if slot.token is None else (slot.token,)
    if value is not None and at + size <= slot.size and value.range.is_const and (
            value.range.const == 0):
        return Num(_ZERO.range, 0, tokens + value.tokens)
    if zero & wanted == wanted:
        return Num(_ZERO.range, 0, tokens)
    return Num(scalar.unsigned(size))


def touch(frame: Frame, low: int, high: int) -> None:
    """A helper reads bytes [low, high)."""
    for base in range(low & ~7, high, 8):
        slot = frame.stack.get(base)
        if slot is not None:
            mark_read(slot.token)


def read_range(frame: Frame, low: int, high: int) -> Num | None:
    """Load from somewhere within [low, high): zero if all of it is, else None."""
    touch(frame, low, high)
    tokens: tuple[Token, ...] = ()
    for base in range(low & ~7, high, 8):
        slot = frame.stack.get(base)
        if slot is None:
            return None
        wanted = _mask(max(low - base, 0), min(high - base, 8))
        if slot.zero & wanted != wanted:
            return None
        if slot.token is not None:
            tokens += (slot.token,)
    return Num(_ZERO.range, 0, tokens)
