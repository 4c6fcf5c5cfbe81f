"""The host's interfaces, rules, routes and neighbours, read over netlink into a Host.

`stand_ins` maps an interface that stands in for another to that one (a run's TAP to its
interface): what is written on the TAP is then told as the interface's own, as before the takeover,
and the TAP is not told at all.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from dataplane import netlink as nl
from dataplane.fibattrs import Attrs, StandIns, attrs, s32, u32
from dataplane.fibroutes import Objects, read_routes
from xdp_runtime.fib.host import (
    INET,
    INET6,
    LOCAL,
    MAIN,
    STANDARD_RULES,
    Action,
    Address6,
    Host,
    Interface,
    Label,
    Neighbour,
    Ports,
    Route,
    RouteType,
    Rule,
    Settings,
    key_of,
)

RTM_GETADDRLABEL = 74
_FAMILIES = (INET, INET6)
_IFF_LOOPBACK, _IFF_POINTOPOINT = 0x8, 0x10
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_NUD_VALID = 0x80 | 0x40 | 0x02 | 0x10 | 0x04 | 0x08
_TENTATIVE, _OPTIMISTIC, _DEPRECATED, _SECONDARY = 0x40, 0x04, 0x20, 0x01
_PROC = Path("/proc/sys/net")


def read_host(net: nl.Netlink, stand_ins: StandIns | None = None) -> Host:
    """Everything, from the calling thread's network namespace.  Raises NetlinkError."""
    stands = dict(stand_ins or {})
    settings = read_settings()
    links = _Links(net, stands, settings)
    sources = _Sources(net, links, stands)
    routes = tuple(read_routes(net, sources.of, Objects(net, sources.of, stands), stands))
    rules = tuple(_rules(net, links))
    return Host(tuple(links.interfaces.values()), routes, tuple(_neighbours(net, stands)), rules,
                tuple(sources.addresses6), tuple(_labels(net)), settings,
                _one_table(rules, routes))


def read_neighbours(net: nl.Netlink, host: Host, stand_ins: StandIns) -> Host:
    """The same host with its neighbours of now."""
    return replace(host, neighbours=tuple(_neighbours(net, dict(stand_ins))))


# --- interfaces -----------------------------------------------------------------------------------
class _Links:
    """Interfaces by index, and indices by name."""

    def __init__(self, net: nl.Netlink, stands: StandIns, settings: Settings) -> None:
        self.interfaces: dict[int, Interface] = {}
        self.by_name: dict[str, int] = {}
        # route_localnet, use_tempaddr >= 2, optimistic addresses are as good as others
        self.source_rules: dict[int, tuple[bool, bool, bool]] = {}
        self._settings = settings
        masters: dict[int, int] = {}
        for body in net.dump(nl.RTM_GETLINK, bytes(16)):
            _, kind, index, flags, _ = struct.unpack_from("=BxHiII", body)
            found = attrs(body[16:])
            self.by_name[found[3].rstrip(b"\0").decode()] = index
            masters[index] = u32(found.get(10))
            self._add(index, kind, flags, found)
        for index, master in masters.items():
            vrf = self.interfaces.get(master)
            if vrf is not None and vrf.vrf_table:
                self.interfaces[index] = replace(self.interfaces[index], master=master)
        for other, index in stands.items():
            if other in self.interfaces and index in self.interfaces:
                self._merge(self.interfaces.pop(other), index)

    def _add(self, index: int, kind: int, flags: int, found: Attrs) -> None:
        info = attrs(found.get(18, b""))
        data = attrs(info.get(2, b""))
        families = attrs(found.get(26, b""))
        four, six = (attrs(families.get(family, b"")) for family in _FAMILIES)
        conf4, conf6 = four.get(1, b""), six.get(2, b"")
        ethernet = kind in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK)
        every = self._settings
        optimistic = ((every.optimistic_dad or _value(conf6, _OPTIMISTIC_DAD) != 0)
                      and (every.use_optimistic or _value(conf6, _USE_OPTIMISTIC) != 0))
        self.source_rules[index] = (every.route_localnet or _value(conf4, 25) != 0,
                                    _value(conf6, 10) >= 2, optimistic)
        self.interfaces[index] = Interface(
            index, u32(found.get(4)), found.get(1, b"")[:6].ljust(6, b"\0"),
            bool(four), _value(conf4, 0) != 0, bool(six), _value(conf6, 0) != 0, _value(conf6, 2),
            bool(flags & (_IFF_LOOPBACK | _IFF_POINTOPOINT)), 14 if ethernet else 0, 0,
            u32(data.get(1)) if info.get(1) == b"vrf\0" else 0, u32(found.get(27)),
            _value(conf6, _USE_OIF_ADDRS_ONLY) != 0)

    def _merge(self, other: Interface, index: int) -> None:
        own = self.interfaces[index]
        self.source_rules[index] = self.source_rules[other.ifindex]
        self.interfaces[index] = replace(
            own, inet=other.inet, forwarding=other.forwarding, inet6=other.inet6,
            forwarding6=other.forwarding6, mtu6=other.mtu6, own_sources6=other.own_sources6)


