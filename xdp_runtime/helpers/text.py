"""Text: to numbers, compared, formatted."""

from __future__ import annotations

from xdp_runtime.helpers import strings
from xdp_runtime.helpers.proto import Arg, Helper, Ret

HELPERS = (
    Helper(149, "snprintf_btf", (Arg.MEM_UNINIT, Arg.SIZE, Arg.MEM, Arg.SIZE, Arg.ANYTHING),
           Ret.SCALAR),
    *strings.HELPERS,
)
