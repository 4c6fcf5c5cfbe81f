"""ns a packet of programs without helpers, compiled here from BPF and by clang -O2 -march=native.

    python -m bench.native_compare [NAME...] [-j] [--repeat N] [--rounds 9] [--cpu N]

One C file (native/compare.c) is built both ways, and both run in this process, in turns, in the
same loop over the same packet.  `net` is without what the empty program costs in that loop; the
ratio is that of the net medians, and there is none where native needs less than 1 ns.  Outcomes
are compared first: verdict and every byte.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import frames
from bench.samples import ROOT, Spread, cpus, machine, pinned
from xdp_runtime import repeat
from xdp_runtime import state as st
from xdp_runtime.elf import read_object
from xdp_runtime.program import Program, load

SOURCE = ROOT / "bench" / "native" / "compare.c"
_STRIDE, _RING = 12288 + 1088, 8  # no two frames at one page offset: loads would wait for copies
_ROOM_BYTES = 256  # in front of the packet
_LEAST_NS = 1.0
_SHORT, _LONG = frames.udp4(80), bytes(range(1, 256)) * 40
PACKETS = {"empty": _SHORT, "parse_drop": _SHORT, "mac_swap": _SHORT, "ipv4_checksum": _SHORT,
           "tuple_hash": _SHORT, "checksum_1400": _LONG[:1500], "text_length": _LONG[:1500],
           "byte_copy": _LONG[:1500], "siphash": _LONG[:8192]}
_SLOW = {"siphash": 100, "text_length": 20, "checksum_1400": 20, "byte_copy": 20}
Run = Callable[[bytes, int], tuple[int, bytes, float]]  # packet, count -> verdict, packet, ns


def build(where: Path) -> tuple[Path, Path]:
    """(BPF object, native library)"""
    bpf, native = where / "compare.o", where / "compare.so"
    common = ["clang", "-O2", "-g", "-Wall"]
    subprocess.run([*common, "-target", "bpf", "-mcpu=v3", "-fno-builtin", "-Wno-pass-failed",
                    "-c", SOURCE, "-o", bpf], check=True)
    subprocess.run([*common, "-march=native", "-fPIC", "-shared", SOURCE, "-o", native],
                   check=True)
    return bpf, native


class Frames:
    """A ring of frames, for both sides the same memory."""

    def __init__(self) -> None:
        self.memory = ctypes.create_string_buffer(_STRIDE * (_RING + 1))
        self.base = (ctypes.addressof(self.memory) + 63) & ~63
        self.data = self.base + _ROOM_BYTES

    def last(self, count: int, length: int) -> bytes:
        return ctypes.string_at(self.data + (count - 1) % _RING * _STRIDE, length)


def natively(library: ctypes.CDLL, name: str, ring: Frames) -> Run:
    function = library[f"native_{name}"]
    function.argtypes = [ctypes.c_void_p, ctypes.c_char_p, *[ctypes.c_uint64] * 3]
    function.restype = ctypes.c_uint32

    def run(packet: bytes, count: int) -> tuple[int, bytes, float]:
        started = time.perf_counter_ns()
        verdict = function(ring.data, packet, len(packet), count, _STRIDE)
        took = (time.perf_counter_ns() - started) / count
        return verdict, ring.last(count, len(packet)), took

    return run


def compiled(program: Program, ring: Frames) -> Run:
    """What Program.repeat does, on frames of ours."""
    function = program.code.function(repeat.REPEAT, ctypes.c_int64, ctypes.c_void_p,
                                     ctypes.c_char_p, *[ctypes.c_int64] * 3)
    state = ctypes.create_string_buffer(st.STATE_SIZE_BYTES)

    def run(packet: bytes, count: int) -> tuple[int, bytes, float]:
        for offset, value in ((st.DATA, ring.data), (st.HARD_START, ring.base),
                              (st.FRAME_END, ring.base + _STRIDE),
                              (st.WORKER, program.worker_memory(0))):
            ctypes.c_uint64.from_buffer(state, offset).value = value
        started = time.perf_counter_ns()
        outcome = function(ctypes.addressof(state), packet, len(packet), count, _STRIDE)
        took = (time.perf_counter_ns() - started) / count
        return outcome & 0xFFFFFFFF, ring.last(count, len(packet)), took

    return run


def measure(names: Sequence[str], count: int, rounds: int) -> list[dict[str, Any]]:
    chosen = ["empty", *(name for name in names if name != "empty")]
    with ExitStack() as stack:
        where = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bpf, native = build(where)
        ring = Frames()
        library, obj = ctypes.CDLL(str(native)), read_object(bpf)
        runs: dict[tuple[str, str], Run] = {}
        for name in chosen:
            program = stack.enter_context(load(obj, name))
            runs[name, "ours"] = compiled(program, ring)
            runs[name, "native"] = natively(library, name, ring)
            first, second = (runs[name, side](PACKETS[name], 1)[:2] for side in ("ours", "native"))
            if first != second:
                raise RuntimeError(f"{name}: outcomes differ")
        samples: dict[tuple[str, str], list[float]] = {}
        for turn in range(rounds):
            for name in chosen:
                sides = ("ours", "native") if turn % 2 else ("native", "ours")
                for side in sides:
                    packet, many = PACKETS[name], count // _SLOW.get(name, 1)
                    # what copying a packet of this size costs is the empty program's on it
                    samples.setdefault((name, side), []).append(runs[name, side](packet, many)[2])
                    samples.setdefault((f"{name} copy", side), []).append(
                        runs["empty", side](packet, many)[2])
    rows = []
    for name in chosen[1:]:
        net = {side: Spread.of([a - b for a, b in zip(
            samples[name, side], samples[f"{name} copy", side], strict=True)])
            for side in ("ours", "native")}
        ratio = (round(net["ours"].median / net["native"].median, 3)
                 if net["native"].median >= _LEAST_NS else None)
        gross = [a / b for a, b in zip(samples[name, "ours"], samples[name, "native"], strict=True)]
        rows.append({"name": name, "ratio": ratio, "gross_ratio": Spread.of(gross).record(),
                     **{side: spread.record() for side, spread in net.items()}})
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.native_compare", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("-j", "--json", action="store_true")
    parser.add_argument("--repeat", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cpu", type=int, default=cpus(1)[0])
    args = parser.parse_args(argv)
    with pinned(args.cpu):
        rows = measure(args.names or list(PACKETS), args.repeat, args.rounds)
    if args.json:
        json.dump({"bench": "native_compare", "machine": machine(), "rows": rows}, sys.stdout,
                  indent=1)
        return 0
    print(f"{'program':16}{'ours net':>10}{'native net':>12}{'ratio':>8}{'whole loop':>12}")
    for row in rows:
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.2f}"
        print(f"{row['name']:16}{row['ours']['median']:10.2f}{row['native']['median']:12.2f}"
              f"{ratio:>8}{row['gross_ratio']['median']:12.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
