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
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack

from afxdp.mirror import Mirror
from control import cpus, losses, setmap
from control.changes import Changes
from control.ending import finish, stop_engine
from control.host import Watchdog, host_name, refuse_shared, used_cpus
from control.live import Live, say_way_in
from control.ports import Foreseen, foresee, has_stack, kernel_sees
from control.progress import Progress
from control.server import ControlServer
from control.signals import Signals
from control.targets import ring_names
from control.upgrade import Upgrade
from control.watch import Watch, note
from dataplane import loop, rundir, takeover
from dataplane.engine import Engine
from dataplane.fibmirror import FibMirror
from dataplane.keeper import Keeper
from dataplane.pcap import PcapPort
from dataplane.tap import TapPort
from xdp_runtime.compiler.image import Image
from xdp_runtime.compiler.tiers import Tiers
from xdp_runtime.helpers.metadata import asked_by
from xdp_runtime.object import Object, ProgramSpec


def run_live(args: Namespace, obj: Object, spec: ProgramSpec, signals: Signals) -> int:
    with Tiers(args.baseline == "auto") as tiers:
        return _run(args, obj, spec, signals, tiers)


def _run(args: Namespace, obj: Object, spec: ProgramSpec, signals: Signals, tiers: Tiers) -> int:
    with signals.interruptible():
        args.frags, args.metadata = spec.has_frags, asked_by(obj)
        foreseen = foresee(args)
        cpus.choose(args.cpu, foreseen.workers)  # refuses what cannot be
        image = _compile_ahead(args, obj, spec, foreseen, tiers)
    report = None
    try:
        with ExitStack() as undo:
            live, engine = _set_up(args, obj, spec, signals, undo, tiers)
            upgrade = Upgrade(tiers, engine, args.json, lambda: live.describe(engine))
            dog = Watchdog(lambda: live.watched, live.unfit)
            changes = Changes(live, engine)
            server = undo.enter_context(ControlServer(live.run_dir.path, changes, signals.wake))
            watch = Watch(engine, lambda: live.every, signals,
                          name="+".join(args.iface), interval_s=args.interval,
                          duration_s=args.duration, as_json=args.json,
                          trace=args.trace or args.verbose > 0,
                          trace_aborted=args.trace_aborted,
                          checks=(dog.check, live.check, server.carry_out, changes.check,
                                  changes.captures.check,
                                  Progress(engine, note).check, upgrade.check),
                          wakers=upgrade.wakers,
                          silence=lambda: _why_silent(args, live, dog))
            signals.check()
            engine.start()
            try:
                _announce(args, live, engine, image, upgrade)
                watch.run()
            finally:
                stop_engine(engine, undo)
                if watch.trace:
                    watch.print_trace()
                counters = {port.name: port.statistics() for port in live.every}
                report = (watch, engine, time.monotonic() - watch.started_s, counters,
                          losses.of_ports([*live.gone, *live.every]), sys.stdout, upgrade)
                files = [port for port in live.ports.values() if isinstance(port, PcapPort)]
    finally:
        if report is not None:
            finish(args, *report)
            _say_unpassed(args, report[1])
            _say_without_socket(args, report[3])
    for error in (port.error() for port in files):
        if error is not None:
            raise error
    return 0


# ---- before anything is touched ------------------------------------------------------------------

def _compile_ahead(args: Namespace, obj: Object, spec: ProgramSpec,
                   foreseen: Foreseen, tiers: Tiers) -> Image:
    around = loop.unit(foreseen.kinds, foreseen.stacks, spec.has_frags)
    return tiers.begin(obj, spec, foreseen.workers, args.opt, [around], args.fuel)


# ---- up, step by step ----------------------------------------------------------------------------

def _set_up(args: Namespace, obj: Object, spec: ProgramSpec, signals: Signals,
            undo: ExitStack, tiers: Tiers) -> tuple[Live, Engine]:
    mended = mend()
    run_dir = rundir.create(args.name or _run_name(args.iface))
    undo.callback(_remove, run_dir)
    refuse_shared([name for name, one in args.ports.items() if one.of_host])
    keeper = Keeper(run_dir.path)
    undo.callback(keeper.close)
    live = Live(args, run_dir, signals, mended=mended)
    if args.shapes:
        live.mirror = undo.enter_context(Mirror(run_dir.path / "maps"))
    undo.callback(live.close_all)
    signals.check()
    for name in args.iface:
        live.open(name)
    workers = min(len(port.queues) for port in live.ports.values())
    for name in args.iface:
        live.open_stack(name, workers)
    signals.check()
    live.cpus = cpus.choose(args.cpu, workers, used_cpus(), _devices(live))
    stack = {position: live.stacks[name] for position, name in enumerate(live.ports)
             if name in live.stacks}
    engine = Engine(obj, list(live.ports.values()), program=spec.name, stack=dict(stack),
                    batch_size=args.batch_size, busy_poll=args.busy_poll, cpus=live.cpus,
                    look_ahead=args.look_ahead,
                    exit_when_idle=all(one.kind in ("pcap", "xsk")
                                       for one in args.ports.values()),
                    opt=args.opt, directory=run_dir.path,
                    max_map_bytes=args.max_map_memory, grants=args.grants,
                    trace_aborted=args.trace_aborted, rings=ring_names(args.ring),
                    compiled=tiers.compile)
    undo.callback(engine.close)
    setmap.apply(engine.program, args.settings, engine)
    if live.mirror is not None:
        live.mirror.start()
    live.describe(engine)
    for name in args.iface:
        signals.check()
        live.take_over(name)
    live.fib = undo.enter_context(FibMirror(note, lambda: dict(live.stand_ins)))
    live.fib.follow(engine.program.fib)
    return live, engine


