"""Random packets: random bytes, headers that parse, and boundary values, of 14 to 3520 bytes."""

from __future__ import annotations

import random
import struct

_EDGES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
          0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF)
LONGEST = 3520  # what the kernel's test runs take in one buffer


def random_packets(seed: int, count: int) -> list[bytes]:
    rng = random.Random(seed)
    return [_packet(rng) for _ in range(count)]


def _packet(rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.04:
        size = rng.randrange(14, 1501) if rng.random() < 0.7 else rng.randrange(1500, LONGEST + 1)
    elif kind < 0.12:
        size = rng.choice((14, 15, 34, 63, 64, 65, 1500, LONGEST))
    else:
        size = rng.randrange(64, 160)
    body = bytearray(rng.randbytes(size))
    if rng.random() < 0.3:
        header = (bytes.fromhex("ffffffffffff020000000001")
                  + struct.pack(">HBBHHHBBH", 0x0800, 0x45, 0, size - 14, rng.getrandbits(16), 0,
                                64, rng.choice((1, 6, 17)), 0)
                  + bytes((10, 0, 0, rng.randrange(8), 10, 0, 1, rng.randrange(8))))
        body[: min(len(header), size)] = header[:size]
    if rng.random() < 0.5 and size >= 22:
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(0, min(size, 64) - 7)
            body[at : at + 8] = rng.choice(_EDGES).to_bytes(8, "little")
    return bytes(body)
