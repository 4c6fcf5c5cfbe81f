"""xdpu run --pcap: the examples over captures, what is said, and what a damaged file comes to."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from control import cli
from dataplane.pcapfile import read_packets
from tests.control.run_xdpu import EXAMPLES, OBJECTS, command, environment, xdpu

DST, SRC = "02:00:00:00:00:02", "02:00:00:00:00:01"


def frames() -> list[Any]:
    s: Any = import_module("scapy.all")
    eth = s.Ether(dst=DST, src=SRC)
    ip4, ip6 = s.IP(src="10.0.0.1", dst="10.0.0.2"), s.IPv6(src="fd00::1", dst="fd00::2")
    return [eth / ip4 / s.ICMP(id=7, seq=1) / b"ping", eth / ip4 / s.TCP(dport=80, flags="S"),
            eth / ip4 / s.TCP(dport=23, flags="S"), eth / ip4 / s.UDP(dport=8081) / b"x",
            eth / ip6 / s.UDP(dport=53) / b"y", s.Ether(dst=DST, src=SRC) / s.ARP(pdst="10.0.0.2")]


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    from scapy.utils import wrpcap

    path = tmp_path / "in.pcap"
    wrpcap(str(path), frames())
    return path


VERDICTS = [
    ("pass", ["PASS"] * 6), ("drop", ["DROP"] * 6), ("tx", ["TX"] * 6),
    ("icmp_echo", ["TX", "PASS", "PASS", "PASS", "PASS", "PASS"]),
    ("firewall", ["PASS", "PASS", "DROP", "DROP", "PASS", "PASS"]),
    ("counter", ["PASS"] * 6), ("flow_table", ["PASS"] * 6),
    ("demo", ["TX", "PASS", "DROP", "DROP", "PASS", "PASS"]),
]


@pytest.mark.parametrize(("example", "verdicts"), VERDICTS, ids=lambda v: v if v is str else None)
def test_verdicts_are_recorded_as_comments(capture: Path, example: str,
                                           verdicts: Sequence[str]) -> None:
    out = capture.with_name("out.pcapng")
    code = cli.main(["run", f"{EXAMPLES}/{example}.o", "--pcap", str(capture), "--out", str(out)])
    assert code == 0
    written = list(read_packets(out))
    assert [p.comment for p in written] == [f"XDP_{verdict}" for verdict in verdicts]
    if example == "pass":
        assert [p.data for p in written] == [bytes(f) for f in frames()]
    if example == "tx":
        assert all(p.data[:12] == bytes.fromhex(SRC.replace(":", "") + DST.replace(":", ""))
                   for p in written)


def test_summary(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", f"{EXAMPLES}/firewall.o", "--pcap", str(capture)]) == 0
    said = capsys.readouterr()
    rows = dict(line.rsplit(":", 1) for line in said.out.splitlines())
    counts = {label.strip(): value.strip() for label, value in rows.items()}
    assert {label: counts[label] for label in (
        "Packets received", "Packets passed", "Packets dropped", "Packets transmitted",
        "Packets redirected", "Packets aborted", "Packets lost")} == {
        "Packets received": "6", "Packets passed": "4", "Packets dropped": "2",
        "Packets transmitted": "0", "Packets redirected": "0", "Packets aborted": "0",
        "Packets lost": "0"}
    assert "Duration" in counts and "Average packets/s" in counts and said.err == ""


def test_summary_as_json(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", f"{EXAMPLES}/icmp_echo.o", "--pcap", str(capture), "-j"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    record = json.loads(line)
    assert (record["type"], record["program"]) == ("summary", "icmp_echo")
    total = record["total"]
    assert (total["rx_packets"], total["tx"], total["pass"]) == (6, 1, 5)
    assert total["rx_bytes"] == sum(len(f) for f in frames())


def test_a_redirect_to_nowhere_is_counted_and_named(
        capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", f"{EXAMPLES}/redirect.o", "--pcap", str(capture), "--set-map", "peer=0:7"]
    assert cli.main(argv) == 0
    said, remarks = capsys.readouterr()
    assert "redirect to an interface that is not part of this run" in said
    assert "xdpu: packets redirected to interface 7" in remarks and "are lost" in remarks
    rows = [line for line in said.splitlines() if line.startswith("Packets lost")]
    assert rows[0].rsplit(":", 1)[1].strip() == "6"


def test_an_unproven_program_is_refused(capture: Path,
                                        capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", f"{OBJECTS}/fault.o", "--pcap", str(capture)]) == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "xdpu: xdp_fault: instruction 1 (fault.c:10: return data[1000] ? XDP_DROP : XDP_PASS;): "
        "1 byte at offset 1000 of the packet is not proven to exist (proven: 0 bytes) "
        "(check `data + 1001 <= data_end` before this access)\n")


def test_trace(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", f"{OBJECTS}/printk.o", "--pcap", str(capture)]
    assert cli.main(argv) == 0 and capsys.readouterr().err == ""
    assert cli.main([*argv, "--trace"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said == [f"trace 0: a packet of {len(f)} bytes" for f in frames()]


def test_output_to_a_pipe(capture: Path) -> None:
    argv = command("run", f"{EXAMPLES}/drop.o", "--pcap", str(capture), "--out", "-")
    done = subprocess.run(argv, capture_output=True, check=True, env=environment(), cwd="/")
    assert done.stdout[:4] == b"\x0a\x0d\x0d\x0a" and done.stdout.count(b"XDP_DROP") == 6
    assert b"Packets dropped" in done.stderr


def test_nobody_needs_no_privilege(capture: Path) -> None:
    if os.geteuid():
        pytest.skip("is nobody already")
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    with tempfile.TemporaryDirectory() as name:  # pytest closes its own to others at any time
        folder = Path(name)
        folder.chmod(0o777)
        source, out = folder / "in.pcap", folder / "out.pcapng"
        source.write_bytes(capture.read_bytes())
        done = xdpu("run", f"{EXAMPLES}/pass.o", "--pcap", str(source), "--out", str(out),
                    prefix=nobody, XDPU_CACHE=str(folder / "cache"), HOME="/nonexistent")
        assert (done.returncode, done.stderr) == (0, "")
        assert out.stat().st_uid == 65534 and len(list(read_packets(out))) == 6


# ---- bad input -----------------------------------------------------------------------------------

def test_truncated_capture(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was good is processed and written, then it fails."""
    whole = capture.read_bytes()
    capture.write_bytes(whole[:-10])
    out = capture.with_name("out.pcapng")
    argv = ["run", f"{EXAMPLES}/drop.o", "--pcap", str(capture), "--out", str(out), "-j"]
    assert cli.main(argv) == 3
    said = capsys.readouterr()
    summary, error = map(json.loads, said.out.splitlines())
    assert summary["total"]["drop"] == 5 and len(list(read_packets(out))) == 5
    assert error["error"]["kind"] == "port"
    assert said.err.startswith(f"xdpu: {capture}: ") and said.err.count("\n") == 1
    assert "packet 6" in said.err and "packets 1 to 5 were processed" in said.err


