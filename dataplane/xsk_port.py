"""XskPort: an AF_XDP socket of another program, which put it into an XSKMAP of the kernel.

    xdpu run OBJ --iface eth0 --iface xsk:/sys/fs/bpf/app/xsks,dev=veth1 --set-map xsks=0:xsk=xsks-0

The program that owns the socket stays as it is: it opened a socket on an interface, put it into a
map and pinned that.  What is redirected here the kernel redirects through that map, so packets
arrive in the socket's own RX ring, by the kernel's hand, in frames that the program put into its
fill ring.  Nothing is received here: what the socket sends leaves by the socket's interface.

They go as live frames (injector.py), which gives two conditions.  To the kernel a live frame comes
by queue 0, so the socket is one on queue 0 of its interface.  And a socket's rings have one writer
at a time: no program in the kernel may fill them meanwhile, and this port has one queue, hence its
run one worker.  A packet that finds no room there is dropped by the kernel, and counted where the
owner looks for it: getsockopt(XDP_STATISTICS).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from dataplane.attached import attached, whose
from dataplane.injector import FRAME_MAX, into_socket
from dataplane.live_port import LivePort
from dataplane.redirect import SOCKETS_AT
from xdp_runtime.asm import assemble
from xdp_runtime.bpf_syscall import (
    AS_ROOT,
    info,
    maps_of,
    pinned,
    prog_load,
    prog_test_run,
)
from xdp_runtime.errors import PortError
from xdp_runtime.isa import encode
from xdp_runtime.object import MapType

_TAGS_BYTES = 14 + 8  # what LiveFrames adds to an MTU
_MAP_INFO = struct.Struct("=5I")  # struct bpf_map_info: type, id, key, value size, max_entries
_NONE = 0xFFFF
_FIND = f"""
    *(u32 *)(r10 - 4) = {{entry}}
    r1 = map[sockets] ll
    r2 = r10
    r2 += -4
    call bpf_map_lookup_elem#1
    if r0 == 0 goto none
    r0 = *(u32 *)(r0 + 0)
    exit
none:
    r0 = {_NONE}
    exit
"""


@dataclass(frozen=True, slots=True)
class SocketName:
    """Where a socket is: the pinned map and the entry, and the interface that it is bound to."""

    path: str
    ifname: str
    entry: int = 0

    @property
    def name(self) -> str:
        return f"{Path(self.path).name}-{self.entry}"


class XskPort(LivePort):
    """`number` counts the sockets of a run from 1.  In the network namespace of the socket's
    interface.  Raises PortError; close() ends it, and touches neither map nor socket."""

    def __init__(self, where: SocketName, number: int) -> None:
        try:
            ifindex = socket.if_nametoindex(where.ifname)
        except OSError as error:
            raise PortError(where.ifname, "there is no such interface in this network namespace",
                            "dev= is the one that the socket is bound to") from error
        fd, number_of_map = _open_map(where)
        try:
            _refuse_second_writer(where, ifindex, number_of_map)
            queue = _queue_of(fd, where, ifindex)
            super().__init__(where.ifname, ifindex, FRAME_MAX - _TAGS_BYTES, 1,
                             into_socket(fd, where.entry))
        finally:
            os.close(fd)  # the program that sends has it
        self.name, self.ifindex = where.name, SOCKETS_AT + number
        there = f"a socket on queue 0 of {where.ifname}" if queue == 0 else "no socket there yet"
        self.mode = f"AF_XDP socket at entry {where.entry} of {where.path} ({there}), by live " \
            "frames"


def _open_map(where: SocketName) -> tuple[int, int]:
    """Descriptor and id."""
    what = f"xsk:{where.path}"
    try:
        fd = pinned(where.path)
    except OSError as error:
        mend = AS_ROOT if error.errno in (errno.EPERM, errno.EACCES) else \
            "the owner of the socket pins its XSKMAP: bpftool map pin"
        raise PortError(what, f"no map is pinned there: {os.strerror(error.errno or 0)}",
                        mend) from error
    try:
        kind, number, _, _, entries = _MAP_INFO.unpack(info(fd, _MAP_INFO.size))
        if kind != MapType.XSKMAP:
            raise PortError(what, "is not an XSKMAP")
        if where.entry >= entries:
            raise PortError(what, f"has {entries} entries, numbered from 0")
    except BaseException as error:
        os.close(fd)
        if isinstance(error, OSError):  # a pinned program has another struct
            raise PortError(what, "is not an XSKMAP") from error
        raise
    return fd, number


def _refuse_second_writer(where: SocketName, ifindex: int, number_of_map: int) -> None:
    program = attached(ifindex)
    try:
        same = bool(program) and number_of_map in maps_of(program)
    except FileNotFoundError:  # it went meanwhile
        return
    if same:
        who, mend = whose(where.ifname, program)
        raise PortError(where.ifname, f"the XDP program on it{who} fills the sockets of "
                        f"{where.path}, and their rings have one writer", mend)


def _queue_of(fd: int, where: SocketName, ifindex: int) -> int:
    """The queue that the socket is bound to, _NONE while there is no socket."""
    look = prog_load(encode(assemble(_FIND.format(entry=where.entry), ["sockets"]), [fd]),
                     name="xdpu_find_xsk")
    try:
        context = struct.pack("=6I", 0, 64, 0, ifindex, 0, 0)
        queue = prog_test_run(look, bytes(64), ctx=context).retval
    except OSError as error:
        raise PortError(where.ifname, "the kernel takes no live frames for it: "
                        + os.strerror(error.errno or 0)) from error
    finally:
        os.close(look)
    if queue not in (0, _NONE):
        raise PortError(f"entry {where.entry} of xsk:{where.path}",
                        f"its socket is bound to queue {queue}, and live frames come by queue 0",
                        "bind it to queue 0 of an interface, such as a veth made for it")
    return queue
