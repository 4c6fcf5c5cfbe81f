"""What a port knows of a packet reaches the program: a capture has time stamps."""

from __future__ import annotations

import struct
from pathlib import Path

from dataplane.engine import Engine
from dataplane.pcap import PcapPort
from dataplane.pcapfile import CapturedPacket, read_packets
from tests.dataplane.test_pcapfile import pcap
from xdp_runtime.elf import read_object

OBJECT = Path(__file__).resolve().parents[1] / "xdp_runtime" / "helpers" / "metadata.o"
RESULT = struct.Struct("<3i2I2HQ")
EOPNOTSUPP = -95


def test_time_stamps_of_a_capture(tmp_path: Path) -> None:
    source, out = tmp_path / "in.pcap", tmp_path / "out.pcapng"
    times = [1_700_000_000_123_456_789, 1, (1 << 32) * 1_000_000_000 - 1, 0]
    source.write_bytes(pcap([CapturedPacket(time, bytes(64), 64) for time in times]))
    port = PcapPort(source, out)
    engine = Engine(read_object(OBJECT), [port], exit_when_idle=True)
    try:
        engine.start()
        assert engine.wait(10)
    finally:
        engine.close()
        port.close()
    found = [RESULT.unpack_from(packet.data) for packet in read_packets(out)]
    assert [one[0] for one in found] == [0, 0, 0, EOPNOTSUPP]
    assert [one[-1] for one in found] == [*times[:3], 0x1111]
    assert {one[1:3] for one in found} == {(EOPNOTSUPP, EOPNOTSUPP)}
