"""What the host says about an interface: index, state, MTU, driver, queues; promiscuous mode."""

from __future__ import annotations

import array
import errno
import fcntl
import re
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass

from xdp_runtime.errors import PortError

_SIOCGIFFLAGS, _SIOCGIFMTU, _SIOCETHTOOL = 0x8913, 0x8921, 0x8946
_ETHTOOL_GDRVINFO, _ETHTOOL_GCHANNELS = 0x00000003, 0x0000003C
_ETHTOOL_GSTRINGS, _ETHTOOL_GSTATS, _ETH_SS_STATS = 0x0000001B, 0x0000001D, 1
_QUEUE_COUNTER = re.compile(r"rx[_-]?(?:queue[_-]?)?(\d+)[_.-](?:xdp_)?(?:packets|pkts)")
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
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


def name_of(ifindex: int) -> str:
    """What it is called now; "" when it is gone."""
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return ""


def has_carrier(name: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker, suppress(OSError):
        flags, = struct.unpack_from("=H", _ioctl(asker, _SIOCGIFFLAGS, name.encode()), _IFNAMSIZ)
        return bool(flags & _IFF_RUNNING)
    return False


def channels(name: str) -> int:
    """Receive queues, 0 where the driver does not say, or the interface is gone."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker, suppress(PortError):
        answer = _ethtool(asker, name.encode(), _ETHTOOL_GCHANNELS, 36)
        _, _, _, _, _, rx, _, _, combined = struct.unpack("=9I", answer)
        return int(rx + combined)
    return 0


def received(name: str) -> int:
    """Packets that the interface received, as it counts them; 0 when it is gone."""
    with open("/proc/thread-self/net/dev") as table:
        for line in table:
            title, _, numbers = line.partition(":")
            if title.strip() == name:
                return int(numbers.split()[1])
    return 0


def received_by_queue(name: str) -> dict[int, int]:
    """The same by receive queue, where the driver's own counters (ethtool -S) say."""
    counts: dict[int, int] = {}
    for title, value in _driver_counters(name).items():
        match = _QUEUE_COUNTER.fullmatch(title)
        if match:
            counts[int(match[1])] = counts.get(int(match[1]), 0) + value
    return counts


def _driver_counters(name: str) -> dict[str, int]:
    raw = name.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker, suppress(PortError):
        info = _ethtool(asker, raw, _ETHTOOL_GDRVINFO, 196)
        count, = struct.unpack_from("=I", info, 180)  # n_stats
        if count:
            strings = _ethtool(asker, raw, _ETHTOOL_GSTRINGS, 12 + 32 * count,
                               struct.pack("=II", _ETH_SS_STATS, count))
            values = _ethtool(asker, raw, _ETHTOOL_GSTATS, 8 + 8 * count, struct.pack("=I", count))
            titles = [strings[12 + 32 * i:44 + 32 * i].split(b"\0")[0].decode(errors="replace")
                      for i in range(count)]
            return dict(zip(titles, struct.unpack_from(f"={count}Q", values, 8), strict=True))
    return {}


def _ioctl(asker: socket.socket, request: int, name: bytes) -> bytes:
    return fcntl.ioctl(asker, request, struct.pack("16s24x", name))


def _ethtool(asker: socket.socket, name: bytes, command: int, size: int,
             asked: bytes = b"") -> bytes:
    """An ETHTOOL_G* structure; zeros where the driver does not implement it."""
    answer = array.array("B", (struct.pack("=I", command) + asked).ljust(size, b"\0"))
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
