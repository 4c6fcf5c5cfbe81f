"""Entry: how a program is entered, which helpers it may call, and how wide its result is.

The interpreter, the verifier and lowering take one, so that each has one way of running programs
and knows no kinds of them:

    XDP                  r1 is the context, a struct xdp_md; the result is a verdict of 32 bits
    raw_entry(n, ...)    r1 points to n writable bytes (0 without any), r2 is n; 64 bits of result
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from xdp_runtime.helpers import HELPERS
from xdp_runtime.helpers.proto import Helper


@dataclass(frozen=True, slots=True)
class Entry:
    """`memory_bytes` is None where r1 is the context."""

    memory_bytes: int | None = None
    helpers: Mapping[int, Helper] = field(default_factory=lambda: HELPERS, hash=False)
    result_bits: int = 32


XDP = Entry()


def raw_entry(memory_bytes: int, helpers: Mapping[int, Helper]) -> Entry:
    """A function of some memory, as conformance suites run them."""
    return Entry(memory_bytes, helpers, 64)
