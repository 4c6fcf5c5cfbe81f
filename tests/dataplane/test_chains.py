"""The loop and packets in several buffers, on an AF_XDP queue whose kernel is played by Python."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from dataplane import port as contract
from dataplane.engine import Engine
from dataplane.memory import MemoryPort
from tests.afxdp.test_rings import checked
from tests.afxdp.test_sg_rings import SgPort
from tests.dataplane.drive import Driver
from xdp_runtime import state
from xdp_runtime.elf import read_object
from xdp_runtime.errors import ConfigError
from xdp_runtime.state import Verdict

OBJECT = Path(__file__).parent / "objects" / "chains.o"
ABORTED, DROP, PASS, TX, REDIRECT = Verdict
OWN, OTHER = 7, 8
PIECE = 2048 - 256


def packet(rng: random.Random, size: int, verdict: int, ifindex: int = 0, pull: int = 0,
           head: int = 0, tail: int = 0) -> bytes:
    made = bytes(12) + b"\x88\xb5" + struct.pack("<IIIii", verdict, ifindex, pull, head, tail)
    return made + rng.randbytes(size - len(made))


def after(given: bytes) -> bytes:
    """What the program makes of it, if all its calls succeed and it cuts off the front only."""
    head, tail = struct.unpack_from("<ii", given, 26)
    made = given[head:]
    return made + bytes(tail) if tail > 0 else made[:len(made) + tail]


class Rig:
    """A fake AF_XDP port (7), a memory port (8) and a stack behind the first."""

    def __init__(self, given: list[bytes], program: str = "frags", batch_size: int = 64,
                 first: tuple[int, ...] = ()) -> None:
        self.front = SgPort(ring_size=1024)
        self.front.ifindex = OWN
        Driver(self.front).flush()  # frames for the kernel
        for one in given:
            assert self.front.queue.deliver(one, *first if len(one) > sum(first) else ())
        self.other = MemoryPort([], ifindex=OTHER, name="other")
        self.stack = MemoryPort([], name="stack")
        self.engine = Engine(read_object(OBJECT), [self.front, self.other], program=program,
                             stack={0: self.stack}, exit_when_idle=True, batch_size=batch_size)

    def run(self) -> None:
        self.run_only()
        self.engine.close()

    def run_only(self) -> None:
        self.engine.start()
        assert self.engine.wait(10)
        self.total = self.engine.stats.total()

    @property
    def sent(self) -> list[bytes]:
        out = []
        while (one := self.front.queue.transmit()) is not None:
            out.append(one)
        return out


def test_slots_are_records() -> None:
    assert (contract.DATA, contract.DATA_END, contract.FRAME_END, contract.SLOT_SIZE_BYTES) == (
        state.FRAGMENT_DATA, state.FRAGMENT_END, state.FRAGMENT_ROOM, state.FRAGMENT_SIZE_BYTES)


def test_every_way_out_keeps_order_and_bytes() -> None:
    rng = random.Random(1)
    given = [packet(rng, size, verdict, OTHER) for _ in range(10)
             for size in (60, 9000, 1500, 1792, 1793, 4000)
             for verdict in (TX, REDIRECT, PASS, DROP, ABORTED)]
    rig = Rig(given)
    rig.run()
    ways = {verdict: [one for one in given if one[14] == verdict] for verdict in Verdict}
    assert rig.sent == ways[TX]
    assert rig.other.sent == ways[REDIRECT]
    assert rig.stack.sent == ways[PASS]
    total = rig.total
    assert (total["rx_packets"], total["rx_bytes"]) == (300, sum(map(len, given)))
    assert [total[name] for name in ("drop", "aborted", "pass", "tx", "redirect")] == [60] * 5
    assert total["tx_bytes"] == 2 * sum(map(len, ways[TX]))
    rig.front.queue.complete(10_000)
    assert checked(rig.front).in_hand == 0


def test_redirected_to_where_it_came_from() -> None:
    given = [packet(random.Random(2), 9000, REDIRECT, OWN)]
    rig = Rig(given)
    rig.run()
    assert rig.sent == given and rig.total["redirect_full"] == 0
    checked(rig.front)


@pytest.mark.parametrize("verdict", [TX, REDIRECT, PASS, DROP])
@pytest.mark.parametrize("change", [
    {"tail": -100}, {"tail": -7300}, {"tail": -8900}, {"tail": 25}, {"head": 14}, {"pull": 2000},
    {"pull": 900}, {"pull": 1000}, {"pull": 1040}, {"pull": 1050}, {"pull": 1060, "tail": -7000},
    {"pull": 1050, "head": 20, "tail": -7950}], ids=str)
def test_what_the_program_cut_off_is_given_back(verdict: Verdict, change: dict[str, int]) -> None:
    rng = random.Random(3)
    given = [packet(rng, size, verdict, OTHER, **change) for size in (9000, 9000, 9000)]
    rig = Rig(given, first=(1000, 30, 20))
    rig.run()
    out = {TX: rig.sent, REDIRECT: rig.other.sent, PASS: rig.stack.sent, DROP: []}[verdict]
    assert out == ([] if verdict is DROP else [after(one) for one in given])
    rig.front.queue.complete(10_000)
    assert checked(rig.front).in_hand == 0


def test_a_batch_ends_before_a_packet_that_does_not_fit() -> None:
    given = [packet(random.Random(4), 40_000, TX, OTHER) for _ in range(7)]
    rig = Rig(given, batch_size=48)
    rig.run()
    assert rig.sent == []  # more descriptors than the kernel takes for one packet
    assert rig.total["tx"] == rig.total["tx_full"] == 7
    assert checked(rig.front).in_hand == 0


def test_refused() -> None:
    with pytest.raises(ConfigError, match=r'takes packets in one buffer.*SEC\("xdp.frags"\)'):
        Rig([], "linear")
    with pytest.raises(ConfigError, match="use 48 or more"):
        Rig([], batch_size=32)


def test_a_frags_program_on_ports_without() -> None:
    given = [packet(random.Random(5), size, TX) for size in (60, 1500, 3000)]
    port = MemoryPort(given, record=True)
    engine = Engine(read_object(OBJECT), [port], program="frags", exit_when_idle=True)
    engine.start()
    assert engine.wait(10)
    engine.close()
    assert port.sent == given
