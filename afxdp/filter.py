"""--filter: which packets the port takes; all others go straight to the stack, in the kernel.

    tcp port 80            ip and not (icmp or src 10.0.0.0/8)         vlan 7 and udp dst port 53

The words are tcpdump's, a few of them:

    ip ip6 arp tcp udp sctp icmp icmp6          of this protocol
    vlan [ID]                                   tagged; by this outer id
    [src|dst] [host] ADDRESS[/LENGTH]           IPv4 or IPv6; net is another word for host
    [src|dst] port NUMBER                       TCP, UDP, SCTP; not in later fragments
    PROTOCOL and one of the last two in a row   both of them
    map:NAME[:FIELD,FIELD]                      in a map of the object (map_filter.py)
    not (!) and (&&) or (||) ( )                and, or: from left to right, as they come

Unlike tcpdump's, a word looks behind up to two VLAN tags without being asked.  As there, IPv6
extension headers hide what follows them, and `and` binds no closer than `or`.

A filter becomes BPF in front of the redirect program (redirect_program.py): one walk over the
headers leaves what they say on the BPF stack, then comparisons jump.
"""

from __future__ import annotations

import ipaddress
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from afxdp import map_filter
from afxdp.map_filter import KeyShape
from xdp_runtime.errors import ConfigError

# What the walk leaves on the stack, each a u64 from the frame pointer; addresses take 16 bytes
ETHERTYPE, VLAN, PROTOCOL, SOURCE_PORT, TARGET_PORT, SOURCE, TARGET = -8, -16, -24, -32, -40, -56, \
    -72
_NONE = 1 << 16  # no such field: no value of 16 bits
_IP, _IP6, _ARP = 0x0800, 0x86DD, 0x0806
_PROTOCOLS = {"tcp": (0, 6), "udp": (0, 17), "sctp": (0, 132), "icmp": (_IP, 1),
              "icmp6": (_IP6, 58)}
_ETHERTYPES = {"ip": _IP, "ip6": _IP6, "arp": _ARP}
_WORDS = {"&&": "and", "||": "or", "!": "not"}
_DIRECTIONS = {"src": (0,), "dst": (1,), "": (0, 1)}
_DEPTH_MAX = 50
_BELOW = TARGET  # what is not the walk's of the stack
_PLACES = {"src": SOURCE, "dst": TARGET, "sport": SOURCE_PORT, "dport": TARGET_PORT,
           "proto": PROTOCOL, "vlan": VLAN, "ethertype": ETHERTYPE, "family": ETHERTYPE}


@dataclass(frozen=True, slots=True)
class Field:
    """A field of 16 bits or less has this value; `present` asks only that there is one."""

    at: int
    value: int = 0
    present: bool = False


@dataclass(frozen=True, slots=True)
class Address:
    """The address at SOURCE or TARGET is in this network."""

    at: int
    network: ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class InMap:
    """The packet's key is in a map: `word` is what was written."""

    word: str


@dataclass(frozen=True, slots=True)
class Not:
    of: Node


@dataclass(frozen=True, slots=True)
class AllOf:
    of: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    of: tuple[Node, ...]


Node = Field | Address | InMap | Not | AllOf | AnyOf


# ---- from words ----------------------------------------------------------------------------------

def parse(text: str, what: str = "--filter") -> Node:
    """Raises ConfigError that says where it stops making sense."""
    reader = _Reader(text, what)
    found = reader.expression(0)
    if reader.word:
        raise reader.error("is not expected here")
    return found


