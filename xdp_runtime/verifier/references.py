"""What is acquired and must be released: ring buffer records, dynptrs, sockets, iterators.

A reference is a number in `State.refs`; pointers to the object carry it, so that all of them die
with the release (release_reference).  A dynptr is 16 bytes of stack, an iterator 8; in `Slot.value`
they are a Ptr of kind DYNPTR or ITER, whose `size` is one of the words below.  Only helpers may
look into them.
"""

from __future__ import annotations

from xdp_runtime.verifier import access, scalar
from xdp_runtime.verifier.domain import Frame, Kind, Num, Ptr, Slot, State, mark_read, name_of
from xdp_runtime.verifier.env import Env, Refused

# what a dynptr describes: a map value, a record, the packet; one or the other (a global function)
LOCAL, RING, PACKET, ANY = 1, 2, 3, 4
ACTIVE, DRAINED, IRQ = 1, 2, 3  # an iterator that may have another number, one that has not; flags
DYNPTR_BYTES = 16
_OBJECTS = (Kind.DYNPTR, Kind.ITER)


def acquire(env: Env, state: State) -> int:
    reference = env.next_id()
    state.refs = (*state.refs, reference)
    return reference


def release(state: State, reference: int) -> None:
    """The object is gone; what pointed to it, or into it, is a mere number."""
    state.refs = tuple(ref for ref in state.refs if ref != reference)
    _forget(state, lambda ptr: reference in (ptr.ref, ptr.owner))


def _forget(state: State, dead) -> None:  # type: ignore[no-untyped-def]
    owners: set[int] = set()
    for frame in state.frames:
        for number, value in enumerate(frame.regs):
            if isinstance(value, Ptr) and dead(value):
                frame.regs[number] = Num(scalar.UNKNOWN)
        gone = [(base, slot) for base, slot in frame.stack.items()
                if isinstance(slot.value, Ptr) and dead(slot.value)]
        if gone:
            stack = frame.writable()
            for base, slot in gone:
                assert isinstance(slot.value, Ptr)
                if slot.value.kind is Kind.DYNPTR:
                    owners.add(slot.value.id)
                stack[base] = Slot(None, 0, 0xFF, 0, slot.token)
    if owners:
        _forget(state, lambda ptr: ptr.owner in owners and ptr.kind is not Kind.DYNPTR)


def object_at(frame: Frame, off: int) -> Ptr | None:
    """The dynptr or iterator part in the eight bytes around `off`."""
    slot = frame.stack.get(off & ~7)
    if slot is not None and isinstance(slot.value, Ptr) and slot.value.kind in _OBJECTS:
        return slot.value
    return None


def overwrite(state: State, frame: Frame, low: int, high: int) -> None:
    """Before bytes [low, high) of a stack are written: what becomes of the objects there?"""
    for base in range(low & ~7, high, 8):
        found = object_at(frame, base)
        if found is not None and found.kind is Kind.DYNPTR:
            if found.ref:
                raise Refused("reference", "a dynptr that must be released is overwritten",
                              "submit or discard it before")
            owner = found.id
            _forget(state, lambda ptr, owner=owner: ptr.kind is Kind.DYNPTR and ptr.id == owner)


def no_objects(frame: Frame, low: int, high: int) -> None:
    """Bytes [low, high) are read: that must not be a dynptr or an iterator."""
    for base in range(low & ~7, high, 8):
        found = object_at(frame, base)
        if found is not None:
            raise Refused("stack", f"bytes of {name_of(found)} at r10{base:+d} are read")


def _place(env: Env, state: State, number: int, value: Num | Ptr, size: int, what: str
           ) -> tuple[Frame, int]:
    """The frame and constant offset of an object on the stack that r<number> points to."""
    if not isinstance(value, Ptr) or value.kind is not Kind.STACK:
        raise Refused("type", f"r{number} must point to {what} on the stack, is {name_of(value)}",
                      regs=(number,))
    if value.var is not None or value.off % 8:
        raise Refused("reference", f"r{number} must point to {what} at a constant offset that is "
                      "a multiple of 8", regs=(number,))
    access.check_stack_bounds(number, value.off, value.off + size)
    frame = state.frames[value.frame]
    env.use_stack(frame, value.off)
    return frame, value.off


