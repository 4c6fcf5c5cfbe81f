"""The tables as bytes: what compiled code walks.  All numbers are little-endian.

    snapshot    header, then the parts below at offsets from the snapshot's start (u32)
    interfaces  hash by index, linear probing, an empty slot ends the search
    neighbours  hash by interface, family and address, likewise
    rules       in order; a rule's table is an offset (0: no such table), its target too
    tables      (family, number, offset); a table is an index, bounds, and the nodes of prefixes

A table cuts the space of addresses at the first and behind the last address of each prefix.
Between two such *bounds* one prefix is the longest, so a lookup is a binary search, narrowed by an
index over the top bits; and the next longest is the node's parent.  A node is a prefix (and, in
IPv6, a prefix of sources) with its routes in the kernel's order.  D_OTHER is the next longest
that does not start with the same address; D_NO_START says that no search of IPv6 starts there,
though it may get there.

Addresses are two u64, the first 8 bytes as the higher number; IPv4's are on top of the first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import groupby

from xdp_runtime.fib.flowhash import fields_of
from xdp_runtime.fib.host import (
    BITS,
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
    Ports,
    Route,
    RouteType,
    Rule,
)
from xdp_runtime.fib.source import is_orchid, label_of, scope_of

_HALF = (1 << 64) - 1

# --- header: u32 each -----------------------------------------------------------------------------
(S_INTERFACES, S_INTERFACES_MASK, S_NEIGHBOURS, S_NEIGHBOURS_MASK, S_RULES4, S_RULES4_END, S_RULES6,
 S_RULES6_END, S_PLAIN4, S_PLAIN6, S_TABLES, S_TABLES_END, S_MAIN4, S_DEFAULT4, S_MAIN6, S_LOCAL6,
 S_SOURCES6, S_SOURCES6_END, S_LABELS, S_LABELS_END, S_FIELDS4, S_FIELDS6, S_SEED, S_USE_NEIGHBOURS,
 S_ROUTE_MTU) = range(0, 100, 4)
HEADER_BYTES = 128
CURRENT = 64  # u64 in the memory before the snapshots: where the valid one is

# --- interface: 56 bytes --------------------------------------------------------------------------
(I_IFINDEX, I_MTU, I_MTU6, I_FLAGS, I_HEADER_BYTES, I_MASTER, I_VRF, I_GROUP, I_VRF4, I_VRF6,
 I_DIRECT4, I_DIRECT6) = range(0, 48, 4)
I_MAC, INTERFACE_BYTES = 48, 56
_INTERFACE = struct.Struct("<12I6s2x")
INET_FORWARDS, INET6_FORWARDS, KEYLESS, OWN_SOURCES6 = 1, 2, 4, 8

# --- neighbour: 32 bytes; its interface is 0 in an empty slot ------------------------------------
N_IFINDEX, N_FAMILY, N_HIGH, N_LOW, N_MAC, N_VALID, NEIGHBOUR_BYTES = 0, 4, 8, 16, 24, 30, 32
_NEIGHBOUR = struct.Struct("<IIQQ6sBx")
MIX1, MIX2 = 0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F
MIX1_SIGNED, MIX2_SIGNED = MIX1 - (1 << 64), MIX2 - (1 << 64)

# --- rule: 160 bytes ------------------------------------------------------------------------------
(R_ACTION, R_TABLE, R_IIF, R_OIF, R_MARK, R_MARK_MASK, R_FLAGS, R_TOS, R_DSCP, R_DSCP_MASK,
 R_LABEL, R_LABEL_MASK, R_PROTOCOL, R_SPORT, R_SPORT_END, R_SPORT_MASK, R_DPORT, R_DPORT_END,
 R_DPORT_MASK, R_TARGET, R_SUPPRESS_LENGTH, R_SUPPRESS_GROUP, R_SOURCE_LENGTH, R_UNUSED) = range(
     0, 96, 4)
R_SOURCE, R_SOURCE_MASK, R_KEY, R_KEY_MASK = 96, 112, 128, 144
RULE_BYTES = 160
_RULE = struct.Struct("<24I8Q")
INVERT, NEVER, OF_VRF, IIF_IS_VRF, OIF_IS_VRF = 1, 2, 4, 8, 16

# --- tables ---------------------------------------------------------------------------------------
T_FAMILY, T_NUMBER, T_OFFSET, TABLE_ENTRY_BYTES = 0, 4, 8, 16
T_SHIFT, T_INDEX, T_BOUNDS, TABLE_BYTES = 0, 4, 8, 16
B_HIGH, B_LOW, B_NODE, BOUND_BYTES = 0, 8, 16, 24
_BOUND = struct.Struct("<QQI4x")
(D_PARENT, D_ROUTES, D_ROUTES_END, D_SOURCE_LENGTH, D_OTHER, D_NO_START, D_SOURCE,
 D_SOURCE_MASK) = 0, 4, 8, 12, 16, 20, 24, 40
NODE_BYTES = 56
_NODE = struct.Struct("<6I4Q")

# --- route: 56 bytes; leg: 40 bytes ---------------------------------------------------------------
U_LEGS, U_LEGS_END, U_TYPE, U_DSCP, U_FLAGS, U_METRIC, U_LENGTH, U_PREFERENCE, U_MTU, U_OWN_MTU = (
    range(0, 40, 4))
U_SOURCE, ROUTE_BYTES = 40, 56
_ROUTE = struct.Struct("<10IQQ")
DEAD, GROUP, HAS_SOURCE, BLACK_HOLE, BY_OBJECT = 1, 2, 4, 8, 16
(L_IFINDEX, L_FAMILY, L_FLAGS, L_BOUND, L_SOURCE, L_HIGH, L_LOW, LEG_BYTES) = (
    0, 4, 8, 12, 16, 24, 32, 40)
L_HEADROOM = 10
_LEG = struct.Struct("<IIHHiQQQ")
LEG_DEAD, ENCAPSULATES = 1, 2

# --- IPv6 source addresses: 48 bytes; labels: 48 bytes --------------------------------------------
(A_HIGH, A_LOW, A_IFINDEX, A_MASTER, A_SCOPE, A_LENGTH, A_LABEL, A_BITS, A_ORCHID,
 SOURCE_BYTES) = 0, 8, 16, 20, 24, 28, 32, 36, 40, 48
_SOURCE = struct.Struct("<QQiIiIIII4x")
_LABEL = struct.Struct("<QQQQIIII")
(E_HIGH, E_LOW, E_MASK_HIGH, E_MASK_LOW, E_IFINDEX, E_LABEL, E_LENGTH, LABEL_BYTES) = (
    0, 8, 16, 24, 32, 36, 40, 48)


def words(key: int) -> tuple[int, int]:
    return key >> 64, key & _HALF


def mask(length: int) -> int:
    return ((1 << BITS) - 1) ^ ((1 << BITS - length) - 1)


def neighbour_hash(ifindex: int, family: int, key: int) -> int:
    high, low = words(key)
    mixed = (high ^ low * MIX2 ^ (ifindex << 8 | family) * MIX1) & _HALF
    return (mixed * MIX1 & _HALF) >> 32


class _Image:
    """Parts laid one behind the other, each at a multiple of 8."""

    def __init__(self) -> None:
        self.parts: list[bytes] = [bytes(HEADER_BYTES)]
        self.size = HEADER_BYTES
        self.legs: dict[Sequence[Leg], tuple[int, int]] = {}

    def put(self, data: bytes) -> int:
        """Where it lies."""
        at = self.size
        data += bytes(-len(data) % 8)
        self.parts.append(data)
        self.size += len(data)
        return at

    def put_legs(self, legs: Sequence[Leg]) -> tuple[int, int]:
        """Many routes share a nexthop."""
        found = self.legs.get(legs)
        if found is None:
            at = self.put(b"".join(
                _LEG.pack(leg.ifindex, leg.gateway_family,
                          LEG_DEAD * leg.dead | ENCAPSULATES * leg.encapsulates,
                          leg.headroom, leg.bound, leg.source >> 64, *words(leg.gateway))
                for leg in legs))
            found = self.legs[legs] = at, at + LEG_BYTES * len(legs)
        return found


class Packer:
    """Makes snapshots.  Tables of routes that are as they were are not made again: neighbours come
    and go much oftener."""

    def __init__(self) -> None:
        self._routes: tuple[tuple[Route, ...], bool] | None = None
        self._packed: tuple[bytes, dict[tuple[int, int], int]] = b"", {}

    def pack(self, host: Host) -> bytes:
        if self._routes is None or self._routes[0] is not host.routes or (
                self._routes[1] != host.one_table):
            image = _Image()
            tables = {key: _table(image, routes) for key, routes in _by_table(host)}
            self._packed = b"".join(image.parts[1:]), tables
            self._routes = host.routes, host.one_table
        return _with_tables(host, *self._packed)


def _with_tables(host: Host, packed: bytes, tables: dict[tuple[int, int], int]) -> bytes:
    """The snapshot: the header, these tables, and all else."""
    image = _Image()
    image.put(packed)
    header = [0] * (HEADER_BYTES // 4)

    def note(field: int, value: int) -> None:
        header[field // 4] = value

    rows = b"".join(struct.pack("<IIII", *key, at, 0) for key, at in tables.items())
    note(S_TABLES, start := image.put(rows))
    note(S_TABLES_END, start + len(rows))
    for field, key in ((S_MAIN4, (INET, MAIN)), (S_DEFAULT4, (INET, DEFAULT)),
                       (S_MAIN6, (INET6, MAIN)), (S_LOCAL6, (INET6, LOCAL))):
        note(field, tables.get(key, 0))
    data, slots = _hashed([(i.ifindex, _interface(host, i, tables)) for i in host.interfaces],
                          INTERFACE_BYTES)
    note(S_INTERFACES, image.put(data))
    note(S_INTERFACES_MASK, slots)
    data, slots = _hashed([(neighbour_hash(n.ifindex, n.family, n.key), _neighbour(n))
                           for n in host.neighbours], NEIGHBOUR_BYTES)
    note(S_NEIGHBOURS, image.put(data))
    note(S_NEIGHBOURS_MASK, slots)
    for family, first, end, plain in ((INET, S_RULES4, S_RULES4_END, S_PLAIN4),
                                      (INET6, S_RULES6, S_RULES6_END, S_PLAIN6)):
        rules = host.rules_of(family)
        data = b"".join(_rule(host, rule, rules, tables, image.size) for rule in rules)
        note(first, start := image.put(data))
        note(end, start + len(data))
        note(plain, host.plain(family))
    data = b"".join(_source(host, n) for n in range(len(host.addresses6)))
    note(S_SOURCES6, start := image.put(data))
    note(S_SOURCES6_END, start + len(data))
    labels = sorted(host.labels, key=lambda each: -each.length)
    data = b"".join(_LABEL.pack(*words(each.key), *words(mask(each.length)), each.ifindex,
                                each.label, each.length, 0) for each in labels)
    note(S_LABELS, start := image.put(data))
    note(S_LABELS_END, start + len(data))
    settings = host.settings
    note(S_FIELDS4, fields_of(settings, INET))
    note(S_FIELDS6, fields_of(settings, INET6))
    note(S_SEED, settings.seed or 1)
    note(S_USE_NEIGHBOURS, settings.use_neighbours)
    note(S_ROUTE_MTU, settings.forward_by_route_mtu)
    image.parts[0] = struct.pack(f"<{len(header)}I", *header)
    return b"".join(image.parts)


def _by_table(host: Host) -> Iterable[tuple[tuple[int, int], list[Route]]]:
    """IPv4's main and local tables may be one, local routes before others to the same prefix."""
    tables: dict[tuple[int, int], list[Route]] = {}
    for route in host.routes:
        tables.setdefault((route.family, route.table), []).append(route)
    if host.one_table:
        both = tables.pop((INET, LOCAL), []) + tables.pop((INET, MAIN), [])
        if both:
            yield (INET, MAIN), both
            yield (INET, LOCAL), both
    yield from tables.items()


