"""The lookup in the tables' memory, compiled: what both families share.

`snap` is the valid snapshot (layout.py), `q` a record of the query on the stack, `six` says which
family.  What model.py says in the same order is said here for a machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xdp_runtime.fib import layout as y
from xdp_runtime.fib.flowhash import (
    BY_DESTINATION,
    BY_DPORT,
    BY_LABEL,
    BY_PROTOCOL,
    BY_SOURCE,
    BY_SPORT,
    KEYS6_BYTES,
    KEYS_BYTES,
    KEYS_LABEL,
    KEYS_PORTS,
    KEYS_PROTOCOL,
    KEYS_SOURCE,
)
from xdp_runtime.fib.host import INET, Action
from xdp_runtime.fib.params import Answer
from xdp_runtime.siphash import SIPHASH
from xdp_runtime.template import Template

Factory = Callable[..., Any]
_U32 = 0xFFFFFFFF

# the query: u64 each.  ports and label as they lie in the packet
(Q_HIGH, Q_LOW, Q_SOURCE, Q_SOURCE_LOW, Q_IIF, Q_OIF, Q_VRF, Q_OUT, Q_TOS, Q_LABEL, Q_MARK, Q_NEAR,
 Q_KNOWN, Q_PROTOCOL, Q_SPORT, Q_DPORT, Q_ROUTE, Q_LEG) = range(0, 144, 8)
QUERY_BYTES = 144
NEXT = -1  # not found here: look in another table
_TO_TABLE, _GOTO, _NOP = int(Action.TO_TABLE), int(Action.GOTO), int(Action.NOP)
_BLACKHOLE, _PROHIBITED = int(Answer.BLACKHOLE), int(Answer.PROHIBIT)
_NOT_FORWARDED = int(Answer.NOT_FORWARDED)
_RULE_UNREACHABLE, _RULE_PROHIBIT = int(Action.UNREACHABLE), int(Action.PROHIBIT)


# --- what there is --------------------------------------------------------------------------------
def _interface(m: Any) -> Factory:
    def fib_interface(snap, ifindex):  # type: ignore
        base = m.gep(snap, m.load_u32(snap, y.S_INTERFACES))
        slots = m.load_u32(snap, y.S_INTERFACES_MASK)
        at = ifindex & slots
        row = m.gep(base, at * y.INTERFACE_BYTES)
        while m.load_u32(row, y.I_IFINDEX) != 0:
            if m.load_u32(row, y.I_IFINDEX) == ifindex:
                return row
            at = (at + 1) & slots
            row = m.gep(base, at * y.INTERFACE_BYTES)
        return m.null()

    return fib_interface


INTERFACE = Template("fib_interface", _interface, "ptr(ptr, i64)")


def _neighbour(m: Any) -> Factory:
    def fib_neighbour(snap, ifindex, family, high, low):  # type: ignore
        mixed = high ^ m.mul(low, y.MIX2_SIGNED) ^ m.mul((ifindex << 8) | family, y.MIX1_SIGNED)
        base = m.gep(snap, m.load_u32(snap, y.S_NEIGHBOURS))
        slots = m.load_u32(snap, y.S_NEIGHBOURS_MASK)
        at = m.lshr(m.mul(mixed, y.MIX1_SIGNED), 32) & slots
        row = m.gep(base, at * y.NEIGHBOUR_BYTES)
        while m.load_u32(row, y.N_IFINDEX) != 0:
            if (m.load_u32(row, y.N_IFINDEX) == ifindex and m.load_u32(row, y.N_FAMILY) == family
                    and m.load_u64(row, y.N_HIGH) == high and m.load_u64(row, y.N_LOW) == low):
                return row
            at = (at + 1) & slots
            row = m.gep(base, at * y.NEIGHBOUR_BYTES)
        return m.null()

    return fib_neighbour


NEIGHBOUR = Template("fib_neighbour", _neighbour, "ptr(ptr, i64, i64, i64, i64)", inline=False)


def _node(m: Any) -> Factory:
    def fib_node(snap, table, high, low):  # type: ignore
        """Where the node of the longest prefix is, 0: there is none."""
        head = m.gep(snap, table)
        index = m.gep(snap, m.load_u32(head, y.T_INDEX))
        bounds = m.gep(snap, m.load_u32(head, y.T_BOUNDS))
        top = m.lshr(high, m.load_u32(head, y.T_SHIFT))
        first = m.load_u32(index, top << 2)
        last = m.load_u32(index, (top << 2) + 4)
        while first < last:
            middle = (first + last + 1) >> 1
            bound = m.gep(bounds, middle * y.BOUND_BYTES)
            above = m.load_u64(bound, y.B_HIGH)
            if m.ult(high, above) or (high == above and m.ult(low, m.load_u64(bound, y.B_LOW))):
                last = middle - 1
            else:
                first = middle
        return m.load_u32(m.gep(bounds, first * y.BOUND_BYTES), y.B_NODE)

    return fib_node


NODE = Template("fib_node", _node, "i64(ptr, i64, i64, i64)")


def _table(m: Any) -> Factory:
    def fib_table(snap, family, number):  # type: ignore
        """Where a table is, 0: it does not exist."""
        at, end = m.load_u32(snap, y.S_TABLES), m.load_u32(snap, y.S_TABLES_END)
        while at < end:
            row = m.gep(snap, at)
            if m.load_u32(row, y.T_FAMILY) == family and m.load_u32(row, y.T_NUMBER) == number:
                return m.load_u32(row, y.T_OFFSET)
            at += y.TABLE_ENTRY_BYTES
        return 0

    return fib_table


TABLE = Template("fib_table", _table, "i64(ptr, i64, i64)", inline=False)


# --- rules ----------------------------------------------------------------------------------------
def _covers(m: Any) -> Factory:
    def fib_covers(row, prefix, mask, high, low):  # type: ignore
        return (((m.load_u64(row, prefix) ^ high) & m.load_u64(row, mask))
                | ((m.load_u64(row, prefix + 8) ^ low) & m.load_u64(row, mask + 8)))

    return fib_covers


COVERS = Template("fib_covers", _covers, "i64(ptr, i64, i64, i64, i64)")


def _port(m: Any) -> Factory:
    def fib_port(rule, field, port):  # type: ignore
        port = m.swap16(port)
        mask = m.load_u32(rule, field + 8)
        if mask != 0:
            return 1 if (m.load_u32(rule, field) ^ port) & mask == 0 else 0
        return 1 if m.load_u32(rule, field) <= port <= m.load_u32(rule, field + 4) else 0

    return fib_port


PORT = Template("fib_port", _port, "i64(ptr, i64, i64)", inline=False)


def _selects(m: Any) -> Factory:
    covers, port = m.extern(COVERS), m.extern(PORT)

    def fib_selects(rule, q, six):  # type: ignore
        flags, iif, oif = m.load_u32(rule, y.R_FLAGS), m.load_u32(rule, y.R_IIF), m.load_u32(
            rule, y.R_OIF)
        if flags & y.NEVER != 0:
            return 0
        if iif != 0:
            if flags & y.IIF_IS_VRF != 0:
                if m.load_u64(q, Q_OUT) != 0 or m.load_u64(q, Q_VRF) != iif:
                    return 0
            elif m.load_u64(q, Q_IIF) != iif:
                return 0
        if oif != 0:
            if flags & y.OIF_IS_VRF != 0:
                if m.load_u64(q, Q_OUT) == 0 or m.load_u64(q, Q_VRF) != oif:
                    return 0
            elif m.load_u64(q, Q_OIF) != oif:
                return 0
        if (m.load_u32(rule, y.R_MARK) ^ m.load_u64(q, Q_MARK)) & m.load_u32(rule, y.R_MARK_MASK):
            return 0
        if flags & y.OF_VRF != 0 and m.load_u64(q, Q_VRF) == 0:
            return 0
        if six != 0 and m.load_u32(rule, y.R_SOURCE_LENGTH) != 0 and m.load_u64(q, Q_KNOWN) == 0:
            return 0
        if covers(rule, y.R_SOURCE, y.R_SOURCE_MASK, m.load_u64(q, Q_SOURCE),
                  m.load_u64(q, Q_SOURCE_LOW)) != 0:
            return 0
        if covers(rule, y.R_KEY, y.R_KEY_MASK, m.load_u64(q, Q_HIGH), m.load_u64(q, Q_LOW)) != 0:
            return 0
        tos, old_tos = m.load_u64(q, Q_TOS), m.load_u32(rule, y.R_TOS)
        if (m.load_u32(rule, y.R_DSCP) ^ tos) & m.load_u32(rule, y.R_DSCP_MASK) != 0:
            return 0
        if old_tos != 0 and old_tos != tos & 0x1C:
            return 0
        label = m.swap32(m.load_u64(q, Q_LABEL)) & 0xFFFFF
        if (m.load_u32(rule, y.R_LABEL) ^ label) & m.load_u32(rule, y.R_LABEL_MASK) != 0:
            return 0
        protocol = m.load_u32(rule, y.R_PROTOCOL)
        if protocol != 0 and protocol != m.load_u64(q, Q_PROTOCOL):
            return 0
        if port(rule, y.R_SPORT, m.load_u64(q, Q_SPORT)) == 0:
            return 0
        return port(rule, y.R_DPORT, m.load_u64(q, Q_DPORT))

    return fib_selects


SELECTS = Template("fib_selects", _selects, "i64(ptr, ptr, i64)", (COVERS, PORT), inline=False)


def _update(m: Any) -> Factory:
    interface = m.extern(INTERFACE)

    def fib_update(snap, q):  # type: ignore
        """l3mdev_update_flow"""
        oif, iif = m.load_u64(q, Q_OIF), m.load_u64(q, Q_IIF)
        if oif != 0:
            row = interface(snap, oif)
            if not m.is_null(row):
                m.store_u64(q, Q_VRF, m.load_u32(row, y.I_MASTER))
                if m.load_u32(row, y.I_VRF) != 0:
                    m.store_u64(q, Q_OIF, 0)
                return 0
        m.store_u64(q, Q_OUT, 0)
        if iif > 1:
            row = interface(snap, iif)
            if not m.is_null(row):
                m.store_u64(q, Q_VRF, m.load_u32(row, y.I_MASTER))
        return 0

    return fib_update


UPDATE = Template("fib_update", _update, "i64(ptr, ptr)", (INTERFACE,), inline=False)


def _suppressed(m: Any) -> Factory:
    interface = m.extern(INTERFACE)

    def fib_suppressed(snap, rule, q):  # type: ignore
        """fib4_rule_suppress"""
        length, group = m.load_i32(rule, y.R_SUPPRESS_LENGTH), m.load_i32(rule, y.R_SUPPRESS_GROUP)
        route = m.gep(snap, m.load_u64(q, Q_ROUTE))
        if m.load_u32(route, y.U_LENGTH) <= length:
            return 1
        if group != -1:
            row = interface(snap, m.load_u32(m.gep(snap, m.load_u32(route, y.U_LEGS)),
                                             y.L_IFINDEX))
            if not m.is_null(row) and m.load_u32(row, y.I_GROUP) == group:
                return 1
        return 0

    return fib_suppressed


SUPPRESSED = Template("fib_suppressed", _suppressed, "i64(ptr, ptr, ptr)", (INTERFACE,),
                      inline=False)


def by_rules(name: str, in_table: Template, six: bool) -> Template:
    """Walks the rules of a family.  0: found; else an Answer."""
    start, stop = (y.S_RULES6, y.S_RULES6_END) if six else (y.S_RULES4, y.S_RULES4_END)
    of_vrf = y.I_VRF6 if six else y.I_VRF4
    main = y.S_MAIN6 if six else y.S_MAIN4
    family = 1 if six else 0

    def factory(m: Any) -> Factory:
        look, selects, update = m.extern(in_table), m.extern(SELECTS), m.extern(UPDATE)
        suppressed, interface = m.extern(SUPPRESSED), m.extern(INTERFACE)

        def fib_by_rules(snap, q):  # type: ignore
            update(snap, q)
            at, end = m.load_u32(snap, start), m.load_u32(snap, stop)
            while at < end:
                rule = m.gep(snap, at)
                at += y.RULE_BYTES
                flags, action = m.load_u32(rule, y.R_FLAGS), m.load_u32(rule, y.R_ACTION)
                if selects(rule, q, family) != flags & y.INVERT and action != _NOP:
                    if action == _GOTO:
                        at = m.load_u32(rule, y.R_TARGET)
                    elif action != _TO_TABLE:
                        if family == 1 or action == _RULE_UNREACHABLE:
                            return _NOT_FORWARDED
                        return _PROHIBITED if action == _RULE_PROHIBIT else _BLACKHOLE
                    else:
                        table = m.load_u32(rule, y.R_TABLE)
                        if flags & y.OF_VRF != 0:
                            table = m.load_u32(snap, main)
                            row = interface(snap, m.load_u64(q, Q_VRF))
                            if not m.is_null(row) and m.load_u32(row, y.I_VRF) != 0:
                                table = m.load_u32(row, of_vrf)
                        if table != 0:
                            code = look(snap, table, q)
                            if code > 0:
                                return code
                            if code == 0 and (family == 1 or suppressed(snap, rule, q) == 0):
                                return 0
            return _NOT_FORWARDED

        return fib_by_rules

    return Template(name, factory, "i64(ptr, ptr)",
                    (in_table, SELECTS, UPDATE, SUPPRESSED, INTERFACE), inline=False)


# --- legs -----------------------------------------------------------------------------------------
def _hash(m: Any) -> Factory:
    siphash = m.extern(SIPHASH)

    def fib_hash(q, fields, seed, six):  # type: ignore
        """31 bits; see flowhash.py."""
        if fields == 0:
            return 0
        keys = m.gep(m.alloca(72), 0)
        m.zero(keys, 72)
        source, destination = m.load_u64(q, Q_SOURCE), m.load_u64(q, Q_HIGH)
        source_low, low = m.load_u64(q, Q_SOURCE_LOW), m.load_u64(q, Q_LOW)
        if fields & BY_SOURCE == 0:
            source = 0
            source_low = 0
        if fields & BY_DESTINATION == 0:
            destination = 0
            low = 0
        if six == 0:
            source, destination = m.swap32(m.lshr(source, 32)), m.swap32(m.lshr(destination, 32))
            if destination < source:
                source, destination = destination, source
            m.store_u32(keys, KEYS_SOURCE, source)
            m.store_u32(keys, KEYS_SOURCE + 4, destination)
        else:
            if m.ult(destination, source) or (destination == source and m.ult(low, source_low)):
                source, destination = destination, source
                source_low, low = low, source_low
            m.store_u64(keys, KEYS_SOURCE, m.swap64(source))
            m.store_u64(keys, KEYS_SOURCE + 8, m.swap64(source_low))
            m.store_u64(keys, KEYS_SOURCE + 16, m.swap64(destination))
            m.store_u64(keys, KEYS_SOURCE + 24, m.swap64(low))
        sport, dport = 0, 0
        if fields & BY_SPORT != 0:
            sport = m.load_u64(q, Q_SPORT)
        if fields & BY_DPORT != 0:
            dport = m.load_u64(q, Q_DPORT)
        if dport < sport:
            sport, dport = dport, sport
        m.store_u16(keys, KEYS_PORTS, sport)
        m.store_u16(keys, KEYS_PORTS + 2, dport)
        if fields & BY_PROTOCOL != 0:
            m.store_u8(keys, KEYS_PROTOCOL, m.load_u64(q, Q_PROTOCOL))
        if fields & BY_LABEL != 0:
            m.store_u32(keys, KEYS_LABEL, m.load_u64(q, Q_LABEL) & 0xFFFF0F00)
        secret = m.gep(m.alloca(16), 0)
        for word in range(4):
            m.store_u32(secret, word << 2, seed)
        size = KEYS_BYTES
        if six != 0:
            size = KEYS6_BYTES
        number = siphash(keys, size, secret) & _U32
        if number == 0:
            number = 1
        return number >> 1

    return fib_hash


HASH = Template("fib_hash", _hash, "i64(ptr, i64, i64, i64)", (SIPHASH,), inline=False)


def _good(m: Any) -> Factory:
    interface, neighbour = m.extern(INTERFACE), m.extern(NEIGHBOUR)

    def fib_good(snap, leg):  # type: ignore
        """fib_good_nh: nothing is known against its neighbour"""
        family, ifindex = m.load_u32(leg, y.L_FAMILY), m.load_u32(leg, y.L_IFINDEX)
        way = interface(snap, ifindex)
        if family == 0 or m.is_null(way):
            return 1
        high, low = m.load_u64(leg, y.L_HIGH), m.load_u64(leg, y.L_LOW)
        if family == INET and m.load_u32(way, y.I_FLAGS) & y.KEYLESS != 0:
            high = 0
        row = neighbour(snap, ifindex, family, high, low)
        if m.is_null(row):
            return 1
        return m.load_u8(row, y.N_VALID)

    return fib_good


GOOD = Template("fib_good", _good, "i64(ptr, ptr)", (INTERFACE, NEIGHBOUR), inline=False)


def _choose(m: Any) -> Factory:
    hashed, good = m.extern(HASH), m.extern(GOOD)

    def fib_choose(snap, q, six):  # type: ignore
        """fib_select_path, fib6_select_path, where there are several legs"""
        route = m.gep(snap, m.load_u64(q, Q_ROUTE))
        fields = m.load_u32(snap, y.S_FIELDS6 if six != 0 else y.S_FIELDS4)
        number = hashed(q, fields, m.load_u32(snap, y.S_SEED), six)
        first, end = m.load_u32(route, y.U_LEGS), m.load_u32(route, y.U_LEGS_END)
        group = m.load_u32(route, y.U_FLAGS) & y.GROUP
        check = m.load_u32(snap, y.S_USE_NEIGHBOURS) | group
        if six != 0:
            check = group
        saddr = m.load_u64(q, Q_SOURCE)
        best, score, at = m.load_u64(q, Q_LEG), -1, first
        if group != 0:
            best = first
        while at < end:
            leg = m.gep(snap, at)
            bound = m.load_i32(leg, y.L_BOUND)
            usable = 1
            if check != 0:
                usable = good(snap, leg)
            here = 0
            if group == 0 and six == 0:
                if bound == -1:
                    usable = 0
                if saddr != 0 and m.load_u64(leg, y.L_SOURCE) == saddr:
                    here = 2
            if number <= bound:
                here += 1
            if (six != 0 and group == 0) and here == 0:
                usable = 0
            if usable != 0 and here > score:
                best = at
                score = here
            at += y.LEG_BYTES
        m.store_u64(q, Q_LEG, best)
        return 0

    return fib_choose


CHOOSE = Template("fib_choose", _choose, "i64(ptr, ptr, i64)", (HASH, GOOD), inline=False)
