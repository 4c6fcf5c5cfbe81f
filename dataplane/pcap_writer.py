"""Templates that write what became of each packet: pcapng enhanced packet blocks.

`release` and `transmit` only note the verdict of a buffer; `flush` writes the blocks of the batch
in input order, whatever order the loop gave the packets back in.  Blocks gather in a buffer that
write(2) empties when it holds DRAIN_BYTES, when no room is left, and when no input is left.

A write that fails is final: OUT_ERRNO is set, the input stops, and each packet that is not in the
output is counted.  The buffer always starts at a block, so that close can cut the file there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dataplane import pcapng_verdict
from dataplane.pcap_queue import (
    COMMENT_HOW,
    COMMENT_SENT,
    COMMENTS,
    LAST_NS,
    OUT,
    OUT_BYTES,
    OUT_ERRNO,
    OUT_FD,
    OUT_LOST,
    OUT_TOTAL,
    OUT_USED,
    OUT_WRITTEN,
    RECEIVED,
    ROW_BYTES,
    ROW_DATA,
    ROW_END,
    ROW_HOW,
    ROW_MISSING,
    ROW_NS,
    ROW_TARGET,
    ROW_VERDICT,
    ROWS,
    STOPPED,
)
from dataplane.pcapfile import ENHANCED_PACKET
from dataplane.port import (
    COOKIE,
    DATA,
    DATA_END,
    FLUSH_SIGNATURE,
    REDIRECTED,
    RELEASE_SIGNATURE,
    SEND_SIGNATURE,
    TARGET,
    TRANSMIT_SIGNATURE,
    VERDICT,
)
from xdp_runtime.state import HOW_RING
from xdp_runtime.template import Template

DRAIN_BYTES = 256 << 10
_OVERHEAD_BYTES = 160  # an upper bound of all in a block that is not the packet
_FIXED_BYTES = 28  # before the packet
_EINTR, _EAGAIN, _POLLOUT, _EIO = 4, 11, 4, 5
_CLOCK_REALTIME = 0
_SECOND_NS = 10**9


def _drain(m: Any) -> Callable[..., Any]:
    def pcap_drain(q):  # type: ignore[no-untyped-def]
        """Write the buffer out, all of it; -> 0, or 1 if that failed now or before."""
        if m.load_u64(q, OUT_ERRNO) != 0:
            return 1
        used = m.load_u64(q, OUT_USED)
        fd = m.load_u64(q, OUT_FD)
        written = m.load_u64(q, OUT_WRITTEN)
        while written < used:
            done = m.c_write(fd, m.inside(m.load_ptr(q, OUT), written), used - written)
            if done > 0:
                written += done
                m.store_u64(q, OUT_WRITTEN, written)
                continue
            error = m.errno() if done < 0 else _EIO
            if error == _EAGAIN:  # a pipe that somebody made non-blocking
                waiting = m.alloca(8)
                m.store_u32(waiting, 0, fd)
                m.store_u32(waiting, 4, _POLLOUT)
                m.c_poll(waiting, 1, 1000)
            elif error != _EINTR:
                m.store_u64(q, OUT_ERRNO, error)
                return 1
        m.store_u64(q, OUT_TOTAL, m.load_u64(q, OUT_TOTAL) + used)
        m.store_u64(q, OUT_USED, 0)
        m.store_u64(q, OUT_WRITTEN, 0)
        return 0

    return pcap_drain


DRAIN = Template("pcap_drain", _drain, FLUSH_SIGNATURE, inline=False)


def _block(m: Any) -> Callable[..., Any]:
    drain, write_verdict = m.extern(DRAIN), m.extern(pcapng_verdict.WRITE_VERDICT)

    def pcap_block(q, data, length, original, timestamp_ns, verdict, infix, target):  # type: ignore
        """Append an enhanced packet block -> 1, or count the packet as lost -> 0."""
        if m.load_u64(q, OUT_USED) + length + _OVERHEAD_BYTES > m.load_u64(q, OUT_BYTES):
            drain(q)
        used = m.load_u64(q, OUT_USED)
        failed = m.load_u64(q, OUT_ERRNO) != 0
        if failed or used + length + _OVERHEAD_BYTES > m.load_u64(q, OUT_BYTES):
            m.store_u64(q, OUT_LOST, m.load_u64(q, OUT_LOST) + 1)
            return 0
        block = m.inside(m.load_ptr(q, OUT), used)
        m.store_u32(block, 0, ENHANCED_PACKET)
        m.store_u32(block, 8, 0)
        m.store_u32(block, 12, m.lshr(timestamp_ns, 32))
        m.store_u32(block, 16, timestamp_ns)
        m.store_u32(block, 20, length)
        m.store_u32(block, 24, original)
        at = _FIXED_BYTES + ((length + 3) & -4)
        m.store_u32(block, at - 4, 0)  # the padding; a packet of no bytes has `original` there
        if length == 0:
            m.store_u32(block, 24, original)
        m.copy(m.inside(block, _FIXED_BYTES), data, length)

        known = verdict if verdict != COMMENT_SENT else -1
        at = write_verdict(block, at, m.inside(q, COMMENTS), verdict, infix, target, known)
        m.store_u32(block, at, 0)  # the end of the options
        size = at + 8
        m.store_u32(block, at + 4, size)
        m.store_u32(block, 4, size)
        m.store_u64(q, OUT_USED, used + size)
        return 1

    return pcap_block


BLOCK = Template("pcap_block", _block, "i64(ptr, ptr, i64, i64, i64, i64, i64, i64)",
                 (DRAIN, pcapng_verdict.WRITE_VERDICT), inline=False)


def _release(m: Any) -> Callable[..., Any]:
    def pcap_release(q, slot):  # type: ignore[no-untyped-def]
        row = m.inside(q, ROWS + m.load_u64(slot, COOKIE) * ROW_BYTES)
        m.store_ptr(row, ROW_DATA, m.load_ptr(slot, DATA))
        m.store_ptr(row, ROW_END, m.load_ptr(slot, DATA_END))
        m.store_u32(row, ROW_VERDICT, m.load_u32(slot, VERDICT) + 1)
        m.store_u32(row, ROW_TARGET, m.load_u32(slot, TARGET))
        m.store_u64(row, ROW_HOW, m.load_u64(slot, REDIRECTED))
        return 0

    return pcap_release


RELEASE = Template("pcap_release", _release, RELEASE_SIGNATURE)


def _transmit(m: Any) -> Callable[..., Any]:
    release = m.extern(RELEASE)

    def pcap_transmit(q, slot):  # type: ignore[no-untyped-def]
        release(q, slot)
        return 1 if m.load_u64(q, OUT_ERRNO) == 0 else 0

    return pcap_transmit


def _send(m: Any) -> Callable[..., Any]:
    block = m.extern(BLOCK)

    def pcap_send(q, data, length):  # type: ignore[no-untyped-def]
        if m.is_null(m.load_ptr(q, OUT)):
            return 1
        timestamp_ns = m.load_u64(q, LAST_NS)
        if timestamp_ns == 0:
            now = m.alloca(16)
            m.c_clock_gettime(_CLOCK_REALTIME, now)
            timestamp_ns = m.load_u64(now, 0) * _SECOND_NS + m.load_u64(now, 8)
        return block(q, data, length, length, timestamp_ns, COMMENT_SENT, -1, 0)

    return pcap_send


def _write_batch(m: Any) -> Callable[..., Any]:
    block, drain = m.extern(BLOCK), m.extern(DRAIN)

    def pcap_write_batch(q):  # type: ignore[no-untyped-def]
        received = m.load_u64(q, RECEIVED)
        n = 0
        while n < received:
            row = m.inside(q, ROWS + n * ROW_BYTES)
            n += 1
            verdict = m.load_u32(row, ROW_VERDICT)
            if verdict == 0:
                continue
            m.store_u32(row, ROW_VERDICT, 0)
            data = m.load_ptr(row, ROW_DATA)
            length = m.diff(m.load_ptr(row, ROW_END), data)
            infix, target = -1, m.load_u32(row, ROW_TARGET)
            if verdict == 5:  # a redirect, plus one
                how = m.load_u64(row, ROW_HOW)
                if not m.ule(how, HOW_RING):
                    how = 0
                if how != 0 or target != 0:
                    infix = COMMENT_HOW + how
            if verdict > 5:
                verdict = 1
            block(q, data, length, length + m.load_u64(row, ROW_MISSING),
                  m.load_u64(row, ROW_NS), verdict - 1, infix, target)
        used = m.load_u64(q, OUT_USED)
        if used >= DRAIN_BYTES or (m.load_u64(q, STOPPED) != 0 and used != 0):
            drain(q)
        return 0

    return pcap_write_batch


WRITE_BATCH = Template("pcap_write_batch", _write_batch, FLUSH_SIGNATURE, (BLOCK, DRAIN),
                       inline=False)


def _flush(m: Any) -> Callable[..., Any]:
    write_batch = m.extern(WRITE_BATCH)

    def pcap_flush(q):  # type: ignore[no-untyped-def]
        if not m.is_null(m.load_ptr(q, OUT)):
            write_batch(q)
        return 0

    return pcap_flush


TRANSMIT = Template("pcap_transmit", _transmit, TRANSMIT_SIGNATURE, (RELEASE,))
SEND = Template("pcap_send", _send, SEND_SIGNATURE, (BLOCK,))
FLUSH = Template("pcap_flush", _flush, FLUSH_SIGNATURE, (WRITE_BATCH,))
