"""xdpu run on veth: real traffic through the stack, by TX and by redirect; and everything back.

`node` is where xdpu runs, `client` is where ordinary programs run.  What the node's interface is
like is asked of `ip -j` before and after each test, which must agree however the run ended.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.control.run_xdpu import EXAMPLES, Run, until, xdpu
from tests.nets import VethPair, entered, in_ns, namespace, popen_in_ns

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]
PORTS = ["afxdp", "afpacket"]
LIVES = {"afxdp": (), "afpacket": ("--port", "afpacket"), "by the interface": ("--stack", "auto")}
SEED = 20261120
DATA = random.Random(SEED).randbytes(200_000)


@pytest.fixture(scope="module")
def net() -> Iterator[VethPair]:
    """`a` is the client, `b` the node; checksum offload stays on, as in real life."""
    with VethPair(queues=2, subnet=31, offload=True) as pair:
        yield pair


def state(ns: str, ifname: str) -> dict[str, Any]:
    """All that a run changes: interfaces, addresses, routes, XDP, promiscuity."""
    links = json.loads(in_ns(ns, "ip", "-j", "-d", "link").stdout)
    addresses = json.loads(in_ns(ns, "ip", "-j", "addr", "show", "dev", ifname).stdout)
    routes = [json.loads(in_ns(ns, "ip", "-j", version, "route", "show", "table", "all").stdout)
              for version in ("-4", "-6")]
    mine = next(link for link in links if link["ifname"] == ifname)
    return {
        "names": sorted(link["ifname"] for link in links), "xdp": mine.get("xdp"),
        "promiscuity": mine.get("promiscuity"), "mac": mine["address"], "mtu": mine["mtu"],
        "flags": sorted(set(mine["flags"]) - {"NO-CARRIER"}),
        "addresses": sorted((a["local"], a["prefixlen"], a["scope"])
                            for a in addresses[0]["addr_info"]),
        "routes": sorted(str({k: r.get(k) for k in ("dst", "dev", "gateway", "metric", "type")})
                         for family in routes for r in family)}


def settled(ns: str, ifname: str) -> bool:
    """Duplicate detection is over: the link-local address has its route."""
    routes = in_ns(ns, "ip", "-6", "route", "show", "table", "local", "dev", ifname).stdout
    return "local fe80" in routes


@pytest.fixture
def unchanged(net: VethPair) -> Iterator[None]:
    """The node is after the test as it was before."""
    until(lambda: settled(net.b.ns, net.b.ifname), "a link-local address")
    before = state(net.b.ns, net.b.ifname)
    yield
    assert state(net.b.ns, net.b.ifname) == before


def example(name: str) -> str:
    return str(EXAMPLES / f"{name}.o")


def live(net: VethPair, name: str, *argv: str, **env: str) -> Run:
    """With a TAP in the interface's place, which takes more than the other ways do."""
    if not {"--stack", "--no-stack"} & {*argv}:
        argv = ("--stack", "tap", *argv)
    return Run(net.b.ns, example(name), "--iface", net.b.ifname, "-i", "0.1", *argv, **env)


def ping(net: VethPair, address: str, count: int = 3) -> bool:
    """All answered?"""
    done = in_ns(net.a.ns, "ping", "-q", "-c", str(count), "-i", "0.02", "-W", "10", address,
                 check=False)
    return done.returncode == 0 and f" {count} received" in done.stdout


