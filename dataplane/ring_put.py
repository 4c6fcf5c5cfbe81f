"""Templates that put packets into named rings (ring.py): where an XSKMAP's redirects go.

A worker has a table of lanes, a row a ring, a column a flow.  A packet is copied; what was put is
published when the worker's round ends.  Time stamps are those of the port where it has any, else
the wall clock when the round's first packet was put.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dataplane import port, stats
from dataplane.ring import (
    CONSUMED,
    DATA,
    DROPPED,
    LENGTHS,
    PRODUCED,
    PUT,
    SEEN,
    SLOT_BYTES,
    SLOTS,
    TIMES,
    TOO_LONG,
)
from dataplane.worker_block import (
    C_FLOW_TABLE,
    C_FLOWS,
    C_LANES,
    C_RING_TIME,
    C_RINGS,
    COUNT_UP,
    F_STATS,
    F_TIMESTAMPS,
    FLOW_SIZE_BYTES,
    FLOWS_MAX,
)
from xdp_runtime.template import Template

TABLE_ROWS = 64  # rings, numbered from 1
TABLE_BYTES = TABLE_ROWS * FLOWS_MAX * 8
_CLOCK_REALTIME = 0
_SECOND_NS = 10**9
Factory = Callable[..., Any]


def _now(m: Any) -> Factory:
    def ring_now(control):  # type: ignore
        """The time of this round; not 0, which says that nothing was put."""
        now = m.gep(m.alloca(16), 0)
        m.c_clock_gettime(_CLOCK_REALTIME, now)
        time_ns = m.load_u64(now, 0) * _SECOND_NS + m.load_u64(now, 8)
        m.store_u64(control, C_RING_TIME, time_ns)
        return time_ns

    return ring_now


NOW = Template("ring_now", _now, "i64(ptr)", inline=False)


def _put(m: Any) -> Factory:
    count_up, now = m.extern(COUNT_UP), m.extern(NOW)

    def ring_put(control, flow, slot):  # type: ignore
        """A copy of the packet into ring TARGET, or dropped and counted."""
        counters = m.load_ptr(flow, F_STATS)
        column = m.udiv(m.diff(flow, m.gep(control, C_FLOW_TABLE)), FLOW_SIZE_BYTES)
        row = m.load_u32(slot, port.TARGET) & (TABLE_ROWS - 1)
        table = m.load_ptr(control, C_LANES)
        if m.is_null(table):
            count_up(counters, stats.RING_FULL, 1)
            return 0
        lane = m.load_ptr(table, (row * FLOWS_MAX + column) * 8)
        if m.is_null(lane):
            count_up(counters, stats.RING_FULL, 1)
            return 0
        mine = m.load_u64(lane, PUT)
        if mine - m.load_u64(lane, SEEN) >= SLOTS:
            m.store_u64(lane, SEEN, m.acquire_u64(lane, CONSUMED))
            if mine - m.load_u64(lane, SEEN) >= SLOTS:
                m.store_u64(lane, DROPPED, m.load_u64(lane, DROPPED) + 1)
                count_up(counters, stats.RING_FULL, 1)
                return 0
        data = m.load_ptr(slot, port.DATA)
        length = m.diff(m.load_ptr(slot, port.DATA_END), data)
        if length > SLOT_BYTES:
            m.store_u64(lane, TOO_LONG, m.load_u64(lane, TOO_LONG) + 1)
            count_up(counters, stats.RING_FULL, 1)
            return 0
        time_ns = m.load_u64(control, C_RING_TIME)
        if time_ns == 0:
            time_ns = now(control)
        if m.load_u32(flow, F_TIMESTAMPS) != 0 and m.load_u64(slot, port.RX_TIMESTAMP) != 0:
            time_ns = m.load_u64(slot, port.RX_TIMESTAMP)
        at = mine & (SLOTS - 1)
        m.copy(m.gep(lane, DATA + at * SLOT_BYTES), data, length)
        m.store_u32(lane, LENGTHS + at * 4, length)
        m.store_u64(lane, TIMES + at * 8, time_ns)
        m.store_u64(lane, PUT, mine + 1)
        count_up(counters, stats.RING_SENT, 1)
        return 1

    return ring_put


PUT_PACKET = Template("ring_put", _put, "i64(ptr, ptr, ptr)", (COUNT_UP, NOW), inline=False)


def _publish(m: Any) -> Factory:
    def ring_publish(control):  # type: ignore
        m.store_u64(control, C_RING_TIME, 0)
        table = m.load_ptr(control, C_LANES)
        for row in range(m.load_u32(control, C_RINGS) + 1):
            for column in range(m.load_u32(control, C_FLOWS)):
                lane = m.load_ptr(table, (row * FLOWS_MAX + column) * 8)
                if not m.is_null(lane):
                    mine = m.load_u64(lane, PUT)
                    if mine != m.load_u64(lane, PRODUCED):
                        m.release_u64(lane, PRODUCED, mine)
        return 0

    return ring_publish


PUBLISH_RINGS = Template("ring_publish", _publish, "i64(ptr)", inline=False)
