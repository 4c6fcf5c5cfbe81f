"""Frames into the kernel's stack by its own XDP: BPF_PROG_TEST_RUN with live frames.

The kernel runs an XDP program of ours on as many frames as we ask for, and does with each what the
program says, as if it had come in by the interface (BPF_F_TEST_XDP_LIVE_FRAMES, Linux 5.18).  The
program takes the next frame out of an array that this process has mapped, and says XDP_PASS:

    slot = cursor++ & (SLOTS - 1)                        (a program and a cursor for each queue)
    bpf_xdp_adjust_tail(ctx, slot.length - its length)   (frames begin at the greatest length)
    bpf_xdp_store_bytes(ctx, 0, slot.bytes, slot.length)
    return XDP_PASS

So a batch of frames is in the stack with one system call, on the real interface, past its ingress
hooks; the interface keeps its addresses, and what the stack answers leaves by it as ever.

Two things about the kernel.  It patches its code whenever a program gets its first user, which
takes 24 ms, and test runs are users: so the program also stays attached to a veth that nobody
sees, in a network namespace that only a descriptor of this process holds.  And where generic XDP
is on the interface, it would see the frames again: only interfaces with native XDP are served.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from dataplane import netlink as nl
from xdp_runtime.asm import assemble
from xdp_runtime.bpf_syscall import (
    AS_ROOT,
    AttachType,
    RunFlag,
    XdpFlag,
    link_create,
    map_create,
    prog_load,
)
from xdp_runtime.errors import LoadError, PortError
from xdp_runtime.isa import encode
from xdp_runtime.object import MapFlag, MapType

SLOTS = 1024  # of a queue; a power of two
LENGTH, BYTES = 0, 8  # in a slot: u32, then the frame
# in a queue's area: u64 taken so far, u64, u64 collected so far; the slots
CURSOR, REFUSED, UNTIL, FIRST_SLOT = 0, 8, 16, 64
FRAME_MIN, FRAME_MAX = 14, 3392  # a page less headroom and what the kernel keeps around
BATCH = 256  # TEST_XDP_MAX_BATCH
BATCH_OUT = 64  # a veth holds 256 packets, and its receiver may run only between batches
_BEGIN = 64  # how long a frame is before the program
_CLONE_NEWNET = 0x40000000
_VETH_INFO_PEER = 1
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND, _IFLA_INFO_DATA = 3, 18, 1, 2

# struct { prog_fd ... } test of union bpf_attr: where its first frame's length is, how often the
# program runs, and its size
ATTR_SIZE, ATTR_REPEAT, ATTR_BYTES = 8, 32, 80
_ATTR = struct.Struct("=IIIIQQIIIIQQIII4x")

_PROGRAM = """
    r6 = r1
    *(u32 *)(r10 - 4) = {queue}
    r1 = map[frames] ll
    r2 = r10
    r2 += -4
    call bpf_map_lookup_elem#1
    if r0 == 0 goto lost
    r9 = r0
    r7 = *(u64 *)(r9 + {cursor})
    r1 = r7
    r1 += 1
    *(u64 *)(r9 + {cursor}) = r1
    r7 &= {mask}
    r7 *= {slot_bytes}
    r7 += r9
    r8 = *(u32 *)(r7 + {length})
    if r8 < {shortest} goto refused
    if r8 > {longest} goto refused
    r1 = r6
    r2 = r8
    r2 += -{begin}
    call bpf_xdp_adjust_tail#65
    if r0 != 0 goto refused
    r1 = r6
    r2 = 0
    r3 = r7
    r3 += {bytes}
    r4 = r8
    call bpf_xdp_store_bytes#190
    if r0 != 0 goto refused
    {verdict}
    exit
refused:
    r1 = *(u64 *)(r9 + {refused})
    r1 += 1
    *(u64 *)(r9 + {refused}) = r1
lost:
    r0 = 0
    exit
"""


@dataclass(frozen=True, slots=True)
class Aim:
    """What is done with the frames: the program's last words, frames a batch, a map in them."""

    words: str
    batch: int = BATCH
    map_fd: int = -1


INTO_STACK = Aim("r0 = 2")


def out_by(ifindex: int) -> Aim:
    """Sent by this interface."""
    return Aim(f"r1 = {ifindex}\n    r2 = 0\n    call bpf_redirect#23", BATCH_OUT)


def into_socket(xskmap_fd: int, entry: int) -> Aim:
    """Into the AF_XDP socket at this entry of a map of the kernel; counted as refused while there
    is none.  To the kernel these frames come by queue 0 of the injector's interface, whatever their
    context says (xdp_test_run_setup), so it is a socket bound there."""
    return Aim(f"r1 = map[target] ll\n    r2 = {entry}\n    r3 = 0\n    "
               "call bpf_redirect_map#51\n    if r0 != 4 goto refused", map_fd=xskmap_fd)



@dataclass(frozen=True, slots=True)
class Way:
    """One queue's: where its area is in this process, and the attr of its system call."""

    area: int
    attr: int


