"""Batches in one pass: what becomes of packets of all verdicts, changed and not, in one batch."""

from __future__ import annotations

import random
from pathlib import Path

from dpdk.port import OWN_IFINDEX
from tests.dpdk.rig import MARKS, Rig, packet
from xdp_runtime.state import Verdict

pytestmark = MARKS
KINDS = (Verdict.TX, Verdict.REDIRECT, Verdict.DROP, Verdict.PASS, Verdict.ABORTED)


def changed(given: bytes, head: int, tail: int) -> bytes:
    """The packet without what the program cannot know: new bytes in front, and new zeros behind."""
    shorter = given[max(head, 0):len(given) + min(tail, 0)]
    return shorter + bytes(max(tail, 0))


def test_verdicts_and_sizes_mixed(tmp_path: Path) -> None:
    rng = random.Random(4)
    orders = [(rng.choice(KINDS), rng.choice((0, 0, 0, 14, 46, -8, -40, -216)),
               rng.choice((0, 0, 0, 7, -3))) for _ in range(3000)]
    given = [packet(rng, rng.randint(90, 1500), verdict, OWN_IFINDEX + 1, head=head, tail=tail)
             for verdict, head, tail in orders]
    rig = Rig(tmp_path, given, "linear")
    for out, verdict in zip(rig.out, (Verdict.TX, Verdict.REDIRECT), strict=True):
        wanted = [(changed(one, head, tail), max(-head, 0))
                  for one, (its, head, tail) in zip(given, orders, strict=True) if its == verdict]
        assert [one[new:] for one, (_, new) in zip(out, wanted, strict=True)] == \
            [one for one, _ in wanted]
        assert [len(one) for one in out] == [len(one) + new for one, new in wanted]
        assert rig.total[verdict.name.lower()] == len(wanted)
    for verdict in (Verdict.DROP, Verdict.PASS, Verdict.ABORTED):
        assert rig.total[verdict.name.lower()] == sum(its == verdict for its, _, _ in orders)
    sent = sum(map(len, rig.out[0])) + sum(map(len, rig.out[1]))
    assert (rig.total["rx_bytes"], rig.total["tx_bytes"]) == (sum(map(len, given)), sent)
    assert rig.said["ports"][0]["tx_moved"] > 0


def test_what_fits_no_mbuf_is_left_out_wherever_it_is_in_a_batch(tmp_path: Path) -> None:
    rng = random.Random(5)
    orders = [(rng.choice((Verdict.TX, Verdict.TX, Verdict.DROP, Verdict.PASS)),
               9000 if rng.random() < share else rng.randint(90, 2048))
              for share in (0.01, 0.1, 0.6, 1, 0) for _ in range(300)]
    given = [packet(rng, size, verdict) for verdict, size in orders]
    fit = [(one, verdict) for one, (verdict, size) in zip(given, orders, strict=True)
           if size <= 2048]
    rig = Rig(tmp_path, given, "linear", unfit=len(given) - len(fit))
    assert rig.out[0] == [one for one, verdict in fit if verdict == Verdict.TX]
    for verdict in (Verdict.DROP, Verdict.PASS):
        assert rig.total[verdict.name.lower()] == sum(its == verdict for _, its in fit)
    assert rig.total["rx_bytes"] == sum(len(one) for one, _ in fit)
    assert rig.said["ports"][0]["rx_unfit"] == len(given) - len(fit)
