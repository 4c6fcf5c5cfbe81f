"""How much memory the maps of a program may take, before one is made.

Maps are sparse: memory is taken page by page, as it is first touched (memory.py has the
exception). Too little of it would be noticed only then, and late. So what all maps together may
come to is compared with what there is, and with what the user allows (`--max-map-memory`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xdp_runtime.errors import OutOfMemory
from xdp_runtime.maps import layout, limits
from xdp_runtime.maps.memory import check_room
from xdp_runtime.object import MapSpec

_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_NAMED = 4  # maps that are named in an error, the largest first


def in_words(size_bytes: int) -> str:
    """Rounded up: 1.3 MiB."""
    for unit, name in _UNITS:
        if size_bytes >= unit:
            tenths = -(-size_bytes * 10 // unit)
            whole, rest = divmod(tenths, 10)
            return f"{whole}.{rest} {name}" if rest else f"{whole} {name}"
    return f"{size_bytes} bytes"


def check(of: str, specs: Sequence[MapSpec], workers: int, directory: Path | None = None,
          limit_bytes: int = 0) -> int:
    """What these maps may come to, in bytes.  Raises OutOfMemory if it is more than `limit_bytes`
    (0: no limit) or than there is in the directory."""
    shares = sorted(((layout.plan(spec, workers)[1], spec.name) for spec in specs
                     if limits.refusal(spec) is None), reverse=True)  # creation refuses the others
    total = sum(size for size, _ in shares)
    if limit_bytes and total > limit_bytes:
        parts = [f"{name} {in_words(size)}" for size, name in shares[:_NAMED]]
        if len(shares) > _NAMED:
            rest = sum(size for size, _ in shares[_NAMED:])
            parts.append(f"{len(shares) - _NAMED} others {in_words(rest)}")
        raise OutOfMemory(
            f"maps of {of}", f"may come to {in_words(total)} ({', '.join(parts)}), "
            f"--max-map-memory allows {in_words(limit_bytes)}",
            f"lower max_entries of {shares[0][1]}, or allow more")
    check_room(f"maps of {of}", total, directory)
    return total
