"""Instructions as text and back, in the notation of the kernel and llvm-objdump.

    r1 = r2            w0 += 3              r1 s/= r2           r1 = (s8)r2
    r0 = *(u8 *)(r1 + 0)                    *(u32 *)(r10 - 4) = r1
    if r1 s> 5 goto +3                      goto -2             may_goto +4
    lock *(u64 *)(r1 + 0) += r2             r2 = atomic_fetch_add((u64 *)(r1 + 0), r2)
    call bpf_map_lookup_elem#1              call pc+7           exit
    r1 = addr_space_cast(r2, 0x0, 0x1)
    r1 = 0x2a ll       r1 = map[flows] ll   r1 = map_value[.bss]+8 ll    r1 = func[+5] ll

`r` registers are 64-bit, `w` are their lower halves.  Offsets count 8-byte slots from the next
one.  `assemble` (asm.py) reads all of this back.
"""

from __future__ import annotations

import re
from typing import assert_never

from xdp_runtime import isa
from xdp_runtime.asm import ALU_SIGNS, ATOMIC_SIGNS, JMP_SIGNS, NAME, assemble
from xdp_runtime.helper_names import CALL_NAMES
from xdp_runtime.isa import AtomicOp, Insn, Operand, Reg
from xdp_runtime.object import Line, Object, ProgramSpec

__all__ = ["assemble", "format_insn", "format_line", "format_program"]


def format_insn(insn: Insn, slot: int | None = None, object: Object | None = None) -> str:
    """One instruction.  `slot` adds `<target slot>` to jumps, `object` names the maps."""
    def operand(src: Operand, is64: bool) -> str:
        return f"{'r' if is64 else 'w'}{src.n}" if isinstance(src, Reg) else str(src.value)

    def place(base: int, off: int) -> str:
        return f"(r{base} {'-' if off < 0 else '+'} {abs(off)})"

    def memory(size: int, base: int, off: int, sign: str = "u") -> str:
        return f"({sign}{size * 8} *){place(base, off)}"

    def target(off: int) -> str:
        return f"{off:+d}" if slot is None else f"{off:+d} <{slot + 1 + off}>"

    def map_name(index: int) -> str:
        names = [m.name for m in object.maps] if object is not None else []
        if 0 <= index < len(names) and names.count(names[index]) == 1 and \
                re.fullmatch(NAME, names[index]):
            return names[index]
        return str(index)

    match insn:
        case isa.Alu(op, is64, dst, src):
            return f"{_reg(dst, is64)} {ALU_SIGNS[op]}= {operand(src, is64)}"
        case isa.Neg(is64, dst):
            return f"{_reg(dst, is64)} = -{_reg(dst, is64)}"
        case isa.Mov(is64, dst, src, bits):
            cast = f"(s{bits})" if bits else ""
            return f"{_reg(dst, is64)} = {cast}{operand(src, is64)}"
        case isa.AddressCast(dst, src_reg, to_user):
            return f"r{dst} = addr_space_cast(r{src_reg}, {'0x1, 0x0' if to_user else '0x0, 0x1'})"
        case isa.Swap(dst, bits, order):
            return f"r{dst} = {order.value}{bits} r{dst}"
        case isa.LoadImm64(dst, value):
            return f"r{dst} = {value:#x} ll"
        case isa.LoadMap(dst, index):
            return f"r{dst} = map[{map_name(index)}] ll"
        case isa.LoadMapValue(dst, index, offset):
            return f"r{dst} = map_value[{map_name(index)}]{offset:+d} ll"
        case isa.LoadFunc(dst, off):
            return f"r{dst} = func[{off:+d}] ll" + ("" if slot is None else f" <{slot + 1 + off}>")
        case isa.Load(dst, base, off, size, signed):
            return f"r{dst} = *{memory(size, base, off, 's' if signed else 'u')}"
        case isa.Store(base, off, size, src):
            return f"*{memory(size, base, off)} = {operand(src, True)}"
        case isa.Atomic(op, size, base, off, reg, fetch):
            where, r = memory(size, base, off), _reg(reg, size == 8)
            if op == AtomicOp.CMPXCHG:
                name, r0 = ("cmpxchg_64", "r0") if size == 8 else ("cmpxchg32_32", "w0")
                return f"{r0} = {name}({place(base, off)[1:-1]}, {r0}, {r})"
            if op == AtomicOp.XCHG:
                name = "xchg_64" if size == 8 else "xchg32_32"
                return f"{r} = {name}({place(base, off)[1:-1]}, {r})"
            if fetch:
                return f"{r} = atomic_fetch_{op.name.lower()}({where}, {r})"
            return f"lock *{where} {ATOMIC_SIGNS[op]}= r{reg}"
        case isa.LoadAcquire(dst, base, off, size):
            return f"{_reg(dst, size == 8)} = load_acquire({memory(size, base, off)})"
        case isa.StoreRelease(base, off, size, reg):
            return f"store_release({memory(size, base, off)}, {_reg(reg, size == 8)})"
        case isa.Jump(off, long):
            return f"{'gotol' if long else 'goto'} {target(off)}"
        case isa.JumpIf(jop, is64, dst, src, off):
            test = f"{_reg(dst, is64)} {JMP_SIGNS[jop]} {operand(src, is64)}"
            return f"if {test} goto {target(off)}"
        case isa.MayGoto(off):
            return f"may_goto {target(off)}"
        case isa.Call(helper):
            known = CALL_NAMES.get(helper)
            return f"call {known}#{helper}" if known else f"call {helper}"
        case isa.CallKfunc(btf_id, offset):
            return f"call kfunc#{btf_id}" + (f"@{offset}" if offset else "")
        case isa.CallLocal(off):
            return f"call pc{target(off)}"
        case isa.CallReg(reg):
            return f"callx r{reg}"
        case isa.Exit():
            return "exit"
        case _:
            assert_never(insn)


def _reg(n: int, is64: bool) -> str:
    return f"{'r' if is64 else 'w'}{n}"


def format_line(line: Line) -> str:
    """A source line as a comment: `; text @ file:line`, on one line whatever is in it."""
    text = "".join(c if c.isprintable() else " " for c in line.text.strip())
    file = "".join(c if c.isprintable() else "?" for c in line.file.rsplit("/", 1)[-1])
    return f"; {text} @ {file}:{line.line}" if text else f"; {file}:{line.line}"


def format_program(spec: ProgramSpec, object: Object | None = None,
                   source: bool = True) -> str:
    """A program with slot numbers, function headers and, when known, its source lines."""
    names = {f.start: f.name for f in spec.functions}
    lines: dict[int, list[Line]] = {}
    for line in spec.lines if source else ():
        lines.setdefault(line.slot, []).append(line)
    out: list[str] = []
    shown: tuple[str, int] | None = None
    for slot, insn in enumerate(spec.insns):
        if slot in names:
            out += [""] * bool(out) + [f"{names[slot]}:"]
            shown = None
        for line in lines.get(slot, ()):
            if (line.file, line.line) != shown:
                shown = line.file, line.line
                out.append(format_line(line))
        if insn is None:
            continue
        text = format_insn(insn, slot, object)
        if isinstance(insn, isa.CallLocal | isa.LoadFunc):
            name = names.get(slot + 1 + insn.off)
            if name is not None:
                text = f"{text.rsplit(' <', 1)[0]} <{name}>"
        out.append(f"{slot:6}: {text}")
    return "\n".join(out) + "\n"
