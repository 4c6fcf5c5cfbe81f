"""The state directory of a run, /run/xdpu/<name>/: counters, shared maps, control socket, journals.

It belongs to one process, named in its `pid` file by pid and start time, so that a later process
that happens to get the same pid is not taken for it.  What a dead process left is found by `clean`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from xdp_runtime.errors import ConfigError, PortError

JOURNAL_GLOB = "takeover-*.json"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class Owner:
    """A process, told apart from any later one with the same pid."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def current(cls) -> Owner:
        pid = os.getpid()
        return cls(pid, start_ticks(pid) or 0, boot_id())

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        fields = text.split()
        if len(fields) != 3 or not fields[0].isdigit() or not fields[1].isdigit():
            return None
        return cls(int(fields[0]), int(fields[1]), fields[2])

    def alive(self) -> bool:
        return self.boot_id == boot_id() and start_ticks(self.pid) == self.start_ticks

    def __str__(self) -> str:
        return f"{self.pid} {self.start_ticks} {self.boot_id}"


def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None if it is gone or a zombie."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = line[line.rindex(")") + 2:].split()    # the command may hold spaces and brackets
    return None if fields[0] in "ZX" else int(fields[19])


def run_root() -> Path:
    """$XDPU_RUNDIR, or /run/xdpu for root, $XDG_RUNTIME_DIR/xdpu or /tmp/xdpu-<uid> for others."""
    if override := os.environ.get("XDPU_RUNDIR"):
        return Path(override)
    if os.geteuid() == 0:
        return Path("/run/xdpu")
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "xdpu"
    return Path(f"/tmp/xdpu-{os.geteuid()}")


def write_atomic(path: Path, text: str, mode: int = 0o644) -> None:
    """The file has the old content or the new, and after return the new even if power fails."""
    spare = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(spare, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
        os.rename(spare, path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as e:
        with contextlib.suppress(OSError):
            spare.unlink()
        raise _refusal(path, e) from e


@dataclass(frozen=True)
class RunDir:
    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def owner(self) -> Owner | None:
        try:
            return Owner.parse((self.path / "pid").read_text())
        except OSError:
            return None

    def owner_alive(self) -> bool:
        owner = self.owner()
        return owner is not None and owner.alive()

    def journals(self) -> list[Path]:
        return sorted(self.path.glob(JOURNAL_GLOB))

    def remove(self) -> None:
        """Removes the directory and all in it; again is no error."""
        shutil.rmtree(self.path, ignore_errors=True)


def create(name: str, root: Path | None = None) -> RunDir:
    """The directory `name` for this process.  What a dead run of that name left is removed, unless
    it still holds a journal: `dataplane.takeover.repair` comes first."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"run name {name!r}", "not 1 to 64 of letters, digits, '_', '-' and '.'",
                          "choose another --name")
    root = run_root() if root is None else root
    with _locked(root):
        run = RunDir(root / name)
        if run.path.exists():
            owner = run.owner()
            if owner is not None and owner.alive():
                raise ConfigError(f"run {name}", f"is already running as pid {owner.pid}",
                                  "choose another --name, or end that one")
            if run.journals():
                raise PortError(f"run {name}", "a dead run left an interface taken over in "
                                f"{run.path}", "xdpu clean, in its network namespace")
            run.remove()
        try:
            run.path.mkdir(mode=0o755)
        except OSError as e:
            raise _refusal(run.path, e) from e
        write_atomic(run.path / "pid", f"{Owner.current()}\n")
    return run


def runs(root: Path | None = None) -> list[RunDir]:
    root = run_root() if root is None else root
    try:
        return [RunDir(p) for p in sorted(root.iterdir())
                if p.is_dir() and not p.is_symlink() and _NAME.fullmatch(p.name)]
    except OSError:
        return []


def clean(root: Path | None = None) -> list[str]:
    """Removes what dead runs left and names them.  Directories with a journal stay for `repair`."""
    root = run_root() if root is None else root
    removed: list[str] = []
    if not root.is_dir():
        return removed
    with _locked(root):
        for run in runs(root):
            if run.owner() is not None and not run.owner_alive() and not run.journals():
                run.remove()
                removed.append(run.name)
    return removed


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Creating and cleaning exclude each other: no directory is seen between mkdir and its pid."""
    try:
        root.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        found = root.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.geteuid()):
            raise PortError(f"run directory {root}", "belongs to somebody else",
                            "set XDPU_RUNDIR to a directory of your own")
        fd = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as e:
        raise _refusal(root, e) from e
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _refusal(path: Path, error: OSError) -> PortError:
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT:
            return PortError(f"run directory {path}", "no space left on the device",
                             "free some, or set XDPU_RUNDIR to another file system")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return PortError(f"run directory {path}", "not writable",
                             "run as root, or set XDPU_RUNDIR to a directory of your own")
    return PortError(f"run directory {path}", error.strerror or str(error),
                     "set XDPU_RUNDIR to a usable directory")
