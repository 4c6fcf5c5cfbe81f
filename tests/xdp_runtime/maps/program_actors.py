"""Four workers that run a program, and a second process, on a map of programs or of maps.

    python -m tests.xdp_runtime.maps.program_actors [--seconds 30] [FAMILY...]

Each run counts itself, then goes by what the map holds at that moment: into one of two programs, or
with an inner map in which it counts; or it finds nothing.  This process's main thread puts one
after the other into the slots, the other process takes some out and reads all the time.  What all
programs, or all inner maps, have counted and what found nothing is what was run, to the last one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

from xdp_runtime import asm
from xdp_runtime.compiler.map_ops import compile_operations
from xdp_runtime.maps.map import Map
from xdp_runtime.object import MapSpec, MapType, Object, ProgramSpec
from xdp_runtime.program import Program, load

WORKERS, SLOTS, RUNS, INNER_MAPS = 4, 4, 5000, 6
FAMILIES = (MapType.PROG_ARRAY, MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS)
STARTED, FIRST, SECOND, NOTHING = range(4)  # entries of `counts`
_COUNTS = MapSpec("counts", MapType.PERCPU_ARRAY, 4, 8, 4)
_ARRAY = MapSpec("i", MapType.ARRAY, 4, 8, SLOTS)
_HASH = MapSpec("i", MapType.HASH, 4, 8, SLOTS)

_COUNT = """
    *(u32 *)(r10 - 4) = {entry}
    r1 = map[counts] ll
    r2 = r10
    r2 += -4
    call bpf_map_lookup_elem
    if r0 == 0 goto +3
    r1 = *(u64 *)(r0 + 0)
    r1 += 1
    *(u64 *)(r0 + 0) = r1
"""
_ENTRY = "r6 = r1\n" + _COUNT.format(entry=STARTED) + f"""
    call bpf_get_prandom_u32
    r0 &= {SLOTS - 1}
    r7 = r0
    *(u32 *)(r10 - 8) = r7
"""
_JUMP = """
    r1 = r6
    r2 = map[m] ll
    r3 = r7
    call bpf_tail_call
