"""The control block of a worker, which Python writes and the loop reads: byte offsets.

One line of what the loop writes itself, the flows behind: where packets come from and go to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xdp_runtime.template import Template

Factory = Callable[..., Any]
FLOWS_MAX = 32

# the control block of a worker: byte offsets
C_STOP = 0  # u32, set to 1 by Python: leave at the next batch boundary
C_WORKER_ID = 4  # u32
C_BATCH_SIZE = 8  # u32
C_BUSY_POLL = 12  # u32, 1: never sleep
C_FLOWS = 16  # u32
C_EXIT_WHEN_IDLE = 20  # u32, 1: return when a round brings nothing (files)
C_PROGRAM_MEMORY = 24  # ptr, the program's worker memory
C_BATCH = 32  # ptr, slots
C_POLLFDS = 40  # ptr, struct pollfd[]
C_POLLFD_COUNT = 48  # u32
C_LOOK_AHEAD = 52  # u32, AUTO, ALWAYS or NEVER of scouting.py
C_NO_PORT = 56  # u32, the interface of the last redirect that had none here, 0: none so far
C_ROUNDS = 64  # u64, rounds done; stands still in a worker that hangs
C_WHERE = 72  # u32, what it does at the moment, WHERE
C_WHERE_FLOW = 76  # u32, and for which of its flows
C_HOWS = 80  # ptr, for each slot: u32 state.REDIRECT_HOW, u32 state.PROGRAM
C_SCRATCH = 88  # ptr, a frame for copies
C_ABORTED = 96  # ptr, what aborted.py counts and keeps
C_CHAIN = 104  # ptr, where a packet of several buffers becomes one piece (chains.py)
C_LANES = 112  # ptr, ptr[64][FLOWS_MAX]: lanes of the named rings (ring_put.py), or null
C_RING_TIME = 120  # u64, 0: nothing was put into them in this round
# of the rings between workers (mesh.py); null where there are none
C_OUTBOX = 128  # ptr, ptr[workers]: the ring to each worker
C_INBOX = 136  # ptr, ptr[workers]: the ring from each
C_PEERS = 144  # ptr, ptr[workers]: control blocks
C_POOL = 152  # ptr, frames for what this worker sends
C_WORKERS = 160  # u32
C_QUEUED = 164  # u32, 1: something was sent that is not published yet
C_RINGS = 172  # u32, how many named rings there are
C_EVENT = 168  # u32, the eventfd that wakes this worker
C_TAPS = 176  # u32, how many captures look at packets
C_TAP_TABLE = 184  # ptr, for each: ptr code, ptr its memory (capture_put.py)
# a line that the other workers read
C_SLEEPING = 192  # u32, 1: it is to be woken
C_DONE = 196  # u32, 1: its ports have nothing more for it, with C_EXIT_WHEN_IDLE
C_BUSY = 200  # u64, grows when it takes something from its rings
C_FLOW_TABLE = 256

# a flow
F_KIND = 0  # u32, number of its port kind on its side
F_ROLE = 4  # u32
F_QUEUE = 8  # ptr, the port queue's memory
F_IFINDEX = 16  # u32
F_RX_QUEUE = 20  # u32
F_PARTNER = 24  # u32, flow + 1: where PASS goes, or where the stack's frames leave; 0: none
F_TIMESTAMPS = 28  # u32, 1: its port fills RX_TIMESTAMP of the slots, 2: METADATA in front, too
F_STATS = 32  # ptr
F_PAUSED = 40  # u32, 1: its packets stay where they are
F_CHAINS = 44  # u32, 1: its port gives packets in several slots (chains.py)
F_FRAMES = 48  # u64, flows with the same number, not 0, share their frames
F_SCOUT = 64  # SCOUT_BYTES of scouting.py
FLOW_SIZE_BYTES = 128
CONTROL_SIZE_BYTES = C_FLOW_TABLE + FLOW_SIZE_BYTES * FLOWS_MAX

ROLE_PROGRAM, ROLE_STACK = 0, 1
WHERE = ("between batches", "receiving", "in the program", "passing packets on", "in the stack's "
         "packets", "publishing the rings", "asleep", "in packets of other workers")
OF_A_FLOW = WHERE[1:5]


def _count_up(m: Any) -> Factory:
    def count_up(counters, offset, value):  # type: ignore
        m.store_u64(counters, offset, m.load_u64(counters, offset) + value)
        return 0

    return count_up


def _find_flow(m: Any) -> Factory:
    def find_flow(control, ifindex):  # type: ignore
        """This worker's flow on an interface, or null."""
        for i in range(m.load_u32(control, C_FLOWS)):
            flow = m.gep(control, C_FLOW_TABLE + i * FLOW_SIZE_BYTES)
            if m.load_u32(flow, F_IFINDEX) == ifindex and m.load_u32(flow, F_ROLE) == ROLE_PROGRAM:
                return flow
        return m.null()

    return find_flow


COUNT_UP = Template("count_up", _count_up, "i64(ptr, i64, i64)")
FIND_FLOW = Template("find_flow", _find_flow, "ptr(ptr, i64)")
