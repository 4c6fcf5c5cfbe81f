"""The scalar domain at a few bits, where every value can be tried.

Everything in it derives from `BITS: Final = 64` in tnum.py.  Here the same sources run with another
number, as modules of their own: what is shown of them is shown of the code, only the width is not
that of a register.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any

from xdp_runtime import interp_alu
from xdp_runtime import verifier as package
from xdp_runtime.isa import AluOp, JmpOp

_WIDTH = "BITS: Final = 64\n"
_NAMES = ("tnum", "scalar", "scalar_alu", "scalar_branch")


class Narrow:
    """The modules at `bits`, sets of their values, and what instructions do at that width."""

    def __init__(self, bits: int) -> None:
        self.bits, self.half = bits, bits // 2
        self.top, self.sign = (1 << bits) - 1, 1 << (bits - 1)
        self.top_half = (1 << self.half) - 1
        self.values = range(1 << bits)
        modules = _load(bits)
        self.tnum: Any = modules["tnum"]
        self.scalar: Any = modules["scalar"]
        self.arith: Any = modules["scalar_alu"]
        self.cond: Any = modules["scalar_branch"]
        self._members: dict[int, tuple[Any, tuple[int, ...]]] = {}

    def members(self, a: Any) -> tuple[int, ...]:
        known = self._members.get(id(a))
        if known is None:
            known = self._members[id(a)] = (a, tuple(v for v in self.values if a.has(v)))
        return known[1]

    def tnums(self) -> Iterator[tuple[int, int]]:
        return ((value, mask) for mask in self.values for value in self.values if not value & mask)

    def ranges(self) -> Iterator[tuple[int, int]]:
        return ((low, high) for low in self.values for high in range(low, self.top + 1))

    def signed(self, value: int) -> int:
        return interp_alu.signed(value, self.bits)

    def full(self, tnum: tuple[int, int] | None = None, unsigned: tuple[int, int] | None = None,
             signed: tuple[int, int] | None = None, unsigned32: tuple[int, int] | None = None,
             signed32: tuple[int, int] | None = None) -> Any:
        """`sync` of what is given, nothing being known of the rest."""
        half_sign = 1 << (self.half - 1)
        return self.scalar.sync(
            *(tnum or (0, self.top)), *(unsigned or (0, self.top)),
            *(signed or (-self.sign, self.sign - 1)), *(unsigned32 or (0, self.top_half)),
            *(signed32 or (-half_sign, half_sign - 1)))

    def alu(self, op: AluOp, is64: bool, a: int, b: int) -> int:
        bits = self.bits if is64 else self.half
        mask = (1 << bits) - 1
        return interp_alu._alu(op, bits, a & mask, b & mask) & mask

    def compare(self, op: JmpOp, is64: bool, a: int, b: int) -> bool:
        """Extending the sign keeps every order, and whether there are common bits."""
        bits = self.bits if is64 else self.half
        return interp_alu.compare(op, True, interp_alu.sign_extend(a, bits),
                                  interp_alu.sign_extend(b, bits))


@cache
def narrow(bits: int) -> Narrow:
    return Narrow(bits)


def _load(bits: int) -> dict[str, ModuleType]:
    real = {name: importlib.import_module(f"{package.__name__}.{name}") for name in _NAMES}
    made = {}
    try:
        for name, module in real.items():
            path = module.__file__
            assert path is not None
            with open(path, encoding="utf-8") as file:
                source = file.read()
            if name == "tnum":
                assert source.count(_WIDTH) == 1
                source = source.replace(_WIDTH, _WIDTH.replace("64", str(bits)))
            made[name] = ModuleType(module.__name__)
            sys.modules[module.__name__] = made[name]
            exec(compile(source, f"{path} at {bits} bits", "exec"), made[name].__dict__)
    finally:
        for module in real.values():
            sys.modules[module.__name__] = module
    return made
