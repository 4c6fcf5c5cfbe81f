"""The kinds of BTF types, one frozen dataclass each (include/uapi/linux/btf.h).

A `type` field is the id of another type; id 0 is `Void`.  Offsets and sizes are bytes unless a
name says bits.
"""

from __future__ import annotations

from dataclasses import dataclass

INT_SIGNED, INT_CHAR, INT_BOOL = 1, 2, 4


@dataclass(frozen=True, slots=True)
class Void:
    name: str = ""


@dataclass(frozen=True, slots=True)
class Int:
    name: str
    size: int
    encoding: int  # INT_SIGNED | INT_CHAR | INT_BOOL
    bit_offset: int
    bits: int

    @property
    def signed(self) -> bool:
        return bool(self.encoding & INT_SIGNED)


@dataclass(frozen=True, slots=True)
class Ptr:
    type: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Array:
    type: int
    index_type: int
    count: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    type: int
    bit_offset: int
    bit_size: int = 0  # 0: not a bit field


@dataclass(frozen=True, slots=True)
class Struct:
    name: str
    size: int
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Union:
    name: str
    size: int
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class EnumType:
    """BTF_KIND_ENUM and BTF_KIND_ENUM64; `values` are (name, value)."""

    name: str
    size: int
    signed: bool
    values: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Fwd:
    name: str
    is_union: bool


@dataclass(frozen=True, slots=True)
class Typedef:
    name: str
    type: int


@dataclass(frozen=True, slots=True)
class Volatile:
    type: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Const:
    type: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Restrict:
    type: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Func:
    name: str
    type: int
    linkage: int  # 0 static, 1 global, 2 extern


@dataclass(frozen=True, slots=True)
class FuncProto:
    return_type: int
    params: tuple[tuple[str, int], ...]  # (name, type); a last ("", 0) means "..."
    name: str = ""


@dataclass(frozen=True, slots=True)
class Var:
    name: str
    type: int
    linkage: int  # 0 static, 1 global, 2 extern


@dataclass(frozen=True, slots=True)
class SectionVar:
    """A variable of a data section: the id of its Var, where it is and how long."""

    var: int
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class DataSec:
    name: str
    size: int
    vars: tuple[SectionVar, ...]


@dataclass(frozen=True, slots=True)
class Float:
    name: str
    size: int


@dataclass(frozen=True, slots=True)
class DeclTag:
    name: str
    type: int
    component: int  # member or parameter number, -1: the declaration itself


@dataclass(frozen=True, slots=True)
class TypeTag:
    name: str
    type: int


Type = (
    Void | Int | Ptr | Array | Struct | Union | EnumType | Fwd | Typedef | Volatile | Const
    | Restrict | Func | FuncProto | Var | DataSec | Float | DeclTag | TypeTag
)
