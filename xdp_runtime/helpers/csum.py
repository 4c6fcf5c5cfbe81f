"""bpf_csum_diff: what pushing and pulling bytes does to an Internet checksum.

Ones' complement sums can be taken in any width and folded at the end (RFC 1071): 32-bit words in a
64-bit accumulator never carry out of it, and LLVM unrolls or vectorises the loop for a constant
size.  Since Linux 6.13 the result is folded to 16 bits on every architecture and sizes need not be
multiples of 4; a sum of something that is not all zero is never 0 but 0xffff.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine

Factory = Callable[..., Any]
_U32 = 0xFFFFFFFF


def _fold32(total: int) -> int:
    """To 32 bits with end-around carry; 0 only if `total` is 0."""
    while total > _U32:
        total = (total & _U32) + (total >> 32)
    return total


def _partial(data: bytes, seed: int) -> int:
    """csum_partial()"""
    padded = data + bytes(-len(data) % 4)
    words = (int.from_bytes(padded[i : i + 4], "little") for i in range(0, len(padded), 4))
    return _fold32(seed + sum(words))


def _interpret_csum_diff(
    machine: Machine, source: bytes, from_size: int, to: bytes, to_size: int, seed: int
) -> int:
    total = seed & _U32
    if source and to:
        total = _fold32(_partial(to, total) + (_partial(source, 0) ^ _U32))
    elif to:
        total = _partial(to, total)
    elif source:
        total = _partial(source, total ^ _U32) ^ _U32
    low, high = total & 0xFFFF, total >> 16
    return low + high if low + high <= 0xFFFF else low + high + 1 & 0xFFFF


def _csum_partial(m: Any) -> Factory:
    def csum_partial(data, size, seed):  # type: ignore
        total = seed
        for word in range(size >> 2):
            total += m.load_u32(data, word << 2)
        tail = size & ~3
        if size & 2 != 0:
            total += m.load_u16(data, tail)
            if size & 1 != 0:
                total += m.load_u8(data, tail + 2) << 16
        elif size & 1 != 0:
            total += m.load_u8(data, tail)
        total = (total & _U32) + (total >> 32)
        return (total & _U32) + (total >> 32)

    return csum_partial


CSUM_PARTIAL = Template("csum_partial", _csum_partial, "i64(ptr, i64, i64)")


def _csum_diff(m: Any) -> Factory:
    csum_partial = m.extern(CSUM_PARTIAL)

    def csum_diff(source, from_size, to, to_size, seed):  # type: ignore
        from_size, to_size, total = from_size & _U32, to_size & _U32, seed & _U32
        if to_size != 0:
            total = csum_partial(to, to_size, total)
            if from_size != 0:
                total += csum_partial(source, from_size, 0) ^ _U32
                total = (total & _U32) + (total >> 32)
        elif from_size != 0:
            total = csum_partial(source, from_size, total ^ _U32) ^ _U32
        total = (total & 0xFFFF) + (total >> 16)
        return (total & 0xFFFF) + (total >> 16)

    return csum_diff


HELPERS = (
    Helper(28, "csum_diff",
           (Arg.MEM_OR_NULL, Arg.SIZE_OR_ZERO, Arg.MEM_OR_NULL, Arg.SIZE_OR_ZERO, Arg.ANYTHING),
           Ret.SCALAR, _interpret_csum_diff,
           Template("csum_diff", _csum_diff, "i64(ptr, i64, ptr, i64, i64)",
                    uses=(CSUM_PARTIAL,)), packet=True),
)
