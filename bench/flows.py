"""One packet as many flows: source address and port vary, the checksums stay right (RFC 1624).

Flow n of a TCP or UDP packet has n added to the last four bytes of its source address and, mod
65536, to its source port.  Flow 0 is the packet itself.  Which flow comes next a 64-bit LCG says,
the same one on both sides, so both see the same packets in the same order.

    kernel   a wrapper (wrapper.py) undoes what the program did to the last packet, writes the next
             flow into it, and tail-calls the program; what that costs is its stand-in's time
    ours     the worker loop of a real run, on a port that makes these packets; its floor is the
             loop with a program that only returns

Checked: the runs counted, the verdict, the last packet against a single run of that flow, and the
maps of both sides, as far as chance allows.
"""

from __future__ import annotations

import statistics
import struct
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench import made
from bench.agree import Mismatch, Unfit, spot_check
from bench.made import SEED, A, C, Loop, MadePort
from bench.sides import Sample
from bench.wrapper import Change, Wrapper
from xdp_runtime.kernel import KernelProgram
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.map import Map
from xdp_runtime.object import MapSpec, MapType, Object
from xdp_runtime.template import Template

_ZERO_KEY = bytes(4)
_PROBES = 64  # flows that tell which bytes the program overwrites
_TCP, _UDP = 6, 17
_CHUNKS = 9


class Fields(NamedTuple):
    """Where a packet's flow is: offsets; a checksum at 0 is none."""

    port_at: int
    source_at: int  # the last four bytes of the address
    check_at: int  # of TCP or UDP
    header_check_at: int  # of IPv4


def fields_of(packet: bytes) -> Fields | None:
    """None for what is not plain TCP or UDP over IPv4 or IPv6."""
    kind = packet[12:14]
    if kind == b"\x08\x00" and packet[14:15] == b"\x45" and len(packet) >= 42:
        if int.from_bytes(packet[20:22], "big") & 0x3FFF:  # a fragment
            return None
        protocol, source_at, at, header_check_at = packet[23], 26, 34, 24
    elif kind == b"\x86\xdd" and len(packet) >= 62:
        protocol, source_at, at, header_check_at = packet[20], 34, 54, 0
    else:
        return None
    if protocol == _UDP:
        check_at = at + 6 if any(packet[at + 6:at + 8]) else 0
    elif protocol == _TCP and len(packet) >= at + 20:
        check_at = at + 16
    else:
        return None
    return Fields(at, source_at, check_at, header_check_at)


@dataclass(frozen=True, slots=True)
class Stream:
    """`flows` flows of a packet.

    A `rest` is the inverse of a checksum and of what it covers and a flow changes: with the new
    values added and folded it is the inverse of the new checksum.
    """

    packet: bytes
    fields: Fields
    flows: int

    def _word(self, at: int) -> int:
        return int.from_bytes(self.packet[at:at + 2], "big")

    def _inverse(self, at: int) -> int:
        return ~self._word(at) & 0xFFFF

    @property
    def port(self) -> int:
        return self._word(self.fields.port_at)

    @property
    def source(self) -> int:
        at = self.fields.source_at
        return int.from_bytes(self.packet[at:at + 4], "big")

    @property
    def header_rest(self) -> int:
        at = self.fields.source_at
        return self._inverse(self.fields.header_check_at) + self._inverse(at) + self._inverse(
            at + 2)

    @property
    def rest(self) -> int:
        at = self.fields.source_at
        return (self._inverse(self.fields.check_at) + self._inverse(at) + self._inverse(at + 2)
                + self._inverse(self.fields.port_at))

    def flow(self, number: int) -> bytes:
        """The packet of a flow."""
        fields, out = self.fields, bytearray(self.packet)

        def put(at: int, value: int, size: int = 2) -> None:
            out[at:at + size] = value.to_bytes(size, "big")

        source, port = (self.source + number) & 0xFFFFFFFF, (self.port + number) & 0xFFFF
        new = (source >> 16) + (source & 0xFFFF)
        put(fields.source_at, source, 4)
        put(fields.port_at, port)
        if fields.header_check_at:
            put(fields.header_check_at, ~_fold(self.header_rest + new) & 0xFFFF)
        if fields.check_at:
            put(fields.check_at, ~_fold(self.rest + new + port) & 0xFFFF)
        return bytes(out)

    def number(self, random: int) -> int:
        return ((random >> 32) * self.flows) >> 32


def _fold(value: int) -> int:
    value = (value & 0xFFFF) + (value >> 16)
    return (value & 0xFFFF) + (value >> 16)


