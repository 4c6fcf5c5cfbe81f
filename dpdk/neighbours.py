"""Permanent neighbours of an interface that a DPDK device is put on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dataplane import hostnet, hostwrite
from dataplane import netlink as nl


@contextmanager
def neighbours_kept(ifindex: int) -> Iterator[None]:
    """DPDK gives a device that it starts its MAC again (SIOCSIFHWADDR, the one it has), whereupon
    the kernel forgets the interface's neighbours, permanent ones too."""
    with nl.Netlink() as net:
        before = hostnet.read_neighbours(net, ifindex)
        try:
            yield
        finally:
            hostwrite.put_neighbours(net, ifindex, before)
