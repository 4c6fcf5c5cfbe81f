"""Types for a program's functions and for maps' values, where the kernel takes them only with some.

A program that takes a function's address (callbacks), or tail-calls from a called function, must
come with BTF func_info (kernel: check_btf_func, check_ld_imm).  What these types say of a static
function decides nothing, as it is verified at each of its calls: so all are `int f(void)`.

A value has a lock or a timer for the kernel only if its type says so: a struct of nothing else.
"""

from __future__ import annotations

import struct

from xdp_runtime.isa import Call, CallLocal, Insns, LoadFunc
from xdp_runtime.object import MapSpec

_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")  # name, kind << 24 | more, size or another type
_INT, _ARRAY, _STRUCT, _FUNC, _FUNC_PROTO = 1, 3, 4, 12, 13
_MEMBER = _ARRAY_OF = struct.Struct("<III")  # name, type, bits before; type, index type, count
KEY_TYPE_ID, VALUE_TYPE_ID = 3, 6  # of what `typed_values` gives
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
    return _section(bytes(types), bytes(strings)), info


def typed_values(spec: MapSpec) -> bytes:
    """BTF for BPF_MAP_CREATE; empty where the values have neither a lock nor a timer."""
    if spec.lock_at < 0 and spec.timer_at < 0:
        return b""
    strings = b"\0int\0bpf_spin_lock\0bpf_timer\0field\0"
    at = strings.index
    key = _TYPE.pack(1, _INT << 24, 4) + struct.pack("<I", 32) if spec.key_size == 4 else (
        _TYPE.pack(0, _ARRAY << 24, 0) + _ARRAY_OF.pack(2, 1, spec.key_size))
    members = [(at(b"field"), kind, place * 8)
               for kind, place in ((4, spec.lock_at), (5, spec.timer_at)) if place >= 0]
    types = b"".join((
        _TYPE.pack(1, _INT << 24, 4), struct.pack("<I", 32),
        _TYPE.pack(1, _INT << 24, 1), struct.pack("<I", 8),
        key,
        _TYPE.pack(at(b"bpf_spin_lock"), _STRUCT << 24 | 1, 4), _MEMBER.pack(at(b"field"), 1, 0),
        _TYPE.pack(at(b"bpf_timer"), _STRUCT << 24 | 1, 16), _MEMBER.pack(at(b"field"), 1, 0),
        _TYPE.pack(0, _STRUCT << 24 | len(members), spec.value_size),
        *(_MEMBER.pack(*member) for member in sorted(members, key=lambda one: one[2]))))
    return _section(types, strings)


def _section(types: bytes, strings: bytes) -> bytes:
    return _HEADER.pack(0xEB9F, 1, 0, _HEADER.size, 0, len(types), len(types),
                        len(strings)) + types + strings
