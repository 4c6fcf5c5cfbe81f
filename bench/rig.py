"""One case loaded into each engine, with maps filled alike, compared before anything is timed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from bench import peers
from bench.agree import (
    LOOPBACK,
    UNCOMPARED,
    Mismatch,
    Outcome,
    compare_maps,
    contents,
    difference,
    fill,
    map_items,
    outcome,
)
from bench.cases import Case
from bench.peers import Peer, PeerSide
from bench.rings import drained
from bench.sides import InterpSide, KernelSide, OurSide, Side
from dataplane import fibmirror
from xdp_runtime.asm import assemble
from xdp_runtime.core_relo import read_settled
from xdp_runtime.errors import XdpuError
from xdp_runtime.helpers.fib import asks_host
from xdp_runtime.interp import Machine, Trap
from xdp_runtime.kernel import KernelProgram, load_into_kernel
from xdp_runtime.object import Object, ProgramSpec
from xdp_runtime.program import Program, load
from xdp_runtime.state import Verdict


def idle(verdict: int = Verdict.PASS) -> Object:
    """A program that only returns: what a harness costs by itself."""
    insns = assemble(f"r0 = {int(verdict)}\nexit")
    return Object("idle", (ProgramSpec("idle", "xdp", "xdp", insns),), (), "GPL")


class Engines:
    """The programs themselves; `kernel` is None where the kernel was not asked, or refuses."""

    def __init__(self, obj: Object, name: str | None, wanted: Sequence[str], stack: ExitStack,
                 ours: Object | None = None) -> None:
        self.notes: list[str] = []
        self.refusal = ""
        self.steps = 0  # instructions that the interpreter needed for the last packet
        self.kernel: KernelProgram | None = None
        spec = obj.program(name)
        if "kernel" in wanted:
            try:
                self.kernel = stack.enter_context(load_into_kernel(obj, spec.name))
            except (XdpuError, OSError) as error:
                self.refusal = str(error)
        self.ours: Program = stack.enter_context(load(ours or obj, spec.name if not ours else None))
        fibmirror.fill(self.ours.fib, self.notes.append)
        self.machine: Machine | None = None
        if "interp" in wanted or self.kernel is None:
            self.machine = Machine(obj, spec)
            if asks_host(obj):
                self.machine.host = fibmirror.read_now()

    def fill(self, entries: dict[str, dict[bytes, bytes]]) -> None:
        fill(entries, self.kernel, self.ours)
        if self.machine is None:
            return
        for model in self.machine.maps:
            for key, value in entries.get(model.spec.name, {}).items():
                model.update(key, value)

    def run(self, packet: bytes) -> tuple[Outcome, str]:
        """The packet in all of them: ours, and the first difference in words, if there is one."""
        mine = outcome(self.ours.run(packet, ingress_ifindex=LOOPBACK))
        found = ""
        if self.kernel is not None:
            found = difference(("kernel", "ours"), outcome(self.kernel.run(packet)), mine)
        if self.machine is not None and not found:
            found = difference(("interpreter", "ours"), self._interpret(packet), mine)
        return mine, found

    def _interpret(self, packet: bytes) -> Outcome:
        assert self.machine is not None
        try:
            done = self.machine.run(packet, ingress_ifindex=LOOPBACK)
        except Trap as trap:
            raise Mismatch(f"the interpreter stops at instruction {trap.insn}: {trap.text}"
                           ) from trap
        self.steps = done.steps
        return Outcome(done.verdict, done.data_out, done.meta)

    def compare_maps(self, ignored: Sequence[str]) -> None:
        if self.kernel is not None:
            compare_maps(self.kernel, self.ours, ignored)
        for model in self.machine.maps if self.machine is not None else ():
            name, spec = model.spec.name, model.spec
            if name in ignored or spec.type in UNCOMPARED:
                continue
            if contents(model.items(), spec.value_size) != contents(
                    map_items(self.ours.raw_maps[name]), spec.value_size):
                raise Mismatch(f"map {name}: interpreter and ours differ")


class Rig:
    """A case in its engines: they have agreed on its packet.  Raises Mismatch, XdpuError."""

    def __init__(self, case: Case, wanted: Sequence[str], stack: ExitStack,
                 ours: Object | None = None) -> None:
        obj = read_settled(case.object_path)
        self.case, self.object, self._wanted, self._stack = case, obj, wanted, stack
        self.engines = Engines(obj, case.program, wanted, stack, ours)
        self.record: dict[str, Any] = {}
        if self.engines.refusal:
            self.record["kernel_refuses"] = self.engines.refusal
        if self.engines.notes:
            self.record["notes"] = self.engines.notes
        self.engines.fill({name: dict(content) for name, content in case.entries.items()})
        for packet in case.prelude:
            self._agree(packet)
        mine = self._agree(case.packet)
        if case.verdict is not None and mine.retval != case.verdict:
            judge = "the kernel's" if self.engines.kernel is not None else "the"
            raise Mismatch(f"{judge} verdict is {mine.retval}, expected {case.verdict.name}")
        self.engines.compare_maps(case.ignored)

    def _agree(self, packet: bytes) -> Outcome:
        mine, found = self.engines.run(packet)
        if found:
            raise Mismatch(found)
        return mine

    def peers(self, offered: Sequence[Peer]) -> list[PeerSide]:
        """Those that can run it and agree; the record says why the others do not."""
        mine, _ = self.engines.run(self.case.packet)
        found, without = peers.sides(offered, self.case, self.object.program(
            self.case.program).name, mine, self._stack)
        if without:
            self.record["without_peers"] = without
        return found

    def sides(self) -> list[Side]:
        case, engines, stack = self.case, self.engines, self._stack
        nothing = idle()
        sides: list[Side] = []
        kernel = engines.kernel
        if kernel is not None:
            side = KernelSide(kernel, case, stack.enter_context(load_into_kernel(nothing)))
            stack.callback(side.close)
            sides.append(side)
        if "ours" in self._wanted:
            sides.append(OurSide(engines.ours, case, stack.enter_context(load(nothing))))
        if "interp" in self._wanted and engines.machine is not None:
            sides.append(InterpSide(engines.machine, case, Machine(nothing, nothing.program())))
        return drained(sides, engines.ours, kernel, self._once, stack)

    def _once(self) -> None:
        """In all, so that what they count stays equal."""
        self._agree(self.case.packet)
