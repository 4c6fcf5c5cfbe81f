"""docs/helpers.md says what the records say; what cannot run is refused with its reason.

That the list is the kernel's is asked in verifier/test_prototypes.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.xdp_runtime.oracle import one_program
from xdp_runtime.errors import LoadError
from xdp_runtime.helpers import HELPERS
from xdp_runtime.helpers.refused import REFUSED
from xdp_runtime.helpers.table import LIMITS, State, in_xdp, state_of, write
from xdp_runtime.isa import Call, Exit, Imm, Mov
from xdp_runtime.program import load

PAGE = Path(__file__).parents[3] / "docs" / "helpers.md"


def test_the_page_is_what_the_records_say() -> None:
    assert PAGE.read_text() == "\n".join(write()) + "\n", (
        "python -m xdp_runtime.helpers.table > docs/helpers.md")


def test_runs_or_refused_not_both() -> None:
    assert not [HELPERS[number].name for number in REFUSED if HELPERS[number].runs]
    assert all(HELPERS[number].runs for number in LIMITS)
    assert {helper.id for helper in in_xdp() if state_of(helper) is State.REFUSED} == set(REFUSED)


def test_what_runs_has_a_meaning() -> None:
    """Whatever is compiled is interpreted, too."""
    assert not [helper.name for helper in in_xdp()
                if state_of(helper) is State.RUNS and helper.interpret is None]


@pytest.mark.parametrize("number", [14, 15, 17, 35, 80])
def test_refused_with_the_reason(number: int) -> None:
    obj = one_program([Call(number), Mov(True, 0, Imm(2)), Exit()])
    with pytest.raises(LoadError) as refusal:
        load(obj)
    assert REFUSED[number] in str(refusal.value) and HELPERS[number].name in str(refusal.value)
