"""The reference maps: by hand, and against the kernel's with the same operations."""

from __future__ import annotations

import random
import struct
from itertools import product

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.oracle import agree
from xdp_runtime.errors import LoadError
from xdp_runtime.isa import Alu, AluOp, Call, Exit, Imm, Insn, LoadImm64, LoadMap, Mov, Reg, Store
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.family import E2BIG, EEXIST, EINVAL, ENOENT
from xdp_runtime.maps.model import ModelProgArray, make_model
from xdp_runtime.object import MapSpec, MapType

ENTRIES = 4
KINDS = (MapType.ARRAY, MapType.PERCPU_ARRAY, MapType.HASH, MapType.LRU_HASH)
ANY, NOEXIST, EXIST = 0, 1, 2


def a_spec(kind: MapType, entries: int = ENTRIES, value_size: int = 8, **more: object) -> MapSpec:
    return MapSpec("m", kind, 4, value_size, entries, **more)  # type: ignore[arg-type]


def key(n: int) -> bytes:
    return struct.pack("=I", n)


def value(n: int) -> bytes:
    return struct.pack("=Q", n)


def _read(cell: bytearray | None) -> bytes | None:
    return None if cell is None else bytes(cell)


# --- by hand -------------------------------------------------------------------------------------
def test_array() -> None:
    array = make_model(a_spec(MapType.ARRAY, initial=b"\1\2"))
    first = array.lookup(key(0))
    assert first == bytearray(b"\1\2" + bytes(6))
    assert array.update(key(0), value(7)) == 0
    assert first == value(7) and array.lookup(key(0)) is first
    assert array.lookup(key(ENTRIES)) is None
    assert array.update(key(ENTRIES), value(0)) == -E2BIG
    assert array.update(key(0), value(0), NOEXIST) == -EEXIST
    assert array.update(key(ENTRIES), value(0), 3) == -EINVAL
    assert array.delete(key(0)) == -EINVAL
    assert [k for k, _ in array.items()] == [key(n) for n in range(ENTRIES)]


def test_percpu_array_has_a_value_a_cpu() -> None:
    array = make_model(a_spec(MapType.PERCPU_ARRAY))
    array.update(key(1), value(5), cpu=3)
    assert _read(array.lookup(key(1), 3)) == value(5)
    assert _read(array.lookup(key(1), 0)) == value(0)
    assert dict(array.items(cpu=3))[key(1)] == value(5)


def test_hash() -> None:
    table = make_model(a_spec(MapType.HASH))
    assert table.lookup(key(1)) is None
    assert table.update(key(1), value(1), EXIST) == -ENOENT
    assert table.update(key(1), value(1), NOEXIST) == 0
    assert table.update(key(1), value(2), NOEXIST) == -EEXIST
    for n in range(2, 5):
        assert table.update(key(n), value(n)) == 0
    assert table.update(key(9), value(9)) == -E2BIG
    assert table.update(key(1), value(3)) == 0
    assert table.delete(key(9)) == -ENOENT
    assert table.delete(key(2)) == 0
    assert table.update(key(9), value(9)) == 0
    assert dict(table.items()) == {key(n): value(m) for n, m in ((1, 3), (3, 3), (4, 4), (9, 9))}


@pytest.mark.parametrize("kind", [MapType.HASH, MapType.LRU_HASH])
def test_an_old_value_stays_readable(kind: MapType) -> None:
    table = make_model(a_spec(kind))
    table.update(key(1), value(1))
    old = table.lookup(key(1))
    table.update(key(1), value(2))
    newer = table.lookup(key(1))
    table.delete(key(1))
    assert (_read(old), _read(newer)) == (value(1), value(2))
    assert table.lookup(key(1)) is None


def test_lru_evicts_the_least_recently_used() -> None:
    table = make_model(a_spec(MapType.LRU_HASH))
    for n in range(4):
        table.update(key(n), value(n))
    table.lookup(key(0))
    table.peek(key(1))  # no use
    assert table.update(key(9), value(9)) == 0
    assert [k for k, _ in table.items()] == [key(n) for n in (2, 3, 0, 9)]
    assert table.update(key(9), value(8), NOEXIST) == -EEXIST
    assert len(list(table.items())) == ENTRIES


