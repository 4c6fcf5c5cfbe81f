"""What the interpreter's pointers point into, and how it stops.

A pointer is a region and an offset; every access is checked against the region's bounds.  A region
also has a made-up address, so that pointers compare, subtract and may be stored as numbers: but a
number never becomes a pointer again.  Only a stack slot remembers that a pointer was put there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from xdp_runtime import state
from xdp_runtime.isa import STACK_SIZE_BYTES
from xdp_runtime.maps.model import ModelArena, ModelMap

U64 = (1 << 64) - 1


class TrapKind(Enum):
    BOUNDS = "out of bounds"
    NULL = "null pointer"
    UNINIT = "uninitialised register"
    POINTER = "bad pointer arithmetic"
    NOT_POINTER = "not a pointer"
    STALE = "stale packet pointer"
    READ_ONLY = "read-only memory"
    CTX = "context access"
    HELPER = "unknown helper"
    ARGUMENT = "bad helper argument"
    CALL_DEPTH = "calls too deep"
    FALLTHROUGH = "runs off the program"
    BUDGET = "step budget used up"
    LEAK = "returns a pointer"
    UNSUPPORTED = "unsupported instruction"


class Trap(Exception):
    """The program did what the verifier is there to prevent; `insn` is the slot where."""

    def __init__(self, kind: TrapKind, text: str, insn: int = -1) -> None:
        self.kind, self.text, self.insn = kind, text, insn
        super().__init__(kind, text, insn)

    def __str__(self) -> str:
        return f"instruction {self.insn}: {self.kind.value}: {self.text}"


@dataclass(eq=False)
class Region:
    """Memory that one kind of pointer may reach: bytes [low, high) of `data`."""

    name: str
    data: bytearray
    low: int
    high: int
    base: int
    writable: bool = True

    def check(self, offset: int, size: int, write: bool) -> None:
        if not self.low <= offset or not offset + size <= self.high:
            raise Trap(TrapKind.BOUNDS, f"{size} bytes at {offset - self.low} of {self.name}, "
                                        f"which has {self.high - self.low}")
        if write and not self.writable:
            raise Trap(TrapKind.READ_ONLY, f"write to {self.name}")

    def load(self, offset: int, size: int) -> Value:
        self.check(offset, size, write=False)
        return int.from_bytes(self.data[offset : offset + size], "little")

    def store(self, offset: int, size: int, value: Value) -> None:
        """A pointer is stored as the number of its address."""
        self.check(offset, size, write=True)
        number = number_of(value) & (1 << 8 * size) - 1
        self.data[offset : offset + size] = number.to_bytes(size, "little")


@dataclass(frozen=True, slots=True)
class Pointer:
    region: Region
    offset: int

    def moved(self, by: int) -> Pointer:
        """`by` is an unsigned 64-bit number that may stand for a negative one."""
        return Pointer(self.region, ((self.offset + by + (1 << 63)) & U64) - (1 << 63))

    def load(self, size: int) -> Value:
        return self.region.load(self.offset, size)

    def store(self, size: int, value: Value) -> None:
        self.region.store(self.offset, size, value)

    def read(self, size: int) -> bytes:
        self.region.check(self.offset, size, write=False)
        return bytes(self.region.data[self.offset : self.offset + size])

    def write(self, content: bytes) -> None:
        for at, byte in enumerate(content):  # by bytes, so that a stack forgets spilled pointers
            self.region.store(self.offset + at, 1, byte)

    @property
    def address(self) -> int:
        return (self.region.base + self.offset) & U64


Value = int | Pointer


def number_of(value: Value) -> int:
    return value.address if isinstance(value, Pointer) else value


@dataclass(eq=False)
class Stack(Region):
    """One frame.  Bytes never written read as zero (the kernel refuses or gives garbage).

    `pointers` remembers what was spilled to an 8-byte aligned slot until a byte of it is
    overwritten; other reads of such a slot see the address as a number.
    """

    pointers: dict[int, Pointer] = field(default_factory=dict)

    def load(self, offset: int, size: int) -> Value:
        if size == 8 and offset in self.pointers:
            return self.pointers[offset]
        return Region.load(self, offset, size)

    def store(self, offset: int, size: int, value: Value) -> None:
        Region.store(self, offset, size, value)
        for slot in range(offset // 8 * 8, offset + size, 8):
            self.pointers.pop(slot, None)
        if isinstance(value, Pointer) and size == 8 and offset % 8 == 0:
            self.pointers[offset] = value


def new_stack(depth: int) -> Stack:
    return Stack(f"the stack frame of depth {depth}", bytearray(STACK_SIZE_BYTES), 0,
                 STACK_SIZE_BYTES, 0x7F0000000000 - depth * 0x10000)


@dataclass(eq=False)
class PacketView(Region):
    """The packet between two changes of its edges; `alive` ends with the next one."""

    alive: bool = True


@dataclass(eq=False, slots=True)
class Fragment:
    """A further buffer: `page` as far as it may grow, the packet's bytes in it [start, end)."""

    page: bytearray
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(eq=False)
class Packet:
    """A frame buffer and the packet's edges in it, as offsets.

    `hard_start` is as low as the data may go, `frame_end` as high.  A packet in several buffers
    goes on in `fragments`.
    """

    frame: bytearray
    data_meta: int
    data: int
    data_end: int
    hard_start: int
    frame_end: int
    fragments: list[Fragment] = field(default_factory=list)
    view: PacketView = field(init=False)

    def __post_init__(self) -> None:
        self._look()

    def _look(self) -> None:
        self.view = PacketView("the packet", self.frame, self.data_meta, self.data_end,
                               0x100000000000)

    @property
    def length(self) -> int:
        return self.data_end - self.data + sum(fragment.size for fragment in self.fragments)

    def content(self) -> bytes:
        return bytes(self.frame[self.data : self.data_end]) + b"".join(
            bytes(one.page[one.start : one.end]) for one in self.fragments)

    def changed(self) -> None:
        """Every pointer into the packet dies, as in bpf_helper_changes_pkt_data()."""
        self.view.alive = False
        self._look()


