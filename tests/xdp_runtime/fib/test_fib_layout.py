"""The lookup in memory does what the obvious one does, on random hosts; without the kernel."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.xdp_runtime.fib.questions import Questions, told
from tests.xdp_runtime.fib.random_host import random_host
from xdp_runtime.elf import read_object
from xdp_runtime.fib.host import Host, Route, covers, shares
from xdp_runtime.fib.layout import Packer
from xdp_runtime.fib.tables import Tables
from xdp_runtime.interp import Machine
from xdp_runtime.program import Program, load

OBJECT = read_object(Path(__file__).with_name("fib_probe.o"))
HOSTS, LOOKUPS, MTUS = 30, 50, 8


@pytest.fixture(scope="module")
def programs() -> Iterator[list[tuple[str, Program]]]:
    made = [(f"{name} O{opt}", load(OBJECT, name, opt=opt)) for name in ("lookup", "mtu")
            for opt in (3, 0)]
    yield made
    for _, program in made:
        program.close()


@pytest.mark.parametrize("seed", range(4))
def test_as_the_model(programs: list[tuple[str, Program]], seed: int) -> None:
    machines = {name: Machine(OBJECT, OBJECT.program(name)) for name in ("lookup", "mtu")}
    for number in range(HOSTS):
        pick = random.Random(f"{seed} {number}")
        host = random_host(pick)
        questions = Questions(host, pick.getrandbits(32))
        frames = {"lookup": [questions.lookup() for _ in range(LOOKUPS)],
                  "mtu": [questions.mtu() for _ in range(MTUS)]}
        for title, program in programs:
            assert program.fib is not None
            program.fib.publish(host)
            name = title.split()[0]
            machines[name].host = host
            for frame in frames[name]:
                wanted = machines[name].run(frame, ingress_ifindex=3).data_out
                found = program.run(frame, ingress_ifindex=3).data_out
                assert found == wanted, (
                    f"{title}, host {seed} {number}\n  asked {told(frame)}\n"
                    f"  model {told(wanted)}\n  found {told(found)}")


def test_an_empty_host_answers(programs: list[tuple[str, Program]]) -> None:
    program = programs[0][1]
    assert program.fib is not None
    program.fib.publish(Host())
    frame = Questions(random_host(random.Random(1)), 1).lookup()
    assert program.run(frame).data_out[20:24] in (
        (-19 & 0xFFFFFFFF).to_bytes(4, "little"), (4).to_bytes(4, "little"),
        (-22 & 0xFFFFFFFF).to_bytes(4, "little"))


def test_routes_are_packed_once() -> None:
    host = random_host(random.Random(9))
    packer, other = Packer(), Packer()
    first = packer.pack(host)
    fewer = Host(host.interfaces, host.routes, host.neighbours[:3], host.rules, host.addresses6,
                 host.labels, host.settings, host.one_table)
    assert packer.pack(fewer) == other.pack(fewer) != first
    assert packer.pack(host) == first


def test_shares_are_the_kernels() -> None:
    """DIV_ROUND_CLOSEST_ULL(w << 31, total) - 1"""
    assert shares([1, 1]) == [(1 << 30) - 1, (1 << 31) - 1]
    assert shares([3, 0, 1]) == [3 * (1 << 29) - 1, -1, (1 << 31) - 1]


def test_the_tables_end_with_the_last_program() -> None:
    with load(OBJECT, "lookup") as first:
        tables = first.fib
        assert tables is not None
        heir = load(OBJECT, "lookup", heir_to=first)
        assert heir.fib is tables
        first.close(keep=heir.all_maps)
        assert not _closed(tables)
        tables.publish(random_host(random.Random(2)))
        heir.close()
        assert _closed(tables)
        tables.publish(Host())  # nobody looks any more, and nothing happens
        first.fib = None


def _closed(tables: Tables) -> bool:
    return tables.closed


def test_a_program_that_asks_nothing_has_no_tables() -> None:
    other = read_object(Path(__file__).parents[3] / "examples" / "pass.o")
    with load(other) as program:
        assert program.fib is None
        assert "fib" not in program.image.symbols


def test_memory_describes_itself(tmp_path: Path) -> None:
    with Tables.create(tmp_path) as tables:
        tables.publish(Host())
        with (tmp_path / "fib").open("rb") as file:
            head = file.read(128)
        assert head[:8] == b"xdpu-fib"
        assert (tmp_path / "fib").stat().st_blocks * 512 < 64 << 20  # of 1 GiB
    assert not (tmp_path / "fib").exists()


def test_prefixes() -> None:
    route = Route(2, 254, 0x0A << 120, 8, ())
    assert covers(route.key, route.length, 0x0AFFFFFF << 96)
    assert not covers(route.key, route.length, 0x0B000000 << 96)
