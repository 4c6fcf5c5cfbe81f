"""bench.source and bench.sink: what is sent arrives, at its rate and stamped; stalls are told."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench import source
from bench.histogram import BUCKETS, FINE_BITS, percentile_ns, upper_ns
from bench.sink import Sink
from bench.source import KINDS, DpdkSource, Sent, Source, burst_of
from tests.control.run_xdpu import until
from tests.nets import VethPair
from tests.privileges import needs_bpf
from xdp_runtime.bpf_syscall import Cmd

netns = [*needs_bpf(), pytest.mark.netns, pytest.mark.timeout(60)]
CPU = max(os.sched_getaffinity(0))


@pytest.fixture(scope="module")
def pair() -> Iterator[VethPair]:
    with VethPair(subnet=233) as made:
        yield made


def _have(sink: Sink, packets: int) -> bool:
    return sink.packets() >= packets


needs_c = pytest.mark.skipif(not shutil.which("gcc"), reason="sockets' source is C: needs gcc")
needs_dpdk = [pytest.mark.dpdk, needs_c, pytest.mark.skipif(
    find_spec("dpdk._native") is None, reason="needs libdpdk-dev")]
ALL_KINDS = [*(pytest.param(kind, marks=[*netns, needs_c]) for kind in KINDS),
             pytest.param("dpdk", marks=[*netns, *needs_dpdk])]


def source_of(kind: str, pair: VethPair) -> Source:
    if kind == "dpdk":
        return DpdkSource([f"net_af_packet0,iface={pair.a.ifname},qdisc_bypass=1"], pair.a.ns, CPU,
                          dst_mac=pair.b.mac)
    return Source(pair.a.ifname, pair.a.ns, CPU, dst_mac=pair.b.mac, kind=kind)


@pytest.mark.parametrize("kind", ALL_KINDS)
@pytest.mark.parametrize("rate", [0, 1000, 20_000])
def test_what_is_sent_arrives(pair: VethPair, rate: int, kind: str) -> None:
    with Sink(pair.b) as sink, source_of(kind, pair) as source:
        for _ in range(2):  # one after the other by the same process
            before = sink.read()
            sent = source.send(0.1, rate)
            until(partial(_have, sink, before.packets + sent.frames), "the last ones")
            arrived = sink.read().since(before)
            assert arrived.packets == sent.frames > 0
            assert sum(arrived.histogram) == (sent.frames if rate else 0)
            if rate:
                assert sent.frames <= rate * 0.1 + burst_of(rate)


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_a_source_that_stalls_is_told(pair: VethPair, kind: str) -> None:
    seconds = 1.6
    with Sink(pair.b), source_of(kind, pair) as source:
        source.send(0.05, 1000)  # it is there, and warm
        source.begin(seconds, 10_000)
        time.sleep(seconds / 4)
        os.kill(source.pid, signal.SIGSTOP)
        time.sleep(seconds / 2)
        os.kill(source.pid, signal.SIGCONT)
        sent = source.wait()
    assert sent.longest_gap_s > 0.1
    assert any("the source stalled for" in text for text in sent.complaints())


@contextmanager
def memif(folder: Path) -> Iterator[tuple[DpdkSource, DpdkSource]]:
    """A source, and one that only reads, at the two ends of a memif."""
    ends = [f"net_memif0,role={role},socket={folder}/sock,socket-abstract=no"
            for role in ("server", "client")]
    with DpdkSource(ends[:1], "", CPU, reads=True) as source, \
            DpdkSource(ends[1:], "", min(os.sched_getaffinity(0)), reads=True) as reader:
        yield source, reader


@pytest.mark.parametrize("rate", [pytest.param(rate, marks=needs_dpdk) for rate in (0, 20_000)])
def test_memif_is_read_at_its_other_end(rate: int, tmp_path: Path) -> None:
    with memif(tmp_path) as (source, reader):
        sent = source.send(0.1, rate)
        until(lambda: reader.packets() >= sent.frames, "the last ones")
        arrived = reader.read()
    assert arrived.packets == sent.frames > 0 and sent.offered == sent.frames + sent.refused
    assert sum(arrived.histogram) == (sent.frames if rate else 0)


@pytest.mark.parametrize("seconds", [pytest.param(1.0, marks=needs_dpdk)])
def test_the_other_end_of_a_memif_vanishes(seconds: float, tmp_path: Path) -> None:
    with memif(tmp_path) as (source, reader):
        source.send(0.05)
        source.begin(seconds, 1000)
        os.kill(reader.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="the source ended"):
            source.wait()


@pytest.mark.parametrize("ifname", [pytest.param("nosuch0", marks=netns)])
def test_no_interface(pair: VethPair, ifname: str) -> None:
    with pytest.raises(RuntimeError, match="interface nosuch0: there is none"):
        Source(ifname, pair.a.ns, CPU)


def test_complaints() -> None:
    assert Sent(1000, 1.0, 1000.0, 0.001).complaints() == []
    assert Sent(1000, 1.0).complaints() == []
    assert "sent 0.001 of 0.002 Mpps" in Sent(1000, 1.0, 2000.0).complaints()[0]


def test_bursts_are_as_small_as_the_rate_allows() -> None:
    sizes = [burst_of(rate) for rate in (1e3, 1e5, 5e5, 1e6, 2e6, 1e7)]
    assert sizes[0] == 1 and sizes == sorted(sizes) and sizes[-1] == 1024
    assert [burst_of(rate, held=True) for rate in (1e3, 1e5, 1e6)] == [1, 10, 100]


def test_it_waits_for_page_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that finds none is made again, and another error is not waited for."""
    errors = [errno.ENOSPC, errno.ENOSPC, 0, errno.EINVAL]

    def answer(cmd: Cmd, attr: bytearray) -> int:
        if error := errors.pop(0):
            raise OSError(error, "bpf")
        return 0

    monkeypatch.setattr(source, "bpf", answer)
    monkeypatch.setattr(source, "_POOLS_AGAIN_S", 0.01)
    call = source._Call(3, bytes(64))
    call(1)
    assert errors == [errno.EINVAL]
    with pytest.raises(OSError):
        call(1)


def test_percentiles() -> None:
    histogram = [0] * BUCKETS
    assert percentile_ns(histogram, 0.5) is None
    for ns, count in ((10, 90), (1000, 9), (1_000_000, 1)):
        exponent = ns.bit_length() - 1
        fine = ns >> max(exponent - FINE_BITS, 0) & (1 << FINE_BITS) - 1
        histogram[ns if exponent < FINE_BITS else exponent << FINE_BITS | fine] += count
    assert percentile_ns(histogram, 0.5) == 11
    for share, ns in ((0.99, 1000), (0.999, 1_000_000)):
        found = percentile_ns(histogram, share)
        assert found is not None and ns <= found <= ns * 1.07
    assert [upper_ns(b) for b in (15, 64, 65, 79, 80)] == [16, 17, 18, 32, 34]
