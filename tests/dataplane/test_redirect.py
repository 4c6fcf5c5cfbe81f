"""Redirects through the worker's loop, on ports in memory: to all entries, and with programs."""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping, Sequence

import pytest

from dataplane.engine import Engine
from dataplane.memory import MemoryPort
from tests.dataplane.kernel_redirect import OBJECT, KernelRig
from tests.privileges import needs_bpf
from tests.xdp_runtime.test_fuel import COUNT, GRANTS
from tests.xdp_runtime.test_policy import class_of, make
from xdp_runtime.elf import read_object
from xdp_runtime.program import Program

ONE, TWO, THREE = 11, 12, 13  # interfaces
NUMBERS = {"one": ONE, "two": TWO, "three": THREE}


def frame(first: int, second: int = 0, third: int = 0, length: int = 64) -> bytes:
    return bytes([first, second, third]) + bytes(i & 0xFF for i in range(length - 3))


def entry(target: int, program: int = 0) -> bytes:
    return struct.pack("<II", target, program)


def fill(program: Program, name: str, entries: Mapping[int, tuple[int, str]]) -> None:
    for key, (target, second) in entries.items():
        number = program.program_number(second) + 1 if second else 0
        program.raw_maps[name].update(struct.pack("<I", key), entry(target, number))


class Outcome:
    """What left by each interface, what became of each packet, the counters, and `seen`."""

    def __init__(self, program: str, frames: Sequence[bytes],
                 entries: Mapping[str, Mapping[int, tuple[int, str]]], opt: int = 3,
                 trace_aborted: int = 0, ports: Mapping[str, int] = NUMBERS) -> None:
        self._run(program, frames, entries, opt, trace_aborted, [
            MemoryPort(frames if name == "one" else [], record=name == "one", name=name,
                       ifindex=ifindex) for name, ifindex in ports.items()])

    def _run(self, program: str, frames: Sequence[bytes],
             entries: Mapping[str, Mapping[int, tuple[int, str]]], opt: int, trace_aborted: int,
             ports: list[MemoryPort]) -> None:
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
                     engine.program.raw_maps["seen"].items()]
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
        ports = program.raw_maps["ports"]
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
    assert {row.program for row in got.kept} == {"aborts"}


# ---- beside the kernel ---------------------------------------------------------------------------

_CASES = [
    ("one", "ports", [(4, 0), (5, 0), (6, 0), (2, 0)],
     {4: ("two", "stamp"), 5: ("three", ""), 6: ("one", "stamp")}),
    ("one_hashed", "hashed", [(4, 0), (5, 0), (1, 0)], {4: ("two", "stamp"), 5: ("one", "")}),
    ("one", "ports", [(1, v) for v in (0, 1, 2, 3, 4, 5, 200)], {1: ("two", "judge")}),
    ("many", "ports", [(0, 0), (1, 0)], {0: ("one", "stamp"), 3: ("two", ""),
                                         7: ("three", "stamp")}),
    ("many", "ports", [(9, v) for v in range(6)], {0: ("two", "judge"), 1: ("three", "stamp")}),
    ("others", "ports", [(0, 0), (1, 0)], {0: ("one", ""), 3: ("two", "stamp"), 7: ("three", "")}),
    ("many_hashed", "hashed", [(0, 0), (1, 0)], {0: ("one", ""), 3: ("two", "stamp"),
                                                 9: ("three", "stamp")}),
    ("many", "ports", [(0, 0)], {}),
    ("twice", "ports", [(a, b) for a in range(6) for b in range(6) if min(a, b) < 2],
     {4: ("two", "stamp"), 5: ("three", "")}),
]


@pytest.mark.netns
@pytest.mark.root
@needs_bpf()[1]
@pytest.mark.parametrize("case", range(len(_CASES)))
def test_the_kernel_sends_the_same(case: int) -> None:
    program, name, first_bytes, entries = _CASES[case]
    frames = [frame(a, b, c) for c, (a, b) in enumerate(first_bytes)]
    with KernelRig() as rig:
        theirs, seen = rig.run(program, frames, name, entries)
        numbers = rig.ifindex
    ours = Outcome(program, frames, {name: {key: (numbers[port], second)
                                            for key, (port, second) in entries.items()}},
                   ports=numbers)
    assert ours.sent == theirs
    if program.startswith("one"):  # else the kernel may take the entries in another order
        assert ours.seen == seen


# ---- to other workers ----------------------------------------------------------------------------

