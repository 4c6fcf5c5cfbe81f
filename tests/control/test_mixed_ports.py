"""Ports of all kinds in one run: every verdict on each, and redirects between every pair of kinds.

Two ports of each kind stand in one namespace; packets say themselves what is to be done with them
(tests/dataplane/objects/verdicts.c), come in by the first and are looked for at the second.

    from, of each of KINDS      verdict, way                                     to
    afxdp afpacket tap          REDIRECT by each of WAYS                         each of KINDS
    dpdk pcap                   REDIRECT to all, to all but where it came from   all nine ports
                                REDIRECT into a ring (XSKMAP), to a worker       a reader, the stack
                                TX, DROP, PASS, ABORTED, a verdict that is none

Sockets of other programs, which only take in, are in tests/dataplane/test_xsk_port.py.
"""

from __future__ import annotations

import json
import re
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
from dataplane.ring import PacketRing
from dataplane.stats import Stats
from tests.control.run_xdpu import Run, command, environment, until, xdpu
from tests.dataplane.pcapng_blocks import blocks, options, packets
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
OBJECT = Path(__file__).parents[1] / "dataplane" / "objects" / "verdicts.o"


@dataclass(frozen=True)
class Way:
    """How a packet is redirected: `number` of verdicts.c; `marks`: a program of the entry writes
    down the interface it saw, "egress" or "ingress"."""

    number: int
    marks: str = ""


WAYS = {"bpf_redirect": Way(0), "devmap": Way(1, "egress"), "devmap_hash": Way(2),
        "cpumap": Way(5, "ingress")}
ALL, OTHERS, CPUS, SOCKETS = 3, 4, 5, 6
WORKER = 0  # the CPUMAP's entry of the only one


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


