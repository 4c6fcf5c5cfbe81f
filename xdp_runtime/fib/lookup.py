"""The lookup in the tables' memory, compiled: each family's way through a table, and the answer.

See templates.py for what both share, model.py for what it means.
"""

from __future__ import annotations

from typing import Any

from xdp_runtime import state
from xdp_runtime.fib import EXTERNAL
from xdp_runtime.fib import layout as y
from xdp_runtime.fib import params as p
from xdp_runtime.fib.host import INET, INET6, MAIN, RouteType
from xdp_runtime.fib.params import Answer, Flag
from xdp_runtime.fib.templates import (
    CHOOSE,
    COVERS,
    INTERFACE,
    NEIGHBOUR,
    NEXT,
    NODE,
    Q_DPORT,
    Q_HIGH,
    Q_IIF,
    Q_KNOWN,
    Q_LABEL,
    Q_LEG,
    Q_LOW,
    Q_MARK,
    Q_NEAR,
    Q_OIF,
    Q_OUT,
    Q_PROTOCOL,
    Q_ROUTE,
    Q_SOURCE,
    Q_SOURCE_LOW,
    Q_SPORT,
    Q_TOS,
    Q_VRF,
    QUERY_BYTES,
    TABLE,
    Factory,
    by_rules,
)
from xdp_runtime.fib.templates6 import CHOOSE_SOURCE
from xdp_runtime.template import Template

_UNICAST, _THROW = int(RouteType.UNICAST), int(RouteType.THROW)
_BLACKHOLE, _PROHIBIT = int(RouteType.BLACKHOLE), int(RouteType.PROHIBIT)
_TO_ANSWER = _BLACKHOLE - int(Answer.BLACKHOLE)  # the three lie alike in both
_NOT_FORWARDED, _DISABLED = int(Answer.NOT_FORWARDED), int(Answer.FORWARDING_DISABLED)
_ENCAPSULATED, _NO_NEIGHBOUR = int(Answer.ENCAPSULATED), int(Answer.NO_NEIGHBOUR)
_TOO_LONG, _NO_SOURCE = int(Answer.FRAGMENTATION_NEEDED), int(Answer.NO_SOURCE)
_DIRECT, _OUTPUT, _SKIP_NEIGH, _TBID, _SRC, _MARK = (int(flag) for flag in Flag)
_BEHIND_FLAGS = ~p.KNOWN_FLAGS & 0xFFFFFFFF


# --- IPv4 -----------------------------------------------------------------------------------------
def _in_table4(m: Any) -> Factory:
    find = m.extern(NODE)

    def fib_in_table4(snap, table, q):  # type: ignore
        """0: found; NEXT; else an Answer"""
        node = find(snap, table, m.load_u64(q, Q_HIGH), 0)
        tos, oif = m.load_u64(q, Q_TOS) & 0x1C, m.load_u64(q, Q_OIF)
        while node != 0:
            row = m.gep(snap, node)
            at, end = m.load_u32(row, y.D_ROUTES), m.load_u32(row, y.D_ROUTES_END)
            node = m.load_u32(row, y.D_PARENT)
            while at < end:
                route = m.gep(snap, at)
                dscp, kind = m.load_u32(route, y.U_DSCP), m.load_u32(route, y.U_TYPE)
                if dscp == 0 or dscp == tos:
                    if kind == _THROW:
                        return NEXT
                    if _BLACKHOLE <= kind <= _PROHIBIT:
                        return kind - _TO_ANSWER
                    flags = m.load_u32(route, y.U_FLAGS)
                    if flags & y.DEAD == 0:
                        leg, last = m.load_u32(route, y.U_LEGS), m.load_u32(route, y.U_LEGS_END)
                        while leg < last:
                            each = m.gep(snap, leg)
                            if m.load_u16(each, y.L_FLAGS) & y.LEG_DEAD == 0 and (
                                    oif == 0 or oif == m.load_u32(each, y.L_IFINDEX)):
                                m.store_u64(q, Q_ROUTE, at)
                                m.store_u64(q, Q_LEG, leg)
                                return 0
                            leg += y.LEG_BYTES
                        if flags & y.BY_OBJECT != 0:
                            node = m.load_u32(row, y.D_OTHER)
                            at = end
                at += y.ROUTE_BYTES
        return NEXT

    return fib_in_table4


