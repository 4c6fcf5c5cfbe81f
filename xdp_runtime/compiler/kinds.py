"""What is known of a register at an instruction, and how two such facts meet.

A simple lattice that stands in for the verifier: it says which object a pointer points into, so
that lowering can use a real LLVM pointer with the right bounds.  What it cannot bound statically
is checked at run time; what it cannot attribute to an object is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

U64 = (1 << 64) - 1
_WIDEN = (0, 1, (1 << 8) - 1, (1 << 16) - 1, (1 << 32) - 1, U64)


@dataclass(frozen=True, slots=True)
class Uninit:
    """Never written, or what is left where two paths disagree: may not be read."""

    why: str = "was never written"


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number; `const` if known, else at most `umax` (unsigned)."""

    const: int | None = None
    umax: int = U64


@dataclass(frozen=True, slots=True)
class Ctx:
    pass


@dataclass(frozen=True, slots=True)
class Packet:
    """A pointer into the packet.  `umax`: at most that far behind the start it came from and not
    before it, so address arithmetic cannot wrap; None: anywhere."""

    umax: int | None = 0
    meta: bool = False


@dataclass(frozen=True, slots=True)
class PacketEnd:
    pass


@dataclass(frozen=True, slots=True)
class StackPtr:
    """`off` bytes from the top (r10) of the frame at call depth `depth`; None: unknown."""

    depth: int
    off: int | None


@dataclass(frozen=True, slots=True)
class MapValue:
    """A pointer into a value of map number `map`, `off` bytes behind its start (None: unknown)."""

    map: int
    off: int | None = 0
    nullable: bool = True


@dataclass(frozen=True, slots=True)
class MapPtr:
    map: int


@dataclass(frozen=True, slots=True)
class Mem:
    """A pointer into one of several objects; its bounds travel with it at run time."""

    nullable: bool = False
    packet: bool = False  # may be a packet pointer, and dies with those
    readonly: bool = False


Kind = Uninit | Scalar | Ctx | Packet | PacketEnd | StackPtr | MapValue | MapPtr | Mem
CONFLICT = Uninit("holds different kinds of values on different paths")
CLOBBERED = Uninit("was overwritten by a call")
STALE = Uninit("points into the packet as it was before a helper changed it")
MEMORY = (StackPtr, MapValue, Mem, Packet)


def constant(value: int) -> Scalar:
    value &= U64
    return Scalar(value, value)


def _widened(bound: int) -> int:
    return next(w for w in _WIDEN if w >= bound)


def _as_mem(kind: Kind, readonly_maps: frozenset[int]) -> Mem | None:
    match kind:
        case StackPtr():
            return Mem()
        case MapValue(number, _, nullable):
            return Mem(nullable=nullable, readonly=number in readonly_maps)
        case Packet():
            return Mem(packet=True)
        case Mem():
            return kind
        case Scalar(const=0):
            return Mem(nullable=True)
        case _:
            return None


def meet(a: Kind, b: Kind, readonly_maps: frozenset[int]) -> Kind:
    """What is true of both.  Only goes down a lattice of finite height, so loops terminate."""
    if a == b:
        return a
    match a, b:
        case Uninit(), _:
            return a
        case _, Uninit():
            return b
        case Scalar(), Scalar():
            return Scalar(None, _widened(max(a.umax, b.umax)))
        case Packet(), Packet():
            if a.umax is None or b.umax is None:
                return Packet(None, a.meta or b.meta)
            bound = _widened(max(a.umax, b.umax))
            return Packet(bound if bound < 1 << 32 else None, a.meta or b.meta)
        case StackPtr(), StackPtr() if a.depth == b.depth:
            return StackPtr(a.depth, None)
        case MapValue(), MapValue() if a.map == b.map:
            off = a.off if a.off == b.off else None
            return MapValue(a.map, off, a.nullable or b.nullable)
        case MapValue(), Scalar(const=0):
            return replace(a, nullable=True)
        case Scalar(const=0), MapValue():
            return replace(b, nullable=True)
        case _:
            left, right = _as_mem(a, readonly_maps), _as_mem(b, readonly_maps)
            if left is None or right is None or (isinstance(a, Scalar) and isinstance(b, Scalar)):
                return CONFLICT
            return Mem(left.nullable or right.nullable, left.packet or right.packet,
                       left.readonly or right.readonly)


