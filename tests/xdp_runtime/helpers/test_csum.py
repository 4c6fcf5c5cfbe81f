"""bpf_csum_diff: compiled == interpreted == the kernel."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.privileges import needs_bpf
from tests.xdp_runtime.compiled import compiled
from tests.xdp_runtime.oracle import agree, interpret, packet_in
from xdp_runtime.helpers import by_name
from xdp_runtime.isa import Alu, AluOp, Call, Exit, Imm, Insn, LoadImm64, Mov, Reg, Store

HELPER = by_name["csum_diff"]
SEEDS = (0, 1, 0xFFFF, 0x10000, 0xFFFF_FFFE, 0xFFFF_FFFF, 0x1_0000_0000, 0xFFFF_FFFF_FFFF_FFFF)
SIZES = (0, 1, 2, 3, 4, 5, 6, 7, 8, 20, 40, 60, 63, 512, 516, 1000)


def program(source: bytes, to: bytes, seed: int) -> list[Insn]:
    """Puts the sum into the packet's first 8 bytes; from and to follow at byte 16."""
    def operand(register: int, at: int, data: bytes) -> list[Insn]:
        pointer = [Mov(True, register, Reg(6)), Alu(AluOp.ADD, True, register, Imm(at))]
        return [*(pointer if data else [Mov(True, register, Imm(0))]),
                Mov(True, register + 1, Imm(len(data)))]

    return [*packet_in(6, 16 + len(source) + len(to)),
            *operand(1, 16, source), *operand(3, 16 + len(source), to), LoadImm64(5, seed),
            Call(HELPER.id), Store(6, 0, 8, Reg(0)), Mov(True, 0, Imm(2)), Exit()]


def compiled_sum(source: bytes, to: bytes, seed: int) -> int:
    assert HELPER.template is not None
    return compiled(HELPER.template)(source or None, len(source), to or None, len(to), seed)


@settings(deadline=None)  # the first call compiles
@given(st.binary(max_size=200), st.binary(max_size=200),
       st.sampled_from(SEEDS) | st.integers(0, (1 << 64) - 1))
def test_compiled_is_interpreted(source: bytes, to: bytes, seed: int) -> None:
    assert HELPER.interpret is not None
    expected = HELPER.interpret(None, source, len(source), to, len(to), seed)
    assert compiled_sum(source, to, seed) == expected
    assert 0 <= expected <= 0xFFFF


def test_known_sum() -> None:
    """RFC 1071, section 3: 00 01 f2 03 f4 f5 f6 f7 sums to ddf2."""
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert compiled_sum(b"", data, 0).to_bytes(2, "little").hex() == "ddf2"


def test_null_with_length_zero_only() -> None:
    assert interpret(program(b"", b"", 7), bytes(64)).data_out[:8] == (7).to_bytes(8, "little")


@pytest.mark.parametrize("fill", ["random", "zero", "ones"])
@pytest.mark.parametrize("block", range(5))
class TestKernel:
    pytestmark = needs_bpf()

    def test_same(self, fill: str, block: int) -> None:
        rng = random.Random(f"{fill} {block}")
        makers: dict[str, Callable[[int], bytes]] = {
            "random": rng.randbytes, "zero": bytes, "ones": lambda n: b"\xff" * n}
        make = makers[fill]
        for _ in range(30):
            source, to = make(rng.choice(SIZES)), make(rng.choice(SIZES))
            seed = rng.choice((*SEEDS, rng.getrandbits(32), rng.getrandbits(64)))
            result = agree(program(source, to, seed), bytes(16) + source + to)
            assert result.data_out[:8] == compiled_sum(source, to, seed).to_bytes(8, "little")
