"""bench.verify: a row for each program, and what either side refuses."""

from __future__ import annotations

import json

import pytest

from bench import verify
from bench.cases import EXAMPLES
from control.cli import main
from tests.privileges import needs_bpf

pytestmark = needs_bpf()


def test_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "verify", str(EXAMPLES / "tx.o"), "--rounds", "2", "-j"]) == 0
    row, = json.loads(capsys.readouterr().out)["rows"]
    assert row["ok"] and row["insns"] > 5 and len(row["ours_ms"]["samples"]) == 2
    assert row["kernel_ms"]["median"] > 0
    assert row["name"] in verify.text(row)
    assert f"| {row['name']} | {row['insns']} | " in verify.markdown({"rows": [row]})


def test_a_refused_program_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    fault = EXAMPLES.parent / "tests" / "control" / "objects" / "fault.o"
    assert verify.main([str(fault), "--rounds", "1", "-j"]) == 0
    row = json.loads(capsys.readouterr().out)["rows"][0]
    assert row["ok"] is False and "kernel_refuses" in row and "kernel_ms" not in row
    assert "refused" in verify.text(row) and verify.markdown({"rows": [row]}).endswith("refused |")