class State:
    """Kinds of all registers and spilled pointers at one point.

    `regs`: r0..r10 of the running frame.  `saved`: r6..r9 of each caller, outermost first.
    `spills`: (depth, offset from the top) -> kind of the pointer stored there, 8-byte slots.
    """

    __slots__ = ("regs", "saved", "spills")

    def __init__(self, regs: list[Kind], saved: tuple[tuple[Kind, ...], ...] = (),
                 spills: dict[tuple[int, int], Kind] | None = None) -> None:
        self.regs, self.saved = regs, saved
        self.spills = spills if spills is not None else {}

    @property
    def depth(self) -> int:
        return len(self.saved)

    def copy(self) -> State:
        return State(list(self.regs), self.saved, dict(self.spills))

    def meet(self, other: State, readonly_maps: frozenset[int]) -> State | None:
        """The meet with `other`, or None when that is `self` already."""
        regs = [meet(a, b, readonly_maps) for a, b in zip(self.regs, other.regs, strict=True)]
        saved = tuple(
            tuple(meet(a, b, readonly_maps) for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in zip(self.saved, other.saved, strict=True)
        )
        spills: dict[tuple[int, int], Kind] = {}
        for slot in self.spills.keys() & other.spills.keys():
            kind = meet(self.spills[slot], other.spills[slot], readonly_maps)
            if not isinstance(kind, Uninit):
                spills[slot] = kind
        if regs == self.regs and saved == self.saved and spills == self.spills:
            return None
        return State(regs, saved, spills)

    def forget_packet(self) -> None:
        """Packet pointers die when a helper moves the packet's ends."""

        def live(kind: Kind) -> Kind:
            stale = isinstance(kind, Packet | PacketEnd) or (isinstance(kind, Mem) and kind.packet)
            return STALE if stale else kind

        self.regs = [live(kind) for kind in self.regs]
        self.saved = tuple(tuple(live(kind) for kind in frame) for frame in self.saved)
        self.spills = {
            slot: kind for slot, kind in self.spills.items() if not isinstance(live(kind), Uninit)
        }

    def forget_spills(self, depth: int | None = None, low: int = -512, high: int = 0) -> None:
        """Memory [low, high) of the frame at `depth` (None: of any frame) was overwritten."""
        self.spills = {
            (d, off): kind
            for (d, off), kind in self.spills.items()
            if (depth is not None and d != depth) or off + 8 <= low or off >= high
        }


def scalar_alu(op: str, a: Scalar, b: Scalar, is64: bool) -> Scalar:
    """Constant and upper bound of `a op b`; anything not listed is unknown."""
    limit = U64 if is64 else 0xFFFFFFFF
    x, y = min(a.umax, limit), min(b.umax, limit)
    known = a.const is not None and b.const is not None
    if known:
        p, q = (a.const or 0) & limit, (b.const or 0) & limit
        shift = q & (63 if is64 else 31)
        folded = {
            "ADD": p + q, "SUB": p - q, "MUL": p * q, "AND": p & q, "OR": p | q, "XOR": p ^ q,
            "LSH": p << shift, "RSH": p >> shift,
        }.get(op)
        if folded is not None:
            return constant(folded & limit)
    bound = limit
    match op:
        case "AND":
            bound = min(x, y)
        case "OR" | "XOR":
            bound = (1 << max(x.bit_length(), y.bit_length())) - 1
        case "ADD":
            bound = x + y
        case "MUL":
            bound = x * y
        case "LSH" if b.const is not None:
            bound = x << (b.const & (63 if is64 else 31))
        case "RSH" if b.const is not None:
            bound = x >> (b.const & (63 if is64 else 31))
        case "DIV" | "MOD":
            bound = x
    return Scalar(None, bound if bound <= limit else limit)
