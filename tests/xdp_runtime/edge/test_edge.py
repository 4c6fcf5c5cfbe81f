"""Programs as one writes them for the edge of a network: interpreter = compiled = kernel.

Verdict, bytes, metadata and what is in the maps afterwards.  Each program is one that the kernel
takes, so that it is compared in execution and not only in refusal.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.edge.frames import frames
from xdp_runtime.compiler import target
from xdp_runtime.core_relo import read_settled
from xdp_runtime.elf import read_object
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.object import MapType, Object
from xdp_runtime.program import load
from xdp_runtime.verifier.report import verify

pytestmark = [pytest.mark.root, needs_bpf()[1]]

HERE = Path(__file__).parent
LOOPBACK = 1
COUNT = 300
OBJECTS = sorted(path.stem for path in HERE.glob("*.o"))
PROGRAMS = [(name, program.name) for name in OBJECTS
            for program in read_object(HERE / f"{name}.o").programs if program.is_xdp]
_OPAQUE = {MapType.PROG_ARRAY, MapType.RINGBUF, MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS,
           MapType.QUEUE, MapType.STACK, MapType.PERF_EVENT_ARRAY, MapType.DEVMAP, MapType.CPUMAP,
           MapType.DEVMAP_HASH, MapType.XSKMAP}
_PER_CPU = {MapType.PERCPU_ARRAY, MapType.PERCPU_HASH, MapType.LRU_PERCPU_HASH}
Contents = dict[str, dict[bytes, Any]]


@dataclass(frozen=True)
class Outcome:
    rows: list[tuple[int, bytes, bytes]]  # verdict, bytes, metadata
    maps: Contents


@contextmanager
def first_cpu() -> Iterator[None]:
    """The kernel runs on the CPU that asks."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def entries(obj: Object) -> Iterator[tuple[str, bytes, bytes]]:
    """What is in maps before the first packet."""
    for spec in obj.maps:
        if spec.name == "servers":
            for n in range(12):
                yield spec.name, struct.pack("=I", n), struct.pack("=6sH", bytes((2, n)) * 3, n % 4)


def contents(obj: Object, items: Callable[[str], Iterable[tuple[bytes, Any]]]) -> Contents:
    out: Contents = {}
    for spec in obj.maps:
        if spec.type in _OPAQUE:
            continue
        out[spec.name] = dict(items(spec.name))
        if spec.type in _PER_CPU:  # everything was done on the first
            out[spec.name] = {key: value[:spec.value_size] if isinstance(value, bytes) else value[0]
                              for key, value in out[spec.name].items()}
    return out


@cache
def in_kernel(name: str, program: str) -> Outcome:
    obj = read_settled(HERE / f"{name}.o")
    with first_cpu(), load_into_kernel(obj, program) as kernel:
        for map_name, key, value in entries(obj):
            kernel.maps[map_name].update(key, value)
        rows = [kernel.run(frame) for frame in frames(COUNT)]
        return Outcome([(r.retval, r.data_out, r.meta) for r in rows],
                       contents(obj, lambda name: kernel.maps[name].items()))


def compare(found: Outcome, expected: Outcome) -> None:
    for number, (mine, theirs) in enumerate(zip(found.rows, expected.rows, strict=True)):
        assert mine == theirs, f"packet {number}: {frames(COUNT)[number].hex()}"
    for map_name, content in expected.maps.items():
        assert found.maps[map_name] == content, map_name


def values(maps: Mapping[str, Any]) -> Callable[[str], Iterable[tuple[bytes, Any]]]:
    return lambda name: maps[name].items()


@pytest.mark.parametrize(("name", "program"), PROGRAMS)
def test_verifier_takes_it(name: str, program: str) -> None:
    obj = read_settled(HERE / f"{name}.o")
    report = verify(obj, obj.program(program))
    assert report.ok, [error.text for error in report.errors]
    assert len({row[0] for row in in_kernel(name, program).rows}) >= 1


@pytest.mark.parametrize(("name", "program"), PROGRAMS)
def test_interpreted(name: str, program: str) -> None:
    obj = read_settled(HERE / f"{name}.o")
    machine = Machine(obj, obj.program(program))
    for map_name, key, value in entries(obj):
        machine.maps[obj.map_index(map_name)].update(key, value)
    rows = [machine.run(frame, ingress_ifindex=LOOPBACK) for frame in frames(COUNT)]
    maps = {spec.name: model for spec, model in zip(obj.maps, machine.maps, strict=True)}
    compare(Outcome([(r.verdict, r.data_out, r.meta) for r in rows], contents(obj, values(maps))),
            in_kernel(name, program))


@pytest.mark.parametrize(("name", "program", "opt"), [
    (*one, opt) for one in PROGRAMS for opt in target.TESTED
    if one[0] != "hashes" or opt != target.BASELINE])  # the proof of hashes takes half a minute
def test_compiled(name: str, program: str, opt: int) -> None:
    obj = read_object(HERE / f"{name}.o")
    with load(obj, program, opt=opt) as loaded:
        for map_name, key, value in entries(obj):
            loaded.raw_maps[map_name].update(key, value)
        rows = [loaded.run(frame, ingress_ifindex=LOOPBACK) for frame in frames(COUNT)]
        maps = {one.spec.name: one for one in loaded.all_maps}
        compare(Outcome([(r.retval, r.data_out, r.meta) for r in rows],
                        contents(obj, values(maps))), in_kernel(name, program))