class _Reader:
    def __init__(self, text: str, what: str) -> None:
        self.text, self.what = text, what
        self._words = [_WORDS.get(w, w) if w.startswith(map_filter.WORD) else
                       _WORDS.get(w.lower(), w.lower())
                       for w in re.findall(r"\(|\)|!|&&|\|\||[^\s()!&|]+|[&|]", text)]
        self._at = 0

    @property
    def word(self) -> str:
        """The next one, "" at the end."""
        return self._words[self._at] if self._at < len(self._words) else ""

    def take(self) -> str:
        word = self.word
        self._at += 1
        return word

    def error(self, why: str) -> ConfigError:
        return ConfigError(f"{self.what} {self.text!r}", f"{self.word or 'its end'} {why}",
                           "such as: tcp port 80, or: not (icmp or src 10.0.0.0/8)")

    def expression(self, depth: int) -> Node:
        found = self._one(depth)
        while self.word in ("and", "or"):
            kind: type[AllOf | AnyOf] = AllOf if self.take() == "and" else AnyOf
            found = kind((found, self._one(depth)))
        return found

    def _one(self, depth: int) -> Node:
        if depth > _DEPTH_MAX:
            raise self.error("is too deep in brackets")
        if self.word == "not":
            self.take()
            return Not(self._one(depth + 1))
        if self.word == "(":
            self.take()
            found = self.expression(depth + 1)
            if self.word != ")":
                raise self.error("stands where ) is missing")
            self.take()
            return found
        return self._test()

    def _test(self) -> Node:
        word = self.word
        if word.startswith(map_filter.WORD):
            try:
                map_filter.split(word)
            except ValueError as error:
                raise self.error(str(error)) from None
            return InMap(self.take())
        if word == "vlan":
            self.take()
            return Field(VLAN, self._number("a VLAN id", 4095)) if self.word.isdecimal() \
                else Field(VLAN, present=True)
        protocol = self._protocol()
        if protocol is not None and self.word not in ("src", "dst", "host", "net", "port"):
            return protocol
        found = self._place()
        return found if protocol is None else AllOf((protocol, found))

    def _protocol(self) -> Node | None:
        word = self.word
        if word in _ETHERTYPES:
            self.take()
            return Field(ETHERTYPE, _ETHERTYPES[word])
        if word in _PROTOCOLS:
            self.take()
            family, number = _PROTOCOLS[word]
            said = Field(PROTOCOL, number)
            return AllOf((Field(ETHERTYPE, family), said)) if family else said
        return None

    def _place(self) -> Node:
        direction = self.take() if self.word in ("src", "dst") else ""
        ends = _DIRECTIONS[direction]
        if self.word == "port":
            self.take()
            number = self._number("a port", 65535)
            parts: list[Node] = [Field((SOURCE_PORT, TARGET_PORT)[end], number) for end in ends]
        else:
            if self.word in ("host", "net"):
                self.take()
            try:
                network = ipaddress.ip_network(self.word)
            except ValueError as error:
                if re.fullmatch(r"[0-9a-f.:]+(/\d+)?", self.word):
                    raise self.error(f"is no address: {error}") from error
                raise self.error("is not a word of filters" if self.word else
                                 "comes too early") from error
            self.take()
            parts = [Address((SOURCE, TARGET)[end], network) for end in ends]
        return parts[0] if len(parts) == 1 else AnyOf(tuple(parts))

    def _number(self, what: str, highest: int) -> int:
        if not self.word.isdecimal() or int(self.word) > highest:
            raise self.error(f"is not {what}, 0 to {highest}")
        return int(self.take())


# ---- to instructions -----------------------------------------------------------------------------

_WALK = f"""
    r7 = *(u32 *)(r6 + 0)
    r8 = *(u32 *)(r6 + 4)
    r3 = {_NONE}
    *(u64 *)(r10 {ETHERTYPE}) = r3
    *(u64 *)(r10 {VLAN}) = r3
    *(u64 *)(r10 {PROTOCOL}) = r3
    *(u64 *)(r10 {SOURCE_PORT}) = r3
    *(u64 *)(r10 {TARGET_PORT}) = r3
    *(u64 *)(r10 {SOURCE}) = r3
    *(u64 *)(r10 {SOURCE + 8}) = r3
    *(u64 *)(r10 {TARGET}) = r3
    *(u64 *)(r10 {TARGET + 8}) = r3
    r2 = r7
    r2 += 14
    if r2 > r8 goto walked
    r3 = *(u16 *)(r7 + 12)
    r3 = be16 r3
    r7 += 14
    if r3 == 0x8100 goto tagged
    if r3 != 0x88a8 goto untagged
tagged:
    r2 = r7
    r2 += 4
    if r2 > r8 goto walked
    r4 = *(u16 *)(r7 + 0)
    r4 = be16 r4
    r4 &= 0xfff
    *(u64 *)(r10 {VLAN}) = r4
    r3 = *(u16 *)(r7 + 2)
    r3 = be16 r3
    r7 += 4
    if r3 == 0x8100 goto tagged_twice
    if r3 != 0x88a8 goto untagged
tagged_twice:
    r2 = r7
    r2 += 4
    if r2 > r8 goto walked
    r3 = *(u16 *)(r7 + 2)
    r3 = be16 r3
    r7 += 4
untagged:
    *(u64 *)(r10 {ETHERTYPE}) = r3
    if r3 == {_IP} goto ip
    if r3 != {_IP6} goto walked
    r2 = r7
    r2 += 40
    if r2 > r8 goto walked
    r4 = *(u8 *)(r7 + 6)
    *(u64 *)(r10 {PROTOCOL}) = r4
    r2 = *(u32 *)(r7 + 8)
    *(u32 *)(r10 {SOURCE}) = r2
    r2 = *(u32 *)(r7 + 12)
    *(u32 *)(r10 {SOURCE + 4}) = r2
    r2 = *(u32 *)(r7 + 16)
    *(u32 *)(r10 {SOURCE + 8}) = r2
    r2 = *(u32 *)(r7 + 20)
    *(u32 *)(r10 {SOURCE + 12}) = r2
    r2 = *(u32 *)(r7 + 24)
    *(u32 *)(r10 {TARGET}) = r2
    r2 = *(u32 *)(r7 + 28)
    *(u32 *)(r10 {TARGET + 4}) = r2
    r2 = *(u32 *)(r7 + 32)
    *(u32 *)(r10 {TARGET + 8}) = r2
    r2 = *(u32 *)(r7 + 36)
    *(u32 *)(r10 {TARGET + 12}) = r2
    r7 += 40
    goto transport
ip:
    r2 = r7
    r2 += 20
    if r2 > r8 goto walked
    r4 = *(u8 *)(r7 + 9)
    *(u64 *)(r10 {PROTOCOL}) = r4
    r2 = *(u32 *)(r7 + 12)
    *(u32 *)(r10 {SOURCE}) = r2
    r2 = *(u32 *)(r7 + 16)
    *(u32 *)(r10 {TARGET}) = r2
    r2 = *(u16 *)(r7 + 6)
    r2 = be16 r2
    r2 &= 0x1fff
    if r2 != 0 goto walked
    r2 = *(u8 *)(r7 + 0)
    r2 &= 15
    r2 <<= 2
    if r2 < 20 goto walked
    r7 += r2
transport:
    if r4 == 6 goto ports
    if r4 == 17 goto ports
    if r4 != 132 goto walked
ports:
    r2 = r7
    r2 += 4
    if r2 > r8 goto walked
    r3 = *(u16 *)(r7 + 0)
    r3 = be16 r3
    *(u64 *)(r10 {SOURCE_PORT}) = r3
    r3 = *(u16 *)(r7 + 2)
    r3 = be16 r3
    *(u64 *)(r10 {TARGET_PORT}) = r3
walked:
""".replace("(r10 -", "(r10 - ")


