"""A random C file: structs, maps, globals, functions, one or two XDP programs."""

from __future__ import annotations

import random

from bench.fuzz.csource.scope import INTS, Field, Scope
from bench.fuzz.csource.tables import Tables

VALUE = 64  # bytes of a struct val
_PRELUDE = """\
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
typedef __u8 u8; typedef __u16 u16; typedef __u32 u32; typedef __u64 u64;
typedef __s8 s8; typedef __s16 s16; typedef __s32 s32; typedef __s64 s64;
#define NOINLINE static __attribute__((noinline, unused))
#define INLINE static __attribute__((always_inline, unused))
#define data_of(ctx) ((u8 *)(long)(ctx)->data)
#define end_of(ctx) ((u8 *)(long)(ctx)->data_end)
struct loose { u16 u16; u32 u32; u64 u64; u8 more; } __attribute__((packed));
struct key { u32 x; u16 y; u8 z; };
struct state { u8 *data; u8 *end; u64 sum; u32 len; u16 flag; u32 words[4]; };
#define HIDDEN(x) ({ u64 hidden = (x); asm volatile("" : "+r"(hidden)); hidden; })
INLINE u64 cap(u64 x, u32 most)
{ asm volatile("" : "+r"(x)); return x > most ? most : x; }
INLINE u64 cap64(u64 x, u64 most)
{ asm volatile("" : "+r"(x)); if (x > most) x = 0; return x; }
INLINE u16 fold(u64 x) { x = (x & 0xffff) + (x >> 16); x = (x & 0xffff) + (x >> 16); return x; }
INLINE int same(const u8 *a, const u8 *b, int n)
{ for (int i = 0; i < n; i++) if (a[i] != b[i]) return 0; return 1; }
#define MAP(name, kind, entries, ktype) struct { __uint(type, kind); \\
  __uint(max_entries, entries); __type(key, ktype); __type(value, struct val); } name SEC(".maps")
"""
_MAPS = """\
MAP(cells, BPF_MAP_TYPE_ARRAY, 4, u32);
MAP(table, BPF_MAP_TYPE_HASH, 8, u64);
MAP(own, BPF_MAP_TYPE_PERCPU_ARRAY, 4, u32);
MAP(recent, BPF_MAP_TYPE_LRU_HASH, 256, u64);
MAP(flows, BPF_MAP_TYPE_HASH, 16, struct key);
struct { __uint(type, BPF_MAP_TYPE_QUEUE); __uint(max_entries, 5); __uint(value_size, 8); }
  line SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } ring SEC(".maps");
struct inner { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 4); __type(key, u32);
  __type(value, struct val); } inner1 SEC(".maps"), inner2 SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS); __uint(max_entries, 4); __type(key, u32);
  __array(values, struct inner); } outer SEC(".maps") = { .values = { [0] = &inner1,
  [2] = &inner2 } };
"""
_CALLBACKS = """\
static long visit(u32 i, struct state *s)
{ u8 *q = s->data + (i & 63); if (q + 1 > s->end) return 1; s->sum = s->sum * 31 + *q;
  s->words[i & 3] += i; if (s->sum & 0x%x) *q = s->sum; return s->sum %% 17 == 3; }
static long gather(u32 i, struct state *s)
{ u8 *q = s->data + (s->len & 0xff); if (q + 1 > s->end) return 1;
  s->sum += *q; s->len += 1 + (*q & 3); return 0; }
static long nest(u32 i, struct state *s)
{ long r = bpf_loop(i & 3, gather, s, 0); s->sum = s->sum * 7 + r; return s->sum %% 11 == 5; }
static long each(void *map, u32 *k, struct val *v, struct state *s)
{ s->sum = s->sum * 5 + *k + v->at64; v->at64 += %d; s->words[*k & 3] ^= v->at32; return 0; }
"""


