"""From the start of `xdpu run` to its first packet, on veth.

    python -m bench.start [EXAMPLE...] [-j] [--rounds 5] [--phases] [--out FILE]

cold is an empty compile cache, warm the second start.  Packets arrive every millisecond from before
the start; counted is until the first one that the run's shared counters show.  A cold start begins
with baseline code; when its optimised code is in the cache, the run is ended.  `--phases` adds
one more cold and one more warm start with a clock on what happens inside (phases.py and
-X importtime); these are slower by what the clocks cost.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bench import frames
from bench.cases import EXAMPLES
from bench.compile_time import installed
from bench.samples import ROOT, Spread, machine
from bench.systems import refusal
from dataplane.stats import Stats
from tests.nets import End, VethPair, entered, popen_in_ns
from xdp_runtime.errors import XdpuError

GOALS_S = {"cold": 3.0, "warm": 0.7}
_GIVE_UP_S = 120
_PAUSE_S = 0.001
Sample = dict[str, float]


@contextmanager
def stream(sender: End, receiver: End) -> Iterator[None]:
    """A frame a millisecond, until the block ends."""
    frame = bytes.fromhex(receiver.mac.replace(":", "")) + frames.udp4(80)[6:]
    with entered(sender.ns):
        out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        out.bind((sender.ifname, 0))
    ending = threading.Event()

    def send() -> None:
        while not ending.wait(_PAUSE_S):
            with suppress(OSError):
                out.send(frame)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
        out.close()


def start_once(example: str, cache: Path, phases: Path | None = None,
               *more: str) -> tuple[Sample, str]:
    """Seconds from spawning the process to what can be seen of it from outside; its errors."""
    with VethPair() as pair, tempfile.TemporaryDirectory(prefix="xdpu-bench-") as folder:
        run_dir = Path(folder)
        module = ["-X", "importtime", "-m", "bench.phases", str(phases)] if phases else [
            "-m", "control"]
        with stream(pair.a, pair.b), open(run_dir / "errors", "w+") as errors:
            spawned = time.monotonic()
            run = popen_in_ns(
                pair.b.ns, sys.executable, *module, "run", str(EXAMPLES / f"{example}.o"),
                "--iface", pair.b.ifname, "--interval", "3600", *more, cwd=ROOT,
                stdout=subprocess.DEVNULL, stderr=errors,
                env={**installed(), "XDPU_RUNDIR": str(run_dir / "run"),
                     "XDPU_CACHE": str(cache), "XDPU_BENCH_SPAWNED": str(spawned)})
            try:
                sample = _watch(run, run_dir / "run" / pair.b.ifname, cache, spawned)
            finally:
                run.send_signal(signal.SIGINT)
                try:
                    run.wait(20)
                except subprocess.TimeoutExpired:
                    run.kill()
                    run.wait()
                errors.seek(0)
                said = errors.read()
        if "first_packet_s" not in sample:
            raise RuntimeError(f"xdpu run {example}.o: no packet: {said.strip()[-500:]}")
        return sample, said


def _watch(run: subprocess.Popen[str], run_dir: Path, cache: Path, spawned: float) -> Sample:
    sample: Sample = {}
    stats: Stats | None = None
    while time.monotonic() - spawned < _GIVE_UP_S and run.poll() is None:
        passed = time.monotonic() - spawned
        if "compiled_s" not in sample and run_dir.exists():
            sample["compiled_s"] = passed  # the compiler works before anything is touched
        if stats is None:
            with suppress(OSError, ValueError):
                stats = Stats.open(run_dir / "stats")
                sample["loaded_s"] = passed
        if "first_packet_s" not in sample and stats is not None and stats.total()["rx_packets"]:
            sample["first_packet_s"] = time.monotonic() - spawned
        if "optimised_s" not in sample and any(cache.glob("program-*")):
            sample["optimised_s"] = passed
        if "first_packet_s" in sample and "optimised_s" in sample:
            break
        time.sleep(_PAUSE_S)
    return sample


def measure(example: str, rounds: int) -> dict[str, Any]:
    """Cold and warm in turns, each pair in a cache of its own; the first pair leaves bytecode."""
    samples: dict[str, list[Sample]] = {"cold": [], "warm": []}
    for number in range(rounds + 1):
        with tempfile.TemporaryDirectory(prefix="xdpu-bench-cache-") as cache:
            for kind in ("cold", "warm"):
                sample = start_once(example, Path(cache))[0]
                if number:
                    samples[kind].append(sample)
    row: dict[str, Any] = {"example": example}
    for kind, taken in samples.items():
        columns = {name: [round(one[name], 4) for one in taken] for name in taken[0]}
        row[kind] = {**{name: Spread.of(values).record() for name, values in columns.items()},
                     "goal_s": GOALS_S[kind], "samples": columns}
    return row


# ---- where the time goes -------------------------------------------------------------------------

def measure_phases(example: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="xdpu-bench-cache-") as folder:
        cache, out = Path(folder) / "cache", Path(folder) / "phases.json"
        found = {}
        for kind in ("cold", "warm"):
            sample, said = start_once(example, cache, out)
            found[kind] = {"first_packet_s": round(sample["first_packet_s"], 4),
                           "calls": sum_calls(json.loads(out.read_text())),
                           "imports": sum_imports(said)}
        return found


def sum_calls(calls: Sequence[Sequence[Any]]) -> list[dict[str, Any]]:
    """By name, in the order they first began."""
    begun: dict[str, float] = {}
    spent: dict[str, float] = defaultdict(float)
    count: dict[str, int] = defaultdict(int)
    for name, at, took in calls:
        begun[name] = min(at, begun.get(name, at))
        spent[name] += took
        count[name] += 1
    return [{"name": name, "at_s": round(begun[name], 4), "seconds": round(spent[name], 4),
             "calls": count[name]} for name in sorted(begun, key=lambda n: begun[n])]


_IMPORT = re.compile(r"import time:\s+(\d+) \|\s+(\d+) \| (\s*)(\S+)")


def sum_imports(text: str) -> dict[str, Any]:
    """-X importtime: seconds in all, and by top-level package."""
    packages: dict[str, float] = defaultdict(float)
    for own_us, _, _, name in _IMPORT.findall(text):
        packages[name.partition(".")[0]] += int(own_us) / 1e6
    top = sorted(packages.items(), key=lambda item: -item[1])[:12]
    return {"seconds": round(sum(packages.values()), 4),
            "packages": {name: round(seconds, 4) for name, seconds in top}}


def run(examples: Sequence[str], rounds: int, phases: bool = True,
        told: Callable[[dict[str, Any]], None] = lambda row: None) -> dict[str, Any]:
    """Raises RuntimeError where it cannot be measured."""
    why = refusal()
    if why:
        raise RuntimeError(why)
    rows = []
    for example in examples:
        row = measure(example, rounds)
        if phases:
            row["phases"] = measure_phases(example)
        rows.append(row)
        told(row)
    return {"bench": "start", "rounds": rounds, "machine": machine(), "rows": rows}


# ---- saying it -----------------------------------------------------------------------------------

def cells(row: Mapping[str, Any], kind: str) -> list[str]:
    def spread(record: Mapping[str, float]) -> str:
        return f"{record['median']:.2f} ({record['min']:.2f}-{record['max']:.2f})"

    one = row[kind]
    met = "met" if one["first_packet_s"]["median"] < one["goal_s"] else "MISSED"
    return [row["example"], kind, f"{one['compiled_s']['median']:.2f}",
            f"{one['loaded_s']['median']:.2f}", spread(one["first_packet_s"]),
            f"< {one['goal_s']:g}: {met}"]


HEADER = ("example", "cache", "compiled", "loaded", "first packet, s", "goal")


def markdown(result: Mapping[str, Any]) -> str:
    lines = ["| start of `xdpu run` | compile cache | first packet after, s | goal |",
             "|---|---|---:|---:|"]
    for row in result["rows"]:
        for kind in ("cold", "warm"):
            example, _, _, _, first, goal = cells(row, kind)
            lines.append(f"| {example} | {'empty' if kind == 'cold' else 'warm'} | {first} "
                         f"| {goal} |")
    return "\n".join(lines)


def phases_text(row: Mapping[str, Any]) -> str:
    lines = []
    for kind, found in row.get("phases", {}).items():
        lines.append(f"{row['example']}, {kind}: {found['first_packet_s']:.2f} s with clocks")
        lines += [f"  at {call['at_s']:6.3f}  {call['seconds']:6.3f} s  {call['calls']:3} x "
                  f"{call['name']}" for call in found["calls"]]
        packages = ", ".join(f"{name} {seconds:.3f}"
                             for name, seconds in found["imports"]["packages"].items())
        lines.append(f"  imports {found['imports']['seconds']:.3f} s: {packages}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="xdpu bench start", description="start to first packet")
    parser.add_argument("examples", nargs="*", metavar="EXAMPLE", help="default: drop, demo")
    parser.add_argument("-j", "--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--phases", action="store_true", help="say where the time goes")
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    args = parser.parse_args(argv)

    def say(parts: Sequence[str]) -> None:
        if not args.json:
            print("".join(f"{part:<10}" for part in parts[:4]) + f"{parts[4]:<20}{parts[5]}",
                  flush=True)

    def tell(row: dict[str, Any]) -> None:
        say(cells(row, "cold"))
        say(cells(row, "warm"))
        if args.phases and not args.json:
            print(phases_text(row), flush=True)

    say(HEADER)
    result = run(args.examples or ["drop", "demo"], args.rounds, args.phases, tell)
    text = json.dumps(result, indent=1)
    if args.json:
        print(text)
    if args.out:
        args.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, XdpuError) as error:
        sys.exit(f"bench.start: {error}")
