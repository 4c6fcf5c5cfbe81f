"""Which passes a program gets by its size, and that each of them leaves its meaning alone."""

from __future__ import annotations

import pytest

from tests.xdp_runtime.compiler.generate import random_object
from tests.xdp_runtime.compiler.test_differential import interpreted, packets
from xdp_runtime import repeat
from xdp_runtime.compiler import link, target
from xdp_runtime.compiler.image import Image
from xdp_runtime.maps.map import Map
from xdp_runtime.program import Program

SIZES = {"long": target.LONG_SLOTS + 1, "plain": target.PLAIN_SLOTS + 1}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("first", (200, 210, 220))
def test_random_programs(size: str, first: int) -> None:
    """As the passes of larger programs compile them."""
    for seed in range(first, first + 10):
        obj, frames = random_object(seed), packets(seed)
        module, exports, symbols = link.build_module(obj, obj.programs[0], 1, [repeat.UNIT])
        image = Image(target.compile_module(module, 3, SIZES[size]), exports, symbols)
        with Program(obj, obj.programs[0], [Map.create(m, 1) for m in obj.maps], 1, image) as one:
            results = [one.run(frame) for frame in frames]
            got = ([(r.retval, r.data_out) for r in results],
                   [dict(m.items()) for m in one.all_maps])
        assert got == interpreted(obj, frames), f"seed {seed}"


def test_the_pipeline_says_why() -> None:
    assert target.pipeline(3, 10) == "O3" and target.pipeline(0, 100_000) == "O0"
    assert target.pipeline(1, target.LONG_SLOTS + 1) == "O1"
    assert target.pipeline(3, SIZES["long"]).endswith("(more than 2,048 instructions)")
    assert target.pipeline(2, SIZES["plain"]).endswith("(more than 16,384 instructions)")
