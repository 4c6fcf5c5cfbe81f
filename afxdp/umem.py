"""Umem: the memory of frames, and the pool of those that are free.

One mapping, aligned to a huge page, in which the packets are; beside it the pool whose layout
rings.py gives.  The queues of one worker may share both (XDP_SHARED_UMEM), over interfaces too:
then a frame that one received another can send.  Which do is what `Umems` decides.
"""

from __future__ import annotations

import mmap
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from afxdp import rings
from afxdp.xsk import UNALIGNED_CHUNKS, address_of
from xdp_runtime.errors import ConfigError, OutOfMemory

PAGES = ("auto", "huge", "ordinary")
HUGE_PAGE_BYTES = 2 << 20
_FREE_HUGE_PAGES = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
_MAP_HUGETLB = 0x40000
NOBODY, GONE = -1, -2


@dataclass(frozen=True, slots=True)
class Layout:
    """How a umem is cut: frames of `frame_size` bytes, anywhere (`unaligned`) or each at a multiple
    of its size, a power of two then; `pages` is one of PAGES; `metadata_bytes` in front of each
    packet that is sent are its metadata (tx_metadata.py)."""

    frame_size: int = 4096
    unaligned: bool = False
    pages: str = "auto"
    metadata_bytes: int = 0

    @property
    def flags(self) -> int:
        return UNALIGNED_CHUNKS if self.unaligned else 0

    @property
    def chunk_mask(self) -> int:
        """What of a descriptor's address names the chunk, as a u64."""
        return rings.ADDRESS_MASK if self.unaligned else (1 << 64) - self.frame_size

    @property
    def tail(self) -> int:
        """FRAME_END's offset in a chunk; a small chunk needs its tail for a full-size packet."""
        return self.frame_size - (rings.SKB_SHARED_INFO_BYTES if self.frame_size >= 4096 else 0)


