"""Shared memory for a map: a sparse file under a directory, or a nameless memfd.

Pages exist once they are touched, but where they might not be had then (`reserve`), and those of
rings (`populate`).  A file appears under its name only when its content is complete.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from xdp_runtime.errors import LoadError, OutOfMemory

TEMPORARY = ".map."  # how names of files begin that are not complete yet
_MIB = 1 << 20
_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.ENOMEM, errno.EDQUOT}
_MAP_NORESERVE = 0x4000  # the mmap module does not name it
_MADV_POPULATE_WRITE = 23  # nor this
_MAP_FIXED_NOREPLACE = 0x100000
_MREMAP_MAYMOVE, _MREMAP_FIXED = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mremap.restype = ctypes.c_size_t
_libc.mremap.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int,
                         ctypes.c_void_p]
_libc.mmap.restype = ctypes.c_size_t
_libc.mmap.argtypes = [ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                       ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
_HUGE_FROM_BYTES = 16 * _MIB  # ask for huge pages from this size on


def available_bytes() -> int:
    """Memory this process may still use: the machine's, or less if its cgroup says so."""
    fields = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        fields[name] = int(rest.split()[0]) * 1024
    room = fields["MemAvailable"] + fields.get("SwapFree", 0)
    with suppress(OSError, ValueError):
        own = Path("/proc/self/cgroup").read_text().rpartition("0::")[2].strip()
        group = Path("/sys/fs/cgroup" + own)
        limit = int((group / "memory.max").read_text())
        room = min(room, limit - int((group / "memory.current").read_text()))
    return room


