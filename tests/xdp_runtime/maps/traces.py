"""Random traces of map operations, run on several implementations and compared step by step."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from xdp_runtime.compiler.map_ops import compile_operations
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.map import Map
from xdp_runtime.maps.model import make_model
from xdp_runtime.object import MapSpec

FLAGS = (0, 0, 0, 0, 1, 2, 3, 4, 5, 1 << 40, (1 << 64) - 1)


@dataclass(frozen=True)
class Step:
    operation: str  # update, delete or lookup
    key: bytes
    value: bytes = b""
    flags: int = 0


def trace(spec: MapSpec, keys: Sequence[bytes], seed: int, steps: int,
          deletes: float = 0.3, flags: Sequence[int] = FLAGS) -> Iterator[Step]:
    """Random steps over `keys`, the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(steps):
        key, kind = rng.choice(keys), rng.random()
        if kind < deletes:
            yield Step("delete", key)
        elif kind < 0.85:
            value = rng.randbytes(spec.value_size)
            yield Step("update", key, value, rng.choice(flags))
        else:
            yield Step("lookup", key)


def random_keys(spec: MapSpec, count: int, seed: int = 0) -> list[bytes]:
    rng = random.Random(seed)
    keys: set[bytes] = set()
    while len(keys) < min(count, 256 ** spec.key_size):
        keys.add(rng.randbytes(spec.key_size))
    return sorted(keys)


def compiled_map(spec: MapSpec, workers: int = 1) -> Map:
    one = Map.create(spec, workers)
    compile_operations(one)
    return one


def apply(one: Any, step: Step) -> Any:
    """The result of a step: a value, None, or 0 or -errno."""
    try:
        match step.operation:
            case "lookup":
                return one.lookup(step.key)
            case "delete":
                result = one.delete(step.key)
            case _:
                result = one.update(step.key, step.value, step.flags)
    except OSError as error:
        return -(error.errno or 0)
    return result or 0


class Model:
    """The reference map, shaped like Map."""

    def __init__(self, spec: MapSpec) -> None:
        self.map = make_model(spec)

    def lookup(self, key: bytes) -> bytes | None:
        value = self.map.peek(key)
        return None if value is None else bytes(value)

    def update(self, key: bytes, value: bytes, flags: int) -> int:
        return self.map.update(key, value, flags)

    def delete(self, key: bytes) -> int:
        return self.map.delete(key)

    def items(self) -> dict[bytes, bytes]:
        return dict(self.map.items())


def compare(spec: MapSpec, other: Model | KernelMap, steps: Iterator[Step]) -> None:
    """Every step gives the same, and so do the contents at the end."""
    with compiled_map(spec) as ours:
        for number, step in enumerate(steps):
            expected, found = apply(other, step), apply(ours, step)
            assert found == expected, f"step {number}: {step}"
        items = list(ours.items())
        assert dict(items) == dict(other.items())
        assert len(items) == len(dict(items)) == len(ours)
