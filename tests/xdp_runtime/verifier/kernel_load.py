"""Cases and random programs into the real kernel: the verdict, and why.

What xdp_runtime.kernel does for running, without it (types of functions and values, a short log):
here thousands of programs are only asked about, so map descriptors are kept and shared.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
from dataclasses import dataclass
from enum import IntEnum

from tests.xdp_runtime.verifier.cases import Case
from xdp_runtime import bpf_syscall as sys_bpf
from xdp_runtime.bpf_syscall import AttachType, ProgFlag, ProgType
from xdp_runtime.isa import CallKfunc, Insns, encode
from xdp_runtime.kernel_calls import function_ids
from xdp_runtime.object import GlobalKind, MapFlag, MapSpec, MapType

_LOG = ctypes.create_string_buffer(1 << 20)
# A program binds these to its own properties when it loads: never shared.
_BOUND = {MapType.PROG_ARRAY, MapType.DEVMAP, MapType.DEVMAP_HASH, MapType.CPUMAP}
_OF_MAPS = {MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS}
_NOT_A_REASON = ("processed ", "verification time", "stack depth", "mark_precise", "peak_states",
                 "cur state:", "old state:")
_shared: dict[MapSpec, int] = {}


class _Cmd(IntEnum):
    """Those of enum bpf_cmd that bpf_syscall has no use for."""

    BTF_LOAD = 18


@dataclass(frozen=True, slots=True)
class Answer:
    accepted: bool
    line: str = ""  # the last meaningful line of the log
    log: str = ""

    @property
    def verdict(self) -> str:
        return "accept" if self.accepted else "refuse"

    @property
    def insn(self) -> int | None:
        """The slot of the refused instruction; only logs of level 1 have it."""
        slots = re.findall(r"^(\d+): \(", self.log, re.MULTILINE)
        return int(slots[-1]) if slots else None


def ask(case: Case, level: int = 4) -> Answer:
    """Load the case.  Log level 4 has only the refusal, 1 also each instruction's state."""
    obj = case.object
    btf_fd = load_btf(case.btf.encode(externs=False)) if case.btf is not None else 0
    fds: list[int] = []
    own: list[int] = []
    insns = obj.programs[0].insns
    func_info = b""
    if case.functions and case.btf is not None:
        for function in obj.programs[0].functions:
            func_info += struct.pack("=II", function.start,
                                     case.btf.functions[function.name][0])
    if case.btf is not None and case.kfuncs:
        names = {number: name for name, number in case.btf.externs.items()}
        ids = function_ids()
        insns = tuple(CallKfunc(ids[names[i.btf_id]], 0) if isinstance(i, CallKfunc) else i
                      for i in insns)
    try:
        for spec in obj.maps:
            keep = spec.type not in _BOUND and not spec.value_type_id
            if not keep or spec not in _shared:
                fd = make_map(spec, btf_fd)
                if keep:
                    _shared[spec] = fd
                else:
                    own.append(fd)
                fds.append(fd)
            else:
                fds.append(_shared[spec])
        return load(insns, fds, obj.programs[0].kind, obj.license, level,
                    btf_fd if func_info else 0, func_info)
    finally:
        for fd in own:
            os.close(fd)
        if btf_fd:
            os.close(btf_fd)


def load(insns: Insns, map_fds: list[int], kind: str = "xdp", license: str = "GPL", level: int = 4,
         btf_fd: int = 0, func_info: bytes = b"") -> Answer:
    """Ask the kernel about a program and forget it."""
    code = encode(insns, map_fds)
    insns_buffer = ctypes.create_string_buffer(code, len(code))
    license_buffer = ctypes.create_string_buffer(license.encode())
    info_buffer = ctypes.create_string_buffer(func_info, max(len(func_info), 1))
    attach = {"devmap": AttachType.XDP_DEVMAP, "cpumap": AttachType.XDP_CPUMAP}.get(
        kind.partition("/")[2], AttachType.XDP)
    flags = ProgFlag.XDP_HAS_FRAGS if kind.startswith("xdp.frags") else 0
    _LOG[0] = b"\0"
    attr = bytearray(struct.pack(
        "=IIQQIIQII16sIIIIQI4x", ProgType.XDP, len(code) // 8, ctypes.addressof(insns_buffer),
        ctypes.addressof(license_buffer), level, len(_LOG), ctypes.addressof(_LOG), 0, flags,
        b"case", 0, attach, btf_fd, 8 if func_info else 0,
        ctypes.addressof(info_buffer) if func_info else 0, len(func_info) // 8))
    try:
        os.close(sys_bpf.bpf(sys_bpf.Cmd.PROG_LOAD, attr))
    except OSError as error:
        log = _LOG.value.decode(errors="replace")
        return Answer(False, last_line(log) or f"({os.strerror(error.errno or 0)}, no log)", log)
    return Answer(True, "", _LOG.value.decode(errors="replace") if level & 3 else "")


def last_line(log: str) -> str:
    """The refusal itself: the last line that is not about the work done."""
    log = log.replace("verification time", "\nverification time")  # one message lacks its newline
    lines = [line.strip() for line in log.splitlines()]
    reasons = [line for line in lines if line and not line.startswith(_NOT_A_REASON)]
    return reasons[-1] if reasons else ""


def make_map(spec: MapSpec, btf_fd: int = 0) -> int:
    """A map's descriptor; with `btf_fd`, its value has a type."""
    inner_fd = make_map(spec.inner) if spec.type in _OF_MAPS and spec.inner is not None else 0
    constant = spec.global_kind is GlobalKind.RODATA
    typed = bool(spec.value_type_id)
    try:
        fd = sys_bpf.bpf(sys_bpf.Cmd.MAP_CREATE, bytearray(struct.pack(
            "=IIIIIII16sIIIIIQ", spec.type, spec.key_size, spec.value_size, spec.max_entries,
            spec.flags | (MapFlag.RDONLY_PROG if constant else 0), inner_fd, 0,
            spec.name.encode()[:15], 0, btf_fd if typed else 0, spec.key_type_id,
            spec.value_type_id, 0, spec.map_extra)))
    finally:
        if inner_fd:
            os.close(inner_fd)
    if spec.global_kind is not GlobalKind.NONE:
        sys_bpf.map_update(fd, bytes(4), spec.initial.ljust(spec.value_size, b"\0"))
    if constant:
        sys_bpf.map_freeze(fd)
    return fd


def load_btf(data: bytes) -> int:
    buffer = ctypes.create_string_buffer(data, len(data))
    log = ctypes.create_string_buffer(1 << 16)
    attr = bytearray(struct.pack("=QQIII", ctypes.addressof(buffer), ctypes.addressof(log),
                                 len(data), len(log), 1))
    try:
        return sys_bpf.bpf(_Cmd.BTF_LOAD, attr)  # type: ignore[arg-type]
    except OSError as error:
        raise ValueError(f"the kernel refuses the BTF: {error}\n{log.value.decode()}") from error
