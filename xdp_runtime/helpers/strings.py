"""Text to numbers, compared, and formatted: as kernel/bpf/helpers.c does it.

strtol and strtoul are the kernel's _parse_integer: white space, perhaps a minus, 0x or 0 where the
base is open, at most 63 characters.  What snprintf's formats may say is in printf.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xdp_runtime.helpers import printf
from xdp_runtime.helpers.printf import EINVAL
from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine, Pointer

Factory = Callable[..., Any]
ERANGE = 34
_BASE_MASK, _BASES = 0x1F, (0, 8, 10, 16)
_DIGITS_MAX = 63
_U64 = (1 << 64) - 1
_SPACES = b"\t\n\v\f\r \xa0"
_MINUS, _0, _9, _a, _f, _x, _BLANK = map(ord, "-09afx ")
_ARGUMENTS_MAX_BYTES = printf.ARGUMENTS_MAX * 8
_ROOM = printf.ROOM_BYTES
_ANY_SIZE = 0xFFFFFFFF  # of a text that is known to have an end


# --- numbers -------------------------------------------------------------------------------------
def parse_number(text: bytes, flags: int) -> tuple[int, int, bool]:
    """(characters used or -errno, magnitude, is there a minus)"""
    base = flags & _BASE_MASK
    if base not in _BASES or flags & ~_BASE_MASK:
        return -EINVAL, 0, False
    at = 0
    while at < len(text) and text[at] in _SPACES:
        at += 1
    negative = at < len(text) and text[at] == _MINUS
    at += negative
    rest = text[at : at + _DIGITS_MAX].split(b"\0", 1)[0].lower() + b"\0\0\0"
    if at == len(text):
        return -EINVAL, 0, negative
    start = 0
    if base == 0:
        base = 10
        if rest[0] == _0:
            base = 16 if rest[1] == _x and rest[2] in b"0123456789abcdef" else 8
    if base == 16 and rest[:2] == b"0x":
        start = 2
    end, value = start, 0
    while rest[end] in b"0123456789abcdef" and int(chr(rest[end]), 16) < base:
        value = value * base + int(chr(rest[end]), 16)
        end += 1
    if value > _U64:
        return -ERANGE, 0, negative
    if end == start:
        return -EINVAL, 0, negative
    return at + end, value, negative


def _interpret_strtol(machine: Machine, text: bytes | memoryview, size: int, flags: int,
                      out: Pointer) -> int:
    out.write(bytes(8))  # into the text, if it lies there
    used, value, negative = parse_number(bytes(text), flags)
    if used < 0:
        return used
    if value > (1 << 63) - (not negative):
        return -ERANGE
    out.write(((-value if negative else value) & _U64).to_bytes(8, "little"))
    return used


def _interpret_strtoul(machine: Machine, text: bytes | memoryview, size: int, flags: int,
                       out: Pointer) -> int:
    out.write(bytes(8))
    used, value, negative = parse_number(bytes(text), flags)
    if used < 0:
        return used
    if negative:
        return -EINVAL
    out.write(value.to_bytes(8, "little"))
    return used


def _number(m: Any) -> Factory:
    def str_number(text, size, flags, out):  # type: ignore
        """Stores the magnitude at out[0], 1 for a minus at out[8]."""
        base = flags & _BASE_MASK
        m.store_u64(out, 0, 0)
        m.store_u64(out, 8, 0)
        if (base != 0 and base != 8 and base != 10 and base != 16) or flags & ~_BASE_MASK != 0:
            return -EINVAL
        at = 0
        while at < size:
            c = m.load_u8(text, at)
            if c != _BLANK and (c < 9 or c > 13) and c != 0xA0:
                break
            at += 1
        if at < size and m.load_u8(text, at) == _MINUS:
            m.store_u64(out, 8, 1)
            at += 1
        if at == size:
            return -EINVAL
        end = size
        if end - at > _DIGITS_MAX:
            end = at + _DIGITS_MAX
        # the kernel looks at a copy with a NUL behind it
        first = m.load_u8(text, at)
        second = 0
        third = 0
        if at + 1 < end:
            second = m.load_u8(text, at + 1) | 32
        if at + 2 < end:
            third = m.load_u8(text, at + 2)
        if base == 0:
            base = 10
            if first == _0:
                base = 8
                if second == _x and ((third >= _0 and third <= _9) or (
                        third | 32 >= _a and third | 32 <= _f)):
                    base = 16
        if base == 16 and first == _0 and second == _x:
            at += 2
        start = at
        value = 0
        over = False
        while at < end:
            c = m.load_u8(text, at)
            digit = 99
            if c >= _0 and c <= _9:
                digit = c - _0
            elif c | 32 >= _a and c | 32 <= _f:
                digit = (c | 32) - _a + 10
            if digit >= base:
                break
            if m.lshr(value, 60) != 0 and m.ult(m.udiv(m.sub(-1, digit), base), value):
                over = True
            value = m.add(m.mul(value, base), digit)
            at += 1
        if over:
            return -ERANGE
        if at == start:
            return -EINVAL
        m.store_u64(out, 0, value)
        return at

    return str_number


NUMBER = Template("str_number", _number, "i64(ptr, i64, i64, ptr)", inline=False)


def _strtol(m: Any) -> Factory:
    number = m.extern(NUMBER)

    def strtol(text, size, flags, out):  # type: ignore
        scratch = m.gep(m.alloca(16), 0)
        m.store_u64(out, 0, 0)
        used = number(text, size & 0xFFFFFFFF, flags, scratch)
        if used < 0:
            return used
        value = m.load_u64(scratch, 0)
        if m.load_u64(scratch, 8) != 0:
            value = m.sub(0, value)
            if value > 0:
                return -ERANGE
        elif value < 0:
            return -ERANGE
        m.store_u64(out, 0, value)
        return used

    return strtol


def _strtoul(m: Any) -> Factory:
    number = m.extern(NUMBER)

    def strtoul(text, size, flags, out):  # type: ignore
        scratch = m.gep(m.alloca(16), 0)
        m.store_u64(out, 0, 0)
        used = number(text, size & 0xFFFFFFFF, flags, scratch)
        if used < 0:
            return used
        if m.load_u64(scratch, 8) != 0:
            return -EINVAL
        m.store_u64(out, 0, m.load_u64(scratch, 0))
        return used

    return strtoul


# --- comparing -----------------------------------------------------------------------------------
def _interpret_strncmp(machine: Machine, text: bytes, size: int, other: bytes) -> int:
    for at in range(size):
        one, two = text[at], other[at] if at < len(other) else 0
        if one != two:
            return -1 if one < two else 1
        if one == 0:
            break
    return 0


def _strncmp(m: Any) -> Factory:
    def strncmp(text, size, other):  # type: ignore
        for at in range(size & 0xFFFFFFFF):
            one = m.load_u8(text, at)
            two = m.load_u8(other, at)
            if one != two:
                return -1 if one < two else 1
            if one == 0:
                break
        return 0

    return strncmp


# --- formatting ----------------------------------------------------------------------------------
def _interpret_snprintf(machine: Machine, out: Pointer | int, size: int, text: bytes, data: bytes,
                        data_size: int) -> int:
    if data_size % 8 or data_size > _ARGUMENTS_MAX_BYTES:
        return -EINVAL
    arguments = tuple(int.from_bytes(data[at : at + 8], "little")
                      for at in range(0, data_size, 8))
    made = printf.prepare(text, arguments, machine.read_memory)
    if isinstance(made, int):
        return made
    message = printf.render(size, text, made)
    if size and not isinstance(out, int):
        out.write(message[: size - 1] + b"\0")
    return len(message) + 1


def _snprintf(m: Any) -> Factory:
    prepare, render = m.extern(printf.PREPARE), m.extern(printf.RENDER)

    def snprintf(out, size, text, data, data_size):  # type: ignore
        data_size = data_size & 0xFFFFFFFF
        if data_size & 7 != 0 or data_size > _ARGUMENTS_MAX_BYTES:
            return -EINVAL
        made = m.gep(m.alloca(_ROOM), 0)
        error = prepare(text, _ANY_SIZE, data, data_size >> 3, made)
        if error < 0:
            return error
        return render(out, size & 0xFFFFFFFF, text, made) + 1

    return snprintf


_NUMBER = (Arg.MEM, Arg.SIZE, Arg.ANYTHING, Arg.FIXED_UNINIT)
HELPERS = (
    Helper(105, "strtol", _NUMBER, Ret.SCALAR, _interpret_strtol,
           Template("helper_strtol", _strtol, "i64(ptr, i64, i64, ptr)", (NUMBER,)),
           sizes=((4, 8),)),
    Helper(106, "strtoul", _NUMBER, Ret.SCALAR, _interpret_strtoul,
           Template("helper_strtoul", _strtoul, "i64(ptr, i64, i64, ptr)", (NUMBER,)),
           sizes=((4, 8),)),
    Helper(165, "snprintf",
           (Arg.MEM_UNINIT_OR_NULL, Arg.SIZE_OR_ZERO, Arg.CONST_TEXT, Arg.MEM_OR_NULL,
            Arg.SIZE_OR_ZERO), Ret.SCALAR, _interpret_snprintf,
           Template("helper_snprintf", _snprintf, "i64(ptr, i64, ptr, ptr, i64)",
                    (printf.PREPARE, printf.RENDER), inline=False), gpl_only=True),
    Helper(182, "strncmp", (Arg.MEM, Arg.SIZE, Arg.CONST_TEXT), Ret.SCALAR, _interpret_strncmp,
           Template("helper_strncmp", _strncmp, "i64(ptr, i64, ptr)")),
)
