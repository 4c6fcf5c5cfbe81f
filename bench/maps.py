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
import json
import os
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xdp_runtime import asm
from xdp_runtime.kernel import KernelProgram, load_into_kernel
from xdp_runtime.object import MapFlag, MapSpec, MapType, Object, ProgramSpec
from xdp_runtime.program import Program, load

LOOPS, LANES = 64, 64
_RUNS = 400  # packets a measurement: some milliseconds
_CALL_NS = 50e6  # of a thread's calls when it scales
_LANE_BYTES = 128  # two cache lines: the next one may be fetched, too
_KEYED = {MapType.HASH: 8, MapType.LRU_HASH: 8, MapType.PERCPU_HASH: 8,
          MapType.LRU_PERCPU_HASH: 8, MapType.ARRAY: 4, MapType.PERCPU_ARRAY: 4,
          MapType.LPM_TRIE: 8}
_KEYLESS = (MapType.QUEUE, MapType.STACK, MapType.BLOOM_FILTER)
_FIXED = (MapType.ARRAY, MapType.PERCPU_ARRAY)

_HEAD = """
    r6 = *(u32 *)(r1 + 0)
    r2 = *(u32 *)(r1 + 4)
    r3 = r6
    r3 += 16
    if r3 > r2 goto out
    r1 = *(u32 *)(r6 + 0)
    *(u32 *)(r10 - 4) = r1
    r1 = map[lanes] ll
    r2 = r10
    r2 += -4
    call bpf_map_lookup_elem
    if r0 == 0 goto out
    r7 = r0
    r8 = *(u64 *)(r7 + 0)
    r9 = {loops}
loop:
    r1 = 6364136223846793005 ll
    r8 *= r1
    r8 += 1442695041
    r1 = r8
    r1 >>= 33
    r2 = *(u64 *)(r7 + 16)
    r1 &= r2
    r2 = *(u64 *)(r7 + 8)
    r1 += r2
    {key}
    *(u64 *)(r10 - 24) = r8
"""
_TAIL = """
    r9 += -1
    if r9 != 0 goto loop
    *(u64 *)(r7 + 0) = r8
    r0 = 2
    exit
out:
    r0 = 0
    exit
"""
_PLAIN_KEY = "*(u64 *)(r10 - 16) = r1"
_PREFIX_KEY = "r1 = be32 r1\n    *(u32 *)(r10 - 12) = r1\n    *(u32 *)(r10 - 16) = 32"
_KEY = "r1 = map[m] ll\n    r2 = r10\n    r2 += -16\n"
_VALUE = "r1 = map[m] ll\n    r2 = r10\n    r2 += -24\n"
_LOOKUP = (_KEY + "call bpf_map_lookup_elem\n    if r0 == 0 goto none\n"
           "    r1 = *(u64 *)(r0 + 0)\n    *(u64 *)(r10 - 32) = r1\nnone:\n")
_UPDATE = _KEY + "r3 = r10\n    r3 += -24\n    r4 = 0\n    call bpf_map_update_elem\n"
_DELETE = _KEY + "call bpf_map_delete_elem\n"
_PUSH = _VALUE + "r3 = 0\n    call bpf_map_push_elem\n"
_POP = _VALUE + "call bpf_map_pop_elem\n"
_PEEK = _VALUE + "call bpf_map_peek_elem\n"
OPERATIONS = {"nothing": "", "lookup": _LOOKUP, "update": _UPDATE,
              "delete+insert": _DELETE + _UPDATE, "push": _PUSH, "push+pop": _PUSH + _POP,
              "peek": _PEEK}


def operations_of(kind: MapType) -> tuple[str, ...]:
    if kind == MapType.BLOOM_FILTER:
        return "peek", "push"
    if kind in _KEYLESS:
        return "peek", "push+pop"
    return ("lookup", "update") if kind in _FIXED else ("lookup", "update", "delete+insert")


def spec_of(kind: MapType, entries: int, value_size: int = 8) -> MapSpec:
    flags = MapFlag.NO_PREALLOC if kind == MapType.LPM_TRIE else 0
    return MapSpec("m", kind, _KEYED.get(kind, 0), value_size, entries, flags=flags)


def program_of(spec: MapSpec, operation: str) -> Object:
    key = _PREFIX_KEY if spec.type == MapType.LPM_TRIE else _PLAIN_KEY
    text = _HEAD.format(loops=LOOPS, key=key) + OPERATIONS[operation] + _TAIL
    maps = (spec, MapSpec("lanes", MapType.ARRAY, 4, _LANE_BYTES, LANES))
    return Object("bench", (ProgramSpec("bench", "xdp", "xdp", asm.assemble(
        text, [one.name for one in maps])),), maps, "GPL")