class Umem:
    """`frames` frames of a layout.  Raises ConfigError, OutOfMemory.

    `leader` is the descriptor of the socket it is registered with, NOBODY before and GONE once
    that is closed: nobody may join any more.  `users` counts the queues, and the last one that
    leaves closes it.  With `passed` it lies in a file without a name, `fd`, which another process
    can be given: there Umem(layout, frames, fd=fd) is the same memory with the same pool.
    """

    def __init__(self, layout: Layout, frames: int, *, passed: bool = False, fd: int = -1) -> None:
        self.layout, self.frames = layout, frames
        self.size_bytes = -(-frames * layout.frame_size // mmap.PAGESIZE) * mmap.PAGESIZE
        self.leader, self.users, self.said = NOBODY, 0, ""
        pool_bytes = rings.POOL_SIZE_BYTES + 8 * frames
        self.fd = make_memory(self.size_bytes + pool_bytes) if passed else fd
        if self.fd >= 0:
            self.said = "passed on by the set-up process"
            self._memory, start = mmap.mmap(self.fd, self.size_bytes, mmap.MAP_SHARED), 0
            self._pool = mmap.mmap(self.fd, pool_bytes, mmap.MAP_SHARED, offset=self.size_bytes)
        else:
            self._memory, start = self._map()
            self._pool = mmap.mmap(-1, pool_bytes)
        self.address = address_of(self._memory) + start
        self.pool = address_of(self._pool)
        struct.pack_into("=Q", self._pool, rings.STACK, self.pool + rings.POOL_SIZE_BYTES)
        if fd < 0:
            self._fill_pool()

    def _fill_pool(self) -> None:
        layout, frames = self.layout, self.frames
        struct.pack_into("=Q", self._pool, rings.FREE, frames)
        struct.pack_into("=Q", self._pool, rings.FRAMES, frames)
        addresses = range(0, frames * layout.frame_size, layout.frame_size)
        struct.pack_into(f"={frames}Q", self._pool, rings.POOL_SIZE_BYTES, *reversed(addresses))

    def _map(self) -> tuple[mmap.mmap, int]:
        """The memory, and where in it the frames begin."""
        size = -(-self.size_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        why = "" if self.layout.pages != "ordinary" else "ordinary pages"
        if not why:
            why = _huge_refusal(size)
            if not why:
                try:
                    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
                                       | _MAP_HUGETLB | mmap.MAP_POPULATE)
                    self.said = "huge pages"
                    return memory, 0
                except OSError as error:
                    why = f"no huge pages: {error.strerror}"
            if self.layout.pages == "huge":
                raise OutOfMemory("umem in huge pages", why, f"sysctl vm.nr_hugepages="
                                  f"{size // HUGE_PAGE_BYTES}, or --umem-pages auto")
        self.said = why
        try:
            memory = mmap.mmap(-1, size + HUGE_PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise OutOfMemory("umem", f"no memory for {self.frames} frames of "
                              f"{self.layout.frame_size} bytes", "use a smaller ring") from error
        start = -address_of(memory) % HUGE_PAGE_BYTES
        for advice in (mmap.MADV_HUGEPAGE, mmap.MADV_DONTFORK):
            with suppress(OSError):
                memory.madvise(advice, start, size)
        return memory, start

    @property
    def free(self) -> int:
        return self.load(rings.FREE)

    def load(self, offset: int) -> int:
        """A field of the pool."""
        return int(struct.unpack_from("=Q", self._pool, offset)[0])

    def take(self, count: int) -> list[int]:
        """Addresses of frames, taken out of the pool; for before any worker runs."""
        left = self.free - count
        taken = struct.unpack_from(f"={count}Q", self._pool, rings.POOL_SIZE_BYTES + 8 * left)
        struct.pack_into("=Q", self._pool, rings.FREE, left)
        return list(reversed(taken))

    def give(self, addresses: list[int]) -> None:
        """Back into the pool; for before any worker runs."""
        free = self.free
        struct.pack_into(f"={len(addresses)}Q", self._pool, rings.POOL_SIZE_BYTES + 8 * free,
                         *reversed(addresses))
        struct.pack_into("=Q", self._pool, rings.FREE, free + len(addresses))

    def leave(self) -> None:
        """A queue is closed; the last one ends it."""
        self.users -= 1
        if self.users <= 0:
            self.close()

    def close(self) -> None:
        for memory in (self._memory, self._pool):
            memory.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Umems:
    """The umems of a run, one for each of its `workers`.

    Queue number i of every port (as opened) is worker i % workers', see dataplane/engine.py.
    `queues` is how many queues there will be in all, for the size; a queue that was not foreseen
    gets a umem of its own.  `passed`: see Umem.
    """

    def __init__(self, workers: int, queues: int, *, passed: bool = False) -> None:
        self.workers, self.queues, self.passed = max(workers, 1), queues, passed
        self._shared: dict[int, Umem] = {}

    def find(self, position: int, layout: Layout, frames: int) -> Umem:
        """The umem for a queue that wants `frames` frames; `users` counts it already."""
        worker = position % self.workers
        umem = self._shared.get(worker)
        if umem is None or umem.users == 0:
            each = -(-self.queues // self.workers)
            umem = self._shared[worker] = self._make(layout, frames * each)
        elif umem.layout != layout or umem.free < frames or umem.leader == GONE:
            return self.own(layout, frames)
        umem.users += 1
        return umem

    def own(self, layout: Layout, frames: int) -> Umem:
        """One for a queue that cannot share."""
        umem = self._make(layout, frames)
        umem.users = 1
        return umem

    def _make(self, layout: Layout, frames: int) -> Umem:
        return Umem(layout, frames, passed=self.passed)


def _huge_refusal(size_bytes: int) -> str:
    """Why huge pages cannot be had; empty where they can."""
    try:
        there = int(_FREE_HUGE_PAGES.read_text())
    except (OSError, ValueError):
        return "the kernel has no huge pages of 2 MiB"
    wanted = size_bytes // HUGE_PAGE_BYTES
    return "" if there >= wanted else f"{there} huge pages free, {wanted} needed"


def check(layout: Layout) -> None:
    """Raises ConfigError for what the kernel would refuse without a word."""
    size = layout.frame_size
    what = f"frame size {size}"
    if layout.pages not in PAGES:
        raise ConfigError(f"umem pages {layout.pages}", f"one of {', '.join(PAGES)}")
    if layout.unaligned:
        if not 2048 <= size <= mmap.PAGESIZE:
            raise ConfigError(what, f"an unaligned frame has 2048 to {mmap.PAGESIZE} bytes")
    elif size & size - 1 or not 2048 <= size <= mmap.PAGESIZE:
        raise ConfigError(what, "a frame has 2048 or 4096 bytes",
                          "other sizes need unaligned chunks")


def make_memory(size_bytes: int) -> int:
    """A memfd for a umem that two processes map."""
    fd = os.memfd_create("xdpu-umem", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, size_bytes)
    except BaseException:
        os.close(fd)
        raise
    return fd

