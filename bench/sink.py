"""Who reads the frames of a source: an XDP program at the end of the path that counts them and how
long they were on their way (probe/probe.c, in the kernel, so that reading costs no CPU of its own).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from bench.source import PROBE
from tests.nets import End, entered
from xdp_runtime.bpf_syscall import XdpFlag, attach_xdp_link
from xdp_runtime.elf import read_object
from xdp_runtime.kernel import KernelMap, load_into_kernel

FINE_BITS = 4
BUCKETS = 64 << FINE_BITS
USED = 32 << FINE_BITS  # 4 s and more are the last


@dataclass(frozen=True, slots=True)
class Arrived:
    """Packets, and of those that were stamped: how many took so long, by bucket."""

    packets: int
    histogram: tuple[int, ...]

    def since(self, before: Arrived) -> Arrived:
        return Arrived(self.packets - before.packets, tuple(
            a - b for a, b in zip(self.histogram, before.histogram, strict=True)))


def upper_ns(bucket: int) -> int:
    """The end of a bucket: at most a sixteenth above what it holds."""
    exponent, fine = bucket >> FINE_BITS, bucket & (1 << FINE_BITS) - 1
    if exponent < FINE_BITS:
        return bucket + 1
    return (1 << exponent) + (fine + 1 << exponent - FINE_BITS)


def percentile_ns(histogram: Sequence[int], share: float) -> int | None:
    """An upper bound, at most 6 % too high; None of nothing."""
    left = share * sum(histogram)
    for bucket, count in enumerate(histogram):
        left -= count
        if count and left <= 0:
            return upper_ns(bucket)
    return None


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
