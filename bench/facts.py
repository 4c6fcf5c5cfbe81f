"""What each fact of the verifier brings: ns a packet with it and without, in turns, on one CPU.

    python -m bench.facts [NAME...] [-j] [--repeat N] [--rounds 5] [--cpu N]

Each example is compiled once with everything and once for each fact taken away:

    checks     every packet and map access is compared with its bounds again, as lowering did
               before there was a verifier
    aliasing   accesses say nothing of what they cannot overlap with
    branches   sides of branches that no path goes are compiled too
    constants  loads from frozen maps stay loads
    nowrap     packet pointers may wrap, for all LLVM knows

A fact that brings nothing anywhere has no place in lowering.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from bench.cases import Case, choose
from bench.samples import Spread, cpus, machine, pinned
from xdp_runtime import repeat, state
from xdp_runtime.compiler import kinds, link, lower, target
from xdp_runtime.elf import read_object
from xdp_runtime.maps.map import Map
from xdp_runtime.object import Object, ProgramSpec
from xdp_runtime.program import Program
from xdp_runtime.verifier.facts import Facts

_LOOPBACK = 1
FACTS = ("checks", "aliasing", "branches", "constants", "nowrap")


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
        if fact == "nowrap":
            facts.ranges.clear()
        return facts

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(link, "proven_facts", poorer))
        if fact == "checks":
            stack.enter_context(mock.patch.object(lower, "Lowering", Checked))
        if fact == "aliasing":
            stack.enter_context(mock.patch.object(lower, "scope_of", lambda number: ""))
        yield


def compiled(case: Case, fact: str) -> Program:
    """The case's program without one fact ("": with all), past the cache of programs."""
    obj = read_object(case.object_path)
    spec = obj.program()
    with without(fact):
        module, exports, symbols = link.build_module(obj, spec, 1, [repeat.UNIT])
    target.optimise(module)
    image = link.Image(target.emit_object(module), exports, symbols)
    program = Program(obj, spec, [Map.create(m, 1) for m in obj.maps], 1, image)
    for name, content in case.entries.items():
        for key, value in content.items():
            program.maps[name].update(key, value)
    return program


def measure(case: Case, count: int, rounds: int) -> dict[str, Any]:
    with ExitStack() as stack:
        programs = {fact: stack.enter_context(compiled(case, fact)) for fact in ("", *FACTS)}
        expected = programs[""].run(case.packet, ingress_ifindex=_LOOPBACK)
        samples: dict[str, list[float]] = {fact: [] for fact in programs}
        for turn in range(rounds):
            order = list(programs) if turn % 2 == 0 else list(reversed(programs))
            for fact in order:
                done = programs[fact].repeat(case.packet, count, ingress_ifindex=_LOOPBACK)
                assert (done.retval, done.data_out) == (expected.retval, expected.data_out), fact
                samples[fact].append(done.duration_ns)
    extra = {fact: Spread.of([a - b for a, b in zip(samples[fact], samples[""], strict=True)])
             for fact in FACTS}
    return {"name": case.name, "ns": Spread.of(samples[""]).record(),
            "more_without": {fact: spread.record() for fact, spread in extra.items()}}


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
        for case in choose(args.names):
            row = measure(case, args.repeat, args.rounds)
            rows.append(row)
            if not args.json:
                print(f"{row['name']:18}{row['ns']['median']:8.2f}" + " " * 17
                      + "".join(f"{row['more_without'][f]['median']:+11.2f}" for f in FACTS),
                      flush=True)
    if args.json:
        json.dump({"bench": "facts", "machine": machine(), "rows": rows}, sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
