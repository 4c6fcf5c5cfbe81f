"""Objects as clang writes them, linked as libbpf links them; and everything that is not one."""

from __future__ import annotations

import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from xdp_runtime import isa
from xdp_runtime.elf import program_kind, read_object
from xdp_runtime.errors import LoadError, VerifyError
from xdp_runtime.interp import Machine, Trap
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.object import Function, GlobalKind, MapFlag, MapSpec, MapType, Object
from xdp_runtime.program import load as load_program

OBJECTS = Path(__file__).parent / "objects"
READABLE = ["alu", "globals", "legacy", "legacy_nobtf", "maps", "multi", "pass"]
ALL = sorted(OBJECTS.glob("*.o"))


def load(name: str) -> Object:
    return read_object(OBJECTS / f"{name}.o")


def patched(name: str, section: str, offset: int, data: bytes) -> bytes:
    """The object's bytes with `data` at `offset` of a section (or its header: "@section")."""
    raw = bytearray((OBJECTS / f"{name}.o").read_bytes())
    elf = ELFFile(BytesIO(bytes(raw)))
    index = elf.get_section_index(section.removeprefix("@"))
    assert index is not None
    header = elf["e_shoff"] + 64 * index
    base = header if section[0] == "@" else elf.get_section(index)["sh_offset"]
    raw[base + offset:base + offset + len(data)] = data
    return bytes(raw)


def test_smallest_program() -> None:
    obj = load("pass")
    program = obj.program()
    assert (obj.name, obj.license, obj.maps) == ("pass.o", "GPL", ())
    assert (program.name, program.section, program.kind) == ("xdp_pass", "xdp", "xdp")
    assert program.insns == (isa.Mov(False, 0, isa.Imm(2)), isa.Exit())
    assert program.functions == (Function("xdp_pass", 0, 2, True),)
    line, = program.lines
    assert (line.slot, line.file, line.line, line.text) == (0, "./pass.c", 8, "\treturn XDP_PASS;")


@pytest.mark.parametrize("name", READABLE)
def test_objects_are_deterministic_values(name: str) -> None:
    first, again = load(name), read_object((OBJECTS / f"{name}.o").read_bytes(), f"{name}.o")
    assert first == again
    assert hash(first) == hash(again)
    thawed = pickle.loads(pickle.dumps(first))
    assert thawed == first
    assert thawed.btf == first.btf


def test_sections_and_kinds() -> None:
    assert [(p.name, p.section, p.kind) for p in load("multi").programs] == [
        ("one", "xdp", "xdp"), ("two", "xdp", "xdp"), ("frags", "xdp.frags", "xdp.frags"),
        ("dev", "xdp/devmap", "xdp/devmap"), ("cpu", "xdp.frags/cpumap", "xdp.frags/cpumap"),
        ("legacy_name", "xdp_legacy", "xdp"), ("legacy_dev", "xdp_devmap/egress", "xdp/devmap"),
        ("custom", "xdp/custom", "xdp"), ("frags_custom", "xdp.frags/custom", "xdp.frags"),
        ("optional", "xdp", "xdp"), ("classifier", "tc", "tc")]


@pytest.mark.parametrize(("section", "kind"), [
    ("xdp", "xdp"), ("xdp_fw", "xdp"), ("xdp/fw", "xdp"), ("xdp/fw/2", "xdp"),
    ("xdp.frags", "xdp.frags"), ("xdp.frags/x", "xdp.frags"), ("xdp/cpumap", "xdp/cpumap"),
    ("xdp/devmap/x", "xdp/devmap"), ("xdp.frags/devmap", "xdp.frags/devmap"),
    ("xdp_cpumap/x", "xdp/cpumap"), ("xdp_devmap", "xdp/devmap"), ("xdpx", "xdp"),
    ("xdp-balancer", "xdp"), ("xdp-test/1", "xdp"), ("xdp.x", "xdp.x"), ("xd", "xd"),
    ("tc", "tc"), ("kprobe/xdp", "kprobe/xdp"),
])
def test_kind_of_a_section(section: str, kind: str) -> None:
    assert program_kind(section) == kind


