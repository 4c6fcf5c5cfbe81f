"""xdpu as a user calls it: in a process of its own, or in this one where a module is replaced."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
OBJECTS = Path(__file__).parent / "objects"
TIMEOUT_S = 120.0  # a loop of all kinds of ports, compiled for the first time on a busy machine


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "control", *argv]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def xdpu(*argv: str, stdin: bytes | str | None = None, prefix: Sequence[str] = (),
         **env: str) -> subprocess.CompletedProcess[str]:
    """To the end; nothing is raised for its exit code."""
    stdin = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run([*prefix, *command(*argv)], input=stdin, capture_output=True, check=False,
                          timeout=TIMEOUT_S, env=environment(**env), cwd="/")
    return subprocess.CompletedProcess(done.args, done.returncode,
                                       done.stdout.decode("latin-1"), done.stderr.decode())


def until(condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
    """Its first true value; AssertionError with `what` after the time."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.01)


class Run:
    """`xdpu run -j` in a namespace; the `with` block ends it if it is still there."""

    def __init__(self, ns: str, *argv: str, prefix: Sequence[str] = (),
                 python: str = sys.executable, **env: str) -> None:
        prefix = [*(["ip", "netns", "exec", ns] if ns else []), *prefix]
        self.records: list[dict[str, Any]] = []
        self.errors = ""
        self._rest = b""
        self.process = subprocess.Popen(
            [*prefix, python, *command("run", *argv, "-j")[1:]], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=environment(**env), cwd="/")
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:  # a test failed: let it put the network back
            self.process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def read(self, timeout_s: float = 0.0) -> None:
        """Take in what it has said."""
        out, err = self.process.stdout, self.process.stderr
        assert out is not None and err is not None
        for pipe in select.select([out, err], [], [], timeout_s)[0]:
            data = os.read(pipe.fileno(), 1 << 20)
            if pipe is err:
                self.errors += data.decode()
            else:
                *lines, self._rest = (self._rest + data).split(b"\n")
                self.records += [json.loads(line) for line in lines]

    def wait_for(self, kind: str, number: int = 1) -> dict[str, Any]:
        """The record of that kind, counted from 1."""
        deadline_s = time.monotonic() + TIMEOUT_S
        while True:
            found = [r for r in self.records if r.get("type", "error") == kind]
            if len(found) >= number:
                return found[number - 1]
            assert self.process.poll() is None or self._more(), \
                f"ended with {self.process.returncode}: {self.errors}"
            assert time.monotonic() < deadline_s, f"no {kind}: {self.errors}"
            self.read(0.05)

    def _more(self) -> bool:
        before = len(self.records), len(self.errors)
        self.read(0.2)
        return before != (len(self.records), len(self.errors))

    def total(self) -> dict[str, int]:
        """Of the latest status or summary; nothing before the first."""
        self.read()
        found = [r["total"] for r in self.records if "total" in r]
        return found[-1] if found else {}

    def latest(self) -> dict[str, Any]:
        self.read()
        return self.records[-1] if self.records else {}

    def end(self, number: int = signal.SIGINT) -> int:
        """Signal it, take in all it says, and give its exit code."""
        self.process.send_signal(number)
        return self.finish()

    def finish(self) -> int:
        deadline_s = time.monotonic() + TIMEOUT_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline_s, f"does not end: {self.errors}"
            self.read(0.02)
        while self._more():
            pass
        return self.process.returncode
