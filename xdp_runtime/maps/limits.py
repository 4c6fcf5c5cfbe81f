"""Which maps the kernel makes, and the error number with which it refuses others (map_create()).

`FLAGS` is what Linux 6.18 takes of BPF_F_*, type by type; the sizes are each family's own.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from functools import reduce
from operator import or_
from pathlib import Path

from xdp_runtime import arena
from xdp_runtime.maps import family_of, type_name
from xdp_runtime.maps.family import round_up
from xdp_runtime.object import MapFlag, MapSpec, MapType

ENOTSUPP = 524  # not among the numbers of user space
_KMALLOC_MAX_BYTES = 1 << 22
_HASH_ELEMENT_BYTES = 48  # sizeof(struct htab_elem)
_PER_CPU_MAX_BYTES = 32 << 10  # PCPU_MIN_UNIT_SIZE

_USER = MapFlag.RDONLY | MapFlag.WRONLY
_PROGRAM = MapFlag.RDONLY_PROG | MapFlag.WRONLY_PROG
_NUMA = MapFlag.NUMA_NODE
_NO_NODE = 0xFFFFFFFF  # NUMA_NO_NODE: any will do
_TOKEN_FD = 1 << 16  # looked at late, so that others are refused before it
FLAGS: Mapping[int, MapFlag] = {
    MapType.HASH: _USER | _PROGRAM | _NUMA | MapFlag.NO_PREALLOC | MapFlag.ZERO_SEED,
    MapType.ARRAY: _USER | _PROGRAM | _NUMA | MapFlag.MMAPABLE | MapFlag.INNER_MAP,
    MapType.PROG_ARRAY: _USER | _NUMA,
    MapType.PERCPU_ARRAY: _USER | _PROGRAM,
    MapType.LRU_HASH: _USER | _PROGRAM | _NUMA | MapFlag.NO_COMMON_LRU | MapFlag.ZERO_SEED,
    MapType.LPM_TRIE: _USER | _PROGRAM | _NUMA | MapFlag.NO_PREALLOC,
    MapType.PERCPU_HASH: _USER | _PROGRAM | MapFlag.NO_PREALLOC | MapFlag.ZERO_SEED,
    MapType.LRU_PERCPU_HASH: _USER | _PROGRAM | MapFlag.NO_COMMON_LRU | MapFlag.ZERO_SEED,
    MapType.QUEUE: _USER | _PROGRAM | _NUMA,
    MapType.STACK: _USER | _PROGRAM | _NUMA,
    MapType.DEVMAP: _USER | _NUMA,
    MapType.DEVMAP_HASH: _USER | _NUMA,
    MapType.CPUMAP: _NUMA,
    MapType.XSKMAP: _USER | _NUMA,
    MapType.ARRAY_OF_MAPS: _USER | _NUMA,
    MapType.HASH_OF_MAPS: _USER | _PROGRAM | _NUMA | MapFlag.NO_PREALLOC | MapFlag.ZERO_SEED,
    MapType.RINGBUF: _NUMA,
    MapType.PERF_EVENT_ARRAY: _USER | _NUMA | MapFlag.PRESERVE_ELEMS,
    MapType.BLOOM_FILTER: _USER | _PROGRAM | _NUMA | MapFlag.ZERO_SEED,
    MapType.STACK_TRACE: _USER | _NUMA | MapFlag.STACK_BUILD_ID,
    MapType.USER_RINGBUF: _NUMA,
    MapType.ARENA: MapFlag.MMAPABLE | MapFlag.SEGV_ON_FAULT | MapFlag.NO_USER_CONV,
}
_EVERY = frozenset({"lookup", "lookup_and_delete", "update", "delete"})
BATCHES: Mapping[int, frozenset[str]] = {  # types of which bpf(2) takes many entries at once
    MapType.HASH: _EVERY, MapType.LRU_HASH: _EVERY, MapType.PERCPU_HASH: _EVERY,
    MapType.LRU_PERCPU_HASH: _EVERY, MapType.HASH_OF_MAPS: _EVERY,
    MapType.LPM_TRIE: _EVERY - {"lookup_and_delete"},
    MapType.ARRAY: frozenset({"lookup", "update"}),
    MapType.PERCPU_ARRAY: frozenset({"lookup", "update"}),
    MapType.ARRAY_OF_MAPS: frozenset({"lookup", "update"}),
}
_RINGS = (MapType.RINGBUF, MapType.USER_RINGBUF)
_QUEUES = (MapType.QUEUE, MapType.STACK)
_ABSENT: Mapping[tuple[int, str], int] = {  # operations that a type does not have; else EOPNOTSUPP
    **{(kind, name): ENOTSUPP for kind in _RINGS
       for name in ("peek", "next_key", "update", "delete")},
    **{(kind, name): errno.EINVAL for kind in _QUEUES for name in ("next_key", "delete")},
    (MapType.PERF_EVENT_ARRAY, "peek"): ENOTSUPP,
    (MapType.BLOOM_FILTER, "pop_elem"): ENOTSUPP,
    (MapType.ARENA, "peek"): errno.EINVAL,
}
_LRU = (MapType.LRU_HASH, MapType.LRU_PERCPU_HASH)
_PER_CPU = (MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH, MapType.PERCPU_ARRAY)


def names_of(flags: int) -> list[str]:
    """BPF_F_* without the prefix; what has no name as a number."""
    known = [flag for flag in MapFlag if flags & flag]
    rest = flags & ~int(reduce(or_, known, MapFlag(0)))
    return [flag.name or hex(flag) for flag in known] + ([hex(rest)] if rest else [])


def absent(spec: MapSpec, operation: str) -> OSError:
    """What the system call says where a type lacks an operation (maps/family.py)."""
    code = (ENOTSUPP if operation == "take" else
            _ABSENT.get((spec.type, operation), errno.EOPNOTSUPP))
    words = {"take": "lookup and delete", "peek": "lookup"}.get(
        operation, operation.removesuffix("_elem").replace("_", " "))
    return OSError(code, f"maps of type {type_name(spec.type)} have no {words}", spec.name)


def refusal(spec: MapSpec) -> tuple[int, str] | None:
    """(errno, why) if the kernel refuses this definition.  Raises LoadError for an unknown type."""
    family = family_of(spec)
    if spec.flags & _USER == _USER:
        return errno.EINVAL, "it can be neither read nor written by user space"
    if spec.flags & _NUMA and not _is_node(spec.numa_node):
        return errno.EINVAL, f"the machine has no NUMA node {spec.numa_node}"
    if spec.flags & _PROGRAM == _PROGRAM:
        return errno.EINVAL, "it can be neither read nor written by programs"
    known = FLAGS[spec.type]
    if spec.type in _PER_CPU and spec.numa_node == _NO_NODE:
        known |= _NUMA
    unknown = spec.flags & ~int(known)
    if (spec.type in _LRU and unknown & MapFlag.NO_PREALLOC
            and not unknown & ~int(MapFlag.NO_PREALLOC | _NUMA | _TOKEN_FD)):
        return ENOTSUPP, "BPF_F_NO_PREALLOC is not for LRU maps"
    if unknown:
        return errno.EINVAL, f"{type_name(spec.type)} has no flag {', '.join(names_of(unknown))}"
    if (spec.flags & MapFlag.NO_COMMON_LRU and spec.flags & _NUMA
            and spec.numa_node != _NO_NODE):
        return errno.EINVAL, "a share for each worker (BPF_F_NO_COMMON_LRU) has no one NUMA node"
    if spec.flags & _PROGRAM and (spec.lock_at >= 0 or spec.timer_at >= 0):
        return errno.EACCES, "programs have to read and write values with a lock or a timer"
    if spec.map_extra and spec.type not in (MapType.BLOOM_FILTER, MapType.ARENA):
        return errno.EINVAL, f"map_extra is {spec.map_extra:#x}, must be 0"
    if spec.inner is not None and spec.inner.type == MapType.PROG_ARRAY:
        return ENOTSUPP, "program arrays cannot be in maps"
    why = family.check(spec)
    if why is None:
        return _arena_refusal(spec) if spec.type == MapType.ARENA else None
    return (errno.E2BIG if _too_large(spec) else errno.EINVAL), why


def _is_node(number: int) -> bool:
    return number in (0, _NO_NODE) or Path(f"/sys/devices/system/node/node{number}").exists()


def _arena_refusal(spec: MapSpec) -> tuple[int, str] | None:
    if spec.max_entries > arena.MAX_PAGES:
        return errno.E2BIG, f"it has {spec.max_entries} pages, at most {arena.MAX_PAGES} fit"
    last = spec.map_extra + arena.PAGE_BYTES * spec.max_entries - 1
    if last >> 32 != spec.map_extra >> 32:
        return errno.ERANGE, "its addresses cross a border of 4 GiB"
    return None


def _too_large(spec: MapSpec) -> bool:
    """Only a size is wrong, and it is one that the kernel calls too large."""
    if not spec.max_entries or not spec.value_size:
        return False
    value = spec.value_size
    match spec.type:
        case MapType.HASH | MapType.LRU_HASH | MapType.PERCPU_HASH | MapType.LRU_PERCPU_HASH:
            if not spec.key_size:
                return False
            return (spec.key_size + value >= _KMALLOC_MAX_BYTES - _HASH_ELEMENT_BYTES
                    or (spec.type in _PER_CPU and round_up(value, 8) > _PER_CPU_MAX_BYTES))
        case MapType.ARRAY:
            return spec.key_size == 4 and value > (1 << 31) - 1
        case MapType.PERCPU_ARRAY:
            return spec.key_size == 4 and round_up(value, 8) > _PER_CPU_MAX_BYTES
        case MapType.BLOOM_FILTER:
            return value > _KMALLOC_MAX_BYTES
        case MapType.QUEUE | MapType.STACK:
            return spec.key_size == 0 and value > _KMALLOC_MAX_BYTES
        case _:
            return False