class Injector:
    """The program for one interface and the areas of `queues` queues; `close` ends it.

    Made in the interface's network namespace; raises PortError, and nothing is left behind then.
    """

    what, live = "live frames", True
    a_run = 1  # frames that the program takes each time it runs

    def __init__(self, ifname: str, ifindex: int, queues: int, longest: int,
                 aim: Aim = INTO_STACK) -> None:
        if not FRAME_MIN <= longest <= FRAME_MAX:
            raise PortError(ifname, f"frames of {longest} bytes are too long for {self.what}, "
                            f"which take {FRAME_MAX}", "lower the MTU, or use a TAP")
        self.longest, self.slot_bytes = longest, BYTES + (longest + 7) // 8 * 8
        self._undo = ExitStack()
        try:
            self._open(ifname, ifindex, queues, aim)
        except (OSError, LoadError) as error:
            self.close()
            why = error.strerror if isinstance(error, OSError) else error.why
            mend = AS_ROOT if isinstance(error, OSError) and error.errno == errno.EPERM else ""
            raise PortError(ifname, f"{self.what} are not to be had: {why}", mend) from error
        except BaseException:
            self.close()
            raise

    def _open(self, ifname: str, ifindex: int, queues: int, aim: Aim) -> None:
        area_bytes = FIRST_SLOT + SLOTS * self.slot_bytes
        frames = map_create(MapType.ARRAY, 4, area_bytes, queues, MapFlag.MMAPABLE, "xdpu_frames")
        self._undo.callback(os.close, frames)
        programs = []
        for queue in range(queues):
            programs.append(self._load(frames, queue, ifindex, aim))
            self._undo.callback(os.close, programs[-1])
        if self.live:
            _in_thread(lambda: self._keep_in_use(programs))
        total = -(-area_bytes * queues // mmap.PAGESIZE) * mmap.PAGESIZE
        mapping = mmap.mmap(frames, total)
        anchor = ctypes.c_char.from_buffer(mapping)
        base = ctypes.addressof(anchor)
        self._attrs = (ctypes.c_char * (ATTR_BYTES * queues))()
        self._frame = ctypes.create_string_buffer(FRAME_MAX)
        self._context = ctypes.create_string_buffer(
            struct.pack("=6I", 0, _BEGIN, 0, ifindex, 0, 0), 24)  # struct xdp_md; there is queue 0
        self._mapping, self._anchor = mapping, anchor
        self.ways = []
        for queue, program in enumerate(programs):
            context = (24, 0, ctypes.addressof(self._context), 0, RunFlag.XDP_LIVE_FRAMES, 0,
                       aim.batch) if self.live else (0,) * 7
            _ATTR.pack_into(self._attrs, queue * ATTR_BYTES, program, 0, _BEGIN, 0,
                            ctypes.addressof(self._frame), 0, 0, 0, *context)
            self.ways.append(Way(base + queue * area_bytes,
                                 ctypes.addressof(self._attrs) + queue * ATTR_BYTES))

    def _load(self, frames: int, queue: int, ifindex: int, aim: Aim) -> int:
        text = _PROGRAM.format(
            queue=queue, cursor=CURSOR, refused=REFUSED, mask=SLOTS - 1,
            slot_bytes=self.slot_bytes, length=FIRST_SLOT + LENGTH, bytes=FIRST_SLOT + BYTES,
            shortest=FRAME_MIN, longest=self.longest, begin=_BEGIN,
            verdict=aim.words)
        return prog_load(encode(assemble(text, ["frames", "target"]), [frames, aim.map_fd]),
                         name="xdpu_inject", expected_attach_type=AttachType.XDP)

    def _keep_in_use(self, programs: Sequence[int]) -> None:
        """In a thread of its own, which ends in the network namespace it makes here."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "a network namespace of its own: "
                          + os.strerror(ctypes.get_errno()))
        space = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._undo.callback(os.close, space)
        with nl.Netlink() as net:
            for number, program in enumerate(programs):
                name = f"spare{number}"
                _make_veth(net, name)
                self._undo.callback(os.close, link_create(
                    program, socket.if_nametoindex(name), AttachType.XDP, XdpFlag.DRV_MODE))

    def refused(self) -> int:
        """Frames that the program would not take: into a socket that is not there."""
        return sum(ctypes.c_uint64.from_address(way.area + REFUSED).value for way in self.ways)

    def close(self) -> None:
        """Workers have stopped.  May be called twice."""
        self.ways = []
        self._undo.close()


def _make_veth(net: nl.Netlink, name: str) -> None:
    head = struct.pack("=BxHiII", 0, 0, 0, 0, 0)
    peer = head + nl.attr(_IFLA_IFNAME, f"{name}peer".encode() + b"\0")
    info = (nl.attr(_IFLA_INFO_KIND, b"veth")
            + nl.attr(_IFLA_INFO_DATA, nl.attr(_VETH_INFO_PEER, peer)))
    net.request(nl.RTM_NEWLINK, head + nl.attr(_IFLA_IFNAME, name.encode() + b"\0")
                + nl.attr(_IFLA_LINKINFO, info), nl.NLM_F_CREATE | nl.NLM_F_EXCL)


def _in_thread(action: Callable[[], None]) -> None:
    """What it raises is raised here."""
    errors: list[BaseException] = []

    def body() -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
