"""A TAP stands in for an interface: it has its MAC, addresses, routes and settings while we run.

Order is everything.  `apply` first writes a journal, then gives the TAP all the interface has, and
only then takes it from the interface, so a local address and a route always exist.  `restore` goes
the same way back, and can be repeated from any point: it compares what is with what was found and
mends the difference.  It runs in the owner at the end, in the keeper when the owner was killed
(keeper.py), or in the next run (`repair`) when both were.

IPv6 stays off on the interface meanwhile, otherwise the kernel would configure it anew from router
advertisements.  Addresses are added without duplicate detection, not by the `nodad` flag, which
would stay visible, but by `accept_dad` for the moment of adding.  All multicast is received,
because the groups joined on the TAP are unknown to the interface's filter.

Not perfect: temporary (privacy) addresses come back as plain ones with their lifetimes, and default
routes learnt from a router are learnt anew (routers.py).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from dataplane import hostnet, hostwrite, napi, rundir
from dataplane import netlink as nl
from dataplane.hostnet import HostState, Link
from dataplane.rundir import Owner
from xdp_runtime.errors import PortError

__all__ = ["Journal", "Takeover", "repair", "restore"]

SO_NETNS_COOKIE = 71
VERSION = 1


def network_namespace() -> tuple[int, int]:
    """(inode, cookie).  The inode names it as /proc does, but is reused; the cookie never is."""
    inode = Path("/proc/thread-self/ns/net").stat().st_ino
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            cookie = sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        except OSError:                                     # Linux before 5.14
            return inode, 0
    return inode, int(struct.unpack("=Q", cookie)[0])


@dataclass(frozen=True)
class Journal:
    """What was found, by whom and where; on disk before anything is changed."""

    path: Path
    owner: Owner
    namespace: tuple[int, int]
    taken_at_s: float                   # CLOCK_BOOTTIME, orders journals and ages lifetimes
    state: HostState
    tap: Link
    tap_sysctls: dict[str, str]

    def write(self) -> None:
        rundir.write_atomic(self.path, json.dumps({
            "version": VERSION, "owner": str(self.owner), "namespace": list(self.namespace),
            "taken_at_s": self.taken_at_s, "tap": asdict(self.tap),
            "tap_sysctls": self.tap_sysctls, "state": self.state.to_json()}, indent=1), 0o600)

    @classmethod
    def read(cls, path: Path) -> Journal:
        """Raises PortError for one that cannot be understood."""
        try:
            data: dict[str, Any] = json.loads(path.read_text())
            owner = Owner.parse(data["owner"])
            if data["version"] != VERSION or owner is None:
                raise ValueError(f"version {data['version']}")
            inode, cookie = data["namespace"]
            return cls(path, owner, (inode, cookie), data["taken_at_s"],
                       HostState.from_json(data["state"]), Link(**data["tap"]),
                       data["tap_sysctls"])
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise PortError(f"journal {path}", f"cannot be read, {e}",
                            "put the interface right by hand, then remove the file") from e

    @property
    def elapsed_s(self) -> int:
        return max(int(time.clock_gettime(time.CLOCK_BOOTTIME) - self.taken_at_s), 0)


class Takeover:
    """`tap` exists already (tap_device.open_tap); `run_dir` is this run's own directory.
    `notes` says what is not carried over."""

    def __init__(self, iface: str, tap: str, run_dir: Path) -> None:
        self.iface, self.tap, self.run_dir = iface, tap, Path(run_dir)
        self.notes: tuple[str, ...] = ()
        self._journal: Journal | None = None

    def apply(self) -> HostState:
        """Raises PortError, and then nothing is changed."""
        state = hostnet.snapshot(self.iface)
        with nl.Netlink() as net:
            tap = self._find_tap(net)
            self._refuse_second(state.link)
            now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
            path = self.run_dir / f"takeover-{state.link.index}.json"
            self._journal = Journal(path, Owner.current(), network_namespace(), now_s, state, tap,
                                    hostnet.read_sysctls(tap.name))
            self._journal.write()
            try:
                hostwrite.dress_tap(net, state, tap)
                hostwrite.strip(net, state)
            except BaseException as e:
                self.restore()
                if isinstance(e, OSError):
                    raise _refused(self.iface, f"cannot be taken over, {e.strerror or e}", e) from e
                raise
        self.notes = state.notes
        return state

    def restore(self) -> None:
        """Everything as found; again is no error.  The TAP is gone afterwards."""
        if self._journal is not None:
            restore(self._journal.path)
            self._journal = None

    def __enter__(self) -> Takeover:
        self.apply()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.restore()

    def _find_tap(self, net: nl.Netlink) -> Link:
        try:
            tap = hostnet.read_link(net, self.tap)
        except nl.NetlinkError as e:
            raise PortError(f"tap {self.tap}", f"not found, {e.strerror}") from e
        if tap.kind != "tun" or tap.name == self.iface:
            raise PortError(f"tap {self.tap}", "is no TAP device", "choose another --tap")
        return tap

    def _refuse_second(self, link: Link) -> None:
        for path in _journals(self.run_dir.parent):
            other = Journal.read(path)
            if other.namespace == network_namespace() and other.state.link.index == link.index:
                who = f"by run {path.parent.name}, pid {other.owner.pid}"
                if other.owner.alive():
                    raise PortError(f"interface {link.name}", f"already taken over {who}",
                                    "end that run first")
                raise PortError(f"interface {link.name}", f"left taken over {who}, which died",
                                "xdpu clean")


def restore(path: Path) -> str:
    """Puts back what the journal at `path` says and removes it; says what was done, "" for nothing.

    Two processes may try at once: the second finds the journal gone."""
    with _held(path) as there:
        if not there:
            return ""
        journal = Journal.read(path)
        name = journal.state.link.name
        if journal.owner.boot_id != rundir.boot_id():
            path.unlink()
            return f"interface {name}: nothing to mend, the machine was started anew since"
        if journal.namespace != network_namespace():
            raise PortError(f"interface {name}", "is in another network namespace, inode "
                            f"{journal.namespace[0]}", "run xdpu clean there")
        with nl.Netlink() as net:
            link = _find_again(net, journal.state.link)
            if link is None:
                path.unlink()
                return f"interface {name}: gone, nothing to mend"
            try:
                failed = hostwrite.put_back(net, journal.state, link, journal.tap,
                                            journal.tap_sysctls, journal.elapsed_s)
            except OSError as e:
                raise _refused(name, f"cannot be put back, {e.strerror or e}", e) from e
        if failed:
            raise PortError(f"interface {name}", "not all could be put back: " + "; ".join(failed),
                            f"the rest is in {path}")
        path.unlink()
        return f"interface {name}: put back as found before pid {journal.owner.pid} took it over"


def repair(run_dir: Path) -> list[str]:
    """Mends what dead owners left; `run_dir` is the root or one run's directory.
    Journals of other network namespaces stay for a run there.

    Newest first, then once more what failed: of two interfaces taken over together the second
    journal has routes that lean on the first one's addresses."""
    found = []
    done: list[str] = []
    for path in _journals(Path(run_dir)):
        try:
            found.append(Journal.read(path))
        except PortError as e:
            if path.exists():                   # not just mended by another
                done.append(str(e))
    here, boot = network_namespace(), rundir.boot_id()
    left = [j for j in sorted(found, key=lambda j: j.taken_at_s, reverse=True)
            if j.owner.boot_id != boot or (j.namespace == here and not j.owner.alive())]
    failed: dict[Path, str] = {}
    for journal in left * 2:
        try:
            done.append(restore(journal.path))
            failed.pop(journal.path, None)
        except PortError as e:
            failed[journal.path] = str(e)
    return [line for line in done if line] + list(failed.values()) + napi.repair()


def _journals(folder: Path) -> list[Path]:
    return sorted(folder.glob(rundir.JOURNAL_GLOB)) + sorted(
        folder.glob(f"*/{rundir.JOURNAL_GLOB}"))


def _find_again(net: nl.Netlink, found: Link) -> Link | None:
    """The same interface, renamed or, when its driver was loaded anew, by name and MAC."""
    for which in (found.index, found.name):
        with contextlib.suppress(nl.NetlinkError):
            link = hostnet.read_link(net, which)
            if which == found.index or link.mac == found.mac:
                return link
    return None


@contextlib.contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Holds the lock on the journal; False if another removed it meanwhile."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    except OSError as e:
        raise PortError(f"journal {path}", e.strerror or str(e), "run as its owner") from e
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield os.fstat(fd).st_nlink > 0
    finally:
        os.close(fd)


def _refused(iface: str, why: str, error: OSError) -> PortError:
    mend = "run as root, or with CAP_NET_ADMIN" if error.errno in (errno.EPERM, errno.EACCES) \
        else ""
    return PortError(f"interface {iface}", why, mend)