class Workers:
    """`to_worker` on so many workers; frame i is received by worker i % workers."""

    def __init__(self, frames: Sequence[bytes], workers: int,
                 entries: Mapping[int, tuple[int, str]], stack: bool = True,
                 to_ports: Mapping[int, tuple[int, str]] | None = None) -> None:
        ports = [MemoryPort(frames, workers, name="one", ifindex=ONE, record=True),
                 MemoryPort([], workers, name="two", ifindex=TWO)]
        taps = {n: MemoryPort([], workers, name=f"tap{n}") for n in range(2)} if stack else {}
        engine = Engine(read_object(OBJECT), ports, program="to_worker", exit_when_idle=True,
                        stack=taps, cpus=None)
        fill(engine.program, "cpus", entries)
        fill(engine.program, "ports", to_ports or {})
        engine.start()
        try:
            assert engine.wait(60)
        finally:
            engine.stop()
        flows = [(name.worker, engine.stats.flow(i)) for i, name in enumerate(engine.stats.flows)]
        self.received = [sum(c["cpu_received"] for w, c in flows if w == n)
                         for n in range(workers)]
        self.total = {k: v for k, v in engine.stats.total().items() if v}
        self.sent = [port.sent for port in ports]
        self.passed = [tap.sent for tap in taps.values()]
        self.given_back = len(ports[0].results)
        engine.close()
        for port in (*ports, *taps.values()):
            port.close()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_to_another_worker_and_from_there_to_the_stack(workers: int) -> None:
    frames = [frame((i // workers + i) % workers, i & 0xFF, i >> 8) for i in range(5000)]
    got = Workers(frames, workers, dict.fromkeys(range(workers), (16384, "")))
    assert sorted(got.passed[0]) == sorted(frames)
    assert got.received == [sum(f[0] == n for f in frames) for n in range(workers)]
    assert got.total["cpu_sent"] == got.total["cpu_received"] == got.total["cpu_pass"] == 5000
    assert got.given_back == 5000
    for n in range(workers):  # in order, from each worker
        for source in range(workers):
            want = [f for i, f in enumerate(frames) if f[0] == n and i % workers == source]
            here = [f for f in got.passed[0] if f in set(want)]
            assert here == want


def test_the_program_of_another_worker() -> None:
    frames = [frame(1, verdict, TWO) for verdict in (0, 1, 2, 3, 4, 5, 99)] * 2
    got = Workers(frames, 2, {0: (64, ""), 1: (64, "there")})
    marked = [f[:3] + b"\1" + f[4:] for f in frames]
    assert sorted(got.passed[0]) == sorted(f for f in marked if f[1] == 2)
    assert sorted(got.sent[1]) == sorted(f for f in marked if f[1] == 4)
    assert (got.total["cpu_drop"], got.total["cpu_aborted"], got.total["cpu_redirect"]) == (2, 8, 2)
    assert got.total["cpu_received"] == 14


def test_from_another_worker_to_an_entry_with_a_program() -> None:
    """The first program knows the map of workers alone."""
    got = Workers([frame(1, 100)], 2, {1: (64, "there")}, to_ports={4: (TWO, "stamp")})
    assert got.sent[1] == [bytes((ord("s"), TWO, ONE, 68, 1, 100, 0, 1)) + frame(1, 100)[4:]]


def test_workers_that_are_not_there_and_queues_that_are_full() -> None:
    got = Workers([frame(3), frame(2), frame(0)], 2, {0: (64, ""), 2: (64, "")})
    assert got.total["cpu_no_worker"] == 1
    assert got.total["aborted"] == 1  # no entry 3, and the flags say XDP_ABORTED
    assert len(got.passed[0]) == 1
    got = Workers([frame(0, i) for i in range(64)], 1, {0: (10, "")})
    assert got.total["cpu_sent"] == 10 and got.total["cpu_full"] == 54
    assert got.passed[0] == [frame(0, i) for i in range(10)]


def test_a_long_run_between_workers_loses_nothing_uncounted() -> None:
    frames = [frame((i * 7) % 3, i & 0xFF, (i >> 8) & 0xFF, 60 + i % 1400)
              for i in range(60_000)]
    got = Workers(frames, 3, dict.fromkeys(range(3), (200, "")), stack=False)
    total = got.total
    assert total["redirect"] == 60_000 == total["cpu_sent"] + total.get("cpu_full", 0)
    assert total["cpu_received"] == total["cpu_sent"] == total["cpu_pass"]
    assert got.given_back == 60_000


def test_a_worker_that_sleeps_is_woken() -> None:
    frames = [frame(1, i & 0xFF) for i in range(64)]
    busy = MemoryPort(frames, 1, name="one", ifindex=ONE, count=2000, discard=True)
    # the second worker's queue of it is empty
    busy.queues = [*busy.queues, MemoryPort([], name="none").queues[0]]
    taps = {0: MemoryPort([], 2, name="tap", discard=True)}
    engine = Engine(read_object(OBJECT), [busy], program="to_worker", stack=taps, batch_size=8)
    fill(engine.program, "cpus", {1: (16384, "")})
    began_s = time.monotonic()
    engine.start()
    try:
        while engine.stats.total()["cpu_received"] < 128_000 - engine.stats.total()["cpu_full"]:
            assert time.monotonic() < began_s + 20
            time.sleep(0.001)
        time.sleep(0.3)
        assert engine.stats.flow(1)["idle_polls"] + engine.stats.flow(2)["idle_polls"] > 0
    finally:
        engine.stop()
        engine.close()


def test_a_budget_that_is_used_up_is_a_reason() -> None:
    port = MemoryPort([frame(0)] * 3, name="one", ifindex=ONE)
    engine = Engine(make(COUNT), [port], exit_when_idle=True, trace_aborted=1,
                    grants=class_of(f"instructions: 100{GRANTS}"))
    engine.start()
    try:
        assert engine.wait(30)
    finally:
        engine.stop()
    assert engine.stats.total()["aborted"] == engine.stats.total()["aborted_budget"] == 3
    assert list(engine.aborted().values()) == [3]
    assert [reason for _, reason in engine.aborted()] == ["its instruction budget was used up"]
    engine.close()
    port.close()
