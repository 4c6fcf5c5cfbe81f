"""Run xdpu with a clock on its phases: where a start spends its time.

    python -X importtime -m bench.phases OUT.json run OBJ --iface IF ...

OUT gets [name, seconds since the process began, seconds it took] for every call of what PHASES
names, in the order they ended; one may lie within another.  A function that no longer exists is
left out.  Modules are patched as they are imported, so nothing is imported that would not be.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

PHASES = {
    "xdp_runtime.elf": ("read_object",),
    "xdp_runtime.cache": ("sources_fingerprint",),
    "xdp_runtime.compiler.link": ("compile_program", "build_module"),
    "xdp_runtime.compiler.templates": ("_compile",),
    "xdp_runtime.compiler.target": ("link", "optimise", "emit_object", "Code.__init__"),
    "xdp_runtime.compiler.map_ops": ("bind_operations",),
    "afxdp.port": ("AfxdpPort.open",),
    "dataplane.tap": ("TapPort.open",),
    "dataplane.takeover": ("Takeover.apply",),
    "dataplane.engine": ("Engine.__init__", "Engine.start"),
    "control.ports": ("foresee",),
    "control.run_live": ("_compile_ahead", "mend", "_set_up"),
}
Call = tuple[str, float, float]
_calls: list[Call] = []


def _began_s() -> float:
    """When this process was started, on the clock of time.monotonic()."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    boot_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return boot_s - (time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic())


_BEGAN_S = float(os.environ.get("XDPU_BENCH_SPAWNED", 0)) or _began_s()


def _clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.monotonic()
        try:
            return function(*args, **kwargs)
        finally:
            _calls.append((name, start - _BEGAN_S, time.monotonic() - start))

    return call


def _patch(module: ModuleType) -> None:
    for name in PHASES[module.__name__]:
        owner: Any = module
        *path, last = name.split(".")
        for part in path:
            owner = getattr(owner, part, None)
        found = vars(owner).get(last) if owner is not None else None
        label = f"{module.__name__}:{name}"
        if isinstance(found, classmethod):
            setattr(owner, last, classmethod(_clocked(label, found.__func__)))
        elif callable(found):
            setattr(owner, last, _clocked(label, found))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds what PHASES names as anyone would, and patches it once it is executed."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname not in PHASES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _patch(module)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def main() -> int:
    out, *argv = sys.argv[1:]
    sys.meta_path.insert(0, _Finder())
    _calls.append(("python", 0.0, time.monotonic() - _BEGAN_S))
    from control.cli import main as xdpu

    try:
        return xdpu(argv)
    finally:
        Path(out).write_text(json.dumps(_calls))


if __name__ == "__main__":
    sys.exit(main())