class CProgram(Tables):
    """`version` is of the instruction set: what it lacks is not asked for."""

    def file(self) -> str:
        self.line(_PRELUDE)
        self.layout()
        self.line(_MAPS)
        g = self.random.getrandbits
        self.line(f"u64 g_long = {g(64):#x}ull; u32 g_int = {g(32):#x}; u16 g_short; u8 g_byte;",
                  "s32 g_table[16]; u16 g_shorts[8] = { 1, 2, 3 }; struct val g_value;",
                  f"const volatile u32 k_int = {g(32):#x}; const volatile s16 k_short = "
                  f"{self.random.randrange(-9, 40)};",
                  "#define K_INT k_int", "#define K_SHORT k_short",
                  '#define F_ONE f_one', '#define F_TWO f_two',
                  'static const char f_one[] = "%d %u", f_two[] = "%llx-%5d";',
                  _CALLBACKS % (g(6), self.random.randrange(9)))
        for _ in range(self.random.randrange(6)):
            self.function()
        second = self.chance(0.15)
        if second:
            self.main("second", 3, False)
            self.line("struct { __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 4); "
                      "__uint(key_size, 4); __array(values, int (void *)); } jumps SEC(\".maps\")"
                      " = { .values = { [1] = (void *)&second, [2] = (void *)&second } };")
        self.main("first", self.random.choice((6, 10, 16, 24)), second)
        self.line('char L[] SEC("license") = "GPL";')
        return "\n".join(self.lines) + "\n"

    def layout(self) -> None:
        """struct val of 64 bytes: two words for atomics first, then what comes."""
        fields, members, used = [Field("at64", "u64"), Field("at32", "u32")], [], 12
        while used < VALUE - 8:
            name, kind = self.name("f"), self.random.choice(INTS)
            size = int(kind[1:]) // 8
            count = self.random.choice((1, 1, 1, 16 // size))
            if self.chance(0.2):  # bits of one word
                if used > VALUE - 16:
                    break
                used = -(-used // 4) * 4 + 4
                a = self.random.randrange(1, 20)
                signed = self.pick("u32", "s32")
                members.append(f"{signed} {name}a : {a}; {signed} {name}b : {31 - a};")
                fields += [Field(f"{name}a", signed), Field(f"{name}b", signed)]
                continue
            start = -(-used // size) * size
            if start + size * count > VALUE - 8:
                break
            used = start + size * count
            members.append(f"{kind} {name}{f'[{count}]' if count > 1 else ''};")
            fields.append(Field(name, kind, count))
        members.append(f"u8 rest[{VALUE - used}];")
        fields.append(Field("rest", "u8", 16) if VALUE - used >= 16 else Field("rest[5]", "u8"))
        self.fields = fields
        body = " ".join(members)
        self.line(f"union whole {{ struct {{ u64 at64; u32 at32; {body} }}; u8 all[{VALUE}]; }};",
                  f"struct val {{ u64 at64; u32 at32; {body} }};",
                  f'_Static_assert(sizeof(struct val) == {VALUE}, "size");')

    def function(self) -> None:
        kind = self.pick("numbers", "packet", "value", "frame", "context")
        name = self.name("fn")
        how = self.pick("NOINLINE", "NOINLINE", "NOINLINE", "INLINE", "static")
        result = self.pick("u64", "u64", "u32", "s32", "u8", "s16")
        a, b = self.random.choice(INTS), self.random.choice(INTS)
        self.scope = scope = Scope(kind, numbers=["acc", "a"])
        heads = {
            "numbers": f"{a} a, {b} b, u64 c", "packet": f"u8 *p, u8 *end, {a} a",
            "value": f"struct val *v, {a} a, {b} b", "frame": f"struct state *s, {a} a",
            "context": f"struct xdp_md *ctx, {a} a"}
        self.line(f"{how} {result} {name}({heads[kind]}) {{", "u64 acc = 7;")
        match kind:
            case "numbers":
                scope.numbers += ["b", "c"]
            case "packet":
                scope.edges = True
                self._prove(0.5)
            case "value":
                scope.values.append("v")
                scope.numbers.append("b")
            case "frame":
                scope.frames.append("s")
                self.line("u8 *p = s->data, *end = s->end;")
                scope.edges = True
                self._prove(0.5)
            case _:
                scope.context = scope.edges = True
                self.line("u8 *p = data_of(ctx), *end = end_of(ctx);")
                self._prove(0.3)
                if self.chance(0.5):
                    self.line(f"acc += bpf_xdp_adjust_{self.pick('head', 'tail', 'meta')}(ctx, "
                              f"{self.pick('-8', '4', '-20', '8')});",
                              "p = data_of(ctx); end = end_of(ctx);")
                    scope.packet = False
        for _ in range(self.random.randrange(1, 5)):
            self.statement()
        self.line("return acc;", "}")
        self.callees.append((name, kind))

    def _prove(self, share: float) -> None:
        if self.chance(share):
            self.line(f"if (p + 64 > end) {self.scope.leave}")
            self.scope.packet = True

    def main(self, name: str, length: int, jumps: bool) -> None:
        self.scope = scope = Scope("main", numbers=["acc"], packet=True, edges=True, context=True,
                                   frames=["(&state)"], leave="goto out;")
        self.line(f'SEC("xdp") int {name}(struct xdp_md *ctx) {{',
                  f"u64 acc = {self.constant()}; u32 zero = 0; struct val *w;",
                  "u8 *p = data_of(ctx), *end = end_of(ctx);",
                  "struct state state = {};", "if (p + 64 > end) return 2;",
                  "state.data = p; state.end = end;")
        for kind in self.random.sample(INTS, 3):
            x = self.name("x")
            off = self.random.randrange(56)
            self.line(f"{kind} {x} = *({kind} *)(p + {off});")
            scope.numbers.append(x)
        body = len(self.lines)
        for _ in range(length):
            self.statement()
        if jumps:
            self.line(f"if (acc & 1) bpf_tail_call(ctx, &jumps, {self.index(4)});")
        for number in scope.numbers[1:]:
            self.line(f"acc = acc * 31 + {number};")
        # goto out may not enter the scope of a variable without its value: all are declared above
        block = self.lines[body:]
        del self.lines[body:]
        self.line("{", *block, "}", "out:", "w = bpf_map_lookup_elem(&cells, &zero);",
                  "if (w) w->at64 = w->at64 * 31 + acc;",
                  "return (acc ^ acc >> 32) & 0x7fffffff;", "}")


def c_source(seed: int, version: int) -> str:
    """The same text for the same seed and version."""
    return CProgram(random.Random(f"c {seed} {version}"), version).file()