def _table(image: _Image, routes: list[Route]) -> int:
    """A table of some routes, each prefix's in their order."""
    routes = sorted(routes, key=lambda r: (r.key, r.length, r.source_length, r.source_key))
    bounds: list[tuple[int, int]] = []  # key -> node
    open_prefixes: list[tuple[int, int]] = []  # (last address, node)
    others: dict[int, tuple[int, int]] = {0: (-1, 0)}  # node -> its key, its D_OTHER

    def bound(key: int, node: int) -> None:
        if bounds and bounds[-1][0] == key:
            bounds.pop()
        if not bounds or bounds[-1][1] != node:
            bounds.append((key, node))

    def close_before(key: int) -> None:
        while open_prefixes and open_prefixes[-1][0] < key:
            last, _ = open_prefixes.pop()
            bound(last + 1, open_prefixes[-1][1] if open_prefixes else 0)

    bound(0, 0)
    for (key, length), group in groupby(routes, lambda r: (r.key, r.length)):
        close_before(key)
        node = open_prefixes[-1][1] if open_prefixes else 0
        same_key, other = others[node]
        other = other if same_key == key else node
        of_prefix = list(group)
        has_sources = length > 0 and of_prefix[-1].source_length > 0
        for source, same in groupby(of_prefix, lambda r: (r.source_length, r.source_key)):
            rows = b"".join(_route(image, route) for route in same)
            at = image.put(rows)
            node = image.put(_NODE.pack(node, at, at + len(rows), source[0], other,
                                        has_sources and not source[0], *words(source[1]),
                                        *words(mask(source[0]))))
            others[node] = key, other
        bound(key, node)
        open_prefixes.append((key | ~mask(length) & (1 << BITS) - 1, node))
    close_before(1 << BITS)
    if bounds[-1][0] == 1 << BITS:
        bounds.pop()
    at = image.put(b"".join(_BOUND.pack(*words(key), node) for key, node in bounds))
    return _indexed(image, [key for key, _ in bounds], at)


