"""ELF to Object: what `clang -target bpf` and libbpf's linker produce.

    container (elf_file.py) -> maps (elf_maps.py) -> functions and linking (elf_link.py) -> Object

One program for each global function in a code section other than .text; functions in .text (and
static ones anywhere) are appended to the programs that call them.  Nothing here looks at the
machine.  Any input that is not such an object raises LoadError.
"""

from __future__ import annotations

from pathlib import Path

from xdp_runtime.btf import Btf
from xdp_runtime.btf_ext import BtfExt, CoreRelo, LineInfo
from xdp_runtime.elf_file import ElfFile, SymbolKind, open_elf, read_bytes
from xdp_runtime.elf_link import MAX_TOGETHER, link, read_functions
from xdp_runtime.elf_maps import read_maps
from xdp_runtime.errors import LoadError
from xdp_runtime.object import Object, ProgramSpec

_MAX_BTF_BYTES = 16 << 20  # the kernel's BTF_MAX_SIZE


def read_object(path_or_bytes: str | Path | bytes, name: str | None = None) -> Object:
    """Read an object file, or its content.  `name` defaults to the file's name.

    Raises LoadError: `what` is the path (or name), and where in it.
    """
    if isinstance(path_or_bytes, bytes | bytearray | memoryview):
        data, what = bytes(path_or_bytes), name or "object"
    else:
        data, what = read_bytes(path_or_bytes), str(path_or_bytes)
    elf = open_elf(data, what)
    try:
        btf = _read_btf(elf)
        ext = _read_btf_ext(elf, btf)
        maps = read_maps(elf, btf)
    except LoadError as error:
        if error.what.startswith(what):
            raise
        raise LoadError(f"{what}: {error.what}", error.why, error.mend) from None
    functions = read_functions(elf, maps, btf)
    lines: dict[str, list[LineInfo]] = {}
    for section, found in ext.lines:
        lines.setdefault(section, []).extend(found)
    for one in lines.values():
        one.sort(key=lambda line: line.offset)
    core: dict[str, list[CoreRelo]] = {}
    for section, relocations in ext.relocations:
        core.setdefault(section, []).extend(relocations)
    programs: list[ProgramSpec] = []
    together = 0
    for code in functions.values():
        if code.is_program:
            section = code.section.name.removeprefix("?")
            programs.append(ProgramSpec(code.name, section, program_kind(section),
                                        *link(what, code, functions, lines, core),
                                        section == code.section.name))
            together += len(programs[-1].insns)
            if together > MAX_TOGETHER:
                raise LoadError(what, f"its programs have more than {MAX_TOGETHER} instructions "
                                "together, each with the functions it calls")
    if not programs:
        raise LoadError(what, "holds no program", 'put a global function in SEC("xdp")')
    return Object(name or (Path(what).name or what), tuple(programs), tuple(maps.specs),
                  _license(elf), maps.externs, btf)


def program_kind(section: str) -> str:
    """ProgramSpec.kind of a section name; what is not XDP stays as it is.

    "xdp/devmap" and "xdp/cpumap" (and ".frags") are kinds of their own, spelled "xdp_devmap/..."
    before libbpf 1.0; any other suffix is only a name.  Until then "xdp" was a prefix (libbpf's
    SEC_SLOPPY_PFX), as in Katran's "xdp-balancer": what begins with it, without a dot, is XDP.
    """
    head, _, rest = section.partition("/")
    if head in ("xdp_devmap", "xdp_cpumap"):
        return head.replace("_", "/")
    if head in ("xdp", "xdp.frags"):
        place = rest.partition("/")[0]
        return f"{head}/{place}" if place in ("devmap", "cpumap") else head
    return "xdp" if section.startswith("xdp") and section[3] != "." else section


def _read_btf(elf: ElfFile) -> Btf | None:
    section = elf.find(".BTF")
    if section is None or not section.data:
        return None
    if section.size > _MAX_BTF_BYTES:
        raise LoadError(elf.what, f"has {section.size >> 20} MiB of BTF, and the kernel takes "
                        f"{_MAX_BTF_BYTES >> 20}")
    names = {one.index: one.name for one in elf.sections}
    sizes = {one.name: one.size for one in elf.sections}
    offsets = {(names[s.section], s.name): s.value for s in elf.symbols
               if s.kind == SymbolKind.OBJECT and not s.is_local and s.section in names}
    return Btf.parse(section.data).place_sections(sizes, offsets)


def _read_btf_ext(elf: ElfFile, btf: Btf | None) -> BtfExt:
    """Source lines and CO-RE relocations."""
    section = elf.find(".BTF.ext")
    if section is None or not section.data or btf is None:
        return BtfExt()
    return BtfExt.parse(section.data, btf)


def _license(elf: ElfFile) -> str:
    section = elf.find("license")
    return "" if section is None else section.data.split(b"\0")[0].decode("ascii", "replace")
