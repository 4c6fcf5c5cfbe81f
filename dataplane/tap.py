"""TapPort: frames to and from the kernel's stack, one write(2) or read(2) a packet.

The way of XDP_PASS for single packets, and a port of its own: what the kernel sends through the
TAP is received here, what is transmitted here the kernel receives.

Checksums.  A frame from a veth may lack its checksum (checksum.py).  The virtio_net_hdr before what
is sent then says VIRTIO_NET_HDR_F_NEEDS_CSUM, and the stack takes the frame as it would have from
the veth; any other frame goes without flags and the stack checks it.

What is read is complete: of a TAP without offloads because the kernel saw to it, of one with them
because tap_receive.py does.  A program's own TAP has none, so it sees what the kernel would send.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

from dataplane.block import SKB_SHARED_INFO_BYTES, Block
from dataplane.checksum import PARTIAL
from dataplane.port import (
    BATCH_MAX,
    DATA,
    DATA_END,
    FLUSH_SIGNATURE,
    RELEASE_SIGNATURE,
    SEND_SIGNATURE,
    TRANSMIT_SIGNATURE,
    PortKind,
    PortQueue,
)
from dataplane.tap_device import TapDevice, open_tap
from dataplane.tap_receive import (
    CSUM_OFFSET,
    CSUM_START,
    FD,
    FRAME_SIZE,
    FRAMES,
    HEADER_BYTES,
    LARGE,
    LARGE_BYTES,
    LONGEST,
    NEEDS_CSUM,
    QUEUE_BYTES,
    RECEIVE,
    RX_INVALID,
    RX_LARGE,
    RX_TOO_LONG,
    TX_ERRNO,
    TX_FAILED,
    TX_PARTIAL,
)
from xdp_runtime.errors import ConfigError
from xdp_runtime.state import HEADROOM_BYTES
from xdp_runtime.template import Template

_SIOCGIFMTU = 0x8921


def _release(m: Any) -> Callable[..., Any]:
    def tap_release(q, slot):  # type: ignore[no-untyped-def]
        return 0

    return tap_release


def _send(m: Any) -> Callable[..., Any]:
    partial = m.extern(PARTIAL)

    def tap_send(q, data, length):  # type: ignore[no-untyped-def]
        fd = m.load_u64(q, FD)
        header_bytes = m.load_u64(q, HEADER_BYTES)
        if header_bytes == 0:
            done = m.c_write(fd, data, length)
        else:
            header = m.alloca(16)
            m.store_u64(header, 0, 0)
            m.store_u64(header, 8, 0)
            where = partial(data, length)
            if where != 0:
                m.store_u8(header, 0, NEEDS_CSUM)
                m.store_u16(header, CSUM_START, where >> 16)
                m.store_u16(header, CSUM_OFFSET, where)
                m.store_u64(q, TX_PARTIAL, m.load_u64(q, TX_PARTIAL) + 1)
            parts = m.alloca(32)
            m.store_ptr(parts, 0, header)
            m.store_u64(parts, 8, header_bytes)
            m.store_ptr(parts, 16, data)
            m.store_u64(parts, 24, length)
            done = m.c_writev(fd, parts, 2)
        if done < 0:
            m.store_u64(q, TX_ERRNO, m.errno())
            m.store_u64(q, TX_FAILED, m.load_u64(q, TX_FAILED) + 1)
            return 0
        return 1

    return tap_send


SEND = Template("tap_send", _send, SEND_SIGNATURE, (PARTIAL,), inline=False)


def _transmit(m: Any) -> Callable[..., Any]:
    send = m.extern(SEND)

    def tap_transmit(q, slot):  # type: ignore[no-untyped-def]
        data = m.load_ptr(slot, DATA)
        return send(q, data, m.diff(m.load_ptr(slot, DATA_END), data))

    return tap_transmit


def _flush(m: Any) -> Callable[..., Any]:
    def tap_flush(q):  # type: ignore[no-untyped-def]
        return 0

    return tap_flush


TAP = PortKind(
    "tap",
    receive=RECEIVE,
    release=Template("tap_release", _release, RELEASE_SIGNATURE),
    transmit=Template("tap_transmit", _transmit, TRANSMIT_SIGNATURE, (SEND,)),
    send=SEND,
    flush=Template("tap_flush", _flush, FLUSH_SIGNATURE),
    losses=("rx_too_long", "rx_invalid"),
)


class TapPort:
    """A port over an open TapDevice, one queue a descriptor; `close` closes the device too."""

    kind: PortKind = TAP

    def __init__(self, device: TapDevice, frame_size: int = 4096) -> None:
        longest = frame_size - HEADROOM_BYTES - SKB_SHARED_INFO_BYTES
        if longest < 1518:
            raise ConfigError(f"tap {device.name}", f"a frame size of {frame_size} takes no "
                              "packet of 1518 bytes", "use 4096")
        self.device = device
        self.name, self.ifindex = device.name, device.ifindex
        self.mtu = _mtu(device.name)
        checks = "unfinished checksums marked" if device.vnet_hdr_bytes else "checksums untouched"
        calls = "one system call a packet"
        if device.offloads:
            calls += ", out of the stack up to 64 KiB a call (checksums and TSO)"
        elif device.refused:
            calls += f", no checksums and TSO out of the stack (TUNSETOFFLOAD: {device.refused})"
        self.mode = f"TAP, {calls}, {checks}"
        self._buffers: list[Block] = []
        self._queues: list[Block] = []
        self._final: dict[str, int] | None = None
        for fd in device.fds:
            q, buffers = Block(QUEUE_BYTES), Block(BATCH_MAX * frame_size)
            q.set(FD, fd)
            q.set(HEADER_BYTES, device.vnet_hdr_bytes)
            q.set(FRAMES, buffers.address)
            q.set(FRAME_SIZE, frame_size)
            q.set(LONGEST, longest)
            self._queues.append(q)
            self._buffers.append(buffers)
            if device.offloads:
                self._buffers.append(Block(LARGE_BYTES))
                q.set(LARGE, self._buffers[-1].address)
        self.queues: Sequence[PortQueue] = [
            PortQueue(index, q.address, fd)
            for index, (q, fd) in enumerate(zip(self._queues, device.fds, strict=True))]

    @staticmethod
    def frame_size_for(mtu: int) -> int:
        """A power of two, 4096 at least, with room for a packet of this MTU and two VLAN tags."""
        return max(4096, 1 << (HEADROOM_BYTES + 22 + mtu + SKB_SHARED_INFO_BYTES - 1).bit_length())

    @classmethod
    def open(cls, name: str, queues: int = 1, vnet_hdr: bool = True, mac: str | None = None,
             frame_size: int = 4096, offloads: bool = False) -> TapPort:
        """A new TAP, which still has to be brought up; it vanishes with the port."""
        return cls(open_tap(name, queues, vnet_hdr, nonblocking=True, mac=mac, offloads=offloads),
                   frame_size)

    def statistics(self) -> dict[str, int]:
        """`tx_partial` left with an unfinished checksum; `tx_failed` the kernel refused; `rx_large`
        came as one and were cut into packets, `rx_invalid` cannot be what their header says."""
        if self._final is not None:
            return self._final
        names = {"rx_too_long": RX_TOO_LONG, "rx_invalid": RX_INVALID, "rx_large": RX_LARGE,
                 "tx_failed": TX_FAILED, "tx_partial": TX_PARTIAL}
        return {name: sum(q.get(offset) for q in self._queues) for name, offset in names.items()}

    def last_error(self) -> str:
        """What the kernel said of the last frame it refused, or ""."""
        codes = [q.get(TX_ERRNO) for q in self._queues if self._final is None]
        return next((os.strerror(code) for code in codes if code), "")

    def finished(self) -> bool:
        return self._final is not None

    def close(self) -> None:
        if self._final is None:
            self._final = self.statistics()
            self.device.close()
            for block in (*self._queues, *self._buffers):
                block.close()


def _mtu(name: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFMTU, struct.pack("=16s24x", name.encode()))
    return int(struct.unpack_from("=i", answer, 16)[0])
