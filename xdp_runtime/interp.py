"""A slow, obvious interpreter: the living definition of what a program means.

One invocation of a program on one packet:

    machine = Machine(obj, obj.program("icmp_echo"))
    result = machine.run(frame)
    result.verdict, result.data_out

Values are unsigned 64-bit Python ints or Pointers; every access is checked (interp_memory.py), and
whatever the verifier is there to prevent raises Trap.  Everything else in the project that runs
programs is tested against this file, and this file against the kernel.

Where it decides what the kernel leaves open: stack bytes never written read as zero; may_goto
leaves its loop after 65535 rounds a frame (the kernel goes by time).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard, assert_never

from xdp_runtime import state
from xdp_runtime.arena import arenas_of, cast, start_of
from xdp_runtime.entry import XDP, Entry
from xdp_runtime.fib.host import Host
from xdp_runtime.fuel import ABORTED, stretches
from xdp_runtime.helpers import kernel_name, timer
from xdp_runtime.helpers.core import next_random
from xdp_runtime.helpers.proto import Arg, Helper, Ret
from xdp_runtime.interp_alu import U64, alu, atomic, compare, sign_extend, swap
from xdp_runtime.interp_memory import (
    ArenaRegion,
    CodeRegion,
    Context,
    Fragment,
    MapRegion,
    Packet,
    PacketView,
    Pointer,
    Region,
    Stack,
    Trap,
    TrapKind,
    Value,
    new_stack,
    number_of,
)
from xdp_runtime.isa import (
    MAX_CALL_FRAMES,
    MAX_TAIL_CALLS,
    STACK_SIZE_BYTES,
    AddressCast,
    Alu,
    AluOp,
    Atomic,
    AtomicOp,
    Call,
    CallKfunc,
    CallLocal,
    CallReg,
    Exit,
    Imm,
    Insn,
    Jump,
    JumpIf,
    Load,
    LoadAcquire,
    LoadFunc,
    LoadImm64,
    LoadMap,
    LoadMapValue,
    MayGoto,
    Mov,
    Neg,
    Operand,
    Store,
    StoreRelease,
    Swap,
)
from xdp_runtime.maps.model import ModelArena, ModelMap, ModelOfMaps, ModelProgArray, make_model
from xdp_runtime.object import GlobalKind, MapFlag, MapType, Object, ProgramSpec

__all__ = ["Machine", "Packet", "Pointer", "Result", "Trap", "TrapKind"]

_PAGE_BYTES = state.PAGE_BYTES
_MAX_MEMORY_ARGUMENT = 1 << 29  # BPF_MAX_VAR_SIZ
_TIMER_KEY = 0x2C0000000000  # an address that no other region has
_LOOP_ROUNDS = 0xFFFF  # BPF_MAX_TIMED_LOOPS
_READ_ONLY_GLOBALS = (GlobalKind.RODATA, GlobalKind.KCONFIG)


@dataclass(frozen=True, slots=True)
class Result:
    """`r0` is unsigned 64 bits; `verdict` is what XDP makes of it.

    `redirect_ifindex` is what bpf_redirect was told last, None if it was not called.
    """

    r0: int
    data_out: bytes
    meta: bytes = b""
    redirect_ifindex: int | None = None
    trace: tuple[str, ...] = ()
    steps: int = 0

    @property
    def verdict(self) -> int:
        return self.r0 & 0xFFFFFFFF


class _Spent(Exception):
    """The instruction budget does not pay for what comes next."""


@dataclass
class _Frame:
    """Of one function: its program (a tail call may change it), registers, and what is left."""

    program: ProgramSpec
    pc: int
    stack: Stack
    depth: int = 0  # calls below the program's start
    registers: list[Value | None] = field(default_factory=lambda: [None] * 11)
    rounds: int = _LOOP_ROUNDS


class Machine:
    """One worker's view of one program and its maps; maps keep their contents between runs."""

    def __init__(
        self,
        obj: Object,
        program: ProgramSpec,
        maps: Sequence[ModelMap] | None = None,
        cpu: int = 0,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        random_u32: Callable[[], int] | None = None,
        budget: int = 1_000_000,
        cpus: int = 1,
        entry: Entry = XDP,
        fuel: int | None = None,
    ) -> None:
        self.obj, self.program, self.cpu, self.budget = obj, program, cpu, budget
        self.cpus = max(cpus, cpu + 1)
        self.fuel = fuel
        self.entry = entry
        self.maps = tuple(make_model(spec) for spec in obj.maps) if maps is None else tuple(maps)
        self.clock_ns = clock_ns
        self.metadata = state.RxMetadata()
        self.host = Host()  # what bpf_fib_lookup looks into
        self._prng = 0
        self.random_u32 = random_u32 or self._next_random
        self._map_regions = [
            MapRegion(f"map {model.spec.name}", bytearray(), 0, 0, 0x200000000000 + index * 0x1000,
                      map=model)
            for index, model in enumerate(self.maps)
        ]
        self._arenas = {
            index: ArenaRegion(f"map {model.spec.name}", bytearray(), 0, 0, 0, arena=model)
            for index, model in enumerate(self.maps) if isinstance(model, ModelArena)}
        self._inner_regions: dict[int, MapRegion] = {}
        by_name = {model.spec.name: model for model in self.maps}
        for outer in self.maps:
            if isinstance(outer, ModelOfMaps):
                for slot, name in outer.spec.slots:
                    outer.inner.setdefault(slot.to_bytes(4, "little"), by_name[name])
        self._begin(b"", b"", {}, state.HEADROOM_BYTES, None)

    def _next_random(self) -> int:
        self._prng, number = next_random(self._prng)
        return number

    # --- what helpers use ------------------------------------------------------------------------
    packet: Packet
    redirect_ifindex: int | None
    redirect_how: int  # state.py, HOW_*
    trace: list[str]
    _next_program: ProgramSpec | None
    _steps: int
    _fuel: int

    def value_pointer(self, model: ModelMap, cell: bytearray, offset: int = 0) -> Pointer:
        """A pointer into a map value; the same cell always gives the same region."""
        known = self._values.get(id(cell))
        if known is None:
            spec = model.spec
            read_only = spec.flags & MapFlag.RDONLY_PROG or spec.global_kind in _READ_ONLY_GLOBALS
            base = 0x300000000000 + len(self._values) * 0x100000000
            known = Region(f"a value of map {spec.name}", cell, 0, len(cell), base, not read_only)
            self._values[id(cell)] = known
        return Pointer(known, offset)

    def map_pointer(self, model: ModelMap) -> Pointer:
        """A pointer to a map that was looked up in a map of maps."""
        known = self._inner_regions.get(id(model))
        if known is None:
            base = 0x280000000000 + len(self._inner_regions) * 0x1000
            known = MapRegion(f"map {model.spec.name}", bytearray(), 0, 0, base, map=model)
            self._inner_regions[id(model)] = known
        return Pointer(known, 0)

    def read_memory(self, address: int, size: int) -> bytes:
        """What lies at a made-up address, as far as there is something."""
        regions = [*(frame.stack for frame in self._frames), *self._values.values(),
                   self.packet.view]
        for region in regions:
            at = address - region.base
            if region.low <= at < region.high:
                return bytes(region.data[at : min(at + size, region.high)])
        return b""

    def tail_call(self, model: ModelMap, index: int) -> int:
        """Note where to go, if there is somewhere and fewer than MAX_TAIL_CALLS were made."""
        if not isinstance(model, ModelProgArray):
            raise Trap(TrapKind.ARGUMENT, f"tail call through map {model.spec.name}")
        name = model.program(index) if index < model.spec.max_entries else None
        if name is not None and self._tail_calls < MAX_TAIL_CALLS:
            self._tail_calls += 1
            self._next_program = self.obj.program(name)
        return 0

    def call_back(self, code: Value, arguments: Sequence[Value | None]) -> int:
        """Run a function of the program to its end, as a helper does."""
        if not isinstance(code, Pointer) or not isinstance(code.region, CodeRegion):
            raise Trap(TrapKind.ARGUMENT, "the callback is no function")
        depth = len(self._frames)
        self._enter(self._frames[-1].program, code.offset, arguments)
        while len(self._frames) > depth:
            self._steps += 1
            if self._steps > self.budget:
                raise Trap(TrapKind.BUDGET, f"{self.budget} instructions")
            frame = self._frames[-1]
            self._charge(frame)
            self._step(frame, self._fetch(frame))
        return number_of(_read(self._frames[-1], 0))

    @property
    def running_program(self) -> ProgramSpec:
        return self._frames[-1].program

    @property
    def call_slot(self) -> int:
        """Of the helper that runs."""
        return self._frames[-1].pc - 1

    def run_timers(self) -> int | None:
        """Fire the timers that are due, as a worker does between batches; ns until the next one
        is, None if there is none."""
        return timer.run_due(self)

    def run_timer(self, program: ProgramSpec, slot: int, model: ModelMap, key: bytes,
                  cell: bytearray) -> None:
        """Run a timer's callback to its end.  Raises Trap."""
        self._begin(b"", b"", {}, state.HEADROOM_BYTES, None)
        self._frames.clear()
        at = Region("a key", bytearray(key), 0, len(key), _TIMER_KEY, writable=False)
        self._enter(program, slot, [Pointer(self._map_regions[self.maps.index(model)], 0),
                                    Pointer(at, 0), self.value_pointer(model, cell)])
        self._go_on()

    def _charge(self, frame: _Frame) -> None:
        if self.fuel is not None:
            self._fuel -= stretches(frame.program.insns).get(frame.pc, 0)
            if self._fuel < 0:
                raise _Spent

    # --- a run -----------------------------------------------------------------------------------
    def run(
        self,
        packet: bytes,
        ingress_ifindex: int = 0,
        rx_queue: int = 0,
        egress_ifindex: int = 0,
        headroom: int = state.HEADROOM_BYTES,
        tailroom: int | None = None,
        meta: bytes = b"",
        metadata: state.RxMetadata | None = None,
        linear_bytes: int | None = None,
    ) -> Result:
        """Run to the end, or until its fuel is used up (fuel.py).  Raises Trap.

        Without `tailroom` the packet may grow as far as in BPF_PROG_TEST_RUN.  As there, an
        xdp.frags program gets at most `linear_bytes` of the packet, and what a page holds, in the
        first buffer and the rest in pages.  A program with a
        raw entry gets `packet` as its memory, and `memory` holds it afterwards.
        """
        numbers = {
            state.INGRESS_IFINDEX: ingress_ifindex,
            state.RX_QUEUE_INDEX: rx_queue,
            state.EGRESS_IFINDEX: egress_ifindex,
        }
        pages: list[Fragment] = []
        if self.program.has_frags:
            first = state.linear_bytes(len(packet), headroom, linear_bytes)
            pages = [Fragment(bytearray(packet[at : at + _PAGE_BYTES].ljust(_PAGE_BYTES, b"\0")),
                              0, min(len(packet) - at, _PAGE_BYTES))
                     for at in range(first, len(packet), _PAGE_BYTES)]
            packet = packet[:first]
        self._begin(packet, meta, numbers, headroom, tailroom)
        self.packet.fragments = pages
        self.metadata = metadata or state.RxMetadata()
        self._go_on()
        end = self.packet
        return Result(
            self._r0, end.content(),
            bytes(end.frame[end.data_meta : end.data]), self._redirected_to(), tuple(self.trace),
            self._steps)

    def _go_on(self) -> None:
        """To the end of the first frame."""
        slot = 0
        while self._frames:
            frame = self._frames[-1]
            try:
                self._steps += 1
                if self._steps > self.budget:
                    raise Trap(TrapKind.BUDGET, f"{self.budget} instructions")
                self._charge(frame)
                insn = self._fetch(frame)  # if it fails, blame the instruction that led here
                slot = frame.pc - _slots_of(insn)
                self._step(frame, insn)
            except Trap as trap:
                trap.insn = slot
                raise
            except _Spent:
                self._r0 = ABORTED
                self._frames.clear()

    def _redirected_to(self) -> int | None:
        """Of a redirect to an interface: its index."""
        kind = self.redirect_how & state.HOW_KIND
        return self.redirect_ifindex if kind == state.HOW_INTERFACE else None

    def _begin(self, packet: bytes, meta: bytes, numbers: dict[int, int], headroom: int,
               tailroom: int | None) -> None:
        data_end = headroom + len(packet)
        if tailroom is None:
            tailroom = max(0, _PAGE_BYTES - state.SHARED_INFO_BYTES - data_end)
        frame = bytearray(headroom - len(meta)) + meta + packet + bytes(tailroom)
        self.packet = Packet(frame, headroom - len(meta), headroom, data_end,
                             min(state.XDP_FRAME_BYTES, headroom), data_end + tailroom)
        self.redirect_ifindex, self.redirect_how = None, 0
        self.trace = []
        self._context = Context("struct xdp_md", bytearray(), 0, state.XDP_MD_SIZE_BYTES,
                                0x400000000000, packet=self.packet, numbers=numbers)
        self._values: dict[int, Region] = {}
        self._frames: list[_Frame] = []
        self._tail_calls = self._steps = self._r0 = 0
        self._fuel = self.fuel or 0
        self._next_program = None
        self._enter(self.program, 0, self._first_arguments(packet))

    def _first_arguments(self, packet: bytes) -> list[Value | None]:
        if self.entry.memory_bytes is None:
            return [Pointer(self._context, 0)]
        self.memory = Region("the memory", bytearray(packet), 0, len(packet), 0x600000000000)
        return [Pointer(self.memory, 0) if packet else 0, len(packet)]

    def _enter(self, program: ProgramSpec, slot: int, arguments: Sequence[Value | None]) -> None:
        depth = self._frames[-1].depth + 1 if self._frames and not self._next_program else 0
        if depth == MAX_CALL_FRAMES:
            raise Trap(TrapKind.CALL_DEPTH, f"{MAX_CALL_FRAMES} frames")
        frame = _Frame(program, slot, new_stack(len(self._frames)), depth)
        frame.registers[1 : 1 + len(arguments)] = arguments
        frame.registers[10] = Pointer(frame.stack, STACK_SIZE_BYTES)
        self._frames.append(frame)

    def _fetch(self, frame: _Frame) -> Insn:
        insns = frame.program.insns
        if not 0 <= frame.pc < len(insns):
            raise Trap(TrapKind.FALLTHROUGH, f"{frame.program.name} has {len(insns)} slots")
        insn = insns[frame.pc]
        if insn is None:
            raise Trap(TrapKind.FALLTHROUGH, "jump into the middle of a 64-bit load")
        frame.pc += _slots_of(insn)
        return insn

    # --- instructions ----------------------------------------------------------------------------
    def _step(self, frame: _Frame, insn: Insn) -> None:
        """Execute one instruction; `frame.pc` is already the next slot."""
        registers = frame.registers
        match insn:
            case Alu(op, is64, dst, src):
                registers[dst] = self._alu(op, is64, _read(frame, dst), _operand(frame, src))
            case Neg(is64, dst):
                registers[dst] = alu(AluOp.SUB, is64, 0, _number(frame, dst))
            case Mov(is64, dst, src, sign_bits):
                registers[dst] = self._mov(is64, _operand(frame, src), sign_bits)
            case AddressCast(dst, src_reg, to_user):
                registers[dst] = self._cast(frame, number_of(_read(frame, src_reg)), to_user)
            case Swap(dst, bits, order):
                registers[dst] = swap(order, bits, _number(frame, dst))
            case LoadImm64(dst, value):
                registers[dst] = value & U64
            case LoadMap(dst, index):
                registers[dst] = Pointer(self._map_regions[index], 0)
            case LoadMapValue(dst, index, offset):
                registers[dst] = self._map_value(index, offset)
            case LoadFunc(dst, off):
                code = CodeRegion(f"program {frame.program.name}", bytearray(), 0, 0,
                                  0x500000000000)
                registers[dst] = Pointer(code, frame.pc - 1 + off)
            case Load(dst, src_reg, off, size, is_signed):
                loaded = _memory(frame, src_reg, off).load(size)
                if is_signed:
                    if isinstance(loaded, Pointer):
                        raise Trap(TrapKind.POINTER, "sign-extending load of a pointer")
                    loaded = sign_extend(loaded, 8 * size)
                registers[dst] = loaded
            case LoadAcquire(dst, src_reg, off, size):
                where = _memory(frame, src_reg, off)
                if _is_there(where, size):
                    registers[dst] = where.load(size)
            case Store(dst, off, size, src):
                _memory(frame, dst, off).store(size, _operand(frame, src))
            case StoreRelease(dst, off, size, src_reg):
                _memory(frame, dst, off).store(size, _read(frame, src_reg))
            case Atomic(aop, size, dst, off, src_reg, fetch):
                self._atomic(frame, aop, size, _memory(frame, dst, off), src_reg, fetch)
            case Jump(off):
                frame.pc += off
            case JumpIf(jop, is64, dst, src, off):
                left, right = number_of(_read(frame, dst)), number_of(_operand(frame, src))
                if compare(jop, is64, left, right):
                    frame.pc += off
            case MayGoto(off):
                if frame.rounds == 0:
                    frame.pc += off
                else:
                    frame.rounds -= 1
            case Call(helper):
                self._call(frame, helper)
            case CallLocal(off):
                self._call_local(frame, frame.pc + off)
            case CallReg(src_reg):
                target = _read(frame, src_reg)
                if not isinstance(target, Pointer):
                    self._call(frame, target)
                elif isinstance(target.region, CodeRegion):
                    self._call_local(frame, target.offset)
                else:
                    raise Trap(TrapKind.POINTER, f"call of {target.region.name}")
            case CallKfunc(btf_id):
                raise Trap(TrapKind.UNSUPPORTED, f"kfunc {btf_id}: kernel functions do not exist")
            case Exit():
                self._exit(frame)
            case _:
                assert_never(insn)

    def _alu(self, op: AluOp, is64: bool, a: Value, b: Value) -> Value:
        """Pointers may be moved by numbers and subtracted from each other, no more.

        On 32 bits only subtraction is allowed, and gives a number, as in the kernel with
        CAP_PERFMON: it is how clang computes a packet's length.
        """
        if not isinstance(a, Pointer) and not isinstance(b, Pointer):
            return alu(op, is64, a, b)
        arena = next((one.region for one in (a, b) if isinstance(one, Pointer)
                      and isinstance(one.region, ArenaRegion)), None)
        if arena is not None:
            return Pointer(arena, alu(op, is64, number_of(a), number_of(b)) & 0xFFFFFFFF)
        if op is AluOp.SUB and not is64:
            return alu(op, is64, number_of(a), number_of(b))
        if is64:
            match op, a, b:
                case AluOp.ADD, Pointer(), int():
                    return a.moved(b)
                case AluOp.ADD, int(), Pointer():
                    return b.moved(a)
                case AluOp.SUB, Pointer(), int():
                    return a.moved(-b)
                case AluOp.SUB, Pointer(), Pointer():
                    return (a.address - b.address) & U64
        raise Trap(TrapKind.POINTER, f"{op.name} on {64 if is64 else 32} bits of a pointer")

    def _mov(self, is64: bool, value: Value, sign_bits: int) -> Value:
        """Part of a pointer is a number."""
        if isinstance(value, Pointer):
            if is64 and not sign_bits:
                return value
            value = value.address
        if sign_bits:
            value = sign_extend(value, sign_bits)
        return value if is64 else value & 0xFFFFFFFF

    def _cast(self, frame: _Frame, address: int, to_user: bool) -> Value:
        index = next(iter(arenas_of(frame.program.insns, self.obj.maps)), -1)
        model = self.maps[index] if index >= 0 else None
        if not isinstance(model, ModelArena):
            raise Trap(TrapKind.UNSUPPORTED, "addr_space_cast in a program that uses no arena")
        moved = cast(model.spec, address, to_user)
        return moved if to_user else Pointer(self._arenas[index], moved)

    def _map_value(self, index: int, offset: int) -> Value:
        model = self.maps[index]
        if isinstance(model, ModelArena):
            return start_of(model.spec) + offset
        cell = model.lookup(bytes(model.spec.key_size))
        if cell is None:
            raise Trap(TrapKind.UNSUPPORTED, f"address of the first value of {model.spec.name}")
        return self.value_pointer(model, cell, offset)

    def _atomic(self, frame: _Frame, op: AtomicOp, size: int, where: Pointer, src: int,
                fetch: bool) -> None:
        operand = number_of(_read(frame, src))
        r0 = number_of(_read(frame, 0)) if op is AtomicOp.CMPXCHG else 0
        if not _is_there(where, size):
            if op is AtomicOp.CMPXCHG:
                frame.registers[0] = r0
            elif fetch:
                frame.registers[src] = operand
            return
        old = number_of(where.load(size))
        where.store(size, atomic(op, size, old, operand, r0))
        if op is AtomicOp.CMPXCHG:
            frame.registers[0] = old
        elif fetch:
            frame.registers[src] = old

    # --- calls -----------------------------------------------------------------------------------
    def _call_local(self, frame: _Frame, slot: int) -> None:
        self._enter(frame.program, slot, frame.registers[1:6])

    def _exit(self, frame: _Frame) -> None:
        r0 = frame.registers[0]
        self._frames.pop()
        if self._frames:
            registers = self._frames[-1].registers
            registers[0] = r0  # a static function may leave it uninitialised
            registers[1:6] = [None] * 5
            return
        r0 = _read(frame, 0)
        if isinstance(r0, Pointer):
            raise Trap(TrapKind.LEAK, f"r0 points into {r0.region.name}")
        self._r0 = r0

    def _call(self, frame: _Frame, number: int) -> None:
        helper = self.entry.helpers.get(number)
        if helper is None:
            poisoned = {slot: why for slot, why, _ in frame.program.poisoned}
            raise Trap(TrapKind.HELPER, poisoned.get(
                self.call_slot, f"{kernel_name(number)} does not exist here"))
        if helper.interpret is None:
            raise Trap(TrapKind.HELPER, f"{kernel_name(number)} does not run here yet")
        result: Value = helper.interpret(self, *self._arguments(frame, helper))
        if helper.changes_packet:
            self.packet.changed()
        if self._next_program is not None:
            self._frames.pop()  # whose caller the next program returns to
            self._enter(self._next_program, 0, [Pointer(self._context, 0)])
            self._next_program = None
            return
        frame.registers[1:6] = [None] * 5
        frame.registers[0] = (
            None if helper.ret is Ret.VOID
            else result if isinstance(result, Pointer)
            else result & (0xFFFFFFFF if helper.is_function else U64))

    def _arguments(self, frame: _Frame, helper: Helper) -> list[object]:
        """What `interpret` gets: the map, bytes for memory that is read, numbers."""
        arguments: list[object] = []
        model: ModelMap | None = None
        for n, kind in enumerate(helper.args, start=1):
            if kind is Arg.UNCHECKED and frame.registers[n] is None:
                arguments.append(0)
                continue
            value = _read(frame, n)
            match kind:
                case Arg.ANYTHING | Arg.NUMBER | Arg.UNCHECKED:
                    arguments.append(number_of(value))
                case Arg.BUFFER_OR_NULL:
                    arguments.append(0 if value == 0 else _memory(frame, n, 0))
                case Arg.STRING:
                    arguments.append(_text(frame, n))
                case Arg.SIZE | Arg.SIZE_OR_ZERO:
                    if isinstance(value, Pointer):
                        raise _bad_argument(helper, n, "a pointer, not a size")
                    arguments.append(value)
                case Arg.CTX:
                    if value != Pointer(self._context, 0):
                        raise _bad_argument(helper, n, "not the context")
                    arguments.append(value)
                case Arg.MAP:
                    if not isinstance(value, Pointer) or not isinstance(value.region, MapRegion):
                        raise _bad_argument(helper, n, "not a map")
                    model = value.region.map
                    arguments.append(model)
                case Arg.MAP_KEY | Arg.MAP_VALUE:
                    assert model is not None
                    spec = model.spec
                    size = spec.key_size if kind is Arg.MAP_KEY else spec.value_size
                    arguments.append(_read_bytes(frame, n, size))
                case Arg.MEM | Arg.MEM_OR_NULL:
                    size = self._size_argument(frame, helper, n + 1)
                    null_allowed = kind is Arg.MEM_OR_NULL and value == 0 and size == 0
                    given: bytes | memoryview = b"" if null_allowed else _read_bytes(frame, n, size)
                    if Arg.FIXED_UNINIT in helper.args:  # which may lie in what is read
                        place = _memory(frame, n, 0)
                        given = memoryview(place.region.data)[place.offset : place.offset + size]
                    arguments.append(given)
                case Arg.TEXT:
                    arguments.append(_memory(frame, n, 0))
                case Arg.MEM_UNINIT | Arg.MEM_UNINIT_OR_NULL:
                    size = self._size_argument(frame, helper, n + 1)
                    if kind is Arg.MEM_UNINIT_OR_NULL and value == 0 and size == 0:
                        arguments.append(0)
                    else:
                        arguments.append(_written(frame, n, size))
                case Arg.MAP_VALUE_UNINIT:
                    assert model is not None
                    asked = model.spec.type == MapType.BLOOM_FILTER  # its peek writes nothing
                    arguments.append(_memory(frame, n, 0) if asked
                                     else _written(frame, n, model.spec.value_size))
                case Arg.FIXED:
                    arguments.append(_read_bytes(frame, n, helper.size_of(n)))
                case Arg.FIXED_UNINIT:
                    arguments.append(_written(frame, n, helper.size_of(n)))
                case Arg.CONST_TEXT:
                    place = _memory(frame, n, 0)
                    arguments.append(bytes(place.region.data[place.offset : place.region.high]))
                case Arg.CONST_SIZE:
                    arguments.append(number_of(value))
                case (Arg.RECORD | Arg.STACK_OR_NULL | Arg.CALLBACK | Arg.DYNPTR
                      | Arg.DYNPTR_UNINIT | Arg.DYNPTR_RELEASE | Arg.SPIN_LOCK | Arg.TIMER
                      | Arg.ITERATOR | Arg.ITERATOR_UNINIT | Arg.IRQ_FLAGS
                      | Arg.IRQ_FLAGS_UNINIT):
                    arguments.append(value)
                case Arg.SOCKET | Arg.SOCKET_RELEASE | Arg.OBJECT:
                    raise _bad_argument(helper, n, "of a kind that does not exist here yet")
                case _:
                    assert_never(kind)
        return arguments

    def _size_argument(self, frame: _Frame, helper: Helper, n: int) -> int:
        size = _read(frame, n)
        if isinstance(size, Pointer) or size >= _MAX_MEMORY_ARGUMENT:
            raise _bad_argument(helper, n, "not a size")
        if size == 0 and helper.args[n - 1] is Arg.SIZE:
            raise _bad_argument(helper, n, "zero size")
        return size


