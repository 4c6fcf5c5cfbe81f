"""Instructions that work on an arena: its pointers are numbers, the lower halves of addresses.

Each access asks where its bytes are (maps/arena.py); if they are nowhere, a load gives zero, and
nothing else happens: registers that an atomic operation would have changed stay as they were.
"""

from __future__ import annotations

from xdp_runtime.arena import start_of
from xdp_runtime.compiler.accesses import Accesses
from xdp_runtime.compiler.arithmetic import Arithmetic
from xdp_runtime.compiler.calls import Calls
from xdp_runtime.compiler.kinds import Scalar, State, Uninit
from xdp_runtime.isa import (
    AddressCast,
    Alu,
    Atomic,
    AtomicOp,
    Insn,
    Load,
    LoadAcquire,
    LoadMapValue,
    Store,
    StoreRelease,
)
from xdp_runtime.maps import family_of
from xdp_runtime.maps.arena import AT
from xdp_runtime.object import MapFlag, MapType


class Arenas(Arithmetic, Accesses, Calls):
    """What lowering does where an arena is used."""

    def lower_in_arena(self, insn: Insn, after: State) -> bool:
        """Emit one instruction; False if it has nothing to do with an arena."""
        match insn:
            case AddressCast(dst, src, to_user):
                known = after.regs[dst]
                if isinstance(known, Scalar) and known.const is not None:
                    self.set_number(dst, str(known.const))
                else:
                    self.set_number(dst, self._cast(self.number_of(src), to_user))
                return True
            case LoadMapValue(dst, index, offset) if self.maps[index].type == MapType.ARENA:
                self.set_number(dst, str(start_of(self.maps[index]) + offset))
                return True
        if not self.provenance.uses_arena(self.slot):
            return False
        match insn:
            case Alu(op, is64, dst, operand):
                bits = 64 if is64 else 32
                left, right = self.narrow(self.number_of(dst), bits), self.operand(operand)
                result = self.arithmetic(op, bits, left, self.narrow(right, bits))
                self.set_number(dst, self.widen(self.narrow(result, 32) if is64 else result, 32))
            case Load(dst, base, off, size, signed):
                number = self.number_of(base)
                self.set_number(dst, "0")
                where, done = self._find(number, off, size)
                got = self.value(f"load i{size * 8}, ptr {where}, align 1")
                self.set_number(dst, self.widen(got, size * 8, signed))
                self._end(done)
            case LoadAcquire(dst, base, off, size):
                number = self.number_of(base)
                self._keep(dst)
                where, done = self._find(number, off, size)
                got = self.value(f"load atomic i{size * 8}, ptr {where} acquire, align {size}")
                self.set_number(dst, self.widen(got, size * 8))
                self._end(done)
            case Store(base, off, size, operand):
                where, done = self._find(self.number_of(base), off, size)
                value = self.narrow(self.operand(operand), size * 8)
                self.emit(f"store i{size * 8} {value}, ptr {where}, align 1")
                self._end(done)
            case StoreRelease(base, off, size, src):
                where, done = self._find(self.number_of(base), off, size)
                value = self.narrow(self.number_of(src), size * 8)
                self.emit(f"store atomic i{size * 8} {value}, ptr {where} release, align {size}")
                self._end(done)
            case Atomic(op, size, base, off, src, fetch):
                number = self.number_of(base)
                if op is AtomicOp.CMPXCHG:
                    self._keep(0)
                elif fetch:
                    self._keep(src)
                where, done = self._find(number, off, size)
                self.lower_atomic_at(insn, where)
                self._end(done)
            case _:
                return False
        return True

    def _keep(self, register: int) -> None:
        """Whatever it holds, it is a number if the access comes to nothing."""
        kind = self.state.regs[register]
        self.set_number(register, "0" if isinstance(kind, Uninit) else self.number_of(register))

    def _cast(self, value: str, to_user: bool) -> str:
        spec = self.maps[self.provenance.arena]
        lower = self.widen(self.narrow(value, 32), 32)
        upper = start_of(spec) >> 32 << 32
        if not to_user or spec.flags & MapFlag.NO_USER_CONV:
            return lower
        null = self.value(f"icmp eq i64 {lower}, 0")
        whole = self.value(f"or i64 {lower}, {upper}")
        return self.value(f"select i1 {null}, i64 0, i64 {whole}")

    def _find(self, number: str, off: int, size: int) -> tuple[str, str]:
        """Go on where the bytes are there: (their address, the label where they are not)."""
        index = self.provenance.arena
        spec = self.maps[index]
        leading = [f"ptr {self.region(index, p)}" if isinstance(p, str) else f"i64 {p}"
                   for p in family_of(spec).parameters(spec, self.workers)]
        address = self.value(f"add i64 {number}, {off}") if off else number
        where = self.call_template(AT, [*leading, "i64 0", f"i64 {address}", f"i64 {size}"])
        nowhere = self.value(f"icmp eq ptr {where}, null")
        there, done = self.label("there"), self.label("accessed")
        self.emit(f"br i1 {nowhere}, label %{done}, label %{there}")
        self.start(there)
        return where, done

    def _end(self, done: str) -> None:
        self.emit(f"br label %{done}")
        self.start(done)
