"""Every helper that an XDP program may call on Linux 6.18, and those common in tracing.

By number and by name; one file a family.  `Helper.runs` says whether there is code for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from xdp_runtime.helpers import (
    clock,
    core,
    csum,
    dynptr,
    dynptr_slice,
    fib,
    iterator,
    loop,
    metadata,
    net,
    ringbuf,
    sections,
    spin,
    syncookie,
    task,
    text,
    text_search,
    timer,
    trace,
    xdp,
)
from xdp_runtime.helpers.names import kernel_name
from xdp_runtime.helpers.proto import Helper

_ALL = tuple(helper for family in (
    core, clock, xdp, csum, net, fib, syncookie, loop, timer, spin, ringbuf, dynptr, text, task,
    trace, metadata, iterator, sections, dynptr_slice, text_search)
             for helper in family.HELPERS)

HELPERS: Mapping[int, Helper] = MappingProxyType({helper.id: helper for helper in _ALL})
by_name: Mapping[str, Helper] = MappingProxyType({helper.name: helper for helper in _ALL})

__all__ = ["HELPERS", "by_name", "kernel_name"]
