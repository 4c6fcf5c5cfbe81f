"""Text to instructions; `disasm.py` is the way back and its docstring the notation.

Besides what `format_program` prints (slot numbers, `; comments` and `<targets>` are ignored) it
takes labels: `name:`, `goto name`, `call name`, `func[name]`; helpers by name; and w registers
where a load or store of up to 32 bits may have them in newer llvm-objdump.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from xdp_runtime import isa
from xdp_runtime.errors import LoadError
from xdp_runtime.helper_names import CALL_NAMES
from xdp_runtime.isa import AluOp, AtomicOp, Imm, Insn, Insns, JmpOp, Operand, Reg, SwapOrder

_CALLS = {name: number for number, name in CALL_NAMES.items()}
ALU_SIGNS = {
    AluOp.ADD: "+", AluOp.SUB: "-", AluOp.MUL: "*", AluOp.DIV: "/", AluOp.OR: "|", AluOp.AND: "&",
    AluOp.LSH: "<<", AluOp.RSH: ">>", AluOp.MOD: "%", AluOp.XOR: "^", AluOp.ARSH: "s>>",
    AluOp.SDIV: "s/", AluOp.SMOD: "s%",
}
JMP_SIGNS = {
    JmpOp.EQ: "==", JmpOp.GT: ">", JmpOp.GE: ">=", JmpOp.SET: "&", JmpOp.NE: "!=", JmpOp.SGT: "s>",
    JmpOp.SGE: "s>=", JmpOp.LT: "<", JmpOp.LE: "<=", JmpOp.SLT: "s<", JmpOp.SLE: "s<=",
}
ATOMIC_SIGNS = {AtomicOp.ADD: "+", AtomicOp.OR: "|", AtomicOp.AND: "&", AtomicOp.XOR: "^"}
NAME = r"[A-Za-z_.$][\w.$]*"


@dataclass(frozen=True, slots=True)
class _Scope:
    """What names mean at one instruction of the text."""

    slot: int
    labels: Mapping[str, int]
    maps: Sequence[str]

    def off(self, text: str, bits: int = 16) -> int:
        off = self.labels[text] - self.slot - 1 if text in self.labels else integer(text)
        return fit(off, bits, "offset")

    def map(self, text: str) -> int:
        if text in self.maps:
            return self.maps.index(text)
        if not text.isdigit():
            raise ValueError(f"unknown map {text}")
        return fit(int(text), 32, "map index")

    def call(self, text: str) -> Insn:
        if text in self.labels:
            return isa.CallLocal(self.off(text, 32))
        if re.fullmatch(r"pc[+-]\d+", text):
            return isa.CallLocal(fit(int(text[2:]), 32, "offset"))
        if text.startswith("kfunc#"):
            btf_id, _, offset = text[6:].partition("@")
            return isa.CallKfunc(fit(int(btf_id), 32, "BTF id"), fit(int(offset or 0), 16,
                                                                       "offset"))
        name, _, number = text.partition("#")
        if number or name not in _CALLS:
            name = number or name
        return isa.Call(_CALLS[name] if name in _CALLS else
                        fit(integer(name), 32, "helper"))


def integer(text: str) -> int:
    if not re.fullmatch(_INT, text):
        raise ValueError(f"unknown name {text}")
    sign, digits = (-1 if text[0] == "-" else 1), text.lstrip("+-")
    return sign * int(digits, 16 if digits.startswith("0x") else 10)


def fit(value: int, bits: int, what: str) -> int:
    if not -(1 << bits - 1) <= value < 1 << bits - 1:
        raise ValueError(f"{what} {value} does not fit in {bits} bits")
    return value


def _number(text: str) -> int:
    """The number of a register, `r3` or `w3`."""
    if int(text[1:]) > 10:
        raise ValueError(f"register {text} does not exist")
    return int(text[1:])


def _operand(text: str, width: str) -> Operand:
    """A register of that width ("r" or "w") or a number; 32-bit ones may be unsigned."""
    if text[0] in "rw":
        if text[0] != width:
            raise ValueError(f"{text} is not a {width} register")
        return Reg(_number(text))
    value = integer(text)
    if width == "w" and 1 << 31 <= value < 1 << 32:
        value -= 1 << 32
    return Imm(fit(value, 32, "number"))


def _same(*registers: str) -> int:
    if len(set(registers)) > 1:
        raise ValueError(f"{' and '.join(registers)} must be the same register")
    return _number(registers[0])


def _base(base: str, sign: str, off: str) -> tuple[int, int]:
    return _number(base), fit(integer(sign + off), 16, "offset")


def _atomic(op: AtomicOp, bits: int, base: str, sign: str, off: str, reg: str,
            fetch: bool = True) -> Insn:
    if fetch and (reg[0] == "r") != (bits == 64):
        raise ValueError(f"{reg} is not a {bits}-bit register")
    if bits < 32:
        raise ValueError(f"atomic operation on {bits} bits")
    return isa.Atomic(op, bits // 8, *_base(base, sign, off), _number(reg), fetch)


_R, _W = r"(r\d+)", r"([rw]\d+)"
_INT = r"[+-]?(?:0x[0-9a-fA-F]+|\d+)"
_SRC = rf"([rw]\d+|{_INT})"
_AT = r"(r\d+) ([+-]) (\d+)"
_MEM = rf"\(([us])(8|16|32|64) \*\)\({_AT}\)"
_UMEM = rf"\(u(8|16|32|64) \*\)\({_AT}\)"
_TO = rf"({_INT}|{NAME})"


def _signs(signs: Iterable[str]) -> str:
    return "|".join(re.escape(s) for s in sorted(signs, key=len, reverse=True))


_ALU_BY_SIGN = {sign: op for op, sign in ALU_SIGNS.items()}
_JMP_BY_SIGN = {sign: op for op, sign in JMP_SIGNS.items()}
_ATOMIC_BY_SIGN = {sign: op for op, sign in ATOMIC_SIGNS.items()}


def _store(bits: str, base: str, sign: str, off: str, src: str) -> Insn:
    narrow = src[0] == "w" and bits != "64"
    at, offset = _base(base, sign, off)
    return isa.Store(at, offset, int(bits) // 8, _operand(src, "w" if narrow else "r"))


def _load(dst: str, kind: str, bits: str, base: str, sign: str, off: str) -> Insn:
    if (dst[0] == "w" and (bits == "64" or kind == "s")) or (bits == "64" and kind == "s"):
        raise ValueError("no such load")
    return isa.Load(_number(dst), *_base(base, sign, off), int(bits) // 8, kind == "s")


def _extend(dst: str, bits: str, src: str) -> Insn:
    if bits == "32" and dst[0] == "w":
        raise ValueError("no such extension")
    return isa.Mov(dst[0] == "r", _number(dst), _operand(src, dst[0]), int(bits))


def _cast(dst: str, src: str, to: str, of: str) -> Insn:
    if to == of:
        raise ValueError("no such cast")
    return isa.AddressCast(_number(dst), _number(src), to == "1")


def _match_width(bits: str, reg: str) -> int:
    if (reg[0] == "r") != (bits == "64"):
        raise ValueError(f"{reg} is not a {bits}-bit register")
    return _number(reg)


# The grammar: a pattern, and what its groups become.  The first that matches the whole line wins.
_RULES: list[tuple[str, Callable[..., Insn]]] = [
    ("exit", lambda s: isa.Exit()),
    (rf"callx {_R}", lambda s, r: isa.CallReg(_number(r))),
    (r"call (\S+)", lambda s, what: s.call(what)),
    (rf"goto {_TO}", lambda s, to: isa.Jump(s.off(to))),
    (rf"gotol {_TO}", lambda s, to: isa.Jump(s.off(to, 32), long=True)),
    (rf"may_goto {_TO}", lambda s, to: isa.MayGoto(s.off(to))),
    (rf"if {_W} ({_signs(JMP_SIGNS.values())}) {_SRC} goto {_TO}",
     lambda s, dst, op, src, to: isa.JumpIf(_JMP_BY_SIGN[op], dst[0] == "r", _number(dst),
                                            _operand(src, dst[0]), s.off(to))),
    (rf"\*{_UMEM} = {_SRC}", lambda s, *groups: _store(*groups)),
    (rf"lock \*{_UMEM} ({_signs(ATOMIC_SIGNS.values())})= {_W}",
     lambda s, bits, base, sign, off, op, reg: _atomic(
         _ATOMIC_BY_SIGN[op], int(bits), base, sign, off, reg, fetch=False)),
    (rf"{_W} = \*{_MEM}", lambda s, *groups: _load(*groups)),
    (rf"{_W} = atomic_fetch_(add|or|and|xor)\({_UMEM}, {_W}\)",
     lambda s, old, op, bits, base, sign, off, reg: _atomic(
         AtomicOp[op.upper()], int(bits), base, sign, off, f"{old[0]}{_same(old, reg)}")),
    (rf"{_W} = xchg(?:32)?_(32|64)\({_AT}, {_W}\)",
     lambda s, old, bits, base, sign, off, reg: _atomic(
         AtomicOp.XCHG, int(bits), base, sign, off, f"{old[0]}{_same(old, reg)}")),
    (rf"[rw]0 = cmpxchg(?:32)?_(32|64)\({_AT}, [rw]0, {_W}\)",
     lambda s, bits, *groups: _atomic(AtomicOp.CMPXCHG, int(bits), *groups)),
    (rf"{_W} = load_acquire\({_UMEM}\)",
     lambda s, dst, bits, *at: isa.LoadAcquire(_match_width(bits, dst), *_base(*at),
                                               int(bits) // 8)),
    (rf"store_release\({_UMEM}, {_W}\)",
     lambda s, bits, base, sign, off, src: isa.StoreRelease(
         *_base(base, sign, off), int(bits) // 8, _match_width(bits, src))),
    (rf"{_W} = -{_W}", lambda s, dst, src: isa.Neg(dst[0] == "r", _same(dst, src))),
    (rf"{_W} = \(s(8|16|32)\){_W}", lambda s, *groups: _extend(*groups)),
    (rf"{_R} = addr_space_cast\({_R}, (?:0x)?([01]), (?:0x)?([01])\)",
     lambda s, *groups: _cast(*groups)),
    (rf"{_R} = (le|be|bswap)(16|32|64) {_R}",
     lambda s, dst, order, bits, src: isa.Swap(_same(dst, src), int(bits), SwapOrder(order))),
    (rf"{_R} = ({_INT}) ll",
     lambda s, dst, value: isa.LoadImm64(_number(dst), _unsigned64(integer(value)))),
    (rf"{_R} = map\[([^\]]+)\] ll", lambda s, dst, name: isa.LoadMap(_number(dst), s.map(name))),
    (rf"{_R} = map_value\[([^\]]+)\]({_INT})? ll",
     lambda s, dst, name, off: isa.LoadMapValue(_number(dst), s.map(name),
                                                fit(integer(off or "0"), 32, "offset"))),
    (rf"{_R} = func\[{_TO}\] ll",
     lambda s, dst, to: isa.LoadFunc(_number(dst), s.off(to, 32))),
    (rf"{_W} = {_SRC}",
     lambda s, dst, src: isa.Mov(dst[0] == "r", _number(dst), _operand(src, dst[0]))),
    (rf"{_W} ({_signs(ALU_SIGNS.values())})= {_SRC}",
     lambda s, dst, op, src: isa.Alu(_ALU_BY_SIGN[op], dst[0] == "r", _number(dst),
                                     _operand(src, dst[0]))),
]
_GRAMMAR = [(re.compile(pattern), make) for pattern, make in _RULES]


def _unsigned64(value: int) -> int:
    if not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"number {value} does not fit in 64 bits")
    return value & 0xFFFF_FFFF_FFFF_FFFF


def assemble(text: str, maps: Sequence[str] = ()) -> Insns:
    """Instructions from text, one a line.  `maps` gives `map[NAME]` its index.

    Raises LoadError naming the line.
    """
    labels: dict[str, int] = {}
    found: list[tuple[int, int, str]] = []  # (line number, slot, text)
    slot = 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = re.sub(r"^\s*\d+:\s|;.*|\s<\S*>\s*$", "", raw)
        line = " ".join(line.split())
        label = re.fullmatch(rf"({NAME}):", line)
        if label:
            if label[1] in labels:
                raise LoadError(f"line {number}", f"label {label[1]} is already defined")
            labels[label[1]] = slot
        elif line:
            found.append((number, slot, line))
            slot += 2 if line.endswith(" ll") else 1
    out: list[Insn | None] = []
    for number, at, line in found:
        for pattern, make in _GRAMMAR:  # noqa: B007 - used behind the loop
            groups = pattern.fullmatch(line)
            if groups:
                break
        else:
            raise LoadError(f"line {number}", f"cannot parse {line!r}")
        try:
            out.append(make(_Scope(at, labels, maps), *groups.groups()))
        except ValueError as error:
            raise LoadError(f"line {number}", f"{error} in {line!r}") from None
        if line.endswith(" ll"):
            out.append(None)
    return tuple(out)
