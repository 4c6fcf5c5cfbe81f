"""The DPDK port on virtual devices.  Each test has a process of its own: the EAL starts once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from dpdk.port import OWN_IFINDEX
from tests.nets import VethPair, entered, popen_in_ns

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
pytestmark = [
    pytest.mark.dpdk,
    pytest.mark.skipif(find_spec("dpdk._native") is None,
                       reason="dpdk._native is not built (needs libdpdk-dev)"),
]
_SOAK = """
import json, sys, time
from pathlib import Path
from dataplane.engine import Engine
from dpdk.port import DpdkPort
from xdp_runtime.elf import read_object
devargs, example, wanted = sys.argv[1], sys.argv[2], int(sys.argv[3])
port = DpdkPort.open(devargs)
other = DpdkPort.open("net_null7")
full = port.mbufs()[0]
engine = Engine(read_object(Path(example)), [port, other], busy_poll=True)
port_ifindex = port.ifindex
engine.start()
deadline = time.monotonic() + 120
while engine.stats.total()["rx_packets"] < wanted and time.monotonic() < deadline:
    time.sleep(0.01)
engine.stop()
total, said, free = engine.stats.total(), port.statistics(), [p.mbufs()[0] for p in (port, other)]
port.close(); other.close(); engine.close()
print(json.dumps({"total": total, "port": said, "free": free, "left": port.left + other.left}))
"""


_REDIRECT = """
import json, struct, sys, time
from pathlib import Path
from dataplane.engine import Engine
from dpdk.port import DpdkPort
from xdp_runtime.elf import read_object
first, second, third = (DpdkPort.open(f"net_null{n}") for n in range(3))
engine = Engine(read_object(Path(sys.argv[1])), [first, second, third], program="one",
                busy_poll=True)
for key in range(8):
    engine.program.raw_maps["ports"].update(struct.pack("<I", key),
                                        struct.pack("<II", second.ifindex, 0))
engine.pause(second.name)
engine.pause(third.name)
engine.start()
deadline = time.monotonic() + 60
while engine.stats.total()["redirect"] < 100_000 and time.monotonic() < deadline:
    time.sleep(0.01)
engine.remove_port(first.name)
first.close()  # before the one that sends its mbufs
engine.stop()
total, sent, (free, size) = engine.stats.total(), second.statistics(), second.mbufs()[0]
third.close(); second.close(); engine.close()
print(json.dumps({"total": total, "sent": sent["opackets"], "free": free, "size": size,
                  "left": [port.left for port in (first, second, third)]}))
