"""The host's routes and nexthop objects, read over netlink (fibread.py)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import replace

from dataplane import netlink as nl
from dataplane.fibattrs import Attrs, StandIns, attrs, s32, u16, u32
from xdp_runtime.fib.host import INET, INET6, Leg, Route, key_of, shares

RTM_GETNEXTHOP = 106
_CLONED, _NEXTHOP_DEAD = 0x200, 1
# interface, gateway, scope -> the IPv4 address that packets are sent from, 0: none
SourceOf = Callable[[int, int, int], int]


class Objects:
    """Nexthop objects (`ip nexthop`).  Routes name theirs, and say no more of it where
    net.ipv4.nexthop_compat_mode is 0.  One of IPv4 remembers the source that fitted its own scope
    when it was made (nh_create_ipv4), not the route's."""

    def __init__(self, net: nl.Netlink, source_of: SourceOf, stands: StandIns) -> None:
        self._net, self._source_of, self._stands = net, source_of, stands
        self._legs: dict[int, Leg] = {}
        self._groups: dict[int, list[tuple[int, int]]] = {}  # (member, weight)
        self._read = False

    def of(self, number: int) -> list[tuple[Leg, int]]:
        """Its legs, each with its weight; one that swallows packets has none."""
        if not self._read:
            for body in self._net.dump(RTM_GETNEXTHOP, bytes(8)):
                self._note(body[0], body[1], attrs(body[8:]))
            self._read = True
        if number in self._groups:
            return [(self._legs[member], weight) for member, weight in self._groups[number]
                    if member in self._legs]
        return [(self._legs[number], 1)] if number in self._legs else []

    def is_group(self, number: int) -> bool:
        return number in self._groups

    def _note(self, family: int, scope: int, found: Attrs) -> None:
        number, index = u32(found.get(1)), u32(found.get(5))
        index = self._stands.get(index, index)
        if 2 in found:  # struct nexthop_grp: id, weight - 1, its high byte
            self._groups[number] = [(member, (high << 8 | low) + 1) for member, low, high
                                    in struct.iter_unpack("=IBB2x", found[2])]
        elif index:
            gateway = key_of(found[6]) if 6 in found else 0
            self._legs[number] = Leg(
                index, family if 6 in found else 0, gateway,
                encapsulates=u16(found.get(7)) != 0,
                source=self._source_of(index, gateway, max(scope - 1, 0)) if family == INET else 0,
                headroom=_headroom(found.get(7), found.get(8)))


def read_routes(net: nl.Netlink, source_of: SourceOf, objects: Objects,
            stands: StandIns) -> Iterator[Route]:
    for family in (INET, INET6):
        for body in net.dump(nl.RTM_GETROUTE, struct.pack("=BBBBBBBBI", family, *[0] * 8)):
            route = _route(body, source_of, objects, stands)
            if route is not None and route.family == family:
                yield route


def _route(body: bytes, source_of: SourceOf, objects: Objects,
           stands: StandIns) -> Route | None:
    family, length, from_length, tos, table, _, scope, kind, flags = struct.unpack_from(
        "=BBBBBBBBI", body)
    found = attrs(body[12:])
    if flags & _CLONED or s32(found.get(23), 1) < 0 or _expired(found):
        return None
    metrics = attrs(found.get(8, b""))
    by_object = 30 in found
    legs = objects.of(u32(found[30])) if by_object else list(
        _legs(found, flags, family, stands))
    group = by_object and objects.is_group(u32(found[30]))
    weights = [0 if leg.dead and not group else weight for leg, weight in legs]
    bounds = shares(weights) if len(legs) > 1 and any(weights) else [-1] * len(legs)
    ready = tuple(replace(leg, bound=bound,
                          source=0 if family == INET6 else leg.source or source_of(
                              leg.ifindex, 0 if by_object else leg.gateway, scope))
                  for (leg, _), bound in zip(legs, bounds, strict=True))
    if family == INET6 and not ready:
        ready = (Leg(1),)
    preference = found.get(20, b"\0")[0]
    return Route(
        family, u32(found[15]) if 15 in found else table, key_of(found.get(1, b"")), length,
        ready, kind, tos & 0xFC if family == INET else 0, u32(found.get(6)),
        key_of(found.get(2, b"")), from_length, key_of(found[7]) if 7 in found else None,
        u32(metrics.get(2)), bool(u32(metrics.get(1)) & 1 << 2),
        bool(flags & _NEXTHOP_DEAD) and not legs, preference ^ 2, by_object, group)


def _expired(found: Attrs) -> bool:
    """rta_cacheinfo: clntref, lastuse, expires, ..."""
    return 12 in found and s32(found[12][8:12], 0) < 0


def _legs(found: Attrs, flags: int, family: int, stands: StandIns) -> Iterator[tuple[Leg, int]]:
    """Each with its weight."""
    if 9 not in found:
        index = u32(found.get(4))
        if index:
            yield _leg(found, flags, stands.get(index, index), family), 1
        return
    data = found[9]
    while len(data) >= 8:
        size, own, hops, index = struct.unpack_from("=HBBi", data)
        if size < 8:
            return
        yield _leg(attrs(data[8:size]), own, stands.get(index, index), family), hops + 1
        data = data[size + (-size % 4):]


def _leg(found: Attrs, flags: int, index: int, family: int) -> Leg:
    via_family, gateway = 0, 0
    if 5 in found:
        via_family, gateway = family, key_of(found[5])
    elif 18 in found:
        via_family = int.from_bytes(found[18][:2], "little")
        gateway = key_of(found[18][2:])
    return Leg(index, via_family, gateway, dead=bool(flags & _NEXTHOP_DEAD),
               encapsulates=u16(found.get(21)) != 0,
               headroom=_headroom(found.get(21), found.get(22)))


_MPLS, _SEG6 = 1, 5  # LWTUNNEL_ENCAP_*
_SEG6_HEADERS = {0: 0, 1: 40, 3: 40}  # SEG6_IPTUN_MODE_*; of frames nothing is taken off


def _headroom(kind: bytes | None, encapsulation: bytes | None) -> int:
    """lwtunnel_headroom: what an encapsulation takes off the MTU of its way."""
    first = next(iter(nl.parse_attrs(encapsulation or b"")), (0, b""))[1]
    if u16(kind) == _MPLS:
        return len(first)
    if u16(kind) == _SEG6 and len(first) > 5:
        mode, _, length = struct.unpack_from("=iBB", first)
        return _SEG6_HEADERS[mode] + (length + 1) * 8 if mode in _SEG6_HEADERS else 0
    return 0
