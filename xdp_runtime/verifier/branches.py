"""What a conditional jump teaches on each side.

Numbers: both ranges are refined, and so are all copies (same id).  Packet pointers compared with
the packet's end: so many bytes are proven for every pointer with the same variable offset.
Pointers that may be null: they are pointers on one side, zero on the other, with all copies.
(check_cond_jmp_op, find_good_pkt_pointers, mark_ptr_or_null_regs.)
"""

from __future__ import annotations

from collections.abc import Callable

from xdp_runtime.isa import AluOp, Imm, JmpOp, JumpIf, Reg
from xdp_runtime.verifier import scalar, scalar_alu, scalar_branch
from xdp_runtime.verifier.domain import (
    Kind,
    Num,
    Ptr,
    Slot,
    State,
    Token,
    mark_precise,
    merged,
)
from xdp_runtime.verifier.env import Refused

# reg_not_null: of other pointers the kernel looks at both sides
_NEVER_NULL = (Kind.MAP_VALUE, Kind.MAP, Kind.MEM, Kind.MAP_KEY)
MAX_PACKET_OFF = 0xFFFF  # MAX_PACKET_OFF: a packet is shorter than that
_ZERO = Num(scalar.const(0))
# `a op b` seen from b
_MIRROR = {JmpOp.GT: JmpOp.LT, JmpOp.LT: JmpOp.GT, JmpOp.GE: JmpOp.LE, JmpOp.LE: JmpOp.GE}


def outcomes(state: State, insn: JumpIf) -> tuple[State | None, State | None]:
    """(state where the jump falls through, state where it is taken); None: cannot happen.

    `state` is given up: it may become one of the two."""
    regs = state.top.regs
    left = regs[insn.dst]
    right = Num(scalar.const(insn.src.value)) if isinstance(insn.src, Imm) else regs[insn.src.n]
    assert left is not None and right is not None
    if isinstance(left, Num) and isinstance(right, Num):
        return _numbers(state, insn, left, right)
    if isinstance(left, Ptr) and isinstance(right, Num):
        return _pointer_and_number(state, insn, left, right)
    if isinstance(left, Ptr) and isinstance(right, Ptr):
        return _pointers(state, insn, left, right)
    return state.copy(), state  # a number and a pointer: nothing is learned


def _numbers(state: State, insn: JumpIf, left: Num, right: Num
             ) -> tuple[State | None, State | None]:
    known = scalar_branch.always(insn.op, insn.is64, left.range, right.range)
    if known is not None:
        mark_precise(left.tokens)
        mark_precise(right.tokens)
        return (None, state) if known else (state, None)
    sides: list[State | None] = []
    src = -1 if isinstance(insn.src, Imm) else insn.src.n
    for taken in (False, True):
        refined = scalar_branch.branch(insn.op, insn.is64, left.range, right.range, taken)
        if refined is None:
            mark_precise(left.tokens)
            mark_precise(right.tokens)
            sides.append(None)
            continue
        side = state.copy() if not taken else state
        tokens = merged(left.tokens, right.tokens)
        _learn(side, insn.dst, left, refined[0], tokens)
        if src >= 0:
            _learn(side, src, right, refined[1], tokens)
        sides.append(side)
    return sides[0], sides[1]


def _learn(state: State, reg: int, old: Num, range_: scalar.Scalar,
           tokens: tuple[Token, ...]) -> None:
    """The number in `reg` is within `range_`, as the numbers behind `tokens` have shown; so are
    its copies, and what differs from them by a constant."""
    if range_ == old.range:
        return
    state.top.regs[reg] = Num(range_, old.id, tokens, old.delta, old.narrow)
    if not old.id:
        return
    number, delta = old.id, old.delta

    def new(value: Num | Ptr) -> Num | None:
        if not isinstance(value, Num) or value.id != number:
            return None
        if value.delta == delta:
            known: scalar.Scalar | None = range_
        elif value.delta and delta and value.narrow != old.narrow:
            return None  # the kernel keeps differences of 32 and of 64 bits apart
        else:
            known = scalar.meet(value.range, scalar_alu.alu(
                AluOp.ADD, True, range_, scalar.const(value.delta - delta)))
        # None: no number is in both, so this path cannot be; what was known before holds
        return None if known is None else Num(known, number, merged(value.tokens, tokens),
                                              value.delta, value.narrow)

    replace_all(state, new)


def replace_all(state: State, new: Callable[[Num | Ptr], Num | Ptr | None]) -> None:
    """Put `new(value)` in the place of every register and spilled value it is not None for."""
    for frame in state.frames:
        regs = frame.regs
        for number, value in enumerate(regs):
            if value is not None:
                changed = new(value)
                if changed is not None:
                    regs[number] = changed
        hits = [(base, slot, changed) for base, slot in frame.stack.items()
                if slot.value is not None and (changed := new(slot.value)) is not None]
        if hits:
            stack = frame.writable()
            for base, slot, changed in hits:
                stack[base] = Slot(changed, slot.size, slot.init, slot.zero, slot.token)


