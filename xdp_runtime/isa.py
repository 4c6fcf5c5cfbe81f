"""The eBPF instruction set as plain frozen dataclasses (RFC 9669, cpu v1..v4).

An instruction is a noun with its meaning in its fields; opcodes, source registers that change
meaning and offsets that select signedness exist only in `decode` and `encode`.  Every pass
(`disasm`, `interp`, `compiler.lower`, the verifier) is a `match` over `Insn` that ends in
`assert_never`, so a new instruction fails type checking until every pass handles it.

A program is a tuple indexed by *slot* (8 bytes): a 64-bit immediate load takes two slots, the
second of which is `None`.  Jump and call offsets are relative to the next slot, as encoded.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import assert_never

from xdp_runtime.errors import LoadError

STACK_SIZE_BYTES = 512  # a frame, MAX_BPF_STACK
MAX_CALL_FRAMES = 8  # MAX_CALL_FRAMES, include/linux/bpf_verifier.h
MAX_TAIL_CALLS = 33  # MAX_TAIL_CALL_CNT, include/linux/bpf.h
POISON = 195896080  # 0xbad2310: the helper number libbpf gives to what cannot be relocated
MAX_INSNS = 1_000_000  # BPF_COMPLEXITY_LIMIT_INSNS


class AluOp(Enum):
    ADD = 0x00
    SUB = 0x10
    MUL = 0x20
    DIV = 0x30
    OR = 0x40
    AND = 0x50
    LSH = 0x60
    RSH = 0x70
    MOD = 0x90
    XOR = 0xA0
    ARSH = 0xC0
    SDIV = 0x130  # DIV with offset 1
    SMOD = 0x190  # MOD with offset 1


class JmpOp(Enum):
    EQ = 0x10
    GT = 0x20
    GE = 0x30
    SET = 0x40
    NE = 0x50
    SGT = 0x60
    SGE = 0x70
    LT = 0xA0
    LE = 0xB0
    SLT = 0xC0
    SLE = 0xD0


class AtomicOp(Enum):
    ADD = 0x00
    OR = 0x40
    AND = 0x50
    XOR = 0xA0
    XCHG = 0xE0
    CMPXCHG = 0xF0


class SwapOrder(Enum):
    LE = "le"
    BE = "be"
    SWAP = "bswap"


class Pseudo(IntEnum):
    """What the source register of a 64-bit immediate load makes of the immediate."""

    MAP_FD = 1
    MAP_VALUE = 2
    BTF_ID = 3
    FUNC = 4
    MAP_IDX = 5
    MAP_IDX_VALUE = 6


@dataclass(frozen=True, slots=True)
class Reg:
    n: int


@dataclass(frozen=True, slots=True)
class Imm:
    value: int  # signed 32-bit, sign-extended when used at 64 bits


Operand = Reg | Imm


@dataclass(frozen=True, slots=True)
class Alu:
    """dst = dst op src.  32-bit forms zero the upper half of dst."""

    op: AluOp
    is64: bool
    dst: int
    src: Operand


@dataclass(frozen=True, slots=True)
class Neg:
    is64: bool
    dst: int


@dataclass(frozen=True, slots=True)
class Mov:
    """dst = src; `sign_bits` 8, 16 or 32 sign-extends from that width (0: plain move)."""

    is64: bool
    dst: int
    src: Operand
    sign_bits: int = 0


@dataclass(frozen=True, slots=True)
class AddressCast:
    """dst = src as a pointer of the other address space, of the program's arena or back: `to_user`
    is what user space takes for it, else what the program may dereference (the lower half)."""

    dst: int
    src: int
    to_user: bool


@dataclass(frozen=True, slots=True)
class Swap:
    """Byte order: `le`/`be` convert to that order and truncate to `bits`, `bswap` always swaps."""

    dst: int
    bits: int
    order: SwapOrder


@dataclass(frozen=True, slots=True)
class LoadImm64:
    dst: int
    value: int  # unsigned 64-bit


@dataclass(frozen=True, slots=True)
class LoadMap:
    """dst = the map itself; `map` is an index into Object.maps."""

    dst: int
    map: int


@dataclass(frozen=True, slots=True)
class LoadMapValue:
    """dst = address of byte `offset` of the map's first value (globals, .rodata)."""

    dst: int
    map: int
    offset: int


