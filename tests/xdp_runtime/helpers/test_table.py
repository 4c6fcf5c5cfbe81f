"""docs/helpers.md says what the records say; what cannot run is refused with its reason.

That the list of helpers is the kernel's is asked in verifier/test_prototypes.py, that of kernel
functions here.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.oracle import one_program
from tests.xdp_runtime.verifier.kernel_load import load as ask
from xdp_runtime.errors import LoadError
from xdp_runtime.helper_names import FIRST_FUNCTION, KERNEL_FUNCTIONS
from xdp_runtime.helpers import HELPERS
from xdp_runtime.helpers.refused import REFUSED
from xdp_runtime.helpers.table import (
    FUNCTION_LIMITS,
    LIMITS,
    State,
    in_xdp,
    state_of,
    write,
)
from xdp_runtime.isa import Call, CallKfunc, Exit, Imm, Mov
from xdp_runtime.kernel_calls import function_ids
from xdp_runtime.program import load
from xdp_runtime.refused_functions import REFUSED_FUNCTIONS

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


@pytest.mark.parametrize("number", [14, 15, 17, 35, 80, 158])
def test_refused_with_the_reason(number: int) -> None:
    obj = one_program([Call(number), Mov(True, 0, Imm(2)), Exit()])
    with pytest.raises(LoadError) as refusal:
        load(obj)
    assert REFUSED[number] in str(refusal.value) and HELPERS[number].name in str(refusal.value)


# what the kernel says of what is no kernel function for XDP programs, which may not sleep
_NOT_FOR_XDP = ("is not allowed", "must be sleepable", "cannot find address", "variable args",
                "arguments. Too many")


@pytest.mark.root
@needs_bpf()[1]
def test_every_kernel_function_is_listed() -> None:
    """As the kernel's verifier has it: of those that an XDP program may call none is missing, and
    none is listed that it may not call."""
    callable_ = {"__bpf_trap"}  # whose name does not begin as the others'
    for name, number in function_ids().items():
        answer = ask((CallKfunc(number, 0), Mov(True, 0, Imm(2)), Exit()), [])
        if not any(word in answer.line for word in _NOT_FOR_XDP):
            callable_.add(name)
    assert {*KERNEL_FUNCTIONS, *REFUSED_FUNCTIONS} == callable_


def test_kernel_functions_run_or_are_refused_not_both() -> None:
    assert not {*KERNEL_FUNCTIONS} & {*REFUSED_FUNCTIONS}
    assert {*FUNCTION_LIMITS} <= {*KERNEL_FUNCTIONS}
    known = {helper.id for helper in HELPERS.values() if helper.id >= FIRST_FUNCTION}
    assert known == set(KERNEL_FUNCTIONS.values())
    assert all(HELPERS[number].runs and HELPERS[number].interpret is not None for number in known)
