"""Map definitions of an object: BTF-defined (.maps), legacy (maps), and global variables.

The attribute names and their encodings are those of libbpf's `__uint`, `__type` and `__array`
macros: a number is the length of an array type, a type is what a pointer points to.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field, replace
from typing import Any

from xdp_runtime import btf as bt
from xdp_runtime.arena import PAGE_BYTES
from xdp_runtime.btf import Btf
from xdp_runtime.btf_fields import (
    lock_offset,
    object_pointer,
    timer_offset,
    unsupported_field,
)
from xdp_runtime.elf_file import MAX_SECTION_BYTES, ElfFile, Reloc, Section, SymbolKind
from xdp_runtime.errors import LoadError
from xdp_runtime.kconfig import kconfig_map, read_externs
from xdp_runtime.object import Extern, GlobalKind, MapFlag, MapSpec, MapType

OF_MAPS = (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS)
ARENA_SECTION = ".addr_space.1"
DATA_SECTIONS = {".rodata": GlobalKind.RODATA, ".data": GlobalKind.DATA, ".bss": GlobalKind.BSS}

# attribute of a BTF-defined map -> field of MapSpec
_NUMBERS = {"type": "type", "max_entries": "max_entries", "map_flags": "flags",
            "key_size": "key_size", "value_size": "value_size", "pinning": "pinning",
            "numa_node": "numa_node", "map_extra": "map_extra"}


@dataclass(slots=True)
class MapTable:
    """All maps, and where references to them point: (section, byte offset), or a whole section."""

    specs: list[MapSpec] = field(default_factory=list)
    by_offset: dict[tuple[int, int], int] = field(default_factory=dict)
    by_section: dict[int, int] = field(default_factory=dict)
    externs: tuple[Extern, ...] = ()


def read_maps(elf: ElfFile, btf: Btf | None) -> MapTable:
    """Maps by offset in .maps and maps, then data sections in file order.  Raises LoadError."""
    table = MapTable()
    section = elf.find(".maps")
    if section is not None and section.size:
        if btf is None:
            raise LoadError(elf.what, "has BTF-defined maps but no BTF", "compile with -g")
        _read_btf_maps(elf, section, btf, table)
    section = elf.find("maps")
    if section is not None and section.size:
        _read_legacy_maps(elf, section, table)
    for section in elf.sections:
        kind = global_kind(section)
        if kind:
            table.by_section[section.index] = len(table.specs)
            table.specs.append(_globals_map(section, kind, btf, elf.what))
    section = elf.find(ARENA_SECTION)
    if section is not None and section.size:
        _arena_globals(elf, section, table)
    weak = {s.name: s.is_weak for s in elf.symbols if not s.section and s.name}
    table.externs = read_externs(btf, weak)
    if table.externs:
        table.specs.append(kconfig_map(
            table.externs, int(MapFlag.RDONLY_PROG | MapFlag.MMAPABLE)))
    names: set[str] = set()
    for spec in table.specs:
        if spec.name in names:
            raise LoadError(elf.what, f"has two maps named {spec.name}")
        if not spec.name.isprintable():
            raise LoadError(elf.what, f"has a map named {spec.name!r}",
                            "letters, digits, _ and . make a name")
        names.add(spec.name)
    return table


def global_kind(section: Section) -> GlobalKind:
    """Which kind of global variables a section holds, NONE for others and for empty ones."""
    if not section.size or not section.is_loaded or section.is_code:
        return GlobalKind.NONE
    kind = GlobalKind.NONE
    for prefix, one in DATA_SECTIONS.items():
        if section.name == prefix or section.name.startswith(prefix + "."):
            kind = one
    if section.is_bss != (kind == GlobalKind.BSS):
        return GlobalKind.NONE
    return kind


def _globals_map(section: Section, kind: GlobalKind, btf: Btf | None, what: str) -> MapSpec:
    """One array element that is the section; `initial` stays empty for zeros (.bss).

    Like libbpf, only a section with a variable that is not static can be mapped by user space.
    """
    flags = MapFlag.RDONLY_PROG if kind == GlobalKind.RODATA else MapFlag(0)
    type_id = 0
    if btf is not None:
        type_id = btf.find(section.name, bt.DataSec)
        types = btf.type(type_id)
        if isinstance(types, bt.DataSec):
            variables = (btf.type(v.var) for v in types.vars)
            if any(isinstance(v, bt.Var) and v.linkage for v in variables):
                flags |= MapFlag.MMAPABLE
    spec = MapSpec(section.name, MapType.ARRAY, 4, section.size, 1, int(flags),
                   global_kind=kind, initial=section.data, value_type_id=type_id)
    return spec if btf is None else _with_fields(btf, spec, f"{what}: section {section.name}")


def _arena_globals(elf: ElfFile, section: Section, table: MapTable) -> None:
    """Global variables of the address space 1 lie at the beginning of the arena."""
    number = next((n for n, spec in enumerate(table.specs) if spec.type == MapType.ARENA), -1)
    if number < 0:
        raise LoadError(elf.what, f"has variables in {section.name} but no arena",
                        "define a map of type BPF_MAP_TYPE_ARENA")
    spec = table.specs[number]
    if section.size > PAGE_BYTES * spec.max_entries:
        raise LoadError(elf.what, f"its {section.size} bytes of variables in {section.name} do not "
                        f"fit into the {spec.max_entries} pages of {spec.name}")
    table.by_section[section.index] = number
    table.specs[number] = replace(spec, initial=section.data.ljust(section.size, b"\0"))


def _read_legacy_maps(elf: ElfFile, section: Section, table: MapTable) -> None:
    """struct bpf_map_def: type, key_size, value_size, max_entries, map_flags, then only zeros."""
    symbols = elf.symbols_in(section)
    if not symbols:
        raise LoadError(elf.what, "section maps has no symbols")
    if len(section.data) % len(symbols) or len(section.data) // len(symbols) < 20:
        raise LoadError(elf.what, f"section maps of {len(section.data)} bytes does not hold "
                        f"{len(symbols)} definitions of 20 bytes or more")
    entry = len(section.data) // len(symbols)
    for symbol in symbols:
        raw = section.data[symbol.value:symbol.value + entry]
        if len(raw) != entry or symbol.value % entry:
            raise LoadError(f"{elf.what}: map {symbol.name}", "is not at the start of an entry")
        if any(raw[20:]):
            raise LoadError(f"{elf.what}: map {symbol.name}",
                            "unknown map attribute after map_flags", "use a BTF-defined map")
        spec = MapSpec(symbol.name, *struct.unpack_from("<5I", raw))
        if spec.type in OF_MAPS:
            raise LoadError(f"{elf.what}: map {symbol.name}", "is a map of maps, and does not say "
                            "of which", "use a BTF-defined map with __array(values, ...)")
        table.by_offset[section.index, symbol.value] = len(table.specs)
        table.specs.append(spec)


@dataclass(frozen=True, slots=True)
class _Definition:
    """A map variable in .maps: where it is, and where in it `values` begins (-1: none)."""

    spec: MapSpec
    offset: int
    size: int
    values_offset: int


def _read_btf_maps(elf: ElfFile, section: Section, btf: Btf, table: MapTable) -> None:
    types = btf.type(btf.find(".maps", bt.DataSec))
    if not isinstance(types, bt.DataSec):
        raise LoadError(elf.what, "section .maps is not described in BTF")
    definitions: list[_Definition] = []
    for one in types.vars:
        var = btf.type(one.var)
        if not isinstance(var, bt.Var):
            raise LoadError(elf.what, "BTF of section .maps lists what is not a variable")
        where = f"{elf.what}: map {var.name}"
        size = max(one.size, btf.size_of(one.var))  # the latter lacks what `values` holds
        if one.offset + size > section.size:
            raise LoadError(where, "lies outside section .maps")
        spec, values_offset = _parse_definition(btf, var.type, var.name, where)
        if (section.index, one.offset) in table.by_offset:
            raise LoadError(where, f"lies where {definitions[-1].spec.name} is")
        table.by_offset[section.index, one.offset] = len(definitions)
        definitions.append(_Definition(spec, one.offset, size, values_offset))
    slots: dict[int, dict[int, str]] = {}
    for reloc in section.relocs:
        number, slot, name = _initial_slot(elf, section, definitions, reloc, table)
        slots.setdefault(number, {})[slot] = name
    for number, definition in enumerate(definitions):
        filled = tuple(sorted(slots.get(number, {}).items()))
        table.specs.append(replace(definition.spec, slots=filled))


def _parse_definition(btf: Btf, type_id: int, name: str, where: str,
                      is_inner: bool = False) -> tuple[MapSpec, int]:
    """(the map, byte offset of its `values` member or -1)"""
    struct_type = btf.type(btf.resolve(type_id))
    if not isinstance(struct_type, bt.Struct):
        raise LoadError(where, "is not a struct")
    numbers: dict[str, int] = {}
    inner: MapSpec | None = None
    holds_programs, values_offset = False, -1
    for member in struct_type.members:
        attribute = f"attribute {member.name}"
        if member.name in _NUMBERS:
            number = _number(btf, member.type, where, attribute)
            _set(numbers, _NUMBERS[member.name], number, where)
        elif member.name in ("key", "value"):
            target = _pointee(btf, member.type, where, attribute)
            _set(numbers, f"{member.name}_size", btf.size_of(target), where)
            numbers[f"{member.name}_type_id"] = target
        elif member.name == "values" and not is_inner:
            array = btf.type(btf.resolve(member.type))
            if not isinstance(array, bt.Array) or values_offset >= 0:
                raise LoadError(where, "values is not one __array")
            values_offset = member.bit_offset // 8
            target = btf.resolve(_pointee(btf, array.type, where, attribute))
            if isinstance(btf.type(target), bt.FuncProto):
                holds_programs = True
            else:
                inner, _ = _parse_definition(btf, target, f"{name}.inner", f"{where}.inner", True)
            _set(numbers, "value_size", 4, where)
        else:
            raise LoadError(where, f"unknown map {attribute}"
                            + (" in an inner map" if is_inner else ""))
    kind = numbers.get("type", 0)
    if not kind:
        raise LoadError(where, "has no type", "__uint(type, BPF_MAP_TYPE_...)")
    if numbers.get("pinning", 0) > 1 or (is_inner and numbers.get("pinning")):
        raise LoadError(where, f"unknown pinning {numbers['pinning']}",
                        "LIBBPF_PIN_NONE or LIBBPF_PIN_BY_NAME, the latter not for inner maps")
    if inner is not None and kind not in OF_MAPS:
        raise LoadError(where, "has inner maps but is not a map of maps")
    if kind in OF_MAPS and inner is None:
        raise LoadError(where, "is a map of maps, and does not say of which",
                        "__array(values, struct { the inner map's attributes })")
    if holds_programs and kind != MapType.PROG_ARRAY:
        raise LoadError(where, "lists programs but is not a program array")
    if kind in OF_MAPS:
        _set(numbers, "value_size", 4, where)
    fields: dict[str, Any] = {"key_size": 0, "value_size": 0, "max_entries": 0} | numbers
    spec = MapSpec(name, inner=inner, **fields)
    return _with_fields(btf, spec, where), values_offset


def _with_fields(btf: Btf, spec: MapSpec, where: str) -> MapSpec:
    """With where its values have a lock and a timer.  Raises LoadError for what is not here."""
    if spec.value_type_id and (member_name := object_pointer(btf, spec.value_type_id)):
        raise LoadError(where, "its values hold a pointer to an object of the kernel "
                        f"({member_name}), and there are none in user space",
                        "keep a number or a copy instead")
    if struct_name := unsupported_field(btf, spec):
        raise LoadError(where, f"its values hold a struct {struct_name}, whose functions there are "
                        "only in the kernel", "of such fields there are bpf_spin_lock and "
                        "bpf_timer here")
    return replace(spec, lock_at=lock_offset(btf, spec), timer_at=timer_offset(btf, spec))


def _set(numbers: dict[str, int], name: str, value: int, where: str) -> None:
    if numbers.setdefault(name, value) != value:
        raise LoadError(where, f"{name} is both {numbers[name]} and {value}")
    if name.endswith("_size") and value > MAX_SECTION_BYTES:
        raise LoadError(where, f"{name} of {value} bytes is absurdly large")


def _pointee(btf: Btf, type_id: int, where: str, what: str) -> int:
    pointer = btf.type(btf.resolve(type_id))
    if not isinstance(pointer, bt.Ptr):
        raise LoadError(where, f"{what} is not a __type")
    return pointer.type


def _number(btf: Btf, type_id: int, where: str, what: str) -> int:
    """`__uint` (pointer to an array of that length) or `__ulong` (enumeration of that value)"""
    one = btf.type(btf.resolve(type_id))
    if isinstance(one, bt.EnumType) and len(one.values) == 1:
        return one.values[0][1] & 0xFFFF_FFFF_FFFF_FFFF
    if isinstance(one, bt.Ptr):
        array = btf.type(btf.resolve(one.type))
        if isinstance(array, bt.Array):
            return array.count
    raise LoadError(where, f"{what} is not a __uint")


def _initial_slot(elf: ElfFile, section: Section, definitions: list[_Definition], reloc: Reloc,
                  table: MapTable) -> tuple[int, int, str]:
    """(number of the map, slot in it, name of what is put there) of one static initialiser"""
    at = reloc.offset
    for number, one in enumerate(definitions):  # noqa: B007 - used behind the loop
        if one.offset <= at < one.offset + one.size and (
                0 <= one.values_offset <= at - one.offset):
            break
    else:
        raise LoadError(elf.what, f"byte {at} of section .maps is initialised but holds no values")
    where = f"{elf.what}: map {one.spec.name}"
    slot, odd = divmod(at - one.offset - one.values_offset, 8)
    if odd:
        raise LoadError(where, f"initial value at byte {at} is not 8-byte aligned")
    if one.spec.type != MapType.HASH_OF_MAPS and slot >= one.spec.max_entries:
        raise LoadError(where, f"slot {slot} is initialised but it has {one.spec.max_entries}")
    symbol = reloc.symbol
    offset = symbol.value + int.from_bytes(section.data[at:at + 8], "little")
    if one.spec.type == MapType.PROG_ARRAY:
        target = elf.section(symbol.section)
        for other in elf.symbols:
            if (other.kind == SymbolKind.FUNC and other.section == symbol.section
                    and other.value == offset and not other.is_local
                    and target is not None and target.is_code and target.name != ".text"):
                return number, slot, other.name
        raise LoadError(where, f"slot {slot} is {symbol.name or 'something'}, not a program")
    inner = table.by_offset.get((symbol.section, offset))
    if inner is None:
        raise LoadError(where, f"slot {slot} is {symbol.name or 'something'}, not a map")
    return number, slot, definitions[inner].spec.name
