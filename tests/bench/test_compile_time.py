"""bench.compile_time: the program it makes, and what it says of one load."""

from __future__ import annotations

import json

import pytest

from bench import compare, compile_time
from xdp_runtime.compiler import link
from xdp_runtime.interp import Machine
from xdp_runtime.program import load


@pytest.mark.parametrize("count", (20, 100, 5000))
def test_a_made_program_is_proven_and_runs(count: int) -> None:
    obj = compile_time.program_of(count)
    assert len(obj.programs[0].insns) == count
    expected = Machine(obj, obj.programs[0]).run(bytes(64), ingress_ifindex=7).verdict
    with load(obj) as program:
        assert program.run(bytes(64), ingress_ifindex=7).retval == expected


def test_one_load(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "proven_facts", link.proven_facts)  # put back what is clocked
    assert compile_time.main(["--once", "60"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["insns"] == 60 and record["pipeline"] == "O3"
    assert {"verify", "compile", "load", "peak_mb"} < record.keys()


def test_rows() -> None:
    result = compile_time.run(["60"], 1)
    row, = result["rows"]
    assert row["insns"] == 60 and len(row["cold"]["compile"]["samples"]) == 1
    lines = compile_time.markdown(result).splitlines()
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| 60", "empty"], ["| 60", "empty, baseline"], ["| 60", "warm"]]
    assert "load: 60, cold, compile" in compare.figures(result)
