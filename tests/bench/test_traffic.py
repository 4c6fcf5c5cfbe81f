"""The packet source and the hand-written AF_XDP loop that it feeds."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from bench.traffic import Flood, flood, redirect_program, udp_frame
from tests.nets import VethPair, entered, popen_in_ns
from tests.privileges import needs_bpf
from xdp_runtime.bpf_syscall import XdpFlag, attach_xdp_link
from xdp_runtime.elf import read_object
from xdp_runtime.kernel import load_into_kernel

pytestmark = [*needs_bpf(), pytest.mark.netns]

ROOT = Path(__file__).resolve().parents[2]
LAST_CPU = max(os.sched_getaffinity(0))


@pytest.mark.parametrize("length", [42, 60, 64, 1514])
def test_frame(length: int) -> None:
    raw = udp_frame(length, dst_mac="02:00:00:00:00:07", dst_port=53)
    frame = Ether(raw)
    assert len(raw) == length
    assert (frame.dst, frame[IP].len, frame[UDP].dport) == ("02:00:00:00:00:07", length - 14, 53)
    right = frame[IP].chksum
    del frame[IP].chksum
    assert Ether(bytes(frame))[IP].chksum == right


def test_impossible_requests() -> None:
    with pytest.raises(ValueError, match="42 to 1514"):
        udp_frame(41)
    with pytest.raises(ValueError, match="power of two"):
        redirect_program(1, flows=3)
    with pytest.raises(RuntimeError, match="no-such-if"):
        flood("no-such-if", seconds=0.1)


@pytest.mark.parametrize("flows", [1, 16])
def test_frames_arrive(flows: int) -> None:
    """Nothing but what was sent, in as many flows; a busy machine may overrun the veth's ring."""
    obj = read_object(ROOT / "examples" / "flow_table.o")
    with VethPair() as pair, load_into_kernel(obj) as program:
        with entered(pair.b.ns):
            link = attach_xdp_link(program.fd, pair.b.ifindex, XdpFlag.DRV_MODE)
        sent = flood(pair.a.ifname, pair.a.ns, LAST_CPU, seconds=0.2, flows=flows)
        os.close(link)
        counted = dict(program.maps["flows"].items())
        assert len(counted) == flows
        arrived = sum(struct.unpack("=QQII", value)[0] for value in counted.values())
        assert 0 < arrived <= sent.frames


@pytest.mark.skipif(not shutil.which("gcc"), reason="the loop is C: needs gcc")
@pytest.mark.skipif(not Path("/usr/include/xdp/xsk.h").exists(), reason="needs libxdp's headers")
@pytest.mark.skipif(LAST_CPU == 0, reason="source and loop need a CPU each")
@pytest.mark.parametrize("wait", ["spin", "poll"])
@pytest.mark.parametrize("action", ["drop", "tx"])
def test_xsk_loop(action: str, wait: str) -> None:
    native = ROOT / "bench" / "native"
    subprocess.run(["make", "-s", "-C", str(native)], check=True)
    with VethPair() as pair:
        loop = popen_in_ns(pair.b.ns, "taskset", "-c", str(LAST_CPU - 1),
                           str(native / "xsk_loop"), "-i", pair.b.ifname, "-a", action, "-p", wait,
                           "-d", "1")
        assert loop.stderr is not None
        assert loop.stderr.readline().strip() == "ready"
        source = Flood(pair.a.ifname, pair.a.ns, LAST_CPU, seconds=0.3)
        sent = source.wait()
        out, _ = loop.communicate(timeout=10)
        said = json.loads(out)
        neighbours_say_hello = 20
        assert 0 < said["rx"] <= sent.frames + neighbours_say_hello
        assert said["tx"] == (said["rx"] if action == "tx" else 0)
