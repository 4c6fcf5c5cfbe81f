"""A program's copy of the host's tables follows what happens to the host."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from dataplane import fibmirror
from dataplane import netlink as nl
from dataplane.fibmirror import FibMirror
from dataplane.fibread import read_host
from dataplane.takeover import Takeover
from dataplane.tap import TapPort
from tests.nets import VethPair, entered, in_ns
from tests.privileges import needs_bpf
from tests.xdp_runtime.fib.network import rich_host, sysctl
from tests.xdp_runtime.fib.questions import Questions, told
from xdp_runtime.elf import read_object
from xdp_runtime.fib.params import Answer
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.program import Program, load

pytestmark = [*needs_bpf(), pytest.mark.netns]

PROBE = read_object(Path(__file__).parent.parent / "xdp_runtime" / "fib" / "fib_probe.o")
PATIENCE_S = 20.0


def question(ifindex: int, address: str, flags: int = 0) -> bytes:
    """IPv4, from 198.51.100.1"""
    params = struct.pack("<BBHHHI4x4s12x4s", 2, 6, 0, 0, 100, ifindex, bytes((198, 51, 100, 1)),
                         bytes(int(part) for part in address.split("."))).ljust(64, b"\0")
    return bytes(16) + struct.pack("<II", flags, 0) + params


class Watched:
    """A program that asks, its mirror, and the kernel beside it."""

    def __init__(self, pair: VethPair, program: Program, notes: list[str]) -> None:
        self.pair, self.program, self.notes = pair, program, notes

    def answer(self, address: str) -> tuple[int, bytes]:
        """(the answer, the struct), which the kernel has given, too."""
        data = self.program.run(question(self.pair.a.ifindex, address)).data_out
        return struct.unpack_from("<i", data, 20)[0], data[24:]

    def kernel_answer(self, address: str) -> tuple[int, bytes]:
        with entered(self.pair.a.ns), load_into_kernel(PROBE, "lookup") as kernel:
            data = kernel.run(question(self.pair.a.ifindex, address)).data_out
        return struct.unpack_from("<i", data, 20)[0], data[24:]

    def becomes(self, address: str, wanted: int) -> float:
        """Seconds until the answer is this, and the kernel's."""
        started = time.monotonic()
        while self.answer(address)[0] != wanted:
            assert time.monotonic() < started + PATIENCE_S, (self.answer(address), wanted,
                                                             self.notes)
            time.sleep(0.002)
        took = time.monotonic() - started
        assert self.answer(address) == self.kernel_answer(address)
        return took

    def ip(self, *argv: str) -> None:
        in_ns(self.pair.a.ns, "ip", *argv)


@pytest.fixture
def watched() -> Iterator[Watched]:
    notes: list[str] = []
    with VethPair() as pair, load(PROBE, "lookup") as program:
        sysctl(pair.a.ns, ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)
        with entered(pair.a.ns), FibMirror(notes.append) as mirror:
            mirror.follow(program.fib)
            with_thread = Watched(pair, program, notes)
            yield with_thread


def test_says_what_it_has(watched: Watched) -> None:
    assert len(watched.notes) == 1
    assert "forwarding tables" in watched.notes[0]
    assert watched.notes[0].endswith("kept current")


def test_follows_neighbours(watched: Watched) -> None:
    far = watched.pair.b.ip4
    assert watched.answer(far)[0] == Answer.SUCCESS
    watched.ip("neigh", "del", far, "dev", watched.pair.a.ifname)
    watched.becomes(far, Answer.NO_NEIGHBOUR)
    watched.ip("neigh", "add", far, "lladdr", "02:00:00:00:00:77", "dev", watched.pair.a.ifname)
    watched.becomes(far, Answer.SUCCESS)
    assert watched.answer(far)[1][58:64] == bytes.fromhex("020000000077")


