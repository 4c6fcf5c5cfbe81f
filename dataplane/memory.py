"""MemoryPort: packets from a list of bytes, results into lists of bytes.

For tests, `xdpu run` and for measuring the loop itself.  A queue has one buffer for each slot of a
batch: `receive` copies the next input frames into buffers 0..n-1, so each packet is fresh whatever
the program did to the last one, and buffers stay hot in the cache.  All packets of a batch are
given back before the next `receive`; with `record`, `flush` then logs them in input order, however
the loop sorted them by verdict.

Input is a row of {u32 length, u32 pad, bytes} records, output one of {u32 length, u32 verdict,
u32 target, u32 meta length, metadata, bytes}, each padded to 8.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from dataplane.block import SKB_SHARED_INFO_BYTES, Block
from dataplane.port import (
    BATCH_MAX,
    COOKIE,
    DATA,
    DATA_END,
    FLUSH_SIGNATURE,
    FRAME_END,
    HARD_START,
    RECEIVE_SIGNATURE,
    RELEASE_SIGNATURE,
    SEND_SIGNATURE,
    SLOT_SIZE_BYTES,
    TARGET,
    TRANSMIT_SIGNATURE,
    VERDICT,
    PortKind,
    PortQueue,
)
from xdp_runtime.errors import ConfigError
from xdp_runtime.state import HEADROOM_BYTES, META_MAX_BYTES, XDP_FRAME_BYTES, Verdict
from xdp_runtime.template import Template

_REDIRECT = int(Verdict.REDIRECT)
_RECORD_BYTES = 16  # before each output packet
_OUT_BYTES, _LOG_BYTES = 64 << 20, 256 << 20

# a queue's memory
_INPUT, _CURSOR, _INPUT_BYTES, _ROUNDS = 0, 8, 16, 24
_FRAMES, _FRAME_SIZE, _HEADROOM = 32, 40, 48
_OUT, _OUT_USED, _OUT_SIZE = 56, 64, 72
_LOG, _LOG_USED, _LOG_SIZE = 80, 88, 96  # _LOG is null unless recording
_RECEIVED = 104  # packets of the batch at hand
_OUT_FULL, _LOG_FULL = 112, 120  # counters
_DISCARD = 128  # nobody will read the output: every batch overwrites the last one's
_DONE = 192  # one row a buffer: what came back, {pointer, end, meta, u32 verdict, u32 target}
_ROW_BYTES = 32
_QUEUE_BYTES = _DONE + _ROW_BYTES * BATCH_MAX


def _receive(m: Any) -> Callable[..., Any]:
    def memory_receive(q, batch, budget):  # type: ignore[no-untyped-def]
        cursor = m.load_u64(q, _CURSOR)
        rounds = m.load_u64(q, _ROUNDS)
        input_bytes = m.load_u64(q, _INPUT_BYTES)
        size = m.load_u64(q, _FRAME_SIZE)
        headroom = m.load_u64(q, _HEADROOM)
        frames = m.load_ptr(q, _FRAMES)
        source = m.load_ptr(q, _INPUT)
        n = 0
        while n < budget and n < BATCH_MAX and rounds != 0:
            length = m.load_u32(source, cursor)
            frame = m.inside(frames, n * size)
            data = m.inside(frame, headroom)
            m.copy(data, m.inside(source, cursor + 8), length)
            slot = m.inside(batch, n * SLOT_SIZE_BYTES)
            m.store_ptr(slot, DATA, data)
            m.store_ptr(slot, DATA_END, m.inside(data, length))
            m.store_ptr(slot, HARD_START, m.inside(frame, XDP_FRAME_BYTES))
            m.store_ptr(slot, FRAME_END, m.inside(frame, size - SKB_SHARED_INFO_BYTES))
            m.store_u64(slot, COOKIE, n)
            cursor += 8 + ((length + 7) & -8)
            if cursor == input_bytes:
                cursor = 0
                rounds -= 1
            n += 1
        m.store_u64(q, _CURSOR, cursor)
        m.store_u64(q, _ROUNDS, rounds)
        m.store_u64(q, _RECEIVED, n)
        return n

    return memory_receive


def _note(m: Any) -> Callable[..., Any]:
    def memory_note(q, slot):  # type: ignore[no-untyped-def]
        row = m.inside(q, _DONE + m.load_u64(slot, COOKIE) * _ROW_BYTES)
        m.copy(row, m.inside(slot, DATA), 24)  # DATA, DATA_END, DATA_META
        m.store_u32(row, 24, m.load_u32(slot, VERDICT) + 1)
        m.store_u32(row, 28, m.load_u32(slot, TARGET))
        return 0

    return memory_note


NOTE = Template("memory_note", _note, RELEASE_SIGNATURE)


def _release(m: Any) -> Callable[..., Any]:
    note = m.extern(NOTE)

    def memory_release(q, slot):  # type: ignore[no-untyped-def]
        if not m.is_null(m.load_ptr(q, _LOG)):
            note(q, slot)
        return 0

    return memory_release


def _send(m: Any) -> Callable[..., Any]:
    def memory_send(q, data, length):  # type: ignore[no-untyped-def]
        used = m.load_u64(q, _OUT_USED)
        after = used + _RECORD_BYTES + ((length + 7) & -8)
        if after > m.load_u64(q, _OUT_SIZE):
            m.store_u64(q, _OUT_FULL, m.load_u64(q, _OUT_FULL) + 1)
            return 0
        record = m.inside(m.load_ptr(q, _OUT), used)
        m.store_u32(record, 0, length)
        m.store_u32(record, 4, _REDIRECT)
        m.store_u64(record, 8, 0)
        m.copy(m.inside(record, _RECORD_BYTES), data, length)
        m.store_u64(q, _OUT_USED, after)
        return 1

    return memory_send


SEND = Template("memory_send", _send, SEND_SIGNATURE)


def _transmit(m: Any) -> Callable[..., Any]:
    send = m.extern(SEND)
    note = m.extern(NOTE)

    def memory_transmit(q, slot):  # type: ignore[no-untyped-def]
        if not m.is_null(m.load_ptr(q, _LOG)):
            note(q, slot)
        data = m.load_ptr(slot, DATA)
        return send(q, data, m.diff(m.load_ptr(slot, DATA_END), data))

    return memory_transmit


def _log(m: Any) -> Callable[..., Any]:
    def memory_log(q):  # type: ignore[no-untyped-def]
        received = m.load_u64(q, _RECEIVED)
        n = 0
        while n < received:
            row = m.inside(q, _DONE + n * _ROW_BYTES)
            n += 1
            verdict = m.load_u32(row, 24)
            if verdict == 0:
                continue
            m.store_u32(row, 24, 0)
            data = m.load_ptr(row, 0)
            length = m.diff(m.load_ptr(row, 8), data)
            meta = m.load_ptr(row, 16)
            meta_bytes = m.diff(data, meta)
            if meta_bytes < 0 or meta_bytes > META_MAX_BYTES:
                meta_bytes = 0
            used = m.load_u64(q, _LOG_USED)
            after = used + _RECORD_BYTES + ((meta_bytes + length + 7) & -8)
            if after > m.load_u64(q, _LOG_SIZE):
                m.store_u64(q, _LOG_FULL, m.load_u64(q, _LOG_FULL) + 1)
                continue
            record = m.inside(m.load_ptr(q, _LOG), used)
            m.store_u32(record, 0, length)
            m.store_u32(record, 4, verdict - 1)
            m.store_u32(record, 8, m.load_u32(row, 28))
            m.store_u32(record, 12, meta_bytes)
            if meta_bytes > 0:
                m.copy(m.inside(record, _RECORD_BYTES), meta, meta_bytes)
            m.copy(m.inside(record, _RECORD_BYTES + meta_bytes), data, length)
            m.store_u64(q, _LOG_USED, after)
        return 0

    return memory_log


LOG = Template("memory_log", _log, FLUSH_SIGNATURE, inline=False)


def _flush(m: Any) -> Callable[..., Any]:
    log = m.extern(LOG)

    def memory_flush(q):  # type: ignore[no-untyped-def]
        if not m.is_null(m.load_ptr(q, _LOG)):
            log(q)
        if m.load_u64(q, _DISCARD) != 0:
            m.store_u64(q, _OUT_USED, 0)
        return 0

    return memory_flush


MEMORY = PortKind(
    "memory",
    receive=Template("memory_receive", _receive, RECEIVE_SIGNATURE),
    release=Template("memory_release", _release, RELEASE_SIGNATURE, (NOTE,)),
    transmit=Template("memory_transmit", _transmit, TRANSMIT_SIGNATURE, (NOTE, SEND)),
    send=SEND,
    flush=Template("memory_flush", _flush, FLUSH_SIGNATURE, (LOG,)),
)


class Result(NamedTuple):
    """What became of one packet: `verdict` (a Verdict), `target` (ifindex of a redirect), its
    bytes, and the metadata before them."""

    verdict: int
    target: int
    data: bytes
    meta: bytes


class MemoryPort:
    """Input frame i goes to queue i % queues; all are repeated `count` times.  With `record`,
    `results` says what became of every packet; `sent` is what left through the port (with
    `discard` nothing is kept of it)."""

    kind = MEMORY

    def __init__(self, frames: Sequence[bytes], queues: int = 1, headroom: int = HEADROOM_BYTES,
                 frame_size: int = 4096, count: int = 1, record: bool = False,
                 out_bytes: int = _OUT_BYTES, log_bytes: int = _LOG_BYTES, name: str = "memory",
                 ifindex: int = 0, discard: bool = False) -> None:
        longest = frame_size - headroom - SKB_SHARED_INFO_BYTES
        for number, frame in enumerate(frames, 1):
            if not 0 < len(frame) <= longest:
                raise ConfigError(f"{name}, frame {number}", f"it has {len(frame)} bytes, a buffer "
                                  f"takes 1 to {longest}", "give a larger frame size")
        self.name, self.ifindex, self.mtu = name, ifindex, longest - 14
        self.mode = "frames in memory, copied once"
        self._record = record
        self._blocks: list[tuple[Block, Block, Block, Block, Block | None]] = []
        self._kept: tuple[list[bytes], list[Result], dict[str, int]] | None = None
        for index in range(queues):
            records = b"".join(_record(frame) for frame in frames[index::queues])
            source, buffers = Block(max(len(records), 8)), Block(BATCH_MAX * frame_size)
            out, log = Block(out_bytes), Block(log_bytes) if record else None
            q = Block(_QUEUE_BYTES)
            source.write(0, records)
            q.set(_INPUT, source.address)
            q.set(_INPUT_BYTES, len(records))
            q.set(_ROUNDS, count if records else 0)
            q.set(_FRAMES, buffers.address)
            q.set(_FRAME_SIZE, frame_size)
            q.set(_HEADROOM, headroom)
            q.set(_OUT, out.address)
            q.set(_OUT_SIZE, out_bytes)
            q.set(_DISCARD, int(discard))
            if log is not None:
                q.set(_LOG, log.address)
                q.set(_LOG_SIZE, log_bytes)
            self._blocks.append((q, source, buffers, out, log))
        self.queues: Sequence[PortQueue] = [
            PortQueue(i, blocks[0].address, -1) for i, blocks in enumerate(self._blocks)]

    @property
    def sent(self) -> list[bytes]:
        """Frames that left through this port, queue by queue."""
        if self._kept is not None:
            return self._kept[0]
        return [result.data for q, _, _, out, _ in self._blocks
                for result in _results(out, q.get(_OUT_USED))]

    @property
    def results(self) -> list[Result]:
        """Every packet received and given back, in input order, queue by queue."""
        if not self._record:
            raise ValueError("the port does not record: MemoryPort(..., record=True)")
        if self._kept is not None:
            return self._kept[1]
        return [result for q, _, _, _, log in self._blocks if log is not None
                for result in _results(log, q.get(_LOG_USED))]

    def statistics(self) -> dict[str, int]:
        """`tx_full` and `record_full` count packets that the output areas had no room for."""
        if self._kept is not None:
            return self._kept[2]
        return {"tx_full": sum(blocks[0].get(_OUT_FULL) for blocks in self._blocks),
                "record_full": sum(blocks[0].get(_LOG_FULL) for blocks in self._blocks)}

    def finished(self) -> bool:
        return self._kept is not None or all(q.get(_ROUNDS) == 0 for q, *_ in self._blocks)

    def close(self) -> None:
        """`sent`, `results` and `statistics` stay readable."""
        if self._kept is None:
            self._kept = (self.sent, self.results if self._record else [], self.statistics())
            for blocks in self._blocks:
                for block in blocks:
                    if block is not None:
                        block.close()


def _record(frame: bytes) -> bytes:
    return struct.pack("=II", len(frame), 0) + frame + bytes(-len(frame) % 8)


def _results(area: Block, used: int) -> Iterator[Result]:
    offset = 0
    while offset < used:
        length, verdict, target, meta_bytes = struct.unpack("=4I", area.read(offset, _RECORD_BYTES))
        start = offset + _RECORD_BYTES + meta_bytes
        yield Result(verdict, target, area.read(start, length),
                     area.read(start - meta_bytes, meta_bytes))
        offset = start + length
        offset += -offset % 8
