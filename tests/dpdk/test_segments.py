"""Packets of several mbufs on virtual devices."""

from __future__ import annotations

import random
from pathlib import Path

from dpdk.port import OWN_IFINDEX
from tests.dpdk.rig import MARKS, Rig, packet
from xdp_runtime.state import Verdict

SIZES = (60, 1500, 2048, 2049, 4096, 9000, 9014, 16000)  # net_pcap writes at most 16,128
pytestmark = MARKS


def test_sent_back_and_redirected(tmp_path: Path) -> None:
    rng = random.Random(1)
    given = [packet(rng, size, verdict, OWN_IFINDEX + 1) for _ in range(100) for size in SIZES
             for verdict in (Verdict.TX, Verdict.REDIRECT, Verdict.DROP, Verdict.PASS)]
    rig = Rig(tmp_path, given)
    assert rig.out[0] == [one for one in given if one[14] == Verdict.TX]
    assert rig.out[1] == [one for one in given if one[14] == Verdict.REDIRECT]
    assert rig.total["rx_bytes"] == sum(map(len, given))
    assert rig.total["drop"] == rig.total["pass"] == 800
    assert all("multi-buffer" in mode for mode in rig.said["modes"])


def test_changed(tmp_path: Path) -> None:
    rng = random.Random(2)
    given = [packet(rng, 9000, Verdict.TX, tail=-5), packet(rng, 9000, Verdict.TX, tail=-7500),
             packet(rng, 9000, Verdict.TX, tail=9), packet(rng, 9000, Verdict.TX, head=30),
             packet(rng, 9000, Verdict.TX, pull=2100), packet(rng, 2100, Verdict.TX, pull=2100),
             packet(rng, 3000, Verdict.TX, head=-100, tail=-30)]
    out = Rig(tmp_path, given).out[0]
    assert out[:6] == [given[0][:-5], given[1][:-7500], given[2] + bytes(9), given[3][30:],
                       given[4], given[5]]
    assert out[6][100:] == given[6][:-30]


def test_a_program_of_one_buffer_gets_what_fits_one(tmp_path: Path) -> None:
    rng = random.Random(3)
    given = [packet(rng, size, Verdict.TX) for size in (60, 9000, 2048)]
    rig = Rig(tmp_path, given, "linear", unfit=1)
    assert rig.out[0] == [given[0], given[2]]
    assert rig.said["ports"][0]["rx_unfit"] == 1
