"""SipHash-2-4 (Aumasson, Bernstein 2012) of words of 8 bytes, in Python and as a template."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xdp_runtime.template import Template

Factory = Callable[..., Any]
_U64 = (1 << 64) - 1
_V0, _V1, _V2, _V3 = 0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573


def siphash(data: bytes, key: bytes) -> int:
    """Of `data`, a multiple of 8 bytes, under a key of 16."""
    k0, k1 = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
    v0, v1, v2, v3 = _V0 ^ k0, _V1 ^ k1, _V2 ^ k0, _V3 ^ k1

    def rotate(x: int, by: int) -> int:
        return (x << by | x >> (64 - by)) & _U64

    def rounds(count: int) -> None:
        nonlocal v0, v1, v2, v3
        for _ in range(count):
            v0, v2 = v0 + v1 & _U64, v2 + v3 & _U64
            v1, v3 = rotate(v1, 13) ^ v0, rotate(v3, 16) ^ v2
            v0 = rotate(v0, 32)
            v2, v0 = v2 + v1 & _U64, v0 + v3 & _U64
            v1, v3 = rotate(v1, 17) ^ v2, rotate(v3, 21) ^ v0
            v2 = rotate(v2, 32)

    words = [int.from_bytes(data[at:at + 8], "little") for at in range(0, len(data), 8)]
    for word in (*words, len(data) << 56):
        v3 ^= word
        rounds(2)
        v0 ^= word
    v2 ^= 0xFF
    rounds(4)
    return v0 ^ v1 ^ v2 ^ v3


def _round(m: Any) -> Factory:
    def sip_round(v):  # type: ignore
        v0, v1, v2, v3 = m.load_u64(v, 0), m.load_u64(v, 8), m.load_u64(v, 16), m.load_u64(v, 24)
        v0 = m.add(v0, v1)
        v2 = m.add(v2, v3)
        v1 = ((v1 << 13) | m.lshr(v1, 51)) ^ v0
        v3 = ((v3 << 16) | m.lshr(v3, 48)) ^ v2
        v0 = (v0 << 32) | m.lshr(v0, 32)
        v2 = m.add(v2, v1)
        v0 = m.add(v0, v3)
        v1 = ((v1 << 17) | m.lshr(v1, 47)) ^ v2
        v3 = ((v3 << 21) | m.lshr(v3, 43)) ^ v0
        v2 = (v2 << 32) | m.lshr(v2, 32)
        m.store_u64(v, 0, v0)
        m.store_u64(v, 8, v1)
        m.store_u64(v, 16, v2)
        m.store_u64(v, 24, v3)
        return 0

    return sip_round


SIP_ROUND = Template("sip_round", _round, "i64(ptr)")


def _siphash(m: Any) -> Factory:
    turn = m.extern(SIP_ROUND)

    def siphash_words(data, size, key):  # type: ignore
        v = m.gep(m.alloca(32), 0)
        k0, k1 = m.load_u64(key, 0), m.load_u64(key, 8)
        m.store_u64(v, 0, _V0 ^ k0)
        m.store_u64(v, 8, _V1 ^ k1)
        m.store_u64(v, 16, _V2 ^ k0)
        m.store_u64(v, 24, _V3 ^ k1)
        at = 0
        while at <= size:
            word = size << 56
            if at < size:
                word = m.load_u64(data, at)
            m.store_u64(v, 24, m.load_u64(v, 24) ^ word)
            turn(v)
            turn(v)
            m.store_u64(v, 0, m.load_u64(v, 0) ^ word)
            at += 8
        m.store_u64(v, 16, m.load_u64(v, 16) ^ 0xFF)
        for _ in range(4):
            turn(v)
        return m.load_u64(v, 0) ^ m.load_u64(v, 8) ^ m.load_u64(v, 16) ^ m.load_u64(v, 24)

    return siphash_words


SIPHASH = Template("siphash_words", _siphash, "i64(ptr, i64, ptr)", (SIP_ROUND,), inline=False)
