"""Random hosts, with what no test machine has, too: VRFs, nexthop groups, odd orders."""

from __future__ import annotations

import random
from collections.abc import Iterable

from xdp_runtime.fib.host import (
    INET,
    INET6,
    STANDARD_RULES,
    Action,
    Address6,
    Host,
    Interface,
    Label,
    Leg,
    Neighbour,
    Ports,
    Route,
    RouteType,
    Rule,
    Settings,
    shares,
)

_TABLES = (254, 254, 255, 253, 100, 101)
_TYPES = (RouteType.UNICAST,) * 12 + tuple(RouteType)


def random_host(pick: random.Random) -> Host:
    vrfs = pick.sample(range(2, 9), pick.choice((0, 0, 2)))
    interfaces = tuple(_interface(pick, n, vrfs) for n in range(1, 9))
    spaces = {INET: [pick.getrandbits(32) << 96 for _ in range(3)],
              INET6: [pick.getrandbits(128) for _ in range(3)]}
    routes = _sorted(_route(pick, spaces, interfaces) for _ in range(pick.randrange(120)))
    neighbours = {(n.ifindex, n.family, n.key): n
                  for n in (_neighbour(pick, spaces, routes) for _ in range(pick.randrange(60)))}
    one_table = pick.random() < 0.4
    rules: tuple[Rule, ...] = STANDARD_RULES
    if not one_table:
        more = [_rule(pick, spaces) for _ in range(pick.randrange(12))]
        rules = tuple(sorted((*rules, *more), key=lambda rule: rule.preference))
    return Host(
        interfaces, routes, tuple(neighbours.values()), rules,
        tuple(_address(pick, spaces) for _ in range(pick.randrange(12))),
        tuple(_label(pick, spaces) for _ in range(pick.randrange(6))),
        Settings(pick.randrange(4), pick.randrange(64), pick.randrange(4), pick.randrange(64),
                 pick.choice((0, pick.getrandbits(32))), pick.random() < 0.5,
                 pick.random() < 0.3), one_table)


def _sorted(routes: Iterable[Route]) -> tuple[Route, ...]:
    """Of one IPv6 prefix the kernel lists the smaller metric first (fib6_add_rt2node)."""
    return tuple(sorted(routes, key=lambda route: (
        route.metric if route.family == INET6 else 0)))


def _prefix(pick: random.Random, spaces: dict[int, list[int]], family: int) -> tuple[int, int]:
    """Prefixes that lie in each other."""
    length = pick.choice((0, 1, 8, 9, 12, 16, 17, 24, 25, 31, 32) if family == INET
                         else (0, 1, 7, 16, 32, 48, 63, 64, 65, 96, 127, 128))
    key = pick.choice(spaces[family]) ^ (pick.getrandbits(8) << pick.randrange(120)
                                         if pick.random() < 0.6 else 0)
    return key >> 128 - length << 128 - length, length


def _address_in(pick: random.Random, spaces: dict[int, list[int]], family: int) -> int:
    return _prefix(pick, spaces, family)[0]


def _interface(pick: random.Random, number: int, vrfs: list[int]) -> Interface:
    vrf = number in vrfs
    return Interface(
        number, pick.choice((1500, 1400, 9000, 65536, 576)), pick.randbytes(6),
        pick.random() < 0.95, pick.random() < 0.9, pick.random() < 0.95, pick.random() < 0.9,
        pick.choice((1500, 1280, 1400, 9000, 65575, 70000)), pick.random() < 0.2,
        pick.choice((14, 0)), 0 if vrf or not vrfs else pick.choice((0, *vrfs)),
        100 + vrfs.index(number) if vrf else 0, pick.randrange(3), pick.random() < 0.1)


