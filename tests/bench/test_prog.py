"""The bench itself: what it must refuse to print a figure for, and the wrapper it measures with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bench import frames, prog
from bench.cases import CASES, EXAMPLES, Case, choose
from bench.wrapper import Change, Wrapper, candidates, observe
from tests.privileges import needs_bpf
from xdp_runtime.asm import assemble
from xdp_runtime.elf import read_object
from xdp_runtime.errors import XdpuError
from xdp_runtime.kernel import KernelProgram, load_into_kernel
from xdp_runtime.object import Object, ProgramSpec
from xdp_runtime.state import Verdict

pytestmark = needs_bpf()

ONCE = prog.Plan(100, 1)
RUNS = 1000  # more than the head room has space for


def case(name: str) -> Case:
    return choose([name])[0]


def loaded(one: Case) -> KernelProgram:
    program = load_into_kernel(read_object(one.object_path))
    for name, entries in one.entries.items():
        for key, value in entries.items():
            program.maps[name].update(key, value)
    return program


def written(text: str, maps: tuple[str, ...] = ()) -> Object:
    """A program of a few lines; `data` and `end` are in r7 and r8, 14 bytes proven."""
    start = "r7 = *(u32 *)(r1 + 0)\nr8 = *(u32 *)(r1 + 4)\nr2 = r7\nr2 += 14\nif r2 > r8 goto out\n"
    insns = assemble(start + text + "\nout:\nr0 = 0\nexit", maps)
    return Object("written", (ProgramSpec("written", "xdp", "xdp", insns),), (), "GPL")


# ---- the wrapper ---------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["ipip", "icmp_echo", "meta", "demo/echo", "tx"])
def test_every_run_is_as_the_first(name: str) -> None:
    one = case(name)
    with loaded(one) as program:
        single = program.run(one.packet)
        change, verdict = observe(program, one.packet)
        with Wrapper(change, verdict, program.fd) as wrapper:
            repeated = wrapper.run(RUNS)
        assert repeated.runs == RUNS
        assert (repeated.verdict, repeated.packet, repeated.meta) == (
            one.verdict, single.data_out, single.meta)
        assert repeated.is_sound and not repeated.complaint()
        with Wrapper(change, verdict) as stand_in:
            assert stand_in.run(RUNS).is_sound


def test_without_the_wrapper_it_is_not() -> None:
    """The trap that all this is about: the last verdict of a plain repeat is another one."""
    one = case("ipip")
    with loaded(one) as program:
        assert program.run(one.packet).retval == Verdict.TX
        assert program.run(one.packet, RUNS).retval != Verdict.TX


def test_what_it_observes() -> None:
    for name, head, tail, meta in (("ipip", 20, 0, b""), ("meta", 0, 4, b"UPDX"),
                                   ("icmp_echo", 0, 0, b""), ("pass", 0, 0, b"")):
        one = case(name)
        with loaded(one) as program:
            change, verdict = observe(program, one.packet)
        assert (change.head, change.tail, change.meta, verdict) == (head, tail, meta, one.verdict)
        assert change.is_none == (name == "pass")


@pytest.mark.parametrize(("head", "tail"), [(0, 0), (20, 0), (-20, 0), (0, 8), (0, -8), (36, -4),
                                            (-14, 6)])
def test_change_is_found(head: int, tail: int) -> None:
    before = bytes(range(100))
    front = bytes(head) if head > 0 else b""
    after = front + before[max(-head, 0):]
    after = after[:len(after) + tail] if tail < 0 else after + bytes(tail)
    first = next(candidates(before, after))
    assert (first.head, first.tail) == (head, tail)
    assert all(end <= -head or start >= 100 + tail for start, end in first.overwritten())


def test_stores_cover_what_was_overwritten() -> None:
    before = bytes(100)
    after = bytes([1, 2, 3]) + bytes(50) + bytes([9]) + bytes(46)
    change = Change(before, after)
    assert change.overwritten() == [(0, 3), (53, 54)]


@pytest.mark.parametrize(("insns", "moved"), [
    ("r6 = r1\nr1 = r6\nr2 = 8\ncall 44\nr0 = 3\nexit", (-8, 0)),
    ("r2 = -12\ncall 65\nr0 = 3\nexit", (0, -12)),
    ("r2 = -40\ncall 44\nr0 = 1\nexit", (40, 0)),
])
def test_moves_of_either_sign(insns: str, moved: tuple[int, int]) -> None:
    packet = frames.udp4(80, 64)
    with load_into_kernel(written(insns)) as program:
        change, verdict = observe(program, packet)
        assert (change.head, change.tail) == moved
        with Wrapper(change, verdict, program.fd) as wrapper, Wrapper(change, verdict) as baseline:
            assert wrapper.run(RUNS).is_sound
            assert baseline.run(RUNS).is_sound


def test_chance_cannot_be_repeated() -> None:
    """A program whose output is not the packet's alone."""
    obj = written("call 7\n*(u32 *)(r7 + 0) = r0\n*(u32 *)(r7 + 4) = r0\nr0 = 3\nexit")
    with load_into_kernel(obj) as program, pytest.raises(XdpuError, match="cannot be repeated"):
        observe(program, frames.udp4(80))


