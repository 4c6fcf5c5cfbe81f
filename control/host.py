"""The host under a run: are its interfaces still there and up, and which CPUs are free."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from dataplane import rundir
from dataplane.port import Port
from dataplane.takeover import network_namespace
from xdp_runtime.errors import ConfigError, PortError

_SIOCGIFFLAGS, _IFF_UP, _IFF_RUNNING = 0x8913, 0x1, 0x40


class Watchdog:
    """Of the interfaces that `ports` are on at the time, in this network namespace."""

    def __init__(self, ports: Callable[[], Sequence[Port]]) -> None:
        self._ports = ports
        self._asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)

    def check(self) -> None:
        """Raises PortError when one is gone or down."""
        for port in self._ports():
            if port.ifindex and not self._flags(port) & _IFF_UP:
                raise PortError(f"interface {port.name}", "went down during the run",
                                f"ip link set dev {port.name} up, and run again")

    def has_carrier(self, port: Port) -> bool:
        return bool(self._flags(port) & _IFF_RUNNING)

    def _flags(self, port: Port) -> int:
        try:
            name = socket.if_indextoname(port.ifindex)  # it may have been renamed
            request = struct.pack("=16s24x", name.encode())
            answer = fcntl.ioctl(self._asker, _SIOCGIFFLAGS, request)
        except OSError as error:
            raise PortError(f"interface {port.name}", "was removed during the run") from error
        return int(struct.unpack_from("=H", answer, 16)[0])


def other_runs() -> Iterator[dict[str, Any]]:
    """What the living runs say of themselves in run.json, and their `name` and `pid`."""
    for run in rundir.runs():
        owner = run.owner()
        if owner is not None and owner.alive():
            with suppress(OSError, ValueError):
                known = json.loads((run.path / "run.json").read_text())
                yield {"cpus": [], "interfaces": [], "namespace": [], **known, "name": run.name,
                       "pid": owner.pid}


def used_cpus() -> set[int]:
    """Those that workers of other runs are pinned to."""
    return {cpu for run in other_runs() for cpu in run["cpus"]}


def refuse_shared(ifaces: Iterable[str]) -> None:
    """Raises PortError when another run is on one of these interfaces."""
    here = list(network_namespace())
    for run in other_runs():
        for name in set(ifaces).intersection(run["interfaces"]):
            if run["namespace"] == here:
                raise PortError(f"interface {name}", f"run {run['name']} is on it, pid "
                                f"{run['pid']}", "end that one first")


def choose_cpus(wish: str | tuple[int, ...], workers: int,
                used: Iterable[int]) -> tuple[int, ...] | None:
    """A CPU for each worker as far as there are enough; None leaves the threads to the kernel.

    Left alone as long as possible: CPUs of other runs, then the first one, where the machine's
    own work tends to be.
    """
    if wish == "none":
        return None
    allowed = sorted(os.sched_getaffinity(0))
    if isinstance(wish, tuple):
        wrong = [cpu for cpu in wish if cpu not in allowed]
        if wrong:
            raise ConfigError(f"--cpu {wrong[0]}", "this process may not run there",
                              f"it may on {','.join(map(str, allowed))}")
        return wish[:workers]
    busy = set(used)
    order = sorted(allowed, key=lambda cpu: (cpu in busy, cpu == allowed[0], cpu))
    return tuple(order[:workers])


def say_cpus(cpus: tuple[int, ...] | None) -> str:
    if cpus is None:
        return "not pinned"
    return f"on CPU{'s' * (len(cpus) > 1)} {','.join(map(str, cpus))}"
