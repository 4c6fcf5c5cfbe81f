"""Writing addresses, routes, neighbours and settings of an interface; the other half of hostnet.py.

Everything here compares with what is there and does only what is missing, so it can be repeated.
`dress_tap` and `strip` are a takeover's two steps, `put_back` undoes both.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import time
from collections.abc import Iterable, Mapping

from dataplane import hostnet, routers
from dataplane import netlink as nl
from dataplane.hostnet import IFF_ALLMULTI, IFF_PROMISC, IFF_UP, HostState, Link
from dataplane.netrecord import RTPROT_KERNEL, Address, AddressKey, Neighbour, Route

ADDR_GEN_NONE = 1
IFF_NOARP = 0x80
# While addresses are added: none of its own, no duplicate detection, no router listened to.
QUIET = {"ipv6/accept_dad": "0", "ipv6/accept_ra": "0", "ipv6/autoconf": "0",
         "ipv6/use_tempaddr": "0"}
_IFA_F_TENTATIVE = 0x40
_DAD_S = 3.0
_GONE = (errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL, errno.ENODEV)
_NOT_YET = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.ENETDOWN)


def dress_tap(net: nl.Netlink, state: HostState, tap: Link) -> None:
    """The TAP gets all the interface has, which keeps it."""
    link = state.link
    set_link(net, tap.index, mac=link.mac, mtu=link.mtu, addr_gen_mode=ADDR_GEN_NONE)
    write_sysctls(tap.name, {**state.sysctls, **QUIET})
    set_link(net, tap.index, flags=IFF_UP, mask=IFF_UP)
    wanted = [plain for a in state.addresses
              if (plain := a.moved(tap.index, link.name, tap.name).aged(0)) is not None]
    _must(put_addresses(net, tap.index, wanted))
    learnt = [r for r in state.routes if routers.is_learnt(r, state.sysctls)]
    _must(put_routes(net, tap.index, link.index,
                     [r.moved(link.index, tap.index) for r in state.routes if r not in learnt]))
    for route in learnt:
        routers.add_learnt(route, tap.index)
    _must(put_neighbours(net, tap.index, [n.moved(tap.index) for n in state.neighbours]))
    await_addresses(net, tap.index)
    write_sysctls(tap.name, {key: state.sysctls[key] for key in QUIET if key in state.sysctls})


def await_addresses(net: nl.Netlink, index: int) -> None:
    """Until none is tentative.  The kernel looks at accept_dad in a work queue, some time after an
    address was added: of one that finds it on again, duplicates are looked for after all, and it
    cannot be used for a second or two.  On a loaded machine that happens."""
    until_s = time.monotonic() + _DAD_S
    while time.monotonic() < until_s and any(
            address.family == socket.AF_INET6 and address.flags & _IFA_F_TENTATIVE
            for address in hostnet.read_addresses(net, index)):
        time.sleep(0.002)


def strip(net: nl.Netlink, state: HostState) -> None:
    """The interface loses what the TAP has now, and gets no IPv6 address of its own meanwhile."""
    link = state.link
    set_link(net, link.index, addr_gen_mode=ADDR_GEN_NONE, flags=IFF_ALLMULTI, mask=IFF_ALLMULTI)
    for route in hostnet.read_routes(net):
        if link.index in route.interfaces and not route.automatic:
            remove(net, nl.RTM_DELROUTE, route.written())
    if "ipv6/disable_ipv6" in state.sysctls:
        write_sysctls(link.name, {"ipv6/disable_ipv6": "1"})
    for address in reversed(hostnet.read_addresses(net, link.index)):
        remove(net, nl.RTM_DELADDR, address)
    for neighbour in hostnet.read_neighbours(net, link.index):
        remove(net, nl.RTM_DELNEIGH, neighbour.written())


def put_back(net: nl.Netlink, state: HostState, link: Link, tap: Link,
             tap_sysctls: Mapping[str, str], elapsed_s: int) -> list[str]:
    """The interface, found again as `link`, is as in `state`; what could not be put back."""
    found, failed = state.link, []
    renewed = {a.key: a for a in hostnet.read_addresses(net, tap.index)}
    set_link(net, link.index, flags=found.flags, mask=IFF_UP,
             mac=found.mac if link.mac != found.mac else None,
             mtu=found.mtu if link.mtu != found.mtu else None)
    if found.addr_gen_mode is not None:
        set_link(net, link.index, addr_gen_mode=ADDR_GEN_NONE)
    write_sysctls(link.name, {key: value for key, value in QUIET.items() if key in state.sysctls})
    _restore_sysctls(link.name, state.sysctls, ("ipv6/disable_ipv6",))
    before = {r.key for r in hostnet.read_routes(net) if link.index in r.interfaces}
    addresses = _aged(state, link, renewed, elapsed_s)
    failed += put_addresses(net, link.index, addresses)
    expired = {a.local for a in state.addresses} - {a.local for a in addresses}
    wanted = [r.moved(found.index, link.index) if link.index != found.index else r
              for r in state.routes]
    keys = {r.key for r in wanted}
    for route in hostnet.read_routes(net):      # prefix routes the kernel made, not found before
        if (link.index in route.interfaces and route.proto == RTPROT_KERNEL
                and not route.automatic and route.key not in keys | before):
            remove(net, nl.RTM_DELROUTE, route.written())
    there = hostnet.read_indices(net)           # a leg by a TAP that is gone: see `repair`
    aged = [plain for r in wanted if (plain := r.aged(elapsed_s)) is not None
            and plain.source not in expired and there.issuperset(r.interfaces)]
    learnt = [r for r in aged if routers.is_learnt(r, state.sysctls)]
    present = {r.key for r in hostnet.read_routes(net)}
    learnt = [r for r in learnt if r.key not in present]        # never taken away
    aged = [routers.substitute(r) if r in learnt else r for r in aged]
    put_routes(net, link.index, tap.index, aged)
    _undress_tap(net, state, tap, tap_sysctls)
    failed += put_routes(net, link.index, tap.index, aged)  # some needed the TAP's out of the way
    failed += put_dependents(net, state.dependents)
    failed += put_neighbours(net, link.index, [n.moved(link.index) for n in state.neighbours])
    if found.flags & IFF_UP:
        await_addresses(net, link.index)
    _restore_sysctls(link.name, state.sysctls, QUIET)
    visible = IFF_PROMISC | IFF_ALLMULTI | IFF_NOARP | IFF_UP
    set_link(net, link.index, addr_gen_mode=found.addr_gen_mode, flags=found.flags, mask=visible)
    routers.learn_again(net, link.index, learnt)
    return failed


def _aged(state: HostState, link: Link, renewed: Mapping[AddressKey, Address],
          elapsed_s: int) -> list[Address]:
    """With what is left of their lifetimes, or what a renewal on the TAP gave them since."""
    wanted = []
    for address in state.addresses:
        plain = address.aged(elapsed_s)
        fresh = renewed.get(address.key)
        if fresh is not None and fresh.lifetimes_s[1] > (plain.lifetimes_s[1] if plain else 0):
            plain = address.renewed(fresh).aged(0)
        if plain is not None:
            wanted.append(plain.moved(link.index))
    return wanted


def _undress_tap(net: nl.Netlink, state: HostState, tap: Link,
                 tap_sysctls: Mapping[str, str]) -> None:
    """A TAP of ours is removed; one that was there before gets back what it had."""
    try:
        now = hostnet.read_link(net, tap.index)
    except nl.NetlinkError:
        return
    if now.name != tap.name or now.kind != "tun":
        return
    if not tap.persistent:
        with contextlib.suppress(nl.NetlinkError):
            net.request(nl.RTM_DELLINK, struct.pack("=BxHiII", 0, 0, tap.index, 0, 0))
        return
    for route in state.routes:
        if not route.automatic:
            remove(net, nl.RTM_DELROUTE, route.moved(state.link.index, tap.index)
                   .with_proto(0).written())
    for address in reversed(state.addresses):
        remove(net, nl.RTM_DELADDR, address.moved(tap.index, state.link.name, tap.name))
    for neighbour in state.neighbours:
        remove(net, nl.RTM_DELNEIGH, neighbour.moved(tap.index).written())
    _restore_sysctls(tap.name, tap_sysctls, tap_sysctls)
    set_link(net, tap.index, mac=tap.mac, mtu=tap.mtu, flags=tap.flags, mask=IFF_UP,
             addr_gen_mode=tap.addr_gen_mode)


# ---- single steps --------------------------------------------------------------------------------

def set_link(net: nl.Netlink, index: int, *, mac: str | None = None, mtu: int | None = None,
             flags: int = 0, mask: int = 0, addr_gen_mode: int | None = None) -> None:
    """The address generation mode by netlink, not by sysctl, which would make an address."""
    body = struct.pack("=BxHiII", 0, 0, index, flags, mask)
    if mac:
        body += nl.attr(hostnet.IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
    if mtu is not None:
        body += nl.attr(hostnet.IFLA_MTU, mtu)
    net.request(nl.RTM_NEWLINK, body)
    if addr_gen_mode is not None:
        mode = nl.attr(hostnet.IFLA_INET6_ADDR_GEN_MODE, bytes([addr_gen_mode]))
        families = nl.attr(hostnet.IFLA_AF_SPEC, nl.attr(socket.AF_INET6, mode))
        with contextlib.suppress(nl.NetlinkError):          # no IPv6 on it: nothing to generate
            net.request(nl.RTM_NEWLINK, struct.pack("=BxHiII", 0, 0, index, 0, 0) + families)


def write_sysctls(name: str, values: Mapping[str, str]) -> None:
    """Those that differ; a setting this kernel lacks is left out."""
    for key, value in values.items():
        path = hostnet.sysctl_path(name, key)
        with contextlib.suppress(FileNotFoundError):
            if path.read_text().strip() != value:
                path.write_text(value)


def _restore_sysctls(name: str, found: Mapping[str, str], keys: Iterable[str]) -> None:
    write_sysctls(name, {key: found[key] for key in keys if key in found})


def put_addresses(net: nl.Netlink, index: int, wanted: list[Address]) -> list[str]:
    """Adds them in this order.  Where some are there in another order, they are added anew."""
    failed = []
    for family in (socket.AF_INET, socket.AF_INET6):
        ours = [a for a in wanted if a.family == family]
        keys = [a.key for a in ours]
        present = [a for a in hostnet.read_addresses(net, index) if a.key in keys]
        if [a.key for a in present] != keys[:len(present)]:
            for address in reversed(present):
                remove(net, nl.RTM_DELADDR, address)
            present = []
        for address in ours[len(present):]:
            try:
                net.request(nl.RTM_NEWADDR, address.message(), nl.NLM_F_CREATE | nl.NLM_F_EXCL)
            except nl.NetlinkError as e:
                if e.errno != errno.EEXIST:
                    failed.append(f"address {address}, {e.strerror}")
    return failed


def put_routes(net: nl.Netlink, index: int, twin: int, wanted: list[Route]) -> list[str]:
    """Adds the missing ones, as often as it helps: a gateway needs its route first.
    `twin` is the interface that has had them until now."""
    routes = hostnet.read_routes(net)
    present = {r.key for r in hostnet.placed([r for r in routes if index in r.interfaces], routes)
               if r.key not in _ahead_keys(wanted) or r.ahead}
    ours = [r for r in wanted if r.key not in present and (r.ahead or not r.automatic)]
    pending = [r for r in ours if not r.ahead] + [r for r in reversed(ours) if r.ahead]
    while True:
        failed: list[tuple[Route, nl.NetlinkError]] = []
        for route in pending:
            try:
                _add_route(net, route, index, twin, routes)
            except nl.NetlinkError as e:
                failed.append((route, e))
        if not failed or len(failed) == len(pending) or not any(
                e.errno in _NOT_YET for _, e in failed):
            return [f"route {route}, {e.strerror}" for route, e in failed]
        pending = [route for route, _ in failed]


def _ahead_keys(wanted: list[Route]) -> set[tuple[object, ...]]:
    return {r.key for r in wanted if r.ahead}


def _add_route(net: nl.Netlink, route: Route, index: int, twin: int, routes: list[Route]) -> None:
    """IPv4 keeps the twin's route beside ours until it is removed.  IPv6 would join two with a
    gateway into one with two legs, of which the dead one stays: there ours takes its place."""
    plain = route.written()
    flags = nl.NLM_F_CREATE | nl.NLM_F_APPEND
    if route.ahead:
        remove(net, nl.RTM_DELROUTE, plain)
        flags = nl.NLM_F_CREATE
    elif route.family == socket.AF_INET6 and (route.gateway or route.legs):
        rivals = {i for r in routes if r.slot == route.slot for i in r.interfaces}
        if len(set(route.interfaces)) > 1 or (rivals and rivals <= {index, twin}):
            flags = nl.NLM_F_CREATE | nl.NLM_F_REPLACE
        elif twin in rivals:
            remove(net, nl.RTM_DELROUTE, plain.moved(index, twin))
    try:
        net.request(nl.RTM_NEWROUTE, plain.message(), flags)
    except nl.NetlinkError as e:
        if e.errno != errno.EEXIST:
            raise


def put_dependents(net: nl.Netlink, wanted: Iterable[Route]) -> list[str]:
    """Routes of other interfaces that the kernel drops with their source address."""
    failed = []
    routes = hostnet.read_routes(net)
    present = {r.key for r in routes}
    for route in wanted:
        if route.key not in present:
            try:
                _add_route(net, route, 0, 0, routes)
            except nl.NetlinkError as e:
                if e.errno not in _GONE:
                    failed.append(f"route {route}, {e.strerror}")
    return failed


def put_neighbours(net: nl.Netlink, index: int, wanted: Iterable[Neighbour]) -> list[str]:
    failed = []
    present = {n.written() for n in hostnet.read_neighbours(net, index)}
    for neighbour in wanted:
        plain = neighbour.written()
        if plain not in present:
            try:
                net.request(nl.RTM_NEWNEIGH, plain.message(), nl.NLM_F_CREATE | nl.NLM_F_REPLACE)
            except nl.NetlinkError as e:
                failed.append(f"neighbour {neighbour}, {e.strerror}")
    return failed


def remove(net: nl.Netlink, kind: int, record: Address | Route | Neighbour) -> None:
    try:
        net.request(kind, record.message())
    except nl.NetlinkError as e:
        if e.errno not in _GONE:
            raise


def _must(failed: list[str]) -> None:
    if failed:
        raise OSError(errno.EINVAL, "; ".join(failed))
