"""PcapPort: compiled readers against the Python reader, the recorded output, failing disks."""

from __future__ import annotations

import random
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dataplane import pcapfile
from dataplane.pcap import PcapPort
from dataplane.pcapfile import CapturedPacket, read_packets
from tests.dataplane.drive import Driver, frames
from tests.dataplane.test_pcapfile import PACKETS, block, enhanced, interface, pcap, section
from xdp_runtime.errors import PortError
from xdp_runtime.state import Verdict


def _rich(order: str) -> bytes:
    data = frames(1)[0]
    return (section(order) + interface(order) + block(0xBAD, b"whatever", order)
            + enhanced(data, 1_500_000, order)
            + interface(order, resolution=9, offset_s=-1) + enhanced(data, 5_000_000_007, order, 1)
            + block(2, struct.pack(order + "HH4I", 0, 0, 0, 77, 64, 64) + data, order)
            + block(3, struct.pack(order + "I", 64) + data, order)
            + section("<") + interface("<", resolution=0x80 | 10, snap=20)
            + enhanced(data, 1536) + block(3, struct.pack("<I", 64) + data[:20])
            + interface("<", resolution=12) + enhanced(data, 1 << 62, index=1)
            + interface("<", resolution=0x80 | 40)
            + enhanced(data, (5 << 40) + 12345678901, index=2))


