"""A run on interfaces, as far as it is open: its ports, ways into the stack and the ways back."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from afxdp.mirror import Mirror
from control.ports import (
    choose_stack,
    has_stack,
    open_own_tap,
    open_port,
    open_stand_in,
    take_over,
    tap_name,
)
from control.portspec import PortSpec
from control.signals import Signals
from control.watch import note
from dataplane import rundir, takeover
from dataplane.engine import Engine
from dataplane.fibmirror import FibMirror
from dataplane.live_port import LivePort
from dataplane.port import Port
from dataplane.skb_injector import INJECTORS
from dataplane.tap import TapPort


@dataclass
class Live:
    """What a run consists of, as far as it is open.  `undo` has a way back for each interface."""

    args: Namespace
    run_dir: rundir.RunDir
    signals: Signals
    ports: dict[str, Port] = field(default_factory=dict)  # by interface, in the engine's order
    stacks: dict[str, Port] = field(default_factory=dict)  # where XDP_PASS of it goes
    gone: list[Port] = field(default_factory=list)  # closed; their counters are still there
    why_tap: dict[str, str] = field(default_factory=dict)
    undo: dict[str, ExitStack] = field(default_factory=dict)
    stand_ins: dict[int, int] = field(default_factory=dict)  # TAP -> interface taken over
    fib: FibMirror | None = None
    mirror: Mirror | None = None  # of maps that the filter asks
    cpus: tuple[int, ...] | None = None
    mended: bool = False

    @property
    def every(self) -> list[Port]:
        return [*self.ports.values(), *self.stacks.values()]

    @property
    def watched(self) -> list[Port]:
        """Interfaces of the host among them."""
        found = [port for name in self.ports if self.specs[name].of_host
                 for port in (self.ports[name], self.stacks.get(name)) if port is not None]
        return found + [port for port in self.ports.values() if getattr(port, "host_name", "")]

    def unfit(self, port: Port, mtu: int) -> Iterator[str]:
        """What an MTU does to packets of a port, or on their way into the stack, that were not
        opened for it."""
        name = next((name for name, one in self.ports.items() if one is port), "")
        for one in (port, self.stacks.get(name)):
            say: Callable[[int], str] | None = getattr(one, "unfit", None)
            if name and say is not None and (text := say(mtu)):
                yield text

    @property
    def specs(self) -> dict[str, PortSpec]:
        return self.args.ports  # type: ignore[no-any-return]

    def open(self, name: str) -> None:
        with ExitStack() as undo:
            port = open_port(self.args, self.specs[name], self.mended)
            undo.callback(port.close)
            self.signals.check()
            self.ports[name] = port
            undo.callback(self.ports.pop, name)
            if self.mirror is not None and self.specs[name].kind == "afxdp":
                self.mirror.add(name, port.sets.values())  # type: ignore[attr-defined]
                undo.callback(self.mirror.drop, name)
            self.undo[name] = undo.pop_all()

    def open_stack(self, name: str, workers: int) -> None:
        """The way of XDP_PASS: into the interface itself, or a TAP in its place."""
        port, spec = self.ports[name], self.specs[name]
        if not has_stack(self.args, spec):
            return
        way, self.why_tap[name] = choose_stack(self.args, spec, port)
        if way != "tap":
            stack: Port = LivePort(name, port.ifindex, port.mtu, workers,
                                   by=INJECTORS[way])
        else:
            names = list(self.ports)
            title = tap_name(name, names.index(name), names)
            stack = open_stand_in(self.args, spec, port, title, workers) if spec.of_host \
                else open_own_tap(port, title, workers)
        self.undo[name].callback(stack.close)
        self.stacks[name] = stack
        self.undo[name].callback(self.stacks.pop, name)

    def take_over(self, name: str) -> None:
        """From now on its TAP stands in for the interface."""
        tap = self.stacks.get(name)
        if not isinstance(tap, TapPort) or not self.specs[name].of_host:
            return
        stand_in = take_over(self.args, self.specs[name], tap.name, self.run_dir.path)
        self.undo[name].callback(stand_in.restore)
        stand_in.apply()
        self.stand_ins[tap.ifindex] = self.ports[name].ifindex
        self.undo[name].callback(self.stand_ins.pop, tap.ifindex)
        for text in stand_in.notes:
            note(text)

    def check(self) -> None:
        """Raises what ended the filter's keeping up with its maps."""
        if self.mirror is not None:
            self.mirror.check()

    def close(self, name: str) -> None:
        """Again is no error: it may have been put off until the run ended."""
        if name in self.undo:
            self.gone += [port for port in (self.ports.get(name), self.stacks.get(name)) if port]
            self.undo.pop(name).close()

    def close_all(self) -> None:
        """The last one first; a failure does not keep the others from being put back."""
        with ExitStack() as all_of_them:
            for name in list(self.undo):
                all_of_them.callback(self.close, name)

    def describe(self, engine: Engine) -> None:
        """What others read of the run, in run.json."""
        spec = engine.program.spec
        rundir.write_atomic(self.run_dir.path / "run.json", json.dumps({
            "program": spec.name, "object": engine.program.object.name,
            "interfaces": list(self.ports),
            "modes": [port.mode for port in self.ports.values()],
            "paused": sorted(engine.paused), "workers": len(engine.workers),
            "code": engine.program.image.pipeline,
            "namespace": takeover.network_namespace(), "cpus": list(self.cpus or ()),
            "started": self.started,
            "filter_maps": [shape.map for shape in self.args.shapes.values()]}))

    started: float = field(default_factory=lambda: round(time.time(), 3))


def say_way_in(live: Live, name: str) -> None:
    if isinstance(live.stacks[name], LivePort):
        note(f"XDP_PASS of {name} goes to the stack by {name} itself: {live.stacks[name].mode}")
        return
    tap, why = live.stacks[name].name, live.why_tap[name]
    note(f"XDP_PASS of {name} goes to the stack by {tap}{f' ({why})' if why else ''}, which has "
         + ("its addresses meanwhile" if live.specs[name].of_host
            else f"no address yet: ip addr add ... dev {tap}")
         + f"; {live.stacks[name].mode}")
