"""CO-RE: make a program written against one kernel's types fit the types of another.

    obj = read_settled("probe.o")                  # for the running kernel
    obj = read_settled("probe.o", Path("5.4.btf"))

An object says of some instructions which field, type or enumerator of its own types they depend
on (`ProgramSpec.relocations`).  `settle` finds the same thing in the target's types, computes what
the instruction must hold there, and gives the Object with those instructions changed; `.kconfig`
values (kconfig.py) are filled in as well.  The file's Object stays as it is on every machine.

What the target does not have makes an instruction that nothing may run: a call of helper POISON,
which the verifier refuses where a path leads to it, and only there.  It is libbpf's way
(relo_core.c), so that programs may ask `bpf_core_field_exists` first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path as FilePath
from typing import assert_never

from xdp_runtime import core_match as match_
from xdp_runtime.btf import Btf, EnumType, Int, Ptr, Struct, Types, Union
from xdp_runtime.btf_lazy import LazyBtf, kernel_types, read_types
from xdp_runtime.core_match import Path, essential
from xdp_runtime.elf import read_object
from xdp_runtime.errors import LoadError
from xdp_runtime.isa import POISON, Alu, Call, Imm, Insn, Load, LoadImm64, Mov, Store
from xdp_runtime.kconfig import fill_kconfig
from xdp_runtime.object import Object, ProgramSpec, Relocation

_MAX_CANDIDATES = 4096


class Kind(IntEnum):
    """enum bpf_core_relo_kind, include/uapi/linux/bpf.h"""

    FIELD_BYTE_OFFSET = 0
    FIELD_BYTE_SIZE = 1
    FIELD_EXISTS = 2
    FIELD_SIGNED = 3
    FIELD_LSHIFT_U64 = 4
    FIELD_RSHIFT_U64 = 5
    TYPE_ID_LOCAL = 6
    TYPE_ID_TARGET = 7
    TYPE_EXISTS = 8
    TYPE_SIZE = 9
    ENUMVAL_EXISTS = 10
    ENUMVAL_VALUE = 11
    TYPE_MATCHES = 12


_OF_TYPES = (Kind.TYPE_ID_TARGET, Kind.TYPE_EXISTS, Kind.TYPE_SIZE, Kind.TYPE_MATCHES)
_OF_ENUMS = (Kind.ENUMVAL_EXISTS, Kind.ENUMVAL_VALUE)


@dataclass(frozen=True, slots=True)
class Value:
    """What an instruction must hold.  `size` is that of the field at an offset (0: not one), and
    `kind` what the field is: a load of another size than the object's may have to be changed."""

    number: int
    size: int = 0
    kind: str = ""


def settle(obj: Object, target_btf: FilePath | None = None) -> Object:
    """The Object for this machine, or for the kernel whose types are in that file.

    Raises LoadError for what makes no sense; an Object with nothing to settle is given back.
    """
    programs = tuple(relocate(obj, program, target_btf) for program in obj.programs)
    if all(new is old for new, old in zip(programs, obj.programs, strict=True)):
        programs = obj.programs
    maps = fill_kconfig(obj)
    if programs is obj.programs and maps is obj.maps:
        return obj
    return replace(obj, programs=programs, maps=maps)


def read_settled(path: str | FilePath, target_btf: FilePath | None = None) -> Object:
    """The Object in a file, made for this machine."""
    return settle(read_object(path), target_btf)


def relocate(obj: Object, program: ProgramSpec, target_btf: FilePath | None = None) -> ProgramSpec:
    """One program with its CO-RE relocations applied.  Raises LoadError."""
    if not program.relocations:
        return program
    assert obj.btf is not None
    insns: list[Insn | None] = list(program.insns)
    poisoned = list(program.poisoned)
    done: dict[tuple[int, str, int], tuple[Value | None, Value | None]] = {}
    for one in program.relocations:
        what = f"{obj.name}: {program.name}: instruction {one.slot}"
        key = (one.type, one.access, one.kind)
        try:
            if key not in done:
                done[key] = _resolve(obj.btf, one, target_btf)
            old, new = done[key]
            patched = None if new is None else _patch(insns[one.slot], one, old, new)
        except LoadError as error:
            raise LoadError(f"{what}: {error.what}", error.why, error.mend) from None
        if patched is None:
            poisoned.append((one.slot, f"the target's types do not have {describe(obj.btf, one)}",
                             "ask bpf_core_field_exists or its like first"))
            if isinstance(insns[one.slot], LoadImm64):
                insns[one.slot + 1] = Call(POISON)
            patched = Call(POISON)
        insns[one.slot] = patched
    return replace(program, insns=tuple(insns), relocations=(), poisoned=tuple(poisoned))


