"""The control socket of a run, <run directory>/control: a JSON object a line, one answers it.

    {"do": "pause", "iface": "eth0"}  ->  {"ok": {...}}  or  {"error": {kind, message, hint}}

A thread reads requests and does what takes long and changes nothing (compiling); the change itself
is made by the main thread between two looks at the run, so that nothing happens to it from two
sides.  Only root and the run's own user are listened to.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import queue
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from xdp_runtime.errors import (
    ConfigError,
    LoadError,
    OutOfMemory,
    PortError,
    VerifyError,
    XdpuError,
)

NAME = "control"
_LINE_BYTES = 1 << 16
_PATIENCE_S = 5.0  # for a peer's request; not for what it asks for
_KINDS = {cls.kind: cls for cls in (ConfigError, PortError, LoadError, VerifyError, OutOfMemory)}
Change = Callable[[], dict[str, Any]]


class Preparer(Protocol):
    def prepare(self, request: dict[str, Any]) -> Change:
        """What a request asks for, ready to be done.  Raises XdpuError."""


class _Task:
    """A change that waits for the main thread, and then its outcome."""

    def __init__(self, change: Change) -> None:
        self.change = change
        self.done = threading.Event()
        self.outcome: dict[str, Any] = _failure(
            XdpuError("run", "ended before the change could be made"))

    def carry_out(self) -> None:
        try:
            self.outcome = {"ok": self.change()}
        except XdpuError as error:
            self.outcome = _failure(error)
        finally:
            self.done.set()


class ControlServer:
    """Listens until the `with` block ends; `carry_out` is the main thread's part."""

    def __init__(self, run_dir: Path, preparer: Preparer, wake: Callable[[], None]) -> None:
        self.path = run_dir / NAME
        self._preparer, self._wake = preparer, wake
        self._tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        self._ending = False
        self._preparing = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._bind()
        except BaseException:
            self._listener.close()
            raise
        self._thread = threading.Thread(target=self._serve, name="xdpu-control", daemon=True)

    def _bind(self) -> None:
        """Nobody sees it before it is ours alone.  A path too long for a socket goes by its fd."""
        folder = os.open(self.path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._listener.bind(f"/proc/self/fd/{folder}/.{NAME}")
            os.chmod(f".{NAME}", 0o600, dir_fd=folder)
            os.rename(f".{NAME}", NAME, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError as error:
            raise PortError(f"control socket {self.path}", error.strerror or str(error),
                            "set XDPU_RUNDIR to a directory that can hold one") from error
        finally:
            os.close(folder)
        self._listener.listen(8)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._ending = True
        # The process must not end under a compiler at work: LLVM would abort it.
        atexit.register(self._preparing.acquire)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        with contextlib.suppress(queue.Empty):
            while True:
                self._tasks.get_nowait().done.set()

    def carry_out(self) -> None:
        """Make the changes that wait.  What they raise goes to those who asked."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._tasks.get_nowait().carry_out()

    def _serve(self) -> None:
        while not self._ending:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            with peer, contextlib.suppress(OSError):  # it went away: its answer is nobody's
                peer.settimeout(_PATIENCE_S)
                peer.sendall(json.dumps(self._answer(peer)).encode() + b"\n")

    def _answer(self, peer: socket.socket) -> dict[str, Any]:
        _, uid, _ = struct.unpack("=3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            return _failure(PortError("run", "belongs to another user"))
        try:
            with peer.makefile("rb") as lines:
                request = json.loads(lines.readline(_LINE_BYTES))
            if not isinstance(request, dict):
                raise ValueError("not an object")
        except ValueError as error:
            return _failure(ConfigError("request", f"is not JSON, {error}"))
        try:
            with self._preparing:
                task = _Task(self._preparer.prepare(request))
        except XdpuError as error:
            return _failure(error)
        except Exception as error:  # a defect must not end the thread that would tell of it
            return _failure(XdpuError("request", f"{type(error).__name__}: {error}"))
        self._tasks.put(task)
        if self._ending:
            return task.outcome
        self._wake()
        task.done.wait()
        return task.outcome


def ask(run_dir: Path, request: dict[str, Any]) -> dict[str, Any]:
    """What a run answers.  Raises the XdpuError it reports, PortError when nobody answers."""
    what = f"run {run_dir.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            folder = os.open(run_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                sock.connect(f"/proc/self/fd/{folder}/{NAME}")
            finally:
                os.close(folder)
            sock.sendall(json.dumps(request).encode() + b"\n")
            with sock.makefile("rb") as lines:
                line = lines.readline()
        except OSError as error:
            raise PortError(what, f"does not answer, {error.strerror}",
                            "xdpu status shows what runs") from error
    if not line:
        raise PortError(what, "ended before it answered")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise _rebuilt(answer["error"])
    result: dict[str, Any] = answer["ok"]
    return result


def _failure(error: XdpuError) -> dict[str, Any]:
    return {"error": {"kind": error.kind, "what": error.what, "why": error.why,
                      "mend": error.mend, "detail": error.detail}}


def _rebuilt(told: dict[str, str]) -> XdpuError:
    """The error as it was raised over there, so that it ends in the same sentence and exit code."""
    kind = _KINDS.get(told["kind"], XdpuError)
    return kind(told["what"], told["why"], told["mend"], told["detail"])
