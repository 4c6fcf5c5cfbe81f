"""Records without a kernel: what moves, what ages, what counts as the same."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import replace

from dataplane import netlink as nl
from dataplane.hostnet import HostState, Link, placed
from dataplane.netrecord import FOREVER, Address, Neighbour, Route

V4 = socket.AF_INET


def address(text: str, *, index: int = 3, flags: int = 0x80, label: str = "eth0",
            lifetimes: tuple[int, int] = (FOREVER, FOREVER), peer: str = "") -> Address:
    body = struct.pack(Address.LAYOUT, V4, 24, flags & 0xFF, 0, index) + nl.encode_attrs([
        (1, socket.inet_aton(peer or text)), (2, socket.inet_aton(text)),
        (3, label.encode() + b"\0"), (8, struct.pack("=I", flags)),
        (6, struct.pack("=IIII", *lifetimes, 7, 7)), (99, b"new")])
    return Address.from_bytes(body, 8)


def route(destination: str, *attrs: tuple[int, bytes], oif: int | None = 3, proto: int = 4,
          flags: int = 0) -> Route:
    base = [(15, struct.pack("=I", 254)), (1, socket.inet_aton(destination))]
    if oif is not None:
        base.append((4, struct.pack("=I", oif)))
    body = struct.pack(Route.LAYOUT, V4, 24, 0, 0, 254, proto, 0, 1, flags)
    return Route.from_bytes(body + nl.encode_attrs([*base, *attrs]), 12)


def leg(index: int, gateway: str, flags: int = 0) -> bytes:
    rest = nl.attr(5, socket.inet_aton(gateway))
    return struct.pack("=HBBI", 8 + len(rest), flags, 1, index) + rest


def test_attributes_both_ways() -> None:
    data = nl.encode_attrs([(1, b"a"), (2, b""), (3, b"abcd")])
    assert len(data) == 8 + 4 + 8
    assert nl.parse_attrs(data) == ((1, b"a"), (2, b""), (3, b"abcd"))
    assert nl.parse_attrs(data[:-1]) == ((1, b"a"), (2, b""))
    assert nl.parse_attrs(b"\2\0\1\0") == ()


def test_address_fields() -> None:
    one = address("10.0.0.1", peer="10.0.0.2", flags=0x281)
    assert (one.local, one.peer, one.prefixlen, one.label, one.flags) == (
        "10.0.0.1", "10.0.0.2", 24, "eth0", 0x281)
    assert str(one) == "10.0.0.1 peer 10.0.0.2/24" and one.broadcast is None


def test_address_moves_with_its_label() -> None:
    there = address("10.0.0.1", label="eth0:web").moved(9, "eth0", "xdpu0")
    assert (there.index, there.label) == (9, "xdpu0:web")
    assert address("10.0.0.1", label="odd").moved(9, "eth0", "xdpu0").label == "xdpu0"
    long = address("10.0.0.1", label="eth0:long-label").moved(9, "eth0", "a-tap-name")
    assert long.label == "a-tap-name:long"
    assert there.get(99) == b"new"              # an attribute nobody here knows


def test_address_ages() -> None:
    one = address("10.0.0.1", flags=0x2A1, lifetimes=(50, 100))
    aged = one.aged(60)
    assert aged is not None and aged.lifetimes_s == (0, 40)
    assert aged.flags == 0x200                  # state is left out, noprefixroute stays
    assert one.aged(100) is None
    forever = address("10.0.0.1").aged(10**9)
    assert forever is not None and forever.get(6) is None


def test_route_key_is_what_was_configured() -> None:
    cacheinfo = struct.pack("=IIiIIIII", 0, 5, 400000, 0, 1, 0, 0, 0)
    plain = route("10.1.0.0", (5, bytes(4)))
    counted = route("10.1.0.0", (12, cacheinfo), (5, bytes(4)), flags=0x10)     # linkdown
    assert plain.key == counted.key
    assert counted.written().number(23) == 4000     # ticks of a hundredth of a second
    late = counted.aged(3000)
    assert late is not None and late.number(23) == 1000 and counted.aged(4000) is None
    assert route("10.1.0.0", (5, bytes(4)), flags=4).key != plain.key           # onlink


def test_route_moves_its_own_legs_only() -> None:
    many = route("10.1.0.0", (9, leg(3, "10.0.0.1", 0x10) + leg(5, "10.0.0.2")), oif=None)
    assert many.interfaces == (3, 5)
    there = many.moved(3, 8)
    assert there.interfaces == (8, 5)
    assert there.moved(8, 3).key == many.key
    assert there.written().get(9) == leg(8, "10.0.0.1") + leg(5, "10.0.0.2")


def test_nexthop_object_says_it_all_on_its_own_interface() -> None:
    by_id = route("10.1.0.0", (5, bytes(4)), (30, struct.pack("=I", 7)))
    assert by_id.written().number(4) is None and by_id.written().number(30) == 7
    assert by_id.moved(3, 8).written().number(4) == 8
    assert by_id.moved(3, 8).number(30) is None


def test_ahead_of_other_interfaces() -> None:
    first, second, last = (route("10.1.0.0", oif=n) for n in (3, 5, 3))
    other = route("10.2.0.0", oif=3)
    everything = [first, second, last, other]
    assert [r.ahead for r in placed([first, last, other], everything)] == [False] * 3
    assert [r.ahead for r in placed([first], [first, second])] == [True]
    assert [r.ahead for r in placed([first], [second, first])] == [False]


def test_neighbour_moves() -> None:
    body = struct.pack(Neighbour.LAYOUT, V4, 3, 0x80, 0, 1) + nl.encode_attrs(
        [(1, bytes(4)), (2, b"123456"), (3, bytes(16)), (4, bytes(4))])
    one = Neighbour.from_bytes(body, 12)
    assert one.moved(8).index == 8 and one.moved(8).key == one.key
    assert [k for k, _ in one.written().attrs] == [1, 2]


def test_state_goes_through_json() -> None:
    state = HostState(Link(3, "eth0", "02:00:00:00:00:01", 1500, 1), (address("10.0.0.1"),),
                      (replace(route("10.1.0.0"), ahead=True),), (route("10.2.0.0", oif=5),), (),
                      {"ipv4/rp_filter": "1"}, ("a note",))
    assert HostState.from_json(json.loads(json.dumps(state.to_json()))) == state
