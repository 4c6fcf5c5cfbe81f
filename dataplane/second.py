"""Run the program of a map's entry (SEC "xdp/devmap", "xdp/cpumap") on a redirected packet.

As in the kernel it sees the packet as the first program left it, metadata included, and nothing of
what its port knew of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dataplane import port
from dataplane.worker_block import C_PROGRAM_MEMORY, C_WORKER_ID
from xdp_runtime import state as st
from xdp_runtime.compiler.link import SECOND
from xdp_runtime.template import Template

Factory = Callable[..., Any]


def _run_second(m: Any) -> Factory:
    second = m.symbol(SECOND, "i32(i64, ptr)")
    state_bytes = st.STATE_SIZE_BYTES  # a literal, as alloca needs it

    def run_second(control, slot, number, ingress, egress, how):  # type: ignore
        """Run program `number` - 1 on the slot's packet -> verdict; the slot has its new edges.

        `how` gets what the run state says of a redirect: u32 target, u32 HOW_*, u32 program."""
        run = m.alloca(state_bytes)
        m.store_ptr(run, st.DATA, m.load_ptr(slot, port.DATA))
        m.store_ptr(run, st.DATA_END, m.load_ptr(slot, port.DATA_END))
        m.store_ptr(run, st.DATA_META, m.load_ptr(slot, port.DATA_META))
        m.store_ptr(run, st.HARD_START, m.load_ptr(slot, port.HARD_START))
        m.store_ptr(run, st.FRAME_END, m.load_ptr(slot, port.FRAME_END))
        m.store_u32(run, st.INGRESS_IFINDEX, ingress)
        m.store_u32(run, st.RX_QUEUE_INDEX, 0)
        m.store_u32(run, st.EGRESS_IFINDEX, egress)
        m.store_u32(run, st.WORKER_ID, m.load_u32(control, C_WORKER_ID))
        m.store_u32(run, st.REDIRECT_IFINDEX, 0)
        m.store_u32(run, st.TAIL_CALLS, 0)
        m.store_ptr(run, st.WORKER, m.load_ptr(control, C_PROGRAM_MEMORY))
        m.store_u32(run, st.RX_KNOWN, 0)
        m.store_u64(run, st.FRAGMENT_COUNT, 0)  # and their bytes
        m.store_u32(run, st.REDIRECT_HOW, 0)
        m.store_u32(run, st.PROGRAM, number - 1)
        verdict = second(number, run)
        m.store_ptr(slot, port.DATA, m.load_ptr(run, st.DATA))
        m.store_ptr(slot, port.DATA_END, m.load_ptr(run, st.DATA_END))
        m.store_ptr(slot, port.DATA_META, m.load_ptr(run, st.DATA_META))
        m.store_u32(how, 0, m.load_u32(run, st.REDIRECT_IFINDEX))
        m.store_u32(how, 4, m.load_u32(run, st.REDIRECT_HOW))
        m.store_u32(how, 8, m.load_u32(run, st.PROGRAM))
        return verdict

    return run_second


RUN_SECOND = Template("run_second", _run_second, "i64(ptr, ptr, i64, i64, i64, ptr)", inline=False)
