"""bpf_fib_lookup and bpf_check_mtu, slowly and obviously: what the interpreter runs.

Everything is looked for by going through all there is.  The order of the steps is that of
bpf_ipv4_fib_lookup and bpf_ipv6_fib_lookup, because what was written into the struct before a step
failed stays there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from xdp_runtime.fib import params as p
from xdp_runtime.fib.flowhash import Flow, multipath_hash
from xdp_runtime.fib.host import (
    DEFAULT,
    INET,
    INET6,
    LOCAL,
    MAIN,
    Action,
    Host,
    Interface,
    Leg,
    Neighbour,
    Route,
    RouteType,
    Rule,
    bytes_of,
    covers,
    key_of,
)
from xdp_runtime.fib.params import Answer, Flag
from xdp_runtime.fib.source import choose_source

_LOOPBACK = 1  # LOOPBACK_IFINDEX
_REJECTED = {RouteType.BLACKHOLE: Answer.BLACKHOLE, RouteType.UNREACHABLE: Answer.UNREACHABLE,
             RouteType.PROHIBIT: Answer.PROHIBIT}
_REFUSED = {Action.BLACKHOLE: Answer.BLACKHOLE, Action.UNREACHABLE: Answer.NOT_FORWARDED,
            Action.PROHIBIT: Answer.PROHIBIT}


@dataclass(frozen=True, slots=True)
class Query:
    """struct flowi4 or flowi6, as far as a lookup sees it.  `preferred` is IPv6's `oif`,
    `source_known` its RT6_LOOKUP_F_HAS_SADDR."""

    family: int
    flow: Flow
    iif: int
    oif: int
    vrf: int
    out: bool
    tos: int
    label: int
    mark: int
    preferred: int
    source_known: bool


@dataclass(frozen=True, slots=True)
class Found:
    route: Route
    leg: Leg


def fib_lookup(host: Host, struct: bytearray, flags: int) -> int:
    """The helper's answer; `struct` is struct bpf_fib_lookup, read and written.  -errno, or an
    Answer."""
    if len(struct) < p.SIZE_BYTES or flags & ~p.KNOWN_FLAGS:
        return -p.EINVAL
    family = struct[p.FAMILY]
    if family not in (INET, INET6):
        return -p.EAFNOSUPPORT
    six = family == INET6
    size = 16 if six else 4
    destination = key_of(struct[p.DESTINATION : p.DESTINATION + size])
    source = key_of(struct[p.SOURCE : p.SOURCE + size])
    if six and (_never_forwarded(destination) or _never_forwarded(source)):
        return Answer.NOT_FORWARDED
    interface = interface_of(host, _number(struct, p.IFINDEX, 4))
    if interface is None:
        return -p.ENODEV
    if not (interface.inet6 and interface.forwarding6 if six
            else interface.inet and interface.forwarding):
        return Answer.FORWARDING_DISABLED
    query = _query(struct, flags, family, source, destination, interface)
    if flags & Flag.DIRECT:
        table = _table_of_vrf(host, interface.master or interface.ifindex) or MAIN
        found: Found | Answer
        if flags & Flag.TBID:
            table = _number(struct, p.TABLE, 4) or MAIN
            struct[p.TABLE : p.TABLE + 4] = bytes(4)
        found = in_table(host, query, table) or Answer.NOT_FORWARDED
    else:
        query, found = by_rules(host, query)
    if not isinstance(found, Found):
        return found
    if six and found.route.type in _REJECTED:
        return _REJECTED[RouteType(found.route.type)]
    if found.route.type != RouteType.UNICAST:
        return Answer.NOT_FORWARDED
    return _answer(host, struct, flags, query, _select(host, query, found))


def _query(struct: bytearray, flags: int, family: int, source: int, destination: int,
           interface: Interface) -> Query:
    six = family == INET6
    label = bytes(struct[p.TOS : p.TOS + 4]) if six else bytes(4)
    flow = Flow(family, source, destination, struct[p.PROTOCOL],
                bytes(struct[p.SPORT : p.SPORT + 4]), label)
    out = bool(flags & Flag.OUTPUT)
    tos = (label[0] << 4 | label[1] >> 4) & 0xFC if six else struct[p.TOS] & 0xFC
    ifindex = interface.ifindex
    return Query(family, flow, _LOOPBACK if out else ifindex, ifindex if out else 0, 0, out, tos,
                 int.from_bytes(label, "big") & 0xFFFFF,
                 _number(struct, p.MARK, 4) if flags & Flag.MARK else 0, ifindex, not out)


def _answer(host: Host, struct: bytearray, flags: int, query: Query, found: Found) -> int:
    """What is known of the packet's way, into the struct."""
    route, leg, six = found.route, found.leg, query.family == INET6
    way = interface_of(host, leg.ifindex)
    if way is None:
        return Answer.NOT_FORWARDED
    mtu = _mtu6(route, way) if six else _mtu4(host, route, way)
    if leg.headroom < mtu:
        mtu -= leg.headroom
    if _number(struct, p.LENGTH, 2) > mtu:
        struct[p.MTU : p.MTU + 2] = (mtu & 0xFFFF).to_bytes(2, "little")
        return Answer.FRAGMENTATION_NEEDED
    if leg.encapsulates:
        return Answer.ENCAPSULATED
    if six and leg.gateway_family:
        struct[p.DESTINATION : p.DESTINATION + 16] = bytes_of(leg.gateway, INET6)
    struct[p.METRIC : p.METRIC + 4] = route.metric.to_bytes(4, "little")
    struct[p.IFINDEX : p.IFINDEX + 4] = way.ifindex.to_bytes(4, "little")
    if flags & Flag.SRC:
        source = route.preferred_source
        if source is None:
            source = choose_source(host, way, query.flow.destination) if six else leg.source
        if source is None:
            return Answer.NO_SOURCE
        size = 16 if six else 4
        struct[p.SOURCE : p.SOURCE + size] = bytes_of(source, query.family)
    family = query.family
    if not six and leg.gateway_family == INET:
        struct[p.DESTINATION : p.DESTINATION + 4] = bytes_of(leg.gateway, INET)
    elif not six and leg.gateway_family == INET6:
        struct[p.FAMILY] = family = INET6
        struct[p.DESTINATION : p.DESTINATION + 16] = bytes_of(leg.gateway, INET6)
    if not flags & Flag.SKIP_NEIGH:
        size = 16 if family == INET6 else 4
        key = key_of(struct[p.DESTINATION : p.DESTINATION + size])
        neighbour = neighbour_of(host, way, family, key)
        if neighbour is None or not neighbour.valid:
            return Answer.NO_NEIGHBOUR
        struct[p.DMAC : p.DMAC + 6] = neighbour.mac
        struct[p.SMAC : p.SMAC + 6] = way.mac
    struct[p.VLAN : p.VLAN + 4] = bytes(4)
    if mtu:
        struct[p.MTU : p.MTU + 2] = (mtu & 0xFFFF).to_bytes(2, "little")
    return Answer.SUCCESS


