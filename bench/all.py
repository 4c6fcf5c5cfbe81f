"""All benches, one after the other: a record, a page with plots, and tables.

    python -m bench [BENCH...] [--quick] [--readme] [--out DIR] [--from FILE]

Writes bench/results/<date>.json and .html, or DIR/bench.json and bench.html, after every bench, and
prints Markdown.  `--readme` puts that between the markers `<!-- bench -->` and `<!-- /bench -->` of
README.md; `--from` takes an earlier result instead of measuring.  `--quick` shows that everything
runs: its figures are worth nothing.

A bench that cannot run here (no privilege, no libxdp, no clang) is told and left out; one whose
programs do not agree with the kernel makes the exit code 1.  Ctrl-C ends with what there is, and
exit code 130.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import cases, compile_time, io, maps, prog, start, uxdp, verify
from bench.cases import EXAMPLES
from bench.page import page
from bench.record import NAME, PAGE, RESULTS, interruptible, write
from bench.samples import ROOT, cpus, describe, machine, pinned
from xdp_runtime.errors import XdpuError

OPEN, CLOSE = "<!-- bench -->", "<!-- /bench -->"
FLOWS = (1, 65_536, 1_048_576)
_QUICK = prog.Plan(2_000, 3)
_AS_FAST = 1.05  # kernel / ours
Result = dict[str, Any]


def _micro(quick: bool) -> Result:
    """Raises RuntimeError without clang: the programs are C."""
    if shutil.which("clang") is None:
        raise RuntimeError("needs clang")
    from bench.micro.cases import choose
    from bench.micro.measure import measure as measure_micro

    cpu, records = cpus(1)[0], []
    with pinned(cpu), tempfile.TemporaryDirectory() as where:
        for micro in choose(["mac_swap", "percpu_counter"] if quick else []):
            records += measure_micro(micro, Path(where), *((2_000, 2) if quick else (200_000, 5)))
    return {"bench": "micro", "on_cpu": cpu, "records": records}


def _micro_markdown(result: Mapping[str, Any]) -> str:
    from bench.micro.records import markdown as table

    return table(result["records"])


def _verify(quick: bool) -> Result:
    paths = [EXAMPLES / "tx.o"] if quick else verify.objects()
    return verify.run(paths, 1 if quick else 5, cpus(1)[0])


def _load(quick: bool) -> Result:
    firewall = str(EXAMPLES / "firewall.o")
    return compile_time.run(["100"] if quick else [firewall, "balancer_small", "65536"],
                            1 if quick else 3)


@dataclass(frozen=True, slots=True)
class Bench:
    """`text` says what the figures are; `run` takes whether it is quick; `table` is Markdown, in
    the report alone if it is too long for README."""

    title: str
    text: str
    run: Callable[[bool], Result]
    table: Callable[[Mapping[str, Any]], str]
    is_long: bool = False


_PROG_TEXT = ("Net nanoseconds a packet on one CPU, same object and packet, the cost of each "
              "harness subtracted; the ratio is the median of paired rounds with its 95% interval, "
              "and `-` where the kernel's figure is too small to divide by.")
BENCHES = {
    "prog": Bench(
        "A packet through a program", _PROG_TEXT, lambda quick: prog.run(
            cases.CASES, _QUICK if quick else prog.Plan(cold=True), cpus(1)[0]), prog.markdown),
    "uxdp": Bench(
        "The programs of the uXDP paper", "Our own versions of its thirteen programs "
        "(bench/uxdp), measured as those above; also with a cold cache, and with the packet as "
        "many flows.", lambda quick: prog.run(
            uxdp.CASES, _QUICK if quick else prog.Plan(cold=True, flows=FLOWS), cpus(1)[0]),
        prog.markdown),
    "start": Bench(
        "From nothing to the first packet", "`xdpu run` on a veth, from the start of the process; "
        "cold is an empty compile cache, beside the templates that `make venv` compiled.",
        lambda quick: start.run(
            ["drop"] if quick else ["drop", "demo"], 1 if quick else 5, phases=False),
        start.markdown),
    "io": Bench(
        "Packets through an interface", "A source on one CPU, a loop on another, fresh interfaces "
        "and sockets each round, medians with their range; then the rate without loss, and "
        "latencies at 10, 50 and 90 % of it. XDP in the kernel runs on the source's CPU. `>`: the "
        "source was the limit, not what was measured.", lambda quick: io.run(
            io.ACTIONS, io.Plan.on(rounds=1 if quick else 3, seconds=0.2 if quick else 0.5,
                                   search=not quick)), io.markdown),
    "maps": Bench(
        "Operations of maps", "Nanoseconds an operation inside a program, on a key at random of "
        "65,536 (512 in maps of maps); the loop around it subtracted; the least of five rounds in "
        "turns.",
        lambda quick: maps.run(1 if quick else 5, 64 if quick else 1 << 16), maps.markdown, True),
    "micro": Bench(
        "One thing at a time", "Nanoseconds a packet of small programs, beside the kernel's JIT "
        "and native C by clang (bench/micro; `whole`: with the calling loop, as the program alone "
        "needs less than 1 ns).", _micro, _micro_markdown),
    "load": Bench(
        "From an object to machine code", "Seconds, and memory of the process; templates were in "
        "the cache, `warm` the program, too; baseline is what `xdpu run` begins with where the "
        "cache is empty.", _load, compile_time.markdown),
    "verify": Bench(
        "Proving a program safe", "Milliseconds, here and in the kernel's BPF_PROG_LOAD, of all "
        "examples and the uXDP paper's programs.", _verify, verify.markdown, True),
}


def measure(names: Sequence[str], quick: bool,
            told: Callable[[Result], None] = lambda result: None) -> Result:
    """Everything as one record; what could not run is in `missing`, Ctrl-C in `interrupted`."""
    result: Result = {"quick": quick, "machine": machine(), "benches": {}, "missing": {},
                      "interrupted": False, "waiting": [], "took_s": 0.0}
    started, left = time.monotonic(), list(names)
    try:
        with interruptible():  # also while a report is written
            for name in names:
                began = time.monotonic()
                print(f"bench.all: {name}, {began - started:.0f} s after the start ...",
                      file=sys.stderr, flush=True)
                try:
                    one = BENCHES[name].run(quick)
                except (RuntimeError, OSError, XdpuError) as error:
                    result["missing"][name] = str(error)
                    print(f"bench.all: without {name}: {error}", file=sys.stderr)
                    one = {}
                now = time.monotonic()
                if one:
                    result["benches"][name] = {**one, "took_s": round(now - began, 1)}
                result["took_s"] = round(now - started, 1)
                if one.get("interrupted"):
                    raise KeyboardInterrupt
                left.remove(name)
                told(result)
    except KeyboardInterrupt:
        result |= {"interrupted": True, "waiting": left}
        told(result)
    return result


def markdown(result: Mapping[str, Any], *, is_brief: bool = False) -> str:
    """All tables; briefly, without the long ones."""
    parts = []
    if result["quick"]:
        parts.append("**A quick run, to see that the benches work: these are not figures.**")
    if result.get("interrupted"):
        parts.append(f"**Interrupted. Not or not all measured: {', '.join(result['waiting'])}.**")
    for name, one in result["benches"].items():
        bench = BENCHES[name]
        if is_brief and bench.is_long:
            continue
        parts += [f"**{bench.title}.** {bench.text}", bench.table(one)]
        if lost := losses(one.get("rows", [])):
            parts.append(f"Not faster than in the kernel: {', '.join(lost)}.")
    parts += [f"Not measured: {name} ({why})." for name, why in result["missing"].items()]
    for name, one in result["benches"].items():
        parts += [f"{name}: {text}." for text in prog.noisy(one.get("rows", []))]
    if is_brief and any(BENCHES[name].is_long for name in result["benches"]):
        parts.append("In the report alone, which `make bench` writes into `bench/results`: "
                     + "; ".join(BENCHES[name].title for name in result["benches"]
                                 if BENCHES[name].is_long) + ", plots, cold caches, many flows.")
    took = f" All of it took {result['took_s'] / 60:.0f} minutes." if result.get("took_s") else ""
    parts.append(describe(result["machine"]) + took)
    return "\n\n".join(parts) + "\n"


def losses(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What takes as long here as in the kernel, or longer; with caches emptied and as many flows,
    too.  Said beside a table, because a reader looks for the large ratios."""
    lost = []
    for row in rows:
        variants = [("", row), (", cold", row.get("cold") or {}),
                    *((f", {one['flows']:,} flows", one) for one in row.get("flows") or ())]
        lost += [f"{row['name']}{what} {one['ratio']['median']:.1f}" for what, one in variants
                 if one.get("ratio") and one["ratio"]["median"] < _AS_FAST]
    return lost


