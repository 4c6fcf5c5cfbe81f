"""The BTF reader: every kind, values both ways, and input that lies."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from xdp_runtime import btf as bt
from xdp_runtime.btf import Btf
from xdp_runtime.btf_ext import BtfExt
from xdp_runtime.elf import read_object
from xdp_runtime.elf_file import open_elf
from xdp_runtime.errors import LoadError

OBJECTS = Path(__file__).parent / "objects"


class Writer:
    """Writes a .BTF section, one `add` a type; ids count from 1."""

    def __init__(self) -> None:
        self.types, self.strings, self.count = b"", b"\0", 0

    def string(self, text: str) -> int:
        if not text:
            return 0
        self.strings += text.encode() + b"\0"
        return len(self.strings) - len(text) - 1

    def add(self, kind: int, name: str = "", size: int = 0, words: tuple[int, ...] = (),
            vlen: int = 0, flag: bool = False) -> int:
        info = kind << 24 | vlen | flag << 31
        self.types += struct.pack(f"<III{len(words)}I", self.string(name), info, size,
                                  *(w & 0xFFFFFFFF for w in words))
        self.count += 1
        return self.count

    def integer(self, name: str, size: int, encoding: int = 0) -> int:
        return self.add(1, name, size, (encoding << 24 | size * 8,))

    def data(self) -> bytes:
        return struct.pack("<HBBIIIII", bt.MAGIC, 1, 0, 24, 0, len(self.types), len(self.types),
                           len(self.strings)) + self.types + self.strings

    def parse(self) -> Btf:
        return Btf.parse(self.data())


def test_every_kind() -> None:
    w = Writer()
    u32 = w.integer("unsigned int", 4)
    w.add(2, size=u32)
    w.add(3, words=(u32, u32, 7))
    w.add(4, "pair", 8, (w.string("a"), u32, 0, w.string("b"), u32, 32), vlen=2)
    w.add(5, "either", 4, (w.string("x"), u32, 5 << 24), vlen=1, flag=True)
    w.add(6, "colour", 4, (w.string("RED"), -1), vlen=1, flag=True)
    w.add(7, "later", flag=True)
    w.add(8, "u32", u32)
    w.add(9, size=u32)
    w.add(10, size=u32)
    w.add(11, size=2)
    w.add(13, size=u32, words=(w.string("n"), u32, 0, 0), vlen=2)
    w.add(12, "main", 12, vlen=1)
    w.add(14, "counter", u32, (1,))
    w.add(15, ".bss", 4, (14, 0, 4), vlen=1)
    w.add(16, "double", 8)
    w.add(17, "tagged", u32, (-1,))
    w.add(18, "user", u32)
    w.add(19, "big", 8, (w.string("M"), 0xFFFFFFFE, 0xFFFFFFFF), vlen=1, flag=True)
    w.add(19, "ubig", 8, (w.string("N"), 1, 0x80000000), vlen=1)
    btf = w.parse()
    assert btf.types == (
        bt.Void(), bt.Int("unsigned int", 4, 0, 0, 32), bt.Ptr(1), bt.Array(1, 1, 7),
        bt.Struct("pair", 8, (bt.Member("a", 1, 0), bt.Member("b", 1, 32))),
        bt.Union("either", 4, (bt.Member("x", 1, 0, 5),)),
        bt.EnumType("colour", 4, True, (("RED", -1),)), bt.Fwd("later", True),
        bt.Typedef("u32", 1), bt.Volatile(1), bt.Const(1), bt.Restrict(2),
        bt.FuncProto(1, (("n", 1), ("", 0))), bt.Func("main", 12, 1), bt.Var("counter", 1, 1),
        bt.DataSec(".bss", 4, (bt.SectionVar(14, 0, 4),)), bt.Float("double", 8),
        bt.DeclTag("tagged", 1, -1), bt.TypeTag("user", 1),
        bt.EnumType("big", 8, True, (("M", -2),)),
        bt.EnumType("ubig", 8, False, (("N", (1 << 63) + 1),)))
    assert btf.find("pair", bt.Struct) == 4
    assert btf.find("pair", bt.Union) == 0
    assert btf.resolve(8) == btf.resolve(18) == 1
    assert [btf.size_of(i) for i in (1, 2, 3, 4, 5, 6, 11, 14, 15, 16, 19)] == [
        4, 8, 28, 8, 4, 4, 8, 4, 4, 8, 8]
    for no_size in (0, 7, 12, 13):
        with pytest.raises(LoadError, match="has no size"):
            btf.size_of(no_size)


def test_cycles_are_found() -> None:
    w = Writer()
    w.add(8, "a", 2)
    w.add(10, size=1)
    w.add(3, words=(4, 4, 2))
    w.add(3, words=(3, 3, 2))
    w.add(14, "v", 5, (0,))
    btf = w.parse()
    for resolve in (btf.resolve, btf.size_of):
        with pytest.raises(LoadError, match="cycle of typedefs"):
            resolve(1)
    with pytest.raises(LoadError, match="contains itself"):
        btf.size_of(3)
    with pytest.raises(LoadError, match="contains itself"):
        btf.size_of(5)


def test_struct_inside_itself_has_no_values() -> None:
    w = Writer()
    w.add(4, "s", 8, (w.string("again"), 1, 0, w.string("more"), 1, 0), vlen=2)
    btf = w.parse()
    with pytest.raises(LoadError, match="nested beyond reason"):
        btf.decode_value(1, bytes(8))
    with pytest.raises(LoadError, match="reaches past|nested beyond reason"):
        value: dict[str, object] = {}
        for _ in range(40):
            value = {"again": value}
        btf.encode_value(1, value)


def test_exploding_overlap_is_bounded() -> None:
    """40 unions, each holding the next twice: 2**40 readings of the same 8 bytes."""
    w = Writer()
    a, b = w.string("a"), w.string("b")
    for i in range(40):
        w.add(5, f"u{i}", 8, (a, i + 2, 0, b, i + 2, 0), vlen=2)
    w.integer("long", 8)
    btf = w.parse()
    with pytest.raises(LoadError, match="nested beyond reason"):
        btf.decode_value(10, bytes(8))


def test_absurd_sizes() -> None:
    w = Writer()
    byte = w.integer("char", 1)
    w.add(3, words=(byte, byte, 0xFFFFFFFF))
    w.add(3, words=(2, byte, 0xFFFFFFFF))
    empty = w.add(4, "nothing", 0)
    w.add(3, words=(empty, byte, 0xFFFFFFFF))
    btf = w.parse()
    for type_id in (2, 3):
        with pytest.raises(LoadError, match="absurdly large"):
            btf.size_of(type_id)
    with pytest.raises(LoadError, match="empty elements"):
        btf.decode_value(5, b"")


@pytest.mark.parametrize(("kind", "size", "words", "vlen", "why"), [
    (1, 3, (24,), 0, "integer of 24 bits in 3 bytes"),
    (1, 4, (40,), 0, "integer of 40 bits in 4 bytes"),
    (2, 9, (), 0, "refers to type 9, but there are 2"),
    (4, 4, (0, 1, 0), 2, "cut off"),
    (4, 4, (0, 1, 64), 1, "outside its 4 bytes"),
    (4, 4, (999, 1, 0), 1, "string offset 999"),
    (6, 3, (), 0, "enumeration of 3 bytes"),
    (3, 0, (0,), 0, "cut off"),
    (31, 0, (), 0, "unknown kind 31"),
    (0, 0, (), 0, "unknown kind 0"),
])
def test_bad_types(kind: int, size: int, words: tuple[int, ...], vlen: int, why: str) -> None:
    w = Writer()
    w.add(kind, "t", size, words, vlen)
    with pytest.raises(LoadError, match=why):
        w.parse()


def test_bad_headers() -> None:
    good = Writer().data()
    for data, why in [
        (b"", "too short"), (good[:10], "too short"), (b"\xeb\x9f" + good[2:], "big-endian"),
        (b"\0\0" + good[2:], "wrong magic"), (good[:2] + b"\2" + good[3:], "unknown version"),
        (good[:4] + b"\xff\xff\xff\xff" + good[8:], "header length"),
        (good[:20] + b"\xff\0\0\0" + good[24:], "past the end"),
        (good[:-1] + b"x", "zero byte"),
    ]:
        with pytest.raises(LoadError, match=why):
            Btf.parse(data)


def test_strings_that_overlap_do_not_use_unbounded_memory() -> None:
    w = Writer()
    start = w.string("x" * 60000)
    for i in range(2000):
        w.types += struct.pack("<III", start + i, 16 << 24, 4)
    with pytest.raises(LoadError, match="overlap beyond reason"):
        w.parse()


def settings() -> tuple[Btf, int, bytes]:
    obj = read_object(OBJECTS / "globals.o")
    assert obj.btf is not None
    spec = obj.maps[obj.map_index(".rodata")]
    return obj.btf, spec.value_type_id, spec.initial


def test_values_of_a_compiled_section() -> None:
    btf, section, data = settings()
    value = btf.decode_value(section, data)
    assert value == {
        "settings": {"limit": 7, "ports": [80, 443, 8080], "name": b"edge\0\0\0\0",
                     "strict": True, "bias": -5, "low": 5, "high": 17},
        "xdp_globals.____fmt": b"length %d\0"}
    assert value["settings"]["strict"] is True
    assert btf.encode_value(section, value) == data


def test_encoding_leaves_out_zero_and_refuses_what_does_not_fit() -> None:
    btf, _, _ = settings()
    config = btf.find("config", bt.Struct)
    raw = btf.encode_value(config, {"limit": 1, "ports": [2], "name": b"ab", "high": 31})
    assert raw == bytes([1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 97, 98]) + bytes(20) + b"\xf8" + bytes(7)
    for value, error, why in [
        ({"limit": 1 << 32}, ValueError, "value.limit: 4294967296 does not fit in an unsigned 32"),
        ({"limit": -1}, ValueError, "does not fit"),
        ({"low": 8}, ValueError, "value.low: 8 does not fit in 3 bits"),
        ({"ports": [1, 2, 3, 4]}, ValueError, "4 elements do not fit in 3"),
        ({"ports": [1, 70000]}, ValueError, r"value.ports\[1\]"),
        ({"name": b"123456789"}, ValueError, "9 bytes do not fit in 8"),
        ({"nothing": 1}, ValueError, "no member named nothing"),
        ({"limit": "x"}, TypeError, "expected an integer"),
        ({"ports": "x"}, TypeError, "expected a list"),
        (7, TypeError, "expected a dict"),
    ]:
        with pytest.raises(error, match=why):
            btf.encode_value(config, value)
    with pytest.raises(ValueError, match="3 bytes for a value of 40"):
        btf.decode_value(config, b"abc")


def test_anonymous_members_unions_floats_and_signed_bit_fields() -> None:
    w = Writer()
    s32, f64 = w.integer("int", 4, bt.INT_SIGNED), w.add(16, "double", 8)
    u16 = w.integer("short", 2)
    inner = w.add(5, "", 4, (w.string("word"), s32, 0, w.string("half"), u16, 0), vlen=2)
    w.add(4, "outer", 24, (0, inner, 0, w.string("tiny"), s32, 4 << 24 | 32,
                           w.string("real"), f64, 64, w.string("p"), 6, 128), vlen=4, flag=True)
    w.add(2, size=0)
    btf = w.parse()
    raw = struct.pack("<iBxxxdQ", -2, 0xA, 1.5, 9)
    value = btf.decode_value(5, raw)
    assert value == {"word": -2, "half": 0xFFFE, "tiny": -6, "real": 1.5, "p": 9}
    del value["half"]
    assert btf.encode_value(5, value) == raw


def test_line_and_function_info_of_an_object() -> None:
    elf = open_elf((OBJECTS / "globals.o").read_bytes(), "globals.o")
    sections = {s.name: s.data for s in elf.sections}
    btf = Btf.parse(sections[".BTF"])
    ext = BtfExt.parse(sections[".BTF.ext"], btf)
    functions = {name: [btf.type(f.type).name for f in found] for name, found in ext.functions}
    assert functions == {".text": ["classify", "weigh", "visit", "square"],
                         "xdp": ["xdp_globals"], "xdp/other": ["xdp_other"]}
    lines = dict(ext.lines)["xdp"]
    assert (lines[0].offset, lines[0].file, lines[0].line) == (0, "./globals.c", 58)
    assert lines[1].text.strip() == "seen++;"
    assert lines[1].column == 6
    assert ext.relocations == ()


def test_longer_records_are_read_and_shorter_refused() -> None:
    def ext(size: int, records: bytes, count: int = 1) -> bytes:
        table = struct.pack("<III", size, 0, count) + records
        return struct.pack("<HBBIIIII", bt.MAGIC, 1, 0, 24, 0, len(table), 0, 0) + table

    info, = BtfExt.parse(ext(12, struct.pack("<III", 8, 3, 99)), Btf()).functions
    assert (info[1][0].offset, info[1][0].type) == (8, 3)
    with pytest.raises(LoadError, match="records of 4 bytes"):
        BtfExt.parse(ext(4, bytes(4)), Btf())
    with pytest.raises(LoadError, match="cut off"):
        BtfExt.parse(ext(8, bytes(8), count=0xFFFFFFFF), Btf())


def test_core_relocations_are_read() -> None:
    elf = open_elf((OBJECTS / "core.o").read_bytes(), "core.o")
    sections = {s.name: s.data for s in elf.sections}
    btf = Btf.parse(sections[".BTF"])
    (name, (relocation,)), = BtfExt.parse(sections[".BTF.ext"], btf).relocations
    assert (name, btf.type(relocation.type).name, relocation.access) == ("xdp", "net_device", "0:0")


def test_mutated_sections_only_raise_load_errors() -> None:
    rng = random.Random(5)
    elf = open_elf((OBJECTS / "globals.o").read_bytes(), "globals.o")
    sections = {s.name: s.data for s in elf.sections}
    survived = 0
    for _ in range(3000):
        main, extra = bytearray(sections[".BTF"]), bytearray(sections[".BTF.ext"])
        for _ in range(rng.choice((1, 2, 8))):
            victim = rng.choice((main, extra))
            victim[rng.randrange(len(victim))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF,
                                                             rng.randrange(256)))
        try:
            btf = Btf.parse(bytes(main))
            BtfExt.parse(bytes(extra), btf)
        except LoadError:
            continue
        survived += 1
        for type_id in range(len(btf.types)):
            try:
                size = btf.size_of(type_id)
                if size < 1 << 16:
                    btf.encode_value(type_id, btf.decode_value(type_id, bytes(size)))
            except (LoadError, TypeError):  # TypeError: two members of one name and two kinds
                pass
    assert survived > 100


@pytest.mark.skipif(not Path("/sys/kernel/btf/vmlinux").exists(), reason="needs the kernel's BTF")
def test_the_running_kernel() -> None:
    btf = Btf.parse(Path("/sys/kernel/btf/vmlinux").read_bytes())
    md = btf.type(btf.find("xdp_md", bt.Struct))
    assert isinstance(md, bt.Struct)
    assert [m.name for m in md.members][:3] == ["data", "data_end", "data_meta"]
    assert btf.size_of(btf.find("ethhdr", bt.Struct)) == 14
