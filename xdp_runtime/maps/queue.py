"""QUEUE and STACK: values in a ring under a lock; what has no keys.

    head      the lock (64), u32 head (128), u32 tail (132)
    values    max_entries + 1 of them, `stride` apart: head == tail means empty

Programs push, pop and peek; BPF_EXIST makes a push into a full one drop the oldest value.  Where
there is nothing, pop and peek clear the value and return -ENOENT (kernel/bpf/queue_stack_maps.c).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xdp_runtime.maps.family import E2BIG, EINVAL, ENOENT, Region, no_entries, round_up
from xdp_runtime.maps.lock import LOCKED, UNLOCK, Factory
from xdp_runtime.object import MapFlag, MapSpec
from xdp_runtime.template import Template

HEAD, TAIL = 128, 132
HEAD_BYTES = 192
_FLAGS = (MapFlag.NUMA_NODE | MapFlag.RDONLY | MapFlag.WRONLY | MapFlag.RDONLY_PROG
          | MapFlag.WRONLY_PROG)

# head, values, value_size, stride, slots; worker
LEADING = "ptr, ptr, i64, i64, i64, i64"


def _push(m: Any) -> Factory:
    lock, unlock = m.extern(LOCKED), m.extern(UNLOCK)

    def queue_push(head, values, size, stride, slots, worker, value, flags):  # type: ignore
        if flags != 0 and flags != 2:
            return -EINVAL
        lock(head)
        at = m.load_u32(head, HEAD)
        after = at + 1
        if after == slots:
            after = 0
        tail = m.load_u32(head, TAIL)
        if after == tail:
            if flags == 0:
                unlock(head)
                return -E2BIG
            tail += 1
            if tail == slots:
                tail = 0
            m.store_u32(head, TAIL, tail)
        m.copy(m.inside(values, at * stride), value, size)
        m.store_u32(head, HEAD, after)
        unlock(head)
        return 0

    return queue_push


def _make_take(stack: bool, remove: bool) -> Any:
    def factory(m: Any) -> Factory:
        lock, unlock = m.extern(LOCKED), m.extern(UNLOCK)

        def queue_take(head, values, size, stride, slots, worker, value):  # type: ignore
            lock(head)
            end, at = m.load_u32(head, HEAD), m.load_u32(head, TAIL)
            if end == at:
                unlock(head)
                m.zero(value, size)
                return -ENOENT
            if stack:
                at = end - 1
                if end == 0:
                    at = slots - 1
            m.copy(value, m.inside(values, at * stride), size)
            if remove:
                if stack:
                    m.store_u32(head, HEAD, at)
                else:
                    at += 1
                    if at == slots:
                        at = 0
                    m.store_u32(head, TAIL, at)
            unlock(head)
            return 0

        return queue_take

    return factory


def _take(name: str, stack: bool, remove: bool) -> Template:
    return Template(name, _make_take(stack, remove), f"i64({LEADING}, ptr)", (LOCKED, UNLOCK))


PUSH = Template("queue_push", _push, f"i64({LEADING}, ptr, i64)", (LOCKED, UNLOCK))
_TAKES = {
    False: {"pop_elem": _take("queue_pop", False, True),
            "peek_elem": _take("queue_peek", False, False)},
    True: {"pop_elem": _take("stack_pop", True, True),
           "peek_elem": _take("stack_peek", True, False)},
}


class QueueFamily:
    """QUEUE; `stack`: STACK."""

    per_cpu = False

    def __init__(self, stack: bool) -> None:
        self.operations: Mapping[str, Template] = {"push_elem": PUSH, **_TAKES[stack]}

    def check(self, spec: MapSpec) -> str | None:
        if spec.key_size:
            return f"key size is {spec.key_size}, must be 0"
        if spec.max_entries == 0:
            return no_entries(spec)
        if spec.value_size == 0:
            return "value size is 0"
        if spec.flags & ~int(_FLAGS):
            return f"flags {spec.flags:#x} are not known for a queue or stack"
        if spec.flags & MapFlag.RDONLY_PROG and spec.flags & MapFlag.WRONLY_PROG:
            return "it can be neither read nor written by programs"
        if spec.value_size > 1 << 22:
            return f"value size is {spec.value_size}, too large"
        return None

    def regions(self, spec: MapSpec, workers: int) -> tuple[Region, ...]:
        size = round_up(spec.value_size, 8) * (spec.max_entries + 1)
        return (Region("head", HEAD_BYTES), Region("values", size))

    def parameters(self, spec: MapSpec, workers: int) -> tuple[str | int, ...]:
        return ("head", "values", spec.value_size, round_up(spec.value_size, 8),
                spec.max_entries + 1)

    def length(self, spec: MapSpec, memory: Mapping[str, memoryview]) -> int:
        head, tail = (int.from_bytes(memory["head"][at:at + 4], "little") for at in (HEAD, TAIL))
        return (head - tail) % (spec.max_entries + 1)

    def initialise(self, spec: MapSpec, memory: Mapping[str, memoryview], seed: int) -> None:
        """Zeros are an empty queue."""
