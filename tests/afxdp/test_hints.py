"""RX metadata over AF_XDP: a program in user space is told what the driver would tell it."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from afxdp.hints import RECEIVE
from afxdp.port import AfxdpPort, kind_of
from dataplane.engine import Engine
from tests.afxdp.network import marks, opened
from tests.afxdp.test_live_tx import receiving
from tests.control.run_xdpu import EXAMPLES, Run, until
from tests.nets import VethPair, entered, in_ns
from xdp_runtime.bpf_syscall import AttachType, ProgFlag, XdpFlag, link_create, prog_load
from xdp_runtime.btf_lazy import kernel_types
from xdp_runtime.elf import read_object
from xdp_runtime.helper_names import KERNEL_FUNCTIONS
from xdp_runtime.helpers.metadata import asked_by
from xdp_runtime.isa import Call, CallKfunc, encode

pytestmark = marks()
OBJECT = Path(__file__).parent / "objects" / "rx_metadata.o"
TOLD = struct.Struct("<14sH3i2I2HQ")  # struct told of rx_metadata.c
MARKER, PORT = 0x7878, 7000
EOPNOTSUPP = -95


@pytest.fixture(scope="module")
def wire() -> Iterator[VethPair]:
    with VethPair(subnet=74, offload=True) as pair:
        in_ns(pair.a.ns, "ip", "neigh", "replace", pair.b.ip4, "lladdr", pair.b.mac, "dev",
              pair.a.ifname)
        with receiving(pair.a):
            yield pair


class Flows:
    """Sockets at the far end, whose hashes stay the same, and what comes back of their packets."""

    def __init__(self, wire: VethPair, undo: ExitStack) -> None:
        with entered(wire.a.ns):
            self.back = undo.enter_context(
                socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
            self.back.bind((wire.a.ifname, 3))
            self.out = [undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                        for _ in range(6)]
        for number, one in enumerate(self.out):
            one.connect((wire.b.ip4, PORT + number))
        self.back.settimeout(0.05)

    def ask(self) -> list[tuple[int, ...]]:
        """What the program at the other end said of a packet of each."""
        told: dict[int, tuple[int, ...]] = {}

        def complete() -> bool:
            for number, one in enumerate(self.out):
                if number not in told:
                    one.send(bytes(8) + bytes([number + 100]) * 60)
            try:
                while True:
                    frame = self.back.recv(2048)
                    if len(frame) >= 110 and frame[14:16] == MARKER.to_bytes(2, "little") \
                            and frame[80:110] == frame[80:81] * 30 and frame[80] >= 100:
                        told[frame[80] - 100] = TOLD.unpack_from(frame)[2:]
            except TimeoutError:
                return len(told) == len(self.out)

        until(complete, "an answer for each")
        return [told[number] for number in range(len(self.out))]


@contextmanager
def in_the_kernel(wire: VethPair) -> Iterator[None]:
    """The same program in the driver, bound to its device."""
    names = {number: name for name, number in KERNEL_FUNCTIONS.items()}
    program, = read_object(OBJECT).programs
    insns = [CallKfunc(kernel_types().function(names[insn.helper]), 0)
             if isinstance(insn, Call) else insn for insn in program.insns]
    with entered(wire.b.ns):
        fd = prog_load(encode(insns, []), flags=ProgFlag.XDP_DEV_BOUND_ONLY,
                       expected_attach_type=AttachType.XDP, ifindex=wire.b.ifindex)
        link = link_create(fd, wire.b.ifindex, AttachType.XDP, XdpFlag.DRV_MODE)
    os.close(fd)
    try:
        yield
    finally:
        os.close(link)


@contextmanager
def in_user_space(wire: VethPair, port: AfxdpPort) -> Iterator[None]:
    with entered(wire.b.ns):
        engine = Engine(read_object(OBJECT), [port])
        engine.start()
    try:
        yield
    finally:
        engine.stop()
        engine.close()


def test_as_in_the_driver(wire: VethPair) -> None:
    with ExitStack() as undo:
        flows = Flows(wire, undo)
        with in_the_kernel(wire):
            theirs = flows.ask()
        with opened(wire.b, hints=True) as port:
            assert "RX metadata from veth" in port.mode
            with in_user_space(wire, port):
                ours = flows.ask()
        with opened(wire.b, hints=True, wanted="udp", tx="live") as port, \
                in_user_space(wire, port):
            filtered = flows.ask()
    assert ours == filtered == [(*one[:-2], 0x5555, one[-1]) for one in theirs], \
        "but that veth writes a zero as tag where it has none"
    assert all(one[1] == 0 and one[3] != 0 for one in ours), "hashes, and no error"
    assert len({one[3] for one in ours}) == len(ours)
    assert all(one[2] < 0 and one[6] == 0x5555 for one in ours), "no tag, an error, no write"


def test_without_it_nothing_is_known(wire: VethPair) -> None:
    """Generic mode asks no driver; nor does a port that was not asked to."""
    with ExitStack() as undo:
        flows = Flows(wire, undo)
        for options, words in (({"mode": "generic", "hints": True}, "no RX metadata in generic"),
                               ({}, "")):
            with opened(wire.b, **options) as port:
                assert words in port.mode
                with in_user_space(wire, port):
                    assert {one[:3] for one in flows.ask()} == {(EOPNOTSUPP,) * 3}


def test_stale_answers_are_not_read(wire: VethPair) -> None:
    """Frames that lie where others with metadata were."""
    assert kind_of(False, "xsk", True).receive is RECEIVE
    with ExitStack() as undo:
        flows = Flows(wire, undo)
        with opened(wire.b, hints=True, ring_size=64, frames=128) as port, \
                in_user_space(wire, port):
            first = flows.ask()
            for _ in range(40):
                assert flows.ask() == first


def test_who_asks() -> None:
    obj = read_object(OBJECT)
    assert asked_by(obj) and not asked_by(read_object(EXAMPLES / "pass.o"))
    program, = obj.programs
    without = tuple(insn for insn in program.insns if not isinstance(insn, Call))
    assert not asked_by(replace(obj, programs=(replace(program, insns=without),)))


def test_a_run_asks_by_itself(wire: VethPair) -> None:
    with ExitStack() as undo:
        flows = Flows(wire, undo)
        with Run(wire.b.ns, str(OBJECT), "--iface", wire.b.ifname, "-i", "0.1") as run:
            assert "RX metadata from veth" in run.wait_for("start")["modes"][wire.b.ifname]
            assert all(one[1] == 0 and one[3] for one in flows.ask())
            assert run.end() == 0
