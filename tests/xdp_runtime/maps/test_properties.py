"""Any sequence of operations on a map of any family gives what a plain model of it gives.

One property a family; hypothesis looks for the shortest sequence that shows a difference.  Families
that are written from programs alone have their operations called as programs call them.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.xdp_runtime.compiled import RunState
from tests.xdp_runtime.maps.test_limits import plain
from tests.xdp_runtime.maps.traces import Step, apply, compiled_map
from xdp_runtime.arena import PAGE_BYTES, start_of
from xdp_runtime.maps import FAMILIES
from xdp_runtime.maps.dev import allow
from xdp_runtime.maps.map import Map
from xdp_runtime.maps.model import (
    ModelArena,
    ModelBloom,
    ModelDevMap,
    ModelPerCpuHash,
    ModelQueue,
    ModelRing,
    make_model,
)
from xdp_runtime.maps.user_ring_model import OVER, ModelUserRing
from xdp_runtime.maps.user_ringbuf import DRAIN_BYTES, RESULT
from xdp_runtime.object import MapSpec, MapType

WORKERS = 2
ARRAYS = (MapType.ARRAY, MapType.PERCPU_ARRAY)
TARGETS = (MapType.DEVMAP, MapType.DEVMAP_HASH, MapType.CPUMAP, MapType.XSKMAP)
PER_CPU = (MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH)
NUMBERS = st.one_of(st.integers(0, 5), st.integers(0, (1 << 32) - 1))
FLAGS = st.sampled_from((0, 0, 0, 1, 2, 3, 4, 1 << 40))
KEYED = st.lists(st.tuples(st.sampled_from(("lookup", "update", "update", "delete")),
                           st.integers(0, 6), NUMBERS, FLAGS), max_size=40)
SIZED = st.lists(st.tuples(st.sampled_from(("put", "put", "take", "skip")), st.integers(0, 300),
                           st.sampled_from((0, 0, 1, 2, 4))), max_size=40)
Steps = Any


def keyed(spec: MapSpec, steps: Steps) -> None:
    """HASH, ARRAY, their like, tries and targets: each step's answer, and all entries at the end,
    in the model's order where there is one."""
    model = make_model(spec)
    with compiled_map(spec, WORKERS) as one:
        if isinstance(model, ModelDevMap):
            model.allowed = {5}
            allow(one, model.allowed)
        for operation, number, content, flags in steps:
            key = key_of(spec, number)
            value = content.to_bytes(4, "little").ljust(spec.value_size, b"\7")[:spec.value_size]
            if operation == "lookup":
                cells = [model.peek(key, cpu) for cpu in range(WORKERS)]
                wanted = [bytes(cell) for cell in cells if cell is not None] or None
                found = one.lookup(key)
                assert found == (wanted if one.family.per_cpu or not wanted else wanted[0])
            elif operation == "delete":
                assert apply(one, Step("delete", key)) == model.delete(key)
            elif isinstance(model, ModelPerCpuHash):
                values = [value] * WORKERS
                assert apply(one, Step("update", key, values, flags)) == (  # type: ignore
                    -errno.EINVAL if flags & 4 else model.update_all(key, values, flags))
            elif spec.type == MapType.PERCPU_ARRAY:
                wanted_status, *_ = [model.update(key, value, flags, cpu)
                                     for cpu in range(WORKERS)]
                assert apply(one, Step("update", key, [value] * WORKERS, flags)) == (  # type: ignore
                    -errno.EINVAL if flags & 4 else wanted_status)
            else:
                assert apply(one, Step("update", key, value, flags)) == (
                    -errno.EINVAL if flags & 4 else model.update(key, value, flags))
        found_items = {key: value if isinstance(value, list) else [value]
                       for key, value in one.items()}
        assert found_items == {key: [bytes(model.peek(key, cpu) or b"") for cpu in range(
            WORKERS if one.family.per_cpu else 1)] for key, _ in model.items()}


def key_of(spec: MapSpec, number: int) -> bytes:
    if spec.type == MapType.LPM_TRIE:  # prefixes of each other
        return number.to_bytes(4, "little") + bytes([0b10110000, 0, 0, 0])
    return number.to_bytes(spec.key_size, "little")


def queue(spec: MapSpec, steps: Steps) -> None:
    model = make_model(spec)
    assert isinstance(model, ModelQueue)
    with compiled_map(spec) as one:
        for operation, number, content, flags in steps:
            value = content.to_bytes(4, "little")
            if operation == "update":
                assert code(lambda: one.push(value, flags)) == (  # noqa: B023
                    -errno.EINVAL if flags & 4 else model.push(value, flags))
            else:
                taken = model.take(operation == "delete")
                assert (one.pop() if operation == "delete" else one.peek()) == taken, number
            assert len(one) == len(model.values)


