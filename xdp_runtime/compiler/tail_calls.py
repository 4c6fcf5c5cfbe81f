"""bpf_tail_call: a PROG_ARRAY's slot holds a program's number, and the call is a switch."""

from __future__ import annotations

from xdp_runtime import state as st
from xdp_runtime.compiler.charges import Charges
from xdp_runtime.compiler.kinds import MapPtr
from xdp_runtime.isa import MAX_TAIL_CALLS


class TailCalls(Charges):
    def lower_tail_call(self) -> None:
        if self.timer is not None:
            raise self.provenance.unsupported(self.slot, "bpf_tail_call in a timer's callback")
        if self.frame.parent is not None:
            raise self.provenance.unsupported(self.slot, "bpf_tail_call in a called function")
        kind = self.state.regs[2]
        if not isinstance(kind, MapPtr):
            raise self.provenance.unsupported(self.slot, "a PROG_ARRAY that differs by path")
        spec = self.maps[kind.map]
        made, miss = self.label("tail"), self.label("miss")
        index = self.narrow(self.number_of(3), 32)
        inside = self.value(f"icmp ult i32 {index}, {spec.max_entries}")
        count = self.get_state(st.TAIL_CALLS, "i32")
        allowed = self.value(f"icmp ult i32 {count}, {MAX_TAIL_CALLS}")
        self.emit(f"br i1 {self.value(f'and i1 {inside}, {allowed}')}, label %{made}, "
                  f"label %{miss}")
        self.start(made)
        wide = self.widen(index, 32)
        base = self.region(kind.map, "values")
        slot = self.value(f"getelementptr inbounds i32, ptr {base}, i64 {wide}")
        held = self.value(f"load atomic i32, ptr {slot} monotonic, align 4")
        cases, bodies = [], []
        for number in self.tail_targets:
            label = self.label("to")
            cases.append(f"i32 {number + 1}, label %{label}")
            bodies.append((label, number))
        self.emit(f"switch i32 {held}, label %{miss} [ {' '.join(cases)} ]")
        for label, number in bodies:
            self.start(label)
            self.put_state(st.TAIL_CALLS, "i32", self.value(f"add i32 {count}, 1"))
            if number == self.number:  # a call of this very program is a loop
                self.emit("br label %again")
                continue
            self.put_state(st.PROGRAM, "i32", str(number))
            if self.charges:
                left = self.value("load i64, ptr %fuel")
                self.emit(f"store i64 {left}, ptr {self.fuel_field()}")
            result = self.value(f'musttail call i32 @"prog.{number}"(ptr %state)')
            self.emit(f"ret i32 {result}")
        self.start(miss)
