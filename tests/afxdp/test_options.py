"""What AfxdpPort refuses before it touches anything, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from afxdp import native
from afxdp.port import AfxdpPort, _ranges
from xdp_runtime.errors import ConfigError, PortError

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("options, said", [
    ({"mode": "hw"}, "mode hw: AF_XDP knows native, generic, auto"),
    ({"copy_mode": "none"}, "copy mode none: one of auto, copy, zero-copy"),
    ({"copy_mode": "zero-copy", "mode": "skb"}, "the driver must run XDP itself for it"),
    ({"frame_size": 1024}, "frame size 1024: a frame has 2048 or 4096 bytes"),
    ({"ring_size": 1000}, "ring size 1000: a power of two from 64 to 32768 is needed"),
    ({"ring_size": 0}, "ring size 0"),
    ({"queues": "0"}, 'queues 0: give "all" or a list of numbers'),
    ({"queues": []}, "each queue once, and at least one"),
    ({"queues": [0, 0]}, "each queue once, and at least one"),
    ({"queues": [-1]}, "each queue once, and at least one"),
])
def test_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AfxdpPort.open("eth0", **options)
    assert said in str(caught.value)


def test_without_libxdp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "afxdp._native", None)
    with pytest.raises(PortError) as caught:
        native.load()
    assert str(caught.value) == ("the AF_XDP port: libxdp is not installed (apt install libxdp-dev "
                                 "libbpf-dev and run make venv)")


def test_importing_loads_no_library() -> None:
    script = ("import sys, afxdp.port, afxdp.audit\n"
              "assert not {'afxdp._native', 'cffi', 'numba', 'llvmlite'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


@pytest.mark.parametrize("indices, text", [
    ([0], "queue 0"), ([0, 1], "queues 0-1"), ([5, 0, 2, 1], "queues 0-2,5"),
    ([1, 3], "queues 1,3"),
])
def test_ranges(indices: list[int], text: str) -> None:
    assert _ranges(indices) == text
