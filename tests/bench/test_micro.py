"""bench.micro: both sides do the same work, and it is seen when they do not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.micro import many, native
from bench.micro.cases import Goal, build, choose
from bench.micro.measure import measure
from bench.micro.records import cells, judge, line, make, markdown, mismatch
from bench.prog import Mismatch
from tests.privileges import needs_bpf
from xdp_runtime.elf import read_object

pytestmark = [*needs_bpf(), pytest.mark.skipif(shutil.which("clang") is None,
                                               reason="the programs are C: clang")]


@pytest.mark.parametrize("name", ["mac_swap", "percpu_counter", "hash_update", "tail_call",
                                  "ring_output", "lru_insert", "flow_table_1k"])
def test_kernel_and_ours_agree_and_are_timed(name: str, tmp_path: Path) -> None:
    records = measure(choose([name])[0], tmp_path, repeat=2000, rounds=2)
    assert not any("mismatch" in record for record in records), records
    assert [r["engine"] for r in records[:2]] == ["kernel", "xdpu"]
    assert all(len(r["samples_ns"]) == len(r["raw_ns"]) == 2 for r in records)
    assert all(min(r["raw_ns"]) >= 0 for r in records)
    assert line(cells(records)).startswith(name)


@pytest.mark.parametrize("name", ["ipv4_checksum", "tuple_hash", "checksum_1400", "checksum_to_end",
                                  "strlen", "memcpy", "siphash", "array_counter"])
def test_clang_and_ours_agree_on_packets_and_verdict(name: str, tmp_path: Path) -> None:
    records = native.compare(choose([name])[0], tmp_path, count=100, rounds=2)
    assert [(r["engine"], r["way"]) for r in records] == [("xdpu", "call"), ("native", "call")]


def test_another_packet_by_clang_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "one_program",
                        partial(_another_program, native.one_program, "empty"))
    with pytest.raises(Mismatch, match="verdict or packet"):
        native.compare(choose(["mac_swap"])[0], tmp_path, count=100, rounds=1)


def _another_program(original: Callable[[str, str, Path], bytes], instead: str, source: str,
                     program: str, where: Path) -> bytes:
    return original(source, instead, where)


def test_a_stream_is_the_same_for_both_and_a_wrong_entry_is_seen(tmp_path: Path) -> None:
    micro = choose(["flow_table_1k"])[0]
    with ExitStack() as stack:
        obj = read_object(build(micro.source, tmp_path, *micro.flags))
        kernel, ours = many.prepare(obj, micro, tmp_path, stack)
        for side in (kernel, ours):
            side.run(5000)
        assert many.compare_maps(micro, kernel, ours) == 1024
        key = next(iter(ours.maps["table"].keys()))
        ours.maps["table"].update(key, bytes(16))
        with pytest.raises(Mismatch, match="differs at key"):
            many.compare_maps(micro, kernel, ours)


def _records(kernel: float, ours: float, native_ns: float) -> list[dict[str, Any]]:
    return [make("x", engine, way, [value + 2, value + 2], [value, value])
            for engine, way, value in (("kernel", "plain", kernel), ("xdpu", "plain", ours),
                                       ("xdpu", "call", ours), ("native", "call", native_ns))]


@pytest.mark.parametrize(("goal", "times", "met"), [
    (Goal("kernel", 2), (19, 9, 9), True),
    (Goal("kernel", 2.5), (19, 9, 9), False),
    (Goal("kernel", 2), (2, 0.1, 1), False),  # nothing to divide
    (Goal("ns", 10), (9, 10, 9), True),
    (Goal("ns", 10), (9, 10.1, 9), False),
    (Goal("native", 1.3), (9, 13, 10), True),
    (Goal("native", 1.3), (9, 14, 10), False),
    (Goal("native", 1.3), (9, 0.8, 0.4), True),  # with the loop: 2.8 to 2.4
    (Goal("native", 1.3), (9, 1.4, 0.4), False),
])
def test_goals(goal: Goal, times: tuple[float, float, float], met: bool) -> None:
    records = _records(*times)
    judge(goal, records)
    judged = [r for r in records if r["goal"]]
    assert [(r["goal"], r["met"], r["engine"]) for r in judged] == [(str(goal), met, "xdpu")]
    assert (judged[0]["way"] == "call") == (goal.against == "native")
    assert ("MISSED" in markdown(records)) != met


def test_a_mismatch_has_no_figures() -> None:
    assert line(cells([mismatch("x", "byte 3")])).split() == ["x", "MISMATCH", "byte", "3"]
