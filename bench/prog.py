"""ns a packet: the kernel's JIT, ours and the interpreter, in turns, on one CPU.

    xdpu bench prog [OBJ...]      the same: python -m bench.prog; without OBJ the examples

Before anything is timed, one run of each must agree: verdict, packet, metadata, map contents.  If
they do not, that is the result, and there is no figure.  After each timed run the last verdict and
packet are checked, too.

What a harness costs by itself, a program that only returns XDP_PASS on the same packet, is measured
beside and subtracted (`net`); sides.py has the ways of measuring.  The kernel tells whole
nanoseconds, so a net cost under 3 ns there is below what can be divided by.  Ratios are those of
paired rounds: their median, and the interval in which a bootstrap finds it (samples.py).
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import counters, variants
from bench.agree import Mismatch, Unfit, compare
from bench.cases import CASES, Case, choose
from bench.noise import Watch
from bench.peers import Peer
from bench.record import Record, interruptible, stop_if_interrupted
from bench.rig import Rig
from bench.samples import cpus, estimate, machine, of_repository, pinned
from bench.sides import KernelSide, OurSide, Sample, Side
from xdp_runtime.errors import ConfigError, XdpuError
from xdp_runtime.object import Object

__all__ = ["LEAST_KERNEL_NS", "LEAST_OURS_NS", "KernelSide", "Mismatch", "OurSide", "Sample",
           "compare", "measure", "run"]

ENGINES = {"kernel": "kernel", "jit": "ours", "interp": "interp"}  # option: name in records
LEAST_KERNEL_NS, LEAST_OURS_NS = 3.0, 1.0
_LEGEND = ("x: kernel net / ours net, median of paired rounds and its 95% interval; "
           f"- where the kernel's is under {LEAST_KERNEL_NS:g} ns; "
           f"ours counts as {LEAST_OURS_NS:g} ns at least")
_FEWEST_ROUNDS = 3  # of an interrupted row, to be kept
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure: `repeat` runs a sample, `rounds` samples a side."""

    repeat: int = 200_000
    rounds: int = 15
    engines: tuple[str, ...] = ("kernel", "ours")
    cold: bool = False
    flows: tuple[int, ...] = ()
    peers: tuple[Peer, ...] = ()

    def record(self) -> dict[str, Any]:
        return {"repeat": self.repeat, "rounds": self.rounds, "engines": list(self.engines),
                "cold": self.cold, "flows": list(self.flows),
                "peers": [peer.name for peer in self.peers]}


# ---- measuring -----------------------------------------------------------------------------------

def measure(case: Case, plan: Plan, *, ours: Object | None = None) -> Row:
    """One case as a record.  `ours` is an object to compile in place of the case's own.

    After Ctrl-C what was measured is in the record, which is then `interrupted`; if that is too
    little, KeyboardInterrupt goes on.
    """
    record: Row = {"name": case.name, "object": case.object_path.name,
                   "verdict": case.verdict.name if case.verdict is not None else "",
                   "packet_bytes": len(case.packet)}
    if case.stands_for:
        record["stands_for"] = case.stands_for
    with ExitStack() as stack:
        try:
            rig = Rig(case, plan.engines, stack, ours)
            sides = [*rig.sides(), *rig.peers(plan.peers)]
            record |= rig.record
            samples = _take(sides, plan, record)
            record |= _count(sides, plan.repeat)
            if not record.get("interrupted"):
                _vary(rig, plan, record)
        except (Mismatch, XdpuError) as mismatch:  # or ours does not even load it
            return {**record, "ok": False, "mismatch": str(mismatch)}
    names = {peer.name for peer in plan.peers}
    record["peers"] = {name: summary(taken) for name, taken in samples.items() if name in names}
    return {**record, "ok": True, **_pair({
        name: taken for name, taken in samples.items() if name not in names})}


