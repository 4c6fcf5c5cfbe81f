"""Captures: what the workers show of packets, and that they never wait for who looks."""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from control.captures import to_assembly
from dataplane.capture import Capture, Wanted
from dataplane.capture_lanes import Counts, LaneReader
from dataplane.capture_put import ENTRY_POINT, EXIT_POINT, TAPS_MAX
from dataplane.engine import Engine
from dataplane.memory import MemoryPort
from dataplane.rundir import Owner
from tests.control.run_xdpu import until
from tests.dataplane.kernel_redirect import OBJECT as REDIRECTS
from tests.dataplane.pcapng_blocks import Packet, packets
from tests.dataplane.test_chains import OBJECT as CHAINS
from tests.dataplane.test_chains import OTHER, OWN, Rig, after, packet
from xdp_runtime.elf import read_object
from xdp_runtime.errors import ConfigError
from xdp_runtime.state import Verdict

ABORTED, DROP, PASS, TX, REDIRECT = Verdict
WANTED = Wanted(Owner.current())
FOREVER = 1 << 60


@contextmanager
def captured(engine: Engine, folder: Path, wanted: Wanted = WANTED,
             ) -> Iterator[tuple[Capture, LaneReader]]:
    """A capture of an engine that does not run yet."""
    capture = Capture(wanted, folder / "captures" / "1", len(engine.workers))
    capture.extend([f.name(w.number) for w in engine.workers for f in w.flows if f.role == 0])
    engine.captures.append(capture)
    for worker in engine.workers:
        worker.show([capture])
    reader = LaneReader(capture.file.path)
    try:
        yield capture, reader
    finally:
        reader.close()


def take(reader: LaneReader) -> bytes:
    out = b""
    reader.look()
    for span in reader.spans():
        out += bytes(span.data)
        reader.consume(span, len(span.data))
    return out


def go(engine: Engine) -> dict[str, int]:
    engine.start()
    assert engine.wait(20)
    return engine.stats.total()


def linear(frames: Sequence[bytes], queues: int = 1, count: int = 1) -> Engine:
    port = MemoryPort(frames, queues, name="eth0", ifindex=OWN, record=count == 1, count=count,
                      discard=count > 1)
    other = MemoryPort([], queues, name="eth1", ifindex=OTHER)
    return Engine(read_object(CHAINS), [port, other], program="linear", exit_when_idle=True)


def given(count: int = 200, seed: int = 1) -> list[bytes]:
    rng = random.Random(seed)
    return [packet(rng, rng.randrange(60, 1500), rng.choice([*Verdict, 77]), OTHER,
                   head=rng.choice([0, 10, 30]), tail=rng.choice([0, 20, -10]))
            for _ in range(count)]


def told(verdict: int) -> int:
    """As the file has it: a verdict that does not exist aborts."""
    return verdict if verdict <= REDIRECT else ABORTED


def test_both_points(tmp_path: Path) -> None:
    frames = given()
    engine = linear(frames, queues=2)
    before_ns = time.time_ns()
    with captured(engine, tmp_path) as (_, reader):
        go(engine)
        content = take(reader)
        assert reader.interfaces == [("eth0", 0), ("eth0", 1), ("eth1", 0), ("eth1", 1)]
        assert reader.counts(("eth0", EXIT_POINT)) == Counts(200, 200, 0)
        assert reader.counts(("eth1", EXIT_POINT)) == Counts()
    got = packets(content)
    for queue in range(2):
        mine = [p for p in got if p.options["queue"] == queue]
        came = [p for p in mine if p.interface == 0]
        left = [p for p in mine if p.interface == 1]
        assert [p.data for p in came] == frames[queue::2]
        assert [p.data for p in left] == [after(f) for f in frames[queue::2]]
        verdicts = [struct.unpack_from("<I", f, 14)[0] for f in frames[queue::2]]
        assert [p.verdict for p in left] == [told(v) for v in verdicts]
        assert [p.verdict for p in came] == [None] * 100
        assert [p.comment for p in left] == [
            f"XDP_{Verdict(told(v)).name}" + (f" ifindex {OTHER}" if v == REDIRECT else "")
            for v in verdicts]
        assert {p.options["flags"] for p in came} == {1}
        assert [p.options["flags"] for p in left] == [2 if v == TX else 0 for v in verdicts]
        assert [p.options["packetid"] for p in came] == [p.options["packetid"] for p in left]
        assert all(len(p.data) == p.original for p in mine)
        assert all(before_ns <= p.timestamp_ns <= time.time_ns() for p in mine)
    assert len({p.options["packetid"] for p in got}) == 200
    assert len(got) == 400
    engine.close()


