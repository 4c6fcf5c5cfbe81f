"""Do the workers get on?  One that does not is told of, with where it is.

A worker counts its rounds, and notes what it is about to do (dataplane/loop.py).  Asleep it wakes
ten times a second, so rounds that stand still for seconds mean a program that does not return, a
driver that hangs, or a thread the kernel does not run.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from dataplane.engine import Engine
from dataplane.whereabouts import CpuTime, describe

PATIENCE_S = 3.0


class Progress:
    """`check` is called now and then; `say` gets a sentence when a worker stops or goes on."""

    def __init__(self, engine: Engine, say: Callable[[str], None],
                 patience_s: float = PATIENCE_S) -> None:
        self._engine, self._say, self._patience_s = engine, say, patience_s
        self._seen: dict[int, tuple[int, float, CpuTime | None]] = {}
        self._stuck: set[int] = set()

    def check(self) -> None:
        now_s = time.monotonic()
        for worker in self._engine.workers:
            rounds, since_s, cpu = self._seen.get(worker.number, (-1, now_s, None))
            if worker.rounds != rounds or not worker.running:
                self._seen[worker.number] = worker.rounds, now_s, CpuTime.of(worker.thread_id)
                if worker.number in self._stuck:
                    self._stuck.discard(worker.number)
                    self._say(f"worker {worker.number} goes on after {now_s - since_s:.0f} s")
            elif now_s - since_s >= self._patience_s and worker.number not in self._stuck:
                self._stuck.add(worker.number)
                self._say(f"worker {worker.number} has made no progress for "
                          f"{now_s - since_s:.0f} s: "
                          f"{describe(worker, self._engine.program.spec.name, cpu)}")
