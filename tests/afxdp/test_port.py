"""AfxdpPort: opening, refusing, closing.  What the interface is like before, it is after."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from afxdp import interface, native, queue, redirect_program, xsk
from afxdp.port import AfxdpPort
from afxdp.queue import Shape
from tests.afxdp.network import (
    Peer,
    all_frames_found,
    descriptors,
    link,
    marks,
    open_port,
    opened,
    peer,
    wire,
)
from tests.dataplane.drive import Driver, frames
from tests.nets import End, VethPair, entered, in_ns
from xdp_runtime.errors import OutOfMemory, PortError, XdpuError

pytestmark = marks()
__all__ = ["peer", "wire"]
BPF = ",+cap_39"  # CAP_BPF, by number for older setpriv
ROOT = Path(__file__).resolve().parent.parent.parent


def untouched(end: End) -> None:
    found = link(end)
    assert "xdp" not in found and found.get("promiscuity", 0) == 0


def refuses(end: End, error: type[XdpuError] = PortError, **options: Any) -> str:
    before = descriptors()
    with pytest.raises(error) as caught:
        open_port(end, **options)
    assert descriptors() == before
    return str(caught.value).replace(end.ifname, "IFACE")


@pytest.mark.parametrize("options, expected", [
    ({}, "afxdp native copy need_wakeup, queues 0-1 (veth offers no zero-copy: EOPNOTSUPP)"),
    ({"copy_mode": "copy", "need_wakeup": False}, "afxdp native copy no need_wakeup, queues 0-1"),
    ({"queues": [1], "copy_mode": "copy"}, "afxdp native copy need_wakeup, queue 1 of 2"),
    ({"mode": "skb"}, "afxdp generic copy need_wakeup, queues 0-1 (generic mode always copies)"),
])
def test_mode_says_what_was_chosen_and_why(options: dict[str, Any], expected: str) -> None:
    with VethPair(queues=2) as wire, opened(wire.a, **options) as port:
        assert port.mode.partition(";")[0] == expected
        assert (port.name, port.ifindex, port.mtu) == (wire.a.ifname, wire.a.ifindex, 1500)
        attached = link(wire.a)["xdp"]
        assert attached["mode"] == (2 if options.get("mode") == "skb" else 1)
        assert all(queue.address % 64 == 0 for queue in port.queues)


def test_close_gives_everything_back(wire: VethPair) -> None:
    before = descriptors()
    port = open_port(wire.a, promisc=True)
    assert link(wire.a)["promiscuity"] == 1
    assert not port.finished()
    port.close()
    port.close()
    untouched(wire.a)
    assert descriptors() == before and port.finished()


def test_fifty_times(wire: VethPair, peer: Peer) -> None:
    for _ in range(50):
        with opened(wire.a, ring_size=64) as port:
            driver = Driver(port)
            assert driver.send(frames(1)[0])
            driver.flush()
            all_frames_found(port)
    untouched(wire.a)
    assert peer.receive(50) == [frames(1)[0]] * 50


def test_a_kill_detaches(wire: VethPair) -> None:
    script = ("import sys, time; from afxdp.port import AfxdpPort\n"
              "port = AfxdpPort.open(sys.argv[1], promisc=True); print('open', flush=True)\n"
              "time.sleep(60)")
    for _ in range(2):
        with subprocess.Popen(["ip", "netns", "exec", wire.a.ns, sys.executable, "-c", script,
                               wire.a.ifname], cwd=ROOT, text=True,
                              stdout=subprocess.PIPE) as victim:
            assert victim.stdout and victim.stdout.readline() == "open\n"
            assert "xdp" in link(wire.a) and link(wire.a)["promiscuity"] == 1
            os.kill(victim.pid, signal.SIGKILL)
        deadline = time.monotonic() + 2
        while "xdp" in link(wire.a) and time.monotonic() < deadline:
            time.sleep(0.01)
        untouched(wire.a)
    open_port(wire.a).close()


def test_a_removed_interface_finishes_the_port(wire: VethPair) -> None:
    with opened(wire.a) as port:
        assert not port.finished()
        in_ns(wire.a.ns, "ip", "link", "del", wire.a.ifname)
        assert port.finished() and port.finished()
        driver = Driver(port)
        driver.send(frames(1)[0])
        driver.flush()
        assert driver.receive() == []


def test_missing_and_down(wire: VethPair) -> None:
    with entered(wire.a.ns), pytest.raises(PortError) as caught:
        AfxdpPort.open("nosuch0")
    assert str(caught.value) == \
        "nosuch0: there is no such interface in this network namespace (see: ip link)"
    in_ns(wire.a.ns, "ip", "link", "set", wire.a.ifname, "down")
    assert refuses(wire.a) == "IFACE: it is down (ip link set dev IFACE up)"


def test_another_program(wire: VethPair) -> None:
    with opened(wire.a) as first:
        attached = link(wire.a)["xdp"]["prog"]["id"]
        for mode in ("native", "generic", "auto"):
            said = refuses(wire.a, mode=mode)
            assert re.fullmatch(
                rf"IFACE: another XDP program is attached \(xdpu_redirect id {attached} held by "
                r"link (\d+)\) \(end the process that holds it, see: bpftool link show id \1\)",
                said)
        assert not first.finished() and link(wire.a)["xdp"]["prog"]["id"] == attached


def test_a_bound_queue(wire: VethPair) -> None:
    with entered(wire.a.ns):
        holder = queue.open_queue(wire.a.ifname, 0, Shape(4096, 64, False, True))
    try:
        start = time.monotonic()
        assert refuses(wire.a).startswith("queue 0 of IFACE: is already bound (")
        assert 0.15 < time.monotonic() - start < 2
        untouched(wire.a)
    finally:
        holder.close()
    open_port(wire.a).close()  # at once: waits for the queue to come free


def test_no_such_queue(wire: VethPair) -> None:
    assert refuses(wire.a, queues=[0, 1]).startswith(
        "queue 1 of IFACE: the interface has 1 receive queues, numbered from 0")
    untouched(wire.a)


def test_channels_are_read_again_once_xdp_is_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that has fewer queues then: all of those are taken, and no other is asked for."""
    with VethPair(queues=2) as wire:
        real, attached = interface.query, redirect_program.attach
        there = [2]
        monkeypatch.setattr(interface, "query", lambda name: replace(real(name),
                                                                     channels=there[0]))

        def fewer(*args: Any) -> Any:
            there[0] = 1
            return attached(*args)

        monkeypatch.setattr(redirect_program, "attach", fewer)
        with opened(wire.a) as port:
            assert [queue.index for queue in port.queues] == [0] and port.channels == 1