@dataclass(frozen=True, slots=True)
class LoadFunc:
    """dst = address of the function at slot `off + 1 + this slot` (callbacks)."""

    dst: int
    off: int


@dataclass(frozen=True, slots=True)
class Load:
    """dst = *(size *)(src + off), zero-extended, or sign-extended when `signed`."""

    dst: int
    src: int
    off: int
    size: int
    signed: bool = False


@dataclass(frozen=True, slots=True)
class Store:
    """*(size *)(dst + off) = src"""

    dst: int
    off: int
    size: int
    src: Operand


@dataclass(frozen=True, slots=True)
class Atomic:
    """Sequentially consistent read-modify-write of 4 or 8 bytes at dst + off.

    `fetch` puts the old value into src; CMPXCHG compares with r0 and always fetches into r0.
    """

    op: AtomicOp
    size: int
    dst: int
    off: int
    src: int
    fetch: bool


@dataclass(frozen=True, slots=True)
class LoadAcquire:
    dst: int
    src: int
    off: int
    size: int


@dataclass(frozen=True, slots=True)
class StoreRelease:
    dst: int
    off: int
    size: int
    src: int


@dataclass(frozen=True, slots=True)
class Jump:
    off: int
    long: bool = False  # gotol: the offset is in the immediate


@dataclass(frozen=True, slots=True)
class JumpIf:
    op: JmpOp
    is64: bool
    dst: int
    src: Operand
    off: int


@dataclass(frozen=True, slots=True)
class MayGoto:
    """Jump by `off` once the loop budget is used up, else fall through (cpu v4, kernel 6.10)."""

    off: int


@dataclass(frozen=True, slots=True)
class Call:
    """A helper by its number in the kernel's uapi."""

    helper: int


@dataclass(frozen=True, slots=True)
class CallKfunc:
    btf_id: int
    offset: int


@dataclass(frozen=True, slots=True)
class CallLocal:
    off: int


@dataclass(frozen=True, slots=True)
class CallReg:
    """callx: only the conformance suite's syntax knows it; the kernel refuses it."""

    src: int


@dataclass(frozen=True, slots=True)
class Exit:
    pass


Insn = (
    Alu | Neg | Mov | AddressCast | Swap | LoadImm64 | LoadMap | LoadMapValue | LoadFunc | Load
    | Store | Atomic | LoadAcquire | StoreRelease | Jump | JumpIf | MayGoto | Call | CallKfunc
    | CallLocal | CallReg | Exit
)
Insns = tuple[Insn | None, ...]

_SIZES = {0x00: 4, 0x08: 2, 0x10: 1, 0x18: 8}
_SIZE_BITS = {size: bits for bits, size in _SIZES.items()}
_SLOT = struct.Struct("<BBhi")

LD, LDX, ST, STX, ALU, JMP, JMP32, ALU64 = range(8)
_MODE_IMM, _MODE_MEM, _MODE_MEMSX, _MODE_ATOMIC = 0x00, 0x60, 0x80, 0xC0
_LOAD_ACQ, _STORE_REL = 0x100, 0x110
_ADDRESS_CAST, _TO_PROGRAM, _TO_USER = 1, 1, 1 << 16  # BPF_ADDR_SPACE_CAST; (to << 16) | from


def _bad(slot: int, why: str) -> LoadError:
    return LoadError(f"instruction {slot}", why)


