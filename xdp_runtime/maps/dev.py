"""DEVMAP, DEVMAP_HASH, CPUMAP and XSKMAP: where bpf_redirect_map sends a packet.

Beside the usual operations they have `redirect(run, index, flags, map)`: the verdict, with the
target and how to go there in the run state (state.py, HOW_*); `map` is the map's number in the
object, -1 for an inner map.  The two lowest bits of the flags are the verdict where the map has no
target.  All packets go where the worker's loop then sends them (dataplane/redirect.py).

An entry is two words, a value of 4 bytes sets the first:

    DEVMAP, DEVMAP_HASH   u32 interface index   u32 program that sees the packet before it leaves
    CPUMAP, by worker     u32 queue length      u32 program that goes on there
    XSKMAP                u32 number of a named ring      u32 the key, which programs may read

Programs are given by number, as `Program.program_number` says it, plus 1; 0 is none.  Which numbers
a map takes is a bit mask that whoever loads the program writes (`allow`): those of programs made
for this kind of map, of an XSKMAP the rings there are.  BPF_F_BROADCAST is for maps of interfaces:
`targets(out, cursor)` goes over their entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from xdp_runtime import state as st
from xdp_runtime.maps import array
from xdp_runtime.maps.array import ArrayFamily
from xdp_runtime.maps.family import (
    E2BIG,
    EEXIST,
    EINVAL,
    ENOENT,
    EOPNOTSUPP,
    EOVERFLOW,
    Region,
    no_entries,
    round_up,
)
from xdp_runtime.maps.hash import LEADING as HASH_LEADING
from xdp_runtime.maps.hash import LOOKUP as HASH_LOOKUP
from xdp_runtime.maps.hash import UPDATE as HASH_UPDATE
from xdp_runtime.maps.hash import HashFamily
from xdp_runtime.maps.hash_table import Factory
from xdp_runtime.maps.walk import TABLE_WALK
from xdp_runtime.object import MapFlag, MapSpec, MapType
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.maps.map import Map

_ABORTED, _REDIRECT = int(st.Verdict.ABORTED), int(st.Verdict.REDIRECT)
_FLAGS = MapFlag.NUMA_NODE | MapFlag.RDONLY | MapFlag.WRONLY
_PAGE = 4096
BROADCAST, EXCLUDE_INGRESS = 1 << 3, 1 << 4  # BPF_F_BROADCAST, BPF_F_EXCLUDE_INGRESS
_DEV_FLAGS = 3 | BROADCAST | EXCLUDE_INGRESS
_LOW = 0xFFFFFFFF
QUEUE_MAX = 16384  # packets, the kernel's limit of a CPUMAP's queue
NUMBERS_MAX = 63  # bits of the mask: programs or rings a map may name, from 1
_HASH_ALLOWED = 192  # where the mask is in the head of a hash: line 3, which nothing else uses

LEADING = "ptr, i64, i64, i64, i64, i64, i64"  # as of an array
DEVICES = (MapType.DEVMAP, MapType.DEVMAP_HASH)
PROGRAMS_OF: dict[int, str] = {  # sections of the programs that their entries may name
    MapType.DEVMAP: "devmap", MapType.DEVMAP_HASH: "devmap", MapType.CPUMAP: "cpumap"}


def allow(one: Map, numbers: Iterable[int]) -> None:
    """Let a map take entries with these programs, or rings."""
    region, at = ("head", _HASH_ALLOWED) if one.spec.type == MapType.DEVMAP_HASH else (
        "values", 8 * one.spec.max_entries)
    mask = sum(1 << number for number in numbers)
    memory = one.memory(region)
    memory[at : at + 8] = mask.to_bytes(8, "little")
    memory.release()


def _lookup(m: Any) -> Factory:
    def dev_lookup(  # type: ignore
        values, worker_stride, stride, size, max_entries, workers, worker, key
    ):
        index = m.load_u32(key, 0)
        if index < max_entries:
            value = m.inside(values, index * stride)
            if m.relaxed_u32(value, 0) != 0:
                return value
        return m.null()

    return dev_lookup


def _xsk_lookup(m: Any) -> Factory:
    find = m.extern(LOOKUP)

    def xsk_lookup(  # type: ignore
        values, worker_stride, stride, size, max_entries, workers, worker, key
    ):
        """A struct bpf_xdp_sock: its one field is the queue that the socket is bound to."""
        value = find(values, worker_stride, stride, size, max_entries, workers, worker, key)
        if m.is_null(value):
            return value
        return m.inside(value, 4)

    return xsk_lookup


def _refuse(m: Any) -> Factory:
    def dev_refuse(run):  # type: ignore
        m.store_u32(run, st.REDIRECT_HOW, m.load_u32(run, st.REDIRECT_HOW) | st.HOW_REFUSED)
        return _ABORTED

    return dev_refuse


def _miss(m: Any) -> Factory:
    def dev_miss(run, flags):  # type: ignore
        """No target: what was set by a call before counts no more."""
        m.store_u32(run, st.REDIRECT_IFINDEX, 0)
        m.store_u32(run, st.REDIRECT_HOW, 0)
        return flags & 3

    return dev_miss


def _many(m: Any) -> Factory:
    refuse = m.extern(REFUSE)

    def dev_many(run, flags, map):  # type: ignore
        """To all entries; whether there are any shows when it is sent, as in the kernel."""
        if map < 0:
            return refuse(run)
        m.store_u32(run, st.REDIRECT_IFINDEX, map)
        leave_out = m.lshr(flags, 4) & 1
        m.store_u32(run, st.REDIRECT_HOW, st.HOW_MANY | leave_out << st.HOW_PROGRAM)
        return _REDIRECT

    return dev_many


def _redirect(m: Any) -> Factory:
    refuse, miss, many = m.extern(REFUSE), m.extern(MISS), m.extern(MANY)

    def dev_redirect(  # type: ignore
        values, worker_stride, stride, size, max_entries, workers, worker, run, index, flags, map
    ):
        if flags & ~_DEV_FLAGS != 0:
            return refuse(run)
        if flags & BROADCAST != 0:
            return many(run, flags, map)
        index &= _LOW
        entry = 0
        if index < max_entries:
            entry = m.relaxed_u64(values, index * stride)
        if entry == 0:
            return miss(run, flags)
        m.store_u32(run, st.REDIRECT_IFINDEX, entry & _LOW)
        m.store_u32(run, st.REDIRECT_HOW, m.lshr(entry, 32) << st.HOW_PROGRAM)
        return _REDIRECT

    return dev_redirect


def _cpu_redirect(m: Any) -> Factory:
    refuse, miss = m.extern(REFUSE), m.extern(MISS)

    def cpu_redirect(  # type: ignore
        values, worker_stride, stride, size, max_entries, workers, worker, run, index, flags, map
    ):
        if flags & ~3 != 0:
            return refuse(run)
        index &= _LOW
        entry = 0
        if index < max_entries:
            entry = m.relaxed_u64(values, index * stride)
        if entry == 0:
            return miss(run, flags)
        m.store_u32(run, st.REDIRECT_IFINDEX, index)
        m.store_u32(run, st.REDIRECT_HOW, st.HOW_WORKER | m.lshr(entry, 32) << st.HOW_PROGRAM
                    | (entry & _LOW) << st.HOW_QUEUE)
        return _REDIRECT

    return cpu_redirect


def _xsk_redirect(m: Any) -> Factory:
    refuse, miss = m.extern(REFUSE), m.extern(MISS)

    def xsk_redirect(  # type: ignore
        values, worker_stride, stride, size, max_entries, workers, worker, run, index, flags, map
    ):
        if flags & ~3 != 0:
            return refuse(run)
        index &= _LOW
        ring = 0
        if index < max_entries:
            ring = m.relaxed_u32(values, index * stride)
        if ring == 0:
            return miss(run, flags)
        m.store_u32(run, st.REDIRECT_IFINDEX, ring)
        m.store_u32(run, st.REDIRECT_HOW, st.HOW_RING)
        return _REDIRECT

    return xsk_redirect


def _make_update(what: int) -> Any:
    """`what` is a MapType; checks in the kernel's order."""
    is_cpu, is_xsk = what == MapType.CPUMAP, what == MapType.XSKMAP

    def factory(m: Any) -> Factory:
        def dev_update(  # type: ignore
            values, worker_stride, stride, size, max_entries, workers, worker, key, value, flags
        ):
            if not m.ule(flags, 2):
                return -EINVAL
            index = m.load_u32(key, 0)
            if index >= max_entries:
                return -E2BIG
            first, second = m.load_u32(value, 0), 0
            if size == 8:
                second = m.load_u32(value, 4)
            allowed = m.load_u64(values, max_entries * stride)
            if is_xsk:
                if allowed == 0:
                    return -EOPNOTSUPP
                there = m.relaxed_u32(values, index * stride) != 0
                if flags == 1 and there:
                    return -EEXIST
                if flags == 2 and not there:
                    return -ENOENT
                if first == 0 or first > NUMBERS_MAX or m.lshr(allowed, first) & 1 == 0:
                    return -EINVAL
                m.release_u64(values, index * stride, index << 32 | first)
                return 0
            if flags == 1:
                return -EEXIST
            if is_cpu and first > QUEUE_MAX:
                return -EOVERFLOW
            if second != 0 and (second > NUMBERS_MAX or m.lshr(allowed, second) & 1 == 0):
                return -EINVAL
            if first == 0:
                if not is_cpu and second != 0:
                    return -EINVAL
                second = 0
            m.release_u64(values, index * stride, second << 32 | first)
            return 0

        return dev_update

    return factory


