"""bpf_tail_call: a PROG_ARRAY's slot holds a program's number, and the call is a switch.

From the program itself it is a jump: LLVM's `musttail`, or a branch to the program's own start.
From a function that the program calls it is a call, as what is called takes the place of that
function alone and returns to its caller, with all 64 bits of r0.  However they nest, a packet has
MAX_TAIL_CALLS of them; the count is part of the run state.
"""

from __future__ import annotations

from xdp_runtime import state as st
from xdp_runtime.compiler.charges import Charges
from xdp_runtime.compiler.kinds import MapPtr, State
from xdp_runtime.compiler.loops import Loops
from xdp_runtime.compiler.provenance import number_is_tail_call
from xdp_runtime.helpers.proto import Helper
from xdp_runtime.isa import MAX_TAIL_CALLS


class TailCalls(Loops, Charges):
    recursive = False  # a function of the program tail-calls the program

    def lower_call(self, helper: Helper, after: State) -> None:
        if number_is_tail_call(helper):
            self.lower_tail_call()
        else:
            super().lower_call(helper, after)

    def lower_tail_call(self) -> None:
        if self.timer is not None:
            raise self.provenance.unsupported(self.slot, "bpf_tail_call in a timer's callback")
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
        bodies = [(self.label("to"), number) for number in self.tail_targets]
        cases = " ".join(f"i32 {number + 1}, label %{label}" for label, number in bodies)
        self.emit(f"switch i32 {held}, label %{miss} [ {cases} ]")
        for label, number in bodies:
            self.start(label)
            self.put_state(st.TAIL_CALLS, "i32", self.value(f"add i32 {count}, 1"))
            if self.frame.parent is not None:
                self.call_instead(number)
            elif number == self.number:  # a call of this very program is a loop
                self.emit("br label %again")
            else:
                self.go_to(number)
        self.start(miss)
        self.set_number(0, "0")

    def go_to(self, number: int) -> None:
        self.hand_over(number)
        bits = self.entry.result_bits
        result = self.value(f'musttail call i{bits} @"prog.{number}"(ptr %state)')
        self.emit(f"ret i{bits} {result}")

    def call_instead(self, number: int) -> None:
        """Call the program, and end this function with what it gives."""
        self.recursive |= number == self.number
        self.hand_over(number)
        self.set_number(0, self.value(f'call i64 @"prog.{number}"(ptr %state)'))
        self.put_state(st.PROGRAM, "i32", str(self.number))
        if self.charges:
            self.take_fuel()
            how = self.get_state(st.REDIRECT_HOW, "i32")
            spent = self.value(f"icmp eq i32 {how}, {st.HOW_SPENT}")
            going_on = self.label("left")
            self.emit(f"br i1 {spent}, label %ended, label %{going_on}")
            self.start(going_on)
        before = self.state
        self.packet_pointers_to_numbers()
        self.state = self.provenance.tail_called(before)
        self.lower_return()
        self.end_block()
        self.state = before

    def hand_over(self, number: int) -> None:
        self.put_state(st.PROGRAM, "i32", str(number))
        if self.charges:
            left = self.value("load i64, ptr %fuel")
            self.emit(f"store i64 {left}, ptr {self.fuel_field()}")
