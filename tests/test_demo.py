"""The demo does what it promises, and cleans up however it ends."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo.py"
pytestmark = pytest.mark.netns


def start() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, DEMO], stdout=subprocess.PIPE, text=True,
                            stderr=subprocess.PIPE, start_new_session=True)


def left_behind(pid: int) -> list[str]:
    return [path.name for path in Path("/run/netns").iterdir()
            if path.name.startswith(f"xdpu-demo{pid}-")]


def test_every_step() -> None:
    with start() as demo:
        out, err = demo.communicate(timeout=120)
    assert demo.returncode == 0, err
    steps = [line.split()[1] for line in out.splitlines() if line.startswith("* ")]
    assert [step for step in steps if step.isupper()] == ["PASS", "TX", "DROP", "REDIRECT"]
    assert "0 aborted" in out and "nothing is left behind" in out
    assert not err and not left_behind(demo.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("line", [1, 3])
def test_interrupted(number: signal.Signals, line: int) -> None:
    """While namespaces are there, and while xdpu runs in one."""
    with start() as demo:
        assert demo.stdout is not None
        for _ in range(line):
            demo.stdout.readline()
        demo.send_signal(number)
        demo.communicate(timeout=30)
    assert demo.returncode == 128 + number
    assert not left_behind(demo.pid)


def test_killed() -> None:
    """What it started ends with it; its namespaces are removed by the next demo, or test run."""
    with start() as demo:
        assert demo.stdout is not None
        for _ in range(3):
            demo.stdout.readline()
        places = left_behind(demo.pid)
        assert len(places) == 4
        demo.kill()
        demo.communicate()
    end_s = time.monotonic() + 10
    while any(pids_in(place) for place in places) and time.monotonic() < end_s:
        time.sleep(0.05)
    assert not any(pids_in(place) for place in places)
    for place in places:
        subprocess.run(["ip", "netns", "del", place], check=True)


def pids_in(place: str) -> list[str]:
    return subprocess.run(["ip", "netns", "pids", place], capture_output=True, text=True,
                          check=False).stdout.split()


def test_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    names = runpy.run_path(str(DEMO))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(names["Failed"], match=r"^network namespaces need root \(sudo make demo\)$"):
        names["check_machine"]()
