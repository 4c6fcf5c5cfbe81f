"""Timers in map values: interpreted = compiled = kernel, in what calls answer and what fires."""

from __future__ import annotations

import ctypes
import os
import random
import struct
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.helpers.test_for_each import pinned
from xdp_runtime.elf import read_object
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import KernelProgram
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.map import Map
from xdp_runtime.program import Program, load

OBJECT = Path(__file__).with_name("timers.o")
MAPS = ("hash", "lru", "array")
HASH, LRU, ARRAY = range(3)
INIT, SET, START, CANCEL, DELETE, UPDATE, _, START_DELETED, START_AT, SET_OTHER, FIRED = range(11)
NOTHING, REARM, CANCEL_OWN, DELETE_OWN, START_OTHER, INIT_OWN, SET_OTHERS = range(7)
STEP = struct.Struct("<BBBxIQq")
VALUE = struct.Struct("<Q16sQqI4x")  # fired, timer, argument, inner, key
NONE = -1000  # the answer where there is no such element
ABS, PIN = 1, 2
MS, HOUR = 1_000_000, 3_600_000_000_000
EBUSY, EINVAL, EDEADLK, ENOENT = -16, -22, -35, -2
Step = tuple[int, ...]  # operation, key, map, flags, nsecs
Run = Callable[[bytes], tuple[int, bytes]]
Seen = tuple[list[int], list[tuple[int, ...]]]


def script(steps: Iterable[Step]) -> bytes:
    packed = [STEP.pack(*step, *[0] * (6 - len(step))) for step in steps]
    return bytes(16) + b"".join(packed).ljust(12 * STEP.size, b"\xff")


def answers(data: bytes, count: int) -> list[int]:
    return [STEP.unpack_from(data, 16 + STEP.size * n)[-1] for n in range(count)]


def values(number: int, items: Iterable[tuple[bytes, Any]]) -> list[tuple[int, ...]]:
    """(map, key, fired, argument, inner, key seen) of elements that are not all zeros."""
    out: list[tuple[int, ...]] = []
    for key, value in sorted(items):
        fired, timer, argument, inner, seen = VALUE.unpack(value)
        assert timer == bytes(16), "user space sees zeros"
        if number != ARRAY or any(value):
            out.append((number, int.from_bytes(key, "little"), fired, argument, inner, seen))
    return out


def see(scripts: Iterable[list[Step]], run: Run, settle: Callable[[], None],
        items: Callable[[str], Iterable[tuple[bytes, Any]]]) -> list[Seen]:
    out = []
    for steps in scripts:
        verdict, data = run(script(steps))
        assert verdict == 3
        settle()
        out.append((answers(data, len(steps)),
                    [one for n, name in enumerate(MAPS) for one in values(n, items(name))]))
    return out


def interpreted(scripts: Iterable[list[Step]]) -> list[Seen]:
    obj = read_object(OBJECT)
    machine = Machine(obj, obj.program("run_script"))
    models = {model.spec.name: model for model in machine.maps}

    def run(packet: bytes) -> tuple[int, bytes]:
        result = machine.run(packet)
        return result.verdict, result.data_out

    return see(scripts, run, lambda: wait(machine.run_timers), lambda name: models[name].items())


def compiled(scripts: Iterable[list[Step]], opt: int) -> list[Seen]:
    with load(read_object(OBJECT), "run_script", opt=opt) as program:
        return see(scripts, lambda packet: ran(program, packet),
                   lambda: wait(program.run_timers), lambda name: program.raw_maps[name].items())


def ran(program: Program | KernelProgram, packet: bytes) -> tuple[int, bytes]:
    result = program.run(packet)
    return result.retval, result.data_out


def wait(run_timers: Callable[[], int | None]) -> None:
    """Until what is due within a second was fired."""
    while (left := run_timers()) is not None and left < 1_000_000_000:
        time.sleep(left / 1e9)


