"""The templates for packets in several frames, against a kernel played by Python."""

from __future__ import annotations

import ctypes
import random
from itertools import accumulate, pairwise
from typing import Any

import pytest

from afxdp import rings, sg
from tests.afxdp.fake_kernel import FakePort, FakeQueue
from tests.afxdp.test_rings import JUST_BELOW_WRAP, checked
from tests.dataplane.drive import Driver, Slot, frames

PIECE = 2048 - 256  # what the kernel puts into a frame


class SgQueue(FakeQueue):
    """Delivers and takes packets of several descriptors, as the kernel: all of them or none."""

    def deliver(self, packet: bytes, *first: int) -> bool:
        """`first` are sizes of its first pieces; the others are as large as they can be."""
        ends = [0, *accumulate(first)]
        ends += [*range(ends[-1] + PIECE, len(packet), PIECE), len(packet)]
        pieces = [packet[a:b] for a, b in pairwise(ends)]
        rx, fill = self.rings["rx"], self.rings["fill"]
        room = rx.size - (rx.producer.value - rx.consumer.value & 0xFFFFFFFF)
        there = fill.producer.value - fill.consumer.value & 0xFFFFFFFF
        if min(room, there) < len(pieces):
            return False
        for number, piece in enumerate(pieces, 1):
            entry = fill.take()
            assert entry is not None
            chunk = entry[0] & self.shape.layout.chunk_mask
            ctypes.memmove(self.umem_address + chunk + 256, piece, len(piece))
            more = sg.PKT_CONTD << 32 if number < len(pieces) else 0
            rx.put(chunk + (256 << self.load(rings.OFFSET_SHIFT)), len(piece) | more)
        return True

    def transmit(self) -> bytes | None:
        packet = b""
        while (taken := self.rings["tx"].take()) is not None:
            address, length, options = taken[0], taken[1] & 0xFFFFFFFF, taken[1] >> 32
            assert 0 < length <= self.shape.frame_size
            self._sent.append(address)
            start = (address & rings.ADDRESS_MASK) + (address >> rings.OFFSET_BITS_AT)
            packet += ctypes.string_at(self.umem_address + start, length)
            if not options & sg.PKT_CONTD:
                return packet
        assert not packet, "published in part"
        return None


class SgPort(FakePort):
    kind = sg.AFXDP_SG

    def __init__(self, **shape: Any) -> None:
        super().__init__(**shape)
        self.queue = SgQueue(**shape)
        self.queues = [type(self.queues[0])(0, self.queue.address, -1)]


@pytest.fixture(params=[(0, False), (JUST_BELOW_WRAP, False), (0, True)],
                ids=["zero", "wrap", "unaligned"])
def port(request: pytest.FixtureRequest) -> SgPort:
    made = SgPort(start=request.param[0], unaligned=request.param[1])
    Driver(made).flush()
    return made


def packets(slots: list[Slot]) -> list[list[Slot]]:
    out = []
    while slots:
        count = 1 + slots[0].fragments
        out.append(slots[:count])
        slots = slots[count:]
    return out


def content(packet: list[Slot]) -> bytes:
    return b"".join(slot.data for slot in packet)


def test_a_packet_is_consecutive_slots(port: SgPort) -> None:
    sent = [frames(1, size)[0] for size in (60, PIECE, PIECE + 1, 9000, 100)]
    for frame in sent:
        assert port.queue.deliver(frame)
    driver = Driver(port)
    got = packets(driver.receive())
    assert [content(packet) for packet in got] == sent
    assert [len(packet) for packet in got] == [1, 1, 2, 6, 1]
    for slot in got[3]:
        chunk = slot.start - 256
        assert (slot.hard_start, slot.frame_end) == (chunk + 40, chunk + 2048)


def test_a_packet_is_never_of_two_batches(port: SgPort) -> None:
    driver, sent = Driver(port), [frames(1, 2 * PIECE)[0]] * 7
    for frame in sent:
        port.queue.deliver(frame)
    for count in (4, 4, 4, 2, 0):
        slots = driver.receive(5)
        assert len(slots) == count
        for slot in slots:
            driver.release(slot)
    driver.flush()
    checked(port)


