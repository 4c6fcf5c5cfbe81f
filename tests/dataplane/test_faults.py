"""What goes wrong around a run under load: it goes on or ends with the reason, never hangs, and no
packet is unaccounted for (bench/soak.py says how the books are balanced).

`python -m bench.soak` and `python -m bench.kills` do the same for minutes and for a thousand runs.
"""

from __future__ import annotations

import errno
import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench import kills, soak
from bench.traffic import Flood, flood
from dataplane.stats import Stats
from tests.control.run_xdpu import EXAMPLES, Run, until, xdpu
from tests.nets import End, VethPair, in_ns
from tests.privileges import needs_bpf

pytestmark = [*needs_bpf(), pytest.mark.netns, pytest.mark.timeout(300)]
needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="what refuses is C: needs gcc")
STORM_C = Path(__file__).parent / "native" / "storm.c"
CPU = 0  # of the source


@pytest.fixture(scope="module")
def nets() -> Iterator[tuple[VethPair, VethPair]]:
    with soak.networks(2) as pairs:
        yield pairs


class Rig:
    """A run on the node's end of a quiet veth, its books open."""

    def __init__(self, run: Run, pair: VethPair, keeper: soak.Bookkeeper, folder: Path) -> None:
        self.run, self.pair, self._keeper, self._folder = run, pair, keeper, folder
        self.tap = run.wait_for("start")["taps"].get(pair.b.ifname, "")
        self.stats = Stats.open(folder / "one" / "stats")
        self.sent = 0

    def flood(self, seconds: float = 0.2) -> None:
        """Of some hundred thousand packets, from the source's end."""
        source = self.pair.a
        self.sent += flood(source.ifname, source.ns, CPU, seconds, dst_mac=self.pair.b.mac).frames

    def ask(self, *argv: str) -> None:
        done = xdpu(*argv, XDPU_RUNDIR=str(self._folder))
        assert done.returncode == 0, done.stderr

    def received(self) -> int:
        return self.stats.total()["rx_packets"]

    def end(self) -> dict[str, int]:
        """Balance the books, end the run -> its counters."""
        self._keeper.close(self.stats)
        assert self.run.end() == 0, self.run.errors
        books = self._keeper.books(self.sent, self.run.wait_for("summary"))
        assert soak.unbalanced(books.balance()) == []
        return dict(books.total) | {f"port_{name}": value for name, value in
                                    books.ports[self.pair.b.ifname].items()}


@contextmanager
def rig(pair: VethPair, folder: Path, program: str, *argv: str, **env: str) -> Iterator[Rig]:
    keeper = soak.Bookkeeper(source=pair.a, node=pair.b)
    with Run(pair.b.ns, str(EXAMPLES / f"{program}.o"), "--iface", pair.b.ifname, "--name", "one",
             "-i", "0.2", *argv, XDPU_RUNDIR=str(folder), **env) as run:
        yield Rig(run, pair, keeper, folder)


# ---- rings and queues that are full or empty -----------------------------------------------------

def test_a_starved_fill_ring(nets: tuple[VethPair, VethPair], tmp_path: Path) -> None:
    """Nobody takes packets: the kernel runs out of frames, counts, and goes on when they return."""
    with rig(nets[0], tmp_path, "drop", "--ring-size", "64") as one:
        one.ask("pause", "one")
        one.flood()
        assert one.received() <= 64 * 4  # what was on its way
        def lost_now() -> bool:
            one.run.read()
            return any(record["lost_per_second"] > 1000 for record in one.run.records
                       if record["type"] == "status")

        until(lost_now, "a status line of it")
        one.ask("resume", "one")
        until(lambda: one.received() >= 64, "the packets that waited")
        before = one.received()
        one.flood()
        until(lambda: one.received() > before, "packets again")
        told = json.loads(xdpu("status", "one", "-j", XDPU_RUNDIR=str(tmp_path)).stdout)
        said = xdpu("status", "one", XDPU_RUNDIR=str(tmp_path)).stdout
        scraped = xdpu("metrics", XDPU_RUNDIR=str(tmp_path)).stdout
        total = one.end()
        assert total["port_rx_fill_ring_empty_descs"] > 0
        port, summary = nets[0].b.ifname, one.run.wait_for("summary")
        lost = summary["lost_by_ports"][port]["rx_dropped"]
        assert lost == total["port_rx_dropped"] > 0 and summary["lost"] >= lost
        assert told["lost_by_ports"] == summary["lost_by_ports"] and told["lost"] == summary["lost"]
        assert f"lost: {summary['lost']:,}" in said
        assert f"{lost:,} {port}: not received, no room for it" in said
        assert ('xdpu_port_lost_packets_total{'
                f'run="one",port="{port}",reason="rx_dropped"}} {lost}') in scraped


