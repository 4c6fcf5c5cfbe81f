"""The scalar domain beside the kernel's: what is known here is at least what its log says.

Random straight-line programs with comparisons, of which the path that takes no jump is followed.
"""

from __future__ import annotations

import ctypes
import os
import random
import re
import struct

from tests.privileges import needs_bpf
from xdp_runtime import bpf_syscall
from xdp_runtime.isa import (
    Alu,
    AluOp,
    Call,
    Exit,
    Imm,
    Insn,
    JmpOp,
    JumpIf,
    Mov,
    Neg,
    Reg,
    Swap,
    SwapOrder,
    encode,
)
from xdp_runtime.verifier import scalar, scalar_alu, scalar_branch
from xdp_runtime.verifier.scalar import UNKNOWN, Scalar
from xdp_runtime.verifier.tnum import SIGN, SIGN32, TOP, TOP32

pytestmark = needs_bpf()

_REGS = (6, 7, 8, 9)
_PROGRAMS = 400
_RANDOM = 7     # bpf_get_prandom_u32: any scalar
_LINE = re.compile(r"^(\d+): \([0-9a-f]{2}\) [^;]*?(?:; (.*))?$", re.MULTILINE)
_STATE = re.compile(r"R(\d+)(?:_[a-zA-Z]+)?=P?(scalar\((?:[^()]|\([^()]*\))*\)|-?(?:0x)?[0-9a-f]+)"
                    r"(?= |$)")
_FIELDS = {"umin": "umin", "umax": "umax", "smin": "smin", "smax": "smax", "umin32": "u32min",
           "umax32": "u32max", "smin32": "s32min", "smax32": "s32max"}


def _immediate(rng: random.Random) -> int:
    kind = rng.random()
    if kind < 0.3:
        return rng.choice((0, 1, -1, 7, 8, 15, 255, 256, 0xFFFF, 0x7FFF_FFFF, -0x8000_0000, -8))
    return rng.randint(-100, 1000) if kind < 0.8 else rng.randint(-1 << 31, (1 << 31) - 1)


def _insn(rng: random.Random, left: int) -> Insn:
    is64, dst, kind = rng.random() < 0.6, rng.choice(_REGS), rng.random()
    src = Reg(rng.choice([reg for reg in _REGS if reg != dst]))
    if kind < 0.45:
        op = rng.choice(list(AluOp))
        if op in (AluOp.LSH, AluOp.RSH, AluOp.ARSH):
            return Alu(op, is64, dst, Imm(rng.randrange(64 if is64 else 32)))
        if op in (AluOp.DIV, AluOp.MOD, AluOp.SDIV, AluOp.SMOD):
            return Alu(op, is64, dst, Imm(_immediate(rng) or 1))
        return Alu(op, is64, dst, src if rng.random() < 0.5 else Imm(_immediate(rng)))
    if kind < 0.85:
        by_reg = rng.random() < 0.3
        return JumpIf(rng.choice(list(JmpOp)), is64, dst, src if by_reg else Imm(_immediate(rng)),
                      left)
    if kind < 0.9:
        return Neg(is64, dst)
    if kind < 0.95:
        bits = rng.choice((8, 16, 32) if is64 else (0, 8, 16))
        return Mov(is64, dst, Reg(dst), bits)
    return Swap(dst, rng.choice((16, 32, 64)), rng.choice(list(SwapOrder)))


def _program(rng: random.Random) -> list[Insn]:
    start: list[Insn] = []
    for reg in _REGS:
        start += [Call(_RANDOM), Mov(True, reg, Reg(0))]
        kind = rng.random()
        if kind < 0.5:
            start.append(Alu(AluOp.AND, rng.random() < 0.5, reg, Imm(_immediate(rng))))
        elif kind < 0.7:
            start.append(Mov(True, reg, Imm(_immediate(rng))))
    count = rng.randint(5, 20)
    body = [_insn(rng, count - place - 1) for place in range(count)]
    return [*start, *body, Mov(True, 0, Imm(2)), Exit()]


def _log(program: list[Insn]) -> str:
    code = ctypes.create_string_buffer(encode(program))
    licence, log = ctypes.create_string_buffer(b"GPL"), ctypes.create_string_buffer(1 << 20)
    os.close(bpf_syscall.bpf(bpf_syscall.Cmd.PROG_LOAD, bytearray(struct.pack(
        "=IIQQIIQ", bpf_syscall.ProgType.XDP, len(program), ctypes.addressof(code),
        ctypes.addressof(licence), 2, len(log), ctypes.addressof(log)))))
    return log.value.decode()


