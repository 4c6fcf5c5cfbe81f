"""Random C statements on maps: lookups, updates, deletes, atomics, loops by helpers, records."""

from __future__ import annotations

from collections.abc import Callable

from bench.fuzz.csource.memory import Memory

_KEYS = {"cells": 6, "table": 12, "own": 5, "recent": 12, "flows": 12, "inner1": 5}


class Tables(Memory):
    def kinds(self) -> list[tuple[int, Callable[[], None]]]:
        out = super().kinds()
        scope = self.scope
        out += [(3, self.atomic)]
        if scope.nesting < 3:
            out += [(1 if scope.depth else 4, self.find)]
        if scope.depth == 0:
            out += [(2, self.put), (1, self.record), (1, self.queue), (1, self.sums)]
            if self.callees:
                out.append((4, self.call))
            if scope.kind == "main":
                out += [(2, self.rounds), (1, self.each), (1, self.nested), (1, self.text)]
        if scope.context and scope.depth == 0:
            out += [(2, self.buffer)]
        if scope.kind == "main" and scope.depth == 0 and not scope.nesting:
            out += [(2, self.edges)]
        return out

    def key_of(self, table: str) -> str:
        """What a key is read from by its name behind an &: a variable, its padding written, or a
        place in the packet or a map's value."""
        scope = self.scope
        if table != "recent" and self.chance(0.1):  # of which there may be any number
            kind = {"flows": "struct key", "table": "u64"}.get(table, "u32")
            if scope.packet:
                return f"*({kind} *)(p + {self.random.randrange(56)})"
            if scope.values:
                return f"*({kind} *)(&{self.random.choice(scope.values)}->at64)"
        key, number = self.name("k"), self.index(_KEYS[table])
        if table == "flows":
            self.line(f"struct key {key}; __builtin_memset(&{key}, 0, sizeof({key}));",
                      f"{key}.x = {number}; {key}.y = {self.pick('1', 'K_SHORT')};")
        else:
            kind = "u64" if table in ("table", "recent") else "u32"
            self.line(f"{kind} {key} = {number};")
        return key

    def find(self) -> None:
        table = self.random.choice(list(_KEYS))
        key, v = self.key_of(table), self.name("v")
        self.line(f"struct val *{v} = bpf_map_lookup_elem(&{table}, &{key});")
        scope = self.scope
        roll = self.random.random()
        if roll < 0.25 and scope.depth == 0:
            self.line(f"if (!{v}) {scope.leave}")
            scope.values.append(v)
            self.assign()
            return
        if roll < 0.4:  # of one of two tables
            other = self.key_of("cells")
            self.line(f"if (!{v}) {v} = bpf_map_lookup_elem(&cells, &{other});")
        with self.block(f"if ({v})"):
            scope.values.append(v)
            self.some(2)
            place = f"{v}->{self.member()}"
            self.line(self.pick(f"acc += {place};", f"{place} = acc;", f"{place}++;"))

    def put(self) -> None:
        scope = self.scope
        table = self.random.choice(list(_KEYS))
        key = self.key_of(table)
        if self.chance(0.3):
            self.line(f"acc += bpf_map_delete_elem(&{table}, &{key});")
            return
        sources = [f"&{name}" for name in scope.structs] + scope.values + ["&g_value"]
        if scope.packet:
            sources.append("(struct val *)p")
        self.line(f"acc = acc * 3 + bpf_map_update_elem(&{table}, &{key}, "
                  f"{self.random.choice(sources)}, {self.pick('0', '0', '1', '2', '3')});")

    def atomic(self) -> None:
        scope = self.scope
        place = [f"{v}->{self.pick('at64', 'at32')}" for v in scope.values]
        place += [f"{f}->sum" for f in scope.frames] + ["g_long", "g_int"]
        if self.version < 3:  # LLVM has 64 bits only, and ends the process at others
            place = [one for one in place if not one.endswith(("at32", "g_int"))]
        where, what = self.random.choice(place), self.operand(0)
        if self.version < 3:
            self.line(f"__sync_fetch_and_add(&{where}, {what});")
            return
        if self.chance(0.5):
            verb = self.pick("add", "or", "and", "xor")
            head = "acc += " if self.chance(0.6) else ""
            self.line(f"{head}__sync_fetch_and_{verb}(&{where}, {what});")
        elif self.chance(0.5):
            self.line(f"acc ^= __sync_val_compare_and_swap(&{where}, "
                      f"{self.pick(where, self.operand(0))}, {what});")
        else:
            self.line(f"acc -= __sync_lock_test_and_set(&{where}, {what});")

    def queue(self) -> None:
        if self.chance(0.5):
            self.line("{ u64 t = acc; acc += bpf_map_push_elem(&line, &t, "
                      f"{self.pick('0', '2')}); }}")
        else:
            self.line(f"{{ u64 t = 0; acc += bpf_map_{self.pick('pop', 'peek')}_elem(&line, &t); "
                      "acc ^= t; }")

    def record(self) -> None:
        """In a ring buffer, reserved or copied."""
        if self.chance(0.4):
            self.line(f"{{ u64 t = {self.operand(1)}; acc += bpf_ringbuf_output(&ring, &t, "
                      f"{self.pick('8', '4', '1')}, 0); }}")
            return
        r = self.name("r")
        self.line(f"struct val *{r} = bpf_ringbuf_reserve(&ring, sizeof(*{r}), 0);")
        with self.block(f"if ({r})"):
            self.line(f"__builtin_memset({r}, 0, sizeof(*{r}));",
                      f"{r}->{self.member()} = acc; acc += {r}->{self.member()};",
                      f"bpf_ringbuf_{self.pick('submit', 'discard')}({r}, 0);")
        self.line(f"acc += bpf_ringbuf_query(&ring, {self.pick('0', '1', '2', '3')});")

    def sums(self) -> None:
        size = 4 * self.random.randrange(1, 5)
        place = self.pick("&g_value", *[f"&{s}" for s in self.scope.structs], *self.scope.values)
        x = self.name("x")
        self.line(f"s64 {x} = bpf_csum_diff(0, 0, (void *){place}, {size}, "
                  f"(u32){self.operand(0)});", f"acc += fold({x});")
        self.scope.numbers.append(x)

    def text(self) -> None:
        b = self.name("b")
        self.line(f"char {b}[24] = {{}}; long {b}n = 0;", f"u64 {b}args[] = {{ "
                  f"{self.operand(0)}, {self.operand(0)} }};",
                  f"acc += bpf_snprintf({b}, {self.pick('24', '9', '1')}, "
                  f"{self.pick('F_ONE', 'F_TWO')}, {b}args, sizeof({b}args));",
                  f"acc += bpf_strtol({b}, {self.pick('8', '24', '4')}, "
                  f"{self.pick('0', '10', '16')}, &{b}n); acc ^= {b}n + {b}[3];")

    def buffer(self) -> None:
        scope = self.scope
        b, size = self.name("b"), self.random.choice((1, 2, 7, 8, 14, 24))
        verb = self.pick("load", "load", "store")
        where = self.pick(self.index(90), self.index(90), f"(u32)({self.operand(1)})",
                          f"({self.index(64)}) + {self.random.choice((3500, 4060, 7600, 8000))}")
        if self.chance(0.2):  # into a map's value, or from there
            place = self.pick("&g_value", *scope.values)
            self.line(f"acc += bpf_xdp_{verb}_bytes(ctx, {where}, {place}, {size + 24});")
        self.line(f"u8 {b}[24] = {{ {self.operand(0)} }};",
                  f"acc += bpf_xdp_{verb}_bytes(ctx, {where}, {b}, {size});",
                  f"acc = acc * 31 + {b}[{self.index(16)}];")
        if self.chance(0.2):
            self.line("acc += bpf_xdp_get_buff_len(ctx);")
        if self.scope.edges and self.chance(0.5):  # pointers stay what they are without
            self.line("p = data_of(ctx); end = end_of(ctx);")
            if self.scope.packet:
                self.line(f"if (p + 64 > end) {self.scope.leave}")

    def edges(self) -> None:
        """What moves the packet's edges; they are read again."""
        delta = self.random.choice((-4200, -1000, -128, -40, -32, -20, -14, -8, -4, 0, 4, 8, 14,
                                    20, 40, 300, 4000))
        how = self.pick(str(delta), str(delta), f"-(int)({self.index(33)})",
                        f"(int)({self.index(33)})")
        self.line(f"acc = acc * 31 + bpf_xdp_adjust_{self.pick('head', 'tail', 'meta')}"
                  f"(ctx, {how});", "p = data_of(ctx); end = end_of(ctx);",
                  f"if (p + 64 > end) {self.scope.leave}")
        if self.chance(0.5):
            m = self.name("m")
            self.line(f"{{ u8 *{m} = (void *)(long)ctx->data_meta;")
            size = self.random.choice((1, 4, 8))
            kind = {1: "u8", 4: "u32", 8: "u64"}[size]
            self.line(f"if ({m} + {size} <= p) {{ *({kind} *){m} {self.pick('=', '^=', '+=')} "
                      f"acc; acc ^= *({kind} *){m}; }} }}")

    # --- what calls back --------------------------------------------------------------------------

    def rounds(self) -> None:
        s = self.scope.frames[0] if self.scope.frames else "(&state)"
        verb = self.pick("visit", "visit", "gather", "nest")
        self.line(f"{s}->data = p; {s}->end = end; {s}->len = {self.index(64)};",
                  f"acc += bpf_loop({self.index(20)}, {verb}, {s}, 0);",
                  f"acc = acc * 33 + {s}->sum;")

    def each(self) -> None:
        self.line(f"acc += bpf_for_each_map_elem(&{self.pick('cells', 'own', 'inner1')}, each, "
                  "&state, 0);", "acc ^= state.sum;")

    def nested(self) -> None:
        """A map in a map."""
        k, m = self.name("k"), self.name("m")
        self.line(f"u32 {k} = {self.index(4)};",
                  f"void *{m} = bpf_map_lookup_elem(&outer, &{k});")
        with self.block(f"if ({m})"):
            v = self.name("v")
            self.line(f"struct val *{v} = bpf_map_lookup_elem({m}, &{k});")
            with self.block(f"if ({v})"):
                self.scope.values.append(v)
                self.some(2)
                self.line(f"{v}->{self.member()} += acc;")

    def call(self) -> None:
        """Of a function made before, with what it takes; False ones are left out."""
        scope = self.scope
        fitting = [one for one in self.callees if {
            "numbers": True, "packet": scope.edges, "value": bool(scope.values),
            "frame": bool(scope.frames), "context": scope.context and scope.kind == "main"
            and not scope.nesting}[one[1]]]
        if not fitting:
            self.assign()
            return
        name, kind = self.random.choice(fitting)
        a, b = self.expression(1), self.operand(0)
        match kind:
            case "numbers":
                self.line(f"acc += {name}({a}, {b}, {self.operand(0)});")
            case "packet":
                self.line(f"acc ^= {name}(p, end, {a});")
            case "value":
                self.line(f"acc += {name}({self.random.choice(scope.values)}, {a}, {b});")
            case "frame":
                frame = self.random.choice(scope.frames)
                if scope.edges:
                    self.line(f"{frame}->data = p; {frame}->end = end;")
                self.line(f"acc ^= {name}({frame}, {a});")
            case _:
                self.line(f"acc += {name}(ctx, {a});", "p = data_of(ctx); end = end_of(ctx);",
                          f"if (p + 64 > end) {scope.leave}")
