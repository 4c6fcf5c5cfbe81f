"""Formats of bpf_snprintf, bpf_trace_printk and bpf_trace_vprintk, in two passes as in the kernel.

`prepare` (bpf_bprintf_prepare, kernel/bpf/helpers.c) checks the format and lays the arguments out
in 512 bytes: numbers, texts that were read already, addresses that are text by now.  `render`
(bstr_printf, lib/vsprintf.c) writes the result from these.  A format may have %d %i %u %x %X with
l or ll, %c, %s, and behind %p: nothing, x, K, s, S, B, ks, us, I4, i4, I6, i6; with the flags
0 + - and space and a width; and "%%".  Everything else is -EINVAL, as is more than the arguments.

What %s, %pks and the addresses read is the memory of this process, as the kernel's is for its
programs; what cannot be read is no text, or an address of zeros.  A pointer to user space has no
meaning here, so %pus is never any text.  Symbols (%ps, %pS, %pB) are those of no one: the number
is shown, as the kernel does where it knows no name.  %p and %pK show the number itself, where the
kernel shows a hash of it that is another one after each boot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xdp_runtime.template import Template

Factory = Callable[..., Any]
Reader = Callable[[int, int], bytes]  # (address, bytes) -> as many of them as can be read

EINVAL, ENOSPC = 22, 28
BINARY_BYTES = 512  # MAX_BPRINTF_BIN_ARGS
ROOM_BYTES = 576  # with what an address may write over the end
ARGUMENTS_MAX = 12  # MAX_BPRINTF_VARARGS
_WIDTH_MAX = (1 << 23) - 1  # FIELD_WIDTH_MAX, lib/vsprintf.c; a width is a C int that wraps before
_NO_WIDTH = -1
_POINTER_DIGITS = 16
_PAGE = 4096

# how a field is printed; bits of `flags` below
_LEFT, _PLUS, _SPACE, _ZERO, _SIGNED, _UPPER = 1, 2, 4, 8, 16, 32
_FLAGS = {ord("-"): _LEFT, ord("+"): _PLUS, ord(" "): _SPACE, ord("0"): _ZERO}
_WHITE = b"\t\n\v\f\r "
# what may follow %s and %p: the end, white space or punctuation, in the kernel's Latin-1 ctype
_AFTER = (b"\0" + _WHITE + bytes(range(0xA0, 0xC0)) + b"\xd7\xf7"
          + bytes(c for c in range(0x21, 0x7F) if not chr(c).isalnum()))
_DIGITS = b"0123456789"
_LETTERS = bytes(c for c in range(0x30, 0x100) if c not in _AFTER and (c < 0x7F or c > 0x9F))

# characters, as constants for the templates
_PERCENT, _MINUS, _PLUS_SIGN, _BLANK, _DOT, _COLON = map(ord, "%-+ .:")
_0, _4, _6, _9, _A, _a, _z = map(ord, "0469Aaz")
_c, _d, _i, _k, _l, _p, _s, _u, _x = map(ord, "cdiklpsux")
_B, _I, _K, _S, _X = map(ord, "BIKSX")


# --- what a message is, in plain Python ----------------------------------------------------------
def prepare(text: bytes, arguments: tuple[int, ...], read: Reader | None) -> bytes | int:
    """The arguments as `render` takes them, or -errno.  Without `read` only the format is checked.
    """
    end = text.find(b"\0")
    if end < 0:
        return -EINVAL
    text, made, at, used = text[: end + 1], bytearray(), -1, 0
    while (at := at + 1) < end:
        c = text[at]
        if (c < 0x20 and c not in _WHITE) or c == 0x7F:
            return -EINVAL
        if c != _PERCENT:
            continue
        if text[at + 1] == _PERCENT:
            at += 1
            continue
        if used == len(arguments):
            return -EINVAL
        argument = arguments[used]
        used += 1
        at += 1
        while text[at] in _FLAGS:
            at += 1
        while text[at] in _DIGITS:
            at += 1
        kind, size, form = text[at], 4, 0
        if kind == _s:
            form = kind
        elif kind == _p and text[at + 1] in b"ku" and text[at + 2] == _s:
            form, at = text[at + 1], at + 2
        if form:
            if text[at + 1] not in _AFTER:
                return -EINVAL
            if read is None:
                continue
            if len(made) >= BINARY_BYTES:
                return -ENOSPC
            made += b"\0" if form == _u else _text(argument, BINARY_BYTES - len(made), read)
            continue
        if kind == _c:
            if read is None:
                continue
            if len(made) >= BINARY_BYTES:
                return -ENOSPC
            made.append(argument & 0xFF)
            continue
        if kind == _p:
            follows, size = text[at + 1], 8
            if follows in b"iI" and text[at + 2] in b"46":
                at += 2
                if read is None:
                    continue
                count = 4 if text[at] == _4 else 16
                if BINARY_BYTES - len(made) < count:
                    return -ENOSPC
                made += _cut(_address(argument, follows, count, read), made)
                continue
            if follows == _B:
                at += 1
                if read is not None:
                    made += _cut(f"{argument:#x}".encode(), made)
                continue
            if follows in b"xKsS":
                at += 1
            elif follows not in _AFTER:
                return -EINVAL
        else:
            for _ in range(2):
                if text[at] == _l:
                    size, at = 8, at + 1
            if text[at] not in b"diuxX" or not text[at]:
                return -EINVAL
        if read is None:
            continue
        made += bytes(-len(made) % 4)
        if BINARY_BYTES - len(made) < size:
            return -ENOSPC
        made += (argument & (1 << 8 * size) - 1).to_bytes(size, "little")
    return bytes(made)


def _text(address: int, room: int, read: Reader) -> bytes:
    """Up to and with its NUL, or as much as there is room for; nothing if reading fails."""
    found = read(address, room)
    end = found.find(b"\0")
    if end >= 0:
        return found[: end + 1]
    return found[: room - 1] + b"\0" if len(found) == room else b"\0"


def _address(where: int, form: int, count: int, read: Reader) -> bytes:
    found = read(where, count)
    octets = found if len(found) == count else bytes(count)
    if count == 4:
        return ".".join(f"{n:03}" if form == _i else str(n) for n in octets).encode()
    groups = [octets[at : at + 2].hex() for at in range(0, 16, 2)]
    return ("" if form == _i else ":").join(groups).encode()


def _cut(text: bytes, made: bytearray) -> bytes:
    """With its NUL, which is sooner where there is no room; it takes its place all the same."""
    room = max(BINARY_BYTES - len(made), 1)
    return text[: room - 1].ljust(len(text) + 1, b"\0")


def render(size: int, text: bytes, made: bytes) -> bytes:
    """The whole message; `size` bytes, with a NUL, are what it will be cut to.

    Behind these the kernel leaves addresses out, and takes their bytes for the next argument's."""
    out, at, used = bytearray(), 0, 0
    text = text[: text.index(b"\0") + 1]
    made = made.ljust(ROOM_BYTES, b"\0")
    while text[at]:
        c = text[at]
        at += 1
        if c != _PERCENT:
            out.append(c)
            continue
        if text[at] == _PERCENT:
            out.append(c)
            at += 1
            continue
        flags, width = 0, _NO_WIDTH
        while text[at] in _FLAGS:
            flags |= _FLAGS[text[at]]
            at += 1
        if text[at] in _DIGITS:
            width = 0
            while text[at] in _DIGITS:
                width = _int(width * 10 + text[at] - _0)
                at += 1
            width = max(-_WIDTH_MAX, min(width, _WIDTH_MAX))
        kind = text[at]
        at += 1
        if kind == _c:
            out += _padded(made[used : used + 1], flags, width)
            used += 1
            continue
        if kind == _s:
            shown = made[used : made.index(b"\0", used)]
            used += len(shown) + 1
            out += _padded(shown, flags, width)
            continue
        bits, base = 32, 10
        if kind == _p:
            bits, base, kind = 64, 16, text[at]
            while text[at] in _LETTERS:
                at += 1
            if kind in _LETTERS and kind not in b"xKsS":
                if len(out) < size:
                    shown = made[used : made.index(b"\0", used)]
                    used += len(shown) + 1
                    out += shown
                continue
            if width == _NO_WIDTH and not (kind in b"sS" and kind):
                flags, width = flags | _ZERO, _POINTER_DIGITS
        else:
            while kind == _l:
                bits, kind = 64, text[at]
                at += 1
            flags |= _SIGNED if kind in b"di" else 0
            flags |= _UPPER if kind == _X else 0
            base = 16 if kind in b"xX" else 10
        used = used + 3 & ~3
        number = int.from_bytes(made[used : used + bits // 8], "little")
        used += bits // 8
        if bits == 64 and base == 16 and kind in b"sS" and kind:
            out += _padded(f"0x{number:x}".encode(), flags, width)
        else:
            out += _field(number, bits, base, flags, width)
    return bytes(out)


def _int(value: int) -> int:
    return (value & 0xFFFFFFFF ^ 0x80000000) - 0x80000000


def _padded(text: bytes, flags: int, width: int) -> bytes:
    return text.ljust(width) if flags & _LEFT else text.rjust(width)


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


# --- the same, compiled: reading -----------------------------------------------------------------
def _read_bytes(m: Any) -> Factory:
    def printf_read(to, address, size):  # type: ignore
        """How many bytes could be read; within a page it is all or none."""
        ours = m.gep(m.alloca(16), 0)
        theirs = m.gep(m.alloca(16), 0)
        m.store_u64(ours, 0, m.address(to))
        m.store_u64(ours, 8, size)
        m.store_u64(theirs, 0, address)
        m.store_u64(theirs, 8, size)
        done = m.c_process_vm_readv(m.c_getpid(), ours, 1, theirs, 1, 0)
        return done if done > 0 else 0  # noqa: FURB136  (no max() in templates)

    return printf_read


READ = Template("printf_read", _read_bytes, "i64(ptr, i64, i64)", inline=False)


def _read_text(m: Any) -> Factory:
    read = m.extern(READ)

    def printf_text(to, room, address):  # type: ignore
        """Bytes used, with the NUL."""
        have = 0
        while have < room:
            part = m.smaller(room - have, _PAGE - (m.add(address, have) & (_PAGE - 1)))
            if read(m.gep(to, have), m.add(address, have), part) != part:
                m.store_u8(to, 0, 0)
                return 1
            end = have + part
            while have < end:
                if m.load_u8(to, have) == 0:
                    return have + 1
                have += 1
        m.store_u8(to, room - 1, 0)
        return room

    return printf_text


TEXT = Template("printf_text", _read_text, "i64(ptr, i64, i64)", (READ,), inline=False)


def _after(m: Any) -> Factory:
    def printf_after(c):  # type: ignore
        """May this follow %s and %p?"""
        if (c >= _0 and c <= _9) or (c | 32 >= _a and c | 32 <= _z):
            return 0
        if (c < 0x20 and c != 0 and (c < 9 or c > 13)) or c == 0x7F:
            return 0
        if c >= 0x80 and (c < 0xA0 or c > 0xBF) and c != 0xD7 and c != 0xF7:
            return 0
        return 1

    return printf_after


AFTER = Template("printf_after", _after, "i64(i64)")


def _letter(m: Any) -> Factory:
    def printf_letter(c):  # type: ignore
        """isalnum(), which the control characters of Latin-1 are not: _LETTERS."""
        if (c >= _0 and c <= _9) or (c | 32 >= _a and c | 32 <= _z):
            return 1
        return 1 if c >= 0xC0 and c != 0xD7 and c != 0xF7 else 0

    return printf_letter


LETTER = Template("printf_letter", _letter, "i64(i64)")


# --- the same, compiled: numbers and texts -------------------------------------------------------
def _put(m: Any) -> Factory:
    def printf_put(out, at, size, c):  # type: ignore
        """Append one character; what does not fit is only counted."""
        if at < size:
            m.store_u8(out, at, c)
        return at + 1

    return printf_put


PUT = Template("printf_put", _put, "i64(ptr, i64, i64, i64)")


def _fill(m: Any) -> Factory:
    put = m.extern(PUT)

    def printf_fill(out, at, size, c, count):  # type: ignore
        if count <= 0:
            return at
        end = at + count
        while at < end and at < size:
            at = put(out, at, size, c)
        return end

    return printf_fill


FILL = Template("printf_fill", _fill, "i64(ptr, i64, i64, i64, i64)", (PUT,), inline=False)


def _number(m: Any) -> Factory:
    put, fill = m.extern(PUT), m.extern(FILL)

    def printf_number(out, at, size, value, base, flags, width):  # type: ignore
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
            at = fill(out, at, size, _BLANK, padding)
        if sign != 0:
            at = put(out, at, size, sign)
        if flags & (_LEFT | _ZERO) == _ZERO:
            at = fill(out, at, size, _0, padding)
        while count > 0:
            count -= 1
            at = put(out, at, size, m.load_u8(digits, count))
        if flags & _LEFT != 0:
            at = fill(out, at, size, _BLANK, padding)
        return at

    return printf_number


NUMBER = Template("printf_number", _number, "i64(ptr, i64, i64, i64, i64, i64, i64)", (PUT, FILL),
                  inline=False)


def _string(m: Any) -> Factory:
    put, fill = m.extern(PUT), m.extern(FILL)

    def printf_string(out, at, size, text, flags, width):  # type: ignore
        count = 0
        while m.load_u8(text, count) != 0:
            count += 1
        if flags & _LEFT == 0:
            at = fill(out, at, size, _BLANK, width - count)
        for i in range(count):
            at = put(out, at, size, m.load_u8(text, i))
        if flags & _LEFT != 0:
            at = fill(out, at, size, _BLANK, width - count)
        return at

    return printf_string


STRING = Template("printf_string", _string, "i64(ptr, i64, i64, ptr, i64, i64)", (PUT, FILL),
                  inline=False)


def _show_address(m: Any) -> Factory:
    put, number = m.extern(PUT), m.extern(NUMBER)

    def printf_address(out, size, octets, form, count):  # type: ignore
        """With the NUL, which is sooner where `size` ends."""
        at = 0
        for i in range(count):
            octet = m.load_u8(octets, i)
            if count == 4:
                if i > 0:
                    at = put(out, at, size, _DOT)
                at = number(out, at, size, octet, 10, _ZERO, 3 if form == _i else 0)
            else:
                if form == _I and i > 0 and i & 1 == 0:
                    at = put(out, at, size, _COLON)
                at = number(out, at, size, octet, 16, _ZERO, 2)
        m.store_u8(out, m.smaller(at, size - 1), 0)
        return at + 1

    return printf_address


ADDRESS = Template("printf_address", _show_address, "i64(ptr, i64, ptr, i64, i64)", (PUT, NUMBER),
                   inline=False)


# --- the same, compiled: the two passes ----------------------------------------------------------
def _prepare(m: Any) -> Factory:
    read, read_text, after = m.extern(READ), m.extern(TEXT), m.extern(AFTER)
    show, number, put = m.extern(ADDRESS), m.extern(NUMBER), m.extern(PUT)

    def printf_prepare(text, text_size, arguments, count, made):  # type: ignore
        """0 or -errno; `made` has ROOM_BYTES."""
        end = 0
        while end < text_size and m.load_u8(text, end) != 0:
            end += 1
        if end == text_size:
            return -EINVAL
        octets = m.gep(m.alloca(16), 0)
        m.zero(made, ROOM_BYTES)
        used = 0
        have = 0
        at = 0
        while at < end:
            c = m.load_u8(text, at)
            at += 1
            if c == 0x7F or (c < 0x20 and (c < 9 or c > 13)):
                return -EINVAL
            if c != _PERCENT:
                continue
            if m.load_u8(text, at) == _PERCENT:
                at += 1
                continue
            if used == count:
                return -EINVAL
            argument = m.load_u64(arguments, used * 8)
            used += 1
            c = m.load_u8(text, at)
            while c == _0 or c == _PLUS_SIGN or c == _MINUS or c == _BLANK:
                at += 1
                c = m.load_u8(text, at)
            while c >= _0 and c <= _9:
                at += 1
                c = m.load_u8(text, at)
            at += 1
            form = 0  # of text: s, k, u
            size = 4
            if c == _s:
                form = c
            elif c == _p:
                size = 8
                c = m.load_u8(text, at)
                if (c == _k or c == _u) and m.load_u8(text, at + 1) == _s:
                    form = c
                    at += 2
            if form != 0:
                if after(m.load_u8(text, at)) == 0:
                    return -EINVAL
                if have >= BINARY_BYTES:
                    return -ENOSPC
                if form == _u:
                    m.store_u8(made, have, 0)
                    have += 1
                else:
                    have += read_text(m.gep(made, have), BINARY_BYTES - have, argument)
                continue
            if size == 4 and c == _c:
                if have >= BINARY_BYTES:
                    return -ENOSPC
                m.store_u8(made, have, argument & 0xFF)
                have += 1
                continue
            if size == 8:
                if c == _i or c == _I:
                    kind = m.load_u8(text, at + 1)
                    if kind != _4 and kind != _6:
                        return -EINVAL
                    at += 2
                    wanted = 4 if kind == _4 else 16
                    if BINARY_BYTES - have < wanted:
                        return -ENOSPC
                    first = m.smaller(wanted, _PAGE - (argument & (_PAGE - 1)))
                    if read(octets, argument, first) != first or (
                            first < wanted and read(m.gep(octets, first), m.add(argument, first),
                                                    wanted - first) != wanted - first):
                        m.zero(octets, wanted)
                    have += show(m.gep(made, have), BINARY_BYTES - have, octets, c, wanted)
                    continue
                if c == _B:
                    at += 1
                    room = BINARY_BYTES - have
                    if room < 1:
                        room = 1
                    into = m.gep(made, have)
                    put(into, put(into, 0, room, _0), room, _x)
                    wanted = number(into, 2, room, argument, 16, 0, 0)
                    m.store_u8(into, m.smaller(wanted, room - 1), 0)
                    have += wanted + 1
                    continue
                if c == _x or c == _K or c == _s or c == _S:
                    at += 1
                elif after(c) == 0:
                    return -EINVAL
            else:
                if c == _l:
                    size = 8
                    c = m.load_u8(text, at)
                    at += 1
                    if c == _l:
                        c = m.load_u8(text, at)
                        at += 1
                if c != _d and c != _i and c != _u and c != _x and c != _X:
                    return -EINVAL
            have = (have + 3) & ~3
            if BINARY_BYTES - have < size:
                return -ENOSPC
            if size == 8:
                m.store_u64(made, have, argument)
            else:
                m.store_u32(made, have, argument)
            have += size
        return 0

    return printf_prepare


PREPARE = Template("printf_prepare", _prepare, "i64(ptr, i64, ptr, i64, ptr)",
                   (READ, TEXT, AFTER, ADDRESS, NUMBER, PUT), inline=False)


def _render(m: Any) -> Factory:
    put, fill, number = m.extern(PUT), m.extern(FILL), m.extern(NUMBER)
    string, letter = m.extern(STRING), m.extern(LETTER)

    def printf_render(out, size, text, made):  # type: ignore
        """The length of the whole message, without the NUL that ends what is at `out`."""
        at = 0
        used = 0
        i = 0
        while True:
            c = m.load_u8(text, i)
            if c == 0:
                break
            i += 1
            if c != _PERCENT:
                at = put(out, at, size, c)
                continue
            if m.load_u8(text, i) == _PERCENT:
                at = put(out, at, size, c)
                i += 1
                continue
            flags = 0
            width = _NO_WIDTH
            while True:
                c = m.load_u8(text, i)
                i += 1
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
            if c >= _0 and c <= _9:
                width = 0
                while c >= _0 and c <= _9:
                    width = ((width * 10 + c - _0 & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
                    c = m.load_u8(text, i)
                    i += 1
                if width > _WIDTH_MAX:  # noqa: PLR1730  (no min() in templates)
                    width = _WIDTH_MAX
                if width < -_WIDTH_MAX:  # noqa: PLR1730
                    width = -_WIDTH_MAX
            if c == _c:
                if flags & _LEFT == 0:
                    at = fill(out, at, size, _BLANK, width - 1)
                at = put(out, at, size, m.load_u8(made, used))
                if flags & _LEFT != 0:
                    at = fill(out, at, size, _BLANK, width - 1)
                used += 1
                continue
            if c == _s:
                at = string(out, at, size, m.gep(made, used), flags, width)
                while m.load_u8(made, used) != 0:
                    used += 1
                used += 1
                continue
            base = 10
            bytes_ = 4
            if c == _p:
                c = m.load_u8(text, i)
                while letter(m.load_u8(text, i)) != 0:
                    i += 1
                named = letter(c)
                if named != 0 and c != _x and c != _K and c != _s and c != _S:
                    if at < size:
                        at = string(out, at, size, m.gep(made, used), 0, 0)
                        while m.load_u8(made, used) != 0:
                            used += 1
                        used += 1
                    continue
                used = (used + 3) & ~3
                argument = m.load_u64(made, used)
                used += 8
                if named != 0 and (c == _s or c == _S):
                    name = m.gep(m.alloca(24), 0)
                    put(name, put(name, 0, 24, _0), 24, _x)
                    m.store_u8(name, number(name, 2, 24, argument, 16, 0, 0), 0)
                    at = string(out, at, size, name, flags, width)
                    continue
                if width == _NO_WIDTH:
                    flags |= _ZERO
                    width = _POINTER_DIGITS
                at = number(out, at, size, argument, 16, flags, width)
                continue
            while c == _l:
                bytes_ = 8
                c = m.load_u8(text, i)
                i += 1
            used = (used + 3) & ~3
            if bytes_ == 8:
                argument = m.load_u64(made, used)
            else:
                argument = m.load_u32(made, used)
            used += bytes_
            if c == _d or c == _i:
                flags |= _SIGNED
                if bytes_ == 4:
                    argument = ((argument & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
            elif c != _u:
                base = 16
                if c == _X:
                    flags |= _UPPER
            at = number(out, at, size, argument, base, flags, width)
        if size != 0:
            m.store_u8(out, m.smaller(at, size - 1), 0)
        return at

    return printf_render


RENDER = Template("printf_render", _render, "i64(ptr, i64, ptr, ptr)",
                  (PUT, FILL, NUMBER, STRING, LETTER), inline=False)