def put_into(text: str, table: str) -> str:
    """README's text with the table between the markers.  Raises ValueError without them."""
    before, opening, rest = text.partition(OPEN)
    _, closing, after = rest.partition(CLOSE)
    if not opening or not closing:
        raise ValueError(f"no {OPEN} ... {CLOSE} in it")
    return f"{before}{OPEN}\n{table}{CLOSE}{after}"


def save(result: Mapping[str, Any], folder: Path | None = None) -> Path:
    """The JSON's path; the page lies beside it.  Raises OSError."""
    if folder is None:
        RESULTS.mkdir(exist_ok=True)
        stamp = result["machine"]["date"][:16].replace(":", "")
        path = RESULTS / f"{stamp}{'-quick' if result['quick'] else ''}.json"
        where = path.with_suffix(".html")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        path, where = folder / NAME, folder / PAGE
    write(path, json.dumps(result, indent=1) + "\n")
    write(where, page(result))
    return path


def disagrees(result: Mapping[str, Any]) -> bool:
    benches = result["benches"]
    return (any(not row.get("ok", True) for name in ("prog", "uxdp") if name in benches
                for row in benches[name]["rows"])
            or any("mismatch" in one for one in benches.get("micro", {}).get("records", [])))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="xdpu bench all", description="all benches, as a report")
    parser.add_argument("benches", nargs="*", metavar="BENCH", help=f"of {', '.join(BENCHES)}")
    parser.add_argument("--quick", action="store_true", help="see that they run")
    parser.add_argument("--readme", action="store_true", help="put the tables into README.md")
    parser.add_argument("--out", type=Path, help="folder for bench.json and bench.html")
    parser.add_argument("--from", dest="file", type=Path, help="a result to show instead")
    args = parser.parse_args(argv)
    unknown = set(args.benches) - set(BENCHES)
    if unknown:
        parser.error(f"no bench {', '.join(sorted(unknown))}")
    failures: list[str] = []

    def keep(result: Result) -> None:
        try:
            path = save(result, args.out)
        except OSError as error:
            failures.append(f"not written: {error}")
            print(f"bench.all: {failures[-1]}", file=sys.stderr)
        else:
            print(f"bench.all: {path}", file=sys.stderr)

    if args.file:
        result = json.loads(args.file.read_text())
        if args.out:
            keep(result)
    else:
        result = measure(args.benches or list(BENCHES), args.quick, keep)
    table = markdown(result)
    print(table, end="")
    if args.readme and (result.get("interrupted") or result["quick"]):
        print("bench.all: README.md stays as it is: this run is interrupted, or quick",
              file=sys.stderr)
    elif args.readme:
        readme = ROOT / "README.md"
        try:
            readme.write_text(put_into(readme.read_text(),
                                        markdown(result, is_brief=True)))
        except (OSError, ValueError) as error:
            print(f"bench.all: {readme.name}: {error}", file=sys.stderr)
            return 1
    if result.get("interrupted"):
        return 130
    return 1 if disagrees(result) or failures else 0


if __name__ == "__main__":
    sys.exit(main())