def test_several_programs_of_a_section_are_cut_apart() -> None:
    obj = load("multi")
    assert [p.functions for p in obj.programs[:2]] == [
        (Function("one", 0, 5, True),), (Function("two", 0, 6, True),)]
    assert obj.program("two").insns[-1] == isa.Exit()
    assert obj.program("two").lines[0].slot == 0


def test_btf_maps() -> None:
    obj = load("maps")
    maps = {m.name: m for m in obj.maps}
    assert list(maps) == ["first", "second", "outer", "jumps", "stats", "flows", "xsks", "events"]
    flows, btf = maps["flows"], obj.btf
    assert btf is not None
    assert (flows.type, flows.key_size, flows.value_size, flows.max_entries, flows.flags) == (
        MapType.LRU_HASH, 20, 16, 1024, MapFlag.NO_COMMON_LRU)
    assert btf.type(flows.key_type_id).name == "flow"
    assert btf.type(flows.value_type_id).name == "counter"
    assert maps["stats"] == MapSpec("stats", MapType.PERCPU_ARRAY, 4, 16, 5, pinning=1)
    assert maps["events"] == MapSpec("events", MapType.RINGBUF, 0, 0, 4096)
    outer = maps["outer"]
    assert (outer.type, outer.key_size, outer.value_size) == (MapType.ARRAY_OF_MAPS, 4, 4)
    assert outer.slots == ((0, "first"), (3, "second"))
    assert outer.inner is not None
    assert (outer.inner.type, outer.inner.max_entries, outer.inner.value_size) == (
        MapType.ARRAY, 8, 8)
    assert maps["jumps"].slots == ((2, "xdp_leaf"),)
    used = [obj.maps[i.map].name for i in obj.program("xdp_root").insns
            if isinstance(i, isa.LoadMap)]
    assert sorted(used) == ["events", "flows", "jumps", "outer", "xsks"]


@pytest.mark.parametrize("name", ["legacy", "legacy_nobtf"])
def test_legacy_maps(name: str) -> None:
    obj = load(name)
    assert obj.maps == (MapSpec("old_hash", MapType.HASH, 4, 8, 100, MapFlag.NO_PREALLOC),
                        MapSpec("old_array", MapType.ARRAY, 4, 4, 2))
    program = obj.program()
    assert [i.map for i in program.insns if isinstance(i, isa.LoadMap)] == [1, 0]
    assert bool(program.lines) == (name == "legacy")


def test_globals_are_maps_of_one_value() -> None:
    obj = load("globals")
    maps = {m.name: m for m in obj.maps}
    assert list(maps) == ["counters", ".rodata", ".data", ".rodata.tables", ".data.own",
                          ".rodata.hidden", ".bss"]
    shown = {m.name: (m.global_kind, m.value_size, MapFlag(m.flags)) for m in obj.maps[1:]}
    read_only, shared = MapFlag.RDONLY_PROG, MapFlag.MMAPABLE
    assert shown == {
        ".rodata": (GlobalKind.RODATA, 50, read_only | shared),
        ".data": (GlobalKind.DATA, 8, shared),
        ".rodata.tables": (GlobalKind.RODATA, 16, read_only | shared),
        ".data.own": (GlobalKind.DATA, 8, shared),
        ".rodata.hidden": (GlobalKind.RODATA, 4, read_only),  # only a static variable
        ".bss": (GlobalKind.BSS, 24, shared)}
    assert all((m.type, m.key_size, m.max_entries) == (MapType.ARRAY, 4, 1) for m in obj.maps[1:])
    assert maps[".rodata.tables"].initial == struct.pack("<4I", 1, 2, 4, 8)
    assert maps[".data"].initial == struct.pack("<Q", 0x1122334455667788)
    assert maps[".bss"].initial == b""
    assert obj.btf is not None
    layout = obj.btf.decode_value(maps[".bss"].value_type_id, bytes(24))
    assert layout == {"dropped": 0, "recent": [0, 0, 0, 0]}


def test_references_to_globals_carry_their_offset() -> None:
    obj = load("globals")
    loads = [(obj.maps[i.map].name, i.offset) for i in obj.program("xdp_globals").insns
             if isinstance(i, isa.LoadMapValue)]
    assert (".rodata", 40) in loads  # the string, section symbol + addend
    assert (".bss", 8) in loads  # a static variable, likewise
    assert (".data", 0) in loads  # a global variable, by its own symbol


