"""Packets of a run in NumPy: who sends how much, of what sample.o puts into the ring `sample`.

    xdpu run examples/sample.o --iface eth0 --ring sample=xsks[0]     # as root; a queue an entry
    .venv/bin/python examples/sample.py                               # beside it

All is done for a batch at once: nothing here is called for a single packet.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import suppress

import numpy as np

from dataplane.ring import PacketRing
from xdp_runtime.errors import XdpuError

SOURCE = slice(26, 30)  # of an IPv4 packet behind its Ethernet header


def main(name: str = "sample", seconds: str = "inf") -> None:
    """Until the run ends, nothing came for so many seconds, or Ctrl-C."""
    totals: Counter[int] = Counter()
    bytes_of: Counter[int] = Counter()
    with PacketRing.open(name) as ring:
        with suppress(KeyboardInterrupt):
            for batch in ring.batches(timeout_s=float(seconds)):
                senders = np.ascontiguousarray(batch.data[:, SOURCE]).view(">u4").ravel()
                unique, index, packets = np.unique(senders, return_inverse=True,
                                                   return_counts=True)
                sizes = np.bincount(index, weights=batch.lengths).astype(int)
                totals.update(dict(zip(unique.tolist(), packets.tolist(), strict=True)))
                bytes_of.update(dict(zip(unique.tolist(), sizes.tolist(), strict=True)))
        for sender, count in totals.most_common():
            address = ".".join(str(byte) for byte in sender.to_bytes(4, "big"))
            print(f"{address:<15} {count:>12,} packets {bytes_of[sender]:>15,} bytes")
        print(f"{ring.dropped:,} packets found the ring full")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except XdpuError as error:
        sys.exit(f"sample: {error}")
