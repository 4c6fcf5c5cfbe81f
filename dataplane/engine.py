"""Engine: a program and its ports become running workers.

    engine = Engine(obj, [port], stack={0: tap_port})
    engine.start()
    ...
    engine.stop()

Worker w owns queue w, w + W, w + 2W, ... of every port, so that a redirect between two ports stays
with one worker: queues are never shared and nothing on the packet path is locked.  W is at most
the smallest queue count of the ports, and no more than there are CPUs (at least 8).  The compiled
loop (loop.py) runs in a thread with the GIL released; Python starts it, reads counters, and stops
it.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dataplane import loop
from dataplane.port import BATCH_MAX, SLOT_SIZE_BYTES, Port, PortKind, PortQueue
from dataplane.stats import FlowName, Stats
from xdp_runtime.errors import ConfigError, XdpuError
from xdp_runtime.maps import budget
from xdp_runtime.object import Object
from xdp_runtime.policy import ExtensionClass
from xdp_runtime.program import Program, load
from xdp_runtime.state import max_workers

_POLLIN = 1
_POLLFD = struct.Struct("<ihh")


@dataclass(frozen=True, slots=True)
class Flow:
    """A receive queue and its role, before it is written into a control block."""

    port: Port
    queue: PortQueue
    role: int
    kind: int
    partner: int  # index of the partner flow within the worker, -1: none


class Worker:
    """One thread running the compiled loop over its flows until told to stop."""

    def __init__(self, number: int, flows: Sequence[Flow], cpu: int | None) -> None:
        self.number, self.flows, self.cpu = number, list(flows), cpu
        self.error: BaseException | None = None
        self.finished = False
        batch_bytes = SLOT_SIZE_BYTES * BATCH_MAX
        self._memory = mmap.mmap(-1, loop.CONTROL_SIZE_BYTES + 4096 + batch_bytes)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._batch = self._base + loop.CONTROL_SIZE_BYTES + 4096
        self._pollfds = self._base + loop.CONTROL_SIZE_BYTES
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None

    def prepare(self, program: Program, stats: Stats, first_flow: int, *, batch_size: int,
                busy_poll: bool, exit_when_idle: bool) -> None:
        fds = [self._event, *(f.queue.poll_fd for f in self.flows if f.queue.poll_fd >= 0)]
        numbers = {
            loop.C_WORKER_ID: self.number, loop.C_BATCH_SIZE: batch_size,
            loop.C_BUSY_POLL: int(busy_poll), loop.C_FLOWS: len(self.flows),
            loop.C_EXIT_WHEN_IDLE: int(exit_when_idle), loop.C_POLLFD_COUNT: len(fds),
        }
        pointers = {loop.C_PROGRAM_MEMORY: program.worker_memory(self.number),
                    loop.C_BATCH: self._batch, loop.C_POLLFDS: self._pollfds}
        for index, fd in enumerate(fds):
            start = loop.CONTROL_SIZE_BYTES + index * _POLLFD.size
            self._memory[start : start + _POLLFD.size] = _POLLFD.pack(fd, _POLLIN, 0)
        for index, flow in enumerate(self.flows):
            base = loop.C_FLOW_TABLE + index * loop.FLOW_SIZE_BYTES
            numbers |= {
                base + loop.F_KIND: flow.kind, base + loop.F_ROLE: flow.role,
                base + loop.F_IFINDEX: flow.port.ifindex,
                base + loop.F_RX_QUEUE: flow.queue.index,
                base + loop.F_PARTNER: flow.partner + 1,
                base + loop.F_TIMESTAMPS: int(flow.port.kind.timestamps),
            }
            pointers |= {base + loop.F_QUEUE: flow.queue.address,
                         base + loop.F_STATS: stats.address(first_flow + index)}
        for offset, value in numbers.items():
            struct.pack_into("<I", self._memory, offset, value)
        for offset, value in pointers.items():
            struct.pack_into("<Q", self._memory, offset, value)

    def start(self, program: Program) -> None:
        run = program.code.function(loop.WORKER, ctypes.c_int64, ctypes.c_void_p)

        def body() -> None:
            try:
                if self.cpu is not None:
                    os.sched_setaffinity(0, {self.cpu})
                run(self._base)
                self.finished = True
            except BaseException as error:  # handed to whoever joins
                self.error = error

        self._thread = threading.Thread(target=body, name=f"xdpu-worker-{self.number}",
                                        daemon=True)
        self._thread.start()

    @property
    def rounds(self) -> int:
        """Rounds of the loop so far; stands still only in a worker that hangs or sleeps."""
        return int(struct.unpack_from("<Q", self._memory, loop.C_ROUNDS)[0])

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        struct.pack_into("<I", self._memory, loop.C_STOP, 1)
        os.eventfd_write(self._event, 1)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread; True when it has ended.  Raises what went wrong in it."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
        if self.error is not None:
            raise self.error
        return True

    def close(self) -> None:
        if self._event >= 0:
            os.close(self._event)
            self._event = -1


class Engine:
    """The workers of a run.

    `ports` run the program; `stack` gives, by position in `ports`, the port behind which the
    kernel's stack lives.  `cpus`: one CPU a worker, or None to leave the threads unpinned.
    """

    def __init__(self, obj: Object, ports: Sequence[Port], *, program: str | None = None,
                 stack: Mapping[int, Port] | None = None, batch_size: int = 64,
                 busy_poll: bool = False, cpus: Sequence[int] | None = None, opt: int = 3,
                 exit_when_idle: bool = False, directory: Path | None = None,
                 max_map_bytes: int = 0, grants: ExtensionClass | None = None) -> None:
        if not 1 <= batch_size <= BATCH_MAX:
            raise ConfigError(f"batch size {batch_size}", f"must be 1 to {BATCH_MAX}")
        self.ports, self.stack = list(ports), dict(stack or {})
        front = list({id(p.kind): p.kind for p in self.ports}.values())
        back = list({id(p.kind): p.kind for p in self.stack.values()}.values())
        count = min(*(len(p.queues) for p in [*self.ports, *self.stack.values()]), max_workers())
        maps = directory / "maps" if directory else None
        if maps is not None:
            maps.mkdir(exist_ok=True)
        budget.check(obj.name, obj.maps, count, maps, max_map_bytes)
        self.program = load(obj, program, workers=count, opt=opt, directory=maps,
                            units=[loop.unit(front, back)], grants=grants)
        self.workers: list[Worker] = []
        for number in range(count):
            cpu = cpus[number % len(cpus)] if cpus else None
            flows = self._flows_of(number, count, front, back)
            if len(flows) > loop.FLOWS_MAX:
                raise ConfigError(f"worker {number}", f"{len(flows)} queues, at most "
                                  f"{loop.FLOWS_MAX}", "use fewer interfaces or queues")
            self.workers.append(Worker(number, flows, cpu))
        names = [FlowName(w.number, f.port.name, f.queue.index)
                 for w in self.workers for f in w.flows]
        self.stats = Stats.create(names, directory)
        first = 0
        for worker in self.workers:
            worker.prepare(self.program, self.stats, first, batch_size=batch_size,
                           busy_poll=busy_poll, exit_when_idle=exit_when_idle)
            first += len(worker.flows)

    def _flows_of(self, number: int, count: int, front: list[PortKind],
                  back: list[PortKind]) -> list[Flow]:
        flows: list[Flow] = []
        for position, port in enumerate(self.ports):
            partner = self.stack.get(position)
            own = list(port.queues)[number::count]
            stack_flow = len(flows) + len(own) if partner is not None else -1
            for queue in own:
                flows.append(Flow(port, queue, loop.ROLE_PROGRAM, front.index(port.kind),
                                  stack_flow))
            if partner is not None:
                flows.append(Flow(partner, partner.queues[number], loop.ROLE_STACK,
                                  back.index(partner.kind), stack_flow - len(own)))
        return flows

    def start(self) -> None:
        for worker in self.workers:
            worker.start(self.program)

    @property
    def running(self) -> bool:
        return any(worker.running for worker in self.workers)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop at the next batch boundary and wait for all.

        Raises what went wrong in a worker, XdpuError when one hangs; the others have ended then."""
        for worker in self.workers:
            worker.stop()
        if not self.wait(timeout_s):
            hung = next(worker for worker in self.workers if worker.running)
            raise XdpuError(f"worker {hung.number}", f"did not stop within {timeout_s:g} s")

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until every worker has ended; False on time-out.  Raises what went wrong in one."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        errors: list[BaseException] = []
        ended = True
        for worker in self.workers:
            left = 1e9 if deadline is None else max(deadline - time.monotonic(), 0.0)
            try:
                ended &= worker.join(left)
            except BaseException as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return ended

    def close(self) -> None:
        """Release workers and maps; the ports belong to the caller.  Call after stop."""
        for worker in self.workers:
            worker.close()
        self.program.close()
