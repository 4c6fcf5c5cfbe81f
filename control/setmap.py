"""Map entries given on the command line: `--set-map NAME=KEY:VALUE`, before the first packet.

    --set-map peer=3:4                          numbers, as wide as the map's key and value
    --set-map tunnel=0:hex:0a000001ac100001     or bytes, exactly as many
    --set-map ports=1:dev=eth1,prog=stamp       where redirects go, in words (targets.py)
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from control import targets
from xdp_runtime.errors import ConfigError
from xdp_runtime.object import GlobalKind, MapSpec, MapType, Object

if TYPE_CHECKING:
    from dataplane.engine import Engine
    from xdp_runtime.program import Program

_FORM = "write NAME=KEY:VALUE, each a number or hex:AABB.."
_FIELDS = re.compile(r"(hex:[^:]*|[^:]*):(hex:[^:]*|[^:]*)")
_OF_OTHERS = {MapType.PROG_ARRAY: "programs", MapType.ARRAY_OF_MAPS: "maps",
              MapType.HASH_OF_MAPS: "maps", MapType.RINGBUF: "records"}
_NO_NAMES = targets.Names()


class Setting(NamedTuple):
    map: str
    key: bytes
    value: bytes | dict[str, str]  # words, where names are yet to be known


def parse(text: str, obj: Object) -> Setting:
    """One option's text.  Raises ConfigError."""
    what = f"--set-map {text}"
    name, equals, entry = text.partition("=")
    fields = _FIELDS.fullmatch(entry)
    if not equals or not name or fields is None:
        raise ConfigError(what, "is no map entry", _FORM)
    spec = _find(name, obj, what)
    key = _bytes(fields[1], spec.key_size, "key", what)
    if targets.is_target(spec, fields[2].partition("=")[0]):
        return Setting(name, key, targets.parse(fields[2], spec))
    return Setting(name, key, _bytes(fields[2], spec.value_size, "value", what))


def apply(program: Program, settings: Iterable[Setting], engine: Engine | None = None) -> None:
    """Writes the entries; a per-CPU map gets the value for each worker.  Raises ConfigError.

    `engine` knows rings and interfaces by name; `program` need not be the one it runs yet."""
    known = engine.names() if engine is not None else {}
    names = targets.Names(program.second_numbers(), known.get("rings", {}),
                          known.get("interfaces", {}))
    for name, key, value in encoded(program.object, settings, names):
        target = program.raw_maps[name]
        per_cpu = target.family.per_cpu
        try:
            target.update(key, [value] * target.workers if per_cpu else value)
        except OSError as error:
            raise ConfigError(f"--set-map {name}", f"key {key.hex()} is refused, "
                              f"{error.strerror}", _room(target.spec)) from error


def encoded(obj: Object, settings: Iterable[Setting],
            names: targets.Names = _NO_NAMES) -> Iterator[tuple[str, bytes, bytes]]:
    """Map, key and value of each.  Raises ConfigError for names that are not known."""
    for name, key, value in settings:
        yield name, key, value if isinstance(value, bytes) else targets.encode(
            obj.maps[obj.map_index(name)], value, names)


def _find(name: str, obj: Object, what: str) -> MapSpec:
    for spec in obj.maps:
        if spec.name == name:
            break
    else:
        have = ", ".join(m.name for m in obj.maps if m.global_kind == GlobalKind.NONE)
        raise ConfigError(what, f"{obj.name} has no map {name!r}", f"it has: {have or 'none'}")
    if spec.global_kind != GlobalKind.NONE:
        raise ConfigError(what, f"{name} holds global variables, which are no entries")
    if spec.type in _OF_OTHERS:
        raise ConfigError(what, f"{name} holds {_OF_OTHERS[MapType(spec.type)]}, not values")
    return spec


def _bytes(text: str, size: int, part: str, what: str) -> bytes:
    """As many as the map wants: of a number, in this machine's byte order."""
    if text.startswith("hex:"):
        try:
            raw = bytes.fromhex(text.removeprefix("hex:"))
        except ValueError:
            raise ConfigError(what, f"the {part} {text!r} is not pairs of hex digits") from None
        if len(raw) != size:
            raise ConfigError(what, f"the {part} has {len(raw)} bytes, the map's has {size}")
        return raw
    try:
        value = int(text, 0)
    except ValueError:
        raise ConfigError(what, f"the {part} {text!r} is no number", _FORM) from None
    try:
        return value.to_bytes(size, sys.byteorder, signed=value < 0)
    except OverflowError:
        raise ConfigError(what, f"the {part} {text} does not fit into {size} bytes") from None


def _room(spec: MapSpec) -> str:
    return f"the map has room for {spec.max_entries} entries"
