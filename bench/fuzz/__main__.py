"""python -m bench.fuzz: random programs and packets on four engines (as root).

    python -m bench.fuzz [--seeds A-B] [--jobs N] [--seconds S] [--resume FILE]
                         [--kind insns|c|mutants|all]
    python -m bench.fuzz --reduce SEED [--write DIR]
    python -m bench.fuzz --show SEED

Ends with a line of totals; exit code 1 if anything disagreed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from bench.fuzz.csource.build import CLANG, NEEDS
from bench.fuzz.run import Plan, run, summary
from bench.fuzz.sources import ALL, KINDS, kind_of, text_of


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", default="0-1000000000", help="A-B, B not included")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--packets", type=int, default=500, help="packets a program")
    parser.add_argument("--resume", type=Path, help="state, FILE.0 FILE.1 ... a job")
    parser.add_argument("--kind", choices=[*KINDS, ALL], default=ALL,
                        help="of programs; all: each kind in turn")
    parser.add_argument("--reduce", type=int, metavar="SEED")
    parser.add_argument("--show", type=int, metavar="SEED", help="its C, and its instructions")
    parser.add_argument("--write", type=Path, help="where --reduce puts the test case")
    options = parser.parse_args(arguments)
    if options.kind != "insns" and not CLANG:
        print(NEEDS)
        if options.kind != ALL:
            return 2
        options.kind = "insns"
    if options.reduce is not None:
        from bench.fuzz.reduce import reduce_seed

        return reduce_seed(options.reduce, kind_of(options.kind, options.reduce),
                           options.packets, options.write)
    if options.show is not None:
        print(text_of(kind_of(options.kind, options.show), options.show))
        return 0
    first, last = (int(part) for part in options.seeds.split("-"))
    with tempfile.TemporaryDirectory(prefix="xdpu-fuzz-") as scratch:
        plan = Plan(first, last, options.jobs, options.packets, time.time() + options.seconds,
                    options.resume or Path(scratch) / "state", options.kind)
        state = run(plan)
    for words, times in sorted(state.refused.items(), key=lambda item: -item[1])[:8]:
        print(f"refused {times}: {words}")
    for seed, words in state.ours_only[:20]:
        print(f"seed {seed}: accepted by us alone; the kernel: {words}")
    for seed, what in state.found[:200]:
        print(f"seed {seed}: {what}")
    print(summary(state))
    return 1 if state.found or not state.counts.get("pairs") else 0


if __name__ == "__main__":
    raise SystemExit(main())
