"""Capabilities: what an extension class may touch, and whether a program keeps to it.

    policy = read_policy(Path("policy.yaml"))               # policy_file.py
    enforce(obj, obj.program("counter"), policy.of("observe"))

The author of a host says what can be granted at all (policy_host.py); its operator writes classes
that say what is granted.  A program bound to a class is walked by the verifier once more, and every
thing it does on any path is noted (policy_uses.py).  What no grant covers refuses it, here, before
anything is compiled: machine code knows nothing of classes, and running costs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from xdp_runtime.errors import ConfigError, VerifyError

if TYPE_CHECKING:
    from xdp_runtime.object import Object, ProgramSpec
    from xdp_runtime.policy_uses import Use, Uses
    from xdp_runtime.verifier.env import Finding
    from xdp_runtime.verifier.scalar import Scalar

ALL = 1 << 16  # bytes: more than a packet has
XDP_ENTRY = "xdp"
READ, WRITE = "read", "write"
VERDICTS = ("XDP_ABORTED", "XDP_DROP", "XDP_PASS", "XDP_TX", "XDP_REDIRECT")
CONTEXT = ("ingress_ifindex", "rx_queue_index", "egress_ifindex")
_CONSTRAINT = re.compile(r"(\w+)\s*(==|!=|<=|>=|<|>|\bin\b)\s*(.+)")
_NUMBER = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|\d+)")


@dataclass(frozen=True, slots=True)
class Constraint:
    """`name op numbers`: of an argument, by its name, or of "return".  Only "in" has several."""

    name: str
    op: str
    numbers: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} {self.op} {', '.join(map(str, self.numbers))}"

    def allows(self, number: int) -> bool:
        first = self.numbers[0]
        match self.op:
            case "==" | "in":
                return number in self.numbers
            case "!=":
                return number != first
            case "<":
                return number < first
            case "<=":
                return number <= first
            case ">":
                return number > first
            case _:
                return number >= first

    def holds(self, known: Scalar, c_type: str) -> bool:
        """For every value that `known` may be, read as a number of type s32, u32, s64 or u64."""
        low, high = {
            "u32": (known.u32min, known.u32max), "s32": (known.s32min, known.s32max),
            "u64": (known.umin, known.umax), "s64": (known.smin, known.smax)}[c_type]
        if self.op in ("<", "<=", ">", ">="):
            return self.allows(low) and self.allows(high)
        if high - low >= 1024:
            return self.op == "!=" and not low <= self.numbers[0] <= high
        wide = c_type.endswith("64")
        value, mask = (known.value, known.mask) if wide else (
            known.value & 0xFFFFFFFF, known.mask & 0xFFFFFFFF)
        ones = (1 << (64 if wide else 32)) - 1
        return all(self.allows(n) for n in range(low, high + 1) if n & ones & ~mask == value)


def parse_constraint(text: str) -> Constraint:
    """"ifindex == 3", "flags in 0, 8".  Raises ValueError."""
    found = _CONSTRAINT.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a constraint such as `ifindex == 3`")
    parts = [part.strip() for part in found[3].split(",")]
    if not all(_NUMBER.fullmatch(part) for part in parts):
        raise ValueError(f"{found[3]!r} in {text!r} is not a number")
    if len(parts) > 1 and found[2] != "in":
        raise ValueError(f"{text!r} compares with several numbers (only `in` does)")
    return Constraint(found[1], found[2], tuple(int(part, 0) for part in parts))


@dataclass(frozen=True, slots=True)
class ExtensionClass:
    """What a program at `entry` may do: what is not said here, it may not.

    `packet_read` and `packet_write` count bytes from the packet's start, ALL is all of them.
    `helpers` maps names to constraints on arguments, `maps` names to READ and WRITE.
    `instructions` is the longest path a program may have, None: any.  `capabilities` are those of
    the host that declares the entry.
    """

    name: str
    entry: str = XDP_ENTRY
    packet_read: int = 0
    packet_write: int = 0
    packet_resize: bool = False
    meta: frozenset[str] = frozenset()
    context: frozenset[str] = frozenset()
    helpers: Mapping[str, tuple[Constraint, ...]] = field(
        default_factory=lambda: MappingProxyType({}))
    maps: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    verdicts: frozenset[str] = frozenset()
    instructions: int | None = None
    capabilities: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Policy:
    """The classes of a file."""

    path: str
    classes: Mapping[str, ExtensionClass]

    def of(self, name: str | None) -> ExtensionClass:
        """The named class; without a name the only one.  Raises ConfigError."""
        have = ", ".join(self.classes)
        if name is None:
            if len(self.classes) != 1:
                raise ConfigError(self.path, "has several classes", f"--class one of: {have}")
            return next(iter(self.classes.values()))
        if name not in self.classes:
            raise ConfigError(f"class {name!r}", f"is not in {self.path}", f"it has: {have}")
        return self.classes[name]


@dataclass(frozen=True, slots=True)
class Missing:
    """A use that no grant covers.  `text` says it, `mend` is the line that would grant it."""

    use: Use
    text: str
    mend: str

    def finding(self) -> Finding:
        from xdp_runtime.verifier.env import Finding
        return Finding(self.use.insn, "policy", self.text, "", self.mend)


def covers(grants: ExtensionClass, use: Use) -> bool:
    match use.kind:
        case "packet.read":
            return use.amount <= grants.packet_read
        case "packet.write":
            return use.amount <= grants.packet_write
        case "packet.resize":
            return grants.packet_resize
        case "meta.read" | "meta.write":
            return use.kind.removeprefix("meta.") in grants.meta
        case "context":
            return use.name in grants.context
        case "helper":
            return use.name in grants.helpers
        case "map.read" | "map.write":
            return use.kind.removeprefix("map.") in grants.maps.get(use.name, ())
        case "verdict":
            return use.name in grants.verdicts
        case "instructions":
            # -1, of which no limit is known, is counted while it runs
            return grants.instructions is None or -1 <= use.amount <= grants.instructions
        case _:
            raise ValueError(use.kind)


def find_missing(grants: ExtensionClass, uses: Uses) -> list[Missing]:
    """In the order of the instructions, what the class does not grant."""
    found = [_explain(grants, use) for use in uses.all if not covers(grants, use)]
    for argument in uses.arguments:
        for constraint in grants.helpers.get(argument.helper, ()):
            if constraint.name == argument.name and not constraint.holds(
                    argument.known, argument.c_type):
                from xdp_runtime.verifier.scalar import describe
                found.append(Missing(
                    argument.use, f"class {grants.name} grants {argument.helper} only with "
                    f"{constraint}, which is not proven of this call: {argument.name} is "
                    f"{describe(argument.known)}", f"check `{constraint}` before it"))
    return found


def _explain(grants: ExtensionClass, use: Use) -> Missing:
    who = f"class {grants.name}"
    match use.kind:
        case "packet.read" | "packet.write":
            word = use.kind.removeprefix("packet.")
            granted = grants.packet_read if word == READ else grants.packet_write
            limit = f"only its first {granted} bytes" if granted else "none of it"
            far = f"up to byte {use.amount}" if use.amount < ALL else "without a limit"
            if use.note:
                far += f" ({use.note})"
            return Missing(use, f"{word}s the packet {far}, {who} grants {limit}",
                           f"grant `packet: {{{word}: {say_bytes(use.amount)}}}`")
        case "packet.resize":
            return Missing(use, f"changes the packet's size, {who} does not grant it",
                           "grant `packet: {resize: true}`")
        case "meta.read" | "meta.write":
            word = use.kind.removeprefix("meta.")
            return Missing(use, f"{word}s the packet's metadata, {who} does not grant it",
                           f"grant `meta: [{word}]`")
        case "context":
            return Missing(use, f"reads {use.name}, {who} does not grant it",
                           f"grant `context: [{use.name}]`")
        case "helper":
            return Missing(use, f"calls {use.name}, {who} does not grant it",
                           f"grant `helpers: [{use.name}]`")
        case "map.read" | "map.write":
            word = use.kind.removeprefix("map.")
            return Missing(use, f"{word}s map {use.name}, {who} does not grant it",
                           f"grant `maps: {{{use.name}: [{word}]}}`")
        case "verdict":
            how = f" ({use.note})" if use.note else ""
            return Missing(use, f"may return {use.name}{how}, {who} does not grant it",
                           f"grant `verdicts: [{use.name}]`")
        case _:
            budget = f"{who} grants {grants.instructions} instructions"
            if use.amount < 0:
                return Missing(use, f"{budget}, and no limit of this program's can be proven, nor "
                               f"can it be counted while it runs: {use.note}",
                               "do without one of the two, or grant no `instructions`")
            return Missing(use, f"{budget}, the program's longest path has {use.amount}",
                           f"grant `instructions: {use.amount}`")


def infer(name: str, uses: Uses) -> ExtensionClass:
    """The least that grants every use."""
    most = {"packet.read": 0, "packet.write": 0}
    named: dict[str, set[str]] = {
        "meta": set(), "context": set(), "helper": set(), "verdict": set()}
    maps: dict[str, set[str]] = {}
    for use in uses.all:
        section, _, word = use.kind.partition(".")
        if use.kind in most:
            most[use.kind] = max(most[use.kind], use.amount)
        elif section == "map":
            maps.setdefault(use.name, set()).add(word)
        elif section in named:
            named[section].add(use.name or word)
    return ExtensionClass(
        name, XDP_ENTRY, most["packet.read"], most["packet.write"],
        any(use.kind == "packet.resize" for use in uses.all),
        frozenset(named["meta"]), frozenset(named["context"]),
        MappingProxyType(dict.fromkeys(sorted(named["helper"]), ())),
        MappingProxyType({m: frozenset(words) for m, words in sorted(maps.items())}),
        frozenset(named["verdict"]), uses.longest if uses.longest >= 0 else None)


def grants_of(grants: ExtensionClass) -> list[tuple[str, str, str]]:
    """(kind of use, name, the grant as a policy says it), one for each thing granted."""
    out = [(f"packet.{word}", "", f"packet: {{{word}: {say_bytes(count)}}}")
           for word, count in ((READ, grants.packet_read), (WRITE, grants.packet_write)) if count]
    if grants.packet_resize:
        out.append(("packet.resize", "", "packet: {resize: true}"))
    out += [(f"meta.{word}", "", f"meta: [{word}]") for word in sorted(grants.meta)]
    out += [("context", name, f"context: [{name}]") for name in CONTEXT if name in grants.context]
    out += [("helper", name, f"helpers: [{name}]") for name in sorted(grants.helpers)]
    out += [(f"map.{word}", name, f"maps: {{{name}: [{word}]}}")
            for name, words in sorted(grants.maps.items()) for word in sorted(words)]
    out += [("verdict", name, f"verdicts: [{name}]")
            for name in VERDICTS if name in grants.verdicts]
    if grants.instructions is not None:
        out.append(("instructions", "", f"instructions: {grants.instructions}"))
    return out


def say_bytes(count: int) -> str:
    return "all" if count >= ALL else str(count)


def require_xdp(grants: ExtensionClass) -> None:
    """Raises ConfigError for a class of an entry in a process."""
    if grants.entry != XDP_ENTRY:
        raise ConfigError(f"class {grants.name}", f"is for entry {grants.entry}, and programs "
                          "cannot be bound to entries in processes yet",
                          f"a class with `entry: {XDP_ENTRY}` can be bound")


def check(obj: Object, program: ProgramSpec, grants: ExtensionClass) -> list[Missing]:
    """What the class lacks for the program and all it tail-calls.  Raises VerifyError, too, for
    a program that is not safe."""
    from xdp_runtime.policy_uses import find_uses

    require_xdp(grants)
    return find_missing(grants, find_uses(obj, program, grants.helpers))


def enforce(obj: Object, program: ProgramSpec, grants: ExtensionClass) -> int | None:
    """Raises VerifyError, with the first missing grant, unless the program keeps to its class.

    The number is an instruction budget that has to be counted while it runs (fuel.py)."""
    from xdp_runtime.policy_uses import find_uses

    require_xdp(grants)
    uses = find_uses(obj, program, grants.helpers)
    missing = find_missing(grants, uses)
    if missing:
        raise as_error(obj, missing)
    return grants.instructions if uses.longest < 0 else None


def as_error(obj: Object, missing: Sequence[Missing]) -> VerifyError:
    from xdp_runtime.verifier.report import as_error as error_of

    errors = [error_of(obj.program(one.use.program), one.finding()) for one in missing]
    first = errors[0]
    if len(errors) == 1:
        return first
    rest = len(errors) - 1
    return VerifyError(first.what, first.why,
                       f"{first.mend}; {rest} more: xdpu policy check lists them",
                       "\n".join(str(error) for error in errors), insn=first.insn)
