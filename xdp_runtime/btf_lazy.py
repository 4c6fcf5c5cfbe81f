"""A big BTF, such as the kernel's: types are found by name and read one by one when asked for.

Reading all of 5 MB takes over a second and 70 MB; a relocation needs a few dozen of its 120,000
types.  One pass over the headers, about 0.1 s, notes where each begins and which have a name.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from xdp_runtime.btf import _HEADER as HEADER
from xdp_runtime.btf import _TYPE as TYPE
from xdp_runtime.btf import LAYOUT, Type, Types, Void
from xdp_runtime.btf import _bad as bad
from xdp_runtime.btf import _parse_type as parse_type
from xdp_runtime.btf import _slice as cut
from xdp_runtime.btf import _split_header as split_header
from xdp_runtime.btf import _Strings as Strings
from xdp_runtime.errors import LoadError

KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")

_FUNC = 12
_NAMED = frozenset({1, 4, 5, 6, 7, 8, 16, 19})  # int, struct, union, enum, fwd, typedef, float


class LazyBtf(Types):
    """`named(name)` gives ids, `type(id)` reads one."""

    __slots__ = ("_at", "_by_name", "_raw", "_read", "_strings")

    def __init__(self, data: bytes) -> None:
        body, (type_off, type_len, str_off, str_len) = split_header(data, HEADER.size, 4)
        self._raw = raw = cut(body, type_off, type_len, "types")
        self._strings = Strings(cut(body, str_off, str_len, "strings"))
        self._read: dict[int, Type] = {0: Void()}
        self._at = positions = array("Q", [0])
        self._by_name: dict[int, list[int]] = {}
        at, size, unpack, by_name = 0, len(raw), TYPE.unpack_from, self._by_name
        while at + 12 <= size:
            name, info, _ = unpack(raw, at)
            kind = info >> 24 & 31
            layout = LAYOUT.get(kind)
            if layout is None:
                raise bad(f"type {len(positions)} is of unknown kind {kind}")
            if name and kind in _NAMED:
                by_name.setdefault(name, []).append(len(positions))
            positions.append(at)
            at += 12 + layout[0] + layout[1] * (info & 0xFFFF)
        if at != size:
            raise bad(f"type {len(positions) - 1} is cut off by the end of the type section")

    def __len__(self) -> int:
        return len(self._at)

    def type(self, type_id: int) -> Type:
        found = self._read.get(type_id)
        if found is None:
            if not 0 <= type_id < len(self._at):
                raise bad(f"there is no type {type_id}")
            at = self._at[type_id]
            name, info, size = TYPE.unpack_from(self._raw, at)
            found, _ = parse_type(self._raw, at + TYPE.size, self._strings.at(name), info, size,
                                  self._strings, type_id)
            self._read[type_id] = found
        return found

    def function(self, name: str) -> int:
        """Id of the function of that name, 0 if there is none; reads all headers."""
        wanted = self._strings.data.find(b"\0" + name.encode() + b"\0") + 1
        if wanted:
            for type_id in range(1, len(self._at)):
                at, info, _ = TYPE.unpack_from(self._raw, self._at[type_id])
                if at == wanted and info >> 24 & 31 == _FUNC:
                    return type_id
        return 0

    def named(self, name: str) -> Iterator[int]:
        """Ids of the types of that name, and of those called `name___something`, in order."""
        found: list[int] = []
        wanted = name.encode()
        for needle in (wanted + b"\0", wanted + b"___"):
            at = self._strings.data.find(needle)
            while at >= 0:
                found += self._by_name.get(at, ())
                at = self._strings.data.find(needle, at + 1)
        return iter(sorted(found))


def read_types(path: Path) -> LazyBtf:
    """Types from a file of BTF, or from an ELF file that holds them.  Raises LoadError."""
    try:
        data = path.read_bytes()
        if data[:4] == b"\x7fELF":
            data = _section(data, str(path))
        return LazyBtf(data)
    except OSError as error:
        raise LoadError(str(path), (error.strerror or str(error)).lower()) from None
    except LoadError as error:
        raise LoadError(f"{path}: {error.what}", error.why, error.mend) from None


@lru_cache(maxsize=1)
def kernel_types() -> LazyBtf:
    """The types of the running kernel.  Raises LoadError."""
    if not KERNEL_BTF.exists():
        raise LoadError(str(KERNEL_BTF), "this kernel does not describe its types",
                        "name a file of BTF instead")
    return read_types(KERNEL_BTF)


def _section(data: bytes, what: str) -> bytes:
    from io import BytesIO

    from elftools.elf.elffile import ELFFile

    try:
        section = ELFFile(BytesIO(data)).get_section_by_name(".BTF")
        found = None if section is None else bytes(section.data())
    except Exception:  # noqa: BLE001 (a broken field raises anything there)
        raise LoadError(what, "damaged ELF file") from None
    if not found:
        raise LoadError(what, "ELF file without BTF")
    return found