def _slots_of(insn: Insn) -> int:
    return 2 if isinstance(insn, LoadImm64 | LoadMap | LoadMapValue | LoadFunc) else 1


# --- registers and memory ------------------------------------------------------------------------
def _read(frame: _Frame, n: int) -> Value:
    """A pointer into the packet from before it was changed is a mere number."""
    value = frame.registers[n]
    if value is None:
        raise Trap(TrapKind.UNINIT, f"r{n} was never written")
    return value.address if _is_stale(value) else value


def _is_stale(value: Value | None) -> TypeGuard[Pointer]:
    return (isinstance(value, Pointer) and isinstance(value.region, PacketView)
            and not value.region.alive)


def _operand(frame: _Frame, src: Operand) -> Value:
    return src.value & U64 if isinstance(src, Imm) else _read(frame, src.n)


def _is_there(where: Pointer, size: int) -> bool:
    """Of an atomic operation on a page of an arena that is not, there remains nothing."""
    return not isinstance(where.region, ArenaRegion) or where.region.has(where.offset, size)


def _number(frame: _Frame, n: int) -> int:
    value = _read(frame, n)
    if isinstance(value, Pointer) and isinstance(value.region, ArenaRegion):
        return value.offset
    if isinstance(value, Pointer):
        raise Trap(TrapKind.POINTER, f"r{n} is a pointer into {value.region.name}")
    return value


