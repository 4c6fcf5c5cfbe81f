"""MemoryPort: what only this port has: results, repeats, bounded output, queues."""

from __future__ import annotations

import pytest

from dataplane.memory import MemoryPort, Result
from tests.dataplane.drive import Driver, frames
from xdp_runtime.errors import ConfigError
from xdp_runtime.state import Verdict


def test_results_come_in_input_order_whatever_the_loop_gave_back_first() -> None:
    port = MemoryPort(frames(4), record=True)
    driver = Driver(port)
    slots = driver.receive(4)
    slots[1].adjust(head=-8)
    slots[1].poke(0, b"METADATA"[:8])
    assert driver.transmit(slots[2])
    driver.release(slots[3], Verdict.REDIRECT, 7)
    driver.release(slots[1], Verdict.PASS)
    driver.release(slots[0], Verdict.ABORTED)
    driver.flush()
    a, b, c, d = frames(4)
    assert port.results == [
        Result(Verdict.ABORTED, 0, a, b""), Result(Verdict.PASS, 0, b"METADATA" + b, b""),
        Result(Verdict.TX, 0, c, b""), Result(Verdict.REDIRECT, 7, d, b"")]
    assert port.sent == [c]
    port.close()
    assert port.sent == [c] and len(port.results) == 4 and port.finished()


def test_metadata_is_recorded_before_the_packet() -> None:
    port = MemoryPort(frames(1), record=True)
    driver = Driver(port)
    (slot,) = driver.receive()
    slot.mark(b"mark")
    driver.release(slot, Verdict.PASS)
    driver.flush()
    assert port.results == [Result(Verdict.PASS, 0, frames(1)[0], b"mark")]


def test_a_packet_is_fresh_in_every_round() -> None:
    port = MemoryPort(frames(3), count=4)
    driver = Driver(port)
    got = []
    while not port.finished():
        for slot in driver.receive(2):
            got.append(slot.data)
            slot.poke(0, b"\xff" * 14)
            driver.release(slot)
        driver.flush()
    assert got == list(frames(3)) * 4


def test_full_output_loses_packets_and_counts_them() -> None:
    port = MemoryPort(frames(3), record=True, out_bytes=2 * 80, log_bytes=80)
    driver = Driver(port)
    assert [driver.transmit(slot) for slot in driver.receive()] == [True, True, False]
    driver.flush()
    assert port.sent == list(frames(2))
    assert port.statistics() == {"tx_full": 1, "record_full": 2}


def test_discarded_output_never_fills() -> None:
    port = MemoryPort(frames(1), count=100, out_bytes=2 * 80, discard=True)
    driver = Driver(port)
    while not port.finished():
        assert all(driver.transmit(slot) for slot in driver.receive(2))
        driver.flush()
    assert port.sent == [] and port.statistics()["tx_full"] == 0


def test_queues_share_the_input() -> None:
    port = MemoryPort(frames(5), queues=2)
    assert Driver(port, 0).drain(9) == list(frames(5)[::2])
    assert not port.finished()
    assert Driver(port, 1).drain(9) == list(frames(5)[1::2])
    assert port.finished()


def test_no_input_is_finished_at_once() -> None:
    assert MemoryPort([]).finished()
    assert MemoryPort(frames(1), count=0).finished()


def test_a_frame_must_fit() -> None:
    with pytest.raises(ConfigError, match="frame 2: it has 4000 bytes, a buffer takes 1 to 3520"):
        MemoryPort([bytes(60), bytes(4000)])


def test_results_need_record() -> None:
    with pytest.raises(ValueError, match="record=True"):
        _ = MemoryPort(frames(1)).results
