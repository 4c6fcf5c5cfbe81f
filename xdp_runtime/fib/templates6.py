"""The source address that IPv6 would choose, compiled; see source.py."""

from __future__ import annotations

from typing import Any

from xdp_runtime.fib import layout as y
from xdp_runtime.fib.templates import Q_HIGH, Q_LOW, Factory
from xdp_runtime.template import Template

_LINK_LOCAL, _SITE_LOCAL, _GLOBAL = 2, 5, 14
_NO_LABEL = 0xFFFFFFFF
_ORCHID = 0x2001001


def _label(m: Any) -> Factory:
    def fib_label(snap, high, low, ifindex):  # type: ignore
        at, end = m.load_u32(snap, y.S_LABELS), m.load_u32(snap, y.S_LABELS_END)
        while at < end:
            row = m.gep(snap, at)
            of = m.load_u32(row, y.E_IFINDEX)
            differs = ((m.load_u64(row, y.E_HIGH) ^ high) & m.load_u64(row, y.E_MASK_HIGH)) | (
                (m.load_u64(row, y.E_LOW) ^ low) & m.load_u64(row, y.E_MASK_LOW))
            if differs == 0 and (of == 0 or of == ifindex):
                return m.load_u32(row, y.E_LABEL)
            at += y.LABEL_BYTES
        return _NO_LABEL

    return fib_label


LABEL = Template("fib_label", _label, "i64(ptr, i64, i64, i64)", inline=False)


def _choose_source(m: Any) -> Factory:
    label_of = m.extern(LABEL)

    def fib_choose_source(snap, q, way):  # type: ignore
        """The address as two u64, null: there is none."""
        high, low = m.load_u64(q, Q_HIGH), m.load_u64(q, Q_LOW)
        ifindex, master = m.load_u32(way, y.I_IFINDEX), m.load_u32(way, y.I_MASTER)
        scope = _GLOBAL
        if high == 0 and low == 0:
            scope = -1
        elif m.lshr(high, 54) == 0x3FB:
            scope = _SITE_LOCAL
        own = m.load_u32(way, y.I_FLAGS) & y.OWN_SOURCES6
        if scope <= _LINK_LOCAL:
            own = 1
        label = label_of(snap, high, low, ifindex)
        orchid = 1 if m.lshr(high, 36) == _ORCHID else 0
        best, best_score = m.null(), -1
        at, end = m.load_u32(snap, y.S_SOURCES6), m.load_u32(snap, y.S_SOURCES6_END)
        while at < end:
            row = m.gep(snap, at)
            near = 1 if m.load_u32(row, y.A_IFINDEX) == ifindex else 0
            same = 1 if m.load_u32(row, y.A_MASTER) == master else 0
            if (own != 0 and near != 0) or (own == 0 and same != 0):
                of_high, of_low = m.load_u64(row, y.A_HIGH), m.load_u64(row, y.A_LOW)
                score = m.load_u32(row, y.A_BITS) | (near << 13)
                if of_high == high and of_low == low:
                    score = score | (1 << 24)
                fit = m.load_i32(row, y.A_SCOPE)
                if fit >= scope:
                    fit = 256 - fit
                score = score | (fit << 15)
                if m.load_u32(row, y.A_LABEL) == label:
                    score = score | (1 << 12)
                if m.load_u32(row, y.A_ORCHID) == orchid:
                    score = score | (1 << 10)
                common = m.leading_zeros(of_high ^ high)
                if of_high == high:
                    common = 64 + m.leading_zeros(of_low ^ low)
                score = score | (m.smaller(common, m.load_u32(row, y.A_LENGTH)) << 1)
                if score > best_score:
                    best = row
                    best_score = score
            at += y.SOURCE_BYTES
        return best

    return fib_choose_source


CHOOSE_SOURCE = Template("fib_choose_source", _choose_source, "ptr(ptr, ptr, ptr)", (LABEL,),
                         inline=False)
