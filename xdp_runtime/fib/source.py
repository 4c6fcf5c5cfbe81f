"""The source address that the kernel would choose for IPv6: ipv6_dev_get_saddr, RFC 6724."""

from __future__ import annotations

from xdp_runtime.fib.host import BITS, Address6, Host, Interface, covers

_NO_SCOPE, _LINK_LOCAL, _SITE_LOCAL, _GLOBAL = -1, 2, 5, 14
_NO_LABEL = 0xFFFFFFFF


def choose_source(host: Host, way: Interface, destination: int) -> int | None:
    """None: there is none."""
    scope, label = scope_of(destination), label_of(host, destination, way.ifindex)
    own = scope <= _LINK_LOCAL or (way.inet6 and way.own_sources6)
    best, best_score = None, -1
    for address in host.addresses6:
        if own and address.ifindex != way.ifindex:
            continue
        if not own and _master(host, address.ifindex) != _master(host, way.ifindex):
            continue
        score = _score(host, address, way, destination, scope, label)
        if score > best_score:
            best, best_score = address.key, score
    return best


def _master(host: Host, ifindex: int) -> int:
    found = next((each for each in host.interfaces if each.ifindex == ifindex), None)
    if found is None:
        return 0
    return found.ifindex if found.vrf_table else found.master


def _score(host: Host, address: Address6, way: Interface, destination: int, scope: int,
           label: int) -> int:
    """The rules' scores, one below the other in one number."""
    own_scope = scope_of(address.key)
    fit = 256 - own_scope if own_scope >= scope else own_scope
    same_label = label_of(host, address.key, address.ifindex) == label
    orchid = is_orchid(address.key) == is_orchid(destination)
    common = min(BITS - (address.key ^ destination).bit_length(), address.length)
    return ((address.key == destination) << 24 | fit << 15 | address.preferred << 14
            | (address.ifindex == way.ifindex) << 13 | same_label << 12 | address.private << 11
            | orchid << 10 | common << 1 | (not address.optimistic))


def scope_of(key: int) -> int:
    """__ipv6_addr_src_scope of a unicast address"""
    if key == 0:
        return _NO_SCOPE
    if key == 1 or key >> 118 == 0xFE80 >> 6:
        return _LINK_LOCAL
    return _SITE_LOCAL if key >> 118 == 0xFEC0 >> 6 else _GLOBAL


def label_of(host: Host, key: int, ifindex: int) -> int:
    """ipv6_addr_label: the longest prefix; of equal ones the kernel's first."""
    fitting = [each for each in host.labels
               if each.ifindex in (0, ifindex) and covers(each.key, each.length, key)]
    return max(fitting, key=lambda each: each.length).label if fitting else _NO_LABEL


def is_orchid(key: int) -> bool:
    """2001:10::/28"""
    return key >> 100 == 0x2001001
