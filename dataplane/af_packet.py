"""AfPacketPort: packets of any Ethernet interface, without its driver's help.

Receive is a TPACKET_V2 ring shared with the kernel: programs work on the packet in the ring, where
PACKET_RESERVE leaves headroom, and `release` gives the frame back.  A VLAN tag, which the kernel
takes off before anybody sees the packet, is put back.  Several queues form a fanout group by flow.

Transmit copies into buffers that one sendmmsg(2) a batch hands to the driver (PACKET_QDISC_BYPASS).
A TPACKET transmit ring gains nothing measurable: 0.6-1.3 Mpps on a veth against 0.7-1.1, and the
kernel copies there too, because a ring's pages may not be waited for in a receiver's queue.

An AF_PACKET socket gets a copy of what the host receives.  XDP *takes* packets, so while the port
is open the host's ingress drops them (ingress_drop.py), behind the socket's back.

Two things come from working behind the kernel's own offloads.  A frame larger than the ring's
frames, merged by GRO or sent in one piece by TSO, is counted (`rx_truncated`) and dropped.  A frame
from a local sender may have an unfinished checksum: its bytes are left alone (see tap.py).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Sequence

from dataplane import af_packet_ring as ring
from dataplane.af_packet_ring import AF_PACKET
from dataplane.block import SKB_SHARED_INFO_BYTES, Block
from dataplane.ingress_drop import IngressDrop
from dataplane.port import PortKind, PortQueue
from xdp_runtime.errors import ConfigError, PortError
from xdp_runtime.state import HEADROOM_BYTES

SOL_PACKET = 263
_ADD_MEMBERSHIP, _STATISTICS, _RX_RING, _VERSION, _RESERVE = 1, 6, 5, 10, 12
_FANOUT, _QDISC_BYPASS, _IGNORE_OUTGOING = 18, 20, 23
_TPACKET_V2, _MR_PROMISC = 1, 1
_FANOUT_HASH, _FANOUT_UNIQUE_ID, _FANOUT_IGNORE_OUTGOING = 0, 0x2000, 0x4000
_ETH_P_ALL = 3
_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_SIOCGIFFLAGS, _SIOCGIFMTU, _IFF_UP = 0x8913, 0x8921, 1
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_BLOCK_BYTES = 64 << 10
_VLAN_BYTES = 8  # two tags
_AS_ROOT = "run as root, or with CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF"


class _Queue:
    """A bound socket with its ring, its transmit buffers and the memory of the templates."""

    def __init__(self, sock: socket.socket, frame_size: int, frames: int, mtu: int) -> None:
        self.sock = sock
        limit = frame_size - SKB_SHARED_INFO_BYTES
        if limit < _packet_end(mtu):  # a small frame needs all of itself
            limit = frame_size
        block_bytes = max(_BLOCK_BYTES, frame_size)
        size = max(frames * frame_size // block_bytes, 1) * block_bytes
        sock.setsockopt(SOL_PACKET, _RX_RING, struct.pack(
            "=4I", block_bytes, size // block_bytes, frame_size, size // frame_size))
        self.ring = Block(size, mmap.mmap(sock.fileno(), size))
        self.buffers = Block(ring.TX_SLOTS * frame_size)
        self.messages = Block(ring.TX_SLOTS * (ring.MMSGHDR_BYTES + ring.IOVEC_BYTES))
        for index in range(ring.TX_SLOTS):
            vector = ring.TX_SLOTS * ring.MMSGHDR_BYTES + index * ring.IOVEC_BYTES
            message = index * ring.MMSGHDR_BYTES
            self.messages.set(message + ring.MMSG_IOV, self.messages.address + vector)
            self.messages.set(message + ring.MMSG_IOVLEN, 1)
            self.messages.set(vector, self.buffers.address + index * frame_size)
        self.q = Block(ring.QUEUE_BYTES)
        for offset, value in {
            ring.FD: sock.fileno(), ring.RING: self.ring.address, ring.FRAME_SIZE: frame_size,
            ring.FRAME_COUNT: size // frame_size, ring.TX: self.buffers.address,
            ring.TX_MESSAGES: self.messages.address, ring.TX_SIZE: frame_size,
            ring.FRAME_LIMIT: limit,
        }.items():
            self.q.set(offset, value)
        self.kernel_drops = 0

    def drops(self) -> int:
        """Packets the kernel had no ring frame for.  Reading clears the kernel's own counter."""
        if self.sock.fileno() >= 0:
            counted = self.sock.getsockopt(SOL_PACKET, _STATISTICS, 8)
            self.kernel_drops += struct.unpack("=II", counted)[1]
        return self.kernel_drops

    def close(self) -> None:
        self.sock.close()
        for block in (self.ring, self.buffers, self.messages, self.q):
            block.close()


