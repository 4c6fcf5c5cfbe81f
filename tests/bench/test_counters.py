"""Counters of this thread; where there is no PMU, a software event shows that they count."""

from __future__ import annotations

import time
from functools import partial

import pytest

from bench import counters, prog
from bench.cases import choose
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


def test_a_shared_pmu_is_scaled_and_one_that_was_never_ours_is_told() -> None:
    assert counters.whole((5, 100, 100), (25, 300, 300)) == 20
    assert counters.whole((0, 100, 50), (30, 400, 150)) == 90  # a third of the time
    with pytest.raises(OSError, match="in use by somebody else"):
        counters.whole((0, 0, 0), (0, 400, 0))


@pytest.fixture
def software(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ns of the thread's clock instead of cycles, which go the same way through everything."""
    try:
        with counters.Counters({"ns": counters.TASK_CLOCK}):
            pass
    except OSError as error:
        pytest.skip(f"perf_event_open: {error.strerror}")
    monkeypatch.setattr(counters, "refusal", str)
    monkeypatch.setattr(counters, "_HARDWARE", {"cycles": counters.TASK_CLOCK,
                                                "instructions": counters.TASK_CLOCK})


def test_counts_of_a_row_are_net_and_a_packet(software: None) -> None:
    """A program of some hundred ns, on both sides; what is counted is about what is timed."""
    row = prog.measure(choose(["helpers"])[0], prog.Plan(20_000, 3))
    assert row["ok"] and set(row["counters"]) == {"kernel", "ours"}
    for side, counted in row["counters"].items():
        assert counted["cycles"] > 0
        assert counted["instructions"] > row[side]["net"]["median"] / 4
    assert any(text.startswith("kernel: ") and text.endswith("instructions")
               for text in prog.remarks(row))


def test_counters_in_use_leave_the_figures(software: None, monkeypatch: pytest.MonkeyPatch
                                           ) -> None:
    monkeypatch.setattr(counters, "_read", lambda fd: (0, 0, 0))
    row = prog.measure(choose(["tx"])[0], prog.Plan(100, 1))
    assert row["ok"] and row["counters"] is None and "ratio" in row
    assert row["notes"] == ["no cycles and instructions: the counters are in use by somebody else"]