@pytest.mark.parametrize(("point", "interface"), [(ENTRY_POINT, ("eth0", 0)),
                                                  (EXIT_POINT, ("eth0", 1))])
def test_one_point(tmp_path: Path, point: int, interface: tuple[str, int]) -> None:
    engine = linear(given(20))
    with captured(engine, tmp_path, replace(WANTED, points=(point,))) as (_, reader):
        go(engine)
        got = packets(take(reader))
        assert reader.interfaces[0] == interface and len(got) == 20
        assert {p.interface for p in got} == {0}
        assert [p.data for p in got] == (given(20) if point == ENTRY_POINT
                                         else [after(f) for f in given(20)])
    engine.close()


def test_snap_sample_and_ports(tmp_path: Path) -> None:
    frames = given(100)
    engine = linear(frames)
    wanted = replace(WANTED, points=(EXIT_POINT,), snap_bytes=65, sample=7, ports=("eth0",))
    with captured(engine, tmp_path, wanted) as (_, reader):
        go(engine)
        got = packets(take(reader))
        assert reader.interfaces == [("eth0", 1)]
        assert reader.counts(("eth0", 1)) == Counts(100, 15, 0)
    chosen = [after(f) for f in frames[::7]]
    assert [p.data for p in got] == [f[:65] for f in chosen]
    assert [p.original for p in got] == [len(f) for f in chosen]
    engine.close()


def test_a_filter_is_asked_at_the_entry(tmp_path: Path) -> None:
    """Also when the program has cut off what it looked for."""
    http = bytes.fromhex("020000000001 020000000002 0800 4500003c00004000 4006 0000 0a000001"
                         "0a000002 1234 0050".replace(" ", "")) + bytes(40)
    rng = random.Random(3)
    frames = [packet(rng, 100, DROP), http, packet(rng, 100, TX), http]
    engine = linear(frames)
    wanted = replace(WANTED, filter=to_assembly("tcp port 80"))
    with captured(engine, tmp_path, wanted) as (_, reader):
        go(engine)
        got = packets(take(reader))
    assert [p.options["packetid"] for p in got] == [1, 3, 1, 3]
    assert [p.data for p in got[:2]] == [http, http]
    engine.close()


@pytest.mark.parametrize(("program", "words"), [
    ("one", " ifindex 9"), ("many", " all of map 0"), ("to_worker", " worker 0"),
    ("to_ring", " ring 1")])
def test_where_redirects_go(tmp_path: Path, program: str, words: str) -> None:
    obj = read_object(REDIRECTS)
    frames = [struct.pack("<I", 0) + bytes(96)]
    engine = Engine(obj, [MemoryPort(frames, name="eth0", ifindex=9)], program=program,
                    exit_when_idle=True, rings=("one",), directory=tmp_path)
    maps = engine.program.raw_maps
    for name, value in {"ports": (9, 0), "cpus": (64, 0), "xsks": (1,)}.items():
        if name in maps:
            maps[name].update(bytes(4), struct.pack(f"<{len(value)}I", *value))
    with captured(engine, tmp_path, replace(WANTED, points=(EXIT_POINT,))) as (_, reader):
        go(engine)
        (got,) = packets(take(reader))
    assert got.comment == "XDP_REDIRECT" + words and got.verdict == REDIRECT
    engine.close()


def test_a_full_ring_loses_and_counts(tmp_path: Path) -> None:
    """The worker does not wait; the next packet that has room says how many had none."""
    frames = [packet(random.Random(n), 1400, DROP) for n in range(64)]
    engine = linear(frames, count=100)
    wanted = replace(WANTED, points=(EXIT_POINT,), ring_bytes=1 << 20)
    with captured(engine, tmp_path, wanted) as (_, reader):
        assert go(engine)["drop"] == 6400
        counts = reader.counts(("eth0", 1))
        first = packets(take(reader))
        assert counts.seen == counts.chosen == 6400
        assert len(first) == counts.chosen - counts.lost < 800
        assert [p.data for p in first] == (frames * 20)[:len(first)]
    engine.close()


