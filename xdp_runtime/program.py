"""Program: an Object's program, verified, lowered and compiled for this machine, with its maps.

    program = load(read_object("firewall.o"))
    result = program.run(packet)          # verdict, bytes
    program.maps["blocked_ports"][443] = 1

`load` is also what the worker loop builds on: it passes the loop as a `Unit`, and the loop, the
program and the maps become one module.
"""

from __future__ import annotations

import ctypes
import mmap
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from xdp_runtime import repeat
from xdp_runtime import state as st
from xdp_runtime.compiler import link
from xdp_runtime.compiler.image import Image
from xdp_runtime.core_relo import settle
from xdp_runtime.errors import ConfigError, LoadError, OutOfMemory
from xdp_runtime.fib import EXTERNAL as FIB
from xdp_runtime.fib.tables import Tables
from xdp_runtime.helpers.clock import JIFFIES64, jiffies_base_ns
from xdp_runtime.isa import Call
from xdp_runtime.maps import dev, heir
from xdp_runtime.maps.map import BTF_NAME, Map
from xdp_runtime.maps.typed import BtfCodec, TypedMap
from xdp_runtime.object import REPLACES, MapType, Object, ProgramSpec

if TYPE_CHECKING:
    from xdp_runtime.compiler.target import Code
    from xdp_runtime.policy import ExtensionClass

_TAILROOM, _FRAME = st.SHARED_INFO_BYTES, st.PAGE_BYTES
# An odd number of cache lines between the repeated frames and a page's multiple: at one offset of
# their pages they would share a set of the cache, and a load would wait for another frame's store
# with the same last 12 bits of its address.  That cost 0.1 to 11 ns a packet.
_STAGGER_BYTES = 64 * 17
_NOTHING_KNOWN = st.RxMetadata()


@dataclass(frozen=True, slots=True)
class RunResult:
    """What one packet came to.  `retval` is the program's return value as u32."""

    retval: int
    data_out: bytes
    meta: bytes
    redirect_ifindex: int
    duration_ns: float = 0.0
    changes: int = 0

    @property
    def verdict(self) -> st.Verdict:
        known = self.retval <= max(st.Verdict)
        return st.Verdict(self.retval) if known else st.Verdict.ABORTED


