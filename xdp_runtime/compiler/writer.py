"""The text of one LLVM function while it is written: temporaries, labels, variables.

A variable is an alloca that LLVM turns into SSA values.  Within straight code variables are kept as
the values themselves, stored only where the code branches, and what was widened is not narrowed
again: LLVM has less to read and to clean up.
"""

from __future__ import annotations

# Of a program that becomes part of the loop that calls it: an attribute that LLVM does not know,
# as the passes say when it does (target.py).
MERGED = '"xdpu.merged"'
_ENDS = ("br ", "switch ", "unreachable")  # of blocks that others follow


class Writer:
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.variables: dict[str, str] = {}  # alloca name -> LLVM type
        self.temporaries = 0
        self.labels = 0
        # of the straight code since the last label: what variables hold, which of them are not
        # stored yet, and values by the expression that gives them
        self.held: dict[str, str] = {}
        self.unstored: dict[str, str] = {}
        self.widened: dict[str, tuple[str, int]] = {}  # a zero extended value: from what, its bits
        self.made: dict[str, str] = {}

    # --- text ---------------------------------------------------------------------------------

    def emit(self, line: str) -> None:
        if line.startswith(_ENDS):
            self.store_variables()
        elif line.startswith("ret "):
            self.unstored.clear()
        self.lines.append(f"  {line}")

    def value(self, expression: str) -> str:
        self.temporaries += 1
        name = f"%t{self.temporaries}"
        self.lines.append(f"  {name} = {expression}")
        return name

    def same(self, expression: str) -> str:
        """As `value`, of an expression without effects: computed once in straight code."""
        name = self.made.get(expression)
        if name is None:
            name = self.made[expression] = self.value(expression)
        return name

    def label(self, stem: str) -> str:
        self.labels += 1
        return f"{stem}.{self.labels}"

    def start(self, label: str) -> None:
        assert not self.unstored
        self.held.clear()
        self.widened.clear()
        self.made.clear()
        self.lines.append(f"{label}:")

    # --- variables ----------------------------------------------------------------------------

    def variable(self, location: str, component: str) -> str:
        name = f"%{location}.{component}"
        self.variables[name] = "i64" if component == "i" else "ptr"
        return name

    def get(self, location: str, component: str) -> str:
        name = self.variable(location, component)
        if name not in self.held:
            self.held[name] = self.value(f"load {self.variables[name]}, ptr {name}")
        return self.held[name]

    def put(self, location: str, component: str, value: str) -> None:
        name = self.variable(location, component)
        self.held[name] = self.unstored[name] = value

    def store_variables(self) -> None:
        for name, value in self.unstored.items():
            self.lines.append(f"  store {self.variables[name]} {value}, ptr {name}")
        self.unstored.clear()

    # --- widths -------------------------------------------------------------------------------

    def widen(self, value: str, bits: int, signed: bool = False) -> str:
        if bits == 64:
            return value
        if signed:
            return self.same(f"sext i{bits} {value} to i64")
        wide = self.same(f"zext i{bits} {value} to i64")
        self.widened[wide] = value, bits
        return wide

    def narrow(self, value: str, bits: int) -> str:
        if bits == 64:
            return value
        if not value.startswith("%"):
            return str(int(value) & ((1 << bits) - 1))
        source, known_bits = self.widened.get(value, (value, 64))
        if known_bits == bits:
            return source
        if known_bits < bits:
            return self.same(f"zext i{known_bits} {source} to i{bits}")
        return self.same(f"trunc i{known_bits} {source} to i{bits}")