def test_busy_polling_is_asked_of_the_socket(wire: VethPair) -> None:
    """SO_BUSY_POLL and SO_PREFER_BUSY_POLL, and only where it was asked; the kernel does not say
    what SO_BUSY_POLL_BUDGET it was given."""
    for budget, expected in ((16, (20, 1)), (0, (0, 0))):
        with opened(wire.a, busy_poll=budget) as port, \
                socket.socket(xsk.AF_XDP, socket.SOCK_RAW, 0,
                              os.dup(port.queues[0].poll_fd)) as sock:
            found = tuple(sock.getsockopt(socket.SOL_SOCKET, one) for one in (46, 69))
            assert found == expected
            assert ("busy polling, 16 packets a call" in port.mode) == bool(budget)


def test_no_native_xdp_no_zero_copy(wire: VethPair) -> None:
    with entered(wire.a.ns), pytest.raises(PortError) as caught:
        AfxdpPort.open("lo")
    assert "has no native XDP (use --xdp-mode generic)" in str(caught.value)
    assert "offers no zero-copy: EOPNOTSUPP (use --copy-mode auto or copy)" \
        in refuses(wire.a, copy_mode="zero-copy")
    untouched(wire.a)


def test_a_large_mtu() -> None:
    with VethPair(mtu=9000) as wire:
        said = refuses(wire.a)
        assert "too large for XDP" in said and "ip link set dev IFACE mtu 1500" in said


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv (apt install util-linux)")
@pytest.mark.parametrize("capabilities, said", [
    ("", "the kernel makes no map for AF_XDP sockets: Operation not permitted (run as root, or"),
    (BPF, "the kernel makes no map for AF_XDP sockets: Operation not permitted (run as root, or"),
    (f"{BPF},+net_admin", "not permitted to make an AF_XDP socket (run as root, or with CAP_BPF"),
    (f"{BPF},+net_admin,+net_raw", "its umem needs 65536 KiB of locked memory and the limit is"),
    (f"{BPF},+net_admin,+net_raw,+ipc_lock", "afxdp native copy need_wakeup, queue 0"),
])
def test_what_each_capability_is_for(wire: VethPair, capabilities: str, said: str) -> None:
    script = ("import sys; from afxdp.port import AfxdpPort\n"
              "try: print(AfxdpPort.open(sys.argv[1], ring_size=8192).mode)\n"
              "except Exception as error: print(error)")
    done = in_ns(wire.a.ns, "setpriv", f"--bounding-set=-all{capabilities}", "--inh-caps=-all",
                 sys.executable, "-c", script, wire.a.ifname, cwd=ROOT)
    assert said in done.stdout
    untouched(wire.a)