def test_prog_array() -> None:
    programs = make_model(MapSpec("p", MapType.PROG_ARRAY, 4, 4, 2, slots=((1, "first"),)))
    assert isinstance(programs, ModelProgArray)
    assert (programs.program(0), programs.program(1)) == (None, "first")
    assert programs.assign(0, "second") == 0 and programs.program(0) == "second"
    assert programs.assign(2, "third") == -E2BIG
    assert programs.lookup(key(1)) is None
    assert (programs.delete(key(1)), programs.delete(key(1))) == (0, -ENOENT)
    assert programs.delete(key(2)) == -E2BIG


@pytest.mark.parametrize(("number", "name"), [
    (MapType.CGRP_STORAGE, "CGRP_STORAGE"), (250, "number 250")])
def test_other_types_are_named(number: int, name: str) -> None:
    with pytest.raises(LoadError, match=f"map m: there is no reference model of type {name}"):
        make_model(MapSpec("m", number, 4, 4, 1))


# --- the kernel ----------------------------------------------------------------------------------
class TestKernel:
    pytestmark = needs_bpf()

    @pytest.mark.parametrize("seed", range(4))
    @pytest.mark.parametrize("kind", [MapType.ARRAY, MapType.HASH, MapType.LRU_HASH])
    def test_same_operations_from_user_space(self, kind: MapType, seed: int) -> None:
        """For LRU no more keys than entries: which one the kernel evicts is its own choice."""
        rng = random.Random(seed)
        entries = 64 if kind == MapType.LRU_HASH else ENTRIES
        spec = a_spec(kind, entries)
        model = make_model(spec)
        with KernelMap(spec) as kernel:
            for _ in range(2000):
                k, v = key(rng.randrange(7)), value(rng.getrandbits(64))
                match rng.randrange(3):
                    case 0:
                        flags = rng.choice((ANY, ANY, NOEXIST, EXIST, 3, 8, 1 << 40))
                        assert model.update(k, v, flags) == _errno(kernel.update, k, v, flags)
                    case 1:
                        assert model.delete(k) == _errno(kernel.delete, k)
                    case _:
                        assert model.peek(k) == kernel.lookup(k)
            assert dict(model.items()) == dict(kernel.items())

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("n", "flags"), list(product((0, ENTRIES - 1, ENTRIES, 0xFFFFFFFF),
                                                          (*range(9), 1 << 32, 1 << 63))))
    def test_same_update_from_a_program(self, kind: MapType, n: int, flags: int) -> None:
        """Twice with the same flags, then a delete, then a delete again."""
        operations = [("update", flags), ("update", flags), ("delete", 0), ("delete", 0)]
        agree(_all_results(_operations(n, operations)), maps=(a_spec(kind),))

    def test_full_from_a_program(self) -> None:
        insns = [i for n in range(ENTRIES + 1) for i in _operations(n, [("update", 0)])]
        agree(_all_results(insns), maps=(a_spec(MapType.HASH),))

    @pytest.mark.parametrize("kind", KINDS)
    def test_value_size_is_not_rounded(self, kind: MapType) -> None:
        spec = a_spec(kind, value_size=5)
        model = make_model(spec)
        with KernelMap(spec) as kernel:
            kernel.update(key(1), b"12345")
            model.update(key(1), b"12345")
            assert (kernel.lookup(key(1)) or b"")[:5] == b"12345"
            assert _read(model.peek(key(1))) == b"12345"


def _errno(operation: object, *arguments: object) -> int:
    assert callable(operation)
    try:
        operation(*arguments)
    except OSError as error:
        return -(error.errno or 0)
    return 0


def _all_results(insns: list[Insn]) -> list[Insn]:
    """r0 = the results of `_operations`, a byte each."""
    return [Mov(True, 7, Imm(0)), *insns, Mov(True, 0, Reg(7)), Exit()]


def _operations(n: int, operations: list[tuple[str, int]]) -> list[Insn]:
    insns: list[Insn] = [
        Mov(False, 1, Imm(n - (1 << 32) if n >> 31 else n)), Store(10, -4, 4, Reg(1)),
        LoadImm64(1, 0x1122334455667788), Store(10, -16, 8, Reg(1))]
    for name, flags in operations:
        insns += [LoadMap(1, 0), Mov(True, 2, Reg(10)), Alu(AluOp.ADD, True, 2, Imm(-4))]
        if name == "update":
            insns += [Mov(True, 3, Reg(10)), Alu(AluOp.ADD, True, 3, Imm(-16)),
                      LoadImm64(4, flags)]
        insns += [Call(2 if name == "update" else 3), Alu(AluOp.LSH, True, 7, Imm(8)),
                  Alu(AluOp.AND, True, 0, Imm(0xFF)), Alu(AluOp.OR, True, 7, Reg(0))]
    return insns
