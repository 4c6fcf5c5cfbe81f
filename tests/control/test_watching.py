"""What can be read of runs from outside: status, top and metrics."""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control.run_xdpu import EXAMPLES, OBJECTS, Run, command, environment, until, xdpu
from tests.control.test_run_iface import ping
from tests.nets import VethPair, in_ns, popen_in_ns, run

pytestmark = [pytest.mark.netns, pytest.mark.timeout(120)]
_LINE = re.compile(r'xdpu_[a-z_]+\{([a-z_]+="[^"]*",?)+\} [0-9.e+-]+')


@pytest.fixture(scope="module")
def net() -> Iterator[VethPair]:
    with VethPair(queues=2, subnet=37) as pair:
        yield pair


@pytest.fixture(scope="module")
def rundir(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {"XDPU_RUNDIR": str(tmp_path_factory.mktemp("runs"))}


@pytest.fixture(scope="module")
def echo(net: VethPair, rundir: dict[str, str]) -> Iterator[Run]:
    """A run that has answered some pings."""
    with Run(net.b.ns, str(EXAMPLES / "icmp_echo.o"), "--iface", net.b.ifname, "--name", "echo",
             "--stack", "tap", "-i", "0.1", **rundir) as one:
        one.wait_for("start")
        assert ping(net, net.b.ip4, 200)
        until(lambda: one.total().get("tx", 0) >= 200, "answers")
        yield one
        assert one.end() == 0


def test_status_of_one_run(net: VethPair, echo: Run, rundir: dict[str, str]) -> None:
    told = json.loads(xdpu("status", net.b.ifname, "-j", **rundir).stdout)
    assert told["name"] == "echo" and told["total"]["tx"] >= 200
    assert sum(flow["tx"] for flow in told["flows"]) == told["total"]["tx"]
    assert {flow["port"] for flow in told["flows"]} == {net.b.ifname, f"xdpu-{net.b.ifname}"[:15]}
    assert "rx_ring_full" in told["ports"][net.b.ifname]
    took = told["latency_ns"]
    assert 0 < took["p50"] <= took["p99"] <= took["p99.9"] < 1e9
    text = xdpu("status", "echo", **rundir).stdout
    assert re.search(rf"worker (\d) {net.b.ifname}:\1: rx_packets", text) and "lost: 0" in text
    refused = xdpu("status", "nonsense", **rundir)
    assert refused.returncode == 2 and "there are echo" in refused.stderr


def test_top(net: VethPair, echo: Run, rundir: dict[str, str]) -> None:
    asking = popen_in_ns(net.a.ns, "ping", "-q", "-i", "0.01", "-c", "150", net.b.ip4)
    done = xdpu("top", "echo", "-i", "0.5", "-c", "2", "-j", **rundir)
    text = xdpu("top", "-i", "0.3", "-c", "1", **rundir).stdout
    asking.communicate(timeout=30)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [r["name"] for r in records] == ["echo", "echo"]
    assert all(40 < r["per_second"]["tx"] < 200 for r in records), "100 a second are asked"
    assert sum(f["per_second"]["tx"] for f in records[0]["flows"]) == pytest.approx(
        records[0]["per_second"]["tx"])
    assert all(set(r["lost_by_ports_per_second"]) <= {net.b.ifname} for r in records)
    assert records[0]["latency_ns"].keys() == {"p50", "p99", "p99.9"}
    assert re.search(rf"^  \d {net.b.ifname}:\d ", text, re.MULTILINE) and "echo" in text


def test_metrics_are_what_prometheus_reads(net: VethPair, echo: Run,
                                           rundir: dict[str, str]) -> None:
    text = xdpu("metrics", **rundir).stdout
    lines = text.splitlines()
    assert all(line.startswith("# ") or _LINE.fullmatch(line) for line in lines)
    types = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    helps = {line.split()[2] for line in lines if line.startswith("# HELP")}
    assert types == helps and "xdpu_verdicts_total" in types
    answered = [float(line.split()[-1]) for line in lines
                if line.startswith("xdpu_verdicts_total") and 'verdict="tx"' in line]
    assert sum(answered) >= 200
    buckets = [float(line.split()[-1]) for line in lines
               if line.startswith("xdpu_batch_seconds_bucket")]
    assert buckets == sorted(buckets) and buckets[-1] > 0
    count = next(line for line in lines if line.startswith("xdpu_batch_seconds_count"))
    assert float(count.split()[-1]) == buckets[-1]
    assert any(line.startswith("xdpu_port_counter") and f'port="{net.b.ifname}"' in line
               for line in lines)


def test_metrics_over_http(echo: Run, rundir: dict[str, str]) -> None:
    import subprocess

    with subprocess.Popen([*command("metrics", "--listen", ":0")], stderr=subprocess.PIPE,
                          text=True, env=environment(**rundir)) as server:
        assert server.stderr is not None
        url = re.search(r"http://\S+", server.stderr.readline())
        assert url is not None
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url[0], timeout=10) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            assert 'xdpu_up{run="echo"} 1' in answer.read().decode()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            opener.open(url[0].replace("/metrics", "/nonsense"), timeout=10)
        taken = xdpu("metrics", "--listen", url[0].split("/")[2], **rundir)
        assert taken.returncode == 2 and "in use" in taken.stderr
        server.terminate()
        assert server.wait(10) == 0


