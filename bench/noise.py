"""What else the machine did while something was measured, so that a figure can be doubted aloud.

A busy neighbour takes cache, memory bandwidth and, on a hyperthread or in a virtual machine, the
core itself.  `Watch` compares /proc before and after: how busy the other CPUs were and by whom,
time that the hypervisor took, and how often this thread lost its CPU to somebody.
"""

from __future__ import annotations

import os
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BUSY_CPUS = 0.25  # of one CPU, by all others together: below that it is the machine's own work
_STEAL = 0.02
_SWITCHES_A_S = 50
_HZ = os.sysconf("SC_CLK_TCK")
_LEAST_S = 0.2  # a jiffy is 10 ms: shorter spans say nothing


@dataclass(frozen=True, slots=True)
class _Look:
    at_s: float
    busy: dict[int, int]  # jiffies by CPU
    steal: dict[int, int]
    processes: dict[int, tuple[str, int, int]]  # pid: (name, jiffies, the CPU it ran on last)
    switches: int


@dataclass(slots=True)
class Noise:
    """Over `seconds`: CPUs' worth of work by others, who did it, and what was taken from us."""

    seconds: float = 0.0
    busy_cpus: float = 0.0
    who: list[tuple[str, int, float]] = field(default_factory=list)  # name, pid, share of a CPU
    steal: float = 0.0
    switches_a_s: float = 0.0

    def complaints(self) -> list[str]:
        if self.seconds < _LEAST_S:
            return []
        said = []
        if self.busy_cpus > BUSY_CPUS:
            names = ", ".join(f"{name} [{pid}] {share:.0%}" for name, pid, share in self.who[:3])
            said.append(f"a noisy neighbour: other CPUs did {self.busy_cpus:.0%} of a CPU's work "
                        f"meanwhile ({names or 'by processes that cannot be seen from here'})")
        if self.steal > _STEAL:
            said.append(f"the hypervisor took {self.steal:.0%} of the CPU")
        if self.switches_a_s > _SWITCHES_A_S:
            said.append(f"the CPU was taken away {self.switches_a_s:.0f} times a second: something "
                        "else runs on it")
        return said

    def record(self) -> dict[str, Any]:
        return {"seconds": round(self.seconds, 2), "busy_cpus": round(self.busy_cpus, 3),
                "who": [[name, pid, round(share, 3)] for name, pid, share in self.who],
                "steal": round(self.steal, 4), "switches_a_s": round(self.switches_a_s, 1),
                "complaints": self.complaints()}


class Watch:
    """From its making until `noise()`, of the CPUs but those that are measured on."""

    def __init__(self, own_cpus: set[int]) -> None:
        self._own, self._before = own_cpus, _look()

    def noise(self) -> Noise:
        before, after = self._before, _look()
        seconds = max(after.at_s - before.at_s, 1e-9)
        others = [cpu for cpu in after.busy if cpu not in self._own]
        busy = sum(after.busy[cpu] - before.busy.get(cpu, after.busy[cpu]) for cpu in others)
        steal = sum(after.steal[cpu] - before.steal.get(cpu, 0) for cpu in self._own
                    if cpu in after.steal)
        who = []
        for pid, (name, jiffies, cpu) in after.processes.items():
            share = (jiffies - before.processes.get(pid, ("", jiffies, 0))[1]) / _HZ / seconds
            if pid != os.getpid() and cpu not in self._own and share > 0.1:
                who.append((name, pid, min(share, float(len(after.busy)))))
        who.sort(key=lambda one: -one[2])
        return Noise(seconds, busy / _HZ / seconds, who, steal / _HZ / seconds,
                     (after.switches - before.switches) / seconds)


def _look() -> _Look:
    busy, steal = {}, {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, _, _, irq, soft, stolen = (int(f) for f in fields[:8])
            busy[int(name[3:])] = user + nice + system + irq + soft
            steal[int(name[3:])] = stolen
    processes = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue  # it ended
        head, _, tail = text.rpartition(")")
        fields = tail.split()
        processes[int(stat.parent.name)] = (head.partition("(")[2],
                                            int(fields[11]) + int(fields[12]), int(fields[36]))
    return _Look(time.monotonic(), busy, steal, processes,
                 resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw)
