"""Keeps a program's copy of the host's forwarding tables current, in a thread of the run.

The kernel says by multicast that something changed; what there is now is then read anew, at least
every neighbour, at most everything.  That is more work than to follow each message, and cannot go
astray: the kernel does not announce every route that goes with its interface, nor in which order
equal routes stand.  Changes within SETTLE_S are read together, and reading rests three times as
long as it took, so that a table in turmoil costs no more than a quarter of a CPU.  When the kernel
drops messages for want of room (ENOBUFS), or had none to send (settings in /proc/sys), the next
look finds it: settings are looked at each second, all else some times a minute.

Threads take over the network namespace of who starts them: tables are those of the run's.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType

from dataplane import netlink as nl
from dataplane.fibread import StandIns, read_host, read_neighbours, read_settings
from xdp_runtime.errors import PortError, XdpuError
from xdp_runtime.fib.host import Host
from xdp_runtime.fib.tables import Tables

SETTLE_S = 0.005
REST = 3  # times as long as reading took
LOOK_S, ALL_AGAIN_S = 1.0, 15.0
_ADD_MEMBERSHIP = 1
_NEIGHBOURS = 3
# RTNLGRP_LINK, addresses, routes, rules, settings of interfaces, nexthop objects
_GROUPS = (1, _NEIGHBOURS, 5, 9, 7, 11, 8, 19, 24, 25, 32)


class FibMirror:
    """`note` is told what users should know; `stand_ins` is asked for the run's TAPs
    (fibread.py) whenever all is read."""

    def __init__(self, note: Callable[[str], None],
                 stand_ins: Callable[[], StandIns] = dict) -> None:
        self._note, self._stand_ins = note, stand_ins
        self._tables: Tables | None = None
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stop = False
        self._said = ""

    def follow(self, tables: Tables | None) -> None:
        """Fill these tables, and keep them current from now on.  None: the program has none.
        Raises PortError when they cannot be read."""
        self._tables = tables
        if tables is None or tables.closed:
            return
        if self._thread is None:
            try:
                events = _listen()
            except OSError as error:
                raise _unreadable(error) from error
            self._thread = threading.Thread(target=self._run, args=(events,), daemon=True,
                                            name="xdpu-fib")
            self._thread.start()
        try:
            self._read_all()
        except OSError as error:
            raise _unreadable(error) from error
        self._note(describe(tables.host) + ", kept current")

    def wake(self) -> None:
        """All is to be read again."""
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        self._stop = True
        self.wake()
        if self._thread is not None:
            self._thread.join(10)
        self._tables = None

    def __enter__(self) -> FibMirror:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    # --- the thread ------------------------------------------------------------------------------
    def _run(self, events: socket.socket) -> None:
        poller = select.poll()
        poller.register(events, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        read_at = time.monotonic()
        with events:
            while not self._stop:
                poller.poll(1000 * LOOK_S)
                started = time.monotonic()
                late = started - read_at > ALL_AGAIN_S
                what = max(self._drain(events), 2 * late, 2 * self._settings_differ())
                if self._stop or not what:
                    continue
                time.sleep(SETTLE_S)
                what = max(what, self._drain(events))
                started = time.monotonic()
                self._refresh(what == 2)
                if what == 2:
                    read_at = started
                time.sleep(min(REST * (time.monotonic() - started), 60))

    def _drain(self, events: socket.socket) -> int:
        """What to read: 2 all, 1 neighbours, 0 nothing."""
        what = 0
        try:
            if os.eventfd_read(self._wake):
                what = 2
        except BlockingIOError:
            pass  # nobody asked
        while True:
            try:
                data = events.recv(1 << 16)
            except BlockingIOError:
                return what
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                what = 2
                continue
            what = max(what, _subject(data))

    def _refresh(self, everything: bool) -> None:
        """What goes wrong is told once, and tried again at the next look."""
        try:
            if everything:
                self._read_all()
            else:
                self._read_neighbours()
            self._said = ""
        except (OSError, XdpuError) as error:
            text = f"the host's forwarding tables are not current: {error}"
            if text != self._said:
                self._note(text)
            self._said = text
            self.wake()
            time.sleep(LOOK_S)

    def _settings_differ(self) -> bool:
        tables = self._tables
        return tables is not None and read_settings() != tables.host.settings

    def _read_all(self) -> None:
        with self._lock, nl.Netlink() as net:
            self._publish(read_host(net, self._stand_ins()))

    def _read_neighbours(self) -> None:
        tables = self._tables
        if tables is None:
            return
        with self._lock, nl.Netlink() as net:
            self._publish(read_neighbours(net, tables.host, self._stand_ins()))

    def _publish(self, host: Host) -> None:
        tables = self._tables
        if tables is not None and host != tables.host:
            tables.publish(host)


def _listen() -> socket.socket:
    """A socket that hears of changes in the calling thread's network namespace."""
    events = socket.socket(socket.AF_NETLINK,
                           socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
                           nl.NETLINK_ROUTE)
    try:
        events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        events.bind((0, 0))
        for group in _GROUPS:
            events.setsockopt(nl.SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except BaseException:
        events.close()
        raise
    return events


def _subject(data: bytes) -> int:
    """1 if all messages are of neighbours, else 2."""
    offset = 0
    while offset + 16 <= len(data):
        size, kind = struct.unpack_from("=IH", data, offset)
        if kind not in (nl.RTM_NEWNEIGH, nl.RTM_DELNEIGH) or size < 16:
            return 2
        offset += size + (-size % 4)
    return 1


def _unreadable(error: OSError) -> PortError:
    return PortError("the host's forwarding tables", f"cannot be read, {error.strerror or error}")


def describe(host: Host) -> str:
    """For people, at the start of a run."""
    text = (f"the program looks into the host's forwarding tables: {len(host.routes)} routes, "
            f"{len(host.neighbours)} neighbours")
    if not host.settings.seed and any(len(route.legs) > 1 for route in host.routes):
        text += ("; of multipath routes it may take other legs than the kernel would, unless "
                 "net.ipv4.fib_multipath_hash_seed is set")
    return text


def fill(tables: Tables | None, note: Callable[[str], None]) -> None:
    """Once, as things are now, for a run on packets from a file.  Raises PortError."""
    if tables is None:
        return
    tables.publish(read_now())
    note(describe(tables.host) + ", as they are now")


def read_now() -> Host:
    """Raises PortError."""
    try:
        with nl.Netlink() as net:
            return read_host(net)
    except OSError as error:
        raise _unreadable(error) from error