def frames(label: str, verdict: int, way: int = 0, target: int = 0, count: int = BURST,
           mark: int = 0, then: int = 0) -> list[bytes]:
    """Each is told apart by its case, and says in the words of verdicts.c what is to be done."""
    return [bytes(Ether(dst="ff:ff:ff:ff:ff:ff", src="02:00:00:00:00:01", type=TYPE)
                  / Raw(struct.pack("<IIIII", verdict, way, target, mark, then)
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
        seconds = [name(kind, 1) for kind in LIVE] + [f"{root}/out.pcapng"]
        entries = [f"{table}={number}:dev={port}{program}" for table, program in (
            ("ports", ",prog=stamp"), ("hashed", ""), ("every", ""))
            for number, port in enumerate(seconds)]
        entries += [f"every={8 + number}:dev={name(kind, 0)}" for number, kind in enumerate(LIVE)]
        entries += [f"cpus={WORKER}:qsize=192,prog=there", "cpus=1:qsize=192"]
        run = stack.enter_context(Run(
            near, str(OBJECT), *ports, "--iface", f"pcap:out={root}/out.pcapng",
            "--name", "one", "--promisc", "--trace-aborted", "1000", "-i", "0.1",
            "--ring", "sample=xsks[0]", *(word for one in entries for word in ("--set-map", one)),
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
        nowhere = [made.counters(port) for port in ("tap0", "tap1", f"{root}/out.pcapng")]
        count = sum(one[way] for one in nowhere for way in ("pass", "cpu_pass"))
        assert run.end() == 0, run.errors
        told = re.search(r" ([\d,]+) frames of tap0, .* with XDP_PASS were dropped", run.errors)
        assert int(told[1].replace(",", "")) >= count if told else not count  # and files that left


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


def order(rig: Rig, label: str, way: str, target: str, ingress: int) -> tuple[
        list[bytes], list[bytes]]:
    """Packets that are to come to the second port of `target`, as they are sent and as they
    arrive."""
    there, key, then = rig.ifindex[name(target, 1)], KINDS.index(target), 0
    if way == "bpf_redirect":
        key = there
    elif way == "cpumap":
        key, then = WORKER, there
    mark = {"": 0, "egress": there, "ingress": ingress}[WAYS[way].marks]
    sent, wanted = (frames(label, REDIRECT, WAYS[way].number, key, mark=one, then=then)
                    for one in (0, mark))
    return sent, wanted


def arrived(rig: Rig, kind: str, number: int, label: str, count: int = BURST) -> list[bytes]:
    """What came out of this port, once there are so many; more is seen as well."""
    if kind != "pcap":
        return caught(rig.far[name(kind, number)], label, count)
    path = rig.root / "out.pcapng"
    until(lambda: len(in_file(path, label)) >= count, "packets in the file")
    assert {comment for _, comment in in_file(path, label)} <= {"sent here"}
    return [data for data, _ in in_file(path, label)]


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("source", LIVE)
def test_redirect(rig: Rig, source: str, way: str, target: str) -> None:
    label = f"{source} {way} {target}"
    sent, wanted = order(rig, label, way, target, rig.ifindex[name(source, 0)])
    grown = send(rig, source, sent)
    assert arrived(rig, target, 1, label) == wanted
    assert grown["redirect"] == BURST and grown["redirect_no_port"] == grown["redirect_full"] == 0


@pytest.mark.parametrize("way", [ALL, OTHERS])
@pytest.mark.parametrize("source", LIVE)
def test_to_all(rig: Rig, source: str, way: int) -> None:
    """BPF_F_BROADCAST; with BPF_F_EXCLUDE_INGRESS not back to where it came from."""
    label = f"{source} to all {way}"
    given = frames(label, REDIRECT, way)
    grown = send(rig, source, given)
    for kind in KINDS:
        assert arrived(rig, kind, 1, label) == given, kind
    for kind in LIVE:
        back = BURST if kind != source or way == ALL else 0
        assert arrived(rig, kind, 0, label, back) == given[:back], kind
    assert grown["broadcast"] == BURST and grown["redirect_no_port"] == 0
    assert grown["broadcast_copies"] == BURST * (9 if way == ALL else 8)


@pytest.mark.parametrize(("target", "what"), [
    (1, "interface 1, lo,"), (424242, "interface 424242, which does not exist here,")])
def test_a_target_that_is_not_part_of_the_run(rig: Rig, target: int, what: str) -> None:
    """Counted, and said once; the run goes on."""
    grown = send(rig, "afxdp", frames(f"to {target}", REDIRECT, 0, target))
    assert grown["redirect"] == grown["redirect_no_port"] == BURST
    line = f"xdpu: packets redirected to {what} are lost: it is not part of this run"
    until(lambda: rig.run.latest() and line in rig.run.errors, line)
    assert send(rig, "afxdp", frames(f"and {target}", DROP))["drop"] == BURST
    assert rig.run.errors.count(line) == 1


def test_a_worker_that_does_not_run(rig: Rig) -> None:
    grown = send(rig, "tap", frames("to worker 1", REDIRECT, CPUS, 1))
    assert grown["redirect"] == grown["cpu_no_worker"] == BURST
    line = "CPUMAP to workers that do not run are lost: there is 0"
    until(lambda: rig.run.latest() and line in rig.run.errors, line)


@pytest.mark.parametrize("source", LIVE)
def test_into_a_ring(rig: Rig, source: str) -> None:
    """Read as arrays; this is how packets come to NumPy."""
    given = frames(f"{source} ring", REDIRECT, SOCKETS)
    with PacketRing.open(str(rig.root / "one" / "rings" / "sample")) as ring:
        grown = send(rig, source, given)
        got = [(batch.port, packet) for batch in ring.batches(0.3) for packet in batch.packets()]
    assert got == [(name(source, 0), one) for one in given]
    assert grown["ring_sent"] == BURST and grown["ring_full"] == 0


@pytest.mark.parametrize("source", LIVE)
def test_to_a_worker_and_into_the_stack(rig: Rig, source: str) -> None:
    given, marked = (frames(f"{source} over", REDIRECT, CPUS, WORKER, mark=mark)
                     for mark in (0, rig.ifindex[name(source, 0)]))
    before = rig.counters(name(source, 0))["cpu_pass"]
    grown = send(rig, source, given)
    assert grown["cpu_sent"] == BURST and grown["cpu_full"] == 0
    until(lambda: rig.counters(name(source, 0))["cpu_pass"] == before + BURST, "their passing")
    if name(source, 0) in rig.near:
        assert caught(rig.near[name(source, 0)], f"{source} over") == marked


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
    line = (f"program verdicts, {name(source, 0)}, queue 0, worker 0, {len(given[0])} bytes: "
            f"{reason}\n    0000  ff ff ff ff ff ff 02 00  00 00 00 01 88 b5")
    until(lambda: rig.run.latest() and line in rig.run.errors, line)


def test_a_file_as_source(rig: Rig, tmp_path: Path) -> None:
    """Added while the others run: all verdicts, and redirects to each kind."""
    source, out = tmp_path / "in.pcap", tmp_path / "verdicts.pcapng"
    ingress = FILE_IFINDEX + 9
    routes = {f"pcap {way} {target}": order(rig, f"pcap {way} {target}", way, target, ingress)
              for way in WAYS for target in KINDS}
    given = {label: sent for label, (sent, _) in routes.items()}
    given |= {f"pcap all {way}": frames(f"pcap all {way}", REDIRECT, way) for way in (ALL, OTHERS)}
    given |= {f"pcap {verdict}": frames(f"pcap {verdict}", verdict)
              for verdict in (ABORTED, DROP, PASS, TX, 99)}
    every = [one for some in given.values() for one in some]
    source.write_bytes(pcap_header() + b"".join(
        pcap_record(CapturedPacket(10**18 + n, one, len(one))) for n, one in enumerate(every)))
    done = xdpu("port", "add", "one", f"pcap:{source},out={out}", XDPU_RUNDIR=str(rig.root))
    assert done.returncode == 0 and "pcap file, mapped" in done.stdout, done.stderr
    names = json.loads((rig.root / "one" / "names.json").read_text())["interfaces"]
    assert names[str(source)] == ingress
    to_all = [one for way in (ALL, OTHERS) for one in given[f"pcap all {way}"]]
    for kind in KINDS:  # in one piece: whoever looks for a case passes over the others
        wanted = [one for way in WAYS for one in routes[f"pcap {way} {kind}"][1]] + to_all
        assert sorted(arrived(rig, kind, 1, "pcap", len(wanted))) == sorted(wanted), kind
        if kind != "pcap":
            assert arrived(rig, kind, 0, "pcap", len(to_all)) == to_all, kind
    until(lambda: rig.counters(str(source))["rx_packets"] == len(every), "the end of the file")
    done = xdpu("port", "remove", "one", str(source), XDPU_RUNDIR=str(rig.root))
    assert done.returncode == 0, done.stderr
    said = [(p.data[30:], p.comment) for p in read_packets(out)]  # behind what programs wrote
    assert [data for data, _ in said] == [one[30:] for one in every]
    words = {"bpf_redirect": "ifindex", "devmap": "ifindex", "devmap_hash": "ifindex",
             "cpumap": "worker", "all": "all of map", **{
                 str(verdict): f"XDP_{Verdict(verdict if verdict <= REDIRECT else ABORTED).name}"
                 for verdict in (ABORTED, DROP, PASS, TX, 99)}}
    verdicts = [words[label.split()[1]] for label in given for _ in range(BURST)]
    assert [(word, comment) for word, (_, comment) in zip(verdicts, said, strict=True)
            if word not in comment] == []


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


def test_capture_names_where_redirects_go(rig: Rig) -> None:
    """In lines, by name; what has none by its number."""
    process = subprocess.Popen(
        command("capture", "-i", "one", "-c", "5"), cwd="/", stderr=subprocess.PIPE,
        stdout=subprocess.PIPE, text=True, env=environment(XDPU_RUNDIR=str(rig.root)))
    try:
        assert process.stderr is not None and "capturing" in process.stderr.readline()
        for way, target in ((0, rig.ifindex[name("afpacket", 1)]), (0, 424242), (ALL, 0),
                            (CPUS, WORKER), (SOCKETS, 0)):
            send(rig, "afxdp", frames("named", REDIRECT, way, target, count=1))
        said, _ = process.communicate(timeout=20)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()
    verdicts = [line.partition(" xdp0:0 ")[2].partition("  ")[0] for line in said.splitlines()]
    assert verdicts == [f"XDP_REDIRECT {where}" for where in (
        "pkt1", "ifindex 424242", "all of map 2", "worker 0", "ring sample")]


def test_words_for_targets(rig: Rig) -> None:
    """All of them are named for maps of redirects."""
    names = json.loads((rig.root / "one" / "names.json").read_text())["interfaces"]
    for kind in LIVE:
        for number in (0, 1):
            assert names[name(kind, number)] == rig.ifindex[name(kind, number)]
    assert names[f"{rig.root}/out.pcapng"] == rig.ifindex["file1"]
