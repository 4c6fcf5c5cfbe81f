"""Our own versions of the thirteen programs that the uXDP paper (eBPF '25) measured.

Written from its one-line descriptions, none of its code.  The objects are checked in beside their
source (`make -C bench/uxdp`).  `CASES` has a packet and map entries for each.
"""

from __future__ import annotations

import socket
import struct
from pathlib import Path

from bench import frames
from bench.cases import Case, Entries
from xdp_runtime.state import Verdict

HERE = Path(__file__).resolve().parent
_RING_SLOTS, _REALS, _LOCAL_MAC = 1021, 20, bytes.fromhex("02feedfacade0000")
_CLOCK = ("connections", "new_connections")  # when a connection was seen last, a second began
_TCP = 6


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)


def _ip(text: str) -> bytes:
    return socket.inet_aton(text)


def _flow(port: int) -> bytes:
    """firewall.c, struct flow of frames.udp4(port)"""
    return _ip(frames.PEER_IP4) + _ip(frames.IP4) + struct.pack("!HH", 1024, port) + _u32(17)


def _backends() -> Entries:
    """lb.c: 64 backends of one service"""
    return {"services": {_ip(frames.IP4): _u32(64)},
            "backends": {_u32(n): _ip(f"10.77.2.{n + 1}") + bytes((2, 0, 0, 0, 2, n)) + bytes(2)
                         for n in range(64)}}


def _tunnels() -> Entries:
    """tunnel.c: one, and 200 that are not asked for"""
    end = _ip("192.0.2.1") + _ip("192.0.2.2") + bytes.fromhex("02aabbccddee0000")
    return {"tunnels": {_ip(frames.IP4) + struct.pack("!H", port) + struct.pack("=H", 17): end
                        for port in range(80, 281)}}


def _balancer() -> Entries:
    """balancer.c: one VIP, 20 servers, all slots of its ring"""
    vip = _ip(frames.IP4).ljust(16, b"\0") + struct.pack("!HBx", 80, _TCP)
    return {
        "vips": {vip: struct.pack("=II", 0, 0)},
        "rings": {_u32(slot): _u32(1 + slot * 7 % _REALS) for slot in range(_RING_SLOTS)},
        "reals": {_u32(n): _ip(f"10.77.2.{n}").ljust(16, b"\0") + _u32(0)
                  for n in range(1, _REALS + 1)},
        "own_addresses": {_u32(0): _ip("10.0.0.1").ljust(16, b"\0") + _u32(0)},
        "next_hop": {_u32(0): _LOCAL_MAC},
    }


def _case(name: str, packet: bytes, verdict: Verdict, entries: Entries | None = None,
          ignored: tuple[str, ...] = ()) -> Case:
    program = name.partition("-")[0]
    return Case(f"uxdp/{name}", packet, verdict, entries or {}, ignored, HERE / f"{program}.o")


_UDP, _LONG = frames.udp4(80), frames.udp4(80, 1358)
CASES = (
    _case("tx", _UDP, Verdict.TX),
    _case("map_access", _UDP, Verdict.TX),
    _case("maps", _UDP, Verdict.DROP),
    _case("csum-64", _UDP, Verdict.TX),
    _case("csum-1400", _LONG, Verdict.TX),
    _case("hash_sum", _UDP, Verdict.TX),
    _case("ping", frames.echo4(), Verdict.TX),
    _case("firewall-pass", _UDP, Verdict.TX, {"denied": {_flow(p): bytes(8) for p in range(99, 9999)
                                                         }}),
    _case("firewall-drop", _UDP, Verdict.DROP, {"denied": {_flow(80): bytes(8)}}),
    _case("lb", frames.tcp4(80), Verdict.TX, _backends()),
    _case("adjust_tail", _LONG, Verdict.TX),
    _case("tunnel", _UDP, Verdict.TX, _tunnels()),
    _case("tcp_classify", frames.tcp4(80), Verdict.TX,
          {"ports": {struct.pack("!H", 80): bytes(8)}}),
    _case("observer", _UDP, Verdict.PASS),
    _case("balancer", frames.tcp4(80), Verdict.TX, _balancer(), _CLOCK),
)
