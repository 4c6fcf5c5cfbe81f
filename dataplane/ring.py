"""PacketRing: packets that a program redirected to an XSKMAP, as NumPy arrays in another process.

    from dataplane.ring import PacketRing

    with PacketRing.open("sample") as ring:            # xdpu run ... --ring sample=xsks[0]
        for batch in ring.batches():
            batch.data          # (n, 2048) uint8: the packets; row i has batch.lengths[i] bytes
            batch.lengths       # (n,) uint32
            batch.timestamps    # (n,) uint64, ns since 1970; of the port, or of the worker's batch
            batch.queue         # the receive queue all of them came by; batch.port is its port

Nothing is done for a single packet in Python: the arrays are views of the ring's memory, good until
the next batch is asked for.  The worker never waits: what finds the ring full is dropped and
counted (`dropped`).  A reader that dies leaves what it had not finished with to the next.

The ring is a file in the run's directory.  It has a *lane* for each receive queue, which one worker
writes and the reader reads, so nothing is locked:

    header    magic, sizes, the writing process; JSON: port, queue and worker of each lane
    lane      line 0, by the worker: u64 produced (published), u64 dropped, u64 too long, u64 put
              (not published yet), u64 consumed as it was seen last; line 1, by the reader:
              u64 consumed; from 4096 on: u32 lengths, u64 time stamps, and the packets
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import mmap
import os
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from dataplane import rundir
from dataplane.stats import FlowName
from xdp_runtime.errors import ConfigError, OutOfMemory, PortError
from xdp_runtime.maps.memory import take

if TYPE_CHECKING:
    import numpy as np

FOLDER = "rings"  # in a run's directory
SLOTS = 4096
SLOT_BYTES = 2048
LANES_MAX = 64  # in a file: of the queues there are, and of ports that come later

# a lane: byte offsets
PRODUCED, DROPPED, TOO_LONG, PUT, SEEN, CONSUMED = 0, 8, 16, 24, 32, 64
LENGTHS = 4096
TIMES = LENGTHS + 4 * SLOTS
DATA = TIMES + 8 * SLOTS
LANE_BYTES = DATA + SLOT_BYTES * SLOTS
_HEADER_BYTES = 1 << 16
_MAGIC = b"XDPURNG1"
_FIXED = struct.Struct("<8sIIQQI")  # magic, slots, bytes of one, pid, its start, JSON's length
_CLOSED = 60  # u32, 1: nothing will come any more
_FIRST_SLEEP_S, _LAST_SLEEP_S = 20e-6, 2e-3


@dataclass(frozen=True, slots=True)
class Batch:
    """Packets of one receive queue, in order.  The arrays are views: copy what is to stay."""

    data: np.ndarray[Any, np.dtype[np.uint8]]
    lengths: np.ndarray[Any, np.dtype[np.uint32]]
    timestamps: np.ndarray[Any, np.dtype[np.uint64]]
    queue: int
    port: str
    worker: int

    def __len__(self) -> int:
        return len(self.lengths)

    def packets(self) -> Iterator[bytes]:
        """Each as bytes, for those who want few of them."""
        for row, length in zip(self.data, self.lengths, strict=True):
            yield row[:length].tobytes()


class RingFile:
    """The writing side: a file with a lane for each flow; `lane` says where a flow's lies."""

    def __init__(self, path: Path, flows: Sequence[FlowName]) -> None:
        self.path, self.name = path, path.name
        path.parent.mkdir(exist_ok=True)
        self._flows: list[FlowName] = []
        size = _HEADER_BYTES + LANES_MAX * LANE_BYTES
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)  # pages are memory when they are first written
            self._memory = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self._anchor: ctypes.c_char | None = ctypes.c_char.from_buffer(self._memory)
        self._base = ctypes.addressof(self._anchor)
        self.extend(flows)

    def extend(self, flows: Sequence[FlowName]) -> None:
        """Lanes for more flows; beyond LANES_MAX there are none."""
        self._flows += [flow for flow in flows if flow not in self._flows]
        lanes = [[flow.port, flow.queue, flow.worker] for flow in self._flows[:LANES_MAX]]
        try:
            take(self.path, 0, _HEADER_BYTES + len(lanes) * LANE_BYTES)
        except OSError as error:
            raise OutOfMemory(f"ring {self.name}", f"{error.strerror}", "make room") from error
        text = json.dumps(lanes).encode()
        if len(text) > _HEADER_BYTES - 64:
            raise ConfigError(f"ring {self.name}", "the names of its ports are too long")
        owner = rundir.Owner.current()
        self._memory[64 : 64 + len(text)] = text
        self._memory[: _FIXED.size] = _FIXED.pack(_MAGIC, SLOTS, SLOT_BYTES, owner.pid,
                                                  owner.start_ticks, len(text))

    def lane(self, flow: FlowName) -> int:
        """Its address, 0 if it has none."""
        with suppress(ValueError):
            number = self._flows.index(flow)
            if number < LANES_MAX:
                return self._base + _HEADER_BYTES + number * LANE_BYTES
        return 0

    def close(self) -> None:
        """The reader sees the end once it has read all; the workers must have stopped."""
        if self._anchor is None:
            return
        self._memory[_CLOSED : _CLOSED + 4] = (1).to_bytes(4, "little")
        self._anchor = None
        self._memory.close()
        with suppress(FileNotFoundError):
            self.path.unlink()


