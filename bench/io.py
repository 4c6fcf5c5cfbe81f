"""Packets through an interface: ours, the same loop in C, and XDP in the kernel, in turns.

    python -m bench.io [--port afxdp|afpacket|tap|dpdk] [--action drop,tx,redirect,pass]
                       [--queues 1] [--rounds 5] [--seconds 1] [--no-search] [--tolerance 0]
                       [--source live|afpacket] [--source-cpus N[,N]] [--loop-cpus N[,N]]
                       [--out DIR] [-j]

Namespaces and veths are built here, fresh for every turn.  A source of its own CPU (source.py)
sends frames into a veth; a system (systems.py) at its other end drops them, sends them back, out of
a second veth, or passes them to the stack; who reads them there (sink.py; passing.py for the stack)
counts them and how long they were on their way.  Two queues have two sources, as a veth chooses
the queue by the sender's CPU.

**Flood.**  `rounds` turns of all systems: what was done while the source sent all it could.
Receiving in the kernel costs the source's CPU, so what it could send is said for every turn
(`offered`), beside its limit where the frame is dropped at once.  A system that took all of it was
not what limited: the figure has a `>`.

**Search.**  The rate at which nothing is lost (search.py; `--tolerance` is a share that may be),
then a moment at 10, 50 and 90 % of it: loss, and latency percentiles.  The source sends in bursts
(source.py says how long), so the latency of a burst's last frame has the others in it.  What is
dropped does not come out, so there is no latency of it.

XDP_PASS is counted by a program that reads datagrams, on a CPU of its own; then the goodput of a
TCP connection through the system.

A source that stalled or could not keep its rate, and neighbours on the machine, are said.

JSON: {"bench": "io", "port", "queues", "seconds", "rounds", "source", "source_cpus", "loop_cpus",
"machine", "source_mpps": [its limit, each round], "missing": {system: why}, "rows": [{"action",
"systems": {name: {"flood": [{"mpps", "offered_mpps", "taken"}], "zero_loss_mpps", "is_source",
"trials": [[rate, sent, lost, 1 if the source kept the rate]], "loads": [{"share", "rate", "sent",
"lost", "p50_ns", "p99_ns", "p999_ns", "histogram": {bucket: packets}}], "tcp_mbps": [...]}},
"ratios": {"ours/c": [each round]}, "complaints": [...]}]}.
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
from bench.noise import Watch
from bench.passing import Reader, tcp_mbps
from bench.record import Record, interruptible
from bench.samples import Spread, machine
from bench.search import Trial, zero_loss
from bench.sink import Sink, percentile_ns
from bench.source import KINDS, Sent, Source
from bench.systems import PORTS, Counter, Wires
from tests.nets import End, entered
from xdp_runtime.errors import ConfigError, XdpuError

ACTIONS = ("drop", "tx", "redirect", "pass")
SHARES = (0.1, 0.5, 0.9)
PERCENTILES = {"p50_ns": 0.5, "p99_ns": 0.99, "p999_ns": 0.999}
_TRIAL_S, _SETTLED_S, _LATE_S = 0.3, 0.02, 1.0
_STRANGERS = 100  # neighbour discovery, before and after
_SOURCE_BOUND = 0.98  # of what was offered


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
    source: str = "live"

    @classmethod
    def on(cls, queues: int = 1, sources: Sequence[int] = (), loops: Sequence[int] = (),
           **more: Any) -> Plan:
        """With CPUs chosen where none are given.  Raises ConfigError if there are too few."""
        allowed = sorted(os.sched_getaffinity(0), reverse=True)
        if not sources:  # a veth takes a frame into queue CPU % queues
            sources = [next((cpu for cpu in allowed if cpu % queues == queue), -1)
                       for queue in range(queues)]
        rest = [cpu for cpu in allowed if cpu not in sources]
        loops = loops or rest[:queues]
        if len(loops) < queues or len(set(sources)) < queues or min(sources) < 0:
            raise ConfigError(f"{queues} queues", f"need a source's and a loop's CPU each, and "
                              f"there are {len(allowed)}", "measure fewer")
        left = [cpu for cpu in rest if cpu not in loops] or list(loops)
        return cls(queues=queues, source_cpus=tuple(sources), loop_cpus=tuple(loops),
                   reader_cpu=left[0], **more)

    @property
    def cpus(self) -> set[int]:
        return {*self.source_cpus, *self.loop_cpus, self.reader_cpu}


@dataclass(slots=True)
class Way:
    """A system on its wires with sources and a reader: `trial` sends and counts."""

    sources: list[Source]
    count: Counter
    reader: Sink | Reader | None
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
                    max(s.longest_gap_s for s in sent))

    def flood(self, seconds: float) -> dict[str, float]:
        before = self.count()
        sent = self.send(seconds)
        meanwhile = self.count() - before
        done = self._settled() - before
        if not 0 < done <= sent.frames + _STRANGERS:
            raise RuntimeError(f"{done} packets done of {sent.frames} sent")
        return {"mpps": meanwhile / sent.seconds / 1e6, "offered_mpps": sent.mpps,
                "taken": min(done / sent.frames, 1.0)}

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
        return Trial(rate, sent.frames, max(sent.frames - done, 0), not said)

    def load(self, share: float, rate: float, seconds: float) -> dict[str, Any]:
        """A moment at this rate."""
        before, read = self._settled(), self.reader.read() if self.reader is not None else None
        sent = self.send(seconds, rate)
        self.complaints += sent.complaints()
        done = self._settled() - before
        row: dict[str, Any] = {"share": share, "rate": round(rate), "sent": sent.frames,
                               "lost": max(sent.frames - done, 0)}
        if self.reader is not None and read is not None:
            histogram = self.reader.read().since(read).histogram
            row |= {name: percentile_ns(histogram, q) for name, q in PERCENTILES.items()}
            row["histogram"] = {str(i): count for i, count in enumerate(histogram) if count}
        return row


@contextmanager
def path(system: str, action: str, plan: Plan) -> Iterator[tuple[Way, Wires]]:
    """Wires, a system that runs, a reader behind it, sources ready."""
    with ExitStack() as stack:
        wires = stack.enter_context(systems.wires(action, plan.queues, plan.port))
        job = wires.job(action, plan.port, plan.loop_cpus, plan.queues)
        reader: Sink | Reader | None = None
        end, is_tap = wires.end_of_path(action), plan.port == "tap"
        if action == "pass":
            reader = stack.enter_context(Reader(wires.node, plan.reader_cpu))
        if end is not None and not is_tap:  # live frames go only where there is XDP already
            reader = stack.enter_context(Sink(end))
        if action in ("drop", "redirect") and not is_tap:
            stack.enter_context(systems.attach("drop", wires.source))
        count = stack.enter_context(systems.SYSTEMS[system](job))
        if end is not None and is_tap:
            reader = stack.enter_context(Sink(wires.found(end)))
        sources = [stack.enter_context(Source(wires.source.ifname, wires.source.ns, cpu,
                                              dst_mac=wires.found(wires.node).mac,
                                              kind=plan.source, held=action == "pass"))
                   for cpu in plan.source_cpus]
        yield Way(sources, reader.packets if reader is not None else count, reader,
                  ends=(wires.source, *job.ifaces)), wires


def limit(plan: Plan) -> float:
    """Mpps of the source into a veth whose other end drops at once."""
    with systems.wires("drop", plan.queues, "afxdp") as wires, systems.attach("drop", wires.node), \
            ExitStack() as stack:
        sources = [stack.enter_context(Source(wires.source.ifname, wires.source.ns, cpu,
                                              dst_mac=wires.node.mac, kind=plan.source))
                   for cpu in plan.source_cpus]
        return Way(sources, lambda: 0, None).send(plan.seconds).mpps


Row = dict[str, Any]


def measure(action: str, plan: Plan) -> Row:
    names, _ = systems.of(action, plan.port)
    found: dict[str, Row] = {name: {"flood": []} for name in names}
    complaints: list[str] = []
    with path(names[0], action, plan):
        pass  # compiled, and cached, from here on
    for number in range(plan.rounds):
        for name in names if number % 2 == 0 else reversed(names):
            with path(name, action, plan) as (way, wires):
                with way.watched(plan.cpus):
                    found[name]["flood"].append(way.flood(plan.seconds))
                complaints += [f"{name}, round {number + 1}: {text}" for text in way.complaints]
                if action == "pass":
                    found[name].setdefault("tcp_mbps", []).append(tcp_mbps(
                        wires.source, wires.node, plan.seconds,
                        (plan.source_cpus[0], plan.reader_cpu)))
    for name in names if plan.search else ():
        with path(name, action, plan) as (way, _):
            with way.watched(plan.cpus):
                found[name] |= search(way, plan, found[name]["flood"])
            complaints += [f"{name}, search: {text}" for text in way.complaints]
    return {"action": action, "systems": found, "ratios": _ratios(found), "complaints": complaints}


def search(way: Way, plan: Plan, floods: Sequence[Mapping[str, float]]) -> Row:
    most = max(max(one["mpps"] for one in floods) * 1.25e6, 1000.0)
    result = zero_loss(way.trial, most, plan.tolerance)
    loads = [way.load(share, share * result.rate, plan.seconds) for share in SHARES] \
        if result.rate else []
    return {"zero_loss_mpps": result.rate / 1e6, "is_source": result.is_source,
            "trials": [trial.record() for trial in result.trials], "loads": loads}


def _ratios(found: Mapping[str, Row]) -> dict[str, list[float]]:
    """Of paired rounds, ours by each rival's."""
    ours = [name for name in found if name.startswith("ours")]
    return {f"{mine}/{rival}": [a["mpps"] / b["mpps"] for a, b in zip(
        found[mine]["flood"], found[rival]["flood"], strict=True)]
        for mine in ours for rival in found if rival not in ours}


