"""Large programs: 65,536 instructions through every stage; offsets that need gotol; call depth."""

from __future__ import annotations

from dataclasses import replace

import pytest

from xdp_runtime.asm import assemble
from xdp_runtime.btf import Btf
from xdp_runtime.interp import Machine
from xdp_runtime.isa import (
    Alu,
    AluOp,
    Exit,
    Imm,
    Insn,
    JmpOp,
    Jump,
    JumpIf,
    Load,
    Mov,
    Reg,
    decode,
    encode,
)
from xdp_runtime.kernel_functions import typed
from xdp_runtime.object import Object, ProgramSpec
from xdp_runtime.program import load
from xdp_runtime.verifier.report import verify

SLOTS = 65_536


def program(insns: tuple[Insn | None, ...]) -> Object:
    return Object("large", (ProgramSpec("large", "xdp", "xdp", insns),), (), "GPL")


def test_65536_instructions_and_a_jump_over_most_of_them() -> None:
    insns: list[Insn] = [Mov(True, 0, Imm(2)), Load(3, 1, 12, 4), Mov(True, 4, Reg(3)),
                         JumpIf(JmpOp.EQ, True, 3, Imm(7), 1), Jump(1)]
    body = [Alu((AluOp.ADD, AluOp.XOR, AluOp.MUL)[i % 3], True, 3 + i % 2, Imm(i))
            for i in range(SLOTS - len(insns) - 6)]
    insns += [Jump(len(body), long=True), *body, Alu(AluOp.XOR, True, 3, Reg(4)),
              Alu(AluOp.AND, True, 3, Imm(0xFFFF)), Mov(True, 0, Reg(3)),
              Alu(AluOp.ADD, True, 0, Imm(1)), Exit()]
    assert len(insns) == SLOTS and len(body) > 32767
    obj = program(decode(encode(insns)))
    machine = Machine(obj, obj.programs[0])
    with load(obj) as compiled:
        for ifindex in (1, 7):
            expected = machine.run(bytes(64), ingress_ifindex=ifindex)
            assert compiled.run(bytes(64), ingress_ifindex=ifindex).retval == expected.verdict


@pytest.mark.perf
@pytest.mark.timeout(600)
def test_a_million_instructions() -> None:
    """All that the kernel takes, BPF_COMPLEXITY_LIMIT_INSNS: a minute and a half, 2.2 GB."""
    ends: list[Insn] = [Alu(AluOp.AND, True, 3, Imm(0xFFFF)), Mov(True, 0, Reg(3)), Exit()]
    insns: list[Insn] = [Load(3, 1, 12, 4), Mov(True, 4, Reg(3))]
    insns += [Alu((AluOp.ADD, AluOp.XOR, AluOp.MUL)[i % 3], True, 3 + i % 2, Imm(i))
              for i in range(1_000_000 - len(insns) - len(ends))]
    obj = program(decode(encode([*insns, *ends])))
    expected = Machine(obj, obj.programs[0]).run(bytes(64), ingress_ifindex=7)
    with load(obj) as compiled:
        assert compiled.run(bytes(64), ingress_ifindex=7).retval == expected.verdict


def test_too_many_open_branches_are_refused_as_the_kernel_does() -> None:
    """BPF_COMPLEXITY_LIMIT_JMP_SEQ."""
    insns: list[Insn] = [Mov(True, 0, Imm(2)), Load(3, 1, 12, 4)]
    for i in range(9000):
        insns += [Alu(AluOp.ADD, True, 3, Imm(i)), JumpIf(JmpOp.EQ, True, 3, Imm(i), 1),
                  Alu(AluOp.XOR, True, 3, Imm(5))]
    obj = program((*insns, Exit()))
    error, = verify(obj, obj.programs[0]).errors
    assert error.kind == "budget" and "8192" in error.text


def test_may_goto_has_a_budget_for_each_call() -> None:
    """8 Mi rounds a frame, BPF_MAX_LOOPS; a called function has its own."""
    obj = program(assemble("""
        call count
        r6 = r0
        call count
        r0 += r6
        exit
    count:
        r0 = 0
    again:
        may_goto done
        r0 += 1
        goto again
    done:
        exit
    """))
    with load(obj) as compiled:
        assert compiled.run(bytes(64)).retval == 2 * 8 * 1024 * 1024


def test_may_goto_has_a_budget_for_each_round_of_a_callback() -> None:
    insns = assemble("""
        *(u64 *)(r10 - 8) = 0
        r1 = 2
        r2 = func[count] ll
        r3 = r10
        r3 += -8
        r4 = 0
        call bpf_loop
        r0 = *(u64 *)(r10 - 8)
        exit
    count:
        r1 = *(u64 *)(r2 + 0)
        may_goto done
        r1 += 1
        *(u64 *)(r2 + 0) = r1
        goto count
    done:
        r0 = 0
        exit
    """)
    obj = replace(program(insns), btf=Btf.parse(typed(insns)[0]))
    with load(obj) as compiled:
        assert compiled.run(bytes(64)).retval == 2 * 8 * 1024 * 1024


def test_frames_of_their_own_eight_deep() -> None:
    """Each function finds what it wrote after those it called have written the same places."""
    text = "call f1\nexit\n"
    for depth in range(1, 8):
        inner = f"call f{depth + 1}" if depth < 7 else "r0 = 0"
        text += (f"f{depth}:\n*(u64 *)(r10 - 8) = {depth}\n*(u64 *)(r10 - 56) = {10 * depth}\n"
                 f"{inner}\nr1 = *(u64 *)(r10 - 8)\nr0 += r1\n"
                 "r1 = *(u64 *)(r10 - 56)\nr0 += r1\nexit\n")
    obj = program(assemble(text))
    total = 11 * sum(range(1, 8))
    assert Machine(obj, obj.programs[0]).run(bytes(64)).verdict == total
    for opt in (0, 3):
        with load(obj, opt=opt) as compiled:
            assert compiled.run(bytes(64)).retval == total
