"""Calls of kernel functions as the running kernel wants them: by their ids in its own types.

Objects call them by name; here that became the call of a helper with a number of its own
(helper_names.py).  Only for loading into the kernel, as a judge or a rival.
"""

from __future__ import annotations

import struct
from functools import cache
from pathlib import Path

from xdp_runtime.errors import LoadError
from xdp_runtime.helper_names import KERNEL_FUNCTIONS
from xdp_runtime.isa import Call, CallKfunc, Insns

_VMLINUX = Path("/sys/kernel/btf/vmlinux")
_NAMES = {number: name for name, number in KERNEL_FUNCTIONS.items()}
_FUNC = 12  # BTF_KIND_FUNC
# bytes behind a record of struct btf_type: for each of its members, and once
_EACH = {3: 0, 4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
_ONCE = {1: 4, 3: 12, 14: 4, 17: 4}


def for_kernel(insns: Insns) -> Insns:
    """The same program with such calls.  Raises LoadError for one that this kernel has not."""
    if not any(isinstance(insn, Call) and insn.helper in _NAMES for insn in insns):
        return insns
    ids = function_ids()

    def called(number: int) -> CallKfunc:
        name = _NAMES[number]
        if name not in ids:
            raise LoadError(f"kernel function {name}", "this kernel does not have it")
        return CallKfunc(ids[name], 0)

    return tuple(called(insn.helper) if isinstance(insn, Call) and insn.helper in _NAMES
                 else insn for insn in insns)


@cache
def function_ids() -> dict[str, int]:
    """Of the running kernel's functions that begin with bpf_: its BTF is read once, and no more of
    it than that.  Raises LoadError."""
    try:
        data = _VMLINUX.read_bytes()
    except OSError as error:
        raise LoadError(str(_VMLINUX), f"cannot be read: {error.strerror}",
                        "kernel functions are found by the kernel's types (CONFIG_DEBUG_INFO_BTF)"
                        ) from error
    type_off, type_len, str_off, _ = struct.unpack_from("<4I", data, 8)
    at, end, strings = 24 + type_off, 24 + type_off + type_len, 24 + str_off
    unpack = struct.Struct("<III").unpack_from
    found: dict[str, int] = {}
    number = 0
    while at < end:
        name, info, _ = unpack(data, at)
        kind = info >> 24 & 31
        number += 1
        if kind == _FUNC and data.startswith(b"bpf_", strings + name):
            found[data[strings + name:data.index(0, strings + name)].decode()] = number
        at += 12 + _ONCE.get(kind, 0) + _EACH.get(kind, 0) * (info & 0xFFFF)
    return found
