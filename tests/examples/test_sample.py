"""examples/sample.py beside a run of sample.o: packets of a ring, counted in NumPy."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.control.run_xdpu import EXAMPLES, ROOT, Run, environment, until
from tests.nets import VethPair, entered

SAMPLE = EXAMPLES / "sample.py"


@pytest.mark.netns
@pytest.mark.root
def test_who_sends_how_much(tmp_path: Path) -> None:
    with VethPair(subnet=83) as pair, Run(
            pair.b.ns, str(EXAMPLES / "sample.o"), "--iface", f"afpacket:{pair.b.ifname}",
            "--no-stack", "--ring", "sample=xsks[0]", "-i", "0.1",
            XDPU_RUNDIR=str(tmp_path)) as run:
        run.wait_for("start")
        with entered(pair.a.ns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for _ in range(500):
                sender.sendto(bytes(100), (pair.b.ip4, 9))
        until(lambda: run.total().get("ring_sent", 0) >= 500, "500 packets in the ring")
        done = subprocess.run([sys.executable, str(SAMPLE), "sample", "0.2"], text=True, cwd=ROOT,
                              capture_output=True, timeout=60, check=False,
                              env=environment(XDPU_RUNDIR=str(tmp_path)))
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            f"{pair.a.ip4:<15}          500 packets          71,000 bytes",
            "0 packets found the ring full"]
        assert run.end() == 0


def test_no_ring(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(SAMPLE)], text=True, capture_output=True, cwd=ROOT,
                          timeout=60, check=False, env=environment(XDPU_RUNDIR=str(tmp_path)))
    assert done.returncode == 1
    assert done.stderr == "sample: ring sample: there is none (there are: none)\n"
