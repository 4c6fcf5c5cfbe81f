"""ns a packet: each example, the kernel's JIT and ours, in turns, on one CPU.

    python -m bench.prog [NAME...] [-j] [--repeat N] [--rounds 5] [--cpu N] [--out FILE]

Before anything is timed, one run of both must agree: verdict, packet, metadata, map contents.  If
they do not, that is the result, and there is no figure.  After each timed run the last verdict and
packet are checked, too.

What a harness costs by itself, a program that only returns XDP_PASS on the same packet, is measured
beside and subtracted (`net`).  The kernel's harness does not put the packet back:

    plain    the program changes nothing, or undoes its own change (f(f(packet)) = packet)
    wrapper  it does; see wrapper.py

Ours (Program.repeat) starts each run from a fresh copy.  The kernel tells whole nanoseconds, so a
net cost under 3 ns there is below what can be divided by.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import wrapper
from bench.cases import EXAMPLES, Case, choose
from bench.samples import Spread, cpus, machine, pinned
from bench.wrapper import Change, Wrapper
from xdp_runtime.elf import read_object
from xdp_runtime.errors import XdpuError
from xdp_runtime.kernel import KernelProgram, load_into_kernel
from xdp_runtime.maps.map import Map
from xdp_runtime.object import MapType, Object
from xdp_runtime.program import Program, load

LEAST_KERNEL_NS, LEAST_OURS_NS = 3.0, 1.0
_LOOPBACK = 1
_LEGEND = ("x: kernel net / ours net, median (lowest-highest) of paired rounds; "
           f"- where the kernel's is under {LEAST_KERNEL_NS:g} ns; "
           f"ours counts as {LEAST_OURS_NS:g} ns at least")
Sample = dict[str, float]


class Mismatch(Exception):
    """Kernel and ours do not agree, or a timed run did not do what a single one does."""


# ---- do they agree -------------------------------------------------------------------------------

def compare(case: Case, kernel: KernelProgram, ours: Program) -> None:
    """One run of both.  Raises Mismatch naming the first difference."""
    theirs = kernel.run(case.packet)
    result = ours.run(case.packet, ingress_ifindex=_LOOPBACK)
    if theirs.retval != case.verdict:
        raise Mismatch(f"the kernel's verdict is {theirs.retval}, expected {case.verdict.name}")
    if result.retval != theirs.retval:
        raise Mismatch(f"verdict: kernel {theirs.retval}, ours {result.retval}")
    for what, wanted, got in (("packet", theirs.data_out, result.data_out),
                              ("metadata", theirs.meta, result.meta)):
        if wanted != got:
            raise Mismatch(f"{what}: {_difference(wanted, got)}")
    for name, kernel_map in kernel.maps.items():
        if name in case.ignored or kernel_map.spec.type == MapType.PROG_ARRAY:
            continue
        wanted_entries = _contents(kernel_map.items(), kernel_map.spec.value_size)
        entries = _contents(_map_items(ours.maps[name]), kernel_map.spec.value_size)
        if wanted_entries != entries:
            keys = sorted(k.hex() for k in wanted_entries.keys() | entries.keys()
                          if wanted_entries.get(k) != entries.get(k))
            raise Mismatch(f"map {name}: differs at key {keys[0]}")


def _difference(wanted: bytes, got: bytes) -> str:
    if len(wanted) != len(got):
        return f"kernel {len(wanted)} bytes, ours {len(got)}"
    at = next(i for i, (a, b) in enumerate(zip(wanted, got, strict=True)) if a != b)
    return f"byte {at}: kernel {wanted[at]:#04x}, ours {got[at]:#04x}"


def _map_items(m: Map) -> Any:
    return ((key, b"".join(value) if isinstance(value, list) else value)
            for key, value in m.items())


def _contents(items: Any, value_size: int) -> dict[bytes, tuple[bytes, ...]]:
    """Values by key; of a per-CPU map those that are not zero, since only one CPU ran."""
    found: dict[bytes, tuple[bytes, ...]] = {}
    for key, raw in items:
        values = [raw[i : i + value_size] for i in range(0, len(raw), value_size)]
        if len(values) > 1 or not any(raw):
            values = [value for value in values if any(value)]
        found[key] = tuple(values)
    return found


# ---- the two sides -------------------------------------------------------------------------------

class KernelSide:
    """The kernel's program, its floor and whatever else its way of measuring needs."""

    def __init__(self, program: KernelProgram, case: Case, floor: KernelProgram) -> None:
        self._program, self._case, self._floor = program, case, floor
        self._undo = ExitStack()
        self.change, self.verdict = _observe(program, case.packet)
        self._wrappers: tuple[Wrapper, Wrapper, KernelProgram] | None = None
        self.method = "plain"
        if not self.change.is_none and not _is_involution(program, self.change, self.verdict):
            self.method = "wrapper"
            self._wrappers = (
                self._undo.enter_context(Wrapper(self.change, self.verdict, program.fd)),
                self._undo.enter_context(Wrapper(self.change, self.verdict)),
                KernelProgram(floor.spec, wrapper.load_moves(self.change), {}))
            self._undo.callback(self._wrappers[2].close)

    def sample(self, count: int) -> Sample:
        count += count & 1  # an involution ends where it began
        packet = self._case.packet
        sample: Sample = {"floor": _timed(self._floor, packet, count, 2)}
        if self._wrappers is None:
            sample["raw"] = _timed(self._program, packet, count, self.verdict)
            sample["net"] = sample["raw"] - sample["floor"]
            return sample
        real, stand_in, moves = self._wrappers
        for name, one in (("raw", real), ("baseline", stand_in)):
            repeated = one.run(count)
            if not repeated.is_sound:
                raise Mismatch(f"kernel, {name}: {repeated.complaint()}")
            sample[name] = repeated.ns
        sample["moves"] = 0.0
        if self.change.moves:
            sample["moves"] = (_timed(moves, packet, count, 2) - sample["floor"]) / 2
        sample["net"] = sample["raw"] - sample["baseline"] + sample["moves"]
        return sample

    def close(self) -> None:
        self._undo.close()


