"""Random questions for bpf_fib_lookup and bpf_check_mtu, drawn from what a host has."""

from __future__ import annotations

import random
import struct

from xdp_runtime.fib.host import INET, INET6, Host, bytes_of

_HEAD_BYTES = 24  # mac, type, padding, flags, code
_WILD = (0, 0x7F000001 << 96, 0xFFFFFFFF << 96, 0xE0000001 << 96, 1, 0xFF02 << 112 | 1,
         0xFE80 << 112 | 0x1234, 0xFEC0 << 112 | 1, 0xFFFF01020304)


class Questions:
    """A stream of frames for tests/xdp_runtime/fib/fib_probe.c."""

    def __init__(self, host: Host, seed: int, multipath: bool = True) -> None:
        self.host, self.random = host, random.Random(seed)
        routes = [r for r in host.routes if multipath or len(r.legs) < 2]
        self._keys = {
            family: [(r.key, r.length) for r in routes if r.family == family]
            + [(n.key, 128) for n in host.neighbours if n.family == family]
            + [(rule.key, rule.length) for rule in host.rules if rule.family == family]
            for family in (INET, INET6)}
        self._tables = sorted({r.table for r in routes} | {0, 77})
        self._sources = [a.key for a in host.addresses6] + [
            leg.source for r in routes for leg in r.legs] + [
            rule.source_key for rule in host.rules if rule.source_length]
        self._interfaces = [i.ifindex for i in host.interfaces]
        self._marks = [0, 1, *(rule.mark for rule in host.rules)]

    def _address(self, family: int) -> bytes:
        pick = self.random
        if pick.random() < 0.05:
            return bytes_of(pick.choice(_WILD), family)
        key, length = pick.choice(self._keys[family] or [(0, 0)])
        free = (1 << 128 - length) - 1
        if pick.random() < 0.3:
            free = 0xFF << (96 if family == INET else 0) & free
        key |= pick.getrandbits(128) & free
        if pick.random() < 0.1:
            key ^= 1 << pick.randrange(96 if family == INET else 0, 128)
        return bytes_of(key, family)

    def _source(self, family: int) -> bytes:
        pick = self.random
        if pick.random() < 0.5:
            return bytes_of(pick.choice(self._sources or [0]), family)
        return bytes(16)[: 4 if family == INET else 16] if pick.random() < 0.2 \
            else self._address(family)

    def lookup(self) -> bytes:
        pick = self.random
        family = pick.choice((INET, INET, INET6, INET6, INET6))
        flags = pick.choice((0, 0, 0, 1, 2, 3)) | pick.choice((0, 4)) | pick.choice((0, 16)) \
            | pick.choice((0, 32))
        if (flags & 1 and pick.random() < 0.5) or pick.random() < 0.1:
            flags |= 8
        if pick.random() < 0.01:
            flags |= 1 << pick.randrange(6, 32)
        interface = pick.choice(self._interfaces) if pick.random() < 0.98 else pick.randrange(99)
        params = bytearray(pick.randbytes(64))
        length = pick.choice((0, 64, 1200, 1279, 1280, 1281, 1300, 1400, 1500, 9000, 65535))
        ports = [pick.choice((22, 80, 443, 5000, pick.randrange(65536))) for _ in range(2)]
        struct.pack_into(">BBHH", params, 0, family if pick.random() < 0.99 else 7,
                         pick.choice((6, 17, 1, 58)), *ports)
        struct.pack_into("<HI", params, 6, length, interface)
        if pick.random() < 0.7:
            params[12:16] = bytes((pick.choice((0, 4, 8, 0x10, 0x1C, 0x20, 0xB8)),
                                   *([pick.choice((0, 0x40, 0x80)), 0, pick.choice((0, 5))])))
        size = 4 if family == INET else 16
        params[16:16 + size] = self._source(family)
        params[32:32 + size] = self._address(family)
        if flags & 8:
            params[48:52] = pick.choice(self._tables).to_bytes(4, "little")
        if flags & 32:
            params[52:56] = pick.choice(self._marks).to_bytes(4, "little")
        return bytes(16) + struct.pack("<II", flags, 0) + bytes(params)

    def mtu(self) -> bytes:
        pick = self.random
        interface = pick.choice((0, *self._interfaces, 98))
        length = pick.choice((0, 0, 100, 1279, 1280, 1281, 1400, 1500, 1501, 0x7FFFFFFF,
                              0x80000000, 0xFFFFFFFF, 65535))
        difference = pick.choice((0, 0, 1, -1, 20, -20, 1400, 1500, 70000, -(1 << 31), 2**31 - 1))
        flags = 0 if pick.random() < 0.95 else 1 << pick.randrange(64)
        frame = bytes(16) + struct.pack("<IIi4xQi4x", interface, length, difference, flags, 0)
        return frame + bytes(pick.choice((0, 60, 1400)))


def told(frame: bytes) -> str:
    """A question or an answer, for a failure's message."""
    flags, code = struct.unpack_from("<Ii", frame, 16)
    p = frame[_HEAD_BYTES:]
    size = 4 if p[0] == INET else 16
    return (f"flags {flags} code {code} family {p[0]} proto {p[1]} ports {p[2:6].hex()} "
            f"len {struct.unpack_from('<H', p, 6)[0]} if {struct.unpack_from('<I', p, 8)[0]} "
            f"tos {p[12:16].hex()} src {p[16:16 + size].hex(':', 2)} "
            f"dst {p[32:32 + size].hex(':', 2)} vlan {p[48:52].hex()} macs {p[52:].hex()}")
