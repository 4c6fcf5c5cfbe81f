"""The native extensions, each built only where its library is installed; metadata: setup.cfg."""

import runpy
from pathlib import Path

from setuptools import setup

builds = [b for b in ("afxdp/_build.py", "dpdk/_build.py") if Path(b).exists()]
setup(cffi_modules=[f"{b}:ffi" for b in builds if runpy.run_path(b)["is_installed"]()])