@pytest.fixture(scope="module")
def storm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("storm") / "storm.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(library),
                    str(STORM_C), "-ldl"], check=True)
    return library


@needs_gcc
@pytest.mark.parametrize(("code", "percent"), [
    (errno.EAGAIN, 95), (errno.ENOBUFS, 95), (errno.EBUSY, 50), (errno.ENOBUFS, 100)])
def test_wake_ups_that_fail(nets: tuple[VethPair, VethPair], tmp_path: Path, storm: Path,
                            code: int, percent: int) -> None:
    """The transmit ring fills; what finds no room is counted, all else arrives in the end: where
    no wake-up works at all, the worker's poll(2) has the kernel send."""
    with rig(nets[0], tmp_path, "tx", "--tx", "xsk", "--ring-size", "64", LD_PRELOAD=str(storm),
             STORM=f"sendto {code} {percent} 1") as one:
        one.flood()
        total = one.end()
        assert total["tx"] > total["tx_full"] and total["port_wake_errors"] == 0


# ---- the way into the stack ----------------------------------------------------------------------

@needs_gcc
def test_a_stack_that_refuses_now_and_then(nets: tuple[VethPair, VethPair], tmp_path: Path,
                                           storm: Path) -> None:
    with rig(nets[0], tmp_path, "pass", "--stack", "tap", LD_PRELOAD=str(storm),
             STORM=f"writev {errno.EAGAIN} 30 1") as one:
        one.flood(0.1)
        total = one.end()
        assert 0 < total["pass_full"] < total["pass"]


def test_a_tap_that_goes_down(nets: tuple[VethPair, VethPair], tmp_path: Path) -> None:
    """What it does not take is counted; up again, packets pass, and the host has its addresses."""
    node = nets[0].b
    with rig(nets[0], tmp_path, "pass", "--stack", "tap") as one:
        in_ns(node.ns, "ip", "link", "set", one.tap, "down")
        one.flood(0.1)
        until(lambda: one.stats.total()["pass_full"] > 0, "packets that were refused")
        in_ns(node.ns, "ip", "link", "set", one.tap, "up")
        before = one.stats.total()
        one.flood(0.1)
        until(lambda: (now := one.stats.total())["pass"] - before["pass"]
              > now["pass_full"] - before["pass_full"], "packets that pass")
        one.end()
    assert node.ip4 in in_ns(node.ns, "ip", "addr", "show", "dev", node.ifname).stdout


