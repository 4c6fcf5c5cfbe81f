"""Hosts: what their author says can be granted, as YAML or out of the binary itself.

    host: web                       # any name
    state:                          # what there is to read and write
      readPid: {variable: web_pid, type: pid_t, access: [read]}
      readRequest: {struct: web_request_t, members: [method, uri], access: [read]}
    functions:                      # what may be called
      now: {symbol: web_now, returns: time_t, require: [return > 0]}
    entries:                        # where programs may hook in
      processBegin: {symbol: web_process_request, arguments: {request: web_request_t *}}

`require` of an argument binds the extension; of `return` it is the host's promise.  Whether the
binary agrees is policy_binary.py's.  XDP_HOST is this for the dataplane.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from xdp_runtime.policy import CONTEXT, READ, WRITE, XDP_ENTRY, Constraint, parse_constraint
from xdp_runtime.policy_yaml import Value, read_yaml

RETURN = "return"


@dataclass(frozen=True, slots=True)
class State:
    """A variable of the host, or members of a struct that entries and functions hand out."""

    name: str
    access: frozenset[str]
    variable: str = ""
    struct: str = ""
    members: tuple[str, ...] = ()  # none: all
    type: str = ""  # of the variable


@dataclass(frozen=True, slots=True)
class Function:
    """`arguments` are (name, C type)."""

    name: str
    symbol: str
    arguments: tuple[tuple[str, str], ...] = ()
    returns: str = "void"
    require: tuple[Constraint, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    name: str
    symbol: str
    arguments: tuple[tuple[str, str], ...] = ()
    returns: str = "void"


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    state: Mapping[str, State] = field(default_factory=lambda: MappingProxyType({}))
    functions: Mapping[str, Function] = field(default_factory=lambda: MappingProxyType({}))
    entries: Mapping[str, Entry] = field(default_factory=lambda: MappingProxyType({}))
    lines: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}), compare=False)

    def capabilities(self) -> tuple[str, ...]:
        return (*self.state, *self.functions)


def _xdp_host() -> Host:
    """Helpers, maps and verdicts have sections of their own in a class; the rest is state."""
    state = [
        State("packet.read", frozenset({READ}), "data"),
        State("packet.write", frozenset({WRITE}), "data"),
        State("packet.resize", frozenset({WRITE}), "data_end"),
        State("meta.read", frozenset({READ}), "data_meta"),
        State("meta.write", frozenset({WRITE}), "data_meta"),
        *(State(name, frozenset({READ}), name, type="__u32") for name in CONTEXT)]
    entry = Entry(XDP_ENTRY, XDP_ENTRY, (("ctx", "struct xdp_md *"),), "enum xdp_action")
    return Host("dataplane", MappingProxyType({one.name: one for one in state}),
                entries=MappingProxyType({XDP_ENTRY: entry}))


XDP_HOST = _xdp_host()


def read_host(path: Path) -> Host:
    """Raises ConfigError."""
    return parse_host(read_yaml(path))


def parse_host(top: Value) -> Host:
    keys = top.mapping("a host", ("host", "state", "functions", "entries"))
    if "host" not in keys:
        raise top.error("has no name", "add `host: NAME`")
    lines: dict[str, int] = {}

    def section(key: str) -> dict[str, Value]:
        found = keys[key].mapping(key) if key in keys else {}
        for name, value in found.items():
            if name in lines:
                raise value.error(f"{name!r} is declared twice", f"also in line {lines[name]}")
            if name == XDP_ENTRY:
                raise value.error(f"{XDP_ENTRY!r} is the dataplane's own entry")
            lines[name] = value.line
        return found

    state = {name: _state(name, value) for name, value in section("state").items()}
    functions = {name: _function(name, value) for name, value in section("functions").items()}
    entries = {name: _entry(name, value) for name, value in section("entries").items()}
    return Host(keys["host"].text("host"), MappingProxyType(state), MappingProxyType(functions),
                MappingProxyType(entries), MappingProxyType(lines))


def _state(name: str, value: Value) -> State:
    what = f"state {name}"
    keys = value.mapping(what, ("variable", "type", "struct", "members", "access"))
    if ("variable" in keys) == ("struct" in keys):
        raise value.error(f"{what} needs either a variable or a struct")
    if "access" not in keys:
        raise value.error(f"{what} has no access", "add `access: [read]`")
    access = frozenset(word for word, _ in keys["access"].words("access", (READ, WRITE)))
    if not access:
        raise keys["access"].error(f"{what} grants nothing")
    if "variable" in keys:
        if "members" in keys:
            raise keys["members"].error("members are those of a struct")
        if "type" not in keys:
            raise value.error(f"{what} has no type", "add `type: int`, or what it is")
        return State(name, access, keys["variable"].text("variable"),
                     type=keys["type"].text("type"))
    if "type" in keys:
        raise keys["type"].error("a type goes with a variable")
    members = tuple(word for word, _ in keys["members"].words("members")) if (
        "members" in keys) else ()
    return State(name, access, struct=keys["struct"].text("struct"), members=members)


def _function(name: str, value: Value) -> Function:
    what = f"function {name}"
    keys = value.mapping(what, ("symbol", "arguments", "returns", "require"))
    symbol, arguments, returns = _prototype(what, value, keys)
    require = tuple(one.parsed(parse_constraint, what) for one in keys["require"].items(what)) if (
        "require" in keys) else ()
    known = [argument for argument, _ in arguments]
    for one in require:
        if one.name == RETURN and returns == "void":
            raise keys["require"].error(f"{what} returns nothing to constrain")
        if one.name != RETURN and one.name not in known:
            raise keys["require"].error(f"{what} has no argument {one.name!r}",
                                        f"it has: {', '.join([*known, RETURN])}")
    return Function(name, symbol, arguments, returns, require)


def _entry(name: str, value: Value) -> Entry:
    keys = value.mapping(f"entry {name}", ("symbol", "arguments", "returns"))
    return Entry(name, *_prototype(f"entry {name}", value, keys))


def _prototype(what: str, value: Value, keys: dict[str, Value]
               ) -> tuple[str, tuple[tuple[str, str], ...], str]:
    if "symbol" not in keys:
        raise value.error(f"{what} has no symbol")
    arguments = tuple((name, one.text(f"argument {name}")) for name, one
                      in keys["arguments"].mapping("arguments").items()) if (
        "arguments" in keys) else ()
    returns = keys["returns"].text("returns") if "returns" in keys else "void"
    return keys["symbol"].text("symbol"), arguments, returns


def to_yaml(host: Host) -> str:
    """What `read_host` reads the same from."""
    import yaml

    def prototype(one: Function | Entry) -> dict[str, object]:
        out: dict[str, object] = {"symbol": one.symbol}
        if one.arguments:
            out["arguments"] = dict(one.arguments)
        if one.returns != "void":
            out["returns"] = one.returns
        return out

    tree: dict[str, object] = {"host": host.name}
    if host.state:
        tree["state"] = {
            one.name: ({"variable": one.variable, "type": one.type} if one.variable else
                       {"struct": one.struct} | ({"members": list(one.members)} if one.members
                                                 else {}))
            | {"access": sorted(one.access)} for one in host.state.values()}
    if host.functions:
        tree["functions"] = {
            one.name: prototype(one) | ({"require": [str(c) for c in one.require]}
                                        if one.require else {})
            for one in host.functions.values()}
    if host.entries:
        tree["entries"] = {one.name: prototype(one) for one in host.entries.values()}
    return str(yaml.safe_dump(tree, sort_keys=False, default_flow_style=None, width=100))