def life(number: int) -> list[list[Step]]:
    """All that can happen to one timer, in a map of each kind."""
    def on(operation: int, *rest: int) -> Step:
        return (operation, 1, number, *rest)

    def ready(argument: int = NOTHING) -> list[Step]:
        return [on(UPDATE, 0, argument), on(INIT, 1), on(SET)]

    return [
        [on(UPDATE), on(SET), on(START), on(CANCEL), on(INIT, 2), on(INIT, 16), on(INIT, 1 << 31),
         on(INIT, 8)],
        [on(INIT, 1), on(INIT, 1), on(START), on(CANCEL), on(SET), on(CANCEL), on(START)],
        [*ready(), on(START, 4), on(START, 0, MS), on(FIRED)],
        [on(FIRED), on(START), on(START, 0, HOUR), on(CANCEL), on(CANCEL), on(START)],
        [*ready(), on(START, PIN, 0)],
        [*ready(), on(START_AT, 0, MS), on(CANCEL), on(SET), on(START_AT, 0, 2 * MS)],
        [*ready(), on(START, ABS, 1), on(CANCEL), on(SET), on(START, ABS | PIN, 1)],
        [*ready(), on(START, ABS, (1 << 64) - 1)],
        [*ready(), on(START, 0, (1 << 64) - 1), on(CANCEL)],
        [*ready(), on(START, ABS, (1 << 63) - 1), on(CANCEL)],
        [on(UPDATE), on(INIT, 0), on(SET), on(START, ABS, 1)],  # in 1970
        [on(UPDATE), on(INIT, 7), on(SET), on(START, ABS, 1)],
        [on(UPDATE), on(INIT, 7), on(SET), on(START, 0, MS)],
        [*ready(REARM), on(START, 0, MS)],
        [*ready(CANCEL_OWN), on(START, 0, 0)],
        [on(START), on(CANCEL)],
        [*ready(DELETE_OWN), on(START, 0, 0)],
        [*ready(INIT_OWN), on(START, 0, 0)],
        [*ready(SET_OTHERS), on(START, 0, 0)],
        [*ready(), on(SET_OTHER), on(START, 0, 0)],
        [*ready(), on(START, 0, MS), on(UPDATE, 0, 0)],  # an update ends it
        [on(INIT, 1), on(SET), on(START, 0, MS), on(UPDATE, 1, 0), on(UPDATE, 2, 0), on(INIT, 1)],
        [on(UPDATE), on(INIT, 1), on(SET), on(START, 0, MS), on(DELETE), on(START, 0, 0)],
        [*ready(), on(START, 0, MS), on(START_DELETED, 0, 0)],
        [*ready(START_OTHER), (INIT, 2, ARRAY, 1), (SET, 2, ARRAY), on(START, 0, 0)],
        [(DELETE, 1, number), (CANCEL, 2, ARRAY), (UPDATE, 2, ARRAY)],
        [(UPDATE, 1, ARRAY)],
    ]


def random_scripts(seed: int, count: int) -> list[list[Step]]:
    rng, out = random.Random(seed), []
    operations = [INIT] * 4 + [SET] * 4 + [START] * 6 + [CANCEL] * 2 + [UPDATE] * 2 + [
        DELETE, START_AT, SET_OTHER, FIRED, START_DELETED]
    for _ in range(count):
        steps: list[Step] = []
        for _ in range(12):
            operation = rng.choice(operations)
            flags = {INIT: rng.choice((1, 1, 1, 7, 0, 3)), START: rng.choice((0, 0, 0, PIN, 8))}
            nsecs = rng.choice((0, 0, MS, HOUR))
            if operation == UPDATE:
                nsecs = rng.choice((NOTHING, NOTHING, REARM, CANCEL_OWN, DELETE_OWN, INIT_OWN,
                                    SET_OTHERS))
            number = rng.choice((HASH, HASH, LRU, ARRAY, ARRAY))
            steps.append((operation, 1 if number == LRU else rng.randrange(1, 3), number,
                          flags.get(operation, 0), nsecs))
        out.append(steps)
    return out


def test_what_is_expected() -> None:
    seen = interpreted(life(HASH))
    assert seen[0][0] == [0, EINVAL, EINVAL, EINVAL, *[EINVAL] * 4]
    assert seen[1][0] == [0, EBUSY, EINVAL, 0, 0, 0, EINVAL]
    assert seen[2] == ([0, 0, 0, EINVAL, 0, 0], [(HASH, 1, 1, 0, 0, 1)])
    assert seen[3][0] == [1, 0, 0, 1, 0, EINVAL]
    assert [one[1][0][2] for one in seen[4:9]] == [1, 1, 1, 0, 0]
    assert seen[13][1] == [(HASH, 1, 4, REARM, 0, 1)]
    assert seen[14][1] == [(HASH, 1, 1, CANCEL_OWN, EDEADLK, 1)]
    assert seen[16][1] == []
    assert seen[17][1][0][4] == EBUSY
    assert seen[18][1][0][2] == 1001 and seen[19][1][0][2] == 1000
    assert seen[20][1][0][2] == 0
    assert seen[22][0][-2:] == [0, NONE] and seen[23][0][-1] == EINVAL


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("opt", [0, 3])
def test_compiled_is_interpreted(number: int, opt: int) -> None:
    assert compiled(life(number), opt) == interpreted(life(number))


def test_compiled_is_interpreted_at_random() -> None:
    scripts = random_scripts(1, 150)
    assert compiled(scripts, 3) == interpreted(scripts)


@pytest.mark.root
@needs_bpf()[1]
def test_kernel() -> None:
    """bpftool loads it: without types the kernel knows no timers."""
    for number in range(3):
        scripts = life(number)
        assert in_kernel(scripts) == interpreted(scripts), MAPS[number]
    scripts = random_scripts(2, 150)
    for mine, theirs, steps in zip(interpreted(scripts), in_kernel(scripts), scripts, strict=True):
        assert mine == theirs, steps


