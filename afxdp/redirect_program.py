"""The kernel's half of the port: an XDP program of six instructions that fills our sockets.

    return bpf_redirect_map(&xsks, ctx->rx_queue_index, XDP_PASS);

A queue without a socket passes its packets to the stack, and so does a filter (filter.py), which
counts them; where that asks maps of the object, sets of their keys are here (map_filter.py).  The
program is attached by a BPF link, which the kernel removes with the process, however that ends.
libxdp's dispatcher is not joined, where there is one: it is made of programs of type EXT, which not
every kernel loads, and behind others ours would not see what they took.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from afxdp import native
from afxdp.filter import Node, to_assembly
from afxdp.hints import to_assembly as hints_assembly
from afxdp.interface import Interface
from afxdp.map_filter import KeyShape
from afxdp.mirror import KeySet
from dataplane.attached import whose
from xdp_runtime import isa
from xdp_runtime.asm import assemble
from xdp_runtime.bpf_syscall import (
    AS_ROOT,
    AttachType,
    ProgFlag,
    XdpFlag,
    link_create,
    map_create,
    map_lookup,
    map_update,
    possible_cpus,
    prog_load,
)
from xdp_runtime.errors import LoadError, PortError
from xdp_runtime.state import Verdict

_XSKMAP = 17  # BPF_MAP_TYPE_XSKMAP
_PERCPU_ARRAY = 6
QUEUES_MAX = 1024
MODES = {"native": XdpFlag.DRV_MODE, "generic": XdpFlag.SKB_MODE}
_NOT_NATIVE = (errno.EOPNOTSUPP, errno.ERANGE, errno.EINVAL)  # then mode auto tries generic


_REDIRECT = f"""
    r2 = *(u32 *)(r1 + 16)  ; ctx->rx_queue_index
    r1 = map[xsks] ll
    r3 = {int(Verdict.PASS)}
    call bpf_redirect_map
    exit
"""
_LEAVE = f"""
    r2 = 0
    *(u32 *)(r10 - 4) = r2
    r2 = r10
    r2 += -4
    r1 = map[left] ll
    call bpf_map_lookup_elem
    if r0 == 0 goto pass
    r1 = *(u64 *)(r0 + 0)
    r1 += 1
    *(u64 *)(r0 + 0) = r1
pass:
    r0 = {int(Verdict.PASS)}
    exit
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A filter, and how keys are made for the maps it asks, by word."""

    node: Node
    shapes: Mapping[str, KeyShape] = field(default_factory=dict)


def encode(map_fd: int, wanted: Wanted | None = None, left_fd: int = -1,
           asking: str = "", set_fds: Sequence[int] = ()) -> bytes:
    """Machine code; with a filter, what it leaves is counted in the array `left_fd`, and the maps
    it asks are `set_fds`; `asking` for metadata (hints.py) comes after it."""
    if wanted is None:
        text = f"r6 = r1\n{asking}{_REDIRECT}" if asking else _REDIRECT
    else:
        text = f"r6 = r1\n{to_assembly(wanted.node, wanted.shapes)}take:\nr1 = r6\n{asking}" \
               f"{_REDIRECT}leave:\n{_LEAVE}"
    names = ["xsks", "left", *(f"set{number}" for number in range(len(set_fds)))]
    return isa.encode(assemble(text, names), [map_fd, left_fd, *set_fds])


@dataclass(slots=True)
class RedirectProgram:
    """An attached program and its map of sockets.  Closing it detaches."""

    map_fd: int
    link_fd: int
    mode: str = "native"
    why: str = ""  # it is not native, though that was tried
    left_fd: int = -1  # of a filter
    hints: str = ""  # whether the driver is asked for metadata, in words
    sets: dict[str, KeySet] = field(default_factory=dict)  # of a filter, by word

    def encode(self, wanted: Wanted | None, asking: str = "") -> bytes:
        return encode(self.map_fd, wanted, self.left_fd, asking,
                      [one.fd for one in self.sets.values()])

    @property
    def filters(self) -> bool:
        return self.left_fd >= 0

    @property
    def left(self) -> int:
        """Packets that the filter left to the stack."""
        if not self.filters:
            return 0
        counts = map_lookup(self.left_fd, bytes(4), 8 * possible_cpus())
        return sum(struct.unpack(f"={len(counts) // 8}Q", counts))

    def check(self) -> None:
        """It stays attached while the link is open."""

    def admit(self, queue: int, socket_fd: int) -> None:
        """From now on the queue's packets go to this socket."""
        map_update(self.map_fd, struct.pack("=I", queue), struct.pack("=I", socket_fd))

    def close(self) -> None:
        for fd in (self.link_fd, self.map_fd, self.left_fd):
            if fd >= 0:
                with suppress(OSError):
                    os.close(fd)
        self.link_fd = self.map_fd = self.left_fd = -1
        for one in self.sets.values():
            one.close()


