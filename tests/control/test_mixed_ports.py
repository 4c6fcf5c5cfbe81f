"""Ports of all kinds in one run: every verdict on each, and redirects between every pair of kinds.

Two ports of each kind stand in one namespace; packets say themselves what is to be done with them
(tests/dataplane/objects/chains.c), come in by the first and are looked for at the second.
"""

from __future__ import annotations

import json
import select
import socket
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from control.ports import FILE_IFINDEX
from dataplane.pcapfile import CapturedPacket, pcap_header, pcap_record, read_packets
from dataplane.stats import Stats
from tests.control.run_xdpu import Run, command, environment, until, xdpu
from tests.dataplane.pcapng_blocks import blocks, options, packets
from tests.dataplane.test_chains import OBJECT
from tests.nets import VethPair, entered, in_ns, namespace
from xdp_runtime.state import Verdict

pytestmark = [pytest.mark.netns, pytest.mark.root, pytest.mark.dpdk, pytest.mark.timeout(180),
              pytest.mark.skipif(find_spec("dpdk._native") is None,
                                 reason="dpdk._native is not built (needs libdpdk-dev)")]
ABORTED, DROP, PASS, TX, REDIRECT = Verdict
KINDS = ("afxdp", "afpacket", "tap", "dpdk", "pcap")
LIVE = KINDS[:-1]
TYPE = 0x88B5
BURST = 5  # packets of each case


@dataclass
class Rig:
    """The run, and a socket at the far end of each port but the files."""

    run: Run
    root: Path
    ns: str
    far: dict[str, socket.socket] = field(default_factory=dict)
    near: dict[str, socket.socket] = field(default_factory=dict)  # where XDP_PASS comes out
    ifindex: dict[str, int] = field(default_factory=dict)

    def counters(self, port: str) -> dict[str, int]:
        """A port has new ones whenever ports come or go; the old ones stay."""
        stats = Stats.open(self.root / "one" / "stats")
        total: Counter[str] = Counter()
        for number, flow in enumerate(stats.flows):
            if flow.port == port:
                total.update(stats.flow(number))
        return total


def name(kind: str, number: int) -> str:
    return {"afxdp": f"xdp{number}", "afpacket": f"pkt{number}", "tap": f"tap{number}",
            "dpdk": f"net_af_packet{number}", "pcap": f"file{number}"}[kind]


def frames(label: str, verdict: int, target: int = 0, count: int = BURST) -> list[bytes]:
    """Each is told apart by its case, and says in the words of chains.c what is to be done."""
    return [bytes(Ether(dst="ff:ff:ff:ff:ff:ff", src="02:00:00:00:00:01", type=TYPE)
                  / Raw(struct.pack("<IIIii", verdict, target, 0, 0, 0)
                        + f"{label} {number}".encode().ljust(40 + 10 * number, b".")))
            for number in range(count)]


def listen(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(TYPE))
    sock.bind((interface, TYPE))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    return sock


