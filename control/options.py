"""Options and verbs as data: one table feeds the parser, the help and the documentation.

A verb may be shortened as long as it stays unambiguous, as in xdp-tools.  Only the parser of the
verb that was asked for is built.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from xdp_runtime.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Option:
    """`names` is "-i --interval", or one upper-case word for an argument without a dash.

    `type` bool is a switch, and with `counted` one that counts; `many` may be given again, and
    takes all that is left where there is no dash.  A switch may have a `value`: the option that
    gets N where somebody writes --switch=N.  What is behind an option `of_others` is taken as it
    is, also where it begins with a dash.
    """

    names: str
    help: str
    metavar: str = ""
    type: Callable[[str], Any] = str
    default: Any = None
    choices: tuple[str, ...] = ()
    required: bool = False
    counted: bool = False
    many: bool = False
    hidden: bool = False
    value: str = ""
    of_others: bool = False


@dataclass(frozen=True, slots=True)
class Verb:
    """`words` is what the user types, `function` "module:name", imported when it is called.

    With `is_passed_on` the function has a parser of its own and gets what follows as it is.
    """

    words: str
    help: str
    function: str
    options: tuple[Option, ...] = ()
    text: str = ""
    is_passed_on: bool = False


class Parser(argparse.ArgumentParser):
    """Says what is wrong by an error of ours, not by leaving the process."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.values: dict[str, str] = {}  # switch: the option that takes what is behind its =
        self.of_others: set[str] = set()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words: list[str] = []
        rest = iter(args or ())
        for word in rest:
            switch, equals, value = word.partition("=")
            if word in self.of_others:
                following = next(rest, None)
                words.append(word if following is None else f"{word}={following}")
            elif equals and switch in self.values:
                words += [switch, f"{self.values[switch]}={value}"]
            else:
                words.append(word)
        return super().parse_known_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message.removeprefix("argument "), mend=f"see: {self.prog} --help")


def find_verb(argv: Sequence[str], verbs: Sequence[Verb]) -> tuple[Verb, list[str]]:
    """The verb that `argv` begins with, and what follows it.  Raises ConfigError."""
    candidates, position = list(verbs), 0
    while True:
        done = [v for v in candidates if len(v.words.split()) == position]
        if done and (len(candidates) == 1 or position == len(argv)):
            return done[0], list(argv[position:])
        said = " ".join(argv[:position])
        following = sorted({v.words.split()[position] for v in candidates})
        if position == len(argv) or argv[position].startswith("-"):
            raise ConfigError("no verb given" + (f" after {said}" if said else ""),
                              mend=f"one of: {', '.join(following)}")
        word = argv[position]
        matches = [w for w in following if w == word] or \
                  [w for w in following if w.startswith(word)]
        if len(matches) != 1:
            why = "is ambiguous" if matches else "is unknown"
            raise ConfigError(f"{said} {word}".strip(), why,
                              f"one of: {', '.join(matches or following)}")
        candidates = [v for v in candidates if v.words.split()[position] == matches[0]]
        position += 1


def build_parser(verb: Verb) -> Parser:
    parser = Parser(prog=f"xdpu {verb.words}", description=verb.help, epilog=verb.text or None,
                    allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in verb.options:
        names = option.names.split()
        settings: dict[str, Any] = {
            "help": argparse.SUPPRESS if option.hidden else option.help.replace("%", "%%")}
        if not names[0].startswith("-"):
            settings["metavar"] = names[0]
            names = [names[0].lower()]
            if option.many:
                settings["nargs"] = "*"
            elif not option.required:
                settings["nargs"] = "?"
        elif option.required:
            settings["required"] = True
        if option.type is bool:
            settings |= {"action": "count", "default": 0} if option.counted else {
                "action": "store_true"}
        else:
            settings |= {"type": option.type, "default": option.default}
            if option.many and "nargs" not in settings:
                settings |= {"action": "append", "default": []}
            if option.choices:
                settings["choices"] = option.choices
            elif option.metavar:
                settings["metavar"] = option.metavar
        parser.add_argument(*names, **settings)
        if option.value:
            parser.values[names[-1]] = option.value
        if option.of_others:
            parser.of_others.update(names)
    return parser


# ---- values --------------------------------------------------------------------------------------

def seconds(text: str) -> float:
    """A positive number."""
    value = duration(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in seconds above 0")
    return value


def duration(text: str) -> float:
    """A number of seconds, 0 for without end."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in seconds")
    return value


_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size(text: str) -> int:
    """Bytes: a number, with K, M, G or T behind it for powers of 1024."""
    digits = text.strip().upper().removesuffix("IB").removesuffix("B")
    unit = digits[-1:] if digits[-1:] in _SIZES else ""
    digits = digits[:len(digits) - len(unit)]
    if not (digits.isascii() and digits.isdigit() and len(digits) < 16):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size, such as 500M or 2G")
    return int(digits) * _SIZES[unit]


def buffer(text: str) -> int:
    """A size from 1M to 1G"""
    value = size(text)
    if not 1 << 20 <= value <= 1 << 30:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size from 1M to 1G")
    return value


def number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text, 0)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low} to {high}")
        return value

    return parse


def number_list(text: str) -> tuple[int, ...]:
    """0-3,8 -> 0, 1, 2, 3, 8"""
    out: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise argparse.ArgumentTypeError(f"{text!r} is not a list such as 0-3 or 0,2")
        span = range(int(first), int(last or first) + 1)
        if not span or len(span) > 4096:
            raise argparse.ArgumentTypeError(f"{part!r} in {text!r} is no range")
        out += span
    if len(set(out)) != len(out):
        raise argparse.ArgumentTypeError(f"{text!r} names a number twice")
    return tuple(out)


def points(text: str) -> tuple[str, ...]:
    """entry, exit, or both"""
    words = tuple(dict.fromkeys(text.split(",")))
    if not set(words) <= {"entry", "exit"}:
        raise argparse.ArgumentTypeError(f"{text!r} is none of entry, exit, entry,exit")
    return words


def queues(text: str) -> str | tuple[int, ...]:
    return "all" if text == "all" else number_list(text)


def cpus(text: str) -> str | tuple[int, ...]:
    return text if text in ("auto", "none") else number_list(text)


def port(text: str) -> str:
    """afxdp, afpacket, tap, or dpdk:DEVICE[,ARGUMENTS][;DEVICE...]; commas are the device's."""
    kinds = ("afxdp", "afpacket", "tap")
    if text not in kinds and (not text.startswith("dpdk:") or not all(text[5:].split(";"))):
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(kinds)}, dpdk:DEVICE")
    return text


def names(text: str) -> tuple[str, ...]:
    """IF,IF2"""
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name")
    if len(set(parts)) != len(parts):
        raise argparse.ArgumentTypeError(f"{text!r} names an interface twice")
    return parts


def counts(text: str) -> tuple[int, ...]:
    """1,65536,1048576 -> positive numbers"""
    try:
        values = tuple(int(part, 0) for part in text.split(","))
    except ValueError:
        values = (0,)
    if not all(0 < value <= 1 << 32 for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 1,65536")
    return values


def address(text: str) -> tuple[str, int]:
    """ADDRESS:PORT, [ADDRESS6]:PORT, or :PORT for 127.0.0.1; port 0 lets the kernel choose."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535 or (
            ":" in host and not (host[0] == "[" and host[-1] == "]")):
        raise argparse.ArgumentTypeError(f"{text!r} is no ADDRESS:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)