def _take(sides: Sequence[Side], plan: Plan, record: Row) -> dict[str, list[Sample]]:
    """Samples by side, the sides in turns; the order is turned round each time."""
    samples: dict[str, list[Sample]] = {side.name: [] for side in sides}
    record["method"] = sides[0].method
    for side in sides:
        side.sample(max(plan.repeat // 20, 2))  # warm
    for turn in range(plan.rounds):
        taken: dict[str, Sample] = {}
        try:
            for side in sides if turn % 2 == 0 else reversed(sides):
                stop_if_interrupted()
                taken[side.name] = side.sample(plan.repeat)
        except (KeyboardInterrupt, InterruptedError):
            if turn < _FEWEST_ROUNDS:
                raise
            record |= {"interrupted": True, "rounds": turn}
            break
        for name, sample in taken.items():
            samples[name].append(sample)
    return samples


def _vary(rig: Rig, plan: Plan, record: Row) -> None:
    """The same with a cold cache and with many flows, if the plan wants it."""
    rounds = min(plan.rounds, variants.ROUNDS)
    try:
        if plan.cold:
            record["cold"] = _pair(variants.cold(rig, rounds))
        for flows in plan.flows:
            taken = variants.flows(rig, flows, plan.repeat, rounds)
            record.setdefault("flows", []).append({"flows": flows, **_pair(taken)})
    except Unfit as unfit:
        record.setdefault("notes", []).append(str(unfit))
    except (KeyboardInterrupt, InterruptedError):
        record |= {"interrupted": True, "rounds": plan.rounds}


def _pair(samples: Mapping[str, Sequence[Sample]]) -> Row:
    return {**{name: summary(taken) for name, taken in samples.items()},
            "ratio": ratio(samples.get("kernel", ()), samples.get("ours", ()))}


def _count(sides: Sequence[Side], count: int) -> Row:
    """Cycles and instructions a packet, net; None where nothing counts them."""
    if counters.refusal():
        return {"counters": None}
    try:
        return {"counters": {side.name: {event: round(value, 1) for event, value in counters.net(
            side.timed(), count).items()} for side in sides if side.timed()}}
    except OSError as error:
        return {"counters": None, "notes": [f"no cycles and instructions: {error.strerror}"]}


def summary(samples: Sequence[Sample]) -> dict[str, Any]:
    columns = {name: [round(sample[name], 3) for sample in samples] for name in samples[0]}
    return {**{name: estimate(values) for name, values in columns.items()}, "samples": columns}


def ratio(kernel: Sequence[Sample], ours: Sequence[Sample]) -> dict[str, float] | None:
    """kernel / ours, round by round; None when there is nothing to divide."""
    if not kernel or not ours:
        return None
    if estimate([sample["net"] for sample in kernel])["median"] < LEAST_KERNEL_NS:
        return None
    return estimate([k["net"] / max(o["net"], LEAST_OURS_NS)
                     for k, o in zip(kernel, ours, strict=True)], 2)


def run(cases: Sequence[Case], plan: Plan, cpu: int, record: Record | None = None,
        told: Callable[[Row], None] = lambda row: None) -> dict[str, Any]:
    """All cases, each beside what else the machine did; stops at Ctrl-C with what there is."""
    record = record or Record()
    record.begin({"bench": "prog", "plan": plan.record(), "on_cpu": cpu, "machine": machine(),
                  "counters": counters.refusal() or "cycles, instructions"})
    try:
        with pinned(cpu):
            for case in cases:
                stop_if_interrupted()
                watch = Watch({cpu})
                row = measure(case, plan)
                row["noise"] = watch.noise().record()
                record.add(row)
                told(row)
                if row.get("interrupted"):
                    raise KeyboardInterrupt
    except (KeyboardInterrupt, InterruptedError):
        done = {row["name"] for row in record.rows}
        record.interrupt([case.name for case in cases if case.name not in done])
    return record.finish()


# ---- saying it -----------------------------------------------------------------------------------

HEADER = ("program/path", "verdict", "way", "kernel raw", "net ns", "ours raw", "net ns", "x")


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table, in the order of HEADER."""
    if not row["ok"]:
        return [row["name"], row["verdict"], "MISMATCH", row["mismatch"], "", "", "", ""]

    def figure(side: str, what: str, digits: int) -> str:
        return f"{row[side][what]['median']:.{digits}f}" if side in row else "-"

    return [row["name"], row["verdict"], row["method"], figure("kernel", "raw", 0),
            figure("kernel", "net", 1), figure("ours", "raw", 1), figure("ours", "net", 1),
            times(row.get("ratio"))]


def times(found: Mapping[str, float] | None) -> str:
    """A ratio with its interval."""
    return f"{found['median']:.1f} ({found['low']:.1f}-{found['high']:.1f})" if found else "-"


def markdown(result: Mapping[str, Any]) -> str:
    lines = ["| program, path | verdict | kernel net ns | ours net ns | kernel / ours |",
             "|---|---|---:|---:|---:|"]
    for row in result["rows"]:
        name, verdict, _, _, kernel, _, ours, x = cells(row)
        if not row["ok"]:
            kernel, ours, x = "mismatch", "mismatch", "none"
        lines.append(f"| {name} | {verdict} | {kernel} | {ours} | {x} |")
    return "\n".join(lines)


def text_row(parts: Sequence[str]) -> str:
    name, verdict, way, *numbers = parts
    if way == "MISMATCH":
        return f"{name:<24} {verdict:<9} MISMATCH {numbers[0]}"
    return f"{name:<24} {verdict:<9} {way:<10}" + "".join(f"{n:>11}" for n in numbers[:4]) + (
        f"  {numbers[4]}")


def remarks(row: Mapping[str, Any]) -> list[str]:
    """What has to be said beside a row's figures."""
    said = [f"the kernel refuses it: {row['kernel_refuses']}"] if "kernel_refuses" in row else []
    for peer, figures in row.get("peers", {}).items():
        said.append(f"{peer}: {figures['raw']['median']:.1f} ns raw, "
                    f"{figures['net']['median']:.1f} net")
    said += [f"without {peer}: {why}" for peer, why in row.get("without_peers", {}).items()]
    if "interp" in row:
        said.append(f"interpreter: {row['interp']['net']['median']:,.0f} ns net")
    for what, one in [("cold cache", row.get("cold")),
                      *((f"{f['flows']:,} flows", f) for f in row.get("flows", []))]:
        if one:
            figures = ", ".join(f"{side} {one[side]['net']['median']:.1f}"
                                for side in ("kernel", "ours") if side in one)
            said.append(f"{what}: {figures} ns net; x {times(one['ratio'])}")
    for side, counted in (row.get("counters") or {}).items():
        said.append(f"{side}: {counted['cycles']:.0f} cycles, {counted['instructions']:.0f} "
                    "instructions")
    if row.get("interrupted"):
        said.append(f"interrupted after {row['rounds']} rounds")
    return said + row.get("notes", [])


def noisy(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What else went on while rows were measured, each complaint once."""
    complaints = [(row["name"], row["noise"]["complaints"]) for row in rows
                  if row.get("noise", {}).get("complaints")]
    if not complaints:
        return []
    name, first = complaints[0]
    return [f"{len(complaints)} of {len(rows)} rows were disturbed; {name}: {text}"
            for text in first]


# ---- the command ---------------------------------------------------------------------------------

def main_of(args: Namespace) -> int:
    """xdpu bench prog"""
    from bench import paths

    record = Record(args.out)
    plan = Plan(args.repeat, args.rounds, engines(args.engines), args.cold, args.flows,
                tuple(Peer(path) for path in args.peer))
    cpu = args.cpu if args.cpu is not None else cpus(1)[0]
    print_out = (lambda text: None) if args.json else (lambda text: print(text, flush=True))
    cases: list[Case] = []
    for where in args.obj:
        if Path(where).is_file():
            found = paths.find(Path(where), args, plan.engines)
            cases += found.cases
            record.notes += found.notes
            record.rows += found.mismatches
        else:
            cases += _examples([where])
    if not args.obj:
        cases = _examples([])

    def tell(row: Row) -> None:
        print_out("\n".join([text_row(cells(row)), *(f"    {text}" for text in remarks(row))]))

    print_out(text_row(HEADER))
    for row in record.rows:
        tell(row)
    with interruptible():
        result = run(cases, plan, cpu, record, tell)
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print_out(_LEGEND)
        for text in [*result["notes"], *closing(result)]:
            print_out(text)
    return code_of(result)


def closing(result: Mapping[str, Any]) -> list[str]:
    said = noisy(result["rows"])
    if result["counters"] != "cycles, instructions":
        said.append(f"no cycles and instructions: {result['counters']}")
    if result["interrupted"]:
        said.append("interrupted; not measured: " + (", ".join(result["waiting"]) or "nothing"))
    said += [f"written: {path}" for path in result["written"]]
    return said + ([f"NOT written: {result['unwritten']}"] if result["unwritten"] else [])


def code_of(result: Mapping[str, Any]) -> int:
    if result["interrupted"]:
        return 130
    good = all(row["ok"] for row in result["rows"]) and not result["unwritten"]
    return 0 if good else 1


def engines(words: Sequence[str]) -> tuple[str, ...]:
    strange = [word for word in words if word not in ENGINES]
    if strange or not words:
        raise ConfigError(f"--engines {','.join(words)}", f"no engine {', '.join(strange)}",
                          f"of: {', '.join(ENGINES)}")
    return tuple(ENGINES[word] for word in words)


def _examples(names: list[str]) -> list[Case]:
    try:
        found = choose(names)
    except KeyError:
        raise ConfigError(names[0], "is no file, and no example",
                          "give an object file, or: " + ", ".join(
                              dict.fromkeys(case.example for case in CASES))) from None
    for case in found:
        of_repository(case.object_path, f"example {case.name}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    from control.cli import main as xdpu

    return xdpu(["bench", "prog", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
