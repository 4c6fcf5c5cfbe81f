"""Basic blocks, and the control flow that is refused before anything is verified."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.xdp_runtime.insns import INSNS, as_slots
from xdp_runtime.cfg import Block, build_cfg, reachable, to_dot
from xdp_runtime.disasm import assemble
from xdp_runtime.elf import read_object
from xdp_runtime.errors import VerifyError
from xdp_runtime.isa import Insn

OBJECTS = Path(__file__).parent / "objects"


def test_straight_line_is_one_block() -> None:
    assert build_cfg(assemble("r0 = 2\nexit")) == {0: Block(0, 2, ())}


def test_diamond() -> None:
    blocks = build_cfg(assemble("""
        r0 = 0x1 ll
        if r1 > 5 goto big
        r0 = 1
        goto end
    big:
        r0 = 2
    end:
        exit
    """))
    assert list(blocks.values()) == [
        Block(0, 3, (3, 5)), Block(3, 5, (6,)), Block(5, 6, (6,)), Block(6, 7, ())]


def test_loop_and_may_goto() -> None:
    blocks = build_cfg(assemble("top: \n r0 += 1 \n may_goto end \n goto top \n end: \n exit"))
    assert blocks == {0: Block(0, 2, (2, 3)), 2: Block(2, 3, (0,)), 3: Block(3, 4, ())}


def test_jump_to_the_next_instruction_has_one_successor() -> None:
    assert build_cfg(assemble("if r1 == 0 goto +0\nexit"))[0].successors == (1,)


def test_called_function_is_blocks_of_its_own() -> None:
    blocks = build_cfg(assemble("call f\nexit\nf:\nr0 = 0\nexit"))
    assert blocks == {0: Block(0, 2, ()), 2: Block(2, 4, ())}
    assert reachable(blocks) == {0}


def test_unreachable_code_is_allowed() -> None:
    blocks = build_cfg(assemble("exit\nr0 = 1\nexit"))
    assert list(blocks) == [0, 1]
    assert reachable(blocks) == {0}


@pytest.mark.parametrize(("text", "insn", "why"), [
    ("r0 = 0\ngoto +1\nexit", 1, "leaves the program"),
    ("goto -2\nexit", 0, "leaves the program"),
    ("if r1 == 0 goto +1\nr0 = 1 ll\nexit", 0, "middle of a 64-bit load"),
    ("call pc+1\nr0 = 1 ll\nexit", 0, "middle of a 64-bit load"),
    ("call pc+9\nexit", 0, "call to 10 leaves"),
    ("r1 = func[-9] ll\nexit", 0, "leaves the program"),
    ("r0 = 1", 0, "falls off the end of the program"),
    ("exit\nr0 = 1 ll", 1, "falls off the end of the program"),
    ("exit\nif r1 == 0 goto -2", 1, "falls off the end of the program"),
    ("call f\nf:\nr0 = 0\nexit", 0, "falls off the end of its function"),
    ("call f\ngoto g\nf:\nr0 = 0\ng:\nexit", 1, "in another function"),
    ("", None, "has no instructions"),
])
def test_refused(text: str, insn: int | None, why: str) -> None:
    with pytest.raises(VerifyError, match=why) as error:
        build_cfg(assemble(text))
    assert error.value.insn == insn


@given(st.lists(INSNS, min_size=1, max_size=12))
def test_blocks_partition_whatever_is_accepted(insns: list[Insn]) -> None:
    slots = as_slots(insns)
    try:
        blocks = build_cfg(slots)
    except VerifyError as error:
        assert error.insn is not None
        assert slots[error.insn] is not None
        return
    ends = [b.end for b in blocks.values()]
    assert [0, *ends[:-1]] == list(blocks)
    assert ends[-1] == len(slots)
    assert all(s in blocks for b in blocks.values() for s in b.successors)


def test_dot_shows_every_instruction_and_function() -> None:
    obj = read_object(OBJECTS / "globals.o")
    spec = obj.program("xdp_globals")
    dot = to_dot(spec, obj)
    assert dot.count("{") == dot.count("}")
    assert dot.count("\\l") == sum(i is not None for i in spec.insns)
    for function in spec.functions:
        assert f'label="{function.name}"' in dot
    assert "map[counters]" in dot
    for start, block in build_cfg(spec.insns).items():
        for successor in block.successors:
            assert f"b{start} -> b{successor}" in dot
