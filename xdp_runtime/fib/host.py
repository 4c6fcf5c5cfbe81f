"""The host's forwarding tables, as the kernel states them over netlink.

An address is a number of 128 bits with the first byte of the address on top, so that IPv4
addresses and prefixes compare as IPv6 ones do.  Orders matter and are the kernel's: rules by
preference, routes as they are dumped (of one prefix the first that fits is taken).
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from enum import IntEnum

INET, INET6 = int(socket.AF_INET), int(socket.AF_INET6)
MAIN, LOCAL, DEFAULT = 254, 255, 253
BITS = 128


class RouteType(IntEnum):
    """RTN_*"""

    UNICAST = 1
    LOCAL = 2
    BROADCAST = 3
    ANYCAST = 4
    MULTICAST = 5
    BLACKHOLE = 6
    UNREACHABLE = 7
    PROHIBIT = 8
    THROW = 9


class Action(IntEnum):
    """FR_ACT_*"""

    TO_TABLE = 1
    GOTO = 2
    NOP = 3
    BLACKHOLE = 6
    UNREACHABLE = 7
    PROHIBIT = 8


def key_of(address: bytes | bytearray) -> int:
    """4 or 16 bytes as in a packet -> a number of 128 bits."""
    return int.from_bytes(address.ljust(16, b"\0"), "big")


def bytes_of(key: int, family: int) -> bytes:
    return key.to_bytes(16, "big")[: 4 if family == INET else 16]


def covers(prefix: int, length: int, address: int) -> bool:
    return (prefix ^ address) >> (BITS - length) == 0


@dataclass(frozen=True, slots=True)
class Interface:
    """`inet` and `inet6`: has the protocol; `mtu6` is IPv6's; `master` is the VRF it belongs to;
    `vrf_table`, of a VRF, its table; `keyless`: its neighbours have no address (loopback,
    point-to-point); `header_bytes` is hard_header_len."""

    ifindex: int
    mtu: int = 1500
    mac: bytes = bytes(6)
    inet: bool = True
    forwarding: bool = False
    inet6: bool = True
    forwarding6: bool = False
    mtu6: int = 1500
    keyless: bool = False
    header_bytes: int = 14
    master: int = 0
    vrf_table: int = 0
    group: int = 0
    own_sources6: bool = False  # use_oif_addrs_only


@dataclass(frozen=True, slots=True)
class Address6:
    """A source address that IPv6 may choose, as ipv6_get_saddr_eval sees it."""

    ifindex: int
    key: int
    length: int
    preferred: bool = True
    private: bool = True  # what rule 7 prefers: temporary or not, by use_tempaddr
    optimistic: bool = False


@dataclass(frozen=True, slots=True)
class Label:
    """An entry of `ip addrlabel`."""

    key: int
    length: int
    ifindex: int
    label: int


@dataclass(frozen=True, slots=True)
class Neighbour:
    """`valid`: in a state of NUD_VALID."""

    ifindex: int
    family: int
    key: int
    mac: bytes
    valid: bool = True


@dataclass(frozen=True, slots=True)
class Leg:
    """A nexthop.  `gateway_family` 0 has none; `source` is the IPv4 address it would send from;
    `bound` ends its share of the hashes, -1 is none; `headroom` is what its encapsulation takes
    off the MTU."""

    ifindex: int
    gateway_family: int = 0
    gateway: int = 0
    bound: int = -1
    dead: bool = False
    encapsulates: bool = False
    source: int = 0
    headroom: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    """`mtu` is the route's own, `mtu_locked` says whether discovery may not change it.
    `preference` is the router's (RFC 4191) in the form 1 low, 2 medium, 3 high.
    `by_object`: goes through a nexthop object; `group`: through a group of them."""

    family: int
    table: int
    key: int
    length: int
    legs: tuple[Leg, ...]
    type: int = RouteType.UNICAST
    dscp: int = 0
    metric: int = 0
    source_key: int = 0  # IPv6: only packets from this prefix
    source_length: int = 0
    preferred_source: int | None = None
    mtu: int = 0
    mtu_locked: bool = False
    dead: bool = False
    preference: int = 2
    by_object: bool = False
    group: bool = False


@dataclass(frozen=True, slots=True)
class Ports:
    """A range, or a value under a mask.  All zero: any."""

    low: int = 0
    high: int = 0
    mask: int = 0

    def match(self, port: int) -> bool:
        if self.mask:
            return (self.low ^ port) & self.mask == 0
        return not self.high or self.low <= port <= self.high


@dataclass(frozen=True, slots=True)
class Rule:
    """An `ip rule`.  Interfaces are indices, -1 one that does not exist, 0 any."""

    family: int
    preference: int
    action: int = Action.TO_TABLE
    table: int = 0
    iif: int = 0
    oif: int = 0
    mark: int = 0
    mark_mask: int = 0
    source_key: int = 0
    source_length: int = 0
    key: int = 0
    length: int = 0
    tos: int = 0  # IPv4: compared with the three bits that TOS had
    dscp: int = 0  # in place, so a multiple of 4
    dscp_mask: int = 0
    flow_label: int = 0
    flow_label_mask: int = 0
    protocol: int = 0
    sports: Ports = Ports()
    dports: Ports = Ports()
    vrf: bool = False  # l3mdev
    invert: bool = False
    never: bool = False  # for tunnels, or for users other than root: no packet here is one's
    target: int = 0  # preference to go to
    suppress_length: int = -1
    suppress_group: int = -1


@dataclass(frozen=True, slots=True)
class Settings:
    """Of the namespace: /proc/sys/net/ipv{4,6}/.  `seed` 0: the kernel's own, which is secret."""

    hash_policy: int = 0
    hash_fields: int = 7
    hash_policy6: int = 0
    hash_fields6: int = 7
    seed: int = 0
    use_neighbours: bool = False
    forward_by_route_mtu: bool = False
    # what is set for all interfaces, as well as by each
    route_localnet: bool = False
    optimistic_dad: bool = False
    use_optimistic: bool = False


STANDARD_RULES = (
    Rule(INET, 0, table=LOCAL), Rule(INET, 32766, table=MAIN), Rule(INET, 32767, table=DEFAULT),
    Rule(INET6, 0, table=LOCAL), Rule(INET6, 32766, table=MAIN),
)


@dataclass(frozen=True, slots=True)
class Host:
    """`one_table`: as long as no rule was ever changed, IPv4 keeps main and local as one table."""

    interfaces: tuple[Interface, ...] = ()
    routes: tuple[Route, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    rules: tuple[Rule, ...] = STANDARD_RULES
    addresses6: tuple[Address6, ...] = ()
    labels: tuple[Label, ...] = ()
    settings: Settings = field(default_factory=Settings)
    one_table: bool = True

    def rules_of(self, family: int) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.rules if rule.family == family)

    def plain(self, family: int) -> bool:
        """Is the kernel's short cut taken, past the rules?"""
        if family == INET:
            return self.one_table
        return self.rules_of(INET6) == tuple(r for r in STANDARD_RULES if r.family == INET6)


def shares(weights: list[int]) -> list[int]:
    """The bounds of legs with these weights, 0 for one that gets nothing: fib_rebalance."""
    total, so_far, bounds = sum(weights), 0, []
    for weight in weights:
        so_far += weight
        bounds.append((((so_far << 31) + total // 2) // total) - 1 if weight else -1)
    return bounds
