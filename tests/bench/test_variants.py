"""Many flows and cold caches: both sides get the same packets, and a run that does less is seen."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack
from dataclasses import replace

import pytest

from bench import frames, prog, variants
from bench.agree import Mismatch, Unfit
from bench.cases import Case, choose
from bench.cold import walk_bytes
from bench.flows import KernelFlows, OurFlows, Stream, compare, fields_of, overwritten
from bench.rig import Rig, idle
from bench.sides import KernelSide
from bench.uxdp import CASES
from bench.wrapper import observe
from tests.privileges import needs_bpf
from xdp_runtime.kernel import load_into_kernel
from xdp_runtime.state import Verdict

pytestmark = needs_bpf()
ONE = {case.name.removeprefix("uxdp/"): case for case in CASES}
PLAN = prog.Plan(500, 2)


def checksummed(packet: bytes, at: int) -> bytes:
    """With the transport checksum that it should have."""
    packet = packet[:at] + bytes(2) + packet[at + 2:]
    return packet[:at] + struct.pack("!H", frames.checksum(covered(packet))) + packet[at + 2:]


def covered(packet: bytes) -> bytes:
    """Pseudo header and segment."""
    if packet[12:14] == b"\x08\x00":
        length = int.from_bytes(packet[16:18], "big") - 20
        head = packet[26:34] + struct.pack("!HH", packet[23], length)
        segment = packet[34:34 + length]
    else:
        length = int.from_bytes(packet[18:20], "big")
        head = packet[22:54] + struct.pack("!IHH", length, 0, packet[20])
        segment = packet[54:54 + length]
    return head + segment + bytes(len(segment) & 1)


TCP4 = checksummed(frames.tcp4(80), 50)
UDP4 = checksummed(frames.udp4(80), 40)
UDP6 = checksummed(frames.udp6(80), 60)


@pytest.mark.parametrize("packet", [TCP4, UDP4, UDP6, frames.udp4(80)])
@pytest.mark.parametrize("number", [0, 1, 65_535, 65_536, 1_048_575, 4_000_000_000])
def test_a_flow_has_its_own_source_and_right_checksums(packet: bytes, number: int) -> None:
    fields = fields_of(packet)
    assert fields is not None
    flow = Stream(packet, fields, 1 << 32).flow(number)
    if number == 0:
        assert flow == packet
    if packet[12:14] == b"\x08\x00":
        assert frames.checksum(flow[14:34]) == 0
        source = int.from_bytes(socket.inet_aton(frames.PEER_IP4), "big")
        assert int.from_bytes(flow[26:30], "big") == (source + number) & 0xFFFFFFFF
    if fields.check_at:
        assert frames.checksum(covered(flow)) == 0
    else:
        assert flow[40:42] == bytes(2)
    assert len({Stream(packet, fields, 99).flow(n) for n in range(99)}) == 99


@pytest.mark.parametrize("packet", [frames.arp(), frames.echo4(), frames.lldp(),
                                    UDP4[:20] + b"\x20\x00" + UDP4[22:]])
def test_what_has_no_flow(packet: bytes) -> None:
    assert fields_of(packet) is None


@pytest.mark.parametrize("name", ["maps", "lb", "tunnel", "balancer"])
def test_flows_are_the_same_on_both_sides(name: str) -> None:
    """Programs that count, that rewrite, that encapsulate; maps and last packets are compared."""
    case = replace(ONE[name], packet=TCP4 if name in ("lb", "balancer") else UDP4)
    row = prog.measure(case, replace(PLAN, flows=(1, 200)))
    assert row["ok"], row
    assert [(one["flows"], len(one["ours"]["samples"]["net"])) for one in row["flows"]] == [
        (1, 2), (200, 2)]
    assert any(text.startswith("200 flows: kernel ") for text in prog.remarks(row))


def pair(case: Case, stack: ExitStack, flows: int = 50) -> tuple[KernelFlows, OurFlows]:
    rig = Rig(case, ("kernel", "ours"), stack)
    assert rig.engines.kernel is not None and case.verdict is not None
    fields = fields_of(case.packet)
    assert fields is not None
    stream = Stream(case.packet, fields, flows)
    change, verdict = observe(rig.engines.kernel, case.packet)
    kernel = KernelFlows(stack.enter_context(load_into_kernel(rig.object)),
                         stack.enter_context(load_into_kernel(rig.object)), stream, change,
                         verdict, stack)
    ours = OurFlows(rig.object, None, idle(), stream, change, case.verdict.name.lower(), stack)
    return kernel, ours


def test_a_packet_more_or_a_wrong_count_is_seen() -> None:
    case = ONE["maps"]
    with ExitStack() as stack:
        kernel, ours = pair(case, stack)
        kernel.run(1000)
        ours.run(1000)
        assert compare(kernel, ours, ()) >= 50
        ours.run(1)
        with pytest.raises(Mismatch, match="map senders: differs"):
            compare(kernel, ours, ())
        with pytest.raises(Mismatch, match="the last one is"):
            compare(kernel, ours, ("senders",))


def test_another_verdict_in_the_loop_is_seen() -> None:
    with ExitStack() as stack:
        _, ours = pair(ONE["maps"], stack)
        ours.program.raw_maps["settings"].update(bytes(4), struct.pack("=I", Verdict.PASS))
        with pytest.raises(Mismatch, match="of 100 packets 0 had verdict DROP"):
            ours.run(100)


def test_flows_that_go_different_ways_are_not_measured_and_it_is_said() -> None:
    case = ONE["firewall-drop"]
    row = prog.measure(case, replace(PLAN, flows=(100,)))
    assert row["ok"] and "flows" not in row
    assert "does not go the way of the others: verdict 3" in row["notes"][0]


def test_bytes_to_write_back_are_those_of_all_flows() -> None:
    """tx swaps the MACs of all; lb writes addresses and sums that differ from flow to flow."""
    case = replace(ONE["lb"], packet=TCP4)
    with ExitStack() as stack:
        rig = Rig(case, ("kernel", "ours"), stack)
        assert rig.engines.kernel is not None
        fields = fields_of(TCP4)
        assert fields is not None
        change, verdict = observe(rig.engines.kernel, TCP4)
        spans = overwritten(rig.engines.kernel, Stream(TCP4, fields, 1000), change, verdict)
    touched = {at for start, end in spans for at in range(start, end)}
    assert touched >= {at for start, end in change.overwritten() for at in range(start, end)}
    assert {5, 24, 25, 33, 50, 51} <= touched


# ---- cold caches ---------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["tx", "tunnel", "maps"])
def test_cold_runs_do_the_same_work(name: str) -> None:
    with ExitStack() as stack:
        rig = Rig(ONE[name], ("kernel", "ours"), stack)
        samples = variants.cold(rig, 1)
    assert set(samples) == {"kernel", "ours"}
    for taken in samples.values():
        assert taken[0]["raw"] > 0 and taken[0]["floor"] > 0
    assert walk_bytes() >= 1 << 20


def test_a_cold_run_with_another_outcome_is_seen() -> None:
    from bench import wrapper

    case = ONE["tx"]
    with ExitStack() as stack:
        rig = Rig(case, ("kernel", "ours"), stack)
        right = wrapper.Change(case.packet, case.packet[6:12] + case.packet[:6] + case.packet[12:])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(variants, "_behaviour", lambda rig: (right, int(Verdict.TX)))
            assert variants.cold(rig, 1)
            patch.setattr(variants, "_behaviour", lambda rig: (right, int(Verdict.DROP)))
            with pytest.raises(Mismatch, match="kernel, cold, raw: the last verdict is 3, not 1"):
                variants.cold(rig, 1)


def test_what_cannot_be_varied_is_said() -> None:
    row = prog.measure(choose(["icmp_echo"])[0], replace(PLAN, flows=(10,)))
    assert row["ok"] and row["notes"] == ["many flows: the packet is neither TCP nor UDP"]
    row = prog.measure(ONE["observer"], replace(PLAN, flows=(10,)))
    assert "a ring buffer that nobody reads" in row["notes"][0]
    with pytest.raises(Unfit), ExitStack() as stack:
        variants.flows(Rig(choose(["icmp_echo"])[0], ("ours",), stack), 10, 100, 1)


def test_kernel_side_is_still_plain_where_nothing_changes() -> None:
    with ExitStack() as stack:
        rig = Rig(ONE["maps"], ("kernel",), stack)
        side = rig.sides()[0]
        assert isinstance(side, KernelSide) and side.method == "plain"
