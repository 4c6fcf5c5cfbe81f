"""Test networks: namespaces joined by veth pairs, gone when the `with` block ends.

    with VethPair(queues=2) as pair:
        pair.a.ns, pair.a.ifname, pair.a.ifindex, pair.a.mac, pair.a.ip4, pair.a.ip6
        in_ns(pair.a.ns, "ping", "-c1", pair.b.ip4)

Namespaces are named xdpu-<pid>-<n>[-<label>]; what a killed run left behind is removed by the next.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import os
import re
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_NETNS_DIR = Path("/run/netns")
_PREFIX = re.compile(r"xdpu-(\d+)-")
_CLONE_NEWNET = 0x40000000
_SIOCGIFHWADDR = 0x8927
_numbers = itertools.count()
_swept: set[int] = set()


def run(*argv: str, check: bool = True, timeout_s: float = 30,
        **options: Any) -> subprocess.CompletedProcess[str]:
    """A command, its output as text; a failure shows what it said."""
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=timeout_s,
                          **options)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}: "
                           f"{done.stderr.strip() or done.stdout.strip()}")
    return done


def in_ns(ns: str, *argv: str, check: bool = True, timeout_s: float = 30,
          **options: Any) -> subprocess.CompletedProcess[str]:
    """The same in a namespace.  `ns` "" is the caller's own."""
    return run(*_ns_argv(ns), *argv, check=check, timeout_s=timeout_s, **options)


def popen_in_ns(ns: str, *argv: str, **options: Any) -> subprocess.Popen[str]:
    """A process started in a namespace, its output piped; the caller ends it."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([*_ns_argv(ns), *argv], **options)


def ip_batch(ns: str, *lines: str) -> None:
    """Commands of `ip`, one a line, by one process, which stops at the first that fails: a pair of
    ends takes thirty commands, and a process costs more than what it asks of the kernel."""
    run("ip", *(["-n", ns] if ns else []), "-batch", "-", input="\n".join(lines))


def _ns_argv(ns: str) -> list[str]:
    return ["ip", "netns", "exec", ns] if ns else []


@contextmanager
def entered(ns: str) -> Iterator[None]:
    """The calling thread inside a namespace: for sockets and system calls made in this process."""
    if not ns:
        yield
        return
    with open("/proc/thread-self/ns/net") as own, open(_NETNS_DIR / ns) as other:
        _setns(other.fileno())
        try:
            yield
        finally:
            _setns(own.fileno())


def _setns(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"setns: {os.strerror(code)}")


def sweep(again: bool = False) -> None:
    """Remove the namespaces of test runs whose process is gone; once a process, or `again`."""
    if (os.getpid() in _swept and not again) or not _NETNS_DIR.is_dir():
        return
    _swept.add(os.getpid())
    for path in _NETNS_DIR.iterdir():
        match = _PREFIX.match(path.name)
        if match and not Path(f"/proc/{match[1]}").exists():
            run("ip", "netns", "del", path.name, check=False)


@contextmanager
def namespace(label: str = "") -> Iterator[str]:
    """A new network namespace with loopback up; yields its name."""
    sweep()
    name = f"xdpu-{os.getpid()}-{next(_numbers)}" + (f"-{label}" if label else "")
    run("ip", "netns", "add", name)
    try:
        ip_batch(name, "link set lo up")
        yield name
    finally:
        # Interfaces die with the namespace, and a process left in it keeps it alive.
        for pid in _inside(name):
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        run("ip", "netns", "del", name, check=False)


def _inside(name: str) -> list[int]:
    """The other processes in a namespace."""
    try:
        inode = os.stat(_NETNS_DIR / name).st_ino
    except FileNotFoundError:  # a test removed it
        return []
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and int(entry) != os.getpid():
            with suppress(OSError):
                if os.stat(f"/proc/{entry}/ns/net").st_ino == inode:
                    found.append(int(entry))
    return found


@dataclass(frozen=True, slots=True)
class End:
    """One end of a veth pair, and where it is."""

    ns: str
    ifname: str
    ifindex: int
    mac: str
    ip4: str
    ip6: str


class VethPair(AbstractContextManager["VethPair"]):
    """Two namespaces, `a` and `b`, joined by a veth pair with addresses, up, neighbours known.

    `ns_a` and `ns_b` put an end into a namespace that exists already ("" is the caller's own).
    `subnet` numbers the addresses: 10.77.<subnet>.1 and .2, fd77:<subnet>::1 and ::2.
    """

    def __init__(self, ns_a: str | None = None, ns_b: str | None = None, *, queues: int = 1,
                 subnet: int = 1, mtu: int = 1500, names: Sequence[str] = ("", ""),
                 offload: bool = False) -> None:
        self._ns = (ns_a, ns_b)
        self._queues, self._subnet, self._mtu, self._offload = queues, subnet, mtu, offload
        number = next(_numbers)
        self._names = [name or f"xv{os.getpid() % 1_000_000}{side}{number}"
                       for name, side in zip(names, "ab", strict=True)]
        self._stack = ExitStack()
        self.a: End
        self.b: End

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._stack.close()

    def ping(self, count: int = 1, timeout_s: float = 1) -> bool:
        """Does `a` hear from `b`?"""
        done = in_ns(self.a.ns, "ping", "-q", "-c", str(count), "-i", "0.05", "-W",
                     str(timeout_s), self.b.ip4, check=False)
        return done.returncode == 0

    def _build(self) -> None:
        spaces = [self._stack.enter_context(namespace(side)) if ns is None else ns
                  for ns, side in zip(self._ns, "ab", strict=True)]
        per_end = f"mtu {self._mtu} numrxqueues {self._queues} numtxqueues {self._queues}"
        name_a, name_b = self._names
        netns_b = spaces[1] or os.getpid()
        ip_batch(spaces[0], f"link add {name_a} {per_end} type veth peer name {name_b} {per_end} "
                            f"netns {netns_b}")
        self._stack.callback(run, "ip", *(["-n", spaces[0]] if spaces[0] else []),
                             "link", "del", name_a, check=False)
        self.a, self.b = (self._raise_end(ns, name, index) for index, (ns, name) in
                          enumerate(zip(spaces, self._names, strict=True), 1))
        for near, far in ((self.a, self.b), (self.b, self.a)):
            ip_batch(near.ns, *(f"neigh replace {address} lladdr {far.mac} dev {near.ifname} "
                                "nud permanent" for address in (far.ip4, far.ip6)))

    def _raise_end(self, ns: str, name: str, index: int) -> End:
        ip4, ip6 = f"10.77.{self._subnet}.{index}", f"fd77:{self._subnet:x}::{index}"
        ip_batch(ns, f"addr add {ip4}/24 dev {name}", f"addr add {ip6}/64 dev {name} nodad",
                 f"link set {name} up")
        with entered(ns):
            if not self._offload:
                # A checksum left for the hardware to fill in is a wrong one to an XDP program.
                run("ethtool", "-K", name, "tx", "off", "gso", "off", "gro", "off", check=False)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
                said = fcntl.ioctl(asked, _SIOCGIFHWADDR, struct.pack("16s24x", name.encode()))
            return End(ns, name, socket.if_nametoindex(name), said[18:24].hex(":"), ip4, ip6)
