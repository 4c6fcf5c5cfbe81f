"""Remembered states, and when a new one is covered by one of them (states_equal).

A state is covered if everything it could do was already tried from the older one: each register
and stack slot is at most as general wherever the older exploration depended on it.  The tokens of
domain.py say where it did.  Ids of the two states are matched one to one, so relations that held
between registers of the older one hold in the new one too.
"""

from __future__ import annotations

from enum import IntEnum

from xdp_runtime.verifier.domain import (
    Frame,
    Kind,
    Num,
    Ptr,
    Reg,
    Slot,
    State,
    Token,
    mark_precise,
    mark_read,
)
from xdp_runtime.verifier.flow import Flow
from xdp_runtime.verifier.scalar import Scalar, contains

_PACKET = (Kind.PACKET, Kind.PACKET_META)
_IDENTIFIED = (Kind.PACKET, Kind.PACKET_META, Kind.DYNPTR)


class Seen:
    """A remembered state.  `open` paths from it are not finished yet; with 0 it can cover.

    `longest` of those paths, in instructions, continued by what covered them; `before`: from the
    parent to here.  A covered path takes branches its cover took as well, so it is no longer.

    A path may end in an open state where a loop ends by itself (State.rounds).  What mattered in
    the states between is known only when the loop's head is finished: until then `head` is set,
    and they cover only what is within them in every number.  The head keeps such ends in `backs`.
    """

    __slots__ = ("backs", "before", "head", "hits", "longest", "misses", "open", "parent", "slot",
                 "state")

    def __init__(self, slot: int, state: State, parent: Seen | None, before: int = 0) -> None:
        self.slot, self.state, self.parent, self.before = slot, state, parent, before
        self.open = 1
        self.hits = self.misses = self.longest = 0
        self.head: Seen | None = None
        self.backs: list[tuple[Seen, State]] = []

    def reach(self, length: int) -> None:
        """A path from here has so many instructions."""
        if length > self.longest:
            self.longest = length

    def finish(self) -> None:
        """One path from here has ended; so it has for those before, once none is left."""
        seen: Seen | None = self
        while seen is not None:
            seen.open -= 1
            if seen.open:
                return
            if seen.backs:
                seen.settle()
            if seen.parent is not None:
                seen.parent.reach(seen.before + seen.longest)
            seen = seen.parent

    def settle(self) -> None:
        """What mattered in a state matters where it was reached again, and so on."""
        changed = True
        while changed:
            changed = False
            for cover, state in self.backs:
                changed |= inherit(cover, state)
        self.backs = []

    def loop_head(self) -> Seen | None:
        """The outermost loop at hand that this state is part of."""
        outermost, head = None, self.head
        while head is not None:
            if head.open:
                outermost = head
            head = head.head
        return outermost


def close_loop(cover: Seen, state: State, parent: Seen) -> None:
    """A path ends in `state`, within `cover`, which is open or part of a loop that is."""
    head = cover.loop_head() or cover
    seen: Seen | None = parent
    while seen is not None and seen is not head:
        seen.head = head
        head.backs += seen.backs
        seen.backs = []
        seen = seen.parent
    head.backs.append((cover, state))


def remember(state: State, slot: int, parent: Seen, flow: Flow, before: int) -> Seen:
    """Forget what is dead, give every number and slot a fresh token, keep a copy."""
    kept = []
    last = len(state.frames) - 1
    seen_ids: set[int] = set()
    shared: set[int] = set()  # ids that tell something: more than one number has them
    for depth, frame in enumerate(state.frames):
        live = flow.live[slot if depth == last else state.frames[depth + 1].return_slot]
        regs = frame.regs
        for number in range(10):
            value = regs[number]
            if value is None:
                continue
            if not live >> number & 1:
                regs[number] = None
            elif isinstance(value, Num) and value.id:
                (shared if value.id in seen_ids else seen_ids).add(value.id)
        for old in frame.stack.values():
            if isinstance(old.value, Num) and old.value.id:
                (shared if old.value.id in seen_ids else seen_ids).add(old.value.id)
    for frame in state.frames:
        frame.regs[:10] = [None if value is None else _fresh(value, shared)
                           for value in frame.regs[:10]]
        frame.stack = {
            base: Slot(None if old.value is None else _fresh(old.value, shared), old.size,
                       old.init, old.zero, Token(() if old.token is None else (old.token,)))
            for base, old in frame.stack.items()}
        frame.owned = False
        twin = Frame(list(frame.regs), frame.stack, frame.return_slot, frame.entry,
                     frame.callback, frame.depth)
        twin.owned = False
        kept.append(twin)
    kept_state = State(kept, state.refs, state.lock, state.rounds, state.sections)
    return Seen(slot, kept_state, parent, before)


def _fresh(value: Num | Ptr, shared: set[int]) -> Num | Ptr:
    if isinstance(value, Num):
        if value.id in shared:
            return Num(value.range, value.id, (Token(value.tokens),), value.delta, value.narrow)
        return Num(value.range, 0, (Token(value.tokens),))
    if value.var is not None:
        return value.at(value.off, value.var, value.id, value.range, (Token(value.tokens),))
    return value


class _Match:
    """Ids of the older state against those of the newer, one to one."""

    __slots__ = ("ids",)

    def __init__(self) -> None:
        self.ids: dict[int, int] = {}

    def same(self, old: int, new: int) -> bool:
        if not old or not new:
            return not old and not new
        known = self.ids.get(old)
        if known is None:
            if new in self.ids.values():
                return False
            self.ids[old] = new
            return True
        return known == new


