"""bench.io: every system does every action on its wires and is counted; what is wrong is said."""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench import io, io_table, systems
from bench.search import Trial
from bench.source import Sent
from tests.privileges import needs_bpf
from xdp_runtime.errors import ConfigError

netns = [*needs_bpf(), pytest.mark.netns, pytest.mark.timeout(120), pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="source and loop need a CPU each")]
needs_c = pytest.mark.skipif(
    not shutil.which("gcc") or not Path("/usr/include/xdp/xsk.h").exists(),
    reason="the loop is C: needs gcc and libxdp's headers")
needs_dpdk = pytest.mark.skipif(
    find_spec("dpdk._native") is None or not all(map(shutil.which, ("gcc", "dpdk-testpmd"))),
    reason="needs gcc, libdpdk-dev and dpdk-testpmd")

TURNS = [("drop", name) for name in ("ours", "c", "native")] \
    + [("tx", name) for name in ("ours", "ours-xsk", "c", "native", "generic")] \
    + [("redirect", name) for name in ("ours", "c", "generic")] \
    + [("pass", name) for name in ("ours-skb", "ours-live", "ours-tap", "none")]


def marked(action: str, system: str) -> Any:
    is_c = system == "c" or action == "pass"
    return pytest.param(action, system, marks=[*netns, needs_c] if is_c else netns)


@pytest.mark.parametrize(("action", "system"), [marked(*turn) for turn in TURNS])
def test_a_turn(action: str, system: str) -> None:
    if system == "c":
        assert systems.build_c_loop() == ""
    plan = io.Plan.on(seconds=0.05)
    with io.path(system, action, plan) as (way, _):
        flood = way.flood(plan.seconds)
        assert flood["mpps"] > 0 and 0 < flood["taken"] <= 1
        load = way.load(0.5, 5000, 0.05)
    assert load["sent"] > 0
    if action == "drop":
        assert "p50_ns" not in load
    elif load["lost"] < load["sent"]:
        assert 0 < load["p50_ns"] <= load["p99_ns"] <= load["p999_ns"]
        assert sum(load["histogram"].values()) == pytest.approx(load["sent"] - load["lost"], abs=64)


@pytest.mark.parametrize(("port", "action", "source"), [
    pytest.param(*case, marks=[*netns, needs_c]) for case in (
        ("afpacket", "tx", "auto"), ("afpacket", "redirect", "afpacket"), ("tap", "drop", "auto"),
        ("tap", "tx", "afpacket"))])
def test_other_ports(port: str, action: str, source: str) -> None:
    measured(port, action, "ours", source)


@pytest.mark.dpdk
@pytest.mark.parametrize(("port", "action", "system", "source"), [
    pytest.param(*case, marks=[*netns, needs_dpdk]) for case in (
        ("dpdk:net_memif", "drop", "ours", "auto"), ("dpdk:net_memif", "tx", "ours", "auto"),
        ("dpdk:net_memif", "redirect", "ours", "auto"), ("dpdk:net_memif", "pass", "ours", "auto"),
        ("dpdk:net_memif", "redirect", "testpmd", "auto"),
        ("dpdk:net_af_xdp", "tx", "ours", "auto"),
        ("dpdk:net_af_xdp", "pass", "ours", "auto"),
        ("dpdk:net_af_packet", "redirect", "ours", "auto"), ("afxdp", "tx", "ours", "dpdk"))])
def test_dpdk(port: str, action: str, system: str, source: str) -> None:
    measured(port, action, system, source)


def measured(port: str, action: str, system: str, source: str) -> None:
    plan = io.Plan.on(port=port, seconds=0.05, source=source)
    with io.path(system, action, plan) as (way, _):
        flood = way.flood(plan.seconds)
        assert 0 < flood["taken"] <= 1 and flood["cpu_ns"] > 0
        load = way.load(0.5, 5000, 0.05)
    assert load["sent"] > 0
    if action != "drop" and load["lost"] < load["sent"]:
        assert 0 < load["p50_ns"] <= load["p99_ns"] <= load["p999_ns"]


@pytest.mark.dpdk
@pytest.mark.parametrize("port", [pytest.param("dpdk:net_memif", marks=[*netns, needs_dpdk])])
def test_a_source_of_dpdk_has_a_limit(port: str) -> None:
    assert io.limit(io.Plan.on(port=port, seconds=0.05)) > 0


@pytest.mark.parametrize(("action", "name"), [marked("drop", "ours"), marked("drop", "c")])
def test_loops_that_share_the_sources_cpu(action: str, name: str) -> None:
    if name == "c":
        assert systems.build_c_loop() == ""
    plan = io.Plan.on(seconds=0.05, shares=True)
    assert plan.loop_cpus == plan.source_cpus
    with io.path(name, action, plan) as (way, _):
        flood = way.flood(plan.seconds)
    assert flood["taken"] > 0 and flood["cpu_ns"] > 0


@pytest.mark.parametrize("queues", [pytest.param(2, marks=[*netns, pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 4, reason="two sources and two loops need four CPUs")])])
def test_both_queues_get_packets(queues: int) -> None:
    plan = io.Plan.on(queues, seconds=0.05)
    assert [cpu % 2 for cpu in plan.source_cpus] == [0, 1]
    with io.path("ours", "tx", plan) as (way, _):
        assert way.flood(plan.seconds)["taken"] > 0
        assert way.trial(4000, 0.05).sent > 0


