"""Engine: what can change while packets run: the program, the ports, and which of them rest."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from dataplane import loop
from dataplane.engine import Engine
from dataplane.memory import MEMORY, MemoryPort, Result
from dataplane.stats import Stats
from tests.control.run_xdpu import EXAMPLES, until
from tests.dataplane.kernel_redirect import OBJECT as REDIRECTS
from tests.dataplane.test_chains import OBJECT as CHAINS
from tests.xdp_runtime.families.test_families import OBJECT as FAMILIES
from tests.xdp_runtime.families.test_families import commands
from xdp_runtime.compiler import link, target
from xdp_runtime.core_relo import read_settled
from xdp_runtime.errors import ConfigError, XdpuError
from xdp_runtime.maps.map import Map
from xdp_runtime.object import Object

FOREVER = 1 << 60
FRAMES = [random.Random(7).randbytes(64) for _ in range(8)]


def example(name: str) -> Object:
    return read_settled(str(EXAMPLES / f"{name}.o"))


def port(queues: int = 2, name: str = "memory", count: int = FOREVER, ifindex: int = 0,
         frames: Sequence[bytes] = FRAMES) -> MemoryPort:
    return MemoryPort(frames, queues=queues, count=count, name=name, ifindex=ifindex,
                      discard=True, out_bytes=1 << 20)


@contextmanager
def running(name: str, ports: Sequence[MemoryPort], directory: Path | None = None,
            ) -> Iterator[Engine]:
    engine = Engine(example(name), ports, busy_poll=True, directory=directory)
    engine.start()
    try:
        until(lambda: engine.stats.total()["rx_packets"], "packets")
        yield engine
    finally:
        engine.stop()
        engine.close()
        for one in ports:
            one.close()


def moves(engine: Engine, counter: str) -> bool:
    before = engine.stats.total()[counter]
    deadline_s = time.monotonic() + 0.2
    while time.monotonic() < deadline_s:
        if engine.stats.total()[counter] > before:
            return True
    return False


def counted(m: Map) -> int:
    """What examples/counter.c has counted, over all keys and workers."""
    return sum(int.from_bytes(one[:8], "little") for _, value in m.items()
               for one in (value if isinstance(value, list) else [value]))


def test_a_map_goes_on_through_replacements_and_no_packet_is_lost(tmp_path: Path) -> None:
    with running("counter", [port()], tmp_path) as engine:
        (name,) = (m.spec.name for m in engine.program.all_maps if not m.spec.global_kind)
        for _ in range(5):
            assert engine.replace(example("counter")) == [name]
            until(lambda: moves(engine, "rx_packets"), "packets after it was replaced")
        engine.stop()
        assert counted(engine.program.raw_maps[name]) == engine.stats.total()["rx_packets"] > 0
        assert [p.name for p in (tmp_path / "maps").iterdir() if p.name == name] == [name]
        with Map.open(tmp_path / "maps" / name) as seen:
            assert seen.spec.key_size == engine.program.raw_maps[name].spec.key_size


def test_code_is_changed_while_packets_flow_and_none_is_lost_or_counted_twice() -> None:
    obj = example("counter")
    with running("counter", [port()]) as engine:
        images = [link.compile_program(obj, obj.program(), 2, opt, [loop.unit([MEMORY], [])])
                  for opt in (target.BASELINE, 3)]
        maps, program = [m.symbols() for m in engine.program.all_maps], engine.program
        for number in range(8):
            engine.recode(images[number % 2])
            assert engine.program is program and program.image is images[number % 2]
            assert engine.late() == []
            until(lambda: moves(engine, "rx_packets"), "packets after the code was changed")
        engine.stop()
        assert [m.symbols() for m in program.all_maps] == maps
        (counter,) = (m for m in program.all_maps if not m.spec.global_kind)
        assert counted(counter) == engine.stats.total()["rx_packets"] > 0


def test_packets_come_to_the_same_across_a_change_of_code() -> None:
    """Programs whose answers depend on all packets before, in one piece and in several."""
    obj = read_settled(str(FAMILIES))
    sent = commands(8)

    def results(changing: bool) -> tuple[list[Result], int]:
        one = MemoryPort(sent, count=100, record=True, log_bytes=32 << 20)
        engine = Engine(obj, [one], program="tries", exit_when_idle=True, batch_size=4)
        images = [link.compile_program(obj, obj.program("tries"), 1, opt,
                                       [loop.unit([MEMORY], [])]) for opt in (target.BASELINE, 3)]
        changes = 0
        engine.start()
        while not one.finished():
            if changing:
                engine.recode(images[changes % 2])
                changes += not one.finished()
        assert engine.wait(60)
        engine.close()
        one.close()
        return one.results, changes

    expected, _ = results(False)
    assert len(expected) == len(sent) * 100
    while True:
        found, changes = results(True)
        assert found == expected
        if changes > 0:
            return


def test_another_program_brings_its_own_maps_and_takes_the_old_ones_away(tmp_path: Path) -> None:
    with running("counter", [port()], tmp_path) as engine:
        old = {m.spec.name for m in engine.program.all_maps}
        assert engine.replace(example("firewall")) == []
        new = {m.spec.name for m in engine.program.all_maps}
        files = {p.name for p in (tmp_path / "maps").iterdir()} - {".btf"}
        assert files == new and not new & old
        before = engine.stats.total()
        assert engine.replace(example("drop")) == []
        until(lambda: engine.stats.total()["drop"] > before["drop"] + 1000, "drops")
        assert {p.name for p in (tmp_path / "maps").iterdir()} <= {".btf"}


def test_a_replacement_that_fails_leaves_the_old_program_running(tmp_path: Path) -> None:
    def refuse(program: object) -> None:
        raise ConfigError("--set-map", "is wrong")

    with running("counter", [port()], tmp_path) as engine:
        before = engine.program
        names = sorted(p.name for p in (tmp_path / "maps").iterdir())
        with pytest.raises(ConfigError, match="is wrong"):
            engine.replace(example("flow_table"), settings=refuse)
        with pytest.raises(XdpuError, match="nonsense"):
            engine.replace(example("drop"), "nonsense")
        assert engine.program is before and moves(engine, "rx_packets")
        assert sorted(p.name for p in (tmp_path / "maps").iterdir()) == names


def test_a_paused_port_is_left_alone_until_it_is_resumed() -> None:
    with running("drop", [port(name="a"), port(name="b")]) as engine:
        engine.pause("a")
        time.sleep(0.05)  # the batch at hand
        a = [i for i, f in enumerate(engine.stats.flows) if f.port == "a"]
        b = [i for i, f in enumerate(engine.stats.flows) if f.port == "b"]
        still = engine.stats.total(a)["rx_packets"]
        moving = engine.stats.total(b)["rx_packets"]
        until(lambda: engine.stats.total(b)["rx_packets"] > moving, "the other port")
        assert engine.stats.total(a)["rx_packets"] == still and engine.paused == {"a"}
        engine.pause("a", False)
        until(lambda: engine.stats.total(a)["rx_packets"] > still, "the port, resumed")
        with pytest.raises(ConfigError, match="not part of this run"):
            engine.pause("c")


def test_ports_come_and_go_under_traffic(tmp_path: Path) -> None:
    first, second = port(name="first", ifindex=3), port(name="second", ifindex=4)
    with running("counter", [first], tmp_path) as engine:
        engine.add_port(second)
        until(lambda: Stats.open(tmp_path / "stats").total(
            [i for i, f in enumerate(engine.stats.flows) if f.port == "second"])["rx_packets"],
            "packets of the second port, as others see them")
        engine.pause("second")
        with pytest.raises(ConfigError, match="1 queues for 2 workers"):
            engine.add_port(port(queues=1, name="narrow"))
        gone, stack = engine.remove_port("first")
        assert gone is first and stack is None
        at = first.queues[0]
        assert at.address
        before = engine.stats.total()["rx_packets"]
        time.sleep(0.05)
        assert engine.stats.total()["rx_packets"] == before, "one is gone, the other rests"
        engine.pause("second", False)
        assert moves(engine, "rx_packets")
        with pytest.raises(ConfigError, match="the only one"):
            engine.remove_port("second")
        engine.stop()
        total = sum(counted(m) for m in engine.program.all_maps if not m.spec.global_kind)
        assert total == engine.stats.total()["rx_packets"]
    first.close()


def test_aborted_packets_stay_those_of_their_program() -> None:
    """Counts and records keep the name of the program that aborted them when another takes over."""
    obj = read_settled(str(CHAINS))
    frames = [bytes(14) + bytes(20) + bytes(66)]  # verdict 0
    one = port(queues=1, frames=frames)
    engine = Engine(obj, [one], program="linear", busy_poll=True, trace_aborted=3)
    engine.start()
    try:
        until(lambda: engine.stats.total()["aborted"], "aborted packets")
        engine.replace(read_settled(str(REDIRECTS)), "aborts")
        before = engine.aborted()
        until(lambda: len(engine.aborted()) > 1, "packets that the new program aborts")
        engine.replace(obj, "linear")
        after = engine.aborted()
        (area,) = (worker.aborted for worker in engine.workers)
        assert [packet.program for packet in area.packets()] == ["linear"] * 3
    finally:
        engine.stop()
        total = engine.stats.total()["aborted"]
        last = engine.aborted()
        engine.close()
        one.close()
    reason = "the program returned XDP_ABORTED"
    assert next(iter(before)) == ("linear", reason)
    assert {name for name, _ in after} == {"linear", "aborts"}
    assert sum(last.values()) == total
