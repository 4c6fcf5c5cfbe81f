"""What the verifier knows at one point of one path: registers, stack, references.

A register is None (may not be read), a `Num` or a `Ptr`.  All three are immutable by convention
and shared between states; a state is cheap to copy because stacks are copied on write.

*Numbers* carry a range (scalar.py), an id shared by copies (what a branch learns of one holds for
all), and the *tokens* they were computed from.  Pruning asks whether a new state is covered by one
that was explored before.  Ranges may differ wherever the earlier exploration never depended on
them: each number of a remembered state gets a fresh token; when a number decides something (moves
a pointer, sizes an access, settles a branch), all tokens it came from are marked `precise`.  Stack
slots have tokens too, marked `read` when something reads them.  It does what the kernel's
mark_chain_precision does by walking back through history, but forwards.

*Pointers* are a kind, the object, a constant offset and a variable one.  A packet pointer has a
`range`: that many bytes from its variable offset on are proven to exist; pointers with the same id
share their variable offset, so a check on one serves all.
"""

from __future__ import annotations

from enum import IntEnum

from xdp_runtime.verifier.scalar import Scalar


class Token:
    """One number or stack slot of a remembered state, and what its value came from."""

    __slots__ = ("parents", "precise", "read")

    def __init__(self, parents: tuple[Token, ...]) -> None:
        self.parents = parents
        self.precise = False
        self.read = False


def mark_precise(tokens: tuple[Token, ...]) -> bool:
    """The value decided something: every remembered number behind it matters.

    True if that is news."""
    todo = [t for t in tokens if not t.precise]
    news = bool(todo)
    while todo:
        token = todo.pop()
        if not token.precise:
            token.precise = True
            todo.extend(token.parents)
    return news


def mark_read(token: Token | None) -> bool:
    """Something read the slot; True if that is news."""
    if token is None or token.read:
        return False
    todo = [token]
    while todo:
        one = todo.pop()
        if not one.read:
            one.read = True
            todo.extend(one.parents)
    return True


def merged(a: tuple[Token, ...], b: tuple[Token, ...]) -> tuple[Token, ...]:
    if not b or a is b:
        return a
    if not a:
        return b
    return a + tuple(t for t in b if t not in a)


class Num:
    """A number: its range, the id it shares with its copies (0: none), where it came from.

    `delta`: it is that much more than the others with the same id and no delta (modulo 2^64);
    `narrow`: that was added in 32 bits."""

    __slots__ = ("delta", "id", "narrow", "range", "tokens")

    def __init__(self, range_: Scalar, id_: int = 0, tokens: tuple[Token, ...] = (),
                 delta: int = 0, narrow: bool = False) -> None:
        self.range, self.id, self.tokens, self.delta = range_, id_, tokens, delta
        self.narrow = narrow


class Kind(IntEnum):
    CTX = 1
    PACKET = 2
    PACKET_META = 3
    PACKET_END = 4
    STACK = 5
    MAP_VALUE = 6
    MAP = 7
    MEM = 8  # memory of a known size: a ring buffer record, dynptr data
    MAP_KEY = 9  # in a callback of for_each_map_elem
    FUNC = 10
    SOCKET = 11  # what a lookup returned
    DYNPTR = 12  # on the stack: half of one; in a register: one that a callback was given
    ITER = 13  # on the stack: an open-coded iterator
    ARENA = 14  # an address in an arena, any address; one that is not there reads as zero


class Ptr:
    """A pointer.  `off` is constant, `var` a range of further bytes (None: zero).

    `id`: shared by pointers with the same variable offset (packet) or by copies of one that may
    be null; where `keep_id` is set it tells one map value from another even after the check, for
    its lock.  `range`: proven bytes of a packet pointer.  `map`: the map's index, or -1.
    `frame`: call depth of a stack pointer.  Of MEM, `range` 1 says that it may lie in the packet,
    and `buffer` where on the stack it may lie instead: frame, lowest and highest offset.
    `size`: bytes of MEM; of a MAP, 1: it is an inner map; of a MAP_VALUE, the bytes of an inner
    map's value.  `ref`: the reference it holds, 0: none.  `owner`: the dynptr whose data it points
    to.

    On the stack, DYNPTR and ITER are no pointers but the objects themselves: `off` is the half
    (0 or 8), `size` a word of stack_objects.py on its state.
    """

    __slots__ = ("buffer", "frame", "id", "keep_id", "kind", "map", "nullable", "off", "owner",
                 "range", "readonly", "ref", "size", "tokens", "var")

    def __init__(self, kind: Kind, off: int = 0, var: Scalar | None = None, id_: int = 0,
                 range_: int = 0, map_: int = -1, frame: int = 0, nullable: bool = False,
                 size: int = 0, ref: int = 0, readonly: bool = False,
                 tokens: tuple[Token, ...] = (), keep_id: bool = False, owner: int = 0,
                 buffer: tuple[int, int, int] | None = None) -> None:
        self.kind, self.off, self.var, self.id = kind, off, var, id_
        self.range, self.map, self.frame, self.nullable = range_, map_, frame, nullable
        self.size, self.ref, self.readonly, self.tokens = size, ref, readonly, tokens
        self.keep_id, self.owner, self.buffer = keep_id, owner, buffer

    def but(self, *, off: int | None = None, id_: int | None = None, range_: int | None = None,
            nullable: bool | None = None) -> Ptr:
        """A copy with some fields changed."""
        return Ptr(self.kind, self.off if off is None else off, self.var,
                   self.id if id_ is None else id_, self.range if range_ is None else range_,
                   self.map, self.frame, self.nullable if nullable is None else nullable,
                   self.size, self.ref, self.readonly, self.tokens, self.keep_id, self.owner,
                   self.buffer)

    def at(self, off: int, var: Scalar | None, id_: int, range_: int,
           tokens: tuple[Token, ...]) -> Ptr:
        """The same object at another offset."""
        return Ptr(self.kind, off, var, id_, range_, self.map, self.frame, self.nullable,
                   self.size, self.ref, self.readonly, tokens, self.keep_id, self.owner,
                   self.buffer)


