"""Signals of a run.  An ending signal is noted, and acted upon where that is safe.

    with Signals() as signals:
        with signals.interruptible():   # nothing here needs undoing: leave at once
            compile()
        open_something()                # noted meanwhile...
        signals.check()                 # ...and raised here
        signals.wait(0.25)              # sleeps; any signal ends it early

Raised is Interrupted, which no `except Exception` catches.  While things are being put back nobody
calls `check`, so a second Ctrl-C does not leave them half done.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """An ending signal, `number`, before the run began."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"signal {number}")


class Signals:
    """Handlers for SIGINT, SIGTERM, SIGHUP and SIGQUIT while in the `with` block.

    SIGHUP stays ignored under nohup.  Outside the main thread there are no handlers to install.
    With `process_ends` they stay to the end: the exit code is decided, and a late Ctrl-C is late.
    """

    process_ends = False

    def __init__(self) -> None:
        self.caught = 0  # the first ending signal
        self.quits = 0  # SIGQUITs so far: Ctrl-\
        self._raises = False
        self._found: dict[signal.Signals, Any] = {}
        self._unraisable = sys.unraisablehook
        self._read = self._write = self._old_wakeup = -1

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._ignored
        if threading.current_thread() is threading.main_thread():
            self._old_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            for number in (*ENDING, signal.SIGQUIT):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._found[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._old_wakeup)
            for number, handler in self._found.items():
                signal.signal(number, signal.SIG_IGN if self.process_ends else handler)
        sys.unraisablehook = self._unraisable
        os.close(self._read)
        os.close(self._write)

    def _ignored(self, what: sys.UnraisableHookArgs) -> None:
        """Raised where Python cannot pass it on, as in a weak reference's callback of an import:
        `interruptible` looks again, there is nothing to tell."""
        if not isinstance(what.exc_value, Interrupted):
            self._unraisable(what)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGQUIT:
            self.quits += 1
            return
        self.caught = self.caught or number
        if self._raises:
            self._raises = False
            raise Interrupted(self.caught)

    def check(self) -> None:
        if self.caught:
            raise Interrupted(self.caught)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        try:
            self._raises = True
            self.check()
            yield
            self.check()  # where Python swallowed it, as in a callback from C
        except Exception as error:
            if self.caught:  # and here it made another of it, as in __set_name__ of an import
                raise Interrupted(self.caught) from error
            raise
        finally:
            self._raises = False

    def wake(self) -> None:
        """End a `wait` early, from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"\0")

    def wait(self, timeout_s: float, *others: int) -> None:
        """Sleep until a signal comes, one of the other descriptors is readable, or the time is
        over."""
        if self._read in select.select([self._read, *others], [], [], max(timeout_s, 0))[0]:
            with contextlib.suppress(BlockingIOError):
                os.read(self._read, 512)