def packet_of(lane: int) -> bytes:
    return struct.pack("=I", lane).ljust(64, b"\0")


def _lane(seed: int, base: int, count: int) -> bytes:
    return struct.pack("=3Q", seed * 7919 + 1, base, count - 1).ljust(_LANE_BYTES, b"\0")


def _keys(spec: MapSpec, count: int) -> list[bytes]:
    if spec.type == MapType.LPM_TRIE:
        return [struct.pack("=I", 32) + n.to_bytes(4, "big") for n in range(count)]
    return [n.to_bytes(spec.key_size, "little") for n in range(count)]


@dataclass
class Side:
    """One program on one side; `run(packet, runs)` takes ns a run."""

    run: Callable[[int, int], float]
    close: Callable[[], None]


def kernel_side(spec: MapSpec, operation: str, lanes: int) -> Side:
    one: KernelProgram = load_into_kernel(program_of(spec, operation))
    target, share = one.maps["m"], spec.max_entries // lanes
    if spec.key_size and spec.type not in _FIXED:
        for key in _keys(spec, spec.max_entries):
            target.update(key, bytes(spec.value_size))
    for lane in range(lanes):
        one.maps["lanes"].update(struct.pack("=I", lane), _lane(lane, lane * share, share))

    def run(lane: int, runs: int) -> float:
        found = one.run(packet_of(lane), repeat=runs)
        assert found.retval == 2
        return float(found.duration_ns)

    return Side(run, one.close)


def our_side(spec: MapSpec, operation: str, lanes: int) -> Side:
    one: Program = load(program_of(spec, operation), workers=lanes)
    target, share = one.maps["m"], spec.max_entries // lanes
    if spec.key_size and spec.type not in _FIXED:
        keys = np.frombuffer(b"".join(_keys(spec, spec.max_entries)), np.uint8)
        copies = lanes if target.family.per_cpu else 1
        values = np.zeros((spec.max_entries, copies, spec.value_size), np.uint8)
        target.from_numpy(keys.reshape(spec.max_entries, spec.key_size),
                          values if target.family.per_cpu else values[:, 0])
    for lane in range(lanes):
        one.maps["lanes"].update(struct.pack("=I", lane), _lane(lane, lane * share, share))

    def run(lane: int, runs: int) -> float:
        found = one.repeat(packet_of(lane), runs, worker=lane)
        assert found.verdict == 2
        return float(found.duration_ns)

    return Side(run, one.close)


def one_operation(spec: MapSpec, rounds: int) -> dict[str, tuple[float, float]]:
    """ns of each operation: (here, in the kernel)."""
    names = operations_of(MapType(spec.type))
    sides = {(name, where): make(spec, name, 1)
             for name in ("nothing", *names)
             for where, make in enumerate((our_side, kernel_side))}
    best: dict[tuple[str, int], float] = {}
    try:
        for number in range(rounds + 1):
            for place, side in sides.items():
                taken = side.run(0, _RUNS)
                if number:  # the first warms up
                    best[place] = min(best.get(place, taken), taken)
    finally:
        for side in sides.values():
            side.close()
    return {name: tuple((best[name, where] - best["nothing", where]) / LOOPS
                        for where in (0, 1)) for name in names}  # type: ignore[misc]


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
    """All types, as a result with a row each: {operation: [ns here, ns in the kernel]}."""
    rows = [{"name": kind.name, "operations": {
        what: list(both) for what, both in one_operation(spec_of(kind, entries), rounds).items()}}
        for kind in (*_KEYED, *_KEYLESS)]
    return {"bench": "maps", "rounds": rounds, "entries": entries, "rows": rows}


def markdown(result: Mapping[str, Any]) -> str:
    lines = ["| map | operation | kernel ns | ours ns |", "|---|---|---:|---:|"]
    lines += [f"| {row['name']} | {what} | {kernel:.1f} | {ours:.1f} |" for row in result["rows"]
              for what, (ours, kernel) in row["operations"].items()]
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
        for name in args.types or [kind.name for kind in (*_KEYED, *_KEYLESS)]:
            results[name] = one_operation(spec_of(MapType[name], args.entries), args.rounds)
            if not args.json:
                print(f"{name:16}" + "".join(
                    f"  {what} {here:6.1f} ns (kernel {there:6.1f})"
                    for what, (here, there) in results[name].items()), flush=True)
    if args.json:
        print(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
