"""xdpu status, clean and features: what runs, what died, and what this machine can do."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from typing import Any

from dataplane import rundir
from xdp_runtime.errors import PortError


def status(args: Namespace) -> int:
    """Every run under the run directory; one that died is listed as such."""
    if args.run is not None:
        return _tell(args)
    rows = [describe_run(run) for run in rundir.runs() if run.owner() is not None]
    if args.json:
        print(json.dumps(rows))
        return 0
    if not rows:
        print(f"nothing runs (looked in {rundir.run_root()})")
        return 0
    print(f"{'Name':<16} {'PID':>7} {'Up':>10}  {'Program':<16} {'Received':>15} {'Passed':>15} "
          f"{'Dropped':>15} {'Sent':>15} {'Redirected':>15} {'Aborted':>10}")
    for row in rows:
        total = row["total"]
        cells = [total.get(name, 0) for name in ("rx_packets", "pass", "drop", "tx", "redirect")]
        up = f"{row['up_s']:.0f}s" if row["alive"] else "died"
        print(f"{row['name']:<16} {row['pid']:>7} {up:>10}  {row['program']:<16} "
              + " ".join(f"{n:>15,}" for n in cells) + f" {total.get('aborted', 0):>10,}")
        if args.verbose:
            for name, mode in zip(row["interfaces"], row["modes"], strict=False):
                print(f"    {name}: {mode}")
    if not all(row["alive"] for row in rows):
        print("what a run that died left behind is put right by the next run, or by xdpu clean")
    return 0


def _tell(args: Namespace) -> int:
    """One living run: its workers' counters, its ports' own, and how long batches take."""
    from control.losses import all_of, words
    from control.remote import find
    from control.server import ask
    from control.watch import say_counters
    from dataplane.stats import Stats

    run = find(args.run)
    known = describe_run(run)
    try:
        stats = Stats.open(run.path / "stats")
    except (OSError, ValueError) as error:
        raise PortError(f"run {run.name}", "is just starting, or ending", "try again") from error
    took = stats.latency()
    known["latency_ns"] = {f"p{q * 100:g}": took.quantile_ns(q) for q in (0.5, 0.99, 0.999)}
    known["flows"] = [{"worker": f.worker, "port": f.port, "queue": f.queue, **stats.flow(i)}
                      for i, f in enumerate(stats.flows)]
    known["ports"] = ask(run.path, {"do": "counters"})
    known["lost_by_ports"] = ask(run.path, {"do": "losses"})
    known["lost"] = all_of(known["total"], known["lost_by_ports"])
    if args.json:
        print(json.dumps(known))
        return 0
    print(f"{run.name}: {known['program']}, pid {known['pid']}, up {known['up_s']:.0f} s, "
          f"{known['workers']} workers, machine code {known['code']}")
    for name, mode in zip(known["interfaces"], known["modes"], strict=False):
        print(f"  {name}: {mode}" + (", paused" if name in known["paused"] else ""))
    for flow in known["flows"]:
        counted = {name: value for name, value in flow.items()
                   if value and name not in ("worker", "port", "queue")}
        print(f"  worker {flow['worker']} {flow['port']}:{flow['queue']}: "
              f"{say_counters(counted) if counted else 'nothing yet'}")
    for port, counters in known["ports"].items():
        print(f"  {port}: {say_counters(counters)}")
    if known["latency_ns"]["p50"] is not None:
        print("  from receiving a batch to having passed it on, at most: " + ", ".join(
            f"{name} {value / 1000:,.1f} us" for name, value in known["latency_ns"].items()))
    print(f"  lost: {known['lost']:,}")
    for text, count in words(known["total"], known["lost_by_ports"]):
        print(f"    {count:,} {text}")
    return 0


def describe_run(run: rundir.RunDir) -> dict[str, Any]:
    """What its directory says; a run that is just starting or ending may say little."""
    from dataplane.stats import Stats

    owner = run.owner()
    known: dict[str, Any] = {}
    total: dict[str, int] = {}
    try:
        known = json.loads((run.path / "run.json").read_text())
        total = Stats.open(run.path / "stats").total()
    except (OSError, ValueError):
        pass
    return {"name": run.name, "pid": owner.pid if owner else 0, "alive": run.owner_alive(),
            "up_s": round(max(time.time() - known.get("started", time.time()), 0), 1),
            "program": known.get("program", ""), "interfaces": known.get("interfaces", []),
            "modes": known.get("modes", []), "paused": known.get("paused", []),
            "workers": known.get("workers", 0), "code": known.get("code", ""),
            "cpus": known.get("cpus", []), "total": total}


def clean(args: Namespace) -> int:
    """Put back what dead runs took over in this network namespace, and remove their remains."""
    from dataplane.takeover import repair

    lines = repair(rundir.run_root())
    removed = rundir.clean()
    left = [run.name for run in rundir.runs() if not run.owner_alive() and run.journals()]
    if args.json:
        print(json.dumps({"mended": lines, "removed": removed, "left": left}))
        return 1 if left else 0
    for line in lines:
        print(line)
    for name in removed:
        print(f"run {name}: removed")
    for name in left:
        print(f"run {name}: still has an interface taken over, in another network namespace if "
              "nothing is said of it above; run xdpu clean there")
    if not lines and not removed and not left:
        print("nothing to clean")
    return 1 if left else 0


def features(args: Namespace) -> int:
    from control.features import collect, to_text

    results = collect(args.iface)
    if args.json:
        print(json.dumps([result.to_json() for result in results]))
    else:
        print(to_text(results))
    return 0
