"""The examples' paths: a packet for each, the map entries it wants, the verdict it gets."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench import frames
from xdp_runtime.state import Verdict

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
_LOOPBACK = 1  # what the kernel's test run says a packet came in by
_TUNNEL = (socket.inet_aton("192.0.2.1") + socket.inet_aton("192.0.2.2") +
           bytes.fromhex("02aabbccddee") + bytes(2))
Entries = Mapping[str, Mapping[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Case:
    """One path of one program.

    `verdict` is what it has to be, if that is known; `ignored` names maps that hold time or
    chance; `prelude` are packets that both sides see before.
    """

    name: str
    packet: bytes
    verdict: Verdict | None
    entries: Entries = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    path: Path | None = None  # the object file, if it is not the example
    program: str | None = None  # of the object; its first
    prelude: tuple[bytes, ...] = ()
    stands_for: int = 0  # packets of a capture that go this way

    @property
    def example(self) -> str:
        return self.name.split("/")[0]

    @property
    def object_path(self) -> Path:
        return self.path or EXAMPLES / f"{self.example}.o"


def _u16(value: int) -> bytes:
    return struct.pack("=H", value)


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)


_PEER = {"peer": {_u32(_LOOPBACK): _u32(_LOOPBACK)}}
_BLOCKED = {"blocked_ports": {_u16(2323): bytes(8)}}
_UDP = frames.udp4(80)

CASES = (
    Case("pass", _UDP, Verdict.PASS),
    Case("drop", _UDP, Verdict.DROP),
    Case("tx", _UDP, Verdict.TX),
    Case("counter", _UDP, Verdict.PASS),
    Case("flow_table", _UDP, Verdict.PASS),
    Case("firewall/drop", frames.udp4(2323), Verdict.DROP, _BLOCKED),
    Case("firewall/pass", _UDP, Verdict.PASS, _BLOCKED),
    Case("icmp_echo", frames.echo4(), Verdict.TX),
    Case("ipip", _UDP, Verdict.TX, {"tunnel": {_u32(0): _TUNNEL}}),
    Case("redirect", _UDP, Verdict.REDIRECT, _PEER),
    Case("dispatcher/ipv4", frames.udp4(9), Verdict.DROP),
    Case("dispatcher/ipv6", frames.udp6(9), Verdict.PASS),
    Case("dispatcher/arp", frames.arp(), Verdict.PASS),
    Case("dispatcher/other", frames.lldp(), Verdict.PASS),
    Case("meta", _UDP, Verdict.PASS),
    Case("helpers", frames.tcp4(80), Verdict.PASS, ignored=("surroundings",)),
    Case("demo/redirect", _UDP, Verdict.REDIRECT, _PEER | _BLOCKED),
    Case("demo/echo", frames.echo4(), Verdict.TX, _PEER | _BLOCKED),
)


def choose(names: list[str]) -> list[Case]:
    """The cases of those names, or of those examples; the examples without names.

    `uxdp` names those of bench/uxdp.  Raises KeyError."""
    from bench.uxdp import CASES as UXDP

    known = (*CASES, *UXDP)
    for name in names:
        if not any(name in (case.name, case.example) for case in known):
            raise KeyError(name)
    if not names:
        return list(CASES)
    return [c for c in known if c.name in names or c.example in names]
