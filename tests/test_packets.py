"""The generator itself: deterministic, within the kernel's limits, varied enough to be of use."""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from tests.packets import BIG_BYTES, MAX_BYTES, MIN_BYTES, TRAILER, packets_for

_ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted(path.stem for path in (_ROOT / "examples").glob("*.c"))


@pytest.mark.parametrize("name", [*EXAMPLES, "anything"])
def test_same_frames_every_time(name: str) -> None:
    frames = packets_for(name)
    assert frames == packets_for(name)
    assert len(frames) == 200
    assert frames != packets_for(name, seed=2)


def test_same_frames_in_another_process() -> None:
    script = ("from hashlib import sha256; from tests.packets import packets_for;"
              "print(sha256(b''.join(packets_for('demo'))).hexdigest())")
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True,
                           check=True, cwd=_ROOT)
    assert other.stdout.strip() == sha256(b"".join(packets_for("demo"))).hexdigest()


@pytest.mark.parametrize("name", EXAMPLES)
def test_lengths(name: str) -> None:
    lengths = {len(frame) for frame in packets_for(name, 1000)}
    assert min(lengths) == MIN_BYTES
    assert MAX_BYTES in lengths
    assert BIG_BYTES <= max(lengths) <= BIG_BYTES + len(TRAILER)


def test_variety() -> None:
    frames = packets_for("anything", 1000)
    ethertypes = {frame[12:14].hex() for frame in frames}
    assert {"0800", "86dd", "0806", "8100"} <= ethertypes
    v4 = [frame for frame in frames if frame[12:14] == b"\x08\x00" and len(frame) > 34]
    assert {frame[14] & 15 for frame in v4} >= {0, 4, 5, 7, 15}
    assert {frame[23] for frame in v4} >= {1, 4, 6, 17, 47}
