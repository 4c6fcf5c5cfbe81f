"""Who reads the frames of a source: an XDP program at the end of the path that counts them and how
long they were on their way (probe/probe.c, in the kernel, so that reading costs no CPU of its own).
"""

from __future__ import annotations

import os
import struct
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from bench.histogram import USED, Arrived
from bench.source import PROBE
from tests.nets import End, entered
from xdp_runtime.bpf_syscall import XdpFlag, attach_xdp_link
from xdp_runtime.elf import read_object
from xdp_runtime.kernel import KernelMap, load_into_kernel


class Sink:
    """On this interface while the `with` block runs."""

    def __init__(self, end: End) -> None:
        self._end, self._stack = end, ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            program = undo.enter_context(load_into_kernel(read_object(PROBE), "sink"))
            with entered(self._end.ns):
                link = attach_xdp_link(program.fd, self._end.ifindex, XdpFlag.DRV_MODE)
            undo.callback(os.close, link)
            self._arrived, self._histogram = program.maps["arrived"], program.maps["histogram"]
            self._stack = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._stack.close()

    def packets(self) -> int:
        return _sum(self._arrived, 0)

    def read(self) -> Arrived:
        return Arrived(self.packets(), tuple(
            _sum(self._histogram, bucket) for bucket in range(USED)))


def _sum(kernel_map: KernelMap, index: int) -> int:
    values = kernel_map.lookup_percpu(struct.pack("=I", index))
    assert values is not None
    return sum(int.from_bytes(value, "little") for value in values)
