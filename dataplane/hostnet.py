"""What the kernel's network stack has on one interface, read and never written.

Facts that shape this file:

* The kernel makes a `proto kernel` route for each address (prefix, local, broadcast, multicast).
  Those in the local table come and go with the address and are never written by us.
* IPv4 keeps addresses in the order they were added, IPv6 lists the newest first.
* IPv4 routes to one prefix with one metric are tried in order; where ours stands before another
  interface's, it has to be put back in front, not behind (`ahead`).  IPv6 has no way to put one
  in front: there such routes come back behind, which matters only where two interfaces have the
  same prefix with the same metric.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dataplane import netlink as nl
from dataplane.netrecord import NTF_PROXY, NUD_PERMANENT, Address, Neighbour, Route
from xdp_runtime.errors import PortError

IFF_UP, IFF_PROMISC, IFF_ALLMULTI = 0x1, 0x100, 0x200

SYSCTLS = (
    *(f"ipv4/{key}" for key in (
        "rp_filter", "forwarding", "accept_local", "accept_redirects", "accept_source_route",
        "arp_accept", "arp_announce", "arp_filter", "arp_ignore", "arp_notify", "bc_forwarding",
        "log_martians", "promote_secondaries", "proxy_arp", "proxy_arp_pvlan", "route_localnet",
        "secure_redirects", "send_redirects", "shared_media", "src_valid_mark")),
    *(f"ipv6/{key}" for key in (
        "disable_ipv6", "accept_dad", "forwarding", "accept_ra", "accept_ra_defrtr",
        "accept_ra_pinfo", "accept_ra_rtr_pref", "autoconf", "use_tempaddr", "accept_redirects",
        "hop_limit", "proxy_ndp", "ndisc_notify", "dad_transmits", "router_solicitations")),
)


@dataclass(frozen=True)
class Link:
    index: int
    name: str
    mac: str
    mtu: int
    flags: int
    kind: str = ""
    master: int = 0
    addr_gen_mode: int | None = None
    persistent: bool = True         # a TAP that outlives its process; true for all else

    @property
    def up(self) -> bool:
        return bool(self.flags & IFF_UP)


@dataclass(frozen=True)
class HostState:
    """Addresses are in the order in which adding them one by one gives what was found."""

    link: Link
    addresses: tuple[Address, ...] = ()
    routes: tuple[Route, ...] = ()
    dependents: tuple[Route, ...] = ()      # by other interfaces, with one of our source addresses
    neighbours: tuple[Neighbour, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"link": vars(self.link), "sysctls": dict(self.sysctls), "notes": list(self.notes),
                **{part: [record.to_json() for record in getattr(self, part)]
                   for part in ("addresses", "routes", "dependents", "neighbours")}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> HostState:
        return cls(Link(**data["link"]),
                   tuple(Address.from_json(a) for a in data["addresses"]),
                   tuple(Route.from_json(r) for r in data["routes"]),
                   tuple(Route.from_json(r) for r in data["dependents"]),
                   tuple(Neighbour.from_json(n) for n in data["neighbours"]),
                   data["sysctls"], tuple(data["notes"]))


# ---- reading -------------------------------------------------------------------------------------

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_AF_SPEC = 18, 26
IFLA_INFO_KIND, IFLA_INFO_DATA, IFLA_TUN_PERSIST = 1, 2, 6
IFLA_INET6_ADDR_GEN_MODE = 8
_IFINFO = "=BxHiII"         # ifinfomsg: family, type, index, flags, change
FRA_IIFNAME, FRA_OIFNAME = 3, 17


def read_link(net: nl.Netlink, which: str | int) -> Link:
    """By name or index.  Raises NetlinkError (ENODEV)."""
    index, name = (which, b"") if isinstance(which, int) else (0, which.encode() + b"\0")
    head = struct.pack(_IFINFO, 0, 0, index, 0, 0)
    return _parse_link(net.request(nl.RTM_GETLINK, head + (nl.attr(IFLA_IFNAME, name)
                                                          if name else b""))[0])


def _parse_link(body: bytes) -> Link:
    _, _, index, flags, _ = struct.unpack_from(_IFINFO, body)
    attrs = dict(nl.parse_attrs(body[16:]))
    info = dict(nl.parse_attrs(attrs.get(IFLA_LINKINFO, b"")))
    kind = info.get(IFLA_INFO_KIND, b"").rstrip(b"\0").decode()
    data = dict(nl.parse_attrs(info.get(IFLA_INFO_DATA, b"")))
    families = dict(nl.parse_attrs(attrs.get(IFLA_AF_SPEC, b"")))
    mode = dict(nl.parse_attrs(families.get(socket.AF_INET6, b""))).get(IFLA_INET6_ADDR_GEN_MODE)
    return Link(index, attrs[IFLA_IFNAME].rstrip(b"\0").decode(),
                attrs.get(IFLA_ADDRESS, b"").hex(":"), struct.unpack("=I", attrs[IFLA_MTU])[0],
                flags, kind, struct.unpack("=I", attrs.get(IFLA_MASTER, bytes(4)))[0],
                mode[0] if mode else None,
                kind != "tun" or bool(data.get(IFLA_TUN_PERSIST, b"\1")[0]))


def read_indices(net: nl.Netlink) -> set[int]:
    return {_parse_link(body).index for body in net.dump(nl.RTM_GETLINK, bytes(16))}


def read_addresses(net: nl.Netlink, index: int) -> tuple[Address, ...]:
    """In the order to add them in."""
    found = [Address.from_bytes(body, 8) for body in net.dump(nl.RTM_GETADDR, bytes(8))]
    ours = [a for a in found if a.index == index]
    v4 = [a for a in ours if a.family == socket.AF_INET]
    v6 = [a for a in ours if a.family == socket.AF_INET6]
    return tuple(v4 + v6[::-1])


def read_routes(net: nl.Netlink) -> list[Route]:
    """Of all interfaces and tables."""
    found: list[Route] = []
    for family in (socket.AF_INET, socket.AF_INET6):
        bodies = net.dump(nl.RTM_GETROUTE, struct.pack(Route.LAYOUT, family, *[0] * 8))
        found += [Route.from_bytes(body, 12) for body in bodies]
    return [r for r in found if not r.cloned and r.family in (socket.AF_INET, socket.AF_INET6)]


def read_neighbours(net: nl.Netlink, index: int) -> tuple[Neighbour, ...]:
    found: list[Neighbour] = []
    for flags in (0, NTF_PROXY):
        bodies = net.dump(nl.RTM_GETNEIGH, struct.pack(Neighbour.LAYOUT, 0, 0, 0, flags, 0))
        found += [Neighbour.from_bytes(body, 12) for body in bodies]
    return tuple(n for n in found if n.index == index
                 and (n.proxy or n.state & NUD_PERMANENT)
                 and n.family in (socket.AF_INET, socket.AF_INET6))


def sysctl_path(name: str, key: str) -> Path:
    family, setting = key.split("/")
    return Path("/proc/sys/net") / family / "conf" / name / setting


def read_sysctls(name: str) -> dict[str, str]:
    found = {}
    for key in SYSCTLS:
        try:
            found[key] = sysctl_path(name, key).read_text().strip()
        except OSError:
            continue            # a kernel without IPv6, or older than the setting
    return found


def snapshot(iface: str) -> HostState:
    """What is to be found again.  Raises PortError when the interface is missing or down."""
    with nl.Netlink() as net:
        try:
            link = read_link(net, iface)
        except nl.NetlinkError as e:
            raise missing(net, iface) from e
        if not link.up:
            raise PortError(f"interface {link.name}", "is down", f"ip link set {link.name} up")
        addresses = read_addresses(net, link.index)
        routes = read_routes(net)
        local = {a.local for a in addresses}
        ours = [r for r in routes if link.index in r.interfaces]
        others = [r for r in routes if r.source in local and link.index not in r.interfaces
                  and not r.automatic]
        return HostState(link, addresses, tuple(placed(ours, routes)), tuple(others),
                         read_neighbours(net, link.index), read_sysctls(link.name),
                         tuple(_notes(net, link)))


def placed(ours: Iterable[Route], routes: list[Route]) -> list[Route]:
    """Says of each of `ours`, some of `routes`, whether it is ahead of other interfaces'."""
    last = {r.slot: at for at, r in enumerate(routes)}
    mine = {id(r) for r in ours}
    position = {id(r): at for at, r in enumerate(routes)}
    return [replace(r, ahead=r.family == socket.AF_INET and last[r.slot] > position[id(r)]
                    and id(routes[last[r.slot]]) not in mine) for r in ours]


