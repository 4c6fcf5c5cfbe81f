"""Entries of maps as `xdpu map` prints them: bpftool's JSON, and its text."""

from __future__ import annotations

import errno
import json
import os
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from control.btf_json import plain, shown, written
from xdp_runtime.errors import LoadError
from xdp_runtime.maps.map import Map, Value
from xdp_runtime.maps.typed import BtfCodec
from xdp_runtime.object import MapType

_LINE_BYTES = 16
_SINGLE_BYTES = 24  # of a key and its value on one line
# libbpf does not tell the kernel the types of these, so that bpftool prints bytes
_UNTYPED = (MapType.PERF_EVENT_ARRAY, MapType.STACK_TRACE, MapType.ARRAY_OF_MAPS,
            MapType.HASH_OF_MAPS, MapType.DEVMAP, MapType.DEVMAP_HASH, MapType.CPUMAP,
            MapType.XSKMAP, MapType.QUEUE, MapType.STACK)
_SLOTS = (MapType.DEVMAP, MapType.CPUMAP, MapType.XSKMAP)  # arrays of what may be missing


def is_json(args: Namespace) -> bool:
    return bool(args.json or args.pretty)


def print_json(args: Namespace, what: Any) -> None:
    print(written(what) if args.pretty else json.dumps(plain(what), separators=(",", ":")))


def is_typed(one: Map) -> bool:
    return isinstance(one.codec, BtfCodec) and one.spec.type not in _UNTYPED


def entries(one: Map) -> Iterator[tuple[bytes, Value | OSError]]:
    """All of a map, with the error in place of a value that cannot be had, as the kernel's."""
    if "next_key" not in one.family.operations:
        return
    for key in one:
        try:
            value = one.lookup(key)
        except OSError as error:
            yield key, OSError(error.errno, os.strerror(error.errno or 0))
            continue
        if value is not None:
            yield key, seen(one, value)
        elif one.spec.type in _SLOTS:
            yield key, OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def seen(one: Map, value: Value) -> Value:
    """A map in a map is shown by its id."""
    if one.spec.type in (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS):
        assert isinstance(value, bytes)
        return one.inner_id(value).to_bytes(4, "little")
    return value


def bytes_json(raw: bytes) -> list[str]:
    return [f"0x{byte:02x}" for byte in raw]


def entry_json(one: Map, key: bytes, value: Value | OSError) -> dict[str, Any]:
    out: dict[str, Any] = {"key": bytes_json(key)}
    if isinstance(value, OSError):
        return {**out, "value": {"error": value.strerror}}
    if isinstance(value, list):
        out["values"] = [{"cpu": cpu, "value": bytes_json(raw)} for cpu, raw in enumerate(value)]
    else:
        out["value"] = bytes_json(value)
        if one.spec.type in (MapType.ARRAY_OF_MAPS, MapType.HASH_OF_MAPS):
            out["inner_map_id"] = int.from_bytes(value, "little")
    if is_typed(one):
        out["formatted"] = formatted(one, key, value)
    return out


def formatted(one: Map, key: bytes, value: Value) -> dict[str, Any]:
    """Key and value by their types.  Raises LoadError for types without values."""
    codec = one.codec
    assert isinstance(codec, BtfCodec)
    out = {"key": shown(codec.btf, codec.key_type_id, key)} if codec.key_type_id else {}
    kind = codec.value_type_id
    if not kind:
        raise LoadError(f"map {one.spec.name}", "its values have no type")
    if isinstance(value, list):
        return {**out, "values": [{"cpu": cpu, "value": shown(codec.btf, kind, raw)}
                                  for cpu, raw in enumerate(value)]}
    return {**out, "value": shown(codec.btf, kind, value)}


def hex_text(raw: bytes) -> str:
    """As bpftool: 16 bytes a line, a gap in the middle."""
    out = ""
    for at, byte in enumerate(raw):
        if at:
            out += "\n" if at % _LINE_BYTES == 0 else "  " if at % 8 == 0 else " "
        out += f"{byte:02x}"
    return out


def entry_text(key: bytes, value: Value | OSError) -> str:
    if isinstance(value, list):
        gap = "\n" if len(value[0]) > _LINE_BYTES else " "
        return "\n".join([f"key:\n{hex_text(key)}", *(
            f"value (CPU {cpu:02d}):{gap}{hex_text(raw)}" for cpu, raw in enumerate(value))])
    if isinstance(value, OSError):
        text = "<no entry>" if value.errno == errno.ENOENT else str(value.strerror)
        size = len(text)
    else:
        text, size = hex_text(value), len(value)
    is_long = max(len(key), size) > _LINE_BYTES
    gap = "\n" if is_long else " "
    if not key:
        return f"value:{gap}{text}"
    between = "\n" if is_long or len(key) + size > _SINGLE_BYTES else "  "
    return f"key:{gap}{hex_text(key)}{between}value:{gap}{text}"


def print_entry(args: Namespace, one: Map, key: bytes, value: Value) -> None:
    value = seen(one, value)
    if is_json(args):
        print_json(args, entry_json(one, key, value))
    elif is_typed(one):
        print(written(formatted(one, key, value), text=True))
    else:
        print(entry_text(key, value))
