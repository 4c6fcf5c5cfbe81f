"""Redirects through the worker's loop, on ports in memory: to all entries, and with programs."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from dataplane.engine import Engine
from dataplane.memory import MemoryPort
from xdp_runtime.elf import read_object
from xdp_runtime.program import Program

OBJECT = Path(__file__).parent / "objects" / "redirects.o"
ONE, TWO, THREE = 11, 12, 13  # interfaces


def frame(first: int, second: int = 0, third: int = 0, length: int = 64) -> bytes:
    return bytes([first, second, third]) + bytes(i & 0xFF for i in range(length - 3))


def entry(target: int, program: int = 0) -> bytes:
    return struct.pack("<II", target, program)


def fill(program: Program, name: str, entries: Mapping[int, tuple[int, str]]) -> None:
    for key, (target, second) in entries.items():
        number = program.program_number(second) + 1 if second else 0
        program.maps[name].update(struct.pack("<I", key), entry(target, number))


class Outcome:
    """What left by each interface, what became of each packet, the counters, and `seen`."""

    def __init__(self, program: str, frames: Sequence[bytes],
                 entries: Mapping[str, Mapping[int, tuple[int, str]]], opt: int = 3,
                 trace_aborted: int = 0) -> None:
        ports = [MemoryPort(frames, record=True, name="one", ifindex=ONE),
                 MemoryPort([], name="two", ifindex=TWO), MemoryPort([], name="three",
                                                                     ifindex=THREE)]
        engine = Engine(read_object(OBJECT), ports, program=program, exit_when_idle=True, opt=opt,
                        trace_aborted=trace_aborted)
        for name, rows in entries.items():
            fill(engine.program, name, rows)
        engine.start()
        try:
            assert engine.wait(30)
        finally:
            engine.stop()
        self.total = {k: v for k, v in engine.stats.total().items() if v}
        self.sent = [port.sent for port in ports]
        self.results = ports[0].results
        self.seen = [struct.unpack("<Q", bytes(v))[0] for _, v in  # type: ignore[arg-type]
                     engine.program.maps["seen"].items()]
        self.aborted = [row for worker in engine.workers for row in worker.aborted.counts()]
        self.kept = [row for worker in engine.workers for row in worker.aborted.packets()]
        engine.close()
        for port in ports:
            port.close()


@pytest.mark.parametrize("opt", [0, 3])
def test_to_all_entries(opt: int) -> None:
    frames = [frame(0, length=64), frame(1, length=999)]
    got = Outcome("many", frames, {"ports": {0: (ONE, ""), 3: (TWO, ""), 7: (THREE, "")}}, opt)
    assert got.sent == [frames, frames, frames]
    assert [r.data for r in got.results] == frames
    assert got.total["redirect"] == got.total["broadcast"] == 2
    assert got.total["broadcast_copies"] == 6
    assert got.total["tx_bytes"] == 3 * (64 + 999)


@pytest.mark.parametrize(("program", "name"), [("others", "ports"), ("many_hashed", "hashed")])
def test_to_all_but_where_it_came_from(program: str, name: str) -> None:
    frames = [frame(0), frame(1, length=1500)]
    got = Outcome(program, frames, {name: {0: (ONE, ""), 3: (TWO, ""), 5: (THREE, "")}})
    assert got.sent == [[], frames, frames]
    assert got.total["broadcast_copies"] == 4


def test_to_all_of_none_is_a_redirect_all_the_same() -> None:
    got = Outcome("many", [frame(0)] * 3, {})
    assert got.total["redirect"] == got.total["broadcast"] == 3
    assert "broadcast_copies" not in got.total
    assert len(got.results) == 3


def test_a_copy_that_is_lost_is_counted() -> None:
    got = Outcome("many", [frame(0)], {"ports": {0: (TWO, ""), 1: (99, ""), 2: (THREE, "")}})
    assert got.sent == [[], [frame(0)], [frame(0)]]
    assert got.total["redirect_no_port"] == 1


@pytest.mark.parametrize("opt", [0, 3])
def test_each_copy_is_seen_by_its_own_program(opt: int) -> None:
    given = frame(0, length=100)
    got = Outcome("many", [given], {"ports": {0: (TWO, "stamp"), 1: (THREE, ""),
                                              2: (ONE, "stamp")}}, opt)
    assert got.sent == [[bytes([ord("s"), ONE, ONE, 104]) + given],
                        [bytes([ord("s"), TWO, ONE, 104]) + given], [given]]
    assert got.seen[:3] == [ONE, ONE, 0]
    assert got.results[0].data == given


@pytest.mark.parametrize(("program", "name"), [("one", "ports"), ("one_hashed", "hashed")])
@pytest.mark.parametrize("target", [ONE, TWO])
def test_the_program_of_an_entry(program: str, name: str, target: int) -> None:
    given = [frame(4, length=64), frame(5, length=64)]
    got = Outcome(program, given, {name: {4: (target, "stamp"), 5: (target, "")}})
    stamped = bytes([ord("s"), target, ONE, 68]) + given[0]
    assert got.sent[(ONE, TWO).index(target)] == [stamped, given[1]]
    assert got.seen[:3] == [target, ONE, 0]
    assert got.total["redirect"] == 2


def test_verdicts_of_the_program_of_an_entry() -> None:
    given = [frame(1, verdict) for verdict in (0, 1, 2, 3, 4, 5, 200)]
    got = Outcome("one", given, {"ports": {1: (TWO, "judge")}}, trace_aborted=3)
    assert got.sent == [[], [given[2]], []]
    assert got.total["redirect"] == 7
    assert got.total["egress_drop"] == 1
    assert got.total["egress_aborted"] == 5
    assert {reason.split(":")[0]: count for _, reason, count in got.aborted} == {
        "the program returned XDP_ABORTED": 1, "a verdict that does not exist": 2,
        "a verdict that does not count there": 2}
    assert [(row.verdict, row.data) for row in got.kept] == [
        (0, given[0]), (3, given[3]), (4, given[4])]
    assert len(got.results) == 7  # and every frame came back


def test_programs_and_entries_that_do_not_fit() -> None:
    from xdp_runtime.program import load

    with load(read_object(OBJECT), "one") as program:
        ports = program.maps["ports"]
        key = struct.pack("<I", 1)
        for number in (program.program_number("one") + 1, 63, 64, 1 << 31):
            with pytest.raises(OSError, match="Invalid argument"):
                ports.update(key, entry(TWO, number))
        with pytest.raises(OSError, match="Invalid argument"):
            ports.update(key, entry(0, program.program_number("judge") + 1))
        with pytest.raises(KeyError):
            program.program_number("there")  # xdp/cpumap: no map of `one` could run it


def test_why_packets_are_aborted() -> None:
    given = [frame(n) for n in (0, 1, 2, 3, 4, 2, 9)]
    got = Outcome("aborts", given, {}, trace_aborted=100)
    assert got.total["aborted"] == 6
    assert got.total["pass"] == 1
    assert (got.total["aborted_program"], got.total["aborted_redirect"],
            got.total["invalid_verdict"]) == (2, 3, 1)
    assert sorted(count for _, _, count in got.aborted) == [1, 2, 3]
    assert [row.data for row in got.kept] == [g for g in given if g[0] != 4]
    assert {row.program for row in got.kept} == {0}
