"""The run state of one program invocation, and a worker's own memory: layouts in bytes.

`struct xdp_md` of the kernel's ABI has 32-bit `data`, `data_end` and `data_meta`; no such struct
exists here.  Lowering turns a load of `xdp_md` at one of the kernel's offsets into a load of a
field below.  The state lives in an alloca of the worker loop, and since program and helpers are
inlined there, LLVM keeps its fields in registers: the context is values, not memory.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from pathlib import Path

# --- run state: one per invocation -------------------------------------------------------------
DATA = 0  # pointer to the first byte of the packet
DATA_END = 8  # pointer behind the last byte
DATA_META = 16  # pointer to the metadata in front of the packet, or DATA
HARD_START = 24  # lowest address that adjust_head may reach
FRAME_END = 32  # highest address that adjust_tail may reach in the first buffer
INGRESS_IFINDEX = 40  # u32
RX_QUEUE_INDEX = 44  # u32
EGRESS_IFINDEX = 48  # u32
WORKER_ID = 52  # u32: what bpf_get_smp_processor_id returns; the index into per-CPU values
REDIRECT_IFINDEX = 56  # u32, set by bpf_redirect
TAIL_CALLS = 60  # u32, tail calls made so far
WORKER = 64  # pointer to the worker's memory
RX_KNOWN = 72  # u32, which of the following the port knows: bits below
RX_HASH = 76  # u32
RX_TIMESTAMP = 80  # u64, ns
RX_HASH_TYPE = 88  # u32, enum xdp_rss_hash_type
RX_VLAN_PROTO = 92  # u16, as in the packet
RX_VLAN_TCI = 94  # u16
RX_END = 96
# further buffers of the packet (helpers/frags.py); nothing but xdp.frags programs reads these
FRAGMENTS = 96  # pointer to the first one's record
FRAGMENT_COUNT = 104  # u32
FRAGMENT_BYTES = 108  # u32, bytes of the packet in them all
# how a redirect goes, and who decided
REDIRECT_HOW = 112  # u32: what REDIRECT_IFINDEX is a number of, and more (HOW_*, below)
PROGRAM = 116  # u32, number in the module of the program that runs: a tail call changes it
STATE_SIZE_BYTES = 120
KNOWS_TIMESTAMP, KNOWS_HASH, KNOWS_VLAN = 1, 2, 4
RX_ERRORS_AT = 8  # from this bit of RX_KNOWN on, a byte each: why not, an errno; 0: EOPNOTSUPP

# --- how a redirect goes: kind | program << HOW_PROGRAM | queue length << HOW_QUEUE --------------
HOW_INTERFACE = 0  # the target is an interface; the program is that of a devmap's entry
HOW_MANY = 1  # it is a map, whose entries all get a copy; the program is 1 to leave out the ingress
HOW_WORKER = 2  # it is a worker; the program is that of a cpumap's entry
HOW_RING = 3  # it is a named ring (an xskmap's entry)
HOW_SPENT = 7  # no redirect: the program's instruction budget was used up
HOW_KIND = 7  # mask
HOW_PROGRAM, HOW_PROGRAM_MASK = 3, 0x3F  # number in the module, plus 1; 0: none
# a bit beside the rest: bpf_redirect or bpf_redirect_map was given flags that do not exist, which
# leaves what a call before has said
HOW_REFUSED = 1 << 31
HOW_QUEUE = 9

# --- a further buffer's record; the records of a packet lie one behind the other ------------------
# (a slot of a port's batch has the same layout: a packet's buffers are consecutive slots)
FRAGMENT_DATA = 0  # pointer to its first byte of the packet
FRAGMENT_END = 8  # pointer behind the last
FRAGMENT_ROOM = 32  # highest address that it may grow to
FRAGMENT_SIZE_BYTES = 64
FRAGMENTS_MAX = 17  # MAX_SKB_FRAGS

# --- a worker's memory: private to it, cache-line aligned ---------------------------------------
W_PRNG = 0  # u64, state of bpf_get_prandom_u32
W_TRACE_HEAD = 8  # u64, bytes ever written to the trace ring
W_TRACE_LOST = 16  # u64, messages that were not formatted or were overwritten unseen
W_EPOCH = 24  # u64, odd in a batch, even between batches
W_LINES = 32  # ptr, the lines that a batch writes at its start and end (maps/pool.py), or null
W_FUEL = 40  # u64, instructions that the packet at hand may still cost (fuel.py)
W_SPENT = 48  # u64, packets whose program was ended for want of fuel
W_TIMERS = 56  # ptr, timers that fire here (maps/timers.py), or null
W_TRACE_RING = 64  # ring of fixed records: u64 length, then text
TRACE_RECORD_BYTES = 256
TRACE_RECORDS = 256
W_JIFFIES = W_TRACE_RING + TRACE_RECORD_BYTES * TRACE_RECORDS  # u64, helpers/clock.py; 0: ask
WORKER_SIZE_BYTES = W_JIFFIES + 8

# --- what the kernel gives a packet (include/net/xdp.h, net/bpf/test_run.c) ----------------------
HEADROOM_BYTES = 256  # XDP_PACKET_HEADROOM
XDP_FRAME_BYTES = 40  # sizeof(struct xdp_frame): adjust_head cannot take these from the headroom
META_MAX_BYTES = 252  # the largest metadata: a multiple of 4 that fits the u8 length field
PAGE_BYTES = 4096  # what BPF_PROG_TEST_RUN gives each buffer,
SHARED_INFO_BYTES = 320  # the first one less struct skb_shared_info at its end


def linear_bytes(length: int, headroom: int, most: int | None = None) -> int:
    """How many bytes of a packet BPF_PROG_TEST_RUN puts into the first buffer, `most` at most."""
    return min(length, length if most is None else most,
               PAGE_BYTES - headroom - SHARED_INFO_BYTES)


@dataclass(frozen=True, slots=True)
class RxMetadata:
    """What a port knows of a packet besides its bytes; None: it does not know.

    `timestamp_ns` is the time of reception; `hash` is (number, enum xdp_rss_hash_type); `vlan`,
    that was stripped, is (protocol, tag control information)."""

    timestamp_ns: int | None = None
    hash: tuple[int, int] | None = None
    vlan: tuple[int, int] | None = None

    def encode(self) -> bytes:
        """The run state from RX_KNOWN to RX_END."""
        known = (KNOWS_TIMESTAMP * (self.timestamp_ns is not None)
                 | KNOWS_HASH * (self.hash is not None) | KNOWS_VLAN * (self.vlan is not None))
        number, kind = self.hash or (0, 0)
        protocol, tci = self.vlan or (0, 0)
        return (struct.pack("<IIQI", known, number, self.timestamp_ns or 0, kind)
                + struct.pack(">H", protocol) + struct.pack("<H", tci))


@lru_cache(maxsize=1)
def max_workers() -> int:
    """As many as this machine may have CPUs, but at least 8: what the verifier knows of a worker's
    number, as the kernel's knows that of a CPU."""
    try:
        last = Path("/sys/devices/system/cpu/possible").read_text().strip().rpartition("-")[2]
        return max(int(last.rpartition(",")[2]) + 1, 8)
    except (OSError, ValueError):
        return max(os.cpu_count() or 1, 8)


class Verdict(IntEnum):
    """enum xdp_action"""

    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4


# struct xdp_md, include/uapi/linux/bpf.h: offset -> (field of the run state, is a packet pointer)
XDP_MD = {
    0: (DATA, True),
    4: (DATA_END, True),
    8: (DATA_META, True),
    12: (INGRESS_IFINDEX, False),
    16: (RX_QUEUE_INDEX, False),
    20: (EGRESS_IFINDEX, False),
}
XDP_MD_SIZE_BYTES = 24
