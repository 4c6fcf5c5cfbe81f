"""A batch in one pass: each packet is taken, run and given back before the next one is looked at.

The usual loop (loop.py) writes a slot for each packet, runs the program on all of them and goes
through them once more.  That is some 20 memory accesses a packet, more than a virtual device of
DPDK makes itself.  Of kinds with `one_pass` (port.py) a packet's edges never leave the registers.
What is neither sent back nor dropped gets a slot all the same, and goes the usual way, behind the
others of its batch.  While a capture looks at packets they have the usual loop.

Programs that look ahead (scouting.py) see a whole batch first: they have the usual loop.  Of those
that look at no packet and send all back, or drop all, the batch is one thing (`_all_alike`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dataplane import port, stats
from dataplane.port import OnePass
from dataplane.worker_block import (
    C_BATCH,
    C_BATCH_SIZE,
    C_FLOW_TABLE,
    C_FLOWS,
    C_HOWS,
    C_PROGRAM_MEMORY,
    C_TAPS,
    C_WHERE,
    C_WORKER_ID,
    COUNT_UP,
    F_IFINDEX,
    F_QUEUE,
    F_ROLE,
    F_RX_QUEUE,
    F_STATS,
    FLOW_SIZE_BYTES,
    ROLE_PROGRAM,
    WHERE,
)
from xdp_runtime import state as st
from xdp_runtime.compiler.link import ENTRY, UNSEEN, UNSEEN_VERDICT
from xdp_runtime.maps.pool import ENTER, LEAVE
from xdp_runtime.maps.scout import STEPS
from xdp_runtime.template import Template

_RUNNING, _DISPOSING = WHERE.index("in the program"), WHERE.index("passing packets on")
_, _DROP, _, _TX, _ = (int(v) for v in st.Verdict)
_SHAPES = {"begin": ("ptr",), "burst": ("ptr", "ptr", "i64"), "group": ("ptr",),
           "fit": ("ptr", "ptr", "i64", "i64"), "open": ("ptr", "ptr", "i64", "ptr"),
           "release": ("ptr", "ptr", "ptr"), "transmit": ("ptr", "ptr", "ptr", "i64", "i64"),
           "done": ("ptr", "ptr", "i64"), "release_all": ("ptr", "ptr", "i64"),
           "transmit_all": ("ptr", "ptr", "i64")}
Factory = Callable[..., Any]


def _begin_run(m: Any) -> Factory:
    def begin_run(run, slot, ifindex, rx_queue, worker, memory):  # type: ignore
        """The state that a program starts with, for the packet in this slot."""
        data = m.load_ptr(slot, port.DATA)
        m.store_ptr(run, st.DATA, data)
        m.store_ptr(run, st.DATA_END, m.load_ptr(slot, port.DATA_END))
        m.store_ptr(run, st.DATA_META, data)
        m.store_ptr(run, st.HARD_START, m.load_ptr(slot, port.HARD_START))
        m.store_ptr(run, st.FRAME_END, m.load_ptr(slot, port.FRAME_END))
        m.store_u32(run, st.INGRESS_IFINDEX, ifindex)
        m.store_u32(run, st.RX_QUEUE_INDEX, rx_queue)
        m.store_u32(run, st.EGRESS_IFINDEX, 0)
        m.store_u32(run, st.WORKER_ID, worker)
        m.store_u32(run, st.REDIRECT_IFINDEX, 0)
        m.store_u32(run, st.TAIL_CALLS, 0)
        m.store_ptr(run, st.WORKER, memory)
        m.store_u32(run, st.RX_KNOWN, 0)
        m.store_u64(run, st.RX_TIMESTAMP, 0)
        m.store_u64(run, st.REDIRECT_HOW, 0)  # and PROGRAM
        return 0

    return begin_run


def _end_run(m: Any) -> Factory:
    def end_run(run, slot, how, verdict):  # type: ignore
        """What the program has made of the packet, into its slot; `how` is its place in C_HOWS."""
        m.store_u64(how, 0, m.load_u64(run, st.REDIRECT_HOW))
        m.store_u32(slot, port.VERDICT, verdict)
        m.store_u32(slot, port.TARGET, m.load_u32(run, st.REDIRECT_IFINDEX))
        m.store_ptr(slot, port.DATA, m.load_ptr(run, st.DATA))
        m.store_ptr(slot, port.DATA_END, m.load_ptr(run, st.DATA_END))
        m.store_ptr(slot, port.DATA_META, m.load_ptr(run, st.DATA_META))
        return 0

    return end_run


BEGIN_RUN = Template("begin_run", _begin_run, "i64(ptr, ptr, i64, i64, i64, ptr)")
END_RUN = Template("end_run", _end_run, "i64(ptr, ptr, ptr, i64)")


def _set_aside(m: Any) -> Factory:
    open_ = _symbol(m, "open")
    hand_bytes = port.HAND_BYTES

    def set_aside(q, i, slot, how, verdict, data, end, meta):  # type: ignore
        """A packet that is dropped, but not by `release`, gets a slot after all."""
        open_(q, m.alloca(hand_bytes), i, slot)
        m.store_u64(how, 0, 0)
        m.store_u32(slot, port.VERDICT, verdict)
        m.store_u32(slot, port.TARGET, 0)
        m.store_ptr(slot, port.DATA, data)
        m.store_ptr(slot, port.DATA_END, end)
        m.store_ptr(slot, port.DATA_META, meta)
        return 0

    return set_aside


SET_ASIDE = Template("set_aside", _set_aside, "i64(ptr, i64, ptr, ptr, i64, ptr, ptr, ptr)",
                     inline=False, cold=True)


def _symbol(m: Any, name: str) -> Any:
    return m.symbol(f"xdpu.one.{name}", f"i64({', '.join(_SHAPES[name])})")


def _begin_flows(m: Any) -> Factory:
    begin = _symbol(m, "begin")

    def begin_flows(control):  # type: ignore
        for i in range(m.load_u32(control, C_FLOWS)):
            flow = m.gep(control, C_FLOW_TABLE + i * FLOW_SIZE_BYTES)
            if m.load_u32(flow, F_ROLE) == ROLE_PROGRAM:
                begin(m.load_ptr(flow, F_QUEUE))
        return 0

    return begin_flows


BEGIN_FLOWS = Template("begin_flows", _begin_flows, "i64(ptr)", inline=False)


def _all_alike(m: Any) -> Factory:
    count_up, enter, leave = m.extern(COUNT_UP), m.extern(ENTER), m.extern(LEAVE)
    begin_run = m.extern(BEGIN_RUN)
    verdict_of_all, program = m.symbol(UNSEEN_VERDICT, "i64()"), m.symbol(UNSEEN, "i32(ptr)")
    burst, release_all, transmit_all = (
        _symbol(m, name) for name in ("burst", "release_all", "transmit_all"))
    state_bytes, hand_bytes, slot_bytes = st.STATE_SIZE_BYTES, port.HAND_BYTES, port.SLOT_SIZE_BYTES

    def all_alike(control, flow):  # type: ignore
        """A batch whose packets all have the same verdict, TX or DROP, and that no program sees."""
        q, hand = m.load_ptr(flow, F_QUEUE), m.alloca(hand_bytes)
        count = burst(q, hand, m.load_u32(control, C_BATCH_SIZE))
        if count == 0:
            return 0
        m.store_u32(control, C_WHERE, _RUNNING)
        counters = m.load_ptr(flow, F_STATS)
        run, slot = m.alloca(state_bytes), m.alloca(slot_bytes)
        ifindex, rx_queue = m.load_u32(flow, F_IFINDEX), m.load_u32(flow, F_RX_QUEUE)
        worker, memory = m.load_u32(control, C_WORKER_ID), m.load_ptr(control, C_PROGRAM_MEMORY)
        enter(memory)
        for _ in range(count):
            begin_run(run, slot, ifindex, rx_queue, worker, memory)
            program(run)
        leave(memory)
        count_up(counters, stats.BATCHES, 1)
        count_up(counters, stats.RX_PACKETS, count)
        m.store_u32(control, C_WHERE, _DISPOSING)
        if verdict_of_all() == _TX:
            count_up(counters, stats.TX, count)
            count_up(counters, stats.UNMEASURED, count)
            transmit_all(q, hand, count)
        else:
            count_up(counters, stats.DROP, count)
            count_up(counters, stats.RX_BYTES, release_all(q, hand, count))
        return count

    return all_alike


ALL_ALIKE = Template("all_alike", _all_alike, "i64(ptr, ptr)", (COUNT_UP, ENTER, LEAVE, BEGIN_RUN))


def _flow(m: Any, of_slots: Template, dispose: Template) -> Factory:
    set_aside = m.extern(SET_ASIDE)
    count_up, enter, leave = m.extern(COUNT_UP), m.extern(ENTER), m.extern(LEAVE)
    begin_run, end_run = m.extern(BEGIN_RUN), m.extern(END_RUN)
    slots_flow, dispose_others = m.extern(of_slots), m.extern(dispose)
    program, steps_of = m.symbol(ENTRY, "i32(ptr)"), m.symbol(STEPS, "i64()")
    burst, group, fit, open_, release, transmit, done = (_symbol(m, name) for name in (
        "burst", "group", "fit", "open", "release", "transmit", "done"))
    verdict_of_all, all_alike = m.symbol(UNSEEN_VERDICT, "i64()"), m.extern(ALL_ALIKE)
    state_bytes, hand_bytes, slot_bytes = st.STATE_SIZE_BYTES, port.HAND_BYTES, port.SLOT_SIZE_BYTES

    def one_pass_flow(control, flow):  # type: ignore
        if steps_of() != 0 or m.load_u32(control, C_TAPS) != 0:
            return slots_flow(control, flow)
        if verdict_of_all() == _TX or verdict_of_all() == _DROP:
            return all_alike(control, flow)
        q, hand = m.load_ptr(flow, F_QUEUE), m.alloca(hand_bytes)
        count = burst(q, hand, m.load_u32(control, C_BATCH_SIZE))
        if count == 0:
            return 0
        m.store_u32(control, C_WHERE, _RUNNING)
        counters = m.load_ptr(flow, F_STATS)
        count_up(counters, stats.BATCHES, 1)
        run, slot = m.alloca(state_bytes), m.alloca(slot_bytes)
        batch, hows = m.load_ptr(control, C_BATCH), m.load_ptr(control, C_HOWS)
        ifindex, rx_queue = m.load_u32(flow, F_IFINDEX), m.load_u32(flow, F_RX_QUEUE)
        worker, memory = m.load_u32(control, C_WORKER_ID), m.load_ptr(control, C_PROGRAM_MEMORY)
        # of a packet that is sent as it came only the first one changes
        received = unsent = missing = others = tx_full = 0
        enter(memory)
        first, together = 0, group(q)
        while first < count:
            count = fit(q, hand, first, count)
            for i in range(first, m.smaller(first + together, count)):
                open_(q, hand, i, slot)
                start, stop = m.load_ptr(slot, port.DATA), m.load_ptr(slot, port.DATA_END)
                length = m.diff(stop, start)
                received += length
                begin_run(run, slot, ifindex, rx_queue, worker, memory)
                verdict = program(run)
                data, end = m.load_ptr(run, st.DATA), m.load_ptr(run, st.DATA_END)
                if verdict == _TX:
                    m.store_ptr(slot, port.DATA, data)
                    m.store_ptr(slot, port.DATA_END, end)
                    if transmit(q, hand, slot, i, missing) == 0:
                        missing += 1
                        tx_full += 1
                        unsent += length
                    elif m.diff(data, start) != 0 or m.diff(end, stop) != 0:
                        unsent += length - m.diff(end, data)
                    continue
                missing += 1
                unsent += length
                if verdict != _DROP:
                    other = m.gep(batch, others * slot_bytes)
                    m.store_ptr(other, port.HARD_START, m.load_ptr(slot, port.HARD_START))
                    m.store_ptr(other, port.FRAME_END, m.load_ptr(slot, port.FRAME_END))
                    m.store_u64(other, port.COOKIE, m.load_u64(slot, port.COOKIE))
                    end_run(run, other, m.gep(hows, others * 8), verdict)
                    others += 1
                elif release(q, hand, slot) == 0:
                    set_aside(q, i, m.gep(batch, others * slot_bytes), m.gep(hows, others * 8),
                              verdict, data, end, m.load_ptr(run, st.DATA_META))
                    others += 1
            first += together
        sent = count - missing
        done(q, hand, sent)
        count_up(counters, stats.RX_PACKETS, count)
        count_up(counters, stats.RX_BYTES, received)
        count_up(counters, stats.DROP, missing - tx_full - others)
        count_up(counters, stats.TX, sent + tx_full)
        count_up(counters, stats.TX_BYTES, received - unsent)
        count_up(counters, stats.TX_FULL, tx_full)
        if others != 0:
            m.store_u32(control, C_WHERE, _DISPOSING)
            dispose_others(control, flow, batch, hows, others)
        leave(memory)  # not before programs of a map's entry have run
        return count

    return one_pass_flow


def flow(of_slots: Template, dispose: Template) -> Template:
    """`of_slots(control, flow)` in one pass where that can be."""
    def cold(m: Any) -> Factory:
        inlined = m.extern(dispose)

        def dispose_others(control, flow, batch, hows, count):  # type: ignore
            return inlined(control, flow, batch, hows, count)

        return dispose_others

    others = Template("dispose_others", cold, dispose.signature, (dispose,), inline=False)
    return Template("one_pass_flow", lambda m: _flow(m, of_slots, others), of_slots.signature,
                    (of_slots, others, COUNT_UP, ENTER, LEAVE, BEGIN_RUN, END_RUN, ALL_ALIKE,
                     SET_ASIDE))


def wrappers(kind: OnePass) -> str:
    """The names that the loop calls a kind's templates by."""
    out = []
    for name, shape in _SHAPES.items():
        arguments = ", ".join(f"{one} %a{i}" for i, one in enumerate(shape))
        out += [f'define i64 @"xdpu.one.{name}"({arguments}) alwaysinline {{',
                f"  %r = call i64 @{kind.templates[name].name}({arguments})", "  ret i64 %r", "}"]
    return "\n".join(out)
