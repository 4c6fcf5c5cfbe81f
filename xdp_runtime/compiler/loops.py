"""Helpers that call back: the callback becomes part of the program, around it a loop.

bpf_loop, bpf_for_each_map_elem and bpf_user_ringbuf_drain are three nodes (frames.py): the call
checks its arguments, the header asks for another round, and the callback's exit returns to the
header.  `loop<frame>_<slot>` and what begins with it are the loop's variables.

The kernel writes bpf_loop out where it can (inline_bpf_loop), and looks at all 64 bits of the
count there; the error is then a number of 32.  Its helper takes a count of 32.
"""

from __future__ import annotations

from dataclasses import replace

from xdp_runtime.compiler.calls import Calls
from xdp_runtime.compiler.edges import Edges
from xdp_runtime.compiler.frames import HEADER, Frame
from xdp_runtime.compiler.kinds import State
from xdp_runtime.compiler.provenance import DRAIN, MAPS
from xdp_runtime.loops_in_line import loops_in_line
from xdp_runtime.maps.family import E2BIG, EINVAL
from xdp_runtime.maps.user_ringbuf import DRAIN_BYTES, RESULT

FOR_EACH = 164  # bpf_for_each_map_elem
MAX_LOOPS = 8 * 1024 * 1024  # BPF_MAX_LOOPS


