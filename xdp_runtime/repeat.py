"""Run a program on one packet many times, in compiled code: `Program.run` and `Program.repeat`.

Each iteration starts from the pristine packet: bytes, pointers and run state are restored, so a
program that encapsulates does so every time.  (The kernel's BPF_PROG_TEST_RUN restores neither.)
As packets do in a batch, they lie in frames of their own: a ring of RING frames, copied some
iterations ahead, because a load right behind the copy would wait for the stores to retire.
The cost of copying is in the measured time; a benchmark subtracts that of a program that only
returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xdp_runtime import state as st
from xdp_runtime.compiler.link import ENTRY, Unit
from xdp_runtime.maps.pool import ENTER, LEAVE
from xdp_runtime.template import Template

REPEAT = "xdpu.repeat"  # i64(ptr state, ptr pristine, i64 length, i64 count, i64 stride)
RING = 8  # frames, `stride` bytes apart
_AHEAD = 4
_BATCH = 64  # runs between batch boundaries


def _repeat(m: Any) -> Callable[..., Any]:
    enter, leave = m.extern(ENTER), m.extern(LEAVE)
    program = m.symbol(ENTRY, "i32(ptr)")
    state_bytes = st.STATE_SIZE_BYTES  # a literal, as alloca needs it
    rx_bytes = st.STATE_SIZE_BYTES - st.RX_KNOWN

    def repeat_program(first, pristine, length, count, stride):  # type: ignore
        """(iterations whose verdict differed from the last one's) << 32 | last verdict"""
        data = m.load_ptr(first, st.DATA)
        hard_start = m.load_ptr(first, st.HARD_START)
        frame_end = m.load_ptr(first, st.FRAME_END)
        worker = m.load_ptr(first, st.WORKER)
        ifindex, rx_queue = (
            m.load_u32(first, st.INGRESS_IFINDEX), m.load_u32(first, st.RX_QUEUE_INDEX))
        worker_id = m.load_u32(first, st.WORKER_ID)
        run = m.alloca(state_bytes)
        verdict, previous, changes = 0, -1, 0
        for i in range(_AHEAD):
            m.copy(m.gep(data, i * stride), pristine, length)
        enter(worker)
        for i in range(count):
            if i & (_BATCH - 1) == _BATCH - 1:
                leave(worker)
                enter(worker)
            m.copy(m.gep(data, ((i + _AHEAD) & (RING - 1)) * stride), pristine, length)
            at = (i & (RING - 1)) * stride
            m.store_ptr(run, st.DATA, m.gep(data, at))
            m.store_ptr(run, st.DATA_END, m.gep(data, at + length))
            m.store_ptr(run, st.DATA_META, m.gep(data, at))
            m.store_ptr(run, st.HARD_START, m.gep(hard_start, at))
            m.store_ptr(run, st.FRAME_END, m.gep(frame_end, at))
            m.store_u32(run, st.INGRESS_IFINDEX, ifindex)
            m.store_u32(run, st.RX_QUEUE_INDEX, rx_queue)
            m.store_u32(run, st.EGRESS_IFINDEX, 0)
            m.store_u32(run, st.WORKER_ID, worker_id)
            m.store_u32(run, st.REDIRECT_IFINDEX, 0)
            m.store_u32(run, st.TAIL_CALLS, 0)
            m.store_ptr(run, st.WORKER, worker)
            m.copy(m.gep(run, st.RX_KNOWN), m.gep(first, st.RX_KNOWN), rx_bytes)
            verdict = program(run)
            if verdict != previous:
                changes += 1
            previous = verdict
        leave(worker)
        m.store_ptr(first, st.DATA, m.load_ptr(run, st.DATA))
        m.store_ptr(first, st.DATA_END, m.load_ptr(run, st.DATA_END))
        m.store_ptr(first, st.DATA_META, m.load_ptr(run, st.DATA_META))
        m.store_u32(first, st.REDIRECT_IFINDEX, m.load_u32(run, st.REDIRECT_IFINDEX))
        return (changes - 1) << 32 | verdict

    return repeat_program


_TEMPLATE = Template("repeat_program", _repeat, "i64(ptr, ptr, i64, i64, i64)", (ENTER, LEAVE))
UNIT = Unit(
    "repeat",
    f'define i64 @"{REPEAT}"(ptr %state, ptr %packet, i64 %n, i64 %count, i64 %stride) {{\n'
    "  %r = call i64 @repeat_program(ptr %state, ptr %packet, i64 %n, i64 %count, i64 %stride)\n"
    "  ret i64 %r\n}\n",
    (_TEMPLATE,),
    (REPEAT,),
)
