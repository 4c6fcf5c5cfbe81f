"""Kernel functions on text: bpf_strlen, bpf_strcmp, bpf_strchr, bpf_strstr and their like.

The kernel takes any address and reads until a zero byte, XATTR_SIZE_MAX bytes at most, or until
nothing is there (-EFAULT).  Here a text ends, with -EFAULT, where what the pointer points into
ends: each is passed with how much there is.  Results are those of kernel/bpf/helpers.c of Linux
6.18: where it was found, or an error.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from xdp_runtime.helper_names import KERNEL_FUNCTIONS
from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.template import Template

if TYPE_CHECKING:
    from xdp_runtime.interp import Machine

Factory = Callable[..., Any]
ENOENT, E2BIG, EFAULT = 2, 7, 14
MOST = 65536  # XATTR_SIZE_MAX
_UNTIL_ZERO = -1  # of a character: only the end is looked for


# --- interpreted ----------------------------------------------------------------------------------
def _lower(byte: int) -> int:
    """The kernel's tolower(), of Latin-1."""
    return byte + 32 if 65 <= byte <= 90 or (192 <= byte <= 222 and byte != 215) else byte


def _compare(one: bytes, other: bytes, fold: bool) -> int:
    for at in range(MOST):
        if at >= len(one) or at >= len(other):
            return -EFAULT
        a, b = (_lower(one[at]), _lower(other[at])) if fold else (one[at], other[at])
        if a != b:
            return -1 if a < b else 1
        if a == 0:
            return 0
    return -E2BIG


def _character(text: bytes, count: int, wanted: int, last: bool, end: bool) -> int:
    """`last`: the last one rather than the first; `end`: a zero byte is found as well."""
    found = -ENOENT
    for at in range(min(count, MOST)):
        if at >= len(text):
            return -EFAULT
        if text[at] == wanted:
            found = at
            if not last:
                return at
        if text[at] == 0:
            return at if end else found
    return -E2BIG if count >= MOST else -ENOENT


def _length(text: bytes, count: int) -> int:
    for at in range(min(count, MOST)):
        if at >= len(text):
            return -EFAULT
        if text[at] == 0:
            return at
    return -E2BIG if count >= MOST else count


def _span(text: bytes, set_: bytes, while_in: bool) -> int:
    """How far the text has only characters of the set (or, not `while_in`, none of them)."""
    for at in range(MOST):
        if at >= len(text):
            return -EFAULT
        if text[at] == 0:
            return at
        inside = _character(set_, MOST, text[at], False, False)
        if inside in (-EFAULT, -E2BIG):
            return inside
        if (inside >= 0) != while_in:
            return at
    return -E2BIG


def _search(text: bytes, part: bytes, count: int) -> int:
    for at in range(MOST):
        for ahead in range(MOST):
            if at + ahead > count:
                return -ENOENT
            if ahead >= len(part):
                return -EFAULT
            if part[ahead] == 0:
                return at
            if at + ahead == count:
                return -ENOENT
            if at + ahead >= len(text):
                return -EFAULT
            if text[at + ahead] == 0:
                return -ENOENT
            if text[at + ahead] != part[ahead]:
                break
        else:
            return -E2BIG
    return -E2BIG


def _interpreted(function: Callable[..., int], *constants: Any) -> Callable[..., int]:
    def interpret(machine: Machine, *arguments: Any) -> int:
        return function(*arguments, *constants)

    return interpret


def _interpret_character(last: bool, end: bool) -> Callable[..., int]:
    def interpret(machine: Machine, text: bytes, wanted: int) -> int:
        return _character(text, MOST, wanted & 0xFF, last, end)

    return interpret


def _interpret_strnchr(machine: Machine, text: bytes, count: int, wanted: int) -> int:
    return _character(text, count, wanted & 0xFF, False, False)


# --- compiled -------------------------------------------------------------------------------------
def _low(m: Any) -> Factory:
    def text_low(byte):  # type: ignore
        if 65 <= byte <= 90 or (192 <= byte <= 222 and byte != 215):
            return byte + 32
        return byte

    return text_low


_LOW = Template("text_low", _low, "i64(i64)")


def _comparing(m: Any, fold: int) -> Factory:
    low = m.extern(_LOW)

    def text_compare(one, room, other, other_room):  # type: ignore
        for at in range(MOST):
            if at >= room or at >= other_room:
                return -EFAULT
            a, b = m.load_u8(one, at), m.load_u8(other, at)
            if fold != 0:
                a, b = low(a), low(b)
            if a != b:
                return -1 if a < b else 1
            if a == 0:
                return 0
        return -E2BIG

    return text_compare


def _finding(m: Any) -> Factory:
    def text_find(text, room, count, wanted, how):  # type: ignore
        """`how`: 1 the last one, 2 a zero byte as well.  An int that is not masked."""
        found = -ENOENT
        most = m.smaller(room, MOST)
        if not m.ult(most, count):
            most = count
        at = 0
        while at < most:
            byte = m.load_u8(text, at)
            if byte == wanted:
                found = at
                if how & 1 == 0:
                    return at
            if byte == 0:
                return at if how & 2 != 0 else found
            at += 1
        if at == count:
            return -E2BIG if count == MOST else -ENOENT
        return -E2BIG if at == MOST else -EFAULT

    return text_find


