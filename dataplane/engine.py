"""Engine: a program and its ports become running workers.

    engine = Engine(obj, [port], stack={0: tap_port})
    engine.start()
    ...
    engine.stop()

Worker w owns queue w, w + W, w + 2W, ... of every port, so that a redirect between two ports stays
with one worker: queues are never shared and nothing on the packet path is locked.  W is at most
the smallest queue count of the ports, and no more than there are CPUs (at least 8).  The compiled
loop (loop.py) runs in a thread with the GIL released; Python starts it, reads counters, and stops
it.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from dataplane import chains, loop, redirect, ring_put, scouting
from dataplane import worker_block as layout
from dataplane.aborted import Area
from dataplane.block import Block
from dataplane.capture import Capture
from dataplane.capture_put import TAPS_MAX
from dataplane.late import Late
from dataplane.mesh import Mesh
from dataplane.port import BATCH_MAX, SLOT_SIZE_BYTES, Port, PortKind, PortQueue
from dataplane.ring import FOLDER, RingFile
from dataplane.rundir import write_atomic
from dataplane.stats import FlowName, Stats
from dataplane.whereabouts import describe
from xdp_runtime.compiler import link
from xdp_runtime.compiler.image import Image
from xdp_runtime.errors import ConfigError, XdpuError
from xdp_runtime.maps import budget, dev
from xdp_runtime.object import MapType, Object, ProgramSpec
from xdp_runtime.policy import ExtensionClass, enforce
from xdp_runtime.program import Program, load
from xdp_runtime.state import max_workers

_POLLIN = 1
_POLLFD = struct.Struct("<ihh")


@dataclass(frozen=True, slots=True)
class Flow:
    """A receive queue and its role, before it is written into a control block."""

    port: Port
    queue: PortQueue
    role: int
    kind: int
    partner: int  # index of the partner flow within the worker, -1: none
    owner: str  # name of the port that runs the program: its own, or that of its stack's
    block: int = 0  # number of its counters

    def name(self, worker: int) -> FlowName:
        return FlowName(worker, self.port.name, self.queue.index)


class Worker:
    """One thread running the compiled loop over its flows until told to stop."""

    def __init__(self, number: int, cpu: int | None, trace_aborted: int = 0) -> None:
        self.number, self.cpu = number, cpu
        self.flows: list[Flow] = []
        self.error: BaseException | None = None
        self.finished = False
        batch_bytes = SLOT_SIZE_BYTES * BATCH_MAX
        self._memory = mmap.mmap(-1, layout.CONTROL_SIZE_BYTES + 4096 + batch_bytes)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._batch = self._base + layout.CONTROL_SIZE_BYTES + 4096
        self._pollfds = self._base + layout.CONTROL_SIZE_BYTES
        self._scratch = Block(redirect.SCRATCH_BYTES + 8 * BATCH_MAX + chains.CHAIN_BYTES)
        self.aborted = Area(trace_aborted)
        self.rings: Sequence[RingFile] = ()
        self._lanes = Block(ring_put.TABLE_BYTES)
        self.captures: Sequence[Capture] = ()
        self._taps = Block(16 * TAPS_MAX)
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None
        self._code: Callable[[int], int] | None = None
        self._ending = self._ended = False
        self._between: deque[tuple[Callable[[Worker], None], threading.Event]] = deque()

    def prepare(self, program: Program, flows: Sequence[Flow], stats: Stats,
                settings: Mapping[int, int], paused: Container[str] = ()) -> None:
        """Write all of the control block; of a running worker only `between` batches.

        Flows of the ports named in `paused` rest."""
        self.flows = list(flows)
        fds = [self._event, *(-1 if f.owner in paused else f.queue.poll_fd  # poll(2) passes over
                              for f in self.flows)]
        numbers = {layout.C_WORKER_ID: self.number, layout.C_FLOWS: len(self.flows),
                   layout.C_POLLFD_COUNT: len(fds), layout.C_RINGS: len(self.rings), **settings}
        pointers = {layout.C_BATCH: self._batch, layout.C_POLLFDS: self._pollfds,
                    layout.C_SCRATCH: self._scratch.address,
                    layout.C_HOWS: self._scratch.address + redirect.SCRATCH_BYTES,
                    layout.C_CHAIN: self._scratch.address + redirect.SCRATCH_BYTES + 8 * BATCH_MAX,
                    layout.C_ABORTED: self.aborted.address,
                    layout.C_LANES: self._lanes.address if self.rings else 0}
        for index, fd in enumerate(fds):
            self._set_pollfd(index, fd)
        table = layout.FLOW_SIZE_BYTES * layout.FLOWS_MAX
        self._memory[layout.C_FLOW_TABLE:layout.C_FLOW_TABLE + table] = bytes(table)
        for index, flow in enumerate(self.flows):
            base = layout.C_FLOW_TABLE + index * layout.FLOW_SIZE_BYTES
            numbers |= {
                base + layout.F_KIND: flow.kind, base + layout.F_ROLE: flow.role,
                base + layout.F_IFINDEX: flow.port.ifindex,
                base + layout.F_RX_QUEUE: flow.queue.index,
                base + layout.F_PARTNER: flow.partner + 1,
                base + layout.F_PAUSED: int(flow.owner in paused),
                base + layout.F_TIMESTAMPS: flow.port.kind.timestamps + 2 * flow.port.kind.metadata,
                base + layout.F_CHAINS: int(flow.port.kind.chain is not None),
            }
            pointers |= {base + layout.F_QUEUE: flow.queue.address,
                         base + layout.F_STATS: stats.address(flow.block),
                         base + layout.F_FRAMES: flow.queue.frames}
        for offset, value in numbers.items():
            struct.pack_into("<I", self._memory, offset, value)
        for offset, value in pointers.items():
            struct.pack_into("<Q", self._memory, offset, value)
        for row, ring in enumerate(self.rings, 1):
            for column, flow in enumerate(self.flows):
                self._lanes.set(8 * (row * layout.FLOWS_MAX + column),
                                ring.lane(flow.name(self.number)))
        self.show(self.captures)
        self.use(program)

    def show(self, captures: Sequence[Capture]) -> None:
        """Let these see its packets; of a running worker only `between` batches."""
        self.captures = captures
        names = [flow.name(self.number) if flow.role == layout.ROLE_PROGRAM else None
                 for flow in self.flows]
        for row, capture in enumerate(captures):
            code, memory = capture.aim(self.number, names)
            self._taps.set(16 * row, code)
            self._taps.set(16 * row + 8, memory)
        struct.pack_into("<Q", self._memory, layout.C_TAP_TABLE, self._taps.address)
        struct.pack_into("<I", self._memory, layout.C_TAPS, len(captures))

    def connect(self, mesh: Mesh, workers: int) -> None:
        """Give this worker its ends of the rings; what it looks at first is written last."""
        for offset, number in ((layout.C_WORKERS, workers), (layout.C_EVENT, self._event)):
            struct.pack_into("<I", self._memory, offset, number)
        for offset, address in mesh.pointers(self.number).items():
            struct.pack_into("<Q", self._memory, offset, address)

    @property
    def address(self) -> int:
        """Of its control block."""
        return self._base

    def _set_pollfd(self, index: int, fd: int) -> None:
        start = layout.CONTROL_SIZE_BYTES + index * _POLLFD.size
        self._memory[start : start + _POLLFD.size] = _POLLFD.pack(fd, _POLLIN, 0)

    def use(self, program: Program) -> None:
        """Run this program's code on its memory; of a running worker only `between` batches."""
        self._code = program.code.function(loop.WORKER, ctypes.c_int64, ctypes.c_void_p)
        struct.pack_into("<Q", self._memory, layout.C_PROGRAM_MEMORY,
                         program.worker_memory(self.number))
        self.aborted.begin(program.names)

    def recode(self, program: Program) -> None:
        """Run the same program's other code (Program.recode); of a running worker only `between`
        batches."""
        self._code = program.code.function(loop.WORKER, ctypes.c_int64, ctypes.c_void_p)

    def start(self) -> None:
        def body() -> None:
            try:
                if self.cpu is not None:
                    os.sched_setaffinity(0, {self.cpu})
                assert self._code is not None
                while True:
                    self._code(self._base)
                    if not self._go_on():
                        break
                self.finished = True
            except BaseException as error:  # handed to whoever joins
                self.error = error
            finally:
                self._ended = True
                self._release()

        self._thread = threading.Thread(target=body, name=f"xdpu-worker-{self.number}",
                                        daemon=True)
        self._thread.start()

    def _go_on(self) -> bool:
        """The loop has returned, for something to be done between two batches, or for good.

        What is asked is looked for last, and `_interrupt` sets C_STOP last: whoever asks too late
        for this call makes the loop return once more, and no event stays that would wake it for
        ever."""
        told, = struct.unpack_from("<I", self._memory, layout.C_STOP)
        struct.pack_into("<I", self._memory, layout.C_STOP, 0)
        with suppress(BlockingIOError):
            os.eventfd_read(self._event)
        while self._between:
            action, done = self._between.popleft()
            try:
                action(self)
            finally:
                done.set()
            told = 1
        return bool(told) and not self._ending

    def between(self, action: Callable[[Worker], None]) -> threading.Event:
        """Have this done by the worker between two batches, after what was asked before; the event
        says it was, or that the worker has ended.  One that has not started does it at once."""
        done = threading.Event()
        if self._thread is None:
            action(self)
            done.set()
            return done
        self._between.append((action, done))
        self._interrupt()
        if self._ended:
            self._release()
        return done

    def _release(self) -> None:
        """It has ended: nobody needs to wait for it."""
        with suppress(IndexError):
            while True:
                self._between.popleft()[1].set()

    def where(self) -> tuple[str, Flow | None]:
        """What it does at the moment, and for which flow."""
        stage, number = struct.unpack_from("<2I", self._memory, layout.C_WHERE)
        flow = self.flows[number] if number < len(self.flows) else None
        return layout.WHERE[stage], flow if layout.WHERE[stage] in layout.OF_A_FLOW else None

    @property
    def thread_id(self) -> int:
        """The kernel's number of its thread, 0 before it starts."""
        return (self._thread.native_id or 0) if self._thread is not None else 0

    @property
    def rounds(self) -> int:
        """Rounds of the loop so far; stands still only in a worker that hangs or sleeps."""
        return int(struct.unpack_from("<Q", self._memory, layout.C_ROUNDS)[0])

    @property
    def no_port(self) -> int:
        """The interface that a redirect named last and that is not part of the run; 0: none."""
        return int(struct.unpack_from("<I", self._memory, layout.C_NO_PORT)[0])

    @property
    def running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        self._ending = True
        self._interrupt()

    def _interrupt(self) -> None:
        os.eventfd_write(self._event, 1)
        struct.pack_into("<I", self._memory, layout.C_STOP, 1)

    def pause(self, name: str, paused: bool) -> None:
        """Take no packets from the queues of this port, nor from its stack, or again."""
        for index, flow in enumerate(self.flows):
            if flow.owner == name:
                struct.pack_into("<I", self._memory, layout.C_FLOW_TABLE
                                 + index * layout.FLOW_SIZE_BYTES + layout.F_PAUSED, int(paused))
                self._set_pollfd(1 + index, -1 if paused else flow.queue.poll_fd)

    def look_ahead(self, how: int) -> None:
        """How from the next batch on: AUTO, ALWAYS or NEVER of scouting.py."""
        struct.pack_into("<I", self._memory, layout.C_LOOK_AHEAD, how)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread; True when it has ended.  Raises what went wrong in it."""
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
        if self.error is not None:
            raise self.error
        return True

    def close(self) -> None:
        if self._event >= 0:
            os.close(self._event)
            self._event = -1


def _kinds(ports: Iterable[Port]) -> list[PortKind]:
    return list({id(p.kind): p.kind for p in ports}.values())


def _names(rows: Iterable[Iterable[Flow]]) -> list[FlowName]:
    return [f.name(number) for number, flows in enumerate(rows) for f in flows]


def _receiving(rows: Iterable[Iterable[Flow]]) -> list[FlowName]:
    """Those that run the program."""
    return [f.name(number) for number, flows in enumerate(rows) for f in flows
            if f.role == layout.ROLE_PROGRAM]


class Engine:
    """The workers of a run.

    `ports` run the program; `stack` gives, by position in `ports`, the port behind which the
    kernel's stack lives.  `cpus`: one CPU a worker, or None to leave the threads unpinned.
    `rings` are names of rings (ring.py) to be made in `directory`; entries of an XSKMAP lead there
    by their number in this list, from 1, and behind them to the sockets among the ports
    (xsk_port.py), in order.  `compiled` makes machine code (xdp_runtime/compiler/tiers.py).
    """

    def __init__(self, obj: Object, ports: Sequence[Port], *, program: str | None = None,
                 stack: Mapping[int, Port] | None = None, batch_size: int = 64,
                 busy_poll: bool = False, cpus: Sequence[int] | None = None, opt: int = 3,
                 exit_when_idle: bool = False, directory: Path | None = None,
                 max_map_bytes: int = 0, grants: ExtensionClass | None = None,
                 trace_aborted: int = 0, look_ahead: str = "auto",
                 rings: Sequence[str] = (),
                 compiled: Callable[..., Image] = link.compile_program) -> None:
        if not 1 <= batch_size <= BATCH_MAX:
            raise ConfigError(f"batch size {batch_size}", f"must be 1 to {BATCH_MAX}")
        self.ports, self.stack = list(ports), dict(stack or {})
        self.paused: set[str] = set()
        self._late = Late()
        self._mesh: Mesh | None = None
        self._directory, self._ring_names = directory, list(rings)
        self.rings: list[RingFile] = []
        self.captures: list[Capture] = []
        self._sockets = [port.name for port in ports if port.ifindex >= redirect.SOCKETS_AT]
        if len(rings) + len(self._sockets) > dev.NUMBERS_MAX:
            raise ConfigError(f"{len(rings)} rings and {len(self._sockets)} sockets",
                              f"at most {dev.NUMBERS_MAX} together")
        if rings and (directory is None or len(rings) >= ring_put.TABLE_ROWS):
            raise ConfigError(f"{len(rings)} rings", f"need a directory, and are at most "
                              f"{ring_put.TABLE_ROWS - 1}")
        self._opt, self._grants, self._compiled = opt, grants, compiled
        self._settings = {layout.C_BATCH_SIZE: batch_size, layout.C_BUSY_POLL: int(busy_poll),
                          layout.C_EXIT_WHEN_IDLE: int(exit_when_idle),
                          layout.C_LOOK_AHEAD: scouting.WORDS[look_ahead]}
        count = min(*(len(p.queues) for p in [*self.ports, *self.stack.values()]), max_workers())
        self._maps = directory / "maps" if directory else None
        if self._maps is not None:
            self._maps.mkdir(exist_ok=True)
        budget.check(obj.name, obj.maps, count, self._maps, max_map_bytes)
        self.workers = [Worker(number, cpus[number % len(cpus)] if cpus else None, trace_aborted)
                        for number in range(count)]
        self._kinds = _kinds(self.ports), _kinds(self.stack.values())
        rows = self._plan(self.ports, self.stack, 0)
        self.program = self._load(obj, program, grants)
        self.stats = Stats.create(_names(rows), directory)
        if directory is not None:
            self.rings = [RingFile(directory / FOLDER / name, _receiving(rows)) for name in rings]
        self._describe()
        for worker, flows in zip(self.workers, rows, strict=True):
            worker.rings = self.rings
            worker.prepare(self.program, flows, self.stats, self._settings)

    def compile_ahead(self, obj: Object, program: str, grants: ExtensionClass | None) -> None:
        """Do what `replace` will find in the cache; changes nothing.  Raises what `load` raises."""
        spec = obj.program(program)
        fuel = enforce(obj, spec, grants) if grants is not None else None
        self._compiled(obj, spec, len(self.workers), self._opt, [self._around(spec)], fuel)

    def _load(self, obj: Object, program: str | None, grants: ExtensionClass | None,
              heir_to: Program | None = None) -> Program:
        self._connect(obj)
        made = load(obj, program, workers=len(self.workers), opt=self._opt, directory=self._maps,
                    units=[self._around(obj.program(program))], grants=grants, heir_to=heir_to,
                    compiled=self._compiled)
        for one in made.raw_maps.values():
            if one.spec.type == MapType.XSKMAP:
                dev.allow(one, self._xsks().values())
        return made

    def _describe(self) -> None:
        """Names and their numbers in entries of maps, for other processes: names.json."""
        if self._directory is not None:
            write_atomic(self._directory / "names.json", json.dumps(self.names()))

    def names(self) -> dict[str, dict[str, int]]:
        """What entries of maps name by number: programs (of xdp/devmap and xdp/cpumap), rings
        and sockets, interfaces of this run."""
        return {"programs": self.program.second_numbers(),
                "rings": self._xsks(),
                "interfaces": {port.name: port.ifindex for port in self.ports}}

    def _xsks(self) -> dict[str, int]:
        """What an XSKMAP's entry may be."""
        return {name: number for number, name in
                enumerate([*self._ring_names, *self._sockets], 1)}

    def _connect(self, obj: Object) -> None:
        """Rings between the workers, once a program has a map that leads there.  Running workers
        see them from the next round on."""
        if self._mesh is None and any(one.type == MapType.CPUMAP for spec in obj.maps
                                      for one in (spec, spec.inner) if one is not None):
            self._mesh = Mesh([worker.address for worker in self.workers])
            for worker in self.workers:
                worker.connect(self._mesh, len(self.workers))

    def _around(self, spec: ProgramSpec) -> link.Unit:
        """The loop for this program.  Raises ConfigError where ports and program do not go
        together."""
        in_pieces = next((kind.name for kind in self._kinds[0] if kind.chain is not None), "")
        if in_pieces and not spec.has_frags:
            raise ConfigError(f"program {spec.name}", "takes packets in one buffer, and a port of "
                              f"this run ({in_pieces}) gives them in several",
                              'put it in SEC("xdp.frags")')
        if in_pieces and self._settings[layout.C_BATCH_SIZE] < chains.LEAST_BATCH:
            raise ConfigError(f"batch size {self._settings[layout.C_BATCH_SIZE]}",
                              f"a packet may have {chains.LEAST_BATCH} buffers, which must be in "
                              "one batch", f"use {chains.LEAST_BATCH} or more")
        return loop.unit(*self._kinds, several=spec.has_frags)

    def _plan(self, ports: Sequence[Port], stack: Mapping[int, Port],
              first_block: int) -> list[list[Flow]]:
        """The flows of each worker.  Raises ConfigError where they are too many."""
        rows, block = [], first_block
        for worker in self.workers:
            flows = self._flows_of(worker.number, ports, stack)
            if len(flows) > layout.FLOWS_MAX:
                raise ConfigError(f"worker {worker.number}", f"{len(flows)} queues, at most "
                                  f"{layout.FLOWS_MAX}", "use fewer interfaces or queues")
            rows.append([replace(flow, block=block + i) for i, flow in enumerate(flows)])
            block += len(flows)
        return rows

    def _flows_of(self, number: int, ports: Sequence[Port],
                  stack: Mapping[int, Port]) -> list[Flow]:
        front, back = self._kinds
        flows: list[Flow] = []
        for position, port in enumerate(ports):
            partner = stack.get(position)
            own = list(port.queues)[number::len(self.workers)]
            stack_flow = len(flows) + len(own) if partner is not None else -1
            for queue in own:
                flows.append(Flow(port, queue, layout.ROLE_PROGRAM, front.index(port.kind),
                                  stack_flow, port.name))
            if partner is not None:
                flows.append(Flow(partner, partner.queues[number], layout.ROLE_STACK,
                                  back.index(partner.kind), stack_flow - len(own), port.name))
        return flows

    def start(self) -> None:
        for worker in self.workers:
            worker.start()

    # ---- changes while it runs -------------------------------------------------------------------

    def replace(self, obj: Object, program: str | None = None,
                grants: ExtensionClass | None = None,
                settings: Callable[[Program], None] = lambda program: None) -> list[str]:
        """Run another program from the next batch on; the names of the maps that go on.

        No packet is lost by it: rings hold what comes in the microseconds between.  `settings`
        sees the new program before it runs.  Raises what `load` raises, and the old one goes on."""
        new = self._load(obj, program, grants, self.program)
        try:
            settings(new)
        except BaseException:
            new.close(keep=self.program.all_maps)
            raise
        old, self.program, self._grants = self.program, new, grants
        kept = [m.spec.name for m in new.all_maps if m in old.all_maps]
        self._all_between(lambda worker: worker.use(new), old)
        self._describe()
        self.when_settled(partial(old.close, keep=new.all_maps))
        return kept

    def recode(self, image: Image) -> None:
        """Run the program by other machine code of it from the next batch on.  No packet is lost
        by it, and no map or counter changes."""
        program = self.program
        former = program.recode(image)
        self._all_between(lambda worker: worker.recode(program))
        self.when_settled(former.close)

    def add_port(self, port: Port, stack: Port | None = None) -> None:
        """Take packets from this port, too.  Raises ConfigError; nothing has changed then."""
        if len(port.queues) < len(self.workers):
            raise ConfigError(port.name, f"has {len(port.queues)} queues for {len(self.workers)} "
                              "workers", "give it as many queues")
        stacks = dict(self.stack)
        if stack is not None:
            stacks[len(self.ports)] = stack
        self._change_ports([*self.ports, port], stacks)

    def remove_port(self, name: str) -> tuple[Port, Port | None]:
        """Leave this port and its stack alone from now on; both are the caller's to close, by
        `when_settled`: a worker that is late may have its packets in hand."""
        position = self._position(name)
        if len(self.ports) == 1:
            raise ConfigError(f"port {name}", "is the only one of this run", "end the run instead")
        ports = [port for port in self.ports if port.name != name]
        stacks = {at - (at > position): stack for at, stack in self.stack.items()
                  if at != position}
        gone = self.ports[position], self.stack.get(position)
        self._change_ports(ports, stacks)
        self.paused.discard(name)
        return gone

    def pause(self, name: str, paused: bool = True) -> None:
        """Leave the packets of this port and its stack where they are; its queues run full."""
        self._position(name)
        for worker in self.workers:
            worker.pause(name, paused)
        (self.paused.add if paused else self.paused.discard)(name)

    def add_capture(self, capture: Capture) -> None:
        """Show it the packets of the ports it wants, from the next batch on.  Raises ConfigError.
        """
        if len(self.captures) == TAPS_MAX:
            raise ConfigError("capture", f"{TAPS_MAX} are going on in this run already",
                              "end one of them")
        capture.extend(_receiving(worker.flows for worker in self.workers))
        self.captures.append(capture)
        self._show_captures()

    def remove_capture(self, capture: Capture) -> None:
        """Show it no more; it is closed once no worker has it any more."""
        self.captures.remove(capture)
        self._show_captures()
        self.when_settled(capture.close)

    def _show_captures(self) -> None:
        captures = tuple(self.captures)
        self._all_between(lambda worker: worker.show(captures))

    def _position(self, name: str) -> int:
        for position, port in enumerate(self.ports):
            if port.name == name:
                return position
        raise ConfigError(f"port {name}", "is not part of this run",
                          f"it has {', '.join(port.name for port in self.ports)}")

    def _change_ports(self, ports: list[Port], stack: dict[int, Port]) -> None:
        """Counters of ports that go stay readable; a new kind of port needs another loop."""
        before, kinds = self._kinds, (_kinds(ports), _kinds(stack.values()))
        program = self.program
        try:
            self._kinds = kinds
            rows = self._plan(ports, stack, len(self.stats.flows))
            if kinds != before:
                program = self._load(self.program.object, self.program.spec.name, self._grants,
                                     self.program)
            self.stats.extend(_names(rows))
            for ring in self.rings:
                ring.extend(_receiving(rows))
            for capture in self.captures:
                capture.extend(_receiving(rows))
        except BaseException:
            self._kinds = before
            if program is not self.program:
                program.close(keep=self.program.all_maps)
            raise
        old, self.program = self.program, program
        self.ports, self.stack = ports, stack
        self._all_between(lambda worker: worker.prepare(program, rows[worker.number], self.stats,
                                                        self._settings, self.paused), old)
        self._describe()
        if old is not program:
            self.when_settled(partial(old.close, keep=program.all_maps))

    def _all_between(self, action: Callable[[Worker], None], old: Program | None = None) -> None:
        """Each worker does this at its next batch boundary; all have when this returns, but those
        of whom `late` tells.  `old` is the program that they are in meanwhile."""
        self._late.ask(self.workers, action, (old or self.program).spec.name)

    def late(self) -> list[str]:
        """Workers that have not made a change yet, which takes effect for them before their next
        packet: each with where it is and why, in a phrase."""
        return self._late.describe()

    def when_settled(self, action: Callable[[], object]) -> None:
        """Do this once no worker is late any more: at once, or by a later `settle`."""
        self._late.then(action)

    def settle(self) -> list[int]:
        """Do what waited for workers that were late -> the numbers of those that have come."""
        return self._late.settle()

    def aborted(self) -> dict[tuple[str, str], int]:
        """Aborted packets by program and reason (aborted.py), of maps' entries as well."""
        out: dict[tuple[str, str], int] = {}
        for worker in self.workers:
            for program, reason, count in worker.aborted.counts():
                out[program, reason] = out.get((program, reason), 0) + count
        return out

    @property
    def running(self) -> bool:
        return any(worker.running for worker in self.workers)

    def stop(self, timeout_s: float = 5.0) -> None:
        """Stop at the next batch boundary and wait for all.

        Raises what went wrong in a worker, XdpuError when one hangs; the others have ended then."""
        for worker in self.workers:
            worker.stop()
        if not self.wait(timeout_s):
            hung = next(worker for worker in self.workers if worker.running)
            raise XdpuError(f"worker {hung.number}", f"did not stop within {timeout_s:g} s: "
                            f"{describe(hung, self.program.spec.name)}")

    def look_ahead(self, how: str) -> None:
        """Fetch what a batch's programs will look up first: "on", "off", or "auto", which measures
        whether it pays (scouting.py)."""
        self._settings[layout.C_LOOK_AHEAD] = scouting.WORDS[how]
        for worker in self.workers:
            worker.look_ahead(scouting.WORDS[how])

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until every worker has ended; False on time-out.  Raises what went wrong in one."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        errors: list[BaseException] = []
        ended = True
        for worker in self.workers:
            left = 1e9 if deadline is None else max(deadline - time.monotonic(), 0.0)
            try:
                ended &= worker.join(left)
            except BaseException as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return ended

    def close(self) -> None:
        """Release workers and maps; the ports belong to the caller.  Call after stop."""
        try:
            self.settle()
        finally:
            self._close()

    def _close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.program.close()
        if self._mesh is not None:
            self._mesh.close()
        for ring in self.rings:
            ring.close()
        for capture in self.captures:
            capture.close()
