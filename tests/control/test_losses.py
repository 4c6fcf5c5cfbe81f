"""What is lost, by reason: of the loop and of ports, in sums, rates and words."""

from __future__ import annotations

import pytest

from control import losses
from control.top import _show
from control.watch import NOTHING, status_line
from dataplane.memory import MEMORY
from dataplane.port import Port, PortKind
from dataplane.stats import COUNTERS


class Counted:
    """A port that is only asked for its counters."""

    def __init__(self, name: str, **counters: int) -> None:
        self.name, self._counters = name, counters
        self.kind = PortKind("counted", MEMORY.receive, MEMORY.release, MEMORY.transmit,
                             MEMORY.send, MEMORY.flush, losses=("rx_dropped", "tx_failed"))

    def statistics(self) -> dict[str, int]:
        return self._counters


def of(*ports: Counted) -> losses.Losses:
    some: list[Port] = list(ports)  # type: ignore[arg-type]
    return losses.of_ports(some)


def test_only_what_is_lost_counts_and_ports_of_one_name_together() -> None:
    assert of(Counted("a", rx_dropped=3, wakeups=9), Counted("b", tx_failed=0),
              Counted("a", rx_dropped=1, tx_failed=2)) == {"a": {"rx_dropped": 4, "tx_failed": 2}}


def test_sums_and_words() -> None:
    total, ports = NOTHING | {"tx_full": 5, "drop": 7, "ring_full": 1}, {"a": {"rx_dropped": 3}}
    assert losses.all_of(total, ports) == 9
    assert losses.words(total, ports) == [
        ("TX, no room to send", 5), ("redirect into a ring, no room in it", 1),
        ("a: not received, no room for it, or longer than a frame", 3)]
    assert losses.grown({"a": {"rx_dropped": 3}, "b": {"tx_failed": 1}},
                        {"a": {"rx_dropped": 1}, "c": {"tx_failed": 8}}) == {
        "a": {"rx_dropped": 2}, "b": {"tx_failed": 1}}


def test_every_name_has_words_and_none_is_the_loops() -> None:
    assert set(losses.LOST) | set(losses.ABORTED) <= set(COUNTERS)
    from afxdp import live_tx, rings, sg
    from dataplane import af_packet_ring, live_port, pcap, tap

    for kind in (rings.AFXDP, live_tx.AFXDP_LIVE, sg.AFXDP_SG, af_packet_ring.AF_PACKET, tap.TAP,
                 live_port.LIVE, pcap.PCAP, pcap.PCAPNG):
        assert kind.losses and set(kind.losses) <= set(losses.OF_PORTS), kind.name


def test_what_a_screen_of_top_has(capsys: pytest.CaptureFixture[str]) -> None:
    _show([{"name": "one", "per_second": NOTHING | {"rx_packets": 10, "pass_full": 2},
            "lost_by_ports_per_second": {"eth0": {"rx_dropped": 1234.0, "tx_failed": 0.0}},
            "flows": [], "latency_ns": {"p50": None}}])
    head, lost = capsys.readouterr().out.splitlines()
    assert head.endswith("1,236 lost/s") and head == status_line(
        "one", NOTHING | {"rx_packets": 10, "pass_full": 2}, 1234)
    assert lost == ("  lost: PASS, not taken by the stack 2/s; eth0: not received, no room for it, "
                    "or longer than a frame "
                    "1,234/s")
