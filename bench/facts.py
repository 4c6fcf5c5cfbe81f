"""What each fact of the verifier brings: ns a packet with it and without, in turns, on one CPU.

    python -m bench.facts [NAME...] [-j] [--repeat N] [--rounds 5] [--cpu N]

Each example is compiled once with everything and once for each fact taken away:

    checks     every packet and map access is compared with its bounds again, as lowering did
               before there was a verifier
    aliasing   accesses say nothing of what they cannot overlap with
    branches   sides of branches that no path goes are compiled too
    constants  loads from frozen maps stay loads

`balancer_*` are the programs of tests/xdp_runtime/programs: the mean over 24 packets on different
paths.  `insns` counts machine instructions of the module, which no other load on the machine
disturbs.  A fact that brings nothing anywhere has no place in lowering: that packet pointers do
not wrap was one, without which not one instruction differed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from bench.cases import choose
from bench.samples import ROOT, Spread, cpus, machine, pinned
from xdp_runtime import repeat, state
from xdp_runtime.compiler import kinds, link, lower, target
from xdp_runtime.compiler.image import Image
from xdp_runtime.elf import read_object
from xdp_runtime.maps.map import Map
from xdp_runtime.object import Object, ProgramSpec
from xdp_runtime.program import Program
from xdp_runtime.verifier.facts import Facts

_LOOPBACK = 1
_EVERY = 25  # of the balancers' 600 packets
_INSTRUCTION = re.compile(r"^\t[a-z]", re.MULTILINE)
PROGRAMS = ROOT / "tests" / "xdp_runtime" / "programs"
BALANCERS = ("balancer_small", "balancer_medium")
FACTS = ("checks", "aliasing", "branches", "constants")


class Checked(lower.Lowering):
    """Lowering that trusts nothing: one compare an access, and away if it fails."""

    def address(self, number: int, off: int) -> str:
        where = super().address(number, off)
        kind = self.state.regs[number]
        if isinstance(kind, kinds.Packet):
            ok = self.value(f"icmp ult ptr {where}, {self.get_state(state.DATA_END, 'ptr')}")
        elif isinstance(kind, kinds.MapValue):
            ok = self.value(f"icmp ne ptr {self.pointer(number)}, null")
        else:
            return where
        good, bad = self.label("ok"), self.label("bad")
        self.emit(f"br i1 {ok}, label %{good}, label %{bad}")
        self.start(bad)
        self.emit("ret i32 0")
        self.start(good)
        return where


@contextmanager
def without(fact: str) -> Iterator[None]:
    """Compile as if the verifier had not said this."""
    prove = link.proven_facts

    def poorer(obj: Object, program: ProgramSpec) -> Facts:
        facts = prove(obj, program)
        if fact == "branches":
            for slot in range(len(facts.visited)):
                facts.visited[slot] = facts.falls[slot] = facts.taken[slot] = 1
        if fact == "constants":
            facts.constants.clear()
        return facts

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(link, "proven_facts", poorer))
        if fact == "checks":
            stack.enter_context(mock.patch.object(lower, "Lowering", Checked))
        if fact == "aliasing":
            stack.enter_context(mock.patch.object(lower, "scope_of", lambda number: ""))
        yield


@dataclass(frozen=True, slots=True)
class Build:
    """A program compiled with or without a fact, and its machine instructions."""

    program: Program
    insns: int


def compiled(path: Path, entries: Iterable[tuple[str, bytes, bytes]], fact: str) -> Build:
    """The program without one fact ("": with all), past the cache of programs."""
    obj = read_object(path)
    spec = obj.program()
    with without(fact):
        module, exports, symbols = link.build_module(obj, spec, 1, [repeat.UNIT])
    target.optimise(module)
    insns = len(_INSTRUCTION.findall(target.emit_assembly(module)))
    image = Image(target.emit_object(module), exports, symbols)
    program = Program(obj, spec, [Map.create(m, 1) for m in obj.maps], 1, image)
    for name, key, value in entries:
        if name in program.raw_maps:
            program.raw_maps[name].update(key, value)
    return Build(program, insns)


def measure(name: str, path: Path, entries: Sequence[tuple[str, bytes, bytes]],
            packets: Sequence[bytes], count: int, rounds: int) -> dict[str, Any]:
    builds = {fact: compiled(path, entries, fact) for fact in ("", *FACTS)}
    with ExitStack() as stack:
        for build in builds.values():
            stack.enter_context(build.program)
        for packet in packets:  # maps of all builds see the same packets
            results = [b.program.run(packet, ingress_ifindex=_LOOPBACK) for b in builds.values()]
            assert len({(r.retval, r.data_out) for r in results}) == 1, name
        samples: dict[str, list[float]] = {fact: [] for fact in builds}
        for turn in range(rounds):
            order = list(builds) if turn % 2 == 0 else list(reversed(builds))
            for fact in order:
                took = [builds[fact].program.repeat(
                    packet, max(1, count // len(packets)), ingress_ifindex=_LOOPBACK).duration_ns
                    for packet in packets]
                samples[fact].append(sum(took) / len(took))
    extra = {fact: Spread.of([a - b for a, b in zip(samples[fact], samples[""], strict=True)])
             for fact in FACTS}
    return {"name": name, "ns": Spread.of(samples[""]).record(), "insns": builds[""].insns,
            "more_without": {fact: spread.record() for fact, spread in extra.items()},
            "more_insns_without": {f: builds[f].insns - builds[""].insns for f in FACTS}}


def subjects(names: Sequence[str]) -> Iterator[
        tuple[str, Path, list[tuple[str, bytes, bytes]], list[bytes]]]:
    """(name, object, map entries, packets)"""
    balancers = [name for name in BALANCERS if not names or name in names]
    if balancers:
        from tests.xdp_runtime.programs import traffic
        for name in balancers:
            yield (name, PROGRAMS / f"{name}.o", list(traffic.entries()),
                   list(traffic.frames()[::_EVERY]))
    others = [name for name in names if name not in BALANCERS]
    if others or not names:
        for case in choose(others):
            yield (case.name, case.object_path,
                   [(m, k, v) for m, content in case.entries.items() for k, v in content.items()],
                   [case.packet])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.facts", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("-j", "--json", action="store_true")
    parser.add_argument("--repeat", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cpu", type=int, default=cpus(1)[0])
    args = parser.parse_args(argv)
    rows = []
    if not args.json:
        print(f"{'program/path':18}{'ns':>8}   more without: "
              + "".join(f"{fact:>11}" for fact in FACTS))
    with pinned(args.cpu):
        for subject in subjects(args.names):
            row = measure(*subject, args.repeat, args.rounds)
            rows.append(row)
            if not args.json:
                print(f"{row['name']:18}{row['ns']['median']:8.2f}" + " " * 17
                      + "".join(f"{row['more_without'][f]['median']:+11.2f}" for f in FACTS))
                print(f"{'  insns':18}{row['insns']:8}" + " " * 17
                      + "".join(f"{row['more_insns_without'][f]:+11}" for f in FACTS), flush=True)
    if args.json:
        json.dump({"bench": "facts", "machine": machine(), "rows": rows}, sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