class Program:
    """A compiled program and its maps.  Close it, or use it as a context manager."""

    def __init__(self, obj: Object, spec: ProgramSpec, maps: Sequence[Map], workers: int,
                 image: Image, addresses: Mapping[str, int] | None = None,
                 kept: Sequence[Map] = (), fib: Tables | None = None) -> None:
        from xdp_runtime.compiler import map_ops

        self.object, self.spec, self.workers, self.image = obj, spec, workers, image
        self.names = tuple(one.name for one in link.compiled_programs(obj, spec))  # by number
        self.all_maps = [*maps, *(m for m in kept if m not in maps)]
        self.raw_maps: dict[str, Map] = {m.spec.name: m for m in maps}  # in bytes
        self._memory = mmap.mmap(-1, _round(st.WORKER_SIZE_BYTES) * workers)
        self._view = (ctypes.c_char * len(self._memory)).from_buffer(self._memory)
        imports = dict(addresses or {})
        self.fib = fib  # the host's forwarding tables, if it looks into them
        if fib is not None:
            imports[FIB] = fib.address
            fib.join(self.pass_batches)
        for index, m in enumerate(maps):
            imports |= {f"map.{index}.{name}": where for name, where in m.symbols().items()}
        self._imports = imports
        self.code = self._linked(image)
        self._bind_repeat()
        for m in maps:
            m.codec = BtfCodec.of(obj.btf, m.spec)
            if m not in kept:
                m.bind_later(partial(map_ops.compile_operations, m))
        self.maps: dict[str, TypedMap] = {m.spec.name: m.typed for m in maps}
        self._lines: list[ctypes.Array[ctypes.c_uint64]] = []
        self._watched: dict[int, tuple[Map, memoryview, list[tuple[int, int]]]] = {}
        self._watch(*self.all_maps)
        self._fill_program_arrays()
        self._allow_programs()
        if any(type(insn) is Call and insn.helper == JIFFIES64
               for one in link.compiled_programs(obj, spec) for insn in one.insns):
            for worker in range(workers):
                where = self.worker_memory(worker) + st.W_JIFFIES
                ctypes.c_uint64.from_address(where).value = jiffies_base_ns()
        for m in maps:
            m.on_inner = self._watch
            m.readers.append(self.pass_batches)
            if m not in kept and m.spec.type in (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS):
                for slot, inner in m.spec.slots:
                    m.set_inner(slot.to_bytes(4, "little"), self.raw_maps[inner])

    def _linked(self, image: Image) -> Code:
        from xdp_runtime.compiler.target import Code

        return Code(image.object_code, {s: self._imports[s] for s in image.symbols}, image.exports,
                    image.apart)

    def _bind_repeat(self) -> None:
        self._repeat: Callable[[int, bytes, int, int, int], int] | None = None
        if repeat.REPEAT in self.image.exports:
            self._repeat = self.code.function(
                repeat.REPEAT, ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64,
                ctypes.c_int64, ctypes.c_int64)
            self._fire = self.code.function(repeat.FIRE, ctypes.c_int64, ctypes.c_void_p,
                                            ctypes.c_int64)

    def recode(self, image: Image) -> Code:
        """Go on by other machine code of the same program, on the same memory: maps, workers,
        timers and what the program has said stay what they are.  The former code is the caller's
        to keep as long as somebody runs it.  Raises RuntimeError, and nothing has changed."""
        former, self.code = self.code, self._linked(image)
        self.image = image
        self._bind_repeat()
        return former

    def worker_memory(self, worker: int) -> int:
        """Address of a worker's private memory (state.py, W_*)."""
        return ctypes.addressof(self._view) + worker * _round(st.WORKER_SIZE_BYTES)

    def _watch(self, *maps: Map) -> None:
        """From the next batch on, let the workers say to these maps where their batches end.

        Returns when no worker is in a batch that began before (pool.py)."""
        new = [m for m in maps if m.has_pools and id(m) not in self._watched]
        if not new:
            return
        for m in new:  # the view keeps the memory mapped if the map is closed before the program
            self._watched[id(m)] = m, m.memory("head"), [m.line(w) for w in range(self.workers)]
        batches = []
        for worker in range(self.workers):
            words = [w for _, _, lines in self._watched.values() for w in lines[worker]]
            block = (ctypes.c_uint64 * (1 + len(words)))(len(words) // 2, *words)
            self._lines.append(block)  # a worker may read an old one as long as it lives
            memory = self.worker_memory(worker)
            ctypes.c_uint64.from_address(memory + st.W_LINES).value = ctypes.addressof(block)
            batches.append(ctypes.c_uint64.from_address(memory + st.W_EPOCH))
        for batch in batches:
            began = batch.value
            while began & 1 and batch.value == began:
                time.sleep(0.0001)

    def pass_batches(self, timeout_s: float = 5.0) -> bool:
        """Wait until each worker has been between two batches; False on time-out."""
        deadline = time.monotonic() + timeout_s
        for worker in range(self.workers):
            batch = ctypes.c_uint64.from_address(self.worker_memory(worker) + st.W_EPOCH)
            began = batch.value
            while began & 1 and batch.value == began:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.0001)
        return True

    def spent(self, worker: int) -> int:
        """Packets whose program was ended because its instruction budget was used up."""
        at = self.worker_memory(worker) + st.W_SPENT
        return ctypes.c_uint64.from_address(at).value

    def worker_bytes(self, worker: int) -> memoryview:
        start = worker * _round(st.WORKER_SIZE_BYTES)
        return memoryview(self._memory)[start : start + st.WORKER_SIZE_BYTES]

    def program_number(self, name: str) -> int:
        """A program's place in this module, or KeyError.  Plus 1 it is what a slot of a PROG_ARRAY
        holds, and what entries of DEVMAP, DEVMAP_HASH and CPUMAP hold as their program."""
        if name in self.names:
            return self.names.index(name)
        raise KeyError(f"program {name!r} is not compiled with {self.spec.name}")

    def second_numbers(self) -> dict[str, int]:
        """Programs of xdp/devmap and xdp/cpumap, and the numbers that entries of maps have for
        them."""
        return {one.name: self.program_number(one.name) + 1
                for one in link.second_programs(self.object, self.spec)}

    def _allow_programs(self) -> None:
        """Entries of maps may name programs that were made for them."""
        second = link.second_programs(self.object, self.spec)
        for m in self.raw_maps.values():
            place = dev.PROGRAMS_OF.get(m.spec.type)
            if place is not None:
                dev.allow(m, [self.program_number(p.name) + 1 for p in second
                              if p.place == place])

    def _fill_program_arrays(self) -> None:
        for m in self.raw_maps.values():
            if m.spec.type != MapType.PROG_ARRAY:
                continue
            for index, name in m.spec.slots:
                try:
                    number = self.program_number(name)
                except KeyError:
                    continue  # an array that this program never tail-calls through
                m.memory("values")[4 * index : 4 * index + 4] = (number + 1).to_bytes(4, "little")

    def run(self, packet: bytes, *, ingress_ifindex: int = 0, rx_queue: int = 0, worker: int = 0,
            headroom: int = st.HEADROOM_BYTES,
            metadata: st.RxMetadata = _NOTHING_KNOWN,
            linear_bytes: int | None = None) -> RunResult:
        """Run once on a copy of `packet`, with the room around it that the kernel gives."""
        return self.repeat(packet, 1, ingress_ifindex=ingress_ifindex, rx_queue=rx_queue,
                           worker=worker, headroom=headroom, metadata=metadata,
                           linear_bytes=linear_bytes)

    def run_timers(self, worker: int = 0) -> int | None:
        """Fire the worker's timers that are due; ns until its next is, None if there is none.

        `run` fires none: who runs by hand says when.  `repeat` does between its batches, and the
        workers of an engine do."""
        if self._repeat is None:
            raise AttributeError(f"{self.spec.name} was loaded for a worker loop")
        left = self._fire(self.worker_memory(worker), worker)
        return None if left < 0 else left

    def repeat(self, packet: bytes, count: int, *, ingress_ifindex: int = 0, rx_queue: int = 0,
               worker: int = 0, headroom: int = st.HEADROOM_BYTES,
               metadata: st.RxMetadata = _NOTHING_KNOWN,
               linear_bytes: int | None = None) -> RunResult:
        """Run `count` times, each on a fresh copy; the last outcome, and ns for one run.

        An xdp.frags program gets at most `linear_bytes` of the packet, and what a page holds, in
        the first buffer, the rest in pages, as from BPF_PROG_TEST_RUN.
        `changes` of the result counts runs whose verdict differed from the run before.
        A program loaded with other units (a worker loop) cannot be run by hand: AttributeError.
        """
        if count < 1:
            raise ValueError(f"count {count}")
        call = self._repeat
        if call is None:
            raise AttributeError(f"{self.spec.name} was loaded for a worker loop")
        first, room = len(packet), _round(headroom + len(packet) + _TAILROOM)
        if self.spec.has_frags:
            first, room = st.linear_bytes(len(packet), headroom, linear_bytes), _FRAME
        pages = _round(len(packet) - first) // _FRAME
        if pages > st.FRAGMENTS_MAX:
            raise ConfigError(f"packet of {len(packet)} bytes", f"needs {pages} buffers behind the "
                              f"first; there are {st.FRAGMENTS_MAX} at most")
        size = room + pages * _FRAME + _STAGGER_BYTES
        frame = (ctypes.c_char * (size * repeat.RING + 64))()
        records = (ctypes.c_char * (st.FRAGMENT_SIZE_BYTES * st.FRAGMENTS_MAX))()
        run = (ctypes.c_char * st.STATE_SIZE_BYTES)()
        base = (ctypes.addressof(frame) + 63) & ~63
        self._prepare(run, base, headroom, first, room, ingress_ifindex, rx_queue, worker)
        ctypes.c_uint64.from_buffer(run, st.FRAGMENTS).value = ctypes.addressof(records)
        ctypes.memmove(ctypes.addressof(run) + st.RX_KNOWN, metadata.encode(),
                       st.RX_END - st.RX_KNOWN)
        started = time.perf_counter_ns()
        outcome = call(ctypes.addressof(run), packet, len(packet), count, size)
        elapsed = time.perf_counter_ns() - started
        return self._result(outcome, run, elapsed / count)

    def _prepare(self, run: Any, base: int, headroom: int, length: int, size: int,
                 ingress_ifindex: int, rx_queue: int, worker: int) -> None:
        pointers = {st.DATA: base + headroom, st.DATA_END: base + headroom + length,
                    st.DATA_META: base + headroom, st.HARD_START: base + st.XDP_FRAME_BYTES,
                    st.FRAME_END: base + size - _TAILROOM, st.WORKER: self.worker_memory(worker)}
        for offset, value in pointers.items():
            ctypes.c_uint64.from_buffer(run, offset).value = value
        numbers = {st.INGRESS_IFINDEX: ingress_ifindex, st.RX_QUEUE_INDEX: rx_queue,
                   st.WORKER_ID: worker}
        for offset, value in numbers.items():
            ctypes.c_uint32.from_buffer(run, offset).value = value

    def _result(self, outcome: int, run: Any, duration_ns: float) -> RunResult:
        def pointer(offset: int) -> int:
            return ctypes.c_uint64.from_buffer(run, offset).value

        def number(offset: int) -> int:
            return ctypes.c_uint32.from_buffer(run, offset).value

        data, end, meta = pointer(st.DATA), pointer(st.DATA_END), pointer(st.DATA_META)
        packet = ctypes.string_at(data, end - data)
        for index in range(number(st.FRAGMENT_COUNT)):
            record = pointer(st.FRAGMENTS) + index * st.FRAGMENT_SIZE_BYTES
            start, end = (ctypes.c_uint64.from_address(record + edge).value
                          for edge in (st.FRAGMENT_DATA, st.FRAGMENT_END))
            packet += ctypes.string_at(start, end - start)
        return RunResult(
            outcome & 0xFFFFFFFF, packet,
            ctypes.string_at(meta, data - meta),
            number(st.REDIRECT_IFINDEX), duration_ns, outcome >> 32)

    def close(self, keep: Sequence[Map] = ()) -> None:
        """Give memory and maps back, but those that a successor has taken over."""
        for worker in range(self.workers):
            ctypes.c_uint64.from_address(self.worker_memory(worker) + st.W_LINES).value = 0
        for _, head, _ in self._watched.values():
            head.release()
        self._watched.clear()
        for m in self.all_maps:
            if self.pass_batches in m.readers:
                m.readers.remove(self.pass_batches)
            if m not in keep:
                m.close()
        if self.fib is not None:
            self.fib.leave(self.pass_batches)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def load(obj: Object, name: str | None = None, *, workers: int = 1, opt: int = 3,
         directory: Path | None = None, units: Sequence[link.Unit] | None = None,
         addresses: Mapping[str, int] | None = None, target_btf: Path | None = None,
         grants: ExtensionClass | None = None, heir_to: Program | None = None,
         compiled: Callable[..., Image] = link.compile_program) -> Program:
    """Compile a program of the object (default: its first XDP program) and create its maps.

    `units` is the code around it, if not given that of Program.run.
    `target_btf` has the types for CO-RE and is the running kernel's unless given.
    `grants` is the class that the program is bound to: it is refused if it does more, and its
    instructions are counted where the class has a budget that cannot be proven to suffice.
    `directory` holds the maps' memory as named files; None keeps it anonymous.
    `heir_to` is a running program whose maps it takes over where they fit (maps/heir.py); when no
    worker runs that one any more, it is closed by `close(keep=heir.all_maps)`.
    `compiled` makes the machine code (compiler/tiers.py).
    Raises LoadError, VerifyError, OutOfMemory; nothing is left behind then.
    """
    obj = settle(obj, target_btf)
    spec = obj.program(name)
    if spec.replaces:
        raise LoadError(f"program {spec.name}", REPLACES)
    if not spec.is_xdp:
        raise LoadError(f"program {spec.name}", f"section {spec.section!r} is not XDP",
                        'put it in SEC("xdp")')
    fuel = None
    if grants is not None:
        from xdp_runtime.policy import enforce

        budgets = [enforce(obj, one, grants) for one in (spec, *link.second_programs(obj, spec))]
        fuel = next((budget for budget in budgets if budget is not None), None)
    if workers > st.max_workers():
        raise LoadError(f"program {spec.name}", f"{workers} workers are more than this machine has "
                        f"CPUs ({st.max_workers()})", "use fewer queues")
    if units is None:
        units = (repeat.UNIT_FRAGS if spec.has_frags else repeat.UNIT,)
    image = compiled(obj, spec, workers, opt, units, fuel)
    with ExitStack() as undo:
        try:
            return _with_maps(obj, spec, workers, image, addresses, directory, heir_to, undo)
        except MemoryError as error:
            raise OutOfMemory(f"maps of {obj.name}", "no memory") from error