def test_functions_are_appended_as_libbpf_does() -> None:
    """Layout and offsets are those the kernel shows for this object after libbpf 1.1 loaded it."""
    obj = load("globals")
    program = obj.program("xdp_globals")
    assert program.functions == (
        Function("xdp_globals", 0, 41, True), Function("visit", 41, 53),
        Function("square", 53, 63), Function("classify", 63, 76, True),
        Function("weigh", 76, 91))
    calls = {slot: i.off for slot, i in enumerate(program.insns) if isinstance(i, isa.CallLocal)}
    assert calls == {28: 34, 35: 40, 43: 9, 73: 2, 77: -25, 81: -29}
    assert program.insns[13] == isa.LoadFunc(2, 27)
    other = obj.program("xdp_other")
    assert [f.name for f in other.functions] == ["xdp_other", "classify", "weigh", "square"]
    assert {slot: i.off for slot, i in enumerate(other.insns) if isinstance(i, isa.CallLocal)} \
        == {1: 5, 17: 2, 21: 13, 25: 9}


def test_lines_follow_their_functions() -> None:
    program = load("globals").program("xdp_globals")
    assert [line.slot for line in program.lines] == sorted(line.slot for line in program.lines)
    first = {f.name: next(n.text.strip() for n in program.lines if f.start <= n.slot < f.end)
             for f in program.functions}
    assert first["square"] == "static __noinline __u64 square(__u64 x)"
    assert first["xdp_globals"] == "int xdp_globals(struct xdp_md *ctx)"
    assert all(line.slot < len(program.insns) for line in program.lines)
    assert all(program.insns[line.slot] is not None for line in program.lines)


@pytest.mark.parametrize(("name", "message"), [
    ("badmap", "map odd: unknown map attribute colour"),
    ("bigendian", "big-endian BPF object (compile with clang -target bpfel)"),
])
def test_what_is_not_supported_is_named(name: str, message: str) -> None:
    with pytest.raises(LoadError) as error:
        load(name)
    assert message in str(error.value)
    assert str(OBJECTS / f"{name}.o") in str(error.value)


@pytest.mark.parametrize(("name", "program", "message"), [
    ("kfunc", None, "instruction 7 .*: calls the kernel function bpf_xdp_get_xfrm_state: the"),
    ("ksym", None, "instruction 1 .*: refers to the weak extern bpf_prog_active"),
    ("ksyms", "strong", r"calls the extern bpf_has_to_be_there, .* \(declare it __weak, and ask"),
    ("ksyms", "unasked", "calls the weak extern bpf_not_anywhere, which exists only in a kernel"),
])
def test_what_only_a_kernel_has_is_refused_where_a_path_leads(name: str, program: str | None,
                                                              message: str) -> None:
    with pytest.raises(VerifyError, match=message):
        load_program(load(name), program)


def test_functions_for_programs_that_sleep_are_refused_with_the_reason() -> None:
    raw = (OBJECTS / "kfunc.o").read_bytes()
    name, other = b"bpf_xdp_get_xfrm_state\0", b"bpf_arena_alloc_pages\0\0"
    assert name in raw
    with pytest.raises(VerifyError, match="bpf_arena_alloc_pages: it is for programs that may"):
        load_program(read_object(raw.replace(name, other)))


@pytest.mark.root
def test_what_nothing_may_run_is_refused_by_each_engine() -> None:
    obj = load("ksyms")
    with pytest.raises(Trap, match="instruction 1: .*calls the extern bpf_has_to_be_there"):
        Machine(obj, obj.program("strong")).run(bytes(64))
    with pytest.raises(LoadError, match="unknown#195896080"):
        load_into_kernel(obj, "strong")


def test_a_program_may_ask_for_functions_of_the_kernel() -> None:
    obj = load("ksyms")
    assert [p.name for p in obj.programs if not p.autoload] == ["strong", "unasked"]
    with load_program(obj) as program:  # the first that is loaded unasked, and attached
        assert (program.spec.name, program.run(bytes(64)).retval) == ("asked", 2)
    with pytest.raises(LoadError, match=r"for packets that a devmap redirects, .* MAP=KEY:dev=IF"):
        obj.attachable("egress")


