"""Frames for the programs here: what an edge sees, and what is wrong in it, the same each time."""

from __future__ import annotations

import random
import struct
from functools import cache
from itertools import pairwise

from tests.packets import packets_for

_EXTENSIONS = (0, 43, 44, 51, 60, 135, 6, 17, 58, 59)


def _mac(rng: random.Random) -> bytes:
    return rng.randbytes(12)


def _ip4(rng: random.Random, protocol: int, payload: bytes) -> bytes:
    ihl = rng.choice((5, 5, 5, 6, 15, 4))
    head = struct.pack("!BBHHHBBH4s4s", 0x40 | ihl, 0, ihl * 4 + len(payload), rng.getrandbits(16),
                       rng.choice((0, 0, 0x2000, 7)), 64, protocol, rng.getrandbits(16),
                       bytes((10, 0, 0, rng.randrange(9))), bytes((192, 0, 2, rng.randrange(5))))
    return _mac(rng) + b"\x08\0" + head + rng.randbytes(max(0, ihl * 4 - 20)) + payload


def quic(rng: random.Random) -> bytes:
    ids = [bytes((rng.randrange(2), n)) + b"\7" * rng.choice((6, 18)) for n in range(20)]
    cid = rng.choice(ids)
    if rng.random() < 0.5:
        source = rng.randbytes(rng.choice((0, 4, 8, 20, 21, 255)))[:rng.randrange(256)]
        token = rng.choice((b"\5abcde", b"\x40\x10" + bytes(16), b"\x80\0\0\1z", bytes(1),
                            b"\xc0" + bytes(6) + b"\2ab"))
        text = (bytes((0xC0 | rng.randrange(64),))
                + struct.pack("!I", rng.choice((1, 0, 0xFACEB002)))
                + bytes((rng.choice((len(cid), len(cid), 21, 3)),)) + cid
                + bytes((len(source) if rng.random() < 0.9 else 7,)) + source + token)
    else:
        text = bytes((0x40 | rng.randrange(64),)) + cid[:8] + rng.randbytes(rng.randrange(40))
    udp = struct.pack("!HHHH", rng.randrange(1024, 65536), rng.choice((443, 443, 443, 53)),
                      8 + len(text), 0) + text
    return _ip4(rng, rng.choice((17, 17, 17, 6)), udp)


def extensions(rng: random.Random) -> bytes:
    chain = [rng.choice(_EXTENSIONS[:6]) for _ in range(rng.choice((0, 1, 1, 2, 3, 7, 8, 13)))]
    chain.append(rng.choice(_EXTENSIONS[6:] if rng.random() < 0.3 else (6, 17)))
    out = b""
    for kind, after in pairwise(chain):
        units = rng.choice((0, 0, 0, 1, 2, 5))
        size = {44: 8, 51: (units + 2) * 4}.get(kind, (units + 1) * 8)
        body = rng.randbytes(size - 2) if kind != 44 or rng.random() < 0.3 else bytes(size - 2)
        out += bytes((after, units)) + body
    out += rng.randbytes(rng.choice((0, 3, 4, 8, 20, 60)))
    return (_mac(rng) + b"\x86\xdd" + struct.pack("!IHBB", 6 << 28, len(out), chain[0], 64)
            + rng.randbytes(32) + out)


def _noise(rng: random.Random) -> bytes:
    return rng.randbytes(rng.choice((14, 15, 31, 32, 33, 63, 64, 65, 95, 96, 127, 128, 143, 144,
                                     145, 200, 511, 1024, 1499, 1500)))


def _small_numbers(rng: random.Random) -> bytes:
    """Bytes that mean little: near edges, small counts."""
    out = bytearray(_noise(rng))
    for at in range(min(len(out), 24)):
        if rng.random() < 0.5:
            out[at] = rng.choice((0, 1, 2, 3, 0x7F, 0x80, 0xFF, rng.randrange(20)))
    return bytes(out)


@cache
def frames(count: int, seed: str = "edge") -> tuple[bytes, ...]:
    rng = random.Random(seed)
    usual = packets_for("firewall", count)
    out = []
    for number in range(count):
        make = rng.choice((quic, quic, extensions, extensions, _noise, _small_numbers, None, None))
        frame = usual[number] if make is None else make(rng)
        if rng.random() < 0.1:
            frame = frame[:rng.randrange(14, len(frame) + 1)]
        out.append(frame[:1514].ljust(14, b"\0"))
    return tuple(out)
