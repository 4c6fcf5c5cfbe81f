"""DEVMAP, DEVMAP_HASH, CPUMAP and XSKMAP: where bpf_redirect_map sends a packet.

Beside the usual operations they have `redirect(run, index, flags)`: the verdict, with the target in
the run state.  The two lowest bits of the flags are the verdict where the map has no target.
BPF_F_BROADCAST is not there: such a call answers XDP_ABORTED, as for a flag that does not exist.

A DEVMAP's value is an interface index and perhaps a program (which must be 0 here); the packet
leaves by that interface, which must be one of the run.  A CPUMAP's value is a queue length: its
target is the host's stack, to which the worker itself hands the packet.  An XSKMAP has no entries:
sockets of other processes cannot be reached from here, so its redirects always take the verdict of
the flags.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xdp_runtime import state as st
from xdp_runtime.maps import array
from xdp_runtime.maps.array import ArrayFamily
from xdp_runtime.maps.family import E2BIG, EEXIST, EINVAL, EOPNOTSUPP, Region, round_up
from xdp_runtime.maps.hash import LEADING as HASH_LEADING
from xdp_runtime.maps.hash import LOOKUP as HASH_LOOKUP
from xdp_runtime.maps.hash import UPDATE as HASH_UPDATE
from xdp_runtime.maps.hash import HashFamily
from xdp_runtime.maps.hash_table import Factory
from xdp_runtime.object import MapFlag, MapSpec, MapType
from xdp_runtime.template import Template

TO_STACK = 0xFFFFFFFF  # instead of an interface index: the host's stack
_ABORTED, _REDIRECT = int(st.Verdict.ABORTED), int(st.Verdict.REDIRECT)
_FLAGS = MapFlag.NUMA_NODE | MapFlag.RDONLY | MapFlag.WRONLY
_PAGE = 4096
EXCLUDE_INGRESS = 1 << 4  # BPF_F_EXCLUDE_INGRESS: alone it changes nothing
_DEV_FLAGS = 3 | EXCLUDE_INGRESS
_LOW = 0xFFFFFFFF

LEADING = "ptr, i64, i64, i64, i64, i64, i64"  # as of an array


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


def _make_redirect(to_stack: bool, allowed: int) -> Any:
    def factory(m: Any) -> Factory:
        def dev_redirect(  # type: ignore
            values, worker_stride, stride, size, max_entries, workers, worker, run, index, flags
        ):
            if flags & ~allowed != 0:
                return _ABORTED
            index &= _LOW
            target = 0
            if index < max_entries:
                target = m.relaxed_u32(values, index * stride)
            if target == 0:
                return flags & 3
            if to_stack:
                target = TO_STACK
            m.store_u32(run, st.REDIRECT_IFINDEX, target)
            return _REDIRECT

        return dev_redirect

    return factory


def _update(m: Any) -> Factory:
    def dev_update(  # type: ignore
        values, worker_stride, stride, size, max_entries, workers, worker, key, value, flags
    ):
        if not m.ule(flags, 2):
            return -EINVAL
        index = m.load_u32(key, 0)
        if index >= max_entries:
            return -E2BIG
        if flags == 1:
            return -EEXIST
        if size == 8 and m.load_u32(value, 4) != 0:  # no program runs behind the redirect
            return -EOPNOTSUPP
        m.release_u32(values, index * stride, m.load_u32(value, 0))
        return 0

    return dev_update


def _delete(m: Any) -> Factory:
    def dev_delete(  # type: ignore
        values, worker_stride, stride, size, max_entries, workers, worker, key
    ):
        index = m.load_u32(key, 0)
        if index >= max_entries:
            return -EINVAL
        m.release_u32(values, index * stride, 0)
        return 0

    return dev_delete


def _hash_redirect(m: Any) -> Factory:
    find = m.extern(HASH_LOOKUP)

    def dev_hash_redirect(  # type: ignore
        head, buckets, elements, key_size, value_size, stride, mask, max_entries, end,
        worker, run, index, flags
    ):
        if flags & ~_DEV_FLAGS != 0:
            return _ABORTED
        key = m.gep(m.alloca(8), 0)
        m.store_u32(key, 0, index)
        value = find(head, buckets, elements, key_size, value_size, stride, mask, max_entries,
                     end, worker, key)
        if m.is_null(value):
            return flags & 3
        m.store_u32(run, st.REDIRECT_IFINDEX, m.load_u32(value, 0))
        return _REDIRECT

    return dev_hash_redirect


def _hash_update(m: Any) -> Factory:
    update = m.extern(HASH_UPDATE)

    def dev_hash_update(  # type: ignore
        head, buckets, elements, key_size, value_size, stride, mask, max_entries, end,
        worker, key, value, flags
    ):
        if m.load_u32(value, 0) == 0:
            return -EINVAL
        if value_size == 8 and m.load_u32(value, 4) != 0:
            return -EOPNOTSUPP
        return update(head, buckets, elements, key_size, value_size, stride, mask, max_entries,
                      end, worker, key, value, flags)

    return dev_hash_update


LOOKUP = Template("dev_lookup", _lookup, f"ptr({LEADING}, ptr)")
REDIRECT = Template("dev_redirect", _make_redirect(False, _DEV_FLAGS),
                    f"i64({LEADING}, ptr, i64, i64)")
CPU_REDIRECT = Template("cpu_redirect", _make_redirect(True, 3), f"i64({LEADING}, ptr, i64, i64)")
UPDATE = Template("dev_update", _update, f"i64({LEADING}, ptr, ptr, i64)")
DELETE = Template("dev_delete", _delete, f"i64({LEADING}, ptr)")
HASH_REDIRECT = Template("dev_hash_redirect", _hash_redirect,
                         f"i64({HASH_LEADING}, ptr, i64, i64)", (HASH_LOOKUP,))
DEV_HASH_UPDATE = Template("dev_hash_update", _hash_update,
                           f"i64({HASH_LEADING}, ptr, ptr, i64)", (HASH_UPDATE,))


class DevMapFamily(ArrayFamily):
    """DEVMAP, CPUMAP and XSKMAP: u32 targets by index."""

    def __init__(self, kind: MapType) -> None:
        super().__init__(per_cpu=False)
        self.kind = kind
        self.operations: Mapping[str, Template] = {
            "lookup": LOOKUP, "peek": LOOKUP, "delete": DELETE, "next_key": array.NEXT_KEY,
            "redirect": REDIRECT if kind == MapType.DEVMAP else CPU_REDIRECT}
        if kind != MapType.XSKMAP:
            self.operations = {**self.operations, "update": UPDATE}

    def check(self, spec: MapSpec) -> str | None:
        sizes = (4,) if self.kind == MapType.XSKMAP else (4, 8)
        if spec.key_size != 4 or spec.value_size not in sizes:
            return f"key and value have {spec.key_size} and {spec.value_size} bytes"
        if spec.max_entries == 0:
            return "max_entries is 0"
        known = MapFlag.NUMA_NODE if self.kind == MapType.CPUMAP else _FLAGS
        if spec.flags & ~int(known):
            return f"flags {spec.flags:#x} are not known for this type"
        return None

    def worker_stride(self, spec: MapSpec) -> int:
        return round_up(8 * spec.max_entries, _PAGE)

    def regions(self, spec: MapSpec, workers: int) -> tuple[Region, ...]:
        return (Region("values", self.worker_stride(spec)),)

    def parameters(self, spec: MapSpec, workers: int) -> tuple[str | int, ...]:
        return ("values", 0, 8, spec.value_size, spec.max_entries, workers)


class DevMapHashFamily(HashFamily):
    """DEVMAP_HASH."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = {**self.operations, "redirect": HASH_REDIRECT,
                           "update": DEV_HASH_UPDATE}
        del self.operations["take"]

    def check(self, spec: MapSpec) -> str | None:
        if spec.key_size != 4 or spec.value_size not in (4, 8):
            return f"key and value have {spec.key_size} and {spec.value_size} bytes"
        if spec.flags & ~int(_FLAGS):
            return f"flags {spec.flags:#x} are not known for this type"
        return super().check(spec)
