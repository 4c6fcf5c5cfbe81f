"""The test networks: two ends that hear each other, and nothing left afterwards."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.nets import VethPair, entered, in_ns, namespace, popen_in_ns, run, sweep
from tests.privileges import needs_bpf

pytestmark = [*needs_bpf(), pytest.mark.netns]


def _namespaces() -> set[str]:
    return {line.split()[0] for line in run("ip", "netns").stdout.splitlines()}


def test_both_ends_hear_each_other() -> None:
    with VethPair(queues=3, mtu=1400) as pair:
        assert pair.ping()
        assert in_ns(pair.b.ns, "ping", "-c1", "-W1", pair.a.ip6).returncode == 0
        with entered(pair.a.ns):
            link = run("ip", "-d", "link", "show", pair.a.ifname).stdout
        assert f"{pair.a.ifindex}: {pair.a.ifname}@" in link
        assert "mtu 1400" in link and "numrxqueues 3" in link and pair.a.mac in link
    assert not {pair.a.ns, pair.b.ns} & _namespaces()


def test_chain_of_three() -> None:
    """An end may go into a namespace that is there already."""
    with VethPair() as left, VethPair(ns_a=left.b.ns, subnet=2) as right:
        assert right.a.ns == left.b.ns
        assert left.ping() and right.ping()


def test_entered_is_this_thread_only_and_ends() -> None:
    def here() -> str:
        return os.readlink("/proc/thread-self/ns/net")

    before = here()
    with namespace() as ns, ThreadPoolExecutor(1) as other:
        assert other.submit(here).result() == before  # the thread exists from now on
        with entered(ns):
            assert here() != before
            assert other.submit(here).result() == before
        assert here() == before


def test_processes_in_the_namespace_end_with_it() -> None:
    with namespace() as ns:
        sleeper = popen_in_ns(ns, "sleep", "60")
        while str(sleeper.pid) not in run("ip", "netns", "pids", ns).stdout:
            assert sleeper.poll() is None
    assert sleeper.wait(timeout=5) == -9
    sleeper.communicate()


def test_failure_shows_what_the_command_said() -> None:
    with pytest.raises(RuntimeError, match="no-such-interface"):
        run("ip", "link", "show", "no-such-interface")


def test_leftovers_of_dead_runs_go() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    left, kept = f"xdpu-{ended.pid}-0", "other-name-0"
    run("ip", "netns", "add", left)
    run("ip", "netns", "add", kept)
    try:
        sweep(again=True)
        assert left not in _namespaces()
        assert kept in _namespaces()
    finally:
        run("ip", "netns", "del", kept)


def test_a_failed_build_leaves_nothing() -> None:
    before, interfaces = _namespaces(), set(Path("/sys/class/net").iterdir())
    with pytest.raises(RuntimeError), VethPair(mtu=10):
        pass
    with pytest.raises(RuntimeError), VethPair(ns_b="no-such-namespace"):
        pass
    assert _namespaces() == before
    assert set(Path("/sys/class/net").iterdir()) == interfaces
