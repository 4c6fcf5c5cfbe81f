"""Entries of maps that redirect, in words: --set-map, xdpu map update, --ring."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from control import targets
from control.targets import Names
from dataplane.pcapfile import read_packets
from tests.control.run_xdpu import Run, xdpu
from tests.control.test_trace_aborted import OBJECT, capture, frame
from xdp_runtime.errors import ConfigError
from xdp_runtime.object import MapSpec, MapType

NAMES = Names({"stamp": 3, "there": 4}, {"sample": 2}, {"eth7": 77})


def spec(kind: MapType, value_size: int = 8) -> MapSpec:
    return MapSpec("m", kind, 4, value_size, 8)


@pytest.mark.parametrize(("kind", "text", "value"), [
    (MapType.DEVMAP, "dev=eth7", (77, 0)), (MapType.DEVMAP, "dev=lo,prog=stamp", (1, 3)),
    (MapType.DEVMAP_HASH, "ifindex=0x10,prog=stamp", (16, 3)),
    (MapType.CPUMAP, "qsize=192,prog=there", (192, 4)), (MapType.CPUMAP, "qsize=8", (8, 0)),
])
def test_words(kind: MapType, text: str, value: tuple[int, int]) -> None:
    encoded = targets.encode(spec(kind), targets.parse(text, spec(kind)), NAMES)
    assert encoded == value[0].to_bytes(4, "little") + value[1].to_bytes(4, "little")


def test_a_ring() -> None:
    one = spec(MapType.XSKMAP, 4)
    assert targets.encode(one, targets.parse("xsk=sample", one), NAMES) == b"\2\0\0\0"


@pytest.mark.parametrize(("kind", "size", "text", "said"), [
    (MapType.DEVMAP, 8, "dev=none0", "no interface 'none0'"),
    (MapType.DEVMAP, 8, "dev=lo,ifindex=1", "exclude each other"),
    (MapType.DEVMAP, 4, "dev=lo,prog=stamp", "no room for a program"),
    (MapType.DEVMAP, 8, "dev=lo,prog=other", "no program of section xdp/devmap 'other'"),
    (MapType.DEVMAP, 8, "dev=lo,qsize=1", "is no entry of DEVMAP"),
    (MapType.CPUMAP, 8, "qsize=no", "is not a number"), (MapType.CPUMAP, 8, "prog=there",
                                                         "no target"),
    (MapType.XSKMAP, 4, "xsk=none", "no ring or socket 'none'"),
    (MapType.XSKMAP, 4, "xsk=sample,prog=there", "no room for a program"),
])
def test_refusals(kind: MapType, size: int, text: str, said: str) -> None:
    one = spec(kind, size)
    with pytest.raises(ConfigError, match=said):
        targets.encode(one, targets.parse(text, one), NAMES)


@pytest.mark.parametrize("text", ["a=b", "a=b[", "a=b[x]", "=b[1]", "a b", "a=[1]", "../x=m[0]"])
def test_no_ring(text: str) -> None:
    with pytest.raises(ConfigError, match="is no ring"):
        targets.ring(text)


def test_set_map_in_words(tmp_path: Path) -> None:
    out = tmp_path / "out.pcapng"
    path = capture(tmp_path / "in.pcap", [frame(1), frame(2)])
    done = xdpu("run", OBJECT, "-n", "one", "--pcap", path, "--out", str(out), "-j",
                "--set-map", "ports=1:ifindex=7,prog=stamp", "--set-map", "ports=2:ifindex=7")
    assert done.returncode == 0, done.stderr
    assert [p.comment for p in read_packets(out)] == ["XDP_REDIRECT ifindex 7"] * 2
    assert [p.data for p in read_packets(out)] == [bytes([ord("s"), 7, 0, 68]) + frame(1), frame(2)]
    assert json.loads(done.stdout.splitlines()[-1])["total"]["redirect_no_port"] == 2


READER = """
import sys
from dataplane.ring import PacketRing
with PacketRing.open(sys.argv[1]) as ring:
    print("open", flush=True)
    for batch in ring.batches():
        for packet in batch.packets():
            print(packet.hex(), flush=True)
"""


def test_rings_by_option(tmp_path: Path) -> None:
    frames = [frame(n) for n in range(5)]
    path = capture(tmp_path / "in.pcap", frames)
    done = xdpu("run", OBJECT, "-n", "to_ring", "--pcap", path, "-j", "--ring", "sample=xsks[0]")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["total"]["ring_sent"] == 5
    done = xdpu("run", OBJECT, "-n", "to_ring", "--pcap", path, "-j", "--ring", "sample=xsks[9]")
    assert done.returncode == 2 and "key 09000000 is refused" in done.stderr


@pytest.mark.netns
@pytest.mark.root
def test_a_running_run(tmp_path: Path) -> None:
    """xdpu map update in words while packets flow, and a reader in another process."""
    from tests.control.run_xdpu import environment
    from tests.nets import VethPair

    with VethPair() as pair, Run(pair.b.ns, OBJECT, "-n", "to_ring", "--iface", pair.b.ifname,
                                 "--port", "afpacket", "--no-stack", "--ring", "sample",
                                 "--name", "ringtest") as run:
        run.wait_for("start")
        update = ("map", "update", "name", "xsks", "run", "ringtest", "key", "0", "0", "0", "0",
                  "value", "xsk")
        done = xdpu(*update, "other")
        assert done.returncode == 2 and "no ring or socket 'other'" in done.stderr
        done = xdpu(*update, "sample")
        assert done.returncode == 0, done.stderr
        reader = subprocess.Popen([sys.executable, "-c", READER, "ringtest/sample"], text=True,
                                  stdout=subprocess.PIPE, env=environment(), cwd="/")
        assert reader.stdout is not None and reader.stdout.readline() == "open\n"
        assert not pair.ping()
        assert len(bytes.fromhex(reader.stdout.readline())) >= 42  # an ARP request, or IPv6's
        assert run.end() == 0
        assert reader.wait(10) == 0  # the run has ended, and so do the batches
