"""Routing netlink, just enough to read and write back what the kernel said, byte for byte.

A takeover has to put back *exactly* what it found, attributes we have never heard of included
(nexthop ids, encapsulations, protocols of addresses).  So a record is the kernel's own message,
fixed header and attributes as raw bytes, which can be sent back unchanged, as `ip route save` and
`ip route restore` do.  pyroute2 decodes into names and loses what it has no name for (RTA_NH_ID,
RTA_TTL_PROPAGATE, ... in 0.9), and costs 120 ms of import in the keeper's hurry.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from types import TracebackType

NETLINK_ROUTE, NETLINK_GENERIC = 0, 16

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_GETRULE = 34

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR = 0x1, 0x4, 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLA_TYPE_MASK = 0x3FFF
SOL_NETLINK, NETLINK_EXT_ACK, NETLINK_CAP_ACK = 270, 11, 10
NLM_F_CAPPED, NLM_F_ACK_TLVS = 0x100, 0x200

_HEADER = struct.Struct("=IHHII")
_ATTR = struct.Struct("=HH")

Attrs = tuple[tuple[int, bytes], ...]


def attr(kind: int, value: bytes | int) -> bytes:
    """One attribute; an int is a u32."""
    payload = struct.pack("=I", value) if isinstance(value, int) else value
    size = _ATTR.size + len(payload)
    return _ATTR.pack(size, kind) + payload + b"\0" * (-size % 4)


def encode_attrs(attrs: Iterable[tuple[int, bytes]]) -> bytes:
    return b"".join(attr(kind, value) for kind, value in attrs)


def parse_attrs(data: bytes) -> Attrs:
    found = []
    offset = 0
    while offset + _ATTR.size <= len(data):
        size, kind = _ATTR.unpack_from(data, offset)
        if size < _ATTR.size or offset + size > len(data):
            break
        found.append((kind & NLA_TYPE_MASK, data[offset + _ATTR.size:offset + size]))
        offset += size + (-size % 4)
    return tuple(found)


class NetlinkError(OSError):
    """What the kernel answered: errno, and its own words where it has some."""


class Netlink:
    """A netlink socket in the calling thread's network namespace.  One request at a time."""

    def __init__(self, protocol: int = NETLINK_ROUTE) -> None:
        self._sequence = 0
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC,
                                     protocol)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.settimeout(10)
        self._socket.bind((0, 0))

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def request(self, kind: int, payload: bytes, flags: int = 0) -> list[bytes]:
        """Sends one message, waits for the kernel's word; the payloads it answered with.
        Raises NetlinkError."""
        return [body for _, body in self._exchange(kind, payload, flags | NLM_F_ACK)]

    def dump(self, kind: int, payload: bytes) -> list[bytes]:
        """All objects of a kind, again if they changed while being read."""
        for _ in range(20):
            try:
                return [body for _, body in self._exchange(kind, payload, NLM_F_DUMP)]
            except InterruptedError:
                continue
        raise NetlinkError(errno.EBUSY, "the tables change faster than they can be read")

    def _exchange(self, kind: int, payload: bytes, flags: int) -> Iterator[tuple[int, bytes]]:
        self._sequence += 1
        message = _HEADER.pack(_HEADER.size + len(payload), kind, flags | NLM_F_REQUEST,
                               self._sequence, 0) + payload
        self._socket.sendto(message, (0, 0))
        interrupted = False
        while True:
            data = self._socket.recv(1 << 18)
            offset = 0
            while offset + _HEADER.size <= len(data):
                size, answer, answer_flags, sequence, _ = _HEADER.unpack_from(data, offset)
                body = data[offset + _HEADER.size:offset + size]
                offset += size + (-size % 4)
                if sequence != self._sequence:
                    continue
                interrupted |= bool(answer_flags & NLM_F_DUMP_INTR)
                if answer in (NLMSG_ERROR, NLMSG_DONE):
                    _raise_error(answer, answer_flags, body)
                    if interrupted:
                        raise InterruptedError(errno.EINTR, "dump interrupted")
                    return
                yield answer, body


def _raise_error(answer: int, flags: int, body: bytes) -> None:
    code = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
    if code <= 0:
        return
    text = os.strerror(code)
    if answer == NLMSG_ERROR and flags & NLM_F_ACK_TLVS:
        skip = 20 if flags & NLM_F_CAPPED else 4 + struct.unpack_from("=I", body, 4)[0]
        for kind, value in parse_attrs(body[skip:]):
            if kind == 1:
                text += f", {value.rstrip(bytes(1)).decode(errors='replace')}"
    raise NetlinkError(code, text)