Reg = Num | Ptr | None


class Slot:
    """Eight bytes of stack.

    `value` is what was spilled there whole (`size` 8), or a number of fewer bytes at its start;
    bytes outside it are described by the masks: `init` bytes were written, `zero` bytes are zero.
    """

    __slots__ = ("init", "size", "token", "value", "zero")

    def __init__(self, value: Num | Ptr | None, size: int, init: int, zero: int,
                 token: Token | None = None) -> None:
        self.value, self.size, self.init, self.zero = value, size, init, zero
        self.token = token


class Frame:
    """One function's activation: its registers, its stack, where it returns to.

    `callback`: the helper that calls this frame again and again, 0: a plain call.  Such a frame
    returns to the call itself.  `depth`: how often that helper did call from this frame.
    """

    __slots__ = ("callback", "depth", "entry", "owned", "regs", "return_slot", "stack")

    def __init__(self, regs: list[Reg], stack: dict[int, Slot], return_slot: int, entry: int,
                 callback: int = 0, depth: int = 0) -> None:
        self.regs, self.stack, self.return_slot, self.entry = regs, stack, return_slot, entry
        self.callback, self.depth = callback, depth
        self.owned = True

    def copy(self) -> Frame:
        self.owned = False
        twin = Frame(list(self.regs), self.stack, self.return_slot, self.entry, self.callback,
                     self.depth)
        twin.owned = False
        return twin

    def writable(self) -> dict[int, Slot]:
        if not self.owned:
            self.stack = dict(self.stack)
            self.owned = True
        return self.stack


class State:
    """Everything known at one point of one path.

    `refs`: references acquired and not released.  `lock`: (map, id) of the value whose spin lock
    is held.  `rcu`, `preempt` and `irqs`: sections begun (kfuncs.py), of IRQs the references, the
    last one last.  `rounds`: how often this path went round a loop that ends by itself (a
    helper's, an iterator's, may_goto): there, a state may repeat.
    """

    __slots__ = ("frames", "irqs", "lock", "preempt", "rcu", "refs", "rounds")

    def __init__(self, frames: list[Frame], refs: tuple[int, ...] = (),
                 lock: tuple[int, int] | None = None, rounds: int = 0,
                 sections: tuple[int, int, tuple[int, ...]] = (0, 0, ())) -> None:
        self.frames, self.refs, self.lock, self.rounds = frames, refs, lock, rounds
        self.rcu, self.preempt, self.irqs = sections

    @property
    def sections(self) -> tuple[int, int, tuple[int, ...]]:
        return self.rcu, self.preempt, self.irqs

    @property
    def top(self) -> Frame:
        return self.frames[-1]

    def copy(self) -> State:
        return State([frame.copy() for frame in self.frames], self.refs, self.lock, self.rounds,
                     self.sections)


_NAMES = {
    Kind.CTX: "the context", Kind.PACKET: "a packet pointer",
    Kind.PACKET_META: "a metadata pointer", Kind.PACKET_END: "the packet's end",
    Kind.STACK: "a stack pointer", Kind.MAP_VALUE: "a map value pointer", Kind.MAP: "a map",
    Kind.MEM: "a memory pointer", Kind.MAP_KEY: "a map key pointer",
    Kind.FUNC: "a function", Kind.SOCKET: "a socket", Kind.DYNPTR: "a dynptr",
    Kind.ITER: "an iterator", Kind.ARENA: "an arena pointer",
}


def name_of(reg: Reg) -> str:
    if reg is None:
        return "nothing"
    if isinstance(reg, Num):
        return "a number"
    return _NAMES[reg.kind] + (" that may be null" if reg.nullable else "")
