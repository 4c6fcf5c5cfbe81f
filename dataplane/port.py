"""Port: where packets come from and go to.  The contract between a port and the worker loop.

A port kind is five templates (xdp_runtime/template.py) that are inlined into the worker loop; a
port is an open device whose queues each own a block of memory that the templates get as `q`.
Nobody but the owning worker touches a queue, so none of the templates locks anything.

    receive(q, batch, budget) -> n     fill slots 0..n-1 of `batch` (n <= budget); never blocks
    release(q, slot) -> 0              the packet is done with: its frame goes back to the port
    transmit(q, slot) -> 1 | 0         send the slot's packet out of this same port and give the
                                       frame up either way; 0: no room, the packet is lost
    send(q, data, length) -> 1 | 0     copy a foreign packet out of this port; 0: no room
    flush(q) -> 0                      end of a batch: publish what was released and sent, wake
                                       the kernel if it asks to be woken, reclaim what was sent

A batch is an array of slots of SLOT_SIZE_BYTES each.  `receive` fills DATA, DATA_END, HARD_START,
FRAME_END and COOKIE; DATA_META and VERDICT are the loop's.  Bounds are those of the buffer:
[HARD_START, FRAME_END) is memory that the program's adjust_head and adjust_tail may move into
(HARD_START leaves XDP_FRAME_BYTES of the headroom alone, as the kernel does).

A kind with `chain` gives packets in several buffers, to xdp.frags programs alone: such a packet
takes consecutive slots of one batch.  In the first, `receive` says in FRAGMENTS how many follow;
these have DATA, DATA_END, FRAME_END and COOKIE, and each is given back by a `release` of its own.

    chain(q, slot, more) -> 1 | 0      transmit the packet in this slot and the `more` behind it

Packets that are to go elsewhere are made one piece by the loop, so `send` of these kinds takes
packets of any length, and so does `transmit` whose packet lies outside its slot's frame: it copies.

A kind with `one_pass` can also give its packets one by one (one_pass.py), for what they cost where
a device costs next to nothing.  `hand` is HAND_BYTES of the loop's own, which become registers:
between `burst` and `done` of a queue, none of the templates above is called for it.

    begin(q) -> 0                      the loop of the queue's worker starts, in its thread
    burst(q, hand, budget) -> n        take n packets from the device; never blocks
    group(q) -> n                      so many packets `fit` looks at together, always the same
    fit(q, hand, i, n) -> n            of a group from the i-th packet on leave those that can be
                                       opened; others are given back and counted, what follows moves
    open(q, hand, i, slot) -> 0        fill the slot of packet i < n
    release(q, hand, slot) -> 1 | 0    as above; 0: not this way but after `done`
    transmit(q, hand, slot, i, missing) -> 1 | 0   as above; it is packet i, and of those before it
                                       all but `missing` have been transmitted
    done(q, hand, sent) -> 0           all n are released, or transmitted (`sent` of them), or kept
                                       by their cookies

and of packets that nobody looks at and that all have the same verdict, in place of the last five:

    release_all(q, hand, n) -> bytes   of all n
    transmit_all(q, hand, n) -> 0      what finds no room is the port's to count
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from xdp_runtime.template import Template

BATCH_MAX = 256  # packets; the default batch is 64

# a slot of a batch: byte offsets
DATA = 0  # pointer to the packet's first byte
DATA_END = 8  # pointer behind its last byte
DATA_META = 16  # pointer, set by the loop
HARD_START = 24  # pointer
FRAME_END = 32  # pointer
COOKIE = 40  # u64 of the port's own, e.g. the umem address of the frame
REDIRECTED = 16  # u64 in place of DATA_META, when what was redirected elsewhere than out of an
# interface is released: state.HOW_KIND of it, so less than any pointer
VERDICT = 48  # u32, xdp_action, set by the loop before release or transmit
TARGET = 52  # u32, interface index of a redirect, set by the loop
RX_TIMESTAMP = 56  # u64, ns: when it was received, 0: unknown; of kinds that say `timestamps`
FRAGMENTS = 48  # u32, until VERDICT is set: how many slots behind this one belong to its packet
SLOT_SIZE_BYTES = 64

# in front of a packet, of kinds that say `metadata`, until a program runs on it: byte offsets
METADATA_TIMESTAMP, METADATA_HASH, METADATA_HASH_TYPE = 0, 8, 12  # u64, u32, u32
METADATA_VLAN_PROTO, METADATA_VLAN_TCI, METADATA_KNOWN = 16, 18, 20  # u16, u16, u32 as RX_KNOWN
METADATA_BYTES = 32

RECEIVE_SIGNATURE = "i64(ptr, ptr, i64)"
RELEASE_SIGNATURE = "i64(ptr, ptr)"
TRANSMIT_SIGNATURE = "i64(ptr, ptr)"
SEND_SIGNATURE = "i64(ptr, ptr, i64)"
FLUSH_SIGNATURE = "i64(ptr)"
CHAIN_SIGNATURE = "i64(ptr, ptr, i64)"

HAND_BYTES = 64


@dataclass(frozen=True, slots=True)
class OnePass:
    """The templates that give packets one by one."""

    begin: Template
    burst: Template
    group: Template
    fit: Template
    open: Template
    release: Template
    transmit: Template
    done: Template
    release_all: Template
    transmit_all: Template

    @property
    def templates(self) -> dict[str, Template]:
        return {one.name: getattr(self, one.name) for one in fields(self)}


@dataclass(frozen=True, slots=True)
class PortKind:
    """The templates of one kind of port, with the signatures above."""

    name: str
    receive: Template
    release: Template
    transmit: Template
    send: Template
    flush: Template
    timestamps: bool = False  # does `receive` fill RX_TIMESTAMP?
    metadata: bool = False  # is there a METADATA record in front of each packet?
    chain: Template | None = None  # for kinds whose packets may take several slots
    one_pass: OnePass | None = None
    losses: tuple[str, ...] = ()  # of Port.statistics: packets lost that the loop has not counted


@dataclass(frozen=True, slots=True)
class PortQueue:
    """One queue: `address` is its memory (handed to the templates as `q`), `poll_fd` a descriptor
    that poll(2) finds readable when packets wait (-1: never waits).  Queues of one kind with the
    same `frames`, if not 0, have their frames in common: what one received, another may `transmit`.
    """

    index: int
    address: int
    poll_fd: int
    frames: int = 0


class Port(Protocol):
    """An open device.  `ifindex` is the host's index of a real interface, else 0 or a number of
    the run's own.  `mode` says in words what was chosen and why, for the user."""

    kind: PortKind
    name: str
    ifindex: int
    queues: Sequence[PortQueue]
    mode: str
    mtu: int

    def statistics(self) -> dict[str, int]:
        """Counters only the port knows (ring full, invalid descriptors, kernel drops)."""

    def finished(self) -> bool:
        """True when no packet will ever come again (the end of a capture file)."""

    def close(self) -> None:
        """Give everything back; may be called twice."""
