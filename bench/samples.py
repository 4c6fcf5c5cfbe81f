"""What every bench shares: medians with their spread or interval, CPUs, what machine this is."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from xdp_runtime.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent
_DRAWS = 2000


@dataclass(frozen=True, slots=True)
class Spread:
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def record(self, digits: int = 3) -> dict[str, float]:
        return {"median": round(self.median, digits), "min": round(self.low, digits),
                "max": round(self.high, digits)}


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Bootstrap confidence interval of the median: of 2,000 draws with replacement, always the
    same ones, the middle `confidence` (B. Efron, percentile method)."""
    import numpy as np

    draws = np.random.default_rng(1).integers(0, len(values), (_DRAWS, len(values)))
    medians = np.median(np.asarray(values, float)[draws], axis=1)
    edge = 50 * (1 - confidence)
    low, high = np.percentile(medians, [edge, 100 - edge])
    return float(low), float(high)


def estimate(values: Sequence[float], digits: int = 3) -> dict[str, float]:
    """Median, extremes, and the interval (`low`, `high`) that the median lies in."""
    low, high = interval(values)
    return Spread.of(values).record(digits) | {"low": round(low, digits),
                                               "high": round(high, digits)}


def of_repository(path: Path, what: str) -> Path:
    """The path, of something that is not installed with xdpu.  Raises ConfigError without it."""
    if not path.exists():
        raise ConfigError(what, f"needs {path.name}, which is not installed with xdpu",
                          "run it in a clone of the repository")
    return path


def cpus(count: int) -> list[int]:
    """CPUs to measure on, the last ones first: the machine's own work tends to be on the first."""
    allowed = sorted(os.sched_getaffinity(0), reverse=True)
    return [allowed[i % len(allowed)] for i in range(count)]


@contextmanager
def pinned(cpu: int) -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def machine() -> dict[str, Any]:
    """What a figure means nothing without."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.executable).name, *sys.orig_argv[1:]],
        "cpu": _cpu_name(), "cpus": len(os.sched_getaffinity(0)),
        "virtual": "hypervisor" in _cpu_info().get("flags", "").split(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "mitigations": {path.name: path.read_text().strip() for path in sorted(
            Path("/sys/devices/system/cpu/vulnerabilities").glob("*"))},
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("xdpu", "llvmlite", "numba")},
        "commit": _commit(),
    }


def describe(about: Mapping[str, Any]) -> str:
    """One sentence on the machine, with what makes kernel helper calls dear on it."""
    mitigations = [f"{name}: {state}" for name, state in about["mitigations"].items()
                   if state != "Not affected"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return (f"Measured {about['date'][:10]} at {about['commit']} on {about['cpu']}, "
            f"{about['cpus']} CPUs{' of a virtual machine' if about['virtual'] else ''}, "
            f"{about['kernel']}, Python {about['python']}, {versions}; load before "
            f"{about['load'][0]}. Mitigations: {'; '.join(mitigations) or 'none'}.")


def _cpu_info() -> dict[str, str]:
    first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _cpu_name() -> str:
    info = _cpu_info()
    numbers = "/".join(info.get(n, "?") for n in ("cpu family", "model", "stepping"))
    return f"{info.get('model name', platform.processor() or 'unknown')} ({numbers})"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True,
                              check=False)
        return done.stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no")
    return f"{commit or 'unknown'}{' with changes' if changed else ''}"