def test_follows_routes_and_rules(watched: Watched) -> None:
    assert watched.answer("203.0.113.5")[0] == Answer.NOT_FORWARDED
    watched.ip("route", "add", "203.0.113.0/24", "via", watched.pair.b.ip4)
    took = [watched.becomes("203.0.113.5", Answer.SUCCESS)]
    watched.ip("route", "add", "blackhole", "203.0.113.4/30")
    took.append(watched.becomes("203.0.113.5", Answer.BLACKHOLE))
    watched.ip("route", "del", "blackhole", "203.0.113.4/30")
    took.append(watched.becomes("203.0.113.5", Answer.SUCCESS))
    watched.ip("rule", "add", "to", "203.0.113.5", "prohibit")
    took.append(watched.becomes("203.0.113.5", Answer.PROHIBIT))
    watched.ip("rule", "del", "to", "203.0.113.5", "prohibit")
    took.append(watched.becomes("203.0.113.5", Answer.SUCCESS))
    assert max(took) < 1


def test_follows_the_interface(watched: Watched) -> None:
    a = watched.pair.a
    watched.ip("route", "add", "203.0.113.0/24", "via", watched.pair.b.ip4)
    watched.becomes("203.0.113.5", Answer.SUCCESS)
    sysctl(a.ns, **{f"ipv4__conf__{a.ifname}__forwarding": 0})
    watched.becomes("203.0.113.5", Answer.FORWARDING_DISABLED)
    sysctl(a.ns, **{f"ipv4__conf__{a.ifname}__forwarding": 1})
    watched.becomes("203.0.113.5", Answer.SUCCESS)
    watched.ip("link", "set", a.ifname, "mtu", "90")
    watched.becomes("203.0.113.5", Answer.FRAGMENTATION_NEEDED)
    watched.ip("link", "set", a.ifname, "mtu", "1500")
    watched.becomes("203.0.113.5", Answer.SUCCESS)
    watched.ip("link", "set", a.ifname, "down")  # its routes go without a word
    watched.becomes("203.0.113.5", Answer.NOT_FORWARDED)
    watched.ip("link", "del", a.ifname)
    watched.becomes("203.0.113.5", -19)


def test_follows_settings_that_nobody_announces(watched: Watched) -> None:
    watched.ip("route", "add", "203.0.113.0/24", "via", watched.pair.b.ip4, "mtu", "90")
    watched.becomes("203.0.113.5", Answer.SUCCESS)
    sysctl(watched.pair.a.ns, ipv4__ip_forward_use_pmtu=1)
    watched.becomes("203.0.113.5", Answer.FRAGMENTATION_NEEDED)


