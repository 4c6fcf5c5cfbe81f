"""Dynptrs: memory whose size is known only at run time, described by 16 bytes of stack.

What they hold is the kernel's struct bpf_dynptr_kern: a pointer (null: not a dynptr), the size in
24 bits with its type and whether it is read-only above, and an offset.  Programs never look into
them.  Errors are those of kernel/bpf/helpers.c and ringbuf.c of Linux 6.18, whose offsets and
lengths are u32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

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
E2BIG, EINVAL = 7, 22
_U32 = 0xFFFFFFFF


# --- interpreted ----------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Dynptr:
    """`data` is where it begins, its offset included."""

    data: Pointer
    size: int
    read_only: bool = False


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


def part(dynptr: Dynptr, offset: int, size: int) -> Pointer | None:
    """Where these bytes of it are, None if it has not so many."""
    if size > dynptr.size or offset > dynptr.size - size:
        return None
    return dynptr.data.moved(offset)


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
        if dynptr is not None:
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
    where = part(dynptr, offset & _U32, size)
    if where is None:
        return -E2BIG
    to.write(where.read(size))
    return 0


def _interpret_write(machine: Machine, place: Pointer, offset: int, source: bytes, size: int,
                     flags: int) -> int:
    dynptr = get(place)
    if dynptr is None or dynptr.read_only:
        return -EINVAL
    where = part(dynptr, offset & _U32, size)
    if where is None:
        return -E2BIG
    if flags:
        return -EINVAL
    where.write(source)
    return 0


def _interpret_data(machine: Machine, place: Pointer, offset: int, size: int) -> Pointer | int:
    dynptr = get(place)
    if dynptr is None or dynptr.read_only:
        return 0
    return part(dynptr, offset & _U32, size) or 0


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
        """Null if it has not so many bytes."""
        has = m.load_u32(place, DYNPTR_SIZE) & DYNPTR_SIZE_MAX
        if size > has or offset > has - size:
            return m.null()
        return m.inside(m.load_ptr(place, DYNPTR_DATA),
                        m.load_u32(place, DYNPTR_OFFSET) + offset)

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


def _read(m: Any) -> Factory:
    part = m.extern(PART)

    def dynptr_read(to, size, place, offset, flags):  # type: ignore
        size = size & _U32
        if m.is_null(m.load_ptr(place, DYNPTR_DATA)) or flags != 0:
            return -EINVAL
        where = part(place, offset & _U32, size)
        if m.is_null(where):
            return -E2BIG
        m.move(to, where, size)
        return 0

    return dynptr_read


def _write(m: Any) -> Factory:
    part = m.extern(PART)

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
        m.move(where, source, size)
        return 0

    return dynptr_write


def _data(m: Any) -> Factory:
    part = m.extern(PART)

    def dynptr_data(place, offset, size):  # type: ignore
        if m.is_null(m.load_ptr(place, DYNPTR_DATA)) or (
                m.load_u32(place, DYNPTR_SIZE) & DYNPTR_READ_ONLY != 0):
            return m.null()
        return part(place, offset & _U32, size & _U32)

    return dynptr_data


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
           _interpret_read,
           Template("dynptr_read", _read, "i64(ptr, i64, ptr, i64, i64)", (PART,))),
    Helper(202, "dynptr_write",
           (Arg.DYNPTR, Arg.ANYTHING, Arg.MEM, Arg.SIZE_OR_ZERO, Arg.ANYTHING), Ret.SCALAR,
           _interpret_write,
           Template("dynptr_write", _write, "i64(ptr, i64, ptr, i64, i64)", (PART,))),
    Helper(203, "dynptr_data", (Arg.DYNPTR, Arg.ANYTHING, Arg.CONST_SIZE), Ret.DATA_OR_NULL,
           _interpret_data, Template("dynptr_data", _data, "ptr(ptr, i64, i64)", (PART,))),
)
