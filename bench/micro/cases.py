"""The micro programs: source, packet, map entries, how they are repeated, and the goal of each.

A program that does the same on every packet is a `Case` of bench.prog.  One that is about many
different packets names a `Stream` (many.py), which both sides make in the same order.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from bench import frames
from bench.samples import ROOT, of_repository
from xdp_runtime.state import Verdict

PROGRAMS = ROOT / "bench" / "micro" / "programs"
Entries = Callable[[], Mapping[str, Mapping[bytes, bytes]]]


class Kind(IntEnum):
    """How packets differ, as in programs/many.c."""

    FLOW, NEXT, ROUTE4, ROUTE6 = range(4)


@dataclass(frozen=True, slots=True)
class Stream:
    """Packets of `flows` flows at random; all of them once, in order, before anything is timed."""

    kind: Kind
    flows: int


@dataclass(frozen=True, slots=True)
class Goal:
    """`against` "native", "kernel" (both a ratio) or "ns" (net).  Native: at most; kernel: at
    least."""

    against: str
    bound: float

    def __str__(self) -> str:
        return {"native": f"<= {self.bound:g} x native", "kernel": f">= {self.bound:g} x kernel",
                "ns": f"<= {self.bound:g} ns"}[self.against]


def _nothing() -> Mapping[str, Mapping[bytes, bytes]]:
    return {}


@dataclass(frozen=True, slots=True)
class Micro:
    """`program` is a function of `source`; `slow` divides how often it runs; `batch`: at most so
    many runs in a row, for what fills up.  `uncompared` are maps whose contents are chance."""

    name: str
    source: str
    program: str
    verdict: Verdict
    packet: bytes
    entries: Entries = _nothing
    stream: Stream | None = None
    goal: Goal | None = None
    slow: int = 1
    native: bool = False
    drained: str = ""  # a ring buffer to be emptied between chunks
    uncompared: tuple[str, ...] = ()
    flags: tuple[str, ...] = field(default=())


def tuple_key(number: int) -> bytes:
    """A key of programs/micro.h's struct tuple; 0 is that of the packet frames.udp4(80)."""
    packet = frames.udp4(80)
    source = struct.unpack_from("=I", packet, 26)[0] ^ number
    return struct.pack("=I", source) + packet[30:38] + packet[23:24] + bytes(7)


def _table(value: int) -> Entries:
    def entries() -> Mapping[str, Mapping[bytes, bytes]]:
        return {"table": {tuple_key(n): struct.pack("=Q", value + n * 3) for n in range(65536)}}

    return entries


_ROUTES = 100_000
# how long prefixes are in tables of the Internet, roughly: out of 16
_LENGTHS4 = (24,) * 10 + (22, 22, 23, 20, 16, 19)
_LENGTHS6 = (48,) * 8 + (32, 32, 32, 44, 40, 36, 46, 29)


def _routes4() -> Mapping[str, Mapping[bytes, bytes]]:
    routes = {}
    for n in range(_ROUTES):
        length = _LENGTHS4[n & 15]
        address = (n * 2654435761 & 0xFFFFFFFF) >> 32 - length << 32 - length
        routes[struct.pack("=I", length) + address.to_bytes(4)] = struct.pack("=I", n)
    return {"routes": routes}


def _routes6() -> Mapping[str, Mapping[bytes, bytes]]:
    routes = {}
    for n in range(_ROUTES):
        length = _LENGTHS6[n & 15]
        address = (n * 11400714819323198485 & 0xFFFFFFFFFFFFFFFF) >> 64 - length << 64 - length
        routes[struct.pack("=I", length) + address.to_bytes(8) + bytes(8)] = struct.pack("=I", n)
    return {"routes": routes}


_UDP = frames.udp4(80)
_UDP6 = frames.udp6(80)
_TEXT = frames.udp4(80, 1458).replace(b"\0", b"\1")
_DOUBLE = (_TEXT[:700] * 3)[:1500]
_PASS, _DROP, _TX = Verdict.PASS, Verdict.DROP, Verdict.TX


def _flows(count: int, label: str, goal: Goal | None) -> Micro:
    return Micro(f"flow_table_{label}", "flows", "flow_table", _PASS, _UDP,
                 stream=Stream(Kind.FLOW, count), goal=goal, flags=(f"-DFLOWS={count}",))


def _plain(name: str, verdict: Verdict, packet: bytes = _UDP, slow: int = 1) -> Micro:
    return Micro(name, "plain", name, verdict, packet, goal=Goal("native", 1.1), slow=slow,
                 native=True)


MICROS = (
    _plain("empty", _PASS),
    _plain("parse_drop", _DROP),
    _plain("mac_swap", _TX),
    _plain("ipv4_checksum", _TX),
    _plain("tuple_hash", _PASS),
    _plain("checksum_1400", _PASS, _TEXT, slow=10),
    _plain("checksum_to_end", _PASS, _TEXT, slow=10),
    _plain("siphash", _PASS, slow=100),
    _plain("strlen", _PASS, _TEXT, slow=20),
    _plain("memcpy", _PASS, _DOUBLE, slow=10),
    Micro("array_counter", "counters", "array_counter", _PASS, _UDP, native=True,
          goal=Goal("native", 1.3)),
    Micro("percpu_counter", "counters", "percpu_counter", _PASS, _UDP, native=True,
          goal=Goal("native", 1.3)),
    Micro("hash_hit", "hash", "hash_hit", _DROP, _UDP, _table(7), goal=Goal("ns", 10)),
    Micro("hash_update", "hash", "hash_update", _DROP, _UDP, _table(7)),
    Micro("lru_hit", "lru", "lru_hit", _DROP, _UDP,
          lambda: {"table": {tuple_key(0): struct.pack("=Q", 7)}}),
    Micro("lru_insert", "lru", "lru_insert", _PASS, _UDP, stream=Stream(Kind.NEXT, 1 << 17),
          goal=Goal("kernel", 2), uncompared=("table",)),
    Micro("lpm_v4", "lpm4", "lpm_v4", _PASS, _UDP, _routes4,
          Stream(Kind.ROUTE4, _ROUTES), Goal("kernel", 2)),
    Micro("lpm_v6", "lpm6", "lpm_v6", _PASS, _UDP6, _routes6,
          Stream(Kind.ROUTE6, _ROUTES), Goal("kernel", 2)),
    Micro("tail_call", "tail", "tail_call", _DROP, _UDP),
    Micro("ring_output", "ring", "ring_output", _PASS, _UDP, drained="ring",
          goal=Goal("kernel", 2)),
    _flows(1 << 10, "1k", None),
    _flows(1 << 16, "64k", None),
    _flows(1 << 20, "1m", Goal("kernel", 2.5)),
)


def choose(names: list[str]) -> list[Micro]:
    """The micros of those names, all without.  Raises KeyError."""
    for name in names:
        if not any(name == micro.name for micro in MICROS):
            raise KeyError(name)
    return [micro for micro in MICROS if not names or micro.name in names]


def build(source: str, where: Path, *flags: str) -> Path:
    """An object for BPF; of these flags, once."""
    text = of_repository(PROGRAMS / f"{source}.c", "xdpu bench micro")
    path = where / f"{source}{''.join(flags)}.o"
    if not path.exists():
        subprocess.run(["clang", "-O2", "-g", "-Wall", "-Werror", "-target", "bpf", "-mcpu=v3",
                        "-fno-builtin", "-Wno-pass-failed", "-I/usr/include/x86_64-linux-gnu",
                        *flags, "-c", text, "-o", path], check=True)
    return path