def _pointer_and_number(state: State, insn: JumpIf, ptr: Ptr, number: Num
                        ) -> tuple[State | None, State | None]:
    zero = number.range.is_const and number.range.const == 0
    if zero and isinstance(insn.src, Imm) and insn.is64 and insn.op in (JmpOp.EQ, JmpOp.NE):
        if ptr.nullable:
            null, good = state.copy(), state
            _mark_null(null, ptr, True)
            _mark_null(good, ptr, False)
            return (good, null) if insn.op is JmpOp.EQ else (null, good)
        if ptr.kind in _NEVER_NULL:
            mark_precise(number.tokens)
            return (state, None) if insn.op is JmpOp.EQ else (None, state)
    return state.copy(), state


def _mark_null(state: State, ptr: Ptr, null: bool) -> None:
    if null and ptr.ref:
        state.refs = tuple(r for r in state.refs if r != ptr.ref)

    def new(value: Num | Ptr) -> Num | Ptr | None:
        if isinstance(value, Ptr) and value.nullable and value.id == ptr.id:
            return _ZERO if null else value.but(
                nullable=False, id_=value.id if value.ref or value.keep_id else 0)
        return None

    replace_all(state, new)


def _pointers(state: State, insn: JumpIf, left: Ptr, right: Ptr
              ) -> tuple[State | None, State | None]:
    if left.kind is Kind.MAP and right.kind is Kind.MAP and left.size != right.size:
        raise Refused("type", "a map is compared with one that was found in a map, and which it is "
                      "cannot be told", "compare maps that were both found", (insn.dst,))
    if not insn.is64:
        return state.copy(), state
    falls, taken = state.copy(), state
    op = insn.op
    if op in (JmpOp.EQ, JmpOp.NE) and left.nullable != right.nullable:
        equal = taken if op is JmpOp.EQ else falls  # equal to a pointer that is not null
        assert isinstance(insn.src, Reg)
        number = insn.dst if left.nullable else insn.src.n
        equal.top.regs[number] = (left if left.nullable else right).but(nullable=False)
        return falls, taken
    ends = ((left.kind is Kind.PACKET and right.kind is Kind.PACKET_END)
            or (left.kind is Kind.PACKET_META and _is_start(right)))
    mirrored = ((right.kind is Kind.PACKET and left.kind is Kind.PACKET_END)
                or (right.kind is Kind.PACKET_META and _is_start(left)))
    if not ends and not mirrored:
        return falls, taken
    ptr = left if ends else right
    if mirrored:
        op = _MIRROR.get(op, op)
    # now: ptr op end
    if op in (JmpOp.GT, JmpOp.GE):  # falls through: ptr <= end, ptr < end
        inside, beyond = falls, taken
    elif op in (JmpOp.LT, JmpOp.LE):
        inside, beyond = taken, falls
    else:
        return falls, taken
    strict = op in (JmpOp.LT, JmpOp.GE)
    if ptr.kind is Kind.PACKET and 0 < ptr.range >= ptr.off + strict:
        # Compared before.  The kernel looks at the other side, too, where a compiler that saw
        # the same has left whatever the registers held.
        return (inside, None) if inside is falls else (None, inside)
    _prove(inside, ptr, strict)
    if ptr.kind is Kind.PACKET:  # mark_pkt_end: whatever was known of this register says nothing
        assert isinstance(insn.src, Reg)
        beyond.top.regs[insn.dst if ends else insn.src.n] = ptr.but(range_=0)
    return falls, taken


def _is_start(ptr: Ptr) -> bool:
    """The very start of the packet: where the metadata ends."""
    return ptr.kind is Kind.PACKET and ptr.off == 0 and ptr.var is None


def in_reach(ptr: Ptr) -> bool:
    """May a comparison show that the bytes before it exist?"""
    beyond = 0 if ptr.var is None else ptr.var.umax
    return ptr.off >= 0 and beyond + ptr.off <= MAX_PACKET_OFF


def _prove(state: State, ptr: Ptr, strict: bool) -> None:
    """ptr <= end (strict: ptr < end), so the bytes before it exist."""
    if ptr.off == 0 and strict:  # the kernel takes `data < end` for nothing
        return
    if not in_reach(ptr):
        return
    proven = ptr.off + (1 if strict else 0)
    kind, number = ptr.kind, ptr.id

    def new(value: Num | Ptr) -> Num | Ptr | None:
        if isinstance(value, Ptr) and value.kind is kind and value.id == number and (
                value.range < proven):
            return value.but(range_=proven)
        return None

    replace_all(state, new)