def bloom(spec: MapSpec, steps: Steps) -> None:
    """What was pushed is in it; what is not in it was not pushed."""
    model = make_model(spec)
    assert isinstance(model, ModelBloom)
    with compiled_map(spec) as one:
        for operation, number, _, flags in steps:
            value = number.to_bytes(4, "little")
            if operation == "update":
                assert code(lambda: one.push(value, flags)) == (  # noqa: B023
                    -errno.EINVAL if flags & 4 else model.push(value, flags))
            assert one.may_contain(value) or value not in model.values
        assert all(one.may_contain(value) for value in model.values)


def code(call: Callable[[], Any]) -> int:
    try:
        call()
    except OSError as error:
        return -(error.errno or 0)
    return 0


def ring(spec: MapSpec, steps: Steps) -> None:
    model = make_model(spec)
    assert isinstance(model, ModelRing)
    with compiled_map(spec) as one:
        for number, (operation, size, flags) in enumerate(steps):
            data = bytes([number]) * size * (20 if operation == "skip" else 1)
            if operation == "take":
                assert one.consume() == model.consume()
            else:
                assert one._operation("output")(0, data, len(data), flags) == model.output(
                    data, flags)
            assert [one._operation("query")(0, what) for what in range(5)] == [
                model.query(what) for what in range(5)]
        assert one.consume() == model.consume()


def events(spec: MapSpec, steps: Steps) -> None:
    """A ring a worker, in order; and what it says where there is none."""
    state = RunState(bytes(64), 0, 0, 64, 0, 64)
    rings: list[list[bytes]] = [[], []]
    low = 0xFFFFFFFF
    with compiled_map(spec, WORKERS) as one:
        for number, (operation, size, where) in enumerate(steps):
            data = bytes([number]) * size
            if operation == "take":
                assert one.consume() == rings[0] + rings[1]
                rings = [[], []]
                continue
            worker = number & 1
            index = low if operation == "put" else where
            status = one._operation("perf_output")(worker, state.address, index, data, size)
            if index not in (low, worker):
                assert status == (-errno.E2BIG if index >= spec.max_entries
                                  else -errno.EOPNOTSUPP)
            else:
                assert status == 0
                rings[worker].append(data)
        assert one.consume() == rings[0] + rings[1]


def user_ring(spec: MapSpec, steps: Steps) -> None:
    """Produced here and in the model, drained by both as a program does."""
    model = ModelUserRing(spec)
    with compiled_map(spec) as one:
        for number, (operation, size, answer) in enumerate(steps):
            record = bytes([number + 1]) * size
            if operation != "take":
                room = spec.max_entries - (model.produced - model.consumed)
                wanted = 0 if (size + 15) // 8 * 8 <= room else -errno.ENOSPC
                assert code(lambda: one.produce(record)) == wanted  # noqa: B023
                if not wanted:
                    model.produce(record)
                continue
            assert drained(one, answer) == drained_by(model, answer)
        assert drained(one, 0) == drained_by(model, 0)


def drained(one: Map, answer: int) -> tuple[list[bytes], int]:
    """All samples, or as many as until the callback says `answer` for the second."""
    place = ctypes.create_string_buffer(DRAIN_BYTES)
    samples: list[bytes] = []
    assert one._operation("drain_begin")(0, place, 0) == 0
    while one._operation("drain")(0, place, answer if len(samples) > 1 else 0):
        data, size = (int.from_bytes(place.raw[at:at + 8], "little") for at in (0, 8))
        samples.append(ctypes.string_at(data, size & 0xFFFFFF))
    return samples, int.from_bytes(place.raw[RESULT:RESULT + 8], "little")


def drained_by(model: ModelUserRing, answer: int) -> tuple[list[bytes], int]:
    samples: list[bytes] = []
    while not (answer and len(samples) > 1) and (sample := model.peek_sample()) != OVER:
        assert isinstance(sample, bytearray)
        samples.append(bytes(sample))
        model.release(sample)
    return samples, len(samples)


def stacks(spec: MapSpec, steps: Steps) -> None:
    """Nothing is ever in it; deleting says whether there could be."""
    model = make_model(spec)
    with compiled_map(spec) as one:
        for operation, number, content, flags in steps:
            key = (number if flags else content).to_bytes(4, "little")
            if operation == "delete":
                assert apply(one, Step("delete", key)) == model.delete(key)
            elif operation == "update":
                assert apply(one, Step("update", key, bytes(spec.value_size), 0)) == -errno.EINVAL
            else:
                assert one.lookup(key) is None
        assert list(one) == []


