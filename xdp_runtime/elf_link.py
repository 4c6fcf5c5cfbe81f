"""Functions of an object, their relocations, and programs linked from them.

A program is its entry function followed by every function it reaches, each once, in the order
the calls appear (depth first), as libbpf lays them out.  Before linking, the target of a local
call or of a function's address is a place in the file: (section index, slot in that section).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from struct import Struct

from xdp_runtime.btf import Btf, DataSec, Func
from xdp_runtime.btf_ext import CoreRelo, LineInfo
from xdp_runtime.elf_file import ElfFile, Reloc, Section, Symbol, SymbolKind
from xdp_runtime.elf_maps import MapTable
from xdp_runtime.errors import LoadError
from xdp_runtime.helper_names import KERNEL_FUNCTIONS
from xdp_runtime.isa import (
    MAX_INSNS,
    POISON,
    CallLocal,
    Insn,
    Insns,
    LoadFunc,
    Pseudo,
    decode,
)
from xdp_runtime.object import Function, GlobalKind, Line, MapType, Poison, Relocation
from xdp_runtime.refused_functions import ARENA_FUNCTIONS, REFUSED_FUNCTIONS

Place = tuple[int, int]

MAX_TOGETHER = 4 * MAX_INSNS  # of an object: many programs may have one large function in common

_SLOT = Struct("<BBhi")
_LDDW, _CALL = 0x18, 0x85
_PSEUDO_CALL = 1
_POISON = _SLOT.pack(_CALL, 0, 0, POISON)


@dataclass(frozen=True, slots=True)
class Code:
    """One function as it stands in its section; `targets` is by slot within the function."""

    name: str
    section: Section
    start: int  # slot in the section
    insns: Insns
    targets: Mapping[int, Place]
    poisoned: tuple[Poison, ...]
    is_global: bool
    is_program: bool


def read_functions(elf: ElfFile, maps: MapTable, btf: Btf | None) -> dict[Place, Code]:
    """All functions of all code sections, in file order.  Raises LoadError."""
    functions: dict[Place, Code] = {}
    together = sum(section.size for section in elf.sections if section.is_code) // 8
    if together > MAX_TOGETHER:
        raise LoadError(elf.what, f"has {together} instructions, and no object has more than "
                        f"{MAX_TOGETHER}")
    for section in elf.sections:
        if not section.is_code:
            continue
        symbols = [s for s in elf.symbols_in(section) if s.kind == SymbolKind.FUNC]
        starts = [*sorted({s.value for s in symbols}), section.size]
        for symbol in sorted(symbols, key=lambda s: (s.value, s.is_local, s.name)):
            where = f"{elf.what}: function {symbol.name}"
            following = min(bisect_left(starts, symbol.value) + 1, len(starts) - 1)
            size = symbol.size or starts[following] - symbol.value
            if symbol.value % 8 or size % 8 or not 0 < size <= section.size - symbol.value:
                raise LoadError(where, f"its {size} bytes at {symbol.value} are not instructions "
                                f"of section {section.name}")
            if size // 8 > MAX_INSNS:
                raise LoadError(where, f"has more than {MAX_INSNS} instructions")
            place = section.index, symbol.value // 8
            if place not in functions:
                functions[place] = _read_function(elf, section, symbol, size // 8, maps, btf)
    return functions


def _read_function(elf: ElfFile, section: Section, symbol: Symbol, count: int, maps: MapTable,
                   btf: Btf | None) -> Code:
    start = symbol.value // 8
    raw = bytearray(section.data[start * 8:(start + count) * 8])
    relocs: dict[int, Reloc] = {}
    first = bisect_left(section.relocs, start * 8, key=lambda r: r.offset)
    for reloc in section.relocs[first:]:
        slot, odd = divmod(reloc.offset - start * 8, 8)
        if slot >= count:
            break
        if odd or slot in relocs:
            raise LoadError(f"{elf.what}: function {symbol.name}, instruction {slot}",
                            "relocation makes no sense")
        relocs[slot] = reloc
    targets: dict[int, Place] = {}
    poisoned: list[Poison] = []
    slot = 0
    while slot < count:
        where = f"{elf.what}: function {symbol.name}, instruction {slot}"
        found = relocs.pop(slot, None)
        opcode, regs, off, imm = _SLOT.unpack_from(raw, slot * 8)
        if opcode == _LDDW and slot + 1 < count:
            if found is not None and _is_kernels(found.symbol, maps):
                number = _address_of_kernels(found.symbol, btf)
                if number is None:
                    poisoned.append((slot, *_extern(found.symbol, "refers to", btf)))
                    raw[slot * 8:slot * 8 + 16] = _POISON * 2
                else:
                    _SLOT.pack_into(raw, slot * 8, opcode, regs & 15, off, number)
                    _SLOT.pack_into(raw, slot * 8 + 8, 0, 0, 0, 0)
            elif found is not None:
                kind, low, high, target = _address(elf, found.symbol, imm, maps, btf, where)
                _SLOT.pack_into(raw, slot * 8, opcode, regs & 15 | kind << 4, off, low)
                _SLOT.pack_into(raw, slot * 8 + 8, 0, 0, 0, high)
                if target is not None:
                    targets[slot] = target
            elif regs >> 4 == Pseudo.FUNC:
                targets[slot] = section.index, start + slot + imm + 1
            elif regs >> 4:
                raise LoadError(where, "refers to a map or symbol, but has no relocation")
            slot += 1
        elif opcode == _CALL and regs >> 4 == _PSEUDO_CALL:
            number = KERNEL_FUNCTIONS.get(found.symbol.name) if found is not None and (
                not found.symbol.section) else None
            if number is not None:  # one that there is here: called as a helper
                _SLOT.pack_into(raw, slot * 8, opcode, 0, 0, number)
            elif found is not None and not found.symbol.section:
                poisoned.append((slot, *_extern(found.symbol, "calls", btf)))
                raw[slot * 8:slot * 8 + 8] = _POISON
            else:
                targets[slot] = (_callee(elf, found.symbol, imm, where) if found is not None
                                 else (section.index, start + slot + imm + 1))
        elif opcode == _CALL and imm in KERNEL_FUNCTIONS.values():
            raise LoadError(where, f"calls helper {imm}, which the kernel does not know")
        elif found is not None:
            raise LoadError(where, "relocation of an instruction that takes none")
        slot += 1
    if relocs:
        raise LoadError(f"{elf.what}: function {symbol.name}, instruction {min(relocs)}",
                        "relocation in the middle of a 64-bit load")
    try:
        insns = decode(bytes(raw))
    except LoadError as error:
        raise LoadError(f"{elf.what}: function {symbol.name}, {error.what}", error.why,
                        error.mend) from None
    return Code(symbol.name, section, start, insns, targets, tuple(poisoned),
                not symbol.is_local and not symbol.is_hidden,
                not symbol.is_local and section.name != ".text")


def _address(elf: ElfFile, symbol: Symbol, imm: int, maps: MapTable, btf: Btf | None, where: str,
             ) -> tuple[Pseudo, int, int, Place | None]:
    """What a relocated 64-bit load becomes: its kind, both immediates, a function's place."""
    if symbol.section == 0:
        for extern in maps.externs:
            if extern.name == symbol.name:
                kconfig = next(n for n, spec in enumerate(maps.specs)
                              if spec.global_kind is GlobalKind.KCONFIG)
                return Pseudo.MAP_IDX_VALUE, kconfig, extern.offset + imm, None
    offset = symbol.value + imm
    number = maps.by_offset.get((symbol.section, offset))
    if number is not None:
        return Pseudo.MAP_IDX, number, 0, None
    section = elf.section(symbol.section)
    name = symbol.name or (section.name if section else "nothing")
    number = maps.by_section.get(symbol.section)
    if number is not None:
        spec = maps.specs[number]
        size = len(spec.initial) if spec.type == MapType.ARENA else spec.value_size
        if not 0 <= offset < size:
            raise LoadError(where, f"{name} + {imm} lies outside the {size} bytes of "
                            f"{maps.specs[number].name}")
        return Pseudo.MAP_IDX_VALUE, number, offset, None
    if section is not None and section.is_code:
        if offset % 8:
            raise LoadError(where, f"address of {name} + {imm} is not that of an instruction")
        return Pseudo.FUNC, 0, 0, (section.index, offset // 8)
    raise LoadError(where, f"{name} is neither a map, a global variable nor a function")


def _callee(elf: ElfFile, symbol: Symbol, imm: int, where: str) -> Place:
    """The immediate counts slots from the next one: -1 with a function, more with a section."""
    if symbol.value % 8:
        raise LoadError(where, f"calls {symbol.name}, which is not at an instruction")
    return symbol.section, symbol.value // 8 + imm + 1


def _is_kernels(symbol: Symbol, maps: MapTable) -> bool:
    """Is it an extern that only a kernel could resolve (__ksym)?"""
    return not symbol.section and all(one.name != symbol.name for one in maps.externs)


def _address_of_kernels(symbol: Symbol, btf: Btf | None) -> int | None:
    """What bpf_ksym_exists asks of a function: not zero if it can be called here, and zero if it
    is weak and cannot.  None where there is no answer: of variables, and of what must be there."""
    if symbol.name in KERNEL_FUNCTIONS:
        return 1
    is_function = btf is not None and btf.find(symbol.name, Func) > 0
    return 0 if symbol.is_weak and is_function else None


def _extern(symbol: Symbol, verb: str, btf: Btf | None) -> tuple[str, str]:
    """(why, the mend)"""
    if (btf is not None and not btf.find(".ksyms", DataSec)
            and symbol.name not in REFUSED_FUNCTIONS):  # __bpf_trap, which nobody declared
        return (f"{verb} {symbol.name}, which the object does not define",
                "link it with the object that does: bpftool gen object")
    mend = "" if symbol.is_weak or verb != "calls" else (
        "declare it __weak, and ask bpf_ksym_exists first")
    why = REFUSED_FUNCTIONS.get(symbol.name) or ARENA_FUNCTIONS.get(symbol.name)
    if why is not None:
        return (f"{verb} the kernel function {symbol.name}: {why}",
                mend)
    weak = "weak " if symbol.is_weak else ""
    return f"{verb} the {weak}extern {symbol.name}, which exists only in a kernel", mend


def link(what: str, entry: Code, functions: Mapping[Place, Code],
         lines: Mapping[str, Sequence[LineInfo]], core: Mapping[str, Sequence[CoreRelo]],
         ) -> tuple[Insns, tuple[Function, ...], tuple[Line, ...], tuple[Relocation, ...],
                    tuple[Poison, ...]]:
    """(instructions, functions, source lines, CO-RE relocations, what nothing may run) of one
    program.

    Raises LoadError."""
    starts: dict[Place, int] = {}
    order: list[Code] = []
    length = 0

    def add(code: Code) -> Iterator[tuple[int, Place]]:
        nonlocal length
        starts[code.section.index, code.start] = length
        order.append(code)
        length += len(code.insns)
        if length > MAX_INSNS:
            raise LoadError(f"{what}: program {entry.name}", f"has more than {MAX_INSNS} "
                            "instructions")
        return iter(code.targets.items())

    pending = [(entry, add(entry))]
    while pending:
        code, calls = pending[-1]
        for slot, place in calls:
            if place not in functions:
                raise LoadError(f"{what}: function {code.name}, instruction {slot}",
                                "refers to what is not the start of a function")
            if place not in starts:
                pending.append((functions[place], add(functions[place])))
                break
        else:
            pending.pop()

    insns: list[Insn | None] = []
    parts: list[Function] = []
    placed: list[Line] = []
    relocations: list[Relocation] = []
    poisoned: list[Poison] = []
    for code in order:
        start = len(insns)
        insns += code.insns
        for slot, place in code.targets.items():
            insn, at = code.insns[slot], start + slot
            if isinstance(insn, CallLocal | LoadFunc):
                insns[at] = replace(insn, off=starts[place] - at - 1)
        poisoned += ((start + slot, why, mend) for slot, why, mend in code.poisoned)
        parts.append(Function(code.name, start, len(insns), code.is_global))
        placed += _lines(code, start, lines.get(code.section.name, ()))
        relocations += _relocations(what, code, start, core.get(code.section.name, ()))
    return tuple(insns), tuple(parts), tuple(placed), tuple(relocations), tuple(poisoned)


def _lines(code: Code, start: int, lines: Sequence[LineInfo]) -> Iterator[Line]:
    """The function's share of its section's lines (sorted by offset), at their linked slots."""
    low, high = code.start * 8, (code.start + len(code.insns)) * 8
    for line in lines[bisect_left(lines, low, key=lambda one: one.offset):]:
        if line.offset >= high:
            return
        yield Line(start + (line.offset - low) // 8, line.file, line.line, line.column, line.text)


def _relocations(what: str, code: Code, start: int, core: Sequence[CoreRelo]
                 ) -> Iterator[Relocation]:
    """The function's share of its section's CO-RE relocations, at their linked slots."""
    low, high = code.start * 8, (code.start + len(code.insns)) * 8
    for one in core:
        if low <= one.offset < high:
            slot, odd = divmod(one.offset - low, 8)
            if odd or code.insns[slot] is None:
                raise LoadError(f"{what}: function {code.name}, instruction {slot}",
                                "CO-RE relocation of what is not the start of an instruction")
            yield Relocation(start + slot, one.type, one.access, one.kind)