def test_nothing_is_torn_while_it_is_read(tmp_path: Path) -> None:
    """Many blocks through a small ring, lap after lap; each is whole, in order, and what is missing
    is what was said to be lost."""
    rng = random.Random(5)
    frames = [packet(rng, rng.choice([60, 61, 62, 63, 900, 3000]), DROP) for _ in range(61)]
    engine = linear(frames, count=FOREVER)
    wanted = replace(WANTED, points=(EXIT_POINT,), ring_bytes=1 << 20)
    with captured(engine, tmp_path, wanted) as (_, reader):
        engine.start()
        taken = lost = laps = 0
        content = b"at first"
        while content:
            if laps > 6 << 20:
                engine.stop()
            over = not engine.running
            content = take(reader)
            while not content and not over:
                over, content = not engine.running, take(reader)
            for one in packets(content):
                number = one.options["packetid"]
                assert one.data == frames[number % len(frames)]
                lost += one.options.get("dropcount", 0)
                assert number == taken + lost
                taken += 1
            laps += len(content)
        counts = reader.counts(("eth0", 1))
        assert taken == counts.chosen - counts.lost and laps > 6 << 20
    engine.close()


def test_packets_in_several_buffers(tmp_path: Path) -> None:
    rng = random.Random(2)
    frames = [packet(rng, size, verdict, OTHER, head=head, tail=tail)
              for size in (60, 1792, 1793, 5000, 9000) for verdict in (DROP, TX, PASS, REDIRECT)
              for head, tail in ((0, 0), (30, 0), (20, -2000 if size > 4000 else -10))]
    rig = Rig(frames)
    with captured(rig.engine, tmp_path) as (_, reader):
        rig.run_only()
        got = packets(take(reader))
        name = reader.interfaces[0][0]
        assert reader.counts((name, 0)).seen == len(frames)
    assert [p.data for p in got if p.interface == 0] == frames
    assert [p.data for p in got if p.interface == 1] == [after(f) for f in frames]
    rig.engine.close()


def test_snap_of_several_buffers(tmp_path: Path) -> None:
    frames = [packet(random.Random(2), size, TX) for size in (60, 1793, 4000)]
    rig = Rig(frames)
    with captured(rig.engine, tmp_path, replace(WANTED, snap_bytes=2000)) as (_, reader):
        rig.run_only()
        got = packets(take(reader))
    assert [p.data for p in got if p.interface == 1] == [f[:2000] for f in frames]
    assert [p.original for p in got if p.interface == 1] == [60, 1793, 4000]
    rig.engine.close()


def test_captures_come_and_go_while_packets_run(tmp_path: Path) -> None:
    """Two at once; a port that comes is seen by who wants all; who leaves takes nothing along."""
    frames = [packet(random.Random(n), 100, DROP) for n in range(16)]
    engine = linear(frames, count=FOREVER)
    engine.start()
    try:
        every = Capture(replace(WANTED, sample=1000), tmp_path / "c" / "1", 1)
        one = Capture(replace(WANTED, ports=("eth0",), snap_bytes=20), tmp_path / "c" / "2", 1)
        engine.add_capture(every)
        engine.add_capture(one)
        with_all, with_one = LaneReader(every.file.path), LaneReader(one.file.path)

        def came(reader: LaneReader) -> list[Packet]:
            return until(lambda: packets(take(reader)), "packets")  # type: ignore[no-any-return]

        assert {len(p.data) for p in came(with_all)} == {100}
        assert {len(p.data) for p in came(with_one)} == {20}
        more = MemoryPort(frames, name="eth2", ifindex=77, count=FOREVER)
        engine.add_port(more)
        until(lambda: any(p.interface == 4 for p in packets(take(with_all))), "packets of eth2")
        assert with_all.interfaces[4] == ("eth2", 0) and with_one.interfaces == [
            ("eth0", 0), ("eth0", 1)]
        engine.remove_port("eth2")
        assert came(with_all) and came(with_one)
        engine.remove_capture(one)
        assert with_one.closed
        take(with_one)
        assert came(with_all) and not take(with_one)
        for number in range(TAPS_MAX - 1):
            engine.add_capture(Capture(WANTED, tmp_path / "d" / str(number), 1))
        spare = Capture(WANTED, tmp_path / "e", 1)
        with pytest.raises(ConfigError, match="4 are going on"):
            engine.add_capture(spare)
        spare.close()
        engine.replace(read_object(CHAINS), "linear")
        take(with_all)
        assert came(with_all), "it goes on with the new program"
    finally:
        engine.stop()
        engine.close()
    assert with_all.closed and not every.file.path.exists()
    with_all.close()
    with_one.close()


@pytest.mark.parametrize("size", [0, 1 << 19, (1 << 20) + 4096])
def test_sizes_of_rings(tmp_path: Path, size: int) -> None:
    with pytest.raises(ConfigError, match="power of two from 1M on"):
        Capture(replace(WANTED, ring_bytes=size), tmp_path / "c", 1)
