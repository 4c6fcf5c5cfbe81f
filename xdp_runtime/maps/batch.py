"""Many entries at once, as NumPy arrays.

    keys, values = read(one)              # structured arrays by the map's BTF types, if it has any
    values["packets"].sum()
    write(one, keys, values)

The loops over the entries are compiled (compiler/map_ops.py): about as fast as the map itself.  The
values of a per-CPU map have one axis more, the workers.  NumPy is imported when asked for.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

from xdp_runtime import btf as bt
from xdp_runtime.maps.family import round_up
from xdp_runtime.maps.typed import BtfCodec
from xdp_runtime.object import MapType

if TYPE_CHECKING:
    from xdp_runtime.maps.map import Map

_COUNT_MIN = 256  # entries to make room for at first
_KEYLESS = (MapType.QUEUE, MapType.STACK, MapType.BLOOM_FILTER, MapType.RINGBUF)


def dtype_of(btf: bt.Btf, type_id: int) -> Any:
    """The NumPy type of a BTF type; what has none (unions, bit fields) is raw bytes."""
    import numpy as np

    one = btf.type(btf.resolve(type_id))
    match one:
        case bt.Int(size=size) if size in (1, 2, 4, 8):
            return np.dtype(f"<{'i' if one.signed else 'u'}{size}")
        case bt.Float(size=size) if size in (4, 8):
            return np.dtype(f"<f{size}")
        case bt.EnumType(size=size):
            return np.dtype(f"<{'i' if one.signed else 'u'}{size}")
        case bt.Ptr():
            return np.dtype("<u8")
        case bt.Array(element, _, count):
            return np.dtype((dtype_of(btf, element), (count,)))
        case bt.Struct(size=size) if all(m.name and m.bit_offset % 8 == 0 and not m.bit_size
                                         for m in one.members) and one.members:
            return np.dtype({"names": [m.name for m in one.members],
                             "formats": [dtype_of(btf, m.type) for m in one.members],
                             "offsets": [m.bit_offset // 8 for m in one.members],
                             "itemsize": size})
        case _:
            return np.dtype(f"V{btf.size_of(type_id)}")


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

    functions = _functions(one)
    spec = one.spec
    key_type, value_type = dtypes(one)
    workers = one.workers if one.family.per_cpu else 1
    stride = round_up(spec.value_size, 8)
    room = max(_COUNT_MIN, len(one))
    keys = np.zeros((room, spec.key_size), np.uint8)
    values = np.zeros((room, workers, stride), np.uint8)
    count, after = 0, None
    while True:
        got = functions["map_batch_read"](
            after, keys[count:].ctypes.data, values[count:].ctypes.data, room - count,
            spec.key_size, spec.value_size, workers)
        count += got
        if count < room:
            break
        after = keys[count - 1].tobytes()
        room *= 2
        keys.resize((room, spec.key_size), refcheck=False)
        values.resize((room, workers, stride), refcheck=False)
    shown = np.ascontiguousarray(values[:count, :, :spec.value_size])
    typed = shown.view(np.uint8).reshape(count, workers, spec.value_size)
    typed_values = _view(typed, value_type)
    return (_view(keys[:count], key_type),
            typed_values if one.family.per_cpu else typed_values[:, 0])


def write(one: Map, keys: Any, values: Any, flags: int = 0) -> int:
    """Update an entry for each pair; how many.  OSError at the first that is refused."""
    import numpy as np

    functions, spec = _functions(one), one.spec
    one.check_writable()
    workers = one.workers if one.family.per_cpu else 1
    raw_keys = _raw(np.asarray(keys), (len(keys),), spec.key_size, one)
    shape = (len(keys), workers) if one.family.per_cpu else (len(keys),)
    raw_values = _raw(np.asarray(values), shape, spec.value_size, one)
    padded = np.zeros((len(keys), workers, round_up(spec.value_size, 8)), np.uint8)
    padded[:, :, :spec.value_size] = raw_values.reshape(len(keys), workers, spec.value_size)
    status = np.zeros(1, np.int64)
    done = int(functions["map_batch_write"](
        raw_keys.ctypes.data, padded.ctypes.data, len(keys), spec.key_size, spec.value_size,
        workers, flags, status.ctypes.data))
    if status[0]:
        code = -int(status[0])
        raise OSError(code, f"{os.strerror(code)}, after {done} entries", spec.name)
    return done


def _functions(one: Map) -> Any:
    from xdp_runtime.compiler.map_ops import compile_batches

    if one.spec.type in _KEYLESS or "next_key" not in one.family.operations:
        raise OSError(errno.EOPNOTSUPP, "has no entries by key", one.spec.name)
    return compile_batches(one)


def _view(raw: Any, kind: Any) -> Any:
    """Bytes in the last axis as one value of this type."""
    import numpy as np

    base, shape = (kind.base, kind.shape) if kind.subdtype else (kind, ())
    out = np.ascontiguousarray(raw).view(base)
    return out.reshape(*raw.shape[:-1], *shape)


def _raw(given: Any, shape: tuple[int, ...], size: int, one: Map) -> Any:
    import numpy as np

    raw = np.ascontiguousarray(given)
    if raw.nbytes != size * int(np.prod(shape)):
        raise ValueError(f"map {one.spec.name}: {raw.nbytes} bytes for {shape} of {size}")
    return raw.view(np.uint8).reshape(*shape, size)