def _observe(program: KernelProgram, packet: bytes) -> tuple[Change, int]:
    try:
        return wrapper.observe(program, packet)
    except XdpuError as error:
        raise Mismatch(str(error)) from error


def _is_involution(program: KernelProgram, change: Change, verdict: int) -> bool:
    if change.moves:
        return False
    again = program.run(change.after)
    return (again.retval, again.data_out, again.meta) == (verdict, change.before, b"")


def _timed(program: KernelProgram, packet: bytes, count: int, verdict: int) -> float:
    done = program.run(packet, count)
    if done.retval != verdict:
        raise Mismatch(f"kernel: {count} runs ended with verdict {done.retval}, not {verdict}")
    if done.data_out != packet or done.meta:
        raise Mismatch(f"kernel: {count} runs changed the packet")
    return done.duration_ns


class OurSide:
    def __init__(self, program: Program, case: Case, floor: Program) -> None:
        self._program, self._case, self._floor = program, case, floor
        self._single = program.run(case.packet, ingress_ifindex=_LOOPBACK)

    def sample(self, count: int) -> Sample:
        floor = self._floor.repeat(self._case.packet, count, ingress_ifindex=_LOOPBACK)
        done = self._program.repeat(self._case.packet, count, ingress_ifindex=_LOOPBACK)
        if (done.retval, done.data_out, done.meta) != (
                self._single.retval, self._single.data_out, self._single.meta) or done.changes:
            raise Mismatch(f"ours: {count} runs did not end as one does")
        return {"floor": floor.duration_ns, "raw": done.duration_ns,
                "net": done.duration_ns - floor.duration_ns}


# ---- measuring -----------------------------------------------------------------------------------