def describe(btf: Btf, one: Relocation) -> str:
    """What a relocation asks for, in words: `struct iphdr::ttl (byte offset)`."""
    kind = one.kind
    name = Kind(kind).name.lower() if kind in set(Kind) else f"kind {kind}"
    top = btf.type(btf.resolve(one.type))
    word = {Struct: "struct ", Union: "union ", EnumType: "enum "}.get(type(top), "")
    text = f"{word}{btf.type(one.type).name or top.name or '?'}"
    try:
        if kind in _OF_ENUMS and isinstance(top, EnumType):
            text += f"::{top.values[_access(one)[0]][0]}"
        elif kind not in _OF_TYPES and kind != Kind.TYPE_ID_LOCAL:
            for step in match_.follow(btf, one.type, _access(one)).steps[1:]:
                text += f".{step.name}" if step.name else f"[{step.index}]"
    except (LoadError, IndexError):
        text += f" (access {one.access})"
    return f"{text} ({name.replace('_', ' ')})"


def _access(one: Relocation) -> tuple[int, ...]:
    parts = one.access.split(":")
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts) or (
            len(parts) > match_.MAX_STEPS):
        raise LoadError("CO-RE relocation", f"access {one.access!r} makes no sense")
    return tuple(map(int, parts))


def _resolve(btf: Btf, one: Relocation, target_btf: FilePath | None
             ) -> tuple[Value | None, Value | None]:
    """(what the object was compiled with, what the target needs); None: not there.

    The first is None as well where it need not be what the instruction holds.
    """
    if one.kind not in set(Kind):
        raise LoadError("CO-RE relocation", f"of unknown kind {one.kind}")
    kind = Kind(one.kind)
    access = _access(one)
    if kind is Kind.TYPE_ID_LOCAL:
        return None, Value(one.type)
    name = btf.type(one.type).name
    if not name:
        raise LoadError("CO-RE relocation", f"of type {one.type}, which has no name")
    target = kernel_types() if target_btf is None else _types_of(target_btf)
    candidates = _candidates(btf, one.type, target)
    if kind in _OF_TYPES:
        if access != (0,):
            raise LoadError("CO-RE relocation", f"access {one.access!r} of a whole type")
        same = match_.matches if kind is Kind.TYPE_MATCHES else match_.compatible
        fitting = [c for c in candidates if same(btf, one.type, target, c)]
        values = [_of_type(kind, target, c) for c in fitting]
        old = None if kind is Kind.TYPE_ID_TARGET else _of_type(kind, btf, one.type)
        return old, _only(values, describe(btf, one)) or Value(0)
    if kind in _OF_ENUMS:
        enum = btf.type(btf.resolve(one.type))
        if not isinstance(enum, EnumType) or len(access) != 1 or access[0] >= len(enum.values):
            raise LoadError("CO-RE relocation", f"access {one.access!r} is no enumerator")
        text, number = enum.values[access[0]]
        found = [match_.find_enumerator(text, target, c) for c in candidates]
        values = [_of_enumerator(kind, *f) for f in found if f is not None]
        none = Value(0) if kind is Kind.ENUMVAL_EXISTS else None
        return _of_enumerator(kind, enum, number), _only(values, describe(btf, one)) or none
    local = match_.follow(btf, one.type, access)
    paths = [p for p in (match_.find_path(local, target, c) for c in candidates) if p is not None]
    if len({p.bit_offset for p in paths}) > 1:
        raise LoadError("CO-RE relocation", f"{describe(btf, one)} is at different offsets in "
                        f"{len(paths)} types of that name")
    values = [_of_field(kind, p)[0] for p in paths]
    old, comparable = _of_field(kind, local)
    none = Value(0) if kind is Kind.FIELD_EXISTS else None
    new = _only(values, describe(btf, one)) or none
    if old.size or comparable:
        return replace(old, number=old.number if comparable else -1), new
    return None, new


_files: dict[tuple[FilePath, int], LazyBtf] = {}


def _types_of(path: FilePath) -> LazyBtf:
    """One reading of each file, as it is now."""
    try:
        key = path, path.stat().st_mtime_ns
    except OSError as error:
        raise LoadError(str(path), (error.strerror or str(error)).lower()) from None
    if key not in _files:
        _files.clear()
        _files[key] = read_types(path)
    return _files[key]


def _candidates(btf: Btf, type_id: int, target: LazyBtf) -> list[int]:
    """Types of the target that have the name, flavours aside, and are of the same kind."""
    local = btf.type(type_id)
    name = essential(local.name)
    found = [i for i in target.named(name) if type(target.type(i)) is type(local)
             and essential(target.type(i).name) == name]
    if len(found) > _MAX_CANDIDATES:
        raise LoadError("CO-RE relocation", f"{len(found)} types are called {name}")
    return found


def _only(values: Sequence[Value], what: str) -> Value | None:
    """The value that all candidates agree on; None if there is no candidate."""
    if len({v.number for v in values}) > 1:
        raise LoadError("CO-RE relocation", f"{what} is ambiguous: types of that name give "
                        f"{' and '.join(str(v.number) for v in values[:3])}")
    return values[0] if values else None