IN_TABLE4 = Template("fib_in_table4", _in_table4, "i64(ptr, i64, ptr)", (NODE,), inline=False)
BY_RULES4 = by_rules("fib_by_rules4", IN_TABLE4, six=False)


def _any_table4(m: Any) -> Factory:
    look, rules = m.extern(IN_TABLE4), m.extern(BY_RULES4)

    def fib_any_table4(snap, q):  # type: ignore
        """fib_lookup"""
        if m.load_u32(snap, y.S_PLAIN4) == 0:
            return rules(snap, q)
        code = NEXT
        table, default = m.load_u32(snap, y.S_MAIN4), m.load_u32(snap, y.S_DEFAULT4)
        if table != 0:
            code = look(snap, table, q)
        if code == NEXT and default != 0:
            code = look(snap, default, q)
        return code

    return fib_any_table4


ANY_TABLE4 = Template("fib_any_table4", _any_table4, "i64(ptr, ptr)", (IN_TABLE4, BY_RULES4))


# --- IPv6 -----------------------------------------------------------------------------------------
def _in_table6(m: Any) -> Factory:
    find, covers = m.extern(NODE), m.extern(COVERS)

    def fib_in_table6(snap, table, q):  # type: ignore
        """0: found; NEXT"""
        node = find(snap, table, m.load_u64(q, Q_HIGH), m.load_u64(q, Q_LOW))
        near, begun = m.load_u64(q, Q_NEAR), 0
        while node != 0:
            row = m.gep(snap, node)
            best, score = 0, -1
            if m.load_u32(row, y.D_SOURCE_LENGTH) != 0:
                skip = covers(row, y.D_SOURCE, y.D_SOURCE_MASK, m.load_u64(q, Q_SOURCE),
                              m.load_u64(q, Q_SOURCE_LOW))
            else:
                skip = m.load_u32(row, y.D_NO_START) & (1 - begun)
            if skip == 0:
                begun = 1
                at, end = m.load_u32(row, y.D_ROUTES), m.load_u32(row, y.D_ROUTES_END)
                metric, first = m.load_u32(m.gep(snap, at), y.U_METRIC), 1
                while at < end:
                    route = m.gep(snap, at)
                    flags = m.load_u32(route, y.U_FLAGS)
                    if first != 0 and m.load_u32(route, y.U_METRIC) != metric:
                        if score >= 0:
                            break
                        first = 0
                    leg, last = m.load_u32(route, y.U_LEGS), m.load_u32(route, y.U_LEGS_END)
                    if flags & y.BLACK_HOLE != 0:
                        best, score = at, 1 << 20
                        m.store_u64(q, Q_LEG, leg)
                        break
                    while leg < last:
                        each = m.gep(snap, leg)
                        here = m.load_u32(route, y.U_PREFERENCE)
                        if m.load_u32(each, y.L_IFINDEX) == near:
                            here = here | 2
                        if m.load_u16(each, y.L_FLAGS) & y.LEG_DEAD == 0 and here > score:
                            best, score = at, here
                            m.store_u64(q, Q_LEG, leg)
                            if flags & y.GROUP != 0:
                                leg = last
                        leg += y.LEG_BYTES
                    at += y.ROUTE_BYTES
            if score >= 0:
                m.store_u64(q, Q_ROUTE, best)
                return 0
            node = m.load_u32(row, y.D_PARENT)
        return NEXT

    return fib_in_table6


IN_TABLE6 = Template("fib_in_table6", _in_table6, "i64(ptr, i64, ptr)", (NODE, COVERS),
                     inline=False)
BY_RULES6 = by_rules("fib_by_rules6", IN_TABLE6, six=True)


def _any_table6(m: Any) -> Factory:
    look, rules = m.extern(IN_TABLE6), m.extern(BY_RULES6)

    def fib_any_table6(snap, q):  # type: ignore
        """fib6_lookup"""
        if m.load_u32(snap, y.S_PLAIN6) == 0:
            return rules(snap, q)
        code = NEXT
        local, table = m.load_u32(snap, y.S_LOCAL6), m.load_u32(snap, y.S_MAIN6)
        if local != 0:
            code = look(snap, local, q)
        if code == NEXT and table != 0:
            code = look(snap, table, q)
        return code

    return fib_any_table6