def _indexed(image: _Image, keys: list[int], bounds: int) -> int:
    """The table's head, and an index: for each value of the top bits the last bound that is not
    above its first address."""
    bits = min(max(len(keys).bit_length() - 1, 1), 16)
    index, at = [], 0
    for top in range(1 << bits):
        first = top << BITS - bits
        while at + 1 < len(keys) and keys[at + 1] <= first:
            at += 1
        index.append(at)
    index.append(len(keys) - 1)
    where = image.put(struct.pack(f"<{len(index)}I", *index))
    return image.put(struct.pack("<IIII", 64 - bits, where, bounds, 0))


def _route(image: _Image, route: Route) -> bytes:
    flags = DEAD * route.dead | GROUP * route.group | BY_OBJECT * route.by_object
    flags |= HAS_SOURCE * (route.preferred_source is not None)
    flags |= BLACK_HOLE * (route.by_object and route.type == RouteType.BLACKHOLE)
    return _ROUTE.pack(*image.put_legs(route.legs), route.type, route.dscp, flags, route.metric,
                       route.length, route.preference << 2,
                       route.mtu if route.mtu_locked else 0, route.mtu,
                       *words(route.preferred_source or 0))


def _interface(host: Host, each: Interface, tables: dict[tuple[int, int], int]) -> bytes:
    flags = (INET_FORWARDS * (each.inet and each.forwarding)
             | INET6_FORWARDS * (each.inet6 and each.forwarding6)
             | KEYLESS * each.keyless | OWN_SOURCES6 * (each.inet6 and each.own_sources6))
    owner = each
    if each.master:
        owner = next((i for i in host.interfaces if i.ifindex == each.master), each)
    vrf = owner.vrf_table
    direct = vrf or MAIN
    return _INTERFACE.pack(
        each.ifindex, each.mtu, each.mtu6 if each.inet6 else 0, flags, each.header_bytes,
        owner.ifindex if vrf else 0, each.vrf_table, each.group, tables.get((INET, vrf), 0),
        tables.get((INET6, vrf), 0), tables.get((INET, direct), 0), tables.get((INET6, direct), 0),
        each.mac)


