"""xdpu aot --standalone: the executable's output is byte for byte that of `xdpu run`."""

from __future__ import annotations

import json
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from control import cli
from dataplane.pcapfile import CapturedPacket, packet_block, pcap_header, pcap_record, pcapng_header
from tests.control.run_xdpu import EXAMPLES, until
from tests.nets import VethPair, in_ns, popen_in_ns
from tests.packets import packets_for
from tests.xdp_runtime.edge.frames import frames
from xdp_runtime.elf import read_object
from xdp_runtime.program import load

EXIT_USAGE, EXIT_PORT = 2, 3
EDGE = Path(__file__).parents[1] / "xdp_runtime" / "edge"


def standalone(name: str, folder: Path) -> Path:
    out = folder / f"{name}.exe"
    assert cli.main(["aot", f"{EXAMPLES}/{name}.o", "--standalone", "-o", str(out)]) == 0
    return out


def captured(name: str, count: int = 300) -> list[CapturedPacket]:
    return [CapturedPacket(1_700_000_000_123_456_789 + 1000 * n, frame, len(frame) + n % 3, "")
            for n, frame in enumerate(packets_for(name, count))]


def write(path: Path, packets: list[CapturedPacket], kind: str) -> Path:
    if kind == "pcapng":
        path.write_bytes(pcapng_header("eth7") + b"".join(map(packet_block, packets)))
    else:
        nano = kind == "pcap-ns"
        path.write_bytes(pcap_header(nano) + b"".join(pcap_record(p, nano) for p in packets))
    return path


@pytest.mark.parametrize("kind", ["pcap", "pcap-ns", "pcapng"])
@pytest.mark.parametrize("name", ["demo", "icmp_echo", "meta"])
def test_output_is_that_of_a_run(name: str, kind: str, tmp_path: Path) -> None:
    program = standalone(name, tmp_path)
    capture = write(tmp_path / "in.cap", captured(name), kind)
    mine, theirs = tmp_path / "mine.pcapng", tmp_path / "theirs.pcapng"
    assert cli.main(["run", f"{EXAMPLES}/{name}.o", "--pcap", str(capture), "--out",
                     str(mine)]) == 0
    done = subprocess.run([program, "--pcap", capture, "--out", theirs], capture_output=True,
                          text=True, check=True)
    assert theirs.read_bytes() == mine.read_bytes()
    said = json.loads(done.stdout)
    assert said["rx"] == 300
    assert sum(said[v] for v in ("aborted", "drop", "pass", "tx", "redirect")) == 300


@pytest.mark.parametrize(("name", "program"), [
    ("quic", "quic"), ("edges", "adjust"), ("variables", "variables"), ("callbacks", "states")])
def test_what_an_edge_runs_needs_nothing_around_it(name: str, program: str,
                                                   tmp_path: Path) -> None:
    """Variables, callbacks, an LRU, edges that move: without Python, without an environment."""
    source, out = EDGE / f"{name}.o", tmp_path / f"{name}.exe"
    assert cli.main(["aot", str(source), "-n", program, "--standalone", "-o", str(out)]) == 0
    capture = write(tmp_path / "in.pcap", [
        CapturedPacket(1_700_000_000_000_000_000 + n, frame, len(frame), "")
        for n, frame in enumerate(frames(300))], "pcap-ns")
    mine, theirs = tmp_path / "mine.pcapng", tmp_path / "theirs.pcapng"
    assert cli.main(["run", str(source), "-n", program, "--pcap", str(capture), "--out",
                     str(mine)]) == 0
    subprocess.run([out, "--pcap", capture, "--out", theirs], capture_output=True, check=True,
                   env={})
    assert theirs.read_bytes() == mine.read_bytes()
    with open(out, "rb") as file:
        dynamic: Any = ELFFile(file).get_section_by_name(".dynamic")
        needed = [tag.needed for tag in dynamic.iter_tags() if tag.entry.d_tag == "DT_NEEDED"]
    assert {one.split(".so")[0] for one in needed} <= {"libc", "libm", "ld-linux-x86-64"}


def test_maps_are_set_and_mistakes_told(tmp_path: Path) -> None:
    program = standalone("firewall", tmp_path)
    capture = write(tmp_path / "in.pcap", captured("firewall"), "pcap")

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *argv], capture_output=True, text=True, check=False)

    plain = json.loads(run("--pcap", str(capture)).stdout)
    port = struct.pack("=H", 2323).hex()
    blocked = json.loads(run("--set-map", f"blocked_ports={port}:{bytes(8).hex()}", "--pcap",
                             str(capture)).stdout)
    assert blocked["drop"] > plain["drop"]
    for argv, code, text in (
            (["--pcap", str(capture), "--set-map", "none=00:00"], EXIT_USAGE, "no such map"),
            (["--pcap", str(capture), "--set-map", "blocked_ports=0:00"], EXIT_USAGE, "hex digits"),
            (["--pcap", "/nowhere"], EXIT_PORT, "No such file"),
            (["--pcap", str(program)], EXIT_PORT, "not a capture file"),
            ([], EXIT_USAGE, "usage"),
            (["--iface", "nonesuch0"], EXIT_PORT, "nonesuch0")):
        done = run(*argv)
        assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    cut = tmp_path / "cut.pcap"
    cut.write_bytes(capture.read_bytes()[:-3])
    done = run("--pcap", str(cut))
    assert done.returncode == EXIT_PORT and "cut short" in done.stderr