# --- dynptrs --------------------------------------------------------------------------------------
def prepare_dynptr(env: Env, state: State, number: int, value: Num | Ptr) -> None:
    """r<number> points to 16 bytes of stack that may become a dynptr."""
    frame, off = _place(env, state, number, value, DYNPTR_BYTES, "room for a dynptr")
    for base in (off, off + 8):
        found = object_at(frame, base)
        if found is not None and found.kind is Kind.ITER:
            raise Refused("reference", f"r{number} points to an iterator", regs=(number,))
    overwrite(state, frame, off, off + DYNPTR_BYTES)


def make_dynptr(env: Env, state: State, value: Num | Ptr, kind: int, readonly: bool,
                reference: int = 0) -> None:
    """With `reference`, it is a clone that is released with the one it was made of."""
    assert isinstance(value, Ptr)
    stack = state.frames[value.frame].writable()
    number = env.next_id()
    if kind == RING and not reference:
        reference = acquire(env, state)
    for half in (0, 8):
        stack[value.off + half] = Slot(
            Ptr(Kind.DYNPTR, half, id_=number, size=kind, ref=reference, readonly=readonly),
            8, 0xFF, 0)


def dynptr(env: Env, state: State, number: int, value: Num | Ptr) -> Ptr:
    """The dynptr that r<number> points to."""
    if isinstance(value, Ptr) and value.kind is Kind.DYNPTR:
        return value
    frame, off = _place(env, state, number, value, DYNPTR_BYTES, "a dynptr")
    first, second = object_at(frame, off), object_at(frame, off + 8)
    if first is None or second is None or first.kind is not Kind.DYNPTR or (
            second.kind is not Kind.DYNPTR) or first.off or first.id != second.id:
        raise Refused("reference", f"r{number} points to no dynptr that was made",
                      regs=(number,))
    for base in (off, off + 8):
        mark_read(frame.stack[base].token)
    return first


# --- iterators ------------------------------------------------------------------------------------
def make_iterator(env: Env, state: State, number: int, value: Num | Ptr) -> None:
    frame, off = _place(env, state, number, value, 8, "room for an iterator")
    found = object_at(frame, off)
    if found is not None:
        raise Refused("reference", f"r{number} points to {name_of(found)} that is in use",
                      regs=(number,))
    reference = acquire(env, state)
    frame.writable()[off] = Slot(
        Ptr(Kind.ITER, id_=reference, size=ACTIVE, ref=reference), 8, 0xFF, 0)


def iterator(env: Env, state: State, number: int, value: Num | Ptr) -> tuple[Frame, int, Ptr]:
    """The iterator that r<number> points to, and where it is."""
    frame, off = _place(env, state, number, value, 8, "an iterator")
    found = object_at(frame, off)
    if found is None or found.kind is not Kind.ITER or found.size == IRQ:
        raise Refused("reference", f"r{number} points to no iterator that was made",
                      regs=(number,))
    mark_read(frame.stack[off].token)
    return frame, off, found


def drain(frame: Frame, off: int, iterator: Ptr) -> None:
    old = frame.stack[off]
    frame.writable()[off] = Slot(
        Ptr(Kind.ITER, id_=iterator.id, size=DRAINED, ref=iterator.ref), 8, 0xFF, 0, old.token)


# --- interrupt flags ------------------------------------------------------------------------------
def save_irq(env: Env, state: State, number: int, value: Num | Ptr) -> None:
    frame, off = _place(env, state, number, value, 8, "room for flags")
    found = object_at(frame, off)
    if found is not None:
        raise Refused("reference", f"r{number} points to {name_of(found)} that is in use",
                      regs=(number,))
    reference = acquire(env, state)
    state.irqs = (*state.irqs, reference)
    frame.writable()[off] = Slot(
        Ptr(Kind.ITER, id_=reference, size=IRQ, ref=reference), 8, 0xFF, 0)


def restore_irq(env: Env, state: State, number: int, value: Num | Ptr) -> None:
    frame, off = _place(env, state, number, value, 8, "saved flags")
    found = object_at(frame, off)
    if found is None or found.kind is not Kind.ITER or found.size != IRQ:
        raise Refused("reference", f"r{number} points to no flags that were saved",
                      regs=(number,))
    if state.irqs[-1:] != (found.ref,):
        raise Refused("lock", "interrupt flags are restored in another order than backwards",
                      "restore the flags that were saved last")
    mark_read(frame.stack[off].token)
    state.irqs = state.irqs[:-1]
    release(state, found.ref)
