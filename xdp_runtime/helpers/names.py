"""What the kernel calls a helper, also one that does not exist here, so that errors can name it."""

from __future__ import annotations

from xdp_runtime.helper_names import HELPER_NAMES, KERNEL_FUNCTIONS


def kernel_name(id: int) -> str:
    """"bpf_map_lookup_elem" for 1; a number the kernel does not know is called so."""
    if 1 <= id < len(HELPER_NAMES):
        return HELPER_NAMES[id]
    for name, number in KERNEL_FUNCTIONS.items():
        if number == id:
            return name
    return f"helper {id} (unknown to the kernel)"
