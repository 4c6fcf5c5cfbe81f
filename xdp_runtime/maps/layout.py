"""The header page of a map's memory: what another process needs to know to read it.

Little-endian, in this order (offsets in bytes):

    0 magic "xdpumap\\0"   8 version u32      12 type u32      16 key_size u32   20 value_size u32
    24 max_entries u32    28 flags u32       32 workers u32   36 pid u32        40 seed 16 bytes
    56 size u64           64 regions u32     68 global kind u32   72 map name, 128 bytes
    200 map_extra u64    208 BTF ids of key and value, 2 u32
    216 region table: name 16 bytes, offset u64, size u64

The last 12 bytes of the page are u32 offset of the timer in values + 1, u32 frozen, and u32 offset
of the spin lock in values + 1.
A header is checked like any input: a file that
is not one, or does not fit its own size or the layout this version makes of the definition, is
refused.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from xdp_runtime.errors import LoadError
from xdp_runtime.maps import family_of, limits
from xdp_runtime.maps.family import round_up
from xdp_runtime.object import GlobalKind, MapSpec

MAGIC = b"xdpumap\0"
VERSION = 4
PAGE = 4096
FROZEN = PAGE - 8  # u32, 1: user space writes no more
TIMER_AT = PAGE - 12  # u32, offset of the timer in the values + 1, 0: none
LOCK_AT = PAGE - 4  # u32, offset of the spin lock in the values + 1, 0: none
NAME_BYTES = 128

_FIXED = struct.Struct(f"<8s8I16sQ2I{NAME_BYTES}sQ2I")
_REGION = struct.Struct("<16s2Q")


@dataclass(frozen=True, slots=True)
class Placed:
    """A region and where it lies, from the start of the map's memory."""

    name: str
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    spec: MapSpec
    workers: int
    seed: int
    pid: int
    size_bytes: int
    regions: tuple[Placed, ...]


def plan(spec: MapSpec, workers: int) -> tuple[tuple[Placed, ...], int]:
    """Where the regions of such a map lie, each from a page of its own; the size of it all."""
    placed, at = [], PAGE
    for region in family_of(spec).regions(spec, workers):
        placed.append(Placed(region.name, at, region.size_bytes))
        at = round_up(at + region.size_bytes, PAGE)
    return tuple(placed), at


def encode(header: Header) -> bytes:
    spec = header.spec
    name = spec.name.encode()
    if len(name) > NAME_BYTES:
        raise LoadError(f"map {spec.name[:40]}...", f"its name is longer than {NAME_BYTES} bytes")
    out = _FIXED.pack(MAGIC, VERSION, spec.type, spec.key_size, spec.value_size, spec.max_entries,
                      spec.flags, header.workers, header.pid, header.seed.to_bytes(16, "little"),
                      header.size_bytes, len(header.regions), spec.global_kind, name,
                      spec.map_extra, spec.key_type_id, spec.value_type_id)
    for region in header.regions:
        out += _REGION.pack(region.name.encode(), region.offset, region.size_bytes)
    return (out.ljust(TIMER_AT, b"\0") + (spec.timer_at + 1).to_bytes(4, "little")
            + bytes(LOCK_AT - FROZEN) + (spec.lock_at + 1).to_bytes(4, "little"))


def decode(page: bytes, file_bytes: int, source: str) -> Header:
    """Read and check a header page; `file_bytes` is the length of the whole file."""
    if len(page) < PAGE or page[:8] != MAGIC:
        raise LoadError(source, "is not a map of xdpu")
    (_, version, kind, key_size, value_size, max_entries, flags, workers, pid, seed, size_bytes,
     count, global_kind, name, map_extra, key_type_id, value_type_id) = _FIXED.unpack_from(page)
    if version != VERSION:
        raise LoadError(source, f"is a map of layout version {version}, this is {VERSION}",
                        "use the xdpu that made it")
    try:
        spec = MapSpec(name.rstrip(b"\0").decode(), kind, key_size, value_size, max_entries, flags,
                       global_kind=GlobalKind(global_kind), map_extra=map_extra,
                       key_type_id=key_type_id, value_type_id=value_type_id,
                       lock_at=int.from_bytes(page[LOCK_AT:PAGE], "little") - 1,
                       timer_at=int.from_bytes(page[TIMER_AT:FROZEN], "little") - 1)
        if spec.lock_at > max(value_size - 4, -1) or spec.timer_at > max(value_size - 16, -1):
            raise ValueError("a lock or timer outside the value")
    except ValueError as error:
        raise LoadError(source, "its header is damaged") from error
    if workers == 0 or limits.refusal(spec) is not None:
        raise LoadError(source, "its header is damaged")
    regions, total = plan(spec, workers)
    table = [_REGION.pack(r.name.encode(), r.offset, r.size_bytes) for r in regions]
    written = page[_FIXED.size:_FIXED.size + _REGION.size * len(table)]
    if count != len(regions) or written != b"".join(table):
        raise LoadError(source, "its regions are not those of this layout version")
    if size_bytes != total or file_bytes != total:
        raise LoadError(source, f"has {file_bytes} bytes, its map {total}", "it was cut short")
    return Header(spec, workers, int.from_bytes(seed, "little"), pid, total, regions)