def _with_maps(obj: Object, spec: ProgramSpec, workers: int, image: Image,
               addresses: Mapping[str, int] | None, directory: Path | None,
               former: Program | None, undo: ExitStack) -> Program:
    """The program on maps of its own, and those it inherits."""
    old = former.all_maps if former is not None else []
    home = directory
    if directory is not None and former is not None:  # their names are taken as yet
        home = Path(tempfile.mkdtemp(prefix=".next.", dir=directory))
        undo.callback(shutil.rmtree, home)
    inherited: dict[str, Map] = {}
    maps: list[Map] = []
    with ExitStack() as made:
        for map_spec in obj.maps:
            found = heir.find(map_spec, old, workers)
            if found is None:
                maps.append(made.enter_context(Map.create(map_spec, workers, home)))
            else:
                maps.append(found)
                inherited[map_spec.name] = found
        fib = former.fib if former is not None else None
        if FIB in image.symbols and FIB not in (addresses or {}):
            fib = fib or made.enter_context(Tables.create())
        else:
            fib = None
        program = Program(obj, spec, maps, workers, image, addresses,
                          heir.with_inner(inherited.values()), fib)
        made.pop_all()
    for map_spec in obj.maps:
        if map_spec.name in inherited:
            heir.retype(inherited[map_spec.name], map_spec)
    if directory is not None:
        if former is not None:
            heir.settle_names([m for m in maps if m not in old], old, directory)
        if obj.btf is not None:
            (directory / BTF_NAME).write_bytes(obj.btf.raw)
    return program


def _round(size: int) -> int:
    return (size + 4095) // 4096 * 4096

