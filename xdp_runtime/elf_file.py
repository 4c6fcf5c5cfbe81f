"""The ELF container as plain values: sections, symbols, relocations.

The only place that knows pyelftools.  What it hands on is checked: section contents lie within
the file, section and symbol numbers exist, an executable section is whole instructions.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass
from enum import IntEnum
from io import BytesIO
from pathlib import Path
from typing import Any

from xdp_runtime.errors import LoadError

EM_BPF = 247
MAX_FILE_BYTES = 64 << 20
MAX_SECTION_BYTES = 0x7FFF_FFFF  # INT_MAX, the kernel's limit of a map value
MAX_SYMBOLS = 1 << 18  # labels of clang's included
MEND = "compile with clang -target bpf"

_TYPES = {1: "object file", 2: "executable", 3: "shared object or executable", 4: "core dump"}
_MACHINES = {3: "x86", 8: "MIPS", 20: "PowerPC", 21: "PowerPC64", 22: "s390", 40: "ARM",
             62: "x86-64", 183: "AArch64", 243: "RISC-V", 258: "LoongArch"}


class SymbolKind(IntEnum):
    NONE = 0
    OBJECT = 1
    FUNC = 2
    SECTION = 3
    OTHER = 4


@dataclass(frozen=True, slots=True)
class Symbol:
    """`section` is 0 for an extern; values and sizes in bytes."""

    name: str
    kind: SymbolKind
    is_local: bool
    is_weak: bool
    is_hidden: bool
    section: int
    value: int
    size: int


@dataclass(frozen=True, slots=True)
class Reloc:
    offset: int
    symbol: Symbol


@dataclass(frozen=True, slots=True)
class Section:
    """`data` is empty when the file holds none (.bss), and of DWARF, which nothing here reads;
    `size` is the size in memory."""

    index: int
    name: str
    size: int
    data: bytes
    is_code: bool
    is_bss: bool
    is_loaded: bool
    relocs: tuple[Reloc, ...] = ()


@dataclass(frozen=True, slots=True)
class ElfFile:
    """`what` names the file in errors; sections are in file order, index 0 left out."""

    what: str
    sections: tuple[Section, ...]
    symbols: tuple[Symbol, ...]

    def find(self, name: str) -> Section | None:
        return next((s for s in self.sections if s.name == name), None)

    def section(self, index: int) -> Section | None:
        return next((s for s in self.sections if s.index == index), None)

    def symbols_in(self, section: Section) -> list[Symbol]:
        """The named things of a section, by offset."""
        found = (s for s in self.symbols
                 if s.section == section.index and s.kind != SymbolKind.SECTION)
        return sorted(found, key=lambda s: (s.value, s.name))


def read_bytes(path: str | Path) -> bytes:
    """The content of an object file.  Raises LoadError."""
    what = str(path)
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode) and not what.startswith(("/dev/", "/proc/")):
            raise LoadError(what, "is a named pipe, and reading it may never end",
                            "copy what comes out of it to a file first")
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise LoadError(what, "no such file") from None
    except IsADirectoryError:
        raise LoadError(what, "is a directory, not an object file") from None
    except ValueError:
        raise LoadError(repr(what), "is not a file name") from None
    except OSError as error:
        raise LoadError(what, (error.strerror or str(error)).lower()) from None
    return data


def open_elf(data: bytes, what: str) -> ElfFile:
    """Parse an eBPF ELF object.  Raises LoadError for anything else."""
    _check_identity(data, what)
    from elftools.elf.elffile import ELFFile

    try:
        return _read(ELFFile(BytesIO(data)), len(data), what)
    except LoadError:
        raise
    except Exception as error:  # noqa: BLE001 (a broken field raises anything there)
        raise LoadError(what, "damaged ELF file", detail=f"{type(error).__name__}: {error}") \
            from None


def _check_identity(data: bytes, what: str) -> None:
    if not data:
        raise LoadError(what, "is empty")
    if len(data) > MAX_FILE_BYTES:
        raise LoadError(what, f"is larger than {MAX_FILE_BYTES >> 20} MiB, which no object is")
    if data[:4] != b"\x7fELF"[:len(data)]:
        raise LoadError(what, "is not an ELF file", MEND)
    if len(data) < 64:
        raise LoadError(what, f"ELF file is cut off after {len(data)} bytes")
    wide, order = data[4], "<" if data[5] == 1 else ">"
    file_type, machine = struct.unpack_from(order + "HH", data, 16)
    if machine != EM_BPF:
        name = _MACHINES.get(machine, f"machine {machine}")
        raise LoadError(what, f"{name} {_TYPES.get(file_type, 'file')}, not BPF", MEND)
    if data[5] != 1:
        raise LoadError(what, "big-endian BPF object", "compile with clang -target bpfel")
    if wide != 2:
        raise LoadError(what, "32-bit ELF file, BPF objects are 64-bit", MEND)
    if file_type != 1:
        raise LoadError(what, f"ELF {_TYPES.get(file_type, 'file')}, not an object file",
                        "compile with -c")
    table, = struct.unpack_from("<Q", data, 40)
    entry_size, count = struct.unpack_from("<HH", data, 58)
    if not table or not count:
        raise LoadError(what, "has no sections")
    if entry_size != 64 or table + count * 64 > len(data):
        raise LoadError(what, "ELF file is cut off or damaged: its section table lies past the end")


def _read(elf: Any, length: int, what: str) -> ElfFile:
    from elftools.elf.relocation import RelocationSection
    from elftools.elf.sections import SymbolTableSection

    found: list[Any] = []
    for index in range(elf.num_sections()):
        raw = elf.get_section(index)
        name = raw.name or f"section {index}"
        if index and raw["sh_type"] != "SHT_NOBITS" and \
                raw["sh_offset"] + raw["sh_size"] > length:
            raise LoadError(what, f"ELF file is cut off: {name} reaches past the end")
        found.append(raw)
    symbols: list[Symbol] = []
    for raw in found:
        if isinstance(raw, SymbolTableSection):
            if symbols:
                raise LoadError(what, "has two symbol tables")
            if raw.num_symbols() > MAX_SYMBOLS:
                raise LoadError(what, f"has {raw.num_symbols()} symbols, at most {MAX_SYMBOLS} "
                                "are read", "llvm-strip -g, or remove its local labels")
            symbols = [_symbol(s, len(found), what) for s in raw.iter_symbols()]
    relocs: dict[int, list[Reloc]] = {}
    for raw in found:
        target = raw["sh_info"]
        if not isinstance(raw, RelocationSection) or not _wanted(found, target):
            continue
        if raw["sh_type"] != "SHT_REL":
            raise LoadError(what, f"{raw.name} holds relocations with addends, BPF has none")
        for r in raw.iter_relocations():
            where = f"{what}: relocation at byte {r['r_offset']} of {found[target].name}"
            if not 0 < r["r_info_sym"] < len(symbols):
                raise LoadError(where, f"symbol {r['r_info_sym']} does not exist")
            if r["r_offset"] + 8 > found[target]["sh_size"]:
                raise LoadError(where, "lies outside the section")
            relocs.setdefault(target, []).append(Reloc(r["r_offset"], symbols[r["r_info_sym"]]))
    if sum(raw["sh_size"] for raw in found if raw["sh_type"] == "SHT_PROGBITS") > length:
        raise LoadError(what, "damaged ELF file: its sections overlap")
    sections = tuple(_section(raw, index, relocs.get(index, []), what)
                     for index, raw in enumerate(found) if index)
    return ElfFile(what, sections, tuple(symbols))


def _wanted(found: list[Any], target: int) -> bool:
    """Relocations of code and .maps matter.  Those of BTF are redundant here, and those of data
    are skipped as libbpf does: the values stay numbers, which the verifier will not dereference.
    """
    return 0 < target < len(found) and (
        bool(found[target]["sh_flags"] & 4) or found[target].name == ".maps")


def _symbol(raw: Any, sections: int, what: str) -> Symbol:
    kind = {"STT_NOTYPE": SymbolKind.NONE, "STT_OBJECT": SymbolKind.OBJECT,
            "STT_FUNC": SymbolKind.FUNC, "STT_SECTION": SymbolKind.SECTION}
    section = {"SHN_UNDEF": 0, "SHN_ABS": -1, "SHN_COMMON": -1}.get(
        raw["st_shndx"], raw["st_shndx"])
    if not isinstance(section, int) or section >= sections:
        raise LoadError(what, f"symbol {raw.name!r} is in section {section}, which does not exist")
    binding = raw["st_info"]["bind"]
    return Symbol(raw.name, kind.get(raw["st_info"]["type"], SymbolKind.OTHER),
                  binding == "STB_LOCAL", binding == "STB_WEAK",
                  raw["st_other"]["visibility"] in ("STV_HIDDEN", "STV_INTERNAL"),
                  section, raw["st_value"], raw["st_size"])


def _section(raw: Any, index: int, relocs: list[Reloc], what: str) -> Section:
    size, flags, bss = raw["sh_size"], raw["sh_flags"], raw["sh_type"] == "SHT_NOBITS"
    plain = raw["sh_type"] == "SHT_PROGBITS"
    if flags & 0x800:
        raise LoadError(what, f"section {raw.name} is compressed")
    if size > MAX_SECTION_BYTES:
        raise LoadError(what, f"section {raw.name} of {size} bytes is absurdly large")
    is_code = plain and bool(flags & 4)
    if is_code and size % 8:
        raise LoadError(what, f"section {raw.name} of {size} bytes is not whole 8-byte "
                        "instructions")
    is_read = plain and not raw.name.startswith(".debug_")
    return Section(index, raw.name, size, raw.data() if is_read else b"", is_code, bss,
                   bool(flags & 2), tuple(sorted(relocs, key=lambda r: r.offset)))
