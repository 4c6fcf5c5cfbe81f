"""Why packets were aborted: counted by program and reason, and the first of them kept to be shown.

The worker's loop calls NOTE for each such packet, away from the path of all others.  A worker's
area has a table of counters, one row a program of the module, one column a reason, and records of
the first packets, as many as somebody wants to see.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dataplane import port, stats
from dataplane.block import Block
from dataplane.worker_block import (
    C_ABORTED,
    C_WORKER_ID,
    COUNT_UP,
    F_IFINDEX,
    F_RX_QUEUE,
    F_STATS,
)
from xdp_runtime import state as st
from xdp_runtime.template import Template

REASONS = (
    "the program returned XDP_ABORTED",
    "a verdict that does not exist",
    "bpf_redirect or bpf_redirect_map was given flags that do not exist",
    "its instruction budget was used up",
    "a verdict that does not count there: XDP_TX and XDP_REDIRECT end in a devmap's program, "
    "XDP_TX in a cpumap's",
    "the map's entry names a program that is not part of this run",
)
_RETURNED, _UNKNOWN, _FLAGS, _BUDGET, _PLACE, _NO_PROGRAM = range(len(REASONS))
_PROGRAMS, _COLUMNS = 64, 8
_NONE = 0xFFFFFFFF  # the verdict of no program

# the area of a worker: byte offsets
_TABLE = 0  # u64 [program][reason]
_WANTED = 8 * _PROGRAMS * _COLUMNS  # u64, records that there is room for
_KEPT = _WANTED + 8  # u64, records there are
_RECORDS = _WANTED + 64
# a record
_LENGTH, _PROGRAM, _REASON, _VERDICT, _IFINDEX, _QUEUE, _WORKER, _COPIED = range(0, 32, 4)
_PACKET = 32
RECORD_BYTES = 2048
PACKET_BYTES = RECORD_BYTES - _PACKET
Factory = Callable[..., Any]


def _note(m: Any) -> Factory:
    count_up = m.extern(COUNT_UP)

    def note_aborted(control, flow, slot, verdict, how, program, second):  # type: ignore
        """`second`: it is the program of a map's entry.  The verdict is 32 bits."""
        verdict &= 0xFFFFFFFF
        if verdict == 0:
            reason = _RETURNED
            if how & st.HOW_KIND == st.HOW_SPENT:
                reason = _BUDGET
            elif how & st.HOW_REFUSED != 0:
                reason = _FLAGS
        elif second != 0 and verdict == _NONE:
            reason = _NO_PROGRAM
        elif verdict <= 4:
            reason = _PLACE
        else:
            reason = _UNKNOWN
        counters = m.load_ptr(flow, F_STATS)
        if second == 0:
            if reason == _UNKNOWN:
                count_up(counters, stats.INVALID_VERDICT, 1)
            elif reason == _FLAGS:
                count_up(counters, stats.ABORTED_REDIRECT, 1)
            elif reason == _BUDGET:
                count_up(counters, stats.ABORTED_BUDGET, 1)
            else:
                count_up(counters, stats.ABORTED_PROGRAM, 1)
        area = m.load_ptr(control, C_ABORTED)
        count_up(area, ((program & 63) * _COLUMNS + reason) * 8, 1)
        kept = m.load_u64(area, _KEPT)
        if kept >= m.load_u64(area, _WANTED):
            return 0
        record = m.gep(area, _RECORDS + kept * RECORD_BYTES)
        data = m.load_ptr(slot, port.DATA)
        length = m.diff(m.load_ptr(slot, port.DATA_END), data)
        copied = length if length < PACKET_BYTES else PACKET_BYTES
        m.store_u32(record, _LENGTH, length)
        m.store_u32(record, _PROGRAM, program)
        m.store_u32(record, _REASON, reason)
        m.store_u32(record, _VERDICT, verdict)
        m.store_u32(record, _IFINDEX, m.load_u32(flow, F_IFINDEX))
        m.store_u32(record, _QUEUE, m.load_u32(flow, F_RX_QUEUE))
        m.store_u32(record, _WORKER, m.load_u32(control, C_WORKER_ID))
        m.store_u32(record, _COPIED, copied)
        m.copy(m.gep(record, _PACKET), data, copied)
        m.release_u64(area, _KEPT, kept + 1)
        return 1

    return note_aborted


NOTE = Template("note_aborted", _note, "i64(ptr, ptr, ptr, i64, i64, i64, i64)", (COUNT_UP,),
                inline=False)


@dataclass(frozen=True, slots=True)
class Aborted:
    """One packet, as the program left it: `data` are its first bytes of `length`.  `verdict` is
    what the program returned."""

    program: str
    reason: str
    verdict: int
    ifindex: int
    queue: int
    worker: int
    length: int
    data: bytes


class Area:
    """What a worker notes of aborted packets; `wanted` of them are kept."""

    def __init__(self, wanted: int = 0) -> None:
        self._block = Block(_RECORDS + wanted * RECORD_BYTES)
        self._block.set(_WANTED, wanted)
        self.address = self._block.address
        self._names: list[tuple[int, Sequence[str]]] = [(0, ())]  # from which record on
        self._before: Counter[tuple[str, str]] = Counter()

    def begin(self, names: Sequence[str]) -> None:
        """From now on the programs of the module have these names, by their number.  Only between
        two batches of the worker."""
        for program, reason, count in self.counts():
            self._before[program, reason] = count
        self._block.write(_TABLE, bytes(_WANTED))
        self._names.append((self._block.get(_KEPT), names))

    def _name(self, number: int, record: int | None = None) -> str:
        """Of a program now, or when this record was made."""
        names = next(names for first, names in reversed(self._names)
                     if record is None or first <= record)
        return names[number] if number < len(names) else f"number {number}"

    def counts(self) -> Iterator[tuple[str, str, int]]:
        """(program, reason, packets) of those that there were."""
        total = self._before.copy()
        cells = struct.unpack(f"={_PROGRAMS * _COLUMNS}Q", self._block.read(_TABLE, _WANTED))
        for number, count in enumerate(cells):
            if count:
                total[self._name(number // _COLUMNS), REASONS[number % _COLUMNS]] += count
        for (program, reason), count in total.items():
            yield program, reason, count

    def packets(self, first: int = 0) -> list[Aborted]:
        """Those kept, from the `first`th on."""
        out = []
        for number in range(first, self._block.get(_KEPT)):
            at = _RECORDS + number * RECORD_BYTES
            length, program, reason, verdict, ifindex, queue, worker, copied = struct.unpack(
                "=8I", self._block.read(at, _PACKET))
            out.append(Aborted(self._name(program, number), REASONS[reason], verdict, ifindex,
                               queue, worker, length, self._block.read(at + _PACKET, copied)))
        return out