@pytest.fixture(scope="module")
def server(net: VethPair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    """A real HTTP server in the node, and the page it has."""
    folder = tmp_path_factory.mktemp("www")
    page = random.Random(SEED).randbytes(200_000)
    (folder / "page").write_bytes(page)
    process = popen_in_ns(net.b.ns, sys.executable, "-m", "http.server", "8000", "--bind", "::",
                          "--directory", str(folder))
    try:
        until(lambda: in_ns(net.b.ns, "ss", "-Hltn", "sport = :8000").stdout, "the HTTP server")
        yield page
    finally:
        process.kill()
        process.communicate()


def fetch(net: VethPair, address: str, tmp_path: Path, timeout_s: str = "20") -> bytes | None:
    out = tmp_path / "got"
    out.unlink(missing_ok=True)
    done = in_ns(net.a.ns, "curl", "-s", "--noproxy", "*", "--max-time", timeout_s, "-o", str(out),
                 f"http://{address}:8000/page", check=False)
    return out.read_bytes() if done.returncode == 0 and out.exists() else None


# ---- traffic -------------------------------------------------------------------------------------

@pytest.mark.parametrize("port", PORTS)
@pytest.mark.usefixtures("unchanged")
def test_the_host_answers_through_the_tap(net: VethPair, server: bytes, port: str,
                                          tmp_path: Path) -> None:
    with live(net, "pass", "--port", port) as run:
        start = run.wait_for("start")
        assert start["taps"] == {net.b.ifname: f"xdpu-{net.b.ifname}"[:15]}
        assert (start["code"]["pipeline"] == "O3") == (not start["code"]["baseline"])
        assert not start["code"]["cached"] or not start["code"]["baseline"]
        assert ping(net, net.b.ip4) and ping(net, net.b.ip6)
        assert fetch(net, net.b.ip4, tmp_path) == server
        assert fetch(net, f"[{net.b.ip6}]", tmp_path) == server
        back = in_ns(net.b.ns, "ping", "-q", "-c", "2", "-i", "0.02", net.a.ip4, check=False)
        assert back.returncode == 0, "the host reaches out, too"
        assert run.end() == 0
        summary = run.wait_for("summary")
    total = summary["total"]
    assert total["pass"] == total["rx_packets"] > 20 and total["stack_packets"] > 10
    assert total["aborted"] == total["drop"] == total["tx"] == 0
    assert f"runs on {net.b.ifname}: " in run.errors
    assert "XDP_PASS" in run.errors and "CPU" in run.errors
    assert re.search(r"machine code: (O3|baseline, linear passes only), "
                     r"(from the compile cache|compiled in [\d.]+ s)", run.errors)


@pytest.mark.usefixtures("unchanged")
def test_the_host_answers_by_the_interface_itself(net: VethPair, server: bytes,
                                                  tmp_path: Path) -> None:
    """The interface keeps all it has; nothing stands in for it.  Checksums that the client's side
    left to hardware are complete when they arrive."""
    before = state(net.b.ns, net.b.ifname)
    with live(net, "pass", "--stack", "auto") as run:
        start = run.wait_for("start")
        assert start["taps"] == {}
        assert start["stack"] == {net.b.ifname: "injected skbs, up to 256 a system call"}
        during = state(net.b.ns, net.b.ifname)
        assert {**during, "xdp": None} == before and during["xdp"] is not None
        assert ping(net, net.b.ip4) and ping(net, net.b.ip6)
        assert fetch(net, net.b.ip4, tmp_path) == server
        assert fetch(net, f"[{net.b.ip6}]", tmp_path) == server
        back = in_ns(net.b.ns, "ping", "-q", "-c", "2", "-i", "0.02", net.a.ip4, check=False)
        assert back.returncode == 0, "the host reaches out, too"
        assert run.end() == 0
        total = run.wait_for("summary")["total"]
    assert total["pass"] == total["rx_packets"] > 20
    assert total["stack_packets"] == total["aborted"] == total["drop"] == total["tx"] == 0
    assert f"goes to the stack by {net.b.ifname} itself: injected skbs" in run.errors


@pytest.mark.parametrize(("argv", "why"), [
    (["--mode", "generic"], "would run through generic XDP again"),
    (["--port", "afpacket"], "need XDP on the interface, which --port afpacket does without"),
])
@pytest.mark.usefixtures("unchanged")
def test_where_nothing_can_be_injected(net: VethPair, argv: list[str], why: str) -> None:
    """Asked for, they are refused; of its own accord a run takes a TAP, and says why."""
    for way, what in (("live", "live frames"), ("skb", "injected skbs")):
        said = refused(net, "--iface", net.b.ifname, "--stack", way, *argv)
        assert f"--stack {way} on {net.b.ifname}: {what} {why} (--stack tap)\n" in said
    with live(net, "pass", "--stack", "auto", *argv) as run:
        assert run.wait_for("start")["taps"]
        assert run.end() == 0
    assert f"(injected skbs {why}), which has its addresses meanwhile" in run.errors


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.usefixtures("unchanged")
def test_drop(net: VethPair, port: str) -> None:
    with live(net, "drop", "--port", port) as run:
        run.wait_for("start")
        done = in_ns(net.a.ns, "ping", "-q", "-c", "2", "-i", "0.02", "-W", "0.3", net.b.ip4,
                     check=False)
        assert " 0 received" in done.stdout
        until(lambda: run.total().get("drop", 0) >= 2, "two drops")
        assert run.end(signal.SIGTERM) == 0
        total = run.wait_for("summary")["total"]
    assert total["drop"] == total["rx_packets"]


@pytest.mark.parametrize("port", PORTS)
@pytest.mark.usefixtures("unchanged")
def test_ping_is_answered_by_tx(net: VethPair, port: str) -> None:
    with live(net, "icmp_echo", "--port", port) as run:
        run.wait_for("start")
        assert ping(net, net.b.ip4, 5) and ping(net, net.b.ip6, 5)
        assert run.end() == 0
        total = run.wait_for("summary")["total"]
    assert total["tx"] == 10 and total["tx_full"] == 0


@pytest.mark.usefixtures("unchanged")
def test_skb_mode_when_asked(net: VethPair) -> None:
    with live(net, "icmp_echo", "--mode", "skb") as run:
        assert "generic" in run.wait_for("start")["modes"][net.b.ifname]
        assert ping(net, net.b.ip4)
        assert run.end() == 0


@pytest.mark.usefixtures("unchanged")
def test_without_a_stack_passed_frames_are_counted(net: VethPair) -> None:
    with live(net, "pass", "--no-stack") as run:
        assert run.wait_for("start")["taps"] == {}
        in_ns(net.a.ns, "ping", "-q", "-c", "2", "-i", "0.02", "-W", "0.2", net.b.ip4, check=False)
        until(lambda: run.total().get("pass", 0) >= 2, "two passed")
        assert run.end() == 0
    assert "no stack to go to" in run.errors and "were dropped" in run.errors


def over_tcp(from_ns: str, to_ns: str, address: str, data: bytes) -> bytes:
    """What arrives of it."""
    with ExitStack() as stack:
        with entered(to_ns):
            listener = stack.enter_context(socket.create_server((address, 0)))
        listener.settimeout(20)
        with entered(from_ns):
            sender = stack.enter_context(socket.create_connection(listener.getsockname(), 20))
        taker, _ = listener.accept()
        stack.enter_context(taker)
        taker.settimeout(20)

        def send() -> None:
            sender.sendall(data)
            sender.shutdown(socket.SHUT_WR)

        sending = threading.Thread(target=send)
        sending.start()
        got = b""
        while piece := taker.recv(1 << 16):
            got += piece
        sending.join()
        return got


@pytest.mark.parametrize("port", PORTS)
def test_redirect_between_two_interfaces(port: str) -> None:
    """left -- node -- right; the node has no addresses and forwards frames.  Of a veth's own
    checksum offload only AF_XDP takes care."""
    with ExitStack() as stack:
        offload = port == "afxdp"
        one = stack.enter_context(VethPair(subnet=41, offload=offload))
        two = stack.enter_context(VethPair(ns_b=one.b.ns, subnet=42, offload=offload))
        for end in (one.b, two.b):
            in_ns(end.ns, "ip", "addr", "flush", "dev", end.ifname)
        in_ns(two.a.ns, "ip", "addr", "add", "10.77.41.9/24", "dev", two.a.ifname)
        for near, far, address in ((one.a, two.a, "10.77.41.9"), (two.a, one.a, one.a.ip4)):
            in_ns(near.ns, "ip", "neigh", "replace", address, "lladdr", far.mac, "dev",
                  near.ifname, "nud", "permanent")
        in_ns(two.a.ns, "ip", "route", "replace", one.a.ip4, "dev", two.a.ifname, "src",
              "10.77.41.9")
        run = stack.enter_context(Run(
            one.b.ns, example("redirect"), "--iface", f"{one.b.ifname},{two.b.ifname}", "--port",
            port, "-i", "0.1", "--promisc", "--set-map", f"peer={one.b.ifindex}:{two.b.ifindex}",
            "--set-map", f"peer={two.b.ifindex}:{one.b.ifindex}"))
        run.wait_for("start")
        done = in_ns(one.a.ns, "ping", "-q", "-c", "5", "-i", "0.02", "-W", "2", "10.77.41.9",
                     check=False)
        assert " 5 received" in done.stdout
        assert over_tcp(one.a.ns, two.a.ns, "10.77.41.9", DATA) == DATA
        assert run.end() == 0
        total = run.wait_for("summary")["total"]
    assert total["redirect"] >= 10
    assert total["redirect_no_port"] == total["redirect_full"] == 0


# ---- being watched -------------------------------------------------------------------------------

@pytest.mark.usefixtures("unchanged")
def test_status_lines_and_duration(net: VethPair) -> None:
    prefix = ["ip", "netns", "exec", net.b.ns]
    done = xdpu("run", example("drop"), "--iface", net.b.ifname, "-i", "0.2", "-d", "0.7",
                prefix=prefix)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    status = [line for line in lines if " rx/s" in line]
    assert len(status) == 3 and all(line.startswith(net.b.ifname) for line in status)
    for word in ("pass/s", "drop/s", "tx/s", "redir/s", "aborted/s", "lost/s"):
        assert word in status[0]
    assert any(line.startswith("Packets received") for line in lines)
    assert "Duration" in done.stdout


@pytest.mark.usefixtures("unchanged")
def test_sigquit_says_more_and_less(net: VethPair) -> None:
    with live(net, "drop") as run:
        first = run.wait_for("status")
        assert "flows" not in first
        run.process.send_signal(signal.SIGQUIT)
        until(lambda: "flows" in run.latest(), "extended status")
        record = run.latest()
        assert {f["port"] for f in record["flows"]} >= {net.b.ifname} and record["ports"]
        run.process.send_signal(signal.SIGQUIT)
        until(lambda: "flows" not in run.latest(), "terse status")
        assert run.end() == 0


@pytest.mark.usefixtures("unchanged")
def test_xdpu_status(net: VethPair) -> None:
    with live(net, "drop", "--name", "watched") as run:
        run.wait_for("start")
        in_ns(net.a.ns, "ping", "-q", "-c", "1", "-W", "0.1", net.b.ip4, check=False)
        rows = {row["name"]: row for row in json.loads(xdpu("status", "-j").stdout)}
        row = rows["watched"]
        assert row["alive"] and row["program"] == "drop" and row["total"]["rx_packets"] >= 1
        assert row["pid"] == run.process.pid and row["interfaces"] == [net.b.ifname]
        assert "watched" in xdpu("status").stdout
        assert run.end() == 0
    assert all(r["name"] != "watched" for r in json.loads(xdpu("status", "-j").stdout))


@pytest.mark.usefixtures("unchanged")
def test_silence_is_explained(net: VethPair) -> None:
    with live(net, "drop", "--filter", "vlan 9") as run:
        run.wait_for("start")
        ping(net, net.b.ip4)  # it is not asked to drop these
        until(lambda: run.latest() and "no packet in 5 s" in run.errors, "a word on the silence")
        assert "no packet in 5 s: the filter leaves what comes to the stack" in run.errors
        assert run.end() == 0


@pytest.mark.usefixtures("unchanged")
def test_nobody_reads_any_more(net: VethPair) -> None:
    with live(net, "pass") as run:
        run.wait_for("start")
        assert run.process.stdout is not None
        run.process.stdout.close()
        assert run.process.wait(20) == 141


# ---- what is refused -----------------------------------------------------------------------------

def refused(net: VethPair, *argv: str) -> str:
    done = xdpu("run", example("drop"), *argv, prefix=["ip", "netns", "exec", net.b.ns])
    assert done.returncode == 3 and done.stdout == "" and done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.usefixtures("unchanged")
def test_an_interface_that_is_down(net: VethPair) -> None:
    in_ns(net.b.ns, "ip", "link", "add", "xdpudown0", "type", "veth", "peer", "name", "xdpudown1")
    try:
        assert refused(net, "--iface", "xdpudown0") == (
            "xdpu: xdpudown0: it is down (ip link set dev xdpudown0 up)\n")
    finally:
        in_ns(net.b.ns, "ip", "link", "del", "xdpudown0")


@pytest.mark.usefixtures("unchanged")
def test_a_driver_without_native_xdp(net: VethPair) -> None:
    assert refused(net, "--iface", "lo").endswith("has no native XDP (use --xdp-mode generic)\n")


@pytest.mark.usefixtures("unchanged")
def test_a_queue_that_is_bound_already(net: VethPair) -> None:
    with live(net, "drop", "--queue", "0", "--name", "first") as run:
        run.wait_for("start")
        said = refused(net, "--iface", net.b.ifname, "--queue", "0", "--name", "second")
        assert said == (f"xdpu: interface {net.b.ifname}: run first is on it, pid "
                        f"{run.process.pid} (end that one first)\n")
        assert run.end() == 0


@pytest.mark.usefixtures("unchanged")
def test_an_xdp_program_that_is_attached_already(net: VethPair) -> None:
    in_ns(net.b.ns, "ip", "link", "set", net.b.ifname, "xdp", "obj", example("pass"), "sec", "xdp")
    try:
        name = net.b.ifname
        assert re.fullmatch(
            rf"xdpu: {name}: another XDP program is attached \((\w+ )?id \d+\) "
            rf"\(ip link set dev {name} xdp off\)\n", refused(net, "--iface", name))
    finally:
        in_ns(net.b.ns, "ip", "link", "set", net.b.ifname, "xdp", "off")


@pytest.mark.usefixtures("unchanged")
def test_a_tap_of_its_own(net: VethPair) -> None:
    """--port tap: the host sends into it, and the program answers."""
    with Run(net.b.ns, example("icmp_echo"), "--iface", "xdputap0", "--port", "tap") as run:
        run.wait_for("start")
        in_ns(net.b.ns, "ip", "addr", "add", "10.99.9.1/24", "dev", "xdputap0")
        in_ns(net.b.ns, "ip", "neigh", "add", "10.99.9.2", "lladdr", "02:00:00:00:00:09", "dev",
              "xdputap0")
        done = in_ns(net.b.ns, "ping", "-q", "-c", "3", "-i", "0.02", "-W", "2", "10.99.9.2",
                     check=False)
        assert " 3 received" in done.stdout
        assert run.end() == 0
    assert "no stack to go to" in run.errors


@pytest.mark.usefixtures("unchanged")
def test_the_same_run_twice(net: VethPair) -> None:
    with live(net, "drop") as run:
        run.wait_for("start")
        done = xdpu("run", example("drop"), "--iface", net.b.ifname,
                    prefix=["ip", "netns", "exec", net.b.ns])
        assert done.returncode == 2 and "is already running as pid" in done.stderr
        assert run.end() == 0


@pytest.mark.usefixtures("unchanged")
def test_a_queue_that_does_not_exist(net: VethPair) -> None:
    assert "queue 7 of" in refused(net, "--iface", net.b.ifname, "--queue", "7")


# ---- ends ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("port", LIVES)
@pytest.mark.parametrize("what", ["deleted", "moved", "its peer's namespace"])
def test_an_interface_that_goes_away_ends_the_run(what: str, port: str) -> None:
    with VethPair(subnet=51) as pair, namespace("elsewhere") as other, \
            live(pair, "pass", *LIVES[port]) as run:
        run.wait_for("start")
        if what == "deleted":
            in_ns(pair.a.ns, "ip", "link", "del", pair.a.ifname)
        elif what == "moved":
            in_ns(pair.b.ns, "ip", "link", "set", pair.b.ifname, "netns", other)
        else:
            in_ns("", "ip", "netns", "del", pair.a.ns)
        started_s = time.monotonic()
        assert run.finish() == 3
        assert time.monotonic() - started_s < 3
        assert f"xdpu: interface {pair.b.ifname}: was removed during the run, or moved" \
            in run.errors
        assert run.wait_for("summary") and run.wait_for("error")["error"]["kind"] == "port"
        names = [link["ifname"] for link in json.loads(in_ns(pair.b.ns, "ip", "-j", "link").stdout)]
        assert names == ["lo"]


def echoes(run: Run, pair: VethPair) -> None:
    """The host behind the interface answers, and the run sees it."""
    before = run.total().get("pass", 0)
    until(pair.ping, "an answer")
    until(lambda: run.total().get("pass", 0) > before, "packets passed")


@pytest.mark.parametrize("port", LIVES)
def test_down_and_up_is_survived(port: str) -> None:
    with VethPair(subnet=54) as net, live(net, "pass", *LIVES[port]) as run:
        run.wait_for("start")
        echoes(run, net)
        in_ns(net.b.ns, "ip", "link", "set", net.b.ifname, "down")
        until(lambda: run.latest() and "went down: nothing comes" in run.errors, "a word of it")
        assert not net.ping()
        in_ns(net.b.ns, "ip", "link", "set", net.b.ifname, "up")
        until(lambda: run.latest() and "is up again" in run.errors, "a word of it")
        echoes(run, net)
        until(lambda: "state UP" in in_ns(net.b.ns, "ip", "link", "show", net.b.ifname).stdout,
              "the carrier, which the kernel tells later than up")
        seen = len(run.records)
        until(lambda: run.latest() and len(run.records) > seen + 1, "a look at it")
        in_ns(net.a.ns, "ip", "link", "set", net.a.ifname, "down")
        until(lambda: run.latest() and "has lost its carrier" in run.errors, "a word of it")
        in_ns(net.a.ns, "ip", "link", "set", net.a.ifname, "up")
        in_ns(net.a.ns, "ip", "neigh", "replace", net.b.ip4, "lladdr", net.b.mac, "dev",
              net.a.ifname, "nud", "permanent")
        until(lambda: run.latest() and "has its carrier back" in run.errors, "a word of it")
        echoes(run, net)
        assert run.end() == 0
        assert net.ping() and state(net.b.ns, net.b.ifname)["xdp"] is None


@pytest.mark.parametrize("port", LIVES)
def test_another_name_and_mtu_are_survived(port: str) -> None:
    with VethPair(subnet=52) as pair, live(pair, "pass", *LIVES[port]) as run:
        run.wait_for("start")
        old = pair.b.ifname
        in_ns(pair.b.ns, "ip", "link", "set", old, "name", "other0")
        until(lambda: run.latest() and f"{old} is called other0 now" in run.errors, "a word of it")
        echoes(run, pair)
        in_ns(pair.b.ns, "ip", "link", "set", "other0", "mtu", "1400")
        until(lambda: run.latest() and "the MTU of other0 is 1400 now" in run.errors, "a word")
        echoes(run, pair)
        assert run.end() == 0
        addresses = in_ns(pair.b.ns, "ip", "-o", "addr", "show", "dev", "other0").stdout
        assert pair.b.ip4 in addresses and pair.b.ip6 in addresses


def told(run: Run, words: str) -> bool:
    run.read()
    return words in run.errors


def test_the_life_of_a_tap() -> None:
    """Down, up, another name and MTU are said and survived; `ip link del` ends the run."""
    with namespace("tap") as ns, Run(ns, example("drop"), "--port", "tap", "--iface", "t0",
                                     "-i", "0.1") as run:
        run.wait_for("start")
        for what, words in ((("t0", "down"), "interface t0 went down"),
                            (("t0", "up"), "interface t0 is up again"),
                            (("t0", "name", "t1"), "interface t0 is called t1 now"),
                            (("t1", "mtu", "1400"), "the MTU of t1 is 1400 now, was 1500")):
            in_ns(ns, "ip", "link", "set", *what)
            until(partial(told, run, words), words)
        before = run.total()["drop"]
        with entered(ns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
            sock.bind(("t1", 0))
            sock.send(bytes(12) + b"\x88\xb5" + bytes(46))
        until(lambda: run.total()["drop"] > before, "a packet after all that")
        in_ns(ns, "ip", "link", "del", "t1")
        assert run.finish() == 3, run.errors
        assert "was removed during the run" in run.wait_for("error")["error"]["message"]


def test_an_mtu_that_frames_do_not_hold() -> None:
    """Said when it is set, and again with how many packets the kernel has dropped."""
    with VethPair(subnet=62) as pair, live(
            pair, "pass", "--frame-size", "2048", "--stack", "auto") as run:
        run.wait_for("start")
        for end in (pair.a, pair.b):
            in_ns(end.ns, "ip", "link", "set", end.ifname, "mtu", "3000")
        until(lambda: run.latest() and "is 3000 now, was 1500" in run.errors, "a word of it")
        said = "the kernel drops packets longer than the 1792 bytes a frame has room for " \
            f"(rx_dropped): ip link set dev {pair.b.ifname} mtu 1774, or start anew with " \
            '--frame-size 4096, or the program in SEC("xdp.frags")'
        until(lambda: run.latest() and said in run.errors, "what it does")
        until(lambda: run.latest() and "packets longer than 1522 bytes is refused" in run.errors,
              "what it does to XDP_PASS")
        in_ns(pair.a.ns, "ping", "-q", "-c3", "-i", "0.01", "-W", "1", "-M", "do", "-s", "2800",
              pair.b.ip4, check=False)
        until(lambda: run.latest() and f"{pair.b.ifname} has dropped " in run.errors, "how many")
        assert ping(pair, pair.b.ip4)
        assert run.end() == 0
        assert run.wait_for("summary")["ports"][pair.b.ifname]["rx_dropped"] == 3


def test_more_and_fewer_queues_are_survived() -> None:
    """The kernel refuses to take away a queue that has a socket."""
    with VethPair(subnet=53, queues=3) as pair:
        for end in (pair.a, pair.b):
            in_ns(end.ns, "ethtool", "-L", end.ifname, "rx", "2", "tx", "2")
        with live(pair, "pass") as run:
            assert "queues 0-1" in run.wait_for("start")["modes"][pair.b.ifname]
            done = in_ns(pair.b.ns, "ethtool", "-L", pair.b.ifname, "rx", "1", check=False)
            assert done.returncode != 0
            in_ns(pair.b.ns, "ethtool", "-L", pair.b.ifname, "rx", "3")
            until(lambda: run.latest() and "3 receive queues now; those from 2 on" in run.errors,
                  "a word of it")
            in_ns(pair.b.ns, "ethtool", "-L", pair.b.ifname, "rx", "2")
            until(lambda: run.latest() and "2 receive queues now, 2 were taken" in run.errors,
                  "a word of it")
            echoes(run, pair)
            assert run.end() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("unchanged")
def test_signals_end_it_with_a_summary(net: VethPair, number: int) -> None:
    with live(net, "pass", "--promisc") as run:
        run.wait_for("start")
        assert run.end(number) == 0
        assert run.wait_for("summary") and run.wait_for("start")


def test_signals_at_any_moment_of_the_start(net: VethPair, unchanged: None) -> None:
    """Nothing is left behind, and the exit code says whether the run had begun."""
    began_s = time.monotonic()
    with live(net, "pass") as run:
        run.wait_for("start")
        whole_s = time.monotonic() - began_s
        assert run.end() == 0
    before = state(net.b.ns, net.b.ifname)
    rng = random.Random(SEED)
    codes = []
    for moment in sorted(rng.uniform(0.0, 1.0) for _ in range(10)):
        with live(net, "pass") as run:
            time.sleep(moment * whole_s)
            codes.append(run.end(rng.choice((signal.SIGINT, signal.SIGTERM))))
        assert state(net.b.ns, net.b.ifname) == before, f"at {moment:.2f} of {whole_s:.2f} s"
        assert codes[-1] in (0, 130, 143, -signal.SIGINT, -signal.SIGTERM), run.errors
        assert not [r for r in json.loads(xdpu("status", "-j").stdout)
                    if net.b.ifname in r["name"]]
    assert any(codes), "some came before the start"


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):  # a compiler ends by itself
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("keeper", ["lives", "killed too"])
@pytest.mark.usefixtures("unchanged")
def test_kill_9_then_a_new_run(net: VethPair, keeper: str) -> None:
    with live(net, "pass") as run:
        run.wait_for("start")
        children = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text()
        if keeper == "killed too":
            for pid in children.split():
                kill(int(pid))
        run.process.kill()
        run.process.wait()
    with live(net, "icmp_echo") as run:
        run.wait_for("start")
        assert ping(net, net.b.ip4)
        assert run.end() == 0
    if keeper == "killed too":
        assert "mended: " in run.errors


@pytest.mark.usefixtures("unchanged")
def test_kill_9_then_clean(net: VethPair) -> None:
    with live(net, "pass", "--name", "doomed") as run:
        run.wait_for("start")
        children = Path(f"/proc/{run.process.pid}/task/{run.process.pid}/children").read_text()
        for pid in children.split():
            kill(int(pid))
        run.process.kill()
        run.process.wait()
    rows = json.loads(xdpu("status", "-j").stdout)
    assert [r["alive"] for r in rows if r["name"] == "doomed"] == [False]
    done = xdpu("clean", prefix=["ip", "netns", "exec", net.b.ns])
    assert done.returncode == 0, done.stderr
    assert "put back" in done.stdout and "run doomed: removed" in done.stdout


@pytest.mark.usefixtures("unchanged")
def test_a_connection_survives_the_end_of_the_run(net: VethPair) -> None:
    """Opened through the TAP, used on the interface itself: addresses moved, nothing was reset."""
    with entered(net.b.ns):
        listener = socket.create_server((net.b.ip4, 7000))
    received: list[bytes] = []

    def serve() -> None:
        with suppress(OSError):
            peer, _ = listener.accept()
            with peer:
                while data := peer.recv(4096):
                    received.append(data)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    with listener, live(net, "pass") as run:
        run.wait_for("start")
        with entered(net.a.ns):
            client = socket.create_connection((net.b.ip4, 7000), timeout=10)
        with client:
            client.sendall(b"through the tap, ")
            until(lambda: received, "data through the TAP")
            assert run.end() == 0
            client.sendall(b"and without it")
            until(lambda: b"".join(received) == b"through the tap, and without it", "the rest")
        thread.join(10)
