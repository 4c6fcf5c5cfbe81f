"""xdpu run on interfaces: from nothing to running workers, and back, step by step.

What can be refused without touching the network is refused first.  Then every step enters how to
undo it before the next begins, so a signal, an error or the ordinary end all go the same way back.
The compiler works ahead of all (its result is found again by content): between attaching XDP and
the first packet run there is only the time to link, and the rings hold what comes meanwhile.
"""

from __future__ import annotations

import json
import os
import socket
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from control import features, setmap
from control.host import Watchdog, choose_cpus, say_cpus, used_cpus
from control.run import finish, stop_engine
from control.signals import Signals
from control.watch import Watch, note
from dataplane import hostwrite, loop, rundir, takeover
from dataplane import netlink as nl
from dataplane.engine import Engine
from dataplane.hostnet import IFF_UP
from dataplane.keeper import Keeper
from dataplane.port import Port, PortKind
from dataplane.tap import TAP, TapPort
from xdp_runtime.compiler import link
from xdp_runtime.errors import ConfigError, PortError
from xdp_runtime.object import Object, ProgramSpec

_NEEDS = {"afxdp": ("net_admin", "net_raw", "cap_bpf"), "afpacket": ("net_admin", "net_raw"),
          "tap": ("net_admin",)}
_REBIND_S = 2.0  # the kernel gives a dead process's queues back a moment after its death


@dataclass
class Live:
    """What a run consists of, as far as it is open."""

    name: str
    ports: list[Port] = field(default_factory=list)
    taps: dict[int, TapPort] = field(default_factory=dict)  # by position of their interface
    cpus: tuple[int, ...] | None = None
    mended: bool = False


def run_live(args: Namespace, obj: Object, spec: ProgramSpec, signals: Signals) -> int:
    with signals.interruptible():
        kind, workers = _foresee(args)
        _compile_ahead(args, obj, spec, kind, workers)
    report = None
    try:
        with ExitStack() as undo:
            live, engine = _set_up(args, obj, spec, signals, undo)
            dog = Watchdog([*live.ports, *live.taps.values()])
            watch = Watch(engine, [*live.ports, *live.taps.values()], signals,
                          name="+".join(args.iface), interval_s=args.interval,
                          duration_s=args.duration, as_json=args.json,
                          trace=args.trace or args.verbose > 0, check=dog.check,
                          silence=lambda: _why_silent(args, live, dog))
            signals.check()
            engine.start()
            try:
                _announce(args, live, engine)
                watch.run()
            finally:
                stop_engine(engine, undo)
                if watch.trace:
                    watch.print_trace()
                counters = {p.name: p.statistics() for p in [*live.ports, *live.taps.values()]}
                report = (watch, engine, time.monotonic() - watch.started_s, counters)
    finally:
        if report is not None:
            import sys
            finish(args, *report, sys.stdout)
            _say_unpassed(args, report[1].stats.total())
    return 0


# ---- before anything is touched ------------------------------------------------------------------

def _foresee(args: Namespace) -> tuple[PortKind, int]:
    """The kind of ports and the number of workers there will be.  Raises what is refused."""
    if args.port == "tap":
        kind, counts = TAP, [_count(args.queue, 1) for _ in args.iface]
    else:
        from afxdp import interface
        found = [interface.query(name) for name in args.iface]
        if args.port == "afxdp":
            from afxdp import native
            from afxdp.port import AfxdpPort
            native.load()
            kind, counts = AfxdpPort.kind, [_count(args.queue, one.channels) for one in found]
        else:
            from dataplane.af_packet import AfPacketPort
            kind, counts = AfPacketPort.kind, [_count(args.queue, 1) for _ in found]
    needs = [*_NEEDS[args.port], *(() if _stackless(args) else ("tap",))]
    for name in dict.fromkeys(needs):
        result = features.find(name).run()
        if result.ok is False:
            raise PortError(f"xdpu run --port {args.port}", result.reason, result.hint)
    return kind, min(counts)


def _count(queues: str | tuple[int, ...], channels: int) -> int:
    return max(channels, 1) if isinstance(queues, str) else len(queues)


def _stackless(args: Namespace) -> bool:
    return bool(args.no_stack or args.port == "tap")


def _compile_ahead(args: Namespace, obj: Object, spec: ProgramSpec, kind: PortKind,
                   workers: int) -> None:
    back = [] if _stackless(args) else [TAP]
    link.compile_program(obj, spec, workers, args.opt, [loop.unit([kind], back)])


# ---- up, step by step ----------------------------------------------------------------------------