def _delete(m: Any) -> Factory:
    def dev_delete(  # type: ignore
        values, worker_stride, stride, size, max_entries, workers, worker, key
    ):
        index = m.load_u32(key, 0)
        if index >= max_entries:
            return -EINVAL
        m.release_u64(values, index * stride, 0)
        return 0

    return dev_delete


def _targets(m: Any) -> Factory:
    def dev_targets(  # type: ignore
        values, worker_stride, stride, size, max_entries, workers, worker, out, cursor
    ):
        """The next entry into `out` (u64) and where to go on, or -1.  The first cursor is 0."""
        while cursor < max_entries:
            entry = m.relaxed_u64(values, cursor * stride)
            cursor += 1
            if entry != 0:
                m.store_u64(out, 0, entry)
                return cursor
        return -1

    return dev_targets


def _hash_redirect(m: Any) -> Factory:
    find = m.extern(HASH_LOOKUP)
    refuse, miss, many = m.extern(REFUSE), m.extern(MISS), m.extern(MANY)

    def dev_hash_redirect(  # type: ignore
        head, buckets, elements, key_size, value_size, stride, mask, max_entries, end,
        worker, run, index, flags, map
    ):
        if flags & ~_DEV_FLAGS != 0:
            return refuse(run)
        if flags & BROADCAST != 0:
            return many(run, flags, map)
        key = m.gep(m.alloca(8), 0)
        m.store_u32(key, 0, index)
        value = find(head, buckets, elements, key_size, value_size, stride, mask, max_entries,
                     end, worker, key)
        if m.is_null(value):
            return miss(run, flags)
        m.store_u32(run, st.REDIRECT_IFINDEX, m.load_u32(value, 0))
        program = 0
        if value_size == 8:
            program = m.load_u32(value, 4)
        m.store_u32(run, st.REDIRECT_HOW, program << st.HOW_PROGRAM)
        return _REDIRECT

    return dev_hash_redirect


