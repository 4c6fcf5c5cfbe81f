"""A queue of a DPDK device: its memory, and the templates that all that work on it share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dataplane.port import BATCH_MAX, PortKind
from xdp_runtime.template import Template

Factory = Callable[..., Any]
PRIVATE_BYTES = 128  # of an mbuf, before its buffer
ROOM_BYTES = 88  # of these, for the program: 256 - 40 - 128
MIN_LENGTH_BYTES = 14

# --- a queue's memory: byte offsets, 8 bytes each ------------------------------------------------
FP_OPS, QUEUE_OFFSET, MBUF_POOL = 0, 8, 16  # rte_eth_fp_ops[port]; queue * 8; struct rte_mempool
ATTACH, GIVE_BACK, TAKE, SETTLE = 24, 32, 40, 48  # functions of _build.py
UNSHARE = 56  # another one
TX_COUNT, FREE_COUNT, SPARE_COUNT = 64, 72, 80
RX_FIRST, RX_END = 88, 96  # of RX_ARRAY, those that wait (segments.py)
MULTI_SEGS = 104  # 1: the device sends packets of several segments
ROOM = 112  # bytes of a packet that an mbuf of ours holds
PUT = 120  # a function, too
TX_FULL, NO_MBUF, RX_UNFIT, RX_COPIED, TX_MOVED, MALFORMED = range(128, 176, 8)  # counters
LOSSES = "imissed", "ierrors", "rx_nombuf", "rx_unfit", "tx_full"  # an oerror may be in tx_full
ATTACHED = 176  # the thread that this queue's worker is has an lcore number (one_pass.py)
COLD = 184  # 1: nobody in this process has touched a packet before its program does
GROUP = 192  # so many mbufs of a burst are looked at together
RX_ARRAY = 256  # struct rte_mbuf *[]
TX_ARRAY = RX_ARRAY + 8 * BATCH_MAX
FREE_ARRAY = TX_ARRAY + 8 * BATCH_MAX
SPARE_ARRAY = FREE_ARRAY + 8 * BATCH_MAX
SPARES = 32
BLOCK_SIZE_BYTES = SPARE_ARRAY + 8 * SPARES

WHOLE = 0x00010001  # nb_segs 1, refcnt 1
ATTACHED_MBUF = 3 << 61  # EXTERNAL and INDIRECT, of ol_flags


@dataclass(frozen=True, slots=True)
class Made:
    """A kind for certain headers: the offsets in them, and what the templates are marked with.

    push(q) sends what was collected, free(q) frees it; fit(q, i, n) -> n leaves those of a
    group, the i-th on, that fill(q, i, slot) makes slots of; free_other(q, mbuf) frees what is
    of another pool, and ready(q, slot, buf_addr) -> 1 | 0 writes a packet's edges into its mbuf."""

    kind: PortKind
    push: Template
    free: Template
    fit: Template
    fill: Template
    free_other: Template
    ready: Template
    at: dict[str, int]
    mark: str
