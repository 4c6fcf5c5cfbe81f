"""Baseline code first, then optimised code: with traffic, with signals, and when it cannot be."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.control.run_xdpu import EXAMPLES, Run, until, xdpu
from tests.control.test_run_iface import ping, settled, state
from tests.nets import VethPair, popen_in_ns
from xdp_runtime import cache

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]
BASELINE = "baseline, linear passes only"
TRIES = 20  # for a compiler that was faster than who wanted to stop it
LONG_S = 60


@pytest.fixture(scope="module")
def net() -> Iterator[VethPair]:
    with VethPair(queues=2, subnet=37) as pair:
        until(lambda: settled(pair.b.ns, pair.b.ifname), "a link-local address")
        yield pair


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that begins with what there is but programs."""
    folder = tmp_path_factory.mktemp("cache")
    for path in cache.directory().glob("*"):
        if path.suffix in (".bc", ".rare", ".around"):
            os.link(path, folder / path.name)
    return folder


@pytest.fixture
def places(tmp_path: Path, templates: Path) -> dict[str, str]:
    """Of a run: its directory, and a cache without programs."""
    for path in templates.glob("program-*"):
        path.unlink()
    return {"XDPU_RUNDIR": str(tmp_path / "run"), "XDPU_CACHE": str(templates)}


@pytest.fixture
def unchanged(net: VethPair) -> Iterator[None]:
    before = state(net.b.ns, net.b.ifname)
    yield
    assert state(net.b.ns, net.b.ifname) == before


def started(net: VethPair, places: dict[str, str], name: str, *argv: str) -> Run:
    return Run(net.b.ns, str(EXAMPLES / f"{name}.o"), "--iface", net.b.ifname, "-i", "0.1",
               "--name", "one", *argv, **places)


def compiler_of(run: Run) -> int:
    """Its process, once it is there; 0 if it has ended, or never was."""
    pid = run.process.pid
    nice = min(os.getpriority(os.PRIO_PROCESS, pid) + 5, 19)
    while not any(one["type"] in ("start", "code") for one in run.records):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in children:
            fds = Path(f"/proc/{child}/fd")
            try:
                if any("xdpu-background" in os.readlink(fd) for fd in fds.iterdir()) \
                        and os.getpriority(os.PRIO_PROCESS, int(child)) == nice:  # it works
                    return int(child)
            except OSError:
                continue
        run.read()
    return 0


@contextmanager
def held(net: VethPair, places: dict[str, str], name: str) -> Iterator[tuple[Run, int]]:
    """A run whose compiler is stopped in its work, and that process."""
    for _ in range(TRIES):
        for path in Path(places["XDPU_CACHE"]).glob("program-*"):
            path.unlink()
        with started(net, places, name) as run:
            child = compiler_of(run)
            if child:
                os.kill(child, signal.SIGSTOP)
                run.wait_for("start")
                if not any(Path(places["XDPU_CACHE"]).glob("program-*")):
                    yield run, child
                    return
            run.end()
    raise AssertionError("the compiler always was faster")


@pytest.mark.usefixtures("unchanged")
def test_swapped_under_traffic_without_losing_a_packet(net: VethPair, places: dict[str, str],
                                                       ) -> None:
    with held(net, places, "counter") as (run, child):
        code = run.wait_for("start")["code"]
        assert code["baseline"] and not code["cached"] and code["pipeline"] == BASELINE
        asking = popen_in_ns(net.a.ns, "ping", "-q", "-c", "300", "-i", "0.01", net.b.ip4)
        until(lambda: run.total().get("rx_packets", 0) > 20, "packets by baseline code")
        assert json.loads(xdpu("status", "one", "-j", **places).stdout)["code"] == BASELINE
        os.kill(child, signal.SIGCONT)
        swapped = run.wait_for("code")
        assert swapped["optimised"] and swapped["pipeline"] == "O3"
        assert json.loads(xdpu("status", "one", "-j", **places).stdout)["code"] == "O3"
        assert swapped["after_s"] > code["compile_s"] > 0
        answer, _ = asking.communicate(timeout=60)
        assert ", 0% packet loss" in answer, answer
        counted = json.loads(xdpu("map", "dump", "name", "counters", "-j", **places).stdout)
        icmp = next(e for e in counted if e["key"] == ["0x01", "0x00", "0x00", "0x00"])
        packets = sum(int.from_bytes(bytes(int(byte, 0) for byte in one["value"][:8]), "little")
                      for one in icmp["values"])
        assert packets == 300, "one history of the map"
        assert run.end() == 0
        summary = run.wait_for("summary")
    assert summary["lost"] == 0
    assert summary["code"] == {"baseline_after_s": code["compile_s"], "pipeline": "O3",
                               "optimised_after_s": swapped["after_s"]}
    assert "optimised code follows" in run.errors
    assert run.errors.count("in place of baseline code") == 2, "when it was done, and at the end"
    with started(net, places, "counter") as run:  # from the cache
        code = run.wait_for("start")["code"]
        assert code["cached"] and not code["baseline"] and code["pipeline"] == "O3"
        assert run.end() == 0
        assert "code" not in run.wait_for("summary") and "baseline" not in run.errors
    assert not [one for one in run.records if one["type"] == "code"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.usefixtures("unchanged")
def test_the_end_of_the_run_is_the_compilers(net: VethPair, places: dict[str, str],
                                             number: int) -> None:
    with held(net, places, "pass") as (run, child):
        process = os.pidfd_open(child)
        assert ping(net, net.b.ip4)
        code = run.end(number)
        assert select.select([process], [], [], LONG_S)[0], "the compiler has ended"
        os.close(process)
        if number == signal.SIGKILL:
            done = xdpu("clean", prefix=["ip", "netns", "exec", net.b.ns], **places)
            assert done.returncode == 0
        else:
            assert code == 0
            assert "the run ended before optimised code" in run.wait_for("summary")["code"]["why"]
            assert "baseline code all the time" in run.errors


@pytest.mark.usefixtures("unchanged")
def test_without_optimised_code_baseline_code_goes_on(net: VethPair, places: dict[str, str],
                                                      ) -> None:
    with held(net, places, "pass") as (run, child):
        os.kill(child, signal.SIGKILL)
        told = run.wait_for("code")
        assert not told["optimised"] and "was ended by SIGKILL" in told["why"]
        assert ping(net, net.b.ip4)
        assert run.end() == 0
        assert run.wait_for("summary")["code"]["pipeline"] == BASELINE
    assert run.errors.count("baseline code goes on, as optimised code could not be had") == 1


@pytest.mark.usefixtures("unchanged")
def test_another_program_needs_no_optimised_code_of_the_first(net: VethPair,
                                                              places: dict[str, str]) -> None:
    with held(net, places, "pass") as (run, child):
        done = xdpu("replace", "one", str(EXAMPLES / "icmp_echo.o"),
                    prefix=["ip", "netns", "exec", net.b.ns], **places)
        assert done.returncode == 0, done.stderr
        until(lambda: not Path(f"/proc/{child}").exists(), "the end of the compiler")
        assert ping(net, net.b.ip4)
        assert run.end() == 0
        assert "another program" in run.wait_for("summary")["code"]["why"]


@pytest.mark.usefixtures("unchanged")
def test_off(net: VethPair, places: dict[str, str]) -> None:
    with started(net, places, "pass", "--baseline", "off") as run:
        code = run.wait_for("start")["code"]
        assert code["pipeline"] == "O3" and not code["cached"] and not code["baseline"]
        assert run.end() == 0
