from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dataplane import rundir
from dataplane.keeper import Keeper

ROOT = Path(__file__).resolve().parents[2]


def wait_gone(pid: int, timeout_s: float = 5) -> None:
    deadline = time.monotonic() + timeout_s
    while rundir.start_ticks(pid) is not None:
        assert time.monotonic() < deadline, f"keeper {pid} does not end"
        time.sleep(0.01)


def test_ends_when_closed(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    assert keeper.alive() and os.getsid(keeper.pid) == keeper.pid
    keeper.close()
    keeper.close()
    assert not Path(f"/proc/{keeper.pid}").exists()     # waited for, no zombie
    assert not (tmp_path / "keeper.log").exists()       # and nothing repaired


def test_starts_fast_and_light(tmp_path: Path) -> None:
    began = time.monotonic()
    with Keeper(tmp_path) as keeper:
        assert time.monotonic() - began < 2
        maps = Path(f"/proc/{keeper.pid}/maps").read_text()
        assert "site-packages" not in maps
        held = {os.readlink(p) for p in Path(f"/proc/{keeper.pid}/fd").iterdir()}
        assert len(held) <= 4, held


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_ignores_signals(tmp_path: Path, number: signal.Signals) -> None:
    with Keeper(tmp_path) as keeper:
        os.kill(keeper.pid, number)
        time.sleep(0.1)
        assert keeper.alive()


def test_closing_a_killed_keeper(tmp_path: Path) -> None:
    keeper = Keeper(tmp_path)
    os.kill(keeper.pid, signal.SIGKILL)
    wait_gone(keeper.pid)
    assert not keeper.alive()
    keeper.close()


@pytest.mark.parametrize("fork", [False, True], ids=["alone", "forked child holds the pipe"])
def test_repairs_when_the_parent_dies(tmp_path: Path, fork: bool) -> None:
    parent = subprocess.Popen([sys.executable, "-c", f"""
import os, sys, time
from pathlib import Path
from dataplane.keeper import Keeper
keeper = Keeper(Path({str(tmp_path)!r}))
if {fork}:
    child = os.fork()
    if not child:
        time.sleep(60)
print(keeper.pid, child if {fork} else 0, flush=True)
time.sleep(60)
"""], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    keeper, child = map(int, parent.stdout.readline().split())
    parent.kill()
    parent.wait()
    try:
        wait_gone(keeper, 2)
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
        parent.stdout.close()
    assert (tmp_path / "keeper.log").read_text() == ""      # nothing was taken over


def test_repairs_when_the_parent_ends_without_a_word(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", f"""
from pathlib import Path
from dataplane.keeper import Keeper
keeper = Keeper(Path({str(tmp_path)!r}))
print(keeper.pid)
raise SystemExit(3)
"""], cwd=ROOT, capture_output=True, text=True)
    wait_gone(int(done.stdout))
    assert (tmp_path / "keeper.log").exists()