def test_nobody_reads_the_tap_for_a_while(tmp_path: Path) -> None:
    """--port tap: what the kernel sends waits in the TAP's queue, overflows, and is counted."""
    with VethPair(subnet=223) as pair:
        ns = pair.b.ns
        in_ns(ns, "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
        with Run(ns, str(EXAMPLES / "drop.o"), "--iface", "t0", "--port", "tap", "--name", "one",
                 XDPU_RUNDIR=str(tmp_path)) as run:
            run.wait_for("start")
            assert xdpu("pause", "one", XDPU_RUNDIR=str(tmp_path)).returncode == 0
            tap = End(ns, "t0", 0, "", "", "")
            flood("t0", ns, CPU, 0.1)
            lost = soak.interface_counters(tap)["tx_dropped"]
            assert lost > 0
            assert xdpu("resume", "one", XDPU_RUNDIR=str(tmp_path)).returncode == 0
            stats = Stats.open(tmp_path / "one" / "stats")
            soak.settle(lambda: stats.total()["rx_packets"])
            counted = soak.interface_counters(tap)
            assert stats.total()["rx_packets"] == counted["tx_packets"] > 0
            assert run.end() == 0


# ---- the network changes under load --------------------------------------------------------------

def test_a_network_that_changes_all_the_time(tmp_path: Path) -> None:
    """Down and up at both ends, other MTUs, other queues, in a seeded order and under a flood; once
    it is as it was, packets come again, and the run has counted all it received."""
    rng = random.Random(5)
    with soak.networks(3) as (pair, _), rig(pair, tmp_path, "tx", "--queue", "0") as one:
        changes = [("ip", "link", "set", "IF", "down"), ("ip", "link", "set", "IF", "up"),
                   ("ip", "link", "set", "IF", "mtu", "1300"),
                   ("ip", "link", "set", "IF", "mtu", "1500"),
                   ("ethtool", "-L", "IF", "rx", "1", "tx", "1"),
                   ("ethtool", "-L", "IF", "rx", "3", "tx", "3")]
        source = Flood(pair.a.ifname, pair.a.ns, CPU, 1.5, dst_mac=pair.b.mac)
        for _ in range(30):
            end = rng.choice((pair.a, pair.b))
            in_ns(end.ns, *(end.ifname if word == "IF" else word for word in rng.choice(changes)),
                  check=False)
        for end in (pair.a, pair.b):
            in_ns(end.ns, "ip", "link", "set", end.ifname, "up", "mtu", "1500")
            in_ns(end.ns, "ethtool", "-L", end.ifname, "rx", "3", "tx", "3", check=False)
        source.stop()
        before = one.received()
        one.flood()
        until(lambda: one.received() > before, "packets after all that")
        soak.settle(one.received)
        assert one.run.end() == 0, one.run.errors
        total = one.run.total()
        assert total["rx_packets"] == sum(total[name] for name in (
            "aborted", "drop", "pass", "tx", "redirect"))


@pytest.mark.parametrize("how", ["peer's interface deleted", "peer's namespace deleted"])
def test_the_wire_is_cut_under_load(how: str, tmp_path: Path) -> None:
    with VethPair(subnet=224) as pair, Run(
            pair.b.ns, str(EXAMPLES / "tx.o"), "--iface", pair.b.ifname,
            XDPU_RUNDIR=str(tmp_path)) as run:
        run.wait_for("start")
        source = Flood(pair.a.ifname, pair.a.ns, CPU, 0.3, dst_mac=pair.b.mac)
        if how == "peer's interface deleted":
            in_ns(pair.a.ns, "ip", "link", "del", pair.a.ifname)
        else:
            source.wait()
            in_ns("", "ip", "netns", "del", pair.a.ns)
        assert run.finish() == 3, run.errors
        assert "was removed during the run" in run.wait_for("error")["error"]["message"]
        source.stop()
    assert kills.leftovers(tmp_path) == []


@pytest.mark.parametrize("argv", [(), ("--port", "afpacket"), ("--stack", "tap"), ("tap:t0",)],
                         ids=["afxdp", "afpacket", "with a TAP in its place", "tap beside it"])
def test_its_own_namespace_is_deleted(tmp_path: Path, argv: tuple[str, ...]) -> None:
    """The run keeps it alive, goes on, and takes its end as usual."""
    more = ("--iface", *argv) if argv == ("tap:t0",) else argv
    with VethPair(subnet=225) as pair, Run(
            pair.b.ns, str(EXAMPLES / "tx.o"), "--iface", pair.b.ifname, "-i", "0.2", *more,
            XDPU_RUNDIR=str(tmp_path)) as run:
        run.wait_for("start")
        in_ns("", "ip", "netns", "del", pair.b.ns)
        flood(pair.a.ifname, pair.a.ns, CPU, 0.1, dst_mac=pair.b.mac)
        until(lambda: run.total().get("tx", 0) > 0, "packets")
        assert run.end() == 0, run.errors
    assert kills.leftovers(tmp_path) == []


# ---- at full rate, and at any moment -------------------------------------------------------------

@pytest.mark.parametrize("stack", ["skb", "tap"])
def test_every_packet_is_accounted_for_while_programs_change(stack: str) -> None:
    result = soak.soak(2.0, 0.3, 1, CPU, [1], stack)
    assert result["unbalanced"] == [] and result["replaced"] >= 1


def test_signals_at_random_moments() -> None:
    """A dozen of the seeds of bench.kills, two ports."""
    seeds = [seed for seed in range(1, 60) if kills.Plan.of(seed).port in ("afxdp", "afpacket")]
    told: list[str] = []
    kills.work(seeds[:12], 0, lambda plan, wrong: told.extend(f"{plan}: {w}" for w in wrong))
    assert told == []