def missing(net: nl.Netlink, iface: str) -> PortError:
    names = [_parse_link(body).name for body in net.dump(nl.RTM_GETLINK, bytes(16))]
    return PortError(f"interface {iface}", "not found",
                     f"there are {', '.join(n for n in names if n != 'lo') or 'none'} in this "
                     "network namespace")


def _notes(net: nl.Netlink, link: Link) -> Iterable[str]:
    """What a takeover does not carry over; said, not done."""
    if link.master:
        yield (f"{link.name} belongs to {read_link(net, link.master).name}, which will not see "
               "its frames")
    for body in net.dump(nl.RTM_GETLINK, bytes(16)):
        if dict(nl.parse_attrs(body[16:])).get(IFLA_LINK) == struct.pack("=I", link.index):
            other = _parse_link(body)
            if other.kind in ("vlan", "macvlan", "ipvlan", "macvtap", "ipvtap", "macsec"):
                yield f"{other.name} lies on {link.name} and will not see its frames"
    for body in net.dump(nl.RTM_GETRULE, bytes(12)):
        names = [v.rstrip(b"\0").decode() for k, v in nl.parse_attrs(body[12:])
                 if k in (FRA_IIFNAME, FRA_OIFNAME)]
        if link.name in names:
            yield f"an ip rule names {link.name} and will not match while the TAP stands in"