def caught(sock: socket.socket, label: str, count: int = BURST) -> list[bytes]:
    """So many packets of a case, and what more is there at once; others are passed over."""
    got: list[bytes] = []
    while select.select([sock], [], [], 10 if len(got) < count else 0)[0]:
        packet = sock.recv(4096)
        if Ether(packet)[Raw].load[20:].startswith(label.encode() + b" "):
            got.append(packet)
    return got


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    root = tmp_path_factory.mktemp("runs")
    with ExitStack() as stack:
        near, far = (stack.enter_context(namespace(side)) for side in ("near", "far"))
        devices = [f"{word}{n}" for word in ("xdp", "pkt", "dpk") for n in (0, 1)]
        for number, device in enumerate(devices):
            stack.enter_context(VethPair(far, near, subnet=50 + number, names=(device, device)))
        for ns in (near, far):
            in_ns(ns, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1",
                  "net.ipv6.conf.default.disable_ipv6=1")
        for device in ("xdp0", "xdp1"):  # lets the far end be sent to
            in_ns(far, "ethtool", "-K", device, "gro", "on")
        ports = [text for n in (0, 1) for text in (
            "--iface", f"afxdp:xdp{n},afpacket:pkt{n},tap:tap{n}",
            "--iface", f"dpdk:net_af_packet{n},iface=dpk{n}")]
        run = stack.enter_context(Run(
            near, str(OBJECT), "-n", "linear", *ports, "--iface", f"pcap:out={root}/out.pcapng",
            "--name", "one", "--promisc", "--trace-aborted", "1000", "-i", "0.1",
            XDPU_RUNDIR=str(root)))
        started = run.wait_for("start")
        made = Rig(run, root, near)
        for number in (0, 1):
            for kind, device, ns in (("afxdp", "xdp", far), ("afpacket", "pkt", far),
                                     ("dpdk", "dpk", far), ("tap", "tap", near)):
                with entered(ns):
                    made.far[name(kind, number)] = stack.enter_context(listen(f"{device}{number}"))
                with entered(near):
                    made.ifindex[name(kind, number)] = socket.if_nametoindex(f"{device}{number}")
        made.ifindex[name("pcap", 1)] = FILE_IFINDEX + 8
        with entered(near):
            for device, where in {"xdp0": "xdp0", **started["taps"]}.items():
                made.near[device] = stack.enter_context(listen(where))
        yield made
        assert run.end() == 0, run.errors
        assert "dropped" in run.errors and "redirect_no_port" not in run.errors


def send(rig: Rig, kind: str, given: list[bytes]) -> dict[str, int]:
    """Into the first port of a kind; its counters, as far as they have grown then."""
    port = name(kind, 0)
    before = rig.counters(port)
    for one in given:
        rig.far[port].send(one)
    until(lambda: rig.counters(port)["rx_packets"] >= before["rx_packets"] + len(given),
          f"packets of {port}")
    after = until(lambda: settled(rig, port, before["rx_packets"] + len(given)), "their verdicts")
    return {key: after[key] - before[key] for key in after}


def settled(rig: Rig, port: str, received: int) -> dict[str, int]:
    """Counters of a moment between two batches."""
    now = rig.counters(port)
    done = sum(now[key] for key in ("aborted", "drop", "pass", "tx", "redirect"))
    return now if done == now["rx_packets"] == received else {}


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", LIVE)
def test_redirect(rig: Rig, source: str, target: str) -> None:
    label = f"{source} to {target}"
    given = frames(label, REDIRECT, rig.ifindex[name(target, 1)])
    grown = send(rig, source, given)
    assert grown["redirect"] == BURST and grown["redirect_no_port"] == grown["redirect_full"] == 0
    if target == "pcap":
        path = rig.root / "out.pcapng"
        until(lambda: len(in_file(path, label)) >= BURST, "packets in the file")
        assert in_file(path, label) == [(one, "sent here") for one in given]
    else:
        assert caught(rig.far[name(target, 1)], label) == given


def in_file(path: Path, label: str) -> list[tuple[bytes, str]]:
    return [(one.data, one.comment) for one in read_packets(path)
            if one.data[34:].startswith(label.encode() + b" ")]


@pytest.mark.parametrize("source", LIVE)
def test_tx(rig: Rig, source: str) -> None:
    given = frames(f"{source} back", TX)
    grown = send(rig, source, given)
    assert grown["tx"] == BURST and grown["tx_full"] == 0
    assert caught(rig.far[name(source, 0)], f"{source} back") == given


@pytest.mark.parametrize("source", LIVE)
def test_drop(rig: Rig, source: str) -> None:
    assert send(rig, source, frames(f"{source} down", DROP))["drop"] == BURST


@pytest.mark.parametrize("source", LIVE)
def test_pass(rig: Rig, source: str) -> None:
    """Into the stack where the port has one; a TAP's peer is the stack, and with this device of
    DPDK it has a copy of its own."""
    given = frames(f"{source} in", PASS)
    grown = send(rig, source, given)
    assert grown["pass"] == BURST and grown["pass_full"] == 0
    if name(source, 0) in rig.near:
        assert caught(rig.near[name(source, 0)], f"{source} in") == given


