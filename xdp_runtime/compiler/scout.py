"""Scouts: what a program looks up first, found out for a whole batch before the programs run.

A scout is the program once more, without anything that could be noticed:

- stores to anything but its own stack are left out;
- helpers are called only if they change nothing and wait for nothing (`_PURE`); those that give
  any number give 0; every other helper ends the scout;
- at the first lookup, update or delete in a map that is larger than `LARGE_BYTES` the scout writes
  down in its *place* where that will look (maps/scout.py), and ends.  Lookups in smaller maps are
  made (without a mark in an LRU map).

Why is that safe?  The verifier proved the program for *any* contents of packets and map values and
for any result of a helper that its prototype allows.  So a scout, which may find other contents
there than the program will (stores are missing) and other results, still walks a path that was
proven, up to where it ends.  And what it finds out decides nothing but which cache lines are
fetched.  After O3 nothing is left of the program but what the key is computed from.

What a program gets from it depends on what it does and on how many flows there are, so the worker
loop measures both ways from time to time and takes the better one (dataplane/loop.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from xdp_runtime.compiler.kinds import MapPtr, MapValue, Packet, StackPtr, State
from xdp_runtime.compiler.lower import Lowering
from xdp_runtime.compiler.provenance import number_is_tail_call
from xdp_runtime.compiler.registers import Lowered
from xdp_runtime.helpers.proto import Helper, Ret
from xdp_runtime.isa import Atomic, Insn, LoadMap, Operand, Reg, Store, StoreRelease
from xdp_runtime.maps import family_of
from xdp_runtime.maps.scout import LARGE_BYTES, SCOUT, SCOUTS, STEP, STEPS
from xdp_runtime.object import MapSpec, MapType, ProgramSpec
from xdp_runtime.template import Template
from xdp_runtime.verifier.facts import Facts

_LOOKUP, _UPDATE, _DELETE = 1, 2, 3
_PURE = {8, 28, 42, 188}  # get_smp_processor_id, csum_diff, get_numa_node_id, xdp_get_buff_len
_ANY_NUMBER = {5, 7, 125, 160, 208}  # of time, and at random
_LRU = (MapType.LRU_HASH, MapType.LRU_PERCPU_HASH)


class Scout(Lowering):
    """Lowers one program as a scout; `steps` is 0 if it finds nothing to look ahead for.

    Maps larger than `large_bytes` are what it looks for."""

    steps = 0
    large_bytes = LARGE_BYTES

    def lower(self) -> Lowered:
        out = super().lower()
        _, _, body = out.text.partition("{\n")
        head = f'define internal i64 @"scout.{self.number}"(ptr noalias %state, ptr %place) {{\n'
        out.text = head + body.rstrip().removesuffix("}") + "seen:\n  ret i64 0\n}\n"
        return out

    def end(self) -> None:
        """The scout has seen enough.  What follows in this block is never reached."""
        self.emit("br label %seen")
        self.start(self.label("never"))

    def lower_exit(self) -> None:
        if self.frame.parent is None:
            self.emit("br label %seen")
        else:
            super().lower_exit()

    def lower_insn(self, insn: Insn) -> None:
        if isinstance(insn, StoreRelease):
            insn = Store(insn.dst, insn.off, insn.size, Reg(insn.src))
        super().lower_insn(insn)

    def lower_store(self, dst: int, off: int, size: int, src: Operand, after: State) -> None:
        kind = self.state.regs[dst]
        if isinstance(kind, StackPtr):
            super().lower_store(dst, off, size, src, after)
        elif not isinstance(kind, Packet | MapValue):
            self.end()

    def lower_atomic(self, insn: Atomic) -> None:
        if insn.fetch or not isinstance(self.state.regs[insn.dst], Packet | MapValue):
            self.end()

    def lower_call(self, helper: Helper, after: State) -> None:
        if number_is_tail_call(helper):
            self.lower_tail_call()
        elif helper.id in (_LOOKUP, _UPDATE, _DELETE):
            self.lower_access(helper, after)
        elif helper.id in _PURE:
            super().lower_call(helper, after)
        elif helper.id in _ANY_NUMBER and helper.ret is Ret.SCALAR:
            self.set_number(0, "0")
        else:
            self.end()

    def lower_access(self, helper: Helper, after: State) -> None:
        maps = self.provenance.map_argument(self.state, helper, self.slot)
        if len(maps) != 1:
            self.end()
            return
        one = maps[0]
        spec = self.maps[one] if isinstance(one, int) else one
        if helper.id == _LOOKUP and not _is_large(spec, self.workers, self.large_bytes):
            super().lower_call(replace(helper, map_op="peek") if spec.type in _LRU else helper,
                               after)
            return
        if spec.type in SCOUTS and spec.lock_at < 0 and _is_large(
                spec, self.workers, self.large_bytes):
            template, steps = SCOUTS[spec.type]
            self.steps = max(self.steps, steps)
            leading = self.described(spec, 1) if not isinstance(one, int) else [
                f"ptr {self.region(one, p)}" if isinstance(p, str) else f"i64 {p}"
                for p in family_of(spec).parameters(spec, self.workers)]
            self.call_template(template, [*leading, f"i64 {self.worker_id()}",
                                          f"ptr {self.address(2, 0)}", "ptr %place"])
        self.end()

    def lower_walk(self, slot: int, where: str, cursor: str) -> str:
        """bpf_for_each_map_elem finds no element."""
        return self.value("icmp ne i64 0, 0")

    def lower_tail_call(self) -> None:
        """Only from the program that the loop calls, so that scouts end."""
        kind = self.state.regs[2]
        if self.number != 0 or self.frame.parent is not None or not isinstance(kind, MapPtr):
            self.end()
            return
        made, index = self.label("tail"), self.narrow(self.number_of(3), 32)
        inside = self.value(f"icmp ult i32 {index}, {self.maps[kind.map].max_entries}")
        self.emit(f"br i1 {inside}, label %{made}, label %seen")
        self.start(made)
        slot = self.value(f"getelementptr inbounds i32, ptr {self.region(kind.map, 'values')}, "
                          f"i64 {self.widen(index, 32)}")
        held = self.value(f"load atomic i32, ptr {slot} monotonic, align 4")
        labels = [(number, self.label("to")) for number in self.tail_targets if number != 0]
        cases = " ".join(f"i32 {number + 1}, label %{label}" for number, label in labels)
        self.emit(f"switch i32 {held}, label %seen [ {cases} ]")
        for number, label in labels:
            self.start(label)
            self.value(f'call i64 @"scout.{number}"(ptr %state, ptr %place)')
            self.emit("br label %seen")
        self.start(self.label("never"))


def _is_large(spec: MapSpec, workers: int, large_bytes: int) -> bool:
    return sum(r.size_bytes for r in family_of(spec).regions(spec, workers)) > large_bytes


def scouts(programs: Sequence[ProgramSpec], maps: tuple[MapSpec, ...], workers: int,
           large_bytes: int, proven: Callable[[ProgramSpec], Facts],
           ) -> tuple[str, dict[str, Template]]:
    """The scouts of programs that tail-call each other, the first one to be entered; always with
    SCOUT and STEPS, and with the templates that they need."""
    bodies, needed, steps = [], {STEP.name: STEP}, 0
    if any(_may_gain(program, maps, workers, large_bytes) for program in programs):
        for number, program in enumerate(programs):
            scout = Scout(program, number, maps, workers, range(len(programs)), proven(program))
            scout.large_bytes = large_bytes
            lowered = scout.lower()
            bodies.append(lowered.text)
            needed |= lowered.templates
            steps = max(steps, scout.steps)
    if not steps:
        bodies, needed = [], {STEP.name: STEP}
    entry = 'call i64 @"scout.0"(ptr %state, ptr %place)' if steps else "add i64 0, 0"
    return "\n".join([
        *bodies, f'define i64 @"{SCOUT}"(ptr %state, ptr %place) {{', f"  %r = {entry}",
        "  ret i64 %r", "}", f'define i64 @"{STEPS}"() alwaysinline {{', f"  ret i64 {steps}", "}",
    ]), needed


def _may_gain(program: ProgramSpec, maps: Sequence[MapSpec], workers: int,
              large_bytes: int) -> bool:
    """Does the program name a map for which looking ahead may pay?"""
    used = [maps[insn.map] for insn in program.insns if isinstance(insn, LoadMap)]
    used += [spec.inner for spec in used if spec.inner is not None]
    return any(spec.type in SCOUTS and _is_large(spec, workers, large_bytes) for spec in used)
