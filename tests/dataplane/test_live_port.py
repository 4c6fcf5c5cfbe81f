"""LivePort: frames into the stack behind an interface, as skbs and as the kernel's live frames."""

from __future__ import annotations

import itertools
import os
import random
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from dataplane.injector import BATCH, FRAME_MAX, SLOTS, Injector
from dataplane.live_frames import longest
from dataplane.live_port import LivePort
from dataplane.skb_injector import A_RUN, INJECTORS, SkbInjector
from tests.dataplane.drive import Driver
from tests.dataplane.test_tap import datagram
from tests.nets import VethPair, entered, in_ns
from tests.privileges import needs_bpf
from xdp_runtime.bpf_syscall import AttachType, XdpFlag, link_create, prog_load
from xdp_runtime.errors import PortError
from xdp_runtime.isa import Exit, Imm, Mov, encode

pytestmark = [*needs_bpf(), pytest.mark.netns]


@pytest.fixture(scope="module")
def pair() -> Iterator[VethPair]:
    """`b` has the addresses of test_tap's frames, and XDP of its own, as a run gives it."""
    with VethPair(subnet=8) as made:
        in_ns(made.b.ns, "ip", "link", "set", made.b.ifname, "address", "02:00:00:00:00:07")
        in_ns(made.b.ns, "ip", "addr", "add", "10.77.9.1/24", "dev", made.b.ifname)
        in_ns(made.b.ns, "ip", "addr", "add", "fd77:9::1/64", "dev", made.b.ifname, "nodad")
        in_ns(made.b.ns, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0")
        with entered(made.b.ns):
            program = prog_load(encode((Mov(True, 0, Imm(2)), Exit())), name="pass",
                                expected_attach_type=AttachType.XDP)
            link = link_create(program, made.b.ifindex, AttachType.XDP, XdpFlag.DRV_MODE)
        yield made
        os.close(link)
        os.close(program)


@pytest.fixture(params=INJECTORS.values(), ids=list(INJECTORS))
def by(request: pytest.FixtureRequest) -> type[Injector]:
    return request.param  # type: ignore[no-any-return]


@contextmanager
def opened(pair: VethPair, by: type[Injector], queues: int = 1, mtu: int = 1500,
           ) -> Iterator[LivePort]:
    """The interface's network namespace is that of who calls, as it is of a run's workers."""
    with entered(pair.b.ns), closing(LivePort(pair.b.ifname, pair.b.ifindex, mtu, queues,
                                              by=by)) as port:
        yield port


@contextmanager
def listening(pair: VethPair, v6: bool = False, port: int = 5000) -> Iterator[socket.socket]:
    with entered(pair.b.ns):
        sock = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.bind(("::" if v6 else "0.0.0.0", port))
        sock.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
        sock.settimeout(2)
        yield sock


def links(pair: VethPair) -> str:
    return in_ns(pair.b.ns, "ip", "-br", "link").stdout


@pytest.mark.parametrize("v6", [False, True], ids=["v4", "v6"])
@pytest.mark.parametrize("checksum", ["good", "partial"])
@pytest.mark.parametrize("size", [1, 2, 17, 18, 1471, 1452])
def test_the_stack_receives_what_was_sent(pair: VethPair, by: type[Injector], v6: bool,
                                          checksum: str, size: int) -> None:
    payload = random.Random(size).randbytes(size - 20 * v6 if size > 1400 else size)
    with opened(pair, by) as port, listening(pair, v6) as sock:
        driver = Driver(port)
        assert driver.send(datagram(checksum, payload, v6))
        driver.flush()
        driver.flush()
        assert sock.recv(4096) == payload
        assert port.statistics() == {"refused": 0, "too_long": 0, "failed": 0, "calls": 1,
                                     "completed": int(checksum == "partial")}


def test_a_wrong_checksum_stays_wrong(pair: VethPair, by: type[Injector]) -> None:
    with opened(pair, by) as port, listening(pair) as sock:
        driver = Driver(port)
        driver.send(datagram("bad", b"wrong"))
        driver.send(datagram("good", b"right"))
        driver.flush()
        driver.flush()
        assert sock.recv(64) == b"right"


def test_order_and_number_over_many_batches_and_queues(pair: VethPair, by: type[Injector]) -> None:
    """More than the slots there are; each queue has its own."""
    count = 3 * SLOTS + 7
    with opened(pair, by, queues=3) as port, listening(pair, port=5001) as sock:
        drivers = [Driver(port, queue) for queue in range(3)]
        got: list[int] = []
        for number in range(count):
            driver = drivers[number % 3]
            assert driver.send(datagram("good", number.to_bytes(4, "big"), port=5001))
            if number % 500 == 499:
                for one in drivers:
                    one.flush()
                    one.flush()
                got += [int.from_bytes(sock.recv(16), "big") for _ in range(number + 1 - len(got))]
        for one in drivers:
            one.flush()
            one.flush()
        got += [int.from_bytes(sock.recv(16), "big") for _ in range(count - len(got))]
        assert sorted(got) == list(range(count))
        assert all(got[i] < got[j] for queue in range(3) for i, j in _neighbours(got, queue))
        calls = port.statistics()["calls"]
        assert calls <= 3 * (count // 500 + 1) + count // BATCH + 3


def _neighbours(got: list[int], queue: int) -> Iterator[tuple[int, int]]:
    places = [i for i, number in enumerate(got) if number % 3 == queue]
    return itertools.pairwise(places)


def test_a_frame_waits_for_one_flush_that_finds_nothing_new(pair: VethPair, by: type[Injector],
                                                            ) -> None:
    with opened(pair, by) as port, listening(pair) as sock:
        driver = Driver(port)
        driver.send(datagram("good", b"one"))
        driver.flush()
        driver.send(datagram("good", b"two"))
        driver.flush()
        assert port.statistics()["calls"] == 0
        driver.flush()
        assert port.statistics()["calls"] == 1
        assert [sock.recv(16), sock.recv(16)] == [b"one", b"two"]


def test_what_does_not_fit_is_refused(pair: VethPair, by: type[Injector]) -> None:
    with opened(pair, by) as port:
        driver = Driver(port)
        assert not driver.send(bytes(longest(1500) + 1)) and not driver.send(bytes(13))
        assert driver.send(bytes(longest(1500)))
        assert port.statistics()["too_long"] == 2
    with pytest.raises(PortError, match=rf"too long .* take {FRAME_MAX}"), entered(pair.b.ns):
        LivePort(pair.b.ifname, pair.b.ifindex, 9000, 1, by=by)


def test_the_longest_frame_there_is(pair: VethPair, by: type[Injector]) -> None:
    payload = bytes(FRAME_MAX - 8 - 42)
    with opened(pair, by, mtu=FRAME_MAX - 22) as port, listening(pair) as sock:
        driver = Driver(port)
        assert driver.send(datagram("good", payload, vlans=0))
        driver.flush()
        driver.flush()
        assert sock.recv(4096) == payload


def test_a_socket_is_charged_for_a_skb_what_it_takes(pair: VethPair) -> None:
    """Not for a page, as it is for a live frame; and for one that follows a smaller one, too."""
    with opened(pair, SkbInjector) as port, listening(pair) as sock:
        driver = Driver(port)
        for payloads in ([b"small"], [bytes(1400)], [b"small", bytes(1400)], [b"small"]):
            before = charged(sock)
            for payload in payloads:
                driver.send(datagram("good", payload))
            driver.flush()
            driver.flush()
            bytes_each = (charged(sock) - before) // len(payloads)
            least = 42 + max(map(len, payloads))
            assert least < bytes_each < least + 1024


def charged(sock: socket.socket) -> int:
    """SO_MEMINFO's SK_MEMINFO_RMEM_ALLOC: bytes."""
    return int(struct.unpack_from("=I", sock.getsockopt(socket.SOL_SOCKET, 55, 36))[0])


def test_a_batch_of_large_and_small_ones(pair: VethPair, by: type[Injector]) -> None:
    """The skb that a call has grows and shrinks with them; more than a run takes."""
    sizes = [(1 + 331 * number) % 1472 for number in range(3 * A_RUN + 1)]
    with opened(pair, by) as port, listening(pair) as sock:
        driver = Driver(port)
        payloads = [random.Random(size).randbytes(size) for size in sizes]
        for payload in payloads:
            driver.send(datagram("good", payload))
        driver.flush()
        driver.flush()
        assert [sock.recv(4096) for _ in payloads] == payloads
        told = port.statistics()
        assert (told["calls"], told["refused"], told["failed"]) == (1, 0, 0)


def test_nothing_is_left_and_nothing_is_seen(pair: VethPair, by: type[Injector]) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    before = links(pair)
    with opened(pair, by, queues=2):
        assert links(pair) == before, "the spare interfaces are elsewhere"
    assert len(os.listdir("/proc/self/fd")) == descriptors
    with entered(pair.b.ns), pytest.raises(PortError, match=f"{by.what} are not to be had"):
        by("nowhere", 9999, 1 << 20, 1500)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_an_interface_that_goes_away_costs_the_frames_and_no_more(pair: VethPair,
                                                                  by: type[Injector]) -> None:
    with VethPair(subnet=10) as other:
        with entered(other.b.ns):
            port = LivePort(other.b.ifname, other.b.ifindex, 1500, 1, by=by)
        in_ns(other.b.ns, "ip", "link", "del", other.b.ifname)
        driver = Driver(port)
        driver.send(datagram("good", b"lost"))
        with entered(other.b.ns):
            driver.flush()
            driver.flush()
        told = port.statistics()
        assert told["failed"] + told["refused"] == 1
        assert bool(port.last_error()) == bool(told["failed"])
        port.close()