class How(IntEnum):
    """How far may a covered state differ?"""

    DEPENDED = 1  # in all that nothing depended on
    WITHIN = 2  # every number lies within
    EXACT = 3  # not at all: the same state again is a loop without progress


def covers(seen: Seen, state: State, how: How = How.DEPENDED) -> bool:
    """Is `state`, at the same slot, covered by the remembered one?"""
    old = seen.state
    if len(old.refs) != len(state.refs) or (old.lock is None) != (state.lock is None):
        return False
    if (old.rcu, old.preempt, len(old.irqs)) != (state.rcu, state.preempt, len(state.irqs)):
        return False
    match = _Match()
    if not all(match.same(-a, -b) for a, b in zip(old.irqs, state.irqs, strict=True)):
        return False
    if old.lock is not None and state.lock is not None and (
            old.lock[0] != state.lock[0] or not match.same(old.lock[1], state.lock[1])):
        return False
    for mine, theirs in zip(old.frames, state.frames, strict=True):
        if mine.depth > theirs.depth:
            return False
        for before, now in zip(mine.regs, theirs.regs, strict=True):
            if before is now:
                if before is not None and before.id and not _reg(before, now, match, how):
                    return False
            elif not _reg(before, now, match, how):
                return False
        if not _stack(mine, theirs, match, how):
            return False
    return True


def same_calls(seen: Seen, state: State) -> bool:
    old, new = seen.state.frames, state.frames
    if len(old) != len(new):
        return False
    if len(old) == 1:
        return old[0].entry == new[0].entry and old[0].callback == new[0].callback
    return all(a.return_slot == b.return_slot and a.entry == b.entry and a.callback == b.callback
               for a, b in zip(old, new, strict=True))


def _span(old: Scalar | None, new: Scalar | None, how: How) -> bool:
    if old is new:
        return True
    if old is None or new is None:
        return False
    return old == new if how is How.EXACT else contains(old, new)


def _reg(old: Reg, new: Reg, match: _Match, how: How) -> bool:
    if old is None:
        return True
    if isinstance(old, Num):
        if not isinstance(new, Num):
            return False
        if how is How.EXACT:
            return old.range == new.range
        if how is How.DEPENDED and not old.tokens[0].precise:
            return True
        if old.id and not (match.same(old.id, new.id) and old.delta == new.delta
                           and old.narrow == new.narrow):
            return False
        return contains(old.range, new.range)
    if not isinstance(new, Ptr) or old.kind is not new.kind or old.off != new.off:
        return False
    if old.map != new.map or old.frame != new.frame or old.nullable != new.nullable or (
            old.size != new.size) or old.readonly != new.readonly:
        return False
    if old.buffer != new.buffer or (old.kind is Kind.MEM and old.range != new.range):
        return False
    if old.kind in _PACKET and old.range > new.range:
        return False
    if (old.var is None) != (new.var is None) or (
            old.var is not None and not _span(old.var, new.var, how)):
        return False
    if old.kind in _IDENTIFIED or old.nullable or old.keep_id:
        if not match.same(old.id, new.id):
            return False
    if old.owner or new.owner:
        if not match.same(old.owner, new.owner):
            return False
    return not (old.ref or new.ref) or match.same(-old.ref, -new.ref)


def _stack(old: Frame, new: Frame, match: _Match, how: How) -> bool:
    theirs = new.stack
    for base, slot in old.stack.items():
        token = slot.token
        if how is How.DEPENDED and (token is None or not token.read):
            continue
        now = theirs.get(base)
        if now is slot and (slot.value is None or not slot.value.id):
            continue
        if not _slot(slot, now, match, how):
            return False
    return True


def _slot(old: Slot, new: Slot | None, match: _Match, how: How) -> bool:
    value = old.value
    if isinstance(value, Ptr):
        return new is not None and isinstance(new.value, Ptr) and _reg(
            value, new.value, match, how)
    if new is not None and isinstance(new.value, Ptr):
        return False
    depended = how is not How.DEPENDED or old.token is None or old.token.precise
    if isinstance(value, Num):
        if new is None or new.value is None or new.size != old.size:
            return not depended and not value.tokens[0].precise
        if not _reg(value, new.value, match, how):
            return False
    zero = 0 if new is None else new.zero
    if new is not None and isinstance(new.value, Num) and new.value.range.is_const and (
            new.value.range.const == 0):
        zero |= (1 << new.size) - 1
    if how is How.EXACT:
        return old.zero == (0 if new is None else new.zero)
    return not depended or old.zero & ~zero == 0


def inherit(seen: Seen, state: State) -> bool:
    """The new state ends here because of the old: what mattered there matters in its past too.

    True if that was not known of all of it."""
    changed = False
    for mine, theirs in zip(seen.state.frames, state.frames, strict=True):
        for before, now in zip(mine.regs, theirs.regs, strict=True):
            changed |= _pass_on(before, now)
        for base, slot in mine.stack.items():
            now_slot = theirs.stack.get(base)
            if now_slot is None or slot.token is None:
                continue
            if slot.token.read:
                changed |= mark_read(now_slot.token)
            if slot.token.precise:
                if now_slot.token is not None:
                    changed |= mark_precise((now_slot.token,))
                if isinstance(now_slot.value, Num):
                    changed |= mark_precise(now_slot.value.tokens)
            changed |= _pass_on(slot.value, now_slot.value)
    return changed


def _pass_on(before: Reg, now: Reg) -> bool:
    if isinstance(before, Num | Ptr) and before.tokens and before.tokens[0].precise and (
            now is not None):
        return mark_precise(now.tokens)
    return False
