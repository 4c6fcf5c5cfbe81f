"""The assembly of the public conformance suite, and its case files.

    mov32 %r1, 0x10          lddw %r0, 0x1122334455667788     ldxh %r2, [%r1+2]
    stdw [%r10-8], 0xab      jsgt32 %r1, %r2, somewhere       lock fetch add [%r10-8], %r1
    call helper 5            call local function              call %r2

A case is a text of sections, each opened by a line `-- NAME`: `asm`, or `raw` with 64-bit words;
`mem`, hex bytes; `result`, a number; others are ignored.  `#` starts a comment.  The notation of
the kernel and of llvm-objdump, which the rest of this project speaks, is in asm.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from xdp_runtime import isa
from xdp_runtime.asm import fit, integer
from xdp_runtime.errors import LoadError
from xdp_runtime.isa import AluOp, AtomicOp, Imm, Insn, Insns, JmpOp, Operand, Reg, SwapOrder

_SIZES = {"b": 1, "h": 2, "w": 4, "dw": 8}
_ALU = {op.name.lower(): op for op in AluOp}
_JUMPS = {f"j{op.name.lower()}": op for op in JmpOp}
_ATOMICS = {op.name.lower(): op for op in AtomicOp}
_MEMORY = re.compile(r"\[%r(\d+)(?:\s*([+-])\s*(\w+))?\]")


@dataclass(frozen=True, slots=True)
class Case:
    """One conformance case; `memory` is empty where the program gets none."""

    name: str
    insns: Insns
    memory: bytes
    result: int


def read_case(text: str, name: str) -> Case:
    """Raises LoadError: `what` is the case, or its line."""
    sections: dict[str, list[tuple[int, str]]] = {}
    lines: list[tuple[int, str]] = []
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.split("#", 1)[0].strip()
        if line.startswith("--"):
            lines = sections.setdefault(line[2:].strip(), [])
        elif line:
            lines.append((number, line))
    if not sections.get("result"):
        raise LoadError(name, "has no section result")
    if "raw" in sections:
        code = b"".join(_number(word, number, 64).to_bytes(8, "little")
                        for number, line in sections["raw"] for word in line.split())
        insns = isa.decode(code)
    elif "asm" in sections:
        insns = _assemble(sections["asm"])
    else:
        raise LoadError(name, "has neither a section asm nor raw")
    digits = "".join(line for _, line in sections.get("mem", ()))
    try:
        memory = bytes.fromhex(digits)
    except ValueError:
        raise LoadError(name, "section mem is not bytes in hex") from None
    number, line = sections["result"][-1]
    return Case(name, insns, memory, _number(line, number, 64))


def assemble(text: str) -> Insns:
    """Instructions from a text of the suite's assembly.  Raises LoadError naming the line."""
    lines = ((number, raw.split("#", 1)[0].strip())
             for number, raw in enumerate(text.splitlines(), 1))
    return _assemble([(number, line) for number, line in lines if line])


def _number(text: str, line: int, bits: int) -> int:
    try:
        value = integer(text)
        if not -(1 << bits - 1) <= value < 1 << bits:
            raise ValueError(f"{value} does not fit in {bits} bits")
    except ValueError as error:
        raise LoadError(f"line {line}", f"{error}") from None
    return value & (1 << bits) - 1


def _assemble(lines: list[tuple[int, str]]) -> Insns:
    labels: dict[str, int] = {}
    found: list[tuple[int, int, str]] = []  # (line number, slot, text)
    slot = 0
    for number, line in lines:
        if line.endswith(":"):
            name = line[:-1].strip()
            if name in labels:
                raise LoadError(f"line {number}", f"label {name} is already defined")
            labels[name] = slot
            continue
        found.append((number, slot, line))
        slot += 2 if line.split()[0] == "lddw" else 1
    for _, at, line in found:
        if line == "exit":
            labels.setdefault("exit", at)
            break
    out: list[Insn | None] = []
    for number, at, line in found:
        try:
            insn = _instruction(line, at, labels)
        except (ValueError, KeyError) as error:
            why = f"unknown {error}" if isinstance(error, KeyError) else error
            raise LoadError(f"line {number}", f"{why} in {line!r}") from None
        out.append(insn)
        if isinstance(insn, isa.LoadImm64):
            out.append(None)
    return tuple(out)


