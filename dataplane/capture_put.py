"""Templates of a capture: pcapng blocks of packets, written by the worker where another process
reads them (capture_lanes.py).

Each capture is a program of its own, loaded while the run goes on: its filter, compiled as any XDP
program is, and this code around it.  The worker's loop knows but a table of addresses, and calls
what it finds there twice a batch: as the packets came in, and when they have their verdicts.  With
nobody capturing that is one predicted branch a batch.

The filter and the sample are asked once, as the packet came in; what they chose is shown at both
points, however the program changed it.  A lane that has no room for a block loses the packet, and
the next block says how many were lost (epb_dropcount): the worker never waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dataplane import chains, pcapng_verdict, port
from dataplane.pcapfile import (
    ENHANCED_PACKET,
    EPB_DROPCOUNT,
    EPB_FLAGS,
    EPB_PACKETID,
    EPB_QUEUE,
)
from dataplane.worker_block import (
    C_BATCH,
    C_FLOW_TABLE,
    C_HOWS,
    C_WORKER_ID,
    F_CHAINS,
    F_IFINDEX,
    F_RX_QUEUE,
    F_TIMESTAMPS,
    FLOW_SIZE_BYTES,
    FLOWS_MAX,
)
from xdp_runtime import state as st
from xdp_runtime.compiler.link import ENTRY, Unit
from xdp_runtime.template import Template

TAP = "xdpu.tap"  # i64(ptr capture, ptr control, ptr flow, i64 packets | AT_EXIT), exported
AT_EXIT = 1 << 32
ENTRY_POINT, EXIT_POINT = 0, 1
TAPS_MAX = 4

# what a worker knows of a capture: byte offsets
T_POINTS = 0  # u64, bits 1 << ENTRY_POINT, 1 << EXIT_POINT
T_SNAP = 8  # u64, bytes of a packet that are taken
T_SAMPLE = 16  # u64, one packet in so many
T_MEMORY = 24  # ptr, the worker memory of the filter's program
T_TAKEN = 32  # u64, how many of the batch at hand are taken
T_LANES = 64  # ptr[FLOWS_MAX], null where nothing is captured
T_CHOSEN = T_LANES + 8 * FLOWS_MAX  # u32[BATCH_MAX], of the batch at hand: 1 + fragments, 0: no
T_WORDS = T_CHOSEN + 4 * port.BATCH_MAX  # a table of pcapng_verdict.py
WORDS = [*(f"XDP_{verdict.name}" for verdict in st.Verdict), " ifindex ", " all of map ",
         " worker ", " ring "]
_INFIX = len(st.Verdict)  # and HOW_*
TAP_BYTES = T_WORDS + pcapng_verdict.WORD_BYTES * len(WORDS)

# a lane: its first page, and then a ring of bytes; a block lies in one piece
L_PRODUCED = 0  # u64, bytes there were, published
L_LAP_END = 8  # u64, where the last lap ended, if before the ring's end
L_NEXT = 16  # u64, the next packet's number
L_READ = 24  # u64, L_CONSUMED as it was seen last
L_SIZE = 32  # u64, bytes of the ring, a power of two
L_NUMBER = 40  # u64, the lane's own
L_INTERFACES = 48  # u32[2], pcapng's number of the interface at entry and exit
L_COUNTS = 64  # of either point: u64 packets seen, chosen, lost, lost since the last block
COUNT_BYTES = 32
SEEN, CHOSEN, LOST, LOST_SINCE = 0, 8, 16, 24
L_CONSUMED = 128  # u64, by the reader
LANE_HEAD_BYTES = 4096
NO_LAP_END = 1 << 62

_FIXED_BYTES = 28  # of a block, before the packet
_MOST_OPTIONS = 8 + 12 + 12 + 8 + pcapng_verdict.VERDICT_BYTES + 8
_INBOUND, _OUTBOUND = 1, 2
_SLOT = port.SLOT_SIZE_BYTES
_REALTIME, _SECOND_NS = 0, 10**9
_TX, _REDIRECT = int(st.Verdict.TX), int(st.Verdict.REDIRECT)
Factory = Callable[..., Any]


def _room(m: Any) -> Factory:
    def capture_room(lane, size):  # type: ignore
        """Where in the ring a block of `size` bytes goes, -1: there is no room."""
        ring = m.load_u64(lane, L_SIZE)
        produced = m.load_u64(lane, L_PRODUCED)
        at = produced & (ring - 1)
        skip = ring - at if at + size > ring else 0
        if produced + skip + size - m.load_u64(lane, L_READ) > ring:
            m.store_u64(lane, L_READ, m.acquire_u64(lane, L_CONSUMED))
            if produced + skip + size - m.load_u64(lane, L_READ) > ring:
                return -1
        if skip != 0:
            m.store_u64(lane, L_LAP_END, produced)
            m.release_u64(lane, L_PRODUCED, produced + skip)
            at = 0
        return at

    return capture_room


ROOM = Template("capture_room", _room, "i64(ptr, i64)", inline=False)


def _put(m: Any) -> Factory:
    room, write_verdict = m.extern(ROOM), m.extern(pcapng_verdict.WRITE_VERDICT)

    def capture_put(tap, control, flow, lane, index, first, pieces, point, time_ns):  # type: ignore
        """A block of the packet in slot `index` and `pieces` slots from `first` on."""
        slot = m.gep(m.load_ptr(control, C_BATCH), index * _SLOT)
        data = m.load_ptr(slot, port.DATA)
        linear = m.diff(m.load_ptr(slot, port.DATA_END), data)
        original = linear
        for i in range(pieces):
            one = m.gep(first, i * _SLOT)
            original += m.diff(m.load_ptr(one, port.DATA_END), m.load_ptr(one, port.DATA))
        length = m.smaller(original, m.load_u64(tap, T_SNAP))
        counts = m.gep(lane, L_COUNTS + point * COUNT_BYTES)
        at = room(lane, _FIXED_BYTES + ((length + 3) & -4) + _MOST_OPTIONS)
        if at < 0:
            m.store_u64(counts, LOST, m.load_u64(counts, LOST) + 1)
            m.store_u64(counts, LOST_SINCE, m.load_u64(counts, LOST_SINCE) + 1)
            return 0
        block = m.gep(lane, LANE_HEAD_BYTES + at)
        m.store_u32(block, 0, ENHANCED_PACKET)
        m.store_u32(block, 8, m.load_u32(lane, L_INTERFACES + 4 * point))
        m.store_u32(block, 12, m.lshr(time_ns, 32))
        m.store_u32(block, 16, time_ns)
        at = _FIXED_BYTES + ((length + 3) & -4)
        m.store_u32(block, at - 4, 0)  # the padding
        m.store_u32(block, 20, length)
        m.store_u32(block, 24, original)
        copied = m.smaller(linear, length)
        m.copy(m.gep(block, _FIXED_BYTES), data, copied)
        for i in range(pieces):
            one = m.gep(first, i * _SLOT)
            data = m.load_ptr(one, port.DATA)
            size = m.smaller(m.diff(m.load_ptr(one, port.DATA_END), data), length - copied)
            m.copy(m.gep(block, _FIXED_BYTES + copied), data, size)
            copied += size

        verdict = m.load_u32(slot, port.VERDICT)
        m.store_u16(block, at, EPB_FLAGS)
        m.store_u16(block, at + 2, 4)
        direction = _INBOUND
        if point != ENTRY_POINT:
            direction = _OUTBOUND if verdict == _TX else 0
        m.store_u32(block, at + 4, direction)
        m.store_u16(block, at + 8, EPB_PACKETID)
        m.store_u16(block, at + 10, 8)
        m.store_u64(block, at + 12, m.load_u64(lane, L_NEXT) + index | m.load_u64(lane, L_NUMBER)
                    << 48)
        m.store_u16(block, at + 20, EPB_QUEUE)
        m.store_u16(block, at + 22, 4)
        m.store_u32(block, at + 24, m.load_u32(flow, F_RX_QUEUE))
        at += 28
        lost = m.load_u64(counts, LOST_SINCE)
        if lost != 0:
            m.store_u16(block, at, EPB_DROPCOUNT)
            m.store_u16(block, at + 2, 8)
            m.store_u64(block, at + 4, lost)
            m.store_u64(counts, LOST_SINCE, 0)
            at += 12
        if point != ENTRY_POINT:
            if verdict > _REDIRECT:
                verdict = 0
            infix, number = -1, 0
            if verdict == _REDIRECT:
                kind = m.load_u32(m.load_ptr(control, C_HOWS), index * 8) & st.HOW_KIND
                infix, number = _INFIX + kind, m.load_u32(slot, port.TARGET)
            at = write_verdict(block, at, m.gep(tap, T_WORDS), verdict, infix, number, verdict)
        m.store_u32(block, at, 0)  # the end of the options
        m.store_u32(block, at + 4, at + 8)
        m.store_u32(block, 4, at + 8)
        m.release_u64(lane, L_PRODUCED, m.load_u64(lane, L_PRODUCED) + at + 8)
        return 1

    return capture_put


PUT = Template("capture_put", _put, "i64(ptr, ptr, ptr, ptr, i64, ptr, i64, i64, i64)",
               (ROOM, pcapng_verdict.WRITE_VERDICT), inline=False)


def _choose(m: Any) -> Factory:
    program = m.symbol(ENTRY, "i32(ptr)")
    state_bytes = st.STATE_SIZE_BYTES  # a literal, as alloca needs it

    def capture_choose(tap, control, flow, lane, count):  # type: ignore
        """Note which packets of the batch are taken."""
        batch = m.load_ptr(control, C_BATCH)
        chosen, chains_here = m.gep(tap, T_CHOSEN), m.load_u32(flow, F_CHAINS)
        sample = m.load_u64(tap, T_SAMPLE)
        following = 0  # the next slot that is asked
        if sample > 1:
            over = m.urem(m.load_u64(lane, L_NEXT), sample)
            following = sample - over if over != 0 else 0
        run = m.alloca(state_bytes)
        packets = taken = 0
        i = 0
        while i < count:
            slot = m.gep(batch, i * _SLOT)
            pieces = 0
            if chains_here != 0:
                pieces = m.load_u32(slot, port.FRAGMENTS)
            packets += 1
            mark = 0
            if i >= following:
                following += sample
                data = m.load_ptr(slot, port.DATA)
                m.store_ptr(run, st.DATA, data)
                m.store_ptr(run, st.DATA_END, m.load_ptr(slot, port.DATA_END))
                m.store_ptr(run, st.DATA_META, data)
                m.store_ptr(run, st.HARD_START, m.load_ptr(slot, port.HARD_START))
                m.store_ptr(run, st.FRAME_END, m.load_ptr(slot, port.FRAME_END))
                m.store_u32(run, st.INGRESS_IFINDEX, m.load_u32(flow, F_IFINDEX))
                m.store_u32(run, st.RX_QUEUE_INDEX, m.load_u32(flow, F_RX_QUEUE))
                m.store_u32(run, st.EGRESS_IFINDEX, 0)
                m.store_u32(run, st.WORKER_ID, m.load_u32(control, C_WORKER_ID))
                m.store_u32(run, st.REDIRECT_IFINDEX, 0)
                m.store_u32(run, st.TAIL_CALLS, 0)
                m.store_ptr(run, st.WORKER, m.load_ptr(tap, T_MEMORY))
                m.store_u32(run, st.RX_KNOWN, 0)
                m.store_u64(run, st.REDIRECT_HOW, 0)
                if program(run) != 0:
                    mark = 1 + pieces
                    taken += 1
            m.store_u32(chosen, i * 4, mark)
            i += 1
            while pieces > 0:
                m.store_u32(chosen, i * 4, 0)
                i += 1
                pieces -= 1
        for point in range(2):
            counts = m.gep(lane, L_COUNTS + point * COUNT_BYTES)
            m.store_u64(counts, SEEN, m.load_u64(counts, SEEN) + packets)
            m.store_u64(counts, CHOSEN, m.load_u64(counts, CHOSEN) + taken)
        m.store_u64(tap, T_TAKEN, taken)
        return 0

    return capture_choose


CHOOSE = Template("capture_choose", _choose, "i64(ptr, ptr, ptr, ptr, i64)", inline=False)


def _tap(m: Any) -> Factory:
    choose, put = m.extern(CHOOSE), m.extern(PUT)

    def capture_tap(tap, control, flow, what):  # type: ignore
        count = what & 0xFFFFFFFF
        point = m.lshr(what, 32)
        column = m.udiv(m.diff(flow, m.gep(control, C_FLOW_TABLE)), FLOW_SIZE_BYTES)
        lane = m.load_ptr(tap, T_LANES + 8 * column)
        if m.is_null(lane):
            return 0
        if point == ENTRY_POINT:
            choose(tap, control, flow, lane, count)
        batch, now_ns = m.load_ptr(control, C_BATCH), 0
        if m.load_u64(tap, T_TAKEN) != 0 and m.lshr(m.load_u64(tap, T_POINTS), point) & 1 != 0:
            for i in range(count):
                mark = m.load_u32(tap, T_CHOSEN + 4 * i)
                if mark == 0:
                    continue
                slot = m.gep(batch, i * _SLOT)
                time_ns = now_ns
                if m.load_u32(flow, F_TIMESTAMPS) != 0:
                    time_ns = m.load_u64(slot, port.RX_TIMESTAMP)
                if time_ns == 0:
                    if now_ns == 0:
                        now = m.alloca(16)
                        m.c_clock_gettime(_REALTIME, now)
                        now_ns = m.load_u64(now, 0) * _SECOND_NS + m.load_u64(now, 8)
                    time_ns = now_ns
                pieces, first = mark - 1, m.gep(slot, _SLOT)
                if pieces != 0 and point != ENTRY_POINT:
                    left = m.load_u32(first, chains.LEFT)
                    first = m.gep(first, (left >> chains.SKIP_AT) * _SLOT)
                    pieces = left & 0xFFFF
                put(tap, control, flow, lane, i, first, pieces, point, time_ns)
        if point != ENTRY_POINT:
            m.store_u64(lane, L_NEXT, m.load_u64(lane, L_NEXT) + count)
        return 0

    return capture_tap


CAPTURE = Template("capture_tap", _tap, "i64(ptr, ptr, ptr, i64)", (CHOOSE, PUT))
UNIT = Unit("capture", f"""
define i64 @"{TAP}"(ptr %tap, ptr %control, ptr %flow, i64 %what) {{
  %r = call i64 @{CAPTURE.name}(ptr %tap, ptr %control, ptr %flow, i64 %what)
  ret i64 %r
}}""", (CAPTURE,), (TAP,))
