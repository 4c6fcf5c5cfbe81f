"""Fuel: a budget of instructions ends a program at the same place in every engine, to the one."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.xdp_runtime.test_policy import class_of, make
from xdp_runtime.asm import assemble
from xdp_runtime.btf import Btf
from xdp_runtime.compiler import target
from xdp_runtime.elf import read_object
from xdp_runtime.errors import VerifyError
from xdp_runtime.fuel import stretches, why_not
from xdp_runtime.interp import Machine
from xdp_runtime.kernel_functions import typed
from xdp_runtime.object import Object
from xdp_runtime.policy import enforce, infer
from xdp_runtime.policy_uses import find_uses
from xdp_runtime.program import load

GRANTS = """
packet: {read: all, write: all}
helpers: [map_lookup_elem, loop, tail_call, for_each_map_elem, map_update_elem]
maps: {table: [read, write], cell: [read, write], programs: read}
verdicts: [XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT]
"""
COUNT = """
    *(u32 *)(r10 - 4) = 0
    r2 = r10
    r2 += -4
    r1 = map[cell] ll
    call bpf_map_lookup_elem
    if r0 == 0 goto out
    r6 = r0
again:
    may_goto out
    r1 = *(u64 *)(r6 + 0)
    r1 += 1
    *(u64 *)(r6 + 0) = r1
    goto again
out:
    r0 = 2
    exit
"""
CHAIN = "r6 = r1\nr8 = 0\n" + COUNT.replace("r6", "r7").replace("out:\n    r0 = 2", """out:
    r1 = r6
    r2 = map[programs] ll
    r3 = 0
    call bpf_tail_call
    r0 = 1""").replace("may_goto out", "may_goto out\n    r8 += 1\n    if r8 > 5 goto out")
FAMILIES = Path(__file__).parent / "families" / "families.o"


def outcomes(obj: Object, budget: int) -> dict[str, tuple[int, bytes]]:
    """(verdict, the counter in `cell`) of each engine."""
    grants = class_of(f"instructions: {budget}{GRANTS}")
    fuel = enforce(obj, obj.programs[0], grants)
    assert fuel == budget
    machine = Machine(obj, obj.programs[0], fuel=fuel)
    verdict = machine.run(bytes(64)).verdict
    zero = bytes(4)
    cell = obj.map_index("cell")
    out = {"interp": (verdict, bytes(machine.maps[cell].lookup(zero) or b""))}
    for opt in target.TESTED:
        with load(obj, opt=opt, grants=grants) as program:
            verdict = program.run(bytes(64)).retval
            value = program.raw_maps["cell"].lookup(zero)
            assert isinstance(value, bytes)
            out[target.name(opt)] = verdict, value
            assert program.spent(0) == (verdict == 0)
    return out


@pytest.mark.parametrize("budget", [1, 5, 6, 7, 8, 11, 12, 13, 17, 100, 333])
def test_every_engine_ends_at_the_same_instruction(budget: int) -> None:
    found = outcomes(make(COUNT), budget)
    assert len(set(found.values())) == 1, found


@pytest.mark.parametrize("budget", [10, 77, 200, 1000])
@pytest.mark.parametrize("name", ["loops", "nested_loops"])
def test_callbacks_are_counted_round_by_round(name: str, budget: int) -> None:
    """Verdict and bytes of the same packets, some of which the budget does not suffice for."""
    obj = read_object(FAMILIES)
    spec = obj.program(name)
    grants = replace(infer("any", find_uses(obj, spec)), instructions=budget)
    assert enforce(obj, spec, grants) == budget
    rng = random.Random(budget)
    packets = [rng.randbytes(128) for _ in range(60)]
    machine = Machine(obj, spec, fuel=budget)
    results = [machine.run(packet) for packet in packets]
    expected = [(r.verdict, r.data_out) for r in results]
    for opt in target.TESTED:
        with load(obj, name, opt=opt, grants=grants) as program:
            got = [(r.retval, r.data_out) for r in map(program.run, packets)]
            assert got == expected
            assert program.spent(0) == sum(verdict == 0 for verdict, _ in expected)
    assert max(r.steps for r in results) <= budget + 1  # the one that was not paid for
    if 50 < budget < 1000:
        assert len({verdict for verdict, _ in expected}) == 2


def test_a_program_ends_when_the_budget_does() -> None:
    """Of five instructions a round; what it did before stays done."""
    obj = make(COUNT)
    verdict, counter = outcomes(obj, 8 + 5 * 40)["O3"]
    assert verdict == 0
    assert int.from_bytes(counter, "little") in (39, 40)


def test_a_chain_of_tail_calls_shares_one_budget() -> None:
    obj = make(CHAIN)
    slots = obj.maps[obj.map_index("programs")]
    obj = replace(obj, maps=tuple(replace(m, slots=((0, "main"),)) if m is slots else m
                                  for m in obj.maps))
    found = {budget: outcomes(obj, budget) for budget in (30, 90, 200, 10_000)}
    assert all(len(set(one.values())) == 1 for one in found.values()), found
    counters = [int.from_bytes(one["O3"][1], "little") for one in found.values()]
    assert counters == sorted(counters) and counters[0] < counters[2]
    assert found[30]["O3"][0] == 0 and found[10_000]["O3"][0] == 1


def test_the_budget_ends_callers_of_a_function_that_tail_calls() -> None:
    """What ran out in a program that a function tail-called is not the function's result."""
    obj = make(CHAIN.replace("""    r1 = r6
    r2""", """    r1 = r6
    call next
    r0 += 3
    exit
next:
    r2"""))
    slots = obj.maps[obj.map_index("programs")]
    obj = replace(obj, btf=Btf.parse(typed(obj.programs[0].insns)[0]),
                  maps=tuple(replace(m, slots=((0, "main"),)) if m is slots else m
                             for m in obj.maps))
    found = {budget: outcomes(obj, budget) for budget in (30, 90, 200, 10_000)}
    assert all(len(set(one.values())) == 1 for one in found.values()), found
    assert [found[budget]["O3"][0] for budget in (30, 200, 10_000)] == [0, 0, 1 + 34 * 3]


def test_what_is_proven_is_not_counted() -> None:
    obj = make("r0 = 2\nexit")
    assert enforce(obj, obj.programs[0], class_of(f"instructions: 2{GRANTS}")) is None
    with pytest.raises(VerifyError, match="longest path has 2"):
        enforce(obj, obj.programs[0], class_of(f"instructions: 1{GRANTS}"))


def test_load_enforces_the_class() -> None:
    obj = make(COUNT)
    with pytest.raises(VerifyError, match="does not grant"):
        load(obj, grants=class_of("verdicts: XDP_PASS"))


def test_what_holds_something_is_not_ended_anywhere() -> None:
    assert why_not(assemble("call bpf_ringbuf_reserve\nexit")) == (
        "instruction 0 takes what has to be given back")
    assert why_not(assemble("call bpf_timer_set_callback\nexit")) == (
        "instruction 0 leaves a timer behind")
    assert why_not(assemble("call bpf_map_lookup_elem\nexit")) == ""


def test_stretches_cover_every_instruction_once() -> None:
    insns = make(CHAIN).programs[0].insns
    paid = stretches(insns)
    assert sum(paid.values()) == sum(insn is not None for insn in insns)
    assert min(paid.values()) >= 1 and 0 in paid