_FIND = Template("text_find", _finding, "i64(ptr, i64, i64, i64, i64)", inline=False)


def _characters(m: Any, how: int) -> Factory:
    find = m.extern(_FIND)

    def text_character(text, room, wanted):  # type: ignore
        return find(text, room, MOST, wanted & 0xFF, how)

    return text_character


def _strnchr(m: Any) -> Factory:
    find = m.extern(_FIND)

    def text_strnchr(text, room, count, wanted):  # type: ignore
        return find(text, room, count, wanted & 0xFF, 0)

    return text_strnchr


def _strnlen(m: Any) -> Factory:
    find = m.extern(_FIND)

    def text_strnlen(text, room, count):  # type: ignore
        at = find(text, room, count, _UNTIL_ZERO, 2)
        if at == -ENOENT:
            return count
        return at

    return text_strnlen


def _strlen(m: Any) -> Factory:
    find = m.extern(_FIND)

    def text_strlen(text, room):  # type: ignore
        return find(text, room, MOST, _UNTIL_ZERO, 2)

    return text_strlen


def _spanning(m: Any, while_in: int) -> Factory:
    find = m.extern(_FIND)

    def text_span(text, room, set_, set_room):  # type: ignore
        for at in range(MOST):
            if at >= room:
                return -EFAULT
            byte = m.load_u8(text, at)
            if byte == 0:
                return at
            inside = find(set_, set_room, MOST, byte, 0)
            if inside == -EFAULT or inside == -E2BIG:
                return inside
            if (1 if inside >= 0 else 0) != while_in:
                return at
        return -E2BIG

    return text_span


def _searching(m: Any) -> Factory:
    def text_search(text, room, part, part_room, count):  # type: ignore
        for at in range(MOST):
            ahead = 0
            while True:
                if m.ult(count, at + ahead):
                    return -ENOENT
                if ahead == MOST:
                    return -E2BIG
                if ahead >= part_room:
                    return -EFAULT
                wanted = m.load_u8(part, ahead)
                if wanted == 0:
                    return at
                if at + ahead == count:
                    return -ENOENT
                if at + ahead >= room:
                    return -EFAULT
                byte = m.load_u8(text, at + ahead)
                if byte == 0:
                    return -ENOENT
                if byte != wanted:
                    break
                ahead += 1
        return -E2BIG

    return text_search


_SEARCH = Template("text_search", _searching, "i64(ptr, i64, ptr, i64, i64)", inline=False)


def _strstr(m: Any) -> Factory:
    search = m.extern(_SEARCH)

    def text_strstr(text, room, part, part_room):  # type: ignore
        return search(text, room, part, part_room, MOST)

    return text_strstr


def _function(name: str, args: tuple[Arg, ...], interpret: Callable[..., int],
              factory: Callable[[Any], Factory], *uses: Template) -> Helper:
    kinds = ", ".join("ptr, i64" if arg is Arg.STRING else "i64" for arg in args)
    return Helper(KERNEL_FUNCTIONS[f"bpf_{name}"], name, args, Ret.SCALAR, interpret,
                  Template(f"text_{name}", factory, f"i64({kinds})", uses, inline=False),
                  packet=True)


_ONE, _TWO = (Arg.STRING,), (Arg.STRING, Arg.STRING)
_CHARACTER = (Arg.STRING, Arg.NUMBER)

HELPERS = (
    _function("strcmp", _TWO, _interpreted(_compare, False), partial(_comparing, fold=0), _LOW),
    _function("strcasecmp", _TWO, _interpreted(_compare, True), partial(_comparing, fold=1), _LOW),
    _function("strchr", _CHARACTER, _interpret_character(False, False),
              partial(_characters, how=0), _FIND),
    _function("strchrnul", _CHARACTER, _interpret_character(False, True),
              partial(_characters, how=2), _FIND),
    _function("strrchr", _CHARACTER, _interpret_character(True, False),
              partial(_characters, how=1), _FIND),
    _function("strnchr", (Arg.STRING, Arg.NUMBER, Arg.NUMBER), _interpret_strnchr, _strnchr,
              _FIND),
    _function("strlen", _ONE, _interpreted(_length, MOST), _strlen, _FIND),
    _function("strnlen", (Arg.STRING, Arg.NUMBER), _interpreted(_length), _strnlen, _FIND),
    _function("strspn", _TWO, _interpreted(_span, True), partial(_spanning, while_in=1), _FIND),
    _function("strcspn", _TWO, _interpreted(_span, False), partial(_spanning, while_in=0), _FIND),
    _function("strstr", _TWO, _interpreted(_search, MOST), _strstr, _SEARCH),
    _function("strnstr", (*_TWO, Arg.NUMBER), _interpreted(_search), _searching),
)
