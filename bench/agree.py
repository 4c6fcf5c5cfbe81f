"""Do the engines agree on a packet: verdict, bytes, metadata, and the maps afterwards?

What differs is the result, and there is no figure.  Maps are left out where a program puts time,
chance or the CPU's number into them, or where the kernel itself does not say what an LRU evicts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, Protocol

from bench.cases import Case
from xdp_runtime.isa import Call
from xdp_runtime.kernel import KernelProgram
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.map import Map
from xdp_runtime.object import MapType, Object
from xdp_runtime.program import Program

LOOPBACK = 1  # what the kernel's test run says a packet came in by
# helpers whose answer is not the packet's alone: clocks, chance, the CPU
_CHANCE = {5: "bpf_ktime_get_ns", 7: "bpf_get_prandom_u32", 8: "bpf_get_smp_processor_id",
           42: "bpf_get_numa_node_id", 118: "bpf_jiffies64", 125: "bpf_ktime_get_boot_ns",
           160: "bpf_ktime_get_coarse_ns", 208: "bpf_ktime_get_tai_ns"}
_EVICTING = (MapType.LRU_HASH, MapType.LRU_PERCPU_HASH)
# what only programs read, or what holds no values
UNCOMPARED = (MapType.PROG_ARRAY, MapType.RINGBUF, MapType.PERF_EVENT_ARRAY, MapType.XSKMAP,
              MapType.QUEUE, MapType.STACK, MapType.BLOOM_FILTER, MapType.ARRAY_OF_MAPS,
              MapType.HASH_OF_MAPS)
_SPOT_KEYS = 2000
Contents = dict[bytes, tuple[bytes, ...]]


class Mismatch(Exception):
    """The engines do not agree, or a timed run did not do what a single one does."""


class Unfit(Exception):
    """A program or packet that cannot be measured this way; no defect of anybody."""


class Outcome(NamedTuple):
    """What one packet came to in one engine."""

    retval: int
    data_out: bytes
    meta: bytes


class Ran(Protocol):
    @property
    def retval(self) -> int: ...
    @property
    def data_out(self) -> bytes: ...
    @property
    def meta(self) -> bytes: ...


def outcome(ran: Ran) -> Outcome:
    return Outcome(ran.retval, ran.data_out, ran.meta)


def difference(names: tuple[str, str], wanted: Outcome, got: Outcome) -> str:
    """The first in words; empty if there is none."""
    one, other = names
    if wanted.retval != got.retval:
        return f"verdict: {one} {wanted.retval}, {other} {got.retval}"
    for what, a, b in (("packet", wanted.data_out, got.data_out),
                       ("metadata", wanted.meta, got.meta)):
        if len(a) != len(b):
            return f"{what}: {one} {len(a)} bytes, {other} {len(b)}"
        for at, (x, y) in enumerate(zip(a, b, strict=True)):
            if x != y:
                return f"{what}: byte {at}: {one} {x:#04x}, {other} {y:#04x}"
    return ""


def compare(case: Case, kernel: KernelProgram, ours: Program) -> None:
    """One run of both.  Raises Mismatch naming the first difference."""
    theirs = outcome(kernel.run(case.packet))
    result = outcome(ours.run(case.packet, ingress_ifindex=LOOPBACK))
    if case.verdict is not None and theirs.retval != case.verdict:
        raise Mismatch(f"the kernel's verdict is {theirs.retval}, expected {case.verdict.name}")
    found = difference(("kernel", "ours"), theirs, result)
    if found:
        raise Mismatch(found)
    compare_maps(kernel, ours, case.ignored)


def spot_check(kernel: Mapping[str, KernelMap], ours: Mapping[str, Map], ignored: Sequence[str]
               ) -> int:
    """Some thousand entries of each map; how many they were.  Raises Mismatch."""
    compared = 0
    for name, theirs in kernel.items():
        if name in ignored or theirs.spec.type in UNCOMPARED or theirs.is_per_cpu:
            continue
        for key in islice(ours[name].keys(), _SPOT_KEYS):
            if ours[name].lookup(key) != theirs.lookup(key):
                raise Mismatch(f"map {name}: differs at key {key.hex()}")
            compared += 1
    return compared


def compare_maps(kernel: KernelProgram, ours: Program, ignored: Sequence[str] = ()) -> None:
    """Raises Mismatch naming the first key that differs."""
    for name, kernel_map in kernel.maps.items():
        if name in ignored or kernel_map.spec.type in UNCOMPARED:
            continue
        size = kernel_map.spec.value_size
        wanted = contents(kernel_map.items(), size)
        found = contents(map_items(ours.raw_maps[name]), size)
        if wanted != found:
            keys = sorted(k.hex() for k in wanted.keys() | found.keys()
                          if wanted.get(k) != found.get(k))
            raise Mismatch(f"map {name}: differs at key {keys[0]}")


def map_items(m: Map) -> Iterable[tuple[bytes, bytes]]:
    return ((key, b"".join(value) if isinstance(value, list) else value)
            for key, value in m.items())


def contents(items: Iterable[tuple[bytes, Any]], value_size: int) -> Contents:
    """Values by key; of a per-CPU map those that are not zero, since only one CPU ran."""
    found: Contents = {}
    step = max(value_size, 1)
    for key, raw in items:
        values = [raw[i : i + step] for i in range(0, len(raw), step)]
        if len(values) > 1 or not any(raw):
            values = [value for value in values if any(value)]
        found[key] = tuple(values)
    return found


def chance(obj: Object) -> list[str]:
    """Why maps after two runs need not be equal; empty if they have to be."""
    called = {insn.helper for program in obj.programs for insn in program.insns
              if isinstance(insn, Call)}
    why = [name for helper, name in _CHANCE.items() if helper in called]
    return why + [f"map {m.name} evicts" for m in obj.maps if m.type in _EVICTING]


def fill(entries: Mapping[str, Mapping[bytes, bytes]], kernel: KernelProgram | None,
         ours: Program | None) -> None:
    """The same entries on both sides; a per-CPU map gets the value for each CPU or worker."""
    for name, content in entries.items():
        for key, value in content.items():
            if kernel is not None:
                kernel.maps[name].update(key, value)
            if ours is not None:
                mine = ours.raw_maps[name]
                mine.update(key, [value] * mine.workers if mine.family.per_cpu else value)