def in_kernel(scripts: list[list[Step]]) -> list[Seen]:
    where = Path(f"/sys/fs/bpf/xdpu-test-timer-{os.getpid()}")
    maps = Path(f"{where}-maps")
    obj = read_object(OBJECT)
    subprocess.run(["bpftool", "prog", "loadall", OBJECT, where, "pinmaps", maps], check=True)
    try:
        known = {}
        for name in MAPS:
            one = KernelMap.__new__(KernelMap)
            one.spec = next(spec for spec in obj.maps if spec.name == name)
            one._cpus = 1
            one.fd = pinned(maps / name)
            known[name] = one
        spec = obj.program("run_script")
        with KernelProgram(spec, pinned(where / spec.name), known) as program:
            return see(scripts, lambda packet: ran(program, packet), lambda: time.sleep(0.012),
                       lambda name: known[name].items())
    finally:
        for directory in (where, maps):
            for file in directory.iterdir():
                file.unlink()
            directory.rmdir()


# --- what user space does ------------------------------------------------------------------------
def armed(number: int, nsecs: int = 3 * MS) -> bytes:
    return script([(UPDATE, 1, number, 0, 5), (INIT, 1, number, 1), (SET, 1, number),
                   (START, 1, number, 0, nsecs)])


def fired(one: Map, key: int = 1) -> int:
    value = one.lookup(key.to_bytes(4, "little"))
    assert isinstance(value, bytes)
    return int(VALUE.unpack(value)[0])


@pytest.mark.parametrize("number", range(3))
def test_user_space(number: int) -> None:
    """An update or a deletion ends a timer, a look leaves it alone; it sees zeros."""
    key = (1).to_bytes(4, "little")
    with load(read_object(OBJECT), "run_script") as program:
        one = program.raw_maps[MAPS[number]]
        program.run(armed(number))
        value = one.lookup(key)
        assert isinstance(value, bytes) and value[8:24] == bytes(16)
        assert not any(one.to_numpy()[1]["timer"].tobytes())
        wait(program.run_timers)
        assert fired(one) == 1
        program.run(armed(number))
        one.update(key, b"\xff" * VALUE.size)
        value = one.lookup(key)
        assert isinstance(value, bytes) and value[8:24] == bytes(16) and value[:8] == b"\xff" * 8
        wait(program.run_timers)
        assert one.lookup(key) == value
        if number != ARRAY:
            program.run(armed(number))
            one.delete(key)
            wait(program.run_timers)
            one.update(key, bytes(VALUE.size))
            assert fired(one) == 0
            program.run(armed(number))
            taken = one.lookup_and_delete(key)
            assert isinstance(taken, bytes) and taken[8:24] == bytes(16)


def test_no_timers_no_time() -> None:
    with load(read_object(OBJECT), "run_script") as program:
        assert program.run_timers() is None
        program.run(armed(HASH, HOUR))
        left = program.run_timers()
        assert left is not None and HOUR - 1_000_000_000 < left <= HOUR


# --- many -----------------------------------------------------------------------------------------
def start_one(key: int, nsecs: int, argument: int = NOTHING) -> bytes:
    return bytes(16) + struct.pack("<IIQ", key, argument, nsecs)


def test_they_fire_in_order() -> None:
    """Some are started again, sooner or later, some cancelled by deleting."""
    rng = random.Random(3)
    with load(read_object(OBJECT), "start_one") as program:
        due: dict[int, tuple[int, int]] = {}  # at the earliest and latest
        for _ in range(3000):
            key, nsecs = rng.randrange(2000), rng.randrange(50, 400) * MS
            before = time.monotonic_ns()
            assert program.run(start_one(key, nsecs)).retval == 2
            due[key] = before + nsecs, time.monotonic_ns() + nsecs
            if rng.random() < 0.1:
                key = rng.choice(list(due))
                program.raw_maps["many"].delete(key.to_bytes(4, "little"))
                del due[key]
        wait(program.run_timers)
        order = [int.from_bytes(value, "little")
                 for _, value in program.raw_maps["order"].items() if isinstance(value, bytes)]
        count = int.from_bytes(bytes(program.raw_maps[".bss"].data[:4]), "little")
        assert count == len(due)
        assert sorted(order[:count]) == sorted(due)
        latest = 0
        for key in order[:count]:
            assert latest <= due[key][1]
            latest = max(latest, due[key][0])


def test_timers_of_the_dead_are_used_again() -> None:
    """Elements come and go with timers that never fire."""
    with load(read_object(OBJECT), "start_one") as program:
        many = program.raw_maps["many"]
        for turn in range(6000):
            key = turn % 100
            assert program.run(start_one(key, HOUR)).retval == 2
            many.delete(key.to_bytes(4, "little"))
        assert program.run(start_one(7, 0, DELETE_OWN)).retval == 2
        program.run_timers()
        assert bytes(program.raw_maps[".bss"].data[:4]) == (1).to_bytes(4, "little")
        assert len(many) == 0
        program.run(start_one(8, HOUR))
        place = many._operation("peek")(0, (8).to_bytes(4, "little"))
        assert int.from_bytes(ctypes.string_at(place + 8, 4), "little") <= 2048
