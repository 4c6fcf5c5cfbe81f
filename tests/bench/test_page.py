"""The page of a report: whole in one file, with plots where there is matplotlib, tables always."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import histogram, page, plots
from bench.prog import summary
from bench.samples import ROOT, machine
from tests.privileges import needs_bpf

MISSING = pytest.mark.skipif(bool(plots.refusal()), reason=plots.refusal() or "no plots")


def side(*net: float) -> dict[str, Any]:
    return summary([{"raw": value + 2, "floor": 2, "net": value} for value in net])


ROW = {"name": "<tx>", "verdict": "TX", "ok": True, "method": "plain",
       "kernel": side(12, 12, 13), "ours": side(2, 2.5, 3), "notes": ["one & only"],
       "ratio": {"median": 6.0, "min": 4.0, "max": 8.0, "low": 5.0, "high": 7.0},
       "noise": {"complaints": ["a noisy neighbour: cat"]},
       "cold": {"kernel": side(50), "ours": side(30), "ratio": None},
       "flows": [{"flows": n, "kernel": side(12 + n), "ours": side(2 + n), "ratio": None}
                 for n in (1, 100)]}
IO_ROW = {"action": "tx", "complaints": ["ours: the source stalled"], "ratios": {}, "systems": {
    "ours": {"flood": [{"mpps": 1.0}, {"mpps": 1.2}], "loads": [
        {"rate": 1e6, "histogram": {"200": 90, "220": 10}}]},
    "kernel": {"flood": [{"mpps": 2.0}], "loads": []}}}


def report(**more: Any) -> dict[str, Any]:
    return {"quick": False, "machine": machine(), "missing": {}, "benches": {"prog": {
        "bench": "prog", "counters": "none here", "notes": [], "rows": [ROW]}}, **more}


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]


def test_nothing_is_fetched_and_nothing_unescaped() -> None:
    text = page.page(report())
    reader = Reader()
    reader.feed(text)
    assert not [link for link in reader.links if not link.startswith("#")]
    assert "&lt;tx&gt;" in text and "<tx>" not in text
    assert "one &amp; only" in text and "<tx>: a noisy neighbour" not in text
    assert "a noisy neighbour: cat" in text
    assert reader.tags.count("table") == 1


def test_samples_are_in_the_page() -> None:
    text = page.page(report())
    found = re.search(r"id='samples'>(.*?)</script>", text, re.DOTALL)
    assert found is not None
    assert json.loads(found[1])["benches"]["prog"]["rows"][0]["ours"]["samples"]["net"] == [
        2, 2.5, 3]


def test_marks() -> None:
    text = page.page(report(quick=True, interrupted=True, waiting=["io"], missing={"io": "root"}))
    assert "these are not figures" in text
    assert "Not measured: io" in text and "Not measured: io (root)" in text


def test_a_mismatch_has_no_bar() -> None:
    bad = {"name": "tx", "verdict": "TX", "ok": False, "mismatch": "packet: byte 3"}
    one = report()
    one["benches"]["prog"]["rows"] = [bad]
    text = page.page(one)
    assert "<svg" not in text and "class=bad>mismatch" in text


@MISSING
def test_plots_are_drawings_with_ids_of_their_own() -> None:
    drawn = [plots.bars([ROW], "a"), plots.flows([ROW], "a"), plots.rates([IO_ROW], "io"),
             plots.latencies([IO_ROW], "io")]
    for svg in drawn:
        assert ElementTree.fromstring(svg).tag.endswith("svg")
    clips = [set(re.findall(r'<clipPath id="(\w+)"', svg)) for svg in drawn]
    assert not set.intersection(*clips[:2]) and not set.intersection(*clips[2:])
    assert "kernel" in drawn[0] and "6.0x" in drawn[0]
    assert page.page(report()).count("<svg") == 3
    assert plots.bars([], "a") == plots.flows([], "a") == plots.latencies([], "a") == ""


@MISSING
def test_the_same_report_gives_the_same_page() -> None:
    one = report()
    assert page.page(one) == page.page(copy.deepcopy(one))


def test_without_matplotlib_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "refusal", lambda: "no plots: matplotlib is not installed")
    text = page.page(report())
    assert "no plots: matplotlib" in text and "<svg" not in text and "<table>" in text


@pytest.mark.parametrize(("bucket", "end"), [(0, 1), (3, 4), (64, 17), (128 + 15, 512)])
def test_latency_buckets(bucket: int, end: int) -> None:
    assert plots.upper_ns(bucket) == histogram.upper_ns(bucket) == end


_WHEEL = """
import sys; sys.modules['tests'] = None
import bench.compare, bench.page, bench.prog, bench.verify, bench.uxdp
from bench import cases, compile_time
from bench.micro import cases as micro
from pathlib import Path
compile_time.PROGRAMS = micro.PROGRAMS = Path('/none')
cases.CASES = tuple(__import__('dataclasses').replace(c, path=Path('/none') / c.object_path.name)
                    for c in cases.CASES)
from control.cli import main
print(*(main(['bench', *words.split()]) for words in sys.argv[1:]))
"""


@pytest.mark.parametrize("words", [("io",), ("prog",), ("prog tx",), ("load",), ("micro empty",)])
def test_what_is_not_installed_is_said(words: tuple[str, ...]) -> None:
    """The wheel has neither tests nor examples nor the C of bench.micro."""
    if words[0].startswith("micro") and shutil.which("clang") is None:
        pytest.skip("bench.micro needs clang in any case")
    done = subprocess.run([sys.executable, "-c", _WHEEL, *words], cwd=ROOT, capture_output=True,
                          text=True, check=False)
    assert done.stdout.splitlines()[-1] == "2", done.stderr
    assert "run it in a clone of the repository" in done.stderr


@pytest.mark.parametrize("words", [pytest.param("prog uxdp/tx --repeat 200 --rounds 1",
                                                marks=needs_bpf())])
def test_what_is_installed_is_measured(words: str) -> None:
    done = subprocess.run([sys.executable, "-c", _WHEEL, words], cwd=ROOT, capture_output=True,
                          text=True, check=False)
    assert done.stdout.splitlines()[-1] == "0", done.stderr
