"""xdpu run at full rate with its program replaced every second: is every packet accounted for?

    python -m bench.soak [--seconds 600] [--queues 1] [--replace-every 1]
                         [--stack auto|skb|live|tap] [--cpus SOURCE,LOOP] [-j]

A flood (traffic.py) comes in by one veth; the programs drop, send back, pass to the stack,
redirect to a second veth and count, by turns.  At the end the flood stops, what is in rings is
waited for, and the books are balanced, each side counted by somebody else:

    sent       what the source sent = what came out of its veth's ring + the ring's overflow
    arrived    what ran our kernel program = what the run received + what its sockets lost
    received   what the run received = aborted + drop + pass + tx + redirect
    out        tx + redirect + frames of the stack - counted losses = what the interfaces sent and
               dropped
    passed     pass - counted losses = what the stack's IP received

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cases import EXAMPLES
from bench.samples import cpus, machine
from bench.systems import attach
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


@dataclass(frozen=True, slots=True)
class Books:
    """What was counted from before a run to its end, by whom; `balance` compares.  `ends` has
    `source`, `node` and `out`, as far as there are such interfaces; `passed` is what the stack
    of the node's namespace received."""

    sent: int
    passed: int
    ends: Mapping[str, Mapping[str, int]]
    total: Mapping[str, int]
    ports: Mapping[str, Mapping[str, int]]

    def balance(self) -> Ledger:
        """Left must be right."""
        run, ours = self.total, [self.ends[name] for name in ("node", "out") if name in self.ends]
        sockets = [counters for name, counters in self.ports.items() if "rx_ring_full" in counters]
        lost = sum(one[name] for one in sockets for name in _LOST_BY_SOCKET)
        arrived = sum(end["rx_ring_xdp_packets"] for end in ours)
        left_us = run["tx"] - run["tx_full"] + run["redirect"] - run["redirect_full"] \
            - run["redirect_no_port"] + run["stack_packets"] - run["stack_full"]
        kernel_out = sum(end["tx_packets"] + end["tx_dropped"] for end in ours) \
            + sum(one["tx_invalid_descs"] for one in sockets)
        ledger = {
            "arrived": (arrived, run["rx_packets"] + lost),
            "received": (run["rx_packets"], sum(run[name] for name in (
                "aborted", "drop", "pass", "tx", "redirect"))),
            "out": (left_us, kernel_out),
            "passed": (run["pass"] - run["pass_full"], self.passed),
        }
        source = self.ends.get("source")
        if source is not None:
            ledger["sent"] = (self.sent, source.get("tx_ring_xdp_xmit", 0)
                              + source.get("tx_ring_xdp_xmit_errors", 0))
        return ledger



class Bookkeeper:
    """Opens the books before a run and closes them while it stands still, before its end."""

    def __init__(self, **ends: End) -> None:
        self._ends = ends
        self._before, self._ip_before = self._look(), self._ip()
        self._seen, self._ip_seen = self._before, 0

    def _look(self) -> dict[str, dict[str, int]]:
        return {name: interface_counters(end) for name, end in self._ends.items()}

    def _ip(self) -> int:
        lines = in_ns(self._ends["node"].ns, "cat", "/proc/net/snmp").stdout.splitlines()
        names, values = (line.split() for line in lines if line.startswith("Ip:"))
        return int(values[names.index("InReceives")])

    def close(self, stats: Stats) -> None:
        """Waits until nothing moves any more.  Raises RuntimeError if something always does."""
        settle(lambda: (stats.total()["rx_packets"], self._ip(), self._look()))
        self._seen = {name: difference(seen, self._before[name])
                      for name, seen in self._look().items()}
        self._ip_seen = self._ip() - self._ip_before

    def books(self, sent: int, summary: Mapping[str, Any]) -> Books:
        """`summary` is the run's last record."""
        return Books(sent, self._ip_seen, self._seen, summary["total"], summary["ports"])


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
    """Source to node, and from there on; none says anything by itself, and what comes out of the
    node is dropped by XDP: to an end without it no live frames can be sent."""
    with VethPair(subnet=221, queues=queues) as way_in, \
            VethPair(None, way_in.b.ns, subnet=222, queues=queues) as way_out:
        for ns in (way_in.a.ns, way_in.b.ns, way_out.a.ns):
            in_ns(ns, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1",
                  "net.ipv6.conf.default.disable_ipv6=1")
        with attach("drop", way_in.a), attach("drop", way_out.a):
            yield way_in, way_out


def soak(seconds: float, replace_every_s: float, queues: int, source_cpu: int,
         loop_cpus: Sequence[int], stack: str = "auto", programs: Sequence[str] = PROGRAMS,
         told: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """Raises RuntimeError where the run cannot be had or ends by itself."""
    with networks(queues) as (way_in, way_out), \
            tempfile.TemporaryDirectory(prefix="xdpu-soak-") as folder:
        source, node, out = way_in.a, way_in.b, way_out.b
        keeper = Bookkeeper(source=source, node=node, out=out)
        peer = f"peer={node.ifindex}:{out.ifindex}"
        run = Run(node.ns, str(EXAMPLES / f"{programs[0]}.o"), "--iface",
                  f"{node.ifname},{out.ifname}", "--name", _NAME, "-i", "3600",
                  "--stack", stack, "--cpu", ",".join(map(str, loop_cpus)),
                  XDPU_RUNDIR=folder)
        with run:
            run.wait_for("start")
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
                run.read()
                if replaced % 60 == 0:
                    told(f"{replaced} replaced, {stats.total()['rx_packets']:,} received")
                if run.process.poll() is not None:
                    raise RuntimeError(f"the run ended: {run.errors}")
            sent = flood.wait()
            keeper.close(stats)
            code = run.end()
        summary = next(r for r in run.records if r.get("type") == "summary")
        if code:
            raise RuntimeError(f"the run ended with {code}: {run.errors}")
        books = keeper.books(sent.frames, summary)
        ledger = books.balance()
        return {"bench": "soak", "seconds": seconds, "replaced": replaced, "stack": stack,
                "queues": queues, "offered_mpps": round(sent.mpps, 4),
                "mpps": round(books.total["rx_packets"] / sent.seconds / 1e6, 4),
                "ledger": ledger, "unbalanced": unbalanced(ledger),
                "counters": {"run": {k: v for k, v in books.total.items() if v},
                             "ports": books.ports,
                             "ends": {name: {k: v for k, v in counted.items() if v}
                                      for name, counted in books.ends.items()}}}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.soak", description="is every packet accounted for")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--replace-every", type=float, default=1.0)
    parser.add_argument("--stack", choices=("auto", "skb", "live", "tap"), default="auto")
    parser.add_argument("--queues", type=int, default=1)
    parser.add_argument("--cpus", default="", help="SOURCE,LOOP[,LOOP]")
    parser.add_argument("-j", "--json", action="store_true")
    args = parser.parse_args(argv)
    chosen = [int(text) for text in args.cpus.split(",") if text] or cpus(1 + args.queues)
    result = soak(args.seconds, args.replace_every, args.queues, chosen[0], chosen[1:],
                  args.stack, told=lambda text: print(text, file=sys.stderr, flush=True))
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
