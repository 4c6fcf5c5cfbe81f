"""Arenas (BPF_MAP_TYPE_ARENA): memory whose addresses mean the same to programs and user space.

User space has the pages at an address of its choice, `start`; they do not cross a border of 4 GiB,
so that the lower half of an address says where in the arena it is.  That half is what a program
dereferences (addr_space_cast, isa.AddressCast), whatever it holds: a page that is not there reads
as zeros, and what is stored to it is gone.  (kernel/bpf/arena.c)
"""

from __future__ import annotations

from collections.abc import Sequence

from xdp_runtime.isa import Insns, LoadMap, LoadMapValue
from xdp_runtime.object import MapFlag, MapSpec, MapType

PAGE_BYTES = 4096
MAX_PAGES = 1 << 20  # 4 GiB
_START = 0x1000_0000_0000  # where nothing else is put
_LOWER = 0xFFFFFFFF


def start_of(spec: MapSpec) -> int:
    """The address of the first page in user space: map_extra, or one of ours."""
    return spec.map_extra or _START


def arenas_of(insns: Insns, maps: Sequence[MapSpec]) -> list[int]:
    """Which maps of a program are arenas; the kernel allows one."""
    if not any(spec.type == MapType.ARENA for spec in maps):
        return []
    return sorted({one.map for one in insns if isinstance(one, LoadMap | LoadMapValue)
                   and 0 <= one.map < len(maps) and maps[one.map].type == MapType.ARENA})


def cast(spec: MapSpec, address: int, to_user: bool) -> int:
    """addr_space_cast: the lower half of an address, to user space with the upper half of its
    arena's, but null stays null."""
    lower = address & _LOWER
    if not to_user or not lower or spec.flags & MapFlag.NO_USER_CONV:
        return lower
    return start_of(spec) & ~_LOWER | lower