def _devices(live: Live) -> list[str]:
    return [host_name(port) for port in live.ports.values()]


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

def _announce(args: Namespace, live: Live, engine: Engine, image: Image,
              upgrade: Upgrade) -> None:
    spec = engine.program.spec
    for name, port in live.ports.items():
        how = "redirects to" if live.specs[name].kind == "xsk" else "runs on"
        note(f"{spec.name} of {engine.program.object.name} {how} {port.name}: {port.mode}")
    count = len(engine.workers)
    note(f"{count} worker{'s' * (count > 1)}, {cpus.say(live.cpus)}, pid {os.getpid()}")
    for text in cpus.remarks(live.cpus, _devices(live), cpus.Topology.read()):
        note(text)
    follows = "; optimised code follows" if upgrade.baseline else ""
    note(f"machine code: {image.origin}{follows}")
    for name in live.stacks:
        say_way_in(live, name)
    for name in live.ports:
        if not args.no_stack and kernel_sees(live.specs[name]):
            note(f"XDP_PASS of {name} needs no TAP: the kernel keeps its own copy of every frame")
    lost = _passed_nowhere(args, list(live.ports))
    if lost:
        note(f"XDP_PASS{_of(lost, live.ports)} has no stack to go to: such frames are counted and "
             "dropped")
    if live.cpus and len(live.cpus) < count:
        note(f"{count} workers share {len(live.cpus)} CPUs")
    if args.json:
        print(json.dumps({
            "type": "start", "ts": round(time.time(), 3), "name": "+".join(args.iface),
            "run": live.run_dir.name, "pid": os.getpid(), "program": spec.name,
            "modes": {port.name: port.mode for port in live.ports.values()},
            "taps": {name: tap.name for name, tap in live.stacks.items()
                     if isinstance(tap, TapPort)},
            "stack": {name: stack.mode for name, stack in live.stacks.items()},
            "workers": count, "cpus": live.cpus,
            "code": {"pipeline": image.pipeline, "cached": image.from_cache,
                     "compile_s": round(image.compile_s, 3),
                     "baseline": upgrade.baseline}}), flush=True)


def _passed_nowhere(args: Namespace, names: Iterable[str]) -> list[str]:
    """Ports whose XDP_PASS is a drop."""
    return [name for name in names if args.ports[name].kind != "xsk"
            and not has_stack(args, args.ports[name])
            and (args.no_stack or not kernel_sees(args.ports[name]))]


def _of(some: Sequence[str], every: Collection[str]) -> str:
    return "" if len(some) == len(every) else f" of {', '.join(some)}"


def _say_unpassed(args: Namespace, engine: Engine) -> None:
    lost = _passed_nowhere(args, args.ports)
    count = sum(engine.stats.flow(number)[way] for way in ("pass", "cpu_pass")
                for number, flow in enumerate(engine.stats.flows) if flow.port in lost)
    if count:
        note(f"{count:,} frames{_of(lost, args.ports)} with XDP_PASS were dropped: there was no "
             "stack to go to")


def _say_without_socket(args: Namespace, counters: Mapping[str, Mapping[str, int]]) -> None:
    for name, spec in args.ports.items():
        lost = counters[name]["refused"] if spec.kind == "xsk" and name in counters else 0
        if lost:
            note(f"{lost:,} packets redirected to {name} were dropped: there was no socket")


def _why_silent(args: Namespace, live: Live, dog: Watchdog) -> str:
    """Likely causes, the likeliest first."""
    why: list[str] = []
    for name, port in live.ports.items():
        kind = live.specs[name].kind
        if kind == "afxdp":
            why += port.silence()  # type: ignore[attr-defined]
        elif kind == "dpdk" and not port.link()[0]:  # type: ignore[attr-defined]
            why.append(f"{name} has no link")
        elif kind in ("afpacket", "tap") and not dog.has_carrier(port):
            why.append(f"{name} has no carrier")
    if not args.promisc and any(spec.kind == "afpacket" for spec in live.specs.values()):
        why.append("frames for other MAC addresses are not received (--promisc)")
    if not any("nobody sends" in text for text in why):
        why.append("or nobody sends")
    return "; ".join(dict.fromkeys(why))
