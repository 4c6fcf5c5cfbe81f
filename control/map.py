"""xdpu map: the maps of running programs, with bpftool's grammar and output.

A map is a file of a run directory; its id is the file's inode number.  Values are what the map's
own compiled operations give, so that reading does not disturb the workers.
"""

from __future__ import annotations

import json
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from control import targets
from control.btf_json import written
from control.map_entries import (
    bytes_json,
    entries,
    entry_json,
    entry_text,
    formatted,
    hex_text,
    is_json,
    is_typed,
    print_entry,
    print_json,
)
from control.server import ask
from dataplane import rundir
from xdp_runtime.errors import ConfigError, LoadError, XdpuError
from xdp_runtime.maps import type_name
from xdp_runtime.maps.map import BTF_NAME, CONSTANT, Map, Value
from xdp_runtime.maps.memory import TEMPORARY
from xdp_runtime.object import MapFlag, MapType

_FLAGS = {"any": 0, "noexist": 1, "exist": 2}
_BYTES = {10: re.compile("0x[0-9a-f]+|0[0-7]*|[1-9][0-9]*", re.I),  # of C's strtoul
          16: re.compile("(0x)?[0-9a-f]+", re.I)}
_OF_OTHERS = {  # maps of what only their run can name
    MapType.PROG_ARRAY: ("programs", "say which: value name PROGRAM"),
    MapType.ARRAY_OF_MAPS: ("maps", "say which: value id N, name NAME or pinned RUN/NAME"),
    MapType.HASH_OF_MAPS: ("maps", "say which: value id N, name NAME or pinned RUN/NAME")}
_LOOKED_AT = (MapType.DEVMAP, MapType.DEVMAP_HASH)  # the kernel makes them read-only itself
_GRAMMAR = "name NAME, id N or pinned RUN/NAME"
T = TypeVar("T")


# --- which map -----------------------------------------------------------------------------------
def _files(run: str | None) -> Iterator[tuple[str, Path]]:
    """(run, file) of every map there is."""
    for one in rundir.runs():
        if run is not None and one.name != run:
            continue
        folder = one.path / "maps"
        if folder.is_dir():
            for path in sorted(folder.iterdir()):
                if path.name != BTF_NAME and not path.name.startswith(TEMPORARY):
                    yield one.name, path


def _select(words: list[str], run: str | None) -> list[tuple[str, Path]]:
    """The maps that the first two words name, which are taken away.  Raises ConfigError."""
    if len(words) < 2 or words[0] not in ("name", "id", "pinned"):
        raise ConfigError("no map given", f"got {' '.join(words) or 'nothing'!r}", _GRAMMAR)
    kind, what = words[0], words[1]
    del words[:2]
    if words[:1] == ["run"] and len(words) > 1:
        run = words[1]
        del words[:2]
    files = list(_files(run))
    if kind == "pinned":
        if "/" in what and os.path.isfile(what):
            return [("", Path(what))]
        found = [(r, p) for r, p in files if f"{r}/{p.name}" == what]
    elif kind == "id":
        found = [(r, p) for r, p in files if str(p.stat().st_ino) == what]
    else:
        found = [(r, p) for r, p in files if p.name == what]
    if not found:
        have = ", ".join(f"{r}/{p.name}" for r, p in files)
        raise ConfigError(f"map {what}", "there is none" + (f" in run {run}" if run else ""),
                          f"there are: {have}" if have else "nothing runs")
    return found


def _open(words: list[str], run: str | None) -> Map:
    """The one map meant, its operations compiled when first used."""
    from xdp_runtime.compiler.map_ops import open_map

    found = _select(words, run)
    if len(found) > 1:
        names = ", ".join(f"{r}/{p.name}" for r, p in found)
        raise ConfigError("several maps have that name", "", f"say pinned, one of: {names}")
    return open_map(found[0][1])


def _data(words: list[str], size: int, part: str) -> bytes:
    """`part` and then `size` bytes from the words, which are taken away.  Raises ConfigError."""
    if words[:1] != [part]:
        raise ConfigError(f"expected {part}", f"got {words[0] if words else 'nothing'!r}")
    del words[0]
    base = 10
    if words[:1] == ["hex"]:
        base = 16
        del words[0]
    given, words[:] = words[:size], words[size:]
    out = [_number(word, base) for word in given]
    if any(byte > 255 for byte in out):
        raise ConfigError(f"{part} {' '.join(given)}", "is not one number below 256 a byte",
                          "or write: hex aa bb")
    if len(out) != size:
        raise ConfigError(f"{part} of {len(out)} bytes", f"the map's has {size}")
    return bytes(out)


