"""AfxdpPort on a veth: bytes in, bytes out, and where the frames are afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from bench.traffic import Flood
from tests.afxdp.network import (
    Peer,
    all_frames_found,
    collect,
    marks,
    open_port,
    opened,
    peer,
    wire,
)
from tests.dataplane.drive import Driver, frames
from tests.nets import VethPair, in_ns

pytestmark = marks()
__all__ = ["peer", "wire"]

SHAPES: list[dict[str, Any]] = [
    {}, {"mode": "generic"}, {"frame_size": 2048}, {"need_wakeup": False}, {"ring_size": 64},
    {"copy_mode": "copy"}, {"unaligned": True, "frame_size": 3008}, {"busy_poll": 32},
    {"unaligned": True, "frame_size": 3008, "mode": "generic", "pages": "ordinary"},
]
PACKETS = 100_000
FLOOD = 30_000  # a ring of 2048 goes round fourteen times


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_frames_arrive_as_sent(wire: VethPair, peer: Peer, shape: dict[str, Any]) -> None:
    sent = [frames(1, length)[0] for length in (14, 15, 60, 64, 65, 1000, 1513, 1514)]
    with opened(wire.a, queues=[0], **shape) as port:
        driver = Driver(port)
        for frame in sent:
            peer.send(frame)
            slot, = collect(driver, 1)
            assert slot.data == frame
            chunk = slot.hard_start - 40
            assert (chunk - port.opened[0].umem.address) % port.opened[0].shape.frame_size == 0
            assert slot.start == chunk + 256
            assert slot.end <= slot.frame_end <= chunk + port.opened[0].shape.frame_size
            driver.release(slot)
        all_frames_found(port)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_moved_packets_leave_by_the_same_port(wire: VethPair, peer: Peer,
                                              shape: dict[str, Any]) -> None:
    head = frames(1)[0][:14]
    with opened(wire.a, queues=[0], **shape) as port:
        driver = Driver(port)
        for added in (-40, -14, 0, 20, 100, 216 - 14):
            frame = frames(1, 100)[0]
            peer.send(frame)
            slot, = collect(driver, 1)
            slot.adjust(head=-added, tail=30)
            assert slot.start >= slot.hard_start and slot.end <= slot.frame_end
            slot.poke(0, head)
            slot.poke(slot.end - slot.start - 30, b"t" * 30)
            expected = slot.data
            assert len(expected) == 130 + added
            assert driver.transmit(slot)
            driver.flush()
            assert peer.receive(1) == [expected]
        all_frames_found(port)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_foreign_packets_are_sent(wire: VethPair, peer: Peer, shape: dict[str, Any]) -> None:
    sent = [frame for length in (14, 64, 1514) for frame in frames(20, length)]
    with opened(wire.a, queues=[0], **shape) as port:
        driver = Driver(port)
        for frame in sent:
            assert driver.send(frame)
        driver.flush()
        assert peer.receive(len(sent)) == sent
        all_frames_found(port)


def test_every_queue_receives_and_sends() -> None:
    """The sender's processor and its hash choose the queue, so flows of every kind are sent."""
    with VethPair(queues=2) as wire, opened(wire.a) as port:
        peer = Peer(wire.b)
        assert [queue.index for queue in port.queues] == [0, 1]
        for index in range(2):
            driver = Driver(port, index)
            assert driver.send(frames(2)[index])
            driver.flush()
        assert sorted(peer.receive(2)) == sorted(frames(2))
        flood = Flood(wire.b.ifname, wire.b.ns, seconds=0.3, flows=64)
        flood.wait()
        peer.send(*frames(50))
        got = [Driver(port, index).drain(10_000, timeout_s=1) for index in range(2)]
        assert all(got) and set(frames(50)) <= {frame for queue in got for frame in queue}
        all_frames_found(port)
        peer.close()


def _drop(driver: Driver, slot: Any) -> int:
    driver.release(slot)
    return 0


def _answer(driver: Driver, slot: Any) -> int:
    return int(driver.transmit(slot))


def _forward(driver: Driver, slot: Any) -> int:
    sent = driver.send(slot.data)
    driver.release(slot)
    return int(sent)


@pytest.mark.parametrize("handle", [_drop, _answer, _forward])
@pytest.mark.parametrize("shape", [{}, {"ring_size": 64}, {"unaligned": True, "frame_size": 2112,
                                                           "busy_poll": 64}], ids=str)
def test_no_frame_is_lost_in_a_flood(wire: VethPair, shape: dict[str, Any],
                                     handle: Callable[[Driver, Any], int]) -> None:
    with opened(wire.a, queues=[0], **shape) as port:
        driver = Driver(port)
        flood = Flood(wire.b.ifname, wire.b.ns, seconds=70)
        try:
            received, _ = _run(driver, handle, FLOOD)
        finally:
            flood.stop()
        assert received >= FLOOD
        _run(driver, handle, 0)
        all_frames_found(port)
        counted = port.statistics()
        assert counted["wake_errors"] == counted["tx_invalid_descs"] == 0
        assert counted["malformed"] == counted["rx_invalid_descs"] == 0


def _run(driver: Driver, handle: Callable[[Driver, Any], int], packets: int) -> tuple[int, int]:
    """Handle at least so many packets, or those that wait; received and sent."""
    received = sent = 0
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        slots = driver.receive()
        for slot in slots:
            sent += handle(driver, slot)
        received += len(slots)
        driver.flush()
        if received >= packets and (packets or not slots):
            break
    return received, sent


def test_a_hundred_thousand_sent(wire: VethPair, peer: Peer) -> None:
    frame, = frames(1)
    with opened(wire.a, queues=[0]) as port:
        driver, accepted = Driver(port), 0
        for number in range(PACKETS):
            accepted += driver.send(frame)
            if number % 64 == 63:
                driver.flush()
        all_frames_found(port)
        assert accepted + port.statistics()["no_frame"] + port.statistics()["tx_full"] == PACKETS
        assert accepted > PACKETS * 0.99


def test_a_slow_interface_gives_frames_back_late(wire: VethPair) -> None:
    """A device that is down: what was sent waits in TX, and nothing is lost when it is up."""
    with opened(wire.a, queues=[0], ring_size=64) as port:
        driver = Driver(port)
        in_ns(wire.a.ns, "ip", "link", "set", wire.a.ifname, "down")
        accepted = sum(driver.send(frame) for frame in frames(300))
        driver.flush()
        assert accepted <= 128
        assert port.statistics()["wake_errors"] > 0  # ENETDOWN
        in_ns(wire.a.ns, "ip", "link", "set", wire.a.ifname, "up")
        all_frames_found(port)


def test_statistics_outlive_the_port(wire: VethPair) -> None:
    port = open_port(wire.a)
    driver = Driver(port)
    driver.send(frames(1)[0])
    driver.flush()
    port.close()
    assert port.statistics()["wakeups"] == 1
    assert port.finished()
