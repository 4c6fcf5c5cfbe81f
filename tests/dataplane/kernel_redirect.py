"""Three interfaces of a namespace with the kernel's own redirects between them.

    with KernelRig() as rig:
        (at_one, at_two, at_three), seen = rig.run("many", frames, "ports", {0: ("two", "stamp")})
"""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from tests.nets import VethPair, entered, in_ns, namespace
from xdp_runtime import bpf_syscall, kernel
from xdp_runtime.elf import read_object

OBJECT = Path(__file__).parent / "objects" / "redirects.o"
NAMES = ("one", "two", "three")
_NATIVE = 4  # XDP_FLAGS_DRV_MODE
_QUIET_S = 0.3


class KernelRig:
    """Frames go in at the far end of "one" and are caught at the far ends of all three."""

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        try:
            self._space = self._stack.enter_context(namespace("mid"))
            self._ends = []
            for number in range(len(NAMES)):
                pair = self._stack.enter_context(
                    VethPair(ns_b=self._space, subnet=10 + number))
                for end in (pair.a, pair.b):
                    in_ns(end.ns, "sysctl", "-qw", f"net.ipv6.conf.{end.ifname}.disable_ipv6=1")
                in_ns(pair.a.ns, "ethtool", "-K", pair.a.ifname, "gro", "on")  # lets it receive
                self._ends.append(pair)
        except BaseException:
            self._stack.close()
            raise
        self.ifindex = {name: pair.b.ifindex
                        for name, pair in zip(NAMES, self._ends, strict=True)}
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, program: str, frames: Sequence[bytes], map_name: str,
            entries: Mapping[int, tuple[str, str]]) -> tuple[list[list[bytes]], list[int]]:
        """What came out at each end, and the map `seen`."""
        obj = read_object(OBJECT)
        with ExitStack() as stack, entered(self._space):
            loaded = stack.enter_context(kernel.load_into_kernel(obj, program))
            fds = [loaded.maps[spec.name].fd for spec in obj.maps]
            for key, (port, second) in entries.items():
                fd = 0
                if second:
                    fd = kernel._load_program(obj, obj.program(second), fds)
                    stack.callback(os.close, fd)
                loaded.maps[map_name].update(struct.pack("<I", key),
                                             struct.pack("<II", self.ifindex[port], fd))
            link = bpf_syscall.attach_xdp_link(loaded.fd, self.ifindex["one"], _NATIVE)
            stack.callback(os.close, link)
            sockets = [stack.enter_context(_raw(pair.a)) for pair in self._ends]
            for frame in frames:
                sockets[0].send(frame)
            time.sleep(_QUIET_S)
            out = [_caught(sock) for sock in sockets]
            seen = [struct.unpack("<Q", loaded.maps["seen"].lookup(struct.pack("<I", i)) or b"")[0]
                    for i in range(8)]
        return out, seen


def _raw(end: Any) -> socket.socket:
    with entered(end.ns):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sock.bind((end.ifname, 3))
    sock.setblocking(False)
    return sock


def _caught(sock: socket.socket) -> list[bytes]:
    """Frames that were received, not those that were sent."""
    out: list[bytes] = []
    while True:
        try:
            data, address = sock.recvfrom(1 << 16)
        except BlockingIOError:
            return out
        if address[2] != socket.PACKET_OUTGOING:
            out.append(data)