@pytest.mark.parametrize(("content", "why"), [
    (b"", "neither pcap nor pcapng"), (b"hello, this is text", "neither pcap nor pcapng"),
    (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 101), "not Ethernet")])
def test_no_capture(content: bytes, why: str, tmp_path: Path,
                    capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "in.pcap"
    path.write_bytes(content)
    out = tmp_path / "out.pcapng"
    argv = ["run", f"{EXAMPLES}/drop.o", "--pcap", str(path), "--out", str(out)]
    assert cli.main(argv) == 3
    said = capsys.readouterr()
    assert said.err.startswith(f"xdpu: {path}: ") and said.err.count("\n") == 1
    assert (why in said.err or "empty" in said.err) and not out.exists()


def test_no_such_capture(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", f"{EXAMPLES}/drop.o", "--pcap", "/nowhere/in.pcap"]) == 3
    assert capsys.readouterr().err == "xdpu: /nowhere/in.pcap: No such file or directory\n"


def test_output_that_cannot_be_written(capture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", f"{EXAMPLES}/drop.o", "--pcap", str(capture), "--out"]
    assert cli.main([*argv, "/nowhere/out.pcapng"]) == 3
    assert capsys.readouterr().err == (
        "xdpu: /nowhere/out.pcapng: cannot be written: No such file or directory\n")
    assert cli.main([*argv, str(capture)]) == 3
    assert "it is the input too (write to another file)" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_early_with_a_summary(number: int, tmp_path: Path) -> None:
    """The reader of our output stands still, so the run cannot end by itself."""
    from scapy.utils import wrpcap

    path = tmp_path / "in.pcap"
    wrpcap(str(path), frames() * 2000)
    process = subprocess.Popen(command("run", f"{EXAMPLES}/pass.o", "--pcap", str(path), "--out",
                                       "-", "-j"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               env=environment(), cwd="/")
    assert process.stdout is not None and process.stdout.read(4096)  # more than the header: at work
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0
    record = json.loads(errors.decode().splitlines()[0])
    assert record["type"] == "summary" and 0 < record["total"]["rx_packets"] <= 12000
