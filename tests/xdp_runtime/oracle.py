"""Run a few instructions on the interpreter and in the kernel, and see that they agree."""

from __future__ import annotations

from collections.abc import Sequence

from xdp_runtime.interp import Machine, Result
from xdp_runtime.isa import (
    Alu,
    AluOp,
    Exit,
    Imm,
    Insn,
    Insns,
    JmpOp,
    JumpIf,
    Load,
    LoadImm64,
    LoadMap,
    LoadMapValue,
    Mov,
    Reg,
)
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.object import MapSpec, Object, ProgramSpec


def slots(insns: Sequence[Insn]) -> Insns:
    """As `decode` gives them: a 64-bit load takes two slots."""
    out: list[Insn | None] = []
    for insn in insns:
        out.append(insn)
        if isinstance(insn, LoadImm64 | LoadMap | LoadMapValue):
            out.append(None)
    return tuple(out)


def one_program(insns: Sequence[Insn], maps: tuple[MapSpec, ...] = ()) -> Object:
    return Object("test", (ProgramSpec("test", "xdp", "xdp", slots(insns)),), maps, "GPL")


def packet_in(r_data: int, size: int, scratch: int = 0) -> tuple[Insn, ...]:
    """r_data = start of the packet, of which `size` bytes are proven to exist; else return 0.
    Expects the context in r1."""
    return (
        Load(r_data, 1, 0, 4),
        Load(scratch, 1, 4, 4),
        Mov(True, 2, Reg(r_data)),
        Alu(AluOp.ADD, True, 2, Imm(size)),
        JumpIf(JmpOp.LE, True, 2, Reg(scratch), 2),
        Mov(True, 0, Imm(0)),
        Exit(),
    )


def interpret(insns: Sequence[Insn], packet: bytes = bytes(64),
              maps: tuple[MapSpec, ...] = ()) -> Result:
    obj = one_program(insns, maps)
    return Machine(obj, obj.programs[0]).run(packet)


def agree(insns: Sequence[Insn], packet: bytes = bytes(64),
          maps: tuple[MapSpec, ...] = ()) -> Result:
    """The result, which is the same in the kernel."""
    obj = one_program(insns, maps)
    ours = Machine(obj, obj.programs[0]).run(packet, ingress_ifindex=1)
    with load_into_kernel(obj) as program:
        theirs = program.run(packet)
    assert (ours.verdict, ours.data_out, ours.meta) == (
        theirs.retval, theirs.data_out, theirs.meta), insns
    return ours
