"""bpf_xdp_metadata_rx_*: interpreted and compiled; the kernel asks for a bound device first."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.xdp_runtime.oracle import one_program
from xdp_runtime.elf import read_object
from xdp_runtime.helper_names import KERNEL_FUNCTIONS
from xdp_runtime.interp import Machine
from xdp_runtime.isa import (
    Alu,
    AluOp,
    Call,
    Exit,
    Imm,
    Insn,
    JmpOp,
    JumpIf,
    LoadMap,
    Mov,
    Reg,
    Store,
)
from xdp_runtime.object import MapFlag, MapSpec, MapType
from xdp_runtime.program import load
from xdp_runtime.state import RxMetadata
from xdp_runtime.verifier import verify

OBJECT = Path(__file__).with_name("metadata.o")
RESULT = struct.Struct("<3i2I2sHQ")
EOPNOTSUPP = -95
CASES = [
    (RxMetadata(), (EOPNOTSUPP, EOPNOTSUPP, EOPNOTSUPP, 0x2222, 0x3333, b"\x44\x44", 0x5555,
                    0x1111)),
    (RxMetadata(timestamp_ns=0), (0, EOPNOTSUPP, EOPNOTSUPP, 0x2222, 0x3333, b"\x44\x44", 0x5555,
                                  0)),
    (RxMetadata(timestamp_ns=(1 << 64) - 1, hash=(0xDEADBEEF, 9)),
     (0, 0, EOPNOTSUPP, 0xDEADBEEF, 9, b"\x44\x44", 0x5555, (1 << 64) - 1)),
    (RxMetadata(vlan=(0x88A8, 0x6123)),
     (EOPNOTSUPP, EOPNOTSUPP, 0, 0x2222, 0x3333, b"\x88\xa8", 0x6123, 0x1111)),
]


@pytest.mark.parametrize(("metadata", "expected"), CASES)
def test_interpreted(metadata: RxMetadata, expected: tuple[object, ...]) -> None:
    obj = read_object(OBJECT)
    machine = Machine(obj, obj.program("metadata"))
    run = machine.run(bytes(64), metadata=metadata)
    assert run.verdict == 2 and RESULT.unpack_from(run.data_out) == expected
    nothing = machine.run(bytes(64))
    assert RESULT.unpack_from(nothing.data_out) == CASES[0][1]


@pytest.mark.parametrize("opt", [0, 3])
def test_compiled(opt: int) -> None:
    with load(read_object(OBJECT), "metadata", opt=opt) as program:
        for metadata, expected in CASES:
            for count in (1, 20):
                run = program.repeat(bytes(64), count, metadata=metadata)
                assert run.retval == 2 and RESULT.unpack_from(run.data_out) == expected
        assert RESULT.unpack_from(program.run(bytes(64)).data_out) == CASES[0][1]


@pytest.mark.parametrize(("flags", "off", "taken"), [
    (0, 0, True), (0, 1, True), (0, 57, False), (MapFlag.RDONLY_PROG, 0, False),
    (MapFlag.WRONLY_PROG, 0, False)])
def test_where_a_result_may_go(flags: int, off: int, taken: bool) -> None:
    """Anywhere that may be read and written, aligned or not: as the kernel has it for a program
    that is bound to a device."""
    spec = MapSpec("values", MapType.ARRAY, 4, 64, 1, int(flags))
    insns: list[Insn] = [
        Mov(True, 6, Reg(1)), Store(10, -8, 8, Imm(0)), LoadMap(1, 0), Mov(True, 2, Reg(10)),
        Alu(AluOp.ADD, True, 2, Imm(-8)), Call(1), JumpIf(JmpOp.EQ, True, 0, Imm(0), 4),
        Mov(True, 1, Reg(6)), Mov(True, 2, Reg(0)), Alu(AluOp.ADD, True, 2, Imm(off)),
        Call(KERNEL_FUNCTIONS["bpf_xdp_metadata_rx_timestamp"]), Mov(True, 0, Imm(2)), Exit()]
    obj = one_program(insns, (spec,))
    assert verify(obj, obj.programs[0]).ok == taken
