"""What bpf_redirect_map returns: interpreted = compiled = the kernel, for each map and flag."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.oracle import one_program
from xdp_runtime.compiler import target
from xdp_runtime.interp import Machine
from xdp_runtime.isa import Call, Exit, Insn, LoadImm64, LoadMap
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.object import MapSpec, MapType
from xdp_runtime.program import load

KINDS = (MapType.DEVMAP, MapType.DEVMAP_HASH, MapType.CPUMAP, MapType.XSKMAP)
FLAGS = (0, 1, 2, 3, 4, 7, 8, 11, 16, 17, 18, 19, 20, 24, 26, 32, 1 << 31, 1 << 32, 1 << 63)
INDICES = (0, 1, 3, 4, 1 << 32, (1 << 32) + 1, (1 << 64) - 1)
LOOPBACK = 1
FILLED = 1  # the only index with a target


def a_program(kind: MapType, index: int, flags: int) -> Any:
    insns: list[Insn] = [LoadMap(1, 0), LoadImm64(2, index),
                         LoadImm64(3, flags), Call(51), Exit()]
    return one_program(insns, (MapSpec("to", kind, 4, 4, 4),))


def fill(update: Any, kind: MapType) -> None:
    if kind != MapType.XSKMAP:  # its entries are sockets
        update(struct.pack("<I", FILLED), struct.pack("<I", LOOPBACK))


def interpreted(kind: MapType, index: int, flags: int) -> int:
    obj = a_program(kind, index, flags)
    machine = Machine(obj, obj.programs[0])
    fill(machine.maps[0].update, kind)
    return machine.run(bytes(64)).verdict


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.root
@needs_bpf()[1]
def test_kernel(kind: MapType) -> None:
    seen = set()
    for index in INDICES:
        for flags in FLAGS:
            with load_into_kernel(a_program(kind, index, flags)) as program:
                fill(program.maps["to"].update, kind)
                theirs = program.run(bytes(64)).retval
            assert interpreted(kind, index, flags) == theirs, (index, flags)
            seen.add(theirs)
    assert seen == ({0, 1, 2, 3} if kind == MapType.XSKMAP else {0, 1, 2, 3, 4})


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_compiled_is_interpreted(kind: MapType) -> None:
    for opt in target.TESTED:
        for index, flags in ((0, 2), (FILLED, 0), (FILLED, 16), (0, 17), (FILLED, 32), (0, 8),
                             (FILLED, 27), ((1 << 32) + FILLED, 3)):
            with load(a_program(kind, index, flags), opt=opt) as program:
                fill(program.raw_maps["to"].update, kind)
                assert program.run(bytes(64)).retval == interpreted(kind, index, flags), (
                    index, flags)
