"""Where programs come from: instructions chosen one by one, or C through a compiler."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from bench.fuzz.programs import fuzz_object
from xdp_runtime.disasm import format_program
from xdp_runtime.object import Object

Kind = Literal["insns", "c"]
KINDS: tuple[Kind, ...] = get_args(Kind)
BOTH = "both"


def kind_of(which: str, seed: int) -> Kind:
    """Of a run of one kind, or of both, two seeds of each in turn."""
    for kind in KINDS:
        if which == kind:
            return kind
    return KINDS[seed // 2 % 2]


def object_of(kind: Kind, seed: int) -> Object:
    """The same Object for the same kind and seed (and compiler); programs[0] is run."""
    if kind == "insns":
        return fuzz_object(seed)
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
    if kind == "c":
        from bench.fuzz.csource.build import random_build
        from bench.fuzz.csource.program import c_source

        how = random_build(seed)
        out = [c_source(seed, how.version), f"// {how}", *out]
    return "\n".join(out)