ROOT = Path(__file__).resolve().parents[2]
CONTENTS = {
    **{f"pcap{order}{ns}": pcap(PACKETS, order, ns) for order in "<>" for ns in (False, True)},
    "pcapng<": _rich("<"), "pcapng>": _rich(">"),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "in"


def record_all(source: Path, out: Path | str, budget: int = 2) -> PortError | None:
    port = PcapPort(source, out)
    driver = Driver(port)
    while not port.finished():
        for slot in driver.receive(budget):
            driver.release(slot, Verdict.PASS)
        driver.flush()
    port.close()
    return port.error()


@pytest.mark.parametrize("name", CONTENTS)
def test_compiled_and_python_readers_agree(path: Path, name: str) -> None:
    path.write_bytes(CONTENTS[name])
    out = path.with_suffix(".pcapng")
    assert record_all(path, out) is None
    got, wanted = list(read_packets(out)), list(read_packets(path))
    assert [(p.timestamp_ns, p.data, p.original_bytes) for p in got] == [
        (p.timestamp_ns, p.data, p.original_bytes) for p in wanted]


@pytest.mark.parametrize("name", CONTENTS)
def test_readers_agree_on_damage(path: Path, name: str) -> None:
    """Cut anywhere, or with bytes overwritten: the same packets, then the same sentence."""
    rng = random.Random(name)
    for _ in range(60):
        content = bytearray(CONTENTS[name])
        if rng.random() < 0.5:
            del content[rng.randrange(24, len(content)):]
        else:
            at = rng.randrange(24, len(content))
            content[at:at + 4] = rng.randbytes(4)
        path.write_bytes(content)
        wanted: list[CapturedPacket] = []
        refusal = ""
        try:
            wanted.extend(read_packets(path))
        except PortError as error:
            refusal = str(error)
        out = path.with_suffix(".pcapng")
        try:
            error_found = record_all(path, out)
        except PortError as error:  # already in the header
            assert str(error) == refusal and not wanted
            continue
        delivered = [p for p in wanted if 14 <= len(p.data) <= 3520]
        assert [p.data for p in read_packets(out)] == [p.data for p in delivered]
        assert (str(error_found) if error_found else "") == refusal


def test_output_tells_every_verdict_in_input_order(path: Path) -> None:
    path.write_bytes(pcap(PACKETS))
    port = PcapPort(path, out := path.with_suffix(".pcapng"))
    driver = Driver(port)
    slots = driver.receive()
    driver.release(slots[4], Verdict.ABORTED)
    assert driver.transmit(slots[2])
    slots[0].adjust(head=-4, tail=2)
    slots[0].poke(0, b"HEAD")
    driver.release(slots[0], Verdict.PASS)
    driver.release(slots[3], Verdict.REDIRECT, 7)
    driver.release(slots[1], Verdict.DROP)
    driver.flush()
    assert driver.send(b"\x99" * 60)
    port.close()
    port.close()
    got = list(read_packets(out))
    assert [p.comment for p in got] == ["XDP_PASS", "XDP_DROP", "XDP_TX", "XDP_REDIRECT ifindex 7",
                                        "XDP_ABORTED", "sent here"]
    assert [p.timestamp_ns for p in got[:5]] == [p.timestamp_ns for p in PACKETS]
    assert got[0].data[:4] == b"HEAD" and got[0].data[4:-2] == PACKETS[0].data
    assert got[0].original_bytes == 70
    assert [p.data for p in got[1:]] == [*(p.data for p in PACKETS[1:]), b"\x99" * 60]
    # epb_verdict (7) of nine bytes: kind 2, verdict DROP
    assert b"\x07\x00\x09\x00\x02\x01\0\0\0\0\0\0\0" in out.read_bytes()


def test_large_capture_through_the_output_buffer(path: Path) -> None:
    packets = [CapturedPacket(i, f, len(f)) for i, f in enumerate(frames(20_000, 200))]
    path.write_bytes(pcap(packets))
    out = path.with_suffix(".pcapng")
    assert record_all(path, out, 64) is None
    assert [p.data for p in read_packets(out)] == [p.data for p in packets]


def test_packets_that_cannot_be_delivered_are_counted(path: Path) -> None:
    path.write_bytes(pcap([CapturedPacket(1, bytes(n), n) for n in (13, 14, 3520, 3521)]))
    port = PcapPort(path)
    assert [len(data) for data in Driver(port).drain(4)] == [14, 3520]
    assert port.statistics() == {"rx_too_long": 1, "rx_too_short": 1, "record_lost": 0}


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writes beyond it fail with EFBIG, as they would with ENOSPC on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_is_one_sentence_and_a_valid_file(path: Path) -> None:
    count = 10_000
    path.write_bytes(pcap([CapturedPacket(i, f, len(f)) for i, f in enumerate(frames(count))]))
    out = path.with_suffix(".pcapng")
    port = PcapPort(path, out)
    driver = Driver(port)
    taken = 0
    with file_size_limit(300_001):
        while not port.finished():
            slots = driver.receive()
            taken += len(slots)
            for slot in slots:
                driver.release(slot)
            driver.flush()
        port.close()
    written = len(list(read_packets(out)))
    lost = port.statistics()["record_lost"]
    assert 0 < written < taken < count and written + lost == taken
    assert str(port.error()) == f"{out}: cannot be written: File too large ({lost} packets " \
                                "are missing in it)"


def test_a_disk_that_is_full_only_at_close(path: Path) -> None:
    path.write_bytes(pcap([CapturedPacket(i, f, len(f)) for i, f in enumerate(frames(100))]))
    out = path.with_suffix(".pcapng")
    port = PcapPort(path, out)
    driver = Driver(port)
    for slot in driver.receive(50):
        driver.release(slot)
    driver.flush()
    with file_size_limit(1000):
        port.close()
    written = len(list(read_packets(out)))
    assert written + port.statistics()["record_lost"] == 50 and port.error() is not None


def test_output_only(path: Path) -> None:
    with pytest.raises(PortError, match="in: No such file"):
        PcapPort(path)
    port = PcapPort(None, path)
    assert port.finished() and Driver(port).receive() == []
    assert Driver(port).send(frames(1)[0])
    port.close()
    (packet,) = read_packets(path)
    assert packet.data == frames(1)[0] and packet.timestamp_ns > 10**18


def test_output_to_a_slow_pipe(path: Path) -> None:
    """Standard output that somebody made non-blocking, and a reader that takes its time."""
    path.write_bytes(pcap([CapturedPacket(i, f, len(f)) for i, f in enumerate(frames(20_000))]))
    script = ("import sys, os; os.set_blocking(1, False)\n"
              "from pathlib import Path; from tests.dataplane.test_pcap import record_all\n"
              "error = record_all(Path(sys.argv[1]), '-', 64)\n"
              "sys.exit(str(error) if error else 0)")
    got = path.with_suffix(".pcapng")
    with (got.open("wb") as out,
          subprocess.Popen([sys.executable, "-c", script, path], cwd=ROOT, text=False,
                           stdout=subprocess.PIPE) as writer):
        assert writer.stdout is not None
        while part := writer.stdout.read(100_000):
            time.sleep(0.01)
            out.write(part)
    assert writer.returncode == 0
    assert len(list(read_packets(got))) == 20_000


def test_output_must_not_be_the_input(path: Path) -> None:
    path.write_bytes(before := pcap(PACKETS))
    with pytest.raises(PortError, match="it is the input too"):
        PcapPort(path, path)
    assert path.read_bytes() == before
    with pytest.raises(PortError, match="cannot be written: Not a directory"):
        PcapPort(path, path / "no" / "where")


def test_interfaces_are_limited(path: Path) -> None:
    path.write_bytes(section() + interface() * (pcapfile.MAX_INTERFACES + 1)
                     + enhanced(bytes(60), 1))
    port = PcapPort(path)
    assert Driver(port).receive() == [] and port.finished()
    assert str(port.error()).endswith("before packet 1: more than 64 interfaces")
