"""Maps in maps while programs use them: what replaces one is seen, what was counted is not lost."""

from __future__ import annotations

import threading

import pytest

from xdp_runtime import asm
from xdp_runtime.maps.map import Map
from xdp_runtime.object import MapSpec, MapType, Object, ProgramSpec
from xdp_runtime.program import load

WORKERS, RUNS = 4, 100_000
INNER = MapSpec("i", MapType.ARRAY, 4, 8, 1)
PROGRAM = """
    *(u64 *)(r10 - 8) = 0
    r1 = map[outer] ll
    r2 = r10
    r2 += -8
    call bpf_map_lookup_elem
    if r0 == 0 goto none
    r1 = r0
    r2 = r10
    r2 += -8
    call bpf_map_lookup_elem
    if r0 == 0 goto none
    r1 = 1
    lock *(u64 *)(r0 + 0) += r1
    r0 = 2
    exit
none:
    r0 = 1
    exit
"""


@pytest.mark.parametrize("kind", [MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS],
                         ids=lambda kind: kind.name)
def test_counted_while_maps_change(kind: MapType) -> None:
    """Four workers count in whichever map is there, and another thread puts in one after the
    other: every run is counted once."""
    outer = MapSpec("outer", kind, 4, 4, 2, inner=INNER)
    obj = Object("t", (ProgramSpec("t", "xdp", "xdp", asm.assemble(PROGRAM, ["outer"])),),
                 (outer,), "GPL")
    inner = [Map.create(INNER, WORKERS) for _ in range(6)]

    def counted() -> int:
        return sum(int.from_bytes(one.data[:8], "little") for one in inner)

    with load(obj, workers=WORKERS) as program:
        program.raw_maps["outer"].set_inner(bytes(4), inner[0])
        assert program.repeat(bytes(64), RUNS, worker=0).retval == 2
        a_call = counted()  # what comes before the timed runs included
        assert a_call >= RUNS
        over, calls, wrong = threading.Event(), [0] * WORKERS, [0] * WORKERS

        def work(me: int) -> None:
            while not over.is_set():
                wrong[me] += program.repeat(bytes(64), RUNS, worker=me).retval != 2
                calls[me] += 1

        threads = [threading.Thread(target=work, args=(me,)) for me in range(WORKERS)]
        for thread in threads:
            thread.start()
        changes = 0
        while changes < 3000 or not all(calls) or not all(
                one.data[:8] != bytes(8) for one in inner):
            changes += 1
            program.raw_maps["outer"].set_inner(bytes(4), inner[changes % len(inner)])
        over.set()
        for thread in threads:
            thread.join()
        assert not any(wrong)
        assert counted() == a_call * (1 + sum(calls))
    for one in inner:
        one.close()
