"""The ring templates against a kernel played by Python: no privileges needed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afxdp import rings
from afxdp.audit import Audit, audit
from tests.afxdp.fake_kernel import FakePort
from tests.dataplane.drive import Driver, frames

JUST_BELOW_WRAP = (1 << 32) - 3


def checked(port: FakePort) -> Audit:
    """No frame lost, none in two places."""
    found = audit(port.queue)  # type: ignore[arg-type]
    assert found.in_hand == 0 and found.twice == ()
    assert found.total == (found.free + found.fill + found.rx_kernel + found.rx + found.tx
                           + found.tx_kernel + found.completion)
    assert min(found.rx_kernel, found.tx_kernel) >= 0
    return found


@pytest.fixture(params=[(0, False), (JUST_BELOW_WRAP, False), (0, True)],
                ids=["zero", "wrap", "unaligned"])
def port(request: pytest.FixtureRequest) -> FakePort:
    made = FakePort(start=request.param[0], unaligned=request.param[1])
    Driver(made).flush()  # half of the frames go to the fill ring
    return made


def test_flush_fills_the_fill_ring(port: FakePort) -> None:
    assert (checked(port).fill, checked(port).free) == (64, 64)


def test_receive_shows_packets_and_their_bounds(port: FakePort) -> None:
    sent = frames(10)
    for frame in sent:
        assert port.queue.deliver(frame)
    driver = Driver(port)
    slots = driver.receive()
    assert [slot.data for slot in slots] == list(sent)
    for slot in slots:
        chunk = slot.start - 256
        assert (chunk - port.queue.umem_address) % 2048 == 0
        assert slot.hard_start == chunk + 40
        assert slot.frame_end == chunk + 2048


def test_a_large_frame_leaves_the_tail_alone() -> None:
    port = FakePort(frame_size=4096)
    driver = Driver(port)
    driver.flush()
    for length in (60, 3520, 3840):
        port.queue.deliver(bytes(length))
    room = [slot.frame_end - slot.end for slot in driver.receive()]
    assert room == [4096 - 256 - 320 - 60, 0, 0]


def test_receive_obeys_its_budget(port: FakePort) -> None:
    driver = Driver(port)
    for frame in frames(50):
        port.queue.deliver(frame)
    assert [len(driver.receive(20)) for _ in range(4)] == [20, 20, 10, 0]


def test_transmit_sends_the_moved_packet_in_place(port: FakePort) -> None:
    driver = Driver(port)
    frame = frames(1)[0]
    port.queue.deliver(frame)
    slot, = driver.receive()
    slot.adjust(head=-20, tail=-4)
    slot.poke(0, b"n" * 20)
    assert driver.transmit(slot)
    driver.flush()
    assert port.queue.transmit() == b"n" * 20 + frame[:-4]
    port.queue.complete()
    driver.flush()
    assert checked(port).tx_kernel == 0 and checked(port).free == 64


def test_nothing_is_sent_before_flush(port: FakePort) -> None:
    driver = Driver(port)
    assert driver.send(frames(1)[0])
    assert port.queue.transmit() is None
    driver.flush()
    assert port.queue.transmit() == frames(1)[0]


def test_a_full_tx_ring_gives_the_frame_back(port: FakePort) -> None:
    driver = Driver(port)
    for _ in range(64):
        assert driver.send(frames(1)[0])
    driver.flush()
    assert checked(port).tx == 64
    port.queue.deliver(frames(1)[0])
    slot, = driver.receive()
    assert not driver.transmit(slot)
    assert not driver.send(frames(1)[0])
    driver.flush()
    assert checked(port).tx == 64
    assert port.queue.load(rings.TX_FULL) == 2
    # our descriptor is -1: the wake-up fails, is counted, and costs no frame
    assert port.queue.load(rings.WAKE_ERRORS) > 0 and port.queue.load(rings.WAKE_ERRNO) == 9
    assert port.queue.transmit() is not None
    port.queue.complete()
    driver.flush()
    port.queue.deliver(frames(1)[0])
    slot, = driver.receive()
    assert driver.transmit(slot)
    assert checked(port).tx == 64


def test_no_frame_for_a_foreign_packet(port: FakePort) -> None:
    driver = Driver(port)
    for _ in range(64):
        assert driver.send(frames(1)[0])
    driver.flush()
    while port.queue.transmit() is not None:
        pass  # room in TX again, but nothing completes
    assert not driver.send(frames(1)[0])
    assert port.queue.load(rings.NO_FRAME) == 1
    port.queue.complete()
    assert driver.send(frames(1)[0])
    checked(port)


def test_released_frames_go_back_without_the_stack(port: FakePort) -> None:
    driver = Driver(port)
    for _ in range(5):
        for _ in range(40):
            assert port.queue.deliver(frames(1)[0])
        for slot in driver.receive():
            driver.release(slot)
        assert (checked(port).fill, checked(port).free) == (64, 64)
        assert port.queue.ring("fill")[0] != port.queue.load(rings.FILL + rings.MINE) % (1 << 32)
        driver.flush()
        assert port.queue.ring("fill")[0] == port.queue.load(rings.FILL + rings.MINE) % (1 << 32)


def test_a_flush_in_the_middle_of_a_batch(port: FakePort) -> None:
    """It fills FILL up, so what is released later has to wait on the stack."""
    driver = Driver(port)
    for _ in range(40):
        port.queue.deliver(frames(1)[0])
    slots = driver.receive()
    driver.flush()
    found = audit(port.queue)  # type: ignore[arg-type]
    assert (found.fill, found.free, found.in_hand) == (64, 24, 40)
    for slot in slots:
        driver.release(slot)
    assert (checked(port).fill, checked(port).free) == (64, 64)


def test_who_is_woken_when(port: FakePort) -> None:
    """Our descriptor is -1, so a wake-up fails, but it is counted."""
    driver, queue = Driver(port), port.queue

    def wakeups() -> int:
        before = queue.load(rings.WAKEUPS)
        driver.flush()
        return queue.load(rings.WAKEUPS) - before

    assert wakeups() == 0  # nothing to send
    driver.send(frames(1)[0])
    assert wakeups() == 1
    queue.rings["tx"].flags.value = 0
    assert wakeups() == 0  # the driver is awake
    queue.store(rings.FLAGS, rings.WAKE_ALWAYS)
    assert wakeups() == 1
    queue.transmit()
    assert wakeups() == 0  # taken; in copy mode the kernel completes it by itself
    queue.store(rings.FLAGS, rings.ZERO_COPY)
    assert wakeups() == 0
    queue.rings["tx"].flags.value = rings.NEED_WAKEUP
    assert wakeups() == 1  # a driver may sleep before it has completed
    queue.complete()
    driver.flush()
    assert wakeups() == 0
    queue.rings["fill"].flags.value = rings.NEED_WAKEUP
    assert wakeups() == 1


def test_an_idle_port_takes_back_what_completes_late(port: FakePort) -> None:
    """All frames are with the kernel: no batch, so no flush, would ever come again."""
    driver = Driver(port)
    for _ in range(2):
        for _ in range(64):
            port.queue.deliver(frames(1)[0])
        for slot in driver.receive():
            assert driver.transmit(slot)
        driver.flush()
        while port.queue.transmit() is not None:
            pass
    assert (checked(port).fill, port.queue.deliver(frames(1)[0])) == (0, False)
    port.queue.complete(64)
    assert driver.receive() == []
    assert (checked(port).fill, port.queue.deliver(frames(1)[0])) == (64, True)


@pytest.mark.parametrize("length", [0, 1, 13, 2049, 1 << 40])
def test_a_length_the_kernel_would_swallow_is_refused(port: FakePort, length: int) -> None:
    driver = Driver(port)
    assert driver._calls["send"](driver.q, port.queue.umem_address, length) == 0
    port.queue.deliver(frames(1)[0])
    slot, = driver.receive()
    slot.adjust(tail=length - 64)
    assert not driver.transmit(slot)
    driver.flush()
    assert port.queue.load(rings.MALFORMED) == 2
    assert checked(port).tx == 0


@pytest.mark.parametrize("length", [14, 2048])
def test_the_shortest_and_longest_foreign_packet(port: FakePort, length: int) -> None:
    driver = Driver(port)
    assert driver.send(b"x" * length)
    driver.flush()
    assert port.queue.transmit() == b"x" * length


_STEP = st.one_of(
    st.tuples(st.just("deliver"), st.integers(1, 80)),
    st.tuples(st.just("worker"), st.integers(1, 64), st.integers(0, 3)),
    st.tuples(st.just("send"), st.integers(1, 70)),
    st.tuples(st.just("transmit"), st.integers(1, 64)),
    st.tuples(st.just("complete"), st.integers(1, 64)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(_STEP, max_size=40), st.sampled_from([0, JUST_BELOW_WRAP]),
       st.sampled_from([{}, {"unaligned": True, "frame_size": 2112}]))
def test_no_frame_is_ever_lost(steps: list[tuple[str, ...]], start: int,
                               shape: dict[str, Any]) -> None:
    port = FakePort(start=start, **shape)
    driver, queue = Driver(port), port.queue
    driver.flush()
    arrived: list[bytes] = []
    expected: list[bytes] = []
    left: list[bytes] = []
    numbers = iter(frames(4000, 32))
    for what, count, *how in steps:
        for _ in range(int(count) if what not in ("worker", "complete") else 0):
            match what:
                case "deliver":
                    frame = next(numbers)
                    if queue.deliver(frame):
                        arrived.append(frame)
                case "send":
                    frame = next(numbers)
                    if driver.send(frame):
                        expected.append(frame)
                case "transmit":
                    if (sent := queue.transmit()) is not None:
                        left.append(sent)
        if what == "complete":
            queue.complete(int(count))
        if what == "worker":
            for i, slot in enumerate(driver.receive(int(count))):
                assert slot.data == arrived.pop(0)
                data = slot.data
                if i % 4 >= int(how[0]):
                    driver.release(slot)
                elif driver.transmit(slot):
                    expected.append(data)
            driver.flush()
        checked(port)
    driver.flush()
    for _ in range(3):
        while (sent := queue.transmit()) is not None:
            left.append(sent)
        queue.complete(64)
        driver.flush()
    assert left == expected
    assert checked(port).completion == 0