def test_many_changes_at_once(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "".join(f"route add 203.0.{n >> 8}.{n & 255}/32 via {watched.pair.b.ip4}\n"
                    for n in range(3000))
    in_ns(watched.pair.a.ns, "ip", "-batch", "-", input=lines)
    watched.becomes("203.0.11.100", Answer.SUCCESS)
    assert watched.program.fib is not None
    assert watched.program.fib.generation < 200


def test_lost_messages_are_no_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket with next to no room loses messages, and says so: all is read again."""
    listen = fibmirror._listen

    def narrow() -> object:
        events = listen()
        events.setsockopt(1, 33, 1)  # SO_RCVBUFFORCE; the kernel makes it 2304
        return events

    monkeypatch.setattr(fibmirror, "_listen", narrow)
    with VethPair() as pair, load(PROBE, "lookup") as program:
        sysctl(pair.a.ns, ipv4__ip_forward=1)
        with entered(pair.a.ns), FibMirror(lambda text: None) as mirror:
            mirror.follow(program.fib)
            watched = Watched(pair, program, [])
            lines = "".join(f"route add 203.0.{n >> 8}.{n & 255}/32 via {pair.b.ip4}\n"
                            for n in range(2000))
            in_ns(pair.a.ns, "ip", "-batch", "-", input=lines)
            watched.becomes("203.0.7.100", Answer.SUCCESS)


def test_what_cannot_be_read_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    def fail(*argv: object) -> None:
        raise OSError(16, "the tables change faster than they can be read")

    with (VethPair() as pair, load(PROBE, "lookup") as program, entered(pair.a.ns),
          FibMirror(notes.append) as mirror):
        mirror.follow(program.fib)
        with monkeypatch.context() as patch:
            patch.setattr(fibmirror, "read_host", fail)
            patch.setattr(fibmirror, "LOOK_S", 0.05)
            mirror.wake()
            wait(lambda: len(notes) == 2)
            time.sleep(0.3)
        assert len(notes) == 2
        assert "not current" in notes[1]
        in_ns(pair.a.ns, "ip", "route", "add", "blackhole", "203.0.113.0/24")
        assert program.fib is not None
        tables = program.fib
        wait(lambda: any(route.type == 6 for route in tables.host.routes))


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_swaps_under_readers() -> None:
    """Snapshots change under a program that reads; it sees one or the other, never a mixture."""
    from xdp_runtime.fib.host import Host, Interface, Leg, Neighbour, Route, key_of

    def host(number: int) -> Host:
        mac = bytes((number,)) * 6
        way = Interface(5, mtu=1000 + number, mac=mac, forwarding=True)
        address = key_of(bytes((203, 0, 113, 5)))
        padding = tuple(Route(2, 254, key_of(bytes((9, n, number, 0))), 24, (Leg(5),))
                        for n in range(number * 7 % 50))
        return Host((way,), (*padding, Route(2, 254, address, 32, (Leg(5),), metric=number)),
                    (Neighbour(5, 2, address, mac),))

    hosts = [host(number) for number in range(1, 100)]
    ask = question(5, "203.0.113.5")
    with load(PROBE, "lookup") as program:
        tables = program.fib
        assert tables is not None
        tables.publish(hosts[0])
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                for each in hosts:
                    tables.publish(each)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            seen = set()
            for _ in range(400):
                data = program.repeat(ask, 3000).data_out
                assert struct.unpack_from("<i", data, 20)[0] == 0
                struct_out = data[24:]
                number = struct_out[52]
                assert struct_out[52:64] == bytes((number,)) * 12
                assert struct.unpack_from("<HII", struct_out, 6) == (1000 + number, 5, number)
                seen.add(number)
        finally:
            stop.set()
            writer.join()
        assert len(seen) > 10
        assert tables.generation > 50


@pytest.mark.parametrize("rules", [False, True])
def test_a_takeover_is_not_seen(rules: bool, tmp_path: Path) -> None:
    """What the kernel answers before, the program is answered while TAPs stand in for interfaces;
    but for neighbours that were learnt, whom the stack learns anew."""
    skip_neighbour = 4
    with (rich_host(rules, multipath=False) as ns, entered(ns), nl.Netlink() as net,
          load(PROBE, "lookup") as program, ExitStack() as undo):
        before = read_host(net)
        questions = Questions(before, 7)
        frames = [bytearray(questions.lookup()) for _ in range(1500)]
        for frame in frames:
            frame[16] |= skip_neighbour
        with load_into_kernel(PROBE, "lookup") as kernel:
            wanted = [kernel.run(bytes(frame)).data_out for frame in frames]
        index = {name: int(in_ns(ns, "cat", f"/sys/class/net/{name}/ifindex").stdout)
                 for name in ("w0", "w1", "w2", "br0")}
        stand_ins = {}
        for name, of in index.items():
            tap = TapPort.open(f"xdpu-{name}", 1)
            undo.callback(tap.close)
            (tmp_path / name).mkdir()
            undo.enter_context(Takeover(name, tap.name, tmp_path / name))
            stand_ins[tap.ifindex] = of
        host = read_host(net, stand_ins)
        assert [each.ifindex for each in host.interfaces] == [
            each.ifindex for each in before.interfaces]
        assert set(host.routes) == set(before.routes)
        assert program.fib is not None
        program.fib.publish(host)
        for frame, answer in zip(frames, wanted, strict=True):
            found = program.run(bytes(frame), ingress_ifindex=1).data_out
            assert found == answer, f"\n{told(bytes(frame))}\n{told(answer)}\n{told(found)}"
