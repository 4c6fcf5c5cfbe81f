"""The second way out of an AF_XDP port: batches as live frames, when that is faster."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from afxdp import live_tx, rings
from afxdp.port import AfxdpPort
from tests.afxdp.network import ETHERTYPE, Peer, all_frames_found, marks, opened
from tests.control.run_xdpu import until
from tests.dataplane.drive import Driver
from tests.nets import End, VethPair, entered, in_ns
from xdp_runtime.bpf_syscall import AttachType, XdpFlag, link_create, prog_load
from xdp_runtime.errors import PortError
from xdp_runtime.isa import Exit, Imm, Mov, encode

pytestmark = marks()


@contextmanager
def receiving(end: End) -> Iterator[None]:
    """XDP that passes all: a veth is a target of redirects only while its peer has some."""
    with entered(end.ns):
        program = prog_load(encode((Mov(True, 0, Imm(2)), Exit())), name="pass",
                            expected_attach_type=AttachType.XDP)
        link = link_create(program, end.ifindex, AttachType.XDP, XdpFlag.DRV_MODE)
    os.close(program)
    try:
        yield
    finally:
        os.close(link)


@pytest.fixture(scope="module")
def wire() -> Iterator[VethPair]:
    with VethPair(subnet=71) as made, receiving(made.a):
        yield made


def numbered(count: int, seed: int) -> list[bytes]:
    """Frames of all lengths, no two alike."""
    rng = random.Random(seed)
    return [b"\xff" * 6 + b"\x02" * 6 + ETHERTYPE.to_bytes(2, "big") + number.to_bytes(4, "big")
            + rng.randbytes(rng.choice((42, 43, 200, 1496))) for number in range(count)]


def send(wire: VethPair, port: AfxdpPort, peer: Peer, sizes: list[int], seed: int) -> None:
    """Batches of these sizes, each flushed as a loop does; all arrive, in order."""
    driver = Driver(port)
    given = numbered(sum(sizes), seed)
    at = 0
    for size in sizes:
        for frame in given[at:at + size]:
            assert driver.send(frame)
        at += size
        with entered(wire.b.ns):
            driver.flush()
            driver.flush()
    assert peer.receive(len(given)) == given


@pytest.mark.parametrize(("tx", "sizes"), [
    ("live", [1, 2, 63, 64, 300, 700]),
    ("auto", [1, 31, 32, 40] + [64] * 40 + [3, 200, 1]),
])
def test_bytes_and_order(wire: VethPair, tx: str, sizes: list[int]) -> None:
    """Whatever goes by which way; and no frame of the umem is lost."""
    peer = Peer(wire.a)
    with opened(wire.b, tx=tx) as port:
        send(wire, port, peer, sizes, seed=len(sizes))
        told = port.statistics()
        assert told["tx_live_failed"] == told["malformed"] == told["tx_full"] == 0
        if tx == "live":
            assert told["tx_live"] == sum(sizes)
        else:
            assert live_tx.LEAST * live_tx.PROBES // 2 <= told["tx_live"] < sum(sizes)
        all_frames_found(port)
    peer.close()


def test_frames_that_were_received_go_back(wire: VethPair) -> None:
    """Their chunks are free again at once."""
    peer = Peer(wire.a)
    given = numbered(500, 3)
    with opened(wire.b, tx="live") as port:
        driver = Driver(port)
        got: list[bytes] = []

        def returned() -> bool:
            for slot in driver.receive():
                if slot.data[12:14] == ETHERTYPE.to_bytes(2, "big"):
                    slot.poke(6, b"\x04" * 6)
                    driver.transmit(slot)
                else:
                    driver.release(slot)
            with entered(wire.b.ns):
                driver.flush()
            got.extend(f for f in peer.receive(64, timeout_s=0.01) if f[6:12] == b"\x04" * 6)
            return len(got) >= len(given)

        peer.send(*given)
        until(returned, "all of them")
        assert got == [f[:6] + b"\x04" * 6 + f[12:] for f in given]
        all_frames_found(port)
    peer.close()


def test_live_frames_are_tried_as_they_are_used(wire: VethPair) -> None:
    """Many at once: else a way that is the slower for 64 packets would never be taken for 256."""
    peer = Peer(wire.a)
    given = numbered(3 * 64, 5)
    with opened(wire.b, tx="auto") as port, entered(wire.b.ns):
        driver, queue = Driver(port), port.opened[0]

        def put(at: int) -> tuple[int, int]:
            for frame in given[at:at + 64]:
                assert driver.send(frame)
            driver.flush()
            return queue.load(rings.LIVE_TURNS), queue.load(rings.LIVE_FRAMES)

        assert put(0) == (1, 0)  # the first turn: by the TX ring, at once
        assert peer.receive(64) == given[:64]
        assert put(64) == put(128) == (1, 0)
        driver.flush()  # no more has come
        assert queue.load(rings.LIVE_FRAMES) == 128
        assert peer.receive(128) == given[64:]
    peer.close()


def test_more_is_collected_while_more_comes(wire: VethPair) -> None:
    peer = Peer(wire.a)
    given = numbered(live_tx.MOST + 40, 4)
    with opened(wire.b, tx="live") as port, entered(wire.b.ns):
        driver, queue = Driver(port), port.opened[0]
        for at in range(0, live_tx.MOST, 64):
            assert queue.load(rings.LIVE_FRAMES) == 0
            for frame in given[at:at + 64]:
                driver.send(frame)
            driver.flush()
        assert queue.load(rings.LIVE_FRAMES) == live_tx.MOST
        for frame in given[live_tx.MOST:]:
            driver.send(frame)
        driver.flush()
        assert queue.load(rings.LIVE_FRAMES) == live_tx.MOST, "more may come"
        driver.flush()
        assert queue.load(rings.LIVE_FRAMES) == len(given), "none came"
        assert peer.receive(len(given)) == given
    peer.close()


def test_a_probe_that_was_held_up_tells_nothing(wire: VethPair) -> None:
    """Each way is judged by its best batch."""
    peer = Peer(wire.a)
    with opened(wire.b, tx="auto") as port:
        queue = port.opened[0]
        send(wire, port, peer, [64] * 4, seed=7)
        for took_ns in (rings.LIVE_NS, rings.XSK_NS):
            assert queue.load(took_ns) > 0
            queue.store(took_ns, 10**10)
        send(wire, port, peer, [64] * (live_tx.PROBES - 4), seed=8)
        for took_ns, packets in ((rings.LIVE_NS, rings.LIVE_PROBED),
                                 (rings.XSK_NS, rings.XSK_PROBED)):
            assert 0 < queue.load(took_ns) < 10**10 and queue.load(packets) == 64
    peer.close()


def test_it_says_what_it_found(wire: VethPair) -> None:
    """Once; what it says is what the times were."""
    peer = Peer(wire.a)
    with opened(wire.b, tx="auto") as port:
        assert "batches sent by live frames where that is faster" in port.mode
        assert port.advice() == ""
        send(wire, port, peer, [64] * (live_tx.PROBES + 2), seed=6)
        queue = port.opened[0]
        live = queue.load(rings.LIVE_NS) / queue.load(rings.LIVE_PROBED)
        xsk = queue.load(rings.XSK_NS) / queue.load(rings.XSK_PROBED)
        assert bool(queue.load(rings.LIVE_CHOSEN)) == (live < xsk)
        said = port.advice()
        if max(live, xsk) > 1.1 * min(live, xsk):
            assert said.startswith(f"batches leave {wire.b.ifname} by "
                                   + ("live frames" if live < xsk else "AF_XDP's TX ring"))
        assert port.advice() == ""
    peer.close()


def test_a_peer_that_takes_no_redirects_any_more() -> None:
    """The kernel would drop live frames without a word."""
    with VethPair(subnet=72) as wire:
        peer = Peer(wire.a)
        with receiving(wire.a):
            with entered(wire.b.ns):
                port = AfxdpPort.open(wire.b.ifname, tx="live")
            send(wire, port, peer, [64], seed=7)
        with entered(wire.b.ns):
            port.check()
            assert port.advice() == (f"{wire.b.ifname} takes no redirects any more: packets leave "
                                     "by AF_XDP's TX ring")
        send(wire, port, peer, [64, 3], seed=8)
        with receiving(wire.a), entered(wire.b.ns):
            port.check()
            assert port.advice() == ""
            send(wire, port, peer, [64], seed=9)
            assert port.statistics()["tx_live"] == 128
        port.close()
        peer.close()


def test_where_it_cannot_be() -> None:
    with VethPair(subnet=73) as wire:
        why = "veth takes no redirects while its peer has neither XDP nor GRO"
        with entered(wire.b.ns), pytest.raises(PortError, match=f"{why}.*--tx xsk"):
            AfxdpPort.open(wire.b.ifname, tx="live")
        assert "prog/xdp" not in in_ns(wire.b.ns, "ip", "link", "show", wire.b.ifname).stdout
        with opened(wire.b, tx="auto") as port:
            assert f"sent by the TX ring only ({why})" in port.mode
            peer = Peer(wire.a)
            send(wire, port, peer, [64, 64], seed=10)
            peer.close()
        with receiving(wire.a), opened(wire.b, tx="auto", frags=True) as port:
            assert "packets in several frames go by the TX ring only" in port.mode
