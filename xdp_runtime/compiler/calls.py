"""Calls of helpers: each becomes the call of a template, which is inlined later.

A map helper becomes the operation of the map's family, with what is constant about the map as
leading arguments; where the map differs by path, a switch over those that it may be.
"""

from __future__ import annotations

from typing import assert_never

from xdp_runtime import state as st
from xdp_runtime.compiler.frames import callbacks_of
from xdp_runtime.compiler.kinds import MapValue, Packet, Scalar, StackPtr, State, Uninit
from xdp_runtime.compiler.registers import Registers
from xdp_runtime.helpers.proto import TIMERS, Arg, Helper, Ret
from xdp_runtime.helpers.timer import TIMER_INIT, TIMER_SET_CALLBACK
from xdp_runtime.maps import family_of, timers
from xdp_runtime.maps.hash_table import value_offset
from xdp_runtime.maps.of_maps import parameters_of
from xdp_runtime.maps.pool import LIVE
from xdp_runtime.object import MapSpec, MapType
from xdp_runtime.template import Template

CALLBACK_SHIFT = 16  # of a callback's slot in its number


class Calls(Registers):
    def lower_call(self, helper: Helper, after: State) -> None:
        if helper.id in TIMERS:
            self.lower_timer(helper)
            return
        arguments: list[str] = []
        for position, arg in enumerate(helper.args, 1):
            match arg:
                case Arg.MAP:
                    pass
                case Arg.CTX:
                    arguments.append("ptr %state")
                case Arg.UNCHECKED if isinstance(self.state.regs[position], Uninit):
                    arguments.append("i64 0")
                case (Arg.ANYTHING | Arg.NUMBER | Arg.UNCHECKED | Arg.SIZE | Arg.SIZE_OR_ZERO
                      | Arg.CONST_SIZE):
                    arguments.append(f"i64 {self.number_of(position)}")
                case (Arg.MAP_KEY | Arg.MAP_VALUE | Arg.MEM | Arg.MEM_OR_NULL
                      | Arg.MEM_UNINIT | Arg.TEXT | Arg.MAP_VALUE_UNINIT | Arg.FIXED
                      | Arg.FIXED_UNINIT | Arg.MEM_UNINIT_OR_NULL | Arg.CONST_TEXT | Arg.RECORD
                      | Arg.DYNPTR | Arg.DYNPTR_UNINIT | Arg.DYNPTR_RELEASE | Arg.SPIN_LOCK
                      | Arg.ITERATOR | Arg.ITERATOR_UNINIT | Arg.IRQ_FLAGS | Arg.IRQ_FLAGS_UNINIT
                      | Arg.BUFFER_OR_NULL):
                    null = isinstance(self.state.regs[position], Scalar)
                    arguments.append(f"ptr {'null' if null else self.address(position, 0)}")
                case Arg.STRING:
                    where = self.address(position, 0)
                    arguments += [f"ptr {where}", f"i64 {self.room(position, where)}"]
                case (Arg.SOCKET | Arg.SOCKET_RELEASE | Arg.TIMER | Arg.CALLBACK
                      | Arg.STACK_OR_NULL | Arg.OBJECT):
                    raise self.provenance.unsupported(self.slot, f"bpf_{helper.name}")
                case _:
                    assert_never(arg)
        if helper.map_op is not None:
            result = self.map_operation(helper, arguments)
        else:
            assert helper.template is not None, helper.name
            if helper.needs_state:
                arguments.insert(0, "ptr %state")
            template = helper.template
            if self.program.has_frags and helper.frags_template is not None:
                template = helper.frags_template
            result = self.call_template(template, arguments)
        if helper.changes_packet:
            self.packet_pointers_to_numbers()
        match helper.ret:
            case Ret.SCALAR:
                if helper.is_function:
                    result = self.widen(self.narrow(result, 32), 32)
                self.set_number(0, result)
            case Ret.MAP_VALUE_OR_NULL | Ret.RECORD_OR_NULL | Ret.DATA_OR_NULL:
                self.put("r0", "p", result)
            case Ret.VOID:
                pass
            case Ret.SOCKET_OR_NULL | Ret.OBJECT:
                raise self.provenance.unsupported(self.slot, f"bpf_{helper.name}")
            case _:
                assert_never(helper.ret)

    def room(self, position: int, where: str) -> str:
        """How many bytes there are behind the text in r<position>."""
        kind = self.state.regs[position]
        if isinstance(kind, Packet):
            end = self.get_state(st.DATA_END, "ptr")
        elif isinstance(kind, StackPtr):
            end = self.stack_address(kind.depth, 0)
        else:
            known = self.facts.rooms[self.slot, position]
            if known:
                return str(known)
            if isinstance(kind, MapValue) and kind.map >= 0:
                return self.room_in_array(kind.map, where)
            # packet and stack, stacks of two functions, or values of two maps
            raise self.provenance.unsupported(self.slot, "text that is elsewhere by path")
        high, low = (self.value(f"ptrtoint ptr {one} to i64") for one in (end, where))
        return self.value(f"sub i64 {high}, {low}")

    def room_in_array(self, index: int, where: str) -> str:
        """What is left of the value that `where` points into."""
        spec = self.maps[index]
        _, worker_stride, stride, *_ = family_of(spec).parameters(spec, self.workers)
        values = self.region(index, "values")
        first, at = (self.value(f"ptrtoint ptr {one} to i64") for one in (values, where))
        at = self.value(f"sub i64 {at}, {first}")
        for size in (worker_stride, stride):
            if size:
                at = self.value(f"urem i64 {at}, {size}")
        return self.value(f"sub i64 {spec.value_size}, {at}")

    def call_template(self, template: Template, arguments: list[str]) -> str:
        self.use(template)
        return self.value(f"call {template.result} @{template.name}({', '.join(arguments)})")

    def map_operation(self, helper: Helper, arguments: list[str]) -> str:
        """The operation of the map's family; where the map differs by path, a switch over them."""
        assert helper.map_op is not None
        run = ["ptr %state"] if helper.needs_state else []
        own = [f"i64 {self.worker_id()}", *run, *arguments]
        position = 1 + helper.args.index(Arg.MAP)
        maps = self.provenance.map_argument(self.state, helper, self.slot)
        calls: list[tuple[str, str, Template]] = []
        done = self.label("called")
        if len(maps) > 1:
            number = self.value(f"ptrtoint ptr {self.pointer(position)} to i64")
            labels = [self.label("map") for _ in maps]
            cases = " ".join(f"i64 {int(one) + 1}, label %{label}"  # type: ignore[arg-type]
                             for one, label in zip(maps[1:], labels[1:], strict=True))
            self.emit(f"switch i64 {number}, label %{labels[0]} [ {cases} ]")
        else:
            labels = [""]
        for one, label in zip(maps, labels, strict=True):
            if label:
                self.start(label)
            if isinstance(one, int):
                spec = self.maps[one]
                leading = [f"ptr {self.region(one, p)}" if isinstance(p, str) else f"i64 {p}"
                           for p in family_of(spec).parameters(spec, self.workers)]
            else:
                spec, leading = one, self.described(one, position)
            operations = family_of(spec).operations
            template = operations[helper.map_op]
            extra = [f"i64 {one if isinstance(one, int) else -1}"] if (
                helper.map_op == "redirect") else []  # BPF_F_BROADCAST comes back to the map
            if self.program.has_frags:
                template = operations.get(f"{helper.map_op}_frags", template)
            calls.append((self.call_template(template, [*leading, *own, *extra]), label, template))
            if label:
                self.emit(f"br label %{done}")
        if len(calls) == 1:
            return calls[0][0]
        self.start(done)
        incoming = ", ".join(f"[ {result}, %{label} ]" for result, label, _ in calls)
        return self.value(f"phi {calls[0][2].result} {incoming}")

    def described(self, spec: MapSpec, position: int) -> list[str]:
        """The leading parameters of an inner map: what varies is read from its descriptor."""
        family = family_of(spec)
        address = self.pointer(position)
        leading = []
        kinds = next(iter(family.operations.values())).parameters
        for number, (known, kind) in enumerate(
                zip(parameters_of(family, spec, self.workers), kinds, strict=False)):
            if known is None:
                where = self.value(
                    f"getelementptr inbounds i8, ptr {address}, i64 {8 * number}")
                leading.append(f"{kind} " + self.value(f"load {kind}, ptr {where}, align 8"))
            else:
                leading.append(f"i64 {known}")
        return leading

    def packet_pointers_to_numbers(self) -> None:
        """Packet pointers in r6-r9 may be read as numbers once a helper moved the packet."""
        frames = (*self.state.saved, tuple(self.state.regs[6:10]))
        for depth, registers in enumerate(frames):
            for number, kind in enumerate(registers, 6):
                if isinstance(kind, Packet):
                    location = self.location(number, depth)
                    pointer = self.get(location, "p")
                    self.put(location, "i", self.value(f"ptrtoint ptr {pointer} to i64"))

    # --- timers -------------------------------------------------------------------------------

    def lower_timer(self, helper: Helper) -> None:
        """maps/timers.py, with what is known of the map, and the callback's number."""
        kind = self.state.regs[1]
        arguments = ["ptr %state", f"ptr {self.address(1, 0)}"]
        if helper.id == TIMER_SET_CALLBACK:
            callbacks = callbacks_of(self.frame, self.slot, self.facts.callbacks)
            timed = [n for n, spec in enumerate(self.maps) if spec.timer_at >= 0]
            if isinstance(kind, MapValue) and kind.map >= 0:
                timed = [kind.map]
            self.out.timers |= {(slot, index) for index in timed for slot in callbacks}
            number = self.value(f"shl i64 {self.number_of(2)}, {CALLBACK_SHIFT}")
            first = timer_number(self.number, (0, 0))
            arguments.append("i64 " + self.value(f"add i64 {number}, {first}"))
        elif helper.id == TIMER_INIT:
            index, to_live = self.timed_map(helper)
            arguments += [f"i64 {index}", f"i64 {to_live}", f"i64 {self.number_of(3)}"]
        else:
            arguments += [f"i64 {self.number_of(n)}" for n in range(2, 1 + len(helper.args))]
        template = (timers.INIT, timers.SET_CALLBACK, timers.START, timers.CANCEL)
        self.set_number(0, self.call_template(template[TIMERS.index(helper.id)], arguments))

    def timed_map(self, helper: Helper) -> tuple[str, str]:
        """The number of the map in r2, and how far before a timer the byte LIVE of its element is;
        0 in an array."""
        to_live: list[tuple[int, int]] = []
        for one in self.provenance.map_argument(self.state, helper, self.slot):
            if not isinstance(one, int):
                raise self.provenance.unsupported(self.slot, "a timer in a map of a map")
            spec = self.maps[one]
            far = spec.timer_at + value_offset(spec.key_size) - LIVE
            to_live.append((one, 0 if spec.type == MapType.ARRAY else far))
        if len(to_live) == 1:
            return str(to_live[0][0]), str(to_live[0][1])
        number = self.value(f"ptrtoint ptr {self.pointer(2)} to i64")
        index, chosen = self.value(f"sub i64 {number}, 1"), "0"
        for one, far in to_live:
            here = self.value(f"icmp eq i64 {index}, {one}")
            chosen = self.value(f"select i1 {here}, i64 {far}, i64 {chosen}")
        return index, chosen


def timer_number(program: int, callback: tuple[int, int]) -> int:
    """What a callback, (slot, map index), of a program is called in its module."""
    slot, index = callback
    return program << 40 | slot << CALLBACK_SHIFT | index


def timer_name(program: int, callback: tuple[int, int]) -> str:
    return f"timer.{timer_number(program, callback)}"
