"""Redirects into the AF_XDP socket of another program, through the XSKMAP it is pinned in."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import pytest

from afxdp.xsk import COPY, Ring, Socket, address_of, read_word
from dataplane.pcapfile import CapturedPacket, pcap_header, pcap_record
from dataplane.xsk_port import SocketName, XskPort
from tests.control.run_xdpu import Run, xdpu
from tests.dataplane.drive import Driver
from tests.dataplane.kernel_redirect import OBJECT
from tests.nets import VethPair, entered, run
from tests.privileges import needs_bpf
from xdp_runtime.asm import assemble
from xdp_runtime.bpf_syscall import (
    AttachType,
    Cmd,
    XdpFlag,
    bpf,
    link_create,
    map_create,
    map_delete,
    map_update,
    prog_load,
)
from xdp_runtime.errors import PortError
from xdp_runtime.isa import encode
from xdp_runtime.object import MapType

pytestmark = [*needs_bpf(), pytest.mark.netns,
              pytest.mark.skipif(find_spec("afxdp._native") is None,
                                 reason="afxdp._native is not built (needs libxdp-dev)")]
RING, FRAME = 64, 4096


@dataclass
class Application:
    """What a user has: a socket on a queue, a map, both its own; all frames in the fill ring."""

    ifindex: int
    queue: int = 0
    entry: int = 0
    taken: int = 0
    rings: dict[str, Ring] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.memory = mmap.mmap(-1, FRAME * RING)
        self.socket = Socket()
        self.socket.register(address_of(self.memory), FRAME * RING, FRAME, 0)
        self.socket.size_rings(RING)
        self.rings = self.socket.map_rings(RING)
        self.socket.bind(self.ifindex, self.queue, COPY)
        self.give(*range(0, FRAME * RING, FRAME))
        self.map_fd = map_create(MapType.XSKMAP, 4, 4, 4, name="xsks")
        self.show()

    def show(self) -> None:
        map_update(self.map_fd, struct.pack("=I", self.entry), struct.pack("=I", self.socket.fd))

    def hide(self) -> None:
        map_delete(self.map_fd, struct.pack("=I", self.entry))

    def give(self, *frames: int) -> None:
        fill = self.rings["fill"]
        produced = read_word(fill.producer)
        for at, frame in enumerate(frames, produced):
            ctypes.c_uint64.from_address(fill.entries + 8 * (at % RING)).value = frame
        ctypes.c_uint32.from_address(fill.producer).value = produced + len(frames)

    def receive(self) -> list[bytes]:
        """All packets that are there; their frames go back."""
        rx, got = self.rings["rx"], []
        for at in range(self.taken, read_word(rx.producer)):
            address, length, _ = struct.unpack(
                "=QII", ctypes.string_at(rx.entries + 16 * (at % RING), 16))
            got.append(self.memory[address:address + length])
            self.give(address - address % FRAME)
        self.taken += len(got)
        ctypes.c_uint32.from_address(rx.consumer).value = self.taken
        return got

    def lost(self) -> int:
        """rx_ring_full, and packets that found no frame."""
        told = struct.unpack("=6Q", self.socket._socket.getsockopt(283, 7, 48))
        return int(told[0] + told[3])

    def close(self) -> None:
        self.socket.close()
        os.close(self.map_fd)


def pin(path: Path, fd: int) -> str:
    name = ctypes.create_string_buffer(str(path).encode())
    bpf(Cmd.OBJ_PIN, bytearray(struct.pack("=QII", ctypes.addressof(name), fd, 0)))
    return str(path)


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    run("mount", "-t", "bpf", "bpf", str(tmp_path))
    yield tmp_path
    run("umount", str(tmp_path))


@contextmanager
def application(pair: VethPair, queue: int = 0, entry: int = 0) -> Iterator[Application]:
    """In pair.a."""
    with entered(pair.a.ns):
        app = Application(pair.a.ifindex, queue, entry)
    try:
        yield app
    finally:
        app.close()


def packets(count: int) -> list[bytes]:
    return [struct.pack("=I", i) + bytes((i + k) & 0xFF for k in range(60 + i))
            for i in range(count)]


def capture(path: Path, frames: list[bytes]) -> Path:
    path.write_bytes(pcap_header() + b"".join(pcap_record(CapturedPacket(1, one, len(one)))
                                              for one in frames))
    return path


def test_a_run_redirects_into_it(bpffs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("run")
    frames = packets(40)
    with VethPair() as pair, application(pair, entry=2) as app:
        path = pin(bpffs / "xsks", app.map_fd)
        with Run(pair.a.ns, str(OBJECT), "-n", "to_ring",
                 "--iface", f"pcap:{capture(root / 'in.pcap', frames)}",
                 "--iface", f"xsk:{path},dev={pair.a.ifname},entry=2",
                 "--set-map", "xsks=0:xsk=xsks-2", XDPU_RUNDIR=str(root)) as one:
            assert one.finish() == 0, one.errors
        assert app.receive() == frames and app.lost() == 0
        assert f"a socket on queue 0 of {pair.a.ifname}" in one.errors
        assert one.records[-1]["total"]["redirect"] == 40


def test_beside_a_ring(bpffs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Rings are numbered first: the socket is not taken for one, nor the other way round."""
    root = tmp_path_factory.mktemp("run")
    with VethPair() as pair, application(pair) as app:
        path = pin(bpffs / "xsks", app.map_fd)
        argv = [str(OBJECT), "-n", "to_ring", "--iface",
                f"pcap:{capture(root / 'in.pcap', packets(9))}",
                "--iface", f"xsk:{path},dev={pair.a.ifname}", "--ring", "sample"]
        for word, sent, received in (("sample", 9, 0), ("xsks-0", 0, 9)):
            with Run(pair.a.ns, *argv, "--set-map", f"xsks=0:xsk={word}",
                     XDPU_RUNDIR=str(root)) as one:
                assert one.finish() == 0, one.errors
            total = one.records[-1]["total"]
            assert total["ring_sent"] == sent and len(app.receive()) == received


