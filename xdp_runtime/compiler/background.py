"""Work for the compiler in a process of its own, beside one that has better things to do.

It is a copy of this process, so that it finds everything as it was and cannot disturb anything: a
compiler that crashes, or runs out of memory, ends nobody else.  It ends with this process, however
that ends, and has none of its descriptors.  To be begun before memory is shared with a device.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable

from xdp_runtime.errors import XdpuError

_NICE = 5
_PR_SET_PDEATHSIG = 1
_SHORT = 500  # bytes of what went wrong


class Background:
    """The bytes that `work` gives, or why it does not.  Close it."""

    def __init__(self, work: Callable[[], bytes]) -> None:
        self._out = os.memfd_create("xdpu-background", os.MFD_CLOEXEC)
        parent = os.getpid()
        # a signal must not unwind this process's stack in the copy as well
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _do(work, self._out, parent)
        except OSError as error:
            os.close(self._out)
            raise XdpuError("compiler", f"a process for it could not be made: {error.strerror}",
                            "xdpu run --baseline off compiles in its own") from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self.ended = os.pidfd_open(self.pid)  # readable when it has

    def result(self) -> bytes | None:
        """None while it works.  Raises XdpuError if it failed; asked once."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid == 0:
            return None
        self.pid = 0
        said = os.pread(self._out, os.fstat(self._out).st_size, 0)
        self.close()
        if os.WIFSIGNALED(status):
            raise XdpuError("compiler", f"was ended by {_name(os.WTERMSIG(status))}")
        if status != 0:
            raise XdpuError("compiler", said.decode(errors="replace"))
        return said

    def close(self) -> None:
        """End it, if it has not; again is no error."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0
        if self._out >= 0:
            os.close(self._out)
            os.close(self.ended)
            self._out = self.ended = -1


def _do(work: Callable[[], bytes], out: int, parent: int) -> None:
    """In the copy, which ends here."""
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:  # or it had died before
            sys.stderr = sys.__stderr__  # what stands in for it may write elsewhere than to 2
            os.closerange(3, out)
            os.closerange(out + 1, os.sysconf("SC_OPEN_MAX"))
            os.nice(_NICE)
            try:
                body, status = work(), 0
            except Exception as error:
                text = f"{error}" if isinstance(error, XdpuError) else f"{error!r}"
                body = text.encode()[:_SHORT]
            os.ftruncate(out, 0)
            with os.fdopen(out, "wb", closefd=False) as file:
                file.write(body)
    except BaseException:
        status = 2
    finally:
        os._exit(status)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
