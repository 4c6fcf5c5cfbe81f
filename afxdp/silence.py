"""Why does a port receive nothing?  Likely causes, from what the host counts.

The interface's own counter says whether anything arrives at all.  What arrives and does not come
out of a socket went to a queue that has none, was left by the filter, or found no room: the kernel
counts each of them somewhere.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from afxdp import interface, redirect_program
from afxdp.queue import Queue
from xdp_runtime.errors import PortError

_LOOK_S = 3.0
_ENOUGH = 20  # packets: fewer are the neighbours' small talk


@dataclass(frozen=True, slots=True)
class Counts:
    """At one moment: packets the interface received, in all and by queue where its driver says;
    those our sockets received; the port's own counters."""

    interface: int
    queues: Mapping[int, int]
    sockets: int
    port: Mapping[str, int] = field(default_factory=dict)


class Listening(Protocol):
    """What is asked of a port: an AfxdpPort."""

    name: str
    ifindex: int
    promiscuous: bool

    @property
    def opened(self) -> Sequence[Queue]: ...

    def statistics(self) -> dict[str, int]: ...


class Listener:
    """Compares moments of one port.  Made when it was opened."""

    def __init__(self, port: Listening) -> None:
        self._port = port
        self._first = self._last = self._count()
        self._due_s = time.monotonic() + _LOOK_S

    def _count(self) -> Counts:
        port = self._port
        name = interface.name_of(port.ifindex) or port.name
        return Counts(interface.received(name), interface.received_by_queue(name),
                      sum(queue.received for queue in port.opened), port.statistics())

    def explain(self) -> list[str]:
        """Causes of the silence since the port was opened, the likeliest first."""
        name, taken = self._port.name, len(self._port.opened)
        missed = ", or to a queue that is not taken (--queue all)" \
            if interface.channels(name) > taken else ""
        other_mac = "" if self._port.promiscuous else ", or not to its MAC address (--promisc)"
        return self._compare(self._first, self._count()) or [
            f"nothing arrives at {name}: nobody sends{other_mac}{missed}"]

    def advice(self) -> str:
        """Now and then: what arrived since the last time though nothing came in; else ""."""
        if time.monotonic() < self._due_s:
            return ""
        now = self._count()
        before, self._last = self._last, now
        self._due_s = time.monotonic() + _LOOK_S
        arrived = now.interface - before.interface
        if arrived < _ENOUGH or now.sockets > before.sockets:
            return ""
        if now.port.get("filtered", 0) > before.port.get("filtered", 0):
            return ""  # as asked
        why = self._compare(before, now)
        return f"{self._port.name} receives packets that do not come in: {'; '.join(why)}"

    def _compare(self, before: Counts, now: Counts) -> list[str]:
        port = self._port
        name = interface.name_of(port.ifindex)
        if not name:
            return [f"{port.name} is gone"]
        grown = {key: value - before.port.get(key, 0) for key, value in now.port.items()}
        why: list[str] = []
        try:
            found = interface.query(name)
        except PortError as error:
            return [f"{name}: {error.why}"]
        if not interface.has_carrier(name):
            why.append(f"{name} has no carrier: the cable, or the other end, is down")
        if not redirect_program.is_attached(port.ifindex):
            why.append(f"{name} has no XDP program any more: somebody took ours off")
        elsewhere = sorted(queue for queue, count in now.queues.items()
                           if count - before.queues.get(queue, 0) > 0
                           and queue not in {q.index for q in port.opened})
        if elsewhere:
            first = [queue.index for queue in port.opened] == list(range(len(port.opened)))
            steer = f", or steer them: ethtool -X {name} equal {len(port.opened)}" * first
            why.append(f"packets go to queue {', '.join(map(str, elsewhere))}, which is not taken "
                       f"(--queue all{steer})")
        elif found.channels > len(port.opened) and now.interface > before.interface:
            why.append(f"{name} has {found.channels} receive queues, {len(port.opened)} of them "
                       "are taken, the others' packets go to the host (--queue all)")
        if grown.get("filtered", 0) > 0:
            why.append("the filter leaves what comes to the stack")
        if grown.get("rx_fill_ring_empty_descs", 0) > 0:
            why.append("the fill ring is empty: the worker gets no time, or all frames wait to be "
                       "sent")
        if grown.get("rx_ring_full", 0) > 0:
            why.append("the receive ring is full: the worker gets no time")
        if grown.get("rx_dropped", 0) > 0:
            why.append("the kernel drops packets that do not fit a frame, or finds no memory")
        if not why and now.interface > before.interface and now.sockets == before.sockets:
            why.append(f"{name} counts packets that reach no socket: another program may take "
                       f"them first (bpftool net show dev {name})")
        return why
