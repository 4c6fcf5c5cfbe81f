"""What a map operation costs inside a program, here and in the kernel, and how writers scale.

    python -m bench.maps [--rounds 5] [--entries 65536] [--json] [TYPE...]
    python -m bench.maps --scaling [--entries 1048576] [TYPE...]

The same XDP program runs on both: 64 operations a packet, each on a key that the program draws at
random from the map's, and what its loop takes without the operation is subtracted.  The kernel runs
it by BPF_PROG_TEST_RUN with `repeat`, the compiled program by `Program.repeat`; rounds take turns,
and the smallest of each is shown.  With `--scaling` as many threads as the column says, each pinned
to a core, have a share of the keys each; figures are million operations a second of all of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import mmap
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bench.map_programs import (
    FIXED,
    INNER,
    KEYED,
    LOOPS,
    OF_MAPS,
    OPERATIONS,
    RECORD_BYTES,
    TYPES,
    all_keys,
    keys_of,
    lane_of,
    many,
    operations_of,
    packet_of,
    program_of,
    spec_of,
)
from bench.rings import drain_kernel, drain_ours
from xdp_runtime.kernel import KernelProgram, load_into_kernel
from xdp_runtime.kernel_event import KernelEvent
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.map import Map
from xdp_runtime.maps.ringbuf import DATA, PRODUCER
from xdp_runtime.object import MapSpec, MapType
from xdp_runtime.program import Program, load

_RUNS = 400  # packets a measurement: some milliseconds
# of these as many as fit the ring
_FEW: Mapping[int, int] = {MapType.USER_RINGBUF: 1, MapType.PERF_EVENT_ARRAY: 12}
_ARENAS = itertools.count()
_CALL_NS = 50e6  # of a thread's calls when it scales
# the loopback interface, packets that an entry's queue holds; an XSKMAP is empty
_ENTRIES: Mapping[int, int] = {MapType.DEVMAP: 1, MapType.DEVMAP_HASH: 1, MapType.CPUMAP: 192}


Samples = Mapping[str, list[float]]


@dataclass
class Side:
    """One program on one side; `run(packet, runs)` takes ns a run, `prepare` comes before it."""

    run: Callable[[int, int], float]
    close: Callable[[], None]
    prepare: Callable[[], None] = lambda: None


def _placed(spec: MapSpec) -> MapSpec:
    """An arena has an address of its own in this process."""
    if spec.type != MapType.ARENA:
        return spec
    return replace(spec, map_extra=(0x7E00 + next(_ARENAS)) << 32)


def kernel_side(spec: MapSpec, operation: str, lanes: int) -> Side:
    stack, spec = ExitStack(), _placed(spec)
    one: KernelProgram = stack.enter_context(load_into_kernel(program_of(spec, operation)))
    share = keys_of(spec) // lanes
    prepare = _fill_kernel(one, spec, stack)
    for lane in range(lanes):
        one.maps["lanes"].update(struct.pack("=I", lane), lane_of(lane, lane * share, share))

    def run(lane: int, runs: int) -> float:
        found = one.run(packet_of(lane), repeat=runs)
        assert found.retval == 2
        return float(found.duration_ns)

    return Side(run, stack.close, prepare)


def _fill_kernel(one: KernelProgram, spec: MapSpec, stack: ExitStack) -> Callable[[], None]:
    target = one.maps["m"]
    match spec.type:
        case MapType.RINGBUF:
            return drain_kernel(one, stack)
        case MapType.USER_RINGBUF:
            ring = mmap.mmap(target.fd, mmap.PAGESIZE + spec.max_entries, offset=mmap.PAGESIZE)
            return _producer(memoryview(ring), 0, mmap.PAGESIZE, spec.max_entries)
        case MapType.PERF_EVENT_ARRAY:
            events = [stack.enter_context(closing(KernelEvent(cpu)))
                      for cpu in sorted(os.sched_getaffinity(0))]
            for event in events:
                target.update(struct.pack("=I", event.cpu), struct.pack("=I", event.fd))

            def read() -> None:
                for event in events:
                    event.records()

            return read
        case MapType.ARENA:
            with target.pages() as pages:
                pages[:] = bytes(len(pages))
        case _ if spec.type in OF_MAPS:
            inner = stack.enter_context(KernelMap(INNER))
            for key in all_keys(spec, spec.max_entries):
                target.update(key, struct.pack("=I", inner.fd))
        case _ if spec.type in _ENTRIES:
            for key in all_keys(spec, spec.max_entries):
                target.update(key, struct.pack("=I", _ENTRIES[spec.type]))
        case _ if spec.type in KEYED and spec.type not in FIXED:
            for key in all_keys(spec, spec.max_entries):
                target.update(key, bytes(spec.value_size))
    return lambda: None


def our_side(spec: MapSpec, operation: str, lanes: int) -> Side:
    stack, spec = ExitStack(), _placed(spec)
    one: Program = stack.enter_context(load(program_of(spec, operation), workers=lanes))
    share = keys_of(spec) // lanes
    prepare = _fill(one, spec, lanes, stack)
    for lane in range(lanes):
        one.raw_maps["lanes"].update(struct.pack("=I", lane), lane_of(lane, lane * share, share))

    def run(lane: int, runs: int) -> float:
        found = one.repeat(packet_of(lane), runs, worker=lane)
        assert found.verdict == 2
        return float(found.duration_ns)

    return Side(run, stack.close, prepare)


def _fill(one: Program, spec: MapSpec, lanes: int, stack: ExitStack) -> Callable[[], None]:
    target = one.raw_maps["m"]
    match spec.type:
        case MapType.RINGBUF:
            return drain_ours(one)
        case MapType.USER_RINGBUF:
            return _producer(target.memory("ring"), PRODUCER, DATA, spec.max_entries)
        case MapType.PERF_EVENT_ARRAY:

            def consume() -> None:
                target.consume()

            return consume
        case MapType.ARENA:
            with target.pages() as pages:
                pages[:] = bytes(len(pages))
        case _ if spec.type in OF_MAPS:
            inner = stack.enter_context(Map.create(INNER, lanes))
            for key in all_keys(spec, spec.max_entries):
                target.set_inner(key, inner)
        case _ if spec.type in _ENTRIES:
            for key in all_keys(spec, spec.max_entries):
                target.update(key, struct.pack("=I", _ENTRIES[spec.type]))
        case _ if spec.type in KEYED and spec.type not in FIXED:
            keys = np.frombuffer(b"".join(all_keys(spec, spec.max_entries)), np.uint8)
            copies = lanes if target.family.per_cpu else 1
            values = np.zeros((spec.max_entries, copies, spec.value_size), np.uint8)
            target.from_numpy(keys.reshape(spec.max_entries, spec.key_size),
                              values if target.family.per_cpu else values[:, 0])
    return lambda: None


def _producer(memory: memoryview, position: int, data: int, size: int) -> Callable[[], None]:
    """Records all over a ring, which are there again and again."""
    memory[data:data + size] = (RECORD_BYTES - 8).to_bytes(8, "little").ljust(
        RECORD_BYTES, b"\0") * (size // RECORD_BYTES)
    produced = 0

    def produce() -> None:
        nonlocal produced
        produced += size
        memory[position:position + 8] = produced.to_bytes(8, "little")

    return produce


def measure(spec: MapSpec, rounds: int) -> dict[str, Samples]:
    """ns of each operation in each round: {"ours": [...], "kernel": [...]}."""
    names = operations_of(MapType(spec.type))
    sides = {(name, where): make(spec, name, 1)
             for name in ("nothing", *names)
             for where, make in (("ours", our_side), ("kernel", kernel_side))}
    taken: dict[tuple[str, str], list[float]] = {place: [] for place in sides}
    try:
        for _ in range(rounds + 1):
            for place, side in sides.items():
                side.prepare()
                taken[place].append(side.run(0, _FEW.get(spec.type, _RUNS)))
    finally:
        for side in sides.values():
            side.close()
    # the first round warms up; the loop around the operation costs what it takes at its best
    return {name: {where: [(one - min(taken["nothing", where][1:])) / many(name)
                           for one in taken[name, where][1:]] for where in ("ours", "kernel")}
            for name in names}


def scaling(spec: MapSpec, operation: str, counts: Iterable[int], seconds: float,
            make: Callable[[MapSpec, str, int], Side]) -> dict[int, float]:
    """Million operations a second by number of threads."""
    out = {}
    for count in counts:
        side = make(spec, operation, count)
        try:
            out[count] = _together(side, count, seconds) * LOOPS / 1e6
        finally:
            side.close()
    return out


def _together(side: Side, count: int, seconds: float) -> float:
    """Runs a second of all threads."""
    cpus, ready = sorted(os.sched_getaffinity(0)), threading.Barrier(count)
    done = [(0, 1.0)] * count

    def work(lane: int) -> None:
        os.sched_setaffinity(0, {cpus[lane % len(cpus)]})
        # a call is long, so that threads do not wait for each other in Python
        share = max(_RUNS, int(_CALL_NS / max(side.run(lane, _RUNS), 1.0)))
        ready.wait()
        runs, began = 0, time.perf_counter()
        while (taken := time.perf_counter() - began) < seconds:
            side.run(lane, share)
            runs += share
        done[lane] = runs, taken

    threads = [threading.Thread(target=work, args=(lane,)) for lane in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(runs / taken for runs, taken in done)


def run(rounds: int, entries: int = 1 << 16) -> dict[str, Any]:
    """All types, as a result with a row each: {operation: its samples}, ns."""
    rows = [{"map": kind.name, "operations": measure(spec_of(kind, entries), rounds)}
            for kind in TYPES]
    return {"bench": "maps", "rounds": rounds, "entries": entries, "rows": rows}


def markdown(result: Mapping[str, Any]) -> str:
    lines = ["| map | operation | kernel ns | ours ns |", "|---|---|---:|---:|"]
    lines += [f"| {row['map']} | {what} | {min(taken['kernel']):.1f} | {min(taken['ours']):.1f} |"
              for row in result["rows"] for what, taken in row["operations"].items()]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="xdpu bench maps", description="ns an operation on a "
                                     "map, here and in the kernel")
    parser.add_argument("types", nargs="*")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--entries", type=int, default=1 << 16)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--operation", choices=[name for name in OPERATIONS if name != "nothing"])
    parser.add_argument("--side", choices=("here", "kernel"))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    results: dict[str, Any] = {}
    if args.scaling:
        for name in args.types or ["HASH", "PERCPU_HASH", "PERCPU_ARRAY", "ARRAY"]:
            spec = spec_of(MapType[name], args.entries)
            chosen = [args.operation] if args.operation else operations_of(MapType[name])
            for operation in chosen:
                counts = [n for n in (1, 2, 4) if n <= (os.cpu_count() or 1)]
                results[f"{name} {operation}"] = {
                    where: scaling(spec, operation, counts, args.seconds, make)
                    for where, make in (("here", our_side), ("kernel", kernel_side))
                    if args.side in (None, where)}
                if not args.json:
                    for where, found in results[f"{name} {operation}"].items():
                        print(f"{name:16} {operation:14} {where:7}" + "".join(
                            f"  {n}: {v:7.1f} M/s ({v / found[1]:4.2f}x)"
                            for n, v in found.items()), flush=True)
    else:
        for name in args.types or [kind.name for kind in TYPES]:
            results[name] = measure(spec_of(MapType[name], args.entries), args.rounds)
            if not args.json:
                print(f"{name:16}" + "".join(
                    f"  {what} {min(taken['ours']):6.1f} ns (kernel {min(taken['kernel']):6.1f})"
                    for what, taken in results[name].items()), flush=True)
    if args.json:
        print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