def _route(pick: random.Random, spaces: dict[int, list[int]],
           interfaces: tuple[Interface, ...]) -> Route:
    family = pick.choice((INET, INET6))
    key, length = _prefix(pick, spaces, family)
    of, of_length = _prefix(pick, spaces, family) if pick.random() < 0.1 and family == INET6 \
        else (0, 0)
    by_object = pick.random() < 0.2
    count = pick.choice((1, 1, 1, 2, 3, 5))
    dead = [pick.random() < 0.15 for _ in range(count)]
    weights = [0 if each else pick.randrange(1, 9) for each in dead]
    bounds = shares(weights) if count > 1 and any(weights) else [-1] * count
    legs = tuple(_leg(pick, spaces, family, *each) for each in zip(bounds, dead, strict=True))
    return Route(
        family, pick.choice(_TABLES), key, length, legs, pick.choice(_TYPES),
        pick.choice((0, 0, 0, 8, 16, 0x20)) if family == INET else 0,
        pick.choice((0, 10, 256, 1024)), of, of_length,
        _address_in(pick, spaces, family) if pick.random() < 0.2 else None,
        pick.choice((0, 0, 1300, 70000)), pick.random() < 0.4, pick.random() < 0.05,
        pick.choice((1, 2, 2, 2, 3)), by_object, by_object and count > 1)


def _leg(pick: random.Random, spaces: dict[int, list[int]], family: int, bound: int,
         dead: bool) -> Leg:
    by = pick.choice((0, family, family, INET6))
    return Leg(pick.randrange(1, 10), by, _address_in(pick, spaces, by) if by else 0, bound, dead,
               pick.random() < 0.05, _address_in(pick, spaces, INET) if family == INET else 0,
               pick.choice((0, 0, 64, 2000)))


def _neighbour(pick: random.Random, spaces: dict[int, list[int]],
               routes: tuple[Route, ...]) -> Neighbour:
    if routes and pick.random() < 0.7:
        leg = pick.choice(pick.choice(routes).legs)
        if leg.gateway_family:
            key = 0 if pick.random() < 0.1 else leg.gateway
            return Neighbour(leg.ifindex, leg.gateway_family, key, pick.randbytes(6),
                             pick.random() < 0.7)
    family = pick.choice((INET, INET6))
    return Neighbour(pick.randrange(1, 9), family, _address_in(pick, spaces, family),
                     pick.randbytes(6), pick.random() < 0.7)


def _rule(pick: random.Random, spaces: dict[int, list[int]]) -> Rule:
    family = pick.choice((INET, INET6))
    some = pick.random() < 0.5
    ports = [Ports(), Ports(80, 80, 0xFFFF), Ports(5000, 6000), Ports(16, 16, 0xF0)]
    key, length = _prefix(pick, spaces, family) if pick.random() < 0.4 else (0, 0)
    of, of_length = _prefix(pick, spaces, family) if pick.random() < 0.3 else (0, 0)
    mark, mask = pick.choice(((0, 0), (0, 0), (5, 0xFFFFFFFF), (0x40, 0xF0)))
    dscp, dscp_mask = pick.choice(((0, 0), (0, 0), (0x28, 0xFC), (8, 0x0C)))
    label, label_mask = pick.choice(((0, 0), (5, 0xFFFFF))) if family == INET6 else (0, 0)
    preference = pick.randrange(1, 32700)
    return Rule(
        family, preference, pick.choice(tuple(Action) + (Action.TO_TABLE,) * 8),
        pick.choice((0, *_TABLES)), pick.choice((0, 0, 0, -1, *range(1, 9))),
        pick.choice((0, 0, 0, 0, *range(1, 9))), mark, mask, of, of_length, key, length,
        pick.choice((0, 0, 8)) if family == INET else 0, dscp, dscp_mask, label, label_mask,
        pick.choice((0, 0, 6)), pick.choice(ports) if some else Ports(),
        pick.choice(ports) if some else Ports(), pick.random() < 0.15, pick.random() < 0.2,
        pick.random() < 0.05, pick.choice((preference + 1, 32766, 40000)),  # never backwards
        pick.choice((-1, -1, 0, 16)), pick.choice((-1, -1, 1)))


def _address(pick: random.Random, spaces: dict[int, list[int]]) -> Address6:
    return Address6(pick.randrange(1, 9), _address_in(pick, spaces, INET6) | 2,
                    pick.choice((48, 64, 128)), pick.random() < 0.8, pick.random() < 0.8,
                    pick.random() < 0.2)


def _label(pick: random.Random, spaces: dict[int, list[int]]) -> Label:
    key, length = _prefix(pick, spaces, INET6)
    return Label(key, length, pick.choice((0, 0, 1, 2)), pick.randrange(4))
