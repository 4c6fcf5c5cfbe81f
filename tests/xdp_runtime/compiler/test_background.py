"""Work in a process of its own: its answer, its failures, and its end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from xdp_runtime.compiler.background import Background
from xdp_runtime.errors import LoadError, XdpuError

LONG_S = 60
STARTS_ONE = """
import sys, time
from xdp_runtime.compiler.background import Background
one = Background(lambda: time.sleep(600) or b"")
print(one.pid, flush=True)
sys.stdin.read()
"""


def answer(work: Callable[[], bytes]) -> bytes | None:
    one = Background(work)
    assert select.select([one.ended], [], [], LONG_S)[0]
    return one.result()


def sleeps() -> bytes:
    time.sleep(600)
    return b""


def dies() -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    return b""


def test_its_answer_comes_back_however_long() -> None:
    body = os.urandom(3 << 20)
    assert answer(lambda: body) == body
    assert answer(bytes) == b""


def test_it_works_on_a_copy_and_is_nicer() -> None:
    seen: list[int] = []

    def work() -> bytes:
        seen.append(1)
        return bytes([os.nice(0)])

    assert answer(work) == bytes([min(os.nice(0) + 5, 19)]) and seen == []


def test_it_has_no_descriptor_of_ours() -> None:
    """A socket or link of a run must not live longer than the run."""
    ours, theirs = os.pipe()
    one = Background(sleeps)
    os.close(theirs)
    assert os.read(ours, 1) == b"", "nobody else can write"
    os.close(ours)
    one.close()


def test_what_went_wrong_is_said() -> None:
    def refuses() -> bytes:
        raise LoadError("program p", "is refused")

    with pytest.raises(XdpuError, match="compiler: program p: is refused"):
        answer(refuses)
    with pytest.raises(XdpuError, match="ZeroDivisionError"):
        answer(lambda: bytes(1 // 0))
    with pytest.raises(XdpuError, match="was ended by SIGKILL"):
        answer(dies)


def test_signals_do_not_reach_it_and_closing_ends_it() -> None:
    one = Background(sleeps)
    os.kill(one.pid, signal.SIGINT)
    os.kill(one.pid, signal.SIGTERM)
    pid = one.pid
    assert one.result() is None
    one.close()
    one.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_it_ends_with_the_process_that_began_it() -> None:
    with subprocess.Popen([sys.executable, "-c", STARTS_ONE], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True,
                          cwd=Path(__file__).parents[3]) as process:
        assert process.stdout is not None
        child = os.pidfd_open(int(process.stdout.readline()))
        process.kill()
        assert select.select([child], [], [], LONG_S)[0]
        os.close(child)
