"""bpf_trace_printk: text from a program, into a ring in the worker's memory.

The format is checked as bpf_bprintf_prepare() does it: %d %i %u %x %X with l or ll, %c, %p and
%px, with the flags 0 + - and space and a width; "%%"; at most three arguments; no ASCII control
characters but white space; a NUL within the size given.  Everything else is -EINVAL, and so are,
here, the forms that read memory or symbols: %s %pks %pus %pI4 %pI6 %pi4 %pi6 %pS %ps %pB.
%p and %pK print the number itself, where the kernel prints a hash of it.

The result is the length of the whole text, as in the kernel, even where the record holds only its
beginning.  The worker alone writes the ring; whoever reads it is never waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from xdp_runtime import state
from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine

Factory = Callable[..., Any]
EINVAL = 22
TEXT_BYTES = state.TRACE_RECORD_BYTES - 8
_WIDTH_MAX = (1 << 23) - 1  # FIELD_WIDTH_MAX, lib/vsprintf.c
_RECORD, _RECORDS = state.TRACE_RECORD_BYTES, state.TRACE_RECORDS
_RING_BYTES = _RECORD * _RECORDS
_POINTER_DIGITS = 16

# how a field is printed; bits of `flags` below
_LEFT, _PLUS, _SPACE, _ZERO, _SIGNED, _UPPER = 1, 2, 4, 8, 16, 32
_FLAGS = {ord("-"): _LEFT, ord("+"): _PLUS, ord(" "): _SPACE, ord("0"): _ZERO}
_WHITE = b"\t\n\v\f\r "
# what may follow %p: the end, white space or punctuation, in the kernel's Latin-1 ctype
_AFTER_POINTER = (b"\0" + _WHITE + bytes(range(0xA0, 0xC0)) + b"\xd7\xf7"
                  + bytes(c for c in range(0x21, 0x7F) if not chr(c).isalnum()))

# characters, as constants for the templates
_PERCENT, _MINUS, _PLUS_SIGN, _BLANK = map(ord, "%-+ ")
_0, _9, _A, _a, _z = map(ord, "09Aaz")
_c, _d, _i, _l, _p, _u, _x, _K, _X = map(ord, "cdilpuxKX")


# --- what a message is, in plain Python ----------------------------------------------------------
def format_message(text: bytes, arguments: tuple[int, ...]) -> bytes | None:
    """The text that trace_printk writes, or None where it returns -EINVAL."""
    end = text.find(b"\0")
    if end < 0 or any((c < 0x20 and c not in _WHITE) or c == 0x7F for c in text[:end]):
        return None
    text, out, at, used = text[: end + 1], bytearray(), 0, 0
    while at < end:
        c = text[at]
        at += 1
        if c != ord("%"):
            out.append(c)
            continue
        if text[at] == ord("%"):
            out.append(c)
            at += 1
            continue
        if used == len(arguments):
            return None
        argument = arguments[used]
        used += 1
        flags = width = 0
        while text[at] in _FLAGS:
            flags |= _FLAGS[text[at]]
            at += 1
        while text[at] in b"0123456789":
            width = min(width * 10 + text[at] - ord("0"), _WIDTH_MAX)
            at += 1
        if text[at] == ord("c"):
            field = bytes([argument & 0xFF])
            out += field.ljust(width) if flags & _LEFT else field.rjust(width)
            at += 1
            continue
        bits, base = 32, 10
        if text[at] == ord("p"):
            at += 1
            if chr(text[at]) in "xK":
                at += 1
            elif text[at] not in _AFTER_POINTER:
                return None
            bits, base, flags, width = 64, 16, flags & _LEFT | _ZERO, width or _POINTER_DIGITS
        else:
            for _ in range(2):
                if text[at] == ord("l"):
                    bits, at = 64, at + 1
            kind = chr(text[at])
            at += 1
            if kind not in "diuxX" or kind == "\0":
                return None
            flags |= _SIGNED if kind in "di" else 0
            flags |= _UPPER if kind == "X" else 0
            base = 16 if kind in "xX" else 10
        out += _field(argument & (1 << bits) - 1, bits, base, flags, width)
    return bytes(out)


def _field(value: int, bits: int, base: int, flags: int, width: int) -> bytes:
    sign = ""
    if flags & _SIGNED:
        if value >> (bits - 1):
            sign, value = "-", (1 << bits) - value
        elif flags & _PLUS:
            sign = "+"
        elif flags & _SPACE:
            sign = " "
    digits = str(value) if base == 10 else f"{value:X}" if flags & _UPPER else f"{value:x}"
    if flags & _LEFT:
        return (sign + digits).ljust(width).encode()
    if flags & _ZERO:
        return (sign + digits.rjust(width - len(sign), "0")).encode()
    return (sign + digits).rjust(width).encode()


def _interpret_trace_printk(
    machine: Machine, text: bytes, size: int, *arguments: int
) -> int:
    message = format_message(text, arguments)
    if message is None:
        return -EINVAL
    machine.trace.append(message[:TEXT_BYTES].decode(errors="replace"))
    return len(message)


# --- the same, compiled --------------------------------------------------------------------------
def _trace_put(m: Any) -> Factory:
    def trace_put(record, at, c):  # type: ignore
        """Append one character; what does not fit is only counted."""
        if at < TEXT_BYTES:
            m.store_u8(record, 8 + at, c)
        return at + 1

    return trace_put


TRACE_PUT = Template("trace_put", _trace_put, "i64(ptr, i64, i64)")


def _trace_fill(m: Any) -> Factory:
    put = m.extern(TRACE_PUT)

    def trace_fill(record, at, c, count):  # type: ignore
        if count <= 0:
            return at
        end = at + count
        while at < end and at < TEXT_BYTES:
            at = put(record, at, c)
        return end

    return trace_fill


TRACE_FILL = Template("trace_fill", _trace_fill, "i64(ptr, i64, i64, i64)", uses=(TRACE_PUT,),
                      inline=False)


def _trace_number(m: Any) -> Factory:
    put, fill = m.extern(TRACE_PUT), m.extern(TRACE_FILL)

    def trace_number(record, at, value, base, flags, width):  # type: ignore
        """`value` is already extended to 64 bits as its conversion says."""
        sign = 0
        if flags & _SIGNED != 0:
            if value < 0:
                sign = _MINUS
                value = m.sub(0, value)
            elif flags & _PLUS != 0:
                sign = _PLUS_SIGN
            elif flags & _SPACE != 0:
                sign = _BLANK
        digits = m.gep(m.alloca(24), 0)
        count = 0
        while True:
            digit = m.urem(value, base)
            if digit > 9:
                digit += (_A if flags & _UPPER != 0 else _a) - 10 - _0
            m.store_u8(digits, count, digit + _0)
            count += 1
            value = m.udiv(value, base)
            if value == 0:
                break
        padding = width - count
        if sign != 0:
            padding -= 1
        if flags & (_LEFT | _ZERO) == 0:
            at = fill(record, at, _BLANK, padding)
        if sign != 0:
            at = put(record, at, sign)
        if flags & (_LEFT | _ZERO) == _ZERO:
            at = fill(record, at, _0, padding)
        while count > 0:
            count -= 1
            at = put(record, at, m.load_u8(digits, count))
        if flags & _LEFT != 0:
            at = fill(record, at, _BLANK, padding)
        return at

    return trace_number


TRACE_NUMBER = Template("trace_number", _trace_number, "i64(ptr, i64, i64, i64, i64, i64)",
                        uses=(TRACE_PUT, TRACE_FILL), inline=False)


def _trace_field(m: Any) -> Factory:
    number, put, fill = m.extern(TRACE_NUMBER), m.extern(TRACE_PUT), m.extern(TRACE_FILL)

    def trace_field(record, position, text, i, argument):  # type: ignore
        """Print the field whose description starts at text[i], behind the "%".

        Stores the place in the record at position[0:8]; returns the index behind the field, or
        -EINVAL.
        """
        at = m.load_u64(position, 0)
        flags = 0
        width = 0
        while True:
            c = m.load_u8(text, i)
            if c == _MINUS:
                flags |= _LEFT
            elif c == _PLUS_SIGN:
                flags |= _PLUS
            elif c == _BLANK:
                flags |= _SPACE
            elif c == _0:
                flags |= _ZERO
            else:
                break
            i += 1
        while m.load_u8(text, i) >= _0 and m.load_u8(text, i) <= _9:
            width = width * 10 + m.load_u8(text, i) - _0
            if width > _WIDTH_MAX:  # noqa: PLR1730  (no min() in templates)
                width = _WIDTH_MAX
            i += 1
        kind = m.load_u8(text, i)
        i += 1
        if kind == _c:
            if flags & _LEFT == 0:
                at = fill(record, at, _BLANK, width - 1)
            at = put(record, at, argument & 0xFF)
            if flags & _LEFT != 0:
                at = fill(record, at, _BLANK, width - 1)
            m.store_u64(position, 0, at)
            return i
        base = 10
        if kind == _p:
            c = m.load_u8(text, i)
            if c == _x or c == _K:
                i += 1
            elif (c >= _0 and c <= _9) or (c | 32 >= _a and c | 32 <= _z) or (
                    c >= 0x80 and (c < 0xA0 or c > 0xBF) and c != 0xD7 and c != 0xF7):
                return -EINVAL
            base = 16
            flags = (flags & _LEFT) | _ZERO
            if width == 0:
                width = _POINTER_DIGITS
        else:
            wide = False
            for _ in range(2):
                if kind == _l:
                    wide = True
                    kind = m.load_u8(text, i)
                    i += 1
            if kind == _d or kind == _i:
                flags |= _SIGNED
                if not wide:
                    argument = ((argument & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
            elif kind == _u or kind == _x or kind == _X:
                if not wide:
                    argument &= 0xFFFFFFFF
                if kind != _u:
                    base = 16
                if kind == _X:
                    flags |= _UPPER
            else:
                return -EINVAL
        m.store_u64(position, 0, number(record, at, argument, base, flags, width))
        return i

    return trace_field


TRACE_FIELD = Template("trace_field", _trace_field, "i64(ptr, ptr, ptr, i64, i64)",
                       uses=(TRACE_NUMBER, TRACE_PUT, TRACE_FILL), inline=False)


def _trace_length(m: Any) -> Factory:
    def trace_length(text, size):  # type: ignore
        """Where the NUL is; -EINVAL without one, or with a byte that may not be printed."""
        for i in range(size):
            c = m.load_u8(text, i)
            if c == 0:
                return i
            if c == 0x7F or (c < 0x20 and (c < 9 or c > 13)):
                return -EINVAL
        return -EINVAL

    return trace_length


TRACE_LENGTH = Template("trace_length", _trace_length, "i64(ptr, i64)")


def _trace_printk(m: Any) -> Factory:
    field, put, measure = m.extern(TRACE_FIELD), m.extern(TRACE_PUT), m.extern(TRACE_LENGTH)

    def trace_printk(run, text, size, first, second, third):  # type: ignore
        worker = m.load_ptr(run, state.WORKER)
        head = m.load_u64(worker, state.W_TRACE_HEAD)
        record = m.inside(worker, state.W_TRACE_RING + (head & (_RING_BYTES - 1)))
        position = m.gep(m.alloca(16), 0)
        at = 0
        used = 0
        i = 0
        end = measure(text, size)
        while i < end:
            c = m.load_u8(text, i)
            i += 1
            if c != _PERCENT:
                at = put(record, at, c)
            elif m.load_u8(text, i) == _PERCENT:
                at = put(record, at, c)
                i += 1
            elif used == 3:
                end = -EINVAL
            else:
                argument = first if used == 0 else second if used == 1 else third
                used += 1
                m.store_u64(position, 0, at)
                i = field(record, position, text, i, argument)
                at = m.load_u64(position, 0)
                if i < 0:
                    end = i
        if end < 0:
            m.store_u64(worker, state.W_TRACE_LOST, m.load_u64(worker, state.W_TRACE_LOST) + 1)
            return end
        m.store_u64(record, 0, at if at < TEXT_BYTES else TEXT_BYTES)  # noqa: FURB136
        m.atomic_add_u64(worker, state.W_TRACE_HEAD, _RECORD)  # releases the record
        return at

    return trace_printk


# --- reading -------------------------------------------------------------------------------------
def read_trace(worker_memory: memoryview, seen: int) -> tuple[list[str], int]:
    """Messages written since `seen` (0 at first), and what to pass as `seen` next time.

    What the worker overwrote before it was read is missing; a record that may have been rewritten
    while it was copied is left out.
    """
    first = max(seen, _head(worker_memory) - _RING_BYTES)
    copies = [(at, bytes(_record(worker_memory, at)))
              for at in range(first, _head(worker_memory), _RECORD)]
    new_seen = copies[-1][0] + _RECORD if copies else max(seen, first)
    intact = _head(worker_memory) - _RING_BYTES  # the record at `intact` may be in the making
    texts = [copy[8 : 8 + int.from_bytes(copy[:8], "little")].decode(errors="replace")
             for at, copy in copies if at > intact or intact < 0]
    return texts, new_seen


def _head(memory: memoryview) -> int:
    return int.from_bytes(memory[state.W_TRACE_HEAD : state.W_TRACE_HEAD + 8], "little")


def _record(memory: memoryview, at: int) -> memoryview:
    start = state.W_TRACE_RING + at % _RING_BYTES
    return memory[start : start + _RECORD]


HELPERS = (
    Helper(6, "trace_printk",
           (Arg.MEM, Arg.SIZE, Arg.UNCHECKED, Arg.UNCHECKED, Arg.UNCHECKED), Ret.SCALAR,
           _interpret_trace_printk,
           Template("trace_printk", _trace_printk, "i64(ptr, ptr, i64, i64, i64, i64)",
                    uses=(TRACE_FIELD, TRACE_PUT, TRACE_LENGTH), inline=False),
           needs_state=True, gpl_only=True),
    Helper(177, "trace_vprintk", (Arg.MEM, Arg.SIZE, Arg.MEM_OR_NULL, Arg.SIZE_OR_ZERO), Ret.SCALAR,
           gpl_only=True),
)
