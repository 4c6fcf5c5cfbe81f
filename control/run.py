"""xdpu run: a program on interfaces (run_live.py) or on a capture file, watched until it ends."""

from __future__ import annotations

import contextlib
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from control import afxdp_options, portspec
from control.signals import Interrupted, Signals
from xdp_runtime.errors import ConfigError


def run(args: Namespace) -> int:
    check_options(args)
    with Signals() as signals:
        try:
            with signals.interruptible():
                from control import objects
                obj = objects.read(args)
                spec = obj.attachable(args.prog_name)
                from control import setmap
                from control.policy import bind, chosen
                from control.watch import note
                args.shapes = afxdp_options.shapes(args.filter, obj)
                args.grants, args.fuel = chosen(args), bind(args, obj, spec)
                args.settings = [setmap.parse(text, obj) for text in args.set_map]
                args.settings += [setmap.parse(f"{target}={index}:xsk={name}", obj)
                                  for name, target, index in args.ring if target]
            if args.pcap is not None:
                return _run_files(args, obj, spec.name, signals)
            with signals.interruptible():
                from control.run_live import run_live
            return run_live(args, obj, spec, signals)
        except Interrupted as end:
            from control.watch import note
            note(f"ended by signal {end.number} before it began")
            return 128 + end.number


def check_options(args: Namespace) -> None:
    """What the table of options cannot say; `ports` and `iface` are then the ports and their names.
    Raises ConfigError."""
    if args.iface and args.pcap is not None:
        raise ConfigError("--iface and --pcap", "exclude each other", "give one of them")
    if args.port.startswith("dpdk:"):
        if args.iface:
            raise ConfigError("--iface and --port dpdk", "exclude each other", "name the device "
                              "by an --iface dpdk:DEVICE of its own")
        args.ports = portspec.devices(args.port)
    else:
        args.ports = portspec.parse_all(args.iface, args.port)
    args.iface = tuple(args.ports)
    if args.no_stack and args.stack != "auto":
        raise ConfigError(f"--stack {args.stack} and --no-stack", "exclude each other")
    if not [one for one in args.ports.values() if one.kind != "xsk"] and args.pcap is None:
        raise ConfigError("run", "no packets to run on", "give --iface IF or --pcap IN")
    if any(spec.kind == "dpdk" for spec in args.ports.values()):
        args.busy_poll = True  # DPDK's devices wake nobody
    elif args.dpdk_args:
        raise ConfigError("--dpdk-args", "goes with --port dpdk:DEVICE")
    if args.ports and args.out is not None:
        raise ConfigError("--out", "goes with --pcap", "xdpu capture records interfaces")
    afxdp_options.check(args)


def _run_files(args: Namespace, obj: Any, program: str, signals: Signals) -> int:
    """PcapPort through the same engine; a damaged file fails after what was good of it."""
    from control import losses, setmap, targets
    from control.ending import finish, stop_engine
    from control.watch import Watch, note
    from dataplane import fibmirror, rundir
    from dataplane.engine import Engine
    from dataplane.pcap import PcapPort

    out = sys.stderr if args.out == "-" else sys.stdout
    with contextlib.ExitStack() as undo:
        with signals.interruptible():
            port = PcapPort(args.pcap, args.out)
            undo.callback(port.close)
            run_dir = rundir.create(args.name or _file_name(args.pcap)) if args.ring else None
            if run_dir is not None:
                undo.callback(run_dir.remove)
            engine = Engine(obj, [port], program=program, batch_size=args.batch_size,
                            opt=args.opt, exit_when_idle=True, look_ahead=args.look_ahead,
                            max_map_bytes=args.max_map_memory, grants=args.grants,
                            trace_aborted=args.trace_aborted,
                            directory=run_dir.path if run_dir else None,
                            rings=targets.ring_names(args.ring))
        undo.callback(engine.close)
        setmap.apply(engine.program, args.settings, engine)
        fibmirror.fill(engine.program.fib, note)
        watch = Watch(engine, lambda: [port], signals, name=Path(args.pcap).name, out=out,
                      interval_s=args.interval, duration_s=args.duration, as_json=args.json,
                      trace=args.trace or args.verbose > 0, tick_s=0.005,
                      trace_aborted=args.trace_aborted)
        started_s = time.monotonic()
        engine.start()
        try:
            watch.run()
        finally:
            stop_engine(engine, undo)
        duration_s = time.monotonic() - started_s
        if watch.trace:
            watch.print_trace()
        total = engine.stats.total()
        finish(args, watch, engine, duration_s, {port.name: port.statistics()},
               losses.of_ports([port]), out)
        if signals.caught:
            note(f"ended by signal {signals.caught}, {total['rx_packets']:,} packets done")
    error = port.error()
    if error is not None:
        raise error
    return 0


def _file_name(path: str) -> str:
    """A run's name made of a file's."""
    name = "".join(c if c.isascii() and (c.isalnum() or c in "_.-") else "_"
                   for c in Path(path).name)
    return f"pcap-{name}"[:64]
