"""Packets through an interface: ours, the same loop in C, and XDP in the kernel, in turns.

    python -m bench.io [--port afxdp|afpacket|tap|dpdk[:net_memif|net_af_xdp|net_af_packet]]
                       [--action drop,tx,redirect,pass] [--queues 1] [--rounds 5] [--seconds 1]
                       [--no-search] [--tolerance 0] [--source auto|live|afpacket|dpdk]
                       [--source-cpus N[,N]] [--loop-cpus N[,N]] [--share-cpus] [--systems ours,c]
                       [--out DIR] [-j]

Namespaces, veths and memif's sockets are built here (wires.py), fresh for every turn.  A source of
its own CPU (source.py) sends frames into one end; a system (systems.py) at the other drops them,
sends them back, out of a second way, or passes them to the stack; who reads them there (sink.py;
passing.py for the stack; of memif the source) counts them and how long they were on their way.
Two queues have two sources, as a veth chooses the queue by the sender's CPU.  Where there are not
enough CPUs for that, or with `--share-cpus`, each queue's source and loop share one: the loops
sleep in poll(2) then, ours and C's, and a figure is what one CPU does of everything.

**Flood.**  `rounds` turns of all systems: what was done while the source sent all it could.
Receiving in the kernel costs the source's CPU, so what it could send is said for every turn
(`offered`), beside its limit where the frame is dropped at once.  A system that took all of it was
not what limited: the figure has a `>`.  `CPU ns` is the time that the loops' threads had a CPU, in
user space and kernel, by packets done: a loop that waits for its source spends it spinning, unless
it shares that CPU.

**Search.**  The rate at which nothing is lost (search.py; `--tolerance` is a share that may be),
then a moment at 10, 50 and 90 % of it: loss, and latency percentiles.  The source sends in bursts
(source.py says how long), so the latency of a burst's last frame has the others in it.  What is
dropped does not come out, so there is no latency of it.

XDP_PASS is counted by a program that reads datagrams, on a CPU of its own; then the goodput of a
TCP connection through the system, and its round trips: a byte there and back.

A source that stalled or could not keep its rate, and neighbours on the machine, are said.

JSON: {"bench": "io", "port", "queues", "seconds", "rounds", "source", "source_cpus", "loop_cpus",
"shares", "machine", "source_mpps": [its limit, each round], "missing": {system: why}, "rows":
[{"action", "systems": {name: {"flood": [{"mpps", "offered_mpps", "taken", "cpu_ns"}],
"zero_loss_mpps", "is_source", "trials": [[rate, sent, lost, 1 if the source kept the rate]],
"loads": [{"share", "rate", "sent", "lost", "p50_ns", "p99_ns", "p999_ns", "histogram": {bucket:
packets}}], "tcp_mbps": [...], "tcp_rr": [{"p50_ns", "p99_ns", "p999_ns"}]}}, "ratios": {"ours/c":
[each round]}, "cpu_ratios": {the same of cpu_ns}, "complaints": [...]}]}.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import systems
from bench.histogram import percentile_ns
from bench.io_table import PERCENTILES
from bench.io_table import markdown as markdown
from bench.noise import Watch
from bench.passing import Reader, tcp_mbps, tcp_round_trips
from bench.record import Record, interruptible
from bench.runtime import Runtime
from bench.samples import machine
from bench.search import Trial, zero_loss
from bench.sink import Sink
from bench.source import DpdkSource, Sent, Source
from bench.systems import Counter, Job, Running
from bench.wires import MEMIF, PORTS, SOURCES, Wires, check, port_named, source_for, wires
from tests.nets import End, entered
from xdp_runtime.errors import ConfigError, XdpuError

ACTIONS = ("drop", "tx", "redirect", "pass")
SHARES = (0.1, 0.5, 0.9)
_TRIAL_S, _SETTLED_S, _LATE_S = 0.3, 0.02, 1.0
_STRANGERS = 100  # neighbour discovery, before and after


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done, and on which CPUs: a source and a loop for each queue, and a reader."""

    port: str = "afxdp"
    queues: int = 1
    rounds: int = 5
    seconds: float = 1.0
    search: bool = True
    tolerance: float = 0.0
    source_cpus: tuple[int, ...] = ()
    loop_cpus: tuple[int, ...] = ()
    reader_cpu: int = 0
    source: str = "auto"
    shares: bool = False  # a loop its source's CPU
    systems: tuple[str, ...] = ()  # all that can, unless some are named

    @classmethod
    def on(cls, queues: int = 1, sources: Sequence[int] = (), loops: Sequence[int] = (),
           shares: bool = False, **more: Any) -> Plan:
        """With CPUs chosen where none are given.  Raises ConfigError if there are too few."""
        allowed = sorted(os.sched_getaffinity(0), reverse=True)
        if not sources:  # a veth takes a frame into queue CPU % queues
            sources = [next((cpu for cpu in allowed if cpu % queues == queue), -1)
                       for queue in range(queues)]
        if len(set(sources)) < queues or min(sources) < 0:
            raise ConfigError(f"{queues} queues", f"need a source's CPU each, and there are "
                              f"{len(allowed)}", "measure fewer")
        rest = [cpu for cpu in allowed if cpu not in sources]
        shares = shares or len(loops or rest) < queues
        loops = sources if shares else loops or rest[:queues]
        left = [cpu for cpu in rest if cpu not in loops] or list(loops)
        return cls(queues=queues, source_cpus=tuple(sources), loop_cpus=tuple(loops),
                   reader_cpu=left[0], shares=shares, **more)

    @property
    def cpus(self) -> set[int]:
        return {*self.source_cpus, *self.loop_cpus, self.reader_cpu}


