"""Dynptrs: memory whose size is known only at run time, described by 16 bytes of stack.

What they hold is the kernel's struct bpf_dynptr_kern: a pointer (null: not a dynptr), the size in
24 bits with its type and whether it is read-only above, and an offset.  Programs never look into
them.  Errors are those of kernel/bpf/helpers.c and ringbuf.c of Linux 6.18, whose offsets and
lengths are u32.

A dynptr of the packet (bpf_dynptr_from_xdp, a kernel function) points to the context instead: what
is read and written through it is found anew each time, so it outlives changes of the packet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from xdp_runtime.fragments import ONE_PIECE, SEVERAL, Pieces
from xdp_runtime.helper_names import KERNEL_FUNCTIONS
from xdp_runtime.helpers import xdp
from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.maps.ringbuf import (
    COMMIT,
    DISCARD,
    DYNPTR_DATA,
    DYNPTR_OFFSET,
    DYNPTR_READ_ONLY,
    DYNPTR_SIZE,
    DYNPTR_SIZE_MAX,
)
from xdp_runtime.object import MapType
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine, Pointer
    from xdp_runtime.interp_memory import Region
    from xdp_runtime.maps.model import ModelRing

Factory = Callable[..., Any]
E2BIG, EINVAL, ERANGE = 7, 22, 34
_XDP = 4 << 28  # BPF_DYNPTR_TYPE_XDP, above the size
_U32 = 0xFFFFFFFF


# --- interpreted ----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Dynptr:
    """`data` is where it begins, its offset included; None: the packet, from its byte `first`."""

    data: Pointer | None
    size: int
    read_only: bool = False
    first: int = 0


# by where on a stack they are; a frame's go with it
_made: WeakKeyDictionary[Region, dict[int, Dynptr]] = WeakKeyDictionary()


def put(place: Pointer, dynptr: Dynptr | None) -> None:
    """Make the 16 bytes at `place` this dynptr, or null."""
    at = _made.setdefault(place.region, {})
    at.pop(place.offset, None)
    if dynptr is not None:
        at[place.offset] = dynptr


def get(place: Pointer) -> Dynptr | None:
    return _made.get(place.region, {}).get(place.offset)


def has(dynptr: Dynptr, offset: int, size: int) -> bool:
    """Does it have so many bytes?"""
    return size <= dynptr.size and offset <= dynptr.size - size


def _interpret_from_mem(machine: Machine, data: Pointer, size: int, flags: int, place: Pointer
                        ) -> int:
    put(place, None)
    if size > DYNPTR_SIZE_MAX:
        return -E2BIG
    if flags:
        return -EINVAL
    put(place, Dynptr(data, size))
    return 0


def _interpret_reserve(machine: Machine, map: ModelRing, size: int, flags: int, place: Pointer
                       ) -> int:
    put(place, None)
    size &= _U32
    if flags:
        return -EINVAL
    if size > DYNPTR_SIZE_MAX:
        return -E2BIG
    record = map.reserve(size)
    if record is None:
        return -EINVAL
    put(place, Dynptr(machine.value_pointer(map, record), size))
    return 0


def _releaser(keep: bool) -> Callable[[Machine, Pointer, int], int]:
    def interpret(machine: Machine, place: Pointer, flags: int) -> int:
        dynptr = get(place)
        if dynptr is not None and dynptr.data is not None:
            for model in machine.maps:
                if model.spec.type == MapType.RINGBUF:
                    model.commit(dynptr.data.region.data, keep)  # type: ignore[attr-defined]
        put(place, None)
        return 0

    return interpret


def _interpret_read(machine: Machine, to: Pointer, size: int, place: Pointer, offset: int,
                    flags: int) -> int:
    dynptr = get(place)
    if dynptr is None or flags:
        return -EINVAL
    offset &= _U32
    if not has(dynptr, offset, size):
        return -E2BIG
    if dynptr.data is None:
        return xdp.interpret_load_bytes(machine, None, dynptr.first + offset, to, size)
    to.write(dynptr.data.moved(offset).read(size))
    return 0


def _interpret_write(machine: Machine, place: Pointer, offset: int, source: bytes, size: int,
                     flags: int) -> int:
    dynptr = get(place)
    if dynptr is None or dynptr.read_only:
        return -EINVAL
    offset &= _U32
    if not has(dynptr, offset, size):
        return -E2BIG
    if flags:
        return -EINVAL
    if dynptr.data is None:
        return xdp.interpret_store_bytes(machine, None, dynptr.first + offset, source, size)
    dynptr.data.moved(offset).write(source)
    return 0


def _interpret_data(machine: Machine, place: Pointer, offset: int, size: int) -> Pointer | int:
    dynptr = get(place)
    if dynptr is None or dynptr.read_only or dynptr.data is None:
        return 0
    offset &= _U32
    return dynptr.data.moved(offset) if has(dynptr, offset, size & _U32) else 0


def _interpret_from_xdp(machine: Machine, ctx: Pointer, flags: int, place: Pointer) -> int:
    put(place, None)
    if flags:
        return -EINVAL
    put(place, Dynptr(None, machine.packet.length))
    return 0


def _interpret_size(machine: Machine, place: Pointer) -> int:
    dynptr = get(place)
    return -EINVAL if dynptr is None else dynptr.size


def _interpret_is_null(machine: Machine, place: Pointer) -> int:
    return int(get(place) is None)


def _interpret_is_rdonly(machine: Machine, place: Pointer) -> int:
    dynptr = get(place)
    return int(dynptr is not None and dynptr.read_only)


def _interpret_adjust(machine: Machine, place: Pointer, start: int, end: int) -> int:
    dynptr = get(place)
    start, end = start & _U32, end & _U32
    if dynptr is None or start > end:
        return -EINVAL
    if end > dynptr.size:
        return -ERANGE
    if dynptr.data is None:
        put(place, replace(dynptr, first=dynptr.first + start, size=end - start))
    else:
        put(place, replace(dynptr, data=dynptr.data.moved(start), size=end - start))
    return 0


# --- compiled -------------------------------------------------------------------------------------
def _init(m: Any) -> Factory:
    def dynptr_init(place, data, size):  # type: ignore
        m.store_ptr(place, DYNPTR_DATA, data)
        m.store_u32(place, DYNPTR_SIZE, size)
        m.store_u32(place, DYNPTR_OFFSET, 0)
        return 0

    return dynptr_init


def _part(m: Any) -> Factory:
    def dynptr_part(place, offset, size):  # type: ignore
        """Null if it has not so many bytes; means nothing for the packet."""
        has = m.load_u32(place, DYNPTR_SIZE) & DYNPTR_SIZE_MAX
        if size > has or offset > has - size:
            return m.null()
        return m.gep(m.load_ptr(place, DYNPTR_DATA), m.load_u32(place, DYNPTR_OFFSET) + offset)

    return dynptr_part


INIT = Template("dynptr_init", _init, "i64(ptr, ptr, i64)")
PART = Template("dynptr_part", _part, "ptr(ptr, i64, i64)")


def _from_mem(m: Any) -> Factory:
    init = m.extern(INIT)

    def dynptr_from_mem(data, size, flags, place):  # type: ignore
        size = size & _U32
        if size > DYNPTR_SIZE_MAX:
            init(place, m.null(), 0)
            return -E2BIG
        if flags != 0:
            init(place, m.null(), 0)
            return -EINVAL
        init(place, data, size)
        return 0

    return dynptr_from_mem


def _release(name: str, discard: int) -> Template:
    def factory(m: Any) -> Factory:
        commit, init = m.extern(COMMIT), m.extern(INIT)

        def release_dynptr(place, flags):  # type: ignore
            data = m.load_ptr(place, DYNPTR_DATA)
            if not m.is_null(data):
                commit(data, flags, discard)
                init(place, m.null(), 0)
            return 0

        return release_dynptr

    return Template(name, factory, "i64(ptr, i64)", (COMMIT, INIT))


def _read(m: Any, load: Template) -> Factory:
    part, load_bytes = m.extern(PART), m.extern(load)

    def dynptr_read(to, size, place, offset, flags):  # type: ignore
        size = size & _U32
        if m.is_null(m.load_ptr(place, DYNPTR_DATA)) or flags != 0:
            return -EINVAL
        where = part(place, offset & _U32, size)
        if m.is_null(where):
            return -E2BIG
        if m.load_u32(place, DYNPTR_SIZE) & _XDP != 0:
            at = m.load_u32(place, DYNPTR_OFFSET) + (offset & _U32)
            return load_bytes(m.load_ptr(place, DYNPTR_DATA), at, to, size)
        m.move(to, where, size)
        return 0

    return dynptr_read


def _write(m: Any, store: Template) -> Factory:
    part, store_bytes = m.extern(PART), m.extern(store)

    def dynptr_write(place, offset, source, size, flags):  # type: ignore
        size = size & _U32
        if m.is_null(m.load_ptr(place, DYNPTR_DATA)) or (
                m.load_u32(place, DYNPTR_SIZE) & DYNPTR_READ_ONLY != 0):
            return -EINVAL
        where = part(place, offset & _U32, size)
        if m.is_null(where):
            return -E2BIG
        if flags != 0:
            return -EINVAL
        if m.load_u32(place, DYNPTR_SIZE) & _XDP != 0:
            at = m.load_u32(place, DYNPTR_OFFSET) + (offset & _U32)
            return store_bytes(m.load_ptr(place, DYNPTR_DATA), at, source, size)
        m.move(where, source, size)
        return 0

    return dynptr_write


def _data(m: Any) -> Factory:
    part = m.extern(PART)

    def dynptr_data(place, offset, size):  # type: ignore
        if m.is_null(m.load_ptr(place, DYNPTR_DATA)) or (
                m.load_u32(place, DYNPTR_SIZE) & (DYNPTR_READ_ONLY | _XDP) != 0):
            return m.null()
        return part(place, offset & _U32, size & _U32)

    return dynptr_data


def _from_xdp(m: Any, pieces: Pieces) -> Factory:
    init, length = m.extern(INIT), m.extern(pieces.length)

    def dynptr_from_xdp(run, flags, place):  # type: ignore
        if flags != 0:
            init(place, m.null(), 0)
            return -EINVAL
        init(place, run, length(run) | _XDP)
        return 0

    return dynptr_from_xdp


def _size(m: Any) -> Factory:
    def dynptr_size(place):  # type: ignore
        if m.is_null(m.load_ptr(place, DYNPTR_DATA)):
            return -EINVAL
        return m.load_u32(place, DYNPTR_SIZE) & DYNPTR_SIZE_MAX

    return dynptr_size


def _is_null(m: Any) -> Factory:
    def dynptr_is_null(place):  # type: ignore
        return 1 if m.is_null(m.load_ptr(place, DYNPTR_DATA)) else 0

    return dynptr_is_null


def _is_rdonly(m: Any) -> Factory:
    def dynptr_is_rdonly(place):  # type: ignore
        return m.load_u32(place, DYNPTR_SIZE) >> 31

    return dynptr_is_rdonly


def _adjust(m: Any) -> Factory:
    def dynptr_adjust(place, start, end):  # type: ignore
        start, end = start & _U32, end & _U32
        if m.is_null(m.load_ptr(place, DYNPTR_DATA)) or start > end:
            return -EINVAL
        info = m.load_u32(place, DYNPTR_SIZE)
        if end > info & DYNPTR_SIZE_MAX:
            return -ERANGE
        m.store_u32(place, DYNPTR_OFFSET, m.load_u32(place, DYNPTR_OFFSET) + start)
        m.store_u32(place, DYNPTR_SIZE, (info & ~DYNPTR_SIZE_MAX) | (end - start))
        return 0

    return dynptr_adjust


def _function(name: str, args: tuple[Arg, ...], interpret: Callable[..., Any],
              factory: Callable[[Any], Factory], signature: str, *uses: Template) -> Helper:
    """A kernel function."""
    return Helper(KERNEL_FUNCTIONS[f"bpf_{name}"], name, args, Ret.SCALAR, interpret,
                  Template(name, factory, signature, uses))


def _reader(name: str, load: Template) -> Template:
    return Template(name, partial(_read, load=load), "i64(ptr, i64, ptr, i64, i64)", (PART, load))


def _writer(name: str, store: Template) -> Template:
    return Template(name, partial(_write, store=store), "i64(ptr, i64, ptr, i64, i64)",
                    (PART, store))


def _maker(name: str, pieces: Pieces) -> Template:
    return Template(name, partial(_from_xdp, pieces=pieces), "i64(ptr, i64, ptr)",
                    (INIT, pieces.length))


_RING = frozenset({MapType.RINGBUF})

HELPERS = (
    Helper(197, "dynptr_from_mem",
           (Arg.MEM_UNINIT, Arg.SIZE_OR_ZERO, Arg.ANYTHING, Arg.DYNPTR_UNINIT), Ret.SCALAR,
           _interpret_from_mem,
           Template("dynptr_from_mem", _from_mem, "i64(ptr, i64, i64, ptr)", (INIT,))),
    Helper(198, "ringbuf_reserve_dynptr",
           (Arg.MAP, Arg.ANYTHING, Arg.ANYTHING, Arg.DYNPTR_UNINIT), Ret.SCALAR,
           _interpret_reserve, map_op="reserve_dynptr", maps=_RING),
    Helper(199, "ringbuf_submit_dynptr", (Arg.DYNPTR_RELEASE, Arg.ANYTHING), Ret.VOID,
           _releaser(keep=True), _release("ringbuf_submit_dynptr", 0)),
    Helper(200, "ringbuf_discard_dynptr", (Arg.DYNPTR_RELEASE, Arg.ANYTHING), Ret.VOID,
           _releaser(keep=False), _release("ringbuf_discard_dynptr", DISCARD)),
    Helper(201, "dynptr_read",
           (Arg.MEM_UNINIT, Arg.SIZE_OR_ZERO, Arg.DYNPTR, Arg.ANYTHING, Arg.ANYTHING), Ret.SCALAR,
           _interpret_read, _reader("dynptr_read", xdp.LOAD_BYTES),
           frags_template=_reader("dynptr_read_frags", xdp.LOAD_BYTES_FRAGS)),
    Helper(202, "dynptr_write",
           (Arg.DYNPTR, Arg.ANYTHING, Arg.MEM, Arg.SIZE_OR_ZERO, Arg.ANYTHING), Ret.SCALAR,
           _interpret_write, _writer("dynptr_write", xdp.STORE_BYTES),
           frags_template=_writer("dynptr_write_frags", xdp.STORE_BYTES_FRAGS)),
    Helper(203, "dynptr_data", (Arg.DYNPTR, Arg.ANYTHING, Arg.CONST_SIZE), Ret.DATA_OR_NULL,
           _interpret_data, Template("dynptr_data", _data, "ptr(ptr, i64, i64)", (PART,))),
    Helper(KERNEL_FUNCTIONS["bpf_dynptr_from_xdp"], "dynptr_from_xdp",
           (Arg.CTX, Arg.NUMBER, Arg.DYNPTR_UNINIT), Ret.SCALAR, _interpret_from_xdp,
           _maker("dynptr_from_xdp", ONE_PIECE),
           frags_template=_maker("dynptr_from_xdp_frags", SEVERAL)),
    _function("dynptr_size", (Arg.DYNPTR,), _interpret_size, _size, "i64(ptr)"),
    _function("dynptr_is_null", (Arg.DYNPTR,), _interpret_is_null, _is_null, "i64(ptr)"),
    _function("dynptr_is_rdonly", (Arg.DYNPTR,), _interpret_is_rdonly, _is_rdonly, "i64(ptr)"),
    _function("dynptr_adjust", (Arg.DYNPTR, Arg.NUMBER, Arg.NUMBER), _interpret_adjust,
              _adjust, "i64(ptr, i64, i64)"),
)
