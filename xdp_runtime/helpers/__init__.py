"""The helpers that exist here, by number and by name; one file a family."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from xdp_runtime.helpers import core, csum, trace, xdp
from xdp_runtime.helpers.names import kernel_name
from xdp_runtime.helpers.proto import Helper

_ALL = (*core.HELPERS, *xdp.HELPERS, *csum.HELPERS, *trace.HELPERS)

HELPERS: Mapping[int, Helper] = MappingProxyType({helper.id: helper for helper in _ALL})
by_name: Mapping[str, Helper] = MappingProxyType({helper.name: helper for helper in _ALL})

__all__ = ["HELPERS", "by_name", "kernel_name"]
