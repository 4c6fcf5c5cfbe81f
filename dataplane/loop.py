"""The worker loop: receive a batch -> prefetch -> run -> sort by verdict -> flush.

Written as templates, so it is compiled into one module with the program it runs.  A worker owns
*flows*: a receive queue with what happens to its packets.  There are two roles:

    PROGRAM  packets run through the XDP program; its verdict decides
    STACK    frames that the kernel's stack sent through its TAP; they leave by the interface

The ports of a run are named by link-time wrappers (`dispatch`): "front" are the ports programs
run on, "back" those behind which the stack lives.  With one kind of port on a side, a wrapper is a
plain call and disappears; with several it is a switch on the flow's kind.

A worker that finds nothing spins for a while, then sleeps in poll(2) on its ports and on an event
that `stop` signals.  How long it spins adapts (patience.py).  If the program sets timers, what is
due is fired once a round, and a sleep ends when the next one is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dataplane import chains, patience, port, stats
from dataplane.aborted import NOTE
from dataplane.capture_put import AT_EXIT
from dataplane.inbox import COLLECT
from dataplane.mesh import ALL_DONE, GET_UP, LIE_DOWN, PUBLISH
from dataplane.one_pass import BEGIN_FLOWS, BEGIN_RUN, END_RUN, wrappers
from dataplane.one_pass import flow as one_pass_flow
from dataplane.port import PortKind
from dataplane.redirect import ELSEWHERE
from dataplane.ring_put import PUBLISH_RINGS
from dataplane.scouting import JUDGE, LOOK_AHEAD
from dataplane.worker_block import (
    C_BATCH,
    C_BATCH_SIZE,
    C_BUSY_POLL,
    C_EXIT_WHEN_IDLE,
    C_FLOW_TABLE,
    C_FLOWS,
    C_HOWS,
    C_INBOX,
    C_LOOK_AHEAD,
    C_NO_PORT,
    C_POLLFD_COUNT,
    C_POLLFDS,
    C_PROGRAM_MEMORY,
    C_QUEUED,
    C_RING_TIME,
    C_ROUNDS,
    C_STOP,
    C_TAP_TABLE,
    C_TAPS,
    C_WHERE,
    C_WHERE_FLOW,
    C_WORKER_ID,
    COUNT_UP,
    F_FRAMES,
    F_IFINDEX,
    F_KIND,
    F_PARTNER,
    F_PAUSED,
    F_QUEUE,
    F_ROLE,
    F_RX_QUEUE,
    F_SCOUT,
    F_STATS,
    F_TIMESTAMPS,
    FIND_FLOW,
    FLOW_SIZE_BYTES,
    ROLE_PROGRAM,
    WHERE,
)
from xdp_runtime import state as st
from xdp_runtime.compiler.link import AROUND, ENTRY, Unit
from xdp_runtime.maps.pool import ENTER, LEAVE
from xdp_runtime.maps.scout import LARGE_BYTES
from xdp_runtime.maps.timers import TIMERS
from xdp_runtime.template import Template

WORKER = "xdpu.worker"  # i64(ptr control), exported
(_BETWEEN, _RECEIVING, _RUNNING, _DISPOSING, _STACK, _FLUSHING, _ASLEEP,
 _COLLECTING) = range(len(WHERE))
_SAMPLE = 63  # a round of 64 is timed
_CLOCK_MONOTONIC = 1
_METADATA = 2  # of F_TIMESTAMPS
_SLEEP_MS = 100
_EAGER_WAKEUPS = 64  # fruitless wake-ups in a row before a short unconditional sleep

_, _DROP, _PASS, _TX, _REDIRECT = (int(v) for v in st.Verdict)
Factory = Callable[..., Any]


def _program_flow(m: Any, several: int, dispose_batch: Template) -> Factory:
    count_up, enter, leave = m.extern(COUNT_UP), m.extern(ENTER), m.extern(LEAVE)
    chain_begin, chain_end = m.extern(chains.BEGIN), m.extern(chains.END)
    program = m.symbol(ENTRY, "i32(ptr)")
    state_bytes = st.STATE_SIZE_BYTES  # a literal, as alloca needs it
    receive = m.symbol("xdpu.front.receive", "i64(i64, ptr, ptr, i64)")
    dispose = m.extern(dispose_batch)
    look_ahead, judge = m.extern(LOOK_AHEAD), m.extern(JUDGE)
    show_taps = m.extern(SHOW_TAPS)
    begin_run, end_run = m.extern(BEGIN_RUN), m.extern(END_RUN)

    def program_flow(control, flow):  # type: ignore
        batch = m.load_ptr(control, C_BATCH)
        kind, q = m.load_u32(flow, F_KIND), m.load_ptr(flow, F_QUEUE)
        count = receive(kind, q, batch, m.load_u32(control, C_BATCH_SIZE))
        if count == 0:
            return 0
        m.store_u32(control, C_WHERE, _RUNNING)
        for i in range(count):
            m.prefetch(m.load_ptr(batch, i * port.SLOT_SIZE_BYTES + port.DATA), 0)
        run = m.alloca(state_bytes)
        counters = m.load_ptr(flow, F_STATS)
        ifindex, rx_queue = m.load_u32(flow, F_IFINDEX), m.load_u32(flow, F_RX_QUEUE)
        worker, memory = m.load_u32(control, C_WORKER_ID), m.load_ptr(control, C_PROGRAM_MEMORY)
        timestamps, hows = m.load_u32(flow, F_TIMESTAMPS), m.load_ptr(control, C_HOWS)
        received = slots = fragments = 0  # `slots` have been run, or are fragments
        packets = count
        taps = m.load_u32(control, C_TAPS)
        if taps != 0:
            show_taps(control, flow, count)
        enter(memory)
        began = look_ahead(m.load_u32(control, C_LOOK_AHEAD), m.gep(flow, F_SCOUT), batch, count,
                           ifindex, rx_queue, worker, memory)
        for i in range(count):
            if several != 0 and i < slots:
                continue
            slot = m.gep(batch, i * port.SLOT_SIZE_BYTES)
            data, end = m.load_ptr(slot, port.DATA), m.load_ptr(slot, port.DATA_END)
            received += m.diff(end, data)
            if several != 0:
                fragments = chain_begin(run, slot, flow)
                received += m.load_u32(run, st.FRAGMENT_BYTES)
                slots = i + 1 + fragments
                packets -= fragments
            begin_run(run, slot, ifindex, rx_queue, worker, memory)
            if timestamps != 0:
                timestamp = m.load_u64(slot, port.RX_TIMESTAMP)
                if timestamps & _METADATA != 0:
                    record = m.gep(data, -port.METADATA_BYTES)
                    m.store_u32(run, st.RX_KNOWN, m.load_u32(record, port.METADATA_KNOWN))
                    m.store_u32(run, st.RX_HASH, m.load_u32(record, port.METADATA_HASH))
                    m.store_u32(run, st.RX_HASH_TYPE, m.load_u32(record, port.METADATA_HASH_TYPE))
                    m.store_u16(run, st.RX_VLAN_PROTO, m.load_u16(record, port.METADATA_VLAN_PROTO))
                    m.store_u16(run, st.RX_VLAN_TCI, m.load_u16(record, port.METADATA_VLAN_TCI))
                elif timestamp != 0:
                    m.store_u32(run, st.RX_KNOWN, st.KNOWS_TIMESTAMP)
                m.store_u64(run, st.RX_TIMESTAMP, timestamp)
            verdict = program(run)
            end_run(run, slot, m.gep(hows, i * 8), verdict)
            if several != 0 and fragments != 0:
                chain_end(run, slot, fragments)
        if began != 0:
            judge(m.gep(flow, F_SCOUT), count, began)
        count_up(counters, stats.RX_PACKETS, packets)
        count_up(counters, stats.RX_BYTES, received)
        count_up(counters, stats.BATCHES, 1)
        if taps != 0:
            show_taps(control, flow, count | AT_EXIT)
        m.store_u32(control, C_WHERE, _DISPOSING)
        dispose(control, flow, batch, hows, count)
        leave(memory)  # not before programs of a map's entry have run
        return count

    return program_flow


def _show_taps(m: Any) -> Factory:
    def show_taps(control, flow, what):  # type: ignore
        """A batch as it came in, or with its verdicts, to those who capture (capture.py)."""
        for i in range(m.load_u32(control, C_TAPS)):
            entry = m.gep(m.load_ptr(control, C_TAP_TABLE), i * 16)
            m.call_tap(m.load_ptr(entry, 0), m.load_ptr(entry, 8), control, flow, what)
        return 0

    return show_taps


def _dispose(m: Any) -> Factory:
    count_up = m.extern(COUNT_UP)
    release = m.symbol("xdpu.front.release", "i64(i64, ptr, ptr)")
    transmit = m.symbol("xdpu.front.transmit", "i64(i64, ptr, ptr)")
    send = m.symbol("xdpu.front.send", "i64(i64, ptr, ptr, i64)")
    deliver = m.symbol("xdpu.back.send", "i64(i64, ptr, ptr, i64)")
    find, elsewhere, note = m.extern(FIND_FLOW), m.extern(ELSEWHERE), m.extern(NOTE)

    def dispose(control, flow, batch, hows, count):  # type: ignore
        """Each packet to where its verdict says; every frame goes back or out exactly once."""
        kind, q = m.load_u32(flow, F_KIND), m.load_ptr(flow, F_QUEUE)
        counters = m.load_ptr(flow, F_STATS)
        partner = m.load_u32(flow, F_PARTNER)
        frames = m.load_u64(flow, F_FRAMES)
        aborted = dropped = passed = sent = redirected = sent_bytes = 0
        tx_full = no_port = redirect_full = pass_full = 0
        for i in range(count):
            slot = m.gep(batch, i * port.SLOT_SIZE_BYTES)
            verdict = m.load_u32(slot, port.VERDICT)
            data = m.load_ptr(slot, port.DATA)
            length = m.diff(m.load_ptr(slot, port.DATA_END), data)
            if verdict == _TX:
                sent += 1
                if transmit(kind, q, slot) == 0:
                    tx_full += 1
                else:
                    sent_bytes += length
                continue
            if verdict == _PASS:
                passed += 1
                if partner != 0:
                    other = m.gep(control, C_FLOW_TABLE + (partner - 1) * FLOW_SIZE_BYTES)
                    if deliver(m.load_u32(other, F_KIND), m.load_ptr(other, F_QUEUE), data,
                               length) == 0:
                        pass_full += 1
            elif verdict == _DROP:
                dropped += 1
            elif verdict == _REDIRECT:
                redirected += 1
                how = m.load_u32(hows, i * 8) & (st.HOW_REFUSED - 1)
                target = m.load_u32(slot, port.TARGET)
                if how != 0:
                    if elsewhere(control, flow, slot, how) == 0:
                        m.store_u64(slot, port.REDIRECTED, how & st.HOW_KIND)
                        release(kind, q, slot)
                        continue
                    data = m.load_ptr(slot, port.DATA)
                    length = m.diff(m.load_ptr(slot, port.DATA_END), data)
                if target == m.load_u32(flow, F_IFINDEX):
                    if transmit(kind, q, slot) == 0:
                        redirect_full += 1
                    else:
                        sent_bytes += length
                    continue
                other = find(control, target)
                if m.is_null(other):
                    no_port += 1
                    m.store_u32(control, C_NO_PORT, target)
                elif frames != 0 and frames == m.load_u64(other, F_FRAMES):  # no copy
                    if transmit(kind, m.load_ptr(other, F_QUEUE), slot) == 0:
                        redirect_full += 1
                    else:
                        sent_bytes += length
                    continue
                elif send(m.load_u32(other, F_KIND), m.load_ptr(other, F_QUEUE), data,
                          length) == 0:
                    redirect_full += 1
                else:
                    sent_bytes += length
            else:
                aborted += 1
                note(control, flow, slot, verdict, m.load_u32(hows, i * 8),
                     m.load_u32(hows, i * 8 + 4), 0)
            release(kind, q, slot)
        count_up(counters, stats.ABORTED, aborted)
        count_up(counters, stats.DROP, dropped)
        count_up(counters, stats.PASS, passed)
        count_up(counters, stats.TX, sent)
        count_up(counters, stats.REDIRECT, redirected)
        count_up(counters, stats.TX_BYTES, sent_bytes)
        count_up(counters, stats.TX_FULL, tx_full)
        count_up(counters, stats.REDIRECT_NO_PORT, no_port)
        count_up(counters, stats.REDIRECT_FULL, redirect_full)
        count_up(counters, stats.PASS_FULL, pass_full)
        return 0

    return dispose


def _stack_flow(m: Any) -> Factory:
    count_up = m.extern(COUNT_UP)
    receive = m.symbol("xdpu.back.receive", "i64(i64, ptr, ptr, i64)")
    release = m.symbol("xdpu.back.release", "i64(i64, ptr, ptr)")
    send = m.symbol("xdpu.front.send", "i64(i64, ptr, ptr, i64)")

    def stack_flow(control, flow):  # type: ignore
        batch = m.load_ptr(control, C_BATCH)
        kind, q = m.load_u32(flow, F_KIND), m.load_ptr(flow, F_QUEUE)
        count = receive(kind, q, batch, m.load_u32(control, C_BATCH_SIZE))
        if count == 0:
            return 0
        partner = m.load_u32(flow, F_PARTNER)
        other = m.gep(control, C_FLOW_TABLE + (partner - 1) * FLOW_SIZE_BYTES)
        other_kind, other_queue = m.load_u32(other, F_KIND), m.load_ptr(other, F_QUEUE)
        full = sent_bytes = 0
        for i in range(count):
            slot = m.gep(batch, i * port.SLOT_SIZE_BYTES)
            data = m.load_ptr(slot, port.DATA)
            length = m.diff(m.load_ptr(slot, port.DATA_END), data)
            if send(other_kind, other_queue, data, length) == 0:
                full += 1
            sent_bytes += length
            release(kind, q, slot)
        counters = m.load_ptr(flow, F_STATS)
        count_up(counters, stats.STACK_PACKETS, count)
        count_up(counters, stats.STACK_BYTES, sent_bytes)
        count_up(counters, stats.STACK_FULL, full)
        return count

    return stack_flow


def _worker(m: Any, of_a_program: Template, before: Template) -> Factory:
    count_up = m.extern(COUNT_UP)
    program_flow, stack_flow = m.extern(of_a_program), m.extern(STACK_FLOW)
    begin = m.extern(before)
    now, note_latency = m.extern(NOW), m.extern(NOTE_LATENCY)
    publish, collect, all_done = m.extern(PUBLISH), m.extern(COLLECT), m.extern(ALL_DONE)
    lie_down, get_up = m.extern(LIE_DOWN), m.extern(GET_UP)
    publish_rings = m.extern(PUBLISH_RINGS)
    flush_all = m.extern(FLUSH_ALL)
    fire, sleep_until_due = m.symbol(TIMERS, "i64(ptr, i64)"), m.extern(SLEEP_UNTIL_DUE)
    start_patience, lasts, paid, slept = (m.extern(patience.START), m.extern(patience.LASTS),
                                          m.extern(patience.PAID), m.extern(patience.SLEPT))
    patience_bytes = patience.PATIENCE_BYTES  # a literal, as alloca needs it

    def worker(control):  # type: ignore
        flows = m.load_u32(control, C_FLOWS)
        rounds = idle = fruitless = rest = 0
        searched = 0  # rounds without a packet since the last one, or sleep
        waiting = m.gep(m.alloca(patience_bytes), 0)
        start_patience(waiting)
        begin(control)
        while m.acquire_u32(control, C_STOP) == 0:
            work = began = 0
            owed, rest = rest, 0
            if rounds & _SAMPLE == 0:
                began = now()
            for i in range(flows):
                flow = m.gep(control, C_FLOW_TABLE + i * FLOW_SIZE_BYTES)
                if m.load_u32(flow, F_PAUSED) != 0:
                    continue
                m.store_u32(control, C_WHERE_FLOW, i)
                if m.load_u32(flow, F_ROLE) == ROLE_PROGRAM:
                    m.store_u32(control, C_WHERE, _RECEIVING)
                    work += program_flow(control, flow)
                elif idle > 0 or owed > 0 or rounds & 15 == 0:  # asking a TAP is a system call
                    m.store_u32(control, C_WHERE, _STACK)
                    count = stack_flow(control, flow)
                    work += count
                    if count == m.load_u32(control, C_BATCH_SIZE):
                        rest = 1  # of a large packet, perhaps: poll(2) knows nothing of that
            if m.load_u32(control, C_QUEUED) != 0:
                publish(control)
            if not m.is_null(m.load_ptr(control, C_INBOX)):
                m.store_u32(control, C_WHERE, _COLLECTING)
                work += collect(control)
            if m.load_u64(control, C_RING_TIME) != 0:
                publish_rings(control)
            rounds += 1
            m.store_u64(control, C_ROUNDS, rounds)
            if work != 0 or idle == 0:
                m.store_u32(control, C_WHERE, _FLUSHING)
                flush_all(control)
            m.store_u32(control, C_WHERE, _BETWEEN)
            due = fire(m.load_ptr(control, C_PROGRAM_MEMORY), m.load_u32(control, C_WORKER_ID))
            if due == 0:  # more timers than are fired at once
                work += 1
            if work != 0:
                if began != 0:
                    note_latency(control, now() - began)
                if searched > 0:
                    paid(waiting, now())
                idle = fruitless = searched = 0
                continue
            idle += 1
            if m.load_u32(control, C_EXIT_WHEN_IDLE) != 0:
                if all_done(control) != 0:
                    return 1
                m.pause()
                continue
            if m.load_u32(control, C_BUSY_POLL) != 0:
                m.pause()
                continue
            searched += 1
            if lasts(waiting, searched, now()) != 0:
                m.pause()
                continue
            counters = m.load_ptr(control, C_FLOW_TABLE + F_STATS)
            count_up(counters, stats.IDLE_POLLS, 1)
            m.store_u32(control, C_WHERE, _ASLEEP)
            asleep_ms = _SLEEP_MS * lie_down(control)
            if due < 0:
                ready = m.c_poll(m.load_ptr(control, C_POLLFDS),
                                 m.load_u32(control, C_POLLFD_COUNT), asleep_ms)
            else:
                ready = sleep_until_due(control, m.smaller(due, asleep_ms * 1_000_000))
            get_up(control)
            fruitless += 1
            if fruitless > _EAGER_WAKEUPS:  # a descriptor that is always ready, e.g. in error
                m.c_poll(m.null(), 0, 1)
            slept(waiting, ready)
            idle, searched = 1, 0
        flush_all(control)  # twice: a port may wait for the second to send what it has collected
        flush_all(control)
        return 0

    return worker


def _nothing_to_begin(m: Any) -> Factory:
    def nothing_to_begin(control):  # type: ignore
        return 0

    return nothing_to_begin


def _flush_all(m: Any) -> Factory:
    flush_front = m.symbol("xdpu.front.flush", "i64(i64, ptr)")
    flush_back = m.symbol("xdpu.back.flush", "i64(i64, ptr)")

    def flush_all(control):  # type: ignore
        for i in range(m.load_u32(control, C_FLOWS)):
            flow = m.gep(control, C_FLOW_TABLE + i * FLOW_SIZE_BYTES)
            q = m.load_ptr(flow, F_QUEUE)
            if m.load_u32(flow, F_ROLE) == ROLE_PROGRAM:
                flush_front(m.load_u32(flow, F_KIND), q)
            else:
                flush_back(m.load_u32(flow, F_KIND), q)
        return 0

    return flush_all


def _now(m: Any) -> Factory:
    def now():  # type: ignore
        time = m.gep(m.alloca(16), 0)
        m.c_clock_gettime(_CLOCK_MONOTONIC, time)
        return m.load_u64(time, 0) * 1_000_000_000 + m.load_u64(time, 8)

    return now


def _note_latency(m: Any) -> Factory:
    def note_latency(control, took_ns):  # type: ignore
        """Count a round into the worker's histogram, which is in its first flow's block."""
        counters = m.load_ptr(control, C_FLOW_TABLE + F_STATS)
        exponent = 63 - m.leading_zeros(took_ns | 1)
        half = m.lshr(took_ns << 1, exponent) & 1
        bucket = exponent * 2 + half
        if bucket >= stats.BUCKETS:
            bucket = stats.BUCKETS - 1
        offset = stats.LATENCY + 8 * bucket
        m.store_u64(counters, offset, m.load_u64(counters, offset) + 1)
        m.store_u64(counters, stats.LATENCY_SUM, m.load_u64(counters, stats.LATENCY_SUM) + took_ns)
        return 0

    return note_latency


def _sleep_until_due(m: Any) -> Factory:
    def sleep_until_due(control, ns):  # type: ignore
        """poll(2) to the nanosecond: the next timer is due then."""
        limit = m.gep(m.alloca(16), 0)
        m.store_u64(limit, 0, ns // 1_000_000_000)
        m.store_u64(limit, 8, ns % 1_000_000_000)
        return m.c_ppoll(m.load_ptr(control, C_POLLFDS), m.load_u32(control, C_POLLFD_COUNT),
                         limit, m.null())

    return sleep_until_due


SLEEP_UNTIL_DUE = Template("sleep_until_due", _sleep_until_due, "i64(ptr, i64)", inline=False)
SHOW_TAPS = Template("show_taps", _show_taps, "i64(ptr, ptr, i64)", inline=False)
NOW = Template("worker_now", _now, "i64()", inline=False)
NOTE_LATENCY = Template("note_latency", _note_latency, "i64(ptr, i64)", inline=False)
DISPOSE = Template("dispose", _dispose, "i64(ptr, ptr, ptr, ptr, i64)",
                   (COUNT_UP, FIND_FLOW, ELSEWHERE, NOTE))
STACK_FLOW = Template("stack_flow", _stack_flow, "i64(ptr, ptr)", (COUNT_UP,), inline=False)
NOTHING_TO_BEGIN = Template("nothing_to_begin", _nothing_to_begin, "i64(ptr)")
FLUSH_ALL = Template("flush_all", _flush_all, "i64(ptr)", inline=False)


def _loop(suffix: str, several: int, dispose: Template, one_pass: bool = False) -> Template:
    flow = Template(f"program_flow{suffix}",
                    partial(_program_flow, several=several, dispose_batch=dispose),
                    "i64(ptr, ptr)", (dispose, COUNT_UP, ENTER, LEAVE, LOOK_AHEAD, JUDGE,
                                      SHOW_TAPS, BEGIN_RUN, END_RUN, chains.BEGIN, chains.END))
    if one_pass:
        flow = one_pass_flow(flow, dispose)
    begin = BEGIN_FLOWS if one_pass else NOTHING_TO_BEGIN
    return Template(f"worker_loop{suffix}", partial(_worker, of_a_program=flow, before=begin),
                    "i64(ptr)", (flow, begin, STACK_FLOW, FLUSH_ALL, COUNT_UP, NOW, NOTE_LATENCY,
                                 PUBLISH, COLLECT, ALL_DONE, LIE_DOWN, GET_UP, PUBLISH_RINGS,
                                 SLEEP_UNTIL_DUE, patience.START, patience.LASTS, patience.PAID,
                                 patience.SLEPT))


LOOP, LOOP_FRAGS = _loop("", 0, DISPOSE), _loop("_frags", 1, chains.dispose(DISPOSE))
LOOP_ONE_PASS = _loop("_one_pass", 0, DISPOSE, one_pass=True)


def unit(front: Sequence[PortKind], back: Sequence[PortKind], several: bool = False) -> Unit:
    """The loop over these kinds of ports, to be linked around a program; `several` for programs of
    section xdp.frags, which may get packets in several buffers."""
    one_pass = front[0].one_pass if len(front) == 1 and not several else None
    loop = LOOP_FRAGS if several else LOOP_ONE_PASS if one_pass else LOOP
    templates = [loop]
    if one_pass:
        templates += one_pass.templates.values()
    for kind in (*front, *back):
        templates += [kind.receive, kind.release, kind.transmit, kind.send, kind.flush]
        if several and kind.chain is not None:
            templates.append(kind.chain)
    text = "\n".join([
        dispatch("front", front, several), dispatch("back", back),
        wrappers(one_pass) if one_pass else "",
        f'define i64 @"{WORKER}"(ptr %control) {AROUND} {{',
        f"  %result = call i64 @{loop.name}(ptr %control)", "  ret i64 %result", "}",
    ])
    return Unit("loop", text, tuple(dict.fromkeys(templates)), (WORKER,),
                scout=LARGE_BYTES)


def dispatch(side: str, kinds: Sequence[PortKind], several: bool = False) -> str:
    """Link-time wrappers `xdpu.<side>.<operation>(kind, q, ...)` over the kinds of a side;
    with `several` also `chain`, which kinds without it never come to."""
    shapes = {"receive": ("ptr %b, i64 %n", "ptr %b, i64 %n"), "release": ("ptr %s", "ptr %s"),
              "transmit": ("ptr %s", "ptr %s"), "send": ("ptr %d, i64 %n", "ptr %d, i64 %n"),
              "flush": ("", "")}
    if several:
        shapes["chain"] = ("ptr %s, i64 %n", "ptr %s, i64 %n")
    out = []
    for operation, (params, arguments) in shapes.items():
        head = f'define i64 @"xdpu.{side}.{operation}"(i64 %kind, ptr %q'
        out.append(head + (f", {params}" if params else "") + ") alwaysinline {")
        call = f", {arguments}" if arguments else ""
        cases = " ".join(f"i64 {i}, label %k{i}" for i in range(1, len(kinds)))
        if not kinds:
            out += ["  ret i64 0", "}"]
            continue
        out.append(f"  switch i64 %kind, label %k0 [ {cases} ]")
        for i, kind in enumerate(kinds):
            template = getattr(kind, operation)
            if template is None:
                out += [f"k{i}:", "  ret i64 0"]
                continue
            out += [f"k{i}:", f"  %r{i} = call i64 @{template.name}(ptr %q{call})",
                    f"  ret i64 %r{i}"]
        out.append("}")
    return "\n".join(out)
