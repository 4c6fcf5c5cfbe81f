"""Maps: one file a family; `Map` (map.py) is shared memory in a family's layout."""

from __future__ import annotations

from collections.abc import Mapping

from xdp_runtime.errors import LoadError
from xdp_runtime.maps.arena import ArenaFamily
from xdp_runtime.maps.array import ArrayFamily, ProgArrayFamily
from xdp_runtime.maps.bloom import BloomFamily
from xdp_runtime.maps.dev import DevMapFamily, DevMapHashFamily
from xdp_runtime.maps.family import Family
from xdp_runtime.maps.hash import HashFamily
from xdp_runtime.maps.locked import LockedArrayFamily, LockedHashFamily, LockedLruHashFamily
from xdp_runtime.maps.lpm import LpmTrieFamily
from xdp_runtime.maps.lru import LruHashFamily
from xdp_runtime.maps.of_maps import ArrayOfMapsFamily, HashOfMapsFamily
from xdp_runtime.maps.percpu_hash import PerCpuHashFamily
from xdp_runtime.maps.queue import QueueFamily
from xdp_runtime.maps.ringbuf import PerfEventArrayFamily, RingbufFamily
from xdp_runtime.maps.stack_trace import StackTraceFamily
from xdp_runtime.maps.timed import timed
from xdp_runtime.maps.user_ringbuf import UserRingbufFamily
from xdp_runtime.object import MapFlag, MapSpec, MapType

FAMILIES: Mapping[int, Family] = {
    MapType.HASH: HashFamily(),
    MapType.ARRAY: ArrayFamily(per_cpu=False),
    MapType.PROG_ARRAY: ProgArrayFamily(),
    MapType.PERCPU_ARRAY: ArrayFamily(per_cpu=True),
    MapType.LRU_HASH: LruHashFamily(),
    MapType.LPM_TRIE: LpmTrieFamily(),
    MapType.PERCPU_HASH: PerCpuHashFamily(),
    MapType.LRU_PERCPU_HASH: PerCpuHashFamily(lru=True),
    MapType.QUEUE: QueueFamily(stack=False),
    MapType.STACK: QueueFamily(stack=True),
    MapType.DEVMAP: DevMapFamily(MapType.DEVMAP),
    MapType.DEVMAP_HASH: DevMapHashFamily(),
    MapType.CPUMAP: DevMapFamily(MapType.CPUMAP),
    MapType.XSKMAP: DevMapFamily(MapType.XSKMAP),
    MapType.ARRAY_OF_MAPS: ArrayOfMapsFamily(),
    MapType.HASH_OF_MAPS: HashOfMapsFamily(),
    MapType.RINGBUF: RingbufFamily(),
    MapType.PERF_EVENT_ARRAY: PerfEventArrayFamily(),
    MapType.BLOOM_FILTER: BloomFamily(),
    MapType.STACK_TRACE: StackTraceFamily(),
    MapType.USER_RINGBUF: UserRingbufFamily(),
    MapType.ARENA: ArenaFamily(),
}

LOCKED: Mapping[int, Family] = {  # with a spin lock in their values
    MapType.HASH: LockedHashFamily(),
    MapType.ARRAY: LockedArrayFamily(),
    MapType.LRU_HASH: LockedLruHashFamily(),
}


# of BPF_F_NO_COMMON_LRU, so that no other LRU map's code has what makes shares
SHARED: Mapping[int, Family] = {
    MapType.LRU_HASH: LruHashFamily(shared=True),
    MapType.LRU_PERCPU_HASH: PerCpuHashFamily(lru=True, shared=True),
}
LOCKED_SHARED: Mapping[int, Family] = {MapType.LRU_HASH: LockedLruHashFamily(shared=True)}


def type_name(number: int) -> str:
    """BPF_MAP_TYPE_* without the prefix, or "unknown"."""
    return MapType(number).name if number in set(MapType) else "unknown"


def family_of(spec: MapSpec) -> Family:
    """The family of this map's type.  Raises LoadError for a type not supported."""
    plain, shared = (FAMILIES, SHARED) if spec.lock_at < 0 else (LOCKED, LOCKED_SHARED)
    family = plain.get(spec.type)
    if spec.flags & MapFlag.NO_COMMON_LRU:
        family = shared.get(spec.type, family)
    if family is None and spec.type in FAMILIES:
        raise LoadError(f"map {spec.name}", f"values of map type {type_name(spec.type)} cannot "
                        "have a spin lock", "the kernel refuses such a map, too")
    if family is None:
        have = ", ".join(type_name(number) for number in FAMILIES)
        raise LoadError(f"map {spec.name}",
                        f"map type {spec.type} ({type_name(spec.type)}) is not supported",
                        f"supported: {have}")
    if spec.timer_at >= 0:
        if spec.type not in LOCKED:  # the types are the same
            raise LoadError(f"map {spec.name}", f"values of map type {type_name(spec.type)} cannot "
                            "have a timer", "the kernel refuses such a map, too")
        return timed(family, spec.timer_at, spec.value_size)  # type: ignore[arg-type]
    return family