@pytest.mark.parametrize("verdict", [ABORTED, 99])
@pytest.mark.parametrize("source", LIVE)
def test_aborted_is_told(rig: Rig, source: str, verdict: int) -> None:
    """With program, port, reason, and the packet itself."""
    given = frames(f"{source} {verdict:02}", verdict, count=1)
    grown = send(rig, source, given)
    assert grown["aborted"] == 1
    assert grown["invalid_verdict"] == (verdict == 99)
    assert grown["aborted_program"] == (verdict == ABORTED)
    reason = "a verdict that does not exist (99)" if verdict == 99 else \
        "the program returned XDP_ABORTED"
    line = (f"program linear, {name(source, 0)}, queue 0, worker 0, {len(given[0])} bytes: "
            f"{reason}\n    0000  ff ff ff ff ff ff 02 00  00 00 00 01 88 b5")
    until(lambda: rig.run.latest() and line in rig.run.errors, line)


def test_a_file_as_source(rig: Rig, tmp_path: Path) -> None:
    """Added while the others run: all verdicts, and redirects to each kind."""
    source, out = tmp_path / "in.pcap", tmp_path / "verdicts.pcapng"
    cases: dict[str, tuple[int, int]] = {
        f"pcap to {target}": (REDIRECT, rig.ifindex[name(target, 1)]) for target in KINDS}
    cases |= {f"pcap {verdict}": (verdict, 0) for verdict in (ABORTED, DROP, PASS, TX, 99)}
    given = {label: frames(label, *case) for label, case in cases.items()}
    every = [one for some in given.values() for one in some]
    source.write_bytes(pcap_header() + b"".join(
        pcap_record(CapturedPacket(10**18 + n, one, len(one))) for n, one in enumerate(every)))
    done = xdpu("port", "add", "one", f"pcap:{source},out={out}", XDPU_RUNDIR=str(rig.root))
    assert done.returncode == 0 and "pcap file, mapped" in done.stdout, done.stderr
    for target in LIVE:
        label = f"pcap to {target}"
        assert caught(rig.far[name(target, 1)], label) == given[label]
    path = rig.root / "out.pcapng"
    until(lambda: len(in_file(path, "pcap to pcap")) >= BURST, "packets in the other file")
    until(lambda: rig.counters(str(source))["rx_packets"] == len(every), "the end of the file")
    done = xdpu("port", "remove", "one", str(source), XDPU_RUNDIR=str(rig.root))
    assert done.returncode == 0, done.stderr
    words = [f"XDP_REDIRECT ifindex {target}" if verdict == REDIRECT else
             f"XDP_{Verdict(verdict if verdict <= REDIRECT else ABORTED).name}"
             for verdict, target in cases.values() for _ in range(BURST)]
    assert [(p.data, p.comment) for p in read_packets(out)] == list(zip(every, words, strict=True))


def test_capture_sees_all_kinds(rig: Rig, tmp_path: Path) -> None:
    path = tmp_path / "all.pcapng"
    process = subprocess.Popen(
        command("capture", "-i", "one", "-w", str(path), "-c", str(BURST * len(LIVE))), cwd="/",
        stderr=subprocess.PIPE, env=environment(XDPU_RUNDIR=str(rig.root)))
    try:
        assert process.stderr is not None and b"capturing" in process.stderr.readline()
        for source in LIVE:
            send(rig, source, frames(f"{source} seen", DROP))
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
    names = [options(body[8:])[2].decode() for kind, body in blocks(path.read_bytes()) if kind == 1]
    got = packets(path.read_bytes())
    for source in LIVE:
        assert [p.data for p in got if names[p.interface] == name(source, 0)] == \
            frames(f"{source} seen", DROP)


def test_words_for_targets(rig: Rig) -> None:
    """All of them are named for maps of redirects."""
    names = json.loads((rig.root / "one" / "names.json").read_text())["interfaces"]
    for kind in LIVE:
        for number in (0, 1):
            assert names[name(kind, number)] == rig.ifindex[name(kind, number)]
    assert names[f"{rig.root}/out.pcapng"] == rig.ifindex["file1"]