def test_a_miss_shows_in_the_end() -> None:
    """A program that does something else the second time: the wrapper stays at that packet."""
    one = case("ipip")
    with loaded(one) as program:
        change, verdict = observe(program, one.packet)
        with Wrapper(change, verdict, program.fd) as wrapper:
            program.maps["tunnel"].update(bytes(4), bytes(16))  # now it passes
            repeated = wrapper.run(RUNS)
    assert not repeated.is_sound
    assert repeated.verdict == 0 and repeated.runs == 1
    assert repeated.complaint() == f"1 of {RUNS} runs saw the packet as it should be"


# ---- agreement -----------------------------------------------------------------------------------

def corrupted(change: Callable[[str], str]) -> Object:
    """A TX program like examples/tx.c would be with a defect."""
    return written(change("r2 = *(u16 *)(r7 + 0)\nr3 = *(u16 *)(r7 + 6)\n"
                          "*(u16 *)(r7 + 0) = r3\n*(u16 *)(r7 + 6) = r2\n"
                          "r2 = *(u32 *)(r7 + 2)\nr3 = *(u32 *)(r7 + 8)\n"
                          "*(u32 *)(r7 + 2) = r3\n*(u32 *)(r7 + 8) = r2\nr0 = 3\nexit"))


@pytest.mark.parametrize(("change", "said"), [
    (lambda text: text.replace("r0 = 3", "r0 = 2"), "verdict: kernel 3, ours 2"),
    (lambda text: text.replace("(r7 + 8) = r2", "(r7 + 8) = 5"), "packet: byte 8: kernel 0x00"),
    (lambda text: "r2 = -4\ncall 44\nr0 = 3\nexit", "packet: kernel 64 bytes, ours 68"),
])
def test_a_planted_defect_has_no_figure(change: Callable[[str], str], said: str) -> None:
    row = prog.measure(case("tx"), ONCE, ours=corrupted(change))
    assert not row["ok"] and row["mismatch"].startswith(said)
    assert "kernel" not in row and "ours" not in row and "ratio" not in row
    assert "MISMATCH" in prog.cells(row)
    assert "mismatch | mismatch | none" in prog.markdown({"rows": [row]})


def test_the_same_by_other_means_has_one() -> None:
    assert prog.measure(case("tx"), ONCE, ours=corrupted(lambda text: text))["ok"]


def test_a_wrong_map_has_no_figure() -> None:
    obj = read_object(EXAMPLES / "counter.o")
    spec = obj.program()
    silent = replace(spec, insns=assemble("r0 = 2\nexit"), functions=(), lines=())
    row = prog.measure(case("counter"), ONCE, ours=replace(obj, programs=(silent,)))
    assert row["mismatch"] == "map counters: differs at key 11000000"


def test_what_does_not_load_has_no_figure() -> None:
    row = prog.measure(case("tx"), ONCE, ours=written("r0 = 3\nr1 = *(u32 *)(r1 + 64)"))
    assert not row["ok"] and "written" in row["mismatch"]


def test_an_unexpected_verdict_has_no_figure() -> None:
    row = prog.measure(replace(case("pass"), verdict=Verdict.DROP), ONCE)
    assert row["mismatch"] == "the kernel's verdict is 2, expected DROP"


@pytest.mark.parametrize("name", [one.name for one in CASES])
def test_every_case_is_measured(name: str) -> None:
    row = prog.measure(case(name), prog.Plan(2000, 2))
    assert row["ok"], row
    assert row["method"] == ("wrapper" if name in {"icmp_echo", "ipip", "meta", "demo/echo"}
                             else "plain")
    for side in ("kernel", "ours"):
        assert row[side]["raw"]["min"] > 0
        assert len(row[side]["samples"]["net"]) == 2


# ---- the record ----------------------------------------------------------------------------------

def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cpu = str(max(os.sched_getaffinity(0)))
    code = prog.main(["pass", "firewall", "-j", "--repeat", "2000", "--rounds", "2", "--cpu", cpu,
                      "--out", str(tmp_path / "out")])
    assert code == 0
    said = json.loads(capsys.readouterr().out)
    assert said == json.loads((tmp_path / "out" / "bench.json").read_text())
    assert said["bench"] == "prog" and said["complete"] and not said["interrupted"]
    assert said["plan"] == {"repeat": 2000, "rounds": 2, "engines": ["kernel", "ours"],
                            "cold": False, "flows": [], "peers": []}
    assert [row["name"] for row in said["rows"]] == ["pass", "firewall/drop", "firewall/pass"]
    machine = said["machine"]
    assert set(machine) >= {"date", "command", "cpu", "kernel", "mitigations", "versions", "python",
                            "commit", "load"}
    assert machine["mitigations"] and all(machine["versions"].values())
    row = said["rows"][1]
    assert set(row["kernel"]) == {"raw", "floor", "net", "samples"}
    assert set(row["ours"]["net"]) == {"median", "min", "max", "low", "high"}
    lines = prog.markdown(said).splitlines()
    assert len(lines) == 5 and all(line.count("|") == 6 for line in lines)


def test_what_is_no_file_and_no_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert prog.main(["no-such-example"]) == 2
    assert "is no file, and no example" in capsys.readouterr().err
    assert prog.main(["pass", "--engines", "jit,uxdp"]) == 2
    assert "no engine uxdp (of: kernel, jit, interp)" in capsys.readouterr().err
