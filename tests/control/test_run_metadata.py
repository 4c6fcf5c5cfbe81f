"""What the driver knows of packets, and checksums left to it: packets of several frames, and runs
of an ordinary user."""

from __future__ import annotations

import random
import shutil
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from afxdp import tx_metadata
from tests.afxdp.network import marks
from tests.control.run_xdpu import Run, until
from tests.control.test_setup import Setup, folder
from tests.control.test_setup import run as run_as_nobody
from tests.nets import VethPair, entered

pytestmark = marks()
__all__ = ["folder"]
OBJECTS = Path(__file__).parents[1] / "afxdp" / "objects"
SIZES = (100, 1400, 3470, 3600, 5001, 8900)
EOPNOTSUPP = -95


@pytest.fixture(scope="module")
def net() -> Iterator[VethPair]:
    with VethPair(subnet=83, mtu=9000, offload=True) as pair:
        yield pair


def answers(net: VethPair) -> set[tuple[int, int]]:
    """What the program says of datagrams of all sizes, each of which comes back whole: the veth
    left its checksum to hardware, so a receiver takes it only where somebody was asked for it."""
    rng, told = random.Random(2), set()
    with entered(net.a.ns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((net.b.ip4, 5000))
        sock.settimeout(0.2)
        for size in SIZES:
            payload = rng.randbytes(size)

            def answered(payload: bytes = payload) -> bytes:
                sock.send(payload)
                try:
                    return sock.recv(10000)
                except (TimeoutError, ConnectionRefusedError):
                    return b""

            back = until(answered, f"an answer to {size} bytes")
            assert back[8:] == payload[8:]
            told.add(struct.unpack("=iI", back[:8]))
    return told


def check(told: set[tuple[int, int]], mode: str, live: Run) -> None:
    if "generic" in mode:
        assert "no RX metadata in generic mode" in mode and told == {(EOPNOTSUPP, 0x2222)}
    else:
        assert "RX metadata from veth" in mode
        (error, number), = told  # one flow
        assert error == 0 and number not in (0, 0x2222)
    assert live.end() == 0
    port = live.wait_for("summary")["ports"]
    counted = next(counts for counts in port.values() if "tx_checksums" in counts)
    assert counted["tx_checksums"] >= len(SIZES)
    assert counted["tx_invalid_descs"] == counted["malformed"] == 0


@pytest.mark.skipif(not tx_metadata.kernel_takes_it(), reason="no TX metadata before Linux 6.11")
@pytest.mark.parametrize("more", [
    (), ("--frame-size", "2048"), ("--unaligned", "--frame-size", "3008"), ("--mode", "generic"),
], ids=" ".join)
def test_packets_of_several_frames(net: VethPair, more: tuple[str, ...]) -> None:
    with Run(net.b.ns, str(OBJECTS / "frags_metadata.o"), "--iface", net.b.ifname, "-i", "0.1",
             *more) as live:
        mode = live.wait_for("start")["modes"][net.b.ifname]
        assert "multi-buffer" in mode
        assert "checksums left to hardware are finished by the stack or the device" in mode
        check(answers(net), mode, live)


def test_left_alone_they_are_refused(net: VethPair) -> None:
    with Run(net.b.ns, str(OBJECTS / "frags_metadata.o"), "--iface", net.b.ifname, "-i", "0.1",
             "--tx-metadata", "off") as live, entered(net.a.ns), \
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        live.wait_for("start")
        sock.connect((net.b.ip4, 5000))
        sock.settimeout(0.3)
        sock.send(bytes(8000))
        until(lambda: live.total().get("tx"), "the answer")
        with pytest.raises(TimeoutError):
            sock.recv(10000)
        assert live.end() == 0


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="no setpriv")
@pytest.mark.skipif(not tx_metadata.kernel_takes_it(), reason="no TX metadata before Linux 6.11")
def test_without_privileges(net: VethPair, folder: Path) -> None:
    copy = folder / "frags_metadata.o"
    shutil.copy(OBJECTS / "frags_metadata.o", copy)
    with Setup(net, folder), run_as_nobody(net, folder, "drop", "--no-stack",
                                           obj=str(copy)) as live:
        mode = live.wait_for("start")["modes"][net.b.ifname]
        assert "multi-buffer" in mode and "set up by" in mode
        check(answers(net), mode, live)
