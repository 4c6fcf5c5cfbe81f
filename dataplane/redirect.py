"""XDP_REDIRECT beyond "out of one interface": programs of a devmap's entry, and to all entries;
into an AF_XDP socket.

The worker's loop comes here for packets whose redirect says more than an interface (state.py,
HOW_*).  As in the kernel (net/core/filter.c, kernel/bpf/devmap.c):

* The program of an entry (SEC "xdp/devmap") sees the packet when it has been decided where it
  goes: egress_ifindex is that interface, rx_queue_index is 0.  XDP_PASS sends it on, XDP_DROP drops
  it, all else counts as aborted.
* BPF_F_BROADCAST: each entry gets a copy, and its program sees that copy alone.  With
  BPF_F_EXCLUDE_INGRESS not the interface that the packet came from.  A copy that is lost is
  counted, the others are sent all the same (the kernel stops where it has no memory for one).

* An XSKMAP's entry is the number of a named ring (ring_put.py), or, behind those, of a port that is
  an AF_XDP socket of somebody else's (xsk_port.py).

The packet's frame stays the caller's in every case; what leaves from here is copied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dataplane import aborted, port, stats
from dataplane.mesh import HAND_OVER
from dataplane.ring_put import PUT_PACKET
from dataplane.second import RUN_SECOND
from dataplane.worker_block import (
    C_NO_PORT,
    C_RINGS,
    C_SCRATCH,
    C_WORKER_ID,
    COUNT_UP,
    F_IFINDEX,
    F_KIND,
    F_QUEUE,
    F_STATS,
    FIND_FLOW,
)
from xdp_runtime import state as st
from xdp_runtime.compiler.link import TARGETS
from xdp_runtime.template import Template

SOCKETS_AT = 3 << 20  # interface index of a port that is a socket: this plus its number, from 1
SCRATCH_BYTES = 1 << 17  # a frame for the copy that a program sees
_PAGE, _SHARED_INFO_BYTES = 4096, 320  # of a frame in the kernel, and what it keeps at its end

_DROP, _PASS = int(st.Verdict.DROP), int(st.Verdict.PASS)
Factory = Callable[..., Any]


def _egress(m: Any) -> Factory:
    count_up, run_second = m.extern(COUNT_UP), m.extern(RUN_SECOND)
    note = m.extern(aborted.NOTE)

    def egress(control, flow, slot, number, ifindex):  # type: ignore
        """The program of a devmap's entry -> 1: send the packet on; 0: it is lost and counted."""
        how = m.alloca(16)
        verdict = run_second(control, slot, number, m.load_u32(flow, F_IFINDEX), ifindex, how)
        if verdict == _PASS:
            return 1
        counters = m.load_ptr(flow, F_STATS)
        if verdict == _DROP:
            count_up(counters, stats.EGRESS_DROP, 1)
            return 0
        count_up(counters, stats.EGRESS_ABORTED, 1)
        note(control, flow, slot, verdict, m.load_u32(how, 4), m.load_u32(how, 8), 1)
        return 0

    return egress


EGRESS = Template("egress", _egress, "i64(ptr, ptr, ptr, i64, i64)",
                  (COUNT_UP, RUN_SECOND, aborted.NOTE), inline=False)


def _clone(m: Any) -> Factory:
    def clone_packet(control, slot, clone):  # type: ignore
        """A copy of packet and headroom in the worker's scratch frame, as xdpf_clone() makes it."""
        low = m.load_ptr(slot, port.HARD_START)
        meta, data = m.load_ptr(slot, port.DATA_META), m.load_ptr(slot, port.DATA)
        size = m.diff(m.load_ptr(slot, port.DATA_END), low)
        frame = m.load_ptr(control, C_SCRATCH)
        if size > SCRATCH_BYTES or m.diff(meta, low) < 0:
            return 0
        m.copy(m.gep(frame, m.diff(meta, low)), meta, m.diff(m.load_ptr(slot, port.DATA_END), meta))
        m.store_ptr(clone, port.DATA, m.gep(frame, m.diff(data, low)))
        m.store_ptr(clone, port.DATA_META, m.gep(frame, m.diff(meta, low)))
        m.store_ptr(clone, port.DATA_END, m.gep(frame, size))
        m.store_ptr(clone, port.HARD_START, frame)
        room = _PAGE - _SHARED_INFO_BYTES - st.XDP_FRAME_BYTES
        m.store_ptr(clone, port.FRAME_END, m.gep(frame, room if room > size else size))
        return 1

    return clone_packet


CLONE = Template("clone_packet", _clone, "i64(ptr, ptr, ptr)")


