"""The EAL: DPDK's own life in this process, begun with the first device and ended at exit.

It can begin once only, so its options are those of the first port.  Whatever it logs goes into a
memfd, and from there into our errors.  Nothing is shared with other processes (--in-memory): no
files in hugetlbfs or /var/run/dpdk, no telemetry socket.  Options may have it otherwise: what
processes of ours that were killed left there is removed.
"""

from __future__ import annotations

import atexit
import errno
import os
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dpdk import native
from xdp_runtime.errors import ConfigError, OutOfMemory, PortError

MEMORY_MB = 512
_HUGE = Path("/sys/kernel/mm/hugepages")
_RUN = Path("/var/run/dpdk")
_PAGES = re.compile(r"xdpu-(\d+)map_\d+$")  # a file in hugetlbfs: the prefix, and a number
_NO_REASON = re.compile(
    r"\s*$|EAL: (Detected|Selected|Multi-process|Physical addresses|Probe PCI|VFIO|No \w+ .*huge"
    r"|Driver cannot attach|Failed to attach|Invalid 'command line')|.*mp action callback")
_SPEAKER = re.compile(r"(EAL|xdpu|\w+\(\)): ")
_running: list[Eal] = []


class Eal:
    """`mode` says what memory it has.  Made by `start`; lives as long as the process."""

    def __init__(self, extra: str, pci: Sequence[str]) -> None:
        self.ffi, self.lib = native.load()
        self.extra, self.pci = extra, tuple(pci)
        try:
            words = shlex.split(extra)
        except ValueError as error:
            raise ConfigError("--dpdk-args", str(error)) from error
        _remove_pages()
        self._log = os.memfd_create("xdpu-dpdk-log", os.MFD_CLOEXEC)
        arguments, self.mode = command_line(words, pci)
        kept = [self.ffi.new("char[]", text.encode()) for text in ["xdpu", *arguments]]
        argv = self.ffi.new("char *[]", kept)
        done = self.lib.xdpu_init(len(kept), argv, os.dup(self._log))
        self._kept: Any = (kept, argv)
        _remove_folders(ending=done < 0)
        if done < 0:
            what, why = f"DPDK's EAL ({' '.join(arguments)})", self.complaint(-done)
            memory = -done == errno.ENOMEM or "Cannot init memory" in self.log()
            raise (OutOfMemory if memory else PortError)(what, why, "see --dpdk-args", self.log())
        atexit.register(self._end)

    def log(self) -> str:
        """What DPDK said so far."""
        return os.pread(self._log, 1 << 20, 0).decode(errors="replace")

    def complaint(self, code: int, since: int = 0) -> str:
        """The first it has to say behind byte `since` of the log, which the driver itself says;
        what follows passes it on.  Else the errno's words."""
        said = self.log()[since:].partition("\nUsage: ")[0]
        lines = [line.strip() for line in said.splitlines() if not _NO_REASON.match(line)]
        if lines:
            return f"DPDK says: {_SPEAKER.sub('', lines[0])}"
        return os.strerror(code) if code > 1 else "it failed"  # -1 is no errno where it comes from

    def _end(self) -> None:
        self.lib.xdpu_cleanup()
        _remove_folders(ending=True)


def start(extra: str = "", pci: Sequence[str] = ()) -> Eal:
    """The process's EAL.  Raises PortError or OutOfMemory with DPDK's reason, ConfigError when it
    runs already with other options."""
    if not _running:
        _running.append(Eal(extra, pci))
    eal = _running[0]
    if extra and extra != eal.extra:
        raise ConfigError("--dpdk-args", "the EAL runs already, and takes options once a process")
    missing = [address for address in pci if address not in eal.pci]
    if missing:
        raise ConfigError(f"PCI device {missing[0]}", "the EAL runs already without it",
                          "name PCI devices with the first port")
    return eal


def _remove_pages() -> None:
    """Those of processes that were killed: huge pages are theirs as long as the file is there."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        for path in Path(place).glob("xdpu-*") if kind == "hugetlbfs" else ():
            owner = _PAGES.match(path.name)
            if owner is not None and not Path(f"/proc/{owner[1]}").exists():
                path.unlink(missing_ok=True)  # another process may do the same


def _remove_folders(ending: bool = False) -> None:
    """Ours, which the EAL makes in any case: it stays empty unless --dpdk-args has it share memory.
    And those of processes that were killed."""
    for folder in _RUN.glob("xdpu-*"):
        pid = folder.name.removeprefix("xdpu-")
        dead = pid.isdigit() and not Path(f"/proc/{pid}").exists()
        if dead or (folder.name == _prefix() and (ending or not any(folder.iterdir()))):
            shutil.rmtree(folder, ignore_errors=True)


def _prefix() -> str:
    return f"xdpu-{os.getpid()}"


def command_line(extra: Sequence[str], pci: Sequence[str]) -> tuple[list[str], str]:
    """What the EAL is told, and what memory that is in words."""
    given = {word.split("=")[0] for word in extra}
    cpu = min(os.sched_getaffinity(0))
    out = [] if given & {"-l", "-c", "--lcores"} else ["-l", str(cpu)]
    if "--file-prefix" not in given:
        out += ["--file-prefix", _prefix()]
    if "--no-telemetry" not in given:
        out.append("--no-telemetry")
    for address in pci:
        out += ["-a", address]
    if not pci and "--no-pci" not in given:
        out.append("--no-pci")
    mode = "memory as --dpdk-args says"
    if not given & {"--no-huge", "-m", "--socket-mem", "--huge-dir"}:
        free = _free_huge_bytes() >> 20
        if free >= 64:
            mode = f"huge pages ({free} MB free)"
            out += ["--in-memory", "--single-file-segments"]
        else:
            mode = f"{MEMORY_MB} MB without huge pages (none free: slower)"
            out += ["--no-huge", "--no-shconf", "-m", str(MEMORY_MB)]  # not with --in-memory
    if not pci and "--iova-mode" not in given:
        out += ["--iova-mode", "va"]
    return [*out, *extra], mode


def _free_huge_bytes() -> int:
    total = 0
    for folder in _HUGE.glob("hugepages-*kB"):
        size = int(folder.name.removeprefix("hugepages-").removesuffix("kB")) << 10
        total += size * int((folder / "free_hugepages").read_text())
    return total
