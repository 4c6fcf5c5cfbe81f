"""What bench.io measures side by side: each is started on the same kind of wires and ended again.

    ours       `xdpu run examples/NAME.o --busy-poll`, the whole command as a user has it, with what
               it chooses by itself
    ours-xsk   the same with --tx xsk: transmission by AF_XDP's ring, as the C loop does it
    c          native/xsk_loop, libxdp and a loop by hand with the same settings
    native     the same object in the kernel, attached natively; it runs on the source's CPU
    generic    the same, attached to the stack (skb mode)

For XDP_PASS: `ours-live` and `ours-tap` are its two ways into the stack, `none` is the interface
without XDP.
"""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.cases import EXAMPLES
from bench.samples import ROOT
from dataplane.stats import Stats
from tests.nets import End, VethPair, entered, in_ns, popen_in_ns
from xdp_runtime.bpf_syscall import XdpFlag, attach_xdp_link
from xdp_runtime.elf import read_object
from xdp_runtime.errors import ConfigError
from xdp_runtime.kernel import load_into_kernel

NATIVE = ROOT / "bench" / "native"
PORTS = ("afxdp", "afpacket", "tap", "dpdk")
_START_S = 60  # the first start compiles
_TAP = "xdputap0"
_NAME = "bench"
Counter = Callable[[], int]  # packets done, as far as the end of the path does not tell
System = Callable[["Job"], AbstractContextManager[Counter]]


@dataclass(frozen=True, slots=True)
class Job:
    """What a system has to do, and where: packets come in at `node`, a redirect leaves by `out`."""

    action: str
    port: str
    node: End
    out: End | None
    cpus: Sequence[int]  # of its loops
    queues: int = 1

    @property
    def ifaces(self) -> list[End]:
        return [self.node] + ([self.out] if self.out is not None else [])


class Wires:
    """Veth pairs from a source to the node and from there to the far end.  Where the port is a TAP
    of the run's own, that is both, once it is there."""

    def __init__(self, way_in: VethPair, way_out: VethPair | None, port: str) -> None:
        self.source, self.node = way_in.a, way_in.b
        self.out: End | None = way_out.b if way_out is not None else None
        self.far: End | None = way_out.a if way_out is not None else None
        if port == "tap":
            self.source = self.node = replace(way_in.b, ifname=_TAP)

    def job(self, action: str, port: str, cpus: Sequence[int], queues: int) -> Job:
        return Job(action, port, self.node, self.out, cpus, queues)

    def end_of_path(self, action: str) -> End | None:
        """Where packets come out."""
        return {"tx": self.source, "redirect": self.far}.get(action)

    def found(self, end: End) -> End:
        """With number and MAC of a TAP that is there now."""
        if end.ifname != _TAP:
            return end
        said = in_ns(end.ns, "cat", f"/sys/class/net/{_TAP}/ifindex",
                     f"/sys/class/net/{_TAP}/address").stdout.split()
        return replace(end, ifindex=int(said[0]), mac=said[1])


@contextmanager
def wires(action: str, queues: int, port: str) -> Iterator[Wires]:
    with ExitStack() as stack:  # addresses are those of the source's frames
        way_in = stack.enter_context(VethPair(subnet=1, queues=queues))
        way_out = stack.enter_context(VethPair(None, way_in.b.ns, subnet=232, queues=queues)) \
            if action == "redirect" else None
        yield Wires(way_in, way_out, port)


# ---- ours ----------------------------------------------------------------------------------------

