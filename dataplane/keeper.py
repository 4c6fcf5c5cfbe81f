"""A second process that puts the network back when the first is killed.

It is started before anything is taken over, sits in a session of its own, ignores the signals that
end a terminal's processes, and holds nothing of its parent but one end of a pipe.  When the parent
says "done" it ends; when the parent dies without a word it repairs from the journals.  Only then
does it import what that needs.  It watches the process itself (a pidfd) besides the pipe, because
a forked child of the parent may hold the pipe open.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from xdp_runtime.errors import PortError

DONE = b"done"
START_TIMEOUT_S = 10.0
_ROOT = Path(__file__).resolve().parent.parent


class Keeper:
    """Guards the journals in `run_dir`.  `close` when all is restored."""

    def __init__(self, run_dir: Path) -> None:
        paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-S", "-s", "-m", "dataplane.keeper",
                 str(Path(run_dir).resolve()), str(os.getpid())],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, bufsize=0,
                start_new_session=True)
        except OSError as e:
            raise PortError("keeper", f"does not start, {e.strerror}") from e
        answer = self._process.stdout
        assert answer is not None
        readable = select.select([answer], [], [], START_TIMEOUT_S)[0]
        if not readable or answer.read(5) != b"ready":
            self._process.kill()
            self.close()
            raise PortError("keeper", "does not start", "nothing was changed; try again with -v")
        answer.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Ends it without a repair.  Again is no error."""
        for pipe, word in ((self._process.stdin, DONE), (self._process.stdout, b"")):
            if pipe is not None and not pipe.closed:
                with contextlib.suppress(OSError):
                    if word:
                        pipe.write(word)
                pipe.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


def wait_for_end(parent: int) -> bool:
    """True when the parent said it is done, False when it died without."""
    try:
        process = os.pidfd_open(parent)
    except OSError:
        process = -1
    if os.getppid() != parent:                  # died before we looked, perhaps the pid is reused
        return _said_done()
    poll = select.poll()
    poll.register(0, select.POLLIN)
    if process >= 0:
        poll.register(process, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if process in ready:
            return _said_done()
        if 0 in ready:
            word = os.read(0, len(DONE))
            if word == DONE:
                return True
            if not word:
                poll.unregister(0)              # closed; its death is what counts
                if process < 0:
                    return False


def _said_done() -> bool:
    os.set_blocking(0, False)
    try:
        return os.read(0, len(DONE)) == DONE
    except OSError:
        return False


def main(run_dir: str, parent: str) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.write(1, b"ready")
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 1)
    if wait_for_end(int(parent)):
        return 0
    from dataplane.takeover import repair
    failed = ""
    try:
        lines = repair(Path(run_dir))
    except Exception as e:                      # nobody listens: leave it for the next run to see
        failed = f"{type(e).__name__}: {e}"
        lines = [failed]
    with contextlib.suppress(OSError):
        (Path(run_dir) / "keeper.log").write_text("".join(f"{line}\n" for line in lines))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