def _hash_update(m: Any) -> Factory:
    update = m.extern(HASH_UPDATE)

    def dev_hash_update(  # type: ignore
        head, buckets, elements, key_size, value_size, stride, mask, max_entries, end,
        worker, key, value, flags
    ):
        if not m.ule(flags, 2) or m.load_u32(value, 0) == 0:
            return -EINVAL
        if value_size == 8 and m.load_u32(value, 4) != 0:
            program = m.load_u32(value, 4)
            allowed = m.load_u64(head, _HASH_ALLOWED)
            if program > NUMBERS_MAX or m.lshr(allowed, program) & 1 == 0:
                return -EINVAL
        return update(head, buckets, elements, key_size, value_size, stride, mask, max_entries,
                      end, worker, key, value, flags & 1)  # BPF_EXIST means nothing to it

    return dev_hash_update


def _hash_targets(m: Any) -> Factory:
    walk = m.extern(TABLE_WALK)

    def dev_hash_targets(  # type: ignore
        head, buckets, elements, key_size, value_size, stride, mask, max_entries, end,
        worker, out, cursor
    ):
        found = m.gep(m.alloca(24), 0)
        cursor = walk(buckets, elements, key_size, mask, found, cursor)
        if cursor != -1:
            value = m.load_ptr(found, 8)
            entry = m.load_u32(value, 0)
            if value_size == 8:
                entry |= m.load_u32(value, 4) << 32
            m.store_u64(out, 0, entry)
        return cursor

    return dev_hash_targets


