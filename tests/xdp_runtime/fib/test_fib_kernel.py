"""bpf_fib_lookup, bpf_check_mtu: interpreter = compiled O0 = compiled O3 = kernel, to the byte."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from dataplane import netlink as nl
from dataplane.fibread import read_host
from tests.nets import entered, in_ns
from tests.privileges import needs_bpf
from tests.xdp_runtime.fib.network import rich_host, sysctl
from tests.xdp_runtime.fib.questions import Questions, told
from xdp_runtime.elf import read_object
from xdp_runtime.fib.host import Host
from xdp_runtime.interp import Machine
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.program import load

pytestmark = [*needs_bpf(), pytest.mark.netns]

OBJECT = read_object(Path(__file__).with_name("fib_probe.o"))
LOOKUPS, MTUS = 4000, 500


def compare(host: Host, name: str, frames: list[bytes]) -> Counter[int]:
    """How often each answer came.  The caller is in the namespace."""
    answers: Counter[int] = Counter()
    at = 20 if name == "lookup" else 40
    machine = Machine(OBJECT, OBJECT.program(name))
    machine.host = host
    with (load_into_kernel(OBJECT, name) as kernel, load(OBJECT, name) as fast,
          load(OBJECT, name, opt=0) as plain):
        for program in (fast, plain):
            assert program.fib is not None
            program.fib.publish(host)
        for frame in frames:
            wanted = kernel.run(frame).data_out
            found = {
                "model": machine.run(frame, ingress_ifindex=1).data_out,
                "O3": fast.run(frame, ingress_ifindex=1).data_out,
                "O0": plain.run(frame, ingress_ifindex=1).data_out}
            for engine, data in found.items():
                assert data == wanted, (f"{engine} differs\n  asked  {told(frame)}\n"
                                        f"  kernel {told(wanted)}\n  {engine:6} {told(data)}")
            answers[struct.unpack_from("<i", wanted, at)[0]] += 1
    return answers


def check(ns: str, seed: int, count: int = LOOKUPS) -> tuple[Host, Counter[int]]:
    with entered(ns), nl.Netlink() as net:
        host = read_host(net)
        questions = Questions(host, seed)
        return host, compare(host, "lookup", [questions.lookup() for _ in range(count)])


def test_without_rules() -> None:
    with rich_host() as ns:
        host, answers = check(ns, 1)
        assert host.one_table
        assert set(answers) == {0, 1, 2, 3, 4, 5, 6, 7, 8, -19, -22, -97}


def test_with_rules() -> None:
    with rich_host(rules=True) as ns:
        host, answers = check(ns, 2)
        assert not host.one_table
        assert {0, 1, 2, 3, 4, 5, 6, 7, 8} <= set(answers)


def test_lengths() -> None:
    with rich_host() as ns, entered(ns), nl.Netlink() as net:
        host = read_host(net)
        questions = Questions(host, 3)
        answers = compare(host, "mtu", [questions.mtu() for _ in range(MTUS)])
        assert set(answers) == {0, 1, -19, -22}


@pytest.mark.parametrize("policy", [0, 1, 2, 3])
def test_multipath(policy: int) -> None:
    with rich_host() as ns:
        sysctl(ns, ipv4__fib_multipath_hash_policy=policy, ipv6__fib_multipath_hash_policy=policy,
               ipv4__fib_multipath_hash_fields=0x33, ipv6__fib_multipath_hash_fields=0x3B,
               ipv4__fib_multipath_use_neigh=policy & 1)
        with entered(ns), nl.Netlink() as net:
            host = read_host(net)
            several = Host(host.interfaces, tuple(r for r in host.routes if len(r.legs) > 1))
            questions = Questions(several, 10 + policy)
            frames = [questions.lookup() for _ in range(1500)]
            assert compare(host, "lookup", frames)[0] > 50


def _rule_gone(ns: str) -> None:
    in_ns(ns, "ip", "rule", "add", "pref", "5", "lookup", "100")
    in_ns(ns, "ip", "rule", "del", "pref", "5")


def _link_down(ns: str) -> None:
    in_ns(ns, "ip", "link", "set", "p1", "down")


def _interface_down(ns: str) -> None:
    in_ns(ns, "ip", "link", "set", "w1", "down")


def _ignore_dead_links(ns: str) -> None:
    sysctl(ns, ipv4__conf__all__ignore_routes_with_linkdown=1,
           ipv6__conf__all__ignore_routes_with_linkdown=1,
           ipv4__conf__w1__ignore_routes_with_linkdown=1,
           ipv6__conf__w1__ignore_routes_with_linkdown=1)
    in_ns(ns, "ip", "link", "set", "p1", "down")


def _route_mtu(ns: str) -> None:
    sysctl(ns, ipv4__ip_forward_use_pmtu=1)


def _no_ipv6(ns: str) -> None:
    sysctl(ns, ipv6__conf__w1__disable_ipv6=1)
    in_ns(ns, "ip", "link", "set", "w2", "mtu", "1200")


def _own_sources(ns: str) -> None:
    sysctl(ns, ipv6__conf__all__use_oif_addrs_only=1, ipv6__conf__w2__use_oif_addrs_only=1)


def _labels(ns: str) -> None:
    in_ns(ns, "ip", "addrlabel", "add", "prefix", "2001:db8::/32", "label", "77")
    in_ns(ns, "ip", "addrlabel", "add", "prefix", "fd00:1::/64", "dev", "w1", "label", "77")


def _objects_alone(ns: str) -> None:
    sysctl(ns, ipv4__nexthop_compat_mode=0)


def _loopback_is_routed(ns: str) -> None:
    sysctl(ns, ipv4__conf__all__route_localnet=1)
    # sources are chosen anew: of nexthop objects, too, but then by the route's scope
    in_ns(ns, "ip", "addr", "add", "10.0.4.77/32", "dev", "w4")
    in_ns(ns, "ip", "nexthop", "del", "id", "7")


@pytest.mark.parametrize("change", [_rule_gone, _link_down, _interface_down, _ignore_dead_links,
                                    _route_mtu, _no_ipv6, _own_sources, _labels,
                                    _objects_alone, _loopback_is_routed])
def test_after(change: Callable[[str], None]) -> None:
    with rich_host() as ns:
        change(ns)
        check(ns, 4, 1500)