ANY_TABLE6 = Template("fib_any_table6", _any_table6, "i64(ptr, ptr)", (IN_TABLE6, BY_RULES6))


# --- both -----------------------------------------------------------------------------------------
def _answer(m: Any) -> Factory:
    interface, neighbour = m.extern(INTERFACE), m.extern(NEIGHBOUR)
    choose_source = m.extern(CHOOSE_SOURCE)

    def fib_answer(snap, q, s, flags, six):  # type: ignore
        """What is known of the packet's way, into the struct."""
        route, leg = m.gep(snap, m.load_u64(q, Q_ROUTE)), m.gep(snap, m.load_u64(q, Q_LEG))
        way = interface(snap, m.load_u32(leg, y.L_IFINDEX))
        if m.is_null(way):
            return _NOT_FORWARDED
        mtu = m.load_u32(route, y.U_MTU)
        if six == 0 and m.load_u32(snap, y.S_ROUTE_MTU) != 0:
            mtu = m.load_u32(route, y.U_OWN_MTU)
        if mtu == 0:
            if six != 0:
                mtu = m.load_u32(way, y.I_MTU6)
                if mtu < p.IP6_MIN_MTU:
                    mtu = p.IP6_MIN_MTU
                mtu = m.smaller(mtu, p.IP6_MAX_MTU)
            else:
                mtu = m.smaller(m.load_u32(way, y.I_MTU), p.IP_MAX_MTU)
        headroom = m.load_u16(leg, y.L_HEADROOM)
        if headroom < mtu:
            mtu -= headroom
        if m.load_u16(s, p.LENGTH) > mtu:
            m.store_u16(s, p.MTU, mtu)
            return _TOO_LONG
        if m.load_u16(leg, y.L_FLAGS) & y.ENCAPSULATES != 0:
            return _ENCAPSULATED
        by = m.load_u32(leg, y.L_FAMILY)
        high, low = m.load_u64(leg, y.L_HIGH), m.load_u64(leg, y.L_LOW)
        family = INET6 if six != 0 else INET
        m.store_u32(s, p.METRIC, m.load_u32(route, y.U_METRIC))
        ifindex = m.load_u32(way, y.I_IFINDEX)
        m.store_u32(s, p.IFINDEX, ifindex)
        if by == 0:
            high, low = m.load_u64(q, Q_HIGH), m.load_u64(q, Q_LOW)
        elif by == INET6:
            if six != 0:
                m.store_u64(s, p.DESTINATION, m.swap64(high))
                m.store_u64(s, p.DESTINATION + 8, m.swap64(low))
        if flags & _SRC != 0:
            has = m.load_u32(route, y.U_FLAGS) & y.HAS_SOURCE
            if six == 0:
                source = m.load_u64(leg, y.L_SOURCE)
                if has != 0:
                    source = m.load_u64(route, y.U_SOURCE)
                m.store_u32(s, p.SOURCE, m.swap32(m.lshr(source, 32)))
            else:
                source = m.gep(route, y.U_SOURCE)
                if has == 0:
                    source = choose_source(snap, q, way)
                    if m.is_null(source):
                        return _NO_SOURCE
                m.store_u64(s, p.SOURCE, m.swap64(m.load_u64(source, 0)))
                m.store_u64(s, p.SOURCE + 8, m.swap64(m.load_u64(source, 8)))
        if six == 0 and by == INET:
            m.store_u32(s, p.DESTINATION, m.swap32(m.lshr(high, 32)))
        elif six == 0 and by == INET6:
            family = INET6
            m.store_u8(s, p.FAMILY, INET6)
            m.store_u64(s, p.DESTINATION, m.swap64(high))
            m.store_u64(s, p.DESTINATION + 8, m.swap64(low))
        if flags & _SKIP_NEIGH == 0:
            if family == INET and m.load_u32(way, y.I_FLAGS) & y.KEYLESS != 0:
                high = 0
            row = neighbour(snap, ifindex, family, high, low)
            if m.is_null(row):
                return _NO_NEIGHBOUR
            if m.load_u8(row, y.N_VALID) == 0:
                return _NO_NEIGHBOUR
            m.copy(m.gep(s, p.DMAC), m.gep(row, y.N_MAC), 6)
            m.copy(m.gep(s, p.SMAC), m.gep(way, y.I_MAC), 6)
        m.store_u32(s, p.VLAN, 0)
        m.store_u16(s, p.MTU, mtu)
        return 0

    return fib_answer


