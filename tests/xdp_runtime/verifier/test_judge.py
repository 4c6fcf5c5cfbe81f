"""The judge by itself, and what it says of the programs that we accept and the kernel does not."""

from __future__ import annotations

import pytest

from tests.xdp_runtime.verifier.cases import all_cases
from tests.xdp_runtime.verifier.judge import judge
from tests.xdp_runtime.verifier.randprog import random_program
from xdp_runtime.asm import assemble
from xdp_runtime.object import Object, ProgramSpec
from xdp_runtime.verifier import verify

# Refused by the kernel for memory safety, because it could not see that they are safe.
SAFE = (110890, 59505, 173883, 221606, 338865, 395232, 496447, 518283)


def program(text: str) -> Object:
    return Object("judged", (ProgramSpec("main", "xdp", "xdp", assemble(text)),), (), "GPL")


PACKET = """
    r2 = *(u32 *)(r1 + 0)
    r3 = *(u32 *)(r1 + 4)
    r4 = r2
    r4 += {checked}
    if r4 > r3 goto out
    r0 = *(u{bits} *)(r2 + {at})
    out:
    r0 = 2
    exit
"""


@pytest.mark.parametrize("seed", SAFE)
def test_what_is_safe_though_the_kernel_cannot_see_it(seed: int) -> None:
    obj = random_program(seed)
    assert not verify(obj, obj.programs[0]).ok
    assert judge(obj)[0] == "safe"


@pytest.mark.parametrize(("checked", "bits", "at", "verdict"), [
    (14, 16, 12, "safe"), (14, 16, 13, "unsafe"), (14, 8, 13, "safe"), (14, 8, 14, "unsafe"),
    (14, 64, 6, "safe"), (14, 64, 7, "unsafe"), (14, 8, -1, "unsafe")])
def test_one_byte_decides(checked: int, bits: int, at: int, verdict: str) -> None:
    text = PACKET.format(checked=checked, bits=bits, at=at).replace("+ -", "- ")
    assert judge(program(text))[0] == verdict


def test_numbers_are_followed_through_bits() -> None:
    """A number known only by what two comparisons and a shift leave of it indexes the stack."""
    text = """
        r6 = *(u32 *)(r1 + 12)
        r6 s>>= 1
        if r6 & {mask} goto out
        r2 = r10
        r2 += -8
        r2 += r6
        *(u8 *)(r2 + 0) = 1
        out:
        r0 = 2
        exit
    """
    assert judge(program(text.format(mask=0x7ffffff8)))[0] == "safe"
    assert judge(program(text.format(mask=0x7ffffff0)))[0] == "unsafe"


def test_what_was_never_written() -> None:
    assert judge(program("r0 = r3\nexit"))[0] == "unsafe"
    assert judge(program("r0 = 2\nexit"))[0] == "safe"


def test_it_finds_what_is_wrong_in_the_corpus() -> None:
    """Of what the kernel refuses for reaching where nothing is known to be.  It also refuses what
    it cannot follow, so `safe` is no contradiction."""
    found: dict[str, int] = {"safe": 0, "unsafe": 0, "unknown": 0}
    for case in all_cases():
        if case.verdict == "refuse" and case.kind in ("bounds", "null", "uninit", "stack"):
            found[judge(case.object)[0]] += 1
    assert found["unsafe"] > 150
    assert found["unsafe"] > 2 * found["safe"]
