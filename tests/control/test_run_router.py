"""A router in user space: bpf_fib_lookup and bpf_redirect between two interfaces, under xdpu run.

    left -- node -- right: two subnets; the node's interfaces are taken over, their addresses and
    routes lie on TAPs, and the program still sees them on the interfaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.control.run_xdpu import Run, until, xdpu
from tests.nets import VethPair, in_ns
from tests.xdp_runtime.fib.network import sysctl

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]
OBJECT = Path(__file__).parent.parent / "xdp_runtime" / "fib" / "forward.o"
PROBE = OBJECT.with_name("fib_probe.o")


@pytest.fixture
def nets() -> Iterator[tuple[VethPair, VethPair]]:
    """`b` of both is the node, which forwards; routes to it are there, the neighbours are known."""
    with ExitStack() as stack:
        left = stack.enter_context(VethPair(subnet=51))
        right = stack.enter_context(VethPair(ns_b=left.b.ns, subnet=52))
        sysctl(left.b.ns, ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        for near, far in ((left, right), (right, left)):
            subnet = 51 if far is left else 52
            in_ns(near.a.ns, "ip", "route", "add", f"10.77.{subnet}.0/24", "via", near.b.ip4)
            in_ns(near.a.ns, "ip", "-6", "route", "add", f"fd77:{subnet:x}::/64", "via",
                  near.b.ip6)
        yield left, right


def router(nets: tuple[VethPair, VethPair], port: str) -> Run:
    left, right = nets
    return Run(left.b.ns, str(OBJECT), "--iface", f"{left.b.ifname},{right.b.ifname}", "--port",
               port, "-i", "0.1")


def ping(nets: tuple[VethPair, VethPair], address: str, count: int = 5) -> str:
    return in_ns(nets[0].a.ns, "ping", "-c", str(count), "-i", "0.05", "-W", "10", address,
                 check=False).stdout


@pytest.mark.parametrize("port", ["afxdp", "afpacket"])
def test_forwards(nets: tuple[VethPair, VethPair], port: str) -> None:
    left, right = nets
    with router(nets, port) as run:
        run.wait_for("start")
        assert re.search(r"forwarding tables: \d+ routes, \d+ neighbours", run.errors)
        for address in (right.a.ip4, right.a.ip6):
            said = ping(nets, address)
            assert " 5 received" in said
            assert "ttl=63" in said  # one hop, and it was ours
        until(lambda: run.total().get("redirect", 0) >= 20, "twenty redirected")
        redirected = run.total()["redirect"]
        # another neighbour, another route: the program follows
        in_ns(right.a.ns, "ip", "addr", "add", "192.0.2.9/32", "dev", right.a.ifname)
        in_ns(left.a.ns, "ip", "route", "add", "192.0.2.0/24", "via", left.b.ip4)
        taps = run.wait_for("start")["taps"]  # none where live frames are the way to the stack
        in_ns(left.b.ns, "ip", "route", "add", "192.0.2.0/24", "via", right.a.ip4, "dev",
              taps.get(right.b.ifname, right.b.ifname))
        until(lambda: " 3 received" in ping(nets, "192.0.2.9", 3), "answers from 192.0.2.9")
        assert "ttl=63" in ping(nets, "192.0.2.9", 5)  # the first may have gone by the stack
        until(lambda: run.total().get("redirect", 0) >= redirected + 6, "six more redirected")
        assert run.end() == 0
    total = run.wait_for("summary")["total"]
    assert total["redirect_no_port"] == total["redirect_full"] == 0


def test_the_node_itself_is_the_stacks(nets: tuple[VethPair, VethPair]) -> None:
    with router(nets, "afpacket") as run:
        run.wait_for("start")
        assert " 5 received" in ping(nets, nets[0].b.ip4)
        assert run.end() == 0
    assert run.wait_for("summary")["total"]["redirect"] == 0


def test_prog_run_sees_the_tables_as_they_are(nets: tuple[VethPair, VethPair]) -> None:
    left, right = nets
    source, destination = (bytes(int(part) for part in address.split("."))
                           for address in (left.a.ip4, right.a.ip4))
    header = bytes.fromhex("450000540000400040010000") + source + destination
    packet = bytes(12) + b"\x08\x00" + header + bytes(64)
    for engine in ("jit", "interp", "kernel"):
        done = xdpu("prog", "run", str(OBJECT), "--data-in", f"hex:{packet.hex()}", "--engine",
                    engine, "--ifindex", str(left.b.ifindex), "--data-out", "-", "-j",
                    prefix=["ip", "netns", "exec", left.b.ns])
        if engine == "kernel" and done.returncode:
            continue  # BPF_PROG_TEST_RUN wants a queue with XDP
        assert done.returncode == 0, done.stderr
        assert '"retval": 4' in done.stdout
        assert f"{right.a.mac}:{right.b.mac}".replace(":", "") in done.stdout
        if engine != "kernel":
            assert "as they are now" in done.stderr


def test_a_program_that_asks_nothing_hears_nothing(nets: tuple[VethPair, VethPair]) -> None:
    from tests.control.run_xdpu import EXAMPLES

    left, _ = nets
    with Run(left.b.ns, str(EXAMPLES / "pass.o"), "--iface", left.b.ifname, "--port",
             "afpacket") as run:
        run.wait_for("start")
        assert run.end() == 0
    assert "forwarding tables" not in run.errors
