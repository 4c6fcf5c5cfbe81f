"""Where programs come from: instructions chosen one by one, C through a
compiler, either of them with a few instructions changed, or C for packets in several buffers.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from bench.fuzz.mutants import mutant
from bench.fuzz.programs import fuzz_object
from xdp_runtime.disasm import format_program
from xdp_runtime.object import Object

Kind = Literal["insns", "c", "mutants", "frags"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ALL = "all"
_TURNS: tuple[Kind, ...] = ("insns", "c", "insns", "c", "mutants", "c", "frags")  # two seeds each


def kind_of(which: str, seed: int) -> Kind:
    """Of a run of one kind, or of all, two seeds of each in turn."""
    for kind in KINDS:
        if which == kind:
            return kind
    return _TURNS[seed // 2 % len(_TURNS)]


def object_of(kind: Kind, seed: int) -> Object:
    """The same Object for the same kind and seed (and compiler); programs[0] is run."""
    if kind == "insns":
        return fuzz_object(seed)
    if kind == "mutants":
        return mutant(seed, fuzz_object if seed % 3 == 0 else _from_c)
    return with_frags(_from_c(seed)) if kind == "frags" else _from_c(seed)


def with_frags(obj: Object) -> Object:
    """For packets in several buffers."""
    return replace(obj, programs=tuple(
        replace(one, kind="xdp.frags", section="xdp.frags") for one in obj.programs))


def _from_c(seed: int) -> Object:
    from bench.fuzz.csource.build import build, random_build
    from bench.fuzz.csource.program import c_source

    how = random_build(seed)
    obj = build(c_source(seed, how.version), how, f"c{seed}")
    return replace(obj, programs=(obj.program("first"),
                                  *(one for one in obj.programs if one.name != "first")))


def text_of(kind: Kind, seed: int) -> str:
    """The C of a seed that has some, and its instructions."""
    obj = object_of(kind, seed)
    out = [format_program(one, obj) for one in obj.programs]
    if kind in ("c", "frags"):
        from bench.fuzz.csource.build import random_build
        from bench.fuzz.csource.program import c_source

        how = random_build(seed)
        out = [c_source(seed, how.version), f"// {how}", *out]
    return "\n".join(out)
