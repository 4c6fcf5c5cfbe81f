"""How long programs take to compile, and how much memory, each in a process of its own.

    python -m bench.compile_time [balancer_small | OBJECT | NUMBER ...] [--rounds 3] [-j]

cold: the templates are in the cache and nothing else.  warm: the second load of the same program.
baseline: cold, by the compile that `xdpu run` begins with, for programs that are not too large for
it (xdp_runtime/compiler/tiers.py).
A number stands for a program of as many instructions that is made here: loads, arithmetic, spills
and branches, without maps.  `compile` is all from proven instructions to machine code, `load` its
way into the process; `peak` is the process's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.facts import PROGRAMS
from bench.samples import ROOT, Spread, machine, of_repository
from xdp_runtime import repeat
from xdp_runtime.compiler import link
from xdp_runtime.compiler.image import Image
from xdp_runtime.compiler.target import PLAIN_SLOTS
from xdp_runtime.core_relo import read_settled
from xdp_runtime.isa import (
    Alu,
    AluOp,
    Exit,
    Imm,
    Insn,
    JmpOp,
    JumpIf,
    Load,
    Mov,
    Reg,
    Store,
    decode,
    encode,
)
from xdp_runtime.object import Object, ProgramSpec
from xdp_runtime.program import load
from xdp_runtime.verifier.facts import Facts

_DEFAULT = ("balancer_small", "65536", "1000000")
_TIMES = ("verify", "compile", "load")
_SAID = {"cold": "empty", "baseline": "empty, baseline", "warm": "warm"}
_KEPT = (".bc", ".rare", ".around")  # templates, and the loops around programs


def program_of(count: int) -> Object:
    """`count` instructions, in stretches of eleven; every 32nd ends in a branch."""
    insns: list[Insn] = [Mov(True, 0, Imm(2)), Load(3, 1, 12, 4), Mov(True, 4, Reg(3)),
                         Mov(True, 9, Reg(1))]
    for n in range((count - len(insns) - 2) // 11):
        slot = -8 - 8 * (n % 8)
        insns += [Load(5, 9, 12, 4), Alu(AluOp.ADD, True, 3, Reg(5)), Store(10, slot, 8, Reg(3)),
                  Load(4, 10, slot, 8), Alu(AluOp.XOR, True, 4, Imm(n)),
                  Alu(AluOp.RSH, True, 4, Imm(3)), Alu(AluOp.ADD, False, 3, Reg(4)),
                  Alu(AluOp.MUL, True, 3, Imm(n | 1)), Mov(True, 7, Reg(3)),
                  Alu(AluOp.SUB, True, 7, Imm(n)) if n % 32 else
                  JumpIf(JmpOp.EQ, True, 7, Imm(n), 1), Alu(AluOp.ADD, True, 3, Imm(1))]
    insns += [Alu(AluOp.ADD, True, 3, Imm(1))] * (count - len(insns) - 2)
    insns += [Mov(True, 0, Reg(3)), Exit()]
    return Object("made", (ProgramSpec("made", "xdp", "xdp", decode(encode(tuple(insns)))),), (),
                  "GPL")


def _object(what: str) -> Object:
    if what.isdigit():
        return program_of(int(what))
    path = Path(what)
    return read_settled(path if path.exists() else of_repository(
        PROGRAMS / f"{what}.o", "xdpu bench load"))


def _baseline(obj: Object, spec: ProgramSpec) -> Image:
    from xdp_runtime.compiler.baseline import compile_apart

    return compile_apart(link.lower(obj, spec, 1, [repeat.UNIT], None), [repeat.UNIT])


def _once(what: str, baseline: bool = False) -> dict[str, Any]:
    """In a process of its own: what one load takes."""
    obj = _object(what)
    spec, prove = obj.program(), link.proven_facts
    took = dict.fromkeys(_TIMES, 0.0)

    def clocked(obj: Object, program: ProgramSpec) -> Facts:
        start = time.perf_counter()
        facts = prove(obj, program)
        took["verify"] += time.perf_counter() - start
        return facts

    link.proven_facts = clocked
    start = time.perf_counter()
    image = _baseline(obj, spec) if baseline \
        else link.compile_program(obj, spec, 1, 3, [repeat.UNIT])
    took["compile"] = time.perf_counter() - start - took["verify"]
    start = time.perf_counter()
    load(obj, workers=1, compiled=lambda *_: image).close()
    took["load"] = time.perf_counter() - start
    # not ru_maxrss, which begins with that of the process it was started by
    peak_mb = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) // 1024
    return took | {"insns": len(spec.insns), "peak_mb": peak_mb, "pipeline": image.pipeline,
                   "cached": image.from_cache}


def installed() -> dict[str, str]:
    """The environment, with bytecode kept as wherever xdpu is installed: to parse our own sources
    is no part of compiling a program."""
    return {name: value for name, value in os.environ.items()
            if name != "PYTHONDONTWRITEBYTECODE"}


def measure(what: str, rounds: int) -> dict[str, Any]:
    """cold and warm, medians of so many processes each.  Raises XdpuError for what is no object."""
    _object(what)
    with tempfile.TemporaryDirectory() as cache:
        def child(*how: str) -> dict[str, Any]:
            done = subprocess.run([sys.executable, "-m", __spec__.name, "--once", what, *how],
                                  cwd=ROOT, env=installed() | {"XDPU_CACHE": cache}, check=True,
                                  stdout=subprocess.PIPE, text=True)
            answer: dict[str, Any] = json.loads(done.stdout)
            return answer

        def forget() -> None:  # all but templates
            for path in Path(cache).iterdir():
                if path.suffix not in _KEPT:
                    path.unlink()

        has_baseline = child()["insns"] <= PLAIN_SLOTS
        if has_baseline:
            child("--baseline")
        cold, warm, baseline = [], [], []
        for _ in range(rounds):
            forget()
            if has_baseline:
                baseline.append(child("--baseline"))
            cold.append(child())
            warm.append(child())
    assert not any(one["cached"] for one in cold) and all(one["cached"] for one in warm)
    return {"program": Path(what).stem, "insns": cold[0]["insns"],
            "pipeline": cold[0]["pipeline"]} | {
        name: {key: Spread.of([one[key] for one in runs]).record()
               | {"samples": [round(one[key], 4) for one in runs]} for key in (*_TIMES, "peak_mb")}
        for name, runs in (("cold", cold), ("baseline", baseline), ("warm", warm)) if runs}


def run(programs: Sequence[str], rounds: int,
        told: Callable[[dict[str, Any]], None] = lambda row: None) -> dict[str, Any]:
    rows = []
    for what in programs:
        rows.append(measure(what, rounds))
        told(rows[-1])
    return {"bench": "load", "rounds": rounds, "machine": machine(), "rows": rows}


def markdown(result: Mapping[str, Any]) -> str:
    lines = ["| instructions | compile cache | verify s | compile s | load s | peak MB |",
             "|---|---|---:|---:|---:|---:|"]
    for row in result["rows"]:
        name = "" if row["program"].isdigit() else f" ({row['program']})"
        lines += [f"| {row['insns']:,}{name} | {said} | "
                  + " | ".join(f"{row[kind][key]['median']:.3f}" for key in _TIMES)
                  + f" | {row[kind]['peak_mb']['median']:.0f} |"
                  for kind, said in _SAID.items() if kind in row]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="xdpu bench load", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("programs", nargs="*", default=_DEFAULT)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-j", "--json", action="store_true")
    parser.add_argument("--once", metavar="PROGRAM", help=argparse.SUPPRESS)
    parser.add_argument("--baseline", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.once:
        print(json.dumps(_once(args.once, args.baseline)))
        return 0

    def tell(row: dict[str, Any]) -> None:
        for name in () if args.json else [name for name in _SAID if name in row]:
            one = row[name]
            print(f"{row['program']:16} {name:8}  " + "  ".join(
                f"{key} {one[key]['median']:.3f} s" for key in _TIMES)
                + f"  peak {one['peak_mb']['median']:.0f} MB  ({row['pipeline']})", flush=True)

    result = run(args.programs, args.rounds, tell)
    if args.json:
        print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
