"""What comes of a program on all engines."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Disagreement:
    """`packet` is the number of the first packet that differs, -1: maps."""

    engine: str
    what: str
    packet: int = -1

    def __str__(self) -> str:
        where = f", packet {self.packet}" if self.packet >= 0 else ""
        return f"{self.engine} differs from the kernel{where}: {self.what}"


@dataclass
class Outcome:
    counts: Counter[str] = field(default_factory=Counter)
    found: list[Disagreement] = field(default_factory=list)
    refused: str = ""
    ours_only: bool = False  # the kernel refuses it, our verifier does not
