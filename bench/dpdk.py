"""Mpps of our loop on DPDK's virtual devices, beside dpdk-testpmd on the same, in turns.

    python -m bench.dpdk [null-drop] [null-tx] ... [-j] [--rounds 3] [--seconds 2] [--out FILE]
    python -m bench.dpdk leak [--packets 100_000_000]

net_null makes packets of nothing, net_ring gives back what it was sent: they cost nearly nothing,
so the figures are the loops' own.  net_memif is fed by another testpmd on a CPU of its own, veth
pairs by bench.traffic.  testpmd has one forwarding core, as many mbufs as we have, and bursts of
64, as our batches.  Both have the same memory: huge pages if there are any free.

    drop  examples/drop.o against rxonly   tx    a program that only says XDP_TX, against io
    swap  examples/tx.o against macswap

A figure is packets by the time that the forwarding thread had a CPU, as both poll without sleep:
what else runs on the machine counts less then.  With one port testpmd forwards in a loop
(--port-topology=loop).  net_ring gets a burst of packets first, as testpmd's --tx-first gives it.

`leak` runs so many packets of each verdict, and counts the mbufs in their pools before and after.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.samples import ROOT, Spread, cpus, machine
from bench.traffic import Flood
from dpdk.port import OWN_IFINDEX
from tests import nets
from xdp_runtime.errors import XdpuError

CASES = {"null-drop": ("net_null0", "drop", "rxonly"), "null-tx": ("net_null0", "bounce", "io"),
         "null-swap": ("net_null0", "tx", "macswap"), "ring-tx": ("net_ring0", "bounce", "io"),
         "ring-swap": ("net_ring0", "tx", "macswap"),
         "memif-drop": ("net_memif0,role=client", "drop", "rxonly"),
         "memif-swap": ("net_memif0,role=client", "tx", "macswap"),
         "af_packet-drop": ("net_af_packet0", "drop", "rxonly"),
         "af_packet-swap": ("net_af_packet0", "tx", "macswap"),
         "af_xdp-drop": ("net_af_xdp0", "drop", "rxonly"),
         "af_xdp-swap": ("net_af_xdp0", "tx", "macswap")}
LEAKS = ("drop", "bounce", "pass", "redirect", "aborted")  # each ends in another verdict
_SOURCE = """
__attribute__((section("xdp"), used)) int %s(void *ctx) { return %s; }
char _license[] __attribute__((section("license"))) = "GPL";
"""
_SOURCES = {"bounce": "3", "aborted": "0",
            "redirect": f"((int (*)(int, int))23)({OWN_IFINDEX + 1}, 0)"}
_BATCH = 64
_MBUFS = 8192


def refusal() -> str:
    missing = [word for word in ("dpdk-testpmd", "clang") if not shutil.which(word)]
    return f"needs {', '.join(missing)} (apt install dpdk clang)" if missing else ""


class Runtime:
    """The time that the busiest thread of a process had a CPU, from now on."""

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._before = self._all()

    def _all(self) -> dict[str, int]:
        return {task.name: int((task / "schedstat").read_text().split()[0])
                for task in self._tasks.iterdir()}

    def seconds(self) -> float:
        return max(now - self._before.get(name, 0) for name, now in self._all().items()) / 1e9


def ours(devargs: str, obj: Path, seconds: float, cpu: int, ns: str = "") -> float:
    """In a process of its own, as the EAL starts once in one."""
    done = nets.run(*_inside(ns), sys.executable, "-m", "bench.dpdk", "--ours", devargs, str(obj),
                    str(seconds), str(cpu), cwd=ROOT, timeout_s=120)
    return float(done.stdout)


def _inside(ns: str) -> list[str]:
    return ["ip", "netns", "exec", ns] if ns else []


def _loop(devargs: str, obj: str, seconds: float, cpu: int) -> float:
    from dataplane.engine import Engine
    from dpdk.port import DpdkPort
    from tests.dataplane.drive import Driver, frames
    from xdp_runtime.elf import read_object

    port = DpdkPort.open(devargs)
    engine = Engine(read_object(Path(obj)), [port], batch_size=_BATCH, busy_poll=True, cpus=[cpu])
    if devargs.startswith("net_ring"):
        driver = Driver(port)
        for frame in frames(_BATCH):
            driver.send(frame)
        driver.flush()
    engine.start()
    time.sleep(0.5)
    first, began = engine.stats.total()["rx_packets"], Runtime(os.getpid())
    time.sleep(seconds)
    last, took = engine.stats.total()["rx_packets"], began.seconds()
    engine.stop()
    engine.close()
    port.close()
    return (last - first) / took / 1e6


def testpmd_command(devargs: str, mode: str, cpu: int, *more: str) -> tuple[list[str], str]:
    """What to run, and the folder it leaves behind."""
    from dpdk.eal import command_line  # the same memory for both

    memory, _ = command_line(["-l", f"0,{cpu}", "--file-prefix", f"xdpu-bench-{cpu}"], ())
    return (["dpdk-testpmd", *memory, "--vdev", devargs, "--", f"--forward-mode={mode}",
             "--nb-cores=1", f"--burst={_BATCH}", f"--total-num-mbufs={_MBUFS}",
             "--port-topology=loop", "--rxd=1024", "--txd=1024", *more],
            f"/var/run/dpdk/xdpu-bench-{cpu}")


@contextmanager
def started(command: Sequence[str], folder: str, ns: str = "") -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([*_inside(ns), *command], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(folder, True)


def testpmd(devargs: str, mode: str, seconds: float, cpu: int, ns: str = "") -> float:
    more = ["--stats-period=1", *(["--tx-first"] if devargs.startswith("net_ring") else [])]
    command, folder = testpmd_command(devargs, mode, cpu, *more)
    began: Runtime | None = None
    first = 0
    with started(command, folder, ns) as process:
        assert process.stdout is not None
        for line in process.stdout:
            found = re.search(r"RX-packets:\s+(\d+)", line)
            if found is None:
                continue
            if began is None and int(found[1]):
                first, began = int(found[1]), Runtime(process.pid)
            elif began is not None and (took := began.seconds()) > 0.9 * seconds:
                return (int(found[1]) - first) / took / 1e6
    raise RuntimeError("dpdk-testpmd ended before it was measured")


@contextmanager
def fed(case: str, cpu: int, seconds: float) -> Iterator[tuple[str, str]]:
    """Packets for a case -> (devargs, namespace), as long as one run takes."""
    devargs, _, mode = CASES[case]
    if case.startswith("memif"):
        with tempfile.TemporaryDirectory(prefix="xdpu-memif-") as folder:
            where = f"socket={folder}/sock,socket-abstract=no"
            source = "txonly" if mode == "rxonly" else "flowgen"
            command, left = testpmd_command(f"net_memif0,role=server,{where}", source, cpu - 1)
            with started(["stdbuf", "-oL", *command], left) as process:
                wait_until_it_sends(process)
                yield f"{devargs},{where}", ""
    elif case.startswith("af_"):
        with nets.VethPair() as pair:
            nets.in_ns(pair.a.ns, "ethtool", "-K", pair.a.ifname, "gro", "on")
            flood = Flood(pair.b.ifname, pair.b.ns, cpu - 1, seconds + 20)
            try:
                yield f"{devargs},iface={pair.a.ifname}", pair.a.ns
            finally:
                flood.stop()
    else:
        yield devargs, ""


def wait_until_it_sends(process: subprocess.Popen[str]) -> None:
    """Its socket is there before its device is: a client that comes between is refused, and does
    not come again."""
    assert process.stdout is not None
    if not any("start packet forwarding" in line for line in process.stdout):
        raise RuntimeError("the source's dpdk-testpmd did not start")


def measure(case: str, folder: Path, rounds: int, seconds: float, cpu: int) -> dict[str, Any]:
    _, example, mode = CASES[case]
    obj = object_of(example, folder)
    ours("net_null0", obj, 0.1, cpu)  # compiled, and cached, from here on
    mine: list[float] = []
    theirs: list[float] = []
    for number in range(rounds):
        for who in ("ours", "testpmd") if number % 2 == 0 else ("testpmd", "ours"):
            with fed(case, cpu, seconds) as (device, ns):
                if who == "ours":
                    mine.append(ours(device, obj, seconds, cpu, ns))
                else:
                    theirs.append(testpmd(device, mode, seconds, cpu, ns))
    ratios = [a / b for a, b in zip(mine, theirs, strict=True)]
    return {"case": case, "ours": Spread.of(mine).record(), "testpmd": Spread.of(theirs).record(),
            "ours_to_testpmd": Spread.of(ratios).record()}


def object_of(example: str, folder: Path) -> Path:
    if example not in _SOURCES:
        return ROOT / "examples" / f"{example}.o"
    made = folder / f"{example}.o"
    if not made.exists():
        made.with_suffix(".c").write_text(_SOURCE % (example, _SOURCES[example]))
        subprocess.run(["clang", "-O2", "-g", "-target", "bpf", "-Wno-int-to-pointer-cast", "-c",
                        f"{example}.c"], cwd=folder, check=True)
    return made


def memory() -> str:
    from dpdk.eal import command_line

    return command_line((), ())[1]


def run(cases: Sequence[str], rounds: int, seconds: float, cpu: int) -> dict[str, Any]:
    if why := refusal():
        raise RuntimeError(why)
    rows = []
    with tempfile.TemporaryDirectory(prefix="xdpu-bench-") as name:
        for case in cases:
            rows.append(measure(case, Path(name), rounds, seconds, cpu))
            print(json.dumps(rows[-1]), flush=True)
    return {"bench": "dpdk", "rounds": rounds, "seconds": seconds, "cpu": cpu, "memory": memory(),
            "machine": machine(), "rows": rows}


def leak(packets: int) -> dict[str, Any]:
    """So many packets of each verdict, on two devices; the first one receives."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="xdpu-bench-") as name:
        for example in LEAKS:
            done = nets.run(sys.executable, "-m", "bench.dpdk", "--leak", str(
                object_of(example, Path(name))), str(packets), cwd=ROOT, timeout_s=600)
            rows.append({"program": example} | json.loads(done.stdout))
            print(json.dumps(rows[-1]), flush=True)
    return {"bench": "dpdk leak", "packets": packets, "memory": memory(), "machine": machine(),
            "rows": rows}


