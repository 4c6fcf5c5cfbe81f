"""Named rings: what the loop puts there is what another process reads, as arrays."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from dataplane import ring as ring_file
from dataplane.engine import Engine
from dataplane.memory import MemoryPort
from dataplane.ring import PacketRing
from tests.control.run_xdpu import ROOT
from tests.dataplane.kernel_redirect import OBJECT
from xdp_runtime.elf import read_object
from xdp_runtime.errors import PortError


@contextmanager
def engine_on(frames: Sequence[bytes], folder: Path, entries: dict[int, int], queues: int = 1,
              rings: Sequence[str] = ("one", "two"), count: int = 1) -> Iterator[Engine]:
    port = MemoryPort(frames, queues, name="eth0", ifindex=9, record=count == 1, count=count)
    engine = Engine(read_object(OBJECT), [port], program="to_ring", directory=folder,
                    exit_when_idle=True, rings=rings)
    for key, number in entries.items():
        engine.program.raw_maps["xsks"].update(struct.pack("<I", key), struct.pack("<I", number))
    try:
        yield engine
    finally:
        engine.stop()
        engine.close()
        port.close()


def frames_of(count: int, length: int = 60) -> list[bytes]:
    return [struct.pack("<I", i) + bytes((i + k) & 0xFF for k in range(length + i % 100))
            for i in range(count)]


def go(engine: Engine) -> dict[str, int]:
    engine.start()
    assert engine.wait(30)
    return engine.stats.total()


def test_packets_come_as_arrays(tmp_path: Path) -> None:
    frames = frames_of(3000)
    with engine_on(frames, tmp_path, {0: 1, 1: 2}, queues=2) as engine:
        before_ns = time.time_ns()
        total = go(engine)
        assert total["ring_sent"] == total["redirect"] == 3000 and total["ring_full"] == 0
        for name, queue in (("one", 0), ("two", 1)):
            with PacketRing.open(str(tmp_path / "rings" / name)) as ring:
                got: list[bytes] = []
                for batch in ring.batches(timeout_s=0.05, most=256):
                    assert batch.data.shape == (len(batch), 2048) and batch.data.dtype == np.uint8
                    assert (batch.queue, batch.port, batch.worker) == (queue, "eth0", queue)
                    assert (batch.timestamps >= before_ns).all()
                    assert (batch.timestamps <= time.time_ns()).all()
                    assert not batch.data.flags.owndata
                    got += batch.packets()
                assert got == frames[queue::2]
                assert ring.dropped == ring.too_long == 0
        seen = engine.program.raw_maps["seen"].lookup(struct.pack("<I", 6))
        assert seen in (struct.pack("<Q", 1), struct.pack("<Q", 2))  # the key, + 1


def test_no_entry_is_the_verdict_of_the_flags(tmp_path: Path) -> None:
    with engine_on(frames_of(10), tmp_path, {1: 1}) as engine:
        assert go(engine)["drop"] == 10


def test_a_full_ring_drops_and_counts(tmp_path: Path) -> None:
    frames = [*frames_of(ring_file.SLOTS + 500), bytes(2100)]
    with engine_on(frames, tmp_path, {0: 1}) as engine:
        total = go(engine)
        assert (total["ring_sent"], total["ring_full"]) == (ring_file.SLOTS, 501)
        with PacketRing.open(str(tmp_path / "rings" / "one")) as ring:
            assert ring.dropped == 501
            got = [p for batch in ring.batches(timeout_s=0.01) for p in batch.packets()]
            assert got == frames[:ring_file.SLOTS]


def test_a_packet_longer_than_a_row_is_dropped(tmp_path: Path) -> None:
    with engine_on([bytes(2048), bytes(2049), bytes(60)], tmp_path, {0: 2}) as engine:
        assert go(engine)["ring_full"] == 1
        with PacketRing.open(str(tmp_path / "rings" / "two")) as ring:
            lengths = np.concatenate([np.array(b.lengths) for b in ring.batches(timeout_s=0.01)])
            assert lengths.tolist() == [2048, 60] and ring.too_long == 1


def test_one_reader_at_a_time_and_the_end(tmp_path: Path) -> None:
    path = str(tmp_path / "rings" / "one")
    with engine_on(frames_of(10), tmp_path, {0: 1}) as engine:
        reader = PacketRing.open(path)
        with pytest.raises(PortError, match="another process reads it"):
            PacketRing.open(path)
        go(engine)
    batches = reader.batches()  # the run is over: all there is, and then the end
    first = next(batches)
    assert len(first) == 10
    assert list(batches) == []
    reader.close()
    reader.close()
    with pytest.raises(PortError):
        PacketRing.open(path)


READER = """
import sys
from dataplane.ring import PacketRing
with PacketRing.open(sys.argv[1]) as ring:
    for batch in ring.batches():
        print(len(batch), flush=True)
        sys.stdin.readline()
"""


def test_the_death_of_a_reader_is_survived(tmp_path: Path) -> None:
    frames = frames_of(2000)
    with engine_on(frames, tmp_path, {0: 1}) as engine:
        reader = subprocess.Popen([sys.executable, "-c", READER, str(tmp_path / "rings" / "one")],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
                                  env={**os.environ, "PYTHONPATH": str(ROOT)})
        go(engine)
        assert reader.stdout is not None
        assert int(reader.stdout.readline()) > 0  # it holds the first batch
        reader.send_signal(signal.SIGKILL)
        reader.wait()
        with PacketRing.open(str(tmp_path / "rings" / "one")) as ring:
            got = [p for batch in ring.batches(timeout_s=0.05) for p in batch.packets()]
        assert got == frames  # what it had not finished with is still there


def test_reading_while_it_is_written(tmp_path: Path) -> None:
    frames = frames_of(1024)
    with engine_on(frames, tmp_path, {0: 1}, count=300) as engine, PacketRing.open(
            str(tmp_path / "rings" / "one")) as ring:
        engine.start()
        numbers = []
        for batch in ring.batches(timeout_s=0.5):
            numbers.append(np.ascontiguousarray(batch.data[:, :4]).view("<u4").ravel().copy())
            wanted = 64 + numbers[-1] % 100  # the length says whether a row belongs to its number
            assert (batch.lengths == wanted).all()
        assert engine.wait(30)
        total = engine.stats.total()
        read = np.concatenate(numbers)
        assert len(read) == total["ring_sent"] == 1024 * 300 - total["ring_full"]
        assert ring.dropped == total["ring_full"]
