"""Template: code written in Python that becomes part of a compiled program.

A template names a *factory*: a function that takes the intrinsics module (`m`) and returns the
Python function to compile.  The factory keeps Numba out of every import until something is
compiled.  Inside, only 64-bit integers and pointers exist; see compiler/intrinsics.py.

    def make_array_lookup(m):
        def array_lookup(values, stride, max_entries, worker, key):
            index = m.load_u32(key, 0)
            if index < max_entries:
                return m.gep(values, index * stride)
            return m.null()
        return array_lookup

    ARRAY_LOOKUP = Template("array_lookup", make_array_lookup, "ptr(ptr, i64, i64, i64, ptr)")

Constants of a map (its stride, its size) are ordinary arguments: every template is inlined where
it is called, with constants in their place, and LLVM folds them.  So a template is compiled by
Numba once for all maps, and its bitcode is cached by content (compiler/templates.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Template:
    """`name` is the symbol, `signature` like "i64(ptr, i64)"; `uses` are templates it calls
    through `m.extern(template)`.  `inline` False keeps cold code out of the packet loop; what
    is `rare` besides (repairs, waiting) is made small rather than fast, and compiled once for all
    programs.  Around calls of what is `cold`, LLVM arranges everything for their not happening."""

    name: str
    factory: Callable[[Any], Callable[..., Any]]
    signature: str
    uses: tuple[Template, ...] = ()
    inline: bool = True
    externals: tuple[str, ...] = ()  # memory outside the module that it names (`m.external`)
    rare: bool = False
    cold: bool = False

    @property
    def result(self) -> str:
        return self.signature.split("(", 1)[0].strip()

    @property
    def parameters(self) -> tuple[str, ...]:
        inside = self.signature.split("(", 1)[1].rstrip(")")
        return tuple(p.strip() for p in inside.split(",") if p.strip())
