"""xdpu capture: files and pipes that are whole however it ends, and exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.control.run_xdpu import EXAMPLES, Run, command, environment, until, xdpu
from tests.dataplane.pcapng_blocks import blocks, options, packets
from tests.nets import VethPair, entered

pytestmark = [pytest.mark.netns, pytest.mark.root]
HEAD = bytes.fromhex("020000000002020000000001")
OTHER = HEAD + bytes.fromhex("88b5") + bytes(range(86))
UDP = HEAD + bytes.fromhex("0800450000300000400040110000" "0a4d01010a4d0102" "1111003500000000"
                           ) + bytes(58)


@pytest.fixture(scope="module")
def net() -> Iterator[VethPair]:
    """One that sends two kinds of frames until the tests are over."""
    with VethPair(subnet=37) as pair:
        ending = threading.Event()
        with entered(pair.a.ns):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            sock.bind((pair.a.ifname, 0))

        def send() -> None:
            while not ending.wait(0.002):
                sock.send(OTHER)
                sock.send(UDP)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            yield pair
        finally:
            ending.set()
            sender.join()
            sock.close()


@contextmanager
def started(net: VethPair, root: Path) -> Iterator[Run]:
    with Run(net.b.ns, str(EXAMPLES / "drop.o"), "--iface", net.b.ifname, "--port", "afpacket",
             "--no-stack", "--promisc", "--name", "one", XDPU_RUNDIR=str(root)) as run:
        run.wait_for("start")
        yield run


@pytest.fixture(scope="module")
def rundir(net: VethPair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a run that goes on."""
    root = tmp_path_factory.mktemp("runs")
    with started(net, root) as run:
        yield str(root)
        assert run.end() == 0
        assert list(root.iterdir()) == [root / ".lock"]


def capture(rundir: str, *argv: str, prefix: Sequence[str] = (), **options: Any,
            ) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*prefix, *command("capture", "-i", "one", *argv)],
                            env=environment(XDPU_RUNDIR=rundir), cwd="/",
                            stderr=subprocess.PIPE, **options)


def ended(process: subprocess.Popen[bytes], *lines: str) -> int:
    """Its exit code; what it said, line by line."""
    _, said = process.communicate(timeout=60)
    got = said.decode().splitlines()
    assert len(got) == len(lines), got
    for line, words in zip(got, lines, strict=True):
        assert words in line, got
    return process.returncode


def catches(pid: int, number: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> number - 1 & 1)


def grown(path: Path, size: int = 2000) -> None:
    until(lambda: path.exists() and path.stat().st_size > size, "packets in the file")


def test_to_a_file_until_a_signal(net: VethPair, rundir: str, tmp_path: Path) -> None:
    path = tmp_path / "out.pcapng"
    process = capture(rundir, "-w", str(path), "--at", "entry,exit")
    grown(path)
    process.send_signal(signal.SIGINT)
    assert ended(process, "capturing packets of one at entry and exit", "0 lost") == 0
    content = path.read_bytes()
    got = packets(content)
    assert {p.data for p in got} == {OTHER, UDP}
    assert {(p.interface, p.comment, p.verdict) for p in got} == {
        (0, "", None), (1, "XDP_DROP", 1)}
    kinds = [kind for kind, _ in blocks(content)]
    assert kinds[:3] == [0x0A0D0D0A, 1, 1] and kinds[-2:] == [5, 5]
    described = [options(body[8:]) for kind, body in blocks(content) if kind == 1]
    assert [(d[2], d[3]) for d in described] == [
        (net.b.ifname.encode(), point + b" of the XDP program") for point in (b"entry", b"exit")]
    for kind, body in blocks(content):
        if kind == 5:
            counts = {code: int.from_bytes(value, "little")
                      for code, value in options(body[12:]).items()}
            assert counts[8] == counts[6] == counts[4] == len(got) // 2 and counts[7] == 0