REFUSE = Template("dev_refuse", _refuse, "i64(ptr)")
MISS = Template("dev_miss", _miss, "i64(ptr, i64)")
MANY = Template("dev_many", _many, "i64(ptr, i64, i64)", (REFUSE,))
LOOKUP = Template("dev_lookup", _lookup, f"ptr({LEADING}, ptr)")
XSK_LOOKUP = Template("xsk_lookup", _xsk_lookup, f"ptr({LEADING}, ptr)", (LOOKUP,))
_REDIRECT_SIGNATURE = f"i64({LEADING}, ptr, i64, i64, i64)"
REDIRECT = Template("dev_redirect", _redirect, _REDIRECT_SIGNATURE, (REFUSE, MISS, MANY))
CPU_REDIRECT = Template("cpu_redirect", _cpu_redirect, _REDIRECT_SIGNATURE, (REFUSE, MISS))
XSK_REDIRECT = Template("xsk_redirect", _xsk_redirect, _REDIRECT_SIGNATURE, (REFUSE, MISS))
UPDATES = {kind: Template(f"{name}_update", _make_update(kind), f"i64({LEADING}, ptr, ptr, i64)")
           for kind, name in ((MapType.DEVMAP, "dev"), (MapType.CPUMAP, "cpu"),
                              (MapType.XSKMAP, "xsk"))}
DELETE = Template("dev_delete", _delete, f"i64({LEADING}, ptr)")
TARGETS = Template("dev_targets", _targets, f"i64({LEADING}, ptr, i64)")
HASH_REDIRECT = Template("dev_hash_redirect", _hash_redirect,
                         f"i64({HASH_LEADING}, ptr, i64, i64, i64)",
                         (HASH_LOOKUP, REFUSE, MISS, MANY))
DEV_HASH_UPDATE = Template("dev_hash_update", _hash_update,
                           f"i64({HASH_LEADING}, ptr, ptr, i64)", (HASH_UPDATE,))
HASH_TARGETS = Template("dev_hash_targets", _hash_targets, f"i64({HASH_LEADING}, ptr, i64)",
                        (TABLE_WALK,))


class DevMapFamily(ArrayFamily):
    """DEVMAP, CPUMAP and XSKMAP: targets by index."""

    def __init__(self, kind: MapType) -> None:
        super().__init__(per_cpu=False)
        self.kind = kind
        self.operations: Mapping[str, Template] = {
            "lookup": LOOKUP, "peek": LOOKUP, "delete": DELETE, "next_key": array.NEXT_KEY,
            "redirect": REDIRECT, "update": UPDATES[kind]}
        match kind:
            case MapType.DEVMAP:
                self.operations = {**self.operations, "targets": TARGETS}
            case MapType.CPUMAP:
                self.operations = {**self.operations, "redirect": CPU_REDIRECT}
            case MapType.XSKMAP:
                self.operations = {**self.operations, "redirect": XSK_REDIRECT,
                                   "lookup": XSK_LOOKUP}

    def check(self, spec: MapSpec) -> str | None:
        sizes = (4,) if self.kind == MapType.XSKMAP else (4, 8)
        if spec.key_size != 4 or spec.value_size not in sizes:
            return f"key and value have {spec.key_size} and {spec.value_size} bytes"
        if spec.max_entries == 0:
            return no_entries(spec)
        known = MapFlag.NUMA_NODE if self.kind == MapType.CPUMAP else _FLAGS
        if spec.flags & ~int(known):
            return f"flags {spec.flags:#x} are not known for this type"
        return None

    def worker_stride(self, spec: MapSpec) -> int:
        """The entries, and behind them the mask of `allow`."""
        return round_up(8 * spec.max_entries + 8, _PAGE)

    def regions(self, spec: MapSpec, workers: int) -> tuple[Region, ...]:
        return (Region("values", self.worker_stride(spec)),)

    def parameters(self, spec: MapSpec, workers: int) -> tuple[str | int, ...]:
        return ("values", 0, 8, spec.value_size, spec.max_entries, workers)


class DevMapHashFamily(HashFamily):
    """DEVMAP_HASH."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = {**self.operations, "redirect": HASH_REDIRECT,
                           "update": DEV_HASH_UPDATE, "targets": HASH_TARGETS}
        del self.operations["take"]

    def _shards(self, spec: MapSpec) -> int:
        return 1  # only user space writes

    def check(self, spec: MapSpec) -> str | None:
        if spec.key_size != 4 or spec.value_size not in (4, 8):
            return f"key and value have {spec.key_size} and {spec.value_size} bytes"
        if spec.flags & ~int(_FLAGS):
            return f"flags {spec.flags:#x} are not known for this type"
        return super().check(spec)
