"""xdpu replace, pause, resume, port and stop: changes to a run from outside."""

from __future__ import annotations

import json
import os
import select
import signal
from argparse import Namespace
from pathlib import Path
from typing import Any

from control.server import ask
from dataplane import rundir
from dataplane.rundir import RunDir
from xdp_runtime.errors import ConfigError, PortError, XdpuError

_END_S = 15.0


def replace(args: Namespace) -> int:
    """The object is read by the run, so its path is made whole here."""
    run = find(args.run)
    if not Path(args.obj).is_file():
        raise ConfigError(args.obj, "is not a file")
    return _change(args, run, {"do": "replace", "object": str(Path(args.obj).resolve()),
                               "program": args.prog_name, "set_map": list(args.set_map),
                               "set_global": list(args.set_global),
                               "map_entries": list(args.map_entries),
                               "btf": args.btf and os.path.abspath(args.btf)})


def pause(args: Namespace) -> int:
    return _change(args, find(args.run), {"do": "pause", "ifaces": list(args.iface)})


def resume(args: Namespace) -> int:
    return _change(args, find(args.run), {"do": "resume", "ifaces": list(args.iface)})


def add(args: Namespace) -> int:
    return _change(args, find(args.run), {"do": "add", "iface": args.iface})


def remove(args: Namespace) -> int:
    return _change(args, find(args.run), {"do": "remove", "iface": args.iface})


def stop(args: Namespace) -> int:
    """SIGTERM, and wait until all is put back."""
    run = find(args.run)
    owner = run.owner()
    if owner is None or not owner.alive():
        raise PortError(f"run {args.run}", "has died", "xdpu clean puts back what it left")
    try:
        process = os.pidfd_open(owner.pid)
    except OSError as error:
        raise PortError(f"run {args.run}", error.strerror or "is gone") from error
    try:
        if not owner.alive():  # the pid is another's by now
            return 0
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], _END_S)[0]:
            raise XdpuError(f"run {args.run}", f"did not end within {_END_S:g} s",
                            f"kill -9 {owner.pid}, then xdpu clean")
    except PermissionError as error:
        raise PortError(f"run {args.run}", "belongs to another user") from error
    finally:
        os.close(process)
    return 0


def find(name: str) -> RunDir:
    """A living run by its name, or one of its interfaces.  Raises ConfigError."""
    alive = [run for run in rundir.runs() if run.owner_alive()]
    for run in alive:
        if run.name == name:
            return run
    on_it = [run for run in alive if name in interfaces(run)]
    if len(on_it) == 1:
        return on_it[0]
    names = ", ".join(run.name for run in alive)
    raise ConfigError(f"run {name}", "there is no such run",
                      f"there are {names}" if names else f"none runs, in {rundir.run_root()}")


def interfaces(run: RunDir) -> list[str]:
    try:
        return list(json.loads((run.path / "run.json").read_text())["interfaces"])
    except (OSError, ValueError, KeyError):
        return []  # it is just starting


def _change(args: Namespace, run: RunDir, request: dict[str, Any]) -> int:
    result = ask(run.path, request)
    print(json.dumps(result) if args.json else f"{run.name}: {result['what']}")
    return 0
