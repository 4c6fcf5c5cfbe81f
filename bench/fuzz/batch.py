"""One array of packets through a compiled program and through the kernel, outputs in arrays.

A packet's outcome is a row of HEADER (return value, bytes of metadata, bytes in all) and a slot
of SLOT bytes: metadata, then packet, then zeros.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from xdp_runtime import state as st
from xdp_runtime.bpf_syscall import Cmd
from xdp_runtime.compiler.link import ENTRY, Unit
from xdp_runtime.maps.pool import ENTER, LEAVE
from xdp_runtime.maps.scout import KIND, PLACE_BYTES, SCOUT, STEP, STEPS
from xdp_runtime.program import Program
from xdp_runtime.template import Template

SLOT = 4096
TAILROOM = 320  # sizeof(struct skb_shared_info), aligned: what the kernel keeps behind a packet
HEADER = np.dtype([("retval", "u4"), ("meta", "u4"), ("size", "u8")])
Header = npt.NDArray[np.void]
Slots = npt.NDArray[np.uint8]
RUN_ARRAY = "fuzz.array"


def _array(m: Any) -> Callable[..., Any]:
    enter, leave = m.extern(ENTER), m.extern(LEAVE)
    program = m.symbol(ENTRY, "i32(ptr)")
    scout, step, steps_of = m.symbol(SCOUT, "i64(ptr, ptr)"), m.extern(STEP), m.symbol(
        STEPS, "i64()")
    place_bytes = PLACE_BYTES
    state_bytes, slot, headroom, hard_start = (
        st.STATE_SIZE_BYTES, SLOT, st.HEADROOM_BYTES, st.XDP_FRAME_BYTES)
    room, rx_bytes = SLOT - TAILROOM, st.STATE_SIZE_BYTES - st.RX_KNOWN

    def run_array(first, frames, lengths, headers, out, count):  # type: ignore
        """Frames are slots with the packet behind the headroom and zeros around it."""
        worker = m.load_ptr(first, st.WORKER)
        run, place = m.alloca(state_bytes), m.alloca(place_bytes)
        for i in range(count):
            enter(worker)
            frame = m.gep(frames, i * slot)
            data = m.gep(frame, headroom)
            m.store_ptr(run, st.DATA, data)
            m.store_ptr(run, st.DATA_END, m.gep(data, m.load_u32(lengths, i * 4)))
            m.store_ptr(run, st.DATA_META, data)
            m.store_ptr(run, st.HARD_START, m.gep(frame, hard_start))
            m.store_ptr(run, st.FRAME_END, m.gep(frame, room))
            m.store_u32(run, st.INGRESS_IFINDEX, 1)
            m.store_u32(run, st.RX_QUEUE_INDEX, 0)
            m.store_u32(run, st.EGRESS_IFINDEX, 0)
            m.store_u32(run, st.WORKER_ID, 0)
            m.store_u32(run, st.REDIRECT_IFINDEX, 0)
            m.store_u32(run, st.TAIL_CALLS, 0)
            m.store_ptr(run, st.WORKER, worker)
            m.copy(m.gep(run, st.RX_KNOWN), m.gep(first, st.RX_KNOWN), rx_bytes)
            m.store_u32(place, KIND, 0)
            scout(run, place)  # as the worker loop does; nobody may notice
            for _ in range(steps_of()):
                step(place)
            verdict = program(run)
            leave(worker)
            meta = m.load_u64(run, st.DATA_META)
            size = m.load_u64(run, st.DATA_END) - meta
            header = m.gep(headers, i * 16)
            m.store_u32(header, 0, verdict)
            m.store_u32(header, 4, m.load_u64(run, st.DATA) - meta)
            m.store_u64(header, 8, size)
            m.copy(m.gep(out, i * slot), m.load_ptr(run, st.DATA_META), size)
        return 0

    return run_array


UNIT = Unit(
    "fuzz",
    f'define i64 @"{RUN_ARRAY}"(ptr %a, ptr %b, ptr %c, ptr %d, ptr %e, i64 %n) {{\n'
    "  %r = call i64 @run_array(ptr %a, ptr %b, ptr %c, ptr %d, ptr %e, i64 %n)\n"
    "  ret i64 %r\n}\n",
    (Template("run_array", _array, "i64(ptr, ptr, ptr, ptr, ptr, i64)", (ENTER, LEAVE, STEP)),),
    (RUN_ARRAY,),
    scout=SLOT,
)


class Batch:
    """Packets of 14 to 3520 bytes, laid out once; engines run on copies."""

    def __init__(self, packets: Sequence[bytes]) -> None:
        self.packets = list(packets)
        self.lengths = np.array([len(p) for p in packets], np.uint32)
        self.frames = np.zeros((len(packets), SLOT), np.uint8)
        for number, packet in enumerate(packets):
            self.frames[number, st.HEADROOM_BYTES : st.HEADROOM_BYTES + len(packet)] = (
                np.frombuffer(packet, np.uint8))

    def _outputs(self) -> tuple[Header, Slots]:
        return (np.zeros(len(self.packets), HEADER), np.zeros((len(self.packets), SLOT), np.uint8))

    def compiled(self, program: Program) -> tuple[Header, Slots]:
        headers, out = self._outputs()
        frames = self.frames.copy()
        run = (ctypes.c_char * st.STATE_SIZE_BYTES)()
        ctypes.c_uint64.from_buffer(run, st.WORKER).value = program.worker_memory(0)
        function = program.code.function(RUN_ARRAY, ctypes.c_int64,
                                         *[ctypes.c_void_p] * 5, ctypes.c_int64)
        function(ctypes.addressof(run), frames.ctypes.data, self.lengths.ctypes.data,
                 headers.ctypes.data, out.ctypes.data, len(self.packets))
        return headers, out

    def kernel(self, fd: int) -> tuple[Header, Slots]:
        """BPF_PROG_TEST_RUN of each, as fast as ctypes goes: all attrs are made beforehand."""
        headers, out = self._outputs()
        count = len(self.packets)
        context = np.zeros((count, 6), np.uint32)
        context[:, 1] = self.lengths
        after = np.zeros_like(context)
        attrs = np.zeros(count, _TEST_ATTR)
        number = np.arange(count, dtype=np.uint64)
        attrs["fd"], attrs["repeat"], attrs["size_in"] = fd, 1, self.lengths
        attrs["size_out"] = SLOT
        attrs["in"] = self.frames.ctypes.data + st.HEADROOM_BYTES + number * SLOT
        attrs["out"] = out.ctypes.data + number * SLOT
        attrs["ctx_size_in"] = attrs["ctx_size_out"] = context.itemsize * 6
        attrs["ctx_in"] = context.ctypes.data + number * 24
        attrs["ctx_out"] = after.ctypes.data + number * 24
        call, size, command = _syscall, attrs.itemsize, int(Cmd.PROG_TEST_RUN)
        base = attrs.ctypes.data
        for address in range(base, base + count * size, size):
            if call(_NR_BPF, command, address, size):
                code = ctypes.get_errno()
                raise OSError(code, f"BPF_PROG_TEST_RUN: {errno.errorcode.get(code, code)}")
        headers["retval"], headers["size"] = attrs["retval"], attrs["size_out"]
        headers["meta"] = after[:, 0]
        return headers, out


_TEST_ATTR = np.dtype([
    ("fd", "u4"), ("retval", "u4"), ("size_in", "u4"), ("size_out", "u4"), ("in", "u8"),
    ("out", "u8"), ("repeat", "u4"), ("duration", "u4"), ("ctx_size_in", "u4"),
    ("ctx_size_out", "u4"), ("ctx_in", "u8"), ("ctx_out", "u8"), ("flags", "u4"), ("cpu", "u4"),
    ("batch_size", "u4"), ("pad", "u4")])
_NR_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280}[os.uname().machine]
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong]
