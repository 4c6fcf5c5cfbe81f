"""Many entries at once, as NumPy arrays.

    keys, values = read(one)              # structured arrays by the map's BTF types, if it has any
    values["packets"].sum()
    write(one, keys, values)
    part = lookup(one, None, 1000)        # as bpf(2) does it: from a token on, so many
    lookup(one, part.token, 1000)

The loops over the entries are compiled (batch_loops.py): about as fast as the map itself.  The
values of a per-CPU map have one axis more, the workers.  NumPy is imported when asked for.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xdp_runtime.maps import batch_loops, limits, type_name
from xdp_runtime.maps.dtype import dtype_of
from xdp_runtime.maps.family import BPF_F_LOCK, round_up
from xdp_runtime.maps.timed import TIMER_BYTES
from xdp_runtime.maps.typed import BtfCodec
from xdp_runtime.object import MapType

if TYPE_CHECKING:
    from xdp_runtime.maps.map import Map

_COUNT_MIN = 256  # entries to make room for at first
_BUCKET_BYTES = 4  # of a hash's token
_OF_MAPS = (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS)


def dtypes(one: Map) -> tuple[Any, Any]:
    """(of a key, of a value): by BTF, else a number of that size, else raw bytes."""
    import numpy as np

    codec = one.codec if isinstance(one.codec, BtfCodec) else None
    out = []
    for type_id, size in ((codec.key_type_id if codec else 0, one.spec.key_size),
                          (codec.value_type_id if codec else 0, one.spec.value_size)):
        if codec is not None and type_id:
            out.append(dtype_of(codec.btf, type_id))
        else:
            out.append(np.dtype(f"<u{size}" if size in (1, 2, 4, 8) else f"V{size}"))
    return out[0], out[1]


def read(one: Map) -> tuple[Any, Any]:
    """All entries; each key once, also while others write."""
    import numpy as np

    one.check_readable()
    functions = _functions(one)
    room = max(_COUNT_MIN, len(one))
    keys, values = _rooms(one, room)
    functions = {**functions, "lookup": functions.get("read", functions.get("lookup"))}
    count, after, status = 0, _Place(one), 0
    while True:
        status, got = after.lookup(functions, keys[count:], values[count:])
        count += got
        if status == -errno.ENOENT:
            break
        room *= 2  # more came meanwhile
        keys = np.concatenate([keys[:count], _rooms(one, room - count)[0]])
        values = np.concatenate([values[:count], _rooms(one, room - count)[1]])
    return _shown(one, keys[:count], values[:count])


def write(one: Map, keys: Any, values: Any, flags: int = 0) -> int:
    """Update an entry for each pair; how many.  BatchError at the first that is refused."""
    functions = _functions(one)
    one.check_writable()
    if "update" not in functions or one.spec.type in _OF_MAPS:
        raise OSError(errno.EINVAL, "its values cannot be given as bytes", one.spec.name)
    count = len(keys)
    raw_keys, raw_values = _given(one, keys, values)
    control = _control(one, count, flags=flags)
    status = functions["update"](
        control.ctypes.data, raw_keys.ctypes.data, raw_values.ctypes.data, one.spec.key_size,
        one.spec.value_size, one.workers if one.family.per_cpu else 0)
    return _done(one, int(control[0]), int(status))


# --- the kernel's commands --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """Some entries: `token` is where to go on, `ended` that there was nothing behind them."""

    keys: Any
    values: Any
    token: bytes
    ended: bool

    def __len__(self) -> int:
        return len(self.keys)


class BatchError(OSError):
    """An entry was refused: with the kernel's errno, and how many were done before."""

    def __init__(self, code: int, done: int, name: str) -> None:
        super().__init__(code, f"{os.strerror(code)}, after {done} entries", name)
        self.done = done