def test_a_map_of_maps_says_of_which() -> None:
    raw = patched("legacy_nobtf", "maps", 0, struct.pack("<5I", MapType.ARRAY_OF_MAPS, 4, 4, 1, 0))
    with pytest.raises(LoadError, match="is a map of maps, and does not say of which"):
        read_object(raw)


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.o")
    with pytest.raises(LoadError, match="is a named pipe"):
        read_object(tmp_path / "pipe.o")
    source, sink = os.pipe()  # of the shell's: <(clang ...)
    os.write(sink, (OBJECTS / "pass.o").read_bytes())
    os.close(sink)
    assert read_object(f"/dev/fd/{source}").program().name == "xdp_pass"
    os.close(source)


def test_files_that_are_not_objects(tmp_path: Path) -> None:
    good = (OBJECTS / "pass.o").read_bytes()
    cases: list[tuple[bytes, str]] = [
        (b"", "is empty"),
        (b"#!/bin/sh\n", "is not an ELF file"),
        (b"\x7fEL", "cut off after 3 bytes"),
        (good[:40], "cut off after 40 bytes"),
        (good[:300], "section table lies past the end"),
        (good[:18] + b"\x3e\0" + good[20:], "x86-64 object file, not BPF"),
        (good[:18] + b"\x99\x99" + good[20:], "machine 39321 object file, not BPF"),
        (good[:16] + b"\2" + good[17:], "ELF executable, not an object file"),
        (good[:4] + b"\1" + good[5:], "32-bit ELF file"),
        (good[:60] + b"\0\0" + good[62:], "has no sections"),
    ]
    for number, (data, why) in enumerate(cases):
        path = tmp_path / f"{number}.o"
        path.write_bytes(data)
        with pytest.raises(LoadError, match=why) as error:
            read_object(path)
        assert error.value.what == str(path)
    with pytest.raises(LoadError, match="no such file"):
        read_object(tmp_path / "missing.o")
    with pytest.raises(LoadError, match="is a directory"):
        read_object(tmp_path)
    with pytest.raises(LoadError, match="x86-64 .*, not BPF .compile with clang -target bpf"):
        read_object(sys.executable)


@pytest.mark.parametrize(("data", "why"), [
    (patched("pass", "xdp", 8, b"\xff"), "function xdp_pass, instruction 1: unknown opcode 0xff"),
    (patched("pass", "@xdp", 32, struct.pack("<Q", 12)), "not whole 8-byte instructions"),
    (patched("pass", "@xdp", 32, struct.pack("<Q", 1 << 40)), "xdp reaches past the end"),
    (patched("pass", "@xdp", 8, struct.pack("<Q", 2)), "holds no program"),  # not executable
    (patched("pass", "@.symtab", 44, struct.pack("<I", 0)), ""),
    (patched("alu", "@.bss", 32, struct.pack("<Q", 1 << 33)), ".bss of 8589934592 bytes is absurd"),
    (patched("alu", "@.bss", 32, struct.pack("<Q", 4)), "lies outside the 4 bytes of .bss"),
    (patched("alu", ".relxdp", 8, struct.pack("<II", 1, 9999)), "symbol 9999 does not exist"),
    (patched("alu", ".relxdp", 0, struct.pack("<Q", 1 << 40)), "lies outside the section"),
    (patched("alu", ".relxdp", 0, struct.pack("<Q", 56)), "in the middle of a 64-bit load"),
    (patched("alu", ".relxdp", 0, struct.pack("<Q", 24)), "instruction that takes none"),
    (patched("alu", ".relxdp", 0, struct.pack("<Q", 49)), "relocation makes no sense"),
    (patched("alu", "xdp", 48, b"\x18\x12"), ""),  # overwritten by its relocation
    (patched("alu", "xdp", 68 * 8, b"\x18\x11"), "instruction 68: refers to a map or symbol, but"),
    (patched("globals", ".text", 10 * 8 + 4, struct.pack("<i", 3)),
     "function classify, instruction 10: refers to what is not the start of a function"),
    (patched("globals", ".text", 10 * 8 + 4, struct.pack("<i", 1 << 30)), "not the start"),
    (patched("globals", "xdp/other", 8 + 4, struct.pack("<i", 9)), "not the start"),
    (patched("globals", "@.maps", 32, struct.pack("<Q", 8)), "map counters: lies outside section"),
    (patched("globals", "@.BTF", 32, struct.pack("<Q", 0)), "has BTF-defined maps but no BTF"),
    (patched("globals", ".BTF", 0, b"\0"), ": BTF: wrong magic"),
    (patched("globals", ".BTF.ext", 32, b"\4"), ": BTF.ext: function info records of 4 bytes"),
    (patched("legacy", "maps", 20, b"\1"), "map old_hash: unknown map attribute after map_flags"),
    ((OBJECTS / "legacy.o").read_bytes().replace(b"old_hash", b"old\n\x1b[hh"),
     r"has a map named 'old\n\x1b[hh' (letters,"),
    (patched("legacy", "@maps", 32, struct.pack("<Q", 47)), "does not hold 2 definitions"),
    (patched("legacy", "@maps", 32, struct.pack("<Q", 24)), "does not hold 2 definitions"),
    (patched("maps", ".rel.maps", 0, struct.pack("<Q", 0)), "initialised but holds no values"),
])
def test_damaged_objects(data: bytes, why: str) -> None:
    if not why:
        read_object(data)
        return
    with pytest.raises(LoadError) as error:
        read_object(data, "x.o")
    assert why in str(error.value)
    assert str(error.value).startswith("x.o")


