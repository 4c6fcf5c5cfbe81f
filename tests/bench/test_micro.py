"""bench.micro: both sides do the same work, and it is seen when they do not."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.micro import many
from bench.micro.__main__ import cells, line
from bench.micro.cases import Goal, build, choose
from bench.micro.measure import is_met, measure
from bench.prog import Mismatch
from tests.privileges import needs_bpf
from xdp_runtime.elf import read_object

pytestmark = [*needs_bpf(), pytest.mark.skipif(shutil.which("clang") is None,
                                               reason="the programs are C: clang")]


@pytest.mark.parametrize("name", ["mac_swap", "percpu_counter", "hash_update", "tail_call",
                                  "ring_output", "lru_insert", "flow_table_1k"])
def test_kernel_and_ours_agree_and_are_timed(name: str, tmp_path: Path) -> None:
    row = measure(choose([name])[0], tmp_path, repeat=2000, rounds=2)
    assert row["ok"], row
    assert len(row["ours"]["samples"]["raw"]) == 2
    assert row["kernel"]["raw"]["median"] > 0
    assert name in line(cells(row))


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


def test_goals() -> None:
    row = {"ratio": {"median": 2.1}, "ours": {"net": {"median": 9.0}},
           "native": {"ratio": None, "gross_ratio": {"median": 1.4}}}
    assert is_met(Goal("kernel", 2), row)
    assert not is_met(Goal("kernel", 2.5), row)
    assert is_met(Goal("ns", 10), row)
    assert not is_met(Goal("native", 1.3), row)
