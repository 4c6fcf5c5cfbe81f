"""The kernel's half of the port: an XDP program of six instructions that fills our sockets.

    return bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);

A queue without a socket passes its packets to the stack.  The program is attached by a BPF link,
which the kernel removes with the process, however that ends.  libxdp's own dispatcher is not used:
it is a program of type EXT, which many kernels refuse, and nobody else shares our hook.
"""

from __future__ import annotations

import errno
import os
import struct
from contextlib import suppress
from dataclasses import dataclass

from afxdp import native
from afxdp.interface import Interface
from xdp_runtime.bpf_syscall import (
    AS_ROOT,
    AttachType,
    XdpFlag,
    link_create,
    map_create,
    map_update,
    prog_load,
)
from xdp_runtime.errors import LoadError, PortError
from xdp_runtime.state import Verdict

_XSKMAP = 17  # BPF_MAP_TYPE_XSKMAP
_REDIRECT_MAP = 51  # BPF_FUNC_redirect_map
_PSEUDO_MAP_FD = 1
_RX_QUEUE_INDEX = 16  # in struct xdp_md
QUEUES_MAX = 1024
MODES = {"native": XdpFlag.DRV_MODE, "generic": XdpFlag.SKB_MODE}
_NOT_NATIVE = (errno.EOPNOTSUPP, errno.ERANGE, errno.EINVAL)  # then mode auto tries generic


def _insn(code: int, dst: int = 0, src: int = 0, offset: int = 0, imm: int = 0) -> bytes:
    return struct.pack("=BBhi", code, dst | src << 4, offset, imm)


def encode(map_fd: int) -> bytes:
    return b"".join((
        _insn(0x61, 2, 1, _RX_QUEUE_INDEX),  # r2 = ctx->rx_queue_index
        _insn(0x18, 1, _PSEUDO_MAP_FD, imm=map_fd), _insn(0),  # r1 = &xsks
        _insn(0xB7, 3, imm=Verdict.PASS),  # r3 = XDP_PASS
        _insn(0x85, imm=_REDIRECT_MAP),  # call bpf_redirect_map
        _insn(0x95),  # exit
    ))


@dataclass(slots=True)
class RedirectProgram:
    """An attached program and its map of sockets.  Closing it detaches."""

    map_fd: int
    link_fd: int
    mode: str = "native"
    why: str = ""  # it is not native, though that was tried

    def admit(self, queue: int, socket_fd: int) -> None:
        """From now on the queue's packets go to this socket."""
        map_update(self.map_fd, struct.pack("=I", queue), struct.pack("=I", socket_fd))

    def close(self) -> None:
        for fd in (self.link_fd, self.map_fd):
            if fd >= 0:
                with suppress(OSError):
                    os.close(fd)
        self.link_fd = self.map_fd = -1


def attach(interface: Interface, mode: str) -> RedirectProgram:
    """Load the program and attach it; `mode` is one of MODES, or auto: native where that works.
    Raises PortError, with nothing left attached."""
    try:
        program = RedirectProgram(map_create(_XSKMAP, 4, 4, QUEUES_MAX, name="xsks"), -1)
    except OSError as error:
        mend = AS_ROOT if error.errno == errno.EPERM else ""
        raise PortError(interface.name, "the kernel makes no map for AF_XDP sockets: "
                        + os.strerror(error.errno or 0), mend) from error
    try:
        try:
            fd = prog_load(encode(program.map_fd), name="xdpu_redirect",
                           expected_attach_type=AttachType.XDP)
        except LoadError as error:
            raise PortError(interface.name, f"the program that fills the sockets: {error.why}",
                            error.mend, error.detail) from error
        try:
            _link(program, fd, interface, mode)
        finally:
            os.close(fd)
    except BaseException:
        program.close()
        raise
    return program


def _link(program: RedirectProgram, fd: int, interface: Interface, mode: str) -> None:
    for program.mode in ("native", "generic") if mode == "auto" else (mode,):
        try:
            program.link_fd = link_create(fd, interface.ifindex, AttachType.XDP,
                                          MODES[program.mode])
            return
        except OSError as error:
            refusal = _refusal(error, interface, program.mode)
            if mode != "auto" or program.mode == "generic" or error.errno not in _NOT_NATIVE:
                raise refusal from error
            program.why = refusal.why


def _attached_id(ifindex: int) -> int:
    """The id of the XDP program on an interface, 0 if there is none or it cannot be known."""
    ffi, lib = native.load()
    found = ffi.new("__u32 *")
    return 0 if lib.bpf_xdp_query_id(ifindex, 0, found) else int(found[0])


def _refusal(error: OSError, interface: Interface, mode: str) -> PortError:
    name, why, mend = interface.name, os.strerror(error.errno or 0), ""
    match error.errno:
        case errno.EBUSY | errno.EEXIST:
            other = _attached_id(interface.ifindex)
            why = f"another XDP program is attached{f' (id {other})' if other else ''}"
            mend = f"ip link set dev {name} xdp off, or end the process that holds its link"
        case errno.EOPNOTSUPP:
            why, mend = f"{interface.driver} has no native XDP", "use --xdp-mode generic"
        case errno.ERANGE:
            why = f"its MTU, or its peer's, is too large for XDP without fragments in {mode} mode"
            mend = f"ip link set dev {name} mtu 1500, on both ends of a veth"
        case errno.EINVAL if interface.mtu > 1500:
            why = f"an MTU of {interface.mtu} is too large for XDP in {mode} mode"
            mend = f"ip link set dev {name} mtu 1500"
        case errno.EPERM | errno.EACCES:
            why, mend = "not permitted to attach XDP", AS_ROOT
        case errno.ENODEV:
            why = "the interface is gone"
        case _:
            why = f"XDP cannot be attached in {mode} mode: {why}"
    return PortError(name, why, mend, detail=f"BPF_LINK_CREATE: {error}")
