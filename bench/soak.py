"""xdpu run at full rate with its program replaced every second: is every packet accounted for?

    python -m bench.soak [--seconds 600] [--port afxdp|afpacket] [--queues 1] [--replace-every 1]
                         [--cpus SOURCE,LOOP] [-j]

A flood (traffic.py) comes in by one veth; the programs drop, send back, pass to the stack,
redirect to a second veth and count, by turns.  At the end the flood stops, what is in rings is
waited for, and the books are balanced, each side counted by somebody else:

    sent       what the source sent = what came out of its veth's ring + the ring's overflow
    arrived    what ran our kernel program = what the run received + what its sockets lost
    received   what the run received = aborted + drop + pass + tx + redirect
    out        tx + redirect + frames of the stack - counted losses = what the interfaces sent and
               dropped
    passed     pass - counted losses = what the interface's TAP received

A difference is a packet nobody counted, or one counted twice; any is a failure.  JSON: {"bench":
"soak", "seconds", "replaced", "mpps", "ledger": {line: [left, right]}, "counters", "machine"}.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.cases import EXAMPLES
from bench.samples import cpus, machine
from bench.traffic import Flood
from control.server import ask
from dataplane.stats import Stats
from tests.control.run_xdpu import Run
from tests.nets import End, VethPair, in_ns
from xdp_runtime.errors import XdpuError

PROGRAMS = ("drop", "tx", "pass", "redirect", "counter")
_NAME = "soak"
_QUIET_S, _QUIET_LIMIT_S = 0.5, 30.0
_LOST_BY_SOCKET = ("rx_dropped", "rx_ring_full")  # an empty fill ring is in rx_dropped
Ledger = dict[str, tuple[int, int]]


# ---- counters of others --------------------------------------------------------------------------

def interface_counters(end: End) -> dict[str, int]:
    """What the kernel counts of an interface, and its driver, queues summed: rx_ring_drops."""
    found: dict[str, int] = {}
    folder = f"/sys/class/net/{end.ifname}/statistics"
    for line in in_ns(end.ns, "grep", "-H", "", "-r", folder).stdout.splitlines():
        path, _, value = line.rpartition(":")
        found[path.rpartition("/")[2]] = int(value)
    for line in in_ns(end.ns, "ethtool", "-S", end.ifname, check=False).stdout.splitlines()[1:]:
        name, _, value = line.strip().partition(": ")
        parts = name.split("_")
        if len(parts) > 3 and parts[1] == "queue":
            name = f"{parts[0]}_ring_{'_'.join(parts[3:])}"
            found[name] = found.get(name, 0) + int(value)
    return found


def difference(after: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    return {name: value - before.get(name, 0) for name, value in after.items()}


@dataclass
class Books:
    """Counters from before a run to its end; `balance` compares them."""

    sent: int = 0
    ends: dict[str, dict[str, int]] = field(default_factory=dict)  # source, node, out, tap
    total: dict[str, int] = field(default_factory=dict)
    ports: dict[str, dict[str, int]] = field(default_factory=dict)

    def balance(self) -> Ledger:
        """Left must be right."""
        run, node, out = self.total, self.ends["node"], self.ends["out"]
        sockets = [counters for name, counters in self.ports.items() if "rx_ring_full" in counters]
        lost = sum(one[name] for one in sockets for name in _LOST_BY_SOCKET)
        arrived = sum(end.get("rx_ring_xdp_packets", 0) for end in (node, out))
        left_us = run["tx"] - run["tx_full"] + run["redirect"] - run["redirect_full"] \
            - run["redirect_no_port"] + run["stack_packets"] - run["stack_full"]
        kernel_out = sum(end["tx_packets"] + end["tx_dropped"] for end in (node, out)) \
            + sum(one["tx_invalid_descs"] for one in sockets)
        ledger = {
            "arrived": (arrived, run["rx_packets"] + lost),
            "received": (run["rx_packets"], sum(run[name] for name in (
                "aborted", "drop", "pass", "tx", "redirect"))),
            "out": (left_us, kernel_out),
        }
        source = self.ends.get("source")
        if source is not None:
            ledger["sent"] = (self.sent, source.get("tx_ring_xdp_xmit", 0)
                              + source.get("tx_ring_xdp_xmit_errors", 0))
        if "tap" in self.ends:
            tap = self.ends["tap"]
            ledger["passed"] = (run["pass"] - run["pass_full"],
                                tap["rx_packets"] + tap["rx_dropped"])
        return ledger


def unbalanced(ledger: Ledger) -> list[str]:
    return [f"{line}: {left:,} and {right:,}, {left - right:+,}"
            for line, (left, right) in ledger.items() if left != right]


# ---- the run -------------------------------------------------------------------------------------

def settle(look: Callable[[], object], limit_s: float = _QUIET_LIMIT_S) -> None:
    """Until it says the same for half a second."""
    seen, since_s = look(), time.monotonic()
    until_s = since_s + limit_s
    while time.monotonic() < until_s:
        time.sleep(0.05)
        now = look()
        if now != seen:
            seen, since_s = now, time.monotonic()
        elif time.monotonic() - since_s >= _QUIET_S:
            return
    raise RuntimeError(f"counters still change {limit_s:g} s after the flood")


@contextmanager
def networks(queues: int) -> Iterator[tuple[VethPair, VethPair]]:
    """Source to node, and from there on; none says anything by itself."""
    with VethPair(subnet=221, queues=queues) as way_in, \
            VethPair(None, way_in.b.ns, subnet=222, queues=queues) as way_out:
        for ns in (way_in.a.ns, way_in.b.ns, way_out.a.ns):
            in_ns(ns, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1",
                  "net.ipv6.conf.default.disable_ipv6=1")
        yield way_in, way_out


def soak(seconds: float, replace_every_s: float, port: str, queues: int, source_cpu: int,
         loop_cpus: Sequence[int], programs: Sequence[str] = PROGRAMS,
         told: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Raises RuntimeError where the run cannot be had or ends by itself."""
    with networks(queues) as (way_in, way_out), \
            tempfile.TemporaryDirectory(prefix="xdpu-soak-") as folder:
        source, node, out = way_in.a, way_in.b, way_out.b
        books = Books()
        before = {"source": interface_counters(source), "node": interface_counters(node),
                  "out": interface_counters(out)}
        peer = f"peer={node.ifindex}:{out.ifindex}"
        run = Run(node.ns, str(EXAMPLES / f"{programs[0]}.o"), "--iface",
                  f"{node.ifname},{out.ifname}", "--port", port, "--name", _NAME, "-i", "3600",
                  "--cpu", ",".join(map(str, loop_cpus)),
                  XDPU_RUNDIR=folder)
        with run:
            taps = run.wait_for("start")["taps"]
            stats = Stats.open(Path(folder) / _NAME / "stats")
            flood = Flood(source.ifname, source.ns, source_cpu, seconds, flows=64,
                          dst_mac=node.mac)
            replaced, ends_s = 0, time.monotonic() + seconds
            due_s = time.monotonic() + replace_every_s
            while time.monotonic() < ends_s:
                time.sleep(max(0.0, min(due_s, ends_s) - time.monotonic()))
                if time.monotonic() >= ends_s:
                    break
                due_s += replace_every_s
                name = programs[(replaced + 1) % len(programs)]
                ask(Path(folder) / _NAME, {
                    "do": "replace", "object": str(EXAMPLES / f"{name}.o"), "program": None,
                    "set_map": [peer] if name == "redirect" else []})
                replaced += 1
                if replaced % 60 == 0:
                    told(f"{replaced} replaced, {stats.total()['rx_packets']:,} received")
                if run.process.poll() is not None:
                    raise RuntimeError(f"the run ended: {run.errors}")
            sent = flood.wait()
            settle(lambda: (stats.total()["rx_packets"], interface_counters(node),
                            interface_counters(out)))
            books.sent = sent.frames
            books.ends = {name: difference(interface_counters(end), before[name])
                          for name, end in (("source", source), ("node", node), ("out", out))}
            counted = [interface_counters(replace(end, ifname=name))
                       for end, name in ((node, taps[node.ifname]), (out, taps[out.ifname]))]
            books.ends["tap"] = {name: sum(one[name] for one in counted) for name in counted[0]}
            code = run.end()
        summary = next(r for r in run.records if r.get("type") == "summary")
        if code:
            raise RuntimeError(f"the run ended with {code}: {run.errors}")
        books.total, books.ports = summary["total"], summary["ports"]
        ledger = books.balance()
        return {"bench": "soak", "seconds": seconds, "replaced": replaced, "port": port,
                "queues": queues, "offered_mpps": round(sent.mpps, 4),
                "mpps": round(books.total["rx_packets"] / sent.seconds / 1e6, 4),
                "ledger": ledger, "unbalanced": unbalanced(ledger),
                "counters": {"run": {k: v for k, v in books.total.items() if v},
                             "ports": books.ports, "ends": books.ends}}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.soak", description="is every packet accounted for")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--replace-every", type=float, default=1.0)
    parser.add_argument("--port", choices=("afxdp", "afpacket"), default="afxdp")
    parser.add_argument("--queues", type=int, default=1)
    parser.add_argument("--cpus", default="", help="SOURCE,LOOP[,LOOP]")
    parser.add_argument("-j", "--json", action="store_true")
    args = parser.parse_args(argv)
    chosen = [int(text) for text in args.cpus.split(",") if text] or cpus(1 + args.queues)
    result = soak(args.seconds, args.replace_every, args.port, args.queues, chosen[0], chosen[1:],
                  told=lambda text: print(text, file=sys.stderr, flush=True))
    result["machine"] = machine()
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print(f"{result['seconds']:g} s, {result['replaced']} programs replaced, "
              f"{result['mpps']:.2f} Mpps of {result['offered_mpps']:.2f} offered")
        for line, (left, right) in result["ledger"].items():
            print(f"{line:10}{left:>16,}{right:>16,}{left - right:>+12,}")
    return 1 if result["unbalanced"] else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, XdpuError) as error:
        sys.exit(f"bench.soak: {error}")
