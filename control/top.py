"""xdpu top: runs, their workers and queues, a screenful an interval; -j: a JSON object a line."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any

from control.losses import Losses, all_of, grown, words
from control.remote import find, interfaces
from control.server import ask
from control.signals import Signals
from control.watch import NOTHING, per_second, status_line, sum_up
from dataplane import rundir
from dataplane.stats import Latency, Stats
from xdp_runtime.errors import XdpuError

_CLEAR = "\x1b[H\x1b[2J"


@dataclass
class _Seen:
    """One look at a run's counters."""

    stats: Stats
    at_s: float = field(default_factory=time.monotonic)
    flows: list[dict[str, int]] = field(default_factory=list)
    latency: Latency = field(default_factory=lambda: Latency((), 0))
    losses: Losses = field(default_factory=dict)  # of its ports

    def __post_init__(self) -> None:
        self.flows = [self.stats.flow(i) for i in range(len(self.stats.flows))]
        self.latency = self.stats.latency()


def run(args: Namespace) -> int:
    """Until a signal, or `--count` looks; a terminal's screen is rewritten each time."""
    if args.run is not None:
        find(args.run)
    before = _look(args.run)
    left = args.count or -1
    with Signals() as signals:
        while left != 0:
            signals.wait(args.interval)
            if signals.caught:
                break
            left -= 1
            now = _look(args.run)
            records = [_compare(name, before[name], seen) for name, seen in now.items()
                       if name in before and len(before[name].flows) <= len(seen.flows)]
            before = now
            if args.json:
                for record in records:
                    print(json.dumps(record), flush=True)
            else:
                _show(records)
    return 0


def _look(wanted: str | None) -> dict[str, _Seen]:
    found: dict[str, _Seen] = {}
    for one in rundir.runs():
        if one.owner_alive() and (wanted in (None, one.name) or wanted in interfaces(one)):
            try:
                seen = found[one.name] = _Seen(Stats.open(one.path / "stats"))
            except (OSError, ValueError):
                continue  # it is just starting, or ending
            with contextlib.suppress(XdpuError):  # one that does not answer is shown without
                seen.losses = ask(one.path, {"do": "losses"})
    return found


def _compare(name: str, old: _Seen, new: _Seen) -> dict[str, Any]:
    passed_s = new.at_s - old.at_s
    earlier = old.flows + [NOTHING] * (len(new.flows) - len(old.flows))
    rates = [per_second(n, o, passed_s) for n, o in zip(new.flows, earlier, strict=True)]
    took = new.latency.since(old.latency)
    lost = {port: {name: round(count / max(passed_s, 1e-9), 1) for name, count in counts.items()}
            for port, counts in grown(new.losses, old.losses).items()}
    return {
        "type": "top", "ts": round(time.time(), 3), "name": name, "interval_s": round(passed_s, 3),
        "per_second": sum_up(rates), "total": new.stats.total(),
        "lost_by_ports_per_second": lost,
        "latency_ns": {f"p{q * 100:g}": took.quantile_ns(q) for q in (0.5, 0.99, 0.999)},
        "flows": [{"worker": f.worker, "port": f.port, "queue": f.queue, "per_second": rate}
                  for f, rate in zip(new.stats.flows, rates, strict=True)]}


def _show(records: list[dict[str, Any]]) -> None:
    out = [_CLEAR] if sys.stdout.isatty() else []
    if not records:
        out.append(f"nothing runs (looked in {rundir.run_root()})\n")
    for record in records:
        of_ports = record["lost_by_ports_per_second"]
        out.append(status_line(record["name"], record["per_second"],
                               all_of(NOTHING, of_ports)) + "\n")
        for flow in record["flows"]:
            rate = flow["per_second"]
            if any(rate.values()):
                title = f"  {flow['worker']} {flow['port']}:{flow['queue']}"
                out.append(status_line(title, rate) + "\n")
        lost = [f"{text} {rate:,.0f}/s" for text, rate in words(record["per_second"], of_ports)
                if rate]
        if lost:
            out.append(f"  lost: {'; '.join(lost)}\n")
        if record["latency_ns"]["p50"] is not None:
            out.append("  from receiving a batch to having passed it on, at most: " + ", ".join(
                f"{name} {value / 1000:,.1f} us"
                for name, value in record["latency_ns"].items()) + "\n")
    print("".join(out), end="", flush=True)
