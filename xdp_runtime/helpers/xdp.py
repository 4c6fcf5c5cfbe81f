"""What XDP adds: moving the packet's edges, and redirect.

The arithmetic and the order of the checks are those of net/core/filter.c (Linux 6.18).  The offset
is a C `int`: only the low 32 bits of the register count.  HARD_START of the run state lies behind
the struct xdp_frame that the kernel keeps in the headroom, FRAME_END before the tailroom it keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xdp_runtime import state
from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine, Pointer

Factory = Callable[..., Any]
EACCES, EINVAL = 13, 22
ETH_HLEN = 14
_ABORTED, _REDIRECT = int(state.Verdict.ABORTED), int(state.Verdict.REDIRECT)


def _to_int(value: int) -> int:
    """C's conversion of a register to `int`."""
    return ((value & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


# --- adjust_head ---------------------------------------------------------------------------------
def _adjust_head(m: Any) -> Factory:
    def xdp_adjust_head(run, offset):  # type: ignore
        offset = ((offset & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
        data, meta = m.load_ptr(run, state.DATA), m.load_ptr(run, state.DATA_META)
        metalen = m.diff(data, meta)
        new = m.gep(data, offset)
        if m.below(new, m.gep(m.load_ptr(run, state.HARD_START), metalen)):
            return -EINVAL
        if m.below(m.gep(m.load_ptr(run, state.DATA_END), -ETH_HLEN), new):
            return -EINVAL
        new_meta = m.gep(meta, offset)
        if metalen != 0:
            m.move(new_meta, meta, metalen)
        m.store_ptr(run, state.DATA_META, new_meta)
        m.store_ptr(run, state.DATA, new)
        return 0

    return xdp_adjust_head


def _interpret_adjust_head(machine: Machine, ctx: Pointer, register: int) -> int:
    packet, offset = machine.packet, _to_int(register)
    metalen, new = packet.data - packet.data_meta, packet.data + offset
    if new < packet.hard_start + metalen or new > packet.data_end - ETH_HLEN:
        return -EINVAL
    old_meta, new_meta = packet.data_meta, packet.data_meta + offset
    packet.frame[new_meta : new_meta + metalen] = packet.frame[old_meta : old_meta + metalen]
    packet.data, packet.data_meta = new, new_meta
    return 0


# --- adjust_meta ---------------------------------------------------------------------------------
def _adjust_meta(m: Any) -> Factory:
    def xdp_adjust_meta(run, offset):  # type: ignore
        offset = ((offset & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
        data = m.load_ptr(run, state.DATA)
        new = m.gep(m.load_ptr(run, state.DATA_META), offset)
        if m.below(new, m.load_ptr(run, state.HARD_START)) or m.below(data, new):
            return -EINVAL
        metalen = m.diff(data, new)
        if metalen & 3 != 0 or metalen > state.META_MAX_BYTES:
            return -EACCES
        m.store_ptr(run, state.DATA_META, new)
        return 0

    return xdp_adjust_meta


def _interpret_adjust_meta(machine: Machine, ctx: Pointer, register: int) -> int:
    packet = machine.packet
    new = packet.data_meta + _to_int(register)
    if new < packet.hard_start or new > packet.data:
        return -EINVAL
    metalen = packet.data - new
    if metalen % 4 or metalen > state.META_MAX_BYTES:
        return -EACCES
    packet.data_meta = new
    return 0


# --- adjust_tail ---------------------------------------------------------------------------------
def _adjust_tail(m: Any) -> Factory:
    def xdp_adjust_tail(run, offset):  # type: ignore
        offset = ((offset & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
        end = m.load_ptr(run, state.DATA_END)
        new = m.gep(end, offset)
        if m.below(m.load_ptr(run, state.FRAME_END), new):
            return -EINVAL
        if m.below(new, m.gep(m.load_ptr(run, state.DATA), ETH_HLEN)):
            return -EINVAL
        if offset > 0:
            m.zero(end, offset)
        m.store_ptr(run, state.DATA_END, new)
        return 0

    return xdp_adjust_tail


def _interpret_adjust_tail(machine: Machine, ctx: Pointer, register: int) -> int:
    packet, offset = machine.packet, _to_int(register)
    new = packet.data_end + offset
    if new > packet.frame_end or new < packet.data + ETH_HLEN:
        return -EINVAL
    if offset > 0:
        packet.frame[packet.data_end : new] = bytes(offset)
    packet.data_end = new
    return 0


# --- redirect ------------------------------------------------------------------------------------
def _redirect(m: Any) -> Factory:
    def xdp_redirect(run, ifindex, flags):  # type: ignore
        if flags != 0:
            return _ABORTED
        m.store_u32(run, state.REDIRECT_IFINDEX, ifindex)
        return _REDIRECT

    return xdp_redirect


def _interpret_redirect(machine: Machine, ifindex: int, flags: int) -> int:
    if flags:
        return _ABORTED
    machine.redirect_ifindex = ifindex & 0xFFFFFFFF
    return _REDIRECT


HELPERS = (
    Helper(23, "redirect", (Arg.ANYTHING, Arg.ANYTHING), Ret.SCALAR, _interpret_redirect,
           Template("xdp_redirect", _redirect, "i64(ptr, i64, i64)"), needs_state=True),
    Helper(44, "xdp_adjust_head", (Arg.CTX, Arg.ANYTHING), Ret.SCALAR, _interpret_adjust_head,
           Template("xdp_adjust_head", _adjust_head, "i64(ptr, i64)"), changes_packet=True),
    Helper(54, "xdp_adjust_meta", (Arg.CTX, Arg.ANYTHING), Ret.SCALAR, _interpret_adjust_meta,
           Template("xdp_adjust_meta", _adjust_meta, "i64(ptr, i64)"), changes_packet=True),
    Helper(65, "xdp_adjust_tail", (Arg.CTX, Arg.ANYTHING), Ret.SCALAR, _interpret_adjust_tail,
           Template("xdp_adjust_tail", _adjust_tail, "i64(ptr, i64)"), changes_packet=True),
)
