"""`xdpu run` ended by signals at random moments: is everything afterwards as it was found?

    python -m bench.kills [--runs 1000] [--first-seed 1] [--jobs 2] [-j]

A seed says all of one run: the port, its options and program, whether it is hit while it sets up,
under traffic or while it tears down, the moment, and the signal.  An ending signal (SIGINT,
SIGTERM, SIGHUP) has to put everything back before the process ends.  After SIGKILL the keeper does
it; where the keeper was killed as well, the next start.  Compared are, in the namespace of the
run: interfaces with MAC, MTU, flags, promiscuity and XDP programs, addresses, routes, permanent
neighbours, offload settings, qdiscs and ingress filters, the interrupt settings that busy polling
changes; and beside it: processes, the run directory, /sys/fs/bpf, /var/run/dpdk, files on
hugetlbfs.  (BPF objects and huge pages that belong to no file end with the processes.)

Printed is how many runs of each kind there were, and each that left something, with its seed:
`--first-seed SEED --runs 1` does it again.  JSON: {"bench": "kills", "runs", "kinds": {"phase
signal": runs}, "failures": [{"seed", "plan", "what"}], "machine"}.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.samples import machine
from bench.traffic import udp_frame
from control.server import ask
from tests.control.run_xdpu import EXAMPLES, Run, xdpu
from tests.nets import End, VethPair, entered, in_ns
from xdp_runtime.errors import XdpuError

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PHASES = ("set-up", "traffic", "tear-down")
_TRAFFIC_S, _TEARDOWN_S = 0.3, 0.3
_MEND_S = 30.0
_PORTS: dict[str, tuple[str, ...]] = {  # IF is the node's interface
    "afxdp": ("--iface", "IF"),
    "afxdp busy": ("--iface", "IF", "--busy-poll-budget", "64", "--promisc"),
    "afxdp generic": ("--iface", "IF", "--xdp-mode", "generic", "--filter", "udp"),
    "afxdp tap": ("--iface", "IF", "--stack", "tap"),
    "afxdp stackless": ("--iface", "IF", "--no-stack"),
    "afxdp live": ("--iface", "IF", "--stack", "live"),
    "afxdp live tx": ("--iface", "IF", "--stack", "live", "--tx", "live"),
    "afxdp tap live tx": ("--iface", "IF", "--stack", "tap", "--tx", "live"),
    "afpacket": ("--iface", "IF", "--port", "afpacket"),
    "tap": ("--iface", "xdputap", "--port", "tap"),
    "dpdk null": ("--port", "dpdk:net_null0", "--dpdk-args", "--no-huge -m 64"),
    "dpdk afpacket": ("--port", "dpdk:net_af_packet0,iface=IF", "--dpdk-args", "--no-huge -m 64"),
}
_WEIGHTS = (3, 2, 2, 4, 1, 3, 3, 2, 4, 2, 1, 1)


@dataclass(frozen=True, slots=True)
class Plan:
    """One run.  `moment` is a fraction of its phase; `keeper_too`: that is killed first."""

    seed: int
    port: str
    program: str
    phase: str
    moment: float
    ending: str
    keeper_too: bool
    replaces: bool

    @classmethod
    def of(cls, seed: int) -> Plan:
        rng = random.Random(f"kills {seed}")
        number = rng.choice((*ENDING[:2], signal.SIGKILL, rng.choice(ENDING)))
        return cls(seed, rng.choices(list(_PORTS), _WEIGHTS)[0],
                   rng.choice(("pass", "drop", "tx", "counter")), rng.choice(PHASES), rng.random(),
                   signal.Signals(number).name,
                   number == signal.SIGKILL and rng.random() < 0.3, rng.random() < 0.25)

    @property
    def number(self) -> signal.Signals:
        return signal.Signals[self.ending]

    def argv(self, ifname: str) -> list[str]:
        words = [word.replace("IF", ifname) if "IF" in word else word for word in _PORTS[self.port]]
        return [str(EXAMPLES / f"{self.program}.o"), *words, "-i", "0.1", "--name", "doomed"]


# ---- what must be as it was ----------------------------------------------------------------------

def condition(end: End, rundir: Path) -> dict[str, Any]:
    """All that a run on this interface may change."""
    def said(*argv: str) -> Any:
        return json.loads(in_ns(end.ns, *argv).stdout or "[]")

    links = {}
    for link in said("ip", "-j", "-d", "link"):
        links[link["ifname"]] = {
            "xdp": link.get("xdp"), "promiscuity": link.get("promiscuity"),
            "mac": link["address"], "mtu": link["mtu"], "qdisc": link.get("qdisc"),
            "flags": sorted(set(link["flags"]) - {"NO-CARRIER"}), "group": link.get("group")}
    routes = sorted(str(sorted({k: route.get(k) for k in (
        "dst", "dev", "gateway", "metric", "type", "prefsrc", "table", "protocol")}.items()))
        for family in ("-4", "-6")
        for route in said("ip", "-j", family, "route", "show", "table", "all"))
    return {
        "links": links,
        "addresses": sorted(str((link["ifname"], a["local"], a["prefixlen"], a["scope"]))
                            for link in said("ip", "-j", "addr") for a in link["addr_info"]),
        "routes": routes,
        "neighbours": sorted(str((n["dst"], n["dev"], n.get("lladdr"))) for n in said(
            "ip", "-j", "neigh", "show", "nud", "permanent")),
        "offloads": in_ns(end.ns, "ethtool", "-k", end.ifname).stdout,
        "filters": in_ns(end.ns, "tc", "filter", "show", "dev", end.ifname, "ingress",
                         check=False).stdout,
        "interrupts": in_ns(end.ns, "sh", "-c", f"cd /sys/class/net/{end.ifname} && "
                            "cat napi_defer_hard_irqs gro_flush_timeout").stdout,
        "processes": _processes(rundir),
        "pins": _pins(),
    }


def leftovers(rundir: Path) -> list[str]:
    """In the run directory, its lock apart."""
    return sorted(name for name in os.listdir(rundir) if name != ".lock") if rundir.is_dir() else []


def _processes(rundir: Path) -> list[str]:
    """Those with our run directory in their environment, and not ended."""
    mark = f"XDPU_RUNDIR={rundir}\0".encode()
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip())
    return sorted(found)


def _pins() -> list[str]:
    """Those of tests that run beside are theirs."""
    folder = "/sys/fs/bpf"
    return sorted(name for name in os.listdir(folder) if not re.match(r"xdpu_test_\d", name)) \
        if os.path.isdir(folder) else []


def _files_of(pid: int) -> list[str]:
    """What DPDK left of a process: its folder, its huge pages."""
    return [f"{folder}/{name}" for folder in ("/var/run/dpdk", *_hugetlbfs())
            if os.path.isdir(folder) for name in os.listdir(folder)
            if re.match(rf"xdpu-{pid}(?!\d)", name)]


def _hugetlbfs() -> list[str]:
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    return [fields[1] for fields in mounts if fields[2] == "hugetlbfs"]


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        return [text for key in sorted(before.keys() | after.keys(), key=str)
                for text in differences(before.get(key), after.get(key), f"{where} {key}")]
    if isinstance(before, list) and isinstance(after, list):
        gone = [x for x in before if x not in after]
        new = [x for x in after if x not in before]
        return [f"{where.strip()}: gone {gone}, new {new}"] if gone or new else []
    return [] if before == after else [f"{where.strip()}: {before!r} became {after!r}"]


# ---- a lane: a network in which one run follows the other ----------------------------------------

class Lane:
    """A namespace for the run, one for its peer, who talks all the time; a run directory."""

    def __init__(self, pair: VethPair, rundir: Path) -> None:
        self.pair, self.rundir = pair, rundir
        self.before = condition(pair.b, rundir)
        self._start_s: dict[str, float] = {}

    def go(self, plan: Plan) -> list[str]:
        """What was not as it had to be."""
        if plan.port not in self._start_s:
            self._start_s[plan.port] = self._measure(plan)
        with self._run(plan) as run:
            hit_early = self._hit(run, plan)
            code = run.finish()
        allowed = {0, *(128 + n for n in ENDING), *(-n for n in ENDING)} \
            if plan.number != signal.SIGKILL else {-signal.SIGKILL, 0 if not hit_early else -9}
        wrong = [f"exit code {code}: {run.errors.strip()[-400:]}"] \
            if code not in allowed and not _too_early(run.errors) else []
        if "Traceback" in run.errors and not _too_early(run.errors):
            wrong.append(run.errors[run.errors.index("Traceback"):][-1500:])
        wrong += self._mended(plan) if plan.number == signal.SIGKILL else self._unchanged()
        return wrong + [f"left: {path}" for path in _files_of(run.process.pid)]

    def _run(self, plan: Plan) -> Run:
        return Run(self.pair.b.ns, *plan.argv(self.pair.b.ifname), XDPU_RUNDIR=str(self.rundir))

    def _measure(self, plan: Plan) -> float:
        """How long its start takes, once compiled."""
        for _ in range(2):
            began_s = time.monotonic()
            with self._run(plan) as run:
                run.wait_for("start")
                took_s = time.monotonic() - began_s
                run.end()
        return took_s

    def _hit(self, run: Run, plan: Plan) -> bool:
        """Send the signal at its moment -> before anything else had ended the run."""
        if plan.phase == "set-up":
            time.sleep(plan.moment * self._start_s[plan.port])
        else:
            run.wait_for("start")
            if plan.replaces:
                threading.Thread(target=self._replace, daemon=True).start()
            if plan.phase == "traffic":
                time.sleep(plan.moment * _TRAFFIC_S)
            else:
                run.process.send_signal(signal.SIGTERM)
                time.sleep(plan.moment * _TEARDOWN_S)
        early = run.process.poll() is None
        if plan.keeper_too:
            for pid in _children(run.process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        run.process.send_signal(plan.number)
        return early and plan.phase != "tear-down"

    def _replace(self) -> None:
        """Asked of a run that is about to die: whatever it says, or does not, is right."""
        with suppress(XdpuError, OSError, ValueError):
            ask(self.rundir / "doomed", {"do": "replace", "object": str(EXAMPLES / "counter.o"),
                                         "program": None, "set_map": []})

    def _unchanged(self, patience_s: float = 3.0) -> list[str]:
        """A process that has ended may still close its sockets: the kernel's part is waited for."""
        def look() -> list[str]:
            left = leftovers(self.rundir)
            return differences(self.before, condition(self.pair.b, self.rundir)) \
                + ([f"run directory: {left}"] if left else [])

        return _at_last(look, patience_s)

    def _mended(self, plan: Plan) -> list[str]:
        if not plan.keeper_too:
            wrong = _at_last(lambda: differences(self.before, condition(self.pair.b, self.rundir)),
                             _MEND_S)
            if wrong:
                return [f"the keeper left {text}" for text in wrong]
        done = xdpu("run", *plan.argv(self.pair.b.ifname), "-d", "0.05",
                    prefix=["ip", "netns", "exec", self.pair.b.ns],
                    XDPU_RUNDIR=str(self.rundir))
        if done.returncode:
            return [f"the next start: exit {done.returncode}: {done.stderr.strip()[-400:]}"]
        return [f"the next start left {text}" for text in self._unchanged()]