def test_any_prefix_of_an_object_is_refused() -> None:
    data = (OBJECTS / "maps.o").read_bytes()
    for length in range(0, len(data), 7):
        with pytest.raises(LoadError):
            read_object(data[:length])


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to sixteen wrong bytes or words, half of them where the headers and tables are."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        tail = min(len(out), 64 * 22)
        at = rng.randrange(len(out)) if rng.random() < 0.6 else len(out) - 1 - rng.randrange(tail)
        size = rng.choice((1, 1, 2, 4, 8))
        out[at:at + size] = rng.choice((b"\xff" * size, bytes(size), rng.randbytes(size),
                                        b"\x7f" * size, bytes([out[at] ^ 1 << rng.randrange(8)])))
    return bytes(out)


def test_mutants_raise_nothing_but_load_errors() -> None:
    """Within a second of processor time each, without growing by 200 MB."""
    rng = random.Random(42)
    originals = [path.read_bytes() for path in ALL]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    accepted = 0
    for _ in range(4000):
        mutant = mutate(rng.choice(originals), rng)
        start = time.process_time()
        try:
            read_object(mutant)
            accepted += 1
        except LoadError as error:
            assert "\n" not in str(error)
        assert time.process_time() - start < 1
    assert 100 < accepted < 3900
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10


def test_reading_is_lazy_about_pyelftools() -> None:
    code = "import sys, xdp_runtime.elf; print('elftools' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("seed", ["1.5117", "1.10362", "1.17994", "2.1800", "2.9530", "2.30930"])
def test_mutants_that_were_defects(seed: str) -> None:
    """A function behind the end of its section; control characters in names."""
    from bench.fuzz_elf import feed, mutate

    rng = random.Random(seed)
    names = ("alu", "badmap", "bigendian", "core", "globals", "kconfig", "kfunc", "ksym", "legacy",
             "legacy_nobtf", "maps", "multi", "pass", "relocations")
    samples = [(OBJECTS / f"{name}.o").read_bytes() for name in names]
    assert feed(mutate(rng.choice(samples), rng)) in ("read", "refused", "verified")


def test_a_function_behind_its_section_and_odd_names_give_one_sentence() -> None:
    assert str(LoadError("a\nb", "c\x0bd")) == "a?b: c?d"


# --- what is large for no reason -----------------------------------------------------------------
_READ_IT = """
import re, sys
from xdp_runtime.elf import read_object
from xdp_runtime.errors import LoadError
data = sys.stdin.buffer.read()
try:
    print(read_object(data, "large.o").program().name)
except LoadError as error:
    print(error)
print(int(re.search(r"VmHWM:\\s+([0-9]+)", open("/proc/self/status").read())[1]) >> 10)
"""
RETURN = bytes.fromhex("b7000000020000009500000000000000")
MOVE, EXIT = RETURN[:8], RETURN[8:]


