"""The NumPy types of BTF types, so that many values are read and written as columns.

| BTF | NumPy |
|---|---|
| integer, enumeration, float, pointer | a number of that size |
| struct, data section | a structured type; members of an anonymous member belong to its parent |
| union | a structured type whose fields lie over each other |
| array | a subarray |
| bit fields that share bytes | one field of these bytes, named by all, as in "low:3,high:13" |
| what else there is, such as 128-bit integers | raw bytes |

Offsets and sizes are those of BTF: an array of such values is memory as programs see it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from xdp_runtime import btf as bt
from xdp_runtime.btf import MAX_DEPTH, Btf, Member

_FIELDS_MAX = 65536  # in all: overlapping members could explode


class _Column(NamedTuple):
    """A field: its type, unless bits from `first` to `last` of the struct are bit fields."""

    name: str
    offset: int
    kind: Any
    first: int = 0
    last: int = 0


def dtype_of(btf: Btf, type_id: int) -> Any:
    """The NumPy type of a BTF type.  Raises LoadError for a type without a size."""
    import numpy as np

    try:
        return _Walk(btf).of(type_id, 0)
    except _TooMuch:
        return np.dtype(f"V{btf.size_of(type_id)}")


class _TooMuch(Exception):
    """Types from files may be nested without end."""


class _Walk:
    def __init__(self, btf: Btf) -> None:
        self.btf, self.left = btf, _FIELDS_MAX

    def of(self, type_id: int, depth: int) -> Any:
        import numpy as np

        self.left -= 1
        if depth > MAX_DEPTH or self.left < 0:
            raise _TooMuch
        one = self.btf.type(self.btf.resolve(type_id))
        match one:
            case bt.Int(size=size) if size in (1, 2, 4, 8) and one.bits == 8 * size:
                return np.dtype(f"<{'i' if one.signed else 'u'}{size}")
            case bt.Float(size=size) if size in (4, 8):
                return np.dtype(f"<f{size}")
            case bt.EnumType(size=size):
                return np.dtype(f"<{'i' if one.signed else 'u'}{size}")
            case bt.Ptr():
                return np.dtype("<u8")
            case bt.Var(type=inner):
                return self.of(inner, depth + 1)
            case bt.Array(element, _, count):
                return np.dtype((self.of(element, depth + 1), (count,)))
            case bt.Struct(size=size) | bt.Union(size=size) if one.members:
                return _structured(list(_joined(self.columns(one, 0, depth + 1))), size)
            case bt.DataSec(size=size, vars=variables) if variables:
                return _structured([_Column(str(getattr(self.btf.type(v.var), "name", "")),
                                            v.offset, self.of(v.var, depth + 1))
                                    for v in variables], size)
            case _:
                return np.dtype(f"V{self.btf.size_of(type_id)}")

    def columns(self, one: bt.Struct | bt.Union, bit: int, depth: int) -> Iterator[_Column]:
        """Members in order, those of anonymous ones among them; `bit` is where it begins."""
        if depth > MAX_DEPTH:
            raise _TooMuch
        for member in one.members:
            at = bit + member.bit_offset
            inner = self.btf.type(self.btf.resolve(member.type))
            if bits := _bits_of(member, inner):
                if member.name:
                    yield _Column(f"{member.name}:{bits}", at // 8, None, at, at + bits)
            elif not member.name and isinstance(inner, bt.Struct | bt.Union):
                yield from self.columns(inner, at, depth + 1)
            else:
                yield _Column(member.name, at // 8, self.of(member.type, depth))


def _bits_of(member: Member, inner: Any) -> int:
    """Of a bit field, in either of BTF's two encodings."""
    if member.bit_size:
        return member.bit_size
    return int(inner.bits) if isinstance(inner, bt.Int) and inner.bits != 8 * inner.size else 0


def _joined(columns: Iterator[_Column]) -> Iterator[_Column]:
    """Bit fields that share bytes become one."""
    import numpy as np

    run: list[_Column] = []

    def finished() -> Iterator[_Column]:
        if run:
            first, end = run[0].first // 8, (max(one.last for one in run) + 7) // 8
            size = end - first
            kind = np.dtype(f"<u{size}" if size in (1, 2, 4, 8) else f"V{size}")
            yield _Column(",".join(one.name for one in run), first, kind)
            run.clear()

    for one in columns:
        if one.kind is None and (not run or one.offset <= (run[-1].last - 1) // 8):
            run.append(one)
            continue
        yield from finished()
        if one.kind is None:
            run.append(one)
        else:
            yield one
    yield from finished()


def _structured(columns: list[_Column], size: int) -> Any:
    import numpy as np

    names = [one.name for one in columns]
    if not all(names) or len(set(names)) < len(names) or any(
            one.offset + one.kind.itemsize > size for one in columns):
        return np.dtype(f"V{size}")
    return np.dtype({"names": names, "formats": [one.kind for one in columns],
                     "offsets": [one.offset for one in columns], "itemsize": size})