def decode(code: bytes) -> Insns:
    """Decode a byte string of 8-byte slots.  Raises LoadError naming the slot that makes no sense.

    Map references keep the raw number (a map index, once elf.py has resolved relocations).
    """
    if len(code) % 8:
        raise LoadError("program", f"{len(code)} bytes are not a whole number of 8-byte slots")
    words = memoryview(code).cast("Q")
    known: dict[int, Insn] = {}  # equal instructions are one object: a program has few different
    out: list[Insn | None] = []
    slot, count = 0, len(words)
    while slot < count:
        found = known.get(words[slot])
        if found is None:
            opcode, regs, off, imm = _SLOT.unpack_from(code, slot * 8)
            dst, src = regs & 15, regs >> 4
            if dst > 10 or (src > 10 and opcode & 7 != LD):
                raise _bad(slot, f"register r{max(dst, src)} does not exist")
            if opcode == 0x18:
                out += _decode_lddw(slot, dst, src, off, imm, code), None
                slot += 2
                continue
            found = known[words[slot]] = _decode_one(slot, opcode, dst, src, off, imm)
        out.append(found)
        slot += 1
    return tuple(out)


def _decode_lddw(slot: int, dst: int, src: int, off: int, imm: int, code: bytes) -> Insn:
    if slot * 8 + 16 > len(code):
        raise _bad(slot, "64-bit load lacks its second half")
    *rest, imm_hi = _SLOT.unpack_from(code, slot * 8 + 8)
    if any(rest):
        raise _bad(slot + 1, "second half of a 64-bit load has fields that must be zero")
    if off:
        raise _bad(slot, "64-bit load with an offset")
    if src == 0:
        return LoadImm64(dst, ((imm_hi & 0xFFFFFFFF) << 32) | (imm & 0xFFFFFFFF))
    if src in (Pseudo.MAP_FD, Pseudo.MAP_IDX, Pseudo.FUNC) and imm_hi:
        raise _bad(slot, "second half of a 64-bit load has fields that must be zero")
    if src in (Pseudo.MAP_FD, Pseudo.MAP_IDX):
        return LoadMap(dst, imm)
    if src in (Pseudo.MAP_VALUE, Pseudo.MAP_IDX_VALUE):
        return LoadMapValue(dst, imm, imm_hi)
    if src == Pseudo.FUNC:
        return LoadFunc(dst, imm)
    if src == Pseudo.BTF_ID:
        raise _bad(slot, "typed kernel symbol (ksym) cannot exist in user space")
    raise _bad(slot, f"64-bit load of unknown kind {src}")


def _reserved(slot: int, *fields: int) -> None:
    """Fields an instruction does not use must be zero (RFC 9669, section 3)."""
    if any(fields):
        raise _bad(slot, "has fields that must be zero")


def _decode_one(slot: int, opcode: int, dst: int, src: int, off: int, imm: int) -> Insn:
    cls = opcode & 7
    if cls in (ALU, ALU64):
        return _decode_alu(slot, opcode, dst, src, off, imm)
    if cls in (JMP, JMP32):
        return _decode_jmp(slot, opcode, dst, src, off, imm)
    size, mode = _SIZES[opcode & 0x18], opcode & 0xE0
    if cls == LDX and mode in (_MODE_MEM, _MODE_MEMSX):
        _reserved(slot, imm)
    if cls == LDX and mode == _MODE_MEM:
        return Load(dst, src, off, size)
    if cls == LDX and mode == _MODE_MEMSX and size < 8:
        return Load(dst, src, off, size, signed=True)
    if cls == ST and mode == _MODE_MEM:
        _reserved(slot, src)
        return Store(dst, off, size, Imm(imm))
    if cls == STX and mode == _MODE_MEM:
        _reserved(slot, imm)
        return Store(dst, off, size, Reg(src))
    if cls == STX and mode == _MODE_ATOMIC:
        return _decode_atomic(slot, size, dst, src, off, imm)
    if cls == LD:
        raise _bad(slot, "legacy packet access (LD_ABS, LD_IND) is not allowed in XDP programs")
    raise _bad(slot, f"unknown opcode {opcode:#04x}")


