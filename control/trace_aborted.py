"""Show aborted packets: `xdpu run --trace-aborted N` prints the first N on standard error.

    xdpu: aborted 1: program fw, eth0, queue 0, worker 0, 64 bytes: its instruction ...
        0000  ff ff ff ff ff ff 02 00  00 00 00 01 08 00 45 00  ..............E.
"""

from __future__ import annotations

from collections.abc import Callable

from dataplane.aborted import Aborted
from dataplane.engine import Engine

_LINE_BYTES = 16


class AbortedPrinter:
    """Prints what the workers kept and was not printed yet, until there were `wanted`."""

    def __init__(self, engine: Engine, wanted: int, say: Callable[[str], None]) -> None:
        self.engine, self.wanted, self.say = engine, wanted, say
        self._seen = [0] * len(engine.workers)
        self._printed = 0

    def __call__(self) -> None:
        for number, worker in enumerate(self.engine.workers):
            if self._printed >= self.wanted:
                return
            for packet in worker.aborted.packets(self._seen[number]):
                self._seen[number] += 1
                if self._printed < self.wanted:
                    self._printed += 1
                    self.say(f"aborted {self._printed}: {self._describe(packet)}")

    def _describe(self, packet: Aborted) -> str:
        names = {port.ifindex: port.name for port in self.engine.ports}
        where = names.get(packet.ifindex, f"interface {packet.ifindex}")
        verdict = f" ({packet.verdict})" if packet.verdict else ""
        cut = f", the first {len(packet.data)}" if len(packet.data) < packet.length else ""
        return (f"program {packet.program}, {where}, queue "
                f"{packet.queue}, worker {packet.worker}, {packet.length} bytes{cut}: "
                f"{packet.reason}{verdict}\n{hexdump(packet.data)}")


def hexdump(data: bytes) -> str:
    lines = []
    for at in range(0, len(data), _LINE_BYTES):
        row = data[at : at + _LINE_BYTES]
        left, right = row[:8].hex(" "), row[8:].hex(" ")
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in row)
        lines.append(f"    {at:04x}  {left:<23}  {right:<23}  {text}")
    return "\n".join(lines)
