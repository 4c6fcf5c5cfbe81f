"""Shared memory with the host's tables: two halves, of which one is valid.

The one writer builds a snapshot aside, copies it into the half that nobody reads any more, and
publishes it with one store.  A reader loads the address of the valid half once and then takes no
lock and checks nothing.  It may be at it while the next snapshot is published, so before the half
it reads is written again, every reader must have been between two batches of packets: a program
says so by its workers' epochs (Program.pass_batches).

The memory is sparse and describes itself, as maps do: page 0 has a header, the halves follow.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from xdp_runtime.errors import LoadError, OutOfMemory, XdpuError
from xdp_runtime.fib.host import Host
from xdp_runtime.fib.layout import CURRENT, Packer
from xdp_runtime.maps.memory import Memory, take

MAGIC, VERSION = b"xdpu-fib", 1
HALF_BYTES = 512 << 20  # some millions of routes; a page exists once it is written
GENERATION = CURRENT + 8  # u64: how many there were
_HEADER = struct.Struct("<8sIIQ")
_PAGE = mmap.PAGESIZE
WHAT = "the host's forwarding tables"


class Tables:
    """`address` is where compiled code looks.  There is always a valid snapshot: at first, an empty
    one.  `host` is what was published last."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self.address = memory.address
        self._readers: list[Callable[[], bool]] = []
        self.writing, self._barrier = threading.Lock(), threading.Lock()
        self.closed = False
        self._packer = Packer()
        self.host = Host()

    @classmethod
    def create(cls, directory: Path | None = None) -> Tables:
        """Raises OutOfMemory, LoadError."""
        size = _PAGE + 2 * HALF_BYTES
        temporary = None
        try:
            if directory is None:
                fd = os.memfd_create("xdpu.fib", os.MFD_CLOEXEC)
            else:
                fd, temporary = tempfile.mkstemp(prefix=".fib.", dir=directory)
        except OSError as error:
            raise LoadError(WHAT, f"cannot be created: {error.strerror}") from error
        try:
            os.ftruncate(fd, size)
            memory = Memory(fd, size, WHAT)
        finally:
            os.close(fd)
            if temporary is not None and directory is None:
                os.unlink(temporary)
        memory.path = Path(temporary) if temporary else None
        tables = cls(memory)
        try:
            tables._take(0, _PAGE)
            memory.map[: _HEADER.size] = _HEADER.pack(MAGIC, VERSION, _PAGE, HALF_BYTES)
            tables.publish(Host())
            if directory is not None:
                memory.publish(directory / "fib", WHAT)
        except BaseException:
            tables.close()
            raise
        return tables

    def _take(self, offset: int, size: int) -> None:
        """Bytes that are written next.  Raises OutOfMemory where there is no room for them."""
        try:
            if self._memory.path is not None:
                take(self._memory.path, offset, size)
        except OSError as error:
            raise OutOfMemory(WHAT, f"{size} bytes: {error.strerror}",
                              "make room") from error

    @property
    def generation(self) -> int:
        return int(struct.unpack_from("<Q", self._memory.map, GENERATION)[0])

    def publish(self, host: Host) -> None:
        """Make this what programs see.  Raises OutOfMemory when there is no room, and XdpuError
        when a reader does not come to an end; the old one stays then."""
        data = self._packer.pack(host)
        if len(data) > HALF_BYTES:
            raise OutOfMemory(WHAT, f"take {len(data) >> 20} MiB, there is room for "
                              f"{HALF_BYTES >> 20}")
        with self.writing:
            if self.closed:
                return
            generation = self.generation + 1
            if not all(reader() for reader in list(self._readers)):
                raise XdpuError(WHAT, "wait for a worker that does not end its batch")
            start = _PAGE + (generation & 1) * HALF_BYTES
            self._take(start, len(data))
            self._memory.map[start : start + len(data)] = data
            with self._barrier:  # what was copied is seen by all before its address is
                word = ctypes.c_uint64.from_address(self.address + CURRENT)
            word.value = start
            struct.pack_into("<Q", self._memory.map, GENERATION, generation)
            self.host = host

    def join(self, reader: Callable[[], bool]) -> None:
        """A program reads from now on.  `reader` waits until each of its workers has been between
        two packets, and says whether they have."""
        self._readers.append(reader)

    def leave(self, reader: Callable[[], bool]) -> None:
        """When the last program has left, the memory goes."""
        self._readers.remove(reader)
        if not self._readers:
            self.close()

    def close(self) -> None:
        with self.writing:
            self.closed = True
            self._memory.unlink()
            self._memory.close()

    def __enter__(self) -> Tables:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