@pytest.mark.netns
def test_on_an_interface_it_answers_and_passes(tmp_path: Path) -> None:
    program = standalone("icmp_echo", tmp_path)
    with VethPair(subnet=77) as pair:
        target = pair.b.ip4
        in_ns(pair.b.ns, "ip", "addr", "flush", "dev", pair.b.ifname)
        in_ns(pair.a.ns, "ip", "neigh", "replace", target, "lladdr", pair.b.mac, "dev",
              pair.a.ifname)
        process = popen_in_ns(pair.b.ns, str(program), "--iface", pair.b.ifname, "--tap", "xstack",
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            until(lambda: "xstack" in in_ns(pair.b.ns, "ip", "-o", "link").stdout, "the TAP")
            until(lambda: in_ns(pair.a.ns, "ping", "-c1", "-W1", target, check=False
                                ).returncode == 0, "an answer")
            in_ns(pair.b.ns, "ip", "link", "set", "xstack", "address", pair.b.mac)
            in_ns(pair.b.ns, "ip", "addr", "add", f"{target}/24", "dev", "xstack")
            in_ns(pair.a.ns, "ip", "neigh", "del", target, "dev", pair.a.ifname)
            in_ns(pair.a.ns, "ping", "-c2", "-W2", target)  # ARP by the host, through the TAP
        finally:
            process.send_signal(signal.SIGTERM)
            out, errors = process.communicate(timeout=10)
        assert process.returncode == 0, errors
        said = json.loads(out)
        assert said["tx"] >= 3 and said["pass"] >= 1 and said["aborted"] == 0
        assert "prog/xdp" not in in_ns(pair.b.ns, "ip", "link", "show", pair.b.ifname).stdout
        assert "xstack" not in in_ns(pair.b.ns, "ip", "-o", "link").stdout


@pytest.mark.netns
def test_an_interface_that_goes_ends_it(tmp_path: Path) -> None:
    """With its counters; and queues without a worker are told of at the start."""
    program = standalone("drop", tmp_path)
    with VethPair(subnet=78, queues=2) as pair:
        argv = [str(program), "--iface", pair.b.ifname]
        done = in_ns(pair.b.ns, *argv, "--tap", "a-name-of-16-let", check=False)
        assert (done.returncode, "too long for the name" in done.stderr) == (EXIT_USAGE, True)
        process = popen_in_ns(pair.b.ns, *argv)
        assert process.stderr is not None
        started, others = process.stderr.readline(), process.stderr.readline()
        assert "running on" in started and "has 2 queues, and packets of those behind" in others
        in_ns(pair.b.ns, "ip", "link", "del", pair.b.ifname)
        out, errors = process.communicate(timeout=30)
        assert (process.returncode, "the interface is gone" in errors) == (EXIT_PORT, True)
        assert json.loads(out)["tx"] == 0


RINGS = Path(__file__).parents[1] / "xdp_runtime" / "aot" / "rings.o"


def with_rings(folder: Path) -> Path:
    out = folder / "rings.exe"
    assert cli.main(["aot", str(RINGS), "--standalone", "-o", str(out)]) == 0
    return out


def test_records_of_a_capture_are_those_of_a_run(tmp_path: Path) -> None:
    program = with_rings(tmp_path)
    given = captured("demo", 700)  # more than the ring has room for, if nobody reads meanwhile
    capture = write(tmp_path / "in.pcap", given, "pcap-ns")
    expected: dict[str, list[str]] = {"events": [], "samples": []}
    with load(read_object(RINGS)) as loaded:
        for packet in given:
            loaded.run(packet.data)
            for name, records in expected.items():
                records += [record.hex() for record in loaded.raw_maps[name].consume()]
    done = subprocess.run(
        [program, "--records", "events=-", "--records", f"samples={tmp_path}/samples", "--pcap",
         capture], capture_output=True, text=True, check=True)
    *lines, counters = done.stdout.splitlines()
    assert lines == expected["events"] and len(lines) > 100
    assert (tmp_path / "samples").read_text().split() == expected["samples"]
    assert json.loads(counters)["rings"] == {
        name: {"records": len(records), "lost": 0} for name, records in expected.items()}
    for argv, text in ((["sums=-"], "no ring buffer"), (["none=-"], "no such map"),
                       (["events"], "NAME=FILE"),
                       (["events=-", "--out", "-"], "standard output")):
        refused = subprocess.run([program, "--records", *argv, "--pcap", capture],
                                 capture_output=True, text=True, check=False)
        assert (refused.returncode, text in refused.stderr) == (EXIT_USAGE, True), refused.stderr


@pytest.mark.netns
def test_records_of_an_interface_come_while_it_runs(tmp_path: Path) -> None:
    program, records = with_rings(tmp_path), tmp_path / "records"
    frame = bytes.fromhex("ffffffffffff") + b"record" + b"\x88\xb4" + bytes(50)
    with VethPair(subnet=78) as pair:
        process = popen_in_ns(pair.b.ns, str(program), "--iface", pair.b.ifname, "--mode", "skb",
                              "--records", f"events={records}", stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE)

        def arrived() -> bool:
            """Another frame, until one of ours is in the file."""
            in_ns(pair.a.ns, sys.executable, "-c", (
                "import socket, sys\n"
                "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)\n"
                "s.bind((sys.argv[1], 0)); s.send(bytes.fromhex(sys.argv[2]))"),
                pair.a.ifname, frame.hex())
            return records.exists() and frame[:12].hex() in records.read_text()

        try:
            until(arrived, "a record")
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGTERM)
            out, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        ring = json.loads(out)["rings"]["events"]
        assert ring == {"records": len(records.read_text().splitlines()), "lost": 0}
