"""What the kernel calls a helper, also one that does not exist here, so that errors can name it."""

from __future__ import annotations

from xdp_runtime.helper_names import CALL_NAMES


def kernel_name(id: int) -> str:
    """"bpf_map_lookup_elem" for 1; a number the kernel does not know is called so."""
    if id in CALL_NAMES:
        return CALL_NAMES[id]
    return f"helper {id} (unknown to the kernel)"