_OPTIMISTIC_DAD, _USE_OPTIMISTIC, _USE_OIF_ADDRS_ONLY = 23, 34, 37  # DEVCONF_*


def _value(conf: bytes, at: int) -> int:
    """A setting of an interface, by its place in IFLA_INET_CONF or IFLA_INET6_CONF."""
    return s32(conf[4 * at : 4 * at + 4] or None, 0)


# --- addresses ------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class _Address4:
    index: int
    local: int
    peer: int
    mask: int
    scope: int
    secondary: bool


class _Sources:
    """The addresses that packets would be sent from."""

    def __init__(self, net: nl.Netlink, links: _Links, stands: StandIns) -> None:
        self.links = links
        self.addresses4: list[_Address4] = []
        self.addresses6: list[Address6] = []
        self._found: dict[tuple[int, int, int], int] = {}
        for body in net.dump(nl.RTM_GETADDR, bytes(8)):
            family, length, flags, scope, index = struct.unpack_from("=BBBBI", body)
            found = attrs(body[8:])
            flags = u32(found[8]) if 8 in found else flags
            index = stands.get(index, index)
            local = found.get(2) or found.get(1)
            if local is None or index not in links.interfaces:
                continue
            key = key_of(local)
            if family == INET:
                mask = (1 << 128) - (1 << 128 - length)
                self.addresses4.append(_Address4(index, key, key_of(found.get(1, local)), mask,
                                                 scope, bool(flags & _SECONDARY)))
            elif family == INET6 and (flags & _OPTIMISTIC or not flags & _TENTATIVE):
                always = key == 1 or key >> 32 in (0, 0xFFFF)
                avoided = _DEPRECATED if links.source_rules[index][2] \
                    else _DEPRECATED | _OPTIMISTIC
                private = bool(flags & _SECONDARY) == links.source_rules[index][1]
                self.addresses6.append(Address6(
                    index, key, length, always or not flags & avoided,
                    private, bool(flags & _OPTIMISTIC)))
        order = list(links.interfaces)
        self.addresses6.sort(key=lambda each: order.index(each.ifindex))

    def of(self, index: int, gateway: int, scope: int) -> int:
        """inet_select_addr: the IPv4 address for what goes out there, 0: none."""
        wanted = index, gateway, scope
        if wanted not in self._found:
            self._found[wanted] = self._select(*wanted)
        return self._found[wanted]

    def _select(self, index: int, gateway: int, scope: int) -> int:
        gateway &= 0xFFFFFFFF << 96
        highest = 253 if self.links.source_rules.get(index, (False,))[0] else 254
        first = 0
        for each in self.addresses4:
            if each.index != index or each.secondary or min(each.scope, highest) > scope:
                continue
            if not gateway or not (gateway ^ each.peer) & each.mask:
                return each.local
            first = first or each.local
        if first:
            return first
        interfaces = self.links.interfaces
        own = interfaces.get(index)
        vrf = (own.ifindex if own.vrf_table else own.master) if own else 0
        order = [vrf] * bool(vrf) + [
            each.ifindex for each in interfaces.values()
            if (each.ifindex if each.vrf_table else each.master) == vrf]
        return next((each.local for at in order for each in self.addresses4
                     if each.index == at and not each.secondary and each.scope != 253
                     and each.scope <= scope), 0)


# --- neighbours, rules, labels --------------------------------------------------------------------
def _neighbours(net: nl.Netlink, stands: StandIns) -> Iterator[Neighbour]:
    known: dict[tuple[int, int, int], Neighbour] = {}
    for family in _FAMILIES:
        for body in net.dump(nl.RTM_GETNEIGH, struct.pack("=BxxxiHBB", family, 0, 0, 0, 0)):
            of, index, state, _, _ = struct.unpack_from("=BxxxiHBB", body)
            found = attrs(body[12:])
            where = stands.get(index, index), of, key_of(found.get(1, b""))
            if of == family and (where not in known or index in stands):
                known[where] = Neighbour(*where, found.get(2, b"")[:6].ljust(6, b"\0"),
                                         bool(state & _NUD_VALID))
    yield from known.values()


