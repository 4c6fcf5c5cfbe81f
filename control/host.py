"""The host under a run: are its interfaces still there and up, and what other runs have of it."""

from __future__ import annotations

import fcntl
import json
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from control.watch import note
from dataplane import rundir
from dataplane.port import Port
from dataplane.takeover import network_namespace
from xdp_runtime.errors import PortError

_SIOCGIFFLAGS, _SIOCGIFMTU, _IFF_UP, _IFF_RUNNING = 0x8913, 0x8921, 0x1, 0x40


@dataclass(frozen=True, slots=True)
class Condition:
    """An interface at one moment; `queues` are receive queues, 0 where the driver does not say or
    the port takes what comes by whichever."""

    name: str
    up: bool
    carrier: bool
    mtu: int
    queues: int


class Watchdog:
    """Of the interfaces that `ports` are on at the time, in this network namespace.

    What a run survives is said when it happens: down and up, another name, another MTU, more or
    fewer queues.  What it does not is raised.  `unfit` says what an MTU does to a port that was not
    opened for it.
    """

    def __init__(self, ports: Callable[[], Sequence[Port]],
                 unfit: Callable[[Port, int], Iterable[str]] = lambda port, mtu: ()) -> None:
        self._ports, self._unfit = ports, unfit
        self._asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._seen: dict[int, Condition] = {}

    def check(self) -> None:
        """Raises PortError when an interface is gone."""
        for port in self._ports():
            check: Callable[[], None] | None = getattr(port, "check", None)
            if check is not None:
                check()
            if port.ifindex:
                now = self._look(port)
                before = self._seen.get(port.ifindex) or _opened(port, now)
                self._seen[port.ifindex] = now
                for text in say_change(before, now, len(port.queues)):
                    note(text)
                if now.mtu > before.mtu:
                    for text in self._unfit(port, now.mtu):
                        note(f"{now.name}: {text}")

    def has_carrier(self, port: Port) -> bool:
        return self._look(port).carrier

    def _look(self, port: Port) -> Condition:
        try:
            name = socket.if_indextoname(port.ifindex)
            request = struct.pack("=16s24x", name.encode())
            flags, = struct.unpack_from("=H", fcntl.ioctl(self._asker, _SIOCGIFFLAGS, request), 16)
            mtu, = struct.unpack_from("=i", fcntl.ioctl(self._asker, _SIOCGIFMTU, request), 16)
        except OSError as error:
            raise PortError(f"interface {host_name(port)}", "was removed during the run, or moved "
                            "to another network namespace") from error
        from afxdp.interface import channels  # not for `xdpu --help`
        return Condition(name, bool(flags & _IFF_UP), bool(flags & _IFF_RUNNING), mtu,
                         channels(name) if hasattr(port, "channels") else 0)


def _opened(port: Port, now: Condition) -> Condition:
    """As it was when the port was opened, as far as that knows."""
    if not hasattr(port, "channels"):
        return replace(now, name=host_name(port), up=True)
    return replace(now, name=host_name(port), up=True, queues=port.channels,
                   mtu=port.mtu)  # type: ignore[attr-defined]


def host_name(port: Port) -> str:
    """Of the interface, where a device of DPDK has another."""
    return getattr(port, "host_name", "") or port.name


def say_change(before: Condition, now: Condition, taken: int) -> Iterator[str]:
    """What the user should know; `taken` queues are the run's."""
    if now.name != before.name:
        yield f"interface {before.name} is called {now.name} now"
    if now.up != before.up:
        yield f"interface {now.name} " + ("is up again" if now.up else
                                          "went down: nothing comes or goes until it is up again")
    elif now.up and now.carrier != before.carrier:
        yield f"interface {now.name} has " + ("its carrier back" if now.carrier else
                                              "lost its carrier")
    if now.mtu != before.mtu:
        yield f"the MTU of {now.name} is {now.mtu} now, was {before.mtu}"
    if now.queues > max(before.queues, taken):
        yield (f"{now.name} has {now.queues} receive queues now; those from {taken} on are not "
               "part of this run: take it anew (xdpu port remove, port add), or ethtool -L it back")
    elif now.queues < before.queues:
        yield f"{now.name} has {now.queues} receive queues now, {taken} were taken: some are idle"


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
