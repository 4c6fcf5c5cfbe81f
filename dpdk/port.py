"""DpdkPort: a device of DPDK, virtual (net_memif0,role=client) or by PCI address (untested).

Each queue has a pool of mbufs of its own on the device's memory node; worker threads become lcores
of the EAL when they first receive, so allocating and freeing costs a few instructions of a cache.
"""

from __future__ import annotations

import re
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any, Self

from dataplane.block import Block
from dataplane.port import BATCH_MAX, PortKind, PortQueue
from dpdk import eal
from dpdk import queue as layout
from dpdk.kind import kind
from dpdk.neighbours import neighbours_kept
from xdp_runtime.errors import ConfigError, OutOfMemory, PortError

BUFFER_BYTES = 2048 + 128  # a packet and DPDK's headroom: no frame above 2048 bytes
DESCRIPTORS = 1024
OWN_IFINDEX = 1 << 20  # plus the port's number: index of a port that is no interface of the host
KERNEL_SEES = ("net_af_packet", "net_pcap")  # drivers that leave the stack its copy
# drivers that write a packet themselves before they give it: it is in this CPU's cache
COPY = ("net_null", "net_ring", "net_pcap", "net_memif", "net_af_packet", "net_tap", "net_vhost",
        "net_virtio_user")
# So many mbufs of a burst are looked at together before programs run.  More is faster with huge
# pages; without them each mbuf is on a page of its own, and 16 at once are already slower than 8.
GROUPS = {False: 8, True: 64}
_PCI = re.compile(r"([0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$", re.IGNORECASE)
_VDEV = re.compile(r"(net_|eth_)[a-z_]+\d*[a-z_]*\d+$")
_COUNTERS = {"tx_full": layout.TX_FULL, "no_mbuf": layout.NO_MBUF, "rx_unfit": layout.RX_UNFIT,
             "rx_copied": layout.RX_COPIED, "tx_moved": layout.TX_MOVED,
             "malformed": layout.MALFORMED}
_TOTALS = ("ipackets", "opackets", "imissed", "ierrors", "oerrors", "rx_nombuf")


_open: list[DpdkPort] = []
_closed: list[DpdkPort] = []  # their pools are not freed yet


def device_name(devargs: str) -> str:
    """net_memif0 of "net_memif0,role=client".  Raises ConfigError if it names no device."""
    name = devargs.split(",")[0]
    if not _VDEV.match(name) and not _PCI.match(name):
        raise ConfigError(f"dpdk:{devargs}", "names no device", "a virtual device such as "
                          "dpdk:net_memif0,role=client, or a PCI address such as 0000:01:00.0")
    return name


def pci_addresses(devices: Sequence[str]) -> list[str]:
    return [device_name(text) for text in devices if _PCI.match(text.split(",")[0])]


