"""Messages between the set-up process and a run: a JSON object each, with descriptors beside it.

Over a UNIX socket of whole messages (SOCK_SEQPACKET); the descriptors by SCM_RIGHTS.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from typing import Any

from afxdp.map_filter import KeyShape, Part
from xdp_runtime.errors import ConfigError, LoadError, OutOfMemory, PortError, XdpuError

MESSAGE_BYTES, DESCRIPTORS_MAX = 1 << 16, 250  # SCM_MAX_FD is 253
_MSG_CMSG_CLOEXEC = 0x40000000
_KINDS = {cls.kind: cls for cls in (ConfigError, PortError, LoadError, OutOfMemory)}


class Ended(Exception):
    """The other side is gone."""


def send(sock: socket.socket, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
    """Raises Ended."""
    data = json.dumps(message).encode()
    if len(data) > MESSAGE_BYTES or len(fds) > DESCRIPTORS_MAX:
        raise ConfigError("set-up socket", f"a message of {len(data)} bytes and {len(fds)} "
                          "descriptors is too large", "use fewer queues")
    try:
        socket.send_fds(sock, [data], list(fds))
    except OSError as error:
        raise Ended from error


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Raises Ended, and ValueError for what is no message."""
    try:
        data, fds, flags, _ = socket.recv_fds(sock, MESSAGE_BYTES + 1, DESCRIPTORS_MAX,
                                              _MSG_CMSG_CLOEXEC)
    except OSError as error:
        raise Ended from error
    if not data:
        raise Ended
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("a message was cut off")
        message = json.loads(data)
        if not isinstance(message, dict):
            raise ValueError("a message is no object")
    except ValueError:
        for fd in fds:
            os.close(fd)
        raise
    return message, fds


def shape_of(told: dict[str, Any]) -> KeyShape:
    """What dataclasses.asdict made of one.  Raises ValueError, TypeError or KeyError."""
    shape = KeyShape(**{**told, "parts": tuple(Part(**part) for part in told["parts"])})
    if not isinstance(shape.map, str) or not all(
            isinstance(number, int) for number in (
                shape.type, shape.key_size, shape.max_entries,
                *(number for part in shape.parts for number in (part.at, part.size)))):
        raise TypeError(f"a key that makes no sense: {told!r:.200}")
    shape.check()
    return shape


def failure(error: XdpuError) -> dict[str, Any]:
    return {"error": {"kind": error.kind, "what": error.what, "why": error.why,
                      "mend": error.mend}}


def raise_failure(message: dict[str, Any]) -> None:
    """Raises what `failure` made; nothing where the message is none."""
    said = message.get("error")
    if isinstance(said, dict):
        raise _KINDS.get(str(said.get("kind")), PortError)(
            str(said.get("what")), str(said.get("why")), str(said.get("mend")))
