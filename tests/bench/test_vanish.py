"""An interface that vanishes while bench.io measures: said, no figure, and the rest goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from bench import io, systems
from bench.samples import ROOT
from bench.source import Sent, Source
from tests.nets import in_ns
from tests.privileges import needs_bpf

pytestmark = [*needs_bpf(), pytest.mark.netns, pytest.mark.timeout(120), pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="source and loop need a CPU each")]

MEMIF = pytest.param("dpdk:net_memif", marks=[pytest.mark.dpdk, pytest.mark.skipif(
    find_spec("dpdk._native") is None or not shutil.which("gcc"),
    reason="needs gcc and libdpdk-dev")])


def test_it_is_said_and_has_no_figure() -> None:
    plan = io.Plan.on(seconds=0.2)
    with io.path("native", "tx", plan) as (way, wires):
        assert way.flood(plan.seconds)["mpps"] > 0
        way.sources[0].begin(plan.seconds)
        in_ns(wires.source.ns, "ip", "link", "del", wires.source.ifname)
        way.sources[0].wait()
        with pytest.raises(RuntimeError, match=f"interface {wires.source.ifname} vanished while"):
            way.flood(plan.seconds)


def test_other_actions_are_measured_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleted while the first turn's source sends; the second action has its own interfaces."""
    wait = Source.wait
    found = io.path
    there: list[Any] = []  # the interface of the turn that is to lose it

    def vanishing(source: Source) -> Sent:
        if there:
            end = there.pop()
            in_ns(end.ns, "ip", "link", "del", end.ifname)
        return wait(source)

    def path(system: str, action: str, plan: io.Plan) -> Any:
        context = found(system, action, plan)

        class Watched:
            def __enter__(self) -> Any:
                way, wires = context.__enter__()
                there[:] = [wires.source] if action == "tx" else []
                return way, wires

            def __exit__(self, *error: Any) -> Any:
                return context.__exit__(*error)

        return Watched()

    monkeypatch.setattr(Source, "wait", vanishing)
    monkeypatch.setattr(io, "path", path)
    monkeypatch.setattr(systems, "of", lambda action, port: (["native"], {}))
    result = io.run(["tx", "drop"], io.Plan.on(rounds=1, seconds=0.1, search=False))
    first, second = result["rows"]
    assert first["systems"] == {} and "vanished while it was measured" in first["complaints"][0]
    assert second["systems"]["native"]["flood"][0]["mpps"] > 0
    assert "tx: not measured: interface" in io.markdown(result)


@pytest.mark.parametrize("port", [MEMIF])
def test_the_source_of_a_memif_vanishes(port: str) -> None:
    plan = io.Plan.on(port=port, seconds=0.2)
    with io.path("ours", "tx", plan) as (way, _):
        assert way.flood(plan.seconds)["mpps"] > 0
        os.kill(way.sources[0].pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="the source ended"):
            way.flood(plan.seconds)


@pytest.mark.parametrize("port", ["afpacket", MEMIF])
def test_ctrl_c_keeps_what_there_is(port: str, tmp_path: Path) -> None:
    """As from a terminal: every process of the group is told."""
    bench = subprocess.Popen(
        [sys.executable, "-m", "bench.io", "--port", port, "--action", "drop,tx", "--rounds", "1",
         "--seconds", "0.05", "--no-search", "--out", str(tmp_path)], cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert bench.stderr is not None
        assert any("drop done" in line for line in bench.stderr)
        os.killpg(bench.pid, signal.SIGINT)
        said, _ = bench.communicate(timeout=60)
    finally:
        bench.kill()
    assert bench.returncode == 130 and "**drop**" in said
    kept = json.loads((tmp_path / "bench.json").read_text())
    assert kept["interrupted"] and kept["waiting"] == ["tx"]
    assert [row["action"] for row in kept["rows"]] == ["drop"]
    assert kept["rows"][0]["systems"]["ours"]["flood"][0]["mpps"] > 0
