"""What the host says about an interface: index, state, MTU, driver, queues; promiscuous mode."""

from __future__ import annotations

import array
import errno
import fcntl
import socket
import struct
from dataclasses import dataclass

from xdp_runtime.errors import PortError

_SIOCGIFFLAGS, _SIOCGIFMTU, _SIOCETHTOOL = 0x8913, 0x8921, 0x8946
_ETHTOOL_GDRVINFO, _ETHTOOL_GCHANNELS = 0x00000003, 0x0000003C
_IFF_UP = 1
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_PROMISC = 263, 1, 1
_IFNAMSIZ = 16


@dataclass(frozen=True, slots=True)
class Interface:
    """`channels` is the number of receive queues, 0 where the driver does not say."""

    name: str
    ifindex: int
    mtu: int
    driver: str
    channels: int


def query(name: str) -> Interface:
    """The interface, in the calling thread's namespace.  PortError if it is missing or down."""
    raw = name.encode()
    if not 0 < len(raw) < _IFNAMSIZ:
        raise PortError(name or "''", "not an interface name: it has 1 to 15 bytes")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        try:
            ifindex = socket.if_nametoindex(name)
            flags, = struct.unpack_from("=H", _ioctl(asker, _SIOCGIFFLAGS, raw), _IFNAMSIZ)
            mtu, = struct.unpack_from("=i", _ioctl(asker, _SIOCGIFMTU, raw), _IFNAMSIZ)
        except OSError as error:
            raise PortError(name, "there is no such interface in this network namespace",
                            "see: ip link") from error
        if not flags & _IFF_UP:
            raise PortError(name, "it is down", f"ip link set dev {name} up")
        info = _ethtool(asker, raw, _ETHTOOL_GDRVINFO, 196)
        driver = info[4:36].split(b"\0")[0].decode() or "the driver"
        channels = _ethtool(asker, raw, _ETHTOOL_GCHANNELS, 36)
        _, _, _, _, _, rx, _, _, combined = struct.unpack("=9I", channels)
    return Interface(name, ifindex, mtu, driver, rx + combined)


def _ioctl(asker: socket.socket, request: int, name: bytes) -> bytes:
    return fcntl.ioctl(asker, request, struct.pack("16s24x", name))


def _ethtool(asker: socket.socket, name: bytes, command: int, size: int) -> bytes:
    """An ETHTOOL_G* structure; zeros where the driver does not implement it."""
    answer = array.array("B", struct.pack("=I", command).ljust(size, b"\0"))
    try:
        fcntl.ioctl(asker, _SIOCETHTOOL, struct.pack("16sP16x", name, answer.buffer_info()[0]))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise PortError(name.decode(), f"ethtool: {error.strerror}") from error
        return bytes(size)
    return answer.tobytes()


def make_promiscuous(ifindex: int) -> socket.socket:
    """Receive frames for other addresses as well, until the returned socket is closed."""
    member = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        member.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP,
                          struct.pack("=iHH8s", ifindex, _PACKET_MR_PROMISC, 0, b""))
    except BaseException:
        member.close()
        raise
    return member