def _instruction(line: str, slot: int, labels: Mapping[str, int]) -> Insn:
    mnemonic, _, rest = line.partition(" ")
    operands = [part.strip() for part in rest.split(",")] if rest.strip() else []

    def off(text: str, bits: int = 16) -> int:
        """`+N` and `-N` are offsets as they stand, all else is a label."""
        if text[:1] in ("+", "-"):
            return fit(integer(text), bits, "offset")
        return fit(labels[text] - slot - 1, bits, "offset")

    if mnemonic == "call":
        return _call(rest.split(), off)
    if mnemonic == "lock":
        return _atomic(rest)
    width, is64 = (mnemonic[:-2], False) if mnemonic.endswith("32") else (mnemonic, True)
    match mnemonic, operands:
        case "exit", []:
            return isa.Exit()
        case "ja", [to]:
            return isa.Jump(off(to))
        case "ja32", [to]:
            return isa.Jump(off(to, 32), long=True)
        case "lddw", [dst, value]:
            number = integer(value)
            if not -(1 << 63) <= number < 1 << 64:
                raise ValueError(f"number {number} does not fit in 64 bits")
            return isa.LoadImm64(_register(dst), number & (1 << 64) - 1)
        case ("neg" | "neg32"), [dst]:
            return isa.Neg(is64, _register(dst))
        case ("mov" | "mov32"), [dst, src]:
            return isa.Mov(is64, _register(dst), _operand(src))
        case _, [dst, src] if moves := re.fullmatch(r"movsx(8|16|32)(32|64)", mnemonic):
            if moves[1] == moves[2]:
                raise ValueError("no such extension")
            return isa.Mov(moves[2] == "64", _register(dst), Reg(_register(src)), int(moves[1]))
        case _, [dst] if swaps := re.fullmatch(r"(be|le|swap|bswap)(16|32|64)", mnemonic):
            order = SwapOrder("bswap" if swaps[1] == "swap" else swaps[1])
            return isa.Swap(_register(dst), int(swaps[2]), order)
        case _, [dst, place] if loads := re.fullmatch(r"ldx(s?)(b|h|w|dw)", mnemonic):
            base, offset = _memory(place)
            if loads[0] == "ldxsdw":
                raise ValueError("no such load")
            return isa.Load(_register(dst), base, offset, _SIZES[loads[2]], bool(loads[1]))
        case _, [place, src] if stores := re.fullmatch(r"st(x?)(b|h|w|dw)", mnemonic):
            stored = _operand(src)
            if isinstance(stored, Reg) is not bool(stores[1]):
                raise ValueError("stx stores a register, st a number")
            base, offset = _memory(place)
            return isa.Store(base, offset, _SIZES[stores[2]], stored)
        case _, [dst, src, to] if width in _JUMPS:
            return isa.JumpIf(_JUMPS[width], is64, _register(dst), _operand(src), off(to))
        case _, [dst, src] if width in _ALU:
            return isa.Alu(_ALU[width], is64, _register(dst), _operand(src))
    raise ValueError("no such instruction")


def _call(words: list[str], off: Callable[[str, int], int]) -> Insn:
    match words:
        case [one] if one.startswith("%"):
            return isa.CallReg(_register(one))
        case ["local", to]:
            return isa.CallLocal(off(to, 32))
        case ["helper", number] | [number]:
            return isa.Call(fit(integer(number), 32, "helper"))
    raise ValueError("no such call")


def _atomic(rest: str) -> Insn:
    found = re.fullmatch(r"(fetch\s+)?(add|and|or|xor|xchg|cmpxchg)(32)?\s+(\[.*\])\s*,\s*(\S+)",
                         rest.strip())
    if found is None:
        raise ValueError("no such atomic operation")
    op = _ATOMICS[found[2]]
    fetch = bool(found[1]) or op in (AtomicOp.XCHG, AtomicOp.CMPXCHG)
    base, offset = _memory(found[4])
    return isa.Atomic(op, 4 if found[3] else 8, base, offset, _register(found[5]), fetch)


def _register(text: str) -> int:
    if not re.fullmatch(r"%r(\d|10)", text):
        raise ValueError(f"{text} is not a register")
    return int(text[2:])


def _operand(text: str) -> Operand:
    """A register or a number of 32 bits; one in hex may be unsigned."""
    if text.startswith("%"):
        return Reg(_register(text))
    value = integer(text)
    if "0x" in text and 1 << 31 <= value < 1 << 32:
        value -= 1 << 32
    return Imm(fit(value, 32, "number"))


def _memory(text: str) -> tuple[int, int]:
    found = _MEMORY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text} is not a place in memory")
    offset = integer(f"{found[2]}{found[3]}") if found[2] else 0
    return _register(f"%r{found[1]}"), fit(offset, 16, "offset")