@contextmanager
def port_into(app: Application, pair: VethPair, path: str) -> Iterator[XskPort]:
    with entered(pair.a.ns):
        port = XskPort(SocketName(path, pair.a.ifname, app.entry), 1)
        try:
            yield port
        finally:
            port.close()


def send(driver: Driver, frames: list[bytes]) -> None:
    for one in frames:
        assert driver.send(one)
    driver.flush()
    driver.flush()


def test_what_it_has_no_room_for_is_in_its_own_counters(bpffs: Path) -> None:
    frames = packets(200)
    with VethPair() as pair, application(pair) as app, \
            port_into(app, pair, pin(bpffs / "xsks", app.map_fd)) as port:
        send(Driver(port), frames)
        got = app.receive()
        assert got == frames[:RING] and app.lost() == len(frames) - RING
        send(Driver(port), frames[:10])  # it has taken them: there is room again
        assert app.receive() == frames[:10]


def test_a_run_without_the_socket_says_so(
        bpffs: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("run")
    with VethPair() as pair, application(pair) as app:
        app.hide()
        with Run(pair.a.ns, str(OBJECT), "-n", "to_ring",
                 "--iface", f"pcap:{capture(root / 'in.pcap', packets(7))}",
                 "--iface", f"xsk:{pin(bpffs / 'xsks', app.map_fd)},dev={pair.a.ifname}",
                 "--set-map", "xsks=0:xsk=xsks-0", XDPU_RUNDIR=str(root)) as one:
            assert one.finish() == 0, one.errors
        assert "no socket there yet" in one.errors
        assert "7 packets redirected to xsks-0 were dropped: there was no socket" in one.errors


def test_a_socket_may_go_and_come(bpffs: Path) -> None:
    frames = packets(5)
    with VethPair() as pair, application(pair) as app:
        path = pin(bpffs / "xsks", app.map_fd)
        app.hide()
        with port_into(app, pair, path) as port:
            assert "no socket there yet" in port.mode
            driver = Driver(port)
            send(driver, frames)
            assert port.statistics()["refused"] == len(frames) and app.receive() == []
            app.show()
            send(driver, frames)
            assert app.receive() == frames and port.statistics()["refused"] == len(frames)


def test_refused(bpffs: Path) -> None:
    with VethPair(queues=2) as pair, application(pair, queue=1) as app, entered(pair.a.ns):
        path = pin(bpffs / "xsks", app.map_fd)
        array = map_create(MapType.ARRAY, 4, 4, 1)
        pin(bpffs / "array", array)
        for where, why in (
                (SocketName(path, pair.a.ifname), "bound to queue 1, and live frames come by"),
                (SocketName(path, pair.a.ifname, 9), "has 4 entries"),
                (SocketName(path, "none0"), "no such interface"),
                (SocketName(str(bpffs / "none"), pair.a.ifname), "no map is pinned there"),
                (SocketName(str(bpffs / "array"), pair.a.ifname), "is not an XSKMAP")):
            with pytest.raises(PortError, match=why):
                XskPort(where, 1)
        os.close(array)


def test_rings_have_one_writer(bpffs: Path) -> None:
    with VethPair() as pair, application(pair) as app, entered(pair.a.ns):
        path = pin(bpffs / "xsks", app.map_fd)
        text = "r2 = *(u32 *)(r1 + 16)\nr1 = map[xsks] ll\nr3 = 2\ncall bpf_redirect_map#51\nexit"
        program = prog_load(encode(assemble(text, ["xsks"]), [app.map_fd]), name="theirs",
                            expected_attach_type=AttachType.XDP)
        link = link_create(program, pair.a.ifindex, AttachType.XDP, XdpFlag.DRV_MODE)
        try:
            with pytest.raises(PortError, match=r"theirs id .* their rings have one writer"):
                XskPort(SocketName(path, pair.a.ifname), 1)
        finally:
            os.close(link)
            os.close(program)


@pytest.mark.parametrize("text", [
    "xsk:", "xsk:/x", "xsk:/x,dev=", "xsk:/x,dev=a,entry=b", "xsk:/x,a", "xsk:/x,dev=a,to=b"])
def test_words(text: str) -> None:
    done = xdpu("run", str(OBJECT), "-n", "to_ring", "--iface", "lo", "--iface", text)
    assert done.returncode == 2 and "is no socket" in done.stderr


def test_a_run_of_sockets_alone() -> None:
    done = xdpu("run", str(OBJECT), "-n", "to_ring", "--iface", "xsk:/x,dev=lo")
    assert done.returncode == 2 and "no packets to run on" in done.stderr