def _memory(frame: _Frame, n: int, off: int) -> Pointer:
    if _is_stale(frame.registers[n]):
        raise Trap(TrapKind.STALE, f"r{n} points into the packet from before it was changed")
    value = _read(frame, n)
    if isinstance(value, Pointer):
        return Pointer(value.region, value.offset + off)
    if value == 0:
        raise Trap(TrapKind.NULL, f"r{n} is null")
    raise Trap(TrapKind.NOT_POINTER, f"r{n} is the number {value:#x}")


def _read_bytes(frame: _Frame, n: int, size: int) -> bytes:
    place = _memory(frame, n, 0)
    if isinstance(place.region, Context):
        raise Trap(TrapKind.CTX, f"r{n} is the context, not memory")
    place.region.check(place.offset, size, write=False)
    return bytes(place.region.data[place.offset : place.offset + size])


def _text(frame: _Frame, n: int) -> bytes:
    """As much as there is."""
    place = _memory(frame, n, 0)
    place.region.check(place.offset, 1, write=False)
    return bytes(place.region.data[place.offset : place.region.high])


def _written(frame: _Frame, n: int, size: int) -> Pointer:
    """Memory that the helper writes."""
    place = _memory(frame, n, 0)
    place.region.check(place.offset, size, write=True)
    return place


def _bad_argument(helper: Helper, n: int, why: str) -> Trap:
    return Trap(TrapKind.ARGUMENT, f"bpf_{helper.name}: r{n} is {why}")