def _parse(words: str) -> Scalar:
    """As it is said, what is not said being unknown; not normalised."""
    if not words.startswith("scalar"):
        return scalar.const(int(words, 0))
    known = {"value": 0, "mask": TOP, "umin": 0, "umax": TOP, "smin": -SIGN, "smax": SIGN - 1,
             "u32min": 0, "u32max": TOP32, "s32min": -SIGN32, "s32max": SIGN32 - 1}
    if found := re.search(r"var_off=\((0x[0-9a-f]+); (0x[0-9a-f]+)\)", words):
        known["value"], known["mask"] = int(found[1], 16), int(found[2], 16)
    for names, number in re.findall(r"((?:[us](?:min|max)(?:32)?=)+)(-?(?:0x)?[0-9a-f]+)", words):
        for name in names.rstrip("=").split("="):
            value = int(number, 0)
            if name.startswith("s") and name.endswith("32") and value >= SIGN32:
                value -= TOP32 + 1
            elif name.startswith("s") and value >= SIGN:
                value -= TOP + 1
            known[_FIELDS[name]] = value
    return Scalar(**known)


def _step(insn: Insn, regs: dict[int, Scalar]) -> bool:
    """Along the path that does not jump; False where there is none."""
    match insn:
        case Alu(op, is64, dst, src):
            regs[dst] = scalar_alu.alu(op, is64, regs[dst], _operand(src, regs))
        case Mov(is64, dst, src, bits):
            value = _operand(src, regs)
            if bits:
                value = scalar_alu.sign_extend(value, bits, is64)
            regs[dst] = value if is64 else scalar_alu.mov32(value)
        case Neg(is64, dst):
            regs[dst] = scalar_alu.neg(is64, regs[dst])
        case Swap(dst, bits, order):
            regs[dst] = scalar_alu.swap(regs[dst], bits, order)
        case Call():
            regs[0] = UNKNOWN
        case JumpIf(op, is64, dst, src, _):
            edge = scalar_branch.branch(op, is64, regs[dst], _operand(src, regs), False)
            if edge is None:
                return False
            regs[dst] = edge[0]
            if isinstance(src, Reg):
                regs[src.n] = edge[1]
        case _:
            return False
    return True


def _forks(insn: Insn, regs: dict[int, Scalar]) -> bool:
    """Of a number that is 0 or -1 the kernel explores both: a matter of paths, not of this."""
    match insn:
        case Alu(AluOp.AND | AluOp.OR, _, dst, src):
            a = regs[dst]
            return _operand(src, regs).is_const and (
                (a.smin, a.smax) == (-1, 0) or (a.s32min, a.s32max) == (-1, 0))
        case _:
            return False


def _operand(src: Reg | Imm, regs: dict[int, Scalar]) -> Scalar:
    return regs[src.n] if isinstance(src, Reg) else scalar.const(src.value)


def _follow(program: list[Insn], log: str, worse: list[str]) -> tuple[int, int]:
    """How many states were compared, and how many are known better here."""
    regs: dict[int, Scalar] = {}
    compared = better = slot = 0
    # Up to where the kernel turns to an edge it had put aside; what it says of a jump is both's.
    for line in _LINE.finditer(log.split("\nfrom ")[0]):
        if int(line[1]) != slot:        # it knows that this jump is always taken
            last = program[slot - 1]
            if isinstance(last, JumpIf) and int(line[1]) > slot:
                worse.append(f"{last} is not seen to be always taken: {regs}")
            break
        if _forks(program[slot], regs) or not _step(program[slot], regs):
            break
        slot += 1
        for reg, words in _STATE.findall(line[2] or ""):
            ours, theirs = regs.get(int(reg)), _parse(words)
            if ours is None or int(reg) not in _REGS:
                continue
            compared += 1
            better += not scalar.contains(ours, theirs)
            if not scalar.contains(theirs, ours):
                worse.append(f"{program[slot - 1]}: {words} here is {ours}")
    return compared, better


def test_at_least_as_precise() -> None:
    rng = random.Random(6)
    compared = better = 0
    worse: list[str] = []
    for _ in range(_PROGRAMS):
        program = _program(rng)
        counts = _follow(program, _log(program), worse)
        compared, better = compared + counts[0], better + counts[1]
    print(f"{compared} states: {better} known better here, {len(worse)} worse")
    assert compared > 5 * _PROGRAMS
    assert not worse, "\n".join(worse)


def test_words_are_the_kernels() -> None:
    """Of what both know the same, the log has what `describe` says."""
    rng = random.Random(7)
    same = 0
    for _ in range(50):
        program, regs = _program(rng), dict[int, Scalar]()
        for slot, line in enumerate(_LINE.finditer(_log(program).split("\nfrom ")[0])):
            if int(line[1]) != slot or not _step(program[slot], regs):
                break
            for reg, words in _STATE.findall(line[2] or ""):
                ours = regs.get(int(reg))
                if ours is not None and ours == _parse(words):
                    assert re.sub(r"id=\d+(?:[+-]\d+)?,?", "", words) == scalar.describe(ours)
                    same += 1
    assert same > 100
