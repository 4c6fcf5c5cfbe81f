"""Changes to a run from outside: replace, pause and resume, ports that come and go, stop."""

from __future__ import annotations

import fcntl
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control.server import ask
from tests.control.run_xdpu import EXAMPLES, OBJECTS, Run, until, xdpu
from tests.control.test_run_iface import ping, settled, state
from tests.nets import VethPair, in_ns, popen_in_ns

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def net() -> Iterator[VethPair]:
    with VethPair(queues=2, subnet=35) as pair:
        until(lambda: settled(pair.b.ns, pair.b.ifname), "a link-local address")
        yield pair


@pytest.fixture(scope="module")
def other(net: VethPair) -> Iterator[VethPair]:
    """A second way from the client to the node."""
    with VethPair(net.a.ns, net.b.ns, queues=2, subnet=36) as pair:
        until(lambda: settled(pair.b.ns, pair.b.ifname), "a link-local address")
        yield pair


@pytest.fixture
def rundir(tmp_path: Path) -> dict[str, str]:
    return {"XDPU_RUNDIR": str(tmp_path)}


def change(net: VethPair, rundir: dict[str, str], *argv: str) -> dict[str, Any]:
    done = xdpu(*argv, "-j", prefix=["ip", "netns", "exec", net.b.ns], **rundir)
    assert done.returncode == 0, done.stdout + done.stderr
    out: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
    return out


def refused(net: VethPair, rundir: dict[str, str], *argv: str) -> tuple[int, str]:
    done = xdpu(*argv, prefix=["ip", "netns", "exec", net.b.ns], **rundir)
    assert done.stderr.count("\n") == 1, "one sentence"
    return done.returncode, done.stderr


def start(net: VethPair, rundir: dict[str, str], name: str, *argv: str) -> Run:
    run = Run(net.b.ns, str(EXAMPLES / f"{name}.o"), "--iface", net.b.ifname, "-i", "0.1",
              "--name", "one", *argv, **rundir)
    run.wait_for("start")
    return run


def test_replaced_under_traffic_without_losing_a_packet(net: VethPair, rundir: dict[str, str],
                                                       ) -> None:
    before = state(net.b.ns, net.b.ifname)
    with start(net, rundir, "counter", "--trace") as run:
        asking = popen_in_ns(net.a.ns, "ping", "-q", "-c", "500", "-i", "0.01", net.b.ip4)
        for number in range(5):
            said = change(net, rundir, "replace", "one", str(EXAMPLES / "counter.o"))
            assert said["kept"] == ["counters"] and said["new"] == []
            assert run.wait_for("change", number + 1)["program"] == "counter"
        answer, _ = asking.communicate(timeout=30)
        assert ", 0% packet loss" in answer, answer
        counted = json.loads(xdpu("map", "dump", "name", "counters", "-j", **rundir).stdout)
        icmp = next(e for e in counted if e["key"] == ["0x01", "0x00", "0x00", "0x00"])
        packets = sum(int.from_bytes(bytes(int(b, 16) for b in v["value"][:8]), "little")
                      for v in icmp["values"])
        assert packets >= 400, "what the programs before have counted is there"
        said = change(net, rundir, "replace", "one", str(EXAMPLES / "drop.o"))
        assert said["kept"] == [] and said["program"] == "drop"
        assert not ping(net, net.b.ip4, 1)
        assert json.loads(xdpu("status", "-j", **rundir).stdout)[0]["program"] == "drop"
        assert run.end() == 0
    assert state(net.b.ns, net.b.ifname) == before


def test_a_replacement_that_is_refused_changes_nothing(net: VethPair, rundir: dict[str, str],
                                                       tmp_path: Path) -> None:
    broken = tmp_path / "broken.o"
    broken.write_bytes((EXAMPLES / "drop.o").read_bytes()[:300])
    with start(net, rundir, "pass") as run:
        assert refused(net, rundir, "replace", "one", str(broken))[0] == 4
        assert refused(net, rundir, "replace", "one", "/nowhere.o")[0] == 2
        code, text = refused(net, rundir, "replace", "two", str(EXAMPLES / "drop.o"))
        assert code == 2 and "there are one" in text
        code, text = refused(net, rundir, "replace", "one", str(EXAMPLES / "redirect.o"),
                             "--set-map", "nonsense=1:2")
        assert code == 2 and "nonsense" in text
        assert ping(net, net.b.ip4)
        assert run.end() == 0
        assert not [r for r in run.records if r["type"] == "change"]