def attach(interface: Interface, mode: str, wanted: Wanted | None = None, frags: bool = False,
           hints: bool = False) -> RedirectProgram:
    """Load the program and attach it; `mode` is one of MODES, or auto: native where that works;
    `frags`: it takes packets in several buffers; `hints`: it asks the driver for metadata, if it
    has any.  Raises PortError, with nothing left attached."""
    try:
        program = RedirectProgram(map_create(_XSKMAP, 4, 4, QUEUES_MAX, name="xsks"), -1)
    except OSError as error:
        mend = AS_ROOT if error.errno == errno.EPERM else ""
        raise PortError(interface.name, "the kernel makes no map for AF_XDP sockets: "
                        + os.strerror(error.errno or 0), mend) from error
    try:
        if wanted is not None:
            program.left_fd = map_create(_PERCPU_ARRAY, 4, 8, 1, name="left")
            for word, shape in wanted.shapes.items():
                program.sets[word] = KeySet.create(shape)
        if not (hints and _attach_asking(program, interface, mode, wanted, frags)):
            fd = _load(program, interface, wanted, frags)
            try:
                _link(program, fd, interface, mode)
            finally:
                os.close(fd)
    except BaseException:
        program.close()
        raise
    return program


def _attach_asking(program: RedirectProgram, interface: Interface, mode: str,
                   wanted: Wanted | None, frags: bool) -> bool:
    """Attach one that is bound to the device and asks its driver; False where that cannot be."""
    if mode == "generic":
        program.hints = "no RX metadata in generic mode"
        return False
    try:
        fd = prog_load(program.encode(wanted, hints_assembly()),
                       name="xdpu_redirect", flags=ProgFlag.XDP_DEV_BOUND_ONLY
                       | (ProgFlag.XDP_HAS_FRAGS if frags else 0),
                       expected_attach_type=AttachType.XDP, ifindex=interface.ifindex)
    except LoadError as error:
        program.hints = f"no RX metadata ({error.why})"
        return False
    try:
        program.link_fd = link_create(fd, interface.ifindex, AttachType.XDP, MODES["native"])
    except OSError as error:
        program.hints = f"no RX metadata ({os.strerror(error.errno or 0)})"
        return False
    finally:
        os.close(fd)
    program.mode, program.hints = "native", f"RX metadata from {interface.driver}"
    return True


def _load(program: RedirectProgram, interface: Interface, wanted: Wanted | None,
          frags: bool) -> int:
    try:
        return prog_load(program.encode(wanted), name="xdpu_redirect",
                         flags=ProgFlag.XDP_HAS_FRAGS if frags else 0,
                         expected_attach_type=AttachType.XDP)
    except LoadError as error:
        raise PortError(interface.name, f"the program that fills the sockets: {error.why}",
                        error.mend, error.detail) from error


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


def is_attached(ifindex: int) -> bool:
    """Is there any XDP program on the interface?  True, too, where that cannot be known."""
    ffi, lib = native.load()
    found = ffi.new("__u32 *")
    return bool(lib.bpf_xdp_query_id(ifindex, 0, found)) or int(found[0]) != 0


def _attached_id(ifindex: int) -> int:
    """The id of the XDP program on an interface, 0 if there is none or it cannot be known."""
    ffi, lib = native.load()
    found = ffi.new("__u32 *")
    return 0 if lib.bpf_xdp_query_id(ifindex, 0, found) else int(found[0])


def _refusal(error: OSError, interface: Interface, mode: str) -> PortError:
    name, why, mend = interface.name, os.strerror(error.errno or 0), ""
    match error.errno:
        case errno.EBUSY | errno.EEXIST:
            who, mend = whose(name, _attached_id(interface.ifindex))
            why = f"another XDP program is attached{who}"
        case errno.EOPNOTSUPP:
            why, mend = f"{interface.driver} has no native XDP", "use --xdp-mode generic"
        case errno.ENOSPC:
            why = "it has fewer receive queues than its peer sends on, or too few for XDP's own"
            mend = f"ethtool -L {name} rx N, or tx N on the other end of a veth"
        case errno.ERANGE:
            why = f"its MTU, or its peer's, is too large for XDP without fragments in {mode} mode"
            mend = f"ip link set dev {name} mtu 1500, on both ends of a veth, or put the program " \
                   'in SEC("xdp.frags")'
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