class Loops(Calls, Edges):
    def loop_location(self, frame: Frame, slot: int) -> str:
        return f"loop{frame.id}_{slot}"

    def lower_loop(self, slot: int) -> None:
        """A call that calls back: check, keep what the callback is handed and the map, and go to
        the header.  `count` is where the walk over a map is."""
        where = self.loop_location(self.frame, slot)
        if self.provenance.drains(slot):
            count = "0"
            error = self.lower_drain(slot, where, "drain_begin", self.number_of(4))
            self.copy(self.state.regs[1], self.reg(1), f"{where}_map")
        elif isinstance(self.state.regs[1], MAPS):
            count, error = "0", "0"
            self.copy(self.state.regs[1], self.reg(1), f"{where}_map")
        else:
            count, too_many = self.number_of(1), -E2BIG & 0xFFFFFFFF
            if not loops_in_line(self.provenance.insns, slot):
                count, too_many = self.value(f"and i64 {count}, {0xFFFFFFFF}"), -E2BIG
            many = self.value(f"icmp ugt i64 {count}, {MAX_LOOPS}")
            error = self.value(f"select i1 {many}, i64 {too_many}, i64 0")
        if not self.provenance.drains(slot):
            flagged = self.value(f"icmp ne i64 {self.number_of(4)}, 0")
            error = self.value(f"select i1 {flagged}, i64 -{EINVAL}, i64 {error}")
        self.put(f"{where}_count", "i", count)
        self.put(f"{where}_round", "i", "0")
        if len(self.analysis.entered[(self.frame.id, slot)]) > 1:
            self.put(f"{where}_code", "i", self.number_of(2))
        self.copy(self.state.regs[3], self.reg(3), where)
        self.set_number(0, error)
        again = self.provenance.loop_again(self.state, self.state)
        over = self.provenance.loop_over(self.state)
        self.emit(f"br i1 {self.value(f'icmp eq i64 {error}, 0')}, "
                  f"label %{self.jump_to((self.frame.id, slot + HEADER), again)}, "
                  f"label %{self.jump_to((self.frame.id, slot + 1), over)}")

    def lower_loop_header(self, slot: int) -> None:
        """The next round, or the number of rounds as the result."""
        where = self.loop_location(self.frame, slot)
        callees = self.analysis.entered[(self.frame.id, slot)]
        done = self.get(f"{where}_round", "i")
        count = self.get(f"{where}_count", "i")
        if self.provenance.drains(slot):
            got = self.lower_drain(slot, where, "drain", done)
            more = self.value(f"icmp ne i64 {got}, 0")
            result = self.value(f"getelementptr inbounds i8, ptr %{where}_drain, i64 {RESULT}")
            done = self.value(f"load i64, ptr {result}, align 8")
            self.put(self.reg(1), "p", f"%{where}_drain")
            self.copy(self.state.regs[3], self.reg(3), self.reg(2))
        elif isinstance(self.state.regs[1], MAPS):
            more = self.lower_walk(slot, where, count)
        else:
            more = self.value(f"icmp ult i64 {done}, {count}")
            self.set_number(1, done)
            self.copy(self.state.regs[3], self.reg(3), self.reg(2))
        self.set_number(0, done)
        self.begin_frame(callees[0].depth)
        inner = [self.jump_to((callee.id, callee.entry),
                              self.provenance.call_back(self.state, callee)) for callee in callees]
        over = self.jump_to((self.frame.id, slot + 1), self.provenance.loop_over(self.state))
        if len(callees) == 1:
            self.emit(f"br i1 {more}, label %{inner[0]}, label %{over}")
            return
        code = self.value(f"select i1 {more}, i64 {self.get(f'{where}_code', 'i')}, i64 -1")
        cases = " ".join(f"i64 {callee.entry}, label %{label}"
                         for callee, label in zip(callees, inner, strict=True))
        self.emit(f"switch i64 {code}, label %{over} [ {cases} ]")

    def lower_drain(self, slot: int, where: str, operation: str, number: str) -> str:
        """Begin to drain a ring, or go on (maps/user_ringbuf.py)."""
        self.slot, helper = slot, replace(self.entry.helpers[DRAIN], map_op=operation)
        drain = f"%{where}_drain"
        self.variables[drain] = f"[{DRAIN_BYTES // 8} x i64]"
        return self.map_operation(helper, [f"ptr {drain}", f"i64 {number}"])

    def lower_walk(self, slot: int, where: str, cursor: str) -> str:
        """The next element's key and value into r2 and r3, what is handed into r4; is there one?"""
        self.slot, helper = slot, self.entry.helpers[FOR_EACH]
        found = f"%{where}_found"
        self.variables[found] = "[3 x i64]"
        following = self.map_operation(helper, [f"ptr {found}", f"i64 {cursor}"])
        self.put(f"{where}_count", "i", following)
        self.copy(self.state.regs[3], self.reg(3), self.reg(4))
        for number, offset in ((2, 0), (3, 8)):
            field = self.value(f"getelementptr inbounds i8, ptr {found}, i64 {offset}")
            self.put(self.reg(number), "p", self.value(f"load ptr, ptr {field}, align 8"))
        return self.value(f"icmp ne i64 {following}, -1")

    def lower_return(self) -> None:
        """The end of a called function."""
        assert self.frame.parent is not None
        left = self.provenance.leave(self.state, self.frame)
        if self.frame.callback:
            self.lower_loop_return(self.frame.parent, self.frame.call_slot, left)
            return
        target = (self.frame.parent.id, self.frame.call_slot + 1)
        self.emit(f"br label %{self.jump_to(target, left)}")

    def lower_loop_return(self, frame: Frame, slot: int, left: State) -> None:
        """The callback returned: 0 for another round."""
        where = self.loop_location(frame, slot)
        draining = self.provenance.drains(slot)  # the header is told the answer
        goes_on = "true" if draining else self.value(f"icmp eq i64 {self.number_of(0)}, 0")
        done = (self.number_of(0) if draining else
                self.value(f"add i64 {self.get(f'{where}_round', 'i')}, 1"))
        self.put(f"{where}_round", "i", done)
        called = self.analysis.at[(frame.id, slot)]
        self.copy(called.regs[3], where, self.location(3, frame.depth))
        if isinstance(called.regs[1], MAPS):
            self.copy(called.regs[1], f"{where}_map", self.location(1, frame.depth))
        self.set_number(0, done)
        again = self.provenance.loop_again(left, called)
        over = self.provenance.loop_over(left)
        self.emit(f"br i1 {goes_on}, label %{self.jump_to((frame.id, slot + HEADER), again)}, "
                  f"label %{self.jump_to((frame.id, slot + 1), over)}")
