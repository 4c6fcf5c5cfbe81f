"""xdpu run on a device of DPDK that has an interface of the host beneath it."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from bench import kills
from tests.control.run_xdpu import EXAMPLES, Run, until
from tests.nets import VethPair, in_ns

pytestmark = [pytest.mark.netns, pytest.mark.root, pytest.mark.dpdk, pytest.mark.timeout(120),
              pytest.mark.skipif(find_spec("dpdk._native") is None,
                                 reason="dpdk._native is not built (needs libdpdk-dev)")]


def live(pair: VethPair) -> Run:
    return Run(pair.b.ns, str(EXAMPLES / "pass.o"), "--port",
               f"dpdk:net_af_packet0,iface={pair.b.ifname}", "--dpdk-args", "--no-huge -m 64",
               "-i", "0.1")


def tell(run: Run, word: str) -> None:
    until(lambda: run.latest() and word in run.errors, word)


def test_the_interface_beneath_is_watched() -> None:
    with VethPair(subnet=226) as pair, live(pair) as run:
        run.wait_for("start")
        name = pair.b.ifname
        for change, word in ((("down",), f"interface {name} went down"),
                             (("up",), f"interface {name} is up again"),
                             (("name", "other0"), f"interface {name} is called other0 now")):
            subject = name if name in in_ns(pair.b.ns, "ip", "link").stdout else "other0"
            in_ns(pair.b.ns, "ip", "link", "set", subject, *change)
            tell(run, word)
        in_ns(pair.b.ns, "ip", "link", "del", "other0")
        assert run.finish() == 3, run.errors
        assert run.wait_for("error")["error"]["message"].startswith(
            f"interface {name}: was removed during the run")
        assert kills._files_of(run.process.pid) == []