@dataclass(slots=True)
class Way:
    """A system on its wires with sources and a reader: `trial` sends and counts."""

    sources: Sequence[Source]
    count: Counter
    reader: Sink | Reader | DpdkSource | None
    running: Running | None = None
    loops: int = 1
    complaints: list[str] = field(default_factory=list)
    ends: Sequence[End] = ()  # interfaces that have to be there all the time

    @contextmanager
    def watched(self, cpus: set[int]) -> Iterator[None]:
        """Neighbours that are noisy meanwhile are complained of."""
        watch = Watch(cpus)
        yield
        self.complaints += watch.noise().complaints()

    def send(self, seconds: float, rate: float = 0.0) -> Sent:
        """By all sources at once."""
        for source in self.sources:
            source.begin(seconds, rate / len(self.sources))
        sent = [source.wait() for source in self.sources]
        for end in self.ends:
            with entered(end.ns):
                try:
                    socket.if_nametoindex(end.ifname)
                except OSError as error:
                    raise RuntimeError(f"interface {end.ifname} vanished while it was measured"
                                       ) from error
        return Sent(sum(s.frames for s in sent), max(s.seconds for s in sent), rate,
                    max(s.longest_gap_s for s in sent), sum(s.refused for s in sent))

    def flood(self, seconds: float) -> dict[str, float]:
        before = self.count()
        began = Runtime(self.running.pid) if self.running and self.running.pid else None
        sent = self.send(seconds)
        spent_s = began.seconds(self.loops) if began is not None else 0.0
        meanwhile = self.count() - before
        done = self._settled() - before
        if not 0 < done <= sent.frames + _STRANGERS:
            raise RuntimeError(f"{done} packets done of {sent.frames} sent")
        found = {"mpps": meanwhile / sent.seconds / 1e6, "offered_mpps": sent.mpps,
                 "taken": min(done / sent.offered, 1.0)}
        if began is not None and meanwhile:
            found["cpu_ns"] = spent_s * 1e9 / meanwhile
        return found

    def _settled(self) -> int:
        """Once nothing more arrives."""
        seen, since_s = self.count(), time.monotonic()
        until_s = since_s + _LATE_S
        while (now_s := time.monotonic()) - since_s < _SETTLED_S and now_s < until_s:
            time.sleep(0.002)
            if (now := self.count()) != seen:
                seen, since_s = now, time.monotonic()
        return seen

    def trial(self, rate: float, seconds: float = _TRIAL_S) -> Trial:
        before = self._settled()
        sent = self.send(seconds, rate)
        done = self._settled() - before
        said = sent.complaints()
        return Trial(rate, sent.offered, max(sent.offered - done, 0), not said)

    def load(self, share: float, rate: float, seconds: float) -> dict[str, Any]:
        """A moment at this rate."""
        before, read = self._settled(), self.reader.read() if self.reader is not None else None
        sent = self.send(seconds, rate)
        self.complaints += sent.complaints()
        done = self._settled() - before
        row: dict[str, Any] = {"share": share, "rate": round(rate), "sent": sent.offered,
                               "lost": max(sent.offered - done, 0)}
        if self.reader is not None and read is not None:
            histogram = self.reader.read().since(read).histogram
            row |= {name: percentile_ns(histogram, q) for name, q in PERCENTILES.items()}
            row["histogram"] = {str(i): count for i, count in enumerate(histogram) if count}
        return row


