"""Where are the frames?  A count of every place a frame can be in, for tests and for doubt."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from afxdp import rings
from afxdp.queue import Queue

_U32 = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Audit:
    """`rx_kernel` and `tx_kernel` were taken by the kernel and not given back yet; `in_hand` is
    what the worker holds: the batch, so 0 between batches.  `twice` are frames found twice.  Sums
    over all queues that share a pool."""

    total: int
    free: int
    fill: int
    rx_kernel: int
    rx: int
    tx: int
    tx_kernel: int
    completion: int
    in_hand: int
    twice: tuple[int, ...]


def audit(*queues: Queue) -> Audit:
    """Count the frames of the queues of a pool, all of them, whose worker stands still."""
    umem = queues[0].umem
    free = umem.load(rings.FREE)
    start = rings.POOL_SIZE_BYTES
    seen = Counter(umem.load(start + 8 * i) for i in range(free))
    waiting: Counter[str] = Counter()
    posted = sent = 0
    for queue in queues:
        unpublished = {"fill": rings.FILL, "tx": rings.TX}
        chunks, size = queue.shape.layout.chunk_mask, queue.shape.ring_size
        for name, words in (("fill", 1), ("rx", 2), ("tx", 2), ("comp", 1)):
            producer, consumer, entries = queue.ring(name)
            if name in unpublished:  # what waits for flush is in the ring all the same
                producer = queue.load(unpublished[name] + rings.MINE)
            there = producer - consumer & _U32
            waiting[name] += there
            for i in range(there):
                seen[int(entries[(consumer + i & size - 1) * words]) & chunks] += 1
        posted += queue.load(rings.FILL + rings.MINE) - queue.load(rings.RX + rings.MINE)
        sent += queue.load(rings.TX + rings.MINE) - queue.load(rings.COMPLETION + rings.MINE)
    total = umem.load(rings.FRAMES)
    return Audit(total, free, waiting["fill"], posted - waiting["fill"] - waiting["rx"],
                 waiting["rx"], waiting["tx"], sent - waiting["tx"] - waiting["comp"],
                 waiting["comp"], total - free - posted - sent,
                 tuple(sorted(address for address, times in seen.items() if times > 1)))
