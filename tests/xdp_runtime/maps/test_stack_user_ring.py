"""STACK_TRACE as the kernel's, empty; USER_RINGBUF: what Python produces lies as libbpf lays it."""

from __future__ import annotations

import errno
import mmap

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.maps.traces import Step, apply, compiled_map
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.map import Map
from xdp_runtime.maps.model import make_model
from xdp_runtime.maps.ringbuf import CONSUMER, DATA, PRODUCER
from xdp_runtime.object import MapSpec, MapType


@pytest.mark.root
@needs_bpf()[1]
def test_stacks_as_the_kernel() -> None:
    spec = MapSpec("s", MapType.STACK_TRACE, 4, 80, 5)
    model = make_model(spec)
    with KernelMap(spec) as kernel, compiled_map(spec) as ours:
        for number in (0, 4, 5, 7, 8, 9, 1 << 31, (1 << 32) - 1):
            key = number.to_bytes(4, "little")
            for step in (Step("lookup", key), Step("delete", key),
                         Step("update", key, bytes(80), 0), Step("update", key, bytes(80), 2)):
                assert apply(ours, step) == apply(kernel, step), step
            assert model.delete(key) == apply(ours, Step("delete", key))
            assert ours.next_key(key) == kernel.next_key(key)
        assert ours.next_key() is kernel.next_key() is None


def ring() -> Map:
    return Map.create(MapSpec("u", MapType.USER_RINGBUF, 0, 0, 4096), 1)


def number(one: Map, at: int) -> int:
    return int.from_bytes(one.memory("ring")[at:at + 8], "little")


def test_produce() -> None:
    with ring() as one:
        one.produce(b"hello")
        one.produce(b"12345678")
        assert number(one, PRODUCER) == 16 + 16 and number(one, CONSUMER) == 0
        memory = one.memory("ring")
        assert bytes(memory[DATA:DATA + 13]) == (5).to_bytes(8, "little") + b"hello"
        assert bytes(memory[DATA + 16:DATA + 32]) == (8).to_bytes(8, "little") + b"12345678"
        memory.release()


def test_a_full_ring_and_a_record_over_its_end() -> None:
    with ring() as one:
        for _ in range(4096 // 32):
            one.produce(bytes(24))
        with pytest.raises(OSError) as caught:
            one.produce(b"")
        assert caught.value.errno == errno.ENOSPC
        with pytest.raises(OSError) as caught:
            one.produce(bytes(4089))
        assert caught.value.errno == errno.E2BIG
        memory = one.memory("ring")
        memory[CONSUMER:CONSUMER + 8] = (4096).to_bytes(8, "little")  # drained
        one.produce(bytes(4064))
        one.produce(b"")
        memory[CONSUMER:CONSUMER + 8] = (8192 - 16).to_bytes(8, "little")
        one.produce(b"over the end of the data")
        assert bytes(memory[DATA + 4096 - 16 + 8:][:24]) == b"over the end of the data"
        assert bytes(memory[DATA:DATA + 16]) == b"over the end of the data"[8:]
        memory.release()


def test_only_there() -> None:
    with (Map.create(MapSpec("r", MapType.RINGBUF, 0, 0, mmap.PAGESIZE), 1) as one,
          pytest.raises(TypeError, match="RINGBUF has no such ring")):
        one.produce(b"x")
