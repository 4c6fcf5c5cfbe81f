"""What bench.io measures side by side: each is started on the same kind of wires and ended again.

    ours       `xdpu run examples/NAME.o --busy-poll`, the whole command as a user has it, with what
               it chooses by itself
    ours-xsk   the same with --tx xsk: transmission by AF_XDP's ring, as the C loop does it
    c          native/xsk_loop, libxdp and a loop by hand with the same settings
    testpmd    DPDK's own loop on the same devices
    native     the same object in the kernel, attached natively; it runs on the source's CPU
    generic    the same, attached to the stack (skb mode)

For XDP_PASS: `ours-skb`, `ours-live` and `ours-tap` are its ways into the stack, the first what it
chooses by itself; `none` is the interface without XDP.  `ours-live` is measured only when named: it
leaves the kernel as many page pools as the source does, and there are 65534 for both.
"""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.cases import EXAMPLES
from bench.samples import ROOT
from bench.source import built
from bench.wires import MEMIF, Wires
from dataplane.stats import Stats
from tests.nets import End, entered, in_ns, popen_in_ns
from xdp_runtime.bpf_syscall import XdpFlag, attach_xdp_link
from xdp_runtime.elf import read_object
from xdp_runtime.kernel import load_into_kernel

_START_S = 60  # the first start compiles
_NAME = "bench"
Counter = Callable[[], int]  # packets done, as far as the end of the path does not tell
System = Callable[["Job"], AbstractContextManager["Running"]]


@dataclass(frozen=True, slots=True)
class Job:
    """What a system has to do, and where.  `sleeps`: its loops share their CPUs with the sources,
    so they wait in poll(2) instead of spinning."""

    action: str
    wires: Wires
    cpus: Sequence[int]  # of its loops
    reader_cpu: int = 0  # of what else there is
    queues: int = 1
    sleeps: bool = False

    @property
    def port(self) -> str:
        return self.wires.port

    @property
    def node(self) -> End:
        return self.wires.node

    @property
    def out(self) -> End | None:
        return self.wires.out


@dataclass(frozen=True, slots=True)
class Running:
    """A system at work.  `count`: packets done, as far as the end of the path does not tell; `pid`:
    the process whose threads do it, 0 where the kernel does."""

    count: Counter
    pid: int = 0


# ---- ours ----------------------------------------------------------------------------------------

def _ours(*more: str) -> System:
    @contextmanager
    def running(job: Job) -> Iterator[Running]:
        with tempfile.TemporaryDirectory(prefix="xdpu-bench-") as folder:
            loop = popen_in_ns(
                job.node.ns, sys.executable, "-m", "control", "run",
                str(EXAMPLES / f"{job.action}.o"), *_options(job, more),
                "--cpu", ",".join(map(str, job.cpus)), "-j", "--interval", "3600", "--name", _NAME,
                "--baseline", "off",
                cwd=ROOT, env={**os.environ, "XDPU_RUNDIR": folder}, stderr=subprocess.DEVNULL)
            with _ending(loop):
                _expect(loop, loop.stdout, '"start"')
                if job.port in ("afpacket", "dpdk:net_af_packet"):  # no XDP there either
                    take_live_frames(job.node)
                stats = Stats.open(Path(folder) / _NAME / "stats")
                yield Running(lambda: stats.total()["rx_packets"], loop.pid)
    return running


def _options(job: Job, more: Sequence[str]) -> list[str]:
    if job.port.startswith("dpdk:"):
        said = ["--port", "dpdk:" + ";".join(job.wires.devices())]
    else:
        said = ["--iface", ",".join(end.ifname for end in job.wires.ifaces), "--port", job.port,
                "--queue", f"0-{job.queues - 1}"]
    if job.port == "afxdp":
        said += more
    if job.action == "redirect":
        said += ["--set-map", "peer={}:{}".format(*job.wires.numbers())]
    if job.action != "pass" and job.port not in ("tap", "dpdk:net_af_packet"):
        said.append("--no-stack")
    return said if job.sleeps else [*said, "--busy-poll"]


@contextmanager
def _ending(loop: subprocess.Popen[str]) -> Iterator[None]:
    try:
        yield
        if loop.poll() is not None:
            raise RuntimeError(f"{loop.args!r} ended by itself with {loop.returncode}")
    finally:
        if loop.poll() is None:
            loop.send_signal(signal.SIGINT)
        try:
            loop.communicate(timeout=_START_S)
        finally:
            loop.kill()


def _expect(loop: subprocess.Popen[str], pipe: Any, word: str) -> None:
    line = pipe.readline()
    if word not in line:
        loop.kill()
        raise RuntimeError(f"{loop.args!r}: {line.strip() or 'ended before it was ready'}")


# ---- rivals --------------------------------------------------------------------------------------

@contextmanager
def c_loop(job: Job) -> Iterator[Running]:
    beside = ["-o", job.out.ifname] if job.out is not None else []
    loop = popen_in_ns(job.node.ns, "taskset", "-c", ",".join(map(str, job.cpus)),
                       built("xsk_loop"), "-i", job.node.ifname, "-n", str(job.queues),
                       "-a", job.action, *beside, "-d", "3600",
                       "-p", "poll" if job.sleeps else "spin")
    with _ending(loop):
        _expect(loop, loop.stderr, "ready")
        yield Running(lambda: _driver_counter(job.node, "xdp_redirect"), loop.pid)


