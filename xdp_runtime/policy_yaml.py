"""YAML read strictly: every value knows its line, and what is not expected is named.

No anchors, no duplicate keys, no tags; what a schema does not take raises ConfigError with file
and line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from xdp_runtime.errors import ConfigError

MAX_BYTES = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Value:
    """A node: `data` is None, bool, int, str, a list of Values, or a dict of them by key."""

    path: str
    line: int
    data: object

    def error(self, why: str, mend: str = "") -> ConfigError:
        return ConfigError(f"{self.path}:{self.line}", why, mend)

    def mapping(self, what: str, known: tuple[str, ...] = ()) -> dict[str, Value]:
        """`known`: the keys there may be; any, if there are none."""
        if not isinstance(self.data, dict):
            raise self.error(f"{what} is {self.kind()}, must be a mapping")
        for key, value in self.data.items():
            if known and key not in known:
                raise value.error(f"{what} has no key {key!r}", f"it may have: {', '.join(known)}")
        return self.data

    def items(self, what: str) -> list[Value]:
        """A list; one scalar stands for a list of it."""
        if isinstance(self.data, list):
            return self.data
        if isinstance(self.data, str):
            return [self]
        raise self.error(f"{what} is {self.kind()}, must be a list")

    def words(self, what: str, known: tuple[str, ...] = ()) -> Iterator[tuple[str, Value]]:
        """The strings of a list, each once and one of `known`, if there are any; `none` is []."""
        if self.data == "none":
            return
        seen = set()
        for item in self.items(what):
            text = item.text(f"an item of {what}")
            if known and text not in known:
                raise item.error(f"{what}: {text!r} is not known",
                                 f"one of: {', '.join(known)}")
            if text in seen:
                raise item.error(f"{what} has {text} twice")
            seen.add(text)
            yield text, item

    def text(self, what: str) -> str:
        if not isinstance(self.data, str):
            raise self.error(f"{what} is {self.kind()}, must be a word")
        return self.data

    def number(self, what: str, low: int, high: int) -> int:
        if isinstance(self.data, bool) or not isinstance(self.data, int):
            raise self.error(f"{what} is {self.kind()}, must be a number")
        if not low <= self.data <= high:
            raise self.error(f"{what} is {self.data}, must be from {low} to {high}")
        return self.data

    def flag(self, what: str) -> bool:
        if not isinstance(self.data, bool):
            raise self.error(f"{what} is {self.kind()}, must be true or false")
        return self.data

    def parsed(self, parse: Callable[[str], T], what: str) -> T:
        """A string through `parse`, whose ValueError tells."""
        text = self.text(what)
        try:
            return parse(text)
        except ValueError as error:
            raise self.error(f"{what}: {error}") from None

    def kind(self) -> str:
        match self.data:
            case None:
                return "empty"
            case bool():
                return "true" if self.data else "false"
            case int():
                return f"the number {self.data}"
            case str():
                return f"the word {self.data!r}"
            case list():
                return "a list"
            case _:
                return "a mapping"


def read_yaml(path: Path) -> Value:
    """Raises ConfigError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        text = raw.decode()
    except OSError as error:
        raise ConfigError(str(path), error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), f"is not UTF-8 text, at byte {error.start}") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(str(path), f"is larger than {MAX_BYTES} bytes")
    return parse_yaml(text, str(path))


def parse_yaml(text: str, path: str) -> Value:
    """Raises ConfigError."""
    import yaml

    try:
        node = yaml.compose(text, yaml.SafeLoader)
        if node is None:
            return Value(path, 1, None)
        return _value(node, path, set())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark is not None else path
        raise ConfigError(where, f"is not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(path, f"is not YAML: {str(error).splitlines()[0]}") from error
    except RecursionError:
        raise ConfigError(path, "nests too deep") from None


def _value(node: object, path: str, seen: set[int]) -> Value:
    import yaml

    assert isinstance(node, yaml.Node)
    line = node.start_mark.line + 1
    if id(node) in seen:
        raise ConfigError(f"{path}:{line}", "is used twice, by an anchor and an alias",
                          "write it out")
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        out: dict[str, Value] = {}
        for key_node, value_node in node.value:
            key = _value(key_node, path, seen)
            if not isinstance(key.data, str):
                raise key.error(f"a key is {key.kind()}, must be a word")
            if key.data in out:
                raise key.error(f"key {key.data!r} is there twice")
            value = _value(value_node, path, seen)
            out[key.data] = Value(path, key.line, value.data)
        return Value(path, line, out)
    if isinstance(node, yaml.SequenceNode):
        return Value(path, line, [_value(item, path, seen) for item in node.value])
    assert isinstance(node, yaml.ScalarNode)
    return Value(path, line, _scalar(node, path, line))


def _scalar(node: object, path: str, line: int) -> object:
    import yaml

    assert isinstance(node, yaml.ScalarNode)
    kind, text = node.tag.rpartition(":")[2], str(node.value)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() in ("true", "yes", "on")
    if kind == "int":
        try:
            return int(text.replace("_", ""), 0)
        except ValueError:
            raise ConfigError(f"{path}:{line}", f"{text!r} is not a number here") from None
    if kind in ("str", "float", "timestamp", "merge", "value"):
        return text
    raise ConfigError(f"{path}:{line}", f"tag {node.tag!r} is not taken")