# ---- the kernel ----------------------------------------------------------------------------------

def _vary(stream: Stream) -> list[str]:
    """Assembly: the next flow into the packet at r7."""
    fields = stream.fields
    fold = ["r5 = r3", "r5 >>= 16", "r3 &= 65535", "r3 += r5"] * 2

    def check(at: int, rest: int, *more: str) -> list[str]:
        if not at:
            return []
        return ["r3 = r0", *more, f"r3 += {rest}", *fold, "r3 ^= 65535", "r3 = be16 r3",
                f"*(u16 *)(r7 + {at}) = r3"]

    return [
        "r1 = map_value[flows] ll", "r2 = *(u64 *)(r1 + 0)", f"r3 = {A} ll", "r2 *= r3",
        f"r3 = {C} ll", "r2 += r3", "*(u64 *)(r1 + 0) = r2", "r2 >>= 32",
        f"r3 = {stream.flows} ll", "r2 *= r3", "r2 >>= 32",
        # the port in r4
        "r4 = r2", f"r4 += {stream.port}", "r4 &= 65535", "r3 = r4", "r3 = be16 r3",
        f"*(u16 *)(r7 + {fields.port_at}) = r3",
        # the address, and its halves' sum in r0
        f"r3 = {stream.source} ll", "r2 += r3", "r2 <<= 32", "r2 >>= 32", "r0 = r2", "r0 >>= 16",
        "r3 = r2", "r3 &= 65535", "r0 += r3", "r2 = be32 r2",
        f"*(u32 *)(r7 + {fields.source_at}) = r2",
        *check(fields.header_check_at, stream.header_rest),
        *check(fields.check_at, stream.rest, "r3 += r4")]


class KernelFlows:
    """`program` runs under the wrapper, `probe`, another load of it, only says what it does."""

    name = "kernel"

    def __init__(self, program: KernelProgram, probe: KernelProgram, stream: Stream,
                 change: Change, verdict: int, stack: ExitStack) -> None:
        self._program, self._stream, self._verdict = program, stream, verdict
        self._flows = {}
        self._wrappers = {}
        spans = overwritten(probe, stream, change, verdict)
        for name, fd in (("raw", program.fd), ("floor", None)):
            flows = stack.enter_context(KernelMap(MapSpec("flows", MapType.ARRAY, 4, 8, 1)))
            flows.update(_ZERO_KEY, struct.pack("=Q", SEED))
            self._flows[name] = flows
            self._wrappers[name] = stack.enter_context(Wrapper(
                change, verdict, fd, maps=(flows,), last=_vary(stream), spans=spans))
        self.maps = program.maps

    def run(self, count: int, name: str = "raw") -> float:
        repeated = self._wrappers[name].run(count)
        if not repeated.is_sound:
            raise Mismatch(f"kernel, {self._stream.flows} flows, {name}: {repeated.complaint()}")
        return repeated.ns

    def sample(self, count: int) -> Sample:
        count = count // _CHUNKS * _CHUNKS  # as ours does, so that both see the same packets
        floor, raw = self.run(count, "floor"), self.run(count)
        return {"floor": floor, "raw": raw, "net": raw - floor}

    def last(self) -> tuple[int, bytes]:
        """The last flow's number, and what became of its packet."""
        random = int.from_bytes(self._flows["raw"].lookup(_ZERO_KEY) or b"", "little")
        return self._stream.number(random), self._wrappers["raw"].last

    def once(self, number: int) -> bytes:
        return self._program.run(self._stream.flow(number)).data_out