def _number(word: str, base: int) -> int:
    """As in C: 0x1f is hexadecimal and 017 octal.  256 for what is no number."""
    if not _BYTES[base].fullmatch(word):
        return 256
    octal = base == 10 and word[0] == "0" and word[1:2] not in ("x", "X")
    return int(word, 16 if base == 16 else 8 if octal else 0)


def _no_more(words: Sequence[str]) -> None:
    if words:
        raise ConfigError(f"{words[0]!r}", "is more than was expected")


# --- the verbs -----------------------------------------------------------------------------------
def run_show(args: Namespace) -> int:
    words = list(args.map)
    found = _select(words, args.run) if words else list(_files(args.run))
    _no_more(words)
    rows = []
    for run, path in found:
        try:
            with Map.open(path) as one:
                rows.append(_describe(run, path, one))
        except LoadError:
            continue  # it has just gone, or is not ours
    if is_json(args):
        print_json(args, rows[0] if args.map and len(rows) == 1 else rows)
        return 0
    for row in rows:
        print(f"{row['id']}: {row['type']}  name {row['name']}  flags 0x{row['flags']:x}")
        print(f"\tkey {row['bytes_key']}B  value {row['bytes_value']}B  max_entries "
              f"{row['max_entries']}  memlock {row['bytes_memlock']}B")
        more = [f"btf_id {row['btf_id']}"] if "btf_id" in row else []
        more += ["frozen"] * row["frozen"]
        if more:
            print("\t" + "  ".join(more))
        print(f"\trun {row['run']}  workers {row['workers']}")
    return 0


run_list = run_show


def _describe(run: str, path: Path, one: Map) -> dict[str, Any]:
    spec, status = one.spec, path.stat()
    row: dict[str, Any] = {
        "id": status.st_ino, "type": type_name(spec.type).lower(), "name": spec.name,
        "flags": spec.flags | (MapFlag.RDONLY_PROG if spec.type in _LOOKED_AT else 0),
        "bytes_key": spec.key_size, "bytes_value": spec.value_size,
        "max_entries": one.max_entries, "bytes_memlock": 512 * status.st_blocks,
        "frozen": int(one.frozen)}
    if is_typed(one):
        row["btf_id"] = path.with_name(BTF_NAME).stat().st_ino
    return {**row, "run": run, "workers": one.workers}


def run_dump(args: Namespace) -> int:
    words = list(args.map)
    with _open(words, args.run) as one:
        _no_more(words)
        items = _guarded(one, lambda: list(entries(one)))
        if is_json(args):
            print_json(args, [entry_json(one, key, value) for key, value in items])
        elif is_typed(one):
            print(written([formatted(one, key, value) for key, value in items
                           if not isinstance(value, OSError)], text=True))
        else:
            for key, value in items:
                print(entry_text(key, value))
            count = sum(not isinstance(value, OSError) for _, value in items)
            print(f"Found {count} element{'s' * (count != 1)}")
        if "next_key" not in one.family.operations:
            print(f"xdpu: map {one.spec.name}: {type_name(one.spec.type)} has no entries by key",
                  file=sys.stderr)
            return 1
    return 0


def run_lookup(args: Namespace) -> int:
    words = list(args.map)
    with _open(words, args.run) as one:
        key = _data(words, one.spec.key_size, "key") if one.spec.key_size else b""
        _no_more(words)
        value = _guarded(one, lambda: one.lookup(key) if key else one.peek())
        if value is None:
            print("null" if is_json(args) else f"key:\n{hex_text(key)}\n\nNot found")
            return 1
        print_entry(args, one, key, value)
    return 0


def run_getnext(args: Namespace) -> int:
    words = list(args.map)
    with _open(words, args.run) as one:
        key = _data(words, one.spec.key_size, "key") if words else None
        _no_more(words)
        after = _guarded(one, lambda: one.next_key(key))
        if after is None:
            raise XdpuError(f"map {one.spec.name}", "there is no next key")
        if is_json(args):
            print_json(args, {"key": None if key is None else bytes_json(key),
                               "next_key": bytes_json(after)})
        else:
            print("key: None" if key is None else f"key:\n{hex_text(key)}")
            print(f"next key:\n{hex_text(after)}")
    return 0


