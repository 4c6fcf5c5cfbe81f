"""DEVMAP, DEVMAP_HASH, CPUMAP, XSKMAP against their model, redirects included."""

from __future__ import annotations

import ctypes
import random
import struct

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.compiled import RunState
from tests.xdp_runtime.maps.traces import Step, apply, compiled_map
from tests.xdp_runtime.oracle import one_program
from xdp_runtime import state
from xdp_runtime.errors import LoadError
from xdp_runtime.helpers import by_name
from xdp_runtime.interp import Machine
from xdp_runtime.isa import Exit, Imm, Mov
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.dev import allow
from xdp_runtime.maps.map import Map
from xdp_runtime.maps.model import ModelDevMap, make_model
from xdp_runtime.object import MapSpec, MapType

KINDS = (MapType.DEVMAP, MapType.DEVMAP_HASH, MapType.CPUMAP)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value_size", [4, 8])
def test_same_as_model(kind: MapType, value_size: int) -> None:
    spec = MapSpec("d", kind, 4, value_size, 4)
    rng, model = random.Random(1), make_model(spec)
    assert isinstance(model, ModelDevMap)
    obj = one_program([Mov(True, 0, Imm(0)), Exit()])
    machine = Machine(obj, obj.programs[0], [model])
    interpret = by_name["redirect_map"].interpret
    assert interpret is not None
    run = RunState(bytes(64), 0, 0, 64, 0, 64)
    model.allowed = {5, 63}
    with compiled_map(spec) as one:
        allow(one, model.allowed)
        for _ in range(2000):
            index = rng.choice((0, 1, 2, 3, 4, 7))
            key = struct.pack("<I", index)
            match rng.randrange(4):
                case 0:
                    value = struct.pack("<II", rng.choice((0, 1, 2, 3, 16384, 16385)),
                                        rng.choice((0, 0, 5, 6, 63, 64, 1 << 31)))[:value_size]
                    flags = rng.choice((0, 0, 1, 2, 3))
                    step = Step("update", key, value, flags)
                    assert apply(one, step) == model.update(key, value, flags)
                case 1:
                    assert apply(one, Step("delete", key)) == model.delete(key)
                case 2:
                    cell = model.peek(key)
                    assert one.lookup(key) == (None if cell is None else bytes(cell))
                case _:
                    flags = rng.choice((0, 1, 2, 3, 4, 8, 10, 24, 32, 1 << 40))
                    wide = index | rng.choice((0, 5 << 32))  # only 32 bits count
                    run.put(state.REDIRECT_IFINDEX, 4, 0)
                    run.put(state.REDIRECT_HOW, 4, 0)
                    machine.redirect_ifindex, machine.redirect_how = None, 0
                    verdict = one._operation("redirect")(0, run.address, wide, flags, 0)
                    assert verdict == interpret(machine, model, wide, flags)
                    assert run.get(state.REDIRECT_IFINDEX, 4) == (machine.redirect_ifindex or 0)
                    assert run.get(state.REDIRECT_HOW, 4) == machine.redirect_how


def test_an_xskmap_without_rings_is_empty() -> None:
    with compiled_map(MapSpec("x", MapType.XSKMAP, 4, 4, 8)) as one:
        run = RunState(bytes(64), 0, 0, 64, 0, 64)
        assert [one._operation("redirect")(0, run.address, 0, flags, 0) for flags in range(5)] == [
            0, 1, 2, 3, 0]
        with pytest.raises(OSError, match="supported"):
            one[bytes(4)] = bytes(4)


@pytest.mark.parametrize("kind", [MapType.DEVMAP, MapType.DEVMAP_HASH])
def test_targets_are_all_entries(kind: MapType) -> None:
    with compiled_map(MapSpec("d", kind, 4, 8, 64)) as one:
        allow(one, [5])
        want = {}
        for index in (0, 1, 7, 40, 63):
            want[index] = (100 + index, 5 * (index & 1))
            one[struct.pack("<I", index)] = struct.pack("<II", *want[index])
        del one[struct.pack("<I", 7)]
        del want[7]
        found, cursor, out = [], 0, ctypes.create_string_buffer(8)
        while (cursor := one._operation("targets")(0, out, cursor)) != -1:
            found.append(struct.unpack("<II", out.raw))
        assert sorted(found) == sorted(want.values())


@pytest.mark.parametrize("spec", [
    MapSpec("d", MapType.DEVMAP, 8, 4, 1), MapSpec("d", MapType.DEVMAP, 4, 5, 1),
    MapSpec("d", MapType.DEVMAP, 4, 4, 0), MapSpec("d", MapType.DEVMAP, 4, 4, 1, flags=1),
    MapSpec("d", MapType.DEVMAP_HASH, 4, 6, 1), MapSpec("d", MapType.CPUMAP, 4, 9, 1),
    MapSpec("d", MapType.XSKMAP, 4, 8, 1),
], ids=str)
@pytest.mark.root
@needs_bpf()[1]
def test_refused_as_by_the_kernel(spec: MapSpec) -> None:
    with pytest.raises(LoadError):
        KernelMap(spec)
    with pytest.raises(LoadError):
        Map.create(spec, 1)
