"""All benches, one after the other, and their tables.

    python -m bench.all [BENCH...] [--quick] [--readme] [--from FILE]

Writes bench/results/<date>.json and prints Markdown.  `--readme` puts that between the markers
`<!-- bench -->` and `<!-- /bench -->` of README.md; `--from` takes an earlier result instead of
measuring.  `--quick` shows that everything runs: its figures are worth nothing.

A bench that cannot run here (no privilege, no libxdp) is told and left out; one whose programs do
not agree with the kernel makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import cases, io, prog, start
from bench.samples import ROOT, cpus, machine
from xdp_runtime.errors import XdpuError

RESULTS = ROOT / "bench" / "results"
OPEN, CLOSE = "<!-- bench -->", "<!-- /bench -->"
Result = dict[str, Any]

_TITLES = {
    "prog": ("A packet through a program", "Net nanoseconds a packet on one CPU, same object and "
             "packet, the cost of each harness subtracted; the ratio is the median of paired "
             "rounds with its range, and `-` where the kernel's figure is too small to divide by."),
    "io": ("Packets through an interface", "A source on one CPU, a loop on another, fresh "
           "interfaces and sockets each round, medians with their range; then the rate without "
           "loss, and latencies at 10, 50 and 90 % of it. XDP in the kernel runs on the source's "
           "CPU. `>`: the source was the limit, not what was measured."),
    "start": ("From nothing to the first packet", "`xdpu run` on a veth, from the start of the "
              "process; cold is an empty compile cache."),
}
_MARKDOWN: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "prog": prog.markdown, "io": io.markdown, "start": start.markdown}


def measure(names: Sequence[str], quick: bool) -> Result:
    """Everything as one record; what could not run is in `missing`."""
    two = cpus(2)
    benches: dict[str, Callable[[], Result]] = {
        "prog": lambda: prog.run(cases.CASES, prog.Plan(*((10_000, 3) if quick else ())), two[0]),
        "io": lambda: io.run(io.ACTIONS, io.Plan.on(
            rounds=1 if quick else 5, seconds=0.2 if quick else 1.0, search=not quick)),
        "start": lambda: start.run(["drop"] if quick else ["drop", "demo"], 1 if quick else 5,
                                   phases=not quick),
    }
    result: Result = {"quick": quick, "machine": machine(), "benches": {}, "missing": {}}
    for name in names:
        print(f"bench.all: {name} ...", file=sys.stderr, flush=True)
        try:
            result["benches"][name] = benches[name]()
        except (RuntimeError, OSError, XdpuError) as error:
            result["missing"][name] = str(error)
            print(f"bench.all: without {name}: {error}", file=sys.stderr)
    return result


def markdown(result: Mapping[str, Any]) -> str:
    parts = []
    if result["quick"]:
        parts.append("**A quick run, to see that the benches work: these are not figures.**")
    for name, one in result["benches"].items():
        title, text = _TITLES[name]
        parts += [f"**{title}.** {text}", _MARKDOWN[name](one)]
    parts += [f"Not measured: {name} ({why})." for name, why in result["missing"].items()]
    parts.append(describe(result["machine"]))
    return "\n\n".join(parts) + "\n"


def describe(about: Mapping[str, Any]) -> str:
    """One sentence on the machine, with what makes kernel helper calls dear on it."""
    mitigations = [f"{name}: {state}" for name, state in about["mitigations"].items()
                   if state != "Not affected"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return (f"Measured {about['date'][:10]} at {about['commit']} on {about['cpu']}, "
            f"{about['cpus']} CPUs{' of a virtual machine' if about['virtual'] else ''}, "
            f"{about['kernel']}, Python {about['python']}, {versions}; load before "
            f"{about['load'][0]}. Mitigations: {'; '.join(mitigations) or 'none'}.")


def put_into(text: str, table: str) -> str:
    """README's text with the table between the markers.  Raises ValueError without them."""
    before, opening, rest = text.partition(OPEN)
    _, closing, after = rest.partition(CLOSE)
    if not opening or not closing:
        raise ValueError(f"no {OPEN} ... {CLOSE} in it")
    return f"{before}{OPEN}\n{table}{CLOSE}{after}"


def save(result: Mapping[str, Any], folder: Path = RESULTS) -> Path:
    folder.mkdir(exist_ok=True)
    stamp = result["machine"]["date"][:16].replace(":", "")
    path = folder / f"{stamp}{'-quick' if result['quick'] else ''}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def disagrees(result: Mapping[str, Any]) -> bool:
    return not all(row["ok"] for row in result["benches"].get("prog", {"rows": []})["rows"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.all", description="all benches")
    parser.add_argument("benches", nargs="*", metavar="BENCH", help=f"of {', '.join(_TITLES)}")
    parser.add_argument("--quick", action="store_true", help="see that they run")
    parser.add_argument("--readme", action="store_true", help="put the tables into README.md")
    parser.add_argument("--from", dest="file", type=Path, help="a result to show instead")
    args = parser.parse_args(argv)
    unknown = set(args.benches) - set(_TITLES)
    if unknown:
        parser.error(f"no bench {', '.join(sorted(unknown))}")
    if args.file:
        result = json.loads(args.file.read_text())
    else:
        result = measure(args.benches or list(_TITLES), args.quick)
        print(f"bench.all: {save(result)}", file=sys.stderr)
    table = markdown(result)
    print(table, end="")
    if args.readme:
        readme = ROOT / "README.md"
        try:
            readme.write_text(put_into(readme.read_text(), table))
        except (OSError, ValueError) as error:
            print(f"bench.all: {readme.name}: {error}", file=sys.stderr)
            return 1
    return 1 if disagrees(result) else 0


if __name__ == "__main__":
    sys.exit(main())
