"""What lowering must know of a register: is it a number, or a pointer, and into what?

A lattice much simpler than the verifier's, because safety is not its business: every access was
proven before.  It only chooses representations, so that a pointer is an LLVM pointer into its own
object wherever the program lets it be one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from xdp_runtime.object import MapSpec

U64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Uninit:
    """Holds nothing that anybody will read."""


@dataclass(frozen=True, slots=True)
class Scalar:
    """A number; `const` if known (unsigned)."""

    const: int | None = None


@dataclass(frozen=True, slots=True)
class Ctx:
    pass


@dataclass(frozen=True, slots=True)
class Packet:
    """A pointer into the packet, or to one of its ends."""


@dataclass(frozen=True, slots=True)
class StackPtr:
    """`off` bytes from the top (r10) of the frame at call depth `depth`; None: unknown."""

    depth: int
    off: int | None


@dataclass(frozen=True, slots=True)
class MapValue:
    """A pointer into a value of map number `map`, or null; -1: of some inner map."""

    map: int


@dataclass(frozen=True, slots=True)
class InnerMap:
    """A map found in a map of maps, or null: the address of its descriptor.  `definition` is its
    inner definition, without the name."""

    definition: MapSpec


@dataclass(frozen=True, slots=True)
class MapPtr:
    map: int


@dataclass(frozen=True, slots=True)
class MapOneOf:
    """One of several maps, by path: its number + 1, as a pointer; with a `definition` also, by
    path, an inner map of it: the address of its descriptor."""

    maps: frozenset[int]
    definition: MapSpec | None = None


@dataclass(frozen=True, slots=True)
class Mem:
    """A pointer into one of several objects, or null."""


@dataclass(frozen=True, slots=True)
class Either:
    """A number on one path, a pointer on another: kept as both.  The verifier's facts say which
    of them an instruction uses."""


Kind = (Uninit | Scalar | Ctx | Packet | StackPtr | MapValue | InnerMap | MapPtr | MapOneOf | Mem
        | Either)
NOTHING = Uninit()
NUMBER = Scalar()
POINTERS = (Packet, StackPtr, MapValue, InnerMap, Mem, Ctx)


def constant(value: int) -> Scalar:
    return Scalar(value & U64)


def meet(a: Kind, b: Kind) -> Kind:
    """What stands for both.  Only goes down a lattice of finite height, so loops terminate."""
    if a is b or a == b:
        return a
    match a, b:
        case (Uninit(), _) | (_, Uninit()):
            return NOTHING  # what holds nothing on one path is not read behind the join
        case Scalar(), Scalar():
            return NUMBER
        case StackPtr(), StackPtr() if a.depth == b.depth:
            return StackPtr(a.depth, None)
        case (MapPtr() | MapOneOf() | InnerMap(), MapPtr() | MapOneOf() | InnerMap()):
            definitions = {definition_of(a), definition_of(b)} - {None}
            if len(definitions) > 1:
                return Either()
            return MapOneOf(maps_of(a) | maps_of(b), next(iter(definitions), None))
        case (MapValue(), MapValue()):
            return MapValue(-1)
        case MapValue() | InnerMap() | Mem(), Scalar(const=0):
            return a
        case Scalar(const=0), MapValue() | InnerMap() | Mem():
            return b
        case (Packet() | StackPtr() | MapValue() | Mem(),
              Packet() | StackPtr() | MapValue() | Mem()):
            return Mem()
        case _:
            return Either()


def maps_of(kind: Kind) -> frozenset[int]:
    """The maps that a map argument may be."""
    match kind:
        case MapPtr(index):
            return frozenset({index})
        case MapOneOf(indices, _):
            return indices
        case _:
            return frozenset()


def definition_of(kind: Kind) -> MapSpec | None:
    """The definition of the inner map that a map argument may be, if it may be one."""
    return kind.definition if isinstance(kind, InnerMap | MapOneOf) else None


@dataclass(slots=True)
class State:
    """Kinds of all registers and spilled pointers at one point.

    `regs`: r0..r10 of the running frame.  `saved`: r6..r9 of each caller, outermost first.
    `spills`: (depth, offset from the top) -> kind of the pointer stored there, 8-byte slots.
    """

    regs: list[Kind]
    saved: tuple[tuple[Kind, ...], ...] = ()
    spills: dict[tuple[int, int], Kind] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        return len(self.saved)

    def copy(self) -> State:
        return State(list(self.regs), self.saved, dict(self.spills))

    def meet(self, other: State) -> State | None:
        """The meet with `other`, or None when that is `self` already."""
        regs = [meet(a, b) for a, b in zip(self.regs, other.regs, strict=True)]
        saved = tuple(
            tuple(meet(a, b) for a, b in zip(mine, theirs, strict=True))
            for mine, theirs in zip(self.saved, other.saved, strict=True)
        )
        spills: dict[tuple[int, int], Kind] = {}
        for slot in self.spills.keys() | other.spills.keys():
            mine, theirs = self.spills.get(slot, NUMBER), other.spills.get(slot, NUMBER)
            spills[slot] = meet(mine, theirs)
        if regs == self.regs and saved == self.saved and spills == self.spills:
            return None
        return State(regs, saved, spills)

    def doubt_spills(self, depth: int | None, low: int, high: int) -> None:
        """Some of [low, high) of the frame at `depth` (None: of any frame) was overwritten: what
        is there now is in memory, a pointer or a number."""
        for at in self.spills:
            d, off = at
            if (depth is None or d == depth) and low < off + 8 and off < high:
                self.spills[at] = Either()

    def forget_spills(self, depth: int | None = None, low: int = -512, high: int = 0) -> None:
        """Memory [low, high) of the frame at `depth` (None: of any frame) was overwritten."""
        self.spills = {
            (d, off): kind
            for (d, off), kind in self.spills.items()
            if (depth is not None and d != depth) or off + 8 <= low or off >= high
        }
