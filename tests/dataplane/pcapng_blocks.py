"""Blocks of a pcapng file, taken apart by the specification alone (draft-ietf-opsawg-pcapng)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

OPTIONS = {2: "flags", 4: "dropcount", 5: "packetid", 6: "queue"}


@dataclass(frozen=True)
class Packet:
    interface: int
    timestamp_ns: int
    data: bytes
    original: int
    comment: str
    verdict: int | None
    options: dict[str, int]  # numbers, of OPTIONS


def blocks(content: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, body) of each; AssertionError where the framing is wrong."""
    at = 0
    while at < len(content):
        kind, size = struct.unpack_from("<II", content, at)
        assert size % 4 == 0 and struct.unpack_from("<I", content, at + size - 4) == (size,)
        yield kind, content[at + 8 : at + size - 4]
        at += size
    assert at == len(content)


def options(raw: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while True:
        code, length = struct.unpack_from("<HH", raw, at)
        value = raw[at + 4 : at + 4 + length]
        assert not any(raw[at + 4 + length : at + 4 + length + -length % 4]), "padding"
        at += 4 + length + -length % 4
        if code == 0:
            assert (length, at) == (0, len(raw)), "nothing is behind the end of the options"
            return found
        assert code not in found
        found[code] = value


def packets(content: bytes) -> list[Packet]:
    out = []
    for kind, body in blocks(content):
        if kind != 6:
            continue
        interface, high, low, length, original = struct.unpack_from("<5I", body)
        found = options(body[20 + length + -length % 4 :])
        verdict = None
        if 7 in found:
            assert len(found[7]) == 9 and found[7][0] == 2, "a verdict of XDP"
            verdict = int.from_bytes(found[7][1:], "little")
        out.append(Packet(interface, high << 32 | low, body[20 : 20 + length], original,
                          found.get(1, b"").decode(), verdict,
                          {name: int.from_bytes(found[code], "little")
                           for code, name in OPTIONS.items() if code in found}))
    return out