def lookup(one: Map, token: bytes | None, count: int, flags: int = 0,
           remove: bool = False) -> Batch:
    """BPF_MAP_LOOKUP_BATCH, BPF_MAP_LOOKUP_AND_DELETE_BATCH: up to `count` entries from where the
    token says (None: the first).

    Raises OSError: ENOTSUPP for types the kernel has no such command for, ENOSPC if the next
    bucket of a hash has more than `count` entries, EINVAL for flags, EPERM."""
    if remove:
        one.check_writable()
    one.check_readable()
    _check(one, "lookup_and_delete" if remove else "lookup", flags)
    keys, values = _rooms(one, count)
    place = _Place(one, token)
    if count == 0:
        return Batch(*_shown(one, keys, values), place.token, False)
    status, got = place.lookup(_functions(one), keys, values, flags, remove)
    if status not in (0, -errno.ENOENT):
        raise OSError(-status, f"the next bucket has more than {count} entries", one.spec.name)
    return Batch(*_shown(one, keys[:got], values[:got]), place.token, status != 0)


def update(one: Map, keys: Any, values: Any, flags: int = 0) -> int:
    """BPF_MAP_UPDATE_BATCH: how many.  Raises BatchError; OSError as `lookup`."""
    one.check_writable()
    _check(one, "update", flags)
    return write(one, keys, values, flags) if len(keys) else 0


def delete(one: Map, keys: Any, flags: int = 0) -> int:
    """BPF_MAP_DELETE_BATCH: how many.  Raises BatchError, ENOENT for a key that is not there."""
    one.check_writable()
    _check(one, "delete", flags)
    if not len(keys):
        return 0
    shape = (len(keys),)
    raw = _raw(_as(keys, dtypes(one)[0], shape, one), shape, one.spec.key_size, one)
    control = _control(one, len(keys))
    status = _functions(one)["delete"](control.ctypes.data, raw.ctypes.data, one.spec.key_size)
    return _done(one, int(control[0]), int(status))


def _check(one: Map, command: str, flags: int) -> None:
    spec = one.spec
    if command not in limits.BATCHES.get(spec.type, ()):
        raise OSError(limits.ENOTSUPP, f"{type_name(spec.type)} has no batch {command}", spec.name)
    if flags & ~BPF_F_LOCK or (flags and spec.lock_at < 0):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), spec.name)


def _done(one: Map, done: int, status: int) -> int:
    if status:
        raise BatchError(-status, done, one.spec.name)
    return done


