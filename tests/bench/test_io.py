"""bench.io: each system's loop is fed, counted and ended; what cannot be true is refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from bench import io
from bench.samples import cpus
from bench.traffic import Sent
from tests.privileges import needs_bpf

netns = [*needs_bpf(), pytest.mark.netns, pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="source and loop need a CPU each")]
needs_c = pytest.mark.skipif(
    not shutil.which("gcc") or not Path("/usr/include/xdp/xsk.h").exists(),
    reason="the loop is C: needs gcc and libxdp's headers")


def marked(system: str) -> object:
    return pytest.param(system, marks=[*netns, needs_c] if system == "c" else netns)


@pytest.mark.parametrize("system", [marked(system) for system in io.SYSTEMS])
@pytest.mark.parametrize("action", io.ACTIONS)
def test_a_turn(system: str, action: str) -> None:
    if system == "c":
        assert io.build_c_loop() == ""
    source, loop = cpus(2)
    sample = io.turn(system, action, 0.1, source, loop)
    assert 0 < sample["mpps"] <= sample["offered_mpps"] * 1.01
    assert 0 < sample["taken"] <= 1
    if action == "tx":
        assert sample["returned"] > 0
        assert sample["mpps"] == pytest.approx(
            sample["offered_mpps"] * sample["returned"] / sample["received"] * sample["taken"],
            rel=0.05)
    else:
        assert sample["returned"] < 100  # neighbours say hello


def test_more_than_was_sent_is_no_figure() -> None:
    sent = Sent(1000, 0.5)
    for received in (0, 1200):
        with pytest.raises(RuntimeError, match="1000 sent"):
            io._judge("drop", sent, received, 0)
    assert io._judge("tx", sent, 1010, 500)["mpps"] == pytest.approx(0.001)
    assert io._judge("drop", sent, 500, 0)["taken"] == 0.5


def test_table() -> None:
    spread = {"median": 2.0, "min": 1.0, "max": 3.0}
    column = {"mpps": spread, "offered_mpps": spread, "taken": {**spread, "median": 0.5}}
    row = {"action": "drop", "ours": column, "kernel": column, "ours_to_kernel": spread}
    lines = io.markdown({"rows": [row]}).splitlines()
    assert lines[-1] == "| drop | 2.00 (1.00-3.00) | - | 2.00 (1.00-3.00) | - | 2.0 | 50% |"
    assert len({line.count("|") for line in lines}) == 1


def test_only_known_actions() -> None:
    for argv in (["pass"], ["--cpus", "1"]):
        with pytest.raises(SystemExit):
            io.main(argv)


@pytest.mark.perf
@pytest.mark.parametrize("action", [pytest.param(a, marks=[*netns, needs_c]) for a in io.ACTIONS])
def test_beside_c(action: str) -> None:
    result = io.run([action], 5, 1.0, cpus(2))
    assert result["rows"][0]["ours_to_c"]["median"] >= 0.9
