"""What each part of the eBPF core costs: the kernel's JIT, ours and native C, in turns, on one CPU.

    python -m bench.micro [NAME...] [--json FILE] [--markdown] [--repeat N] [--rounds 9] [--cpu N]
    python -m bench.micro --from FILE

The programs are C of our own (bench/micro/programs), compiled here; this needs clang.  All sides
must first agree: verdict, packet, maps.  `net` is without what the harness costs; the goal is what
we set out for.  How each is repeated is in bench/prog.py (the same packet), many.py (many
different ones) and native.py (against clang; `whole`: with the loop, as the program alone is
too short).  Medians, in brackets the extremes; ratios are medians of paired rounds.

FILE is JSON: {"bench": "micro", "machine": what it ran on, "on_cpu", "repeat", "rounds",
"records": [...]}, a list of flat records as described in records.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.micro.cases import choose
from bench.micro.measure import measure
from bench.micro.records import HEADER, Record, cells, grouped, line, markdown
from bench.samples import cpus, machine, pinned
from xdp_runtime.errors import XdpuError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.micro", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="raw samples, machine, goals")
    parser.add_argument("--from", dest="file", type=Path, metavar="FILE",
                        help="show that result, as Markdown, instead of measuring")
    parser.add_argument("--markdown", action="store_true", help="the table once more, as Markdown")
    parser.add_argument("--repeat", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cpu", type=int, default=cpus(1)[0])
    args = parser.parse_args(argv)
    if args.file:
        print(markdown(json.loads(args.file.read_text())["records"]))
        return 0
    try:
        micros = choose(args.names)
    except KeyError as unknown:
        parser.error(f"no micro program {unknown}")
    about = machine()
    records: list[Record] = []
    print(line(HEADER))
    with pinned(args.cpu), tempfile.TemporaryDirectory() as where:
        for micro in micros:
            records += measure(micro, Path(where), args.repeat, args.rounds)
            print(line(cells(grouped(records)[-1])), flush=True)
    if args.markdown:
        print(markdown(records))
    if args.json:
        args.json.write_text(json.dumps({
            "bench": "micro", "repeat": args.repeat, "rounds": args.rounds, "on_cpu": args.cpu,
            "machine": about, "records": records}, indent=1) + "\n")
    return 1 if any("mismatch" in record for record in records) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except XdpuError as error:
        sys.exit(f"bench.micro: {error}")
