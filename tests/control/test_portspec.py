"""Ports by name: which kinds there are and how they are told apart; runs on files alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from control.portspec import PortSpec, devices, parse_all
from dataplane.pcapfile import read_packets
from tests.control.run_xdpu import xdpu
from tests.control.test_mixed_ports import frames
from tests.control.test_trace_aborted import capture
from tests.dataplane.test_chains import OBJECT
from xdp_runtime.errors import ConfigError
from xdp_runtime.state import Verdict


@pytest.mark.parametrize(("texts", "specs"), [
    (["eth0,eth1"], [PortSpec("afxdp", "eth0"), PortSpec("afxdp", "eth1")]),
    (["eth0, afpacket:eth1,eth2", "eth3"],
     [PortSpec("afxdp", "eth0"), PortSpec("afpacket", "eth1"), PortSpec("afpacket", "eth2"),
      PortSpec("afxdp", "eth3")]),
    (["tap:t0,afxdp:eth0"], [PortSpec("tap", "t0"), PortSpec("afxdp", "eth0")]),
    (["dpdk:net_memif0,role=client,id=1", "eth0"],
     [PortSpec("dpdk", "net_memif0", "net_memif0,role=client,id=1"), PortSpec("afxdp", "eth0")]),
    (["pcap:/a/in.pcap"], [PortSpec("pcap", "/a/in.pcap", source="/a/in.pcap")]),
    (["pcap:in,out=x=y"], [PortSpec("pcap", "in", source="in", out="x=y")]),
    (["pcap:out=o", "pcap:i"], [PortSpec("pcap", "o", out="o"), PortSpec("pcap", "i", source="i")]),
])
def test_ports(texts: list[str], specs: list[PortSpec]) -> None:
    assert list(parse_all(texts, "afxdp").items()) == [(spec.name, spec) for spec in specs]


def test_devices_by_port() -> None:
    assert list(devices("dpdk:net_null0;net_ring1,a=b").values()) == [
        PortSpec("dpdk", "net_null0", "net_null0"),
        PortSpec("dpdk", "net_ring1", "net_ring1,a=b")]
    with pytest.raises(ConfigError, match="names net_null0 twice"):
        devices("dpdk:net_null0;net_null0")


@pytest.mark.parametrize("text", ["pcap:", "pcap:out=", "pcap:a,b", "pcap:a,out=b,out=c", "tap:",
                                  ":eth0", "eth0,"])
def test_no_ports(text: str) -> None:
    with pytest.raises(ConfigError, match="^--iface"):
        parse_all([text], "afxdp")


def test_files_alone_end_the_run(tmp_path: Path) -> None:
    """Redirects from either to the other; the interface indices count the ports."""
    ports, given = [], {}
    for number in (0, 1):
        given[number] = frames(f"from {number}", Verdict.REDIRECT, (1 << 21) + 1 - number)
        source = capture(tmp_path / f"in{number}.pcap", given[number])
        ports += ["--iface", f"pcap:{source},out={tmp_path}/out{number}.pcapng"]
    done = xdpu("run", str(OBJECT), "-n", "linear", *ports, "-j", XDPU_RUNDIR=str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    total = json.loads(done.stdout.splitlines()[-1])["total"]
    assert (total["redirect"], total["redirect_no_port"]) == (10, 0)
    for number in (0, 1):
        out = list(read_packets(tmp_path / f"out{number}.pcapng"))
        assert [p.data for p in out if p.comment == "sent here"] == given[1 - number]
        assert [p.data for p in out if p.comment != "sent here"] == given[number]


def test_a_damaged_file_fails_at_the_end(tmp_path: Path) -> None:
    path = Path(capture(tmp_path / "in.pcap", frames("cut", Verdict.DROP)))
    path.write_bytes(path.read_bytes()[:-5])
    done = xdpu("run", str(OBJECT), "-n", "linear", "--iface", f"pcap:{path}", "-j",
                XDPU_RUNDIR=str(tmp_path / "run"))
    assert done.returncode == 3 and "truncated in packet 5" in done.stderr
    record = [json.loads(line) for line in done.stdout.splitlines()]
    assert next(r for r in record if r.get("type") == "summary")["total"]["drop"] == 4
