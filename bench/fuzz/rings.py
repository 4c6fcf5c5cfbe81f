"""Records of a ring buffer in the kernel, taken out as user space does."""

from __future__ import annotations

import mmap

_PAGE = mmap.PAGESIZE
_BUSY, _DISCARDED = 1 << 31, 1 << 30  # BPF_RINGBUF_BUSY_BIT, BPF_RINGBUF_DISCARD_BIT
_HEADER_BYTES = 8


def take_records(fd: int, size_bytes: int) -> list[bytes]:
    """Those that were committed and not discarded.  The layout is that of kernel/bpf/ringbuf.c: a
    page with the consumer's position, one with the producer's, then the data, twice in a row."""
    with (mmap.mmap(fd, _PAGE) as consumer,
          mmap.mmap(fd, _PAGE + 2 * size_bytes, prot=mmap.PROT_READ, offset=_PAGE) as produced):
        at = int.from_bytes(consumer[:8], "little")
        end = int.from_bytes(produced[:8], "little")
        records = []
        while at < end:
            start = _PAGE + at % size_bytes
            length = int.from_bytes(produced[start:start + 4], "little")
            if length & _BUSY:
                break
            size = length & ~_DISCARDED
            if not length & _DISCARDED:
                start += _HEADER_BYTES
                records.append(produced[start:start + size])
            at += -(-(size + _HEADER_BYTES) // 8) * 8
        consumer[:8] = at.to_bytes(8, "little")
    return records
