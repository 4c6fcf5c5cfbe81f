"""SipHash-2-4, in Python and compiled."""

from __future__ import annotations

import random

from tests.xdp_runtime.compiled import compiled
from xdp_runtime.siphash import SIPHASH, siphash


def test_known_hash() -> None:
    """Of the vectors that come with the reference implementation, that for 16 bytes."""
    assert siphash(bytes(range(16)), bytes(range(16))) == 0x3F2ACC7F57C29BDB


def test_compiled_hash() -> None:
    rng, call = random.Random(5), compiled(SIPHASH)
    for size in (8, 16, 40):
        data, key = rng.randbytes(size), rng.randbytes(16)
        assert call(data, size, key) == siphash(data, key)
