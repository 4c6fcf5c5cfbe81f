"""What other workers sent by a CPUMAP: taken out of the rings (mesh.py) in batches.

The program of the entry (SEC "xdp/cpumap"; kernel/bpf/cpumap.c) runs here, on this worker's copy of
per-CPU maps; rx_queue_index is 0.  XDP_PASS, or no program: the packet goes to the stack of the
interface it came from.  XDP_REDIRECT goes on, XDP_DROP drops, all else counts as aborted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dataplane import aborted, port, stats
from dataplane.mesh import (
    DATA,
    DESC_BYTES,
    DESCS,
    FRAME,
    FRAME_BYTES,
    FRAMES,
    HEAD,
    INGRESS,
    LENGTH,
    META,
    PROGRAM,
    PUBLISH,
    TAIL,
    TAILROOM,
)
from dataplane.redirect import ELSEWHERE
from dataplane.second import RUN_SECOND
from dataplane.worker_block import (
    C_BUSY,
    C_DONE,
    C_FLOW_TABLE,
    C_INBOX,
    C_NO_PORT,
    C_PEERS,
    C_POOL,
    C_PROGRAM_MEMORY,
    C_QUEUED,
    C_WORKERS,
    COUNT_UP,
    F_KIND,
    F_PARTNER,
    F_QUEUE,
    F_STATS,
    FIND_FLOW,
    FLOW_SIZE_BYTES,
)
from xdp_runtime import state as st
from xdp_runtime.maps.dev import QUEUE_MAX
from xdp_runtime.maps.pool import ENTER, LEAVE
from xdp_runtime.template import Template

_BATCH = 64
_, _DROP, _PASS, _TX, _REDIRECT = (int(v) for v in st.Verdict)
Factory = Callable[..., Any]


def _arrived(m: Any) -> Factory:
    count_up, find, run_second = m.extern(COUNT_UP), m.extern(FIND_FLOW), m.extern(RUN_SECOND)
    note = m.extern(aborted.NOTE)
    elsewhere = m.extern(ELSEWHERE)
    send = m.symbol("xdpu.front.send", "i64(i64, ptr, ptr, i64)")
    deliver = m.symbol("xdpu.back.send", "i64(i64, ptr, ptr, i64)")

    def mesh_arrived(control, slot, ingress, number):  # type: ignore
        """What becomes of one packet from another worker."""
        flow = find(control, ingress)
        if m.is_null(flow):  # its port has gone meanwhile
            flow = m.gep(control, C_FLOW_TABLE)
        counters = m.load_ptr(flow, F_STATS)
        count_up(counters, stats.CPU_RECEIVED, 1)
        how = m.alloca(16)
        verdict = _PASS
        if number != 0:
            verdict = run_second(control, slot, number, ingress, 0, how)
        if verdict == _DROP:
            count_up(counters, stats.CPU_DROP, 1)
        elif verdict == _PASS:
            count_up(counters, stats.CPU_PASS, 1)
            partner = m.load_u32(flow, F_PARTNER)
            if partner != 0:
                stack = m.gep(control, C_FLOW_TABLE + (partner - 1) * FLOW_SIZE_BYTES)
                data = m.load_ptr(slot, port.DATA)
                if deliver(m.load_u32(stack, F_KIND), m.load_ptr(stack, F_QUEUE), data,
                           m.diff(m.load_ptr(slot, port.DATA_END), data)) == 0:
                    count_up(counters, stats.PASS_FULL, 1)
        elif verdict == _REDIRECT:
            count_up(counters, stats.CPU_REDIRECT, 1)
            target = m.load_u32(how, 0)
            m.store_u32(slot, port.TARGET, target)
            leaves, goes = 1, m.load_u32(how, 4) & (st.HOW_REFUSED - 1)
            if goes != 0:
                leaves = elsewhere(control, flow, slot, goes)
            if leaves != 0:
                other = find(control, target)
                data = m.load_ptr(slot, port.DATA)
                length = m.diff(m.load_ptr(slot, port.DATA_END), data)
                if m.is_null(other):
                    count_up(counters, stats.REDIRECT_NO_PORT, 1)
                    m.store_u32(control, C_NO_PORT, target)
                elif send(m.load_u32(other, F_KIND), m.load_ptr(other, F_QUEUE), data, length) == 0:
                    count_up(counters, stats.REDIRECT_FULL, 1)
                else:
                    count_up(counters, stats.TX_BYTES, length)
        else:
            count_up(counters, stats.CPU_ABORTED, 1)
            note(control, flow, slot, verdict, m.load_u32(how, 4), m.load_u32(how, 8), 1)
        return 0

    return mesh_arrived


ARRIVED = Template("mesh_arrived", _arrived, "i64(ptr, ptr, i64, i64)",
                   (COUNT_UP, FIND_FLOW, RUN_SECOND, ELSEWHERE, aborted.NOTE), inline=False)


def _collect(m: Any) -> Factory:
    arrived, publish = m.extern(ARRIVED), m.extern(PUBLISH)
    enter, leave = m.extern(ENTER), m.extern(LEAVE)
    slot_bytes = port.SLOT_SIZE_BYTES

    def mesh_collect(control):  # type: ignore
        """Take up to a batch out of each of this worker's rings -> packets."""
        inbox, peers = m.load_ptr(control, C_INBOX), m.load_ptr(control, C_PEERS)
        memory = m.load_ptr(control, C_PROGRAM_MEMORY)
        slot = m.alloca(slot_bytes)
        work = 0
        for source in range(m.load_u32(control, C_WORKERS)):
            ring = m.load_ptr(inbox, source * 8)
            head = m.load_u64(ring, HEAD)
            count = m.acquire_u64(ring, TAIL) - head
            if count == 0:
                continue
            if work == 0:  # before anything is taken out (all_done)
                m.release_u32(control, C_DONE, 0)
                m.release_u64(control, C_BUSY, m.load_u64(control, C_BUSY) + 1)
                enter(memory)
            if count > _BATCH:
                count = _BATCH
            pool = m.load_ptr(m.load_ptr(peers, source * 8), C_POOL)
            for i in range(count):
                desc = m.inside(ring, DESCS + ((head + i) & (QUEUE_MAX - 1)) * DESC_BYTES)
                frame = m.gep(pool, FRAMES + m.load_u32(desc, FRAME) * FRAME_BYTES)
                m.prefetch(frame, m.load_u32(desc, DATA) + st.XDP_FRAME_BYTES)
            for i in range(count):
                desc = m.inside(ring, DESCS + ((head + i) & (QUEUE_MAX - 1)) * DESC_BYTES)
                frame = m.gep(pool, FRAMES + m.load_u32(desc, FRAME) * FRAME_BYTES)
                low = m.gep(frame, st.XDP_FRAME_BYTES)
                data = m.gep(low, m.load_u32(desc, DATA))
                m.store_ptr(slot, port.HARD_START, low)
                m.store_ptr(slot, port.DATA, data)
                m.store_ptr(slot, port.DATA_META, m.gep(data, -m.load_u32(desc, META)))
                m.store_ptr(slot, port.DATA_END, m.gep(data, m.load_u32(desc, LENGTH)))
                m.store_ptr(slot, port.FRAME_END, m.gep(frame, FRAME_BYTES - TAILROOM))
                m.store_u64(slot, port.RX_TIMESTAMP, 0)
                arrived(control, slot, m.load_u32(desc, INGRESS), m.load_u32(desc, PROGRAM))
            m.release_u64(ring, HEAD, head + count)
            work += count
        if work != 0:
            leave(memory)
            if m.load_u32(control, C_QUEUED) != 0:
                publish(control)
        return work

    return mesh_collect


COLLECT = Template("mesh_collect", _collect, "i64(ptr)", (ARRIVED, PUBLISH, ENTER, LEAVE),
                   inline=False)