STEPS: list[tuple[Any, str]] = [
    (redirect_program, "prog_load"), (redirect_program, "link_create"),
    (redirect_program, "map_update"), (interface, "make_promiscuous"),
    (queue.Queue, "_give_frames"), (queue.Queue, "_write_block"), (queue.Queue, "is_zero_copy"),
]


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("where, name", STEPS, ids=[name for _, name in STEPS])
def test_a_failure_in_the_middle_leaves_nothing(where: Any, name: str, nth: int,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = getattr(where, name)
    calls = []

    def fail(*args: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == nth:
            raise OSError(errno.EIO, "injected")
        return real(*args, **options)

    with VethPair(queues=2) as wire:
        before = descriptors()
        with monkeypatch.context() as patch:
            patch.setattr(where, name, fail)
            try:
                open_port(wire.a, promisc=True).close()
                assert len(calls) < nth
            except (OSError, PortError):
                assert len(calls) >= nth
        untouched(wire.a)
        assert descriptors() == before
        open_port(wire.a, promisc=True).close()


class _Refusing:
    """The native calls, but one of them returns an errno."""

    def __init__(self, lib: Any, name: str, code: int) -> None:
        self._lib, self._name, self._code = lib, name, code

    def __getattr__(self, name: str) -> Any:
        return (lambda *_: -self._code) if name == self._name else getattr(self._lib, name)


@pytest.mark.parametrize("call, code, error, said", [
    ("register", errno.ENOBUFS, OutOfMemory, "needs 16384 KiB of locked memory and the"),
    ("register", errno.ENOMEM, OutOfMemory, "the kernel has no memory for a umem"),
    ("register", errno.EPERM, PortError, "not permitted to make an AF_XDP socket"),
    ("register", errno.EAFNOSUPPORT, PortError, "the kernel is built without AF_XDP"),
    ("bind_queue", errno.ENETDOWN, PortError, "the interface went down"),
    ("bind_queue", errno.EINVAL, PortError, "no such queue, or its queues changed"),
    ("bind_queue", errno.EIO, PortError, "cannot be bound: Input/output error"),
])
def test_refusals_of_the_kernel(wire: VethPair, monkeypatch: pytest.MonkeyPatch, call: str,
                                code: int, error: type[XdpuError], said: str) -> None:
    if call == "register":
        def register(*_: object) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(xsk.Socket, call, register)
    else:
        ffi, lib = native.load()
        monkeypatch.setattr(native, "load", lambda: (ffi, _Refusing(lib, call, code)))
    assert said in refuses(wire.a, error)
    untouched(wire.a)
