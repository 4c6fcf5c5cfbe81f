"""Is a type, a field or an enumerator of one BTF the same as one of another?  As libbpf decides.

Rules and their names follow relo_core.c of libbpf: names up to a flavour (`name___flavour`) must
agree; for fields only what is passed through on the way counts; for whole types see `compatible`
(bpf_core_types_are_compat) and the stricter `matches` (bpf_core_types_match).
"""

from __future__ import annotations

from dataclasses import dataclass

from xdp_runtime.btf import (
    MAX_DEPTH,
    Array,
    EnumType,
    Float,
    FuncProto,
    Fwd,
    Int,
    Member,
    Ptr,
    Struct,
    Type,
    Types,
    Union,
    Void,
)
from xdp_runtime.errors import LoadError

MAX_STEPS = 64  # BPF_CORE_SPEC_MAX_LEN


@dataclass(frozen=True, slots=True)
class Step:
    """One step into a type: member or element number `index` of `type`; `name` of a member."""

    type: int
    index: int
    name: str = ""


@dataclass(frozen=True, slots=True)
class Path:
    """A place in a type: from `root` through `steps`, `bit_offset` bits from its start."""

    types: Types
    root: int
    steps: tuple[Step, ...] = ()
    bit_offset: int = 0

    def then(self, step: Step, bits: int) -> Path:
        if len(self.steps) == MAX_STEPS:
            raise LoadError("CO-RE relocation", f"goes more than {MAX_STEPS} types deep")
        return Path(self.types, self.root, (*self.steps, step), self.bit_offset + bits)


def essential(name: str) -> str:
    """The name without its flavour: what stands before the last `___` between other characters."""
    for i in range(len(name) - 5, -1, -1):
        if name[i] != "_" and name[i + 1:i + 4] == "___" and name[i + 4] != "_":
            return name[:i + 1]
    return name


def follow(types: Types, type_id: int, access: tuple[int, ...]) -> Path:
    """The place that an access string like 0:1:2 means in the object's own types."""
    at = types.resolve(type_id)
    path = Path(types, type_id).then(Step(at, access[0]), access[0] * types.size_of(at) * 8)
    for index in access[1:]:
        at = types.resolve(at)
        one = types.type(at)
        if isinstance(one, Struct | Union) and index < len(one.members):
            member = one.members[index]
            bits = member.bit_offset
            path = (path.then(Step(at, index, member.name), bits) if member.name
                    else Path(types, path.root, path.steps, path.bit_offset + bits))
            at = member.type
        elif isinstance(one, Array) and (index < one.count or _is_flexible(types, path, one)):
            at = types.resolve(one.type)
            path = path.then(Step(at, index), index * types.size_of(at) * 8)
        else:
            raise LoadError("CO-RE relocation", f"its access {':'.join(map(str, access))} leads "
                            "nowhere in the object's own types")
    return path


def _is_flexible(types: Types, path: Path, array: Array) -> bool:
    """The array without a size at the end of a struct."""
    last = path.steps[-1]
    one = types.type(last.type)
    return bool(last.name) and array.count == 0 and isinstance(one, Struct | Union) and (
        last.index == len(one.members) - 1)


def find_path(local: Path, target: Types, root: int) -> Path | None:
    """The same place in another type, or None."""
    at = root
    path = Path(target, root)
    for number, step in enumerate(local.steps):
        at = target.resolve(at)
        if step.name:
            found = _find_member(local.types, step, path, at)
            if found is None:
                return None
            path, at = found
            continue
        if number:
            one = target.type(at)
            if not isinstance(one, Array) or (
                    step.index >= one.count and not _is_flexible(target, path, one)):
                return None
            at = target.resolve(one.type)
        path = path.then(Step(at, step.index), step.index * target.size_of(at) * 8)
    return path


def _find_member(local: Types, step: Step, path: Path, at: int, depth: int = 0
                 ) -> tuple[Path, int] | None:
    """The member of the same name, also within nameless ones, and its type."""
    target = path.types
    at = target.resolve(at)
    one = target.type(at)
    if not isinstance(one, Struct | Union) or depth > MAX_DEPTH:
        return None
    mine = _member(local, step)
    for index, member in enumerate(one.members):
        if not member.name:
            inner = Path(target, path.root, path.steps, path.bit_offset + member.bit_offset)
            found = _find_member(local, step, inner, member.type, depth + 1)
            if found is not None:
                return found
        elif member.name == mine.name:
            if not _fields_compatible(local, mine.type, target, member.type):
                return None
            return path.then(Step(at, index, member.name), member.bit_offset), member.type
    return None