def test_others_read_it(rundir: str, tmp_path: Path) -> None:
    """scapy, and tcpdump from a pipe."""
    from scapy.utils import RawPcapNgReader  # type: ignore[attr-defined]

    path = tmp_path / "out.pcapng"
    assert ended(capture(rundir, "-w", str(path), "-c", "20", "udp", "port", "53"),
                 "capturing", "20 packets captured, 0 lost") == 0
    read: list[tuple[bytes, Any]] = list(RawPcapNgReader(str(path)))
    assert [data for data, _ in read] == [UDP] * 20
    assert {tuple(meta.comments) for _, meta in read} == {(b"XDP_DROP",)}
    assert abs(time.time() - ((read[0][1].tshigh << 32) + read[0][1].tslow) / 1e9) < 600
    process = capture(rundir, "-w", "-", "-c", "3", "udp", stdout=subprocess.PIPE)
    dump = subprocess.run(["tcpdump", "-nr", "-"], stdin=process.stdout, capture_output=True,
                          text=True, check=False)
    assert dump.stdout.count("10.77.1.1.4369 > 10.77.1.2.53") == 3, dump.stderr
    assert process.wait(30) == 0


def test_options(rundir: str, tmp_path: Path) -> None:
    path = tmp_path / "out.pcapng"
    done = xdpu("capture", "-i", "one", "-w", str(path), "-s", "20", "-d", "0.3", "--sample", "5",
                "-j", XDPU_RUNDIR=rundir)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    got = packets(path.read_bytes())
    assert told["captured"] == len(got) > 0 and told["lost"] == 0
    assert told["seen"] / 5 - 1 <= len(got) <= told["seen"] / 5 + 1
    assert {len(p.data) for p in got} == {20}
    assert [p.original for p in got].count(100) > len(got) // 2, "the rest is neighbours' talk"


