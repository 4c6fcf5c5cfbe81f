"""What XDP adds: moving the packet's edges, and redirect.

The arithmetic and the order of the checks are those of net/core/filter.c (Linux 6.18).  The offset
is a C `int`: only the low 32 bits of the register count.  HARD_START of the run state lies behind
the struct xdp_frame that the kernel keeps in the headroom, FRAME_END before the tailroom it keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from xdp_runtime import state
from xdp_runtime.fragments import ONE_PIECE, SEVERAL, Pieces
from xdp_runtime.helper_names import KERNEL_FUNCTIONS
from xdp_runtime.helpers import frags
from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.maps.dev import BROADCAST, EXCLUDE_INGRESS
from xdp_runtime.object import MapType
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine, Pointer
    from xdp_runtime.maps.model import ModelDevMap

Factory = Callable[..., Any]
EACCES, EFAULT, EINVAL = 13, 14, 22
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
    if packet.fragments:
        return frags.move_end(packet, offset)
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
            how = m.load_u32(run, state.REDIRECT_HOW)
            m.store_u32(run, state.REDIRECT_HOW, how | state.HOW_REFUSED)
            return _ABORTED
        m.store_u32(run, state.REDIRECT_IFINDEX, ifindex)
        m.store_u32(run, state.REDIRECT_HOW, state.HOW_INTERFACE)
        return _REDIRECT

    return xdp_redirect


def _interpret_redirect(machine: Machine, ifindex: int, flags: int) -> int:
    if flags:
        machine.redirect_how |= state.HOW_REFUSED
        return _ABORTED
    machine.redirect_ifindex, machine.redirect_how = ifindex & 0xFFFFFFFF, state.HOW_INTERFACE
    return _REDIRECT


def _interpret_redirect_map(machine: Machine, map: ModelDevMap, index: int, flags: int) -> int:
    """bpf_xdp_redirect_map(), net/core/filter.c"""
    to_device = map.spec.type in (MapType.DEVMAP, MapType.DEVMAP_HASH)
    number = next((n for n, one in enumerate(machine.maps) if one is map), -1)
    many = flags & BROADCAST
    if flags & ~(3 | BROADCAST | EXCLUDE_INGRESS if to_device else 3) or (many and number < 0):
        machine.redirect_how |= state.HOW_REFUSED
        return _ABORTED
    if many:
        leave_out = int(bool(flags & EXCLUDE_INGRESS))
        machine.redirect_ifindex = number
        machine.redirect_how = state.HOW_MANY | leave_out << state.HOW_PROGRAM
        return _REDIRECT
    first, program = map.target(index)
    if not first:
        machine.redirect_ifindex, machine.redirect_how = None, 0
        return flags & 3
    how, target = program << state.HOW_PROGRAM, first
    if map.spec.type == MapType.CPUMAP:
        how, target = how | state.HOW_WORKER | first << state.HOW_QUEUE, index & 0xFFFFFFFF
    elif map.spec.type == MapType.XSKMAP:
        how = state.HOW_RING
    machine.redirect_ifindex, machine.redirect_how = target, how
    return _REDIRECT


# --- bytes of the packet -------------------------------------------------------------------------
def _interpret_get_buff_len(machine: Machine, ctx: Pointer) -> int:
    return machine.packet.length


def _bytes(m: Any, pieces: Pieces, store: int) -> Factory:
    length, copy = m.extern(pieces.length), m.extern(pieces.copy)

    def xdp_bytes(run, offset, memory, size):  # type: ignore
        offset, size = offset & 0xFFFFFFFF, size & 0xFFFFFFFF
        if offset > 0xFFFF or size > 0xFFFF:
            return -EFAULT
        if offset + size > length(run):
            return -EINVAL
        copy(run, offset, memory, size, store)
        return 0

    return xdp_bytes


def _bytes_template(name: str, pieces: Pieces, store: int) -> Template:
    return Template(name, partial(_bytes, pieces=pieces, store=store), "i64(ptr, i64, ptr, i64)",
                    pieces.templates)


LOAD_BYTES = _bytes_template("xdp_load_bytes", ONE_PIECE, 0)
STORE_BYTES = _bytes_template("xdp_store_bytes", ONE_PIECE, 1)
LOAD_BYTES_FRAGS = _bytes_template("xdp_load_bytes_frags", SEVERAL, 0)
STORE_BYTES_FRAGS = _bytes_template("xdp_store_bytes_frags", SEVERAL, 1)


def _beyond(machine: Machine, offset: int, size: int) -> int:
    """bpf_xdp_pointer()"""
    if offset > 0xFFFF or size > 0xFFFF:
        return -EFAULT
    return -EINVAL if offset + size > machine.packet.length else 0


def interpret_load_bytes(machine: Machine, ctx: Pointer | None, offset: int, to: Pointer,
                         size: int) -> int:
    offset &= 0xFFFFFFFF
    if error := _beyond(machine, offset, size):
        return error
    to.write(frags.read(machine.packet, offset, size))
    return 0


def interpret_store_bytes(machine: Machine, ctx: Pointer | None, offset: int, source: bytes,
                          size: int) -> int:
    offset &= 0xFFFFFFFF
    if error := _beyond(machine, offset, size):
        return error
    frags.write(machine.packet, offset, source)
    return 0


HELPERS = (
    Helper(23, "redirect", (Arg.ANYTHING, Arg.ANYTHING), Ret.SCALAR, _interpret_redirect,
           Template("xdp_redirect", _redirect, "i64(ptr, i64, i64)"), needs_state=True),
    Helper(51, "redirect_map", (Arg.MAP, Arg.ANYTHING, Arg.ANYTHING), Ret.SCALAR,
           _interpret_redirect_map, map_op="redirect", needs_state=True,
           maps=frozenset({MapType.DEVMAP, MapType.DEVMAP_HASH, MapType.CPUMAP, MapType.XSKMAP})),
    Helper(44, "xdp_adjust_head", (Arg.CTX, Arg.ANYTHING), Ret.SCALAR, _interpret_adjust_head,
           Template("xdp_adjust_head", _adjust_head, "i64(ptr, i64)"), changes_packet=True),
    Helper(54, "xdp_adjust_meta", (Arg.CTX, Arg.ANYTHING), Ret.SCALAR, _interpret_adjust_meta,
           Template("xdp_adjust_meta", _adjust_meta, "i64(ptr, i64)"), changes_packet=True),
    Helper(65, "xdp_adjust_tail", (Arg.CTX, Arg.ANYTHING), Ret.SCALAR, _interpret_adjust_tail,
           Template("xdp_adjust_tail", _adjust_tail, "i64(ptr, i64)"), changes_packet=True,
           frags_template=frags.ADJUST_TAIL),
    Helper(188, "xdp_get_buff_len", (Arg.CTX,), Ret.SCALAR, _interpret_get_buff_len,
           ONE_PIECE.length, frags_template=SEVERAL.length),
    Helper(189, "xdp_load_bytes", (Arg.CTX, Arg.ANYTHING, Arg.MEM_UNINIT, Arg.SIZE), Ret.SCALAR,
           interpret_load_bytes, LOAD_BYTES, frags_template=LOAD_BYTES_FRAGS),
    Helper(190, "xdp_store_bytes", (Arg.CTX, Arg.ANYTHING, Arg.MEM, Arg.SIZE), Ret.SCALAR,
           interpret_store_bytes, STORE_BYTES, frags_template=STORE_BYTES_FRAGS),
    Helper(KERNEL_FUNCTIONS["bpf_xdp_pull_data"], "xdp_pull_data", (Arg.CTX, Arg.NUMBER),
           Ret.SCALAR, frags.interpret_pull, frags.PULL_DATA, changes_packet=True,
           frags_template=frags.PULL_DATA_FRAGS),
)
