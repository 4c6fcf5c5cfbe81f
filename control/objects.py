"""The object a verb works on, as its options want it: for which kernel, with which globals.

    --btf FILE               types that CO-RE relocations are for
    --set-global NAME=VALUE  a number, an enumerator, true, a text, or JSON: [1, 2], {"port": 80}
    --map-entries NAME=N     max_entries of a map, as bpf_map__set_max_entries() of libbpf
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from xdp_runtime.core_relo import read_settled
from xdp_runtime.errors import ConfigError
from xdp_runtime.globals import with_globals
from xdp_runtime.object import Object, with_max_entries


def read(args: Namespace) -> Object:
    """Raises LoadError, ConfigError."""
    return prepared(args.obj, args.btf, args.set_global, args.map_entries)


def prepared(path: str, btf: str | None, settings: Iterable[str],
             entries: Iterable[str]) -> Object:
    """The object of a file with these options.  Raises LoadError, ConfigError."""
    obj = read_settled(path, None if btf is None else Path(btf))
    obj = with_max_entries(obj, dict(map(_parse_entries, entries)))
    return with_globals(obj, dict(map(_parse, settings)))


def _parse_entries(text: str) -> tuple[str, int]:
    name, _, value = text.partition("=")
    try:
        return name, int(value, 0)
    except ValueError:
        raise ConfigError(f"--map-entries {text}", "is no map's number of entries",
                          "write NAME=N, such as flows=65536") from None


def _parse(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise ConfigError(f"--set-global {text}", "is no variable's value",
                          'write NAME=VALUE, such as mode=3, name=eth0 or ports=[80,443]')
    try:
        return name, int(value, 0)
    except ValueError:
        pass
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
