"""Values by their BTF types, one by one and as columns: the two views and the bytes agree."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from tests.control.run_xdpu import OBJECTS
from tests.xdp_runtime.maps.traces import compiled_map
from xdp_runtime.btf import Struct
from xdp_runtime.elf import read_object
from xdp_runtime.maps.dtype import dtype_of
from xdp_runtime.maps.map import Map
from xdp_runtime.maps.typed import BtfCodec, TypedMap
from xdp_runtime.object import MapSpec, MapType
from xdp_runtime.program import load

WORKERS = 2
KEYED = ("a_array", "a_hash", "a_lru", "p_array", "p_hash", "p_lru", "trie")
OBJECT = read_object(OBJECTS / "dumped.o")
SPECS = {spec.name: spec for spec in OBJECT.maps}


@contextmanager
def maps() -> Iterator[dict[str, Map]]:
    """`program.raw_maps`, as who loads the object has them."""
    with load(OBJECT, workers=WORKERS) as program:
        yield program.raw_maps


def fill(one: Map, rng: random.Random) -> None:
    spec = one.spec
    for number in range(min(spec.max_entries, 5)):
        key = rng.randbytes(spec.key_size)
        if spec.type in (MapType.ARRAY, MapType.PERCPU_ARRAY):
            key = number.to_bytes(4, "little")
        elif spec.type == MapType.LPM_TRIE:
            key = (32).to_bytes(4, "little") + rng.randbytes(4)
        values = [rng.randbytes(spec.value_size) for _ in range(WORKERS)]
        one[key] = values if one.family.per_cpu else values[0]


def same(value: Any, column: Any) -> None:
    """What typed.py says of a value, and an element of the array."""
    if isinstance(value, dict):
        fields = dict(value)
        for name in column.dtype.names:
            if ":" not in name:
                same(fields.pop(name), column[name])
                continue
            shift, number = 0, int(column[name])
            for part in name.split(","):
                field, bits = part.split(":")
                mask = (1 << int(bits)) - 1
                assert fields.pop(field) & mask == number >> shift & mask, name
                shift += int(bits)
        assert not fields
    elif isinstance(value, list):
        assert len(value) == len(column)
        for each, there in zip(value, column, strict=True):
            same(each, there)
    elif isinstance(value, bytes):
        assert value == column.tobytes()
    elif isinstance(column, np.void):  # 128 bits
        assert value == int.from_bytes(column.tobytes(), "little")
    elif isinstance(value, bool):
        assert value == (column != 0)
    else:
        assert value == column


def dict_of(typed: TypedMap) -> dict[str, Any]:
    return {repr(key): value for key, value in typed.items()}


@pytest.mark.parametrize("name", KEYED)
def test_one_by_one_and_as_columns(name: str) -> None:
    with maps() as all_maps:
        one = all_maps[name]
        fill(one, random.Random(name))
        typed = one.typed
        keys, values = one.to_numpy()
        assert len(keys) == len(values) == len(typed)
        assert values.shape == ((len(keys), WORKERS) if one.family.per_cpu else (len(keys),))
        for key, value in zip(keys, values, strict=True):
            key_there = one.codec.decode_key(key.tobytes()) if one.codec else None
            there = typed[key_there]
            same(key_there, key)
            same(there, value)
            assert typed.get(key_there) == dict_of(typed)[repr(key_there)] == there
            assert key_there in typed
        assert list(typed.values()) == [value for _, value in typed.items()]


@pytest.mark.parametrize("name", KEYED)
def test_what_was_read_can_be_written(name: str) -> None:
    """Into another map of the kind; columns to the last byte, values but for the gaps."""
    with maps() as first, maps() as second:
        one, other = first[name], second[name]
        fill(one, random.Random(name))
        assert other.from_numpy(*one.to_numpy()) == len(one)
        assert dict(other.items()) == dict(one.items())
        fixed = one.spec.type in (MapType.ARRAY, MapType.PERCPU_ARRAY)
        for key in () if fixed else list(other):
            del other[key]
        for key, value in one.typed.items():
            other.typed[key] = value
            assert other.typed[key] == value
        if not fixed:
            key = next(iter(one.typed))
            del other.typed[key]
            assert key not in other.typed and other.typed.get(key, 5) == 5
            with pytest.raises(KeyError):
                del other.typed[key]


def test_members() -> None:
    """Nested, of unions, bit fields, enumerations, text: by name; what is left out is zero."""
    with maps() as all_maps:
        typed = all_maps["a_hash"].typed
        typed[{"port": 80, "proto": 6}] = {
            "s8": -1, "yes": True, "colour": 5, "text": b"hello", "low": 5, "high": 0x1234,
            "negative": -3, "inner": [{"port": 1}, {"port": 2, "name": b"two"}], "bytes": b"\1\2",
            "b": 7, "named": {"one": {"port": 9}}, "grid": [[1, 2, 3], [4, 5]], "huge": 1 << 100}
        found = typed[{"port": 80, "proto": 6, "zone": 0}]
        assert (found["s8"], found["yes"], found["colour"], found["text"]) == (
            -1, True, 5, b"hello\0\0\0")
        assert (found["low"], found["high"], found["negative"]) == (5, 0x1234, -3)
        assert found["inner"][1] == {"port": 2, "name": b"two\0\0\0"} and found["word"] == 0x201
        assert (found["a"], found["b"], found["huge"]) == (0, 7, 1 << 100)
        assert found["named"]["wide"] == 9 and found["grid"] == [[1, 2, 3], [4, 5, 0]]
        _, column = all_maps["a_hash"].to_numpy()
        assert column["inner"]["port"].tolist() == [[1, 2]] and column["grid"].sum() == 15
        assert column["named"]["wide"].tolist() == [9] and column["word"].tolist() == [0x201]
        assert column["low:3,high:13"].tolist() == [0x1234 << 3 | 5]
        for wrong in ({"low": 8}, {"negative": 16}, {"text": b"much too long"}, {"nothing": 1}):
            with pytest.raises(ValueError, match="value"):
                typed[{"port": 1}] = wrong


def test_maps_of_a_program_have_types() -> None:
    with load(OBJECT, workers=WORKERS) as program:
        flows = program.maps["a_hash"]
        flows[{"port": 80}] = {"s8": -5}
        keys, values = flows.to_numpy()
        assert keys["port"].tolist() == [80] and values["s8"].tolist() == [-5]
        assert flows.from_numpy(keys, values) == 1 and len(flows) == 1
        assert flows.raw is program.raw_maps["a_hash"]
        assert repr(flows) == repr(flows.raw) and set(program.maps) == set(program.raw_maps)


def test_data_sections() -> None:
    """Global variables by name."""
    with maps() as all_maps:
        typed = all_maps[".data"].typed
        value = typed[bytes(4)] if SPECS[".data"].key_type_id == 0 else typed[0]
        _, columns = all_maps[".data"].to_numpy()
        same(value, columns[0])
        assert set(columns.dtype.names) == {"counted", "label", "hidden"}


def test_types_nested_without_end_are_bytes() -> None:
    """A chain of structs with twice the next in each: 2^40 fields."""
    from tests.xdp_runtime.verifier.btf_text import BtfBuilder
    from xdp_runtime.btf import Btf
    types = BtfBuilder()
    last = types.struct("struct s0 { u8 a; }")
    for number in range(1, 24):
        last = types.struct(f"struct s{number} {{ struct s{number - 1} a; "
                            f"struct s{number - 1} b; }}")
    made = Btf.parse(types.encode())
    assert dtype_of(made, last) == np.dtype(f"V{1 << 23}")


def test_it_is_a_mapping() -> None:
    """With views, and errors that name the key as it was given."""
    with maps() as all_maps:
        typed = all_maps["a_lru"].typed
        assert isinstance(typed, Mapping) and typed and typed != all_maps["p_lru"].typed
        typed[7] = "GREEN"
        typed[np.uint8(8)] = 1
        assert len(typed.keys()) == len(typed.items()) == 2 and set(typed.keys()) == {7, 8}
        assert (7, 5) in typed.items() and 5 in typed.values()
        assert dict(typed) == {7: 5, 8: 1}
        with pytest.raises(ValueError, match="'PINK' is none of RED, GREEN, NONE"):
            typed[7] = "PINK"
        for refused in (lambda: typed[9], lambda: typed.__delitem__(9)):
            with pytest.raises(KeyError) as told:
                refused()
            assert told.value.args == (9,)
        with pytest.raises(TypeError, match="a list of 2 values, one a worker, not 3"):
            all_maps["p_lru"].typed[1] = 3


def test_keyless_values_have_types() -> None:
    with maps() as all_maps:
        queue = all_maps["queue"].typed
        assert queue.peek() is None and queue.pop() is None
        queue.push({"port": 5, "name": b"five"})
        assert queue.peek() == queue.pop() == {"port": 5, "name": b"five\0\0"}


def test_numbers_of_another_type() -> None:
    """Are the same numbers, or refused: never the same bytes read as others."""
    with maps() as all_maps:
        one = all_maps["p_lru"]
        assert one.typed.from_numpy([1, 2], [[3.0, 4.0], [5.0, 6.0]]) == 2
        assert {key: one.typed[key] for key in (1, 2)} == {1: [3, 4], 2: [5, 6]}
        for keys, value in (([1], 0.5), ([1], -1), ([1], np.nan), ([1 << 32], 1), ([-1], 1),
                            ([1], 2.0**64)):
            with pytest.raises(ValueError, match="does not fit"):
                one.typed.from_numpy(keys, np.full((1, WORKERS), value))
        with pytest.raises(ValueError, match="does not fit"):
            one.delete_batch([1, 1 << 32])
        assert one.delete_batch([1, 2]) == 2


def test_columns_of_arrays_of_arrays() -> None:
    """As many axes as the type has."""
    spec = MapSpec("m", MapType.ARRAY, 4, 24, 3)
    with compiled_map(spec) as one:
        one.codec = BtfCodec(OBJECT.btf, 0, _grid()) if OBJECT.btf else None
        assert one.from_numpy(np.arange(3), np.arange(18).reshape(3, 2, 3)) == 3
        _, values = one.to_numpy()
        assert values.shape == (3, 2, 3) and values[2].tolist() == one.typed[
            (2).to_bytes(4, "little")] == [[12, 13, 14], [15, 16, 17]]


def _grid() -> int:
    """The type u32[2][3] of the object."""
    assert OBJECT.btf is not None
    value = OBJECT.btf.type(OBJECT.btf.resolve(SPECS["a_hash"].value_type_id))
    assert isinstance(value, Struct)
    return next(member.type for member in value.members if member.name == "grid")


def test_what_has_no_type_takes_numbers_as_wide_as_it_is() -> None:
    with load(OBJECT) as program:
        plain, data = program.maps["n_hash"], program.maps[".data"]
        plain[7] = 2**40
        assert plain[7] == plain.raw[b"\x07\0\0\0"] == (2**40).to_bytes(8, "little")
        plain[7] = b"\1" * 8
        assert 7 in plain
        with pytest.raises(ValueError, match="does not fit in 8 bytes"):
            plain[7] = 2**64
        assert data[0] == data[bytes(4)]
