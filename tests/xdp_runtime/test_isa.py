"""decode and encode are each other's inverse, and nonsense is refused by slot."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.xdp_runtime.insns import INSNS, as_slots
from xdp_runtime.errors import LoadError
from xdp_runtime.isa import (
    Alu,
    AluOp,
    CallReg,
    Exit,
    Imm,
    Insn,
    LoadImm64,
    LoadMap,
    LoadMapValue,
    MayGoto,
    Mov,
    Pseudo,
    Reg,
    decode,
    encode,
)


@given(st.lists(INSNS, max_size=20))
def test_decode_inverts_encode(insns: list[Insn]) -> None:
    slots = as_slots(insns)
    code = encode(slots)
    assert len(code) == 8 * len(slots)
    assert decode(code) == slots


@given(st.binary(min_size=8, max_size=16).filter(lambda b: len(b) % 8 == 0))
def test_encode_inverts_decode(code: bytes) -> None:
    """What decodes at all encodes to the same bytes: no field is silently dropped."""
    try:
        insns = decode(code)
    except LoadError:
        return
    if any(isinstance(i, CallReg | LoadMap | LoadMapValue) for i in insns):
        return  # two encodings each: register in the immediate, map by descriptor
    assert encode(insns) == code


def test_strategies_cover_every_instruction() -> None:
    seen: set[type] = set()

    @given(st.lists(INSNS, min_size=40, max_size=40))
    def collect(insns: list[Insn]) -> None:
        seen.update(map(type, insns))

    collect()
    assert seen == set(get_args(Insn))


@pytest.mark.parametrize(("words", "insn"), [
    ("07 01 00 00 fb ff ff ff", Alu(AluOp.ADD, True, 1, Imm(-5))),
    ("3f 21 01 00 00 00 00 00", Alu(AluOp.SDIV, True, 1, Reg(2))),
    ("bf 21 08 00 00 00 00 00", Mov(True, 1, Reg(2), 8)),
    ("8d 03 00 00 00 00 00 00", CallReg(3)),
    ("8d 00 00 00 03 00 00 00", CallReg(3)),
    ("e5 00 fe ff 00 00 00 00", MayGoto(-2)),
])
def test_known_encodings(words: str, insn: Insn) -> None:
    assert decode(bytes.fromhex(words)) == (insn,)


def test_maps_become_file_descriptors() -> None:
    code = encode((LoadMap(1, 1), None, LoadMapValue(2, 0, 8), None), map_fds=[30, 40])
    assert code[1] >> 4 == Pseudo.MAP_FD
    assert code[4] == 40
    assert code[17] >> 4 == Pseudo.MAP_VALUE
    assert (code[20], code[28]) == (30, 8)


def test_64_bit_immediate_is_unsigned() -> None:
    insns = (LoadImm64(3, (1 << 64) - 2), None, Exit())
    assert decode(encode(insns)) == insns


@pytest.mark.parametrize(("words", "why"), [
    ("95 00 00 00 00 00 00", "not a whole number"),
    ("b7 0b 00 00 00 00 00 00", "register r11 does not exist"),
    ("bf b0 00 00 00 00 00 00", "register r11 does not exist"),
    ("8d 00 00 00 0b 00 00 00", "register r11 does not exist"),
    ("95 00 00 00 01 00 00 00", "fields that must be zero"),
    ("85 01 00 00 01 00 00 00", "fields that must be zero"),
    ("05 00 01 00 01 00 00 00", "fields that must be zero"),
    ("61 10 00 00 01 00 00 00", "fields that must be zero"),
    ("0f 10 00 00 01 00 00 00", "fields that must be zero"),
    ("07 10 00 00 01 00 00 00", "fields that must be zero"),
    ("18 00 00 00 01 00 00 00", "lacks its second half"),
    ("18 00 00 00 01 00 00 00 01 00 00 00 00 00 00 00", "second half"),
    ("18 10 00 00 01 00 00 00 00 00 00 00 01 00 00 00", "second half"),
    ("18 30 00 00 01 00 00 00 00 00 00 00 00 00 00 00", "ksym"),
    ("20 00 00 00 00 00 00 00", "legacy packet access"),
    ("d4 00 00 00 18 00 00 00", "byte swap of 24 bits"),
    ("c3 10 00 00 02 00 00 00", "unknown atomic"),
    ("c3 10 00 00 e0 00 00 00", "unknown atomic"),
    ("d3 10 00 00 00 00 00 00", "atomic operation on 1 bytes"),
    ("07 00 01 00 00 00 00 00", "arithmetic with offset 1"),
    ("b4 00 08 00 00 00 00 00", "move with offset 8"),
    ("ff 00 00 00 00 00 00 00", "unknown opcode 0xff"),
    ("8e 00 00 00 00 00 00 00", "unknown opcode 0x8e"),
])
def test_refused(words: str, why: str) -> None:
    with pytest.raises(LoadError, match=why):
        decode(bytes.fromhex(words))


def test_refusal_names_the_slot() -> None:
    with pytest.raises(LoadError, match="^instruction 2: "):
        decode(encode((LoadImm64(0, 1), None)) + b"\xff" * 8)
