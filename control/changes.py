"""What can be asked of a run while it runs: another program, ports that come, go or rest, counters.

`prepare` is called by the control socket's thread and changes nothing; what it returns is done by
the main thread.  Each change is whole or not at all.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

from control import afxdp_options, losses, objects, portspec, setmap
from control.captures import Captures
from control.host import refuse_shared
from control.live import Live, say_way_in
from control.watch import is_read, note
from dataplane.engine import Engine
from dataplane.port import Port
from xdp_runtime.errors import ConfigError
from xdp_runtime.object import MapType

if TYPE_CHECKING:
    from control.server import Change
    from xdp_runtime.program import Program

Request = dict[str, Any]


class Changes:
    """The changes of one run."""

    def __init__(self, live: Live, engine: Engine) -> None:
        self.live, self.engine = live, engine
        self.captures = Captures(live.run_dir.path, engine)
        self._verbs: dict[str, Callable[[Request], Change]] = {
            "replace": self._replace, "pause": self._pause, "resume": self._pause,
            "add": self._add, "remove": self._remove, "counters": self._counters,
            "losses": self._losses, "mirror": self._mirror, "entry": self._entry,
            "capture": self.captures.begin, "capture_end": self.captures.end}

    def prepare(self, request: Request) -> Change:
        """Raises XdpuError for what can be refused before anything is touched."""
        prepare = self._verbs.get(str(request.get("do")))
        if prepare is None:
            raise ConfigError(f"request {request.get('do')!r}", "is not known to this run",
                              f"it knows {', '.join(self._verbs)}")
        return prepare(request)

    def check(self) -> None:
        """Workers that were late for a change come in the end; what waited for them is done."""
        come = self.engine.settle()
        if come:
            note(f"{_workers(come)} made all changes, too")
            self._described()

    def _done(self, what: str, **result: Any) -> dict[str, Any]:
        """Say it where the run was started, and to who asked; with whom it waits for."""
        late = self.engine.late()
        if late:
            what += f"; not yet for {', '.join(late)}, which changes before its next packet, or " \
                    "never comes back: xdpu stop ends the run then"
            result["late"] = late
        note(what)
        self._described()
        if self.live.args.json and is_read(sys.stdout):
            print(json.dumps({"type": "change", "ts": round(time.time(), 3), "what": what,
                              **result}), flush=True)
        return {"what": what, **result}

    def _described(self) -> None:
        if self.live.fib is not None:
            self.live.fib.wake()  # interfaces may have come or gone
        self.live.describe(self.engine)

    def _replace(self, request: Request) -> Change:
        obj = objects.prepared(str(request["object"]), request.get("btf"),
                               request.get("set_global", ()), request.get("map_entries", ()))
        spec = obj.attachable(request.get("program"))
        settings = [setmap.parse(text, obj) for text in request.get("set_map", ())]
        args = self.live.args
        if afxdp_options.shapes(args.filter, obj) != args.shapes:
            raise ConfigError(f"{obj.name} in place of {self.engine.program.object.name}",
                              f"the filter {args.filter!r} asks a map whose key or size is "
                              "another there", "end the run and start it with the new program")
        grants = args.grants  # the class binds the run, whatever program it has
        self.engine.compile_ahead(obj, spec.name, grants)

        def change() -> dict[str, Any]:
            before = self.engine.program.spec.name
            kept = self.engine.replace(obj, spec.name, grants,
                                       lambda program: self._ready(program, settings))
            fresh = [m.name for m in obj.maps if m.name not in kept]
            return self._done(
                f"{spec.name} of {obj.name} runs in place of {before}; maps "
                f"{_listed(kept)} go on, {_listed(fresh)} are new",
                program=spec.name, object=obj.name, kept=kept, new=fresh)

        return change

    def _ready(self, program: Program, settings: list[setmap.Setting]) -> None:
        """What it needs before it runs."""
        setmap.apply(program, settings, self.engine)
        if self.live.fib is not None:
            self.live.fib.follow(program.fib)

    def _pause(self, request: Request) -> Change:
        pausing = request["do"] == "pause"

        def change() -> dict[str, Any]:
            names = [str(name) for name in request.get("ifaces") or self.live.ports]
            unknown = [name for name in names if name not in self.live.ports]
            if unknown:
                raise ConfigError(f"interface {unknown[0]}", "is not part of this run",
                                  f"it has {', '.join(self.live.ports)}")
            for name in names:
                self.engine.pause(self.live.ports[name].name, pausing)
            return self._done(f"{_listed(names)} {'paused' if pausing else 'resumed'}",
                              ifaces=names)

        return change

    def _add(self, request: Request) -> Change:
        args = self.live.args
        default = args.port if args.port in portspec.OF_HOST else "afxdp"
        spec, *more = portspec.parse(str(request["iface"]), default)
        name = spec.name
        if more:
            raise ConfigError(f"interfaces {request['iface']}", "are several", "add one at a time")
        if spec.kind in ("dpdk", "xsk"):
            what = "devices of DPDK" if spec.kind == "dpdk" else "sockets"
            raise ConfigError(f"interface {name}", f"{what} are given at the start",
                              "end the run and start it with all of them")

        def change() -> dict[str, Any]:
            live, engine = self.live, self.engine
            if name in live.ports:
                raise ConfigError(f"interface {name}", "is part of this run already")
            if spec.of_host:
                refuse_shared([name])
            live.specs[name] = spec
            with ExitStack() as undo:
                live.open(name)
                undo.callback(engine.when_settled, partial(live.close, name))
                live.open_stack(name, len(engine.workers))
                port = live.ports[name]
                engine.add_port(port, live.stacks.get(name))
                undo.callback(engine.remove_port, port.name)
                live.take_over(name)
                undo.pop_all()
            if name in live.stacks:
                say_way_in(live, name)
            return self._done(f"{engine.program.spec.name} runs on {name}, too: {port.mode}",
                              iface=name, mode=port.mode)

        return change

    def _remove(self, request: Request) -> Change:
        name = str(request["iface"])

        def change() -> dict[str, Any]:
            if name not in self.live.ports:
                raise ConfigError(f"interface {name}", "is not part of this run",
                                  f"it has {', '.join(self.live.ports)}")
            self.engine.remove_port(self.live.ports[name].name)
            self.engine.when_settled(partial(self.live.close, name))
            return self._done(f"{name} is left to the host again", iface=name)

        return change

    def _mirror(self, request: Request) -> Change:
        """Somebody changed a map that the filter asks, and waits until it is known there."""
        def change() -> dict[str, Any]:
            if self.live.mirror is not None:
                self.live.mirror.sync()
            return {}

        return change

    def _entry(self, request: Request) -> Change:
        """A program into a PROG_ARRAY, or a map into a map of maps, by name."""
        where, name = str(request["map"]), str(request["value"])
        key, flags = bytes.fromhex(request["key"]), int(request["flags"])

        def change() -> dict[str, Any]:
            program, what = self.engine.program, f"map {where}"
            maps = program.raw_maps
            if where not in maps:
                raise ConfigError(what, "is gone, as the run has another program now")
            outer = maps[where]
            try:
                if outer.spec.type == MapType.PROG_ARRAY:
                    number = program.program_number(name) + 1
                    outer.update(key, number.to_bytes(4, "little"), flags)
                elif name in maps:
                    outer.set_inner(key, maps[name], flags)
                else:
                    raise ConfigError(what, f"this run has no map {name!r} to hold",
                                      f"it has {_listed(list(maps))}")
            except KeyError:
                raise ConfigError(what, f"this run has no program {name!r} to go on in",
                                  f"it has {_listed(list(program.names))}") from None
            except OSError as error:
                raise ConfigError(what, f"takes no {name} there, {error.strerror} "
                                  f"({error.errno})") from error
            return {}

        return change

    def _counters(self, request: Request) -> Change:
        def change() -> dict[str, Any]:
            return {port.name: port.statistics() | _said_by_driver(port)
                    for port in self.live.every}

        return change

    def _losses(self, request: Request) -> Change:
        return lambda: dict(losses.of_ports([*self.live.gone, *self.live.every]))


def _said_by_driver(port: Port) -> dict[str, int]:
    """What only a driver of DPDK knows: the link, and its extended statistics by its own names."""
    more: Callable[[], dict[str, int]] | None = getattr(port, "extended_statistics", None)
    return more() if more is not None else {}


def _workers(numbers: list[int]) -> str:
    return f"worker{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def _listed(names: list[str]) -> str:
    return ", ".join(names) or "none"
