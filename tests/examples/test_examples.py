"""Every example over 200 packets: interpreter = compiled O0 = compiled O3 = worker loop = kernel.

Verdict, bytes, metadata, redirect target, and all map contents afterwards.  The kernel's answers
are asked once for each case and shared by the engines.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dataplane.engine import Engine
from dataplane.memory import MemoryPort
from tests.packets import packets_for
from tests.privileges import needs_bpf
from xdp_runtime.elf import read_object
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.object import MapType, Object
from xdp_runtime.program import load

pytestmark = needs_bpf()

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.c"))
UNREADABLE = (MapType.PROG_ARRAY, MapType.XSKMAP)  # the kernel does not tell what they hold
LOOPBACK = 1
ZERO = bytes(4)

# Maps that a control plane would fill: name of the example -> map -> key -> value.
ENTRIES = {
    "demo": {"blocked_ports": {struct.pack("=H", 2323): bytes(8)},
             "peer": {struct.pack("=I", LOOPBACK): struct.pack("=I", LOOPBACK)}},
    "firewall": {"blocked_ports": {struct.pack("=H", 2323): bytes(8)}},
    "ipip": {"tunnel": {ZERO: bytes.fromhex("c0000201c000020202aabbccddee0000")}},
    "redirect": {"peer": {struct.pack("=I", LOOPBACK): struct.pack("=I", LOOPBACK)}},
}
CASES = [(name, False) for name in NAMES] + [(name, True) for name in ENTRIES]
# What no two runs agree on.
INCOMPARABLE = {("helpers", "surroundings")}

Row = tuple[int, bytes, bytes]  # verdict, bytes, metadata
Contents = dict[str, dict[bytes, object]]


@dataclass(frozen=True)
class Outcome:
    rows: list[Row]
    maps: Contents


def entries(name: str, filled: bool) -> Iterable[tuple[str, bytes, bytes]]:
    for map_name, content in ENTRIES.get(name, {}).items() if filled else ():
        for key, value in content.items():
            yield map_name, key, value


def comparable(obj: Object, name: str, maps: Mapping[str, Iterable[tuple[bytes, object]]]
               ) -> Contents:
    out: Contents = {}
    for spec in obj.maps:
        if spec.type in UNREADABLE or (name, spec.name) in INCOMPARABLE:
            continue
        items = dict(maps[spec.name])
        if spec.type == MapType.PERCPU_ARRAY:
            items = {key: added_up(value) for key, value in items.items()}
        out[spec.name] = items
    return out


def added_up(value: Any) -> tuple[int, ...]:
    """Which CPU ran is its own affair: the u64 counters of all are added."""
    copies = value if isinstance(value, list | tuple) else [value]
    rows = [struct.unpack(f"={len(copy) // 8}Q", copy) for copy in copies]
    return tuple(sum(column) for column in zip(*rows, strict=True))


@cache
def by_kernel(name: str, filled: bool) -> Outcome:
    obj = read_object(EXAMPLES / f"{name}.o")
    with load_into_kernel(obj, name) as kernel:
        for map_name, key, value in entries(name, filled):
            kernel.maps[map_name].update(key, value)
        results = [kernel.run(frame) for frame in packets_for(name, 200)]
        maps: dict[str, list[tuple[bytes, object]]] = {}
        for spec in obj.maps:
            one = kernel.maps[spec.name]
            maps[spec.name] = [] if spec.type in UNREADABLE else [
                (key, one.lookup_percpu(key) if spec.type == MapType.PERCPU_ARRAY else value)
                for key, value in one.items()]
        return Outcome([(r.retval, r.data_out, r.meta) for r in results],
                       comparable(obj, name, maps))


def check(name: str, filled: bool, ours: Outcome) -> None:
    theirs = by_kernel(name, filled)
    frames = packets_for(name, 200)
    for frame, mine, expected in zip(frames, ours.rows, theirs.rows, strict=True):
        assert mine == expected, frame.hex()
    assert ours.maps == theirs.maps


@pytest.mark.parametrize(("name", "filled"), CASES)
def test_interpreted(name: str, filled: bool) -> None:
    obj = read_object(EXAMPLES / f"{name}.o")
    machine = Machine(obj, obj.program(name))
    for map_name, key, value in entries(name, filled):
        assert machine.maps[obj.map_index(map_name)].update(key, value) == 0
    results = [machine.run(f, ingress_ifindex=LOOPBACK) for f in packets_for(name, 200)]
    maps = {spec.name: list(model.items())
            for spec, model in zip(obj.maps, machine.maps, strict=True)}
    check(name, filled, Outcome([(r.verdict, r.data_out, r.meta) for r in results],
                                comparable(obj, name, maps)))


@pytest.mark.parametrize("opt", [0, 3])
@pytest.mark.parametrize(("name", "filled"), CASES)
def test_compiled(name: str, filled: bool, opt: int) -> None:
    obj = read_object(EXAMPLES / f"{name}.o")
    with load(obj, name, opt=opt) as program:
        for map_name, key, value in entries(name, filled):
            program.raw_maps[map_name].update(key, value)
        results = [program.run(f, ingress_ifindex=LOOPBACK) for f in packets_for(name, 200)]
        maps = {m.spec.name: list(m.items()) for m in program.all_maps}
        check(name, filled, Outcome([(r.retval, r.data_out, r.meta) for r in results],
                                    comparable(obj, name, maps)))


@pytest.mark.parametrize(("name", "filled"), CASES)
def test_worker_loop(name: str, filled: bool) -> None:
    """The same through a port, in batches, with the loop compiled around the program."""
    obj, frames = read_object(EXAMPLES / f"{name}.o"), packets_for(name, 200)
    port = MemoryPort(frames, record=True, ifindex=LOOPBACK)
    engine = Engine(obj, [port], program=name, exit_when_idle=True)
    try:
        for map_name, key, value in entries(name, filled):
            engine.program.raw_maps[map_name].update(key, value)
        engine.start()
        assert engine.wait(30)
        totals = engine.stats.total()
        rows = [(r.verdict, r.data, r.meta) for r in port.results]
        maps = {m.spec.name: list(m.items()) for m in engine.program.all_maps}
        check(name, filled, Outcome(rows, comparable(obj, name, maps)))
        assert totals["rx_packets"] == len(frames)
        assert totals["rx_packets"] == sum(
            totals[v] for v in ("aborted", "drop", "pass", "tx", "redirect"))
        assert totals["tx"] + totals["redirect"] == len(port.sent)
    finally:
        engine.close()
        port.close()