def run_update(args: Namespace) -> int:
    words = list(args.map)
    path = _select(list(words), args.run)[0][1]
    with _open(words, args.run) as one:
        spec = one.spec
        given: dict[str, bytes | str] = {}
        while words:  # in any order
            part = "flags" if words[0] in _FLAGS else words[0]
            if part in given:
                raise ConfigError(f"{part}", "is given twice")
            if part == "flags":
                given[part] = words.pop(0)
            elif part == "key" and spec.key_size:
                given[part] = _data(words, spec.key_size, part)
            elif part == "value":
                given[part] = (_target(words, one, path) or _other(words, one, path)
                               or _data(words, spec.value_size, part))
            else:
                raise ConfigError(f"{part!r}", "is no flag, key or value",
                                  "flags are any, exist and noexist")
        for part in ("key", "value") if spec.key_size else ("value",):
            if part not in given:
                raise ConfigError(f"map {spec.name}", f"no {part} is given")
        key, value = given.get("key", b""), given["value"]
        flags = _FLAGS[str(given.get("flags", "any"))]
        _writable(one)
        assert isinstance(key, bytes)
        if isinstance(value, str):
            ask(path.parent.parent, {"do": "entry", "map": path.name, "key": key.hex(),
                                     "value": value, "flags": flags})
        elif not spec.key_size:
            _guarded(one, lambda: one.push(value, flags))
        else:
            values: Value = [value] * one.workers if one.family.per_cpu else value
            _guarded(one, lambda: one.update(key, values, flags))
    _tell_filter(path)
    return _done(args)


def _other(words: list[str], one: Map, path: Path) -> str:
    """The name of a program or of a map of the same run as a value, "" where values are bytes.
    Raises ConfigError."""
    if one.spec.type not in _OF_OTHERS:
        return ""
    what = f"map {one.spec.name}"
    kind, mend = _OF_OTHERS[MapType(one.spec.type)]
    if words[1:2] not in (["id"], ["name"], ["pinned"]) or len(words) < 3:
        raise ConfigError(what, f"holds {kind}, which cannot be given as bytes", mend)
    del words[0]
    if one.spec.type == MapType.PROG_ARRAY:
        if words[0] != "name":
            raise ConfigError(what, "programs of a run have names only", mend)
        name = words[1]
        del words[:2]
        return name
    for _, inner in _select(words, path.parent.parent.name):
        if inner.parent == path.parent:
            return inner.name
    raise ConfigError(what, "takes maps of its own run", mend)


def _tell_filter(path: Path) -> None:
    """A run whose --filter asks this map knows of the change when this returns."""
    folder = path.parent.parent
    try:
        known = json.loads((folder / "run.json").read_text()).get("filter_maps", ())
    except (OSError, ValueError):
        return  # no run of ours, or one that has just begun or gone
    if path.name in known:
        ask(folder, {"do": "mirror"})


def _target(words: list[str], one: Map, path: Path) -> bytes:
    """A value given as where a redirect goes (targets.py), b"" if it is not."""
    if words[:1] != ["value"] or len(words) < 2 or not targets.is_target(one.spec, words[1]):
        return b""
    del words[0]
    try:
        names = json.loads((path.parent.parent / "names.json").read_text())
    except (OSError, ValueError):
        names = {}
    return targets.encode(one.spec, targets.take(words, one.spec), targets.Names(**names))


def run_delete(args: Namespace) -> int:
    words = list(args.map)
    path = _select(list(words), args.run)[0][1]
    with _open(words, args.run) as one:
        key = _data(words, one.spec.key_size, "key")
        _no_more(words)
        _writable(one)
        _guarded(one, lambda: one.delete(key))
    _tell_filter(path)
    return _done(args)


run_push = run_enqueue = run_update


run_peek = run_lookup


def run_pop(args: Namespace) -> int:
    words = list(args.map)
    with _open(words, args.run) as one:
        _no_more(words)
        value = _guarded(one, one.pop)
        if value is None:
            print("null" if is_json(args) else "Error: empty map")
            return 1
        print_entry(args, one, b"", value)
    return 0


run_dequeue = run_pop


def run_freeze(args: Namespace) -> int:
    words = list(args.map)
    with _open(words, args.run) as one:
        _no_more(words)
        _guarded(one, one.freeze)
    return _done(args)


def _done(args: Namespace) -> int:
    if is_json(args):
        print("null")
    return 0


def _writable(one: Map) -> None:
    """What programs were compiled with is not written."""
    if one.spec.global_kind in CONSTANT:
        raise ConfigError(f"map {one.spec.name}", "is read-only: the program was compiled with it")


def _guarded(one: Map, call: Callable[[], T]) -> T:
    try:
        return call()
    except OSError as error:
        raise XdpuError(f"map {one.spec.name}", f"{os.strerror(error.errno or 0)} "
                        f"({error.errno})") from error
