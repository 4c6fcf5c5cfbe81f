"""How long programs take to be proven safe: our verifier, and the kernel's loading of them.

    xdpu bench verify [OBJ...] [--rounds 5] [-j]     without OBJ: examples, bench/uxdp

Ours is `verify` alone, past its cache, on instructions that are read already.  The kernel's figure
is BPF_PROG_LOAD: its verifier, its JIT and its bookkeeping, so it does more.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.cases import EXAMPLES
from bench.samples import Spread, cpus, machine, pinned
from bench.uxdp import HERE
from xdp_runtime.core_relo import read_settled
from xdp_runtime.errors import XdpuError
from xdp_runtime.isa import encode
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.object import Object, ProgramSpec
from xdp_runtime.verifier import verify


def objects() -> list[Path]:
    """The examples, and the uXDP paper's programs."""
    return [*sorted(EXAMPLES.glob("*.o")), *sorted(HERE.glob("*.o"))]


def run(paths: Sequence[Path], rounds: int, cpu: int,
        told: Callable[[dict[str, Any]], None] = lambda row: None) -> dict[str, Any]:
    """Raises XdpuError for what is no object."""
    rows = []
    with pinned(cpu):
        for path in paths:
            for row in measure(path, rounds):
                rows.append(row)
                told(row)
    return {"bench": "verify", "rounds": rounds, "on_cpu": cpu, "machine": machine(), "rows": rows}


def measure(path: Path, rounds: int) -> list[dict[str, Any]]:
    """A row for each XDP program.  Raises XdpuError for what is no object."""
    obj = read_settled(path)
    return [_measure(path.stem, obj, spec, rounds) for spec in obj.programs if spec.is_xdp]


def _measure(stem: str, obj: Object, spec: ProgramSpec, rounds: int) -> dict[str, Any]:
    row: dict[str, Any] = {"name": f"{stem}/{spec.name}",
                           "insns": len(encode(spec.insns, [0] * len(obj.maps))) // 8}
    samples: dict[str, list[float]] = {"ours": [], "kernel": []}
    for turn in range(rounds):
        for side in ("ours", "kernel") if turn % 2 == 0 else ("kernel", "ours"):
            with ExitStack() as stack:
                began = time.perf_counter()
                try:
                    if side == "ours":
                        row["ok"] = verify(obj, spec).ok
                    else:
                        stack.enter_context(load_into_kernel(obj, spec.name))
                except (XdpuError, OSError) as error:
                    row[f"{side}_refuses"] = str(error)
                    continue
                samples[side].append((time.perf_counter() - began) * 1000)
    return row | {f"{side}_ms": Spread.of(taken).record() | {"samples": taken}
                  for side, taken in samples.items() if taken}


def text(row: dict[str, Any]) -> str:
    def figure(side: str) -> str:
        return f"{row[f'{side}_ms']['median']:10.2f}" if f"{side}_ms" in row else "   refused"

    return f"{row['name']:<34}{row['insns']:>7}{figure('ours')}{figure('kernel')}"


def markdown(result: Mapping[str, Any]) -> str:
    def figure(row: Mapping[str, Any], side: str) -> str:
        return f"{row[f'{side}_ms']['median']:.2f}" if f"{side}_ms" in row else "refused"

    return "\n".join(["| program | instructions | ours ms | kernel ms |", "|---|---:|---:|---:|", *(
        f"| {row['name']} | {row['insns']} | {figure(row, 'ours')} | {figure(row, 'kernel')} |"
        for row in result["rows"])])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="xdpu bench verify", description="ms to verify a program")
    parser.add_argument("objects", nargs="*", type=Path, metavar="OBJ")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu", type=int, default=cpus(1)[0])
    parser.add_argument("-j", "--json", action="store_true")
    args = parser.parse_args(argv)
    if not args.json:
        print(f"{'object/program':<34}{'insns':>7}{'ours, ms':>10}{'kernel':>10}")

    def tell(row: dict[str, Any]) -> None:
        if not args.json:
            print(text(row), flush=True)

    result = run(args.objects or objects(), args.rounds, args.cpu, tell)
    if args.json:
        print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except XdpuError as error:
        sys.exit(f"bench.verify: {error}")
