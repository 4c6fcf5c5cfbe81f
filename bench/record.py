"""What a bench found, as JSON in a folder, written after every row, so that an end loses nothing;
and a page of it at the end.

A folder that cannot be written to is told before anything is measured; a disk that fills up while
measuring is told once, and the figures stay on the terminal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.samples import ROOT
from xdp_runtime.errors import ConfigError

NAME, PAGE = "bench.json", "bench.html"
RESULTS = ROOT / "bench" / "results"
_interrupted = threading.Event()


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt, so that what was measured can be kept.

    Where Python drops it, as it does in a `__del__`, `stop_if_interrupted` raises it again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _interrupted.clear()
    before = {number: signal.signal(number, _interrupt)
              for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _interrupted.clear()


def _interrupt(number: int, frame: object) -> None:
    _interrupted.set()
    raise KeyboardInterrupt


def stop_if_interrupted() -> None:
    """Between two steps of a measurement."""
    if _interrupted.is_set():
        raise KeyboardInterrupt


class Record:
    """Rows and what goes with them.  Without a folder nothing is written.  Raises ConfigError."""

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(folder) if folder else None
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.waiting: list[str] = []
        self.is_interrupted = self.is_complete = False
        self.failure = ""
        self.header: dict[str, Any] = {}
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                write(self.folder / NAME, json.dumps({"complete": False}))
            except OSError as error:
                raise ConfigError(f"--out {folder}", "cannot be written to: "
                                  f"{error.strerror or error}") from error

    def begin(self, header: dict[str, Any]) -> None:
        self.header = header
        self._save()

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self._save()

    def interrupt(self, waiting: list[str]) -> None:
        """Ctrl-C: what is there is kept, and marked."""
        self.is_interrupted, self.waiting = True, waiting

    def finish(self) -> dict[str, Any]:
        """All of it; what could not be written is in `unwritten`."""
        self.is_complete = not self.is_interrupted
        self._save()
        if self.folder is not None and not self.failure:
            from bench.page import page

            try:
                write(self.folder / PAGE, page(self.result()))
            except OSError as error:
                self._fail(error)
        return self.result()

    def result(self) -> dict[str, Any]:
        written = [str(self.folder / name) for name in (NAME, PAGE)] if self.folder else []
        return {**self.header, "complete": self.is_complete, "interrupted": self.is_interrupted,
                "waiting": self.waiting, "notes": self.notes, "rows": self.rows,
                "written": written if not self.failure else [], "unwritten": self.failure}

    def _save(self) -> None:
        if self.folder is None or self.failure:
            return
        try:
            write(self.folder / NAME, json.dumps(self.result(), indent=1) + "\n")
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        self.failure = f"{self.folder}: {error.strerror or error}"
        print(f"xdpu bench: {self.failure}; what is written there is of before, the figures go on "
              "here", file=sys.stderr, flush=True)


def write(path: Path, text: str) -> None:
    """As a whole or not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "w") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