def _neighbour(each: Neighbour) -> bytes:
    return _NEIGHBOUR.pack(each.ifindex, each.family, *words(each.key), each.mac, each.valid)


def _hashed(rows: list[tuple[int, bytes]], size: int) -> tuple[bytes, int]:
    """(a hash at most half full, the mask of its slots' numbers)"""
    slots = 1 << max(2 * len(rows), 2).bit_length()
    data = [b""] * slots
    for number, row in rows:
        at = number & slots - 1
        while data[at]:
            at = at + 1 & slots - 1
        data[at] = row
    return b"".join(row or bytes(size) for row in data), slots - 1


def _rule(host: Host, rule: Rule, rules: tuple[Rule, ...], tables: dict[tuple[int, int], int],
          start: int) -> bytes:
    vrfs = {each.ifindex for each in host.interfaces if each.vrf_table}
    flags = (INVERT * rule.invert | NEVER * rule.never | OF_VRF * rule.vrf
             | IIF_IS_VRF * (rule.iif in vrfs) | OIF_IS_VRF * (rule.oif in vrfs))
    target = next((n for n, each in enumerate(rules) if each.preference == rule.target), -1)
    action = Action.NOP if rule.action == Action.GOTO and target < 0 else rule.action
    u32 = 0xFFFFFFFF
    return _RULE.pack(
        action, tables.get((rule.family, rule.table or MAIN), 0), rule.iif & u32, rule.oif & u32,
        rule.mark, rule.mark_mask, flags, rule.tos, rule.dscp, rule.dscp_mask, rule.flow_label,
        rule.flow_label_mask, rule.protocol, *_ports(rule.sports), *_ports(rule.dports),
        start + RULE_BYTES * max(target, 0), rule.suppress_length & u32,
        rule.suppress_group & u32, rule.source_length, 0, *words(rule.source_key),
        *words(mask(rule.source_length)), *words(rule.key), *words(mask(rule.length)))


def _ports(ports: Ports) -> tuple[int, int, int]:
    return ports.low, ports.high or 0xFFFF, ports.mask


def _source(host: Host, number: int) -> bytes:
    each = host.addresses6[number]
    owner = next((i for i in host.interfaces if i.ifindex == each.ifindex), None)
    master = (owner.ifindex if owner.vrf_table else owner.master) if owner else 0
    bits = each.preferred << 14 | each.private << 11 | (not each.optimistic)
    return _SOURCE.pack(*words(each.key), each.ifindex, master, scope_of(each.key), each.length,
                        label_of(host, each.key, each.ifindex), bits, is_orchid(each.key))
