"""LPM_TRIE against its model, and against the kernel; the order of keys as well."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.privileges import needs_bpf
from tests.xdp_runtime.maps.loops import compile_loops
from tests.xdp_runtime.maps.traces import FLAGS, Model, Step, apply, compiled_map
from xdp_runtime.errors import LoadError
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.map import Map
from xdp_runtime.object import MapFlag, MapSpec, MapType
from xdp_runtime.template import Template

NO_PREALLOC = MapFlag.NO_PREALLOC


def a_spec(data: int, value: int = 8, entries: int = 200) -> MapSpec:
    return MapSpec("t", MapType.LPM_TRIE, 4 + data, value, entries, flags=NO_PREALLOC)


def prefixes(spec: MapSpec, count: int, seed: int, too_long: bool = True) -> list[bytes]:
    """Keys that share much: most are others with a bit changed or another length."""
    rng, size = random.Random(seed), spec.key_size - 4
    keys = [struct.pack("<I", rng.randrange(8 * size + 1)) + rng.randbytes(size)]
    while len(keys) < count:
        if rng.random() < 0.15:
            data = rng.randbytes(size)
        else:
            data = rng.choice(keys)[4:]
            flipped = int.from_bytes(data, "big") ^ 1 << rng.randrange(8 * size)
            if rng.random() < 0.7:
                data = flipped.to_bytes(size, "big")
        keys.append(struct.pack("<I", rng.randrange(8 * size + 1 + too_long)) + data)
    return keys


def steps(spec: MapSpec, keys: list[bytes], seed: int, count: int) -> list[Step]:
    rng, out = random.Random(seed), []
    for _ in range(count):
        key = rng.choice(keys)
        match rng.randrange(10):
            case 0 | 1 | 2:
                out.append(Step("delete", key))
            case 3 | 4 | 5 | 6:
                out.append(Step("update", key, rng.randbytes(spec.value_size), rng.choice(FLAGS)))
            case _:
                full = struct.pack("<I", 8 * (spec.key_size - 4)) + key[4:]
                out.append(Step("lookup", rng.choice((key, full))))
    return out


def compare(spec: MapSpec, other: Model | KernelMap, trace: list[Step]) -> None:
    with compiled_map(spec) as ours:
        for number, step in enumerate(trace):
            assert apply(ours, step) == apply(other, step), f"step {number}: {step}"
            if number % 199 == 0:
                check_order(ours, other)
        check_order(ours, other)


def check_order(ours: Map, other: Model | KernelMap) -> None:
    items = list(ours.items())
    expected = dict(other.items())
    assert [key for key, _ in items] == list(expected), "another order"
    assert len(items) == len(ours)


SHAPES = [(1, 4), (2, 8), (3, 1), (4, 8), (8, 16), (11, 3), (16, 8), (40, 8), (256, 24)]


@pytest.mark.parametrize(("data", "value"), SHAPES)
@pytest.mark.parametrize("entries", [30, 1000, 5000])
def test_same_as_model(data: int, value: int, entries: int) -> None:
    spec = a_spec(data, value, entries)
    compare(spec, Model(spec), steps(spec, prefixes(spec, 60, 1), 2, 3000))
    compare(spec, Model(spec), steps(spec, prefixes(spec, 300, 3), 4, 3000))


@pytest.mark.parametrize(("data", "value"), SHAPES)
@pytest.mark.root
@needs_bpf()[1]
def test_same_as_kernel(data: int, value: int) -> None:
    spec = a_spec(data, value, 40)
    with KernelMap(spec) as kernel:
        compare(spec, kernel, steps(spec, prefixes(spec, 100, 5), 6, 2500))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from("uuudl"), st.integers(0, 17), st.integers(0, 65535),
                          st.integers(0, 3)), max_size=100))
def test_any_trace_is_the_models(trace: list[tuple[str, int, int, int]]) -> None:
    spec = a_spec(2, 1, 12)
    names = {"u": "update", "d": "delete", "l": "lookup"}
    compare(spec, Model(spec), [
        Step(names[kind], struct.pack("<I", length) + data.to_bytes(2, "big"), b"v", flags)
        for kind, length, data, flags in trace])


def test_nodes_come_back() -> None:
    """Filling and emptying again and again needs no more room than once."""
    spec = a_spec(16, 8, 100)
    rng = random.Random(0)
    with compiled_map(spec) as one:
        for _ in range(40):
            keys = list({key[4:]: key for key in prefixes(spec, 100, rng.randrange(1 << 30), False)
                         }.values())
            for key in keys:
                one[key] = bytes(8)
            for key in rng.sample(list(one), len(one)):
                del one[key]
            assert len(one) == 0 and one.next_key() is None
        root = one.memory("root")
        assert not any(root)
        root.release()


def test_kernels_example_of_the_order() -> None:
    spec = a_spec(4)
    keys = [struct.pack("<I4B", length, *octets) for length, octets in (
        (24, (192, 168, 0, 0)), (24, (192, 168, 1, 0)), (24, (192, 168, 128, 0)),
        (16, (192, 168, 0, 0)))]
    with compiled_map(spec) as one:
        for key in reversed(keys):
            one[key] = bytes(8)
        assert list(one) == keys


@pytest.mark.parametrize("spec", [
    MapSpec("t", MapType.LPM_TRIE, 8, 4, 1), MapSpec("t", MapType.LPM_TRIE, 4, 4, 1, NO_PREALLOC),
    MapSpec("t", MapType.LPM_TRIE, 261, 4, 1, NO_PREALLOC),
    MapSpec("t", MapType.LPM_TRIE, 8, 0, 1, NO_PREALLOC),
    MapSpec("t", MapType.LPM_TRIE, 8, 4, 0, NO_PREALLOC),
    MapSpec("t", MapType.LPM_TRIE, 8, 4, 1, NO_PREALLOC | MapFlag.ZERO_SEED),
], ids=lambda spec: f"{spec.key_size}-{spec.value_size}-{spec.max_entries}-{spec.flags:#x}")
@pytest.mark.root
@needs_bpf()[1]
def test_refused_as_by_the_kernel(spec: MapSpec) -> None:
    with pytest.raises(LoadError):
        KernelMap(spec)
    with pytest.raises(LoadError):
        Map.create(spec, 1)


def _reader(m: Any) -> Callable[..., Any]:
    lookup = m.symbol("map.0.lookup", "ptr(i64, ptr)")

    def lpm_reader(keys, count, rounds):  # type: ignore
        """How often a stable key's value was not its number."""
        wrong = 0
        for _turn in range(rounds):
            for i in range(count):
                value = lookup(0, m.gep(keys, i * 8))
                if m.is_null(value) or m.load_u64(value, 0) != i:
                    wrong += 1
        return wrong

    return lpm_reader


