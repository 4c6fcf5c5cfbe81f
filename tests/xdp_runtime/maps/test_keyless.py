"""QUEUE, STACK and BLOOM_FILTER against their models, and against the kernel."""

from __future__ import annotations

import errno
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.privileges import needs_bpf
from tests.xdp_runtime.maps.traces import compiled_map
from xdp_runtime.errors import LoadError
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.map import Map
from xdp_runtime.maps.model import ModelQueue, make_model
from xdp_runtime.object import MapFlag, MapSpec, MapType

KINDS = (MapType.QUEUE, MapType.STACK)
FLAGS = (0, 0, 0, 1, 2, 2, 3, 4)


def pushed(one: Map | KernelMap, value: bytes, flags: int) -> int:
    try:
        if isinstance(one, Map):
            one.push(value, flags)
        else:
            one.update(b"", value, flags)
    except OSError as error:
        return -(error.errno or 0)
    return 0


def run(spec: MapSpec, steps: list[tuple[str, int, int]], kernel: KernelMap | None = None) -> None:
    model = make_model(spec)
    assert isinstance(model, ModelQueue)
    with compiled_map(spec) as one:
        for kind, number, flags in steps:
            value = number.to_bytes(2, "little")[:spec.value_size].ljust(spec.value_size, b"\7")
            if kind == "push":
                expected: object = model.push(value, flags)
                assert pushed(one, value, flags) == expected
                if kernel:
                    assert pushed(kernel, value, flags) == expected
            else:
                expected = model.take(kind == "pop")
                assert (one.pop() if kind == "pop" else one.peek()) == expected
                if kernel:
                    assert (kernel.lookup_and_delete() if kind == "pop"
                            else kernel.lookup(b"")) == expected
            assert len(one) == len(model.values)


def random_steps(seed: int, count: int) -> list[tuple[str, int, int]]:
    rng = random.Random(seed)
    return [(rng.choice(("push", "push", "pop", "peek")), rng.randrange(65536), rng.choice(FLAGS))
            for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "entries"), [(1, 1), (4, 2), (8, 7), (37, 64)])
def test_same_as_model(kind: MapType, size: int, entries: int) -> None:
    run(MapSpec("q", kind, 0, size, entries), random_steps(1, 2000))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "entries"), [(4, 1), (8, 7), (37, 64)])
@pytest.mark.root
@needs_bpf()[1]
def test_same_as_kernel(kind: MapType, size: int, entries: int) -> None:
    spec = MapSpec("q", kind, 0, size, entries)
    with KernelMap(spec) as kernel:
        run(spec, random_steps(2, 1500), kernel)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.sampled_from(KINDS), st.lists(st.tuples(
    st.sampled_from(("push", "pop", "peek")), st.integers(0, 255), st.integers(0, 3))))
def test_any_trace_is_the_models(kind: MapType, steps: list[tuple[str, int, int]]) -> None:
    run(MapSpec("q", kind, 0, 1, 3), steps)


@pytest.mark.parametrize(("size", "entries", "hashes"), [(1, 10, 0), (4, 1000, 3), (20, 500, 15)])
def test_bloom(size: int, entries: int, hashes: int) -> None:
    spec = MapSpec("b", MapType.BLOOM_FILTER, 0, size, entries, map_extra=hashes)
    rng = random.Random(3)
    inside = {rng.randbytes(size) for _ in range(entries)}
    with compiled_map(spec) as one:
        assert not any(one.may_contain(value) for value in inside)
        for value in inside:
            one.push(value)
        assert all(one.may_contain(value) for value in inside)
        if size > 1:
            others = {rng.randbytes(size) for _ in range(4000)} - inside
            assert sum(one.may_contain(value) for value in others) < 0.15 * len(others)
        with pytest.raises(OSError, match="b") as caught:
            one.push(next(iter(inside)), 2)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(OSError, match="BLOOM_FILTER have no pop"):
            one.pop()


@pytest.mark.parametrize("spec", [
    MapSpec("q", MapType.QUEUE, 4, 4, 1), MapSpec("q", MapType.QUEUE, 0, 0, 1),
    MapSpec("q", MapType.STACK, 0, 4, 0), MapSpec("q", MapType.STACK, 0, 4, 1, flags=1),
    MapSpec("b", MapType.BLOOM_FILTER, 4, 4, 1), MapSpec("b", MapType.BLOOM_FILTER, 0, 0, 1),
    MapSpec("b", MapType.BLOOM_FILTER, 0, 4, 1, map_extra=16),
    MapSpec("b", MapType.BLOOM_FILTER, 0, 4, 1, flags=MapFlag.NO_PREALLOC),
], ids=lambda s: f"{s.type}-{s.key_size}-{s.value_size}-{s.max_entries}-{s.flags}-{s.map_extra}")
@pytest.mark.root
@needs_bpf()[1]
def test_refused_as_by_the_kernel(spec: MapSpec) -> None:
    with pytest.raises(LoadError):
        KernelMap(spec)
    with pytest.raises(LoadError):
        Map.create(spec, 1)
