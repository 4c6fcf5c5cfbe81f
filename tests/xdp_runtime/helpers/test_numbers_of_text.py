"""bpf_strtol, _strtoul, _strncmp: compiled = interpreted = the kernel, on text of all kinds."""

from __future__ import annotations

import ctypes
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.privileges import needs_bpf
from tests.xdp_runtime.compiled import compiled
from tests.xdp_runtime.oracle import agree, interpret, one_program, packet_in
from xdp_runtime.helpers import by_name
from xdp_runtime.interp import Pointer
from xdp_runtime.interp_memory import Region
from xdp_runtime.isa import (
    Alu,
    AluOp,
    Call,
    Exit,
    Imm,
    Insn,
    Load,
    LoadImm64,
    LoadMapValue,
    Mov,
    Reg,
    Store,
)
from xdp_runtime.object import GlobalKind, MapFlag, MapSpec, MapType
from xdp_runtime.program import load

U64 = (1 << 64) - 1
WHITE = b" \t\n\v\f\r\xa0\x85"
EDGES = [sign + number for sign in (b"", b"-", b"+", b"--") for number in (
    b"0", b"9223372036854775807", b"9223372036854775808", b"9223372036854775809",
    b"18446744073709551615", b"18446744073709551616", b"0x7fffffffffffffff",
    b"0x8000000000000000", b"0xffffffffffffffff", b"0x10000000000000000", b"0x", b"0xg", b"0X1F",
    b"017", b"08", b"0777777777777777777777", b"01777777777777777777777", b"", b"x", b"1_000",
    b"12 34", b"1" * 62, b"0" * 62 + b"17", b"0" * 70 + b"5")]
FLAGS = st.sampled_from((0, 8, 10, 16, 2, 31, 32, 1 << 40, 10 | 32))
TEXTS = (st.sampled_from(EDGES) | st.binary(min_size=1, max_size=80)
         | st.text("0123456789abcdefxX+- \t", min_size=1, max_size=40).map(str.encode))


@settings(deadline=None, derandomize=True, max_examples=400)
@given(TEXTS, FLAGS, st.sampled_from(("strtol", "strtoul")))
def test_compiled_is_interpreted(text: bytes, flags: int, name: str) -> None:
    text = text or b"\0"
    helper = by_name[name]
    assert helper.interpret is not None and helper.template is not None
    out = Region("out", bytearray(b"\xaa" * 8), 0, 8, 0)
    expected = helper.interpret(None, text, len(text), flags, Pointer(out, 0))
    found = ctypes.create_string_buffer(b"\xaa" * 8, 8)
    status = compiled(helper.template)(text, len(text), flags, ctypes.addressof(found))
    assert (status, found.raw) == (expected & U64, bytes(out.data))


def on_the_stack(text: bytes) -> list[Insn]:
    """The text at r10 - 128."""
    padded = text.ljust((len(text) + 7) & ~7, b"\0")
    return [one for at in range(0, len(padded), 8) for one in (
        LoadImm64(1, int.from_bytes(padded[at:at + 8], "little")),
        Store(10, at - 128, 8, Reg(1)))]


def address(register: int, off: int) -> list[Insn]:
    return [Mov(True, register, Reg(10)), Alu(AluOp.ADD, True, register, Imm(off))]


def number_program(text: bytes, flags: int, name: str) -> list[Insn]:
    """The result and the number go into the packet."""
    return [*packet_in(6, 16), *on_the_stack(text), Store(10, -8, 8, Imm(-1)),
            *address(1, -128), Mov(True, 2, Imm(len(text))), LoadImm64(3, flags),
            *address(4, -8), Call(by_name[name].id), Store(6, 0, 8, Reg(0)),
            Load(1, 10, -8, 8), Store(6, 8, 8, Reg(1)), Mov(True, 0, Imm(2)), Exit()]


@pytest.mark.parametrize("name", ["strtol", "strtoul"])
class TestKernel:
    pytestmark = needs_bpf()

    def test_edges(self, name: str) -> None:
        for text in EDGES:
            for flags in (0, 10, 16, 8):
                agree(number_program((text or b"\0")[:112], flags, name))

    def test_random(self, name: str) -> None:
        rng = random.Random(name)
        for _ in range(300):
            text = bytes(rng.choices(WHITE, k=rng.choice((0, 0, 1, 3)))) + rng.choice(
                (b"", b"-", b"+")) + rng.choice((b"", b"0x", b"0", b"0X")) + bytes(
                rng.choices(b"0123456789abcdefABCDEF_ \0z\xff", k=rng.randrange(24)))
            agree(number_program(text or b" ", rng.choice((0, 8, 10, 16, 0, 7, 1 << 63)), name))


    def test_over_the_text(self, name: str) -> None:
        """The number is zero before the text is looked at."""
        for text, at in ((b"12345678", 0), (b"  12345678901234567", 8), (b"77", 0)):
            padded = text.ljust(24, b"5")
            call = [*packet_in(6, 32), *on_the_stack(padded), *address(1, -128),
                    Mov(True, 2, Imm(len(text))), Mov(True, 3, Imm(10)), *address(4, -128 + at),
                    Call(by_name[name].id), Store(6, 0, 8, Reg(0)), Load(1, 10, -128, 8),
                    Store(6, 8, 8, Reg(1)), Load(1, 10, -120, 8), Store(6, 16, 8, Reg(1)),
                    Mov(True, 0, Imm(2)), Exit()]
            agree(call)
            expected = interpret(call).data_out
            with load(one_program(call)) as made:
                assert made.run(bytes(64)).data_out == expected


class TestCompared:
    pytestmark = needs_bpf()

    def test_strncmp(self) -> None:
        rng = random.Random(1)
        for _ in range(150):
            constant = bytes(rng.choices(b"ab\xe9\x7f", k=rng.randrange(12)))
            text = rng.choice((constant, bytes(rng.choices(b"ab\xe9\0", k=12)), b"a")) or b"\0"
            text = (text + rng.choice((b"", b"\0x", b"b")))[:16]
            spec = MapSpec("word", MapType.ARRAY, 4, len(constant) + 1, 1, int(MapFlag.RDONLY_PROG),
                           initial=constant + b"\0", global_kind=GlobalKind.RODATA)
            insns = [*packet_in(6, 8), *on_the_stack(text), *address(1, -128),
                     Mov(True, 2, Imm(len(text))), LoadMapValue(3, 0, 0),
                     Call(by_name["strncmp"].id), Alu(AluOp.LSH, True, 0, Imm(32)),
                     Alu(AluOp.ARSH, True, 0, Imm(32)), Store(6, 0, 8, Reg(0)),
                     Mov(True, 0, Imm(2)), Exit()]
            agree(insns, maps=(spec,))
