"""A TAP device: frames written to it enter the kernel's stack, what the stack sends is read.

It is not persistent: it vanishes with the last file descriptor, so also when the process is killed.
The multi-queue flag is always set, also for one queue, so that another worker can join later.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from types import TracebackType

from xdp_runtime.errors import ConfigError, PortError

TUN_PATH = "/dev/net/tun"
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN = 1, 2, 4, 8
OFFLOADS = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
SIOCSIFHWADDR = 0x8924
IFF_TAP, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR = 0x0002, 0x0100, 0x1000, 0x4000
ARPHRD_ETHER = 1
MAX_QUEUES = 256
IFNAMSIZ = 16


@dataclass(frozen=True)
class TapDevice:
    """One file descriptor a queue.  The names and descriptors hold until `close`.

    With `offloads`, what is read may lack its checksum and be longer than the MTU; where they were
    asked for and are not there, `refused` says what the kernel said."""

    name: str
    ifindex: int
    fds: tuple[int, ...]
    vnet_hdr_bytes: int = 0
    offloads: bool = False
    refused: str = ""

    @property
    def fd(self) -> int:
        return self.fds[0]

    def close(self) -> None:
        """The device vanishes.  Once only: descriptors are numbers, and numbers are reused."""
        for fd in self.fds:
            with contextlib.suppress(OSError):
                os.close(fd)

    def __enter__(self) -> TapDevice:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def open_tap(name: str, queues: int = 1, vnet_hdr: bool | int = False, nonblocking: bool = True,
             mac: str | None = None, offloads: bool = False) -> TapDevice:
    """Creates the TAP `name` ("tap%d" lets the kernel number it), or opens a persistent one.

    `vnet_hdr` puts a virtio_net_hdr before each frame: True or 12 the mergeable one, 10 the short.
    Without `offloads` frames are whole and their checksums final.  With them, if the kernel will,
    the stack leaves checksums and the cutting of TCP into packets to the reader, and says so in
    that header."""
    _check(name, queues, vnet_hdr)
    if offloads and not vnet_hdr:
        raise ConfigError(f"tap {name}", "offloads are told in the vnet header, which it has not")
    refused = ""
    header_bytes = 12 if vnet_hdr is True else int(vnet_hdr)
    flags = IFF_TAP | IFF_NO_PI | IFF_MULTI_QUEUE | (IFF_VNET_HDR if header_bytes else 0)
    fds: list[int] = []
    try:
        for _ in range(queues):
            fd = _open_tun(name, nonblocking)
            fds.append(fd)
            answer = _set_interface(fd, name, flags)
            name = answer                     # the next queues join the name the kernel chose
            fcntl.ioctl(fd, TUNSETOFFLOAD, 0)
            if header_bytes:
                fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("=i", header_bytes))
        if mac is not None:
            set_mac(name, mac)
        if offloads:                          # of the device, so once for all queues
            refused = _offload(fds[0])
        return TapDevice(name, socket.if_nametoindex(name), tuple(fds), header_bytes,
                         offloads and not refused, refused)
    except BaseException as e:
        for fd in fds:
            os.close(fd)
        if isinstance(e, OSError):
            raise PortError(f"tap {name}", e.strerror or str(e)) from e
        raise


def _offload(fd: int) -> str:
    """Why the kernel refuses, or ""."""
    try:
        fcntl.ioctl(fd, TUNSETOFFLOAD, OFFLOADS)
    except OSError as e:
        return e.strerror or str(e)
    return ""


def set_mac(name: str, mac: str) -> None:
    octets = bytes.fromhex(mac.replace(":", ""))
    if len(octets) != 6:
        raise ConfigError(f"tap {name}", f"{mac!r} is no MAC address", "use aa:bb:cc:dd:ee:ff")
    request = struct.pack("=16sH6s8x", name.encode(), ARPHRD_ETHER, octets)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            fcntl.ioctl(sock, SIOCSIFHWADDR, request)
        except OSError as e:
            raise PortError(f"tap {name}", f"the MAC address {mac} is refused, {e.strerror}",
                            "use a unicast address") from e


def _check(name: str, queues: int, vnet_hdr: bool | int) -> None:
    if not name or len(name.encode()) >= IFNAMSIZ:
        raise ConfigError(f"tap {name!r}", "an interface name has 1 to 15 bytes",
                          "choose a shorter --tap")
    if name in (".", "..") or any(c in "/:" or c.isspace() for c in name):
        raise ConfigError(f"tap {name!r}", "an interface name has no '/', ':' or space",
                          "choose another --tap")
    if not 1 <= queues <= MAX_QUEUES:
        raise ConfigError(f"tap {name}", f"{queues} queues, a TAP has 1 to {MAX_QUEUES}")
    if vnet_hdr not in (False, True, 10, 12):
        raise ConfigError(f"tap {name}", f"a vnet header of {vnet_hdr} bytes", "10 or 12")


def _open_tun(name: str, nonblocking: bool) -> int:
    try:
        return os.open(TUN_PATH, os.O_RDWR | os.O_CLOEXEC | (os.O_NONBLOCK if nonblocking else 0))
    except OSError as e:
        match e.errno:
            case errno.ENOENT | errno.ENODEV | errno.ENXIO:
                why = f"{TUN_PATH} does not exist"
                mend = "modprobe tun; in a container, pass the device in"
            case errno.EACCES | errno.EPERM:
                why, mend = f"{TUN_PATH} may not be opened", "run as root, or allow the device"
            case _:
                why, mend = f"{TUN_PATH}, {e.strerror}", ""
        raise PortError(f"tap {name}", why, mend) from e


def _set_interface(fd: int, name: str, flags: int) -> str:
    request = bytearray(struct.pack("=16sH22x", name.encode(), flags))
    try:
        fcntl.ioctl(fd, TUNSETIFF, request)
    except OSError as e:
        match e.errno:
            case errno.EPERM:
                why, mend = "creating a TAP is not permitted", "run as root, or with CAP_NET_ADMIN"
            case errno.EBUSY:
                why, mend = "is in use by another process", "choose another --tap, or end that one"
            case errno.EINVAL:
                why = "an interface of that name is no multi-queue TAP"
                mend = "choose another --tap, or remove it"
            case errno.E2BIG:
                why, mend = "has no more queues to give", "ask for fewer queues"
            case _:
                why, mend = e.strerror or str(e), ""
        raise PortError(f"tap {name}", why, mend) from e
    return bytes(request[:IFNAMSIZ]).split(b"\0")[0].decode()
