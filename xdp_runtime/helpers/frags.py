"""Packets in several buffers, as programs of section xdp.frags may get them.

`data` to `data_end` is the first buffer; what follows lies in fragments, whose records (state.py,
FRAGMENT_*) the run state points to.  A program reaches them through helpers only.  Arithmetic,
order of checks and results are those of net/core/filter.c (Linux 6.18).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xdp_runtime import state as st
from xdp_runtime.fragments import ONE_PIECE, SEVERAL
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine
    from xdp_runtime.interp_memory import Packet, Pointer

Factory = Callable[..., Any]
EINVAL = 22
ETH_HLEN = 14
_U32 = 0xFFFFFFFF
_INT_MIN = -(1 << 31)


# --- interpreted ----------------------------------------------------------------------------------
def read(packet: Packet, offset: int, size: int) -> bytes:
    """Bytes of the packet, which has them."""
    return packet.content()[offset : offset + size]


def write(packet: Packet, offset: int, content: bytes) -> None:
    """Overwrite bytes of the packet, which has so many."""
    first = packet.data_end - packet.data
    here = content[: max(first - offset, 0)]
    if here:
        packet.frame[packet.data + offset : packet.data + offset + len(here)] = here
    at, content = max(offset - first, 0), content[len(here):]
    for fragment in packet.fragments:
        here = content[: max(fragment.size - at, 0)]
        if here:
            fragment.page[fragment.start + at : fragment.start + at + len(here)] = here
        at, content = max(at - fragment.size, 0), content[len(here):]


def move_end(packet: Packet, offset: int) -> int:
    """bpf_xdp_adjust_tail() of a packet that has fragments."""
    if offset >= 0:
        last = packet.fragments[-1]
        if last.end + offset > len(last.page):
            return -EINVAL
        last.page[last.end : last.end + offset] = bytes(offset)
        last.end += offset
        return 0
    if offset == _INT_MIN:
        return 0  # its negative is itself: nothing is left to be cut off
    if -offset > packet.length - ETH_HLEN:
        return -EINVAL
    while offset and packet.fragments:
        cut = min(-offset, packet.fragments[-1].size)
        packet.fragments[-1].end -= cut
        offset += cut
        if not packet.fragments[-1].size:
            packet.fragments.pop()
    packet.data_end += offset
    return 0


# --- compiled -------------------------------------------------------------------------------------
def _adjust_tail(m: Any) -> Factory:
    length = m.extern(SEVERAL.length)

    def xdp_adjust_tail_frags(run, offset):  # type: ignore
        offset = ((offset & _U32) ^ 0x80000000) - 0x80000000
        count = m.load_u32(run, st.FRAGMENT_COUNT)
        data_end = m.load_ptr(run, st.DATA_END)
        if count == 0:
            new = m.gep(data_end, offset)
            if m.below(m.load_ptr(run, st.FRAME_END), new):
                return -EINVAL
            if m.below(new, m.gep(m.load_ptr(run, st.DATA), ETH_HLEN)):
                return -EINVAL
            if offset > 0:
                m.zero(data_end, offset)
            m.store_ptr(run, st.DATA_END, new)
            return 0
        total = m.load_u32(run, st.FRAGMENT_BYTES)
        last = m.gep(m.load_ptr(run, st.FRAGMENTS), (count - 1) * st.FRAGMENT_SIZE_BYTES)
        if offset >= 0:
            end = m.load_ptr(last, st.FRAGMENT_END)
            if m.below(m.load_ptr(last, st.FRAGMENT_ROOM), m.gep(end, offset)):
                return -EINVAL
            m.zero(end, offset)
            m.store_ptr(last, st.FRAGMENT_END, m.gep(end, offset))
            m.store_u32(run, st.FRAGMENT_BYTES, total + offset)
            return 0
        if offset == _INT_MIN:
            return 0
        shrink = -offset
        if shrink > length(run) - ETH_HLEN:
            return -EINVAL
        while count > 0 and shrink > 0:
            end = m.load_ptr(last, st.FRAGMENT_END)
            size = m.diff(end, m.load_ptr(last, st.FRAGMENT_DATA))
            cut = m.smaller(shrink, size)
            shrink -= cut
            total -= cut
            if cut == size:
                count -= 1
                last = m.gep(last, -st.FRAGMENT_SIZE_BYTES)
            else:
                m.store_ptr(last, st.FRAGMENT_END, m.gep(end, -cut))
        m.store_u32(run, st.FRAGMENT_COUNT, count)
        m.store_u32(run, st.FRAGMENT_BYTES, total)
        m.store_ptr(run, st.DATA_END, m.gep(data_end, -shrink))
        return 0

    return xdp_adjust_tail_frags


ADJUST_TAIL = Template("xdp_adjust_tail_frags", _adjust_tail, "i64(ptr, i64)", (SEVERAL.length,))


# --- bpf_xdp_pull_data ----------------------------------------------------------------------------
def interpret_pull(machine: Machine, ctx: Pointer, register: int) -> int:
    packet, wanted = machine.packet, register & _U32
    linear = packet.data_end - packet.data
    if wanted <= linear:
        return 0
    if wanted > packet.length:
        return -EINVAL
    delta, tailroom = wanted - linear, packet.frame_end - packet.data_end
    if delta > tailroom + packet.data_meta - packet.hard_start:
        return -EINVAL
    shift = max(delta - tailroom, 0)
    start, end = packet.data_meta, packet.data_end
    packet.frame[start - shift : end - shift] = packet.frame[start:end]
    packet.data_meta, packet.data = packet.data_meta - shift, packet.data - shift
    packet.data_end -= shift
    while delta:
        first = packet.fragments[0]
        part = min(delta, first.size)
        packet.frame[packet.data_end : packet.data_end + part] = (
            first.page[first.start : first.start + part])
        packet.data_end += part
        first.start += part
        delta -= part
        if not first.size:
            del packet.fragments[0]
    return 0


def _pull(m: Any) -> Factory:
    length = m.extern(SEVERAL.length)

    def xdp_pull_data_frags(run, wanted):  # type: ignore
        wanted = wanted & _U32
        data, end = m.load_ptr(run, st.DATA), m.load_ptr(run, st.DATA_END)
        delta = wanted - m.diff(end, data)
        if delta <= 0:
            return 0
        if wanted > length(run):
            return -EINVAL
        meta = m.load_ptr(run, st.DATA_META)
        shift = delta - m.diff(m.load_ptr(run, st.FRAME_END), end)
        if shift > m.diff(meta, m.load_ptr(run, st.HARD_START)):
            return -EINVAL
        if shift > 0:
            m.move(m.gep(meta, -shift), meta, m.diff(end, meta))
            m.store_ptr(run, st.DATA_META, m.gep(meta, -shift))
            m.store_ptr(run, st.DATA, m.gep(data, -shift))
            end = m.gep(end, -shift)
        record, count = m.load_ptr(run, st.FRAGMENTS), m.load_u32(run, st.FRAGMENT_COUNT)
        m.store_u32(run, st.FRAGMENT_BYTES, m.load_u32(run, st.FRAGMENT_BYTES) - delta)
        while delta > 0:
            where = m.load_ptr(record, st.FRAGMENT_DATA)
            size = m.diff(m.load_ptr(record, st.FRAGMENT_END), where)
            part = m.smaller(delta, size)
            m.copy(end, where, part)
            end = m.gep(end, part)
            delta -= part
            m.store_ptr(record, st.FRAGMENT_DATA, m.gep(where, part))
            if part == size:
                record = m.gep(record, st.FRAGMENT_SIZE_BYTES)
                count -= 1
        m.store_ptr(run, st.DATA_END, end)
        m.store_ptr(run, st.FRAGMENTS, record)
        m.store_u32(run, st.FRAGMENT_COUNT, count)
        return 0

    return xdp_pull_data_frags


def _pull_nothing(m: Any) -> Factory:
    length = m.extern(ONE_PIECE.length)

    def xdp_pull_data(run, wanted):  # type: ignore
        """There is nothing behind the first buffer."""
        return -EINVAL if wanted & _U32 > length(run) else 0

    return xdp_pull_data


PULL_DATA = Template("xdp_pull_data", _pull_nothing, "i64(ptr, i64)", (ONE_PIECE.length,))
PULL_DATA_FRAGS = Template("xdp_pull_data_frags", _pull, "i64(ptr, i64)", (SEVERAL.length,))
