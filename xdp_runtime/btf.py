"""BTF, the type information in an object: a reader for the .BTF and .BTF.ext sections.

Layout and kinds are those of the kernel's include/uapi/linux/btf.h; the kinds are in
`btf_types.py` and can be had from here.  Type ids index `Btf.types`.  Values of a type go to
Python and back in `btf_values.py`, instruction tables are read by `btf_ext.py`.

Input is not trusted: anything that is truncated, refers past its section or to itself raises
LoadError with one sentence.
"""

from __future__ import annotations

import builtins
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from xdp_runtime.btf_types import (
    INT_BOOL,
    INT_CHAR,
    INT_SIGNED,
    Array,
    Const,
    DataSec,
    DeclTag,
    EnumType,
    Float,
    Func,
    FuncProto,
    Fwd,
    Int,
    Member,
    Ptr,
    Restrict,
    SectionVar,
    Struct,
    Type,
    Typedef,
    TypeTag,
    Union,
    Var,
    Void,
    Volatile,
)
from xdp_runtime.errors import LoadError

__all__ = [
    "INT_BOOL",
    "INT_CHAR",
    "INT_SIGNED",
    "MAGIC",
    "MAX_DEPTH",
    "MAX_SIZE",
    "POINTER_SIZE",
    "Array",
    "Btf",
    "Const",
    "DataSec",
    "DeclTag",
    "EnumType",
    "Float",
    "Func",
    "FuncProto",
    "Fwd",
    "Int",
    "Member",
    "Ptr",
    "Restrict",
    "SectionVar",
    "Struct",
    "Type",
    "TypeTag",
    "Typedef",
    "Types",
    "Union",
    "Var",
    "Void",
    "Volatile",
]

MAGIC = 0xEB9F
POINTER_SIZE = 8
MAX_DEPTH = 32  # MAX_RESOLVE_DEPTH, libbpf btf.c: a longer chain of types is a cycle
MAX_SIZE = 0x7FFF_FFFF  # no type, section or map value in BPF is larger

T = TypeVar("T", bound=Type)

