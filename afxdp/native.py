"""The door to libxdp: imports the native extension, or says what is missing."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from xdp_runtime.errors import PortError


def load() -> tuple[Any, Any]:
    """cffi's `ffi` and `lib` of afxdp._native.  Raises PortError where it was not built."""
    try:
        native: ModuleType = __import__("afxdp._native", fromlist=["ffi", "lib"])
    except ImportError as error:
        why = "libxdp is not installed"
        mend = "apt install libxdp-dev libbpf-dev and run make venv"
        if "libxdp" not in str(error) and not isinstance(error, ModuleNotFoundError):
            why = f"its native extension does not load: {error}"
        raise PortError("the AF_XDP port", why, mend) from error
    native.lib.be_quiet()
    return native.ffi, native.lib
