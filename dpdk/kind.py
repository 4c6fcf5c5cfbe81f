"""The kinds of port that DPDK devices are: for xdp.frags programs, and for all others."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from dataplane.port import PortKind
from dpdk import bursts, native, one_pass, segments


@lru_cache(maxsize=2)
def kind(frags: bool = False) -> PortKind:
    """The port kind for the headers that _native was built with, `frags` for xdp.frags programs.
    Raises PortError without it."""
    lib = native.load()[1]
    offsets = {name.removeprefix("XDPU_"): int(getattr(lib, name))
               for name in dir(lib) if name.startswith("XDPU_")}
    made = bursts.make(offsets)
    if frags:
        return segments.make(made)
    return replace(made.kind, one_pass=one_pass.make(made))
