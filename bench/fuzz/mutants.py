"""Programs of the other kinds with a few instructions changed: what no generator thinks of.

Many are refused, by both verifiers; what the kernel accepts is run like any other.  One may read
of its stack what it did not write, or make a number of an address: then the kernel does not agree
with itself, and nothing is said of us (judge.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from bench.fuzz.case import program_of, with_types
from tests.xdp_runtime.verifier.randprog import mutated
from xdp_runtime.object import MapType, Object

_CHANGES = (1, 1, 1, 2, 2, 3, 5)


def mutant(seed: int, base: Callable[[int], Object]) -> Object:
    """Of a program that `base` makes of a number; the same for the same seed."""
    rng = random.Random(f"mutant {seed}")
    # A multiple of four: no kernel functions, of which those on text take any address, ours do not.
    obj = base(4 * rng.randrange(1 << 28))
    program = mutated(rng, obj, rng.choice(_CHANGES)).programs[0]
    maps = tuple(replace(spec, slots=()) if spec.type == MapType.PROG_ARRAY else spec
                 for spec in obj.maps)
    return with_types(Object(f"mutant-{seed}", (program_of("first", program.insns),), maps, "GPL"))
