"""Changes while a worker is late: the others make them, it makes them before its next packet, and
nothing that it may still use is given back before."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dataplane.engine import Engine, Worker
from dataplane.whereabouts import CpuTime
from tests.control.run_xdpu import until
from tests.dataplane.test_engine import example, moves, port, running
from xdp_runtime.errors import XdpuError


@contextmanager
def held_up(engine: Engine, number: int) -> Iterator[threading.Event]:
    """A worker stays between two batches until the event is set, at the latest at the end."""
    engine._late.patience_s = 0.1
    worker = engine.workers[number]
    go_on, held = threading.Event(), threading.Event()

    def stay(_: Worker) -> None:
        held.set()
        go_on.wait(60)

    worker.between(stay)
    until(held.is_set, "the worker to be held up")
    try:
        yield go_on
    finally:
        go_on.set()


def come(engine: Engine) -> list[int]:
    found: list[int] = until(engine.settle, "the worker that was late")
    return found


def per_worker(engine: Engine, counter: str) -> list[int]:
    return [engine.stats.flow(i)[counter] for i in range(len(engine.stats.flows))]


def test_a_late_worker_makes_the_change_before_its_next_packet(tmp_path: Path) -> None:
    with running("pass", [port()], tmp_path) as engine, held_up(engine, 1) as go_on:
        engine.replace(example("drop"))
        (told,) = engine.late()
        assert re.fullmatch(r"worker 1 \(for \d s between batches, in system call \d+, state S\)",
                            told)
        until(lambda: moves(engine, "drop"), "the other worker to drop")
        assert not engine.settle()
        passed = per_worker(engine, "pass")[1]
        go_on.set()
        assert come(engine) == [1] and engine.late() == [] and engine.settle() == []
        until(lambda: per_worker(engine, "drop")[1], "the late worker to drop")
        assert per_worker(engine, "pass")[1] == passed


def test_changes_of_a_late_worker_are_made_in_their_order(tmp_path: Path) -> None:
    with running("pass", [port()], tmp_path) as engine, held_up(engine, 0) as go_on:
        for name in ("counter", "drop", "counter"):
            engine.replace(example(name))
        assert len(engine.late()) == 1, "one worker, however many changes wait for it"
        kept = [p.name for p in (tmp_path / "maps").iterdir()]
        assert kept.count("counters") == 1
        go_on.set()
        assert come(engine) == [0]
        until(lambda: moves(engine, "rx_packets"), "packets")
        engine.stop()
        counters = engine.program.raw_maps["counters"]
        assert sum(1 for _ in counters.items()) > 0, "it runs what came last"


def test_a_port_is_closed_when_the_late_worker_has_left_it() -> None:
    first, second = port(name="first"), port(name="second", ifindex=2)
    closed: list[str] = []
    with running("drop", [first, second]) as engine:
        with held_up(engine, 1) as go_on:
            gone, _ = engine.remove_port("second")
            engine.when_settled(lambda: closed.append(gone.name))
            assert gone is second and not closed and engine.late()
            third = port(name="third", ifindex=3)
            engine.add_port(third)
            go_on.set()
            assert come(engine) == [1] and closed == ["second"]
            until(lambda: per_worker(engine, "rx_packets")[-1], "packets of the third port")
        engine.when_settled(lambda: closed.append("at once"))
        assert closed[-1] == "at once"
        engine.stop()
        third.close()


def test_a_worker_that_has_ended_is_waited_for_by_nobody() -> None:
    ending = port(count=64)
    engine = Engine(example("drop"), [ending], exit_when_idle=True)
    engine.start()
    assert engine.wait(20)
    engine.replace(example("pass"))
    assert engine.late() == []
    engine.close()
    ending.close()


def test_a_change_before_the_start_is_made_at_once() -> None:
    endless = port()
    engine = Engine(example("drop"), [endless], busy_poll=True)
    engine.replace(example("pass"))
    assert engine.late() == []
    engine.start()
    until(lambda: engine.stats.total()["pass"], "packets")
    assert engine.stats.total()["drop"] == 0
    engine.stop()
    engine.close()
    endless.close()


def test_a_worker_that_does_not_stop_is_told_of_with_where() -> None:
    with running("drop", [port()]) as engine, held_up(engine, 1) as go_on:
        with pytest.raises(XdpuError, match=r"worker 1: did not stop within 0.1 s: between "
                                            r"batches, in system call \d+"):
            engine.stop(0.1)
        go_on.set()


def test_a_thread_that_runs_and_one_that_has_no_cpu() -> None:
    """Two that never pause on one CPU: of the time, one half is spent waiting."""
    cpu = min(os.sched_getaffinity(0))
    engine = Engine(example("drop"), [one := port(queues=2)], busy_poll=True, cpus=[cpu, cpu])
    engine.start()
    try:
        first = engine.workers[0]
        until(lambda: first.thread_id and first.rounds, "its first round")
        before = CpuTime.of(first.thread_id)
        assert before is not None, "CONFIG_SCHED_INFO"

        def both() -> bool:
            now = CpuTime.of(first.thread_id)
            assert now is not None
            return now.ran_s > before.ran_s + 0.02 and now.waited_s > before.waited_s + 0.02

        until(both, "the scheduler to let both run")
    finally:
        engine.stop()
        engine.close()
        one.close()