@contextmanager
def testpmd(job: Job) -> Iterator[Running]:
    """io where packets leave by the other device, else macswap.  Says once a second what it did."""
    from dpdk.eal import command_line  # the same memory for both

    cpu, devices = job.cpus[0], job.wires.devices()
    prefix = f"xdpu-bench-{os.getpid()}-{cpu}"
    memory, _ = command_line(["-l", f"{job.reader_cpu},{cpu}", "--file-prefix", prefix], ())
    if job.port == "dpdk:net_af_packet":
        take_live_frames(job.node)
    with tempfile.TemporaryDirectory(prefix="xdpu-bench-") as folder:
        said = Path(folder) / "said"
        try:
            with said.open("w") as file:
                loop = popen_in_ns(
                    job.node.ns, "dpdk-testpmd", *memory,
                    *(f"--vdev={device}" for device in devices), "--",
                    f"--forward-mode={'io' if job.out else 'macswap'}", "--nb-cores=1",
                    "--burst=64", f"--total-num-mbufs={8192 * len(devices)}", "--rxd=1024",
                    "--txd=1024", f"--port-topology={'paired' if job.out else 'loop'}",
                    "--stats-period=1", stdin=subprocess.PIPE, stdout=file,
                    stderr=subprocess.STDOUT)
            with _ending(loop):
                _await(loop, said, "RX-packets")
                yield Running(lambda: 0, loop.pid)
        finally:
            shutil.rmtree(f"/var/run/dpdk/{prefix}", True)


def _await(loop: subprocess.Popen[str], said: Path, word: str) -> None:
    until_s = time.monotonic() + _START_S
    while word not in (text := said.read_text()):
        if loop.poll() is not None or time.monotonic() > until_s:
            loop.kill()
            last = [line for line in text.splitlines() if line.strip()]
            raise RuntimeError(f"{loop.args!r}: {last[-1] if last else 'says nothing'}")
        time.sleep(0.05)


def build_c_loop() -> str:
    """Why the C loop cannot be built; empty when it is."""
    try:
        built("xsk_loop")
    except RuntimeError as error:
        return str(error)
    return ""


def _kernel(flag: XdpFlag) -> System:
    @contextmanager
    def attached(job: Job) -> Iterator[Running]:
        with attach(job.action, job.node, flag, job.out):
            if flag == XdpFlag.SKB_MODE:
                take_live_frames(job.node)
            yield Running(lambda: _driver_counter(job.node, "xdp_packets"))
    return attached


@contextmanager
def attach(example: str, end: End, flag: XdpFlag = XdpFlag.DRV_MODE,
           out: End | None = None) -> Iterator[None]:
    """An example in the kernel."""
    with load_into_kernel(read_object(EXAMPLES / f"{example}.o")) as program:
        if out is not None:
            program.maps["peer"].update(struct.pack("=I", end.ifindex),
                                        struct.pack("=I", out.ifindex))
        with entered(end.ns):
            link = attach_xdp_link(program.fd, end.ifindex, flag)
        try:
            yield
        finally:
            os.close(link)


@contextmanager
def _nothing(job: Job) -> Iterator[Running]:
    take_live_frames(job.node)
    yield Running(lambda: _driver_counter(job.node, "xdp_packets"))


def take_live_frames(end: End) -> None:
    """A veth without XDP in its driver does so only with GRO."""
    in_ns(end.ns, "ethtool", "-K", end.ifname, "gro", "on")


def _driver_counter(end: End, name: str) -> int:
    """Of a veth, all queues: xdp_packets were looked at, xdp_redirect went to a socket."""
    return sum(int(line.rpartition(":")[2]) for line in in_ns(
        end.ns, "ethtool", "-S", end.ifname).stdout.splitlines()
        if line.strip().startswith("rx_queue_") and line.partition(":")[0].endswith(f"_{name}"))


SYSTEMS: Mapping[str, System] = {
    "ours": _ours(), "ours-xsk": _ours("--tx", "xsk"), "c": c_loop,
    "native": _kernel(XdpFlag.DRV_MODE), "generic": _kernel(XdpFlag.SKB_MODE),
    "testpmd": testpmd, "none": _nothing,
    "ours-skb": _ours("--stack", "skb"), "ours-live": _ours("--stack", "live"),
    "ours-tap": _ours("--stack", "tap")}


WHEN_NAMED = {"ours-live"}


def of(action: str, port: str) -> tuple[list[str], dict[str, str]]:
    """Names of the systems that can do this, and why others cannot."""
    missing: dict[str, str] = {}
    if port.startswith("dpdk:"):
        rivals = []
        if action == "pass":
            missing["testpmd"] = "it passes nothing to a stack"
        elif action == "drop":
            missing["testpmd"] = "it says once a second what it received; see python -m bench.dpdk"
        elif not shutil.which("dpdk-testpmd"):
            missing["testpmd"] = "it is not installed (apt install dpdk)"
        else:
            rivals = ["testpmd"]
        if port != MEMIF:
            rivals += ["native", "generic", *(["none"] if action == "pass" else [])]
        return ["ours", *rivals], missing
    if action == "pass":
        ours = ["ours-skb", "ours-live", "ours-tap"] if port == "afxdp" else ["ours"]
        return [*ours, "native", "generic", "none"], missing
    if port != "afxdp":
        return ["ours", *(("native", "generic") if port != "tap" else ())], missing
    ours = ["ours"] if action == "drop" else ["ours", "ours-xsk"]
    why = build_c_loop()
    return [*ours, *([] if why else ["c"]), "native", "generic"], {"c": why} if why else {}


def refusal() -> str:
    """Why there can be no measurement here; empty if there can."""
    if os.geteuid():
        return "needs root: namespaces, AF_XDP"
    missing = [word for word in ("ip", "ethtool", "taskset") if not shutil.which(word)]
    return f"needs {', '.join(missing)}" if missing else ""
