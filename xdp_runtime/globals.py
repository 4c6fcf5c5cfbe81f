"""Global variables of an object, set before it is loaded: a skeleton's `skel->rodata->mode = 3`.

    obj = with_globals(obj, {"mode": 3, "peers": [1, 2]})

A variable is named as in C and set as a whole, by its BTF type (btf_values.py).  What is constant
is constant for verifier and compiler: branches that a value excludes are neither verified nor
compiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from xdp_runtime import btf as bt
from xdp_runtime.errors import ConfigError
from xdp_runtime.object import GlobalKind, MapSpec, Object

_KINDS = (GlobalKind.RODATA, GlobalKind.DATA, GlobalKind.BSS)


def with_globals(obj: Object, values: Mapping[str, Any]) -> Object:
    """The Object with these initial values.  Raises ConfigError for a name it does not have, or a
    value that does not fit the variable's type."""
    maps = list(obj.maps)
    for name, value in values.items():
        number, one = _find(obj, name)
        assert obj.btf is not None
        try:
            raw = obj.btf.encode_value(one.var, value)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"global variable {name}", str(error).removeprefix("value: ")
                              ) from None
        spec = maps[number]
        content = bytearray(spec.initial.ljust(spec.value_size, b"\0"))
        content[one.offset:one.offset + len(raw)] = raw
        maps[number] = replace(spec, initial=bytes(content))
    return replace(obj, maps=tuple(maps)) if values else obj


def _find(obj: Object, name: str) -> tuple[int, bt.SectionVar]:
    """(number of the map, where in it)"""
    what = f"global variable {name}"
    if obj.btf is None:
        raise ConfigError(what, f"{obj.name} has no BTF to find it by", "compile with -g")
    found = [(number, one) for number, spec in enumerate(obj.maps)
             for one in _variables(obj, spec) if obj.btf.type(one.var).name == name]
    if len(found) != 1:
        names = ", ".join(sorted({obj.btf.type(one.var).name for spec in obj.maps
                                  for one in _variables(obj, spec)}))
        why = f"{len(found)} static variables have this name" if found else f"not in {obj.name}"
        raise ConfigError(what, why, f"it has: {names or 'none'}")
    number, one = found[0]
    if one.offset + obj.btf.size_of(one.var) > obj.maps[number].value_size:
        raise ConfigError(what, f"its type says more bytes than {obj.maps[number].name} has")
    return found[0]


def _variables(obj: Object, spec: MapSpec) -> Iterator[bt.SectionVar]:
    assert obj.btf is not None
    if spec.global_kind in _KINDS and spec.value_type_id:
        section = obj.btf.type(spec.value_type_id)
        if isinstance(section, bt.DataSec):
            yield from section.vars
