"""A value by its BTF type as bpftool prints it (tools/bpf/bpftool/btf_dumper.c, json_writer.c).

Integers are numbers, enumerations their names, text in a `char` array a string, bit fields and
128-bit integers strings of hexadecimal digits; a member without a name is "", even where there are
several; a data section is a list of its variables.  Without -j or -p it is nearly JSON: digits are
not quoted then, and pointers are addresses.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from xdp_runtime.btf import (
    INT_BOOL,
    MAX_DEPTH,
    Array,
    Btf,
    DataSec,
    EnumType,
    Float,
    Int,
    Ptr,
    Struct,
    Union,
    Var,
)
from xdp_runtime.btf_types import INT_CHAR
from xdp_runtime.errors import LoadError


class Told(NamedTuple):
    """What is one thing in JSON and another one in text."""

    value: Any
    text: str


def written(what: Any, text: bool = False, indent: str = "\n") -> str:
    """In lines, as bpftool breaks them; `indent` is what begins a line here."""
    inside = indent + "    "
    match what:
        case Told(value, words):
            return words if text else json.dumps(value)
        case dict():
            body = ",".join(f"{inside}{json.dumps(name)}: {written(value, text, inside)}"
                            for name, value in what.items())
            return "{" + (body + indent if body else "") + "}"
        case list():
            body = ",".join(written(value, text, inside) for value in what)
            return "[" + (body + indent if body else "") + "]"
    return json.dumps(what)


def plain(what: Any) -> Any:
    """For json.dumps."""
    match what:
        case Told(value, _):
            return value
        case Members():
            return Members([(name, plain(value)) for name, value in what.pairs])
        case dict():
            return {name: plain(value) for name, value in what.items()}
        case list():
            return [plain(value) for value in what]
    return what


class Members(dict[str, Any]):
    """A JSON object in which a name may come more than once."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs

    def items(self) -> Any:
        return self.pairs


def shown(btf: Btf, type_id: int, raw: bytes, depth: int = 0) -> Any:
    """Raises LoadError for a type that has no value, or is nested beyond reason."""
    one, size = btf.type(btf.resolve(type_id)), btf.size_of(type_id)
    if depth > MAX_DEPTH or size > len(raw):
        raise LoadError("BTF", f"type {type_id} does not fit what contains it")
    raw = raw[:size]
    match one:
        case Int():
            return _integer(one, raw)
        case EnumType(size=size, values=values):
            # compared as bpftool does, which knows no unsigned ones of 32 bits
            number = int.from_bytes(raw, "little", signed=size < 8)
            named = (name for name, value in values if value & _ones(size) == number & _ones(size))
            return next(named, number)
        case Ptr():
            address = int.from_bytes(raw, "little")
            return Told(address, hex(address) if address else "(nil)")
        case Float(size=size):
            return btf.decode_value(type_id, raw)
        case Array(element, _, count):
            text = _text(btf, element, raw)
            if text is not None:
                return text
            step = size // count if count else 0
            return [shown(btf, element, raw[n * step:(n + 1) * step], depth + 1)
                    for n in range(count)]
        case Struct() | Union():
            pairs: list[tuple[str, Any]] = []
            for member in one.members:
                part = raw[member.bit_offset // 8:]
                value = (_bits(part, member.bit_offset % 8, member.bit_size) if member.bit_size
                         else shown(btf, member.type, part, depth + 1))
                pairs.append((member.name, value))
            return Members(pairs)
        case DataSec(name=name, vars=variables):
            return {name: [shown(btf, v.var, raw[v.offset:], depth + 1) for v in variables]}
        case Var(name=name, type=inner):
            return {name: shown(btf, inner, raw, depth + 1)}
    raise LoadError("BTF", f"type {type_id} has no value")


def _ones(size: int) -> int:
    return (1 << 8 * size) - 1


def _integer(one: Int, raw: bytes) -> Any:
    if one.bit_offset or one.bits % 8:
        return _bits(raw, one.bit_offset, one.bits)
    if one.size == 16:
        return _digits(int.from_bytes(raw, "little"))
    if one.encoding & INT_BOOL:
        return any(raw)
    if one.encoding == INT_CHAR:
        letter = chr(raw[0])
        return letter if 0x1F < raw[0] < 0x7F else Told(letter, hex(raw[0]))
    return int.from_bytes(raw, "little", signed=one.signed)


def _bits(raw: bytes, at: int, count: int) -> Told:
    return _digits(int.from_bytes(raw[:(at + count + 7) // 8], "little") >> at & (1 << count) - 1)


def _digits(number: int) -> Told:
    return Told(hex(number), hex(number))


def _text(btf: Btf, element: int, raw: bytes) -> str | None:
    """The characters of a `char` array, where there is nothing else before its end."""
    one = btf.type(element)
    while hasattr(one, "type") and type(one).__name__ in ("Const", "Volatile", "Restrict",
                                                          "TypeTag"):
        one = btf.type(one.type)
    if not isinstance(one, Int) or one.size != 1 or (
            one.encoding != INT_CHAR and one.name != "char"):
        return None
    text, end, _ = raw.partition(b"\0")
    printable = all(0x1F < byte < 0x7F for byte in text)
    return text.decode() if end and printable else None
