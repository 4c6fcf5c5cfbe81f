"""Values of a BTF type: bytes to Python and back.

| BTF | Python |
|---|---|
| integer, pointer | int (bool for _Bool); encoding takes whatever has __index__ |
| enumeration | int; encoding takes a name, too |
| float | float |
| struct, data section | dict by member name; members of an anonymous member belong to its parent |
| union | dict of every member's reading; encoding takes one of them, or raw bytes |
| array | list; arrays of one-byte integers (names, MAC addresses) stay bytes, and take text |

Types come from files, so they are walked with bounds: LoadError for a type that cannot have a
value; ValueError or TypeError for a Python value that does not fit.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from xdp_runtime.btf import (
    INT_BOOL,
    MAX_DEPTH,
    Array,
    Btf,
    DataSec,
    EnumType,
    Float,
    Int,
    Member,
    Ptr,
    Struct,
    Union,
    Var,
)
from xdp_runtime.errors import LoadError

Value = Any  # int | bool | float | bytes | list[Value] | dict[str, Value]

_FLOATS = {2: "<e", 4: "<f", 8: "<d"}


def decode_value(btf: Btf, type_id: int, data: bytes) -> Value:
    """Read `data`, exactly one value of that type.  Raises LoadError, ValueError on its length."""
    size = btf.size_of(type_id)
    if len(data) != size:
        raise ValueError(f"{len(data)} bytes for a value of {size}")
    return _Walk(btf, 65536 + 16 * size).decode(type_id, data, 0)


def encode_value(btf: Btf, type_id: int, value: Value) -> bytes:
    """The bytes of `value`; what a dict leaves out is zero.  Raises LoadError, ValueError,
    TypeError.
    """
    size = btf.size_of(type_id)
    out = bytearray(size)
    _Walk(btf, 65536 + 16 * size).encode(type_id, value, out, 0, 0, "value")
    return bytes(out)


class _Walk:
    """One pass over a type.  `budget` bounds the steps: overlapping members could explode."""

    def __init__(self, btf: Btf, budget: int) -> None:
        self.btf, self.budget = btf, budget

    def step(self, type_id: int, at: int, end: int, depth: int) -> tuple[Any, int]:
        """(the type behind qualifiers, its size), having checked that it fits before `end`"""
        self.budget -= 1
        if depth > MAX_DEPTH or self.budget < 0:
            raise LoadError("BTF", f"type {type_id} is nested beyond reason")
        resolved, size = self.btf.resolve(type_id), self.btf.size_of(type_id)
        if at + size > end:
            raise LoadError("BTF", f"type {type_id} reaches past the end of what contains it")
        return self.btf.type(resolved), size

    def is_bytes(self, element: int) -> bool:
        one = self.btf.type(self.btf.resolve(element))
        return isinstance(one, Int) and one.size == 1 and not one.encoding & INT_BOOL

    def bit_field(self, m: Member) -> tuple[int, bool] | None:
        """(bits, signed) when the member is a bit field, in either of BTF's two encodings"""
        one = self.btf.type(self.btf.resolve(m.type))
        bits, signed = m.bit_size, isinstance(one, Int | EnumType) and one.signed
        if not bits and isinstance(one, Int) and one.bits != one.size * 8:
            bits = one.bits
        if not bits and m.bit_offset % 8:
            raise LoadError("BTF", f"member {m.name!r} is not on a byte boundary")
        return (bits, signed) if bits else None

    def decode(self, type_id: int, data: bytes, at: int, depth: int = 0) -> Value:
        one, size = self.step(type_id, at, len(data), depth)
        raw = data[at:at + size]
        match one:
            case Int(encoding=encoding, signed=signed):
                number = int.from_bytes(raw, "little", signed=signed)
                return bool(number) if encoding & INT_BOOL else number
            case EnumType(signed=signed):
                return int.from_bytes(raw, "little", signed=signed)
            case Ptr():
                return int.from_bytes(raw, "little")
            case Float():
                return struct.unpack(_FLOATS[size], raw)[0] if size in _FLOATS else raw
            case Array(element, _, count):
                if self.is_bytes(element):
                    return raw
                if count > self.budget:
                    raise LoadError("BTF", f"type {type_id} is an array of {count} empty elements")
                step = size // count if count else 0
                return [self.decode(element, data, at + i * step, depth + 1)
                        for i in range(count)]
            case Struct() | Union():
                out: dict[str, Value] = {}
                for m in one.members:
                    field = self.bit_field(m)
                    if field:
                        if m.name:
                            out[m.name] = self.decode_bits(data, at * 8 + m.bit_offset, *field)
                        continue
                    value = self.decode(m.type, raw, m.bit_offset // 8, depth + 1)
                    if m.name or not isinstance(value, dict):
                        out[m.name] = value
                    else:
                        out.update(value)
                return out
            case DataSec(vars=variables):
                return {self.btf.type(v.var).name:
                        self.decode(v.var, raw, v.offset, depth + 1) for v in variables}
            case Var(type=inner):
                return self.decode(inner, data, at, depth + 1)
        raise LoadError("BTF", f"type {type_id} has no value")

    def decode_bits(self, data: bytes, bit: int, bits: int, signed: bool) -> int:
        if bit + bits > len(data) * 8:
            raise LoadError("BTF", "a bit field reaches past the end of what contains it")
        first, last = bit // 8, (bit + bits + 7) // 8
        number = int.from_bytes(data[first:last], "little") >> bit % 8 & (1 << bits) - 1
        return number - (1 << bits) if signed and number >> bits - 1 else number

    def encode(self, type_id: int, value: Value, out: bytearray, at: int, depth: int,
               where: str) -> None:
        one, size = self.step(type_id, at, len(out), depth)
        match one:
            case EnumType(signed=signed, values=values) if isinstance(value, str):
                number = dict(values).get(value)
                if number is None:
                    raise ValueError(f"{where}: {value!r} is none of "
                                     f"{', '.join(name for name, _ in values)}")
                out[at:at + size] = number.to_bytes(size, "little", signed=number < 0)
            case Int() | EnumType() | Ptr():
                signed = not isinstance(one, Ptr) and one.signed
                out[at:at + size] = _int_bytes(value, size, signed, where)
            case Float():
                if not isinstance(value, int | float) or size not in _FLOATS:
                    raise ValueError(f"{where}: {value!r} is not a number of {size} bytes")
                out[at:at + size] = struct.pack(_FLOATS[size], value)
            case Array(element, _, count):
                if isinstance(value, str) and self.is_bytes(element):
                    value = value.encode()
                if isinstance(value, bytes | bytearray) and self.is_bytes(element):
                    if len(value) > size:
                        raise ValueError(f"{where}: {len(value)} bytes do not fit in {size}")
                    out[at:at + len(value)] = value
                    return
                if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray):
                    kind = "bytes" if self.is_bytes(element) else "a list"
                    raise TypeError(f"{where}: expected {kind}, not {value!r}")
                if len(value) > count:
                    raise ValueError(f"{where}: {len(value)} elements do not fit in {count}")
                for i, item in enumerate(value):
                    self.encode(element, item, out, at + i * (size // count), depth + 1,
                                f"{where}[{i}]")
            case Struct() | Union():
                if isinstance(one, Union) and isinstance(value, bytes) and len(value) <= size:
                    out[at:at + len(value)] = value
                    return
                left = _fields(value, where)
                self.encode_members(one, left, out, at, at + size, depth, where)
                _refuse_rest(left, where)
            case DataSec(vars=variables):
                left = _fields(value, where)
                for v in variables:
                    name = self.btf.type(v.var).name
                    if name in left:
                        self.encode(v.var, left.pop(name), out, at + v.offset, depth + 1, name)
                _refuse_rest(left, where)
            case Var(type=inner):
                self.encode(inner, value, out, at, depth + 1, where)
            case _:
                raise LoadError("BTF", f"type {type_id} has no value")

    def encode_members(self, one: Struct | Union, left: dict[str, Value], out: bytearray, at: int,
                       end: int, depth: int, where: str) -> None:
        """Encode and remove from `left` what belongs to this struct or its anonymous members."""
        for m in one.members:
            start = at + m.bit_offset // 8
            if not m.name and not m.bit_size:
                inner, _ = self.step(m.type, start, end, depth + 1)
                if isinstance(inner, Struct | Union):
                    self.encode_members(inner, left, out, start, end, depth + 1, where)
                    continue
            if m.name not in left:
                continue
            value, name = left.pop(m.name), f"{where}.{m.name}"
            field = self.bit_field(m)
            if field is None:
                self.encode(m.type, value, out, start, depth + 1, name)
                continue
            bits, signed = field
            bit = at * 8 + m.bit_offset
            low, high = (-1 << bits - 1, 1 << bits - 1) if signed else (0, 1 << bits)
            value = _integer(value, name)
            if not low <= value < high:
                raise ValueError(f"{name}: {value!r} does not fit in {bits} bits")
            if bit + bits > len(out) * 8:
                raise LoadError("BTF", "a bit field reaches past the end of what contains it")
            first, last = bit // 8, (bit + bits + 7) // 8
            mask = (1 << bits) - 1
            word = int.from_bytes(out[first:last], "little") & ~(mask << bit % 8)
            word |= (value & mask) << bit % 8
            out[first:last] = word.to_bytes(last - first, "little")


def _integer(value: Value, where: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{where}: expected an integer, not {value!r}") from None


def _int_bytes(value: Value, size: int, signed: bool, where: str) -> bytes:
    number = _integer(value, where)
    try:
        return number.to_bytes(size, "little", signed=signed)
    except OverflowError:
        kind = "a signed" if signed else "an unsigned"
        raise ValueError(
            f"{where}: {number} does not fit in {kind} {size * 8}-bit integer") from None


def _fields(value: Value, where: str) -> dict[str, Value]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{where}: expected a dict of members, not {value!r}")
    return dict(value)


def _refuse_rest(left: dict[str, Value], where: str) -> None:
    if left:
        raise ValueError(f"{where}: no member named {', '.join(map(str, left))}")