def _decode_alu(slot: int, opcode: int, dst: int, src: int, off: int, imm: int) -> Insn:
    is64, code = (opcode & 7) == ALU64, opcode & 0xF0
    operand: Operand = Reg(src) if opcode & 8 else Imm(imm)
    if code == 0xD0:
        _reserved(slot, src, off)
        if imm not in (16, 32, 64):
            raise _bad(slot, f"byte swap of {imm} bits")
        if is64:
            if opcode & 8:
                raise _bad(slot, f"unknown opcode {opcode:#04x}")
            return Swap(dst, imm, SwapOrder.SWAP)
        return Swap(dst, imm, SwapOrder.BE if opcode & 8 else SwapOrder.LE)
    if code == 0x80:
        _reserved(slot, opcode & 8, src, off, imm)
        return Neg(is64, dst)
    if code == 0xB0 and is64 and opcode & 8 and off == _ADDRESS_CAST:
        if imm not in (_TO_PROGRAM, _TO_USER):
            raise _bad(slot, "addr_space_cast between other spaces than 0 and 1")
        return AddressCast(dst, src, imm == _TO_USER)
    _reserved(slot, imm if opcode & 8 else src)
    if code == 0xB0:
        if off not in (0, 8, 16, 32) or (off and not opcode & 8) or (off == 32 and not is64):
            raise _bad(slot, f"move with offset {off}")
        return Mov(is64, dst, operand, off)
    if off and not (off == 1 and code in (0x30, 0x90)):
        raise _bad(slot, f"arithmetic with offset {off}")
    try:
        return Alu(AluOp(code | (0x100 if off else 0)), is64, dst, operand)
    except ValueError:
        raise _bad(slot, f"unknown opcode {opcode:#04x}") from None


def _decode_atomic(slot: int, size: int, dst: int, src: int, off: int, imm: int) -> Insn:
    if imm == _LOAD_ACQ:
        return LoadAcquire(dst, src, off, size)
    if imm == _STORE_REL:
        return StoreRelease(dst, off, size, src)
    if size < 4:
        raise _bad(slot, f"atomic operation on {size} bytes")
    try:
        op = AtomicOp(imm & 0xF0)
    except ValueError:
        raise _bad(slot, f"unknown atomic operation {imm:#x}") from None
    fetch = bool(imm & 1)
    if (imm & ~0xF1) or (op in (AtomicOp.XCHG, AtomicOp.CMPXCHG) and not fetch):
        raise _bad(slot, f"unknown atomic operation {imm:#x}")
    return Atomic(op, size, dst, off, src, fetch)


def _decode_jmp(slot: int, opcode: int, dst: int, src: int, off: int, imm: int) -> Insn:
    is64, code = (opcode & 7) == JMP, opcode & 0xF0
    if code == 0x00:
        if opcode & 8:
            raise _bad(slot, f"unknown opcode {opcode:#04x}")
        _reserved(slot, dst, src, imm if is64 else off)
        return Jump(off) if is64 else Jump(imm, long=True)
    if code == 0xE0 and is64 and not opcode & 8:
        _reserved(slot, dst, src, imm)
        return MayGoto(off)
    if code == 0x80 and is64:
        if opcode & 8:  # clang before 19 puts the register into the immediate
            _reserved(slot, src, off, imm if dst else 0)
            if not 0 <= imm <= 10:
                raise _bad(slot, f"register r{imm} does not exist")
            return CallReg(dst or imm)
        _reserved(slot, dst, off if src != 2 else 0)
        if src == 0:
            return Call(imm)
        if src == 1:
            return CallLocal(imm)
        if src == 2:
            return CallKfunc(imm, off)
        raise _bad(slot, f"call of unknown kind {src}")
    if code == 0x90 and is64 and not opcode & 8:
        _reserved(slot, dst, src, off, imm)
        return Exit()
    _reserved(slot, imm if opcode & 8 else src)
    try:
        return JumpIf(JmpOp(code), is64, dst, Reg(src) if opcode & 8 else Imm(imm), off)
    except ValueError:
        raise _bad(slot, f"unknown opcode {opcode:#04x}") from None


