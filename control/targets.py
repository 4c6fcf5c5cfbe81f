"""Entries of maps that redirect, in words: an interface, a queue to a worker, a ring; a program.

    map          xdpu map update ... value      --set-map NAME=KEY:
    DEVMAP       dev eth1 prog stamp            dev=eth1,prog=stamp
    (and HASH)   ifindex 7                      ifindex=7
    CPUMAP       qsize 192 prog there           qsize=192,prog=there
    XSKMAP       xsk sample                     xsk=sample     (a ring, or a socket of the run)

`dev` is an interface of the run by its name, or else one of this network namespace.  `prog` is a
program of the object made for such maps (SEC "xdp/devmap", "xdp/cpumap").
"""

from __future__ import annotations

import re
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xdp_runtime.errors import ConfigError
from xdp_runtime.object import MapSpec, MapType

_WORDS = {
    MapType.DEVMAP: ("dev", "ifindex"), MapType.DEVMAP_HASH: ("dev", "ifindex"),
    MapType.CPUMAP: ("qsize",), MapType.XSKMAP: ("xsk",),
}
_PLACES = {MapType.DEVMAP: "xdp/devmap", MapType.DEVMAP_HASH: "xdp/devmap",
           MapType.CPUMAP: "xdp/cpumap"}
_RING = re.compile(r"(?P<name>[A-Za-z0-9_-]+)(=(?P<map>[^\[\]]+)\[(?P<index>[0-9]+)\])?")


@dataclass(frozen=True, slots=True)
class Names:
    """What entries hold by number (Engine.names): programs, rings, interfaces of the run."""

    programs: Mapping[str, int] = field(default_factory=dict)
    rings: Mapping[str, int] = field(default_factory=dict)
    interfaces: Mapping[str, int] = field(default_factory=dict)


def is_target(spec: MapSpec, word: str) -> bool:
    """Does this word begin such an entry?"""
    return word in _WORDS.get(MapType(spec.type), ())


def take(words: list[str], spec: MapSpec) -> dict[str, str]:
    """The pairs in front of `words`, which are taken away.  Raises ConfigError."""
    fields: dict[str, str] = {}
    known = (*_WORDS[MapType(spec.type)], "prog")
    while words and words[0] in known:
        if len(words) < 2 or words[0] in fields:
            raise ConfigError(f"map {spec.name}", f"{words[0]!r} needs one value")
        fields[words[0]] = words[1]
        del words[:2]
    return fields


def parse(text: str, spec: MapSpec) -> dict[str, str]:
    """dev=eth1,prog=stamp.  Raises ConfigError."""
    words: list[str] = []
    for part in text.split(","):
        words += part.split("=", 1)
    fields = take(words, spec)
    if words:
        raise ConfigError(f"map {spec.name}", f"{text!r} is no entry of "
                          f"{MapType(spec.type).name}", _grammar(spec))
    return fields


def encode(spec: MapSpec, fields: Mapping[str, str], names: Names) -> bytes:
    """The value.  Raises ConfigError."""
    what = f"map {spec.name}"
    given = [word for word in _WORDS[MapType(spec.type)] if word in fields]
    if len(given) != 1:
        raise ConfigError(what, "the entry has no target" if not given else
                          f"{' and '.join(given)} exclude each other", _grammar(spec))
    first = _first(what, given[0], fields[given[0]], names)
    program = 0
    if "prog" in fields:
        place = _PLACES.get(MapType(spec.type))
        if place is None or spec.value_size != 8:
            raise ConfigError(what, "its entries have no room for a program",
                              "declare the value as struct bpf_devmap_val or bpf_cpumap_val")
        program = _named(what, f"program of section {place}", fields["prog"], names.programs)
    return struct.pack("<II", first, program)[:spec.value_size]


def _first(what: str, word: str, text: str, names: Names) -> int:
    if word == "xsk":
        return _named(what, "ring or socket", text, names.rings)
    if word == "dev":
        if text in names.interfaces:
            return names.interfaces[text]
        try:
            return socket.if_nametoindex(text)
        except OSError:
            have = ", ".join(names.interfaces)
            raise ConfigError(what, f"there is no interface {text!r} in this network namespace",
                              f"the run has {have}" if have else "") from None
    try:
        value = int(text, 0)
    except ValueError:
        value = -1
    if not 0 < value < 1 << 32:
        raise ConfigError(what, f"{word} {text!r} is not a number from 1 on")
    return value


def _named(what: str, kind: str, name: str, numbers: Mapping[str, int]) -> int:
    if name not in numbers:
        have = ", ".join(numbers)
        raise ConfigError(what, f"this run has no {kind} {name!r}",
                          f"it has {have}" if have else
                          "give it when the run starts: --ring NAME, or --iface xsk:PATH,dev=IF"
                          if kind.startswith("ring") else "")
    return numbers[name]


def _grammar(spec: MapSpec) -> str:
    words = " or ".join(f"{word} X" for word in _WORDS[MapType(spec.type)])
    return words + (" [prog NAME]" if MapType(spec.type) in _PLACES else "")


def ring(text: str) -> tuple[str, str, str]:
    """--ring NAME=MAP[INDEX] -> (name, map, index); NAME alone has no entry yet.  Raises
    ConfigError."""
    found = _RING.fullmatch(text)
    if found is None:
        raise ConfigError(f"--ring {text}", "is no ring", "write NAME=MAP[INDEX], or NAME alone")
    return found["name"], found["map"] or "", found["index"] or ""


def ring_names(options: Sequence[tuple[str, str, str]]) -> list[str]:
    """Each once, in order."""
    return list(dict.fromkeys(name for name, _, _ in options))
