"""The fuzzer: it agrees at fixed seeds, sees a difference, and reduces it to a case to read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from bench.fuzz import steps as stepping
from bench.fuzz.case import Case, read_case, write_case
from bench.fuzz.csource.build import CLANG, NEEDS, Uncompilable
from bench.fuzz.judge import judge, nowhere
from bench.fuzz.leaks import unsteady
from bench.fuzz.outcome import Disagreement
from bench.fuzz.packets import LONGEST, random_packets
from bench.fuzz.programs import fuzz_object
from bench.fuzz.reduce import lift, lower, on_all_engines, reduce_case
from bench.fuzz.run import Plan, State, run, summary
from bench.fuzz.sources import Kind, object_of
from bench.fuzz.steps import random_steps, rounds
from tests.privileges import bpf_refusal
from xdp_runtime import interp_alu
from xdp_runtime.isa import Alu, AluOp

needs_kernel = pytest.mark.skipif(bool(bpf_refusal()),
                                  reason=f"the kernel loads no program: {bpf_refusal()}")

needs_clang = pytest.mark.skipif(not CLANG, reason=NEEDS)


@pytest.fixture(autouse=True)
def one_cpu() -> Iterator[None]:
    """Per-CPU values are compared on the CPU where the kernel's side runs."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.root
@needs_kernel
@pytest.mark.parametrize("first", range(0, 60, 10))
def test_all_engines_agree(first: int) -> None:
    accepted = 0
    for seed in range(first, first + 10):
        outcome = judge(seed, 200)
        assert not outcome.found, f"seed {seed}: {outcome.found[0]}"
        accepted += outcome.counts["accepted"]
    assert accepted >= 5


@pytest.mark.root
@needs_kernel
@needs_clang
@pytest.mark.parametrize("kind", ["c", "mutants", "frags"])
def test_engines_agree_on_what_compilers_make(kind: Kind) -> None:
    accepted = 0
    for seed in range(8 if kind == "mutants" else 4):
        try:
            outcome = judge(seed, 100, kind)
        except Uncompilable:
            continue
        assert not outcome.found, f"seed {seed}: {outcome.found[0]}"
        assert not outcome.ours_only, f"seed {seed}: only the kernel refuses: {outcome.refused}"
        accepted += outcome.counts["accepted"]
    assert accepted >= 2


@needs_clang
def test_a_case_of_c_reads_back() -> None:
    obj = object_of("c", 3)
    text = write_case(obj, [bytes(64)], [])
    again = read_case(text)
    assert [p.insns for p in again[0].programs] == [p.insns for p in obj.programs]
    assert [m.initial for m in again[0].maps] == [m.initial for m in obj.maps]
    assert write_case(*again).splitlines()[:20] == text.splitlines()[:20]
    assert obj == object_of("c", 3)  # the same for the same seed


def test_what_depends_on_addresses_is_told() -> None:
    leak = read_case("packet " + "00" * 64 + """
program first
*(u64 *)(r10 - 8) = r10
r0 = *(u32 *)(r10 - 8)
exit""")
    steady = read_case("packet " + "00" * 64 + """
program first
r1 = r10
r1 -= 8
r0 = r10
r0 -= r1
exit""")
    assert unsteady(*leak) and not unsteady(*steady)


def test_a_path_that_no_packet_takes_is_told() -> None:
    log = "34: (2d) if r1 > r7 goto pc+14 49: R1=pkt(off=5,r=0xfffffffffffffffe) R9=pkt(r=64)\n"
    assert nowhere("R1 offset is outside of the packet", log + "50: (95) exit\n" * 1000)
    assert not nowhere("R9 offset is outside of the packet", log + "50: (95) exit\n" * 1000)


def test_rounds_leave_nothing_out() -> None:
    packets = [bytes((number,)) for number in range(23)]
    for count in (0, 1, 5, 40):
        steps = random_steps(fuzz_object(3), 1, count)
        parts = list(rounds(packets, steps))
        assert [p for _, some, _ in parts for p in some] == packets
        done = [step for _, _, some in parts for step in some]
        assert done == steps[:len(done)] and len(done) >= count - 3


def test_the_same_for_the_same_seed() -> None:
    assert fuzz_object(7) == fuzz_object(7)
    assert random_packets(7, 20) == random_packets(7, 20)
    assert all(14 <= len(packet) <= LONGEST for packet in random_packets(7, 500))


def test_a_case_reads_back() -> None:
    for seed in range(40):
        obj = fuzz_object(seed)
        packets, steps = random_packets(seed, 3), random_steps(obj, seed, 10)
        again, same_packets, same_steps = read_case(write_case(obj, packets, steps))
        assert [p.insns for p in again.programs] == [p.insns for p in obj.programs]
        assert (again.maps, same_packets, same_steps) == (obj.maps, packets, steps)


def test_lifting_changes_nothing() -> None:
    for seed in range(40):
        for program in fuzz_object(seed).programs:
            lifted = lift(program.insns)
            assert lower(lifted, range(len(lifted))) == program.insns


@pytest.mark.root
@needs_kernel
def test_a_wrong_engine_is_found_and_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter whose 64-bit exclusive or is an inclusive one."""
    right = interp_alu.alu
    wrong = {AluOp.XOR: AluOp.OR}

    def alu(op: AluOp, is64: bool, *operands: Any) -> Any:
        return right(wrong.get(op, op) if is64 else op, is64, *operands)

    monkeypatch.setattr("xdp_runtime.interp.alu", alu)
    monkeypatch.setattr(stepping, "SAMPLE", 4)

    def only_interpreted(case: Case) -> Disagreement | None:
        return on_all_engines(case, opts=())

    seed = next(seed for seed in range(50) if judge(seed, 4).found)
    obj = fuzz_object(seed)
    small = reduce_case((obj, random_packets(seed, 4), random_steps(obj, seed, 5)),
                        only_interpreted)
    found = only_interpreted(small)
    assert found is not None and found.engine == "interpreter"
    assert len(small[1]) == 1 and not small[2]
    insns = small[0].programs[0].insns
    assert len(insns) < 25 and any(isinstance(i, Alu) and i.op is AluOp.XOR for i in insns)
    assert only_interpreted(read_case(write_case(*small))) == found


@pytest.mark.root
@needs_kernel
def test_a_run_goes_on_where_it_ended(tmp_path: Any) -> None:
    plan = Plan(0, 4, 1, 20, float("inf"), tmp_path / "state")
    first = run(replace(plan, last=2))
    assert first.counts["programs"] == 2
    State(**{**plan.read(0).__dict__, "next_seed": 3, "running": True}).save(plan.path(0))
    both = run(plan)
    assert both.counts["programs"] == 3 and not both.found
    assert "3 programs" in summary(both) and plan.read(0).next_seed == 4