def _too_early(errors: str) -> bool:
    """SIGINT while Python itself started: its traceback, before the first line of ours."""
    return errors.rstrip().endswith("KeyboardInterrupt") and "/control/" not in errors


def _at_last(look: Callable[[], list[str]], patience_s: float) -> list[str]:
    until_s = time.monotonic() + patience_s
    while (found := look()) and time.monotonic() < until_s:
        time.sleep(0.05)
    return found


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


@contextmanager
def lane(number: int = 0) -> Iterator[Lane]:
    """A lane with traffic: some thousand packets a second."""
    with VethPair(subnet=200 + number, queues=2) as pair, \
            tempfile.TemporaryDirectory(prefix="xdpu-kills-") as folder, _talking(pair):
        in_ns(pair.a.ns, "ethtool", "-K", pair.a.ifname, "gro", "on")  # takes redirects: --tx live
        _settle(pair.b)
        yield Lane(pair, Path(folder))


def _settle(end: End) -> None:
    """Until the link-local address is usable, and what comes with it is there."""
    until_s = time.monotonic() + 20
    while "local fe80" not in in_ns(end.ns, "ip", "-6", "route", "show", "table", "local", "dev",
                                    end.ifname).stdout:
        if time.monotonic() > until_s:
            raise RuntimeError(f"{end.ifname} got no link-local address")
        time.sleep(0.05)


