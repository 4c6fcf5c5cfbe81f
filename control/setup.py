"""xdpu setup: does what needs privileges for runs of an ordinary user, and undoes it after them."""

from __future__ import annotations

import os
import pwd
import socket
import struct
import threading
from argparse import Namespace
from contextlib import ExitStack, suppress
from pathlib import Path

from control.host import refuse_shared
from control.run_live import mend
from control.signals import Signals
from control.watch import note
from dataplane import rundir
from dataplane.keeper import Keeper
from xdp_runtime.errors import ConfigError, PortError

_SO_PEERCRED = struct.Struct("=3i")
_UNDO_S = 10.0


def run(args: Namespace) -> int:
    """Until a signal.  Raises ConfigError, PortError."""
    from afxdp import interface

    user = _find_user(args.user)
    for name in args.iface:
        interface.query(name)
    refuse_shared(args.iface)
    mend()
    with Signals() as signals, ExitStack() as undo:
        run_dir = rundir.create("setup_" + "_".join(args.iface)[:50])
        undo.callback(_remove, run_dir)
        keeper = Keeper(run_dir.path)
        undo.callback(keeper.close)
        listener = _listen(Path(args.socket), user)
        undo.callback(_stop_listening, listener, Path(args.socket))
        sessions = _Sessions(listener, user, args, run_dir.path)
        undo.callback(sessions.end)
        sessions.start()
        note(f"sets up {', '.join(args.iface)} for user {user.pw_name}: "
             f"xdpu run OBJ --iface {','.join(args.iface)} --setup-socket {args.socket}")
        while not signals.caught:
            signals.wait(3600)
    return 0


def _find_user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except KeyError as error:
        raise ConfigError(f"user {name}", "does not exist", "see: getent passwd") from error


def _listen(path: Path, user: pwd.struct_passwd) -> socket.socket:
    """A socket that only this user can connect to: nobody else may while it is not yet theirs."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
                if other.connect_ex(str(path)) == 0:
                    raise PortError(f"set-up socket {path}", "another process listens there",
                                    "choose another --socket, or end that one")
            path.unlink()  # of one that was killed
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        os.chown(path, user.pw_uid, user.pw_gid)
        listener.listen()
    except OSError as error:
        listener.close()
        raise PortError(f"set-up socket {path}", error.strerror or str(error),
                        "choose another --socket") from error
    except PortError:
        listener.close()
        raise
    return listener


def _stop_listening(listener: socket.socket, path: Path) -> None:
    with suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() does not
    listener.close()
    path.unlink(missing_ok=True)


def _remove(run_dir: rundir.RunDir) -> None:
    if not run_dir.journals():
        run_dir.remove()


class _Sessions:
    """The connections there are, each in a thread of its own."""

    def __init__(self, listener: socket.socket, user: pwd.struct_passwd, args: Namespace,
                 run_dir: Path) -> None:
        self._listener, self._user, self._args, self._run_dir = listener, user, args, run_dir
        self._open: dict[threading.Thread, socket.socket] = {}

    def start(self) -> None:
        threading.Thread(target=self._accept, name="xdpu-setup", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return  # closed: the end
            _, uid, _ = _SO_PEERCRED.unpack(sock.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, _SO_PEERCRED.size))
            if uid not in (0, self._user.pw_uid):
                note(f"user {uid} is not {self._user.pw_name}: refused")
                sock.close()
                continue
            thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
            self._open[thread] = sock
            thread.start()

    def _serve(self, sock: socket.socket) -> None:
        from afxdp.granting import Session

        try:
            with sock:
                Session(self._args.iface, self._args.max_memory, self._run_dir, note).serve(sock)
        finally:
            self._open.pop(threading.current_thread(), None)

    def end(self) -> None:
        """Every session undoes what it did."""
        for thread, sock in list(self._open.items()):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            thread.join(_UNDO_S)
            if thread.is_alive():
                note("a session does not end: what it did is undone by the keeper")