def run(actions: Sequence[str], plan: Plan, record: Record | None = None,
        told: Callable[[Row], None] = lambda row: None) -> dict[str, Any]:
    """Raises RuntimeError where it cannot be measured."""
    why = systems.refusal()
    if why:
        raise RuntimeError(why)
    record = record or Record()
    missing: dict[str, str] = {}
    for action in actions:
        missing |= systems.of(action, plan.port)[1]
    record.begin({"bench": "io", "port": plan.port, "queues": plan.queues, "rounds": plan.rounds,
                  "seconds": plan.seconds, "tolerance": plan.tolerance, "source": plan.source,
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
                    row = {"action": action, "systems": {}, "ratios": {},
                           "complaints": [f"not measured: {error}"]}
                record.add(row)
                waiting.remove(action)
                told(row)
    except KeyboardInterrupt:
        record.interrupt(waiting)
    return record.finish()


# ---- saying it -----------------------------------------------------------------------------------

HEADER = ("", "Mpps", "offered", "nothing lost", "10 %", "50 %", "90 %: p50 p99 p99.9 us")


def _spread(values: Sequence[float], mark: str = "") -> str:
    spread = Spread.of(values)
    return f"{mark}{spread.median:.2f} ({spread.low:.2f}-{spread.high:.2f})"


def _latency(load: Mapping[str, Any]) -> str:
    lost = f", lost {load['lost'] / max(load['sent'], 1):.2%}" if load["lost"] else ""
    times = [load.get(name) for name in PERCENTILES]
    if None in times:
        return f"-{lost}"
    return " ".join(f"{t / 1000:.0f}" for t in times if t is not None) + lost


def cells(name: str, one: Row) -> list[str]:
    """A system's line of the table."""
    floods = one["flood"]
    bound = Spread.of([flood["taken"] for flood in floods]).median >= _SOURCE_BOUND
    row = [name, _spread([flood["mpps"] for flood in floods], ">" if bound else ""),
           f"{Spread.of([flood['offered_mpps'] for flood in floods]).median:.2f}"]
    if "zero_loss_mpps" in one:
        row.append(f"{'>' if one['is_source'] else ''}{one['zero_loss_mpps']:.2f}")
        row += [_latency(load) for load in one["loads"]]
    if "tcp_mbps" in one:
        row[0] += f", TCP {_spread([mbps / 1000 for mbps in one['tcp_mbps']])} Gbit/s"
    return row


def table(result: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for row in result["rows"]:
        rows.append([f"**{row['action']}**", *[""] * (len(HEADER) - 1)])
        for name, one in row["systems"].items():
            line = cells(name, one)
            rows.append(line + [""] * (len(HEADER) - len(line)))
        ratios = [f"{name} {_spread(values)}" for name, values in row["ratios"].items()
                  if name.endswith("/c")]
        if ratios:
            rows.append([", ".join(ratios), *[""] * (len(HEADER) - 1)])
    return rows


def markdown(result: Mapping[str, Any]) -> str:
    queues = f"{result['queues']} queue{'s' * (result['queues'] > 1)}"
    lines = [f"| {result['port']}, {queues} | {' | '.join(HEADER[1:])} |",
             "|---|" + "---:|" * (len(HEADER) - 1)]
    lines += [f"| {' | '.join(row)} |" for row in table(result)]
    lines += ["", f"The source alone: {_spread(result['source_mpps'])} Mpps."]
    for row in result["rows"]:
        lines += [f"{row['action']}: {text}." for text in summary(row["complaints"])]
    return "\n".join(lines)


def summary(complaints: Sequence[str]) -> list[str]:
    """The first of each kind, and how often there was one; they begin with where, and a colon."""
    kinds: dict[str, list[str]] = {}
    for text in complaints:
        what = text.partition(": ")[2]
        kinds.setdefault(" ".join(what.split()[:3]), []).append(text)
    return [texts[0] + (f" (and {len(texts) - 1} more like this)" if len(texts) > 1 else "")
            for texts in kinds.values()]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="xdpu bench io", description="packets through an "
                                     "interface, beside a C loop and the kernel")
    parser.add_argument("--port", choices=PORTS, default="afxdp")
    parser.add_argument("--action", default="drop,tx,redirect,pass")
    parser.add_argument("--queues", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--no-search", action="store_true", help="no rate without loss, no latency")
    parser.add_argument("--tolerance", type=float, default=0.0, help="share that may be lost")
    parser.add_argument("--source", choices=KINDS, default="live")
    parser.add_argument("--source-cpus", default="")
    parser.add_argument("--loop-cpus", default="")
    parser.add_argument("--out", type=Path, help="folder for bench.json")
    parser.add_argument("-j", "--json", action="store_true")
    args = parser.parse_args(argv)
    actions = [word for word in args.action.split(",") if word]
    if not actions or not set(actions) <= set(ACTIONS):
        parser.error(f"--action is some of {', '.join(ACTIONS)}")
    chosen = [[int(word) for word in text.split(",") if word]
              for text in (args.source_cpus, args.loop_cpus)]
    plan = Plan.on(args.queues, *chosen, port=args.port, rounds=args.rounds, seconds=args.seconds,
                   search=not args.no_search, tolerance=args.tolerance, source=args.source)
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