@dataclass(eq=False)
class Context(Region):
    """struct xdp_md: only whole 32-bit fields can be read, and nothing written."""

    packet: Packet | None = None
    numbers: dict[int, int] = field(default_factory=dict)

    def load(self, offset: int, size: int) -> Value:
        entry = state.XDP_MD.get(offset)
        if entry is None or size != 4:
            raise Trap(TrapKind.CTX, f"read of {size} bytes at {offset} of struct xdp_md")
        packet = self.packet
        assert packet is not None
        match entry[0]:
            case state.DATA:
                return Pointer(packet.view, packet.data)
            case state.DATA_END:
                return Pointer(packet.view, packet.data_end)
            case state.DATA_META:
                return Pointer(packet.view, packet.data_meta)
            case name:
                return self.numbers.get(name, 0)

    def store(self, offset: int, size: int, value: Value) -> None:
        raise Trap(TrapKind.CTX, f"write at {offset} of struct xdp_md")


@dataclass(eq=False)
class MapRegion(Region):
    """The map itself: an argument of helpers, without any bytes."""

    map: ModelMap | None = None


@dataclass(eq=False)
class ArenaRegion(Region):
    """An arena, by the lower halves of its addresses: pages that are not there read as zeros."""

    arena: ModelArena | None = None

    def has(self, offset: int, size: int) -> bool:
        assert self.arena is not None
        return self.arena.read(offset, size) is not None

    def load(self, offset: int, size: int) -> Value:
        assert self.arena is not None
        return int.from_bytes(self.arena.read(offset, size) or b"", "little")

    def store(self, offset: int, size: int, value: Value) -> None:
        assert self.arena is not None
        number = number_of(value) & (1 << 8 * size) - 1
        self.arena.write(offset, number.to_bytes(size, "little"))


@dataclass(eq=False)
class CodeRegion(Region):
    """A function of the program, by its slot; without any bytes."""
