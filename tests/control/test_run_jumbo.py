"""xdpu run on a wire with an MTU of 9000: pings that fill it, a download, and what is refused."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.control.run_xdpu import OBJECTS, Run, until, xdpu
from tests.nets import VethPair, in_ns, popen_in_ns

pytestmark = [pytest.mark.netns, pytest.mark.timeout(180)]
OBJECT = str(OBJECTS / "jumbo.o")
MTU = 9000


@pytest.fixture(scope="module")
def net() -> Iterator[VethPair]:
    with VethPair(subnet=36, mtu=MTU) as pair:
        yield pair


def run(net: VethPair, *argv: str) -> Run:
    return Run(net.b.ns, OBJECT, "--iface", net.b.ifname, "-i", "0.1", *argv)


@pytest.mark.parametrize("more", [
    ("-n", "jumbo"), ("-n", "jumbo", "--mode", "generic"), ("-n", "jumbo", "--frame-size", "2048"),
    ("-n", "jumbo", "--port", "afpacket"), ("-n", "small", "--port", "afpacket")], ids=str)
def test_pings_and_a_download(net: VethPair, tmp_path: Path, more: tuple[str, ...]) -> None:
    page = random.Random(1).randbytes(3_000_000)
    (tmp_path / "page").write_bytes(page)
    with run(net, *more) as live:
        live.wait_for("start")
        for size in (56, 3400, 3600, 8972):  # 8972: a full packet
            done = in_ns(net.a.ns, "ping", "-q", "-c3", "-i", "0.05", "-W", "2", "-M", "do", "-s",
                         str(size), net.b.ip4, check=False)
            assert " 3 received" in done.stdout, (size, done.stdout)
        server = popen_in_ns(net.b.ns, sys.executable, "-m", "http.server", "8000", "--directory",
                             str(tmp_path))
        try:
            until(lambda: in_ns(net.b.ns, "ss", "-Hltn", "sport = :8000").stdout, "the server")
            for _ in range(3):
                in_ns(net.a.ns, "curl", "-s", "--noproxy", "*", "--max-time", "20", "-o",
                      str(tmp_path / "got"), f"http://{net.b.ip4}:8000/page")
                assert (tmp_path / "got").read_bytes() == page
        finally:
            server.kill()
            server.communicate()
        assert live.end() == 0
        total = live.total()
        assert total["pass_full"] == 0 and total["pass"] >= 12


@pytest.mark.parametrize("mode", ["native", "generic", "auto"])
def test_a_program_of_one_buffer_is_refused(net: VethPair, mode: str) -> None:
    done = xdpu("run", OBJECT, "-n", "small", "--iface", net.b.ifname, "--mode", mode,
                prefix=("ip", "netns", "exec", net.b.ns))
    assert done.returncode != 0 and 'SEC("xdp.frags")' in done.stderr and "MTU" in done.stderr