class PacketRing:
    """The reading side, for one process at a time."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, path.name
        self._memory: mmap.mmap | None = None
        self._rows: list[tuple[str, int, int]] = []
        self._known = 0
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise PortError(f"ring {path}", os.strerror(error.errno or 0)) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._fd)
            raise PortError(f"ring {self.name}", "another process reads it",
                            "use one ring for each reader") from None
        self._memory = mmap.mmap(self._fd, 0)
        if self._memory[:8] != _MAGIC or self._fixed()[1:3] != (SLOTS, SLOT_BYTES):
            self.close()
            raise PortError(f"ring {path}", "is no ring of this version")

    @classmethod
    def open(cls, name: str) -> Self:
        """The ring of that name of a run on this machine; RUN/NAME where several have one, or a
        path.  Raises PortError."""
        if os.path.isfile(name):
            return cls(Path(name))
        run, _, ring = name.rpartition("/")
        found = [path for one in rundir.runs() if not run or one.name == run
                 for path in [one.path / FOLDER / ring] if path.is_file()]
        if len(found) != 1:
            have = sorted(f"{one.name}/{path.name}" for one in rundir.runs()
                          for path in (one.path / FOLDER).glob("*"))
            raise PortError(f"ring {name}", "there is none" if not found else
                            "several runs have one", f"there are: {', '.join(have) or 'none'}")
        return cls(found[0])

    @property
    def is_open(self) -> bool:
        return self._memory is not None

    @property
    def dropped(self) -> int:
        """Packets that found the ring full, of all its queues."""
        return sum(self._get(lane, DROPPED) for lane in range(len(self._lanes())))

    @property
    def too_long(self) -> int:
        """Packets longer than a row, which were dropped."""
        return sum(self._get(lane, TOO_LONG) for lane in range(len(self._lanes())))

    def batches(self, timeout_s: float | None = None, most: int = 1024) -> Iterator[Batch]:
        """Packets as they come, up to `most` at once, from each queue in turn.

        Ends when the run has ended, or nothing came for `timeout_s`.  What was in a batch leaves
        the ring when the next is asked for."""
        sleep_s, quiet_since_s = _FIRST_SLEEP_S, time.monotonic()
        while self.is_open:
            ended = self._ended()  # before looking: what was there at the end is still read
            found = False
            for number, (port, queue, worker) in enumerate(self._lanes()):
                start = self._get(number, CONSUMED)
                count = min(self._get(number, PRODUCED) - start, most, SLOTS - start % SLOTS)
                if count:
                    found = True
                    yield self._view(number, start % SLOTS, count, port, queue, worker)
                    if self._fd < 0:  # closed while its reader had it
                        return
                    self._set_consumed(number, start + count)
            if found:
                sleep_s, quiet_since_s = _FIRST_SLEEP_S, time.monotonic()
                continue
            if ended or (timeout_s is not None and time.monotonic() - quiet_since_s >= timeout_s):
                return
            time.sleep(sleep_s)
            sleep_s = min(2 * sleep_s, _LAST_SLEEP_S)

    def _view(self, lane: int, first: int, count: int, port: str, queue: int,
              worker: int) -> Batch:
        import numpy as np

        at = _HEADER_BYTES + lane * LANE_BYTES
        data = np.frombuffer(self._open, np.uint8, count * SLOT_BYTES,
                             at + DATA + first * SLOT_BYTES)
        return Batch(data.reshape(count, SLOT_BYTES),
                     np.frombuffer(self._open, np.uint32, count, at + LENGTHS + 4 * first),
                     np.frombuffer(self._open, np.uint64, count, at + TIMES + 8 * first),
                     queue, port, worker)

    def _fixed(self) -> tuple[Any, ...]:
        return _FIXED.unpack_from(self._open)

    @property
    def _open(self) -> mmap.mmap:
        if self._memory is None:
            raise ValueError(f"ring {self.name} is closed")
        return self._memory

    def _lanes(self) -> list[tuple[str, int, int]]:
        length = self._fixed()[5]
        if length != self._known:
            with suppress(ValueError):  # it is just being written: next time
                rows = json.loads(self._open[64 : 64 + length])
                self._rows, self._known = [(row[0], row[1], row[2]) for row in rows], length
        return self._rows

    def _ended(self) -> bool:
        if self._open[_CLOSED]:
            return True
        pid, start_ticks = self._fixed()[3:5]
        return rundir.start_ticks(pid) != start_ticks

    def _get(self, lane: int, offset: int) -> int:
        at = _HEADER_BYTES + lane * LANE_BYTES + offset
        return int(struct.unpack_from("=Q", self._open, at)[0])

    def _set_consumed(self, lane: int, value: int) -> None:
        struct.pack_into("=Q", self._open, _HEADER_BYTES + lane * LANE_BYTES + CONSUMED, value)

    def close(self) -> None:
        """Arrays that are still referred to keep the memory mapped.  May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        memory, self._memory = self._memory, None
        if memory is not None:
            with suppress(BufferError):
                memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
