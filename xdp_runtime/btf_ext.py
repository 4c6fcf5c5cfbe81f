"""The .BTF.ext section: which function, source line and CO-RE relocation an instruction has.

Instruction offsets are bytes from the start of the ELF section they are filed under.  Records may
be longer than we know (their size is in the section), never shorter.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from xdp_runtime.btf import Btf, _slice, _split_header, _Strings
from xdp_runtime.errors import LoadError


@dataclass(frozen=True, slots=True)
class FuncInfo:
    offset: int
    type: int  # id of a btf.Func


@dataclass(frozen=True, slots=True)
class LineInfo:
    offset: int
    file: str
    line: int
    column: int
    text: str


@dataclass(frozen=True, slots=True)
class CoreRelo:
    """`access` is a path like "0:1:2"; `kind` is enum bpf_core_relo_kind."""

    offset: int
    type: int
    access: str
    kind: int


R = TypeVar("R")
BySection = tuple[tuple[str, tuple[R, ...]], ...]


@dataclass(frozen=True, slots=True)
class BtfExt:
    """Each table is ((section name, records), ...) in file order."""

    functions: BySection[FuncInfo] = ()
    lines: BySection[LineInfo] = ()
    relocations: BySection[CoreRelo] = ()

    @classmethod
    def parse(cls, data: bytes, btf: Btf) -> BtfExt:
        """Read a .BTF.ext section; its strings are those of `btf`.  Raises LoadError."""
        body, words = _split_header(data, 24, 6)
        strings = _Strings(btf.strings)

        def function(raw: bytes) -> FuncInfo:
            return FuncInfo(*struct.unpack_from("<II", raw))

        def line(raw: bytes) -> LineInfo:
            offset, file, text, where = struct.unpack_from("<IIII", raw)
            return LineInfo(offset, strings.at(file), where >> 10, where & 0x3FF,
                            strings.at(text))

        def relocation(raw: bytes) -> CoreRelo:
            offset, type_id, access, kind = struct.unpack_from("<IIII", raw)
            return CoreRelo(offset, type_id, strings.at(access), kind)

        def table(at: int, name: str, size: int, make: Callable[[bytes], R]) -> BySection[R]:
            return _parse_table(_slice(body, words[at], words[at + 1], name), name, size, make,
                                strings)

        return cls(table(0, "function info", 8, function), table(2, "line info", 16, line),
                   table(4, "CO-RE relocations", 16, relocation))


def _parse_table(raw: bytes, name: str, size: int, make: Callable[[bytes], R],
                 strings: _Strings) -> BySection[R]:
    """Record size, then for each section: its name, a count, the records."""
    if not raw:
        return ()
    out = []
    try:
        step = struct.unpack_from("<I", raw)[0]
        at = 4
        if step < size or step % 4:
            raise LoadError("BTF.ext", f"{name} records of {step} bytes, expected {size} or more")
        while at < len(raw):
            section, count = struct.unpack_from("<II", raw, at)
            at += 8
            if at + count * step > len(raw):
                raise LoadError("BTF.ext", f"{name} of {count} records is cut off")
            out.append((strings.at(section),
                        tuple(make(raw[i:i + step])
                              for i in range(at, at + count * step, step))))
            at += count * step
    except struct.error:
        raise LoadError("BTF.ext", f"{name} is cut off") from None
    return tuple(out)