def _member(types: Types, step: Step) -> Member:
    one = types.type(step.type)
    assert isinstance(one, Struct | Union)
    return one.members[step.index]


def _same_kind(a: Type, b: Type) -> bool:
    return type(a) is type(b)


def _fields_compatible(local: Types, mine: int, target: Types, theirs: int) -> bool:
    for _ in range(MAX_DEPTH):
        mine, theirs = local.resolve(mine), target.resolve(theirs)
        a, b = local.type(mine), target.type(theirs)
        if isinstance(a, Struct | Union) and isinstance(b, Struct | Union):
            return True
        if not _same_kind(a, b):
            return False
        match a, b:
            case (Ptr(), _) | (Float(), _):
                return True
            case (Fwd() | EnumType()), _:
                return not a.name or not b.name or essential(a.name) == essential(b.name)
            case Int(), Int():
                return not a.bit_offset and not b.bit_offset
            case Array(), Array():
                mine, theirs = a.type, b.type
            case _:
                return False
    return False


def compatible(local: Types, mine: int, target: Types, theirs: int, depth: int = 0) -> bool:
    """Of the same kind, and so is what they are made of, as far as that can be told by kind."""
    if not _same_kind(local.type(mine), target.type(theirs)):
        return False
    while depth < MAX_DEPTH:
        depth += 1
        mine, theirs = local.resolve(mine), target.resolve(theirs)
        a, b = local.type(mine), target.type(theirs)
        if not _same_kind(a, b):
            return False
        match a, b:
            case (Void() | Struct() | Union() | EnumType() | Fwd()), _:
                return True
            case Int(), Int():
                return not a.bit_offset and not b.bit_offset
            case Ptr(), Ptr():
                mine, theirs = a.type, b.type
            case Array(), Array():
                mine, theirs = a.type, b.type
            case FuncProto(), FuncProto():
                if len(a.params) != len(b.params):
                    return False
                for (_, one), (_, other) in zip(a.params, b.params, strict=True):
                    if not compatible(local, local.resolve(one), target, target.resolve(other),
                                      depth):
                        return False
                mine, theirs = a.return_type, b.return_type
            case _:
                return False
    return False


def matches(local: Types, mine: int, target: Types, theirs: int, behind_pointer: bool = False,
            depth: int = 0) -> bool:
    """All members, enumerators, signs and sizes that the object's type names are there."""
    while depth < MAX_DEPTH:
        depth += 1
        mine, theirs = local.resolve(mine), target.resolve(theirs)
        a, b = local.type(mine), target.type(theirs)
        if essential(a.name) != essential(b.name):
            return False
        match a, b:
            case Void(), _:
                return isinstance(b, Void)
            case Fwd(), Fwd():
                return a.is_union == b.is_union
            case Fwd(), (Struct() | Union()):
                return behind_pointer and a.is_union == isinstance(b, Union)
            case (Struct() | Union()), Fwd():
                return behind_pointer and isinstance(a, Union) == b.is_union
            case EnumType(), EnumType():
                names = {essential(name) for name, _ in b.values}
                return a.size == b.size and len(a.values) <= len(b.values) and all(
                    essential(name) in names for name, _ in a.values)
            case (Struct() | Union()), (Struct() | Union()):
                return _same_kind(a, b) and (
                    behind_pointer or _composites_match(local, a, target, b, depth))
            case Int(), Int():
                return a.size == b.size and a.signed == b.signed
            case Ptr(), Ptr():
                behind_pointer = True
                mine, theirs = a.type, b.type
            case Array(), Array():
                if a.count != b.count:
                    return False
                mine, theirs = a.type, b.type
            case FuncProto(), FuncProto():
                if len(a.params) != len(b.params) or not all(
                        matches(local, one, target, other, False, depth)
                        for (_, one), (_, other) in zip(a.params, b.params, strict=True)):
                    return False
                mine, theirs = a.return_type, b.return_type
            case _:
                return False
    return False


def _composites_match(local: Types, a: Struct | Union, target: Types, b: Struct | Union,
                      depth: int) -> bool:
    return len(a.members) <= len(b.members) and all(
        any(essential(one.name) == essential(other.name)
            and matches(local, one.type, target, other.type, False, depth)
            for other in b.members)
        for one in a.members)


def find_enumerator(name: str, target: Types, root: int) -> tuple[EnumType, int] | None:
    """(enumeration, its value of that name), or None."""
    one = target.type(target.resolve(root))
    if isinstance(one, EnumType):
        for other, value in one.values:
            if essential(other) == essential(name):
                return one, value
    return None
