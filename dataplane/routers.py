"""IPv6 default routes the kernel learnt from router advertisements.

The kernel knows them by flags that routing netlink cannot set.  One written back by netlink looks
the same, but the next advertisement collides with it, and the kernel then ignores the rest of that
advertisement, so that addresses are renewed no more and expire (seen on Linux 6.18).  Therefore:

* the TAP gets them by the old ioctl, which does take the flags (and calls them `proto boot`);
* the interface gets a substitute, one worse in metric, with the lifetime that is left, and a router
  is asked to advertise; when the kernel has learnt the route again, the substitute is removed.  If
  no router answers at once, it expires by itself.

Where a daemon listens to routers instead (accept_ra 0) routes are its own and moved as all others.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import socket
import struct
import time
from collections.abc import Mapping

from dataplane import hostnet
from dataplane import netlink as nl
from dataplane.netrecord import RTA_EXPIRES, RTA_GATEWAY, RTA_PREF, RTA_PRIORITY, Route

RTPROT_STATIC, RTPROT_RA, RT_TABLE_MAIN = 4, 9, 254
SIOCADDRT = 0x890B
RTF_UP, RTF_GATEWAY, RTF_DEFAULT, RTF_ADDRCONF, RTF_EXPIRES = 1, 2, 0x10000, 0x40000, 0x400000
RTF_PREF_SHIFT = 27
USER_HZ = 100
ROUTER_SOLICITATION = 133
ANSWER_TIMEOUT_S = 1.5              # a router may wait half a second


def is_learnt(route: Route, sysctls: Mapping[str, str]) -> bool:
    listens = sysctls.get("ipv6/accept_ra"), sysctls.get("ipv6/forwarding")
    return (route.family == socket.AF_INET6 and route.proto == RTPROT_RA
            and route.table == RT_TABLE_MAIN and route.prefixlen == 0
            and route.gateway is not None
            and (listens[0] == "2" or listens == ("1", "0")))


def add_learnt(route: Route, index: int) -> None:
    """By interface `index`, such that the kernel renews it.  Raises OSError."""
    plain = route.written()
    gateway, pref = plain.get(RTA_GATEWAY), plain.get(RTA_PREF) or b"\0"
    expires_s = plain.number(RTA_EXPIRES)
    flags = RTF_UP | RTF_GATEWAY | RTF_DEFAULT | RTF_ADDRCONF | pref[0] << RTF_PREF_SHIFT
    flags |= 0 if expires_s is None else RTF_EXPIRES
    request = struct.pack("@16s16s16sIHHILIi", bytes(16), bytes(16), gateway, 0, 0, 0,
                          route.metric, (expires_s or 0) * USER_HZ, flags, index)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            fcntl.ioctl(sock, SIOCADDRT, request)
        except OSError as e:
            if e.errno != errno.EEXIST:
                raise


def substitute(route: Route) -> Route:
    """Expires as the learnt one would have."""
    return route.with_proto(RTPROT_STATIC).with_attrs(
        {RTA_PRIORITY: struct.pack("=I", route.metric + 1)})


def learn_again(net: nl.Netlink, index: int, learnt: list[Route]) -> None:
    """Asks the routers, and removes the substitute of each route that the kernel has again."""
    if not learnt:
        return
    with contextlib.suppress(OSError):
        _solicit(index)
    deadline_s = time.monotonic() + ANSWER_TIMEOUT_S
    missing = {(r.gateway, r.metric): r for r in learnt}
    while missing and time.monotonic() < deadline_s:
        for route in hostnet.read_routes(net):
            if route.proto == RTPROT_RA and route.interfaces == (index,):
                found = missing.pop((route.gateway, route.metric), None)
                if found is not None:
                    with contextlib.suppress(nl.NetlinkError):
                        net.request(nl.RTM_DELROUTE, substitute(found.written()).message())
        time.sleep(0.02)


def _solicit(index: int) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_RAW | socket.SOCK_CLOEXEC,
                       socket.IPPROTO_ICMPV6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        sock.sendto(struct.pack("!BBHI", ROUTER_SOLICITATION, 0, 0, 0), ("ff02::2", 0, 0, index))