def check_mtu(host: Host, ingress_ifindex: int, packet_bytes: int, ifindex: int, length: int,
              difference: int, flags: int) -> tuple[int, int]:
    """(the helper's answer, what *mtu_len is afterwards).  All are C's int or u32."""
    if flags:
        return -p.EINVAL, length
    interface = interface_of(host, ifindex or ingress_ifindex)
    if interface is None:
        return -p.ENODEV, length
    size = _int(length + interface.header_bytes) if length else packet_bytes
    needed = _int(size + difference) > interface.mtu + interface.header_bytes
    return int(needed), interface.mtu


def _int(value: int) -> int:
    return ((value & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


def _number(struct: bytearray, offset: int, size: int) -> int:
    return int.from_bytes(struct[offset : offset + size], "little")


def _never_forwarded(address: int) -> bool:
    """rt6_need_strict: multicast, link-local, loopback"""
    return address >> 120 == 0xFF or address >> 118 == 0xFE80 >> 6 or address == 1


# --- what there is --------------------------------------------------------------------------------
def interface_of(host: Host, ifindex: int) -> Interface | None:
    return next((each for each in host.interfaces if each.ifindex == ifindex), None)


def neighbour_of(host: Host, way: Interface, family: int, key: int) -> Neighbour | None:
    if family == INET and way.keyless:
        key = 0
    return next((each for each in host.neighbours if
                 (each.ifindex, each.family, each.key) == (way.ifindex, family, key)), None)


def _table_of_vrf(host: Host, ifindex: int) -> int:
    interface = interface_of(host, ifindex)
    return interface.vrf_table if interface else 0


def _mtu4(host: Host, route: Route, way: Interface) -> int:
    """ip_mtu_from_fib_result"""
    own = route.mtu if route.mtu_locked or host.settings.forward_by_route_mtu else 0
    return own or min(way.mtu, p.IP_MAX_MTU)


def _mtu6(route: Route, way: Interface) -> int:
    """ip6_mtu_from_fib6"""
    if route.mtu_locked and route.mtu:
        return route.mtu
    return min(max(p.IP6_MIN_MTU, way.mtu6 if way.inet6 else 0), p.IP6_MAX_MTU)


# --- rules ----------------------------------------------------------------------------------------
def by_rules(host: Host, query: Query) -> tuple[Query, Found | Answer]:
    """fib_lookup, fib6_lookup.  The query may have changed on the way (l3mdev_update_flow)."""
    if host.plain(query.family):
        tables = (MAIN, DEFAULT) if query.family == INET else (LOCAL, MAIN)
        results = (in_table(host, query, table) for table in tables)
        return query, next((each for each in results if each is not None), Answer.NOT_FORWARDED)
    query = _with_vrf(host, query)
    rules, at = host.rules_of(query.family), 0
    while at < len(rules):
        rule = rules[at]
        at += 1
        if not rule_matches(host, rule, query) or rule.action == Action.NOP:
            continue
        if rule.action == Action.GOTO:
            at = next((n for n, r in enumerate(rules) if r.preference == rule.target), at)
            continue
        if rule.action != Action.TO_TABLE:
            return query, _refusal(rule)
        # a rule of VRFs that is inverted selects packets of none, too
        table = (_table_of_vrf(host, query.vrf) if rule.vrf else rule.table) or MAIN
        found = in_table(host, query, table)
        if found is None:
            continue
        if query.family == INET and isinstance(found, Found) and _suppressed(host, rule, found):
            continue
        return query, found
    return query, Answer.NOT_FORWARDED


def _refusal(rule: Rule) -> Answer:
    if rule.family == INET6:
        return Answer.NOT_FORWARDED
    return _REFUSED.get(Action(rule.action), Answer.BLACKHOLE)


def _suppressed(host: Host, rule: Rule, found: Found) -> bool:
    if found.route.length <= rule.suppress_length:
        return True
    first = interface_of(host, found.route.legs[0].ifindex)
    return rule.suppress_group != -1 and first is not None and first.group == rule.suppress_group


def _with_vrf(host: Host, query: Query) -> Query:
    """l3mdev_update_flow"""
    def master(interface: Interface) -> int:
        return interface.ifindex if interface.vrf_table else interface.master

    if query.oif:
        interface = interface_of(host, query.oif)
        if interface is not None:
            oif = 0 if interface.vrf_table else query.oif
            return replace(query, vrf=master(interface), out=True, oif=oif)
    if query.iif > _LOOPBACK:
        interface = interface_of(host, query.iif)
        if interface is not None:
            return replace(query, vrf=master(interface), out=False)
    return query


def rule_matches(host: Host, rule: Rule, query: Query) -> bool:
    return _selects(host, rule, query) != rule.invert


def _selects(host: Host, rule: Rule, query: Query) -> bool:
    flow = query.flow
    if rule.never:
        return False
    if rule.iif and not (not query.out and query.vrf == rule.iif if _is_vrf(host, rule.iif)
                         else query.iif == rule.iif):
        return False
    if rule.oif and not (query.out and query.vrf == rule.oif if _is_vrf(host, rule.oif)
                         else query.oif == rule.oif):
        return False
    if (rule.mark ^ query.mark) & rule.mark_mask:
        return False
    if rule.vrf and not _is_vrf(host, query.vrf):
        return False
    if rule.source_length and query.family == INET6 and not query.source_known:
        return False
    if not covers(rule.source_key, rule.source_length, flow.source):
        return False
    if not covers(rule.key, rule.length, flow.destination):
        return False
    if (rule.dscp ^ query.tos) & rule.dscp_mask:
        return False
    if rule.tos and rule.tos != query.tos & 0x1C:
        return False
    if (rule.flow_label ^ query.label) & rule.flow_label_mask:
        return False
    if rule.protocol and rule.protocol != flow.protocol:
        return False
    return (rule.sports.match(int.from_bytes(flow.ports[:2], "big"))
            and rule.dports.match(int.from_bytes(flow.ports[2:], "big")))


def _is_vrf(host: Host, ifindex: int) -> bool:
    return _table_of_vrf(host, ifindex) != 0


# --- a table --------------------------------------------------------------------------------------
def in_table(host: Host, query: Query, table: int) -> Found | Answer | None:
    """The longest prefix with a route that can be used.  None: look in another table."""
    given_up = -1
    for routes in nodes(host, query, table):
        if query.family == INET6:
            found6 = select6(routes, query)
            if found6 is not None:
                return found6
            continue
        if routes[0].key == given_up:
            continue
        for route in routes:
            if route.dscp and route.dscp != query.tos & 0x1C:
                continue
            if route.type == RouteType.THROW:
                return None
            if route.type in _REJECTED:
                return _REJECTED[RouteType(route.type)]
            if route.dead:
                continue
            for leg in route.legs:
                if not leg.dead and query.oif in (0, leg.ifindex):
                    return Found(route, leg)
            if route.by_object:
                # one leaf of the kernel's trie has all prefixes that start with the same address
                given_up = route.key
                break
    return None


def nodes(host: Host, query: Query, table: int) -> Iterator[list[Route]]:
    """The routes of each prefix that fits, the longest prefix first."""
    tables = [table]
    if query.family == INET and host.one_table and table in (MAIN, LOCAL):
        tables = [LOCAL, MAIN]
    fitting = [r for t in tables for r in host.routes
               if (r.family, r.table) == (query.family, t)
               and covers(r.key, r.length, query.flow.destination)
               and covers(r.source_key, r.source_length, query.flow.source)]
    fitting.sort(key=_lengths, reverse=True)
    begun = False
    for (length, source_length), group in groupby(fitting, _lengths):
        routes = list(group)
        if begun or source_length or not length or not _has_sources(host, routes[0]):
            begun = True
            yield routes


def _has_sources(host: Host, route: Route) -> bool:
    """Are there routes to this prefix for packets from some sources only?  fib6_node_lookup_1 does
    not begin at such a prefix for other packets, only fib6_backtrack comes there."""
    return route.family == INET6 and any(
        each.source_length and (each.family, each.table, each.key, each.length)
        == (route.family, route.table, route.key, route.length) for each in host.routes)


def _lengths(route: Route) -> tuple[int, int]:
    return route.length, route.source_length


def select6(routes: list[Route], query: Query) -> Found | None:
    """rt6_select: the best of those with the first one's metric, else of the rest"""
    first = [r for r in routes if r.metric == routes[0].metric]
    return _best(first, query) or _best(routes[len(first):], query)


def _best(routes: list[Route], query: Query) -> Found | None:
    best, score = None, -1
    for route in routes:
        if route.by_object and route.type == RouteType.BLACKHOLE:
            best = Found(route, route.legs[0])
            break
        for leg in route.legs:
            near = 2 if leg.ifindex == query.preferred else 0
            if not leg.dead and (near | route.preference << 2) > score:
                best, score = Found(route, leg), near | route.preference << 2
                if route.group:
                    break
    return best


# --- legs -----------------------------------------------------------------------------------------
def _select(host: Host, query: Query, found: Found) -> Found:
    """fib_select_path, fib6_select_path"""
    route = found.route
    if len(route.legs) < 2 or query.oif:
        return found
    number = multipath_hash(host.settings, query.flow)
    if route.group:
        return Found(route, _leg_of_group(host, route, number))
    if query.family == INET6:
        return next((Found(route, leg) for leg in route.legs if number <= leg.bound), found)
    leg, score = found.leg, -1
    for each in route.legs:
        if each.bound == -1 or (host.settings.use_neighbours and not _good(host, each)):
            continue
        here = 2 * (query.flow.source != 0 and each.source == query.flow.source)
        here += number <= each.bound
        if here > score:
            leg, score = each, here
    return Found(route, leg)


def _leg_of_group(host: Host, route: Route, number: int) -> Leg:
    """nexthop_select_path_hthr"""
    good = [leg for leg in route.legs if _good(host, leg)]
    return next((leg for leg in good if number <= leg.bound), (good or route.legs)[0])


def _good(host: Host, leg: Leg) -> bool:
    """fib_good_nh: nothing is known against its neighbour"""
    way = interface_of(host, leg.ifindex)
    if way is None or not leg.gateway_family:
        return True
    neighbour = neighbour_of(host, way, leg.gateway_family, leg.gateway)
    return neighbour is None or neighbour.valid
