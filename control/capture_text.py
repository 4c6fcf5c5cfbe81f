"""A capture for the eye: pcapng blocks as lines, a packet each.

    14:03:07.512345 eth0:0 XDP_DROP        64 bytes  IP 10.0.0.1.4000 > 10.0.0.2.53: UDP, length 22

Local time, port and queue, the verdict with a redirect's target by name (`entry` as the packet came
in), its length on the wire, and the packet (packet_text.py).  What was lost before it, because
printing was too slow, is said behind it.
"""

from __future__ import annotations

import json
import re
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from control.capture_output import Output
from control.packet_text import describe
from control.signals import Signals
from control.trace_aborted import hexdump
from dataplane import pcapfile
from dataplane.pcapfile import EPB_DROPCOUNT, EPB_QUEUE, IF_DESCRIPTION, IF_NAME, OPT_COMMENT

_SECOND_NS = 10**9


@dataclass(frozen=True, slots=True)
class Shown:
    """A packet as it was captured: `point` is entry or exit, `verdict` in words, "" at entry."""

    timestamp_ns: int
    port: str
    queue: int
    point: str
    verdict: str
    lost: int
    length: int
    data: bytes

    def line(self) -> str:
        seconds, fraction = divmod(self.timestamp_ns, _SECOND_NS)
        at = time.strftime("%H:%M:%S", time.localtime(seconds))
        lost = f" [{self.lost:,} lost before]" if self.lost else ""
        return (f"{at}.{fraction // 1000:06} {self.port}:{self.queue} "
                f"{self.verdict or self.point:<12} {self.length:>5} bytes  "
                f"{describe(self.data)}{lost}")

    def record(self) -> dict[str, object]:
        return {"type": "packet", "ts": self.timestamp_ns / _SECOND_NS, "port": self.port,
                "queue": self.queue, "point": self.point, "verdict": self.verdict or None,
                "length": self.length, "lost_before": self.lost, "packet": describe(self.data)}


class TextOutput(Output):
    """Standard output; takes the blocks of a section, as Output does, and writes lines.

    `targets` are names for what a verdict says by number ("ifindex 3"), `hexadecimal` adds the
    bytes."""

    def __init__(self, signals: Signals, targets: Mapping[str, str], as_json: bool = False,
                 hexadecimal: bool = False) -> None:
        super().__init__("-", signals, text=True)
        self._targets, self._as_json, self._hexadecimal = targets, as_json, hexadecimal
        self._interfaces: list[tuple[str, str]] = []

    def write(self, blocks: bytes | memoryview) -> None:
        lines = [self._line(one) for one in self._shown(bytes(blocks))]
        if lines:
            super().write("".join(lines).encode())

    def _line(self, one: Shown) -> str:
        if self._as_json:
            record = one.record() | ({"data": one.data.hex()} if self._hexadecimal else {})
            return json.dumps(record) + "\n"
        return one.line() + "\n" + (hexdump(one.data) + "\n" if self._hexadecimal else "")

    def _shown(self, blocks: bytes) -> Iterator[Shown]:
        at = 0
        while at < len(blocks):
            kind, size = struct.unpack_from("=II", blocks, at)
            body = blocks[at + 8 : at + size - 4]
            at += size
            if kind == pcapfile.INTERFACE:
                said = dict(pcapfile.options(body[8:], "="))
                self._interfaces.append((said[IF_NAME].decode(),
                                         said[IF_DESCRIPTION].decode().partition(" ")[0]))
            elif kind == pcapfile.ENHANCED_PACKET:
                yield self._packet(body)

    def _packet(self, body: bytes) -> Shown:
        interface, high, low, taken, length = struct.unpack_from("=5I", body)
        said = dict(pcapfile.options(body[20 + taken + -taken % 4 :], "="))
        port, point = self._interfaces[interface]
        verdict = re.sub(r"(?:ifindex|ring) \d+", lambda found: self._targets.get(
            found.group(), found.group()), said.get(OPT_COMMENT, b"").decode())
        return Shown(high << 32 | low, port, int.from_bytes(said[EPB_QUEUE], "little"), point,
                     verdict, int.from_bytes(said.get(EPB_DROPCOUNT, b""), "little"), length,
                     body[20 : 20 + taken])