def words_of_maps(node: Node) -> list[str]:
    """Each `map:` word of a filter, once."""
    match node:
        case InMap():
            return [node.word]
        case Not():
            return words_of_maps(node.of)
        case AllOf() | AnyOf():
            return list(dict.fromkeys(word for part in node.of for word in words_of_maps(part)))
    return []


def to_assembly(node: Node, shapes: Mapping[str, KeyShape] | None = None) -> str:
    """Text for asm.py: r6 is the context; goes to `take` or `leave`.  The maps `set0`, `set1`, ...
    are those of `shapes`, by word and in that order.  Raises ConfigError without one of them."""
    lines: list[str] = []
    _Branches(lines, shapes or {}).jump(node, "take", "leave")
    return _WALK + "\n".join(lines) + "\n"


class _Branches:
    def __init__(self, lines: list[str], shapes: Mapping[str, KeyShape]) -> None:
        self._lines, self._labels, self._shapes = lines, _labels(), shapes

    def jump(self, node: Node, yes: str, no: str) -> None:
        """Every path ends with a goto."""
        match node:
            case Not():
                self.jump(node.of, no, yes)
            case AllOf() | AnyOf():
                for part in node.of[:-1]:
                    following = next(self._labels)
                    if isinstance(node, AllOf):
                        self.jump(part, following, no)
                    else:
                        self.jump(part, yes, following)
                    self._lines.append(f"{following}:")
                self.jump(node.of[-1], yes, no)
            case Field():
                sign, value = ("!=", _NONE) if node.present else ("==", node.value)
                self._lines += [f"r2 = *(u64 *)(r10 - {-node.at})",
                                f"if r2 {sign} {value} goto {yes}", f"goto {no}"]
            case Address():
                family = _IP if node.network.version == 4 else _IP6
                self._lines += [f"r2 = *(u64 *)(r10 - {-ETHERTYPE})",
                                f"if r2 != {family} goto {no}"]
                for offset, mask, value in _words(node):
                    self._lines += [f"r2 = *(u32 *)(r10 - {-node.at - offset})",
                                    f"w2 &= {mask}", f"if w2 != {value} goto {no}"]
                self._lines.append(f"goto {yes}")
            case InMap():
                if node.word not in self._shapes:
                    raise ConfigError(f"filter {node.word!r}", "looks into a map of the program, "
                                      "which only xdpu run --filter does")
                number = list(self._shapes).index(node.word)
                self._lines += [
                    map_filter.to_assembly(self._shapes[node.word], number, _PLACES, _NONE, _BELOW,
                                           next(self._labels)),
                    f"if r0 == 0 goto {no}", f"goto {yes}"]


def _labels() -> Iterator[str]:
    number = 0
    while True:
        yield f"part{number}"
        number += 1


def _words(node: Address) -> Iterator[tuple[int, int, int]]:
    """Offset, mask and value, as signed 32-bit numbers in memory order; words that say nothing are
    left out."""
    mask, value = node.network.netmask.packed, node.network.network_address.packed
    for offset in range(0, len(mask), 4):
        if any(mask[offset:offset + 4]):
            yield offset, _signed(mask[offset:offset + 4]), _signed(value[offset:offset + 4])


def _signed(word: bytes) -> int:
    return int.from_bytes(word, sys.byteorder, signed=True)
