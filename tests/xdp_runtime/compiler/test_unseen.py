"""Which programs look at no packet, and say the same of all."""

from __future__ import annotations

import pytest

from tests.dpdk.rig import ROOT
from xdp_runtime.asm import assemble
from xdp_runtime.compiler.unseen import verdict_unseen
from xdp_runtime.elf import read_object

COUNT = """
r1 = 0
*(u32 *)(r10 - 4) = r1
r2 = r10
r2 += -4
r1 = map[m] ll
call bpf_map_lookup_elem
if r0 == 0 goto +3
r1 = *(u64 *)(r0 + 0)
r1 += 1
*(u64 *)(r0 + 0) = r1
r0 = {}
exit
"""


@pytest.mark.parametrize(("text", "verdict"), [
    ("r0 = 3\nexit", 3),
    ("w0 = 1\nexit", 1),
    (COUNT.format(3), 3),
    ("call bpf_get_prandom_u32\nif r0 == 0 goto +2\nr0 = 3\nexit\nr0 = 3\nexit", 3),
    # two verdicts, or one that is not known
    ("call bpf_get_prandom_u32\nif r0 == 0 goto +2\nr0 = 3\nexit\nr0 = 1\nexit", -1),
    ("call bpf_get_prandom_u32\nexit", -1),
    ("r0 = 3\nr0 += 1\nexit", -1),
    ("r0 = 3\nr2 = 0\nif r2 == 0 goto +1\nr0 = 1\nexit", -1),
    ("r0 = -1\nexit", -1),
    # the context is looked at, handed on, or kept
    ("r2 = *(u32 *)(r1 + 0)\nr0 = 3\nexit", -1),
    ("r6 = r1\nr0 = 3\nexit", -1),
    ("r2 = 4\ncall bpf_xdp_adjust_head\nr0 = 3\nexit", -1),
    ("call pc+2\nr0 = 3\nexit\nr0 = 1\nexit", -1),
])
def test_verdicts(text: str, verdict: int) -> None:
    assert verdict_unseen(assemble(text, ["m"])) == verdict


@pytest.mark.parametrize(("example", "verdict"), [("drop", 1), ("pass", 2), ("tx", -1),
                                                  ("counter", -1), ("redirect", -1)])
def test_examples(example: str, verdict: int) -> None:
    obj = read_object(ROOT / "examples" / f"{example}.o")
    assert verdict_unseen(obj.programs[0].insns) == verdict
