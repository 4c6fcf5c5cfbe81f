"""Types for a program's functions, where the kernel takes them only with some.

A program that takes a function's address (callbacks), or tail-calls from a called function, must
come with BTF func_info (kernel: check_btf_func, check_ld_imm).  What these types say of a static
function decides nothing, as it is verified at each of its calls: so all are `int f(void)`.
"""

from __future__ import annotations

import struct

from xdp_runtime.isa import Call, CallLocal, Insns, LoadFunc

_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")  # name, kind << 24 | more, size or another type
_INT, _FUNC, _FUNC_PROTO = 1, 12, 13
_SIGNED, _INT_BITS = 1 << 24, 32
_TAIL_CALL = 12


def functions_of(insns: Insns) -> list[int]:
    """First slots of the program's functions, itself first."""
    return sorted({0} | {slot + 1 + insn.off for slot, insn in enumerate(insns)
                         if isinstance(insn, CallLocal | LoadFunc)})


def typed(insns: Insns) -> tuple[bytes, bytes]:
    """(BTF, func_info) for BPF_PROG_LOAD; both empty where the kernel asks for none."""
    starts = functions_of(insns)
    if not any(isinstance(insn, LoadFunc) for insn in insns) and not (
            len(starts) > 1
            and any(isinstance(insn, Call) and insn.helper == _TAIL_CALL for insn in insns)):
        return b"", b""
    strings = bytearray(b"\0int\0")
    types = bytearray(_TYPE.pack(1, _INT << 24, 4) + struct.pack("<I", _SIGNED | _INT_BITS)
                      + _TYPE.pack(0, _FUNC_PROTO << 24, 1))
    info = b""
    for number, start in enumerate(starts):
        types += _TYPE.pack(len(strings), _FUNC << 24, 2)  # BTF_FUNC_STATIC
        strings += f"f{start}\0".encode()
        info += struct.pack("<II", start, 3 + number)
    header = _HEADER.pack(0xEB9F, 1, 0, _HEADER.size, 0, len(types), len(types), len(strings))
    return header + types + strings, info