def _pack(opcode: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    imm = ((imm & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
    return _SLOT.pack(opcode, dst | src << 4, off, imm)


def _operand(src: Operand) -> tuple[int, int, int]:
    """(opcode bit, source register, immediate)"""
    return (8, src.n, 0) if isinstance(src, Reg) else (0, 0, src.value)


def encode(insns: Iterable[Insn | None], map_fds: Sequence[int] | None = None) -> bytes:
    """Encode to kernel bytes.  With `map_fds`, map indices become those file descriptors."""
    out = bytearray()
    for insn in insns:
        if insn is not None:
            out += _encode_one(insn, map_fds)
    return bytes(out)


def _encode_one(insn: Insn, map_fds: Sequence[int] | None) -> bytes:
    match insn:
        case Alu(op, is64, dst, src):
            bit, reg, imm = _operand(src)
            return _pack((op.value & 0xF0) | bit | (ALU64 if is64 else ALU), dst, reg,
                         op.value >> 8, imm)
        case Neg(is64, dst):
            return _pack(0x80 | (ALU64 if is64 else ALU), dst)
        case AddressCast(dst, src_reg, to_user):
            return _pack(0xB8 | ALU64, dst, src_reg, _ADDRESS_CAST,
                         _TO_USER if to_user else _TO_PROGRAM)
        case Mov(is64, dst, src, sign_bits):
            bit, reg, imm = _operand(src)
            return _pack(0xB0 | bit | (ALU64 if is64 else ALU), dst, reg, sign_bits, imm)
        case Swap(dst, bits, order):
            opcode = {SwapOrder.LE: 0xD4, SwapOrder.BE: 0xDC, SwapOrder.SWAP: 0xD7}[order]
            return _pack(opcode, dst, imm=bits)
        case LoadImm64(dst, value):
            return _pack(0x18, dst, imm=value) + _pack(0, imm=value >> 32)
        case LoadMap(dst, index):
            if map_fds is None:
                return _pack(0x18, dst, Pseudo.MAP_IDX, imm=index) + _pack(0)
            return _pack(0x18, dst, Pseudo.MAP_FD, imm=map_fds[index]) + _pack(0)
        case LoadMapValue(dst, index, offset):
            kind, number = (Pseudo.MAP_IDX_VALUE, index) if map_fds is None else (
                Pseudo.MAP_VALUE, map_fds[index])
            return _pack(0x18, dst, kind, imm=number) + _pack(0, imm=offset)
        case LoadFunc(dst, off):
            return _pack(0x18, dst, Pseudo.FUNC, imm=off) + _pack(0)
        case Load(dst, src_reg, off, size, signed):
            mode = _MODE_MEMSX if signed else _MODE_MEM
            return _pack(mode | _SIZE_BITS[size] | LDX, dst, src_reg, off)
        case Store(dst, off, size, src):
            bit, reg, imm = _operand(src)
            return _pack(_MODE_MEM | _SIZE_BITS[size] | (STX if bit else ST), dst, reg, off, imm)
        case Atomic(op, size, dst, off, src_reg, fetch):
            return _pack(_MODE_ATOMIC | _SIZE_BITS[size] | STX, dst, src_reg, off,
                         op.value | (1 if fetch else 0))
        case LoadAcquire(dst, src_reg, off, size):
            return _pack(_MODE_ATOMIC | _SIZE_BITS[size] | STX, dst, src_reg, off, _LOAD_ACQ)
        case StoreRelease(dst, off, size, src_reg):
            return _pack(_MODE_ATOMIC | _SIZE_BITS[size] | STX, dst, src_reg, off, _STORE_REL)
        case Jump(off, long):
            return _pack(JMP32, imm=off) if long else _pack(JMP, off=off)
        case JumpIf(jop, is64, dst, src, off):
            bit, reg, imm = _operand(src)
            return _pack(jop.value | bit | (JMP if is64 else JMP32), dst, reg, off, imm)
        case MayGoto(off):
            return _pack(0xE5, off=off)
        case Call(helper):
            return _pack(0x85, imm=helper)
        case CallKfunc(btf_id, offset):
            return _pack(0x85, src=2, off=offset, imm=btf_id)
        case CallLocal(off):
            return _pack(0x85, src=1, imm=off)
        case CallReg(reg_n):
            return _pack(0x8D, reg_n)
        case Exit():
            return _pack(0x95)
        case _:
            assert_never(insn)