@contextmanager
def path(system: str, action: str, plan: Plan) -> Iterator[tuple[Way, Wires]]:
    """Wires, a system that runs, a reader behind it, sources ready."""
    with ExitStack() as stack:
        wired = stack.enter_context(wires(action, plan.queues, plan.port))
        job = Job(action, wired, plan.loop_cpus, plan.reader_cpu, plan.queues, plan.shares)
        reader: Sink | Reader | DpdkSource | None = None
        end, is_tap = wired.end_of_path(action), plan.port == "tap"
        if action == "pass":
            reader = stack.enter_context(Reader(wired.node, plan.reader_cpu))
        if end is not None and not is_tap:  # live frames go only where there is XDP already
            reader = stack.enter_context(Sink(end))
        if action in ("drop", "redirect") and not is_tap:
            stack.enter_context(systems.attach("drop", wired.source))
        sources: list[Source] = []
        if wired.sockets is not None:  # the end that has to be there first
            both = stack.enter_context(_dpdk_source(plan, wired, wired.node.mac))
            sources, reader = [both], both if action in ("tx", "redirect") else reader
        running = stack.enter_context(systems.SYSTEMS[system](job))
        if end is not None and is_tap:
            reader = stack.enter_context(Sink(wired.found(end)))
        if not sources:
            sources = [stack.enter_context(one) for one in _sources(
                plan, wired, wired.found(wired.node).mac, action == "pass")]
        yield Way(sources, reader.packets if reader is not None else running.count, reader,
                  running, plan.queues, ends=(wired.source, *wired.ifaces)), wired


def _sources(plan: Plan, wired: Wires, mac: str, held: bool = False) -> list[Source]:
    kind = source_for(plan.port, plan.source)
    if kind == "dpdk":
        return [_dpdk_source(plan, wired, mac)]
    return [Source(wired.source.ifname, wired.source.ns, cpu, dst_mac=mac, kind=kind, held=held)
            for cpu in plan.source_cpus]


def _dpdk_source(plan: Plan, wired: Wires, mac: str) -> DpdkSource:
    return DpdkSource(wired.source_devices(), wired.source.ns, plan.source_cpus[0], dst_mac=mac,
                      reads=wired.sockets is not None)


def limit(plan: Plan) -> float:
    """Mpps of the source into a way whose other end drops at once."""
    port = plan.port if plan.port == MEMIF else "afxdp"
    with ExitStack() as stack:
        wired = stack.enter_context(wires("drop", plan.queues, port))
        sources = [stack.enter_context(one) for one in _sources(plan, wired, wired.node.mac)]
        if wired.sockets is not None:
            stack.enter_context(DpdkSource(wired.devices(), wired.node.ns, plan.loop_cpus[0],
                                           reads=True))
        else:
            stack.enter_context(systems.attach("drop", wired.node))
        return Way(sources, lambda: 0, None).send(plan.seconds).mpps


Row = dict[str, Any]


def measure(action: str, plan: Plan) -> Row:
    names = [name for name in systems.of(action, plan.port)[0]
             if name in plan.systems or (not plan.systems and name not in systems.WHEN_NAMED)]
    if not names:
        raise RuntimeError(f"none of {', '.join(plan.systems)} does it on {plan.port}")
    found: dict[str, Row] = {name: {"flood": []} for name in names}
    complaints: list[str] = []
    with path(names[0], action, plan):
        pass  # compiled, and cached, from here on
    for number in range(plan.rounds):
        for name in names if number % 2 == 0 else reversed(names):
            with path(name, action, plan) as (way, wired):
                with way.watched(plan.cpus):
                    found[name]["flood"].append(way.flood(plan.seconds))
                complaints += [f"{name}, round {number + 1}: {text}" for text in way.complaints]
                if action == "pass" and wired.sockets is None:
                    over = (wired.source, wired.node, plan.seconds,
                            (plan.source_cpus[0], plan.reader_cpu))
                    found[name].setdefault("tcp_mbps", []).append(tcp_mbps(*over))
                    trips = tcp_round_trips(*over).histogram
                    found[name].setdefault("tcp_rr", []).append(
                        {share: percentile_ns(trips, q) for share, q in PERCENTILES.items()})
    for name in names if plan.search else ():
        with path(name, action, plan) as (way, _):
            with way.watched(plan.cpus):
                found[name] |= search(way, plan, found[name]["flood"])
            complaints += [f"{name}, search: {text}" for text in way.complaints]
    return {"action": action, "systems": found, "ratios": _ratios(found),
            "cpu_ratios": _ratios(found, "cpu_ns"), "complaints": complaints}


