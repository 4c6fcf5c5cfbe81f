"""Kernel functions that give, copy or fill what a dynptr describes: bpf_dynptr_slice and its like.

Of memory they give a pointer; of the packet one into the buffer that has all the bytes, else what
lies in several is copied to the caller's buffer.  Errors are those of kernel/bpf/helpers.c and
bpf_xdp_pointer() of Linux 6.18.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from xdp_runtime import state as st
from xdp_runtime.fragments import ONE_PIECE, SEVERAL, Pieces
from xdp_runtime.helper_names import KERNEL_FUNCTIONS
from xdp_runtime.helpers import dynptr, frags
from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.maps.ringbuf import (
    DYNPTR_DATA,
    DYNPTR_OFFSET,
    DYNPTR_READ_ONLY,
    DYNPTR_SIZE,
    DYNPTR_SIZE_MAX,
)
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine, Pointer

Factory = Callable[..., Any]
E2BIG, EINVAL, EFAULT = 7, 22, 14
_XDP = 4 << 28  # BPF_DYNPTR_TYPE_XDP, above the size
_U32, _FAR, _CHUNK = 0xFFFFFFFF, 0xFFFF, 256


# --- interpreted ----------------------------------------------------------------------------------
def _in_packet(machine: Machine, at: int, size: int) -> Pointer | None:
    """bpf_xdp_pointer(): where these bytes are, if they are in one buffer."""
    from xdp_runtime.interp_memory import PacketView, Pointer

    packet = machine.packet
    if at > _FAR or size > _FAR or at + size > packet.length:
        return None
    linear = packet.data_end - packet.data
    if at < linear or not packet.fragments:
        return Pointer(packet.view, packet.data + at) if at + size <= linear else None
    at -= linear
    for number, fragment in enumerate(packet.fragments):
        if at < fragment.size:
            view = PacketView(f"fragment {number}", fragment.page, fragment.start, fragment.end,
                              0x180000000000 + number * 0x100000000)
            return Pointer(view, fragment.start + at) if at + size <= fragment.size else None
        at -= fragment.size
    return Pointer(packet.view, packet.data + at) if at + size <= linear else None


def _slice(machine: Machine, place: Pointer, offset: int, buffer: Pointer | int, size: int,
           ) -> Pointer | int:
    one = dynptr.get(place)
    offset, size = offset & _U32, size & _U32
    if one is None or not dynptr.has(one, offset, size):
        return 0
    if one.data is not None:
        return one.data.moved(offset)
    at = one.first + offset
    found = _in_packet(machine, at, size)
    if found is not None or isinstance(buffer, int):
        return 0 if found is None else found
    buffer.write(machine.packet.content()[at : at + size])
    return buffer


def _interpret_slice_rdwr(machine: Machine, place: Pointer, offset: int, buffer: Pointer | int,
                          size: int) -> Pointer | int:
    one = dynptr.get(place)
    return 0 if one is None or one.read_only else _slice(machine, place, offset, buffer, size)


def _interpret_clone(machine: Machine, place: Pointer, clone: Pointer) -> int:
    one = dynptr.get(place)
    dynptr.put(clone, one)
    return 0 if one is not None else -EINVAL


def _read(machine: Machine, place: Pointer, offset: int, size: int) -> bytes | int:
    """__bpf_dynptr_read()"""
    one = dynptr.get(place)
    offset &= _U32
    if one is None:
        return -EINVAL
    if not dynptr.has(one, offset, size):
        return -E2BIG
    if one.data is not None:
        return one.data.moved(offset).read(size)
    at = one.first + offset
    if at > _FAR or size > _FAR:
        return -EFAULT
    return frags.read(machine.packet, at, size) if at + size <= machine.packet.length else -EINVAL


def _parts(machine: Machine, place: Pointer, offset: int, size: int) -> list[tuple[int, int]]:
    """(where, bytes) in each buffer: the kernel copies one after the other, which shows where
    source and target overlap."""
    one, packet = dynptr.get(place), machine.packet
    assert one is not None and one.data is None
    begin, buffer, parts = one.first + offset, 0, []
    for length in (packet.data_end - packet.data, *(each.size for each in packet.fragments)):
        low, high = max(begin, buffer), min(begin + size, buffer + length)
        if low < high:
            parts.append((low - begin, high - low))
        buffer += length
    return parts


def _write(machine: Machine, place: Pointer, offset: int, content: bytes,
           only_check: bool = False) -> int:
    """__bpf_dynptr_write()"""
    one = dynptr.get(place)
    offset &= _U32
    if one is None or one.read_only:
        return -EINVAL
    if not dynptr.has(one, offset, len(content)):
        return -E2BIG
    if one.data is not None:  # in one piece, so not `only_check`
        one.data.moved(offset).write(content)
        return 0
    at = one.first + offset
    if at > _FAR or len(content) > _FAR:
        return -EFAULT
    if at + len(content) > machine.packet.length:
        return -EINVAL
    if not only_check:
        frags.write(machine.packet, at, content)
    return 0


def _interpret_copy(machine: Machine, to: Pointer, to_offset: int, source: Pointer,
                    source_offset: int, size: int) -> int:
    to_offset, source_offset, size = to_offset & _U32, source_offset & _U32, size & _U32
    here = _slice(machine, source, source_offset, 0, size)
    there = _interpret_slice_rdwr(machine, to, to_offset, 0, size)
    if here and there:
        assert not isinstance(here, int) and not isinstance(there, int)
        there.write(here.read(size))
        return 0
    if not isinstance(here, int):
        error = _write(machine, to, to_offset, here.read(size), only_check=True)
        for at, part in [] if error else _parts(machine, to, to_offset, size):
            _write(machine, to, to_offset + at, here.moved(at).read(part))
        return error
    if not isinstance(there, int):
        content = _read(machine, source, source_offset, size)
        if isinstance(content, int):
            return content
        for at, part in _parts(machine, source, source_offset, size):
            content = _read(machine, source, source_offset + at, part)
            assert not isinstance(content, int)
            there.moved(at).write(content)
        return 0
    for place, offset in ((to, to_offset), (source, source_offset)):
        one = dynptr.get(place)
        if not (dynptr.has(one, offset, size) if one is not None else offset == size == 0):
            return -E2BIG
    for at in range(0, size, _CHUNK):
        chunk = _read(machine, source, source_offset + at, min(_CHUNK, size - at))
        error = chunk if isinstance(chunk, int) else _write(machine, to, to_offset + at, chunk)
        if error:
            return error
    return 0


def _interpret_memset(machine: Machine, place: Pointer, offset: int, size: int, value: int) -> int:
    offset, size, fill = offset & _U32, size & _U32, bytes([value & 0xFF])
    where = _interpret_slice_rdwr(machine, place, offset, 0, size)
    if not isinstance(where, int):
        where.write(fill * size)
        return 0
    one = dynptr.get(place)
    if one is not None and one.read_only:
        return -EINVAL
    if not (dynptr.has(one, offset, size) if one is not None else offset == size == 0):
        return -E2BIG
    for at in range(0, size, _CHUNK):
        error = _write(machine, place, offset + at, fill * min(_CHUNK, size - at))
        if error:
            return error
    return 0


# --- compiled -------------------------------------------------------------------------------------
def _pointer(m: Any) -> Factory:
    def packet_pointer(run, at, size):  # type: ignore
        """bpf_xdp_pointer(); null: in several buffers, or not there"""
        data = m.load_ptr(run, st.DATA)
        if at > _FAR or size > _FAR or at + size > m.diff(m.load_ptr(run, st.DATA_END), data):
            return m.null()
        return m.gep(data, at)

    return packet_pointer


def _frags_pointer(m: Any) -> Factory:
    length = m.extern(SEVERAL.length)

    def frags_pointer(run, at, size):  # type: ignore
        if at > _FAR or size > _FAR or at + size > length(run):
            return m.null()
        where = m.load_ptr(run, st.DATA)
        has = m.diff(m.load_ptr(run, st.DATA_END), where)
        if at >= has:
            record, left = m.load_ptr(run, st.FRAGMENTS), m.load_u32(run, st.FRAGMENT_COUNT)
            while left > 0 and at >= has:
                at -= has
                where = m.load_ptr(record, st.FRAGMENT_DATA)
                has = m.diff(m.load_ptr(record, st.FRAGMENT_END), where)
                record = m.gep(record, st.FRAGMENT_SIZE_BYTES)
                left -= 1
        if at + size > has:
            return m.null()
        return m.gep(where, at)

    return frags_pointer


_ONE = Template("packet_pointer", _pointer, "ptr(ptr, i64, i64)")
_MANY = Template("frags_pointer", _frags_pointer, "ptr(ptr, i64, i64)", (SEVERAL.length,),
                 inline=False)


def _sliced(m: Any, pieces: Pieces, pointer: Template, write: int) -> Factory:
    part, find = m.extern(dynptr.PART), m.extern(pointer)
    length, copy = m.extern(pieces.length), m.extern(pieces.copy)

    def dynptr_slice(place, offset, buffer, size):  # type: ignore
        offset, size = offset & _U32, size & _U32
        run = m.load_ptr(place, DYNPTR_DATA)
        info = m.load_u32(place, DYNPTR_SIZE)
        if m.is_null(run) or (write != 0 and info & DYNPTR_READ_ONLY != 0):
            return m.null()
        where = part(place, offset, size)
        if m.is_null(where) or info & _XDP == 0:
            return where
        at = (m.load_u32(place, DYNPTR_OFFSET) + offset) & _U32
        found = find(run, at, size)
        if not m.is_null(found) or m.is_null(buffer):
            return found
        has = length(run) - at
        if has > 0:
            copy(run, at, buffer, m.smaller(has, size), 0)
        return buffer

    return dynptr_slice


def _slicer(name: str, pieces: Pieces, pointer: Template, write: int) -> Template:
    return Template(name, partial(_sliced, pieces=pieces, pointer=pointer, write=write),
                    "ptr(ptr, i64, ptr, i64)", (dynptr.PART, pointer, *pieces.templates))


_SLICE = _slicer("dynptr_slice", ONE_PIECE, _ONE, 0)
_SLICE_FRAGS = _slicer("dynptr_slice_frags", SEVERAL, _MANY, 0)
_RDWR = _slicer("dynptr_slice_rdwr", ONE_PIECE, _ONE, 1)
_RDWR_FRAGS = _slicer("dynptr_slice_rdwr_frags", SEVERAL, _MANY, 1)


def _clone(m: Any) -> Factory:
    init = m.extern(dynptr.INIT)

    def dynptr_clone(place, clone):  # type: ignore
        if m.is_null(m.load_ptr(place, DYNPTR_DATA)):
            init(clone, m.null(), 0)
            return -EINVAL
        m.move(clone, place, 16)
        return 0

    return dynptr_clone


def _copied(m: Any, look: Template, change: Template, read: Template, write: Template) -> Factory:
    look_at, room = m.extern(look), m.extern(change)
    load, store = m.extern(read), m.extern(write)

    def dynptr_copy(to, to_offset, source, source_offset, size):  # type: ignore
        to_offset, source_offset = to_offset & _U32, source_offset & _U32
        size = size & _U32
        here = look_at(source, source_offset, m.null(), size)
        there = room(to, to_offset, m.null(), size)
        if not m.is_null(here):
            if m.is_null(there):
                return store(to, to_offset, here, size, 0)
            m.move(there, here, size)
            return 0
        if not m.is_null(there):
            return load(there, size, source, source_offset, 0)
        if (size > m.load_u32(to, DYNPTR_SIZE) & DYNPTR_SIZE_MAX
                or to_offset > (m.load_u32(to, DYNPTR_SIZE) & DYNPTR_SIZE_MAX) - size
                or size > m.load_u32(source, DYNPTR_SIZE) & DYNPTR_SIZE_MAX
                or source_offset > (m.load_u32(source, DYNPTR_SIZE) & DYNPTR_SIZE_MAX) - size):
            return -E2BIG
        buffer = m.gep(m.alloca(256), 0)
        at = 0
        while at < size:
            chunk = m.smaller(_CHUNK, size - at)
            error = load(buffer, chunk, source, source_offset + at, 0)
            if error == 0:
                error = store(to, to_offset + at, buffer, chunk, 0)
            if error != 0:
                return error
            at += chunk
        return 0

    return dynptr_copy


def _fill(m: Any) -> Factory:
    def dynptr_fill(where, value, size):  # type: ignore
        for at in range(size):
            m.store_u8(where, at, value)
        return 0

    return dynptr_fill


_FILL = Template("dynptr_fill", _fill, "i64(ptr, i64, i64)")


def _filled(m: Any, change: Template, write: Template) -> Factory:
    room, store, fill = m.extern(change), m.extern(write), m.extern(_FILL)

    def dynptr_memset(place, offset, size, value):  # type: ignore
        offset, size = offset & _U32, size & _U32
        where = room(place, offset, m.null(), size)
        if not m.is_null(where):
            return fill(where, value, size)
        info = m.load_u32(place, DYNPTR_SIZE)
        if info & DYNPTR_READ_ONLY != 0:
            return -EINVAL
        if size > info & DYNPTR_SIZE_MAX or offset > (info & DYNPTR_SIZE_MAX) - size:
            return -E2BIG
        buffer = m.gep(m.alloca(256), 0)
        fill(buffer, value, m.smaller(_CHUNK, size))
        at = 0
        while at < size:
            chunk = m.smaller(_CHUNK, size - at)
            error = store(place, offset + at, buffer, chunk, 0)
            if error != 0:
                return error
            at += chunk
        return 0

    return dynptr_memset


def _copier(name: str, end: str) -> Template:
    uses = (_SLICE_FRAGS, _RDWR_FRAGS) if end else (_SLICE, _RDWR)
    loads = tuple(_template(word, end) for word in ("dynptr_read", "dynptr_write"))
    return Template(f"{name}{end}", partial(_copied, look=uses[0], change=uses[1], read=loads[0],
                                            write=loads[1]),
                    "i64(ptr, i64, ptr, i64, i64)", (*uses, *loads), inline=False)


def _filler(name: str, end: str) -> Template:
    change, write = _RDWR_FRAGS if end else _RDWR, _template("dynptr_write", end)
    return Template(f"{name}{end}", partial(_filled, change=change, write=write),
                    "i64(ptr, i64, i64, i64)", (change, write, _FILL), inline=False)


def _template(name: str, end: str) -> Template:
    """That of a helper of dynptr.py."""
    helper = next(one for one in dynptr.HELPERS if one.name == name)
    template = helper.frags_template if end else helper.template
    assert template is not None
    return template


_SLICED = (Arg.DYNPTR, Arg.NUMBER, Arg.BUFFER_OR_NULL, Arg.CONST_SIZE)


def _number(name: str) -> int:
    return KERNEL_FUNCTIONS[f"bpf_{name}"]


HELPERS = (
    Helper(_number("dynptr_slice"), "dynptr_slice", _SLICED, Ret.DATA_OR_NULL, _slice, _SLICE,
           frags_template=_SLICE_FRAGS, packet=True),
    Helper(_number("dynptr_slice_rdwr"), "dynptr_slice_rdwr", _SLICED, Ret.DATA_OR_NULL,
           _interpret_slice_rdwr, _RDWR, frags_template=_RDWR_FRAGS, packet=True),
    Helper(_number("dynptr_clone"), "dynptr_clone", (Arg.DYNPTR, Arg.DYNPTR_UNINIT), Ret.SCALAR,
           _interpret_clone, Template("dynptr_clone", _clone, "i64(ptr, ptr)", (dynptr.INIT,))),
    Helper(_number("dynptr_copy"), "dynptr_copy",
           (Arg.DYNPTR, Arg.NUMBER, Arg.DYNPTR, Arg.NUMBER, Arg.NUMBER), Ret.SCALAR,
           _interpret_copy, _copier("dynptr_copy", ""),
           frags_template=_copier("dynptr_copy", "_frags")),
    Helper(_number("dynptr_memset"), "dynptr_memset",
           (Arg.DYNPTR, Arg.NUMBER, Arg.NUMBER, Arg.NUMBER), Ret.SCALAR, _interpret_memset,
           _filler("dynptr_memset", ""), frags_template=_filler("dynptr_memset", "_frags")),
)
