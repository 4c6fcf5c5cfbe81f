"""Timers of a program on a port: they fire while no packets arrive, and a sleep ends for them."""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from pathlib import Path

import pytest

from dataplane.af_packet import AfPacketPort
from dataplane.engine import Engine
from dataplane.memory import MemoryPort
from tests.nets import VethPair, entered
from tests.privileges import needs_bpf
from tests.xdp_runtime.helpers.test_timer import MS, start_one
from xdp_runtime.elf import read_object

OBJECT = Path(__file__).parents[1] / "xdp_runtime" / "helpers" / "timers.o"


def logged(engine: Engine) -> list[int]:
    """Keys of the timers that have fired, in order."""
    maps = engine.program.raw_maps
    count = int.from_bytes(bytes(maps[".bss"].data[:4]), "little")
    return [int.from_bytes(bytes(maps["order"].data[8 * n : 8 * n + 4]), "little")
            for n in range(count)]


@pytest.mark.netns
@pytest.mark.root
@needs_bpf()[1]
def test_while_no_packets_arrive() -> None:
    with VethPair() as pair:
        with entered(pair.a.ns):
            port = AfPacketPort(pair.a.ifname)
        engine = Engine(read_object(OBJECT), [port], program="start_one")
        engine.start()
        late = []
        try:
            with entered(pair.b.ns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
                sock.bind((pair.b.ifname, 0))
                for number in range(6):
                    key = 0xABCD00 + number
                    time.sleep(0.03)  # it sleeps for 100 ms at a time
                    sock.send(start_one(key, 40 * MS).ljust(60, b"\0"))
                    began = time.monotonic()
                    while key not in logged(engine):
                        assert time.monotonic() < began + 5
                        time.sleep(0.0002)
                    late.append(time.monotonic() - began - 0.04)
        finally:
            engine.stop()
            engine.close()
            port.close()
    assert min(late) > -0.001
    assert sorted(late)[1] < 0.02, "a sleep would end only after 60 ms"


def test_between_batches_of_many_workers() -> None:
    """Each fires what it started; one worker starts another's timers again, and deletes them."""
    frames = [start_one(key, nsecs, argument).ljust(64, b"\0")
              for key, nsecs, argument in
              [(n % 97, (n * 7919 % 100) * 1000, 3 * (n % 5 == 0)) for n in range(512)]]
    port = MemoryPort(frames, queues=4, count=1 << 60, discard=True, out_bytes=1 << 20)
    engine = Engine(read_object(OBJECT), [port], program="start_one")
    engine.start()
    try:
        until = time.monotonic() + 1.5
        many = engine.program.raw_maps["many"]
        while time.monotonic() < until:  # as a control process may, meanwhile
            for key in list(many.keys())[:20]:
                with suppress(FileNotFoundError):
                    many.delete(key)
        count = int.from_bytes(bytes(engine.program.raw_maps[".bss"].data[:4]), "little")
        assert count > 1000
        assert engine.running
    finally:
        engine.stop()
        engine.close()
        port.close()