@pytest.mark.parametrize("action", [pytest.param("tx", marks=[*netns, needs_c])])
def test_a_whole_run(action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert io.main(["--action", action, "--rounds", "1", "--seconds", "0.05", "--no-search",
                    "--out", str(tmp_path), "-j"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "bench.json").read_text())
    row, = result["rows"]
    assert set(row["systems"]) == {"ours", "ours-xsk", "c", "native", "generic"}
    assert len(row["ratios"]["ours/c"]) == 1 and result["source_mpps"][0] > 0
    text = io.markdown(result)
    assert "**tx**" in text and "The source (live) alone" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_more_than_was_sent_is_no_figure() -> None:
    class Played(io.Way):
        def send(self, seconds: float, rate: float = 0.0) -> Sent:
            return Sent(1000, 0.5)

    counts = iter([0, *[1200] * 1000])
    with pytest.raises(RuntimeError, match="1200 packets done of 1000 sent"):
        Played([], lambda: next(counts), None).flood(0.5)


def test_who_was_the_limit_is_said() -> None:
    flood = {"mpps": 2.0, "offered_mpps": 2.0, "taken": 0.999}
    assert io_table.cells("ours", {"flood": [flood]})[1] == ">2.00 (2.00-2.00)"
    assert io_table.cells("ours", {"flood": [flood | {"taken": 0.5}]})[1] == "2.00 (2.00-2.00)"
    load = {"share": 0.1, "sent": 1000, "lost": 10, "p50_ns": 2000, "p99_ns": 4000,
            "p999_ns": 9000}
    searched = {"flood": [flood], "zero_loss_mpps": 1.5, "is_source": True, "loads": [load]}
    assert io_table.cells("ours", searched)[3:] == ["", ">1.50", "2 4 9, lost 1.00%"]
    nothing = searched | {"zero_loss_mpps": 0.0, "loads": []}
    assert io_table.cells("ours", nothing)[4:] == ["-"]
    assert io_table.cells("ours", {"flood": [flood | {"cpu_ns": 20.6}]})[3] == "21"


@pytest.mark.parametrize(("kept", "why"), [(False, "could keep none"), (True, "lost something")])
def test_a_search_that_finds_nothing_says_why(kept: bool, why: str) -> None:
    class Played(io.Way):
        def trial(self, rate: float, seconds: float = 0.3) -> Trial:
            return Trial(rate, 100, 1, kept)

    way = Played([], int, None)
    found = io.search(way, io.Plan.on(), [{"mpps": 0.001}])
    assert found["zero_loss_mpps"] == 0 and found["loads"] == [] and why in way.complaints[0]


def test_many_complaints_are_few_lines() -> None:
    noisy = [f"ours, round {n}: a noisy neighbour: other CPUs did {n}0%" for n in range(1, 4)]
    said = io_table.summary([*noisy, "c, search: the source stalled for 9.0 ms"])
    assert said == [f"{noisy[0]} (and 2 more like this)",
                    "c, search: the source stalled for 9.0 ms"]


def test_cpus() -> None:
    with pytest.raises(ConfigError, match="need a source's CPU each"):
        io.Plan.on(1000)
    plan = io.Plan.on(1, [0], [1])
    assert plan.source_cpus == (0,) and plan.loop_cpus == (1,) and not plan.shares
    every = sorted(os.sched_getaffinity(0), reverse=True)
    crowded = io.Plan.on(len(every), every)
    assert crowded.shares and crowded.loop_cpus == crowded.source_cpus == tuple(every)


@pytest.mark.parametrize(("words", "why"), [
    (["--port", "tap", "--action", "redirect"], "there is no second one"),
    (["--port", "tap", "--action", "pass"], "no stack behind it"),
    (["--port", "dpdk:net_af_packet", "--action", "pass"], "its own copy of every frame"),
    (["--port", "dpdk:net_null"], "makes its packets itself"),
    (["--port", "dpdk:net_ring0"], "python -m bench.dpdk ring-tx"),
    (["--port", "dpdk:net_pcap"], "no port for which there are wires here"),
    (["--port", "token-ring"], "one of afxdp, afpacket, tap, dpdk:net_memif"),
    (["--port", "dpdk", "--source", "live"], "memif has none"),
    (["--port", "dpdk", "--queues", "2"], "there is one flow"),
    (["--port", "afpacket", "--queues", "2"], "is measured with one queue")])
def test_what_cannot_be_measured_is_refused(words: list[str], why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        io.main(words)
    assert why in str(caught.value)


def test_only_known_actions() -> None:
    with pytest.raises(SystemExit):
        io.main(["--action", "dance"])
    with pytest.raises(SystemExit):
        io.main(["--systems", "theirs"])


@pytest.mark.perf
@pytest.mark.parametrize("action", [pytest.param(a, marks=[*netns, needs_c])
                                    for a in ("drop", "tx", "redirect")])
def test_beside_c(action: str) -> None:
    ratios = io.measure(action, io.Plan.on(search=False))["ratios"]
    name = "ours/c" if action == "drop" else "ours-xsk/c"
    assert sorted(ratios[name])[len(ratios[name]) // 2] >= 0.9