def overwritten(probe: KernelProgram, stream: Stream, change: Change, verdict: int
                ) -> list[tuple[int, int]]:
    """What to write back so that any flow's packet is the first one's again.  Raises Unfit."""
    touched = set()
    for turn in range(_PROBES):
        number = turn * max(1, stream.flows // _PROBES) % stream.flows
        packet = stream.flow(number)
        done = probe.run(packet)
        if (done.retval, len(done.data_out), len(done.meta)) != (
                verdict, len(change.after), len(change.meta)):
            raise Unfit(f"flow {number} of {stream.flows} does not go the way of the others: "
                           f"verdict {done.retval}, {len(done.data_out)} bytes")
        one = Change(packet, done.data_out, done.meta, change.head, change.tail)
        touched |= {at for start, end in one.overwritten() for at in range(start, end)}
    spans: list[tuple[int, int]] = []
    for at in sorted(touched):
        if spans and at - spans[-1][1] < 8:
            spans[-1] = spans[-1][0], at + 1
        else:
            spans.append((at, at + 1))
    return spans


# ---- ours ----------------------------------------------------------------------------------------

# the port's settings
(_PORT_AT, _PORT, _CHECK_AT, _REST, _SOURCE_AT, _SOURCE, _HEADER_CHECK_AT,
 _HEADER_REST) = range(0, 64, 8)


def _change(m: Any) -> Callable[..., Any]:
    def flows_change(settings, data, number, x):  # type: ignore[no-untyped-def]
        new_port = (m.load_u64(settings, _PORT) + number) & 0xFFFF
        address = (m.load_u64(settings, _SOURCE) + number) & 0xFFFFFFFF
        both = (address >> 16) + (address & 0xFFFF)
        m.store_u16(data, m.load_u64(settings, _PORT_AT), m.swap16(new_port))
        m.store_u32(data, m.load_u64(settings, _SOURCE_AT), m.swap32(address))
        header_check_at = m.load_u64(settings, _HEADER_CHECK_AT)
        if header_check_at != 0:
            total = m.load_u64(settings, _HEADER_REST) + both
            total = (total & 0xFFFF) + (total >> 16)
            total = (total & 0xFFFF) + (total >> 16)
            m.store_u16(data, header_check_at, m.swap16(total ^ 0xFFFF))
        check_at = m.load_u64(settings, _CHECK_AT)
        if check_at != 0:
            total = m.load_u64(settings, _REST) + both + new_port
            total = (total & 0xFFFF) + (total >> 16)
            total = (total & 0xFFFF) + (total >> 16)
            m.store_u16(data, check_at, m.swap16(total ^ 0xFFFF))
        return number

    return flows_change


FLOWS = made.kind("flows", Template("flows_change", _change, made.CHANGE_SIGNATURE))


def _loop(obj: Object, program: str | None, stream: Stream, stack: ExitStack) -> Loop:
    fields = stream.fields
    return Loop(obj, program, MadePort(FLOWS, stream.packet, stream.flows, (
        fields.port_at, stream.port, fields.check_at, stream.rest, fields.source_at,
        stream.source, fields.header_check_at, stream.header_rest)), stack)


class OurFlows:
    name = "ours"

    def __init__(self, obj: Object, program: str | None, idle: Object, stream: Stream,
                 change: Change, verdict: str, stack: ExitStack) -> None:
        self._stream, self._change, self._verdict = stream, change, verdict
        self._raw = _loop(obj, program, stream, stack)
        self._idle = _loop(idle, None, stream, stack)
        self.program = self._raw.engine.program
        self.maps: dict[str, Map] = self.program.raw_maps

    def run(self, count: int) -> float:
        before = self._raw.engine.stats.total()
        ns = self._raw.run(count)
        after = self._raw.engine.stats.total()
        came_to = {name: after[name] - before[name]
                   for name in ("aborted", "drop", "pass", "tx", "redirect")}
        if came_to[self._verdict] != count:
            raise Mismatch(f"ours, {self._stream.flows} flows: of {count} packets "
                           f"{came_to[self._verdict]} had verdict {self._verdict.upper()}")
        return ns

    def sample(self, count: int) -> Sample:
        """In chunks, of which the median counts: the kernel's test run lets nobody interrupt it."""
        chunk = count // _CHUNKS
        floors, raws = zip(*((self._idle.run(chunk), self.run(chunk)) for _ in range(_CHUNKS)),
                           strict=True)
        floor, raw = statistics.median(floors), statistics.median(raws)
        return {"floor": floor, "raw": raw, "net": raw - floor}

    def last(self) -> tuple[int, bytes]:
        return self._stream.number(self._raw.port.random), self._raw.port.last(
            self._change.head, len(self._change.after))


# ---- both ----------------------------------------------------------------------------------------

def compare(kernel: KernelFlows, ours: OurFlows, ignored: Sequence[str]) -> int:
    """How many map entries were compared; then the last packets.  Raises Mismatch."""
    compared = spot_check(kernel.maps, ours.maps, ignored)
    (number, theirs_out), (mine, our_out) = kernel.last(), ours.last()
    if number != mine:
        raise Mismatch(f"flows: the last one is {number} in the kernel, {mine} here")
    single = kernel.once(number)
    for who, got in (("kernel", theirs_out), ("ours", our_out)):
        if got != single:
            raise Mismatch(f"flows, {who}: the last packet is not that of a single run")
    return compared
