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
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench.agree import LOOPBACK, UNCOMPARED, Mismatch, Unfit
from bench.samples import stamp
from bench.sides import Sample
from bench.wrapper import Change, Wrapper
from dataplane.block import SKB_SHARED_INFO_BYTES, Block
from dataplane.engine import Engine
from dataplane.port import (
    BATCH_MAX,
    COOKIE,
    DATA,
    DATA_END,
    FLUSH_SIGNATURE,
    FRAME_END,
    HARD_START,
    RECEIVE_SIGNATURE,
    RELEASE_SIGNATURE,
    SEND_SIGNATURE,
    SLOT_SIZE_BYTES,
    TRANSMIT_SIGNATURE,
    PortKind,
    PortQueue,
)
from xdp_runtime.kernel import KernelProgram
from xdp_runtime.kernel_map import KernelMap
from xdp_runtime.maps.map import Map
from xdp_runtime.object import MapSpec, MapType, Object
from xdp_runtime.state import HEADROOM_BYTES, XDP_FRAME_BYTES
from xdp_runtime.template import Template

_A, _C = 6364136223846793005, 1442695040888963407  # D. Knuth, MMIX
_SEED = 88172645463325252
_U64 = (1 << 64) - 1
_ZERO_KEY = bytes(4)
_PROBES = 64  # flows that tell which bytes the program overwrites
_SPOT_KEYS = 2000
_TCP, _UDP = 6, 17
_WAIT_S = 120
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
        "r1 = map_value[flows] ll", "r2 = *(u64 *)(r1 + 0)", f"r3 = {_A} ll", "r2 *= r3",
        f"r3 = {_C} ll", "r2 += r3", "*(u64 *)(r1 + 0) = r2", "r2 >>= 32",
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
            flows.update(_ZERO_KEY, struct.pack("=Q", _SEED))
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

# the port's memory
(_LEFT, _RANDOM, _FLOWS, _FRAMES, _PACKET, _LENGTH, _PORT_AT, _PORT, _CHECK_AT, _REST,
 _SOURCE_AT, _SOURCE, _HEADER_CHECK_AT, _HEADER_REST, _LAST) = range(0, 120, 8)
_STRIDE_BYTES = 4096  # as of a umem


def _receive(m: Any) -> Callable[..., Any]:
    def flows_receive(q, batch, budget):  # type: ignore[no-untyped-def]
        left, x, flows = m.load_u64(q, _LEFT), m.load_u64(q, _RANDOM), m.load_u64(q, _FLOWS)
        frames, packet, length = (
            m.load_ptr(q, _FRAMES), m.load_ptr(q, _PACKET), m.load_u64(q, _LENGTH))
        port_at, port, source_at, source = (
            m.load_u64(q, _PORT_AT), m.load_u64(q, _PORT), m.load_u64(q, _SOURCE_AT),
            m.load_u64(q, _SOURCE))
        check_at, rest, header_check_at, header_rest = (
            m.load_u64(q, _CHECK_AT), m.load_u64(q, _REST), m.load_u64(q, _HEADER_CHECK_AT),
            m.load_u64(q, _HEADER_REST))
        n = 0
        while n < budget and n < BATCH_MAX and n < left:
            frame = m.inside(frames, n * _STRIDE_BYTES)
            data = m.inside(frame, HEADROOM_BYTES)
            m.copy(data, packet, length)
            x = m.add(m.mul(x, _A), _C)
            number = m.lshr(m.lshr(x, 32) * flows, 32)
            new_port = (port + number) & 0xFFFF
            address = (source + number) & 0xFFFFFFFF
            both = (address >> 16) + (address & 0xFFFF)
            m.store_u16(data, port_at, m.swap16(new_port))
            m.store_u32(data, source_at, m.swap32(address))
            if header_check_at != 0:
                total = header_rest + both
                total = (total & 0xFFFF) + (total >> 16)
                total = (total & 0xFFFF) + (total >> 16)
                m.store_u16(data, header_check_at, m.swap16(total ^ 0xFFFF))
            if check_at != 0:
                total = rest + both + new_port
                total = (total & 0xFFFF) + (total >> 16)
                total = (total & 0xFFFF) + (total >> 16)
                m.store_u16(data, check_at, m.swap16(total ^ 0xFFFF))
            slot = m.inside(batch, n * SLOT_SIZE_BYTES)
            m.store_ptr(slot, DATA, data)
            m.store_ptr(slot, DATA_END, m.inside(data, length))
            m.store_ptr(slot, HARD_START, m.inside(frame, XDP_FRAME_BYTES))
            m.store_ptr(slot, FRAME_END, m.inside(frame, _STRIDE_BYTES - SKB_SHARED_INFO_BYTES))
            m.store_u64(slot, COOKIE, n)
            n += 1
        if n > 0:
            m.store_u64(q, _LAST, n - 1)
        m.store_u64(q, _LEFT, left - n)
        m.store_u64(q, _RANDOM, x)
        return n

    return flows_receive


