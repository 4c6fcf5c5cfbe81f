"""Capture: packets of a run's ports, copied for another process while the run goes on.

Compiled when it begins and gone when it ends (capture_put.py says how); until then the workers pay
one predicted branch a batch for the possibility.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataplane import capture_put as layout
from dataplane import pcapng_verdict
from dataplane.block import Block
from dataplane.capture_lanes import LEAST_RING_BYTES, LaneFile
from dataplane.rundir import Owner
from dataplane.stats import FlowName
from dataplane.worker_block import FLOWS_MAX
from xdp_runtime.asm import assemble
from xdp_runtime.compiler import link
from xdp_runtime.errors import ConfigError
from xdp_runtime.object import Object, ProgramSpec
from xdp_runtime.program import load

FOLDER = "captures"  # in a run's directory
ALL = "r0 = 2\nexit\n"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be captured, and for whom.  `filter` is assembly of an XDP program: what it
    returns other than 0 is taken.  No `ports`: all there are, and will be."""

    reader: Owner
    points: tuple[int, ...] = (layout.ENTRY_POINT, layout.EXIT_POINT)
    ports: tuple[str, ...] = ()
    filter: str = ALL
    snap_bytes: int = 1 << 18
    sample: int = 1
    ring_bytes: int = 1 << 23

    @property
    def object(self) -> Object:
        spec = ProgramSpec("filter", "xdp", "xdp", assemble(self.filter))
        return Object("filter", (spec,), ())

    def compile_ahead(self, workers: int) -> None:
        """What `Capture` will find in the cache."""
        made = self.object
        link.compile_program(made, made.programs[0], workers, units=[layout.UNIT])


class Capture:
    """One capture, for one process.  Raises ConfigError, LoadError, VerifyError."""

    def __init__(self, wanted: Wanted, path: Path, workers: int) -> None:
        ring = wanted.ring_bytes
        if ring < LEAST_RING_BYTES or ring & (ring - 1):
            raise ConfigError(f"ring of {ring} bytes", f"must be a power of two from "
                              f"{LEAST_RING_BYTES >> 20}M on")
        self.wanted = wanted
        self._program = load(wanted.object, workers=workers, units=[layout.UNIT])
        self._code = self._program.code.address(layout.TAP)
        self.file = LaneFile(path, ring, wanted.points)
        self._blocks = [self._block(worker) for worker in range(workers)]

    def _block(self, worker: int) -> Block:
        block = Block(layout.TAP_BYTES)
        block.set(layout.T_POINTS, sum(1 << point for point in self.wanted.points))
        block.set(layout.T_SNAP, self.wanted.snap_bytes)
        block.set(layout.T_SAMPLE, self.wanted.sample)
        block.set(layout.T_MEMORY, self._program.worker_memory(worker))
        block.write(layout.T_WORDS, pcapng_verdict.words(layout.WORDS))
        return block

    def extend(self, flows: Iterable[FlowName]) -> None:
        """Lanes for those of them that are wanted."""
        self.file.extend([flow for flow in flows
                          if not self.wanted.ports or flow.port in self.wanted.ports])

    def aim(self, worker: int, flows: Sequence[FlowName | None]) -> tuple[int, int]:
        """Code and memory for a worker with these flows, None for those of the stack.

        Only between two batches of the worker."""
        block = self._blocks[worker]
        for column in range(FLOWS_MAX):
            flow = flows[column] if column < len(flows) else None
            block.set(layout.T_LANES + 8 * column, self.file.lane(flow) if flow else 0)
        return self._code, block.address

    def close(self) -> None:
        """No worker may know of it any more."""
        self.file.close()
        self._program.close()
        for block in self._blocks:
            block.close()
