"""Which CPUs workers are pinned to: near the interfaces, and one thread of each core first.

What the machine looks like is read of sysfs: which memory node a CPU and an interface's device are
on, and which CPUs are threads of one core.  A device that is nowhere, as a veth, is near to all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from xdp_runtime.errors import ConfigError

_SYS = Path("/sys")
_PCI = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


@dataclass(frozen=True, slots=True)
class Topology:
    """`nodes`: CPU -> its memory node; `cores`: CPU -> the first CPU of its core."""

    nodes: Mapping[int, int]
    cores: Mapping[int, int]
    root: Path = _SYS

    @classmethod
    def read(cls, root: Path = _SYS) -> Topology:
        nodes, cores = {}, {}
        for folder in (root / "devices/system/node").glob("node[0-9]*"):
            for cpu in numbers(_text(folder / "cpulist")):
                nodes[cpu] = int(folder.name[4:])
        for folder in (root / "devices/system/cpu").glob("cpu[0-9]*"):
            cpu = int(folder.name[3:])
            siblings = numbers(_text(folder / "topology/thread_siblings_list"))
            cores[cpu] = min(siblings, default=cpu)
        return cls(nodes, cores, root)

    def node_of(self, device: str) -> int | None:
        """Of an interface, or a PCI device by its address; None where that is nowhere."""
        where = f"bus/pci/devices/{device}" if _PCI.fullmatch(device) else \
            f"class/net/{device}/device"
        text = _text(self.root / where / "numa_node")
        return int(text) if text.isdecimal() else None  # -1: the firmware does not say

    def core(self, cpu: int) -> int:
        return self.cores.get(cpu, cpu)


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text().strip()
    return ""


def numbers(text: str) -> list[int]:
    """0-3,8 as the kernel writes it."""
    found: list[int] = []
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def choose(wish: str | tuple[int, ...], workers: int, used: Iterable[int] = (),
           devices: Iterable[str] = (), topology: Topology | None = None) -> tuple[int, ...] | None:
    """A CPU for each worker as far as there are enough; None leaves the threads to the kernel.

    Taken last, and the first of these before all others: CPUs of other runs (`used`), those of
    another node than the devices, those whose core has a worker already, and the first one, where
    the machine's own work tends to be.  Raises ConfigError."""
    if wish == "none":
        return None
    allowed = sorted(os.sched_getaffinity(0))
    if isinstance(wish, tuple):
        wrong = [cpu for cpu in wish if cpu not in allowed]
        if wrong:
            raise ConfigError(f"--cpu {wrong[0]}", "this process may not run there",
                              f"it may on {','.join(map(str, allowed))}")
        return wish[:workers]
    return pick(allowed, workers, set(used), devices, topology or Topology.read())


def pick(allowed: Sequence[int], workers: int, used: Collection[int], devices: Iterable[str],
         topology: Topology) -> tuple[int, ...]:
    """`choose` where there is a choice."""
    near = {topology.node_of(device) for device in devices} - {None}
    taken = {topology.core(cpu) for cpu in used}
    chosen: list[int] = []
    while len(chosen) < min(workers, len(allowed)):
        best = min((cpu for cpu in allowed if cpu not in chosen), key=lambda cpu: (
            cpu in used, bool(near) and topology.nodes.get(cpu) not in near,
            topology.core(cpu) in taken, cpu == allowed[0], cpu))
        chosen.append(best)
        taken.add(topology.core(best))
    return tuple(chosen)


def say(cpus: tuple[int, ...] | None) -> str:
    if cpus is None:
        return "not pinned"
    return f"on CPU{'s' * (len(cpus) > 1)} {','.join(map(str, cpus))}"


def remarks(cpus: tuple[int, ...] | None, devices: Iterable[str],
            topology: Topology) -> Iterator[str]:
    """What will be slower than it could be."""
    for device in devices:
        node = topology.node_of(device)
        far = [cpu for cpu in cpus or () if node is not None
               and topology.nodes.get(cpu, node) != node]
        if far:
            yield (f"{device} is on memory node {node}, and CPU{'s' * (len(far) > 1)} "
                   f"{','.join(map(str, far))} {'are' if len(far) > 1 else 'is'} not: packets "
                   "cross between nodes (--cpu)")
    cores: dict[int, list[int]] = {}
    for cpu in dict.fromkeys(cpus or ()):
        cores.setdefault(topology.core(cpu), []).append(cpu)
    for shared in cores.values():
        if len(shared) > 1:
            yield f"CPUs {','.join(map(str, shared))} are threads of one core, and share it"