def test_a_class_binds_whatever_program_a_run_gets(net: VethPair, rundir: dict[str, str],
                                                   tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(xdpu("policy", "infer", str(EXAMPLES / "drop.o"), "--class", "least").stdout)
    with start(net, rundir, "drop", "--policy", str(policy)) as run:
        code, text = refused(net, rundir, "replace", "one", str(EXAMPLES / "counter.o"))
        assert code == 4 and "least" in text
        assert change(net, rundir, "replace", "one", str(EXAMPLES / "drop.o"))["program"] == "drop"
        assert run.end() == 0


def test_pause_and_resume(net: VethPair, rundir: dict[str, str]) -> None:
    with start(net, rundir, "icmp_echo") as run:
        assert ping(net, net.b.ip4)
        change(net, rundir, "pause", "one")
        assert json.loads(xdpu("status", "-j", **rundir).stdout)[0]["paused"] == [net.b.ifname]
        before = run.total()
        assert not ping(net, net.b.ip4, 1)
        until(lambda: run.latest().get("per_second", {}).get("rx_packets") == 0, "a line of rest")
        change(net, rundir, "resume", net.b.ifname)
        until(lambda: run.total()["rx_packets"] > before["rx_packets"], "what had waited")
        assert ping(net, net.b.ip4)
        code, text = refused(net, rundir, "pause", "one", "nonsense")
        assert code == 2 and net.b.ifname in text
        assert run.end() == 0


def test_interfaces_come_and_go(net: VethPair, other: VethPair, rundir: dict[str, str]) -> None:
    before = state(net.b.ns, net.b.ifname), state(other.b.ns, other.b.ifname)
    with start(net, rundir, "pass") as run:
        change(net, rundir, "port", "add", "one", other.b.ifname)
        assert f"XDP_PASS of {other.b.ifname} goes" in run.errors or run.wait_for("change")
        assert ping(net, net.b.ip4) and ping(other, other.b.ip4)
        shown = json.loads(xdpu("status", "-j", **rundir).stdout)[0]
        assert shown["interfaces"] == [net.b.ifname, other.b.ifname] and len(shown["modes"]) == 2
        code, text = refused(net, rundir, "port", "add", "one", other.b.ifname)
        assert code == 2 and "already" in text
        code, text = refused(net, rundir, "port", "add", "one", "nonsense")
        assert code == 3
        change(net, rundir, "port", "remove", "one", net.b.ifname)
        assert state(net.b.ns, net.b.ifname)["addresses"] == before[0]["addresses"]
        assert state(net.b.ns, net.b.ifname)["xdp"] == before[0]["xdp"]
        assert ping(other, other.b.ip4) and ping(net, net.b.ip4), "by the host alone, again"
        code, text = refused(net, rundir, "port", "remove", "one", other.b.ifname)
        assert code == 2 and "the only one" in text
        change(net, rundir, "port", "add", "one", net.b.ifname)
        assert ping(net, net.b.ip4)
        done = xdpu("stop", "one", **rundir)
        assert done.returncode == 0
        assert run.finish() == 0
        total = run.wait_for("summary")["total"]
        assert total["pass"] == total["rx_packets"] > 8
    assert (state(net.b.ns, net.b.ifname), state(other.b.ns, other.b.ifname)) == before


def test_the_socket_bears_any_peer(net: VethPair, rundir: dict[str, str]) -> None:
    folder = Path(rundir["XDPU_RUNDIR"]) / "one"
    with start(net, rundir, "pass") as run:
        assert (folder / "control").stat().st_mode & 0o777 == 0o600
        for line in (b"", b"\n", b"[1]\n", b"{", b'{"do": "nonsense"}\n', b"x" * 100_000):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(folder / "control"))
                peer.sendall(line)
                peer.shutdown(socket.SHUT_WR)
                assert b'"error"' in peer.makefile("rb").readline()
        with socket.socket(socket.AF_UNIX) as silent:
            silent.connect(str(folder / "control"))
        assert net.b.ifname in ask(folder, {"do": "counters"})
        assert ping(net, net.b.ip4)
        assert run.end() == 0
    assert not folder.exists()
    assert in_ns(net.b.ns, "ip", "link").returncode == 0


