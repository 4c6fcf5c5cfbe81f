"""PERCPU_HASH and LRU_PERCPU_HASH against their model, and against the kernel."""

from __future__ import annotations

import ctypes
import random

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.maps.traces import Step, apply, compiled_map, random_keys, trace
from xdp_runtime import bpf_syscall
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.map import Map
from xdp_runtime.maps.model import ModelPerCpuHash, make_model
from xdp_runtime.object import MapSpec, MapType

SHAPES = [(4, 8), (3, 5), (20, 24), (13, 40)]
KINDS = (MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH)
WORKERS = 3


def in_worker(one: Map, worker: int, step: Step) -> object:
    """As a program of this worker does it."""
    if step.operation == "lookup":
        address = one._operation("lookup")(worker, step.key)
        return ctypes.string_at(address, one.spec.value_size) if address else None
    if step.operation == "delete":
        return one._operation("delete")(worker, step.key)
    return one._operation("update")(worker, step.key, step.value, step.flags)


def in_model(model: ModelPerCpuHash, cpu: int, step: Step) -> object:
    if step.operation == "lookup":
        cell = model.lookup(step.key, cpu)
        return None if cell is None else bytes(cell)
    if step.operation == "delete":
        return model.delete(step.key)
    return model.update(step.key, step.value, step.flags % (1 << 64), cpu)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("key_size", "value_size"), SHAPES)
def test_same_as_model(kind: MapType, key_size: int, value_size: int) -> None:
    spec = MapSpec("p", kind, key_size, value_size, 30)
    keys = random_keys(spec, 30 if kind == MapType.LRU_PERCPU_HASH else 45)
    model, rng = make_model(spec), random.Random(7)
    assert isinstance(model, ModelPerCpuHash)
    with compiled_map(spec, WORKERS) as one:
        for number, step in enumerate(trace(spec, keys, 1, 6000)):
            if rng.random() < 0.2 and step.operation == "update":
                values = [rng.randbytes(value_size) for _ in range(WORKERS)]
                flags = step.flags if step.flags < 4 else 3
                found: object = apply(one, Step("update", step.key, values, flags))  # type: ignore
                expected: object = model.update_all(step.key, values, flags)
            else:
                cpu = rng.randrange(WORKERS)
                found, expected = in_worker(one, cpu, step), in_model(model, cpu, step)
            assert found == expected, (number, step)
        for cpu in range(WORKERS):
            ours = {key: value[cpu] for key, value in one.items()}
            assert ours == dict(model.items(cpu))
        assert len(one) == len(ours)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("key_size", "value_size"), SHAPES)
@pytest.mark.root
@needs_bpf()[1]
def test_same_as_kernel(kind: MapType, key_size: int, value_size: int) -> None:
    cpus = bpf_syscall.possible_cpus()
    spec = MapSpec("p", kind, key_size, value_size, 8192)
    rng = random.Random(5)
    with compiled_map(spec, cpus) as one, KernelMap(spec) as kernel:
        for number, step in enumerate(trace(spec, random_keys(spec, 20), 2, 1500)):
            value = [rng.randbytes(value_size) for _ in range(cpus)]
            found = apply(one, Step(step.operation, step.key, value, step.flags))  # type: ignore
            expected = apply(kernel, Step(step.operation, step.key, b"".join(value), step.flags))
            if isinstance(found, list):
                found = b"".join(found)
            assert found == expected, (number, step)
        ours = {k: b"".join(v) for k, v in one.items() if isinstance(v, list)}
        assert ours == dict(kernel.items())


def test_full_and_evicting() -> None:
    for kind in KINDS:
        with compiled_map(MapSpec("p", kind, 8, 8, 50), 2) as one:
            for n in range(120):
                key = n.to_bytes(8, "little")
                status = one._operation("update")(1, key, key, 0)
                if kind == MapType.PERCPU_HASH and n >= 50:
                    assert status == -7
                else:
                    assert status == 0 and one[key] == [bytes(8), key]
            assert len(one) == 50


def test_another_workers_value() -> None:
    for kind in KINDS:
        with compiled_map(MapSpec("p", kind, 4, 8, 8), 3) as one:
            one[b"abcd"] = [bytes([w]) * 8 for w in range(3)]
            for worker in range(3):
                for cpu in range(3):
                    at = one._operation("lookup_percpu")(worker, b"abcd", cpu)
                    assert ctypes.string_at(at, 8) == bytes([cpu]) * 8
            assert not one._operation("lookup_percpu")(0, b"abcd", 3)
            assert not one._operation("lookup_percpu")(0, b"none", 0)


@pytest.mark.parametrize("workers", [2, 5])
@pytest.mark.parametrize("spec", [
    MapSpec("m", MapType.PERCPU_ARRAY, 4, 3, 1), MapSpec("m", MapType.PERCPU_ARRAY, 4, 20, 37),
    MapSpec("m", MapType.PERCPU_HASH, 4, 3, 1), MapSpec("m", MapType.PERCPU_HASH, 4, 20, 3000),
    MapSpec("m", MapType.LRU_PERCPU_HASH, 4, 8, 50)],
    ids=lambda spec: f"{MapType(spec.type).name}-{spec.value_size}-{spec.max_entries}")
def test_no_two_workers_write_to_one_cache_line(spec: MapSpec, workers: int) -> None:
    with compiled_map(spec, workers) as one:
        lines: list[set[int]] = [set() for _ in range(workers)]
        for n in range(spec.max_entries):
            key = n.to_bytes(4, "little")
            one[key] = [bytes(spec.value_size)] * workers
            for worker in range(workers):
                start = one._operation("lookup")(worker, key)
                lines[worker].update(range(start // 64, (start + spec.value_size - 1) // 64 + 1))
        together = set().union(*lines)
        assert all(lines) and len(together) == sum(len(own) for own in lines)
        if one.has_pools:  # nor do workers' batches
            own = {one.line(worker)[0] // 64 for worker in range(workers)}
            assert len(own) == workers and not own & together
