from __future__ import annotations

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.maps.traces import Model, Step, apply, compare, compiled_map, trace
from xdp_runtime.errors import LoadError
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps import family_of
from xdp_runtime.maps.map import Map
from xdp_runtime.object import MapSpec, MapType

# indices inside, at the end and outside
KEYS = [i.to_bytes(4, "little") for i in (0, 1, 2, 8, 9, 10, 11, 255, 1 << 31, (1 << 32) - 1)]
SIZES = [1, 4, 7, 8, 24, 100]


@pytest.mark.parametrize("value_size", SIZES)
def test_same_as_model(value_size: int) -> None:
    spec = MapSpec("a", MapType.ARRAY, 4, value_size, 10)
    # without BPF_F_LOCK, which the model treats as for a program, the kernel as for its system call
    flags = (0, 0, 1, 2, 3, 1 << 40)
    compare(spec, Model(spec), trace(spec, KEYS, value_size, 2000, flags=flags))


@pytest.mark.parametrize("value_size", SIZES)
@pytest.mark.root
@needs_bpf()[1]
def test_same_as_kernel(value_size: int) -> None:
    spec = MapSpec("a", MapType.ARRAY, 4, value_size, 10)
    with KernelMap(spec) as kernel:
        compare(spec, kernel, trace(spec, KEYS, value_size, 2000))


def test_iteration_starts_again_for_a_key_outside() -> None:
    with compiled_map(MapSpec("a", MapType.ARRAY, 4, 8, 3)) as one:
        assert list(one) == [bytes([i, 0, 0, 0]) for i in range(3)]
        assert one.next_key(b"\x02\0\0\0") is None
        assert one.next_key(b"\xff\0\0\0") == one.next_key(None) == bytes(4)
        assert len(one) == 3


def test_per_cpu_values_are_apart() -> None:
    spec = MapSpec("p", MapType.PERCPU_ARRAY, 4, 12, 5)
    with compiled_map(spec, workers=3) as one:
        key = b"\x04\0\0\0"
        assert one.lookup(key) == [bytes(12)] * 3
        one.update(key, [bytes([i]) * 12 for i in range(3)])
        assert one[key] == [bytes([i]) * 12 for i in range(3)]
        assert one.lookup(b"\x05\0\0\0") is None
        with pytest.raises(ValueError, match="3 values, got 1"):
            one.update(key, bytes(12))


def test_globals_are_one_value() -> None:
    spec = MapSpec(".data", MapType.ARRAY, 4, 6, 1, initial=b"abcdef")
    with compiled_map(spec) as one:
        assert one[bytes(4)] == b"abcdef"
        one.data[1:3] = b"XY"
        assert one[bytes(4)] == b"aXYdef"
        assert apply(one, Step("delete", bytes(4))) == -22


@pytest.mark.parametrize("kind", [MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.PROG_ARRAY])
@pytest.mark.parametrize(("key_size", "value_size", "entries", "why"), [
    (8, 4, 1, "key size"), (4, 0, 1, "value size"), (4, 4, 0, "max_entries")])
def test_refused(kind: int, key_size: int, value_size: int, entries: int, why: str) -> None:
    with pytest.raises(LoadError, match=why):
        Map.create(MapSpec("m", kind, key_size, value_size, entries), 1)


def test_unsupported_type_is_named() -> None:
    with pytest.raises(LoadError, match=r"map m: map type 32 \(CGRP_STORAGE\) is not supported"):
        family_of(MapSpec("m", MapType.CGRP_STORAGE, 4, 4, 1))
    with pytest.raises(LoadError, match=r"map type 99 \(unknown\)"):
        family_of(MapSpec("m", 99, 4, 4, 1))
