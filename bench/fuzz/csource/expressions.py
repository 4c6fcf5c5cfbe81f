"""Random C expressions: all widths and signs, casts, shifts, bit fields, bytes of packets."""

from __future__ import annotations

from bench.fuzz.csource.scope import CONSTANTS, INTS, PACKET, Lines

_SIZES = {"u8": 1, "s8": 1, "u16": 2, "s16": 2, "u32": 4, "s32": 4, "u64": 8, "s64": 8}


class Expressions(Lines):
    def constant(self) -> str:
        if self.chance(0.7):
            return self.random.choice(CONSTANTS)
        return f"{self.random.getrandbits(self.random.choice((8, 16, 32, 64))):#x}ull"

    def place(self) -> str | None:
        """An lvalue in memory: packet, map value, stack, global; None if there is none."""
        scope = self.scope
        choices = ["global", "global"]
        choices += ["packet"] * 3 * scope.packet + ["value"] * 2 * bool(scope.values)
        choices += ["array"] * 2 * bool(scope.arrays) + ["struct"] * 2 * bool(scope.structs)
        choices += ["frame"] * 2 * bool(scope.frames)
        match self.random.choice(choices):
            case "packet":
                kind = self.random.choice(INTS)
                off = self.random.randrange(PACKET - _SIZES[kind] + 1)
                if self.chance(0.2) and kind in ("u16", "u32", "u64"):
                    return f"((struct loose *)(p + {self.random.randrange(PACKET - 15)}))->{kind}"
                return f"(*({kind} *)(p + {off}))"
            case "value":
                return f"{self.random.choice(scope.values)}->{self.member()}"
            case "array":
                name, count = self.random.choice(scope.arrays)
                return f"{name}[{self.index(count)}]"
            case "struct":
                return f"{self.random.choice(scope.structs)}.{self.member()}"
            case "frame":
                frame = self.random.choice(scope.frames)
                return self.pick(f"{frame}->sum", f"{frame}->len", f"{frame}->flag",
                                 f"{frame}->words[{self.index(4)}]")
        return self.pick("g_long", "g_int", "g_short", "g_byte", f"g_table[{self.index(16)}]",
                         f"g_shorts[{self.index(8)}]", f"g_value.{self.member()}")

    def member(self) -> str:
        one = self.random.choice(self.fields)
        return one.path if one.count == 1 else f"{one.path}[{self.index(one.count)}]"

    def index(self, count: int) -> str:
        """A number below `count`, which the verifier can see by one means or another."""
        if self.chance(0.35) or not (self.scope.numbers or self.scope.fixed):
            return str(self.random.randrange(count))
        number = self.leaf()
        if count & (count - 1) == 0:
            bits = count.bit_length() - 1
            return self.pick(f"({number}) & {count - 1}", f"(u64)({number}) & {count - 1}",
                             f"(u32)({number}) % {count}", f"(u64)({number}) >> {64 - bits}",
                             f"(u32)({number}) >> {32 - bits}", f"cap({number}, {count - 1})",
                             f"cap64({number}, {count - 1})")
        return self.pick(f"cap((u32)({number}) % {count}u, {count - 1})",
                         f"cap({number}, {count - 1})", f"cap64({number}, {count - 1})",
                         f"((u8)({number}) * {count - 1} >> 8)")

    def leaf(self) -> str:
        numbers = self.scope.numbers + self.scope.fixed
        if not numbers or self.chance(0.12):
            return self.pick(self.constant(), "K_INT", "K_SHORT")
        return self.random.choice(numbers)

    def operand(self, depth: int) -> str:
        if depth <= 0:
            roll = self.random.random()
            if roll < 0.25:
                return self.constant()
            if roll < 0.45 and (place := self.place()):
                return place
            return self.leaf()
        return self.expression(depth - 1)

    def expression(self, depth: int = 2) -> str:
        a = self.operand(depth - self.random.randrange(1, 3))
        roll = self.random.randrange(100)
        if roll < 12:
            return f"(({self.random.choice(INTS)})({a}))"
        if roll < 18:
            return self.pick(f"(-({a}))", f"(~({a}))", f"(!({a}))")
        if roll < 24:
            return self.pick(f"__builtin_bswap16({a})", f"__builtin_bswap32({a})",
                             f"__builtin_bswap64({a})", f"(s32)(s8)({a})", f"(s64)(s32)({a})",
                             f"(u64)(u16)({a})")
        b = self.operand(depth - self.random.randrange(1, 3))
        if roll < 58:
            return f"(({a}) {self.pick('+', '-', '*', '&', '|', '^')} ({b}))"
        if roll < 72:
            return self.shift(a, b)
        if roll < 80:
            return self.division(a, b)
        if roll < 90:
            kind = self.pick("", "(s32)", "(u32)", "(s64)", "(u64)", "(s16)")
            return f"({kind}({a}) {self.pick('<', '<=', '>', '>=', '==', '!=')} {kind}({b}))"
        if roll < 93:
            return f"(({a}) {self.pick('&&', '||')} ({b}))"
        c = self.operand(depth - 2)
        return f"(({self.condition(0)}) ? ({a}) : ({self.pick(b, c)}))"

    def shift(self, a: str, b: str) -> str:
        wide = self.chance(0.5)
        kind = self.pick("u64", "s64") if wide else self.pick("u32", "s32")
        top = 63 if wide else 31
        count = self.pick(str(self.random.randrange(top + 1)), f"(({b}) & {top})")
        if self.chance(0.15):  # a rotation
            kind = "u64" if wide else "u32"
            return (f"((({kind})({a}) << (({b}) & {top})) | "
                    f"(({kind})({a}) >> (-({b}) & {top})))")
        return f"(({kind})({a}) {self.pick('<<', '>>')} {count})"

    def division(self, a: str, b: str) -> str:
        op = self.pick("/", "%")
        # The compiler may not know a divisor that is zero: it would leave out all that follows.
        number = self.random.choice((2, 3, 7, 8, 10, 255, 1000))
        roll = self.random.random()
        if self.version >= 4 and roll < 0.3:
            kind = self.pick("s64", "s32")
            return f"(({kind})({a}) {op} {self.pick('', '-')}{number})"
        if self.version >= 4 and roll < 0.6:
            kind = self.pick("s64", "s32")
            return f"(({kind})({a}) {op} ({kind})HIDDEN({b}))"
        kind = self.pick("u64", "u32")
        by = self.pick(f"(({b}) | 1)", str(number), f"HIDDEN({b})")
        return f"(({kind})({a}) {op} ({kind}){by})"

    def condition(self, depth: int = 1) -> str:
        a, b = self.operand(depth), self.operand(0)
        kind = self.pick("", "", "(s32)", "(u32)", "(s64)", "(u64)", "(s8)", "(u16)")
        roll = self.random.random()
        if roll < 0.12:
            return f"({a}) & {self.pick('1', '0x80', '0x80000000u', '6', self.constant())}"
        if roll < 0.2:
            other = self.operand(0)
            return (f"{kind}({a}) {self.pick('<', '>=', '!=')} {kind}({b}) "
                    f"{self.pick('&&', '||')} ({other}) {self.pick('>', '<=', '==')} "
                    f"{self.constant()}")
        return f"{kind}({a}) {self.pick('<', '<=', '>', '>=', '==', '!=')} {kind}({b})"
