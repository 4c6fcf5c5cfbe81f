"""Where a capture is written: a file, or a pipe whose reader may be slow, stop, or go away.

A file is cut behind its last whole block, or line, when it cannot be written any more.  A pipe is
written only as far as it takes data without waiting, so that signals are still heard.
"""

from __future__ import annotations

import errno
import os
import select
import stat
import struct
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from control.signals import Signals
from xdp_runtime.errors import ConfigError, PortError

_PIPE_BYTES = 4096  # PIPE_BUF: a pipe that is writable takes as many without waiting
_TURN_S = 0.1
_PATIENCE_S = 2.0  # with a pipe that nobody reads, once the capture is to end


class Output:
    """`path` - is standard output; `text` is lines, which a terminal may have.  Raises ConfigError,
    PortError; BrokenPipeError when the reader of a pipe is gone."""

    def __init__(self, path: str, signals: Signals, text: bool = False) -> None:
        self.path = "standard output" if path == "-" else path
        self._signals, self._text = signals, text
        self._fd = -1
        try:
            self._fd = os.dup(1) if path == "-" else self._open(path)
        except OSError as error:
            raise PortError(self.path, f"cannot be written: {error.strerror or error}") from error
        if path == "-" and not text and os.isatty(self._fd):
            self.close()
            raise ConfigError("-w -", "standard output is a terminal",
                              "write to a file, or to a pipe: -w - | tcpdump -nr -; without -w "
                              "packets are printed")
        self._is_file = stat.S_ISREG(os.fstat(self._fd).st_mode)

    def _open(self, path: str) -> int:
        """A FIFO may have no reader yet."""
        while True:
            try:
                return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
                               | os.O_NONBLOCK, 0o666)
            except OSError as error:
                if error.errno != errno.ENXIO or not stat.S_ISFIFO(os.stat(path).st_mode):
                    raise
            self._signals.wait(_TURN_S)
            self._signals.check()

    def write(self, blocks: bytes | memoryview) -> None:
        """All of it: whole blocks, or lines."""
        done, since_s = 0, time.monotonic()
        while done < len(blocks):
            try:
                if self._is_file:
                    done += os.write(self._fd, blocks[done:])
                    continue
                if select.select([], [self._fd], [], _TURN_S)[1]:
                    done += os.write(self._fd, blocks[done : done + _PIPE_BYTES])
                    since_s = time.monotonic()
            except BlockingIOError:
                continue
            except BrokenPipeError:
                raise
            except OSError as error:
                self._cut(blocks, done)
                raise PortError(self.path, f"cannot be written: {error.strerror or error}",
                                "it ends behind the last whole packet") from error
            if self._signals.caught and time.monotonic() - since_s > _PATIENCE_S:
                raise PortError(self.path, f"is not read, and has not been for {_PATIENCE_S:g} s",
                                "the packets that wait are missing in it")

    def _cut(self, blocks: bytes | memoryview, done: int) -> None:
        """End the file behind the last whole block or line of the first `done` bytes."""
        whole, size = 0, 0
        if self._text:
            whole = bytes(blocks[:done]).rfind(b"\n") + 1
        while not self._text and whole + size <= done < len(blocks):
            whole += size
            (size,) = struct.unpack_from("=I", blocks, whole + 4)
        with suppress(OSError):
            os.ftruncate(self._fd, os.lseek(self._fd, 0, os.SEEK_CUR) - (done - whole))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
