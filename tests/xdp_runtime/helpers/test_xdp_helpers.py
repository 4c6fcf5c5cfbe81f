"""adjust_head, adjust_meta, adjust_tail and redirect: compiled == interpreted == the kernel."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.compiled import RunState, compiled
from tests.xdp_runtime.oracle import agree, interpret, one_program
from xdp_runtime import state
from xdp_runtime.helpers import by_name
from xdp_runtime.interp import Machine, Packet
from xdp_runtime.isa import (
    Alu,
    AluOp,
    Call,
    Exit,
    Imm,
    Insn,
    JmpOp,
    JumpIf,
    Load,
    LoadImm64,
    Mov,
    Reg,
    Store,
)

MOVERS = ("xdp_adjust_head", "xdp_adjust_meta", "xdp_adjust_tail")
FRAME_BYTES = 2048
EDGES = {state.DATA_META: "data_meta", state.DATA: "data", state.DATA_END: "data_end"}
EINVAL, EACCES = 22, 13


def a_packet(rng: random.Random) -> Packet:
    data = rng.randrange(40, 300)
    meta = data - 4 * rng.choice((0, 0, 1, 2, 10, (data - 40) // 4))
    data_end = data + rng.choice((14, 15, 60, 1000))
    return Packet(bytearray(rng.randbytes(FRAME_BYTES)), max(meta, data - 252, 40), data, data_end,
                  40, rng.choice((data_end, data_end + 7, FRAME_BYTES)))


def an_offset(rng: random.Random) -> int:
    """A register, of which only the low half should count."""
    small = rng.choice((0, 1, -1, 2, 3, 4, -4, 8, -8, -14, 14, 20, -20, rng.randrange(-300, 300)))
    large = rng.choice((small, small, small, 1 << 31, (1 << 31) - 1, rng.getrandbits(32)))
    return (large & 0xFFFFFFFF) | rng.choice((0, 0xFFFFFFFF, rng.getrandbits(32))) << 32


@pytest.mark.parametrize("name", MOVERS)
def test_compiled_is_interpreted(name: str) -> None:
    helper, rng = by_name[name], random.Random(name)
    assert helper.template is not None and helper.interpret is not None
    machine = Machine(one_program([Exit()]), one_program([Exit()]).programs[0])
    results = set()
    for _ in range(3000):
        packet = machine.packet = a_packet(rng)
        run = RunState(bytes(packet.frame), packet.data_meta, packet.data, packet.data_end,
                       packet.hard_start, packet.frame_end)
        offset = an_offset(rng)
        expected = helper.interpret(machine, None, offset) & (1 << 64) - 1
        results.add(expected)
        assert compiled(helper.template)(run.address, offset) == expected
        for field, attribute in EDGES.items():
            assert run.edge(field) == getattr(packet, attribute), attribute
        assert run.frame.raw == bytes(packet.frame)
    assert 0 in results and len(results) >= 2


def test_redirect_compiled_is_interpreted() -> None:
    helper = by_name["redirect"]
    assert helper.template is not None and helper.interpret is not None
    machine = Machine(one_program([Exit()]), one_program([Exit()]).programs[0])
    for ifindex, flags in ((1, 0), (0, 0), (0xFFFFFFFF, 0), (0x1_0000_0005, 0), (7, 1),
                           (7, 1 << 40)):
        run = RunState(bytes(64), 0, 0, 64, 0, 64)
        machine.redirect_ifindex = None
        expected = helper.interpret(machine, ifindex, flags)
        assert compiled(helper.template)(run.address, ifindex, flags) == expected
        assert run.get(state.REDIRECT_IFINDEX, 4) == (machine.redirect_ifindex or 0)
        assert expected == (state.Verdict.ABORTED if flags else state.Verdict.REDIRECT)


def moves(*calls: tuple[str, int]) -> list[Insn]:
    """Make the calls one after another; r0 = all their results, a byte each."""
    insns: list[Insn] = [Mov(True, 6, Reg(1)), Mov(True, 7, Imm(0))]
    for name, offset in calls:
        insns += [Mov(True, 1, Reg(6)), LoadImm64(2, offset & (1 << 64) - 1),
                  Call(by_name[name].id), Alu(AluOp.LSH, True, 7, Imm(8)),
                  Alu(AluOp.AND, True, 0, Imm(0xFF)), Alu(AluOp.OR, True, 7, Reg(0))]
    return [*insns, Mov(True, 0, Reg(7)), Exit()]


def metadata_then_head() -> list[Insn]:
    """Four bytes of metadata, then 20 bytes in front of the packet."""
    return [
        Mov(True, 6, Reg(1)), Mov(True, 2, Imm(-4)), Call(54), Mov(True, 1, Reg(6)),
        Load(2, 1, 8, 4), Load(3, 1, 0, 4), Mov(True, 4, Reg(2)), Alu(AluOp.ADD, True, 4, Imm(4)),
        JumpIf(JmpOp.GT, True, 4, Reg(3), 1), Store(2, 0, 4, Imm(0x11223344)),
        Mov(True, 1, Reg(6)), Mov(True, 2, Imm(-20)), Call(44), Exit(),
    ]


def test_metadata_moves_along() -> None:
    result = interpret(metadata_then_head(), bytes(range(64)))
    meta = bytes.fromhex("44332211")
    assert (result.r0, result.meta) == (0, meta)
    assert result.data_out == bytes(16) + meta + bytes(range(64))  # moved, not cleared behind


class TestKernel:
    pytestmark = needs_bpf()

    @pytest.mark.parametrize("offset", [
        0, 1, -1, 13, 50, 51, 64, -215, -216, -217, -300, 1 << 31, -(1 << 31), 1 << 32,
        0xFFFFFFFF, 0x1_0000_0004])
    def test_head(self, offset: int) -> None:
        agree(moves(("xdp_adjust_head", offset)), bytes(range(64)))

    @pytest.mark.parametrize("offset", [0, 1, 4, -1, -3, -4, -32, -36, -64, -212, -216, -217, -220,
                                        -252, -256, -260, 0xFFFFFFFC])
    def test_meta(self, offset: int) -> None:
        agree(moves(("xdp_adjust_meta", offset)), bytes(range(64)))

    @pytest.mark.parametrize("size", [14, 15, 64, 1514, 3000])
    @pytest.mark.parametrize("offset", [
        0, 1, 4, -1, -50, -51, 100, 456, 476, 477, 519, 520, 521, 776, 3456, 3457, 3505, 3506, 3507,
        1 << 31, 0x1_0000_0001])
    def test_tail(self, size: int, offset: int) -> None:
        agree(moves(("xdp_adjust_tail", offset)), bytes(n & 0xFF for n in range(size)))

    def test_sequences(self) -> None:
        rng = random.Random(5)
        for _ in range(200):
            calls = [(rng.choice(MOVERS), rng.choice((-4, 4, -20, 20, 14, -14, -252, -100, 3)))
                     for _ in range(rng.randrange(1, 5))]
            agree(moves(*calls), bytes(range(100)))

    def test_metadata_moves_along(self) -> None:
        agree(metadata_then_head(), bytes(range(64)))

    @pytest.mark.parametrize(("ifindex", "flags"), [(1, 0), (0, 0), (1, 1), (77, 1 << 33)])
    def test_redirect(self, ifindex: int, flags: int) -> None:
        agree([Mov(True, 1, Imm(ifindex)), LoadImm64(2, flags), Call(23), Exit()])


def test_edges_are_ordered() -> None:
    """The random packets above are possible ones."""
    rng = random.Random(3)
    for _ in range(300):
        p = a_packet(rng)
        edges = (p.hard_start, p.data_meta, p.data, p.data_end, p.frame_end)
        assert all(a <= b for a, b in pairwise(edges)) and (p.data - p.data_meta) <= 252
