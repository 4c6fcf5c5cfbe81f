"""The kernel as oracle: an Object's maps and program in the kernel, one packet at a time.

    with load_into_kernel(obj, "icmp_echo") as program:
        result = program.run(frame)
        program.maps["counters"].lookup(key)

Nothing of the BTF is handed over, but that functions are functions, and that values have locks and
timers, where it has to be said (kernel_functions.py): the kernel judges the instructions alone.
Programs that start with `kind` "xdp" load as BPF_PROG_TYPE_XDP, "tc", "tcx" and "classifier" as
SCHED_CLS.
"""

from __future__ import annotations

import errno
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from xdp_runtime import bpf_syscall as sys_bpf
from xdp_runtime.bpf_syscall import AttachType, ProgFlag, ProgType
from xdp_runtime.errors import LoadError, PortError
from xdp_runtime.isa import encode
from xdp_runtime.kernel_calls import for_kernel
from xdp_runtime.kernel_functions import typed
from xdp_runtime.kernel_map import CONSTANT, KernelMap
from xdp_runtime.object import GlobalKind, MapSpec, MapType, Object, ProgramSpec

__all__ = ["KernelMap", "KernelProgram", "RunResult", "load_into_kernel", "load_raw"]

_OF_MAPS = {MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS}
_GROWTH_BYTES = 8192  # how much longer a packet may come out: head, metadata and tail room
_XDP_MD = struct.Struct("=6I")  # data, data_end, data_meta, ingress_ifindex, rx_queue, egress


@dataclass(frozen=True, slots=True)
class RunResult:
    """`retval` is the verdict, `data_out` the packet, `meta` what lies before it (data_meta)."""

    retval: int
    data_out: bytes
    duration_ns: int
    meta: bytes = b""


class KernelProgram:
    """A loaded program with the maps of its Object; `fd` is its file descriptor, `programs` has
    it and those in its program arrays, by name."""

    def __init__(self, spec: ProgramSpec, fd: int, maps: dict[str, KernelMap],
                 programs: dict[str, int] | None = None) -> None:
        self.spec, self.fd, self.maps = spec, fd, maps
        self.programs = {spec.name: fd} if programs is None else programs

    def run(self, data: bytes, repeat: int = 1, ingress_ifindex: int | None = None,
            rx_queue: int = 0, meta: bytes = b"",
            linear_bytes: int | None = None) -> RunResult:
        """BPF_PROG_TEST_RUN of one frame of at least 14 bytes, with a `struct xdp_md`.

        Without `ingress_ifindex` the kernel shows the program its loopback interface (1).  With
        it, interface and queue must exist in the caller's network namespace.  With `repeat`,
        neither the packet nor its pointers are reset between runs.  Of a longer packet than
        `linear_bytes`, or than fits the first page, the rest lies in fragments, a page each.
        """
        ctx = b""
        if self.spec.is_xdp:
            linear = len(data) if linear_bytes is None else min(len(data), linear_bytes)
            ctx = _XDP_MD.pack(len(meta), len(meta) + linear, 0, ingress_ifindex or 0,
                               rx_queue, 0)
        room = len(meta) + len(data) + _GROWTH_BYTES
        try:
            run = sys_bpf.prog_test_run(self.fd, meta + data, repeat, ctx, room)
        except OSError as error:
            if ingress_ifindex and error.errno in (errno.EINVAL, errno.ENODEV):
                raise PortError(
                    f"interface {ingress_ifindex}, queue {rx_queue}",
                    "not a receive queue that the kernel could say the frame came from",
                    "it has to exist in this network namespace; some drivers must have an "
                    "XDP program attached natively") from error
            raise
        meta_bytes = _XDP_MD.unpack(run.ctx_out)[0] if ctx else 0
        return RunResult(run.retval, run.data_out[meta_bytes:], run.duration_ns,
                         run.data_out[:meta_bytes])

    def close(self) -> None:
        for kernel_map in self.maps.values():
            kernel_map.close()
        for fd in self.programs.values():
            with suppress(OSError):
                os.close(fd)
        self.fd, self.programs = -1, {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def load_raw(code: bytes, prog_type: ProgType = ProgType.XDP, license: str = "GPL",
             name: str = "raw", flags: int = 0) -> int:
    """Load encoded instructions (map references as file descriptors) -> program fd."""
    attach_type = AttachType.XDP if prog_type == ProgType.XDP else AttachType.NONE
    return sys_bpf.prog_load(code, prog_type, license, name, flags, attach_type)


def load_into_kernel(obj: Object, name: str | None = None) -> KernelProgram:
    """Make the Object's maps and load one of its programs, and those in its program arrays."""
    maps: dict[str, KernelMap] = {}
    programs: dict[str, int] = {}
    spec = obj.program(name)
    try:
        for map_spec in obj.maps:
            maps[map_spec.name] = _make_map(map_spec)
        fds = [maps[map_spec.name].fd for map_spec in obj.maps]
        programs[spec.name] = _load_program(obj, spec, fds)
        for map_spec in obj.maps:
            for index, target in map_spec.slots:
                if map_spec.type != MapType.PROG_ARRAY:
                    fd = maps[target].fd
                else:
                    if target not in programs:
                        programs[target] = _load_program(obj, obj.program(target), fds)
                    fd = programs[target]
                sys_bpf.map_update(maps[map_spec.name].fd, struct.pack("=I", index),
                                   struct.pack("=I", fd))
    except BaseException:
        for kernel_map in maps.values():
            kernel_map.close()
        for fd in programs.values():
            os.close(fd)
        raise
    return KernelProgram(spec, programs[spec.name], maps, programs)


def _make_map(spec: MapSpec) -> KernelMap:
    if spec.type in _OF_MAPS and spec.inner is not None:
        with KernelMap(spec.inner) as template:
            return KernelMap(spec, template.fd)
    kernel_map = KernelMap(spec)
    try:
        if spec.type == MapType.ARENA and spec.initial:
            with kernel_map.pages() as pages:
                pages[:len(spec.initial)] = spec.initial
        if spec.global_kind is not GlobalKind.NONE:
            kernel_map.update(struct.pack("=I", 0), spec.initial.ljust(spec.value_size, b"\0"))
        if spec.global_kind in CONSTANT:
            kernel_map.freeze()
    except BaseException:
        kernel_map.close()
        raise
    return kernel_map


def _load_program(obj: Object, spec: ProgramSpec, map_fds: list[int]) -> int:
    prog_type, attach_type = _type_of(spec)
    flags = ProgFlag.XDP_HAS_FRAGS if spec.kind.startswith("xdp.frags") else 0
    types, func_info = typed(spec.insns)
    btf_fd = sys_bpf.btf_load(types) if types else 0
    try:
        code = encode(for_kernel(spec.insns), map_fds)
        return sys_bpf.prog_load(code, prog_type, obj.license, spec.name, flags, attach_type,
                                 btf_fd=btf_fd, func_info=func_info)
    finally:
        if btf_fd:
            os.close(btf_fd)


def _type_of(spec: ProgramSpec) -> tuple[ProgType, AttachType]:
    if spec.is_xdp:
        match spec.place:
            case "devmap":
                return ProgType.XDP, AttachType.XDP_DEVMAP
            case "cpumap":
                return ProgType.XDP, AttachType.XDP_CPUMAP
            case _:
                return ProgType.XDP, AttachType.XDP
    if spec.kind.split("/")[0] in ("tc", "tcx", "classifier"):
        return ProgType.SCHED_CLS, AttachType.NONE
    raise LoadError(f"program {spec.name}", f"{spec.kind} programs are not loaded into the kernel",
                    "only XDP and tc programs are")