def _leak(obj: str, packets: int) -> dict[str, Any]:
    from dataplane.engine import Engine
    from dpdk.port import DpdkPort
    from xdp_runtime.elf import read_object

    ports = [DpdkPort.open("net_null0"), DpdkPort.open("net_null1")]
    before = [port.mbufs() for port in ports]
    engine = Engine(read_object(Path(obj)), ports, batch_size=_BATCH, busy_poll=True)
    engine.pause(ports[1].name)
    engine.start()
    while (total := engine.stats.total())["rx_packets"] < packets:
        time.sleep(0.05)
    engine.stop()
    total = engine.stats.total()
    for port in ports:
        port.close()
    engine.close()
    return {"mbufs": [size for pools in before for _, size in pools],
            "missing": [count for port in ports for count in port.left],
            **{name: total[name] for name in ("rx_packets", "drop", "tx", "pass", "redirect",
                                              "aborted", "tx_full", "redirect_full")}}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.dpdk", description="DPDK's virtual devices")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"leak, or {', '.join(CASES)}")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--cpu", type=int, default=cpus(1)[0])
    parser.add_argument("--out", type=Path, help="write the JSON here, too")
    parser.add_argument("--packets", type=int, default=100_000_000, help="of each verdict")
    parser.add_argument("--ours", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--leak", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.ours:
        devargs, obj, seconds, cpu = args.ours
        print(_loop(devargs, obj, float(seconds), int(cpu)))
        return 0
    if args.leak:
        print(json.dumps(_leak(args.leak[0], int(args.leak[1]))))
        return 0
    if args.cases == ["leak"]:
        result = leak(args.packets)
    elif set(args.cases) <= set(CASES):
        result = run(args.cases or list(CASES), args.rounds, args.seconds, args.cpu)
    else:
        parser.error(f"a case is leak, or one of {', '.join(CASES)}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (RuntimeError, XdpuError) as error:
        sys.exit(f"bench.dpdk: {error}")
