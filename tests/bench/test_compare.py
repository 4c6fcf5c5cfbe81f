"""xdpu bench compare: a planted slow program is told, noise is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import compare, prog
from bench.cases import EXAMPLES, choose
from bench.prog import summary
from bench.record import RESULTS
from control.cli import main
from tests.privileges import needs_bpf
from xdp_runtime.asm import assemble
from xdp_runtime.elf import read_object
from xdp_runtime.errors import ConfigError
from xdp_runtime.object import Object, ProgramSpec


def row(name: str, ours: list[float], kernel: list[float] | None = None) -> dict[str, Any]:
    sides = {"ours": ours} | ({"kernel": kernel} if kernel is not None else {})
    return {"name": name, "ok": True, **{
        side: summary([{"net": value} for value in values]) for side, values in sides.items()}}


def report(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"bench": "prog", "machine": {"cpu": "one"}, "rows": list(rows), **more}


NOISY = [10.0, 10.4, 9.8, 10.1, 10.2, 9.9, 10.3]


def word(a: list[float], b: list[float]) -> str:
    found = compare.compare(report(row("tx", a)), report(row("tx", b)))
    return str(found["changes"]["prog: tx, ours"]["word"])


def test_words() -> None:
    assert word(NOISY, list(reversed(NOISY))) == "same"
    assert word(NOISY, [value * 1.02 for value in NOISY]) == "same"
    assert word(NOISY, [value * 1.5 for value in NOISY]) == "worse"
    assert word(NOISY, [value * 0.5 for value in NOISY]) == "better"
    assert word([5.0, 20.0, 10.0], [18.0, 6.0, 11.0]) == "same"


def test_below_a_nanosecond_nothing_changes() -> None:
    assert word([0.1, 0.2, 0.15], [0.9, 0.8, 0.7]) == "same"


def test_the_ratio_tells_the_machine_from_the_program() -> None:
    """Both took twice as long: the machine did it."""
    slow = [2 * value for value in NOISY]
    found = compare.compare(report(row("tx", NOISY, NOISY)), report(row("tx", slow, slow)))
    assert found["changes"]["prog: tx, kernel / ours"]["word"] == "same"
    assert found["changes"]["prog: tx, ours"]["word"] == "worse"


def test_more_packets_are_better() -> None:
    a, b = ({"bench": "io", "rows": [{"action": "tx", "systems": {"ours": {
        "flood": [{"mpps": factor * value} for value in NOISY]}}}]} for factor in (1, 2))
    assert compare.compare(a, b)["changes"]["io: tx, ours"]["word"] == "better"


def test_what_only_one_has_and_other_ground() -> None:
    a = report(row("tx", NOISY), row("old", NOISY))
    b = report(row("tx", NOISY), machine={"cpu": "two"}, interrupted=True)
    found = compare.compare(a, b)
    assert found["only_a"] == ["prog: old, ours"] and found["only_b"] == []
    assert found["machines"] == ["cpu: one -> two", "B is interrupted"]
    text = compare.text(found, everything=False)
    assert "0 of 1 figures changed beyond noise" in text
    assert "only in A: prog: old, ours" in text and "not the same ground: cpu" in text


def test_variants_are_figures_of_their_own() -> None:
    varied = row("tx", NOISY) | {"cold": row("", NOISY), "flows": [
        row("", NOISY) | {"flows": 65_536}]}
    assert set(compare.figures(report(varied))) == {
        "prog: tx, ours", "prog: tx, cold, ours", "prog: tx, 65,536 flows, ours"}


def test_ratios_alone_are_what_machines_have_in_common() -> None:
    a, b = report(row("tx", NOISY, NOISY)), report(row("tx", [3 * v for v in NOISY], NOISY))
    found = compare.compare(a, b, only_ratios=True)
    assert {name: one["word"] for name, one in found["changes"].items()} == {
        "prog: tx, kernel / ours": "worse"}


def test_the_newest_report_is_that_of_all_benches(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no report of all benches"):
        compare.newest(tmp_path)
    for name in ("2026-01-02T0304.json", "2025-12-31T2359.json", "2026-05-05T0000-quick.json",
                 "2026-05-05T0000-micro.json", "2027-01-01-io.json"):
        (tmp_path / name).write_text("{}")
    assert compare.newest(tmp_path).name == "2026-01-02T0304.json"


def test_the_reports_of_the_tree_are_read() -> None:
    """Also those of before: what has another shape is left out."""
    for path in sorted(RESULTS.glob("*.json")):
        assert isinstance(compare.figures(compare.read(str(path))), dict)
    assert any("kernel / ours" in name for name in compare.figures(compare.read(
        str(compare.newest()))))


def test_what_micro_maps_load_and_verify_measure_is_compared() -> None:
    micro = {"bench": "micro", "records": [
        {"name": "x", "engine": "xdpu", "way": "plain", "samples_ns": NOISY},
        {"name": "y", "engine": "xdpu", "way": "", "mismatch": "byte 3"}]}
    verify = {"bench": "verify", "rows": [{"name": "a/b", "insns": 3, "ours_ms": {
        "samples": NOISY}}]}
    maps = {"bench": "maps", "rows": [
        {"map": "HASH", "operations": {"lookup": {"ours": NOISY, "kernel": NOISY}}}]}
    assert set(compare.figures({"benches": {"micro": micro, "verify": verify, "maps": maps}})) == {
        "micro: x, xdpu plain", "verify: a/b, ours", "maps: HASH lookup, ours",
        "maps: HASH lookup, kernel"}


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    a.write_text(json.dumps(report(row("tx", NOISY))))
    b.write_text(json.dumps(report(row("tx", [2 * value for value in NOISY]))))
    assert main(["bench", "compare", str(a), str(b)]) == 0
    assert "worse   prog: tx, ours" in capsys.readouterr().out
    assert main(["bench", "compare", str(a), str(b), "-j"]) == 0
    assert json.loads(capsys.readouterr().out)["changes"]["prog: tx, ours"]["word"] == "worse"
    b.write_text("[]")
    assert main(["bench", "compare", str(a), str(b)]) == 2
    assert main(["bench", "compare", str(a), str(tmp_path / "none")]) == 2
    assert "is no report" in capsys.readouterr().err


class TestPlanted:
    """The same program twice, and once with a loop that costs much more and does nothing."""

    pytestmark = needs_bpf()

    def measured(self, ours: Object | None = None) -> dict[str, Any]:
        case = choose(["drop"])[0]
        return report(prog.measure(case, prog.Plan(20_000, 9), ours=ours))

    def test_a_planted_slow_program_is_told(self) -> None:
        obj = read_object(EXAMPLES / "drop.o")
        text = "r1 = *(u32 *)(r1 + 12)\nr2 = 200\nround:\nr1 *= 7919\nr1 ^= 77\nr2 -= 1\n" \
               "if r2 != 0 goto round\nr0 = 1\nif r1 == 12345 goto odd\nexit\nodd:\nr0 = 2\nexit"
        slow = Object(obj.name, (ProgramSpec(obj.program().name, "xdp", "xdp", assemble(text)),),
                      (), "GPL")
        code = text.replace("r2 = 200", "r2 = 2000")
        slower = Object(obj.name, (ProgramSpec(obj.program().name, "xdp", "xdp", assemble(code)),),
                        (), "GPL")
        found = compare.compare(self.measured(slow), self.measured(slower))
        assert found["changes"]["prog: drop, ours"]["word"] == "worse"
        found = compare.compare(self.measured(slower), self.measured(slow))
        assert found["changes"]["prog: drop, ours"]["word"] == "better"