"""


def test_redirected_mbufs_change_hands() -> None:
    """The target sends them as they are: none of its own is ever taken.  All are in their pools
    again when the last device closes."""
    done = subprocess.run([sys.executable, "-c", _REDIRECT,
                           str(ROOT / "tests" / "dataplane" / "objects" / "redirects.o")], cwd=ROOT,
                          capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["total"]["redirect"] == said["sent"] >= 100_000
    assert said["free"] == said["size"] and said["left"] == [[0], [0], [0]]


def soak(devargs: str, example: str, packets: int) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", _SOAK, devargs, str(EXAMPLES / f"{example}.o"),
                           str(packets)], cwd=ROOT, capture_output=True, text=True, timeout=200,
                          check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(("example", "verdict"), [
    ("drop", "drop"), ("tx", "tx"), ("pass", "pass")])
def test_no_mbuf_is_lost(example: str, verdict: str) -> None:
    """Millions of packets of a verdict; the pools count as many as before."""
    found = soak("net_null0", example, int(os.environ.get("XDPU_DPDK_PACKETS", "4_000_000")))
    total, free = found["total"], found["free"]
    assert isinstance(total, dict) and isinstance(free, list)
    assert total[verdict] == total["rx_packets"] >= 4_000_000
    assert [a for a, _ in free] == [b for _, b in free]
    assert found["left"] == [0, 0]


def test_an_abandoned_device_is_told_by_its_reason() -> None:
    from dpdk.port import device_name
    from xdp_runtime.errors import ConfigError

    assert device_name("net_memif0,role=client") == "net_memif0"
    assert device_name("0000:01:00.0") == "0000:01:00.0"
    with pytest.raises(ConfigError, match="names no device"):
        device_name("nonsense")


def run(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "control", "run", *words], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def total_of(process: subprocess.Popen[str]) -> dict[str, int]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    total: dict[str, int] = json.loads(out.strip().splitlines()[-1])["total"]
    return total


def wait_for_start(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert '"start"' in line, (line, process.stderr.read() if process.stderr else "")


def test_a_signal_leaves_nothing() -> None:
    process = run(str(EXAMPLES / "drop.o"), "--port", "dpdk:net_null0", "-j", "--no-stack")
    wait_for_start(process)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert total_of(process)["rx_packets"] > 0
    assert not Path(f"/var/run/dpdk/xdpu-{process.pid}").exists()


@pytest.mark.parametrize(("device", "why"), [
    ("net_pcap0,iface=nix0", "nix0"), ("net_pcap0,rx_pcap=/none.pcap", "Couldn't open /none.pcap"),
    ("net_memif0,role=clown", "Unknown role: clown"), ("net_nope0", "failed to parse device"),
    ("0000:01:00.7", "Cannot find device")])
def test_what_the_driver_refuses_is_one_sentence(device: str, why: str) -> None:
    process = run(str(EXAMPLES / "drop.o"), "--port", f"dpdk:{device}", "--no-stack")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert err.count("\n") == 1 and err.startswith(f"xdpu: dpdk:{device.split(',')[0]}: DPDK says")
    assert why in err


@pytest.mark.parametrize(("options", "code", "why"), [
    ("-l 99", 3, "lcore 99 unavailable"), ("--bogus", 3, "unrecognized option '--bogus'"),
    ("-m 9999999 --no-huge", 5, "Cannot allocate")])
def test_what_the_eal_refuses_is_one_sentence(options: str, code: int, why: str) -> None:
    process = run(str(EXAMPLES / "drop.o"), "--port", "dpdk:net_null0", "--dpdk-args", options)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code and err.count("\n") == 1
    assert f"DPDK says: {why}" in err and options in err


@pytest.mark.parametrize("dies", ["client", "server"])
def test_memif_between_two_processes(tmp_path: Path, dies: str) -> None:
    """What the client receives from a TX'ing peer; the death of one end is survived by ours."""
    where = f"socket={tmp_path}/memif.sock,socket-abstract=no"
    server = run(str(EXAMPLES / "drop.o"), "--port", f"dpdk:net_memif0,role=server,{where}",
                 "-j", "--no-stack")
    wait_for_start(server)
    client = run(str(EXAMPLES / "redirect.o"), "--port",
                 f"dpdk:net_null8;net_memif9,role=client,{where}", "-j", "--no-stack",
                 "--set-map", f"peer={OWN_IFINDEX}:{OWN_IFINDEX + 1}")
    wait_for_start(client)
    time.sleep(1)
    victim, survivor = (client, server) if dies == "client" else (server, client)
    victim.kill()
    victim.communicate()
    time.sleep(1)
    if dies == "client" and survivor.poll() is not None:
        pytest.xfail("DPDK 22.11's memif server crashes when its client is killed")
    assert survivor.poll() is None
    survivor.send_signal(signal.SIGINT)
    total = total_of(survivor)
    assert total["rx_packets"] > 100_000


@pytest.mark.netns
@pytest.mark.root
@pytest.mark.parametrize("driver", ["net_af_packet0", "net_af_xdp0"])
def test_on_a_veth(driver: str) -> None:
    """Frames sent into a veth come back with their addresses swapped."""
    import socket

    with VethPair() as pair:
        process = popen_in_ns(pair.a.ns, sys.executable, "-m", "control", "run",
                              str(EXAMPLES / "tx.o"), "--port",
                              f"dpdk:{driver},iface={pair.a.ifname}", "-j", "--no-stack",
                              cwd=ROOT, stderr=subprocess.PIPE)
        wait_for_start(process)
        with entered(pair.b.ns):
            end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
            end.setsockopt(263, 23, 1)  # PACKET_IGNORE_OUTGOING
            end.bind((pair.b.ifname, 0x88B5))
        with end:
            end.settimeout(3)
            destination, source = bytes.fromhex(pair.a.mac.replace(":", "")), b"\x02\0\0\0\0\x01"
            for number in range(100):
                body = b"\x88\xb5" + bytes([number]) * 50
                end.send(destination + source + body)
                assert end.recv(2048) == source + destination + body
        process.send_signal(signal.SIGTERM)
        assert total_of(process)["tx"] >= 100
