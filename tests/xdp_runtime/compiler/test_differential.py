"""Random programs: interpreter = compiled O0 = compiled O3 = kernel, for r0, bytes and maps."""

from __future__ import annotations

import random

import pytest

from tests.privileges import bpf_refusal
from tests.xdp_runtime.compiler.generate import MAPS, random_object
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.object import Object
from xdp_runtime.program import load

SEEDS_A_TEST = 10
Outcome = tuple[int, bytes]
Contents = list[dict[bytes, bytes | list[bytes]]]


def packets(seed: int) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(n) for n in (14, 63, 64, 65, 128, 1500)] + [bytes(80), b"\xff" * 80]


def with_kernel(obj: Object, frames: list[bytes]) -> tuple[list[Outcome], Contents]:
    with load_into_kernel(obj) as program:
        results = [program.run(frame) for frame in frames]
        return ([(r.retval, r.data_out) for r in results],
                [dict(program.maps[spec.name].items()) for spec in MAPS])


def interpreted(obj: Object, frames: list[bytes]) -> tuple[list[Outcome], Contents]:
    machine = Machine(obj, obj.programs[0])
    results = [machine.run(frame) for frame in frames]
    return ([(r.verdict, r.data_out) for r in results],
            [dict(model.items()) for model in machine.maps])


def compiled(obj: Object, frames: list[bytes], opt: int) -> tuple[list[Outcome], Contents]:
    with load(obj, opt=opt) as program:
        results = [program.run(frame) for frame in frames]
        return ([(r.retval, r.data_out) for r in results],
                [dict(m.items()) for m in program.all_maps])


@pytest.mark.parametrize("first", range(0, 150, SEEDS_A_TEST))
def test_interpreted_and_compiled(first: int) -> None:
    for seed in range(first, first + SEEDS_A_TEST):
        obj, frames = random_object(seed), packets(seed)
        expected = interpreted(obj, frames)
        assert compiled(obj, frames, 0) == expected, f"seed {seed}, O0"
        assert compiled(obj, frames, 3) == expected, f"seed {seed}, O3"


@pytest.mark.root
@pytest.mark.skipif(bool(bpf_refusal()), reason=f"the kernel loads no program: {bpf_refusal()}")
@pytest.mark.parametrize("first", range(0, 150, SEEDS_A_TEST))
def test_interpreted_and_kernel(first: int) -> None:
    for seed in range(first, first + SEEDS_A_TEST):
        obj, frames = random_object(seed), packets(seed)
        assert with_kernel(obj, frames) == interpreted(obj, frames), f"seed {seed}"
