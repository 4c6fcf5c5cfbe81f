"""The 313 cases of bpf_conformance: interpreted, compiled at O0 and O3, proven and not."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from bench import conformance
from xdp_runtime.assembler import Case, assemble, read_case
from xdp_runtime.disasm import assemble as assemble_kernel
from xdp_runtime.entry import raw_entry
from xdp_runtime.errors import LoadError
from xdp_runtime.interp import Machine
from xdp_runtime.verifier.facts import Facts
from xdp_runtime.verifier.report import verify

CASES = Path(__file__).parent / "cases"
FILES = sorted(CASES.glob("*.data"))
REFUSED = {"callx"} | {f"{op}{bits}-imm-{how}" for op in ("lsh", "rsh", "arsh")
                       for bits in (32, 64) for how in ("high", "neg")}
WAYS = {"interp": ("interp", 3, False), "O0": ("jit", 0, False), "O3": ("jit", 3, False),
        "O3 verified": ("jit", 3, True)}


@cache
def outcomes(way: str) -> dict[str, conformance.Outcome]:
    """All cases at once: compiled, they are one module."""
    return {one.name: one for one in conformance.run(FILES, *WAYS[way])}


def test_all_are_there() -> None:
    assert len(FILES) == 313


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [path.stem for path in FILES])
def test_case(name: str, way: str) -> None:
    outcome = outcomes(way)[name]
    assert outcome.ok, outcome.why
    assert outcome.refused == (way == "O3 verified" and name in REFUSED), outcome.why


@pytest.mark.parametrize("opt", [0, 3])
def test_compiled_without_any_fact(opt: int) -> None:
    """What unproven programs are compiled with in tests serves all the others as well."""
    cases = [read_case(path.read_text(), path.stem) for path in FILES]
    nothing = [(case, Facts.assume_nothing(len(case.insns))) for case in cases]
    failed = [one for one in conformance.run_compiled(nothing, opt) if not one.ok]
    assert failed == []


# --- the suite's helpers -------------------------------------------------------------------------
HELPERS = """
-- asm
stdw [%r10-16], 0x636261
stdw [%r10-8], 0x646261
mov %r1, %r10
add %r1, -16
mov %r2, %r10
add %r2, -8
call 4                      # "abc" and "abd": -1
mov %r6, %r0
mov %r1, %r10
add %r1, -16
mov %r2, 2
call 1
ldxb %r7, [%r10-16]         # 'a' ^ 42
mov %r1, 0x102
mov %r2, 3
mov %r3, 4
mov %r4, 5
mov %r5, 6
call helper 0
mov %r8, %r0
mov %r1, 10000
call 3
add %r0, %r6
lsh %r7, 8
add %r0, %r7
lsh %r8, 16
add %r0, %r8
exit
-- result
0x2030405064b63
"""


@pytest.mark.parametrize("way", WAYS)
def test_helpers_of_the_suite(way: str, tmp_path: Path) -> None:
    (tmp_path / "helpers.data").write_text(HELPERS)
    assert conformance.run([tmp_path / "helpers.data"], *WAYS[way]) == [
        conformance.Outcome("helpers", True)]


def test_memory_is_writable_and_bounded() -> None:
    case = read_case("-- asm\nstb [%r1+1], 7\nmov %r0, %r2\nexit\n-- mem\n01 02\n03\n"
                     "-- result\n3\n", "x")
    obj = conformance.object_of(case)
    machine = Machine(obj, obj.programs[0], (), entry=conformance.entry_of(case))
    assert machine.run(case.memory).r0 == 3
    assert bytes(machine.memory.data) == b"\x01\x07\x03"
    for off, ok in ((2, True), (3, False), (-1, False)):
        insns = assemble(f"ldxb %r0, [%r1{off:+d}]\nexit")
        bad = conformance.object_of(Case("x", insns, b"abc", 0))
        report = verify(bad, bad.programs[0], entry=raw_entry(3, {}))
        assert report.ok is ok


# --- the program ---------------------------------------------------------------------------------
def conform(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bench.conformance", str(directory), *options],
                          capture_output=True, text=True, timeout=120,
                          cwd=Path(__file__).parents[2])


def test_a_failure_is_named_and_a_crash_kills_one_case(tmp_path: Path) -> None:
    (tmp_path / "crash.data").write_text("-- asm\nmov %r1, 8\nldxdw %r0, [%r1]\nexit\n"
                                         "-- result\n0\n")
    (tmp_path / "good.data").write_text("-- asm\nmov %r0, 1\nexit\n-- result\n1\n")
    (tmp_path / "odd.data").write_text("-- asm\nfrobnicate %r0\nexit\n-- result\n1\n")
    (tmp_path / "wrong.data").write_text("-- asm\nmov %r0, 1\nexit\n-- result\n2\n")
    (tmp_path / "gone.data").symlink_to("nowhere")
    done = conform(tmp_path)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert lines.pop(1) == "gone: cannot be read: No such file or directory"
    assert lines[-1] == "1 passed, 4 failed", done.stdout
    assert lines[0].startswith("crash: crashed (SIG")
    assert lines[1] == "odd: line 2: no such instruction in 'frobnicate %r0'"
    assert lines[2] == "wrong: r0 is 0x1, not 0x2"
    interpreted = conform(tmp_path, "--engine", "interp")
    assert "crash: instruction 1: not a pointer" in interpreted.stdout
    verified = conform(tmp_path, "--verify")
    assert "crash: refused: instruction 1" in verified.stdout
    assert verified.stdout.endswith("1 passed, 4 failed\n")
    one = conform(tmp_path / "good.data", "--engine", "interp")
    assert one.stdout == "1 passed, 0 failed\n"


def test_all_pass_on_the_command_line() -> None:
    done = conform(CASES, "--engine", "interp", "--verify")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "313 passed, 0 failed")
    assert done.stdout.count("refused as expected: ") == 13


# --- its assembly --------------------------------------------------------------------------------
SAME = {
    "mov32 %r1, 0xffffffff": "w1 = -1",
    "add %r1, -1": "r1 += -1",
    "sdiv32 %r1, %r2": "w1 s/= w2",
    "movsx1632 %r1, %r2": "w1 = (s16)w2",
    "movsx3264 %r1, %r2": "r1 = (s32)r2",
    "swap32 %r3": "r3 = bswap32 r3",
    "bswap32 %r3": "r3 = bswap32 r3",
    "be64 %r3": "r3 = be64 r3",
    "ldxsw %r3, [%r4-4]": "r3 = *(s32 *)(r4 - 4)",
    "ldxdw %r3, [%r4]": "r3 = *(u64 *)(r4 + 0)",
    "stxh [%r4+2], %r3": "*(u16 *)(r4 + 2) = r3",
    "stw [%r4+2], 0x10": "*(u32 *)(r4 + 2) = 16",
    "lock xchg32 [%r4+2], %r3": "w3 = xchg32_32(r4 + 2, w3)",
    "lock fetch or [%r4], %r3": "r3 = atomic_fetch_or((u64 *)(r4 + 0), r3)",
    "lock or [%r4], %r3": "lock *(u64 *)(r4 + 0) |= r3",
    "jset32 %r1, 0x80000000, +3": "if w1 & -2147483648 goto +3",
    "jsle %r1, %r2, -3": "if r1 s<= r2 goto -3",
    "ja32 +70000": "gotol +70000",
    "call local +2": "call pc+2",
    "lddw %r1, -1": "r1 = -1 ll",
}


@pytest.mark.parametrize("text", SAME)
def test_instruction(text: str) -> None:
    assert assemble(text) == assemble_kernel(SAME[text])


@pytest.mark.parametrize("text", [
    "mov %r11, 1", "mov %r1", "mov %r1, 0x100000000", "mov %r1, 4294967295", "ja nowhere",
    "ldxsdw %r1, [%r2]", "stb [%r1], %r2", "stxb [%r1], 2", "movsx3232 %r1, %r2", "be8 %r1",
    "lock swap [%r1], %r2", "lock add [r1], %r2", "call", "call local", "ldxb %r1, [%r2+40000]",
    "lddw %r1, 0x10000000000000000", "exit 1", "jeq %r1, 2", "a:\na:\nexit", "ja 3"])
def test_nonsense(text: str) -> None:
    with pytest.raises(LoadError, match=r"^line \d: "):
        assemble(text)


@pytest.mark.parametrize("text", ["", "-- asm\nexit", "-- result\n1", "-- asm\nexit\n-- result\n",
                                  "-- raw\n0x1ff\n-- result\n0", "-- raw\nxyz\n-- result\n0",
                                  "-- asm\nexit\n-- mem\n0\n-- result\n0"])
def test_broken_case(text: str) -> None:
    with pytest.raises(LoadError):
        read_case(text, "case")
