"""Cases of the corpus that have types (callbacks, locks, global functions, iterators), changed a
little: the kernel and our verifier say the same, or ours is the stricter.

randprog.py leaves these cases out, as they load only with their BTF.  MUTANTS=20000 in the
environment asks for more of them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.privileges import bpf_refusal
from tests.xdp_runtime.verifier.cases import Case, all_cases
from tests.xdp_runtime.verifier.kernel_load import ask
from tests.xdp_runtime.verifier.kernel_words import class_of
from tests.xdp_runtime.verifier.randprog import mutated
from tests.xdp_runtime.verifier.run_accepted import find_trap
from xdp_runtime.object import Function
from xdp_runtime.verifier import verify

pytestmark = [pytest.mark.root,
              pytest.mark.skipif(bool(bpf_refusal()), reason=f"the kernel: {bpf_refusal()}")]

MUTANTS = int(os.environ.get("MUTANTS", "600"))
SHARE_ACCEPTED = 0.75  # many give text or callbacks what is refused here on purpose
TYPED = [case for case in all_cases() if case.btf is not None]


def mutant(seed: int) -> Case | None:
    """None where a function came or went, so that the types do not fit."""
    rng = random.Random(seed)
    case = rng.choice(TYPED)
    obj = case.object
    old = obj.programs[0]
    changed = mutated(rng, obj, rng.choice((1, 1, 2, 3))).programs[0]
    if len(changed.functions) != len(old.functions):
        return None
    functions = tuple(Function(was.name, now.start, now.end, was.is_global)
                      for was, now in zip(old.functions, changed.functions, strict=True))
    fresh = replace(case)
    fresh.__dict__["object"] = replace(
        obj, programs=(replace(old, insns=changed.insns, functions=functions),))
    return fresh


def mutants(seeds: range) -> Iterator[tuple[int, Case]]:
    for seed in seeds:
        case = mutant(seed)
        if case is not None:
            yield seed, case


def test_the_kernel_refuses_no_mutant_that_we_accept() -> None:
    wrong, accepted, ours = [], 0, 0
    for seed, case in mutants(range(MUTANTS)):
        answer = ask(case)
        obj = case.object
        report = verify(obj, obj.programs[0], time_budget_s=20)
        accepted += answer.accepted
        ours += answer.accepted and report.ok
        if report.ok and not answer.accepted and class_of(answer.line) == "memory":
            wrong.append((seed, case.id, answer.line))
        if report.ok:
            trap = find_trap(obj, seed)
            if trap:
                wrong.append((seed, case.id, trap))
    assert not wrong, "\n".join(map(str, wrong))
    assert ours >= accepted * SHARE_ACCEPTED
