"""xdpu run on interfaces: from nothing to running workers, and back, step by step.

What can be refused without touching the network is refused first.  Then every step enters how to
undo it before the next begins, so a signal, an error or the ordinary end all go the same way back.
The compiler works ahead of all (its result is found again by content): between attaching XDP and
the first packet run there is only the time to link, and the rings hold what comes meanwhile.
"""

from __future__ import annotations

import json
import os
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from control import setmap
from control.host import Watchdog, choose_cpus, refuse_shared, say_cpus, used_cpus
from control.ports import foresee, is_stackless, open_own_tap, open_port, tap_name
from control.run import finish, stop_engine
from control.signals import Signals
from control.watch import Watch, note
from dataplane import loop, rundir, takeover
from dataplane.engine import Engine
from dataplane.keeper import Keeper
from dataplane.port import Port, PortKind
from dataplane.tap import TAP, TapPort
from xdp_runtime.compiler import link
from xdp_runtime.object import Object, ProgramSpec


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
        kind, workers = foresee(args)
        choose_cpus(args.cpu, workers, ())  # refuses what cannot be
        _compile_ahead(args, obj, spec, kind, workers)
    report = None
    try:
        with ExitStack() as undo:
            live, engine = _set_up(args, obj, spec, signals, undo)
            every = [*live.ports, *live.taps.values()]
            dog = Watchdog([] if args.port == "dpdk" else every)
            watch = Watch(engine, every, signals,
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
                counters = {port.name: port.statistics() for port in every}
                report = (watch, engine, time.monotonic() - watch.started_s, counters)
    finally:
        if report is not None:
            finish(args, *report, sys.stdout)
            _say_unpassed(args, report[1].stats.total())
    return 0


# ---- before anything is touched ------------------------------------------------------------------

def _compile_ahead(args: Namespace, obj: Object, spec: ProgramSpec, kind: PortKind,
                   workers: int) -> None:
    back = [] if is_stackless(args) else [TAP]
    link.compile_program(obj, spec, workers, args.opt, [loop.unit([kind], back)], args.fuel)


# ---- up, step by step ----------------------------------------------------------------------------

def _set_up(args: Namespace, obj: Object, spec: ProgramSpec, signals: Signals,
            undo: ExitStack) -> tuple[Live, Engine]:
    live = Live(args.name or _run_name(args.iface))
    live.mended = mend()
    run_dir = rundir.create(live.name)
    undo.callback(_remove, run_dir)
    if args.port != "dpdk":
        refuse_shared(args.iface)
    keeper = Keeper(run_dir.path)
    undo.callback(keeper.close)
    signals.check()
    for name in args.iface:
        port = open_port(args, name, live.mended)
        undo.callback(port.close)
        live.ports.append(port)
        signals.check()
    workers = min(len(port.queues) for port in live.ports)
    if not is_stackless(args):
        for position, name in enumerate(args.iface):
            title = tap_name(name, position, args.iface)
            tap = open_own_tap(live.ports[position], title, workers) if args.port == "dpdk" \
                else TapPort.open(title, workers)
            undo.callback(tap.close)
            live.taps[position] = tap
    signals.check()
    live.cpus = choose_cpus(args.cpu, workers, used_cpus())
    engine = Engine(obj, live.ports, program=spec.name, stack=dict(live.taps),
                    batch_size=args.batch_size, busy_poll=args.busy_poll, cpus=live.cpus,
                    opt=args.opt, directory=run_dir.path,
                    max_map_bytes=args.max_map_memory, grants=args.grants)
    undo.callback(engine.close)
    setmap.apply(engine.program, args.settings)
    rundir.write_atomic(run_dir.path / "run.json", json.dumps({
        "program": spec.name, "object": obj.name, "interfaces": list(args.iface),
        "modes": [port.mode for port in live.ports], "workers": workers,
        "namespace": takeover.network_namespace(), "cpus": list(live.cpus or ()),
        "started": round(time.time(), 3)}))
    for position, tap in live.taps.items() if args.port != "dpdk" else ():
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


def _run_name(ifaces: Sequence[str]) -> str:
    """eth0_eth1: of the characters a directory's name may have."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_"
                   for c in "_".join(ifaces))
    return (name if name[0].isalnum() else f"_{name}")[:64]


# ---- what the user is told -----------------------------------------------------------------------

def _announce(args: Namespace, live: Live, engine: Engine) -> None:
    spec = engine.program.spec
    for port in live.ports:
        note(f"{spec.name} of {engine.program.object.name} runs on {port.name}: {port.mode}")
    count = len(engine.workers)
    note(f"{count} worker{'s' * (count > 1)}, {say_cpus(live.cpus)}, pid {os.getpid()}")
    for position, tap in live.taps.items():
        note(f"XDP_PASS of {args.iface[position]} goes to the stack by {tap.name}, which has "
             + ("no address yet: ip addr add ... dev " + tap.name if args.port == "dpdk"
                else "its addresses meanwhile"))
    if not live.taps and args.port == "dpdk" and not args.no_stack:
        note("XDP_PASS needs no TAP: the kernel keeps its own copy of every frame of this device")
    elif not live.taps:
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
    if is_stackless(args) and total["pass"] and (args.port != "dpdk" or args.no_stack):
        note(f"{total['pass']:,} frames with XDP_PASS were dropped: there was no stack to go to")


def _why_silent(args: Namespace, live: Live, dog: Watchdog) -> str:
    """Likely causes, the likeliest first."""
    if args.port == "dpdk":
        down = [f"{port.name} has no link" for port in live.ports if not port.link()[0]]  # type: ignore[attr-defined]
        return "; ".join([*down, "or nobody sends"])
    why = [f"{port.name} has no carrier" for port in live.ports if not dog.has_carrier(port)]
    if args.queue != "all" and args.port == "afxdp":
        why.append("only some of the receive queues are taken, the others go to the host "
                   "(--queue all)")
    if not args.promisc and args.port != "tap":
        why.append("frames for other MAC addresses are not received (--promisc)")
    return "; ".join([*why, "or nobody sends"])