def measure(case: Case, repeat: int, rounds: int, *, ours: Object | None = None) -> dict[str, Any]:
    """One case as a record.  `ours` is an object to compile in place of the case's own."""
    record: dict[str, Any] = {"name": case.name, "verdict": case.verdict.name,
                              "packet_bytes": len(case.packet)}
    obj, idle = read_object(case.object_path), read_object(EXAMPLES / "pass.o")
    with ExitStack() as stack:
        try:
            kernel = stack.enter_context(load_into_kernel(obj))
            program = stack.enter_context(load(ours or obj))
            _fill(case, kernel, program)
            compare(case, kernel, program)
            sides = (KernelSide(kernel, case, stack.enter_context(load_into_kernel(idle))),
                     OurSide(program, case, stack.enter_context(load(idle))))
            stack.callback(sides[0].close)
            record["method"] = sides[0].method
            samples: tuple[list[Sample], list[Sample]] = ([], [])
            for side in sides:
                side.sample(max(repeat // 20, 2))  # warm
            for turn in range(rounds):
                for which in (0, 1) if turn % 2 == 0 else (1, 0):
                    samples[which].append(sides[which].sample(repeat))
        except (Mismatch, XdpuError) as mismatch:  # or one of the two does not even load it
            return {**record, "ok": False, "mismatch": str(mismatch)}
    return {**record, "ok": True, "kernel": _summarise(samples[0]), "ours": _summarise(samples[1]),
            "ratio": _ratio(samples)}


def _fill(case: Case, kernel: KernelProgram, ours: Program) -> None:
    for name, entries in case.entries.items():
        for key, value in entries.items():
            kernel.maps[name].update(key, value)
            ours.maps[name].update(key, value)


def _summarise(samples: Sequence[Sample]) -> dict[str, Any]:
    columns = {name: [round(sample[name], 3) for sample in samples] for name in samples[0]}
    return {**{name: Spread.of(values).record() for name, values in columns.items()},
            "samples": columns}


def _ratio(samples: tuple[list[Sample], list[Sample]]) -> dict[str, float] | None:
    """kernel / ours, round by round; None when there is nothing to divide."""
    kernel = [sample["net"] for sample in samples[0]]
    if Spread.of(kernel).median < LEAST_KERNEL_NS:
        return None
    ours = [max(sample["net"], LEAST_OURS_NS) for sample in samples[1]]
    return Spread.of([k / o for k, o in zip(kernel, ours, strict=True)]).record(2)


def run(cases: Sequence[Case], repeat: int, rounds: int, cpu: int,
        told: Callable[[dict[str, Any]], None] = lambda row: None) -> dict[str, Any]:
    rows = []
    with pinned(cpu):
        for case in cases:
            rows.append(measure(case, repeat, rounds))
            told(rows[-1])
    return {"bench": "prog", "repeat": repeat, "rounds": rounds, "on_cpu": cpu,
            "machine": machine(), "rows": rows}


# ---- saying it -----------------------------------------------------------------------------------

HEADER = ("program/path", "verdict", "way", "kernel raw", "net ns", "ours raw", "net ns", "x")


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table, in the order of HEADER."""
    if not row["ok"]:
        return [row["name"], row["verdict"], "MISMATCH", row["mismatch"], "", "", "", ""]
    kernel, ours, ratio = row["kernel"], row["ours"], row["ratio"]
    x = f"{ratio['median']:.1f} ({ratio['min']:.1f}-{ratio['max']:.1f})" if ratio else "-"
    return [row["name"], row["verdict"], row["method"], f"{kernel['raw']['median']:.0f}",
            f"{kernel['net']['median']:.1f}", f"{ours['raw']['median']:.1f}",
            f"{ours['net']['median']:.1f}", x]


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
        return f"{name:<18} {verdict:<9} MISMATCH {numbers[0]}"
    return f"{name:<18} {verdict:<9} {way:<8}" + "".join(f"{n:>11}" for n in numbers[:4]) + (
        f"  {numbers[4]}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.prog", description="ns a packet, kernel and ours")
    parser.add_argument("names", nargs="*", help="examples, or example/path (default: all)")
    parser.add_argument("-j", "--json", action="store_true")
    parser.add_argument("--repeat", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu", type=int, default=cpus(1)[0])
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    args = parser.parse_args(argv)
    try:
        cases = choose(args.names)
    except KeyError as unknown:
        parser.error(f"no example {unknown}")

    def tell(row: dict[str, Any]) -> None:
        if not args.json:
            print(text_row(cells(row)), flush=True)

    if not args.json:
        print(text_row(HEADER))
    result = run(cases, args.repeat, args.rounds, args.cpu, tell)
    text = json.dumps(result, indent=1)
    if args.json:
        print(text)
    else:
        print(_LEGEND)
    if args.out:
        args.out.write_text(text + "\n")
    return 0 if all(row["ok"] for row in result["rows"]) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except XdpuError as error:
        sys.exit(f"bench.prog: {error}")
