"""Test networks: namespaces joined by veth pairs, gone when the `with` block ends.

    with VethPair(queues=2) as pair:
        pair.a.ns, pair.a.ifname, pair.a.ifindex, pair.a.mac, pair.a.ip4, pair.a.ip6
        in_ns(pair.a.ns, "ping", "-c1", pair.b.ip4)

Namespaces are named xdpu-<pid>-<n>[-<label>]; what a killed run left behind is removed by the next.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import re
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
        in_ns(name, "ip", "link", "set", "lo", "up")
        yield name
    finally:
        # Interfaces die with the namespace, and a process left in it keeps it alive.
        pids = run("ip", "netns", "pids", name, check=False).stdout.split()
        for pid in pids:
            with suppress(ProcessLookupError, ValueError):
                if int(pid) != os.getpid():
                    os.kill(int(pid), 9)
        run("ip", "netns", "del", name, check=False)


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
        queues = str(self._queues)
        per_end = ["mtu", str(self._mtu), "numrxqueues", queues, "numtxqueues", queues]
        name_a, name_b = self._names
        netns_b = ["netns", spaces[1]] if spaces[1] else ["netns", str(os.getpid())]
        in_ns(spaces[0], "ip", "link", "add", name_a, *per_end, "type", "veth", "peer", "name",
              name_b, *per_end, *netns_b)
        self._stack.callback(in_ns, spaces[0], "ip", "link", "del", name_a, check=False)
        ends = []
        for index, (ns, name) in enumerate(zip(spaces, self._names, strict=True), 1):
            ends.append(self._raise_end(ns, name, index))
        self.a, self.b = ends
        for near, far in ((self.a, self.b), (self.b, self.a)):
            for address in (far.ip4, far.ip6):
                in_ns(near.ns, "ip", "neigh", "replace", address, "lladdr", far.mac, "dev",
                      near.ifname, "nud", "permanent")

    def _raise_end(self, ns: str, name: str, index: int) -> End:
        ip4, ip6 = f"10.77.{self._subnet}.{index}", f"fd77:{self._subnet:x}::{index}"
        in_ns(ns, "ip", "addr", "add", f"{ip4}/24", "dev", name)
        in_ns(ns, "ip", "addr", "add", f"{ip6}/64", "dev", name, "nodad")
        in_ns(ns, "ip", "link", "set", name, "up")
        if not self._offload:
            # A checksum left for the hardware to fill in is a wrong one to an XDP program.
            in_ns(ns, "ethtool", "-K", name, "tx", "off", "gso", "off", "gro", "off", check=False)
        link = in_ns(ns, "cat", f"/sys/class/net/{name}/ifindex", f"/sys/class/net/{name}/address")
        ifindex, mac = link.stdout.split()
        return End(ns, name, int(ifindex), mac, ip4, ip6)
