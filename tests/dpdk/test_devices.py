"""Virtual devices that need something around them, several queues, and what is told of a run."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dataplane import pcapfile
from dpdk.port import OWN_IFINDEX
from tests.dpdk.rig import MARKS, ROOT
from tests.nets import entered, namespace, popen_in_ns

EXAMPLES = ROOT / "examples"
pytestmark = MARKS
_RUN = [sys.executable, "-m", "control", "run"]
_RING = """
import json, sys, time
from pathlib import Path
from dataplane.engine import Engine
from dpdk.port import DpdkPort
from tests.dataplane.drive import Driver, frames
from xdp_runtime.elf import read_object
port = DpdkPort.open("net_ring0")
driver, given = Driver(port), frames(100)
for frame in given:
    driver.send(frame)
driver.flush()
engine = Engine(read_object(Path(sys.argv[1])), [port], busy_poll=True)
engine.start()
while engine.stats.total()["tx"] < 100_000:
    time.sleep(0.01)
engine.stop()
total = engine.stats.total()
found = [slot.data for slot in driver.receive(256)]
swapped = [frame[6:12] + frame[:6] + frame[12:] for frame in given]
port.close(); engine.close()
print(json.dumps({"total": total, "found": len(found),
                  "whole": sorted(f.hex() for f in found),
                  "either": sorted({f.hex() for f in given + swapped}), "left": port.left}))
"""


def start(*words: str, ns: str = "") -> subprocess.Popen[str]:
    """A run that has begun."""
    command = [*_RUN, *words, "-j", "--no-stack"]
    options: dict[str, Any] = {"cwd": ROOT, "stderr": subprocess.PIPE}
    if ns:
        process = popen_in_ns(ns, *command, **options)
    else:
        process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, **options)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert '"start"' in line, (line, process.stderr.read() if process.stderr else "")
    return process


def end(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What it says at its end."""
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    said: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return said


def wait_for(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def status_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    listed = json.loads(subprocess.run([*_RUN[:-1], "status", "-j"], cwd=ROOT, text=True,
                                       capture_output=True, check=True).stdout)
    name = next(row["name"] for row in listed if row["pid"] == process.pid)
    said: dict[str, Any] = json.loads(subprocess.run(
        [*_RUN[:-1], "status", name, "-j"], cwd=ROOT, text=True, capture_output=True,
        check=True).stdout)
    return said


@pytest.mark.netns
@pytest.mark.root
def test_net_tap_sends_back_what_the_host_sends() -> None:
    with namespace("dpdk") as ns:
        process = start(str(EXAMPLES / "tx.o"), "--port", "dpdk:net_tap0,iface=dtap0", ns=ns)
        with entered(ns):
            end_ = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
            end_.setsockopt(263, 23, 1)  # PACKET_IGNORE_OUTGOING
            end_.bind(("dtap0", 0x88B5))
        with end_:
            end_.settimeout(10)
            here, there = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"
            for number in range(50):
                body = b"\x88\xb5" + bytes([number]) * 50
                end_.send(there + here + body)
                assert end_.recv(2048) == here + there + body
        assert end(process)["total"]["tx"] >= 50


@pytest.mark.root
def test_virtio_user_into_vhost(tmp_path: Path) -> None:
    path = tmp_path / "vhost.sock"
    vhost = start(str(EXAMPLES / "drop.o"), "--port", f"dpdk:net_vhost0,iface={path}")
    virtio = start(str(EXAMPLES / "redirect.o"), "--port",
                   f"dpdk:net_null8;net_virtio_user9,path={path}",
                   "--set-map", f"peer={OWN_IFINDEX}:{OWN_IFINDEX + 1}")
    wait_for(lambda: status_of(vhost)["ports"]["net_vhost0"]["ipackets"] > 100_000)
    assert status_of(vhost)["ports"]["net_vhost0"]["link_up"] == 1
    assert end(virtio)["total"]["redirect"] > 100_000
    total = end(vhost)["total"]
    assert total["drop"] == total["rx_packets"] > 100_000


def test_net_ring_gives_back_each_packet() -> None:
    done = subprocess.run([sys.executable, "-c", _RING, str(EXAMPLES / "tx.o")], cwd=ROOT,
                          capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["found"] == 100
    assert set(said["whole"]) <= set(said["either"]) and len(set(said["whole"])) == 100
    assert said["total"]["tx"] == said["total"]["rx_packets"]


def test_a_worker_for_each_queue_and_what_status_tells() -> None:
    process = start(str(EXAMPLES / "drop.o"), "--port", "dpdk:net_null0", "--queue", "0-1")
    wait_for(lambda: all(flow["rx_packets"] for flow in status_of(process)["flows"]))
    said = status_of(process)
    assert [(flow["worker"], flow["queue"]) for flow in said["flows"]] == [(0, 0), (1, 1)]
    told = said["ports"]["net_null0"]
    assert told["link_up"] == 1 and told["link_mbps"] == 10_000
    assert told["rx_q0_packets"] and told["rx_q1_packets"]
    total = end(process)["total"]
    assert total["drop"] == total["rx_packets"]


def test_a_capture_sees_packets_before_and_after(tmp_path: Path) -> None:
    here, there, rest = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02", b"\x88\xb5" + bytes(range(60))
    given = pcapfile.CapturedPacket(0, there + here + rest, 74)
    (tmp_path / "in").write_bytes(pcapfile.pcap_header() + pcapfile.pcap_record(given))
    device = f"net_pcap0,rx_pcap={tmp_path}/in,infinite_rx=1"
    process = start(str(EXAMPLES / "tx.o"), "--port", f"dpdk:{device}", "--name", "seen")
    for point, wanted in (("entry", there + here), ("exit", here + there)):
        subprocess.run([*_RUN[:-1], "capture", "-i", "seen", "--at", point, "-c", "50", "-w",
                        str(tmp_path / point)], cwd=ROOT, check=True, capture_output=True,
                       timeout=60)
        seen = [packet.data for packet in pcapfile.read_packets(tmp_path / point)]
        assert len(seen) >= 50 and set(seen) == {wanted + rest}
    total = end(process)["total"]
    assert total["tx"] == total["rx_packets"]


def test_what_a_killed_run_left_goes_with_the_next() -> None:
    shared = ("--dpdk-args", "--no-huge -m 256")  # these leave files, unlike ours
    words = (str(EXAMPLES / "drop.o"), "--port", "dpdk:net_null0")
    killed = start(*words, *shared)
    folder = Path(f"/var/run/dpdk/xdpu-{killed.pid}")
    assert any(folder.iterdir())
    killed.kill()
    killed.communicate()
    assert folder.exists()
    end(start(*words))
    assert not folder.exists()