def test_a_run_whose_output_nobody_reads_still_listens(net: VethPair, rundir: dict[str, str],
                                                       ) -> None:
    with Run(net.b.ns, str(EXAMPLES / "drop.o"), "--iface", net.b.ifname, "--name", "one",
             "-i", "0.001", **rundir) as run:
        run.wait_for("start")
        for pipe in (run.process.stdout, run.process.stderr):
            assert pipe is not None
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 8192)
        for verb in ("pause", "resume") * 120:  # a remark and a record each
            asked = {"do": verb, "ifaces": [net.b.ifname]}
            assert ask(Path(rundir["XDPU_RUNDIR"]) / "one", asked)["ifaces"] == [net.b.ifname]
        run.read()
        assert change(net, rundir, "pause", "one")["ifaces"] == [net.b.ifname]
        assert run.end() == 0
        assert "standard output is not read" in run.errors
        assert re.search(r"[0-9]+ remarks were left out: standard error was not read", run.errors)


def test_programs_and_maps_put_in_place(net: VethPair, rundir: dict[str, str]) -> None:
    """By name, with xdpu map update: packets go on there from then on."""
    zero = ("key", "0", "0", "0", "0")

    def counted(name: str) -> int:
        told = change(net, rundir, "map", "lookup", "pinned", f"one/{name}", *zero)
        return int(told["formatted"]["value"])

    with start(net, rundir, str(OBJECTS / "places"), "-n", "start") as run:
        total = run.total

        def grows(what: str) -> None:
            before = total().get(what, 0)
            in_ns(net.a.ns, "ping", "-q", "-c", "3", "-i", "0.01", "-W", "1", net.b.ip4,
                  check=False)
            until(lambda: total().get(what, 0) >= before + 3, f"packets to {what}")

        grows("pass")
        for program, verdict in (("drops", "drop"), ("passes", "pass")):
            change(net, rundir, "map", "update", "pinned", "one/places", *zero, "value", "name",
                   program)
            grows(verdict)
        change(net, rundir, "map", "delete", "pinned", "one/places", *zero)
        grows("aborted")
        assert counted("one") >= 12 and counted("two") == 0
        number = str(change(net, rundir, "map", "show", "pinned", "one/two")["id"])
        for words in (("id", number), ("name", "one"), ("pinned", "one/two")):
            change(net, rundir, "map", "update", "pinned", "one/counters", *zero, "value",
                   *words)
        grows("aborted")
        assert counted("two") >= 3
        inside = change(net, rundir, "map", "lookup", "pinned", "one/counters", *zero)
        assert inside["inner_map_id"] == int(number)
        wrong: tuple[tuple[tuple[str, ...], str], ...] = (
            (("counters", "name", "narrow"), "not a map of the inner definition"),
            (("counters", "name", "five"), "there is none in run one"),
            (("counters", "0", "0", "0", "0"), "cannot be given as bytes"),
            (("counters", "name", "one", "noexist"), "File exists"),
            (("places", "name", "five"), "it has start, passes, drops"),
            (("places", "id", "5"), "programs of a run have names only"),
            (("places", "0", "0", "0", "0"), "cannot be given as bytes"))
        for given, why in wrong:
            code, told = refused(net, rundir, "map", "update", "pinned", f"one/{given[0]}", *zero,
                                 "value", *given[1:])
            assert code == 2 and why in told, told
        assert run.end() == 0