def _set_up(args: Namespace, obj: Object, spec: ProgramSpec, signals: Signals,
            undo: ExitStack) -> tuple[Live, Engine]:
    live = Live(args.name or _run_name(args.iface))
    live.mended = mend()
    run_dir = rundir.create(live.name)
    undo.callback(_remove, run_dir)
    keeper = Keeper(run_dir.path)
    undo.callback(keeper.close)
    signals.check()
    for name in args.iface:
        port = _open_port(args, name, live.mended)
        undo.callback(port.close)
        live.ports.append(port)
        signals.check()
    workers = min(len(port.queues) for port in live.ports)
    if not _stackless(args):
        for position, name in enumerate(args.iface):
            tap = TapPort.open(_tap_name(name, position, args.iface), workers)
            undo.callback(tap.close)
            live.taps[position] = tap
    signals.check()
    live.cpus = choose_cpus(args.cpu, workers, used_cpus())
    engine = Engine(obj, live.ports, program=spec.name, stack=dict(live.taps),
                    batch_size=args.batch_size, busy_poll=args.busy_poll, cpus=live.cpus,
                    opt=args.opt, directory=run_dir.path)
    undo.callback(engine.close)
    setmap.apply(engine.program, args.settings)
    rundir.write_atomic(run_dir.path / "run.json", json.dumps({
        "program": spec.name, "object": obj.name, "interfaces": list(args.iface),
        "modes": [port.mode for port in live.ports], "workers": workers,
        "cpus": list(live.cpus or ()), "started": round(time.time(), 3)}))
    for position, tap in live.taps.items():
        signals.check()
        stand_in = takeover.Takeover(args.iface[position], tap.name, run_dir.path)
        undo.callback(stand_in.restore)
        stand_in.apply()
        for text in stand_in.notes:
            note(text)
    return live, engine


def mend() -> bool:
    """Put right what dead runs left in this network namespace, and say so."""
    lines = takeover.repair(rundir.run_root())
    for line in lines:
        note(f"mended: {line}")
    gone = rundir.clean()
    for name in gone:
        note(f"run {name} had died; what it left is removed")
    return bool(lines or gone)


def _remove(run_dir: rundir.RunDir) -> None:
    """A journal that is still there is what `xdpu clean` needs."""
    if not run_dir.journals():
        run_dir.remove()


def _open_port(args: Namespace, name: str, mended: bool) -> Port:
    if args.port == "tap":
        return _open_tap(args, name)
    if args.port == "afpacket":
        from dataplane.af_packet import AfPacketPort
        return AfPacketPort(name, _count(args.queue, 1), promiscuous=args.promisc)
    from afxdp.port import AfxdpPort
    deadline_s = time.monotonic() + (_REBIND_S if mended else 0)
    while True:
        try:
            return AfxdpPort.open(name, args.queue, args.mode, copy_mode=args.copy_mode,
                                  promisc=args.promisc)
        except PortError as error:
            busy = "already bound" in error.why or "another XDP program" in error.why
            if not busy or time.monotonic() > deadline_s:
                raise
        time.sleep(0.02)


def _open_tap(args: Namespace, name: str) -> TapPort:
    if name in (known for _, known in socket.if_nameindex()):
        raise ConfigError(f"tap {name}", "an interface of that name exists",
                          "--port tap makes a new one: choose another name")
    port = TapPort.open(name, _count(args.queue, 1))
    try:
        with nl.Netlink() as net:
            hostwrite.set_link(net, port.ifindex, flags=IFF_UP, mask=IFF_UP)
    except BaseException:
        port.close()
        raise
    return port


def _run_name(ifaces: Sequence[str]) -> str:
    """eth0_eth1: of the characters a directory's name may have."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_"
                   for c in "_".join(ifaces))
    return (name if name[0].isalnum() else f"_{name}")[:64]


def _tap_name(iface: str, position: int, all_names: Sequence[str]) -> str:
    """xdpu-eth0, cut to what a name may have; numbered where that makes two alike."""
    cut = [f"xdpu-{name}"[:15] for name in all_names]
    name = cut[position]
    return name if cut.count(name) == 1 else f"{name[:13]}.{position}"


# ---- what the user is told -----------------------------------------------------------------------

def _announce(args: Namespace, live: Live, engine: Engine) -> None:
    spec = engine.program.spec
    for port in live.ports:
        note(f"{spec.name} of {engine.program.object.name} runs on {port.name}: {port.mode}")
    count = len(engine.workers)
    note(f"{count} worker{'s' * (count > 1)}, {say_cpus(live.cpus)}, pid {os.getpid()}")
    for position, tap in live.taps.items():
        note(f"XDP_PASS of {args.iface[position]} goes to the stack by {tap.name}, which has its "
             "addresses meanwhile")
    if not live.taps:
        note("XDP_PASS has no stack to go to: such frames are counted and dropped")
    if live.cpus and len(live.cpus) < count:
        note(f"{count} workers share {len(live.cpus)} CPUs")
    if args.json:
        print(json.dumps({
            "type": "start", "ts": round(time.time(), 3), "name": "+".join(args.iface),
            "run": live.name, "pid": os.getpid(), "program": spec.name,
            "modes": {port.name: port.mode for port in live.ports},
            "taps": {args.iface[position]: tap.name for position, tap in live.taps.items()},
            "workers": count, "cpus": live.cpus}), flush=True)


def _say_unpassed(args: Namespace, total: dict[str, int]) -> None:
    if _stackless(args) and total["pass"]:
        note(f"{total['pass']:,} frames with XDP_PASS were dropped: there was no stack to go to")


def _why_silent(args: Namespace, live: Live, dog: Watchdog) -> str:
    """Likely causes, the likeliest first."""
    why = [f"{port.name} has no carrier" for port in live.ports if not dog.has_carrier(port)]
    if args.queue != "all" and args.port == "afxdp":
        why.append("only some of the receive queues are taken, the others go to the host "
                   "(--queue all)")
    if not args.promisc and args.port != "tap":
        why.append("frames for other MAC addresses are not received (--promisc)")
    return "; ".join([*why, "or nobody sends"])