def _of_type(kind: Kind, types: Types, type_id: int) -> Value:
    if kind is Kind.TYPE_SIZE:
        return Value(types.size_of(type_id))
    return Value(type_id if kind is Kind.TYPE_ID_TARGET else 1)


def _of_enumerator(kind: Kind, enum: EnumType, value: int) -> Value:
    if kind is Kind.ENUMVAL_EXISTS:
        return Value(1)
    if enum.size <= 4 and value >> 31 & 1:  # libbpf keeps these as s32
        value -= 1 << 32 if value > 0 else 0
    return Value(value & (1 << 64) - 1)


def _of_field(kind: Kind, path: Path) -> tuple[Value, bool]:
    """(the value, must it be what the object's instruction holds?)"""
    if kind is Kind.FIELD_EXISTS:
        return Value(1), True
    types, last = path.types, path.steps[-1]
    if not last.name:  # an array's element
        size = types.size_of(last.type)
        if kind is Kind.FIELD_BYTE_OFFSET:
            return Value(path.bit_offset // 8, size, _kind_of(types, last.type)), True
        if kind is Kind.FIELD_BYTE_SIZE:
            return Value(size), True
        raise LoadError("CO-RE relocation", f"{kind.name} of an array's element")
    holder = types.type(last.type)
    assert isinstance(holder, Struct | Union)
    member = holder.members[last.index]
    field_id = types.resolve(member.type)
    field = types.type(field_id)
    size = types.size_of(field_id)
    bits = member.bit_size
    at = path.bit_offset // 8
    if bits:
        if not size:
            raise LoadError("CO-RE relocation", "of a bit field without a size")
        at = at // size * size
        while path.bit_offset + bits - at * 8 > size * 8:
            if size >= 8:
                raise LoadError("CO-RE relocation", "of a bit field that no load covers")
            size *= 2
            at = path.bit_offset // 8 // size * size
    width = bits or size * 8
    match kind:
        case Kind.FIELD_BYTE_OFFSET:
            return (Value(at), False) if bits else (
                Value(at, size, _kind_of(types, field_id)), True)
        case Kind.FIELD_BYTE_SIZE:
            return Value(size), not bits
        case Kind.FIELD_SIGNED:
            signed = field.signed if isinstance(field, Int | EnumType) else False
            return Value(int(signed)), True
        case Kind.FIELD_LSHIFT_U64:
            return Value(64 - (path.bit_offset + width - at * 8)), not bits
        case Kind.FIELD_RSHIFT_U64:
            return Value(64 - width), True
        case (Kind.TYPE_ID_LOCAL | Kind.TYPE_ID_TARGET | Kind.TYPE_EXISTS | Kind.TYPE_SIZE
              | Kind.TYPE_MATCHES | Kind.ENUMVAL_EXISTS | Kind.ENUMVAL_VALUE):
            raise AssertionError("not about a field")
        case _:
            assert_never(kind)


def _kind_of(types: Types, type_id: int) -> str:
    one = types.type(types.resolve(type_id))
    if isinstance(one, Ptr):
        return "pointer"
    return "unsigned" if isinstance(one, Int) and not one.signed else ""


def _patch(insn: Insn | None, one: Relocation, old: Value | None, new: Value) -> Insn | None:
    """The instruction with the target's value in it; None: it cannot be made right."""
    def check(found: int) -> None:
        if old is not None and old.number >= 0 and found != old.number:
            raise LoadError("CO-RE relocation", f"the instruction holds {found}, but its types "
                            f"say {old.number}")

    match insn:
        case Alu(src=Imm(value)) | Mov(src=Imm(value)):
            check(value & 0xFFFFFFFF if old is None or old.number >> 31 else value)
            number = new.number & 0xFFFFFFFF
            return replace(insn, src=Imm(number - (1 << 32) if number >> 31 else number))
        case Load() | Store():
            check(insn.off)
            if not 0 <= new.number < 1 << 15:
                raise LoadError("CO-RE relocation", f"offset {new.number} does not fit into the "
                                "instruction")
            if old is not None and old.size and new.size and old.size != new.size:
                if old.kind != new.kind or not old.kind:
                    return None  # a signed number, or bytes, of another size
                if insn.size != old.size or new.size not in (1, 2, 4, 8):
                    raise LoadError("CO-RE relocation", f"a load of {insn.size} bytes of a field "
                                    f"of {old.size} cannot become one of {new.size}")
                return replace(insn, off=new.number, size=new.size)
            return replace(insn, off=new.number)
        case LoadImm64():
            check(insn.value)
            return replace(insn, value=new.number & (1 << 64) - 1)
    raise LoadError("CO-RE relocation", "of an instruction that takes none")
