"""Random C statements on memory: packets by every form of bound, arrays and structs on the stack,
pointers to one of several places, pointers put aside.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.fuzz.csource.scope import INTS
from bench.fuzz.csource.statements import Statements

_BYTES = {"u8": 1, "s8": 1, "u16": 2, "s16": 2, "u32": 4, "s32": 4, "u64": 8, "s64": 8}


class Memory(Statements):
    def kinds(self) -> list[tuple[int, Callable[[], None]]]:
        out = super().kinds()
        scope = self.scope
        out += [(2, self.array), (2, self.struct)]
        if scope.structs or scope.values or scope.packet:
            out.append((3, self.move))
        if scope.structs or scope.values:
            out.append((2, self.either))
        if scope.edges:
            out += [(5, self.bounded), (1, self.length)]
            if scope.depth == 0:
                out += [(2, self.walk), (1, self.headers)]
        if scope.packet and scope.depth == 0:
            out.append((1, self.aside))
        return out

    # --- stack ------------------------------------------------------------------------------------

    def array(self) -> None:
        if len(self.scope.arrays) > 2:
            self.assign()
            return
        name, kind = self.name("a"), self.random.choice(INTS)
        # of less than 16 bytes an index would be put into the address by an OR, which verifiers
        # take for no pointer
        count = 16 // _BYTES[kind] * self.random.choice((1, 1, 2))
        quality = "volatile " if self.chance(0.2) else ""
        start = self.pick("{}", f"{{ {self.operand(0)} }}", "{ 1, 2 }")
        self.line(f"{quality}{kind} {name}[{count}] = {start};")
        self.scope.arrays.append((name, count))

    def struct(self) -> None:
        if len(self.scope.structs) > 1 or self.scope.nesting:
            self.assign()
            return
        name = self.name("whole")
        self.line(f"struct val {name};", f"__builtin_memset(&{name}, "
                  f"{self.pick('0', '0', '0xa5')}, sizeof({name}));")
        self.scope.structs.append(name)

    def _whole(self) -> str:
        """A pointer to 64 bytes: a struct, a value, the packet."""
        scope = self.scope
        choices = [f"(u8 *)&{name}" for name in scope.structs]
        choices += [f"(u8 *){name}" for name in scope.values]
        choices += ["p"] * scope.packet
        return self.random.choice(choices)

    def move(self) -> None:
        size = self.random.choice((1, 2, 3, 4, 6, 7, 8, 12, 13, 16, 20, 24, 31, 32))
        off, other = (self.random.randrange(64 - size + 1) for _ in range(2))
        a, b = self._whole(), self._whole()
        roll = self.random.random()
        if roll < 0.5:
            verb = "__builtin_memcpy" if a != b else "__builtin_memmove"
            self.line(f"{verb}({a} + {off}, {b} + {other}, {size});")
        elif roll < 0.65:
            self.line(f"__builtin_memset({a} + {off}, {self.pick('0', '0xff', '0x5a')}, {size});")
        elif roll < 0.85:
            kind = self.random.choice(INTS)
            x, off = self.name("x"), self.random.randrange(64 - 7)
            self.line(f"{kind} {x}; __builtin_memcpy(&{x}, {a} + {off}, sizeof({x}));")
            self.scope.numbers.append(x)
        else:
            self.line(f"acc += !same({a} + {off}, {b} + {other}, {size});")

    def either(self) -> None:
        """A pointer to one of two places, perhaps of different kinds."""
        places = [f"&{name}" for name in self.scope.structs] + self.scope.values
        places += ["&g_value"] + ["(struct val *)p"] * self.scope.packet
        q = self.name("q")
        first, second = self.random.choice(places), self.random.choice(places)
        self.line(f"struct val *{q} = {first};", f"if ({self.condition()}) {q} = {second};")
        if self.chance(0.6):
            self.line(f'asm volatile("" : "+r"({q}));')
        if self.chance(0.5):
            self.line(f"{q}->{self.member()} {self.pick('+=', '=', '^=')} {self.operand(1)};")
        self.line(f"acc ^= {q}->{self.member()};")

    def aside(self) -> None:
        """A pointer in memory, where other things are written, and taken back."""
        q, buffer = self.name("q"), self.name("b")
        place = self._whole()
        kind = self.random.choice(INTS)
        count = 16 // _BYTES[kind]
        self.line(f"u8 *volatile {q} = {place} + {self.random.randrange(8)};",
                  f"volatile {kind} {buffer}[{count}] = {{}};",
                  f"{buffer}[{self.index(count)}] = {self.operand(1)};",
                  f"acc += *({kind} *)({q} + {self.random.randrange(40)}) + "
                  f"{buffer}[{self.index(count)}];")
        if self.chance(0.4):
            self.line(f"*(u16 *)({q} + {self.random.randrange(40)}) = acc;")

    # --- packet -----------------------------------------------------------------------------------

    def bounded(self) -> None:
        """Some bytes at an offset that is known within bounds, compared with the end first."""
        kind, o, q = self.random.choice(INTS), self.name("o"), self.name("q")
        most = self.random.choice((4, 15, 60, 64, 255, 1000, 1500))
        width = self.pick("u32", "u64", "u16", "u64")
        self.line(f"{width} {o} = {self.index(most + 1)};")
        if self.chance(0.2):
            self.line(f'asm volatile("" : "+r"({o})); if ({o} > {most}) {o} = {most};')
        first = self.random.choice((0, 0, 14, 20, 34))
        size = _BYTES[kind] + self.random.choice((0, 0, 4, 12))
        self.line(f"u8 *{q} = p + {first} + {o};" if first and self.chance(0.5)
                  else f"u8 *{q} = p + {o};")
        if self.chance(0.2):
            self.line(f"acc += HIDDEN({q} - p);",
                      f"if ({q} {self.pick('==', '>', '!=')} p + {first}) acc++;")
        check = self.pick(f"{q} + {size} <= end", f"end >= {q} + {size}",
                          f"!({q} + {size} > end)", f"{q} + {size - 1} < end",
                          f"(void *)({q} + {size}) <= (void *)end")
        if self.chance(0.3) and not self.scope.depth:
            self.line(f"if (!({check})) {self.scope.leave}")
            self._touch(q, size, kind)
            return
        with self.block(f"if ({check})"):
            self._touch(q, size, kind)
            if self.chance(0.4):
                self.some(1)

    def _touch(self, q: str, size: int, kind: str) -> None:
        at = self.random.randrange(size - _BYTES[kind] + 1)
        place = f"*({kind} *)({q} + {at})"
        self.line(self.pick(
            f"acc ^= {place};", f"acc = acc * 7 + {place};", f"{place} = {self.operand(1)};",
            f"{place} += acc;", f"{{ {kind} t; __builtin_memcpy(&t, {q} + {at}, sizeof(t)); "
            f"acc -= t; }}"))

    def length(self) -> None:
        """Of the packet, as a number."""
        x = self.name("x")
        kind = self.pick("u64", "u32", "u16", "long", "int")
        self.line(f"{kind} {x} = end - p;")
        self.scope.numbers.append(x)

    def walk(self) -> None:
        """Through the packet by a pointer that moves on, to its end or to a limit."""
        q, i, step = self.name("q"), self.name("i"), self.random.choice((1, 2, 4, 8, 13))
        most = self.random.choice((3, 6, 12))
        kind = self.random.choice([one for one in INTS if _BYTES[one] <= step])
        first = self.random.choice((0, 1, 14, 34))
        mend = self.pick(f"acc += *({kind} *){q};", f"acc = (acc ^ *({kind} *){q}) * 16777619;",
                         f"*({kind} *){q} ^= acc;", f"if (*({kind} *){q} == 7) break; acc++;")
        go = self.pick(f"{q} += {step};", f"{q} += {step} + (*{q} & 3);",
                       f"{q} += cap(*{q}, 20) + {step};")
        self.line(f"u8 *{q} = p + {first};")
        with self.block(f"for (int {i} = 0; {i} < {most}; {i}++)", loop=True):
            self.line(self.pick(f"if ({q} + {step} > end) break;",
                                f"if (end < {q} + {step}) break;"), mend, go)

    def headers(self) -> None:
        """Ethernet, tags, IPv4 with options, a port: as programs look for them."""
        off, proto = self.name("o"), self.name("x")
        self.line(f"u32 {off} = 14; u16 {proto} = 0;", "if (p + 14 <= end)",
                  f"{proto} = *(u16 *)(p + 12);")
        tag = self.name("i")
        with self.block(f"for (int {tag} = 0; {tag} < 2; {tag}++)", loop=True):
            self.line(f"if ({proto} != 0x81 && ({proto} & 3)) break;",
                      f"if (p + {off} + 4 > end) break;",
                      f"{proto} = *(u16 *)(p + {off} + 2); {off} += 4;")
        with self.block(f"if (p + {off} + 20 <= end)"):
            self.line(f"u8 *ip = p + {off}; u32 ihl = (*ip & 15) * 4;",
                      "u16 sum = ip[10]; acc += sum;",
                      "if (ihl >= 20 && ip + ihl + 4 <= end) "
                      "acc = acc * 31 + *(u32 *)(ip + ihl);")
        self.scope.numbers += [off, proto]