ANSWER = Template("fib_answer", _answer, "i64(ptr, ptr, ptr, i64, i64)",
                  (INTERFACE, NEIGHBOUR, CHOOSE_SOURCE), inline=False)


def _strict(m: Any) -> Factory:
    def fib_strict(high, low):  # type: ignore
        """rt6_need_strict: multicast, link-local, loopback are never forwarded"""
        if m.lshr(high, 56) == 0xFF or m.lshr(high, 54) == 0x3FA:
            return 1
        return 1 if high == 0 and low == 1 else 0

    return fib_strict


STRICT = Template("fib_strict", _strict, "i64(i64, i64)")


def _lookup_in(m: Any) -> Factory:
    interface, strict, number = m.extern(INTERFACE), m.extern(STRICT), m.extern(TABLE)
    any4, any6 = m.extern(ANY_TABLE4), m.extern(ANY_TABLE6)
    look4, look6 = m.extern(IN_TABLE4), m.extern(IN_TABLE6)
    choose, answer = m.extern(CHOOSE), m.extern(ANSWER)

    def fib_lookup_in(snap, s, flags, six):  # type: ignore
        q = m.gep(m.alloca(144), 0)
        if six != 0:
            m.store_u64(q, Q_HIGH, m.swap64(m.load_u64(s, p.DESTINATION)))
            m.store_u64(q, Q_LOW, m.swap64(m.load_u64(s, p.DESTINATION + 8)))
            m.store_u64(q, Q_SOURCE, m.swap64(m.load_u64(s, p.SOURCE)))
            m.store_u64(q, Q_SOURCE_LOW, m.swap64(m.load_u64(s, p.SOURCE + 8)))
            if strict(m.load_u64(q, Q_HIGH), m.load_u64(q, Q_LOW)) != 0:
                return _NOT_FORWARDED
            if strict(m.load_u64(q, Q_SOURCE), m.load_u64(q, Q_SOURCE_LOW)) != 0:
                return _NOT_FORWARDED
        else:
            m.store_u64(q, Q_HIGH, m.swap32(m.load_u32(s, p.DESTINATION)) << 32)
            m.store_u64(q, Q_LOW, 0)
            m.store_u64(q, Q_SOURCE, m.swap32(m.load_u32(s, p.SOURCE)) << 32)
            m.store_u64(q, Q_SOURCE_LOW, 0)
        ifindex = m.load_u32(s, p.IFINDEX)
        if ifindex == 0:
            return -p.ENODEV
        row = interface(snap, ifindex)
        if m.is_null(row):
            return -p.ENODEV
        if m.load_u32(row, y.I_FLAGS) & (y.INET6_FORWARDS if six != 0 else y.INET_FORWARDS) == 0:
            return _DISABLED
        out = 1 if flags & _OUTPUT != 0 else 0
        m.store_u64(q, Q_IIF, 1 if out != 0 else ifindex)
        m.store_u64(q, Q_OIF, ifindex if out != 0 else 0)
        m.store_u64(q, Q_VRF, 0)
        m.store_u64(q, Q_OUT, out)
        label = m.load_u32(s, p.TOS)
        m.store_u64(q, Q_LABEL, label if six != 0 else 0)
        tos = m.lshr(m.swap32(label), 20) if six != 0 else label
        m.store_u64(q, Q_TOS, tos & 0xFC)
        m.store_u64(q, Q_MARK, m.load_u32(s, p.MARK) if flags & _MARK != 0 else 0)
        m.store_u64(q, Q_NEAR, ifindex)
        m.store_u64(q, Q_KNOWN, 1 - out)
        m.store_u64(q, Q_PROTOCOL, m.load_u8(s, p.PROTOCOL))
        m.store_u64(q, Q_SPORT, m.load_u16(s, p.SPORT))
        m.store_u64(q, Q_DPORT, m.load_u16(s, p.DPORT))
        code = NEXT
        if flags & _DIRECT != 0:
            table = m.load_u32(row, y.I_DIRECT6 if six != 0 else y.I_DIRECT4)
            if flags & _TBID != 0:
                wanted = m.load_u32(s, p.TABLE)
                table = number(snap, INET6 if six != 0 else INET, wanted if wanted != 0 else MAIN)
                m.store_u32(s, p.TABLE, 0)
            if table != 0:
                code = look6(snap, table, q) if six != 0 else look4(snap, table, q)
        else:
            code = any6(snap, q) if six != 0 else any4(snap, q)
        if code != 0:
            return _NOT_FORWARDED if code == NEXT else code
        route = m.gep(snap, m.load_u64(q, Q_ROUTE))
        kind = m.load_u32(route, y.U_TYPE)
        if kind != _UNICAST:
            if six != 0 and _BLACKHOLE <= kind <= _PROHIBIT:
                return kind - _TO_ANSWER
            return _NOT_FORWARDED
        if m.load_u64(q, Q_OIF) == 0 and (m.load_u32(route, y.U_LEGS_END) - m.load_u32(
                route, y.U_LEGS) > y.LEG_BYTES):
            choose(snap, q, six)
        return answer(snap, q, s, flags, six)

    return fib_lookup_in


