"""Policy files: the operator's classes as YAML, both ways.

    classes:
      observe:
        entry: xdp
        packet: {read: 64}          # bytes from the start, or all; write, and resize: true, too
        meta: [read]                # the metadata in front of the packet
        context: [rx_queue_index]
        helpers:
          - map_lookup_elem
          - redirect: [ifindex in 2, 3]
        maps: {counters: [read, write]}
        verdicts: [XDP_PASS]
        instructions: 200           # the longest path

What is left out is not granted, but for `instructions`: without it a path may be as long as the
verifier can walk.  `host: FILE` names the specification of a host whose entries classes are for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

from xdp_runtime.policy import (
    ALL,
    CONTEXT,
    READ,
    VERDICTS,
    WRITE,
    XDP_ENTRY,
    Constraint,
    ExtensionClass,
    Policy,
    parse_constraint,
    say_bytes,
)
from xdp_runtime.policy_host import XDP_HOST, Host, read_host
from xdp_runtime.policy_yaml import Value, read_yaml

MAX_INSTRUCTIONS = 1 << 40
_KEYS = ("entry", "capabilities", "packet", "meta", "context", "helpers", "maps", "verdicts",
         "instructions")
_XDP_ONLY = ("packet", "meta", "context", "verdicts")


def read_policy(path: Path) -> Policy:
    """Raises ConfigError."""
    top = read_yaml(path)
    keys = top.mapping("a policy", ("host", "classes"))
    host = XDP_HOST
    if "host" in keys:
        host = read_host(path.parent / keys["host"].text("host"))
    if "classes" not in keys:
        raise top.error("has no classes", "add `classes:`")
    classes = {name: parse_class(name, value, host)
               for name, value in keys["classes"].mapping("classes").items()}
    if not classes:
        raise keys["classes"].error("has no class")
    return Policy(str(path), MappingProxyType(classes))


def parse_class(name: str, value: Value, host: Host) -> ExtensionClass:
    what = f"class {name}"
    keys = value.mapping(what, _KEYS)
    if "entry" not in keys:
        raise value.error(f"{what} has no entry", f"add `entry: {XDP_ENTRY}`")
    entry = keys["entry"].text("entry")
    here = XDP_HOST if entry == XDP_ENTRY else host
    if entry not in here.entries:
        have = ", ".join(dict.fromkeys((XDP_ENTRY, *host.entries)))
        raise keys["entry"].error(f"entry {entry!r} is not known", f"there are: {have}")
    if entry != XDP_ENTRY:
        for key in _XDP_ONLY:
            if key in keys:
                raise keys[key].error(f"entry {entry} has no {key}", "name its `capabilities`")
    capabilities = frozenset(
        word for word, _ in keys["capabilities"].words("capabilities", here.capabilities())
    ) if "capabilities" in keys else frozenset()
    read, write, resize = _packet(keys["packet"]) if "packet" in keys else (0, 0, False)
    return ExtensionClass(
        name, entry,
        ALL if "packet.read" in capabilities else read,
        ALL if "packet.write" in capabilities else write,
        resize or "packet.resize" in capabilities,
        _words(keys, "meta", (READ, WRITE))
        | {word for word in (READ, WRITE) if f"meta.{word}" in capabilities},
        _words(keys, "context", CONTEXT) | {word for word in CONTEXT if word in capabilities},
        MappingProxyType(dict(_helpers(keys["helpers"])) if "helpers" in keys else {}),
        MappingProxyType(_maps(keys["maps"]) if "maps" in keys else {}),
        _words(keys, "verdicts", VERDICTS),
        keys["instructions"].number("instructions", 1, MAX_INSTRUCTIONS)
        if "instructions" in keys else None,
        capabilities)


def _words(keys: dict[str, Value], key: str, known: tuple[str, ...]) -> frozenset[str]:
    if key not in keys:
        return frozenset()
    return frozenset(word for word, _ in keys[key].words(key, known))


def _packet(value: Value) -> tuple[int, int, bool]:
    """(bytes that may be read, written, whether its size may change)"""
    if value.data == "none":
        return 0, 0, False
    keys = value.mapping("packet", (READ, WRITE, "resize"))
    read, write = (_bytes(keys[word], f"packet {word}") if word in keys else 0
                   for word in (READ, WRITE))
    return read, write, keys["resize"].flag("packet resize") if "resize" in keys else False


def _bytes(value: Value, what: str) -> int:
    if isinstance(value.data, str):
        if value.data not in ("all", "none"):
            raise value.error(f"{what} is {value.kind()}, must be a number of bytes, all or none")
        return ALL if value.data == "all" else 0
    return value.number(what, 0, ALL)


def _helpers(value: Value) -> Iterator[tuple[str, tuple[Constraint, ...]]]:
    from xdp_runtime.policy_uses import arguments_of, helper_name

    if value.data == "none":
        return
    seen = set()
    for item in value.items("helpers"):
        asked: tuple[Constraint, ...] = ()
        if isinstance(item.data, dict):
            if len(item.data) != 1:
                raise item.error("a helper with constraints is one key, `redirect: [...]`")
            text, constraints = next(iter(item.data.items()))
            asked = tuple(one.parsed(parse_constraint, f"helper {text}")
                          for one in constraints.items(f"helper {text}"))
        else:
            text = item.text("a helper")
        name = helper_name(text)
        if not name:
            raise item.error(f"helper {text!r} does not exist")
        if name in seen:
            raise item.error(f"helper {name} is there twice")
        seen.add(name)
        names = [argument for argument, _ in arguments_of(name).values()]
        for one in asked:
            if one.name not in names:
                raise item.error(f"helper {name} has no argument {one.name!r}",
                                 f"it has: {', '.join(names)}")
        yield name, asked


def _maps(value: Value) -> dict[str, frozenset[str]]:
    if value.data == "none":
        return {}
    return {name: frozenset(word for word, _ in access.words(f"map {name}", (READ, WRITE)))
            for name, access in value.mapping("maps").items()}


def to_yaml(grants: ExtensionClass) -> str:
    """A policy file with this class alone; `read_policy` reads the same from it."""
    lines = ["classes:", f"  {_quote(grants.name)}:", f"    entry: {_quote(grants.entry)}"]
    if grants.entry != XDP_ENTRY:
        lines.append(f"    capabilities: {_list(sorted(grants.capabilities))}")
    else:
        packet = [f"{word}: {say_bytes(count)}" for word, count in (
            (READ, grants.packet_read), (WRITE, grants.packet_write)) if count]
        packet += ["resize: true"] if grants.packet_resize else []
        lines.append(f"    packet: {{{', '.join(packet)}}}" if packet else "    packet: none")
        if grants.meta:
            lines.append(f"    meta: {_list(sorted(grants.meta))}")
        if grants.context:
            lines.append(f"    context: {_list([w for w in CONTEXT if w in grants.context])}")
    if grants.helpers:
        lines.append("    helpers:")
        for name, asked in sorted(grants.helpers.items()):
            constraints = ": [" + ", ".join(f'"{one}"' for one in asked) + "]" if asked else ""
            lines.append(f"      - {name}{constraints}")
    if grants.maps:
        lines.append("    maps:")
        lines += [f"      {_quote(name)}: {_list(sorted(access))}"
                  for name, access in sorted(grants.maps.items())]
    if grants.entry == XDP_ENTRY:
        lines.append(f"    verdicts: {_list([w for w in VERDICTS if w in grants.verdicts])}")
    if grants.instructions is not None:
        lines.append(f"    instructions: {grants.instructions}")
    return "\n".join(lines) + "\n"


def _list(words: list[str]) -> str:
    return f"[{', '.join(map(_quote, words))}]"


def _quote(word: str) -> str:
    """A plain scalar where that is surely a string."""
    plain = word.replace("_", "a").replace(".", "a").isalnum() and not word[0].isdigit()
    if plain and word.lower() not in ("null", "true", "false", "yes", "no", "on", "off", "y", "n"):
        return word
    return "'" + word.replace("'", "''") + "'"
