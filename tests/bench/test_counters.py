"""Counters of this thread; where there is no PMU, a software event shows that they count."""

from __future__ import annotations

import time
from functools import partial

import pytest

from bench import counters
from tests.privileges import needs_bpf

pytestmark = needs_bpf()


def burn(seconds: float) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def test_task_clock_counts_this_thread() -> None:
    try:
        opened = counters.Counters({"ns": counters.TASK_CLOCK})
    except OSError as error:
        pytest.skip(f"perf_event_open: {error.strerror}")
    with opened as one:
        short, long = (one.count(partial(burn, s))["ns"] for s in (0.01, 0.05))
    assert 0.009e9 < short < long and long > 0.045e9


def test_refusal_is_a_sentence_or_cycles_are_counted() -> None:
    if counters.refusal():
        assert "counters" in counters.refusal() or "perf_event_open" in counters.refusal()
        return

    def microseconds(count: int) -> None:
        burn(count / 1e6)

    assert counters.net({"raw": microseconds, "floor": bool}, 20_000)["cycles"] > 0
