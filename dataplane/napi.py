"""Interrupts put off while we poll: napi_defer_hard_irqs and gro_flush_timeout of an interface.

A socket that prefers busy polling is served by its own calls only while the driver's interrupts are
masked; the kernel does that for as many empty polls as napi_defer_hard_irqs says, for
gro_flush_timeout each.  Both are settings of the interface in sysfs, so what was there is written
down before they change, in a journal under the run root, and put back by the run at its end, by its
keeper, or by the next run.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dataplane import rundir
from dataplane.rundir import Owner
from xdp_runtime.errors import PortError

DEFER_HARD_IRQS = 2  # Documentation/networking/napi.rst, an example for busy polling
FLUSH_TIMEOUT_NS = 200_000
_WANTED = {"napi_defer_hard_irqs": DEFER_HARD_IRQS, "gro_flush_timeout": FLUSH_TIMEOUT_NS}
_FSOPEN, _FSCONFIG, _FSMOUNT = 430, 431, 432  # the same number on all architectures
_FSCONFIG_CMD_CREATE, _CLOEXEC = 6, 1


@dataclass
class Deferral:
    """Interrupts of an interface, put off until `restore`; again is no error.  `said` in words."""

    journal: Path
    said: str

    def restore(self) -> None:
        _restore(self.journal)


def defer(ifname: str, ifindex: int) -> Deferral:
    """Raises PortError: not permitted, or sysfs shows another network namespace."""
    with sysfs() as net:
        found = _read(net, ifname, ifindex)
        if found is None:
            raise PortError(ifname, "is not in /sys/class/net, which shows another network "
                            "namespace", "run it by ip netns exec, which mounts sysfs anew")
        return _defer(net, ifname, ifindex, found)


def _defer(net: Path, ifname: str, ifindex: int, found: dict[str, int]) -> Deferral:
    root = rundir.run_root()
    inode = Path("/proc/thread-self/ns/net").stat().st_ino
    journal = root / f"napi-{inode}-{ifindex}.json"
    if journal.exists():
        _restore_if_dead(journal)
        if journal.exists():
            raise PortError(ifname, "another run has put off its interrupts", "end that run first")
    root.mkdir(parents=True, exist_ok=True)
    rundir.write_atomic(journal, json.dumps({
        "owner": str(Owner.current()), "namespace": inode, "interface": ifname,
        "ifindex": ifindex, "found": found}), 0o600)
    try:
        _write(net, ifname, _WANTED)
    except OSError as error:
        journal.unlink()
        raise PortError(ifname, f"its interrupts cannot be put off: {error.strerror}",
                        "run as root, or without a --busy-poll budget") from error
    said = ", ".join(f"{name} {value} (was {found[name]})" for name, value in _WANTED.items())
    return Deferral(journal, said)


def repair() -> list[str]:
    """Puts back what dead runs of this network namespace left; says what."""
    return [line for journal in sorted(rundir.run_root().glob("napi-*.json"))
            if (line := _restore_if_dead(journal))]


def _restore_if_dead(journal: Path) -> str:
    try:
        record = json.loads(journal.read_text())
        owner = Owner.parse(record["owner"])
    except FileNotFoundError:
        return ""  # done by another
    except (OSError, ValueError, KeyError) as error:
        return f"{journal}: cannot be read, {error}: see to {', '.join(_WANTED)} of the " \
               "interface, then remove the file"
    here = Path("/proc/thread-self/ns/net").stat().st_ino
    if owner is None or owner.alive() or record["namespace"] != here:
        return ""
    return _restore(journal)


def _restore(journal: Path) -> str:
    try:
        record = json.loads(journal.read_text())
    except (OSError, ValueError):
        return ""  # done by another
    name, index = str(record["interface"]), int(record["ifindex"])
    done = f"interface {name}: gone, its interrupts need no mending"
    with sysfs() as net, contextlib.suppress(FileNotFoundError):
        if _read(net, name, index) is None:  # renamed, or gone
            name = next((path.name for path in net.iterdir() if _read(net, path.name, index)), "")
        if name:
            _write(net, name, record["found"])
            done = f"interface {name}: interrupts as found before they were put off"
    journal.unlink(missing_ok=True)
    return done


@contextlib.contextmanager
def sysfs() -> Iterator[Path]:
    """/sys/class/net of the calling thread's network namespace: /sys may be another one's, as a
    mount shows the namespace it was made in.  Without CAP_SYS_ADMIN it is /sys, for better or
    worse."""
    libc = ctypes.CDLL(None, use_errno=True)
    made = mounted = -1
    try:
        made = libc.syscall(_FSOPEN, b"sysfs", _CLOEXEC)
        if made >= 0 and libc.syscall(_FSCONFIG, made, _FSCONFIG_CMD_CREATE, None, None, 0) == 0:
            mounted = libc.syscall(_FSMOUNT, made, _CLOEXEC, 0)
        yield Path(f"/proc/self/fd/{mounted}" if mounted >= 0 else "/sys") / "class" / "net"
    finally:
        for fd in (made, mounted):
            if fd >= 0:
                os.close(fd)


def _read(net: Path, ifname: str, ifindex: int) -> dict[str, int] | None:
    folder = net / ifname
    try:
        if int((folder / "ifindex").read_text()) != ifindex:
            return None
        return {name: int((folder / name).read_text()) for name in _WANTED}
    except (OSError, ValueError):
        return None


def _write(net: Path, ifname: str, values: dict[str, int]) -> None:
    for name, value in values.items():
        (net / ifname / name).write_text(f"{value}\n")
