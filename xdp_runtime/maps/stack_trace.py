"""STACK_TRACE: stacks by id, as bpf_get_stackid() would file them.

No XDP program may call that helper, in the kernel neither, so all ids are empty; a map of an object
that shares it with tracing programs is made and asked all the same.  Sizes, ids and error numbers
are those of kernel/bpf/stackmap.c: there are max_entries rounded up to a power of two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from xdp_runtime.maps.family import E2BIG, EINVAL, ENOENT, Region, no_entries, round_up
from xdp_runtime.object import MapFlag, MapSpec
from xdp_runtime.template import Template

_DEPTH_MAX = 127  # kernel.perf_event_max_stack
_BUILD_ID_BYTES = 32  # sizeof(struct bpf_stack_build_id)

LEADING = "ptr, i64, i64"  # stacks, buckets; worker


def _lookup(m: Any) -> Callable[..., Any]:
    def stack_lookup(stacks, buckets, worker, key):  # type: ignore
        return m.null()

    return stack_lookup


def _update(m: Any) -> Callable[..., Any]:
    def stack_update(stacks, buckets, worker, key, value, flags):  # type: ignore
        return -EINVAL

    return stack_update


def _delete(m: Any) -> Callable[..., Any]:
    def stack_delete(stacks, buckets, worker, key):  # type: ignore
        if m.load_u32(key, 0) >= buckets:
            return -E2BIG
        return -ENOENT

    return stack_delete


def _next_key(m: Any) -> Callable[..., Any]:
    def stack_next_key(stacks, buckets, worker, key, out):  # type: ignore
        return -ENOENT

    return stack_next_key


def _take(m: Any) -> Callable[..., Any]:
    def stack_take(stacks, buckets, worker, key, out):  # type: ignore
        return -ENOENT

    return stack_take


class StackTraceFamily:
    """STACK_TRACE"""

    per_cpu = False

    def __init__(self) -> None:
        lookup = Template("stack_lookup", _lookup, f"ptr({LEADING}, ptr)")
        self.operations: Mapping[str, Template] = {
            "lookup": lookup, "peek": lookup,
            "update": Template("stack_update", _update, f"i64({LEADING}, ptr, ptr, i64)"),
            "delete": Template("stack_delete", _delete, f"i64({LEADING}, ptr)"),
            "take": Template("stack_take", _take, f"i64({LEADING}, ptr, ptr)"),
            "next_key": Template("stack_next_key", _next_key, f"i64({LEADING}, ptr, ptr)")}

    def check(self, spec: MapSpec) -> str | None:
        by_build_id = bool(spec.flags & MapFlag.STACK_BUILD_ID)
        frame = _BUILD_ID_BYTES if by_build_id else 8
        if spec.key_size != 4:
            return f"key size is {spec.key_size}, must be 4"
        if spec.max_entries == 0:
            return no_entries(spec)
        if spec.value_size < 8 or spec.value_size % frame:
            return f"value size is {spec.value_size}, must be a multiple of {frame}"
        if spec.value_size // frame > _DEPTH_MAX:
            return f"value size is {spec.value_size}, more than {_DEPTH_MAX} frames of {frame}"
        return None

    def buckets(self, spec: MapSpec) -> int:
        return 1 << (spec.max_entries - 1).bit_length()

    def regions(self, spec: MapSpec, workers: int) -> tuple[Region, ...]:
        return (Region("stacks", round_up(spec.value_size * self.buckets(spec), 8)),)

    def parameters(self, spec: MapSpec, workers: int) -> tuple[str | int, ...]:
        return ("stacks", self.buckets(spec))

    def initialise(self, spec: MapSpec, memory: Mapping[str, memoryview], seed: int) -> None:
        """All ids are empty."""
