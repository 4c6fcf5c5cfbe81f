"""Programs as large as those that carry traffic: in the kernel, compiled, interpreted.

Verdict, bytes and all map contents afterwards, over packets that take every path (traffic.py).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.programs.traffic import entries, frames
from xdp_runtime.elf import read_object
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.object import MapType, Object
from xdp_runtime.program import load

pytestmark = needs_bpf()

HERE = Path(__file__).parent
SIZES = {"balancer_small": 2700, "balancer_medium": 4200, "balancer_large": 6800}
LOOPBACK = 1
INTERPRETED = 60
DROP, PASS, TX = 1, 2, 3
# Counters in the order of balancer_maps.h that nothing here can reach: time is too short.
EXPIRED, FLOODED = 14, 15

Contents = dict[str, dict[bytes, object]]


@dataclass(frozen=True)
class Outcome:
    rows: list[tuple[int, bytes]]  # verdict, bytes
    maps: Contents


def read(name: str) -> Object:
    return read_object(HERE / f"{name}.o")


def settings(obj: Object) -> list[tuple[str, bytes, bytes]]:
    names = {spec.name for spec in obj.maps}
    return [entry for entry in entries() if entry[0] in names]


def comparable(obj: Object, maps: Mapping[str, Iterable[tuple[bytes, Any]]]) -> Contents:
    """Without the time: the counter of new connections a second, and when UDP was seen last."""
    out: Contents = {}
    for spec in obj.maps:
        if spec.type == MapType.PROG_ARRAY or spec.name == "new_connections":
            continue
        items: dict[bytes, object] = dict(maps[spec.name])
        if spec.type == MapType.PERCPU_ARRAY:
            items = {key: added_up(value) for key, value in items.items()}
        if spec.name == "connections":
            items = {key: without_time(value) for key, value in items.items()}
        out[spec.name] = items
    return out


def added_up(value: Any) -> tuple[int, ...]:
    copies = value if isinstance(value, list | tuple) else [value]
    return tuple(sum(column) for column in zip(*(struct.unpack("=QQ", c) for c in copies),
                                               strict=True))


def without_time(value: Any) -> tuple[int, int, bool]:
    real, zero, seen_ns = struct.unpack("=IIQ", value)
    return real, zero, seen_ns > 0


@cache
def by_kernel(name: str, count: int) -> Outcome:
    obj = read(name)
    with load_into_kernel(obj, "balancer") as kernel:
        for map_name, key, value in settings(obj):
            kernel.maps[map_name].update(key, value)
        results = [kernel.run(frame) for frame in frames()[:count]]
        maps: dict[str, list[tuple[bytes, object]]] = {}
        for spec in obj.maps:
            one = kernel.maps[spec.name]
            maps[spec.name] = [] if spec.type == MapType.PROG_ARRAY else [
                (key, one.lookup_percpu(key) if spec.type == MapType.PERCPU_ARRAY else value)
                for key, value in one.items()]
        return Outcome([(r.retval, r.data_out) for r in results], comparable(obj, maps))


def check(name: str, ours: Outcome) -> None:
    theirs = by_kernel(name, len(ours.rows))
    for number, (mine, expected) in enumerate(zip(ours.rows, theirs.rows, strict=True)):
        assert mine == expected, f"packet {number}: {frames()[number].hex()}"
    for map_name, content in theirs.maps.items():
        assert ours.maps[map_name] == content, map_name


def test_objects_have_their_source() -> None:
    assert {p.stem for p in HERE.glob("*.c")} == {p.stem for p in HERE.glob("*.o")} == set(SIZES)


@pytest.mark.parametrize("name", SIZES)
def test_size(name: str) -> None:
    """In slots, as the kernel counts."""
    assert abs(len(read(name).program("balancer").insns) / SIZES[name] - 1) < 0.07


@pytest.mark.parametrize("name", SIZES)
def test_kernel_goes_everywhere(name: str) -> None:
    """What is compared below is worth comparing."""
    outcome = by_kernel(name, len(frames()))
    verdicts = [verdict for verdict, _ in outcome.rows]
    assert set(verdicts) == {DROP, PASS, TX}
    assert all(verdicts.count(verdict) > 40 for verdict in (DROP, PASS, TX))
    assert len(outcome.maps["connections"]) > 60
    if name == "balancer_large":
        assert outcome.maps["shared_connections"]
        idle = [struct.unpack("=I", key)[0] for key, counted in outcome.maps["counters"].items()
                if counted == (0, 0)]
        assert idle == [EXPIRED, FLOODED]


@pytest.mark.parametrize("name", SIZES)
def test_compiled(name: str) -> None:
    obj = read(name)
    with load(obj, "balancer") as program:
        for map_name, key, value in settings(obj):
            program.raw_maps[map_name].update(key, value)
        results = [program.run(frame, ingress_ifindex=LOOPBACK) for frame in frames()]
        maps = {m.spec.name: list(m.items()) for m in program.all_maps}
        check(name, Outcome([(r.retval, r.data_out) for r in results], comparable(obj, maps)))


@pytest.mark.parametrize("name", SIZES)
def test_interpreted(name: str) -> None:
    obj = read(name)
    machine = Machine(obj, obj.program("balancer"))
    for map_name, key, value in settings(obj):
        assert machine.maps[obj.map_index(map_name)].update(key, value) == 0
    results = [machine.run(f, ingress_ifindex=LOOPBACK) for f in frames()[:INTERPRETED]]
    maps = {spec.name: list(model.items())
            for spec, model in zip(obj.maps, machine.maps, strict=True)}
    check(name, Outcome([(r.verdict, r.data_out) for r in results], comparable(obj, maps)))
