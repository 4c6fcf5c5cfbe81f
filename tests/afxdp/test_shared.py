"""A umem that queues of two interfaces share: a redirect between them moves the frame itself."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from afxdp.audit import audit
from afxdp.port import AfxdpPort
from afxdp.umem import Layout, Umem, Umems
from dataplane.engine import Engine
from tests.afxdp.network import ETHERTYPE, Peer, marks, open_port
from tests.control.run_xdpu import EXAMPLES, until
from tests.dataplane.drive import Driver, frames
from tests.nets import VethPair
from xdp_runtime.core_relo import read_settled
from xdp_runtime.errors import ConfigError, OutOfMemory

pytestmark = marks()
COUNT = 3000


@contextmanager
def two(queues: int = 1) -> Iterator[tuple[VethPair, VethPair]]:
    """left.a -- left.b, in one namespace with right.b -- right.a"""
    with VethPair(queues=queues, subnet=51) as left, \
            VethPair(ns_b=left.b.ns, queues=queues, subnet=52) as right:
        yield left, right


@contextmanager
def forwarding(left: VethPair, right: VethPair, umems: Umems | None,
               ) -> Iterator[tuple[Engine, list[AfxdpPort]]]:
    """examples/redirect.o between the two, both ways."""
    with ExitStack() as undo:
        ports = []
        for end in (left.b, right.b):
            ports.append(open_port(end, umems=umems, ring_size=256))
            undo.callback(ports[-1].close)
        engine = Engine(read_settled(str(EXAMPLES / "redirect.o")), ports)
        undo.callback(engine.close)
        peer = engine.program.raw_maps["peer"]
        for near, far in ((left.b, right.b), (right.b, left.b)):
            peer[struct.pack("=I", near.ifindex)] = struct.pack("=I", far.ifindex)
        engine.start()
        try:
            yield engine, ports
        finally:
            engine.stop()


@pytest.mark.parametrize("shared", [True, False])
def test_redirect_both_ways(shared: bool) -> None:
    """Ten times the frames there are, so each goes from pool to pool often."""
    with two() as (left, right), ExitStack() as undo:
        peers = [Peer(left.a), Peer(right.a)]
        for one in peers:
            undo.callback(one.close)
        with forwarding(left, right, Umems(1, 2) if shared else None) as (engine, ports):
            own = [port.opened[0].umem for port in ports]
            assert (own[0] is own[1]) is shared
            assert ("shared by 2 queues" in ports[1].mode) is shared
            for start in range(0, COUNT, 100):
                for source, sink in (peers, peers[::-1]):
                    some = frames(COUNT)[start:start + 100]
                    source.send(*some)
                    assert sink.receive(len(some)) == list(some)
            total = engine.stats.total()
            assert total["redirect"] >= 2 * COUNT
            assert total["redirect_full"] == total["redirect_no_port"] == 0
            engine.stop()
            # a frame that is copied is taken from the sender's own pool
            for group in [ports] if shared else [[port] for port in ports]:
                _all_frames_found(group)


@pytest.mark.parametrize("shared", [True, False])
def test_what_is_sent_is_the_chunk_that_was_received(shared: bool) -> None:
    """Descriptor by descriptor: the kernel is told to send from the very address where it put the
    packet.  Without a common umem packets are copied, to where the sender's copies begin."""
    with two() as (left, right), ExitStack() as undo:
        peers = [Peer(left.a), Peer(right.a)]
        for one in peers:
            undo.callback(one.close)
        with forwarding(left, right, Umems(1, 2) if shared else None) as (_, ports):
            peers[0].send(*frames(100))
            assert peers[1].receive(100) == list(frames(100))
            near, far = (port.opened[0] for port in ports)
            rx, tx = (ring[2][0 : 2 * ring[0] : 2] for ring in (near.ring("rx"), far.ring("tx")))
            if shared:
                assert len(tx) >= 100 and set(tx) <= set(rx)
            else:
                assert len(tx) >= 100 and not set(tx) & set(rx)


def _all_frames_found(ports: list[AfxdpPort]) -> None:
    queues = [port.opened[0] for port in ports]
    deadline = time.monotonic() + 15
    while True:
        for port in ports:
            Driver(port).flush()
        found = audit(*queues)
        if found.tx == found.tx_kernel == 0 or time.monotonic() > deadline:
            break
        time.sleep(0.005)
    assert found.in_hand == 0 and found.twice == () and found.tx == found.tx_kernel == 0
    assert found.total == 512 * len(queues)
    assert 0 <= found.rx_kernel <= 2 * len(queues)
    assert found.free + found.fill + found.rx_kernel + found.rx + found.completion == found.total


def test_two_workers_have_a_umem_each() -> None:
    with two(queues=2) as (left, right), forwarding(left, right, Umems(2, 4)) as (engine, ports):
        assert len(engine.workers) == 2
        umems = [[queue.umem for queue in port.opened] for port in ports]
        assert umems[0][0] is umems[1][0] is not umems[0][1]
        assert umems[0][1] is umems[1][1]
        peer = Peer(left.a)

        def redirected() -> bool:
            peer.send(*frames(20))
            return engine.stats.total()["redirect"] >= 100

        until(redirected, "packets redirected")
        peer.close()


def test_the_leader_may_go_first() -> None:
    with two() as (left, right):
        umems = Umems(1, 2)
        first, second = open_port(left.b, umems=umems), open_port(right.b, umems=umems)
        first.close()
        peer = Peer(right.a)
        peer.send(*frames(5))
        assert Driver(second).drain(5, ethertype=ETHERTYPE) == list(frames(5))
        third = open_port(left.b, umems=umems)  # nobody to join: one of its own
        assert third.opened[0].umem is not second.opened[0].umem
        peer.close()
        for port in (second, third):
            port.close()


def test_a_queue_that_was_not_foreseen_has_its_own() -> None:
    with two() as (left, right):
        umems = Umems(1, 1)
        with ExitStack() as undo:
            ports = [open_port(end, umems=umems) for end in (left.b, right.b)]
            for port in ports:
                undo.callback(port.close)
            assert ports[0].opened[0].umem is not ports[1].opened[0].umem


def test_huge_pages_are_said() -> None:
    layout = Layout(4096, pages="huge")
    with pytest.raises(OutOfMemory, match="huge pages free, 2048 needed.*vm.nr_hugepages=2048"):
        Umem(layout, 1 << 20)
    ordinary = Umem(Layout(4096, pages="ordinary"), 64)
    assert ordinary.said == "ordinary pages"
    ordinary.close()


@pytest.mark.parametrize("layout", [Layout(3000), Layout(1024), Layout(8192, unaligned=True)])
def test_frame_sizes(layout: Layout) -> None:
    from afxdp import umem
    with pytest.raises(ConfigError, match="frame size"):
        umem.check(layout)