def programs(spec: MapSpec, steps: Steps) -> None:
    """Slots of numbers; user space of a run writes them."""
    model: dict[int, int] = {}
    with compiled_map(spec) as one:
        for operation, number, content, flags in steps:
            key, beyond = number.to_bytes(4, "little"), number >= spec.max_entries
            if operation == "update":
                wanted = -errno.EINVAL if flags else -errno.E2BIG if beyond else 0
                step = Step("update", key, (content or 1).to_bytes(4, "little"), flags)
                assert apply(one, step) == wanted
                if not wanted:
                    model[number] = content or 1
            elif operation == "delete":
                wanted = -errno.E2BIG if beyond else 0 if number in model else -errno.ENOENT
                assert apply(one, Step("delete", key)) == wanted
                model.pop(number, None)
            else:
                assert one.lookup(key) == (
                    model[number].to_bytes(4, "little") if number in model else None)
        assert {int.from_bytes(key, "little"): int.from_bytes(value, "little")  # type: ignore
                for key, value in one.items()} == model


def outer(spec: MapSpec, steps: Steps) -> None:
    """Maps by key, as put and taken away."""
    model: dict[bytes, Map] = {}
    assert spec.inner is not None
    fixed = spec.type == MapType.ARRAY_OF_MAPS
    inner = [compiled_map(spec.inner) for _ in range(3)]
    try:
        with compiled_map(spec) as one:
            for operation, number, content, _ in steps:
                key, chosen = number.to_bytes(4, "little"), inner[content % 3]
                beyond = fixed and number >= spec.max_entries
                if operation == "update":
                    wanted = -errno.E2BIG if beyond or (
                        key not in model and len(model) == spec.max_entries) else 0
                    assert code(lambda: one.set_inner(key, chosen)) == wanted  # noqa: B023
                    if not wanted:
                        model[key] = chosen
                elif operation == "delete":
                    wanted = (-errno.E2BIG if beyond else
                              -errno.ENOENT if key not in model else 0)
                    assert apply(one, Step("delete", key)) == wanted
                    model.pop(key, None)
                else:
                    assert one.inner(key) is model.get(key)
            assert {key: one.inner(key) for key, _ in one.items()} == model
    finally:
        for each in inner:
            each.close()


def arena(spec: MapSpec, steps: Steps) -> None:
    """Which bytes a program finds, and where."""
    model = make_model(spec)
    assert isinstance(model, ModelArena)
    start = start_of(spec) & 0xFFFFFFFF
    with compiled_map(spec) as one:
        for number, (operation, size, page) in enumerate(steps):
            address = start + page * PAGE_BYTES - 8 + size
            if operation == "put" and page < spec.max_entries:
                with one.pages(page, 1) as memory:
                    memory[:4] = bytes([number]) * 4
                model.make(page, 1)
                model.write(start + page * PAGE_BYTES, bytes([number]) * 4)
            for width in (1, 2, 4, 8):
                found = one._operation("at")(0, address, width)
                wanted = model.read(address, width)
                assert (ctypes.string_at(found, width) if found else None) == wanted


INNER = MapSpec("i", MapType.ARRAY, 4, 8, 1)
PROPERTIES: dict[int, tuple[Callable[[MapSpec, Steps], None], Any]] = {
    **dict.fromkeys((MapType.HASH, MapType.LRU_HASH, MapType.LPM_TRIE, *ARRAYS, *PER_CPU,
                     *TARGETS), (keyed, KEYED)),
    MapType.QUEUE: (queue, KEYED), MapType.STACK: (queue, KEYED),
    MapType.BLOOM_FILTER: (bloom, KEYED), MapType.STACK_TRACE: (stacks, KEYED),
    MapType.PROG_ARRAY: (programs, KEYED), MapType.RINGBUF: (ring, SIZED),
    MapType.USER_RINGBUF: (user_ring, SIZED), MapType.PERF_EVENT_ARRAY: (events, SIZED),
    MapType.ARRAY_OF_MAPS: (outer, KEYED), MapType.HASH_OF_MAPS: (outer, KEYED),
    MapType.ARENA: (arena, SIZED),
}


def spec_of(kind: MapType) -> MapSpec:
    one = plain(kind)
    if kind in (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS):
        return MapSpec("m", kind, 4, 4, 4, inner=INNER)
    if kind in (MapType.HASH, *ARRAYS, *PER_CPU, MapType.LRU_HASH):
        return MapSpec("m", kind, 4, 12, 4)
    return one


@pytest.mark.parametrize("kind", FAMILIES, ids=lambda kind: MapType(kind).name)
@settings(deadline=None, max_examples=25, derandomize=True)
@given(data=st.data())
def test_as_the_model(kind: MapType, data: st.DataObject) -> None:
    check, steps = PROPERTIES[kind]
    check(spec_of(kind), data.draw(steps))


def test_every_family_has_one() -> None:
    assert set(PROPERTIES) == set(FAMILIES)