def search(way: Way, plan: Plan, floods: Sequence[Mapping[str, float]]) -> Row:
    most = max(max(one["mpps"] for one in floods) * 1.25e6, 1000.0)
    result = zero_loss(way.trial, most, plan.tolerance)
    loads = [way.load(share, share * result.rate, plan.seconds) for share in SHARES] \
        if result.rate else []
    if not result.rate:
        way.complaints.append("no rate without loss: the source could keep none of those tried"
                              if result.is_source else "no rate without loss: each lost something")
    return {"zero_loss_mpps": result.rate / 1e6, "is_source": result.is_source,
            "trials": [trial.record() for trial in result.trials], "loads": loads}


def _ratios(found: Mapping[str, Row], what: str = "mpps") -> dict[str, list[float]]:
    """Of paired rounds, ours by each rival's."""
    ours = [name for name in found if name.startswith("ours")]
    return {f"{mine}/{rival}": [a[what] / b[what] for a, b in zip(
        found[mine]["flood"], found[rival]["flood"], strict=True)]
        for mine in ours for rival in found
        if rival not in ours and all(what in one for one in found[rival]["flood"])}


def run(actions: Sequence[str], plan: Plan, record: Record | None = None,
        told: Callable[[Row], None] = lambda row: None) -> dict[str, Any]:
    """Raises RuntimeError where it cannot be measured, ConfigError for what nobody can measure."""
    source = source_for(plan.port, plan.source)
    for action in actions:
        check(plan.port, action, plan.queues)
    why = systems.refusal()
    if why:
        raise RuntimeError(why)
    record = record or Record()
    missing: dict[str, str] = {}
    for action in actions:
        missing |= {f"{name}, {action}": why
                    for name, why in systems.of(action, plan.port)[1].items()}
    record.begin({"bench": "io", "port": plan.port, "queues": plan.queues, "rounds": plan.rounds,
                  "seconds": plan.seconds, "tolerance": plan.tolerance,
                  "source": source, "shares": plan.shares,
                  "source_cpus": plan.source_cpus, "loop_cpus": plan.loop_cpus,
                  "missing": missing, "machine": machine(),
                  "source_mpps": [limit(plan) for _ in range(min(plan.rounds, 3))]})
    waiting = list(actions)
    try:
        with interruptible():
            for action in actions:
                try:
                    row = measure(action, plan)
                except RuntimeError as error:  # what else was measured stays
                    row = {"action": action, "systems": {}, "ratios": {}, "cpu_ratios": {},
                           "complaints": [f"not measured: {error}"]}
                record.add(row)
                waiting.remove(action)
                told(row)
    except KeyboardInterrupt:
        record.interrupt(waiting)
    return record.finish()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="xdpu bench io", description="packets through an "
                                     "interface, beside a C loop and the kernel")
    parser.add_argument("--port", default="afxdp", help=", ".join(PORTS))
    parser.add_argument("--action", default="drop,tx,redirect,pass")
    parser.add_argument("--queues", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--no-search", action="store_true", help="no rate without loss, no latency")
    parser.add_argument("--tolerance", type=float, default=0.0, help="share that may be lost")
    parser.add_argument("--source", choices=SOURCES, default="auto")
    parser.add_argument("--source-cpus", default="")
    parser.add_argument("--loop-cpus", default="")
    parser.add_argument("--systems", default="", help="only these, such as ours,c")
    parser.add_argument("--share-cpus", action="store_true", help="a loop has its source's CPU")
    parser.add_argument("--out", type=Path, help="folder for bench.json")
    parser.add_argument("-j", "--json", action="store_true")
    args = parser.parse_args(argv)
    actions = [word for word in args.action.split(",") if word]
    if not actions or not set(actions) <= set(ACTIONS):
        parser.error(f"--action is some of {', '.join(ACTIONS)}")
    chosen = [[int(word) for word in text.split(",") if word]
              for text in (args.source_cpus, args.loop_cpus)]
    plan = Plan.on(args.queues, chosen[0], chosen[1], args.share_cpus, port=port_named(args.port),
                   rounds=args.rounds, seconds=args.seconds,
                   search=not args.no_search, tolerance=args.tolerance, source=args.source,
                   systems=tuple(word for word in args.systems.split(",") if word))
    unknown = set(plan.systems) - set(systems.SYSTEMS)
    if unknown:
        parser.error(f"no system {', '.join(sorted(unknown))}: there are "
                     f"{', '.join(systems.SYSTEMS)}")
    result = run(actions, plan, Record(args.out), lambda row: print(
        f"{row['action']} done", file=sys.stderr, flush=True))
    print(json.dumps(result, indent=1) if args.json else markdown(result))
    for system, why in result["missing"].items():
        print(f"bench.io: without {system}: {why}", file=sys.stderr)
    if result["interrupted"]:
        return 130
    return 1 if result["unwritten"] or not all(row["systems"] for row in result["rows"]) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, XdpuError) as error:
        sys.exit(f"bench.io: {error}")