def made(sections: list[tuple[str, int, bytes]], symbols: list[tuple[int, int, int]],
         relocs: list[tuple[int, int]] | None = None) -> bytes:
    """An object: sections (name, flags, content), functions (section, value, size), and where the
    first section calls the function of a number."""
    rows = [(name, 1, flags, data, 0, 0) for name, flags, data in sections]
    rows.append((".rel", 9, 0, b"".join(struct.pack("<QQ", at, one + 1 << 32 | 10)
                                        for at, one in relocs or ()), len(rows) + 2, 1))
    table = bytearray(24) + b"".join(struct.pack("<IBBHQQ", 1, 0x12, 0, *one) for one in symbols)
    rows.append((".symtab", 2, 0, bytes(table), len(rows) + 2, 1))
    rows.append((".strtab", 3, 0, b"\0f\0" + b"\0".join(row[0].encode() for row in rows) + b"\0",
                 0, 0))
    names, body, headers = rows[-1][3], bytearray(64), bytearray(64)
    for name, kind, flags, data, link, info in rows:
        body += bytes(-len(body) % 8)
        headers += struct.pack("<IIQQQQIIQQ", max(names.find(b"\0" + name.encode() + b"\0") + 1, 0),
                               kind, flags, 0, len(body), len(data), link, info, 8,
                               {2: 24, 9: 16}.get(kind, 0))
        body += data
    body[:64] = b"\x7fELF\2\1\1".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 1, 247, 1, 0, 0, len(body), 0, 64, 0, 0, 64, len(rows) + 1, len(rows))
    return bytes(body + headers)


INT = struct.pack("<IIII", 0, 1 << 24, 4, 32)
CALL = struct.pack("<BBhi", 0x85, 0x10, 0, -1) + EXIT
LARGE = MOVE * 900_000 + EXIT


@pytest.mark.parametrize(("data", "said"), [
    (lambda: made([("xdp", 6, RETURN)], [(1, 0, 16)]), "f"),
    (lambda: made([("xdp", 6, MOVE * 999_999 + EXIT)], [(1, 0, 8_000_000)]), "f"),
    (lambda: made([("xdp", 6, MOVE * 1_000_000 + EXIT)], [(1, 0, 8_000_008)]),
     "large.o: function f: has more than 1000000 instructions"),
    (lambda: made([("xdp", 6, LARGE * 8)], [(1, n * len(LARGE), len(LARGE)) for n in range(8)]),
     "large.o: has 7200008 instructions, and no object has more than 4000000"),
    (lambda: made([("xdp", 6, CALL * 200), (".text", 6, LARGE)],
                  [*((1, 16 * n, 16) for n in range(200)), (2, 0, len(LARGE))],
                  [(16 * n, 200) for n in range(200)]),
     "large.o: its programs have more than 4000000 instructions together"),
    (lambda: made([("xdp", 6, RETURN)], [(1, 0, 16)] * 300_000),
     "large.o: has 300001 symbols, at most 262144 are read"),
    (lambda: made([("xdp", 6, RETURN), (".BTF", 0, INT * (2 << 20))], [(1, 0, 16)]),
     "large.o: has 32 MiB of BTF, and the kernel takes 16"),
], ids=["small", "1,000,000", "1,000,001", "large programs", "shared", "symbols", "BTF"])
def test_it_takes_little_memory(data: Callable[[], bytes], said: str) -> None:
    done = subprocess.run([sys.executable, "-c", _READ_IT], input=data(), capture_output=True,
                          check=True, cwd=Path(__file__).parents[2])
    text, megabytes = done.stdout.decode().splitlines()
    assert text.startswith(said)
    assert int(megabytes) < 200


def test_a_big_endian_object_is_mutated_nowhere_within() -> None:
    from bench.fuzz_elf import mutate_within

    raw = (OBJECTS / "bigendian.o").read_bytes()
    assert mutate_within(raw, [".BTF"], random.Random(1)) == raw