def _ours(*more: str) -> System:
    @contextmanager
    def running(job: Job) -> Iterator[Counter]:
        names = [end.ifname for end in job.ifaces]
        port = ["--iface", ",".join(names), "--port", job.port, "--queue", f"0-{job.queues - 1}"]
        if job.port == "dpdk":
            port = ["--port", "dpdk:" + ";".join(f"net_af_packet{i},iface={name}"
                                                 for i, name in enumerate(names))]
        if job.action == "redirect":
            assert job.out is not None
            port += ["--set-map", f"peer={job.node.ifindex}:{job.out.ifindex}"]
        if job.action != "pass" and job.port not in ("dpdk", "tap"):
            port.append("--no-stack")
        options = more if job.port == "afxdp" else ()
        with tempfile.TemporaryDirectory(prefix="xdpu-bench-") as folder:
            loop = popen_in_ns(
                job.node.ns, sys.executable, "-m", "control", "run",
                str(EXAMPLES / f"{job.action}.o"), *port, *options, "--busy-poll",
                "--cpu", ",".join(map(str, job.cpus)), "-j", "--interval", "3600", "--name", _NAME,
                cwd=ROOT, env={**os.environ, "XDPU_RUNDIR": folder}, stderr=subprocess.DEVNULL)
            with _ending(loop):
                _expect(loop, loop.stdout, '"start"')
                if job.port in ("afpacket", "dpdk"):  # no XDP there either
                    take_live_frames(job.node)
                stats = Stats.open(Path(folder) / _NAME / "stats")
                yield lambda: stats.total()["rx_packets"]
    return running


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
def c_loop(job: Job) -> Iterator[Counter]:
    beside = ["-o", job.out.ifname] if job.out is not None else []
    loop = popen_in_ns(job.node.ns, "taskset", "-c", ",".join(map(str, job.cpus)),
                       str(NATIVE / "xsk_loop"), "-i", job.node.ifname, "-n", str(job.queues),
                       "-a", job.action, *beside, "-d", "3600")
    with _ending(loop):
        _expect(loop, loop.stderr, "ready")
        yield lambda: _driver_counter(job.node, "xdp_redirect")


def build_c_loop() -> str:
    """Why the C loop cannot be built; empty when it is."""
    done = subprocess.run(["make", "-s", "-C", str(NATIVE), "xsk_loop"], capture_output=True,
                          text=True, check=False)
    return "" if not done.returncode else (done.stderr.strip().splitlines() or ["make failed"])[0]


def _kernel(flag: XdpFlag) -> System:
    @contextmanager
    def attached(job: Job) -> Iterator[Counter]:
        with attach(job.action, job.node, flag, job.out):
            if flag == XdpFlag.SKB_MODE:
                take_live_frames(job.node)
            yield lambda: _driver_counter(job.node, "xdp_packets")
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
def _nothing(job: Job) -> Iterator[Counter]:
    take_live_frames(job.node)
    yield lambda: _driver_counter(job.node, "xdp_packets")


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
    "ours-live": _ours("--stack", "live"), "ours-tap": _ours("--stack", "tap"), "none": _nothing}


def of(action: str, port: str) -> tuple[list[str], dict[str, str]]:
    """Names of the systems that can do this, and why others cannot.  Raises ConfigError where the
    port cannot."""
    if port == "tap" and action not in ("drop", "tx"):
        raise ConfigError(f"--action {action}", "is not measured on a TAP of the run's own: there "
                          "is no second one, and no stack behind it", "--action drop,tx")
    if action == "pass":
        ours = ["ours-live", "ours-tap"] if port == "afxdp" else ["ours"]
        return [*ours, "native", "generic", "none"], {}
    ours = ["ours", "ours-xsk"] if port == "afxdp" and action != "drop" else ["ours"]
    if port != "afxdp":
        return [*ours, *(("native", "generic") if port != "tap" else ())], {}
    missing = build_c_loop()
    return [*ours, *([] if missing else ["c"]), "native", "generic"], \
        {"c": missing} if missing else {}


def refusal() -> str:
    """Why there can be no measurement here; empty if there can."""
    if os.geteuid():
        return "needs root: namespaces, AF_XDP"
    missing = [word for word in ("ip", "ethtool", "taskset") if not shutil.which(word)]
    return f"needs {', '.join(missing)}" if missing else ""
