"""Where a worker is, what it does there, and whether the machine lets it, for who waits for it.

Of a thread the kernel says how long it ran and how long it was ready and got no CPU
(/proc/PID/task/TID/schedstat, of a kernel with CONFIG_SCHED_INFO): a worker that waits for a CPU
has nothing to do with its program.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dataplane.port import Port, PortQueue


class Place(Protocol):
    """A flow, as far as it is of interest."""

    @property
    def port(self) -> Port: ...
    @property
    def queue(self) -> PortQueue: ...


class Located(Protocol):
    """A worker, as far as it is of interest."""

    @property
    def thread_id(self) -> int: ...
    def where(self) -> tuple[str, Place | None]: ...


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Seconds that a thread ran, and that it could have run and had no CPU."""

    ran_s: float = 0.0
    waited_s: float = 0.0

    @classmethod
    def of(cls, thread_id: int) -> CpuTime | None:
        """Of a thread of this process; None where the kernel does not say."""
        try:
            ran, waited, _ = _task(thread_id).joinpath("schedstat").read_text().split()
        except (OSError, ValueError):
            return None
        return cls(int(ran) / 1e9, int(waited) / 1e9)


def describe(worker: Located, program: str, since: CpuTime | None = None) -> str:
    """in the program slow, packets of eth0:1, running on a CPU

    `program` is what runs; `since` its CPU time when the waiting for it began."""
    doing, flow = worker.where()
    if doing == "in the program":
        doing += f" {program}"
    queue = f", packets of {flow.port.name}:{flow.queue.index}" if flow is not None else ""
    return f"{doing}{queue}, {_thread_state(worker.thread_id, since)}"


def _thread_state(thread_id: int, since: CpuTime | None) -> str:
    """What the kernel says of it, proc_pid_syscall(5)."""
    try:
        call = (_task(thread_id) / "syscall").read_text().split()[0]
        state = (_task(thread_id) / "stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "its thread is gone"
    if call != "running":
        return f"in system call {call}, state {state}"
    if state != "R":
        return f"state {state}"
    now = CpuTime.of(thread_id)
    if since is not None and now is not None:
        ran_s, waited_s = now.ran_s - since.ran_s, now.waited_s - since.waited_s
        if waited_s > ran_s:
            return (f"ready to run, but other threads have its CPU (it ran {ran_s:.1f} s of "
                    f"{ran_s + waited_s:.1f} s)")
    return "running on a CPU"


def _task(thread_id: int) -> Path:
    return Path(f"/proc/self/task/{thread_id}")
