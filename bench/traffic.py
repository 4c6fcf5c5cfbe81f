"""A packet source: floods a veth with frames made by the kernel itself.

    python -m bench.traffic -i IFACE [--ns NS] [--cpu N] [--seconds S] [--length 64] [--flows 1]

BPF_PROG_TEST_RUN with BPF_F_TEST_XDP_LIVE_FRAMES runs an XDP program on frames from a page pool
and does what it says; ours says bpf_redirect(IFACE), so each frame goes into the veth's ring and
is received by the *peer* of IFACE, on the same CPU, which must have XDP attached or GRO on.  A
batch must stay under the ring's 256 entries, or frames are lost unseen.

The frame is UDP 10.77.1.1 -> 10.77.1.2 without a checksum; with `flows` (a power of two) its source
port is random.  The program stays attached to a spare veth while it runs: for a program that is
attached nowhere the kernel patches its XDP dispatcher at every call, which takes some 20 ms.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from xdp_runtime import isa
from xdp_runtime.bpf_syscall import RunFlag, XdpFlag, attach_xdp_link, prog_test_run
from xdp_runtime.errors import PortError, XdpuError
from xdp_runtime.isa import Alu, AluOp, Imm, Insn, JmpOp, JumpIf, Load, Mov, Reg, Store
from xdp_runtime.kernel import load_raw

_GET_PRANDOM_U32, _REDIRECT = 7, 23
_SOURCE_PORT_OFFSET = 34  # Ethernet and IPv4 before it
_FRAMES_A_CALL = 1 << 16
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Sent:
    """What a source offered; what arrived is for the receiver to say."""

    frames: int
    seconds: float

    @property
    def mpps(self) -> float:
        return self.frames / self.seconds / 1e6


def redirect_program(ifindex: int, flows: int = 1) -> bytes:
    """XDP: put a random number below `flows` into the source port, redirect to `ifindex`."""
    if flows < 1 or flows & (flows - 1):
        raise ValueError(f"flows must be a power of two, not {flows}")
    vary: list[Insn] = [
        Load(6, 1, 0, 4), Load(7, 1, 4, 4), Mov(True, 2, Reg(6)),
        Alu(AluOp.ADD, True, 2, Imm(_SOURCE_PORT_OFFSET + 2)),
        JumpIf(JmpOp.GT, True, 2, Reg(7), 3), isa.Call(_GET_PRANDOM_U32),
        Alu(AluOp.AND, True, 0, Imm(flows - 1)), Store(6, _SOURCE_PORT_OFFSET, 2, Reg(0)),
    ]
    send: list[Insn] = [Mov(True, 1, Imm(ifindex)), Mov(True, 2, Imm(0)), isa.Call(_REDIRECT),
                        isa.Exit()]
    return isa.encode((vary if flows > 1 else []) + send)


def udp_frame(length_bytes: int = 64, dst_mac: str = "02:00:00:00:00:02",
              dst_port: int = 9) -> bytes:
    """Ethernet, IPv4, UDP without a checksum; the length leaves out the FCS."""
    if not 42 <= length_bytes <= 1514:
        raise ValueError(f"a UDP frame has 42 to 1514 bytes, not {length_bytes}")
    ip_bytes = length_bytes - 14
    ip = bytearray(struct.pack("!BBHHHBBH4s4s", 0x45, 0, ip_bytes, 0, 0x4000, 64, 17, 0,
                               socket.inet_aton("10.77.1.1"), socket.inet_aton("10.77.1.2")))
    total = sum(struct.unpack("!10H", ip))
    total = (total & 0xFFFF) + (total >> 16)
    struct.pack_into("!H", ip, 10, ~(total + (total >> 16)) & 0xFFFF)
    udp = struct.pack("!HHHH", 1024, dst_port, ip_bytes - 20, 0)
    mac = bytes.fromhex(dst_mac.replace(":", ""))
    return (mac + bytes.fromhex("0200000000010800") + ip + udp).ljust(length_bytes, b"\0")


@contextmanager
def spare_veth(label: str = "") -> Iterator[int]:
    """A veth pair that carries nothing -> the ifindex of one end."""
    name = f"xs{os.getpid()}{label}"
    _ip("link", "add", f"{name}a", "type", "veth", "peer", "name", f"{name}b")
    try:
        for end in "ab":
            _ip("link", "set", f"{name}{end}", "up")
        yield socket.if_nametoindex(f"{name}a")
    finally:
        _ip("link", "del", f"{name}a")


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)


def flood_here(ifname: str, seconds: float, frame: bytes | None = None, flows: int = 1,
               batch: int = 64) -> Sent:
    """Flood in this thread, on its CPU and in its namespace."""
    frame = udp_frame() if frame is None else frame
    try:
        ifindex = socket.if_nametoindex(ifname)
    except OSError as error:
        raise PortError(f"interface {ifname}", "there is none in this namespace") from error
    with ExitStack() as stack:
        fd = load_raw(redirect_program(ifindex, flows), name="traffic")
        stack.callback(os.close, fd)
        spare = stack.enter_context(spare_veth())
        stack.callback(os.close, attach_xdp_link(fd, spare, XdpFlag.DRV_MODE))
        frames, start = 0, time.monotonic()
        while time.monotonic() - start < seconds:
            prog_test_run(fd, frame, _FRAMES_A_CALL, flags=RunFlag.XDP_LIVE_FRAMES,
                          batch_size=batch)
            frames += _FRAMES_A_CALL
        return Sent(frames, time.monotonic() - start)


class Flood:
    """A flood in a process of its own, pinned to a CPU; `wait()` returns what was sent."""

    def __init__(self, ifname: str, ns: str = "", cpu: int = 0, seconds: float = 1.0,
                 length_bytes: int = 64, flows: int = 1, batch: int = 64,
                 dst_mac: str = "02:00:00:00:00:02") -> None:
        enter = ["ip", "netns", "exec", ns] if ns else []
        self._seconds = seconds
        self._process = subprocess.Popen(
            [*enter, sys.executable, "-m", "bench.traffic", "-i", ifname, "--cpu", str(cpu),
             "--seconds", str(seconds), "--length", str(length_bytes), "--flows", str(flows),
             "--batch", str(batch), "--dst-mac", dst_mac],
            cwd=_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def wait(self) -> Sent:
        try:
            out, err = self._process.communicate(timeout=self._seconds + 30)
        except subprocess.TimeoutExpired:
            self.stop()
            raise
        if self._process.returncode:
            raise RuntimeError(err.strip())
        said = json.loads(out)
        return Sent(said["frames"], said["seconds"])

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def flood(ifname: str, ns: str = "", cpu: int = 0, seconds: float = 1.0, length_bytes: int = 64,
          flows: int = 1, batch: int = 64, dst_mac: str = "02:00:00:00:00:02") -> Sent:
    """Flood `ifname` in namespace `ns` from CPU `cpu` and wait for the end."""
    return Flood(ifname, ns, cpu, seconds, length_bytes, flows, batch, dst_mac).wait()


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.traffic", description="flood a veth with frames")
    parser.add_argument("-i", "--interface", required=True, help="the sending end of a veth pair")
    parser.add_argument("--ns", default="", help="network namespace (default: this one)")
    parser.add_argument("--cpu", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--length", type=int, default=64, help="frame length in bytes")
    parser.add_argument("--flows", type=int, default=1, help="source ports, a power of two")
    parser.add_argument("--batch", type=int, default=64, help="frames between two flushes")
    parser.add_argument("--dst-mac", default="02:00:00:00:00:02")
    args = parser.parse_args()
    if args.ns:
        sent = flood(args.interface, args.ns, args.cpu, args.seconds, args.length, args.flows,
                     args.batch, args.dst_mac)
    else:
        os.sched_setaffinity(0, {args.cpu})
        sent = flood_here(args.interface, args.seconds, udp_frame(args.length, args.dst_mac),
                          args.flows, args.batch)
    print(json.dumps(asdict(sent) | {"mpps": round(sent.mpps, 3)}))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except XdpuError as error:
        sys.exit(f"bench.traffic: {error}")
