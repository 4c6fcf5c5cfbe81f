"""Lengths and bytes of packets, in one buffer or in several (state.py, FRAGMENT_*), as templates.

`Pieces` is what an operation on the whole packet is made with: programs of section xdp.frags get
it made with SEVERAL, all others with ONE_PIECE, and so nothing of fragments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xdp_runtime import state as st
from xdp_runtime.template import Template

Factory = Callable[..., Any]
_COPY_SIGNATURE = "i64(ptr, i64, ptr, i64, i64)"


@dataclass(frozen=True, slots=True)
class Pieces:
    """length(run): bytes of the packet.  copy(run, offset, memory, size, store): copy from the
    packet, which has these bytes, to memory, or with `store` not 0 the other way."""

    length: Template
    copy: Template

    @property
    def templates(self) -> tuple[Template, Template]:
        return self.length, self.copy


def _linear_length(m: Any) -> Factory:
    def packet_length(run):  # type: ignore
        return m.diff(m.load_ptr(run, st.DATA_END), m.load_ptr(run, st.DATA))

    return packet_length


def _linear_copy(m: Any) -> Factory:
    def packet_copy(run, offset, memory, size, store):  # type: ignore
        where = m.gep(m.load_ptr(run, st.DATA), offset)
        # what is in the packet may itself be where the bytes come from or go
        if store != 0:
            m.move(where, memory, size)
        else:
            m.move(memory, where, size)
        return 0

    return packet_copy


def _length(m: Any) -> Factory:
    def frags_length(run):  # type: ignore
        linear = m.diff(m.load_ptr(run, st.DATA_END), m.load_ptr(run, st.DATA))
        return linear + m.load_u32(run, st.FRAGMENT_BYTES)

    return frags_length


def _scatter(m: Any) -> Factory:
    def frags_scatter(run, offset, memory, size, store):  # type: ignore
        where, end = m.load_ptr(run, st.DATA), m.load_ptr(run, st.DATA_END)
        record = m.load_ptr(run, st.FRAGMENTS)
        while True:
            here = m.diff(end, where) - offset
            if here > 0:
                part = m.smaller(here, size)
                if store != 0:
                    m.move(m.gep(where, offset), memory, part)
                else:
                    m.move(memory, m.gep(where, offset), part)
                size -= part
                if size == 0:
                    return 0
                memory = m.gep(memory, part)
                offset = 0
            else:
                offset = -here
            where, end = m.load_ptr(record, st.FRAGMENT_DATA), m.load_ptr(record, st.FRAGMENT_END)
            record = m.gep(record, st.FRAGMENT_SIZE_BYTES)

    return frags_scatter


def _copy(m: Any) -> Factory:
    linear, scatter = m.extern(ONE_PIECE.copy), m.extern(SCATTER)

    def frags_copy(run, offset, memory, size, store):  # type: ignore
        data = m.load_ptr(run, st.DATA)
        if offset + size <= m.diff(m.load_ptr(run, st.DATA_END), data):
            return linear(run, offset, memory, size, store)
        return scatter(run, offset, memory, size, store)

    return frags_copy


ONE_PIECE = Pieces(
    Template("packet_length", _linear_length, "i64(ptr)"),
    Template("packet_copy", _linear_copy, _COPY_SIGNATURE))
SCATTER = Template("frags_scatter", _scatter, _COPY_SIGNATURE, inline=False)
SEVERAL = Pieces(
    Template("frags_length", _length, "i64(ptr)"),
    Template("frags_copy", _copy, _COPY_SIGNATURE, (ONE_PIECE.copy, SCATTER)))
