"""A map as Python values instead of bytes, by the BTF types of its definition.

    flows = program.maps["flows"]         # a TypedMap
    flows[{"addr": 1, "port": 80}] = {"packets": 1}
    for key, value in flows.items(): ...
    keys, values = flows.to_numpy()

`flows.raw` is the Map itself, in bytes, with all that bpf(2) has: flags, batches, rings.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from xdp_runtime.object import MapSpec

if TYPE_CHECKING:
    from xdp_runtime.btf import Btf
    from xdp_runtime.maps.map import Map


class Codec(Protocol):
    """Keys and values of one map, to Python and back."""

    def decode_key(self, key: bytes) -> Any: ...
    def encode_key(self, key: Any) -> bytes: ...
    def decode_value(self, value: bytes) -> Any: ...
    def encode_value(self, value: Any) -> bytes: ...


@dataclass(frozen=True, slots=True)
class BtfCodec:
    """By BTF; what has no type stays bytes, and is taken as a number, too."""

    btf: Btf
    key_type_id: int
    value_type_id: int
    key_size: int = 0  # of what has no type
    value_size: int = 0

    @classmethod
    def of(cls, btf: Btf | None, spec: MapSpec) -> BtfCodec | None:
        """The codec of a map, None if its definition has no types."""
        if btf is None or not (spec.key_type_id or spec.value_type_id):
            return None
        return cls(btf, spec.key_type_id, spec.value_type_id, spec.key_size, spec.value_size)

    def decode_key(self, key: bytes) -> Any:
        return self.btf.decode_value(self.key_type_id, key) if self.key_type_id else key

    def encode_key(self, key: Any) -> bytes:
        if self.key_type_id:
            return self.btf.encode_value(self.key_type_id, key)
        return _plain(key, self.key_size)

    def decode_value(self, value: bytes) -> Any:
        return self.btf.decode_value(self.value_type_id, value) if self.value_type_id else value

    def encode_value(self, value: Any) -> bytes:
        if self.value_type_id:
            return self.btf.encode_value(self.value_type_id, value)
        return _plain(value, self.value_size)


@dataclass(frozen=True, slots=True)
class PlainCodec:
    """Bytes, as they are; numbers are taken, too."""

    spec: MapSpec

    def decode_key(self, key: bytes) -> bytes:
        return key

    decode_value = decode_key

    def encode_key(self, key: Any) -> bytes:
        return _plain(key, self.spec.key_size)

    def encode_value(self, value: Any) -> bytes:
        return _plain(value, self.spec.value_size)


def _plain(value: Any, size_bytes: int) -> bytes:
    """Bytes, or a number as wide as the definition says.  Raises ValueError, TypeError."""
    if not isinstance(value, int):
        return bytes(value)
    try:
        return value.to_bytes(size_bytes, "little", signed=value < 0)
    except OverflowError:
        raise ValueError(f"{value} does not fit in {size_bytes} bytes") from None


class _Items(ItemsView[Any, Any]):
    """What is deleted meanwhile is left out."""

    def __init__(self, typed: TypedMap) -> None:
        super().__init__(typed)
        self._typed = typed

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        one = self._typed
        return ((one.codec.decode_key(key), one._decode(value)) for key, value in one.raw.items())


class _Values(ValuesView[Any]):
    def __init__(self, typed: TypedMap) -> None:
        super().__init__(typed)
        self._typed = typed

    def __iter__(self) -> Iterator[Any]:
        return (value for _, value in self._typed.items())


class TypedMap(Mapping[Any, Any]):
    """A mapping of keys and values as btf_values.py has them, bytes where the definition has no
    types; of a per-CPU map a value is a list, one a worker.  Errors are those of Map, and
    ValueError or TypeError for what the types cannot hold."""

    # two are equal if they are the same map: keys that are dicts cannot be compared as a dict's are
    __eq__, __hash__ = object.__eq__, object.__hash__

    def __init__(self, raw: Map) -> None:
        self.raw, self.codec = raw, raw.codec or PlainCodec(raw.spec)

    def _decode(self, value: bytes | list[bytes]) -> Any:
        if isinstance(value, list):
            return [self.codec.decode_value(one) for one in value]
        return self.codec.decode_value(value)

    def _encode(self, value: Any) -> bytes | list[bytes]:
        if self.raw.family.per_cpu:
            if not isinstance(value, list | tuple):
                raise TypeError(f"map {self.raw.spec.name}: expected a list of "
                                f"{self.raw.workers} values, one a worker, not {value!r}")
            return [self.codec.encode_value(one) for one in value]
        return self.codec.encode_value(value)

    def lookup(self, key: Any) -> Any:
        value = self.raw.lookup(self.codec.encode_key(key))
        return None if value is None else self._decode(value)

    def update(self, key: Any, value: Any, flags: int = 0) -> None:
        self.raw.update(self.codec.encode_key(key), self._encode(value), flags)

    def delete(self, key: Any) -> None:
        self.raw.delete(self.codec.encode_key(key))

    def to_numpy(self) -> tuple[Any, Any]:
        """(keys, values) of all entries, as Map.to_numpy."""
        return self.raw.to_numpy()

    def from_numpy(self, keys: Any, values: Any, flags: int = 0) -> int:
        """Update an entry for each pair, as Map.from_numpy; how many."""
        return self.raw.from_numpy(keys, values, flags)

    def push(self, value: Any, flags: int = 0) -> None:
        """Into a queue, stack or bloom filter, as Map.push."""
        self.raw.push(self.codec.encode_value(value), flags)

    def pop(self) -> Any:
        """A queue's or stack's next value, taking it; None if there is none."""
        value = self.raw.pop()
        return None if value is None else self._decode(value)

    def peek(self) -> Any:
        """The same, leaving it."""
        value = self.raw.peek()
        return None if value is None else self._decode(value)

    def items(self) -> ItemsView[Any, Any]:
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        return _Values(self)

    def get(self, key: Any, default: Any = None) -> Any:
        value = self.lookup(key)
        return default if value is None else value

    def __iter__(self) -> Iterator[Any]:
        return (self.codec.decode_key(key) for key in self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def __bool__(self) -> bool:
        return True

    def __contains__(self, key: Any) -> bool:
        return self.codec.encode_key(key) in self.raw

    def __getitem__(self, key: Any) -> Any:
        value = self.lookup(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: Any, value: Any) -> None:
        self.raw[self.codec.encode_key(key)] = self._encode(value)

    def __delitem__(self, key: Any) -> None:
        try:
            self.delete(key)
        except FileNotFoundError:
            raise KeyError(key) from None

    def __repr__(self) -> str:
        return repr(self.raw)
