"""The host after a run on AF_XDP is as it was before, to the byte of what its tools say of it,
whatever the run was asked for and however it ended."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest

from tests.afxdp.network import marks
from tests.control.run_xdpu import Run, until, xdpu
from tests.control.test_run_iface import example, settled
from tests.nets import VethPair, in_ns

pytestmark = marks()
_LOOKS = (
    "ip -d link show dev {0}", "ip -d addr show dev {0}", "ip route show table all",
    "ip -6 route show table all dev {0}", "ip neigh show nud permanent", "ethtool -l {0}",
    "ethtool -k {0}", "bpftool net show dev {0}",
    "cat /sys/class/net/{0}/napi_defer_hard_irqs /sys/class/net/{0}/gro_flush_timeout",
    "cat /proc/sys/vm/nr_hugepages /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
OPTIONS: list[tuple[str, ...]] = [
    (), ("--busy-poll=16", "--promisc"), ("--mode", "generic", "--filter", "tcp"),
    ("--stack", "tap", "--unaligned", "--frame-size", "3000", "--umem-pages", "ordinary"),
]


def seen(net: VethPair) -> list[str]:
    """What each tool says; without the time that is left to something."""
    return [re.sub(r"\d+sec|valid_lft.*", "", in_ns(net.b.ns, "sh", "-c", look.format(
        net.b.ifname), check=False).stdout) for look in _LOOKS]


@pytest.fixture(scope="module")
def net() -> Iterator[VethPair]:
    with VethPair(subnet=85, queues=2) as pair:
        until(lambda: settled(pair.b.ns, pair.b.ifname), "a link-local address")
        in_ns(pair.b.ns, "ip", "neigh", "replace", pair.a.ip4, "lladdr", pair.a.mac, "dev",
              pair.b.ifname, "nud", "permanent")
        yield pair


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(options))
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL],
                         ids=lambda number: number.name)
def test_after_a_run(net: VethPair, options: tuple[str, ...], number: signal.Signals) -> None:
    before = seen(net)
    with Run(net.b.ns, example("pass"), "--iface", net.b.ifname, "-i", "0.1", *options) as run:
        run.wait_for("start")
        until(net.ping, "an answer")
        during = seen(net)
        assert during != before and during[7] != before[7], "a program is attached"
        if "--busy-poll=16" in options:
            assert during[8].split() == ["2", "200000"] and before[8].split() == ["0", "0"]
        if number == signal.SIGKILL:
            os.kill(run.wait_for("start")["pid"], number)
        else:
            assert run.end(number) == 0
    until(lambda: seen(net) == before, "all as before")


@pytest.mark.parametrize(("options", "code"), [
    (("--copy-mode", "zero-copy"), 3), (("--mode", "generic", "--copy-mode", "zero-copy"), 2),
    (("--queue", "0-7"), 3), (("--umem-pages", "huge", "--frames", "1048576"), 5),
    (("--tx", "live"), 3), (("--mode", "generic", "--stack", "live"), 3),
    (("--busy-poll=8", "--copy-mode", "zero-copy", "--promisc"), 3),
    (("--frame-size", "3000"), 2), (("--filter", "map:nix"), 2),
], ids=str)
def test_after_a_refusal(net: VethPair, options: tuple[str, ...], code: int) -> None:
    """One sentence, the exit code of its kind, and nothing was left attached."""
    before = seen(net)
    done = xdpu("run", example("pass"), "--iface", net.b.ifname, *options,
                prefix=("ip", "netns", "exec", net.b.ns))
    said = [line for line in done.stderr.splitlines() if "had died" not in line]  # another test's
    assert done.returncode == code and len(said) == 1, done.stderr
    assert seen(net) == before
