"""The captures of a run, from its own side: begun and ended by requests of `xdpu capture`, and
ended when a process that captured is gone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from afxdp import filter as words
from control.watch import note
from dataplane.capture import ALL, FOLDER, Capture, Wanted
from dataplane.capture_lanes import POINTS
from dataplane.engine import Engine
from dataplane.rundir import Owner
from xdp_runtime.errors import ConfigError

Change = Callable[[], dict[str, Any]]


class Captures:
    def __init__(self, run_dir: Path, engine: Engine) -> None:
        self.folder, self.engine = run_dir / FOLDER, engine
        self._numbers = itertools.count(1)
        self._open: dict[int, Capture] = {}

    def begin(self, request: dict[str, Any]) -> Change:
        """Raises ConfigError, and what compiling the filter raises."""
        wanted = parse(request)
        have = [port.name for port in self.engine.ports]
        unknown = [name for name in wanted.ports if name not in have]
        if unknown:
            raise ConfigError(f"interface {unknown[0]}", "is not part of this run",
                              f"it has {', '.join(have)}")
        workers = len(self.engine.workers)
        wanted.compile_ahead(workers)

        def change() -> dict[str, Any]:
            number = next(self._numbers)
            capture = Capture(wanted, self.folder / str(number), workers)
            try:
                self.engine.add_capture(capture)
            except BaseException:
                capture.close()
                raise
            self._open[number] = capture
            note(f"packets of {_names(wanted)} are captured for process {wanted.reader.pid}")
            return {"number": number, "path": str(capture.file.path), "what": "captured"}

        return change

    def end(self, request: dict[str, Any]) -> Change:
        number = int(request["number"])

        def change() -> dict[str, Any]:
            self._end(number, "has ended")
            return {"what": "ended"}

        return change

    def check(self) -> None:
        """Nobody reads what a process that is gone has asked for."""
        for number, capture in list(self._open.items()):
            if not capture.wanted.reader.alive():
                self._end(number, "is over: it is gone")

    def _end(self, number: int, how: str) -> None:
        capture = self._open.pop(number, None)
        if capture is not None:
            self.engine.remove_capture(capture)
            note(f"the capture for process {capture.wanted.reader.pid} {how}")


def parse(request: dict[str, Any]) -> Wanted:
    """Raises ConfigError."""
    reader = Owner.parse(str(request.get("reader")))
    if reader is None:
        raise ConfigError("request", "does not say for which process")
    text = str(request.get("filter", ""))
    return Wanted(reader, tuple(POINTS[name] for name in request["at"]),
                  tuple(str(name) for name in request["ports"]), to_assembly(text),
                  int(request["snap_bytes"]), int(request["sample"]), int(request["ring_bytes"]))


def to_assembly(text: str) -> str:
    """A filter in tcpdump's words (afxdp/filter.py) as a program.  Raises ConfigError."""
    if not text:
        return ALL
    walk = words.to_assembly(words.parse(text, "filter"))
    return f"r6 = r1\n{walk}take:\nr0 = 1\nexit\nleave:\nr0 = 0\nexit\n"


def _names(wanted: Wanted) -> str:
    return ", ".join(wanted.ports) or "all ports"