class _Place:
    """Where a lookup goes on: a hash's bucket, else the last key."""

    def __init__(self, one: Map, token: bytes | None = None) -> None:
        import numpy as np

        self.one, self.table = one, batch_loops.table_of(one.spec) is not None
        self.bucket, self.known = 0, token is not None
        self.key = np.zeros(one.spec.key_size, np.uint8)
        if token is None:
            return
        if len(token) != (_BUCKET_BYTES if self.table else one.spec.key_size):
            raise ValueError(f"map {one.spec.name}: {len(token)} bytes are no token of its")
        if self.table:
            self.bucket = int.from_bytes(token, "little")
        else:
            self.key[:] = np.frombuffer(token, np.uint8)

    @property
    def token(self) -> bytes:
        return self.bucket.to_bytes(_BUCKET_BYTES, "little") if self.table else bytes(
            self.key.tobytes())

    def lookup(self, functions: Any, keys: Any, values: Any, flags: int = 0,
               remove: bool = False) -> tuple[int, int]:
        """Status and count; goes on behind them."""
        one = self.one
        control = _control(one, len(keys), flags, remove)
        control[batch_loops.BUCKET_AT // 8] = self.bucket
        control[batch_loops.AFTER_AT // 8] = self.known
        if self.table:
            status = functions["table"](one.writer, control.ctypes.data, keys.ctypes.data,
                                        values.ctypes.data)
        else:
            status = functions["lookup"](
                control.ctypes.data, self.key.ctypes.data, keys.ctypes.data, values.ctypes.data,
                one.spec.key_size, one.spec.value_size,
                one.workers if one.family.per_cpu else 0)
        self.bucket = int(control[batch_loops.BUCKET_AT // 8])
        self.known = bool(control[batch_loops.AFTER_AT // 8])
        return int(status), int(control[0])


def _control(one: Map, count: int, flags: int = 0, remove: bool = False) -> Any:
    import numpy as np

    out = np.zeros(batch_loops.CONTROL_BYTES // 8, np.uint64)
    out[batch_loops.COUNT_AT // 8] = count
    out[batch_loops.REMOVE_AT // 8] = remove
    out[batch_loops.FLAGS_AT // 8] = flags
    out[batch_loops.WORKER_AT // 8] = one.writer
    return out


# --- arrays -----------------------------------------------------------------------------------


def _rooms(one: Map, count: int) -> tuple[Any, Any]:
    """Memory for keys and for values as the loops lay them out."""
    import numpy as np

    return np.zeros((count, one.spec.key_size), np.uint8), np.zeros((count, _width(one)), np.uint8)


def _width(one: Map) -> int:
    """Bytes of an entry's value: as the system call has it, with the workers for the CPUs."""
    size = one.spec.value_size
    return round_up(size, 8) * one.workers if one.family.per_cpu else size


def _shown(one: Map, keys: Any, values: Any) -> tuple[Any, Any]:
    key_type, value_type = dtypes(one)
    size, count = one.spec.value_size, len(keys)
    if one.spec.timer_at >= 0:
        values[:, one.spec.timer_at:one.spec.timer_at + TIMER_BYTES] = 0
    if one.family.per_cpu:
        values = values.reshape(count, one.workers, round_up(size, 8))[:, :, :size]
    return _view(keys, key_type), _view(values, value_type)


def _given(one: Map, keys: Any, values: Any) -> tuple[Any, Any]:
    import numpy as np

    spec, count = one.spec, len(keys)
    key_type, value_type = dtypes(one)
    raw_keys = _raw(_as(keys, key_type, (count,), one), (count,), spec.key_size, one)
    shape = (count, one.workers) if one.family.per_cpu else (count,)
    raw = _raw(_as(values, value_type, shape, one), shape, spec.value_size, one)
    if not one.family.per_cpu:
        return raw_keys, raw
    padded = np.zeros((count, one.workers, round_up(spec.value_size, 8)), np.uint8)
    padded[:, :, :spec.value_size] = raw
    return raw_keys, padded


def _functions(one: Map) -> Any:
    if not {"next_key", "peek"} <= one.family.operations.keys():
        raise OSError(errno.EOPNOTSUPP, "has no entries by key", one.spec.name)
    return one.compiled_batches()


def _view(raw: Any, kind: Any) -> Any:
    """Bytes in the last axis as one value of this type."""
    import numpy as np

    out = np.ascontiguousarray(raw)
    shape: tuple[int, ...] = ()
    while kind.subdtype:  # an array of arrays is one with more axes
        kind, shape = kind.base, shape + kind.shape
    return out.view(kind).reshape(*raw.shape[:-1], *shape)


def _as(given: Any, kind: Any, shape: tuple[int, ...], one: Map) -> Any:
    """Numbers as the map's type of number, if each of them fits; all else, such as raw bytes, as it
    is.  Raises ValueError."""
    import numpy as np

    given = np.asarray(given)
    while kind.subdtype:
        kind, shape = kind.base, shape + kind.shape
    if given.shape != shape or given.dtype == kind or not (
            given.dtype.kind in "iufb" and kind.kind in "iuf"):
        return given
    with np.errstate(invalid="ignore"):
        out = given.astype(kind)
    if kind.kind != "f" and ((out != given).any() or ((out < 0) != (given < 0)).any()):
        raise ValueError(f"map {one.spec.name}: {given.dtype} with what does not fit in {kind}")
    return out


def _raw(given: Any, shape: tuple[int, ...], size: int, one: Map) -> Any:
    import numpy as np

    raw = np.ascontiguousarray(given)
    if raw.nbytes != size * int(np.prod(shape)):
        raise ValueError(f"map {one.spec.name}: {raw.nbytes} bytes for {shape} of {size}")
    return raw.view(np.uint8).reshape(*shape, size)
