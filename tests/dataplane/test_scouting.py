"""Looking ahead changes nothing but time; a flow finds out by itself whether it pays."""

from __future__ import annotations

import random
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bench import frames
from bench.micro.cases import build, choose
from dataplane import scouting
from dataplane import worker_block as layout
from dataplane.engine import Engine
from dataplane.memory import MemoryPort, Result
from xdp_runtime.elf import read_object
from xdp_runtime.object import Object

EXAMPLES = Path(__file__).parents[2] / "examples"
needs_clang = pytest.mark.skipif(shutil.which("clang") is None, reason="the program is C: clang")


def packets(count: int, flows: int) -> list[bytes]:
    chance = random.Random(3)
    made = []
    for _ in range(count):
        packet = bytearray(frames.udp4(chance.randrange(1, 4)))
        packet[26:30] = struct.pack("=I", chance.randrange(flows))
        packet[30:34] = struct.pack(">I", chance.randrange(1 << 32))
        made.append(bytes(packet) if chance.random() < 0.9 else frames.arp())
    return made


def outcome(obj: Object, program: str, given: list[bytes], how: str,
            entries: Mapping[str, Mapping[bytes, bytes]]) -> tuple[list[Result], dict[str, Any]]:
    port = MemoryPort(given, record=True)
    engine = Engine(obj, [port], program=program, exit_when_idle=True, look_ahead=how)
    for name, content in entries.items():
        for key, value in content.items():
            engine.program.raw_maps[name].update(key, value)
    try:
        engine.start()
        engine.wait(60)
        contents = {name: sorted((key, repr(value)) for key, value in one.items())
                    for name, one in engine.program.raw_maps.items() if one.spec.key_size}
        return port.results, contents
    finally:
        engine.close()
        port.close()


@pytest.mark.parametrize("example", ["flow_table", "firewall", "demo", "dispatcher", "helpers"])
def test_examples_do_the_same(example: str) -> None:
    obj, given = read_object(EXAMPLES / f"{example}.o"), packets(3000, 400)
    name = obj.programs[0].name
    plain = outcome(obj, name, given, "off", {})
    assert len(plain[0]) == len(given)
    if example == "helpers":  # it writes down times
        plain[1].pop("surroundings")
    for how in ("on", "auto"):
        other = outcome(obj, name, given, how, {})
        other[1].pop("surroundings", None)
        assert other == plain


@needs_clang
@pytest.mark.parametrize("name", ["hash_hit", "lru_hit", "lpm_v4", "flow_table_64k"])
def test_large_maps_do_the_same(name: str, tmp_path: Path) -> None:
    micro = choose([name])[0]
    obj = read_object(build(micro.source, tmp_path, *micro.flags))
    entries = {table: dict(list(content.items())[:5000])
               for table, content in micro.entries().items()}
    given = packets(3000, 900)
    plain = outcome(obj, micro.program, given, "off", entries)
    assert len({result.verdict for result in plain[0]}) > 1
    for how in ("on", "auto"):
        assert outcome(obj, micro.program, given, how, entries) == plain


@pytest.fixture
def trial() -> Iterator[tuple[Engine, MemoryPort]]:
    given = packets(64, 60)
    port = MemoryPort(given, count=scouting._PERIOD + 40, discard=True)
    engine = Engine(read_object(EXAMPLES / "flow_table.o"), [port], exit_when_idle=True)
    yield engine, port
    engine.close()
    port.close()


def turn_and_choice(engine: Engine) -> tuple[int, int]:
    at = layout.C_FLOW_TABLE + layout.F_SCOUT
    memory = engine.workers[0]._memory
    turn = struct.unpack_from("<I", memory, at + scouting.TURN)[0]
    return turn, struct.unpack_from("<I", memory, at + scouting.CHOICE)[0]


def test_a_flow_tries_both_ways_and_decides(trial: tuple[Engine, MemoryPort]) -> None:
    engine, _ = trial
    engine.start()
    engine.wait(60)
    turn, choice = turn_and_choice(engine)
    assert turn == scouting._PERIOD + 40  # one a batch
    assert choice in (scouting.ALWAYS, scouting.NEVER)


def test_off_is_off(trial: tuple[Engine, MemoryPort]) -> None:
    engine, _ = trial
    engine.look_ahead("off")
    engine.start()
    engine.wait(60)
    assert turn_and_choice(engine) == (0, 0)
