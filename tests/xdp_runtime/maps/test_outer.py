"""Maps in maps while programs use them (and program_actors.py): none is gone under a worker."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from xdp_runtime import asm
from xdp_runtime.compiler.map_ops import compile_operations
from xdp_runtime.maps.map import Map
from xdp_runtime.maps.of_maps import capacity
from xdp_runtime.object import MapSpec, MapType, Object, ProgramSpec
from xdp_runtime.program import Program, load

WORKERS, RUNS, LOOKUPS, CHANGES = 4, 1000, 300, 1500
ZERO = bytes(4)
PROGRAM = f"""
    *(u64 *)(r10 - 8) = 0
    r1 = map[outer] ll
    r2 = r10
    r2 += -8
    call bpf_map_lookup_elem
    if r0 == 0 goto none
    r6 = r0
    r7 = {LOOKUPS}
again:
    r1 = r6
    r2 = r10
    r2 += -8
    call bpf_map_lookup_elem
    if r0 == 0 goto none
    r1 = 1
    lock *(u64 *)(r0 + 0) += r1
    r7 -= 1
    if r7 != 0 goto again
    r0 = 2
    exit
none:
    r0 = 1
    exit
"""
KINDS = pytest.mark.parametrize("kind", [MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS],
                                ids=lambda kind: kind.name)


def loaded(kind: MapType, inner: MapType, workers: int) -> tuple[Program, MapSpec]:
    definition = MapSpec("i", inner, 4, 8, 1)
    outer = MapSpec("outer", kind, 4, 4, 1, inner=definition)
    obj = Object("t", (ProgramSpec("t", "xdp", "xdp", asm.assemble(PROGRAM, ["outer"])),),
                 (outer,), "GPL")
    return load(obj, workers=workers), definition


@KINDS
def test_more_maps_than_there_is_room_for(kind: MapType) -> None:
    """What a worker found is what it was until the end of its batch, however many come after it:
    every lookup finds the key, and is counted once."""
    program, definition = loaded(kind, MapType.HASH, WORKERS)
    with program:
        outer = program.raw_maps["outer"]
        inner = []
        for number in range(2 * capacity(outer.spec)):  # of two sizes, which must not be mixed
            made = Map.create(replace(definition, max_entries=1 + number % 2 * 4095), WORKERS)
            compile_operations(made)
            made[ZERO] = bytes(8)
            inner.append(made)

        def counted() -> int:
            return sum(int.from_bytes(bytes(one[ZERO]), "little")  # type: ignore
                       for one in inner)

        outer.set_inner(ZERO, inner[0])
        assert program.repeat(bytes(64), RUNS, worker=0).retval == 2
        a_call = counted()  # what comes before the timed runs included
        assert a_call >= RUNS * LOOKUPS
        over, calls = threading.Event(), [0] * WORKERS

        def work(me: int) -> None:
            while not over.is_set():
                program.repeat(bytes(64), RUNS, worker=me)
                calls[me] += 1

        threads = [threading.Thread(target=work, args=(me,)) for me in range(WORKERS)]
        for thread in threads:
            thread.start()
        changes = 0
        while changes < CHANGES or not all(calls):
            changes += 1
            outer.set_inner(ZERO, inner[changes % len(inner)])
        over.set()
        for thread in threads:
            thread.join()
        assert counted() == a_call * (1 + sum(calls))
    for one in inner:
        one.close()


@KINDS
def test_a_map_that_is_closed_stays_where_programs_find_it(kind: MapType) -> None:
    program, definition = loaded(kind, MapType.ARRAY, 1)
    with program:
        inner = Map.create(definition, 1)
        program.raw_maps["outer"].set_inner(ZERO, inner)
        inner.close()
        assert program.run(bytes(64)).retval == 2