assert QUERY_BYTES == 144  # alloca wants a literal
LOOKUP_IN = Template("fib_lookup_in", _lookup_in, "i64(ptr, ptr, i64, i64)",
                     (INTERFACE, STRICT, TABLE, ANY_TABLE4, ANY_TABLE6, IN_TABLE4, IN_TABLE6,
                      CHOOSE, ANSWER), inline=False)


def _fib_lookup(m: Any) -> Factory:
    look, external = m.extern(LOOKUP_IN), m.external(EXTERNAL)

    def fib_lookup(run, s, size, flags):  # type: ignore
        flags = flags & 0xFFFFFFFF
        if ((size & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000 < p.SIZE_BYTES:
            return -p.EINVAL
        if flags & _BEHIND_FLAGS != 0:
            return -p.EINVAL
        tables = external()
        snap = m.gep(tables, m.acquire_u64(tables, y.CURRENT))
        family = m.load_u8(s, p.FAMILY)
        if family == INET:
            return look(snap, s, flags, 0)
        if family == INET6:
            return look(snap, s, flags, 1)
        return -p.EAFNOSUPPORT

    return fib_lookup


def _check_mtu(m: Any) -> Factory:
    interface, external = m.extern(INTERFACE), m.external(EXTERNAL)

    def check_mtu(run, ifindex, length, difference, flags):  # type: ignore
        if flags != 0:
            return -p.EINVAL
        tables = external()
        snap = m.gep(tables, m.acquire_u64(tables, y.CURRENT))
        ifindex = ifindex & 0xFFFFFFFF
        if ifindex == 0:
            ifindex = m.load_u32(run, state.INGRESS_IFINDEX)
        if ifindex == 0:
            return -p.ENODEV
        row = interface(snap, ifindex)
        if m.is_null(row):
            return -p.ENODEV
        mtu, header = m.load_u32(row, y.I_MTU), m.load_u32(row, y.I_HEADER_BYTES)
        size = m.diff(m.load_ptr(run, state.DATA_END), m.load_ptr(run, state.DATA))
        given = m.load_u32(length, 0)
        if given != 0:
            size = given + header
        size = (((size + difference) & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000
        m.store_u32(length, 0, mtu)
        return 1 if size > mtu + header else 0

    return check_mtu


FIB_LOOKUP = Template("fib_lookup", _fib_lookup, "i64(ptr, ptr, i64, i64)", (LOOKUP_IN,),
                      externals=(EXTERNAL,))
CHECK_MTU = Template("check_mtu", _check_mtu, "i64(ptr, i64, ptr, i64, i64)", (INTERFACE,),
                     externals=(EXTERNAL,))
