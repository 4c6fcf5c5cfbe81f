"""What a program's successor takes over of its maps.

A map of the same name and definition goes on with its content, so that a program can be replaced
under traffic.  Not what belongs to the old code itself: its global variables, and its arrays of
programs, whose numbers mean other programs now.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from xdp_runtime.maps import layout
from xdp_runtime.maps.map import Map
from xdp_runtime.object import GlobalKind, MapSpec, MapType

_BTF_IDS = struct.Struct("<2I")
_BTF_IDS_AT = 208  # layout.py


def inherits(new: MapSpec, old: MapSpec) -> bool:
    """May a program that asks for `new` go on with `old`?"""
    if new.name != old.name or new.global_kind != GlobalKind.NONE:
        return False
    return new.type != MapType.PROG_ARRAY and _definition(new) == _definition(old)


def _definition(spec: MapSpec) -> MapSpec:
    """What says how its memory lies: neither names nor BTF ids, nor what it begins with."""
    inner = _definition(spec.inner) if spec.inner is not None else None
    return replace(spec, name="", pinning=0, initial=b"", slots=(), inner=inner, key_type_id=0,
                   value_type_id=0)


def find(spec: MapSpec, maps: Iterable[Map], workers: int) -> Map | None:
    """The one of `maps` that this definition goes on with."""
    return next((m for m in maps if inherits(spec, m.spec) and m.workers == workers), None)


def with_inner(maps: Iterable[Map]) -> list[Map]:
    """`maps` and those that lie in them: they may be looked up as long as the outer one may."""
    found = list(maps)
    for m in found:
        found += [inner for inner in m.inner_maps() if all(inner is not one for one in found)]
    return found


def retype(m: Map, spec: MapSpec) -> None:
    """From now on the map is that of `spec`: BTF ids are those of another object's types."""
    m.spec = replace(spec, slots=m.spec.slots)
    m.memory("")[_BTF_IDS_AT:_BTF_IDS_AT + _BTF_IDS.size] = _BTF_IDS.pack(
        spec.key_type_id, spec.value_type_id)


def settle_names(new: Sequence[Map], old: Iterable[Map], directory: Path) -> None:
    """Give maps that were created in a folder of their own the names that others have had."""
    former = {m.path.name: m for m in old if m.path is not None}
    for m in new:
        if m.path is None:
            continue
        target = directory / m.path.name
        before = former.get(target.name)
        os.rename(m.path, target)
        m.moved(target)
        if before is not None and before is not m:
            before.moved(None)


assert layout.VERSION == 4, "where the BTF ids are"
