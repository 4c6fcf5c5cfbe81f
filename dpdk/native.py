"""The door to DPDK: imports the native extension, or says what is missing."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from xdp_runtime.errors import PortError


def load() -> tuple[Any, Any]:
    """cffi's `ffi` and `lib` of dpdk._native.  Raises PortError where it was not built."""
    try:
        native: ModuleType = __import__("dpdk._native", fromlist=["ffi", "lib"])
    except ImportError as error:
        why = "DPDK is not installed"
        if not isinstance(error, ModuleNotFoundError):
            why = f"its native extension does not load: {error}"
        raise PortError("the DPDK port", why,
                        "apt install libdpdk-dev dpdk and run make venv") from error
    return native.ffi, native.lib