def _writer(m: Any) -> Callable[..., Any]:
    update = m.symbol("map.0.update", "i64(i64, ptr, ptr, i64)")
    delete = m.symbol("map.0.delete", "i64(i64, ptr)")

    def lpm_writer(keys, count, rounds):  # type: ignore
        value = m.gep(m.alloca(8), 0)
        m.store_u64(value, 0, 0xBAD)
        for turn in range(rounds):
            for i in range(count):
                if (i ^ turn) & 1 != 0:
                    update(0, m.gep(keys, i * 8), value, 0)
                else:
                    delete(0, m.gep(keys, i * 8))
        return 0

    return lpm_writer


READER = Template("lpm_reader", _reader, "i64(ptr, i64, i64)")
WRITER = Template("lpm_writer", _writer, "i64(ptr, i64, i64)")


@pytest.mark.parametrize("entries", [200, 5000])
def test_stable_prefixes_are_found_while_others_come_and_go(entries: int) -> None:
    spec, rng = a_spec(4, 8, entries), random.Random(3)
    stable = [struct.pack("<I", 32) + rng.randbytes(1) + bytes([rng.randrange(4)])
              + rng.randbytes(2) for _ in range(40)]
    stable = list(dict.fromkeys(stable))
    churn = list({(length, key[4:]): struct.pack("<I", length) + key[4:]
                  for key in stable for length in rng.sample(range(4, 32), 3)}.values())
    with Map.create(spec, 1) as one:
        loops = compile_loops(one, READER, WRITER)
        for number, key in enumerate(stable):
            one[key] = number.to_bytes(8, "little")
        writer = threading.Thread(target=loops["lpm_writer"],
                                  args=(b"".join(churn), len(churn), 4000))
        writer.start()
        wrong = rounds = 0
        while writer.is_alive():
            wrong += loops["lpm_reader"](b"".join(stable), len(stable), 1000)
            rounds += 1
        writer.join()
        assert wrong == 0 and rounds > 0
        assert all(one[key] == number.to_bytes(8, "little") for number, key in enumerate(stable))
