"""Workers that have not made a change yet, and what has to wait for them.

A change to a running engine is made by each worker at its next batch boundary, before it takes
another packet.  One that is long in a batch, or gets no CPU, makes it later: a change is never
half undone, it is completed.  Until then nothing is given back that the late worker may still use:
that is put off to the moment when the last one has come.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataplane.whereabouts import CpuTime, describe

if TYPE_CHECKING:
    from dataplane.engine import Worker

_SLICE_S = 0.1


@dataclass(frozen=True, slots=True)
class Awaited:
    """A worker asked for a change: by which program it was held up, and since when."""

    worker: Worker
    done: threading.Event
    program: str
    since_s: float
    cpu: CpuTime | None

    @property
    def missing(self) -> bool:
        return not self.done.is_set()

    def describe(self) -> str:
        """worker 1 (for 2 s in the program slow, packets of eth0:1, running on a CPU)"""
        return (f"worker {self.worker.number} (for {time.monotonic() - self.since_s:.0f} s "
                f"{describe(self.worker, self.program, self.cpu)})")


class Late:
    """Those of one engine.  Used by one thread."""

    def __init__(self, patience_s: float = 2.0) -> None:
        self.patience_s = patience_s
        self._awaited: list[Awaited] = []
        self._come: set[int] = set()
        self._then: list[tuple[Sequence[Awaited], Callable[[], object]]] = []

    def ask(self, workers: Sequence[Worker], action: Callable[[Worker], None],
            program: str) -> None:
        """Have each of them do this between two batches; returns when all have, or when the time
        is over.  Slices of it: a process that was stopped has not waited meanwhile."""
        now_s = time.monotonic()
        awaited = [Awaited(one, one.between(action), program, now_s, CpuTime.of(one.thread_id))
                   for one in workers]
        left = max(round(self.patience_s / _SLICE_S), 1)
        for one in awaited:
            while not one.done.wait(_SLICE_S if left > 0 else 0) and left > 0:
                left -= 1
        self._awaited += [one for one in awaited if one.missing]

    def then(self, action: Callable[[], object]) -> None:
        """Do this once those that are late now have come; at once where none is."""
        self._then.append((tuple(self._awaited), action))
        self._advance()

    def settle(self) -> list[int]:
        """Do what waited for workers that have come -> the numbers of those that are not late any
        more."""
        self._advance()
        come, self._come = self._come - {one.worker.number for one in self._awaited}, set()
        return sorted(come)

    def _advance(self) -> None:
        self._come |= {one.worker.number for one in self._awaited if not one.missing}
        self._awaited = [one for one in self._awaited if one.missing]
        while self._then and not any(one.missing for one in self._then[0][0]):
            self._then.pop(0)[1]()

    def describe(self) -> list[str]:
        """Each late worker, with where it is; the oldest change that waits for it counts."""
        told: dict[int, str] = {}
        for one in self._awaited:
            if one.missing and one.worker.number not in told:
                told[one.worker.number] = one.describe()
        return list(told.values())