@contextmanager
def _talking(pair: VethPair) -> Iterator[None]:
    frame = udp_frame(64, pair.b.mac)
    with entered(pair.a.ns):
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        wire.bind((pair.a.ifname, 0))
    silent = threading.Event()

    def talk() -> None:
        while not silent.wait(0.01):
            with suppress(OSError):  # its end is down while the run goes
                for _ in range(32):
                    wire.send(frame)

    thread = threading.Thread(target=talk, daemon=True)
    thread.start()
    try:
        yield
    finally:
        silent.set()
        thread.join()
        wire.close()


# ---- all of them ---------------------------------------------------------------------------------

Failure = dict[str, Any]


def work(seeds: Sequence[int], number: int, told: Callable[[Plan, list[str]], None]) -> None:
    """These runs in a lane; after one that left something, in a new lane."""
    left = list(seeds)
    while left:
        with lane(number) as here:
            while left:
                plan = Plan.of(left.pop(0))
                try:
                    wrong = here.go(plan)
                except (AssertionError, RuntimeError, OSError) as error:
                    wrong = [f"{type(error).__name__}: {error}"]
                told(plan, wrong)
                if wrong:
                    break


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.kills", description="signals at random moments")
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("-j", "--json", action="store_true")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background or under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored, and then by what we start as well
    kinds: Counter[str] = Counter()
    failures: list[Failure] = []

    def told(plan: Plan, wrong: list[str]) -> None:
        kinds[f"{plan.phase} {plan.ending}"] += 1
        if wrong:
            failures.append({"seed": plan.seed, "plan": asdict(plan), "what": wrong})
            print(f"{plan}: {'; '.join(wrong)}", file=sys.stderr, flush=True)

    seeds = range(args.first_seed, args.first_seed + args.runs)
    threads = [threading.Thread(target=work, args=(seeds[i::args.jobs], i, told), daemon=True)
               for i in range(min(args.jobs, args.runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result = {"bench": "kills", "runs": sum(kinds.values()), "kinds": dict(sorted(kinds.items())),
              "failures": failures, "machine": machine()}
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        for kind, count in sorted(kinds.items()):
            print(f"{kind:24}{count:6}")
        print(f"{result['runs']} runs, {len(failures)} left something behind")
    return 1 if failures or result["runs"] != args.runs else 0


if __name__ == "__main__":
    sys.exit(main())
