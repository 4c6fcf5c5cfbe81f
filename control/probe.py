"""One question about the machine or an interface, its answer, and the mend for a no."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

Answer = tuple[bool | None, str]


@dataclass(frozen=True)
class Probe:
    """`hint` is the mend, said when the answer is no."""

    name: str
    check: Callable[[], Answer]
    hint: str

    def run(self) -> ProbeResult:
        """A check that fails is an answer, too: unknown."""
        try:
            ok, reason = self.check()
        except (OSError, ValueError) as e:
            ok, reason = None, f"cannot be found out, {getattr(e, 'strerror', None) or e}"
        return ProbeResult(self.name, ok, reason, self.hint if ok is False else "")


@dataclass(frozen=True)
class ProbeResult:
    name: str
    ok: bool | None
    reason: str
    hint: str = ""

    def to_json(self) -> dict[str, str | bool | None]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}" + (f" ({self.hint})" if self.hint else "")