def _broadcast(m: Any) -> Factory:
    count_up, find, run_egress = m.extern(COUNT_UP), m.extern(FIND_FLOW), m.extern(EGRESS)
    clone_packet = m.extern(CLONE)
    targets = m.symbol(TARGETS, "i64(i64, i64, ptr, i64)")
    send = m.symbol("xdpu.front.send", "i64(i64, ptr, ptr, i64)")
    slot_bytes = port.SLOT_SIZE_BYTES

    def broadcast(control, flow, slot, map, leave_out):  # type: ignore
        own = m.load_u32(flow, F_IFINDEX)
        worker = m.load_u32(control, C_WORKER_ID)
        entry, clone = m.alloca(16), m.alloca(slot_bytes)
        copies = no_port = full = sent_bytes = 0
        cursor = targets(map, worker, entry, 0)
        while cursor != -1:
            ifindex, program = m.load_u32(entry, 0), m.load_u32(entry, 4)
            cursor = targets(map, worker, entry, cursor)
            if leave_out != 0 and ifindex == own:
                continue
            copies += 1
            packet = slot
            if program != 0:
                if clone_packet(control, slot, clone) == 0:
                    full += 1
                    continue
                if run_egress(control, flow, clone, program, ifindex) == 0:
                    continue
                packet = clone
            data = m.load_ptr(packet, port.DATA)
            length = m.diff(m.load_ptr(packet, port.DATA_END), data)
            other = flow if ifindex == own else find(control, ifindex)
            if m.is_null(other):
                no_port += 1
                m.store_u32(control, C_NO_PORT, ifindex)
            elif send(m.load_u32(other, F_KIND), m.load_ptr(other, F_QUEUE), data, length) == 0:
                full += 1
            else:
                sent_bytes += length
        counters = m.load_ptr(flow, F_STATS)
        count_up(counters, stats.BROADCAST, 1)
        count_up(counters, stats.BROADCAST_COPIES, copies)
        count_up(counters, stats.REDIRECT_NO_PORT, no_port)
        count_up(counters, stats.REDIRECT_FULL, full)
        count_up(counters, stats.TX_BYTES, sent_bytes)
        return copies

    return broadcast


BROADCAST = Template("broadcast", _broadcast, "i64(ptr, ptr, ptr, i64, i64)",
                     (COUNT_UP, FIND_FLOW, EGRESS, CLONE), inline=False)


def _to_socket(m: Any) -> Factory:
    count_up, find = m.extern(COUNT_UP), m.extern(FIND_FLOW)
    send = m.symbol("xdpu.front.send", "i64(i64, ptr, ptr, i64)")

    def to_socket(control, flow, slot, number):  # type: ignore
        counters = m.load_ptr(flow, F_STATS)
        other = find(control, SOCKETS_AT + number)
        data = m.load_ptr(slot, port.DATA)
        length = m.diff(m.load_ptr(slot, port.DATA_END), data)
        if m.is_null(other):
            count_up(counters, stats.REDIRECT_NO_PORT, 1)
            m.store_u32(control, C_NO_PORT, SOCKETS_AT + number)
        elif send(m.load_u32(other, F_KIND), m.load_ptr(other, F_QUEUE), data, length) == 0:
            count_up(counters, stats.REDIRECT_FULL, 1)
        else:
            count_up(counters, stats.TX_BYTES, length)
        return 0

    return to_socket


TO_SOCKET = Template("redirect_to_socket", _to_socket, "i64(ptr, ptr, ptr, i64)",
                     (COUNT_UP, FIND_FLOW), inline=False)


def _elsewhere(m: Any) -> Factory:
    run_egress, run_broadcast = m.extern(EGRESS), m.extern(BROADCAST)
    hand_over, put_packet = m.extern(HAND_OVER), m.extern(PUT_PACKET)
    to_socket = m.extern(TO_SOCKET)

    def redirect_elsewhere(control, flow, slot, how):  # type: ignore
        """-> 1: the packet leaves by the interface that is its target; 0: all is done but for
        giving back its frame."""
        kind = how & st.HOW_KIND
        program = (how >> st.HOW_PROGRAM) & st.HOW_PROGRAM_MASK
        target = m.load_u32(slot, port.TARGET)
        if kind == st.HOW_INTERFACE:
            return run_egress(control, flow, slot, program, target)
        if kind == st.HOW_MANY:
            run_broadcast(control, flow, slot, target, program)
            return 0
        if kind == st.HOW_WORKER:
            hand_over(control, flow, slot, how)
            return 0
        if kind == st.HOW_RING:
            rings = m.load_u32(control, C_RINGS)
            if target > rings:
                to_socket(control, flow, slot, target - rings)
            else:
                put_packet(control, flow, slot)
            return 0
        return 1

    return redirect_elsewhere


ELSEWHERE = Template("redirect_elsewhere", _elsewhere, "i64(ptr, ptr, ptr, i64)",
                     (EGRESS, BROADCAST, HAND_OVER, PUT_PACKET, TO_SOCKET), inline=False)
