"""Open-coded iterators over numbers: bpf_iter_num_new, _next and _destroy.

Eight bytes of stack hold struct bpf_iter_num_kern: the number that was given last and the end, two
C ints.  Errors are those of kernel/bpf/bpf_iter.c (Linux 6.18).  That they are used in this order,
and the answer of _next is tested, is the verifier's (verifier/kfuncs.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xdp_runtime.helper_names import KERNEL_FUNCTIONS
from xdp_runtime.helpers.loop import MAX_LOOPS
from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine, Pointer

Factory = Callable[..., Any]
E2BIG, EINVAL = 7, 22
_U32, _END = 0xFFFFFFFF, 4


def _int(value: int) -> int:
    return ((value & _U32) ^ 0x80000000) - 0x80000000


def _interpret_new(machine: Machine, iterator: Pointer, start: int, end: int) -> int:
    start, end = _int(start), _int(end)
    error = -EINVAL if start > end else -E2BIG if end - start > MAX_LOOPS else 0
    if error:
        iterator.write(bytes(8))
        return error
    iterator.write((start - 1 & _U32).to_bytes(4, "little") + (end & _U32).to_bytes(4, "little"))
    return 0


def _interpret_next(machine: Machine, iterator: Pointer) -> Pointer | int:
    raw = iterator.read(8)
    following = _int(int.from_bytes(raw[:4], "little") + 1)
    if following >= int.from_bytes(raw[4:], "little", signed=True):
        iterator.write(bytes(8))
        return 0
    iterator.write((following & _U32).to_bytes(4, "little"))
    return iterator


def _interpret_destroy(machine: Machine, iterator: Pointer) -> int:
    iterator.write(bytes(8))
    return 0


def _new(m: Any) -> Factory:
    def iter_num_new(iterator, start, end):  # type: ignore
        start = ((start & _U32) ^ 0x80000000) - 0x80000000
        end = ((end & _U32) ^ 0x80000000) - 0x80000000
        m.store_u64(iterator, 0, 0)
        if start > end:
            return -EINVAL
        if end - start > MAX_LOOPS:
            return -E2BIG
        m.store_u32(iterator, 0, start - 1)
        m.store_u32(iterator, _END, end)
        return 0

    return iter_num_new


def _next(m: Any) -> Factory:
    def iter_num_next(iterator):  # type: ignore
        following = (((m.load_u32(iterator, 0) + 1) & _U32) ^ 0x80000000) - 0x80000000
        if following >= m.load_i32(iterator, _END):
            m.store_u64(iterator, 0, 0)
            return m.null()
        m.store_u32(iterator, 0, following)
        return m.gep(iterator, 0)

    return iter_num_next


def _destroy(m: Any) -> Factory:
    def iter_num_destroy(iterator):  # type: ignore
        m.store_u64(iterator, 0, 0)
        return 0

    return iter_num_destroy


ITER_NEW, ITER_NEXT, ITER_DESTROY = (
    KERNEL_FUNCTIONS[f"bpf_iter_num_{word}"] for word in ("new", "next", "destroy"))

HELPERS = (
    Helper(ITER_NEW, "iter_num_new", (Arg.ITERATOR_UNINIT, Arg.NUMBER, Arg.NUMBER), Ret.SCALAR,
           _interpret_new, Template("iter_num_new", _new, "i64(ptr, i64, i64)")),
    Helper(ITER_NEXT, "iter_num_next", (Arg.ITERATOR,), Ret.DATA_OR_NULL, _interpret_next,
           Template("iter_num_next", _next, "ptr(ptr)")),
    Helper(ITER_DESTROY, "iter_num_destroy", (Arg.ITERATOR,), Ret.VOID, _interpret_destroy,
           Template("iter_num_destroy", _destroy, "i64(ptr)")),
)