# kind -> (bytes behind the header, bytes more for each of its `vlen` members)
LAYOUT = {1: (4, 0), 2: (0, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 7: (0, 0),
          8: (0, 0), 9: (0, 0), 10: (0, 0), 11: (0, 0), 12: (0, 0), 13: (0, 8), 14: (4, 0),
          15: (0, 12), 16: (0, 0), 17: (4, 0), 18: (0, 0), 19: (0, 12)}
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")


def _bad(why: str) -> LoadError:
    return LoadError("BTF", why)


class _Strings:
    """The string section.  The bytes handed out are bounded: strings overlap only in bad input."""

    def __init__(self, data: bytes) -> None:
        if data and (data[0] or data[-1]):
            raise _bad("string section does not start and end with a zero byte")
        self.data = data
        self.seen: dict[int, str] = {0: ""}
        self.budget_bytes = 8 * len(data) + 65536

    def at(self, offset: int) -> str:
        text = self.seen.get(offset)
        if text is None:
            if offset >= len(self.data):
                raise _bad(f"string offset {offset} is past the {len(self.data)}-byte string "
                           "section")
            raw = self.data[offset:self.data.index(0, offset)]
            self.budget_bytes -= len(raw)
            if self.budget_bytes < 0:
                raise _bad("strings overlap beyond reason")
            text = self.seen[offset] = raw.decode("utf-8", "backslashreplace")
        return text


class Types(Protocol):
    """Types by their ids: all read at once (Btf), or when asked for (LazyBtf)."""

    __slots__ = ()

    def type(self, type_id: int) -> Type:
        """The type with this id.  Raises LoadError when there is none."""

    def resolve(self, type_id: int) -> int:
        """The id behind typedef, const, volatile, restrict and type tags."""
        for _ in range(MAX_DEPTH):
            one = self.type(type_id)
            if not isinstance(one, (Typedef, Const, Volatile, Restrict, TypeTag)):
                return type_id
            type_id = one.type
        raise _bad(f"type {type_id} is a cycle of typedefs or qualifiers")

    def size_of(self, type_id: int) -> int:
        """Size in bytes.  Raises LoadError for what has none (void, functions, cycles)."""
        count, at = 1, type_id
        for _ in range(MAX_DEPTH):
            at = self.resolve(at)
            match self.type(at):
                case Array(element, _, n):
                    count *= n
                    at = element
                    continue
                case Int(size=size) | Struct(size=size) | Union(size=size) | Float(size=size) | \
                        EnumType(size=size) | DataSec(size=size):
                    pass
                case Ptr():
                    size = POINTER_SIZE
                case Var(type=at):
                    continue
                case other:
                    raise _bad(f"type {at} ({type(other).__name__} {other.name!r}) has no size")
            if count * size > MAX_SIZE:
                raise _bad(f"type {type_id} of more than {MAX_SIZE} bytes is absurdly large")
            return count * size
        raise _bad(f"type {type_id} contains itself")


@dataclass(frozen=True, slots=True)
class Btf(Types):
    """All types of an object.  `types[id]` is a type; id 0 is Void."""

    types: tuple[Type, ...] = (Void(),)
    strings: bytes = field(default=b"\0", repr=False)
    raw: bytes = field(default=b"", repr=False, compare=False)  # as a section

    @classmethod
    def parse(cls, data: bytes) -> Btf:
        """Read a .BTF section.  Raises LoadError."""
        body, (type_off, type_len, str_off, str_len) = _split_header(data, _HEADER.size, 4)
        raw = _slice(body, type_off, type_len, "types")
        strings = _Strings(_slice(body, str_off, str_len, "strings"))
        types: list[Type] = [Void()]
        at = 0
        try:
            while at < len(raw):
                name_off, info, size = _TYPE.unpack_from(raw, at)
                parsed, used = _parse_type(raw, at + _TYPE.size, strings.at(name_off), info, size,
                                           strings, len(types))
                types.append(parsed)
                at += _TYPE.size + used
        except struct.error:
            raise _bad(f"type {len(types)} is cut off by the end of the type section") from None
        btf = cls(tuple(types), strings.data, bytes(data))
        for type_id, one in enumerate(types):
            for ref in _references(one):
                if ref >= len(types):
                    raise _bad(f"type {type_id} refers to type {ref}, but there are "
                               f"{len(types)} types")
        return btf

    def type(self, type_id: int) -> Type:
        """The type with this id.  Raises LoadError when there is none."""
        if not 0 <= type_id < len(self.types):
            raise _bad(f"there is no type {type_id}")
        return self.types[type_id]

    def find(self, name: str, kind: builtins.type[T]) -> int:
        """The id of the first type of that name and kind, 0 (void) when there is none."""
        for type_id, one in enumerate(self.types):
            if isinstance(one, kind) and one.name == name:
                return type_id
        return 0

    def decode_value(self, type_id: int, data: bytes) -> Any:
        """See btf_values.decode_value."""
        from xdp_runtime.btf_values import decode_value

        return decode_value(self, type_id, data)

    def encode_value(self, type_id: int, value: Any) -> bytes:
        """See btf_values.encode_value."""
        from xdp_runtime.btf_values import encode_value

        return encode_value(self, type_id, value)

    def place_sections(self, sizes: dict[str, int],
                       offsets: dict[tuple[str, str], int]) -> Btf:
        """A copy whose data sections have the sizes and variable offsets of the ELF symbols.

        clang leaves both to the linker.  `offsets` is by (section, variable).
        """
        def place(one: Type) -> Type:
            if not isinstance(one, DataSec):
                return one
            placed = tuple(
                replace(v, offset=offsets.get((one.name, self.type(v.var).name), v.offset))
                for v in one.vars)
            return DataSec(one.name, sizes.get(one.name, one.size),
                           tuple(sorted(placed, key=lambda v: v.offset)))

        types = tuple(place(one) for one in self.types)
        return replace(self, types=types, raw=_with_sections(self.raw, types))


def _with_sections(raw: bytes, types: Sequence[Type]) -> bytes:
    """The section with the sizes and variables of these data sections; as libbpf gives it to the
    kernel."""
    out = bytearray(raw)
    body, (at, *_) = _split_header(raw, _HEADER.size, 4)
    at += len(raw) - len(body)
    for one in types[1:]:
        _, info, _ = _TYPE.unpack_from(raw, at)
        at += _TYPE.size
        kind, many = info >> 24 & 31, info & 0xFFFF
        if isinstance(one, DataSec):
            struct.pack_into("<I", out, at - 4, one.size & 0xFFFFFFFF)
            for n, v in enumerate(one.vars):
                struct.pack_into("<III", out, at + 12 * n, v.var, v.offset & 0xFFFFFFFF, v.size)
        fixed, each = LAYOUT[kind]
        at += fixed + each * many
    return bytes(out)


def _split_header(data: bytes, size: int, fields: int) -> tuple[bytes, tuple[int, ...]]:
    """(what follows the header, the `fields` header words after magic, version and length)"""
    if len(data) < size:
        raise _bad(f"{len(data)} bytes are too short for a header")
    magic, version, _, header_len = struct.unpack_from("<HBBI", data)
    if magic == 0x9FEB:
        raise _bad("big-endian type information is not supported")
    if magic != MAGIC:
        raise _bad(f"wrong magic {magic:#06x}, expected {MAGIC:#06x}")
    if version != 1:
        raise _bad(f"unknown version {version}")
    if header_len < size or header_len > len(data):
        raise _bad(f"header length {header_len} makes no sense")
    words = struct.unpack_from(f"<{(header_len - 8) // 4}I", data, 8)
    return data[header_len:], (words + (0,) * fields)[:fields]


def _slice(body: bytes, offset: int, size: int, what: str) -> bytes:
    if offset + size > len(body):
        raise _bad(f"{what} at {offset}..{offset + size} lie past the end ({len(body)} bytes)")
    return body[offset:offset + size]


Parsed = tuple[Type, int]  # a type and how many bytes followed its common part


def _parse_type(raw: bytes, at: int, name: str, info: int, size: int, strings: _Strings,
                type_id: int) -> Parsed:
    """`size` is also the type id of kinds that refer to one type."""
    vlen, kind, flag = info & 0xFFFF, info >> 24 & 31, bool(info >> 31)

    def records(form: str) -> Iterator[tuple[int, ...]]:
        step = struct.calcsize(form)
        if at + vlen * step > len(raw):
            raise struct.error
        return struct.iter_unpack(form, raw[at:at + vlen * step])

    simple: dict[int, Callable[[], Type]] = {
        2: lambda: Ptr(size),
        7: lambda: Fwd(name, flag),
        8: lambda: Typedef(name, size),
        9: lambda: Volatile(size),
        10: lambda: Const(size),
        11: lambda: Restrict(size),
        12: lambda: Func(name, size, vlen),
        16: lambda: Float(name, size),
        18: lambda: TypeTag(name, size),
    }
    if kind in simple:
        return simple[kind](), 0
    if kind == 1:
        word = struct.unpack_from("<I", raw, at)[0]
        bits, bit_offset = word & 0xFF, word >> 16 & 0xFF
        if size not in (1, 2, 4, 8, 16) or bits + bit_offset > size * 8:
            raise _bad(f"type {type_id} is an integer of {bits} bits in {size} bytes")
        return Int(name, size, word >> 24 & 15, bit_offset, bits), 4
    if kind == 3:
        element, index, count = struct.unpack_from("<III", raw, at)
        return Array(element, index, count), 12
    if kind in (4, 5):
        members = tuple(
            Member(strings.at(n), t, o & 0xFFFFFF, o >> 24) if flag else Member(strings.at(n), t, o)
            for n, t, o in records("<III"))
        for m in members:
            if m.bit_offset > size * 8:
                raise _bad(f"member {m.name!r} of type {type_id} lies outside its {size} bytes")
        return (Struct if kind == 4 else Union)(name, size, members), vlen * 12
    if kind == 6:
        values = tuple((strings.at(n), v) for n, v in records("<Ii" if flag else "<II"))
        return EnumType(name, _enum_size(size, type_id), flag, values), vlen * 8
    if kind == 13:
        params = tuple((strings.at(n), t) for n, t in records("<II"))
        return FuncProto(size, params), vlen * 8
    if kind == 14:
        return Var(name, size, struct.unpack_from("<I", raw, at)[0]), 4
    if kind == 15:
        return DataSec(name, size, tuple(SectionVar(*r) for r in records("<III"))), vlen * 12
    if kind == 17:
        return DeclTag(name, size, struct.unpack_from("<i", raw, at)[0]), 4
    if kind == 19:
        wide = tuple(
            (strings.at(n), (hi << 32 | lo) - (hi >> 31 << 64 if flag else 0))
            for n, lo, hi in records("<III"))
        return EnumType(name, _enum_size(size, type_id), flag, wide), vlen * 12
    raise _bad(f"type {type_id} is of unknown kind {kind}")


def _enum_size(size: int, type_id: int) -> int:
    if size not in (1, 2, 4, 8):
        raise _bad(f"type {type_id} is an enumeration of {size} bytes")
    return size


def _references(one: Type) -> tuple[int, ...]:
    match one:
        case Struct(members=members) | Union(members=members):
            return tuple(m.type for m in members)
        case FuncProto(return_type, params):
            return (return_type, *(t for _, t in params))
        case DataSec(vars=variables):
            return tuple(v.var for v in variables)
        case Array(element, index, _):
            return (element, index)
        case Void() | Int() | EnumType() | Fwd() | Float():
            return ()
        case _:
            return (one.type,)
