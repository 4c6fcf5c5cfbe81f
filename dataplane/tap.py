"""TapPort: frames to and from the kernel's stack, one write(2) or read(2) a packet.

The way of XDP_PASS for single packets, and a port of its own: what the kernel sends through the
TAP is received here, what is transmitted here the kernel receives.

Checksums.  A frame that a local process sent into a veth may carry no checksum: with checksum
offload on the sender leaves TCP's or UDP's field for the hardware, holding only the sum of the
pseudo-header (CHECKSUM_PARTIAL), and says so in the skb.  An XDP program's frame has no place for
that note, so a frame that went through a port looks corrupt, and the stack drops it.  Therefore
`send` looks: if the field equals the folded sum of the pseudo-header, just what the kernel leaves
there, the virtio_net_hdr before the frame says VIRTIO_NET_HDR_F_NEEDS_CSUM, and the stack takes
the frame as it would have from the veth.  Any other frame goes without flags and the stack checks
it.  A frame with a good checksum that happens to look so (one in 65536) loses nothing: completed,
it is the same.  A corrupt one that looks so is accepted, which is what a 16-bit checksum risks.
Fragments, other protocols and IPv6 extension headers are never offloaded, and not looked into.

All offloads of the TAP are off, so what is read is complete: the header before it says nothing.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Any

from dataplane.block import SKB_SHARED_INFO_BYTES, Block
from dataplane.port import (
    BATCH_MAX,
    COOKIE,
    DATA,
    DATA_END,
    FLUSH_SIGNATURE,
    FRAME_END,
    HARD_START,
    RECEIVE_SIGNATURE,
    RELEASE_SIGNATURE,
    SEND_SIGNATURE,
    SLOT_SIZE_BYTES,
    TRANSMIT_SIGNATURE,
    PortKind,
    PortQueue,
)
from dataplane.tap_device import TapDevice, open_tap
from xdp_runtime.errors import ConfigError
from xdp_runtime.state import HEADROOM_BYTES, XDP_FRAME_BYTES
from xdp_runtime.template import Template

_SIOCGIFMTU = 0x8921

# a queue's memory
_FD, _HEADER_BYTES, _FRAMES, _FRAME_SIZE, _LONGEST = 0, 8, 16, 24, 32
_TX_FAILED, _TX_ERRNO, _RX_TOO_LONG, _TX_PARTIAL = 40, 48, 56, 64  # counters, the last errno
_QUEUE_BYTES = 128

# struct virtio_net_hdr: u8 flags, u8 gso_type, u16 hdr_len, gso_size, csum_start, csum_offset
_NEEDS_CSUM, _CSUM_START, _CSUM_OFFSET = 1, 6, 8
_IPV4, _IPV6, _VLAN, _QINQ = 0x0800, 0x86DD, 0x8100, 0x88A8
_TCP, _UDP = 6, 17


def _receive(m: Any) -> Callable[..., Any]:
    def tap_receive(q, batch, budget):  # type: ignore[no-untyped-def]
        fd = m.load_u64(q, _FD)
        header = m.load_u64(q, _HEADER_BYTES)
        size = m.load_u64(q, _FRAME_SIZE)
        longest = m.load_u64(q, _LONGEST)
        n = 0
        tries = 0
        while n < budget and n < BATCH_MAX and tries < budget:
            tries += 1
            frame = m.inside(m.load_ptr(q, _FRAMES), n * size)
            data = m.inside(frame, HEADROOM_BYTES)
            # one byte more than is allowed shows that a frame is longer, for read(2) just cuts it
            got = m.c_read(fd, m.inside(frame, HEADROOM_BYTES - header), header + longest + 1)
            if got < 0:
                break
            length = got - header
            if length > longest:
                m.store_u64(q, _RX_TOO_LONG, m.load_u64(q, _RX_TOO_LONG) + 1)
                continue
            slot = m.inside(batch, n * SLOT_SIZE_BYTES)
            m.store_ptr(slot, DATA, data)
            m.store_ptr(slot, DATA_END, m.inside(data, length))
            m.store_ptr(slot, HARD_START, m.inside(frame, XDP_FRAME_BYTES))
            m.store_ptr(slot, FRAME_END, m.inside(frame, size - SKB_SHARED_INFO_BYTES))
            m.store_u64(slot, COOKIE, n)
            n += 1
        return n

    return tap_receive


def _release(m: Any) -> Callable[..., Any]:
    def tap_release(q, slot):  # type: ignore[no-untyped-def]
        return 0

    return tap_release


def _pseudo(m: Any) -> Callable[..., Any]:
    def tap_partial(data, length):  # type: ignore[no-untyped-def]
        """csum_start << 16 | csum_offset if the frame waits for its checksum, else 0."""
        at = 14
        if length < 34:
            return 0
        kind = m.swap16(m.load_u16(data, 12))
        while (kind == _VLAN or kind == _QINQ) and at < 22 and length >= at + 24:
            kind = m.swap16(m.load_u16(data, at + 2))
            at += 4
        ip = m.inside(data, at)
        if kind == _IPV4 and length >= at + 20:
            first = m.load_u8(ip, 0)
            header = (first & 15) * 4
            fragment = m.swap16(m.load_u16(ip, 6)) & 0x3FFF
            if first >> 4 != 4 or header < 20 or fragment != 0:
                return 0
            protocol = m.load_u8(ip, 9)
            size = m.swap16(m.load_u16(ip, 2)) - header
            total = m.load_u32(ip, 12) + m.load_u32(ip, 16)
        elif kind == _IPV6 and length >= at + 40:
            header = 40
            protocol = m.load_u8(ip, 6)
            size = m.swap16(m.load_u16(ip, 4))
            total = 0
            word = 8
            while word < 40:
                total += m.load_u32(ip, word)
                word += 4
        else:
            return 0
        offset = 0
        if protocol == _TCP:
            offset = 16
        elif protocol == _UDP:
            offset = 6
        start = at + header
        if offset == 0 or size < offset + 2 or start + size > length:
            return 0
        total += m.swap16(size) + m.swap16(protocol)
        total = (total & 0xFFFFFFFF) + (total >> 32)
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        total = (total & 0xFFFF) + (total >> 16)
        if m.load_u16(data, start + offset) != total:
            return 0
        return start << 16 | offset

    return tap_partial


PARTIAL = Template("tap_partial", _pseudo, "i64(ptr, i64)", inline=False)


def _send(m: Any) -> Callable[..., Any]:
    partial = m.extern(PARTIAL)

    def tap_send(q, data, length):  # type: ignore[no-untyped-def]
        fd = m.load_u64(q, _FD)
        header_bytes = m.load_u64(q, _HEADER_BYTES)
        if header_bytes == 0:
            done = m.c_write(fd, data, length)
        else:
            header = m.alloca(16)
            m.store_u64(header, 0, 0)
            m.store_u64(header, 8, 0)
            where = partial(data, length)
            if where != 0:
                m.store_u8(header, 0, _NEEDS_CSUM)
                m.store_u16(header, _CSUM_START, where >> 16)
                m.store_u16(header, _CSUM_OFFSET, where)
                m.store_u64(q, _TX_PARTIAL, m.load_u64(q, _TX_PARTIAL) + 1)
            parts = m.alloca(32)
            m.store_ptr(parts, 0, header)
            m.store_u64(parts, 8, header_bytes)
            m.store_ptr(parts, 16, data)
            m.store_u64(parts, 24, length)
            done = m.c_writev(fd, parts, 2)
        if done < 0:
            m.store_u64(q, _TX_ERRNO, m.errno())
            m.store_u64(q, _TX_FAILED, m.load_u64(q, _TX_FAILED) + 1)
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
    receive=Template("tap_receive", _receive, RECEIVE_SIGNATURE),
    release=Template("tap_release", _release, RELEASE_SIGNATURE),
    transmit=Template("tap_transmit", _transmit, TRANSMIT_SIGNATURE, (SEND,)),
    send=SEND,
    flush=Template("tap_flush", _flush, FLUSH_SIGNATURE),
    losses=("rx_too_long",),
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
        self.mode = f"TAP, one system call a packet, {checks}"
        self._buffers: list[Block] = []
        self._queues: list[Block] = []
        self._final: dict[str, int] | None = None
        for fd in device.fds:
            q, buffers = Block(_QUEUE_BYTES), Block(BATCH_MAX * frame_size)
            q.set(_FD, fd)
            q.set(_HEADER_BYTES, device.vnet_hdr_bytes)
            q.set(_FRAMES, buffers.address)
            q.set(_FRAME_SIZE, frame_size)
            q.set(_LONGEST, longest)
            self._queues.append(q)
            self._buffers.append(buffers)
        self.queues: Sequence[PortQueue] = [
            PortQueue(index, q.address, fd)
            for index, (q, fd) in enumerate(zip(self._queues, device.fds, strict=True))]

    @staticmethod
    def frame_size_for(mtu: int) -> int:
        """A power of two, 4096 at least, with room for a packet of this MTU and two VLAN tags."""
        return max(4096, 1 << (HEADROOM_BYTES + 22 + mtu + SKB_SHARED_INFO_BYTES - 1).bit_length())

    @classmethod
    def open(cls, name: str, queues: int = 1, vnet_hdr: bool = True, mac: str | None = None,
             frame_size: int = 4096) -> TapPort:
        """A new TAP, which still has to be brought up; it vanishes with the port."""
        return cls(open_tap(name, queues, vnet_hdr, nonblocking=True, mac=mac), frame_size)

    def statistics(self) -> dict[str, int]:
        """`tx_partial` left with an unfinished checksum; `tx_failed` the kernel refused."""
        if self._final is not None:
            return self._final
        names = {"rx_too_long": _RX_TOO_LONG, "tx_failed": _TX_FAILED, "tx_partial": _TX_PARTIAL}
        return {name: sum(q.get(offset) for q in self._queues) for name, offset in names.items()}

    def last_error(self) -> str:
        """What the kernel said of the last frame it refused, or ""."""
        codes = [q.get(_TX_ERRNO) for q in self._queues if self._final is None]
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
