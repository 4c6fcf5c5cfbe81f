"""Remembered states, and when a new one is covered by one of them (states_equal).

A state is covered if everything it could do was already tried from the older one: each register
and stack slot is at most as general wherever the older exploration depended on it.  The tokens of
domain.py say where it did.  Ids of the two states are matched one to one, so relations that held
between registers of the older one hold in the new one too.
"""

from __future__ import annotations

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


class Seen:
    """A remembered state.  `open` paths from it are not finished yet; with 0 it can cover.

    `longest` of those paths, in instructions, continued by what covered them; `before`: from the
    parent to here.  A covered path takes branches its cover took as well, so it is no longer.
    """

    __slots__ = ("before", "hits", "longest", "misses", "open", "parent", "slot", "state")

    def __init__(self, slot: int, state: State, parent: Seen | None, before: int = 0) -> None:
        self.slot, self.state, self.parent, self.before = slot, state, parent, before
        self.open = 1
        self.hits = self.misses = self.longest = 0

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
            if seen.parent is not None:
                seen.parent.reach(seen.before + seen.longest)
            seen = seen.parent


def remember(state: State, slot: int, parent: Seen, flow: Flow, before: int) -> Seen:
    """Forget what is dead, give every number and slot a fresh token, keep a copy."""
    kept = []
    last = len(state.frames) - 1
    for depth, frame in enumerate(state.frames):
        live = flow.live[slot if depth == last else state.frames[depth + 1].return_slot]
        if frame.callback and depth != last:
            live = 0x7FF
        regs = frame.regs
        for number, value in enumerate(regs):
            if value is None or number == 10:
                continue
            if not live >> number & 1:
                regs[number] = None
            elif isinstance(value, Num):
                regs[number] = Num(value.range, value.id, (Token(value.tokens),))
            elif value.var is not None:
                regs[number] = value.at(value.off, value.var, value.id, value.range,
                                        (Token(value.tokens),))
        frame.stack = {base: _fresh(old) for base, old in frame.stack.items()}
        frame.owned = False
        twin = Frame(list(regs), frame.stack, frame.return_slot, frame.entry, frame.callback)
        twin.owned = False
        kept.append(twin)
    return Seen(slot, State(kept, state.refs, state.lock), parent, before)


def _fresh(old: Slot) -> Slot:
    value = old.value
    if isinstance(value, Num):
        value = Num(value.range, value.id, (Token(value.tokens),))
    elif isinstance(value, Ptr) and value.var is not None:
        value = value.at(value.off, value.var, value.id, value.range, (Token(value.tokens),))
    return Slot(value, old.size, old.init, old.zero,
                Token(() if old.token is None else (old.token,)))


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


def covers(seen: Seen, state: State, exact: bool = False) -> bool:
    """Is `state`, at the same slot, covered by the remembered one?

    `exact` asks for equality instead: the same state again is a loop without progress."""
    old = seen.state
    if (old.refs and len(old.refs) != len(state.refs)) or bool(old.refs) != bool(state.refs):
        return False
    if bool(old.lock) != bool(state.lock):
        return False
    match = _Match()
    for mine, theirs in zip(old.frames, state.frames, strict=True):
        for before, now in zip(mine.regs, theirs.regs, strict=True):
            if before is not now and not _reg(before, now, match, exact):
                return False
        if mine.stack is not theirs.stack and not _stack(mine, theirs, match, exact):
            return False
    return True


def same_calls(seen: Seen, state: State) -> bool:
    old, new = seen.state.frames, state.frames
    if len(old) != len(new):
        return False
    return all(a.return_slot == b.return_slot and a.entry == b.entry and a.callback == b.callback
               for a, b in zip(old, new, strict=True))


def _span(old: Scalar | None, new: Scalar | None, exact: bool) -> bool:
    if old is new:
        return True
    if old is None or new is None:
        return False
    return old == new if exact else contains(old, new)


def _reg(old: Reg, new: Reg, match: _Match, exact: bool) -> bool:
    if old is None:
        return True
    if isinstance(old, Num):
        if not isinstance(new, Num):
            return False
        if exact:
            return old.range == new.range
        if not old.tokens[0].precise:
            return True
        if old.id and not match.same(old.id, new.id):
            return False
        return contains(old.range, new.range)
    if not isinstance(new, Ptr) or old.kind is not new.kind or old.off != new.off:
        return False
    if old.map != new.map or old.frame != new.frame or old.nullable != new.nullable or (
            old.size != new.size) or old.readonly != new.readonly:
        return False
    if old.kind in _PACKET and old.range > new.range:
        return False
    if (old.var is None) != (new.var is None) or (
            old.var is not None and not _span(old.var, new.var, exact)):
        return False
    if old.kind in _PACKET or old.nullable:
        if not match.same(old.id, new.id):
            return False
    return not (old.ref or new.ref) or match.same(-old.ref, -new.ref)


def _stack(old: Frame, new: Frame, match: _Match, exact: bool) -> bool:
    theirs = new.stack
    for base, slot in old.stack.items():
        token = slot.token
        if not exact and (token is None or not token.read):
            continue
        now = theirs.get(base)
        if now is slot:
            continue
        if not _slot(slot, now, match, exact):
            return False
    return True


def _slot(old: Slot, new: Slot | None, match: _Match, exact: bool) -> bool:
    value = old.value
    if isinstance(value, Ptr):
        return new is not None and isinstance(new.value, Ptr) and _reg(
            value, new.value, match, exact)
    if new is not None and isinstance(new.value, Ptr):
        return False
    if isinstance(value, Num):
        if new is None or new.value is None or new.size != old.size:
            return not exact and not value.tokens[0].precise and not (
                old.token is not None and old.token.precise)
        if not _reg(value, new.value, match, exact):
            return False
    zero = 0 if new is None else new.zero
    if new is not None and isinstance(new.value, Num) and new.value.range.is_const and (
            new.value.range.const == 0):
        zero |= (1 << new.size) - 1
    if exact:
        return old.zero == (0 if new is None else new.zero)
    if old.token is not None and old.token.precise:
        return old.zero & ~zero == 0
    return True


def inherit(seen: Seen, state: State) -> None:
    """The new state ends here because of the old: what mattered there matters in its past too."""
    for mine, theirs in zip(seen.state.frames, state.frames, strict=True):
        for before, now in zip(mine.regs, theirs.regs, strict=True):
            _pass_on(before, now)
        for base, slot in mine.stack.items():
            now_slot = theirs.stack.get(base)
            if now_slot is None or slot.token is None:
                continue
            if slot.token.read:
                mark_read(now_slot.token)
            if slot.token.precise and now_slot.token is not None:
                mark_precise((now_slot.token,))
                if isinstance(now_slot.value, Num):
                    mark_precise(now_slot.value.tokens)
            _pass_on(slot.value, now_slot.value)


def _pass_on(before: Reg, now: Reg) -> None:
    if isinstance(before, Num | Ptr) and before.tokens and before.tokens[0].precise and (
            now is not None):
        mark_precise(now.tokens)
