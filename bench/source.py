"""A source that can keep a rate: frames into a veth or TAP, each saying when it left.

    with Source("veth0", ns, cpu=3, dst_mac=mac) as source:
        sent = source.send(seconds=0.5)                  # all it can
        sent = source.send(seconds=0.5, rate=200_000)    # packets a second, stamped

A process of its own on its CPU, which it never leaves while it sends: frames are made by the
kernel (BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES, the programs of probe/probe.c) in calls
of as few as the rate allows, since a call costs some 16 us and a frame a quarter of one.  So what
comes out is small bursts: of 3 frames at 0.1 Mpps, 50 at 1 Mpps.  `Sent` says if it could not keep
the rate, and the longest time in which it sent nothing though it should have.

`kind="afpacket"` sends as a program with a socket does (native/skb_source.c): skbs, which any
interface takes, at a fraction of the rate.  `DpdkSource` sends by a device of DPDK
(native/dpdk_source.c), net_af_packet on an interface or memif; of memif it is both ends.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import itertools
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from bench.histogram import USED, Arrived
from bench.traffic import spare_veth, udp_frame
from xdp_runtime.bpf_syscall import Cmd, RunFlag, XdpFlag, attach_xdp_link, bpf
from xdp_runtime.elf import read_object
from xdp_runtime.errors import PortError, XdpuError
from xdp_runtime.kernel import load_into_kernel

ROOT = Path(__file__).resolve().parent.parent
PROBE = ROOT / "bench" / "probe" / "probe.o"
MAGIC = 0x58445055
_STAMP_AT = 42  # behind Ethernet, IPv4 and UDP
_CALL_S, _FRAME_S, _SHARE = 16e-6, 0.25e-6, 0.6  # of a CPU that sending may take
_BURST_MAX, _FLOOD, _BATCH = 1024, 1 << 14, 64
STALL_S = 0.005  # without a frame that was due
_KEPT = 0.98  # of the rate
_HELD_CALLS_A_S = 10_000
_POOLS_BACK_S, _POOLS_AGAIN_S = 30.0, 0.5  # a pool goes a second or more after its last frame
KINDS = ("live", "afpacket")
NATIVE = ROOT / "bench" / "native"
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Sent:
    """`frames` in `seconds`; of a rate that was asked for, what came of it."""

    frames: int
    seconds: float
    rate: float = 0.0  # asked for, 0: all it could
    longest_gap_s: float = 0.0
    refused: int = 0  # for which the device had no room

    @property
    def offered(self) -> int:
        return self.frames + self.refused

    @property
    def mpps(self) -> float:
        return self.frames / self.seconds / 1e6

    def complaints(self) -> list[str]:
        said = []
        if self.rate and self.offered / self.seconds < _KEPT * self.rate:
            said.append(f"the source sent {self.offered / self.seconds / 1e6:.3f} of "
                        f"{self.rate / 1e6:.3f} Mpps")
        if self.rate and self.longest_gap_s > STALL_S:
            said.append(f"the source stalled for {self.longest_gap_s * 1e3:.1f} ms")
        return said


def burst_of(rate: float, held: bool = False) -> int:
    """Frames a call.

    Where they are `held` behind the path, in a socket's buffer, each call leaves the kernel a page
    pool for a second or more, and of these there are 65534: then there are fewer calls.
    """
    spare_s = _SHARE / rate - _FRAME_S
    least = -(-rate // _HELD_CALLS_A_S) if held else 1
    wanted = _BURST_MAX if spare_s <= 0 else round(_CALL_S / spare_s)
    return int(max(least, min(_BURST_MAX, wanted)))


class _Call:
    """One BPF_PROG_TEST_RUN, prepared."""

    def __init__(self, fd: int, frame: bytes) -> None:
        self._frame = ctypes.create_string_buffer(frame, len(frame))
        self._attr = bytearray(struct.pack(
            "=IIIIQQIIIIQQIII4x", fd, 0, len(frame), 0, ctypes.addressof(self._frame), 0, 1, 0, 0,
            0, 0, 0, RunFlag.XDP_LIVE_FRAMES, 0, _BATCH))

    def __call__(self, count: int) -> None:
        """Waits where the kernel has no page pool left: who looks at the clock sees the stall, and
        a rate with a stall is tried again.  Raises OSError."""
        struct.pack_into("=I", self._attr, 32, count)
        until_s = time.monotonic() + _POOLS_BACK_S
        while True:
            try:
                bpf(Cmd.PROG_TEST_RUN, self._attr)
                return
            except OSError as error:
                if error.errno != errno.ENOSPC or time.monotonic() > until_s:
                    raise
            time.sleep(_POOLS_AGAIN_S)


def _flood(call: _Call, seconds: float) -> Sent:
    frames, start_s = 0, time.monotonic()
    while (now_s := time.monotonic()) - start_s < seconds:
        call(_FLOOD)
        frames += _FLOOD
    return Sent(frames, max(now_s, time.monotonic()) - start_s)


def _keep(call: _Call, seconds: float, rate: float, held: bool) -> Sent:
    burst = burst_of(rate, held)
    interval_s = burst / rate
    frames, longest_s = 0, 0.0
    start_s = due_s = last_s = time.monotonic()
    end_s = start_s + seconds
    while due_s < end_s:
        now_s = time.monotonic()
        if now_s < due_s:
            continue
        if now_s > end_s:
            break
        call(burst)
        frames += burst
        done_s = time.monotonic()  # a process is stopped as it leaves the call
        longest_s = max(longest_s, done_s - max(last_s, due_s))
        last_s = done_s
        due_s += interval_s
    return Sent(frames, max(time.monotonic(), due_s) - start_s, rate, longest_s)


def marked_frame(length: int, dst_mac: str) -> bytes:
    """What a sink counts."""
    frame = bytearray(udp_frame(length, dst_mac))
    struct.pack_into("=I", frame, _STAMP_AT, MAGIC)
    return bytes(frame)


# ---- the process ---------------------------------------------------------------------------------

def serve(ifname: str, cpu: int, length: int, dst_mac: str) -> None:
    """{"seconds", "rate", "held"} a line on standard input -> a Sent on standard output."""
    os.sched_setaffinity(0, {cpu})
    try:
        ifindex = socket.if_nametoindex(ifname)
    except OSError as error:
        raise PortError(f"interface {ifname}", "there is none in this namespace") from error
    frame = marked_frame(length, dst_mac)
    obj = read_object(PROBE)
    with ExitStack() as stack:
        calls = []
        for name in ("source", "stamped"):
            program = stack.enter_context(load_into_kernel(obj, name))
            program.maps["settings"].update(struct.pack("=I", 0),
                                            struct.pack("=I12s", ifindex, frame[:12]))
            spare = stack.enter_context(spare_veth(name[:2]))
            stack.callback(os.close, attach_xdp_link(program.fd, spare, XdpFlag.DRV_MODE))
            calls.append(_Call(program.fd, frame))
        print("ready", flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            seconds, rate = float(asked["seconds"]), float(asked["rate"])
            sent = _keep(calls[1], seconds, rate, asked["held"]) if rate \
                else _flood(calls[0], seconds)
            print(json.dumps(asdict(sent)), flush=True)


class Source:
    """The other side of `serve`, and of the sources in C."""

    def __init__(self, ifname: str, ns: str, cpu: int, length: int = 64,
                 dst_mac: str = "02:00:00:00:00:02", kind: str = "live",
                 held: bool = False) -> None:
        argv = [sys.executable, "-m", "bench.source", ifname, str(cpu), str(length), dst_mac]
        if kind == "afpacket":
            argv = ["taskset", "-c", str(cpu), built("skb_source"), ifname,
                    marked_frame(length, dst_mac).hex()]
        self._start(argv, ns, held)

    def _start(self, argv: Sequence[str], ns: str, held: bool) -> None:
        self._held = held
        enter = ["ip", "netns", "exec", ns] if ns else []
        self._process = subprocess.Popen(
            [*enter, *argv], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True)
        try:
            line = self._read()
            while "ready" not in line:  # EAL talks before
                line = self._read()
        except RuntimeError:
            self.__exit__(None, None, None)
            raise

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _, errors = self._process.communicate()
            raise RuntimeError(f"the source ended: {errors.strip()}")
        return line

    @property
    def pid(self) -> int:
        return self._process.pid

    def _say(self, words: dict[str, float]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(words) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._read()  # says why it ended

    def begin(self, seconds: float, rate: float = 0.0) -> None:
        self._say({"seconds": seconds, "rate": rate, "held": self._held})

    def wait(self) -> Sent:
        return Sent(**json.loads(self._read()))

    def send(self, seconds: float, rate: float = 0.0) -> Sent:
        self.begin(seconds, rate)
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


class DpdkSource(Source):
    """Into the first of the devices.  With `reads` it counts what comes back by any of them, as a
    Sink does."""

    def __init__(self, devices: Sequence[str], ns: str, cpu: int, length: int = 64,
                 dst_mac: str = "02:00:00:00:00:02", reads: bool = False) -> None:
        binary = built("dpdk_source")
        prefix = f"xdpu-source-{os.getpid()}-{next(_numbers)}"
        self._folder = Path("/var/run/dpdk") / prefix
        self._start([binary, "-l", str(cpu), "--file-prefix", prefix, "--no-telemetry", "--no-pci",
                     "--no-huge", "--no-shconf", "-m", "128", "--iova-mode", "va",
                     *(f"--vdev={device}" for device in devices), "--",
                     marked_frame(length, dst_mac).hex(), "reads" if reads else "sends"], ns, False)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        shutil.rmtree(self._folder, True)

    def read(self) -> Arrived:
        self._say({})
        said = json.loads(self._read())
        counts = [0] * USED
        for bucket, count in said["histogram"].items():
            counts[int(bucket)] = count
        return Arrived(said["packets"], tuple(counts))

    def packets(self) -> int:
        return self.read().packets


def built(name: str) -> str:
    """A program of bench/native.  Raises RuntimeError with the compiler's words."""
    done = subprocess.run(["make", "-s", "-C", str(NATIVE), name], capture_output=True, text=True,
                          check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["make failed"]
        raise RuntimeError(f"bench/native/{name} cannot be built: {words[0]}")
    return str(NATIVE / name)


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.source", description="see Source")
    parser.add_argument("ifname")
    parser.add_argument("cpu", type=int)
    parser.add_argument("length", type=int)
    parser.add_argument("dst_mac")
    args = parser.parse_args()
    serve(args.ifname, args.cpu, args.length, args.dst_mac)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except XdpuError as error:
        sys.exit(f"bench.source: {error}")