class DpdkPort:
    """See dataplane/port.py for the contract; `open` makes one."""

    def __init__(self, runtime: eal.Eal, number: int, name: str, ifindex: int, device: Any,
                 pools: Sequence[Any], mode: str, frags: bool = False,
                 sends_segments: bool = False) -> None:
        self.kind: PortKind = kind(frags)
        self.name, self.ifindex, self.mtu, self.mode = name, ifindex, int(device.mtu), mode
        self.host_name = socket.if_indextoname(ifindex) if ifindex < OWN_IFINDEX else ""
        self.mac = bytes(device.mac).hex(":") if any(device.mac) else None
        self.driver = runtime.ffi.string(device.driver).decode()
        self.number, self.pools = number, tuple(pools)
        self._eal, self._lib, self._ffi = runtime, runtime.lib, runtime.ffi
        self._final: dict[str, int] | None = None
        self.left: list[int] = []  # mbufs that were not in their pool when that was freed
        self._blocks: list[Block] = []
        ops = int(self._ffi.cast("uintptr_t", self._lib.xdpu_fp_ops(number)))
        for index, pool in enumerate(self.pools):
            q = Block(layout.BLOCK_SIZE_BYTES)
            q.set(layout.FP_OPS, ops)
            q.set(layout.QUEUE_OFFSET, 8 * index)
            q.set(layout.MBUF_POOL, int(self._ffi.cast("uintptr_t", pool)))
            for which, offset in enumerate((layout.ATTACH, layout.GIVE_BACK, layout.TAKE,
                                            layout.SETTLE, layout.UNSHARE, layout.PUT)):
                q.set(offset, self._lib.xdpu_function(which))
            q.set(layout.GROUP, GROUPS[bool(self._lib.xdpu_huge_pages())])
            q.set(layout.COLD, int(self.driver not in COPY))
            q.set(layout.MULTI_SEGS, int(sends_segments))
            q.set(layout.ROOM, BUFFER_BYTES - runtime.lib.XDPU_HEADROOM)
            self._blocks.append(q)
        # a device sends mbufs of any pool, and whoever frees one gives it back to its own
        everywhere = int(self._ffi.cast("uintptr_t", self._lib.xdpu_fp_ops(0)))
        self.queues: Sequence[PortQueue] = [PortQueue(index, q.address, -1, everywhere)
                                            for index, q in enumerate(self._blocks)]
        _open.append(self)

    @classmethod
    def open(cls, devargs: str, queues: int = 1, *, dpdk_args: str = "",
             pci: Sequence[str] = (), promisc: bool = False, frags: bool = False) -> Self:
        """Open a device with so many queue pairs; `frags` for programs that take packets in several
        segments.  Raises ConfigError, PortError, OutOfMemory."""
        name = device_name(devargs)
        runtime = eal.start(dpdk_args, pci or pci_addresses([devargs]))
        lib, ffi = runtime.lib, runtime.ffi
        before = len(runtime.log())
        number = lib.xdpu_probe(devargs.encode(), name.encode())
        if number < 0:
            raise PortError(f"dpdk:{name}", runtime.complaint(-number, before),
                            "see the driver's arguments in DPDK's guide", runtime.log()[before:])
        with ExitStack() as after, ExitStack() as undo:  # a pool outlives its device
            undo.callback(lib.xdpu_remove, number)
            device = ffi.new("struct device *")
            lib.xdpu_query(number, device)
            most = min(device.rx_max, device.tx_max)
            if queues > most:
                raise ConfigError(f"{queues} queues of dpdk:{name}", f"the driver has {most} now",
                                  "see its arguments, often queues= or qpairs=")
            pools = ffi.new("void *[]", queues)
            count = 2 * DESCRIPTORS + 2 * BATCH_MAX + 1024
            for index in range(queues):
                label = f"xdpu_{number}_{index}".encode()
                pools[index] = lib.xdpu_pool(label, 2 * count - 1, layout.PRIVATE_BYTES,
                                             BUFFER_BYTES, device.socket)
                if not pools[index]:
                    raise OutOfMemory(f"dpdk:{name}", "no memory for a queue's mbufs",
                                      "give more by --dpdk-args '--no-huge -m 2048'")
                after.callback(lib.xdpu_pool_free, pools[index])
            sends_segments = ffi.new("int *")
            with neighbours_kept(_ifindex(devargs, number)):
                done = lib.xdpu_start(number, queues, DESCRIPTORS, pools, promisc, frags,
                                      sends_segments)
            if done:
                raise PortError(f"dpdk:{name}", runtime.complaint(abs(done), before))
            lib.xdpu_query(number, device)
            driver = ffi.string(device.driver).decode()
            words = f"dpdk {driver} of {ffi.string(lib.xdpu_version()).decode()}, {queues} queue" \
                f"{'s' * (queues > 1)}, polled without sleep, {runtime.mode}"
            if frags:
                words += ", multi-buffer" + ("" if sends_segments[0] else " when receiving only")
            port = cls(runtime, number, name, _ifindex(devargs, number), device, list(pools), words,
                       frags, bool(sends_segments[0]))
            undo.pop_all()
            after.pop_all()
            return port

    def statistics(self) -> dict[str, int]:
        """Ours summed over the queues, and what the driver counts (ipackets, imissed, ...)."""
        if self._final is not None:
            return dict(self._final)
        total: Counter[str] = Counter({
            name: sum(q.get(offset) for q in self._blocks) for name, offset in _COUNTERS.items()})
        said = self._ffi.new("struct totals *")
        self._lib.xdpu_totals(self.number, said)
        total.update({name: int(getattr(said, name)) for name in _TOTALS})
        return dict(total)

    def extended_statistics(self) -> dict[str, int]:
        """The link and the free mbufs, and whatever the driver counts, by its own names
        (rte_eth_xstats_get)."""
        if self._final is not None:
            return {}
        count = max(self._lib.xdpu_xstats(self.number, self._ffi.NULL, self._ffi.NULL, 0), 0)
        names = self._ffi.new("char[]", 64 * count)
        values = self._ffi.new("uint64_t[]", count)
        got = self._lib.xdpu_xstats(self.number, names, values, count)
        up, mbps = self.link()
        return {"link_up": int(up), "link_mbps": mbps,
                "mbufs_free": sum(free for free, _ in self.mbufs())} | {
            self._ffi.string(names + 64 * i).decode(): int(values[i]) for i in range(got)}

    def link(self) -> tuple[bool, int]:
        """(up, Mbit/s)"""
        said = self._ffi.new("struct link *")
        if self._final is None:
            self._lib.xdpu_link(self.number, said)
        return bool(said.up), int(said.speed_mbps)

    def mbufs(self) -> list[tuple[int, int]]:
        """(free, all) of each queue's pool; between batches the rest is the driver's."""
        return [(int(self._lib.xdpu_available(pool)), int(self._lib.xdpu_pool_size(pool)))
                for pool in self.pools]

    def finished(self) -> bool:
        return self._final is not None

    def close(self) -> None:
        """Stop and remove the device; the last one frees the pools of all.  The worker must have
        stopped."""
        if self._final is not None:
            return
        self._final = self.statistics()
        for q in self._blocks:
            for count, array in ((layout.FREE_COUNT, layout.FREE_ARRAY),
                                 (layout.TX_COUNT, layout.TX_ARRAY),
                                 (layout.SPARE_COUNT, layout.SPARE_ARRAY)):
                self._lib.xdpu_free_all(self._ffi.cast("void **", q.address + array), q.get(count))
            waiting = q.address + layout.RX_ARRAY + 8 * q.get(layout.RX_FIRST)
            self._lib.xdpu_free_all(self._ffi.cast("void **", waiting),
                                    q.get(layout.RX_END) - q.get(layout.RX_FIRST))
        self._lib.xdpu_stop(self.number)
        self._lib.xdpu_remove(self.number)
        for q in self._blocks:
            q.close()
        _open.remove(self)
        _closed.append(self)
        if not _open:  # no other device has mbufs of ours any more
            for port in _closed:
                port.free_pools()
            _closed.clear()

    def free_pools(self) -> None:
        self.left = [size - free for free, size in self.mbufs()]
        for pool in self.pools:
            self._lib.xdpu_pool_free(pool)


def _ifindex(devargs: str, number: int) -> int:
    """The host's number where the device is one of its interfaces, else one of the run's own."""
    arguments = dict(part.partition("=")[::2] for part in devargs.split(",")[1:])
    if not devargs.startswith("net_tap"):
        with suppress(OSError, KeyError):
            return socket.if_nametoindex(arguments["iface"])
    return OWN_IFINDEX + number