def test_sent_in_place_and_as_a_copy(port: SgPort) -> None:
    driver, packet = Driver(port), frames(1, 9000)[0]
    port.queue.deliver(packet)
    slots = driver.receive()
    slots[0].adjust(head=-10)
    slots[0].poke(0, b"n" * 10)
    assert driver.chain(slots[0], len(slots) - 1)
    assert driver.send(packet[:5000])
    assert driver.send(packet[:60])
    driver.flush()
    assert [port.queue.transmit() for _ in range(4)] == [
        b"n" * 10 + packet, packet[:5000], packet[:60], None]
    port.queue.complete(20)
    driver.flush()
    found = checked(port)
    assert (found.tx, found.tx_kernel) == (0, 0)


def test_a_packet_elsewhere_is_copied(port: SgPort) -> None:
    """The loop made it one piece; the frame it came in is given back."""
    driver, packet = Driver(port), frames(1, 9000)[0]
    port.queue.deliver(packet)
    slots = driver.receive()
    memory = ctypes.create_string_buffer(packet, len(packet))
    for slot in slots[1:]:
        driver.release(slot)
    slots[0].adjust(head=ctypes.addressof(memory) - slots[0].start,
                    tail=ctypes.addressof(memory) + 9000 - slots[0].end)
    assert driver.transmit(slots[0])
    driver.flush()
    assert port.queue.transmit() == packet
    port.queue.complete(20)
    driver.flush()
    assert checked(port).tx_kernel == 0


def test_too_many_pieces_are_given_up(port: SgPort) -> None:
    driver = Driver(port)
    assert not driver.send(bytes(18 * 2048 + 1))
    assert driver.send(bytes(18 * 2048))
    port.queue.deliver(bytes(19 * PIECE))
    slots = driver.receive()
    assert len(slots) == 19 and not driver.chain(slots[0], 18)
    driver.flush()
    assert port.queue.load(rings.MALFORMED) == 2
    assert port.queue.transmit() == bytes(18 * 2048) and port.queue.transmit() is None
    checked(port)


def test_no_room_for_all_of_it_means_none_of_it(port: SgPort) -> None:
    driver = Driver(port)
    for _ in range(62):
        assert driver.send(bytes(60))
    port.queue.deliver(bytes(3 * PIECE))
    slots = driver.receive()
    assert not driver.chain(slots[0], 2)
    assert not driver.send(bytes(5000))
    assert driver.send(bytes(4096))
    assert port.queue.load(rings.TX_FULL) == 2
    driver.flush()
    assert checked(port).tx == 64


@pytest.mark.parametrize("seed", range(30))
def test_no_frame_is_lost(seed: int) -> None:
    rng = random.Random(seed)
    port = SgPort(start=rng.choice((0, JUST_BELOW_WRAP)), unaligned=bool(seed & 1))
    driver, expected = Driver(port), []
    driver.flush()
    for _ in range(60):
        for _ in range(rng.randrange(4)):
            port.queue.deliver(rng.randbytes(rng.choice((14, 60, 1500, 4000, 9000, 20000))))
        for packet in packets(driver.receive(rng.choice((32, 64)))):
            sent = content(packet)
            if rng.random() < 0.5:
                if driver.chain(packet[0], len(packet) - 1):
                    expected.append(sent)
            else:
                for slot in packet:
                    driver.release(slot)
        if rng.random() < 0.5:
            copy = rng.randbytes(rng.choice((14, 2048, 2049, 9000)))
            if driver.send(copy):
                expected.append(copy)
        driver.flush()
        for _ in range(rng.randrange(6)):
            if (left := port.queue.transmit()) is not None:
                assert left == expected.pop(0)
        port.queue.complete(rng.randrange(40))
        driver.flush()
        checked(port)