def test_a_run_that_died_is_down(net: VethPair, tmp_path: Path) -> None:
    with Run(net.b.ns, str(EXAMPLES / "drop.o"), "--iface", net.b.ifname, "--port", "afpacket",
             "--no-stack", "--name", "dead", XDPU_RUNDIR=str(tmp_path)) as one:
        one.wait_for("start")
        one.process.kill()
        one.process.wait()
    assert 'xdpu_up{run="dead"} 0' in xdpu("metrics", XDPU_RUNDIR=str(tmp_path)).stdout
    stopped = xdpu("stop", "dead", XDPU_RUNDIR=str(tmp_path))
    assert stopped.returncode == 2 and "none runs" in stopped.stderr
    cleaned = run("ip", "netns", "exec", net.b.ns, *command("clean"),
                  env=environment(XDPU_RUNDIR=str(tmp_path)))
    assert "dead" in cleaned.stdout


def test_a_worker_that_hangs_is_told_of_with_where(tmp_path: Path) -> None:
    """The program needs longer than anybody waits; the run ends all the same."""
    with VethPair(subnet=38, queues=2) as net:
        see_it_hang(net, tmp_path)


def see_it_hang(net: VethPair, tmp_path: Path) -> None:
    frame = "ff" * 6 + "02" * 6 + "88b5" + "00" * 46
    send = ("import socket; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); "
            f"s.bind(('{net.a.ifname}', 0)); s.send(bytes.fromhex('{frame}'))")
    with Run(net.b.ns, str(OBJECTS / "slow.o"), "--iface", net.b.ifname, "--no-stack", "-i", "1",
             XDPU_RUNDIR=str(tmp_path)) as one:
        one.wait_for("start")
        in_ns(net.a.ns, sys.executable, "-c", send)

        def told() -> bool:
            one.read(0.1)
            return "no progress" in one.errors

        until(told, "the watchdog")
        where = (rf"in the program slow, packets of {net.b.ifname}:\d, (running on a CPU|ready to "
                 "run, but other threads have its CPU)")
        assert re.search(rf"worker \d has made no progress for \d s: {where}", one.errors)
        changed = xdpu("replace", net.b.ifname, str(EXAMPLES / "drop.o"),
                       XDPU_RUNDIR=str(tmp_path))
        assert changed.returncode == 0, changed.stderr
        assert re.search(rf"drop of drop.o runs in place of slow.*; not yet for worker \d "
                         rf"\(for \d s {where}.*\), which changes before its next packet",
                         changed.stdout)
        assert one.end() == 1
        assert "did not stop within" in one.errors
    assert not list(tmp_path.glob("*/takeover-*"))