def _always(parameters: str, answer: int) -> Callable[[Any], Callable[..., Any]]:
    def factory(m: Any) -> Callable[..., Any]:
        match parameters:
            case "q":
                return lambda q: answer
            case "q, slot":
                return lambda q, slot: answer
            case _:
                return lambda q, data, length: answer

    return factory


_STAMP = stamp(__file__)
FLOWS = PortKind(
    f"flows_{_STAMP}",
    receive=Template(f"flows_receive_{_STAMP}", _receive, RECEIVE_SIGNATURE),
    release=Template(f"flows_release_{_STAMP}", _always("q, slot", 0), RELEASE_SIGNATURE),
    transmit=Template(f"flows_transmit_{_STAMP}", _always("q, slot", 1), TRANSMIT_SIGNATURE),
    send=Template(f"flows_send_{_STAMP}", _always("q, data, length", 1), SEND_SIGNATURE),
    flush=Template(f"flows_flush_{_STAMP}", _always("q", 0), FLUSH_SIGNATURE),
)


class FlowPort:
    """A port on which a stream comes in; what becomes of its packets is nobody's business."""

    kind = FLOWS

    def __init__(self, stream: Stream) -> None:
        self.name, self.ifindex, self.mtu, self.mode = "flows", LOOPBACK, 1500, "made here"
        self._packet, self._frames = Block(4096), Block((BATCH_MAX + 1) * _STRIDE_BYTES)
        self.memory = Block(4096)
        self._packet.write(0, stream.packet)
        for offset, value in (
                (_RANDOM, _SEED), (_FLOWS, stream.flows), (_FRAMES, self._frames.address),
                (_PACKET, self._packet.address), (_LENGTH, len(stream.packet)),
                (_PORT_AT, stream.fields.port_at), (_PORT, stream.port),
                (_SOURCE_AT, stream.fields.source_at), (_SOURCE, stream.source),
                (_CHECK_AT, stream.fields.check_at), (_REST, stream.rest),
                (_HEADER_CHECK_AT, stream.fields.header_check_at),
                (_HEADER_REST, stream.header_rest)):
            self.memory.set(offset, value)
        self.queues: Sequence[PortQueue] = [PortQueue(0, self.memory.address, -1)]

    def offer(self, count: int) -> None:
        self.memory.set(_LEFT, count)

    @property
    def random(self) -> int:
        return self.memory.get(_RANDOM)

    def last(self, head: int, length: int) -> bytes:
        """The last packet, if its head has moved by so much."""
        at = self.memory.get(_LAST) * _STRIDE_BYTES + HEADROOM_BYTES - head
        return self._frames.read(at, length)

    def statistics(self) -> dict[str, int]:
        return {}

    def finished(self) -> bool:
        return self.memory.get(_LEFT) == 0

    def close(self) -> None:
        for block in (self._packet, self._frames, self.memory):
            block.close()


class _Loop:
    """The worker loop of a run around one program."""

    def __init__(self, obj: Object, program: str | None, stream: Stream, stack: ExitStack) -> None:
        self.port = stack.enter_context(closing(FlowPort(stream)))
        self.engine = stack.enter_context(closing(
            Engine(obj, [self.port], program=program, exit_when_idle=True)))

    def run(self, count: int) -> float:
        """ns a packet.  Raises Mismatch."""
        self.port.offer(count)
        started = time.perf_counter_ns()
        self.engine.start()
        if not self.engine.wait(_WAIT_S):
            raise Mismatch(f"ours, flows: the loop did not end within {_WAIT_S} s")
        return (time.perf_counter_ns() - started) / count


class OurFlows:
    name = "ours"

    def __init__(self, obj: Object, program: str | None, idle: Object, stream: Stream,
                 change: Change, verdict: str, stack: ExitStack) -> None:
        self._stream, self._change, self._verdict = stream, change, verdict
        self._raw = _Loop(obj, program, stream, stack)
        self._idle = _Loop(idle, None, stream, stack)
        self.program = self._raw.engine.program
        self.maps: dict[str, Map] = self.program.maps

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
        """In chunks, of which the median counts: the kernel's clock, too, leaves out when it gave
        the CPU to somebody else."""
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
    compared = 0
    for name, theirs in kernel.maps.items():
        if name in ignored or theirs.spec.type in UNCOMPARED or theirs.is_per_cpu:
            continue
        for at, key in enumerate(ours.maps[name].keys()):
            if at == _SPOT_KEYS:
                break
            if ours.maps[name].lookup(key) != theirs.lookup(key):
                raise Mismatch(f"flows: map {name} differs at key {key.hex()}")
            compared += 1
    (number, theirs_out), (mine, our_out) = kernel.last(), ours.last()
    if number != mine:
        raise Mismatch(f"flows: the last one is {number} in the kernel, {mine} here")
    single = kernel.once(number)
    for who, got in (("kernel", theirs_out), ("ours", our_out)):
        if got != single:
            raise Mismatch(f"flows, {who}: the last packet is not that of a single run")
    return compared
