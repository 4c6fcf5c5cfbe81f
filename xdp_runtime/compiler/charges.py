"""Counted instructions: what a program pays where its longest path is not proven (fuel.py)."""

from __future__ import annotations

from xdp_runtime import state as st
from xdp_runtime.compiler.registers import Registers
from xdp_runtime.fuel import ABORTED


class Charges(Registers):
    def take_fuel(self) -> None:
        """Into a variable of this function, as long as no other program goes on with it."""
        self.emit(f"store i64 {self.value(f'load i64, ptr {self.fuel_field()}')}, ptr %fuel")

    def fuel_field(self, offset: int = st.W_FUEL) -> str:
        worker = self.get_state(st.WORKER, "ptr")
        return self.value(f"getelementptr inbounds i8, ptr {worker}, i64 {offset}")

    def charge(self, instructions: int) -> None:
        """Pay for the stretch that begins here, or end the program (fuel.py)."""
        left = self.value("load i64, ptr %fuel")
        enough = self.value(f"icmp uge i64 {left}, {instructions}")
        label = self.label("paid")
        self.emit(f"br i1 {enough}, label %{label}, label %spent")
        self.start(label)
        self.emit(f"store i64 {self.value(f'sub i64 {left}, {instructions}')}, ptr %fuel")

    def out_of_fuel(self) -> list[str]:
        before, self.lines = self.lines, []
        self.start("spent")
        counter = self.fuel_field(st.W_SPENT)
        count = self.value(f"load i64, ptr {counter}")
        self.emit(f"store i64 {self.value(f'add i64 {count}, 1')}, ptr {counter}")
        if self.entry.memory_bytes is None:
            self.put_state(st.REDIRECT_HOW, "i32", str(st.HOW_SPENT))
        self.emit("br label %ended")
        self.start("ended")
        self.emit(f"ret i{self.entry.result_bits} {ABORTED}")
        made, self.lines = self.lines, before
        return made
