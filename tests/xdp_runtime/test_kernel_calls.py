"""Calls of kernel functions, turned into what the running kernel takes."""

from __future__ import annotations

import pytest

from tests.privileges import needs_bpf
from tests.xdp_runtime.oracle import agree, one_program
from xdp_runtime import kernel_calls
from xdp_runtime.errors import LoadError
from xdp_runtime.helper_names import KERNEL_FUNCTIONS
from xdp_runtime.isa import Call, CallKfunc, Exit, Imm, Mov
from xdp_runtime.kernel_calls import for_kernel

LOCK, UNLOCK = (KERNEL_FUNCTIONS[f"bpf_rcu_read_{word}"] for word in ("lock", "unlock"))
INSNS = (Call(LOCK), Call(UNLOCK), Mov(True, 0, Imm(2)), Exit())


def test_by_the_ids_of_this_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {"bpf_rcu_read_lock": 7, "bpf_rcu_read_unlock": 9}
    monkeypatch.setattr(kernel_calls, "function_ids", lambda: ids)
    assert for_kernel(INSNS) == (CallKfunc(7, 0), CallKfunc(9, 0), *INSNS[2:])
    del ids["bpf_rcu_read_unlock"]
    with pytest.raises(LoadError, match="bpf_rcu_read_unlock"):
        for_kernel(INSNS)


def test_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_calls, "function_ids", lambda: pytest.fail("not needed"))
    plain = (Call(5), *INSNS[2:])
    assert for_kernel(plain) is plain


@pytest.mark.root
@needs_bpf()[1]
def test_the_kernel_takes_it() -> None:
    assert agree(INSNS).verdict == 2
    assert one_program(INSNS).programs[0].insns == INSNS
