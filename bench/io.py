"""Mpps of the AF_XDP loop on veth: ours, the same written in C, and XDP in the kernel, in turns.

    python -m bench.io [drop] [tx] [-j] [--rounds 5] [--seconds 1] [--cpus SOURCE,LOOP] [--out FILE]

One flood (traffic.py) on a CPU of its own offers more than a loop can take; the loop has another
CPU to itself and never sleeps.  Each turn has fresh namespaces, interfaces and sockets:

    ours    `xdpu run examples/NAME.o --busy-poll`, the whole command as a user has it
    c       bench/native/xsk_loop, libxdp and a loop by hand
    kernel  the same object, attached natively; it runs on the source's CPU, and costs it: for
            information

The kernel copies received frames into the umem on the source's CPU.  Dropping is so little work
that a loop may take all that is offered; `taken` says how much of it ours did.  Where that is all
of it, the figure is the source's and not the loop's.

What counts is what was done while the source sent: for drop the loop's own count of received
packets (the interface's for the kernel), for TX what the other end of the veth really received.
An XDP program that drops is attached there for all three, since XDP_TX reaches no veth without.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.cases import EXAMPLES
from bench.samples import ROOT, Spread, cpus, machine
from bench.traffic import Flood, Sent
from tests.nets import End, VethPair, entered, in_ns, popen_in_ns
from xdp_runtime.bpf_syscall import XdpFlag, attach_xdp_link
from xdp_runtime.elf import read_object
from xdp_runtime.errors import XdpuError
from xdp_runtime.kernel import load_into_kernel

ACTIONS, SYSTEMS = ("drop", "tx"), ("ours", "c", "kernel")
_NATIVE = ROOT / "bench" / "native"
_START_S = 60  # the first start compiles
Counter = Callable[[], int]  # packets received, asked once the loop has ended


def refusal() -> str:
    """Why there can be no measurement here; empty if there can."""
    if os.geteuid():
        return "needs root: namespaces, AF_XDP"
    missing = [word for word in ("ip", "ethtool", "taskset") if not shutil.which(word)]
    return f"needs {', '.join(missing)}" if missing else ""


def build_c_loop() -> str:
    """Why the C loop cannot be built; empty when it is."""
    done = subprocess.run(["make", "-s", "-C", str(_NATIVE)], capture_output=True, text=True,
                          check=False)
    return "" if not done.returncode else (done.stderr.strip().splitlines() or ["make failed"])[0]


# ---- the three -----------------------------------------------------------------------------------

@contextmanager
def ours(action: str, end: End, cpu: int) -> Iterator[Counter]:
    with tempfile.TemporaryDirectory(prefix="xdpu-bench-") as run_dir:
        loop = popen_in_ns(
            end.ns, sys.executable, "-m", "control", "run", str(EXAMPLES / f"{action}.o"),
            "--iface", end.ifname, "--busy-poll", "--no-stack", "--cpu", str(cpu), "-j",
            "--interval", "3600", "--duration", "0",
            cwd=ROOT, env={**os.environ, "XDPU_RUNDIR": run_dir}, stderr=subprocess.DEVNULL)
        with _ending(loop):
            _expect(loop, loop.stdout, '"start"')
            yield lambda: int(json.loads(_last_line(loop))["total"]["rx_packets"])


@contextmanager
def c_loop(action: str, end: End, cpu: int) -> Iterator[Counter]:
    loop = popen_in_ns(end.ns, "taskset", "-c", str(cpu), str(_NATIVE / "xsk_loop"), "-i",
                       end.ifname, "-a", action, "-d", "3600")
    with _ending(loop):
        _expect(loop, loop.stderr, "ready")
        yield lambda: int(json.loads(_last_line(loop))["rx"])


@contextmanager
def kernel(action: str, end: End, cpu: int) -> Iterator[Counter]:
    with _attached(action, end):
        yield lambda: _interface_counter(end, f"rx_queue_0_xdp_{action}{'s' * (action == 'drop')}")


_RUN = {"ours": ours, "c": c_loop, "kernel": kernel}


@contextmanager
def _attached(example: str, end: End) -> Iterator[None]:
    with load_into_kernel(read_object(EXAMPLES / f"{example}.o")) as program:
        with entered(end.ns):
            link = attach_xdp_link(program.fd, end.ifindex, XdpFlag.DRV_MODE)
        try:
            yield
        finally:
            os.close(link)


@contextmanager
def _ending(loop: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
    finally:
        if loop.poll() is None:
            loop.kill()
        loop.communicate()


def _expect(loop: subprocess.Popen[str], pipe: Any, word: str) -> None:
    line = pipe.readline()
    if word not in line:
        loop.kill()
        raise RuntimeError(f"{loop.args!r}: {line.strip() or 'ended before it was ready'}")


def _last_line(loop: subprocess.Popen[str]) -> str:
    loop.send_signal(signal.SIGINT)
    out, _ = loop.communicate(timeout=_START_S)
    return out.strip().splitlines()[-1]


def _interface_counter(end: End, name: str) -> int:
    for line in in_ns(end.ns, "ethtool", "-S", end.ifname).stdout.splitlines():
        if line.strip().startswith(f"{name}:"):
            return int(line.rpartition(":")[2])
    raise RuntimeError(f"{end.ifname} has no counter {name}")


def _received(end: End) -> int:
    path = f"/sys/class/net/{end.ifname}/statistics/rx_packets"
    return int(in_ns(end.ns, "cat", path).stdout)


# ---- measuring -----------------------------------------------------------------------------------

def turn(system: str, action: str, seconds: float, source_cpu: int, loop_cpu: int) -> Sample:
    """One system on a new veth."""
    with VethPair() as pair, _attached("drop", pair.a), \
            _RUN[system](action, pair.b, loop_cpu) as count:
        before = _received(pair.a)
        sent = Flood(pair.a.ifname, pair.a.ns, source_cpu, seconds, dst_mac=pair.b.mac).wait()
        returned = _received(pair.a) - before
        received = count()
    return _judge(action, sent, received, returned)


Sample = dict[str, float]


def _judge(action: str, sent: Sent, received: int, returned: int) -> Sample:
    strangers = 100  # neighbour discovery, before and after
    if not 0 < received <= sent.frames + strangers:
        raise RuntimeError(f"{received} packets received of {sent.frames} sent")
    done = returned if action == "tx" else received
    return {"mpps": done / sent.seconds / 1e6, "offered_mpps": sent.mpps,
            "taken": min(received / sent.frames, 1.0), "received": float(received),
            "returned": float(returned)}


def measure(action: str, rounds: int, seconds: float, source_cpu: int, loop_cpu: int,
            systems: Sequence[str]) -> dict[str, Any]:
    samples: dict[str, list[Sample]] = {system: [] for system in systems}
    for number in range(rounds):
        for system in systems if number % 2 == 0 else reversed(systems):
            samples[system].append(turn(system, action, seconds, source_cpu, loop_cpu))
    row: dict[str, Any] = {"action": action}
    for system, taken in samples.items():
        columns = {name: [round(sample[name], 4) for sample in taken] for name in taken[0]}
        row[system] = {"mpps": Spread.of(columns["mpps"]).record(),
                       "offered_mpps": Spread.of(columns["offered_mpps"]).record(),
                       "taken": Spread.of(columns["taken"]).record(),
                       "samples": columns}
    for rival in systems[1:]:
        row[f"ours_to_{rival}"] = Spread.of([a["mpps"] / b["mpps"] for a, b in zip(
            samples["ours"], samples[rival], strict=True)]).record()
    return row


def run(actions: Sequence[str], rounds: int, seconds: float, on_cpus: Sequence[int],
        told: Callable[[dict[str, Any]], None] = lambda row: None) -> dict[str, Any]:
    """Raises RuntimeError where it cannot be measured."""
    why = refusal()
    if why:
        raise RuntimeError(why)
    systems, missing = list(SYSTEMS), build_c_loop()
    if missing:
        systems.remove("c")
    source_cpu, loop_cpu = on_cpus
    rows = []
    for action in actions:
        turn("ours", action, 0.1, source_cpu, loop_cpu)  # compiled, and cached, from here on
        rows.append(measure(action, rounds, seconds, source_cpu, loop_cpu, systems))
        told(rows[-1])
    return {"bench": "io", "rounds": rounds, "seconds": seconds, "source_cpu": source_cpu,
            "loop_cpu": loop_cpu, "missing": {"c": missing} if missing else {},
            "machine": machine(), "rows": rows}


# ---- saying it -----------------------------------------------------------------------------------

def cells(row: Mapping[str, Any]) -> list[str]:
    """Action, Mpps of each system with its spread, ours / C, offered load, how much ours took."""
    def spread(record: Mapping[str, float] | None) -> str:
        if not record:
            return "-"
        return f"{record['median']:.2f} ({record['min']:.2f}-{record['max']:.2f})"

    return [row["action"], *(spread(row[s]["mpps"] if s in row else None) for s in SYSTEMS),
            spread(row.get("ours_to_c")), f"{row['ours']['offered_mpps']['median']:.1f}",
            f"{row['ours']['taken']['median']:.0%}"]


HEADER = ("action", *SYSTEMS, "ours / c", "offered", "taken")


def markdown(result: Mapping[str, Any]) -> str:
    lines = ["| AF_XDP on veth, Mpps | ours | C loop | kernel-native XDP | ours / C | offered "
             "| ours took |", "|---|---:|---:|---:|---:|---:|---:|"]
    return "\n".join(lines + [f"| {' | '.join(cells(row))} |" for row in result["rows"]])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.io", description="AF_XDP loops on veth")
    parser.add_argument("actions", nargs="*", metavar="ACTION", help="drop, tx (default: both)")
    parser.add_argument("-j", "--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--cpus", default=",".join(map(str, cpus(2))), help="SOURCE,LOOP")
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    args = parser.parse_args(argv)
    if not set(args.actions) <= set(ACTIONS):
        parser.error("an action is drop or tx")
    on_cpus = [int(text) for text in args.cpus.split(",")]
    if len(on_cpus) != 2:
        parser.error("--cpus takes two: SOURCE,LOOP")

    def say(parts: Sequence[str]) -> None:
        if not args.json:
            print("".join(f"{part:<20}" for part in parts).rstrip(), flush=True)

    say(HEADER)
    result = run(args.actions or ACTIONS, args.rounds, args.seconds, on_cpus,
                 lambda row: say(cells(row)))
    text = json.dumps(result, indent=1)
    if args.json:
        print(text)
    for system, why in result["missing"].items():
        print(f"bench.io: without {system}: {why}", file=sys.stderr)
    if args.out:
        args.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, XdpuError) as error:
        sys.exit(f"bench.io: {error}")
