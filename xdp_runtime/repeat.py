"""Run a program on one packet many times, in compiled code: `Program.run` and `Program.repeat`.

Each iteration starts from the pristine packet: bytes, pointers and run state are restored, so a
program that encapsulates does so every time.  (The kernel's BPF_PROG_TEST_RUN restores neither.)
As packets do in a batch, they lie in frames of their own: a ring of RING frames, copied some
iterations ahead, because a load right behind the copy would wait for the stores to retire.  Where
they begin and end is read from memory, as in a batch, so that LLVM knows no more than there.
The cost of copying is in the measured time; a benchmark subtracts that of a program that only
returns.

A packet that an xdp.frags program gets in several buffers lies in a frame's first page as far as
the state's edges say, and goes on in the pages behind it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from xdp_runtime import state as st
from xdp_runtime.compiler.link import AROUND, ENTRY, Unit
from xdp_runtime.maps.pool import ENTER, LEAVE
from xdp_runtime.maps.timers import TIMERS
from xdp_runtime.template import Template

FIRE = "xdpu.fire"  # i64(ptr worker memory, i64 worker): timers that are due (maps/timers.py)
REPEAT = "xdpu.repeat"  # i64(ptr state, ptr pristine, i64 length, i64 count, i64 stride)
RING = 8  # frames, `stride` bytes apart
_AHEAD = 4
_BATCH = 64  # runs between batch boundaries


def _repeat(m: Any, several: int) -> Callable[..., Any]:
    enter, leave, lay_out = m.extern(ENTER), m.extern(LEAVE), m.extern(_LAY_OUT)
    program = m.symbol(ENTRY, "i32(ptr)")
    fire = m.symbol(TIMERS, "i64(ptr, i64)")
    state_bytes = st.STATE_SIZE_BYTES  # a literal, as alloca needs it
    rx_bytes = st.RX_END - st.RX_KNOWN
    packets_bytes, ends = 2 * RING * 8, RING * 8

    def repeat_program(first, pristine, length, count, stride):  # type: ignore
        """(iterations whose verdict differed from the last one's) << 32 | last verdict"""
        data = m.load_ptr(first, st.DATA)
        front = m.diff(m.load_ptr(first, st.HARD_START), data)
        frame_end = m.load_ptr(first, st.FRAME_END)
        behind = m.diff(frame_end, data)
        worker = m.load_ptr(first, st.WORKER)
        ifindex, rx_queue = (
            m.load_u32(first, st.INGRESS_IFINDEX), m.load_u32(first, st.RX_QUEUE_INDEX))
        worker_id = m.load_u32(first, st.WORKER_ID)
        run = m.alloca(state_bytes)
        linear, pages = length, frame_end
        if several != 0:
            linear = m.diff(m.load_ptr(first, st.DATA_END), data)
            pages = m.gep(frame_end, st.SHARED_INFO_BYTES)
        rest = m.gep(pristine, linear)
        verdict, previous, changes = 0, -1, 0
        packets = m.alloca(packets_bytes)
        for i in range(RING):
            m.store_ptr(packets, i * 8, m.gep(data, i * stride))
            m.store_ptr(packets, ends + i * 8, m.gep(data, i * stride + linear))
        for i in range(_AHEAD):
            m.copy(m.gep(data, i * stride), pristine, linear)
            if several != 0:
                m.copy(m.gep(pages, i * stride), rest, length - linear)
        enter(worker)
        for i in range(count):
            if i & (_BATCH - 1) == _BATCH - 1:
                leave(worker)
                fire(worker, worker_id)
                enter(worker)
            ahead, at = (i + _AHEAD) & (RING - 1), i & (RING - 1)
            m.copy(m.load_ptr(packets, ahead * 8), pristine, linear)
            here = m.load_ptr(packets, at * 8)
            m.store_ptr(run, st.DATA, here)
            m.store_ptr(run, st.DATA_END, m.load_ptr(packets, ends + at * 8))
            m.store_ptr(run, st.DATA_META, here)
            m.store_ptr(run, st.HARD_START, m.gep(here, front))
            m.store_ptr(run, st.FRAME_END, m.gep(here, behind))
            m.store_u32(run, st.INGRESS_IFINDEX, ifindex)
            m.store_u32(run, st.RX_QUEUE_INDEX, rx_queue)
            m.store_u32(run, st.EGRESS_IFINDEX, 0)
            m.store_u32(run, st.WORKER_ID, worker_id)
            m.store_u32(run, st.REDIRECT_IFINDEX, 0)
            m.store_u32(run, st.REDIRECT_HOW, 0)
            m.store_u32(run, st.TAIL_CALLS, 0)
            m.store_ptr(run, st.WORKER, worker)
            m.copy(m.gep(run, st.RX_KNOWN), m.gep(first, st.RX_KNOWN), rx_bytes)
            if several != 0:
                m.copy(m.gep(pages, ahead * stride), rest, length - linear)
                lay_out(run, m.load_ptr(first, st.FRAGMENTS), m.gep(pages, at * stride),
                        length - linear)
            verdict = program(run)
            if verdict != previous:
                changes += 1
            previous = verdict
        leave(worker)
        m.store_ptr(first, st.DATA, m.load_ptr(run, st.DATA))
        m.store_ptr(first, st.DATA_END, m.load_ptr(run, st.DATA_END))
        m.store_ptr(first, st.DATA_META, m.load_ptr(run, st.DATA_META))
        target = m.load_u32(run, st.REDIRECT_IFINDEX)
        if m.load_u32(run, st.REDIRECT_HOW) & st.HOW_KIND != st.HOW_INTERFACE:
            target = 0
        m.store_u32(first, st.REDIRECT_IFINDEX, target)
        if several != 0:
            m.store_ptr(first, st.FRAGMENTS, m.load_ptr(run, st.FRAGMENTS))
            m.store_u32(first, st.FRAGMENT_COUNT, m.load_u32(run, st.FRAGMENT_COUNT))
        return (changes - 1) << 32 | verdict

    return repeat_program


def _lay_out(m: Any) -> Callable[..., Any]:
    def lay_out_pages(run, record, page, size):  # type: ignore
        """Make `size` bytes in pages from `page` on the packet's fragments."""
        count = 0
        m.store_ptr(run, st.FRAGMENTS, record)
        m.store_u32(run, st.FRAGMENT_BYTES, size)
        while size > 0:
            m.store_ptr(record, st.FRAGMENT_DATA, page)
            m.store_ptr(record, st.FRAGMENT_END, m.gep(page, m.smaller(size, st.PAGE_BYTES)))
            page = m.gep(page, st.PAGE_BYTES)
            m.store_ptr(record, st.FRAGMENT_ROOM, page)
            record = m.gep(record, st.FRAGMENT_SIZE_BYTES)
            size -= st.PAGE_BYTES
            count += 1
        m.store_u32(run, st.FRAGMENT_COUNT, count)
        return 0

    return lay_out_pages


_LAY_OUT = Template("lay_out_pages", _lay_out, "i64(ptr, ptr, ptr, i64)")


def _unit(name: str, several: int) -> Unit:
    template = Template(f"{name}_program", partial(_repeat, several=several),
                        "i64(ptr, ptr, i64, i64, i64)", (ENTER, LEAVE, _LAY_OUT))
    parameters = "ptr %state, ptr %packet, i64 %n, i64 %count, i64 %stride"
    return Unit(name, f'define i64 @"{REPEAT}"({parameters}) {AROUND} {{\n'
                f"  %r = call i64 @{template.name}({parameters})\n  ret i64 %r\n}}\n"
                f'define i64 @"{FIRE}"(ptr %worker, i64 %number) {{\n'
                f'  %r = call i64 @"{TIMERS}"(ptr %worker, i64 %number)\n  ret i64 %r\n}}\n',
                (template,), (REPEAT, FIRE))


UNIT, UNIT_FRAGS = _unit("repeat", 0), _unit("repeat_frags", 1)