def test_a_line_a_packet(net: VethPair, rundir: str) -> None:
    """Without -w: time, port and queue, verdict, length, what it is; the sum on standard error."""
    process = capture(rundir, "-c", "4", "-x", "--at", "entry,exit", "udp", stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines = process.stdout.read().decode().splitlines()
    process.stdout.close()
    process.stdout = None
    assert ended(process, "capturing packets of one at entry and exit",
                 "4 packets captured, 0 lost") == 0
    heads = [line for line in lines if not line.startswith("    ")]
    assert len(heads) == 4 and len(lines) == 4 * (1 + 7)  # 100 bytes are seven rows
    pattern = (rf"\d\d:\d\d:\d\d\.\d{{6}} {net.b.ifname}:0 (entry {{8}}|XDP_DROP {{5}})  "
               r"100 bytes  IP 10\.77\.1\.1\.4369 > 10\.77\.1\.2\.53: UDP, length 20")
    points = [found[1].strip() for line in heads if (found := re.fullmatch(pattern, line))]
    assert Counter(points) <= Counter(entry=4, XDP_DROP=4) and len(points) == 4, heads
    assert lines[1].startswith("    0000  02 00 00 00 00 02 02 00  00 00 00 01 08 00 45 00")


def test_lines_until_a_signal(rundir: str) -> None:
    """All that were captured are printed, and no more than the sum says."""
    process = capture(rundir, "udp", stdout=subprocess.PIPE)
    assert process.stdout is not None and b"UDP" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    lines = process.stdout.read().decode().splitlines()
    process.stdout.close()
    process.stdout = None
    assert ended(process, "capturing", f"{len(lines) + 1:,} packets captured, 0 lost") == 0


def test_an_object_a_packet(net: VethPair, rundir: str) -> None:
    done = xdpu("capture", "-i", net.b.ifname, "-j", "-x", "-c", "2", "-s", "20", "udp",
                XDPU_RUNDIR=rundir)
    assert done.returncode == 0, done.stderr
    one, _, summary = map(json.loads, done.stdout.splitlines())
    assert abs(one.pop("ts") - time.time()) < 600
    assert one == {"type": "packet", "port": net.b.ifname, "queue": 0, "point": "exit",
                   "verdict": "XDP_DROP", "length": 100, "lost_before": 0,
                   "packet": "IP [|ip]", "data": UDP[:20].hex()}
    assert summary["type"] == "summary" and summary["captured"] == 2


def test_lines_that_nobody_reads(rundir: str, tmp_path: Path) -> None:
    """`xdpu capture | head` ends it; a full disk ends behind a whole line."""
    process = capture(rundir, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    assert ended(process, "capturing", "nobody reads standard output any more") == 141
    shell = (f"mount -t tmpfs -o size=16k none {tmp_path} && \"$@\" >{tmp_path}/out; code=$?; "
             f"cat {tmp_path}/out; exit $code")
    process = capture(rundir, prefix=["unshare", "-m", "sh", "-c", shell, "sh"],
                      stdout=subprocess.PIPE)
    assert process.stdout is not None
    text = process.stdout.read().decode()
    process.stdout.close()
    process.stdout = None
    assert ended(process, "capturing", "No space left on device (it ends behind the last whole "
                 "packet") == 3
    assert len(text) > 8000 and text.endswith("\n")
    assert {len(line.split()) > 5 for line in text.splitlines()} == {True}


def test_nobody_reads_the_pipe_any_more(rundir: str) -> None:
    process = capture(rundir, "-w", "-", stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.read(1000)
    process.stdout.close()
    process.stdout = None
    assert ended(process, "capturing", "nobody reads standard output any more") == 141


def test_a_pipe_that_is_not_read(rundir: str) -> None:
    """Ctrl-C ends it all the same; the run did not wait."""
    process = capture(rundir, "-w", "-", stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.read(10)
    time.sleep(1.0)  # 64 KiB, at a thousand packets a second
    process.send_signal(signal.SIGINT)
    out = process.stdout
    process.stdout = None
    assert ended(process, "capturing", "standard output: is not read") == 3
    out.close()


def test_a_fifo_waits_for_its_reader(rundir: str, tmp_path: Path) -> None:
    path = tmp_path / "fifo"
    os.mkfifo(path)
    process = capture(rundir, "-w", str(path), "-c", "4")
    with open(path, "rb") as fifo:
        assert len(packets(fifo.read())) == 4
    assert ended(process, "capturing", "4 packets captured") == 0
    process = capture(rundir, "-w", str(path))
    until(lambda: catches(process.pid, signal.SIGTERM), "its handlers")
    process.send_signal(signal.SIGTERM)
    assert ended(process, "ended by signal 15 before it began") == 143


def test_a_full_disk(rundir: str, tmp_path: Path) -> None:
    """What is in the file is whole; how much is missing is said."""
    shell = (f"mount -t tmpfs -o size=64k none {tmp_path}/disk && \"$@\"; code=$?; "
             f"cp {tmp_path}/disk/out {tmp_path}/out; exit $code")
    (tmp_path / "disk").mkdir()
    process = capture(rundir, "-w", str(tmp_path / "disk" / "out"),
                      prefix=["unshare", "-m", "sh", "-c", shell, "sh"])
    assert ended(process, "capturing", "No space left on device (it ends behind the last whole "
                 "packet") == 3
    assert len(packets((tmp_path / "out").read_bytes())) > 200


def test_the_run_ends_first(net: VethPair, tmp_path: Path) -> None:
    path = tmp_path / "out.pcapng"
    with started(net, tmp_path / "runs") as run:
        process = capture(str(tmp_path / "runs"), "-w", str(path))
        grown(path)
        assert run.end() == 0
        total = run.total()
        assert ended(process, "capturing", "captured", "run one has ended") == 0
    got = packets(path.read_bytes())
    assert [kind for kind, _ in blocks(path.read_bytes())][-1] == 5
    assert 0 < len(got) <= total["rx_packets"]


def test_either_is_killed(net: VethPair, tmp_path: Path) -> None:
    path = tmp_path / "out.pcapng"
    with started(net, tmp_path / "runs") as run:
        process = capture(str(tmp_path / "runs"), "-w", str(path))
        grown(path)
        process.kill()
        process.communicate()
        until(lambda: run.latest() and "is over: it is gone" in run.errors, "the run's remark")
        path.unlink()
        process = capture(str(tmp_path / "runs"), "-w", str(path))
        grown(path)
        run.process.kill()
        run.process.wait()
        assert ended(process, "capturing", "captured", "run one: died while its packets") == 3
    assert packets(path.read_bytes())


@pytest.mark.parametrize(("argv", "code", "said"), [
    (("-i", "none", "-w", "x"), 2, "run none: there is no such run"),
    (("-i", "one", "-w", "x", "tcp", "prt", "80"), 2, "filter 'tcp prt 80': prt is not expected"),
    (("-i", "one", "-w", "x", "-x"), 2, "-x: is for packets that are printed"),
    (("-i", "one", "-w", "x", "--at", "before"), 2, "none of entry, exit"),
    (("-i", "one", "-w", "x", "-B", "1K"), 2, "not a size from 1M to 1G"),
    (("-i", "one", "-w", "/proc/none/x"), 3, "cannot be written"),
])
def test_refusals(rundir: str, argv: tuple[str, ...], code: int, said: str) -> None:
    done = xdpu("capture", *argv, XDPU_RUNDIR=rundir)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1) and said in done.stderr
    assert not Path("/x").exists()
