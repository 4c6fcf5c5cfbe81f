"""How far the explorer walks, and what it says when that is too far."""

from __future__ import annotations

from pathlib import Path

import pytest

from xdp_runtime.asm import assemble
from xdp_runtime.elf import read_object
from xdp_runtime.object import Object, ProgramSpec
from xdp_runtime.verifier import Report, verify

PROGRAMS = Path(__file__).parents[1] / "programs"


def report(text: str, time_budget_s: float = 60.0) -> Report:
    program = ProgramSpec("main", "xdp", "xdp", assemble(text, []))
    return verify(Object("main", (program,), (), "GPL"), program, time_budget_s)


def refusal(text: str, time_budget_s: float = 60.0) -> str:
    found = report(text, time_budget_s)
    assert not found.ok
    return found.errors[0].text


@pytest.mark.parametrize(("name", "most_steps"),
                         [("small", 12_000), ("medium", 25_000), ("large", 70_000)])
def test_a_balancer_is_walked_in_few_steps(name: str, most_steps: int) -> None:
    obj = read_object(PROGRAMS / f"balancer_{name}.o")
    found = verify(obj, obj.program("balancer"))
    assert found.ok and found.steps <= most_steps


def test_without_pruning_a_chain_of_branches_would_double_each_time() -> None:
    branches = "\n".join(f"if r2 == {n} goto l{n}\nr3 = 1\nr4 = 1\nr5 = 1\nr3 = 2\nr4 = 2\nl{n}:"
                         for n in range(40))
    found = report(f"r2 = *(u32 *)(r1 + 16)\n{branches}\nr0 = 2\nexit")
    assert found.ok and found.steps < 10_000


def test_a_loop_that_repeats_a_state() -> None:
    assert "for ever" in refusal("r0 = 2\nagain:\nif r0 == 2 goto again\nexit")


def test_a_loop_whose_counter_goes_nowhere_is_ended_by_the_budget() -> None:
    assert "took more than 0.1 s" in refusal(
        "r0 = 2\nagain:\nr0 += 2\nif r0 != 1 goto again\nexit", 0.1)


def test_too_many_paths_wait() -> None:
    assert "paths wait" in refusal(
        "r3 = *(u32 *)(r1 + 16)\nr2 = 0\nagain:\nr2 += 1\nif r3 == r2 goto out\n"
        "if r2 != 20000 goto again\nout:\nr0 = 2\nexit")


def test_a_loop_that_ends_by_itself_has_no_longest_path() -> None:
    straight = report("r0 = 2\nr1 = 3\nexit")
    loop = report("r2 = 0\nagain:\nr2 += 1\nmay_goto out\ngoto again\nout:\nr0 = 2\nexit")
    assert straight.facts is not None and loop.facts is not None
    assert straight.ok and straight.facts.longest == 3
    assert loop.ok and loop.facts.longest == -1


def test_functions_nest_no_deeper_than_the_stack() -> None:
    assert "use 528 bytes of stack" in refusal(
        "*(u64 *)(r10 - 264) = 0\ncall f\nexit\nf:\n*(u64 *)(r10 - 256) = 0\nr0 = 0\nexit")
