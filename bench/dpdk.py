"""Mpps of our loop on DPDK's virtual devices, beside dpdk-testpmd on the same, in turns.

    python -m bench.dpdk [null-drop] [null-tx] ... [-j] [--rounds 3] [--seconds 2] [--out FILE]

net_null makes packets of nothing, net_ring gives back what it was sent: they cost nearly nothing,
so the figures are the loops' own.  testpmd has one forwarding core, as many mbufs as we have, and
bursts of 64, as our batches.  Both have the same memory: huge pages if there are any free.

    drop  examples/drop.o against rxonly   tx    a program that only says XDP_TX, against io
    swap  examples/tx.o against macswap

With one port testpmd forwards in a loop (--port-topology=loop).  net_ring gets 256 packets first.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.samples import ROOT, Spread, cpus, machine
from xdp_runtime.errors import XdpuError

CASES = {"null-drop": ("net_null0", "drop", "rxonly"), "null-tx": ("net_null0", "bounce", "io"),
         "null-swap": ("net_null0", "tx", "macswap"), "ring-tx": ("net_ring0", "bounce", "io"),
         "ring-swap": ("net_ring0", "tx", "macswap")}
_BOUNCE = """
__attribute__((section("xdp"), used)) int bounce(void *ctx) { return 3; }
char _license[] __attribute__((section("license"))) = "GPL";
"""
_SEEDS = 256
_BATCH = 64
_MBUFS = 8192


def refusal() -> str:
    missing = [word for word in ("dpdk-testpmd", "clang") if not shutil.which(word)]
    return f"needs {', '.join(missing)} (apt install dpdk clang)" if missing else ""


def ours(devargs: str, obj: Path, seconds: float, cpu: int) -> float:
    """In a process of its own, as the EAL starts once in one."""
    done = subprocess.run([sys.executable, "-m", "bench.dpdk", "--ours", devargs, str(obj),
                           str(seconds), str(cpu)], cwd=ROOT, capture_output=True, text=True,
                          timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return float(done.stdout)


def _loop(devargs: str, obj: str, seconds: float, cpu: int) -> float:
    from dataplane.engine import Engine
    from dpdk.port import DpdkPort
    from tests.dataplane.drive import Driver, frames
    from xdp_runtime.elf import read_object

    port = DpdkPort.open(devargs)
    engine = Engine(read_object(Path(obj)), [port], batch_size=_BATCH, busy_poll=True, cpus=[cpu])
    if devargs.startswith("net_ring"):
        driver = Driver(port)
        for frame in frames(_SEEDS):
            driver.send(frame)
        driver.flush()
    engine.start()
    time.sleep(0.3)
    first, began = engine.stats.total()["rx_packets"], time.monotonic()
    time.sleep(seconds)
    last, ended = engine.stats.total()["rx_packets"], time.monotonic()
    engine.stop()
    engine.close()
    port.close()
    return (last - first) / (ended - began) / 1e6


def testpmd(devargs: str, mode: str, seconds: float, cpu: int) -> float:
    from dpdk.eal import command_line  # the same memory for both

    memory, _ = command_line(["-l", f"0,{cpu}"], ())
    rounds = max(round(seconds), 1) + 1
    command = ["dpdk-testpmd", *memory, "--vdev", devargs, "--", f"--forward-mode={mode}",
               "--nb-cores=1", f"--burst={_BATCH}", f"--total-num-mbufs={_MBUFS}",
               "--port-topology=loop", "--stats-period=1", "--rxd=1024", "--txd=1024"]
    if devargs.startswith("net_ring"):
        command.append("--tx-first")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)
    rates: list[float] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"Rx-pps:\s+(\d+)", line):
                rates.append(float(found[1]) / 1e6)
                if len(rates) > rounds:
                    break
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(f"/var/run/dpdk/{memory[memory.index('--file-prefix') + 1]}", True)
    if len(rates) <= rounds:
        raise RuntimeError("dpdk-testpmd ended before it was measured")
    return sum(rates[2:]) / len(rates[2:])


def measure(case: str, folder: Path, rounds: int, seconds: float, cpu: int) -> dict[str, Any]:
    devargs, example, mode = CASES[case]
    obj = folder / "bounce.o" if example == "bounce" else ROOT / "examples" / f"{example}.o"
    ours(devargs, obj, 0.1, cpu)  # compiled, and cached, from here on
    mine: list[float] = []
    theirs: list[float] = []
    for number in range(rounds):
        for who in ("ours", "testpmd") if number % 2 == 0 else ("testpmd", "ours"):
            if who == "ours":
                mine.append(ours(devargs, obj, seconds, cpu))
            else:
                theirs.append(testpmd(devargs, mode, seconds, cpu))
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    return {"case": case, "ours": Spread.of(mine).record(), "testpmd": Spread.of(theirs).record(),
            "ours_to_testpmd": Spread.of(ratios).record()}


def run(cases: Sequence[str], rounds: int, seconds: float, cpu: int) -> dict[str, Any]:
    if why := refusal():
        raise RuntimeError(why)
    rows = []
    with tempfile.TemporaryDirectory(prefix="xdpu-bench-") as name:
        folder = Path(name)
        (folder / "bounce.c").write_text(_BOUNCE)
        subprocess.run(["clang", "-O2", "-g", "-target", "bpf", "-c", "bounce.c"], cwd=folder,
                       check=True)
        for case in cases:
            rows.append(measure(case, folder, rounds, seconds, cpu))
            print(json.dumps(rows[-1]), flush=True)
    return {"bench": "dpdk", "rounds": rounds, "seconds": seconds, "cpu": cpu,
            "machine": machine(), "rows": rows}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.dpdk", description="DPDK's virtual devices")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--cpu", type=int, default=cpus(1)[0])
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    parser.add_argument("--ours", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.ours:
        devargs, obj, seconds, cpu = args.ours
        print(_loop(devargs, obj, float(seconds), int(cpu)))
        return 0
    if not set(args.cases) <= set(CASES):
        parser.error(f"a case is one of {', '.join(CASES)}")
    result = run(args.cases or list(CASES), args.rounds, args.seconds, args.cpu)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, XdpuError) as error:
        sys.exit(f"bench.dpdk: {error}")
