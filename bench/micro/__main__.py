"""ns a packet of each part of the eBPF core: the kernel's JIT and ours, in turns, on one CPU.

    python -m bench.micro [NAME...] [--json FILE] [--repeat N] [--rounds 5] [--cpu N]

The programs are C of our own (bench/micro/programs), compiled here; this needs clang.  Both sides
must first agree: verdict, packet, maps.  How each is repeated is in the column `way`: see
bench/prog.py (plain, wrapper) and many.py (many different packets).  `goal` is what we set out
for, `net` without what the harness costs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.micro.cases import choose
from bench.micro.measure import measure
from bench.samples import cpus, machine, pinned
from xdp_runtime.errors import XdpuError

_HEADER = ("program", "way", "kernel raw", "net ns", "ours raw", "net ns", "x", "native", "goal")


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table, in the order of _HEADER."""
    if not row["ok"]:
        return [row["name"], "MISMATCH", row["mismatch"]]
    kernel, ours, ratio, native = row["kernel"], row["ours"], row["ratio"], row.get("native")
    x = f"{ratio['median']:.1f} ({ratio['min']:.1f}-{ratio['max']:.1f})" if ratio else "-"
    share = "-"
    if native:
        share = (f"{native['ratio']:.2f}" if native["ratio"] is not None
                 else f"{native['gross_ratio']['median']:.2f} gross")
    goal = f"{row['goal']}: {'met' if row['met'] else 'MISSED'}" if "goal" in row else ""
    return [row["name"], row["method"], f"{kernel['raw']['median']:.0f}",
            f"{kernel['net']['median']:.1f}", f"{ours['raw']['median']:.1f}",
            f"{ours['net']['median']:.1f}", x, share, goal]


def line(parts: Sequence[str]) -> str:
    if parts[1] == "MISMATCH":
        return f"{parts[0]:<16} MISMATCH {parts[2]}"
    name, way, *numbers, x, native, goal = parts
    return (f"{name:<16} {way:<8}" + "".join(f"{n:>11}" for n in numbers) +
            f"  {x:<17}{native:>11}  {goal}").rstrip()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.micro", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="raw samples, machine, goals")
    parser.add_argument("--repeat", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu", type=int, default=cpus(1)[0])
    args = parser.parse_args(argv)
    try:
        micros = choose(args.names)
    except KeyError as unknown:
        parser.error(f"no micro program {unknown}")
    rows = []
    print(line(_HEADER))
    with pinned(args.cpu), tempfile.TemporaryDirectory() as where:
        for micro in micros:
            rows.append(measure(micro, Path(where), args.repeat, args.rounds))
            print(line(cells(rows[-1])), flush=True)
    if args.json:
        args.json.write_text(json.dumps({
            "bench": "micro", "repeat": args.repeat, "rounds": args.rounds, "on_cpu": args.cpu,
            "machine": machine(), "rows": rows}, indent=1) + "\n")
    return 0 if all(row["ok"] for row in rows) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except XdpuError as error:
        sys.exit(f"bench.micro: {error}")
