"""A namespace with a rich set of interfaces, routes, neighbours and rules."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.nets import entered, in_ns, namespace

LINKS = """
link add w0 type veth peer name p0
link add w1 mtu 1400 type veth peer name p1
link add w2 mtu 9000 type veth peer name p2
link add w3 type veth peer name p3
link add br0 type bridge
link add w4 type veth peer name p4
tuntap add t0 mode tun
link set w1 mtu 1400
link set w2 mtu 9000
link set p2 mtu 9000
link set w2 group 7
link set br0 mtu 1300
link set p3 master br0
link set lo up
link set p0 up
link set p1 up
link set p2 up
link set p3 up
link set w0 up
link set w1 up
link set w2 up
link set w3 up
link set br0 up
link set w4 up
link set p4 up
link set t0 up
"""

ADDRESSES = """
addr add 10.0.0.1/24 dev w0
addr add 10.0.0.9/24 dev w0
addr add 10.0.1.1/24 dev w1
addr add 10.0.1.77/32 dev w1
addr add 10.0.2.1/24 dev w2
addr add 10.0.2.2 peer 10.9.9.9/32 dev w2
addr add 10.0.3.1/24 dev br0
addr add 10.0.4.1/24 dev t0
addr add 169.254.7.1/24 dev w4 scope link
addr add 10.66.6.1/24 dev w4 scope site
addr add 192.0.2.1/32 dev lo
addr add fd00:0::1/64 dev w0 nodad
addr add fd00:0::9/64 dev w0 nodad preferred_lft 0
addr add fd00:1::1/64 dev w1 nodad
addr add fd00:2::1/64 dev w2 nodad
addr add 2001:db8:2::1/64 dev w2 nodad
addr add fd00:3::1/64 dev br0 nodad
addr add fec0:5::1/64 dev w0 nodad
addr add 2001:db8::53/128 dev lo nodad
addr add 2002:a00:1::1/48 dev w1 nodad
"""

ROUTES = """
route add default via 10.0.0.254
route add default via 10.0.1.254 metric 50
route add 172.16.0.0/12 via 10.0.1.2
route add 172.16.5.0/24 via 10.0.2.3 src 10.0.2.2
route add 172.16.5.128/25 dev w2 scope link
route add 172.17.0.0/16 via 10.0.2.4 mtu 600
route add 172.18.0.0/16 via 10.0.2.4 mtu lock 700
route add 172.19.0.0/16 via inet6 fd00:1::5 dev w1
route add 172.20.0.0/16 dev t0
route add 172.21.0.0/16 tos 0x10 via 10.0.0.4
route add 172.21.0.0/16 tos 0x08 via 10.0.1.4
route add 172.21.0.0/16 via 10.0.2.4
route add blackhole 172.22.0.0/16
route add unreachable 172.23.0.0/16
route add prohibit 172.24.0.0/16
route add throw 172.25.0.0/16
route add 172.25.1.0/24 via 10.0.0.7
route add 172.26.0.0/16 metric 300 via 10.0.0.5
route add 172.26.0.0/16 metric 100 via 10.0.1.5
route add 172.27.0.0/16 via 10.0.3.5
route add 172.28.0.0/16 encap ip id 5 dst 10.0.0.5 dev t0
route add 172.29.0.0/16 dev w4
route add 172.30.0.0/16 encap seg6 mode encap segs fd00:1::9 via 10.0.0.5
route add 172.31.0.0/16 dev lo scope link
route add 127.0.5.0/24 via 10.0.0.5
route add 10.0.0.1/32 table 100 via 10.0.1.5
route add default table 100 via 10.0.1.3
route add 172.16.0.0/12 table 100 via 10.0.2.9
route add throw 172.30.0.0/16 table 100
route add 172.30.0.0/16 table 101 via 10.0.3.9
route add blackhole 172.31.0.0/16 table 101
route add default table 253 via 10.0.2.250
-6 route add default via fd00:0::fe
-6 route add 2001:db8:100::/40 via fd00:1::2
-6 route add 2001:db8:105::/48 via fd00:2::3 src fd00:2::1
-6 route add 2001:db8:105:8000::/49 dev w2
-6 route add 2001:db8:106::/48 via fd00:2::4 mtu 1290
-6 route add 2001:db8:107::/48 via fd00:2::4 mtu lock 1300
-6 route add blackhole 2001:db8:108::/48
-6 route add unreachable 2001:db8:109::/48
-6 route add prohibit 2001:db8:10a::/48
-6 route add throw 2001:db8:10b::/48
-6 route add 2001:db8:10c::/48 via fd00:0::5 metric 50
-6 route add 2001:db8:10c::/48 via fd00:1::5 metric 60
-6 route add 2001:db8:10d::/48 via fd00:0::5 pref low
-6 route append 2001:db8:10d::/48 dev w2 pref high
-6 route add 2001:db8:10e::/48 dev w0
-6 route append 2001:db8:10e::/48 dev w1
-6 route add 2001:db8:10f::/48 from fd00:0::/64 via fd00:2::8
-6 route add 2001:db8:10f::/48 from fd00:0::/48 via fd00:2::9
-6 route add 2001:db8:10f::/48 via fd00:1::8
-6 route add 2001:db8:10f:1::/64 dev w1
-6 route add throw 2001:db8:10f:1::/64 from fd00:0::/64
-6 route add 2001:db8:110::/48 via fe80::5 dev w3
-6 route add 2001:db8:111::/48 encap ip6 id 5 dst fd00:0::5 dev t0
-6 route add default table 100 via fd00:1::3
-6 route add 2001:db8:100::/40 table 100 via fd00:2::9
-6 route add 2001:db8:108::/48 table 101 via fd00:0::99
-6 route add 2001:db8:112::/48 dev t0
-6 route add 2001:db8:113::/48 encap seg6 mode inline segs fd00:1::9 dev w0
-6 route add 2001:db8:114::/48 encap seg6 mode l2encap segs fd00:1::9 dev w0
-6 route add 64:ff9b::/96 via fd00:3::7
"""

MULTIPATH = """
route add 198.51.100.0/24 nexthop via 10.0.0.11 weight 3 nexthop via 10.0.1.11 weight 1
route add 198.51.101.0/24 nexthop via 10.0.0.12 nexthop dev w2 nexthop via inet6 fd00:3::12 dev br0
-6 route add 2001:db8:200::/40 nexthop via fd00:0::11 weight 5 nexthop via fd00:1::11 weight 2
-6 route add 2001:db8:300::/40 nexthop via fd00:0::12 nexthop via fd00:2::12 nexthop via fd00:3::12
nexthop add id 1 via 10.0.0.13 dev w0
nexthop add id 2 via 10.0.1.13 dev w1
nexthop add id 3 blackhole
nexthop add id 4 via fd00:1::13 dev w1
nexthop add id 5 via fd00:2::13 dev w2
nexthop add id 6 encap seg6 mode encap segs fd00:1::9 via fd00:1::13 dev w1
nexthop add id 7 via 10.66.6.9 dev w4
nexthop add id 10 group 1,3/2,5
nexthop add id 11 group 4,2/5,3
route add 198.51.102.0/24 nhid 10
route add 198.51.103.0/24 nhid 3
route add 198.51.104.0/24 nhid 1
route add 198.51.105.0/24 nhid 11
route add 198.51.104.0/24 metric 7 dev w1
route add 198.51.104.0/22 dev w2
route add 198.51.0.0/16 dev br0
route add 198.51.106.0/24 nhid 7
-6 route add 2001:db8:600::/40 nhid 6
-6 route add 2001:db8:400::/40 nhid 11
-6 route add 2001:db8:500::/40 nhid 5
"""

NEIGHBOURS = """
neigh add 10.0.0.254 lladdr 02:00:00:00:00:fe dev w0 nud permanent
neigh add 10.0.0.4 lladdr 02:00:00:00:00:04 dev w0 nud reachable
neigh add 10.0.0.5 lladdr 02:00:00:00:00:05 dev w0 nud stale
neigh add 10.0.0.11 lladdr 02:00:00:00:00:11 dev w0 nud permanent
neigh add 10.0.0.13 lladdr 02:00:00:00:00:13 dev w0 nud failed
neigh add 10.0.1.2 lladdr 02:00:00:00:01:02 dev w1 nud permanent
neigh add 10.0.1.3 lladdr 02:00:00:00:01:03 dev w1 nud noarp
neigh add 10.0.1.4 lladdr 02:00:00:00:01:04 dev w1 nud permanent
neigh add 10.0.1.11 lladdr 02:00:00:00:01:11 dev w1 nud failed
neigh add 10.0.2.3 lladdr 02:00:00:00:02:03 dev w2 nud permanent
neigh add 10.0.2.4 lladdr 02:00:00:00:02:04 dev w2 nud permanent
neigh add 10.0.2.9 lladdr 02:00:00:00:02:09 dev w2 nud permanent
neigh add 10.0.3.5 lladdr 02:00:00:00:03:05 dev br0 nud permanent
neigh add 172.16.5.200 lladdr 02:00:00:00:02:c8 dev w2 nud permanent
neigh add fd00:0::fe lladdr 02:00:00:06:00:fe dev w0 nud permanent
neigh add fd00:0::5 lladdr 02:00:00:06:00:05 dev w0 nud permanent
neigh add fd00:0::11 lladdr 02:00:00:06:00:11 dev w0 nud permanent
neigh add fd00:1::2 lladdr 02:00:00:06:01:02 dev w1 nud permanent
neigh add fd00:1::5 lladdr 02:00:00:06:01:05 dev w1 nud permanent
neigh add fd00:1::11 lladdr 02:00:00:06:01:11 dev w1 nud stale
neigh add fd00:2::3 lladdr 02:00:00:06:02:03 dev w2 nud permanent
neigh add fd00:2::8 lladdr 02:00:00:06:02:08 dev w2 nud permanent
neigh add fd00:2::9 lladdr 02:00:00:06:02:09 dev w2 nud permanent
neigh add fe80::5 lladdr 02:00:00:06:03:05 dev w3 nud permanent
"""

RULES = """
rule add pref 100 from 10.0.0.0/24 to 172.16.0.0/16 lookup 100
rule add pref 110 iif w1 lookup 101
rule add pref 120 fwmark 0x5 lookup 100
rule add pref 121 fwmark 0x40/0xf0 prohibit
rule add pref 130 tos 0x08 lookup 100
rule add pref 140 ipproto tcp dport 443 lookup 101
rule add pref 141 ipproto udp sport 5000-6000 unreachable
rule add pref 150 not to 172.16.0.0/12 iif w2 goto 32766
rule add pref 160 oif w2 lookup 101
rule add pref 170 to 172.23.0.0/16 blackhole
rule add pref 175 not to 172.16.0.0/12 ipproto icmp l3mdev
rule add pref 180 lookup main suppress_prefixlength 0
rule add pref 190 lookup main suppress_ifgroup 7
rule add pref 200 uidrange 5-9 lookup 100
rule add pref 210 iif gone lookup 100
rule add pref 32000 iif w3 nop
-6 rule add pref 100 from fd00:0::/64 to 2001:db8:100::/40 lookup 100
-6 rule add pref 110 iif w1 lookup 101
-6 rule add pref 120 fwmark 0x5 lookup 100
-6 rule add pref 121 fwmark 0x40/0xf0 prohibit
-6 rule add pref 130 tos 0x08 lookup 100
-6 rule add pref 140 ipproto tcp dport 443 lookup 101
-6 rule add pref 150 not to 2001:db8::/32 iif w2 goto 32766
-6 rule add pref 160 oif w2 lookup 101
-6 rule add pref 175 not to 2001:db8:100::/40 ipproto udp l3mdev
-6 rule add pref 180 lookup main suppress_prefixlength 0
-6 rule add pref 181 to 2001:db8:109::/48 blackhole
"""


def sysctl(ns: str, **values: int) -> None:
    with entered(ns):
        for name, value in values.items():
            Path("/proc/sys/net", *name.split("__")).write_text(str(value))


def batch(ns: str, *lines: str) -> None:
    """Lines for `ip -batch`; those of IPv6 say so."""
    every = [line for each in lines for line in each.splitlines() if line]
    four = [line for line in every if not line.startswith("-6 ")]
    six = [line.removeprefix("-6 ") for line in every if line.startswith("-6 ")]
    in_ns(ns, "ip", "-batch", "-", input="\n".join(four) + "\n")
    in_ns(ns, "ip", "-6", "-batch", "-", input="\n".join(six) + "\n")


@contextmanager
def rich_host(rules: bool = False, multipath: bool = True) -> Iterator[str]:
    """The namespace's name."""
    with namespace("fib") as ns:
        sysctl(ns, ipv6__conf__default__accept_dad=0, ipv6__conf__all__accept_dad=0)
        batch(ns, LINKS)
        sysctl(ns, ipv4__ip_forward=1, ipv6__conf__all__forwarding=1,
               ipv4__conf__w3__forwarding=0, ipv6__conf__br0__forwarding=0,
               ipv4__fib_multipath_hash_seed=0x1234567)
        batch(ns, ADDRESSES)
        batch(ns, ROUTES, MULTIPATH if multipath else "")
        batch(ns, NEIGHBOURS, RULES if rules else "")
        yield ns