class AfPacketPort:
    """`frames` is the length of a queue's ring.  `tcx` False takes the way of old kernels."""

    kind: PortKind = AF_PACKET

    def __init__(self, ifname: str, queues: int = 1, frames: int = 2048, frame_size: int = 0,
                 promiscuous: bool = False, tcx: bool = True) -> None:
        self.name, self.mode = ifname, ""
        self._what = f"interface {ifname}"
        self._queues: list[_Queue] = []
        self._sockets: list[socket.socket] = []
        self._drop: IngressDrop | None = None
        self._final: dict[str, int] | None = None
        if not 1 <= queues <= 256:
            raise ConfigError(self._what, f"{queues} queues, an AF_PACKET port has 1 to 256")
        try:
            self.ifindex = socket.if_nametoindex(ifname)
        except OSError as error:
            raise PortError(self._what, "there is none in this network namespace",
                            "ip link shows them") from error
        try:
            self.mtu = self._check_up()
            self._frame_size = frame_size or _frame_size(self.mtu)
            self._open(queues, frames, promiscuous, tcx)
        except OSError as error:
            self.close()
            raise self._refusal(error) from error
        except BaseException:
            self.close()
            raise
        self.queues: Sequence[PortQueue] = [
            PortQueue(i, queue.q.address, queue.sock.fileno())
            for i, queue in enumerate(self._queues)]

    def _check_up(self) -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            request = struct.pack("=16s24x", self.name.encode())
            flags = struct.unpack_from("=H", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)[0]
            mtu = struct.unpack_from("=i", fcntl.ioctl(sock, _SIOCGIFMTU, request), 16)[0]
        if not flags & _IFF_UP:
            raise PortError(self._what, "it is down", f"ip link set {self.name} up")
        return int(mtu)

    def _open(self, queues: int, frames: int, promiscuous: bool, tcx: bool) -> None:
        for _ in range(queues):
            sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
            self._sockets.append(sock)
            for option, value in ((_VERSION, _TPACKET_V2), (_IGNORE_OUTGOING, 1),
                                  (_RESERVE, HEADROOM_BYTES), (_QDISC_BYPASS, 1)):
                sock.setsockopt(SOL_PACKET, option, value)
            _close_filter(sock)
            self._queues.append(_Queue(sock, self._frame_size, frames, self.mtu))
            sock.bind((self.name, _ETH_P_ALL))
            hardware = sock.getsockname()[3]
            if hardware not in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK):
                raise PortError(self._what, f"its link type is {hardware}, not Ethernet",
                                "XDP programs expect Ethernet frames")
        self._join()
        if promiscuous:
            self._sockets[0].setsockopt(SOL_PACKET, _ADD_MEMBERSHIP,
                                        struct.pack("=iHH8x", self.ifindex, _MR_PROMISC, 0))
        self._drop = drop = IngressDrop(self.name, self.ifindex, tcx)
        self.mode = (f"AF_PACKET ring of {frames} frames of {self._frame_size} bytes, copied by "
                     f"the kernel; the host's ingress is closed by {drop.mode}")
        for sock in self._sockets:
            sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)

    def _join(self) -> None:
        """A fanout group, so that each packet reaches one queue only."""
        if len(self._sockets) == 1:
            return
        flags = _FANOUT_HASH | _FANOUT_IGNORE_OUTGOING
        first, *others = self._sockets
        first.setsockopt(SOL_PACKET, _FANOUT, (flags | _FANOUT_UNIQUE_ID) << 16)
        group = first.getsockopt(SOL_PACKET, _FANOUT) & 0xFFFF
        for sock in others:
            sock.setsockopt(SOL_PACKET, _FANOUT, flags << 16 | group)

    def _refusal(self, error: OSError) -> PortError:
        match error.errno:
            case errno.EPERM | errno.EACCES:
                return PortError(self._what, "AF_PACKET is not permitted", _AS_ROOT)
            case errno.ENOMEM | errno.ENOBUFS:
                return PortError(self._what, "the kernel has no memory for the ring",
                                 "ask for fewer frames or queues")
            case errno.ENODEV | errno.ENXIO | errno.ENETDOWN:
                return PortError(self._what, "it went away or down while it was opened",
                                 f"ip link set {self.name} up")
            case _:
                return PortError(self._what, f"AF_PACKET: {error.strerror or error}")

    def statistics(self) -> dict[str, int]:
        """`rx_dropped`: the ring was full; `rx_truncated`: larger than a ring frame (ethtool -K
        IFACE gro off, or tso off at a local sender); `tx_full`, `tx_failed`: the kernel refused."""
        if self._final is not None:
            return self._final
        offsets = {"rx_truncated": ring.RX_TRUNCATED, "tx_full": ring.TX_FULL,
                   "tx_failed": ring.TX_FAILED}
        counted = {name: sum(queue.q.get(offset) for queue in self._queues)
                   for name, offset in offsets.items()}
        return counted | {"rx_dropped": sum(queue.drops() for queue in self._queues)}

    def advice(self) -> str:
        """What the user should know of packets that were lost, or ""."""
        if self._final is not None:
            return ""
        if longest := max((q.q.get(ring.LONGEST_TRUNCATED) for q in self._queues), default=0):
            return (f"{self._what}: frames of up to {longest} bytes do not fit the ring's "
                    f"{self._frame_size} and are dropped (ethtool -K {self.name} gro off, and tso "
                    "off at a sender on this machine)")
        if code := max((q.q.get(ring.TX_ERRNO) for q in self._queues), default=0):
            return f"{self._what}: packets cannot be sent: {os.strerror(code)}"
        return ""

    def finished(self) -> bool:
        return self._final is not None

    def close(self) -> None:
        """The host receives again."""
        if self._final is not None:
            return
        self._final = self.statistics()
        for queue in self._queues:
            queue.close()
        for sock in self._sockets:
            sock.close()
        if self._drop is not None:
            self._drop.close()


def _frame_size(mtu: int) -> int:
    """A power of two that takes an MTU's worth of packet, and headroom and tail room."""
    return max(2048, 1 << (_packet_end(mtu) + SKB_SHARED_INFO_BYTES - 1).bit_length())


def _packet_end(mtu: int) -> int:
    """The last byte of a full packet in a ring frame, at most."""
    return ring.HARD_START_OFFSET + 32 + HEADROOM_BYTES + 14 + _VLAN_BYTES + mtu


def _close_filter(sock: socket.socket) -> None:
    """Let nothing in until the fanout group is complete and the host's ingress is closed."""
    refuse = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0))  # BPF_RET 0
    program = struct.pack("@HP", 1, ctypes.addressof(refuse))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
