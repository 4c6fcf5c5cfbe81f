"""Capture files read and written in Python: known bytes, scapy as judge, damage as a sentence."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dataplane import pcapfile
from dataplane.pcapfile import CapturedPacket
from tests.dataplane.drive import frames
from xdp_runtime.errors import PortError

START_NS = 1_700_000_000_123_456_789
PACKETS = [CapturedPacket(START_NS + i * 1_000_000_007, f, len(f))
           for i, f in enumerate((*frames(3), *frames(1, 61), *frames(1, 1514)))]


def pcap(packets: Sequence[CapturedPacket], order: str = "<", nanoseconds: bool = True) -> bytes:
    """Written independently of pcapfile, in either byte order."""
    made = struct.pack(order + "IHHiIII", 0xA1B23C4D if nanoseconds else 0xA1B2C3D4,
                       2, 4, 0, 0, 65535, 1)
    for packet in packets:
        seconds, rest = divmod(packet.timestamp_ns, 10**9)
        made += struct.pack(order + "4I", seconds, rest if nanoseconds else rest // 1000,
                            len(packet.data), packet.original_bytes) + packet.data
    return made


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += bytes(-len(body) % 4)
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(order: str = "<", resolution: int | None = None, link_type: int = 1, snap: int = 0,
              offset_s: int | None = None) -> bytes:
    body = struct.pack(order + "HHI", link_type, 0, snap)
    if resolution is not None:
        body += struct.pack(order + "HHB3x", 9, 1, resolution)
    if offset_s is not None:
        body += struct.pack(order + "HHq", 14, 8, offset_s)
    return block(1, body, order)


def enhanced(data: bytes, ticks: int, order: str = "<", index: int = 0) -> bytes:
    return block(6, struct.pack(order + "5I", index, ticks >> 32, ticks & 0xFFFFFFFF, len(data),
                                len(data)) + data, order)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("nanoseconds", [False, True])
def test_every_flavour_of_pcap(tmp_path: Path, order: str, nanoseconds: bool) -> None:
    path = tmp_path / "in.pcap"
    path.write_bytes(pcap(PACKETS, order, nanoseconds))
    got = list(pcapfile.read_packets(path))
    assert [p.data for p in got] == [p.data for p in PACKETS]
    unit = 1 if nanoseconds else 1000
    assert [p.timestamp_ns for p in got] == [p.timestamp_ns // unit * unit for p in PACKETS]


def test_pcap_is_written_as_known() -> None:
    packet = CapturedPacket(3_000_004_005, b"\x11" * 14, 14)
    made = pcapfile.pcap_header(nanoseconds=False) + pcapfile.pcap_record(packet, False)
    assert made.hex() == (
        "d4c3b2a10200040000000000000000000000040001000000" "03000000040000000e0000000e000000"
        + "11" * 14)


def test_pcapng_is_written_as_known() -> None:
    packet = CapturedPacket(5 << 32 | 6, b"\x22" * 14, 20, "XDP_TX")
    assert pcapfile.packet_block(packet).hex() == (
        "0600000040000000" "00000000" "05000000" "06000000" "0e000000" "14000000"
        + "22" * 14 + "0000" "01000600" + b"XDP_TX".hex() + "0000" "00000000" "40000000")
    header = pcapfile.pcapng_header("eth0")
    assert header[:12].hex() == "0a0d0d0a28000000" "4d3c2b1a"
    assert header[40:44].hex() == "01000000" and b"\x09\x00\x01\x00\x09\0\0\0" in header


def test_scapy_reads_what_is_written(tmp_path: Path) -> None:
    scapy: Any = pytest.importorskip("scapy.utils")
    path = tmp_path / "out.pcapng"
    blocks = b"".join(map(pcapfile.packet_block, PACKETS))
    path.write_bytes(pcapfile.pcapng_header("xdpu0") + blocks)
    old = tmp_path / "out.pcap"
    old.write_bytes(pcapfile.pcap_header() + b"".join(map(pcapfile.pcap_record, PACKETS)))
    for written in (path, old):
        got = [(bytes(data), meta) for data, meta in scapy.RawPcapReader(str(written))]
        assert [data for data, _ in got] == [p.data for p in PACKETS]
    assert [p.timestamp_ns for p in pcapfile.read_packets(path)] == [
        p.timestamp_ns for p in PACKETS]


def test_what_scapy_writes_is_read(tmp_path: Path) -> None:
    scapy: Any = pytest.importorskip("scapy.utils")
    path, old = tmp_path / "in.pcapng", tmp_path / "in.pcap"
    for writer in (scapy.RawPcapWriter(str(old), linktype=1), scapy.RawPcapNgWriter(str(path))):
        writer.linktype = 1
        for packet in PACKETS:
            writer.write(packet.data)
        writer.close()
    for written in (path, old):
        assert [p.data for p in pcapfile.read_packets(written)] == [p.data for p in PACKETS]


@pytest.mark.parametrize("order", "<>")
def test_blocks_of_pcapng(tmp_path: Path, order: str) -> None:
    """Two sections, several interfaces and units, simple packets, blocks nobody knows."""
    data = frames(1)[0]
    path = tmp_path / "in.pcapng"
    path.write_bytes(
        section(order) + interface(order) + block(0xBAD, b"whatever", order)
        + enhanced(data, 1_500_000, order)
        + interface(order, resolution=9, offset_s=-1) + enhanced(data, 5_000_000_007, order, 1)
        + block(3, struct.pack(order + "I", 64) + data, order)
        + section("<") + interface("<", resolution=0x80 | 10, snap=20)
        + enhanced(data, 1536) + block(3, struct.pack("<I", 64) + data[:20]))
    got = list(pcapfile.read_packets(path))
    assert [p.timestamp_ns for p in got] == [
        1_500_000_000, 4_000_000_007, 4_000_000_007, 1_500_000_000, 1_500_000_000]
    assert [p.data for p in got] == [data] * 4 + [data[:20]]
    assert got[4].original_bytes == 64


def _sentence(path: Path) -> str:
    with pytest.raises(PortError) as caught:
        list(pcapfile.read_packets(path))
    return str(caught.value).replace(str(path.parent) + "/", "")


@pytest.mark.parametrize(("content", "sentence"), [
    (pcap(PACKETS[:3])[:-7], ("f: truncated in packet 3: 57 of 64 bytes are there "
                             "(packets 1 to 2 were processed)")),
    (pcap(PACKETS[:2])[:-64 - 9], ("f: truncated in packet 2: 7 of 16 bytes are there "
                                  "(packets 1 to 1 were processed)")),
    (pcap(PACKETS)[:20], "f: truncated in its header: 20 of 24 bytes are there"),
    (pcap(PACKETS[:1]) + b"\xff" * 16, ("f: damaged in packet 2: a length of 4294967295 bytes, the "
                                       "limit is 262144 (packets 1 to 1 were processed)")),
    (b"", "f: the file is empty (is the capture complete?)"),
    (b"\x7fELF", "f: neither pcap nor pcapng (tcpdump -w writes such files)"),
    (pcap([])[:20] + struct.pack("<I", 113),
     "f: its link type is 113, not Ethernet (1) (capture on an Ethernet interface, not on `any`)"),
    (section() + interface(link_type=113),
     "f: its link type is 113, not Ethernet (1) (capture on an Ethernet interface, not on `any`)"),
    (section() + interface() + interface(link_type=113) + enhanced(bytes(60), 0, index=1),
     "f: packet 1 is of link type 113, not Ethernet (1)"),
    (section() + interface() + enhanced(bytes(60), 0, index=3),
     "f: damaged in packet 1: it was captured on interface 3, the file describes 1"),
    ((section() + interface() + enhanced(bytes(60), 0) * 2)[:-50],
     "f: truncated in packet 2: 42 of 92 bytes are there (packets 1 to 1 were processed)"),
    (section() + interface() + struct.pack("<II4x", 6, 13),
     "f: damaged in packet 1: a length of 13 bytes, the limit is 12"),
    (section()[:8] + bytes(20), "f: damaged: a pcapng section without byte order"),
])
def test_damage_is_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(content)
    assert _sentence(path) == sentence


def test_no_file(tmp_path: Path) -> None:
    assert _sentence(tmp_path / "f") == "f: No such file or directory"
    (tmp_path / "f").mkdir()
    assert _sentence(tmp_path / "f") == "f: Is a directory"
