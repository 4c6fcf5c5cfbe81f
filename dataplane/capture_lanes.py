"""The file between a run and a process that captures: pcapng blocks, written by workers.

It has a *lane* for each receive queue, which one worker writes and the reader reads, so nothing is
locked.  A lane is a ring of bytes; what the reader finds there goes into its file as it is.

    header    magic, sizes, the writing process; JSON: the interfaces as pcapng numbers them
              [name, point], and port, queue and worker of each lane
    lane      capture_put.py: L_*, and from LANE_HEAD_BYTES on the ring
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dataplane import capture_put as layout
from dataplane import rundir
from dataplane.stats import FlowName
from xdp_runtime.errors import ConfigError, PortError

LANES_MAX = 64
LEAST_RING_BYTES = 1 << 20  # two blocks of the longest packet must have room
POINTS = {"entry": layout.ENTRY_POINT, "exit": layout.EXIT_POINT}
_HEADER_BYTES = 1 << 16
_MAGIC = b"XDPUCAP1"
_FIXED = struct.Struct("<8sQQQI")  # magic, bytes of a ring, pid, its start, JSON's length
_CLOSED = 60  # u32, 1: nothing will come any more


@dataclass(frozen=True, slots=True)
class Counts:
    """Packets at one point of an interface: seen, chosen by filter and sample, lost for want of
    room."""

    seen: int = 0
    chosen: int = 0
    lost: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.seen + other.seen, self.chosen + other.chosen, self.lost + other.lost)


class LaneFile:
    """The writing side, in the run."""

    def __init__(self, path: Path, ring_bytes: int, points: Sequence[int]) -> None:
        self.path, self._ring_bytes, self._points = path, ring_bytes, points
        self._flows: list[FlowName] = []
        self._interfaces: list[tuple[str, int]] = []
        path.parent.mkdir(exist_ok=True)
        size = _HEADER_BYTES + LANES_MAX * (layout.LANE_HEAD_BYTES + ring_bytes)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.ftruncate(fd, size)  # pages are memory when they are first written
            self._memory = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self._anchor: ctypes.c_char | None = ctypes.c_char.from_buffer(self._memory)
        self._base = ctypes.addressof(self._anchor)
        self.extend(())

    def extend(self, flows: Sequence[FlowName]) -> None:
        """Lanes for more flows; beyond LANES_MAX there are none.  Raises ConfigError."""
        for flow in flows:
            if flow not in self._flows and len(self._flows) < LANES_MAX:
                self._add(flow)
        text = json.dumps({
            "interfaces": self._interfaces,
            "lanes": [[flow.port, flow.queue, flow.worker] for flow in self._flows]}).encode()
        if len(text) > _HEADER_BYTES - 64:
            raise ConfigError(f"capture {self.path.name}", "the names of its ports are too long")
        owner = rundir.Owner.current()
        self._memory[64 : 64 + len(text)] = text
        self._memory[: _FIXED.size] = _FIXED.pack(_MAGIC, self._ring_bytes, owner.pid,
                                                  owner.start_ticks, len(text))

    def _add(self, flow: FlowName) -> None:
        number = len(self._flows)
        at = _at(number, self._ring_bytes)
        words = {layout.L_LAP_END: layout.NO_LAP_END, layout.L_SIZE: self._ring_bytes,
                 layout.L_NUMBER: number}
        for offset, value in words.items():
            struct.pack_into("=Q", self._memory, at + offset, value)
        for point in self._points:
            if (flow.port, point) not in self._interfaces:
                self._interfaces.append((flow.port, point))
            struct.pack_into("=I", self._memory, at + layout.L_INTERFACES + 4 * point,
                             self._interfaces.index((flow.port, point)))
        self._flows.append(flow)

    def lane(self, flow: FlowName) -> int:
        """Its address, 0 if it has none."""
        if flow not in self._flows:
            return 0
        return self._base + _at(self._flows.index(flow), self._ring_bytes)

    def close(self) -> None:
        """The reader sees the end once it has read all; the workers must look no more."""
        if self._anchor is None:
            return
        self._memory[_CLOSED : _CLOSED + 4] = (1).to_bytes(4, "little")
        self._anchor = None
        self._memory.close()
        with suppress(FileNotFoundError):
            self.path.unlink()


@dataclass(frozen=True, slots=True)
class Span:
    """Whole blocks in one piece, which stay there until they are consumed."""

    lane: int
    position: int
    data: memoryview


class LaneReader:
    """The reading side.  Raises PortError where the file cannot be opened."""

    def __init__(self, path: Path) -> None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise PortError(f"capture {path}", error.strerror or str(error)) from error
        try:
            self._memory = mmap.mmap(fd, 0)
        finally:
            os.close(fd)
        magic, self._ring_bytes, self._pid, self._start_ticks, _ = self._fixed()
        if magic != _MAGIC:
            raise PortError(f"capture {path}", "is none of this version")
        self._view = memoryview(self._memory)
        self._known = 0
        self.interfaces: list[tuple[str, int]] = []
        self.lanes: list[FlowName] = []
        self.look()

    def _fixed(self) -> tuple[bytes, int, int, int, int]:
        magic, ring_bytes, pid, start_ticks, length = _FIXED.unpack_from(self._memory)
        return magic, ring_bytes, pid, start_ticks, length

    def look(self) -> None:
        """Take note of interfaces and lanes that have come."""
        length = self._fixed()[4]
        if length != self._known:
            with suppress(ValueError):  # it is just being written: next time
                told = json.loads(self._memory[64 : 64 + length])
                self.interfaces = [(name, point) for name, point in told["interfaces"]]
                self.lanes = [FlowName(worker, port, queue)
                              for port, queue, worker in told["lanes"]]
                self._known = length

    @property
    def closed(self) -> bool:
        """Nothing will come any more."""
        return self._memory[_CLOSED] != 0

    @property
    def abandoned(self) -> bool:
        """The run has died."""
        return rundir.start_ticks(self._pid) != self._start_ticks

    def spans(self) -> Iterator[Span]:
        """What each lane has at the moment, at most two pieces of it."""
        for lane in range(len(self.lanes)):
            for _ in range(2):
                start, end = self._piece(lane)
                if start == end:
                    break
                at = _at(lane, self._ring_bytes) + layout.LANE_HEAD_BYTES \
                    + start % self._ring_bytes
                yield Span(lane, start, self._view[at : at + end - start])

    def _piece(self, lane: int) -> tuple[int, int]:
        while True:
            start = self._get(lane, layout.L_CONSUMED)
            produced = self._get(lane, layout.L_PRODUCED)
            lap_end = start - start % self._ring_bytes + self._ring_bytes
            if produced < lap_end:
                return start, produced
            ended = self._get(lane, layout.L_LAP_END)
            if start <= ended < lap_end:
                if start < ended:
                    return start, ended
                self._consumed(lane, lap_end)
                continue
            return start, lap_end

    def consume(self, span: Span, length: int) -> None:
        """Its first bytes are done with: whole blocks."""
        self._consumed(span.lane, span.position + length)

    def _consumed(self, lane: int, position: int) -> None:
        struct.pack_into("=Q", self._memory, _at(lane, self._ring_bytes) + layout.L_CONSUMED,
                         position)

    def _get(self, lane: int, offset: int) -> int:
        at = _at(lane, self._ring_bytes) + offset
        return int(struct.unpack_from("=Q", self._memory, at)[0])

    def counts(self, interface: tuple[str, int]) -> Counts:
        total = Counts()
        for number, lane in enumerate(self.lanes):
            if lane.port == interface[0]:
                at = layout.L_COUNTS + layout.COUNT_BYTES * interface[1]
                total += Counts(*(self._get(number, at + offset)
                                  for offset in (layout.SEEN, layout.CHOSEN, layout.LOST)))
        return total

    def close(self) -> None:
        """Spans that somebody still has keep the memory mapped."""
        with suppress(BufferError):
            self._view.release()
            self._memory.close()


def _at(lane: int, ring_bytes: int) -> int:
    return _HEADER_BYTES + lane * (layout.LANE_HEAD_BYTES + ring_bytes)
