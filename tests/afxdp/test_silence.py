"""Why nothing comes in: each cause made, and found.  All calls are made in the port's namespace."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from afxdp import interface, silence
from afxdp.port import AfxdpPort
from afxdp.redirect_program import RedirectProgram
from bench.traffic import Flood
from tests.afxdp.network import ETHERTYPE, Peer, marks, open_port
from tests.control.run_xdpu import until
from tests.dataplane.drive import Driver, frames
from tests.nets import VethPair, entered, in_ns

pytestmark = marks()


@contextmanager
def port(monkeypatch: pytest.MonkeyPatch, there: int = 1,
         **options: Any) -> Iterator[tuple[VethPair, AfxdpPort]]:
    monkeypatch.setattr(silence, "_LOOK_S", 0.0)
    with VethPair(queues=there) as wire:
        made = open_port(wire.a, **options)
        try:
            with entered(wire.a.ns):
                yield wire, made
        finally:
            made.close()


def flood(wire: VethPair, seconds: float = 0.2) -> None:
    """Of many flows, so on all queues."""
    Flood(wire.b.ifname, wire.b.ns, seconds=seconds, flows=64).wait()


def test_nobody_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    with port(monkeypatch) as (wire, made):
        assert made.silence() == [f"nothing arrives at {wire.a.ifname}: nobody sends, or not to "
                                  "its MAC address (--promisc)"]
        assert made.advice() == ""


def test_every_address_is_received_already(monkeypatch: pytest.MonkeyPatch) -> None:
    with port(monkeypatch, promisc=True) as (wire, made):
        assert made.silence() == [f"nothing arrives at {wire.a.ifname}: nobody sends"]


def test_no_carrier_and_down(monkeypatch: pytest.MonkeyPatch) -> None:
    with port(monkeypatch) as (wire, made):
        in_ns(wire.b.ns, "ip", "link", "set", wire.b.ifname, "down")
        until(lambda: f"{wire.a.ifname} has no carrier" in made.silence()[0], "no carrier")
        in_ns(wire.a.ns, "ip", "link", "set", wire.a.ifname, "down")
        assert made.silence() == [f"{wire.a.ifname}: it is down"]
        in_ns(wire.a.ns, "ip", "link", "del", wire.a.ifname)
        assert made.silence() == [f"{wire.a.ifname} is gone"]


def test_a_queue_that_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for taken, hint in (([2], "(--queue all)"), ([0], "(--queue all, or steer them: ethtool -X")):
        with port(monkeypatch, there=4, queues=taken) as (wire, made):
            flood(wire)
            said, *_ = made.silence()
            assert said.startswith("packets go to queue ") and hint in said


def test_a_driver_that_does_not_count_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface, "received_by_queue", lambda name: {})
    with port(monkeypatch, there=4, queues=[2]) as (wire, made):
        flood(wire)
        assert any("has 4 receive queues, 1 of them are taken" in text for text in made.silence())


def test_the_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    with port(monkeypatch, wanted="vlan 9") as (wire, made):
        flood(wire)
        assert made.silence() == ["the filter leaves what comes to the stack"]
        assert made.advice() == ""


def test_nobody_takes_what_came(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker stands still: its frames fill up, and then the kernel drops."""
    with port(monkeypatch, ring_size=64) as (wire, made):
        flood(wire)
        said = made.silence()
        assert any("fill ring is empty" in text for text in said)
        assert "fill ring is empty" in made.advice()
        assert len(Driver(made).drain(64)) == 64
        made.advice()  # from here on
        peer = Peer(wire.b)
        peer.send(*frames(40))
        assert len(Driver(made).drain(40, ethertype=ETHERTYPE)) == 40
        peer.close()
        assert made.advice() == ""


def test_somebody_took_the_program_off(monkeypatch: pytest.MonkeyPatch) -> None:
    with port(monkeypatch) as (wire, made):
        program = made._program
        assert isinstance(program, RedirectProgram)
        os.close(program.link_fd)
        program.link_fd = -1
        peer = Peer(wire.b)
        peer.send(*frames(40))
        peer.close()
        assert any("has no XDP program any more" in text for text in made.silence())
        assert "has no XDP program any more" in made.advice()


def test_counters_of_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    with port(monkeypatch, there=2) as (wire, _):
        before = interface.received_by_queue(wire.a.ifname)
        assert set(before) == {0, 1}
        flood(wire)
        after = interface.received_by_queue(wire.a.ifname)
        came = interface.received(wire.a.ifname)
        assert sum(after.values()) - sum(before.values()) == pytest.approx(came, abs=50)
    for name in ("rx_queue_0_packets", "rx0_packets", "rx-0.packets", "rx_queue_0_xdp_packets",
                 "rx_0_packets"):
        assert interface._QUEUE_COUNTER.fullmatch(name)
    for name in ("rx_queue_0_xdp_drops", "tx_queue_0_packets", "rx_packets", "rx_queue_0_bytes"):
        assert not interface._QUEUE_COUNTER.fullmatch(name)
