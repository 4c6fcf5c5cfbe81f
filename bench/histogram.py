"""How long packets were on their way: sixteen buckets to a power of two, as in probe/probe.c and
the programs of native."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
