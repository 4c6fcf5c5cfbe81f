"""Sets of keys in the kernel that are as maps of the program: what a filter asks (map_filter.py).

Anybody may change such a map, the program included, and nobody is told: it is memory.  So a thread
of the run reads its keys anew every PAUSE_S, or where reading takes long, REST times as long after
it as that took, and gives the kernel what differs.  `xdpu map` has the run do so before it says
that it is done.  Reading costs the workers nothing, and an entry whose value alone changed costs
the kernel nothing.

A key that the map got is taken by the filter at most that time later; until then its packets go to
the stack, as those of a key that is gone go on to come in.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afxdp.map_filter import PREFIX_BYTES, ROOM, KeyShape
from xdp_runtime.bpf_syscall import (
    Cmd,
    map_create,
    map_delete,
    map_update,
    map_write_batch,
)
from xdp_runtime.errors import PortError
from xdp_runtime.maps import limits
from xdp_runtime.object import MapFlag, MapType

if TYPE_CHECKING:
    from xdp_runtime.maps.map import Map

PAUSE_S, REST = 0.02, 20
_HERE = b"\1"


class KeySet:
    """A set in the kernel, by its descriptor; OSError as the kernel says."""

    def __init__(self, shape: KeyShape, fd: int) -> None:
        self.shape, self.fd = shape, fd
        self._seen = b""  # the keys that are in it

    @classmethod
    def create(cls, shape: KeyShape) -> KeySet:
        """Raises PortError."""
        kind = MapType.LPM_TRIE if shape.trie else MapType.HASH
        try:
            return cls(shape, map_create(kind, shape.key_size, len(_HERE),
                                         ROOM * shape.max_entries, MapFlag.NO_PREALLOC,
                                         name=f"set_{shape.map}"))
        except OSError as error:
            raise PortError(f"--filter map:{shape.map}", "the kernel makes no set of its keys: "
                            + os.strerror(error.errno or 0)) from error

    def follow(self, keys: bytes) -> None:
        """From now on these keys, one behind the other, are in it; each is there once."""
        gone, fresh = _differing(self._seen, keys, self.shape.key_size)
        if self.shape.trie:
            gone, fresh = set(map(_masked, gone)), set(map(_masked, fresh))
        self._write(Cmd.MAP_DELETE_BATCH, list(gone - fresh))
        self._write(Cmd.MAP_UPDATE_BATCH, list(fresh - gone))
        self._seen = keys

    def _write(self, command: Cmd, keys: Sequence[bytes]) -> None:
        if not keys:
            return
        adds = command == Cmd.MAP_UPDATE_BATCH
        try:
            map_write_batch(command, self.fd, b"".join(keys), _HERE * len(keys) * adds, len(keys))
        except OSError as error:
            if error.errno != limits.ENOTSUPP:  # a trie before Linux 5.14
                raise
            for key in keys:
                if adds:
                    map_update(self.fd, key, _HERE)
                else:
                    map_delete(self.fd, key)

    def duplicate(self) -> KeySet:
        """One that stays open when this is closed, with nothing known of what is in it."""
        return KeySet(self.shape, os.dup(self.fd))

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _differing(before: bytes, now: bytes, size: int) -> tuple[set[bytes], set[bytes]]:
    """Keys of `size` bytes that are only in the first, and only in the second.

    A map hands them out in an order that a change leaves as it is around it, so what is alike at
    the front and at the end is passed over."""
    import numpy as np

    if before == now:
        return set(), set()
    # bytes of one length: that NumPy takes the zeros at their end away makes no two of them alike
    rows = [np.frombuffer(keys, f"S{size}") for keys in (before, now)]
    least = min(map(len, rows))
    front = _alike(rows[0][:least], rows[1][:least])
    rows = [one[front:] for one in rows]
    least -= front
    end = _alike(rows[0][len(rows[0]) - least:][::-1], rows[1][len(rows[1]) - least:][::-1])
    old, new = (one[:len(one) - end] for one in rows)
    return {key.ljust(size, b"\0") for key in np.setdiff1d(old, new, True).tolist()}, \
        {key.ljust(size, b"\0") for key in np.setdiff1d(new, old, True).tolist()}


def _alike(one: Any, other: Any) -> int:
    """How many at the front of two arrays of one length are the same."""
    differ = one != other
    return int(differ.argmax()) if differ.any() else len(one)


def _masked(key: bytes) -> bytes:
    """The prefix without what lies behind it."""
    length = int.from_bytes(key[:PREFIX_BYTES], "little")
    rest = key[PREFIX_BYTES:]
    behind = 8 * len(rest) - length
    return key[:PREFIX_BYTES] + (int.from_bytes(rest, "big") >> behind << behind).to_bytes(
        len(rest), "big")


class Mirror:
    """Keeps sets as the maps in `folder`, files by name, are; a map that another takes the place
    of is found there.  close() ends it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sets: dict[str, list[KeySet]] = {}  # by port
        self._maps: dict[str, tuple[int, Map]] = {}  # with the inode of its file
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def add(self, port: str, sets: Iterable[KeySet]) -> None:
        """Sets of a port; it may close its own descriptors when it likes."""
        with self._lock:
            found = [one.duplicate() for one in sets]
            if found:
                self._sets[port] = found

    def drop(self, port: str) -> None:
        with self._lock:
            for one in self._sets.pop(port, ()):
                one.close()

    def start(self) -> None:
        """Sets are as the maps when this returns, and are kept so.  Without sets it waits for
        some.  Raises PortError."""
        self.sync()
        self._thread = threading.Thread(target=self._run, name="xdpu-mirror", daemon=True)
        self._thread.start()

    def sync(self) -> None:
        """Now.  Raises PortError."""
        with self._lock:
            read: dict[str, bytes] = {}
            for one in [one for sets in self._sets.values() for one in sets]:
                name = one.shape.map
                if name not in read:
                    read[name] = self._read(one.shape)
                try:
                    one.follow(read[name])
                except OSError as error:
                    why = os.strerror(error.errno or 0)
                    if error.errno == errno.EPERM:
                        why += ": an ordinary user may not write to maps of the kernel (Linux 5.19)"
                    raise PortError(f"--filter map:{name}", f"the kernel's set of its keys cannot "
                                    f"be written: {why}") from error

    def check(self) -> None:
        """Raises what has ended the thread."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(10)
        for port in list(self._sets):
            self.drop(port)
        with self._lock:
            for _, one in self._maps.values():
                one.close()
            self._maps.clear()

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        rest_s = PAUSE_S
        while not self._stop.wait(rest_s):
            started_s = time.thread_time()
            try:
                self.sync()
            except Exception as error:  # whoever watches the run is told by check()
                self._error = error
                return
            rest_s = max(PAUSE_S, REST * (time.thread_time() - started_s))

    def _read(self, shape: KeyShape) -> bytes:
        """Keys of entries that are there, raw, in the map's order."""
        import numpy as np

        from xdp_runtime.maps import batch

        keys, values = batch.read(self._open(shape.map))
        raw = np.frombuffer(keys.tobytes(), np.uint8).reshape(len(keys), shape.key_size)
        if shape.array:
            there = np.frombuffer(values.tobytes(), np.uint8).reshape(len(keys), -1).any(axis=1)
            raw = raw[there]
        return raw.tobytes()

    def _open(self, name: str) -> Map:
        """The map that has the name now."""
        from xdp_runtime.compiler.map_ops import compile_operations
        from xdp_runtime.maps.map import Map

        path = self._folder / name
        inode, found = self._maps.get(name, (0, None))
        if found is not None:
            try:
                now = path.stat().st_ino
            except FileNotFoundError:
                return found  # the next one is just coming
            if now == inode:
                return found
            found.close()
        made = Map.open(path)
        made.codec = None  # keys as bytes
        made.bind_later(lambda: compile_operations(made))
        self._maps[name] = os.stat(path).st_ino, made
        return made