"""
_INNER = """
    r1 = map[m] ll
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
"""
_NOTHING = _COUNT.format(entry=NOTHING) + "r0 = 1\nexit\n"


def _object(kind: MapType) -> Object:
    spec = MapSpec("m", kind, 4, 4, SLOTS)
    texts = {"start": _ENTRY + (_JUMP if kind == MapType.PROG_ARRAY else _INNER) + _NOTHING}
    if kind == MapType.PROG_ARRAY:
        texts |= {name: _COUNT.format(entry=entry) + "r0 = 2\nexit\n"
                  for name, entry in (("first", FIRST), ("second", SECOND))}
        spec = replace(spec, slots=((0, "first"), (1, "second")))
    else:
        spec = replace(spec, inner=_ARRAY if kind == MapType.ARRAY_OF_MAPS else _HASH)
    programs = tuple(ProgramSpec(name, "xdp", "xdp", asm.assemble(text, ["m", "counts"]))
                     for name, text in texts.items())
    return Object("t", programs, (spec, _COUNTS), "GPL")


def _key(slot: int) -> bytes:
    return slot.to_bytes(4, "little")


def _inner_maps(spec: MapSpec, folder: Path) -> list[Map]:
    assert spec.inner is not None
    made = []
    for number in range(INNER_MAPS):
        one = Map.create(replace(spec.inner, name=f"i{number}"), WORKERS, folder)
        compile_operations(one)
        for slot in range(SLOTS):
            one[_key(slot)] = bytes(8)
        made.append(one)
    return made


def _act(kind: MapType, one: Map, seconds: float, known: set[int]) -> dict[str, int]:
    """The other process: take out, and read whatever is there."""
    rng, until = random.Random(1), time.monotonic() + seconds
    removed = seen = 0
    while time.monotonic() < until:
        if rng.random() < 0.3:
            key = _key(rng.randrange(SLOTS))
            try:
                one.delete(key)
                removed += 1
            except FileNotFoundError:
                pass  # the slot was empty already
        for _, value in list(one.items()):
            assert isinstance(value, bytes)
            number = int.from_bytes(value, "little")
            if kind != MapType.PROG_ARRAY:
                number = one.inner_id(value)
            if number:
                assert number in known, (number, known)
                seen += 1
    return {"removed": removed, "seen": seen}


def run(kind: MapType, seconds: float) -> dict[str, int]:
    """All actors on a map of this family.  Raises AssertionError for what was lost."""
    with (tempfile.TemporaryDirectory(dir="/dev/shm") as name,
          load(_object(kind), "start", workers=WORKERS, directory=Path(name)) as program):
        one, inner = program.raw_maps["m"], []
        if kind == MapType.PROG_ARRAY:
            numbers = [program.program_number(name) + 1 for name in ("first", "second")]
            values: list[bytes | Map] = [number.to_bytes(4, "little") for number in numbers]
        else:
            inner = _inner_maps(one.spec, Path(name))
            numbers, values = [m.id for m in inner], list(inner)
        try:
            return _run(kind, program, seconds, values, numbers, inner)
        finally:
            for m in inner:
                m.close()


def _run(kind: MapType, program: Program, seconds: float, values: list[bytes | Map],
         numbers: list[int], inner: list[Map]) -> dict[str, int]:
    one = program.raw_maps["m"]
    for slot in range(SLOTS):
        one[_key(slot)] = values[slot % len(values)]
    other = subprocess.Popen(
        [sys.executable, "-m", "tests.xdp_runtime.maps.program_actors", kind.name, "--actor",
         str(one.path), "--seconds", str(seconds), "--known", json.dumps(numbers)],
        stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None and other.stdout.readline() == "ready\n"
    until, verdicts = time.monotonic() + seconds, [0] * WORKERS

    def work(me: int) -> None:
        while time.monotonic() < until:
            verdicts[me] |= 1 << program.repeat(bytes(64), RUNS, worker=me).retval

    threads = [threading.Thread(target=work, args=(me,)) for me in range(WORKERS)]
    for thread in threads:
        thread.start()
    rng, changes = random.Random(2), 0
    while any(thread.is_alive() for thread in threads):
        one[_key(rng.randrange(SLOTS))] = rng.choice(values)
        changes += 1
    for thread in threads:
        thread.join()
    text, _ = other.communicate(timeout=600)
    assert other.returncode == 0
    found = [sum(_numbers(program.raw_maps["counts"], entry)) for entry in range(4)]
    inside = [_sum(m) for m in inner]
    assert found[STARTED] == found[FIRST] + found[SECOND] + found[NOTHING] + sum(inside), (
        found, inside)
    assert found[NOTHING] and all(inside or found[FIRST:NOTHING])
    assert not any(seen & ~0b110 for seen in verdicts)
    return {"runs": found[STARTED], "nothing": found[NOTHING], "changes": changes,
            **json.loads(text)}


def _numbers(one: Map, entry: int) -> list[int]:
    values = one[_key(entry)]
    return [int.from_bytes(value, "little") for value in values
            if isinstance(value, bytes)]


def _sum(one: Map) -> int:
    return sum(int.from_bytes(value, "little") for _, value in one.items()
               if isinstance(value, bytes))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("families", nargs="*", default=[kind.name for kind in FAMILIES])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--actor")
    parser.add_argument("--known")
    args = parser.parse_args()
    if args.actor:
        with Map.open(Path(args.actor)) as one:
            compile_operations(one)
            print("ready", flush=True)
            print(json.dumps(_act(MapType[args.families[0]], one, args.seconds,
                                  set(json.loads(args.known)))))
        return 0
    for name in args.families:
        found = run(MapType[name], args.seconds)
        print(f"{name}: {found} in {args.seconds:g} s, {os.cpu_count()} CPUs", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
