"""Counters in shared memory: anyone may read them, nobody stops for it.

A header (JSON: names, workers, flows, interfaces), then a block of 1024 bytes for each
flow of each worker: u64 counters in the order of COUNTERS, written by its worker alone, with no
two workers on one cache line.  Names are public API.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from xdp_runtime.errors import ConfigError, OutOfMemory
from xdp_runtime.maps.memory import reserve

COUNTERS = (
    "rx_packets",  # packets received and run through the program
    "rx_bytes",
    "aborted",  # verdict ABORTED, or a verdict that does not exist
    "drop",  # verdict DROP
    "pass",  # verdict PASS
    "tx",  # verdict TX
    "redirect",  # verdict REDIRECT
    "batches",  # receive calls that brought something
    "tx_bytes",  # bytes sent by TX and REDIRECT
    "tx_full",  # verdict TX, but no room to send: lost
    "redirect_no_port",  # redirect to an interface that is not part of this run: lost
    "redirect_full",  # redirect, but no room to send: lost
    "pass_full",  # verdict PASS, but the stack's TAP took it not: lost
    "invalid_verdict",  # of `aborted`: verdicts that do not exist
    "stack_packets",  # frames the kernel's stack sent through its TAP
    "stack_bytes",
    "stack_full",  # of those, no room on the interface: lost
    "idle_polls",  # times the worker went to sleep in poll(2)
    "aborted_program",  # of `aborted`: the program returned XDP_ABORTED
    "aborted_redirect",  # of `aborted`: bpf_redirect or bpf_redirect_map refused its flags
    "aborted_budget",  # of `aborted`: the instruction budget was used up
    "broadcast",  # of `redirect`: to all entries of a map, which makes
    "broadcast_copies",  # so many, each of which is sent or counted as lost
    "egress_drop",  # dropped by the program of a devmap's entry
    "egress_aborted",  # that program returned something else than PASS and DROP: lost
    "cpu_sent",  # of `redirect`: into another worker's ring, by a CPUMAP
    "cpu_full",  # no room in that ring: lost
    "cpu_no_worker",  # no such worker: lost
    "cpu_received",  # out of another worker's ring; it is one of the following four
    "cpu_pass",  # to the stack there
    "cpu_redirect",
    "cpu_drop",  # dropped by the program of the CPUMAP's entry
    "cpu_aborted",  # that program returned something else: lost
    "ring_sent",  # of `redirect`: into a named ring, by an XSKMAP
    "ring_full",  # no room in that ring, or longer than its rows: lost
    "unmeasured",  # of rx_packets and tx: nobody looked at them, their bytes are not counted
)
(RX_PACKETS, RX_BYTES, ABORTED, DROP, PASS, TX,
 REDIRECT, BATCHES, TX_BYTES, TX_FULL, REDIRECT_NO_PORT, REDIRECT_FULL,
 PASS_FULL, INVALID_VERDICT, STACK_PACKETS, STACK_BYTES, STACK_FULL, IDLE_POLLS,
 ABORTED_PROGRAM, ABORTED_REDIRECT, ABORTED_BUDGET, BROADCAST, BROADCAST_COPIES,
 EGRESS_DROP, EGRESS_ABORTED, CPU_SENT, CPU_FULL, CPU_NO_WORKER, CPU_RECEIVED, CPU_PASS,
 CPU_REDIRECT, CPU_DROP, CPU_ABORTED, RING_SENT, RING_FULL, UNMEASURED) = (
    8 * _i for _i in range(len(COUNTERS)))  # byte offsets in a flow's block, for the loop
LATENCY_SUM = 504  # ns, of all that the histogram has counted
LATENCY = 512  # histogram of a worker, in the block of its first flow
BUCKETS = 64  # u64 each: rounds that took from 2^(i/2) ns on, 1.5 * 2^((i-1)/2) for an odd i
FLOW_BYTES = 1024
HEADER_BYTES = 1 << 16
_SPARE_FLOWS = 1024  # for ports that come later; memory nobody touched costs nothing
_MAGIC = b"XDPUSTA1"
assert len(COUNTERS) * 8 <= LATENCY_SUM and LATENCY + 8 * BUCKETS <= FLOW_BYTES


@dataclass(frozen=True, slots=True)
class FlowName:
    """Whose counters a block holds."""

    worker: int
    port: str
    queue: int


@dataclass(frozen=True, slots=True)
class Latency:
    """A histogram of times in ns, and their sum."""

    counts: tuple[int, ...]
    sum_ns: int

    @staticmethod
    def upper_ns(bucket: int) -> float:
        """The end of a bucket."""
        exponent, half = divmod(bucket + 1, 2)
        return float(2 ** exponent * (3 if half else 2) // 2)

    def quantile_ns(self, q: float) -> float | None:
        """An upper bound, at most 1.5 times too high; None before the first sample."""
        left = q * sum(self.counts)
        for bucket, count in enumerate(self.counts):
            left -= count
            if count and left <= 0:
                return self.upper_ns(bucket)
        return None

    def since(self, before: Latency) -> Latency:
        return Latency(tuple(a - b for a, b in zip(self.counts, before.counts, strict=True)),
                       self.sum_ns - before.sum_ns)


class Stats:
    """The counters of a run; `create` for its owner, `open` for anyone else."""

    def __init__(self, memory: mmap.mmap, flows: Sequence[FlowName], path: Path | None) -> None:
        self._memory, self.flows, self.path = memory, tuple(flows), path
        self._cells = memoryview(memory).cast("Q")

    @classmethod
    def create(cls, flows: Sequence[FlowName], directory: Path | None) -> Stats:
        size = HEADER_BYTES + FLOW_BYTES * (len(flows) + _SPARE_FLOWS)
        path = directory / "stats" if directory else None
        if path is None:
            memory = mmap.mmap(-1, size)
        else:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            try:
                reserve(fd, size, directory)
                memory = mmap.mmap(fd, size)
            except OSError as error:
                raise OutOfMemory(f"counters {path}", f"{error.strerror}", "make room") from error
            finally:
                os.close(fd)
        stats = cls(memory, flows, path)
        stats._write_header()
        return stats

    def _write_header(self) -> None:
        header = json.dumps({
            "counters": COUNTERS,
            "flows": [[f.worker, f.port, f.queue] for f in self.flows],
        }).encode()
        if 12 + len(header) > HEADER_BYTES or self.address(len(self.flows)) > self._end():
            raise ConfigError("counters", f"{len(self.flows)} queues are more than there is room "
                              "for", "end the run and start it anew")
        self._memory[:8] = bytes(8)
        self._memory[8 : 12] = len(header).to_bytes(4, "little")
        self._memory[12 : 12 + len(header)] = header
        self._memory[:8] = _MAGIC  # last: a reader that sees it sees all

    def extend(self, flows: Sequence[FlowName]) -> None:
        """Counters for more flows; those there are stay as they are.  Raises ConfigError."""
        before = self.flows
        try:
            self.flows += tuple(flows)
            self._write_header()
        except BaseException:
            self.flows = before
            raise

    @classmethod
    def open(cls, path: Path) -> Stats:
        """Map a running program's counters.  Raises ValueError when it is no such file."""
        with path.open("r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)
        if memory[:8] != _MAGIC:
            raise ValueError(f"{path} does not hold counters")
        header = json.loads(memory[12 : 12 + int.from_bytes(memory[8:12], "little")])
        return cls(memory, [FlowName(*f) for f in header["flows"]], path)

    def address(self, flow: int) -> int:
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        return base + HEADER_BYTES + FLOW_BYTES * flow

    def _end(self) -> int:
        return self.address(0) - HEADER_BYTES + len(self._memory)

    def flow(self, index: int) -> dict[str, int]:
        start = (HEADER_BYTES + FLOW_BYTES * index) // 8
        return {name: self._cells[start + i] for i, name in enumerate(COUNTERS)}

    def latency(self, flows: Iterable[int] | None = None) -> Latency:
        """How long sampled rounds took, from before a batch was received until all it led to was
        published: one round of 64, of all workers or of those that these flows belong to."""
        counts, sum_ns = [0] * BUCKETS, 0
        for index in range(len(self.flows)) if flows is None else flows:
            start = (HEADER_BYTES + FLOW_BYTES * index) // 8
            sum_ns += self._cells[start + LATENCY_SUM // 8]
            at = start + LATENCY // 8
            counts = [a + b for a, b in zip(counts, self._cells[at : at + BUCKETS], strict=True)]
        return Latency(tuple(counts), sum_ns)

    def total(self, flows: Iterable[int] | None = None) -> dict[str, int]:
        chosen = range(len(self.flows)) if flows is None else flows
        sums = dict.fromkeys(COUNTERS, 0)
        for index in chosen:
            for name, value in self.flow(index).items():
                sums[name] += value
        return sums
