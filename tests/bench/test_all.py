"""bench.all: one record, one table, and README between its markers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import all as everything
from bench import io, maps, plots, prog
from bench.samples import ROOT, Spread, machine
from tests.control.run_xdpu import until

ROW = {"name": "tx", "verdict": "TX", "ok": True, "method": "plain",
       "kernel": {"raw": {"median": 24}, "net": {"median": 12.0, "min": 12, "max": 13}},
       "ours": {"raw": {"median": 2.94}, "net": {"median": 2.0, "min": 1.9, "max": 2.1}},
       "ratio": {"median": 6.0, "min": 4.0, "max": 8.0, "low": 5.0, "high": 7.0}}


MAPS = {"rows": [{"map": "HASH", "operations": {
    "lookup": {"ours": [10.0, 11.0], "kernel": [21.0, 20.0]}}}]}


def result(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"quick": False, "machine": machine(), "missing": {}, "benches": {
        "prog": {"rows": list(rows)}}, **more}


def test_spread() -> None:
    assert Spread.of([3, 1, 2.5]).record() == {"median": 2.5, "min": 1, "max": 3}


def test_markdown_names_the_machine() -> None:
    text = everything.markdown(result(ROW))
    assert "| tx | TX | 12.0 | 2.0 | 6.0 (5.0-7.0) |" in text
    about = machine()
    for word in (about["cpu"], about["kernel"], "Mitigations: ", "llvmlite 0."):
        assert word in text
    assert "these are not figures" not in text
    assert "these are not figures" in everything.markdown(result(ROW, quick=True))


def test_what_is_missing_is_said() -> None:
    text = everything.markdown(result(ROW, missing={"io": "needs root"}))
    assert "Not measured: io (needs root)." in text


def test_a_bench_that_cannot_run_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> dict[str, Any]:
        raise RuntimeError("needs root")

    monkeypatch.setattr(io, "run", refuse)
    measured = everything.measure(["io"], quick=True)
    assert measured["benches"] == {} and measured["missing"] == {"io": "needs root"}


def test_readme() -> None:
    text = "# title\n<!-- bench -->\nold\n<!-- /bench -->\nend\n"
    once = everything.put_into(text, "| table |\n")
    assert once == "# title\n<!-- bench -->\n| table |\n<!-- /bench -->\nend\n"
    assert everything.put_into(once, "| table |\n") == once
    for broken in ("", "<!-- bench -->", "<!-- /bench --> <!-- bench -->"):
        with pytest.raises(ValueError, match="no <!-- bench -->"):
            everything.put_into(broken, "")


@pytest.mark.parametrize(("more", "is_written"), [
    ({}, True), ({"quick": True}, False), ({"interrupted": True, "waiting": ["io"]}, False)])
def test_readme_has_figures_of_whole_runs_only(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], is_written: bool,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(everything, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text("<!-- bench -->\nold\n<!-- /bench -->\n")
    path = everything.save(result(ROW, **more), tmp_path)
    code = everything.main(["--from", str(path), "--readme"])
    assert code == (130 if "interrupted" in more else 0)
    assert ("| tx | TX |" in (tmp_path / "README.md").read_text()) == is_written
    assert ("stays as it is" in capsys.readouterr().err) != is_written


def test_readme_is_brief() -> None:
    both = result(ROW)
    both["benches"]["maps"] = MAPS
    assert "| HASH | lookup | 20.0 | 10.0 |" in everything.markdown(both)
    brief = everything.markdown(both, is_brief=True)
    assert "HASH" not in brief and "| tx | TX |" in brief


def test_what_is_lost_is_said_beside_the_table() -> None:
    slow = ROW | {"name": "sum", "ratio": {"median": 0.7, "low": 0.6, "high": 0.8}, "flows": [
        {"flows": 65_536, "ratio": {"median": 1.0}}, {"flows": 1, "ratio": None}]}
    assert everything.losses([ROW, slow]) == ["sum 0.7", "sum, 65,536 flows 1.0"]
    text = everything.markdown(result(ROW, slow), is_brief=True)
    assert "Not faster than in the kernel: sum 0.7, sum, 65,536 flows 1.0." in text


def test_ctrl_c_keeps_the_benches_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setattr(maps, "run", lambda *_: MAPS)
    monkeypatch.setattr(io, "run", interrupted)
    kept: list[dict[str, Any]] = []
    found = everything.measure(["maps", "io", "start"], True, kept.append)
    assert found["interrupted"] and found["waiting"] == ["io", "start"]
    assert list(found["benches"]) == ["maps"] and kept[-1] is found
    assert "**Interrupted. Not or not all measured: io, start.**" in everything.markdown(found)


def test_a_folder_gets_json_and_page(tmp_path: Path) -> None:
    path = everything.save(result(ROW), tmp_path / "new")
    assert path.name == "bench.json"
    assert "<svg" in (tmp_path / "new" / "bench.html").read_text() or plots.refusal()


def test_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = everything.save(result(ROW), tmp_path)
    assert path.suffix == ".json" and json.loads(path.read_text())["benches"]["prog"]
    assert everything.main(["--from", str(path)]) == 0
    assert "| tx | TX |" in capsys.readouterr().out


def test_disagreement_is_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = {"name": "tx", "verdict": "TX", "ok": False, "mismatch": "packet: byte 3"}
    path = everything.save(result(bad, quick=True), tmp_path)
    assert everything.main(["--from", str(path)]) == 1
    out = capsys.readouterr().out
    assert "| tx | TX | mismatch | mismatch | none |" in out
    assert prog.cells(bad)[3] == "packet: byte 3"


def test_ctrl_c_leaves_a_report_that_says_so(tmp_path: Path) -> None:
    """A real signal to a real run of two benches, once there are figures of the first."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "verify", "prog", "--quick", "--out", str(tmp_path)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True)
    until(lambda: (tmp_path / "bench.json").exists(), "the first bench's figures", 120)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    found = json.loads((tmp_path / "bench.json").read_text())
    assert found["interrupted"] and found["waiting"] == ["prog"]
    assert found["benches"]["verify"]["rows"]
    assert "**Interrupted. Not or not all measured: prog.**" in text
    assert "Interrupted: what was measured until then" in (tmp_path / "bench.html").read_text()


_FULL = """
import subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", sys.argv[1]], check=True)
from bench.all import main
sys.exit(main(["verify", "--quick", "--out", sys.argv[1]]))
"""


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_is_told_and_the_tables_go_on(tmp_path: Path) -> None:
    done = subprocess.run(["unshare", "-m", sys.executable, "-c", _FULL, str(tmp_path)], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "not written: [Errno 28] No space left on device" in done.stderr
    assert "| tx/" in done.stdout


def test_unknown_bench() -> None:
    with pytest.raises(SystemExit):
        everything.main(["no-such-bench"])
