"""Packets that did not get where they should: the counters of them, and words for each.

The worker loop counts what it finds no room for (LOST, ABORTED: of dataplane/stats.py).  What is
lost before a worker sees it, or after a port has taken it, only the port knows; its kind says which
of its counters those are (`losses`), so that no packet is in two of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from dataplane.port import Port

LOST = {
    "tx_full": "TX, no room to send",
    "redirect_no_port": "redirect to an interface that is not part of this run",
    "redirect_full": "redirect, no room to send",
    "cpu_full": "redirect to a worker, no room in its ring",
    "cpu_no_worker": "redirect to a worker that does not run",
    "ring_full": "redirect into a ring, no room in it",
    "pass_full": "PASS, not taken by the stack",
    "stack_full": "from the stack, no room to send",
}
ABORTED = {
    "invalid_verdict": "verdict that does not exist",
    "aborted_redirect": "bpf_redirect or bpf_redirect_map with flags that do not exist",
    "aborted_budget": "instruction budget used up",
    "egress_aborted": "by the program of a devmap's entry",
    "cpu_aborted": "by the program of a cpumap's entry",
}
OF_PORTS = {
    "rx_dropped": "not received, no room for it, or longer than a frame",
    "rx_ring_full": "not received, the receive ring was full",
    "rx_truncated": "not received, larger than the ring's frames",
    "rx_too_long": "not received, too long",
    "rx_invalid": "not received, not what its vnet header says",
    "rx_too_short": "not received, too short for Ethernet",
    "rx_unfit": "not received, fits no buffer",
    "rx_nombuf": "not received, no mbuf was free",
    "imissed": "not received, the device's queue was full",
    "ierrors": "not received, damaged",
    "tx_full": "to be sent, no room in the driver",
    "tx_failed": "to be sent, refused by the kernel",
    "tx_invalid_descs": "to be sent, not as the kernel wants it",
    "tx_live_failed": "to be sent, refused by the kernel as a live frame",
    "failed": "the kernel took no frames",
    "refused": "not taken there: no socket, no room, or an interface that is down",
}
Losses = dict[str, dict[str, int]]  # port -> counter -> packets, those that are not 0
Rates = Mapping[str, Mapping[str, float]]  # the same a second


def of_ports(ports: Iterable[Port]) -> Losses:
    """What only they have counted; those of one name together."""
    found: dict[str, Counter[str]] = {}
    for port in ports:
        counted = port.statistics()
        found.setdefault(port.name, Counter()).update(
            {name: counted.get(name, 0) for name in port.kind.losses})
    return {name: dict(+counts) for name, counts in found.items() if +counts}


def grown(new: Losses, old: Losses) -> Losses:
    """What has been lost since; a port that left took its counters along."""
    return {port: {name: max(count - old.get(port, {}).get(name, 0), 0)
                   for name, count in counts.items()} for port, counts in new.items()}


def all_of(total: Mapping[str, float], ports: Rates) -> float:
    """Of a run with these counters."""
    return sum(total[name] for name in LOST) + sum(
        count for counts in ports.values() for count in counts.values())


def words(total: Mapping[str, float], ports: Rates) -> list[tuple[str, float]]:
    """Each reason there was, and how many packets; also a second."""
    return [(text, total[name]) for name, text in LOST.items() if total[name]] + [
        (f"{port}: {OF_PORTS[name]}", count)
        for port, counts in ports.items() for name, count in counts.items()]