def _rules(net: nl.Netlink, links: _Links) -> Iterator[Rule]:
    for family in _FAMILIES:
        for body in net.dump(nl.RTM_GETRULE, struct.pack("=B11x", family)):
            if body[0] == family:
                yield _rule(body, links)


def _rule(body: bytes, links: _Links) -> Rule:
    family, length, from_length, tos, table, _, _, action, flags = struct.unpack_from(
        "=BBBBBBBBI", body)
    found = attrs(body[12:])

    def interface(kind: int) -> int:
        name = found.get(kind)
        return 0 if name is None else links.by_name.get(name.rstrip(b"\0").decode(), -1)

    users = struct.unpack("=II", found[20]) if 20 in found else (0, 0)
    six = family == INET6
    full = 25 in found
    dscp = found[25][0] << 2 if full else tos & 0xFC if six else 0
    mask = (found[30][0] << 2 if 30 in found else 0xFC) if full else 0xFC if six and tos else 0
    return Rule(
        family, u32(found.get(6)), action, u32(found[15]) if 15 in found else table,
        interface(3), interface(17), u32(found.get(10)), u32(found.get(16)),
        key_of(found.get(2, b"")), from_length, key_of(found.get(1, b"")), length,
        0 if six or full else tos & 0xFC, dscp, mask,
        int.from_bytes(found.get(26, b""), "big"), int.from_bytes(found.get(27, b""), "big"),
        found.get(22, b"\0")[0], _ports(found, 23, 28), _ports(found, 24, 29),
        found.get(19, b"\0")[0] != 0, bool(flags & 2),
        any(found.get(12, b"")) or users[0] > 0, u32(found.get(4)),
        s32(found.get(14), -1), s32(found.get(13), -1))


def _ports(found: Attrs, kind: int, mask: int) -> Ports:
    if kind not in found:
        return Ports()
    low, high = struct.unpack("=HH", found[kind])
    bits = int.from_bytes(found.get(mask, b""), "little")
    return Ports(low, high, bits)


def _labels(net: nl.Netlink) -> Iterator[Label]:
    for body in net.dump(RTM_GETADDRLABEL, struct.pack("=B11x", INET6)):
        _, length, _, index, _ = struct.unpack_from("=BxBBII", body)
        found = attrs(body[12:])
        yield Label(key_of(found.get(1, b"")), length, index, u32(found.get(2)))


# --- settings -------------------------------------------------------------------------------------
def read_settings() -> Settings:
    def value(name: str, default: int) -> int:
        with suppress(OSError, ValueError):  # a kernel that has not got it
            return int((_PROC / name).read_text(), 0)
        return default

    return Settings(
        value("ipv4/fib_multipath_hash_policy", 0), value("ipv4/fib_multipath_hash_fields", 7),
        value("ipv6/fib_multipath_hash_policy", 0), value("ipv6/fib_multipath_hash_fields", 7),
        value("ipv4/fib_multipath_hash_seed", 0),
        value("ipv4/fib_multipath_use_neigh", 0) != 0, value("ipv4/ip_forward_use_pmtu", 0) != 0,
        value("ipv4/conf/all/route_localnet", 0) != 0,
        value("ipv6/conf/all/optimistic_dad", 0) != 0,
        value("ipv6/conf/all/use_optimistic", 0) != 0)


def _one_table(rules: tuple[Rule, ...], routes: tuple[Route, ...]) -> bool:
    """Whether IPv4's main and local routes are in one trie.  The kernel parts them when first a
    rule is changed, and for ever.  It says so nowhere, but counts what is in each."""
    standard = tuple(r for r in STANDARD_RULES if r.family == INET)
    if tuple(r for r in rules if r.family == INET) != standard:
        return False
    main, local = (sum(r.family == INET and r.table == table for r in routes)
                   for table in (MAIN, LOCAL))
    counted = _prefixes(Path("/proc/thread-self/net/fib_triestat").read_text)
    return not main or counted is None or counted != local


def _prefixes(read: Callable[[], str]) -> int | None:
    """How many the local table has, None: not told."""
    try:
        text = read()
    except OSError:  # a kernel without CONFIG_PROC_FS
        return None
    _, _, local = text.partition("\nLocal:\n")
    line = next((line for line in local.splitlines() if "Prefixes:" in line), None)
    return None if line is None else int(line.split()[1])


__all__ = ["Action", "RouteType", "StandIns", "read_host", "read_neighbours", "read_settings"]
