"""CPU cycles and instructions of this thread, by perf_event_open(2), where there are counters.

Virtual machines often have none: then `refusal` says so, and reports leave the columns out.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable, Mapping
from functools import cache, partial
from types import TracebackType
from typing import Self

# include/uapi/linux/perf_event.h
HARDWARE, SOFTWARE = 0, 1
CYCLES, INSTRUCTIONS = (HARDWARE, 0), (HARDWARE, 1)
TASK_CLOCK = (SOFTWARE, 1)  # ns, on every machine
_ENABLE, _DISABLE, _RESET = 0x2400, 0x2401, 0x2403
_DISABLED, _EXCLUDE_HV = 1 << 0, 1 << 6
_TIMES = 1 << 0 | 1 << 1  # PERF_FORMAT_TOTAL_TIME_ENABLED, _RUNNING
_READ = struct.Struct("=QQQ")  # count, ns enabled, ns on the PMU
_ATTR_BYTES = 112  # PERF_ATTR_SIZE_VER5
_SYSCALL = {"x86_64": 298, "aarch64": 241}
Event = tuple[int, int]  # type, config


class Counters:
    """Counts of events in this thread, user and kernel; close it.  Raises OSError."""

    def __init__(self, events: dict[str, Event]) -> None:
        self._fds: dict[str, int] = {}
        try:
            for name, event in events.items():
                self._fds[name] = _open(event)
        except OSError:
            self.close()
            raise

    def count(self, call: Callable[[], object]) -> dict[str, int]:
        """Where the PMU was shared (a watchdog, another perf), of all that time.  Raises OSError
        if it was never ours."""
        for fd in self._fds.values():
            fcntl.ioctl(fd, _RESET, 0)
        before = {name: _read(fd) for name, fd in self._fds.items()}
        for fd in self._fds.values():
            fcntl.ioctl(fd, _ENABLE, 0)
        call()
        for fd in self._fds.values():
            fcntl.ioctl(fd, _DISABLE, 0)
        return {name: whole(before[name], _read(fd)) for name, fd in self._fds.items()}

    def close(self) -> None:
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def _read(fd: int) -> tuple[int, int, int]:
    count, enabled_ns, running_ns = _READ.unpack(os.read(fd, _READ.size))
    return count, enabled_ns, running_ns


def whole(before: tuple[int, int, int], after: tuple[int, int, int]) -> int:
    """What was counted between two reads, (count, ns enabled, ns on the PMU) each: scaled up if the
    PMU had it only for a part (perf_event_open(2)).  Raises OSError if it never had."""
    count, enabled_ns, running_ns = (b - a for a, b in zip(before, after, strict=True))
    if running_ns <= 0:
        raise OSError(errno.EBUSY, "the counters are in use by somebody else")
    return count * enabled_ns // running_ns if running_ns < enabled_ns else count


def _open(event: Event) -> int:
    kind, config = event
    attr = struct.pack("=IIQQQQQ", kind, _ATTR_BYTES, config, 0, 0, _TIMES,
                       _DISABLED | _EXCLUDE_HV)
    number = _SYSCALL.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(attr.ljust(_ATTR_BYTES, b"\0"), _ATTR_BYTES)
    fd: int = libc.syscall(number, buffer, 0, -1, -1, 0)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return fd


_HARDWARE = {"cycles": CYCLES, "instructions": INSTRUCTIONS}


@cache
def refusal() -> str:
    """Why cycles and instructions cannot be counted here; empty if they can."""
    try:
        with Counters(_HARDWARE):
            return ""
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP, errno.ENODEV, errno.ENOSYS):
            return "this machine has no hardware counters (a virtual machine without a PMU)"
        return f"perf_event_open: {error.strerror} (kernel.perf_event_paranoid?)"


def net(timed: Mapping[str, Callable[[int], object]], count: int) -> dict[str, float]:
    """Cycles and instructions a packet, what the harness needs taken off.  Raises OSError."""
    with Counters(_HARDWARE) as counters:
        raw, floor = (counters.count(partial(timed[name], count)) for name in ("raw", "floor"))
    return {event: (raw[event] - floor[event]) / count for event in _HARDWARE}
