"""The template that ends a packet's pcapng block: what became of it, for people and for tools.

    comment        "XDP_REDIRECT ifindex 7"
    epb_verdict    whose verdict (Linux eBPF XDP), the verdict
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dataplane.pcapfile import EPB_VERDICT, OPT_COMMENT, VERDICT_XDP
from xdp_runtime.template import Template

# a table of words, a row each: {u64 length, text}
WORD_BYTES = 32
_TEXT, _TEXT_BYTES = 8, WORD_BYTES - 8
VERDICT_BYTES = 96  # an upper bound of what is written
_NUMBER_MAX = 10**10


def words(texts: list[str]) -> bytes:
    """The table."""
    return b"".join(len(text).to_bytes(8, "little") + text.encode().ljust(_TEXT_BYTES, b"\0")
                    for text in texts)


def _write(m: Any) -> Callable[..., Any]:
    def pcapng_verdict(block, at, table, word, infix, number, verdict):  # type: ignore
        """Write at block + `at`: the words of two rows (no second one: -1) and a number behind
        them, and the verdict (none: -1) -> where the next option goes."""
        option = at
        at += 4
        row = m.inside(table, word * WORD_BYTES)
        m.copy(m.inside(block, at), m.inside(row, _TEXT), _TEXT_BYTES)
        at += m.load_u64(row, 0)
        if infix >= 0:
            row = m.inside(table, infix * WORD_BYTES)
            m.copy(m.inside(block, at), m.inside(row, _TEXT), _TEXT_BYTES)
            at += m.load_u64(row, 0)
            digits = 1
            power = 10
            while number >= power and power < _NUMBER_MAX:
                digits += 1
                power *= 10
            n = digits
            while n > 0:
                n -= 1
                m.store_u8(block, at + n, 48 + m.urem(number, 10))
                number = m.udiv(number, 10)
            at += digits
        m.store_u16(block, option, OPT_COMMENT)
        m.store_u16(block, option + 2, at - option - 4)
        m.store_u32(block, at, 0)
        at = (at + 3) & -4
        if verdict >= 0:  # nine bytes: whose verdict, the verdict
            m.store_u16(block, at, EPB_VERDICT)
            m.store_u16(block, at + 2, 9)
            m.store_u8(block, at + 4, VERDICT_XDP)
            m.store_u64(block, at + 5, verdict)
            m.store_u32(block, at + 13, 0)
            at += 16
        return at

    return pcapng_verdict


WRITE_VERDICT = Template("pcapng_verdict", _write, "i64(ptr, i64, ptr, i64, i64, i64, i64)",
                         inline=False)
