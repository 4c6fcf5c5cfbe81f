"""Random C statements: assignments, branches, loops with one exit and two, switches, barriers."""

from __future__ import annotations

from collections.abc import Callable

from bench.fuzz.csource.expressions import Expressions
from bench.fuzz.csource.scope import INTS

_DEEPEST = 3  # blocks in blocks


class Statements(Expressions):
    def kinds(self) -> list[tuple[int, Callable[[], None]]]:
        """(weight, statement) of all that the scope allows; its children have more."""
        out: list[tuple[int, Callable[[], None]]] = [
            (14, self.assign), (6, self.declare), (3, self.mix), (2, self.barrier)]
        if self.scope.nesting < _DEEPEST:
            out += [(2 if self.scope.depth else 6, self.branch), (2, self.clamp)]
        if self.scope.depth == 0:
            out += [(3, self.count), (2, self.countdown), (2, self.search), (2, self.choose)]
        elif self.scope.depth == 1 and self.chance(0.3):
            out += [(1, self.count)]
        return out

    def statement(self) -> None:
        weights, actions = zip(*self.kinds(), strict=True)
        self.random.choices(actions, weights)[0]()

    def some(self, most: int) -> None:
        for _ in range(self.random.randrange(1, most + 1)):
            self.statement()

    def assign(self) -> None:
        scope = self.scope
        target = None
        if not scope.numbers or self.chance(0.4):
            target = self.place()
        if target is None:
            if not scope.numbers:
                self.declare()
                return
            target = self.random.choice(scope.numbers)
        op = self.pick("=", "=", "=", "+=", "-=", "*=", "&=", "|=", "^=")
        if self.chance(0.08):
            self.line(f"{target} {self.pick('<<=', '>>=')} ({self.operand(0)}) & 31;")
        elif self.chance(0.08):
            self.line(f"{target}{self.pick('++', '--')};")
        else:
            self.line(f"{target} {op} {self.expression()};")

    def declare(self) -> None:
        name = self.name("x")
        quality = "volatile " if self.chance(0.06) else ""
        self.line(f"{quality}{self.random.choice(INTS)} {name} = {self.expression()};")
        self.scope.numbers.append(name)

    def mix(self) -> None:
        self.line(f"acc = acc * {self.pick('31', '33', '0x100000001b3ull')} "
                  f"{self.pick('+', '^')} {self.expression(1)};")

    def barrier(self) -> None:
        """The compiler may not know what it knew."""
        if self.scope.numbers and self.chance(0.7):
            name = self.random.choice(self.scope.numbers)
            self.line(f"{name} = ({{ u64 t = {name}; asm volatile(\"\" : \"+r\"(t)); t; }});")
        else:
            self.line('asm volatile("" ::: "r6", "r7", "r8", "r9", "memory");')

    def branch(self) -> None:
        with self.block(f"if ({self.condition()})"):
            self.some(2)
            if self.scope.depth and self.chance(0.2):
                self.line(self.pick("break;", "continue;"))
            elif self.chance(0.08):
                self.line(self.scope.leave)
        while self.chance(0.4):
            last = self.chance(0.5)
            head = "else" if last else f"else if ({self.condition(0)})"
            with self.block(head):
                self.some(2)
            if last:
                break

    def clamp(self) -> None:
        """A number within bounds in a block, or behind it."""
        if not self.scope.numbers:
            return
        name, high = self.random.choice(self.scope.numbers), self.pick("7", "63", "200", "1500")
        self.line(self.pick(
            f"if ({name} > {high}) {name} = {high};", f"if ((s64){name} < 0) {name} = 0;",
            f"if ((s32){name} < -{high} || (s32){name} > {high}) {name} &= 7;",
            f"{name} = {name} < {high} ? {name} : {high};", f"{name} = (u64){name} % {high};"))

    # --- loops ------------------------------------------------------------------------------------

    def _loop(self, head: str, counter: str) -> None:
        if self.chance(0.3):
            self.line(self.pick("#pragma unroll", "#pragma nounroll"))
        with self.block(head, loop=True):
            self.scope.fixed.append(counter)
            self.some(2)

    def count(self) -> None:
        i, kind = self.name("i"), self.pick("int", "u32", "u64", "u8", "s64", "u16")
        top = self.random.choice((2, 3) if self.scope.depth else (1, 2, 3, 4, 5, 8))
        if self.chance(0.3):  # as many rounds as a number says, and no more than so many
            many = self.name("n")
            self.line(f"u32 {many} = {self.index(top + 1)};")
            bound = f"{i} < {many}"
            if self.chance(0.5):
                bound = f"{i} < {top} && {i} < {many}"
        else:
            bound = self.pick(f"{i} < {top}", f"{i} != {top}", f"{i} <= {top - 1}")
        self._loop(f"for ({kind} {i} = 0; {bound}; {i}++)", i)

    def countdown(self) -> None:
        i, top = self.name("i"), self.random.choice((1, 2, 3, 5, 7))
        self._loop(self.pick(f"for (int {i} = {top}; {i} > 0; {i}--)",
                             f"for (int {i} = {top}; {i} >= 0; {i}--)",
                             f"for (u32 {i} = {top}; {i}--;)",
                             f"for (s64 {i} = {2 * top}; {i} > -1; {i} -= 2)"), i)

    def search(self) -> None:
        """Two exits: the count and a condition."""
        i = self.name("i")
        self.line(f"int {i} = 0;")
        top = self.random.choice((2, 4, 6))
        self._loop(self.pick(f"for (; {i} < {top} && ({self.condition(0)}); {i}++)",
                             f"while ({i}++ < {top})"), i)
        self.scope.fixed.append(i)
        self.line(f"acc += {i};")

    def choose(self) -> None:
        cases = self.random.randrange(2, 7)
        with self.block(f"switch ({self.expression(1)} & {self.pick('3', '7', '15', '0x42')})"):
            for number in self.random.sample(range(16), cases):
                with self.block(f"case {number}:"):
                    self.some(1)
                if self.chance(0.75):
                    self.line("break;")
            if self.chance(0.6):
                with self.block("default:"):
                    self.some(1)