class Memory:
    """One mapping, shared with whoever maps the same file.  `close` unmaps it."""

    def __init__(self, fd: int, size_bytes: int, what: str) -> None:
        try:
            self.map = mmap.mmap(fd, size_bytes, mmap.MAP_SHARED | _MAP_NORESERVE)
        except (OSError, ValueError) as error:
            raise OutOfMemory(what, f"{_mib(size_bytes)} cannot be mapped: {error}",
                              "lower max_entries, or raise `ulimit -v`") from error
        if size_bytes >= _HUGE_FROM_BYTES:
            with suppress(OSError):  # a wish
                self.map.madvise(mmap.MADV_HUGEPAGE)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.path: Path | None = None
        self._where: Path | None = None  # of a file of somebody else's
        self._writers = 0  # mappings to write in this process
        self._aliases: dict[int, Any] = {}  # by address

    @classmethod
    def create(cls, name: str, size_bytes: int, directory: Path | None) -> Memory:
        """Zeroed memory; `publish` gives it its name.  Raises OutOfMemory, LoadError."""
        what = f"map {name}"
        check_room(what, size_bytes, directory)
        temporary: str | None = None
        fd = -1
        try:
            if directory is None:
                fd = os.memfd_create(f"xdpu.{name[:200]}", os.MFD_CLOEXEC)
            else:
                fd, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=directory)
            reserve(fd, size_bytes, directory)
            memory = cls(fd, size_bytes, what)
        except OSError as error:
            if temporary is not None:
                os.unlink(temporary)
            if error.errno in _NO_ROOM:
                raise OutOfMemory(what, f"no room for {_mib(size_bytes)}: {error.strerror}",
                                  "lower max_entries, or make room") from error
            raise LoadError(what, f"cannot be created in {directory}: {error.strerror}") from error
        except OutOfMemory:
            if temporary is not None:
                os.unlink(temporary)
            raise
        finally:
            if fd >= 0:
                os.close(fd)
        memory.path = Path(temporary) if temporary else None
        return memory

    @classmethod
    def open(cls, path: Path) -> tuple[Memory, bytes]:
        """Map an existing file; its first page as it was read.  Raises LoadError, OutOfMemory."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise LoadError(f"map {path}", f"cannot be opened: {error.strerror}") from error
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or not status.st_size:
                raise LoadError(str(path), "is not a map of xdpu")
            opened = cls(fd, status.st_size, f"map {path}")
            opened._where = path
            return opened, os.pread(fd, mmap.PAGESIZE, 0)
        finally:
            os.close(fd)

    def mirror(self, offset: int, size_bytes: int) -> None:
        """Let `size_bytes` at `offset` appear once more right behind.  Raises LoadError."""
        source = self.address + offset
        # an old size of 0 makes another mapping of shared pages: mremap(2)
        where = _libc.mremap(source, 0, size_bytes, _MREMAP_MAYMOVE | _MREMAP_FIXED,
                             ctypes.c_void_p(source + size_bytes))
        if where != source + size_bytes:
            code = ctypes.get_errno()
            raise LoadError("map memory", f"cannot be mapped twice: {os.strerror(code)}")

    def populate(self, offset: int, size_bytes: int) -> None:
        """Have the pages there before they are touched, where the kernel can (5.14)."""
        with suppress(OSError):  # a wish
            self.map.madvise(_MADV_POPULATE_WRITE, offset, size_bytes)

    def alias(self, offset: int, size_bytes: int, address: int) -> memoryview:
        """A part of it at an address of its own as well, until it is closed and no view of that is
        left.  Raises OSError (EBUSY) if something else lies there."""
        if address not in self._aliases:
            found = _libc.mmap(address, size_bytes, mmap.PROT_READ, mmap.MAP_PRIVATE
                               | mmap.MAP_ANONYMOUS | _MAP_NORESERVE | _MAP_FIXED_NOREPLACE, -1, 0)
            if found == address:
                found = _libc.mremap(self.address + offset, 0, size_bytes,
                                     _MREMAP_MAYMOVE | _MREMAP_FIXED, ctypes.c_void_p(address))
            if found != address:
                raise OSError(errno.EBUSY, f"the address {address:#x} is in use")
            there = self._aliases[address] = (ctypes.c_char * size_bytes).from_address(address)
            weakref.finalize(there, _libc.munmap, address, size_bytes)
        return memoryview(self._aliases[address]).cast("B")

    @contextmanager
    def shared(self) -> Iterator[None]:
        """While it lasts nobody is `alone`, in whichever process; a lock of the file (flock), so
        that one of a process that died does not stay."""
        fd = self._lock(fcntl.LOCK_SH)
        self._writers += 1
        try:
            yield
        finally:
            self._writers -= 1
            if fd >= 0:
                os.close(fd)

    @contextmanager
    def alone(self, what: str) -> Iterator[None]:
        """Raises OSError (EBUSY) while it is `shared`."""
        if self._writers:
            raise OSError(errno.EBUSY, "it is mapped to write", what)
        try:
            fd = self._lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EBUSY, "another process has it mapped to write", what) from None
        try:
            yield
        finally:
            if fd >= 0:
                os.close(fd)

    def _lock(self, how: int) -> int:
        """A descriptor with the lock; -1 for nameless memory, which no other process has."""
        path = self.path or self._where
        if path is None:
            return -1
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:  # its creator removed it
            return -1
        try:
            fcntl.flock(fd, how)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def publish(self, path: Path, what: str) -> None:
        """Give a created file its name.  Raises LoadError if there is one of that name."""
        assert self.path is not None
        try:
            os.link(self.path, path)
        except OSError as error:
            why = f"{path}: {error.strerror}"
            mend = ("another program uses this directory, or one that died left it: remove it"
                    if error.errno == errno.EEXIST else "")
            raise LoadError(what, why, mend) from error
        finally:
            self.unlink()
        self.path = path

    def unlink(self) -> None:
        if self.path is not None:
            with suppress(FileNotFoundError):
                os.unlink(self.path)
            self.path = None

    def close(self) -> None:
        self._aliases.clear()
        # a view that someone still holds keeps the mapping until it is gone
        with suppress(BufferError):
            self.map.close()


def reserve(fd: int, size_bytes: int, directory: Path | None) -> None:
    """Give a new file its size.  Raises OSError if the file system is full.

    A page of a sparse file is taken when it is first touched, and if there is none then, whoever
    touches it dies of SIGBUS.  So where the file system has less room than the machine has memory,
    or for a few pages, all are taken now; elsewhere a large file is left sparse."""
    os.ftruncate(fd, size_bytes)
    if directory is not None and (size_bytes <= _MIB or is_small(directory)):
        os.posix_fallocate(fd, 0, size_bytes)


def is_small(directory: Path) -> bool:
    """Has its file system less room than the machine has memory?"""
    disk = os.statvfs(directory)
    return disk.f_bavail * disk.f_frsize < available_bytes()


def take(path: Path, offset: int, size_bytes: int) -> None:
    """A part of a sparse file that is about to be touched, as `reserve` does with whole ones.
    Raises OSError if the file system is full."""
    if is_small(path.parent):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.posix_fallocate(fd, offset, size_bytes)
        finally:
            os.close(fd)


def check_room(what: str, size_bytes: int, directory: Path | None) -> None:
    """Refuse what would fail, or kill the process, once the memory is touched."""
    room, where = available_bytes(), "this machine has"
    if directory is not None:
        with suppress(OSError):
            disk = os.statvfs(directory)
            if disk.f_bavail * disk.f_frsize < room:
                room, where = disk.f_bavail * disk.f_frsize, f"{directory} has"
    if size_bytes > room:
        raise OutOfMemory(what, f"needs {_mib(size_bytes)}, {where} {_mib(room)} available",
                          "lower max_entries, or make room")


def _mib(size_bytes: int) -> str:
    return f"{(size_bytes + _MIB - 1) // _MIB} MiB"
